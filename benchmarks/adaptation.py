"""What `adapt` is worth on steel (NEU): error with and without it on streams that drift, and what it costs on others.

    python benchmarks/adaptation.py           # about ten minutes of one core, most of it for features, which are kept

A head (package:efficientnet_lite0, frozen) learns from every second training picture, 720; streams are of the other 720
and of the 360 test pictures, as they are, brighter (x 1.3 + 50, which clips), blurred (sigma 1.5 px) and noisy (sigma
20). Windows have 64 pictures, the false-alarm rate is 1 %. Errors are of three heads over the same pictures: `without`
is the head as it was; `before` is the adapted head as it stood when a window arrived; `with` is the one that has seen
the window without its labels, as in T3A's paper.

    drift      clean 2 windows, bright 4, clean 2, blur 4, clean 2, noise 4, clean 2; 5 streams, errors by kind
    ordered    the same, every stretch in the order of classes; 5 streams
    calm       20 streams of 16 clean windows, ten of them in the order of classes: alarms, and error with and without
    new        a head of five classes; from the third of 10 windows on the sixth class comes too; without labels, and
               with the labels of a sixth of the pictures; errors on the five classes, and on the sixth; 3 streams
    kills      `adapt` along 1,080 pictures, clean and bright in turn, killed 20 times on its way (adapt_kills.py)
    poison     8 clean windows, every picture with the label of the next class: rollbacks and the error; 3 streams

The prototypes' share and number were chosen on the bright pictures, before blur and noise had been looked at. One row
each in results/adaptation.jsonl, with the version of what is measured (`CODE`); what is there is not measured again.
Looks for the data in SELFSIGHT_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy.stats import poisson

import selfsight
from selfsight.data.importers import open_source
from selfsight.deploy.adapting import Adapter
from selfsight.deploy.refit import Said
from selfsight.encoders.features import pooled
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.head import load_head
from selfsight.machine import environment

RESULTS = Path(__file__).parent / "results" / "adaptation.jsonl"
DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "neu"
MODEL, WINDOW, RATE, NEW = "package:efficientnet_lite0", 64, 0.01, "scratches"
PLAN = (("clean", 2), ("bright", 4), ("clean", 2), ("blur", 4), ("clean", 2), ("noise", 4), ("clean", 2))
KINDS = ("clean", "bright", "blur", "noise")
CODE = 2  # of the guard and of late labels; rows of another version are measured again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["drift", "ordered", "calm", "new", "poison", "kills"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-adaptation")
    given = parser.parse_args()
    os.environ["SELFSIGHT_CACHE"] = str(given.work / "cache")
    streams = Streams(given.work)
    machine = environment("cpu")
    about = {"machine": machine["processor"], "cores": machine["cores"]}
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for name in given.what:
        if any(row["what"] == name and row.get("code") == CODE for row in rows):
            continue  # a stopped command goes on
        began = time.monotonic()
        measure: Callable[[], dict[str, object]] = getattr(streams, name)
        row = {"what": name, **measure(), "seconds": round(time.monotonic() - began), "code": CODE, **about}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def varied(kind: str, file: Path, rng: np.random.Generator) -> Image.Image:
    image = Image.open(file).convert("L")
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(1.5))
    pixels = np.asarray(image, np.float32)
    pixels = pixels * 1.3 + 50 if kind == "bright" else pixels
    pixels = pixels + rng.normal(0, 20, pixels.shape) if kind == "noise" else pixels
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class Streams:
    """Heads, and the features of the pictures of each kind."""

    def __init__(self, work: Path) -> None:
        self._work = work
        files = sorted(file for file in (DATA / "train").rglob("*") if file.is_file())
        if not files:
            raise SystemExit(f"There is no {DATA}: SELFSIGHT_DATA names another folder.")
        pool = files[1::2] + sorted(file for file in (DATA / "test").rglob("*") if file.is_file())
        self._write(work / "learn", "clean", files[::2])
        self.head = self._learn(work, "six", None)
        table = ["path,label"]
        for file in files[::2]:
            if file.parent.name != NEW:
                table.append(f"{file.parent.name}/{file.stem}.png,{file.parent.name}")
        (work / "five.csv").write_text("\n".join(table))
        self.five = self._learn(work, "five", str(work / "five.csv"))
        self._pool, self._features = pool, dict[str, np.ndarray]()
        self.names = np.array([uri.split("/")[0] for uri in sorted(_uri(file) for file in pool)])

    def features(self, kind: str) -> np.ndarray:
        """The features of the pictures of a kind, in the order of their names."""
        kept = self._work / f"{kind}.npz"
        if not kept.exists():
            self.write(kind)
            rows, features, _ = pooled(self.head.encoder, open_source(str(self._work / kind)))
            np.savez(kept, x=features[np.argsort(rows["uri"].to_pylist())])
        if kind not in self._features:
            with np.load(kept) as file:
                self._features[kind] = file["x"]
        return self._features[kind]

    def write(self, kind: str) -> None:
        """Write the pictures of a kind."""
        self._write(self._work / kind, kind, self._pool)

    @staticmethod
    def _write(folder: Path, kind: str, files: list[Path]) -> None:
        rng = np.random.default_rng(0)
        for file in files:
            target = folder / file.parent.name / f"{file.stem}.png"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                varied(kind, file, rng).save(target, compress_level=1)

    @staticmethod
    def _learn(work: Path, name: str, labels: str | None) -> ClassifyHead:
        out = work / "heads" / name
        if not (out / "head.json").exists():
            selfsight.train.classify(str(work / "learn"), model=MODEL, out=str(out), labels=labels)
        head = load_head(out)
        assert isinstance(head, ClassifyHead)
        return head

    def _order(self, seed: int, count: int, among: np.ndarray | None = None) -> np.ndarray:
        among = np.arange(len(self.names)) if among is None else among
        return np.random.default_rng(seed).permutation(among)[:count]

    def _stretches(self, ordered: bool) -> dict[str, object]:
        wrong = {kind: np.zeros(4) for kind in KINDS}  # without, before, with, pictures
        alarms = dict.fromkeys(KINDS, 0)
        for seed in range(5):
            adapter = Adapter(self.head, RATE)
            for stretch, (kind, windows) in enumerate(PLAN):
                places = self._order(100 * seed + stretch, windows * WINDOW)
                if ordered:
                    places = places[np.argsort(self.names[places], kind="stable")]
                for start in range(0, len(places), WINDOW):
                    now = places[start : start + WINDOW]
                    told = adapter.window(self.features(kind)[now])
                    truth = self._numbers(self.head, now)
                    sides = (told.shadow, told.before, told.answers)
                    wrong[kind] += [*(int((side != truth).sum()) for side in sides), len(now)]
                    alarms[kind] += told.drift.alarm
        drifted = sum(wrong[kind] for kind in KINDS[1:])
        return {
            "errors": {kind: _errors(wrong[kind]) for kind in KINDS}, "drifted": _errors(drifted), "alarms": alarms,
            "lower": round(1.0 - drifted[2] / drifted[0], 3), "lower_before": round(1.0 - drifted[1] / drifted[0], 3),
        }  # fmt: skip

    def drift(self) -> dict[str, object]:
        return self._stretches(False)

    def ordered(self) -> dict[str, object]:
        return self._stretches(True)

    def calm(self) -> dict[str, object]:
        alarms, windows, worst, sums = 0, 0, 0.0, np.zeros(4)
        for seed in range(20):
            adapter, places = Adapter(self.head, RATE), self._order(1000 + seed, 16 * WINDOW)
            if seed % 2:
                places = places[np.argsort(self.names[places], kind="stable")]
            wrong = np.zeros(4)
            for start in range(0, len(places), WINDOW):
                now = places[start : start + WINDOW]
                told, truth = adapter.window(self.features("clean")[now]), self._numbers(self.head, now)
                sides = (told.shadow, told.before, told.answers)
                wrong += [*(int((side != truth).sum()) for side in sides), len(now)]
                alarms, windows = alarms + told.drift.alarm, windows + 1
            worst = max(worst, float((wrong[2] - wrong[0]) / wrong[3]), float((wrong[1] - wrong[0]) / wrong[3]))
            sums += wrong
        band = [int(side) for side in poisson.interval(0.95, RATE * windows)]
        return {"errors": _errors(sums), "worst": round(worst, 5), "alarms": alarms, "windows": windows, "band": band}

    def new(self) -> dict[str, object]:
        found: dict[str, object] = {}
        old = np.flatnonzero(self.names != NEW)
        for labels in (False, True):
            known, fresh, alarms, rollbacks = np.zeros(4), np.zeros(4), 0, 0
            for seed in range(3):
                adapter = Adapter(self.five, RATE)
                usual, strange = self._order(seed, 544, old), self._order(seed, 96, np.flatnonzero(self.names == NEW))
                for number in range(10):
                    now = usual[:WINDOW] if number < 2 else np.concatenate([usual[:52], strange[:12]])
                    usual = usual[WINDOW:] if number < 2 else usual[52:]
                    strange = strange if number < 2 else strange[12:]
                    told = adapter.window(self.features("clean")[now])
                    alarms += told.drift.alarm
                    own = np.array([*adapter.classes, ""], object)
                    for places, of in ((self.names[now] != NEW, known), (self.names[now] == NEW, fresh)):
                        sides = (told.shadow, told.before, told.answers)
                        of += [*(int((own[side] != self.names[now])[places].sum()) for side in sides), places.sum()]
                    if labels:
                        some = now[::6]
                        adapter.learn(self._said(some, self.names[some]), self.features("clean")[some])
                rollbacks += adapter.counts.rollbacks
            name = "with_labels" if labels else "without_labels"
            found[name] = {"known": _errors(known), "new": _errors(fresh), "alarms": alarms, "rollbacks": rollbacks}
        return found

    def poison(self) -> dict[str, object]:
        rollbacks, wrong, classes = 0, np.zeros(4), self.head.about.classes
        for seed in range(3):
            adapter, places = Adapter(self.head, RATE), self._order(2000 + seed, 8 * WINDOW)
            for start in range(0, len(places), WINDOW):
                now = places[start : start + WINDOW]
                told, truth = adapter.window(self.features("clean")[now]), self._numbers(self.head, now)
                sides = (told.shadow, told.before, told.answers)
                wrong += [*(int((side != truth).sum()) for side in sides), len(now)]
                some = now
                turned = np.array([classes[(number + 1) % len(classes)] for number in self._numbers(self.head, some)])
                adapter.learn(self._said(some, turned), self.features("clean")[some])
            rollbacks += adapter.counts.rollbacks
        return {"errors": _errors(wrong), "rollbacks": rollbacks, "windows": 24}

    def kills(self) -> dict[str, object]:
        stream = self._work / "line"
        for kind in ("clean", "bright"):
            self.write(kind)
        stream.mkdir(exist_ok=True)
        for number, file in enumerate(sorted((self._work / "clean").rglob("*.png"))):
            kind = "bright" if number // WINDOW % 4 > 1 else "clean"
            target = stream / f"{number:04d}.png"
            if not target.exists():
                target.write_bytes((self._work / kind / file.relative_to(self._work / "clean")).read_bytes())
        script = [sys.executable, str(Path(__file__).with_name("adapt_kills.py")), str(self._work / "heads" / "six")]
        done = subprocess.run([*script, str(stream), str(self._work / "kills")], capture_output=True, text=True)
        if not done.stdout:
            raise SystemExit(done.stderr)
        return dict(json.loads(done.stdout))

    def _numbers(self, head: ClassifyHead, places: np.ndarray) -> np.ndarray:
        return np.array([head.about.classes.index(name) for name in self.names[places]])

    @staticmethod
    def _said(places: np.ndarray, names: np.ndarray) -> list[Said]:
        return [Said(f"{place:032x}", str(place), "", str(name)) for place, name in zip(places, names, strict=True)]


def _uri(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}.png"


def _errors(wrong: np.ndarray) -> dict[str, float]:
    return {
        name: round(float(count / wrong[3]), 4)
        for name, count in zip(("without", "before", "with"), wrong, strict=False)
    }


if __name__ == "__main__":
    main()
