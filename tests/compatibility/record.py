"""Record what the present code does: the fixture, and what every verb says of it.

    python tests/compatibility/record.py fixture     images, collection, features, journal, recipe, runs
    python tests/compatibility/record.py outputs     json/*.json and help/*.txt

The fixture stands for what users of version 0.1.0 have on their disks: it was made once, by commit b83fcf1, and is not
to be made again; what later versions write gets a fixture of its own. The outputs may be recorded anew where a verb is
*meant* to say something else, in the commit that says why, with the difference read line by line; never to make a
refactoring pass.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stored import (
    COLUMNS,
    COMMANDS,
    FIXTURE,
    HELP,
    HELPS,
    HERE,
    ITEM,
    ITEMS,
    JSON,
    STEPS,
    WORK,
    answer,
    help_of,
    metadata_with,
    place,
    say,
    unpack,
)

SIDE, TRAIN, TEST = 32, 5, 3
CLASSES = ("round", "square", "striped")
RECIPE = """resolved:
  encoder: resnet18
  encoder_args: {layers: [1, 1, 1, 0], channels: [4, 8, 16, 16]}
  objective: simclr
  objective_options: {hidden: 16, width: 8}
  size: 32
  canvas_side: 32
  batch_size: 8
  precision: "no"
  threads: 1
"""
NOT_KEPT = ("tensorboard", "lock", "report.html", "*.partial")


def picture(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """(image [S, S, 3] uint8, mask [S, S] uint8, edges x0 y0 x1 y1): a thing of one kind on a noisy ground."""
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = int(rng.integers(6, 10))
    cx, cy = (int(v) for v in rng.integers(radius + 1, SIDE - radius - 1, 2))
    inside = np.maximum(abs(x - cx), abs(y - cy)) <= radius
    if kind == "round":
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    elif kind == "striped":
        inside &= (x + y) // 2 % 2 == 0
    pixels = rng.normal(90, 12, (SIDE, SIDE, 3)) + inside[:, :, None] * rng.uniform(40, 110, 3)
    edges = (cx - radius, cy - radius, cx + radius + 1, cy + radius + 1)
    return (pixels.clip(0, 255) / 8).astype(np.uint8) * 8, inside.astype(np.uint8), edges


def write_images(folder: Path) -> None:
    """train/ and test/ with a folder a class, boxes (YOLO for round things, VOC for square ones), masks, a file that is
    no image, and the table of all of them."""
    rng = np.random.default_rng(0)
    rows = ["path,class,patient,boxes,mask"]
    for split, count in (("train", TRAIN), ("test", TEST)):
        for kind in CLASSES:
            for i in range(count):
                name = f"{split}-{kind}-{i}"
                pixels, mask, (x0, y0, x1, y1) = picture(rng, kind)
                for path, array in ((f"{split}/{kind}/{i}.png", pixels), (f"masks/{name}.png", mask)):
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(folder / path, optimize=True)
                boxes = {"round": f"boxes/{name}.txt", "square": f"boxes/{name}.xml"}.get(kind, "")
                (folder / "boxes").mkdir(exist_ok=True)
                if kind == "round":
                    numbers = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
                    (folder / boxes).write_text("0 " + " ".join(f"{n / SIDE:.6f}" for n in numbers) + "\n")
                elif kind == "square":
                    size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
                    corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                    thing = f"<object><name>square</name><bndbox>{corners}</bndbox></object>"
                    (folder / boxes).write_text(f"<annotation>{size}{thing}</annotation>\n")
                rows.append(f"{split}/{kind}/{i}.png,{kind},p{i // 2},{boxes},masks/{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (folder / "items.csv").write_text("\n".join([*rows, "broken.png,round,p9,,"]) + "\n")


def stop_soon() -> None:
    """Let the next training end as Ctrl-C ends it, with the step after the first one, whose row is shown."""
    from selfsight.training.show import Show

    before = Show.__call__

    def stopping(self: Show, row: dict[str, Any]) -> None:
        Show.__call__ = before  # type: ignore[method-assign]
        signal.raise_signal(signal.SIGINT)

    Show.__call__ = stopping  # type: ignore[method-assign]


def record_fixture() -> None:
    import lance

    from selfsight.data.collection import Collection

    with tempfile.TemporaryDirectory() as temporary, place(Path(temporary) / "fixture") as work:
        write_images(work / "images")
        (work / "recipe.yaml").write_text(RECIPE)
        say("import", "images/items.csv", "-o", "imported/items.lance", "--columns", COLUMNS)
        imported = lance.dataset("imported/items.lance")
        metadata = metadata_with(imported.schema.metadata, str(work), WORK)
        lance.write_dataset(imported.to_table().replace_schema_metadata(metadata), ITEMS)
        shutil.rmtree("imported")
        shutil.rmtree(FIXTURE, ignore_errors=True)
        shutil.copytree(work, FIXTURE)  # a collection that never knew this machine
        unpack(work)
        training = ("pretrain", ITEMS, "--recipe", "recipe.yaml", "--steps", str(STEPS))
        say(*training, "-o", "run")
        say("embed", ITEMS, "--model", "run")
        stop_soon()
        with suppress(AssertionError):
            say(*training, "-o", "stopped")
        items = Collection.open(ITEMS)
        ids = dict(zip(items.table["uri"].to_pylist(), items.table["id"].to_pylist(), strict=True))
        first, second = ids[ITEM], ids["train/square/1.png"]
        items.decide(first, "label", "square", "local", old="round")
        items.decide(second, "drop", True, "anna", old=False)
        items.decide(first, "label", "round", "local", old="square")
        for name, without in (("run", ()), ("stopped", ("*.png",))):
            shutil.copytree(name, FIXTURE / name, ignore=shutil.ignore_patterns(*NOT_KEPT, *without))
        shutil.copytree("collection/features", FIXTURE / "collection" / "features")
        shutil.copy("collection/decisions.jsonl", FIXTURE / "collection")
        check(str(work), temporary, str(Path.home()), str(HERE.parents[2]))


def check(*private: str) -> None:
    """Raise if a file of the fixture holds a path of this machine, or if all of them are too large."""
    files = [path for path in FIXTURE.rglob("*") if path.is_file()]
    held = [f"{path}: {text}" for path in files for text in private if text.encode() in path.read_bytes()]
    assert not held, held
    total = sum(path.stat().st_size for path in files)
    assert total < 2**20, f"{total:,} bytes"
    print(f"{len(files)} files, {total:,} bytes")


def record_outputs() -> None:
    for folder in (JSON, HELP):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with tempfile.TemporaryDirectory() as temporary, place(Path(temporary) / "fixture") as work:
        unpack(work)
        for name in COMMANDS:
            text = json.dumps(answer(name, work), indent=1, sort_keys=True, ensure_ascii=False)
            (JSON / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        for name in HELPS:
            (HELP / f"{name}.txt").write_text(help_of(name), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["fixture"]:
        record_fixture()
    elif sys.argv[1:] == ["outputs"]:
        record_outputs()
    else:
        raise SystemExit(__doc__)
