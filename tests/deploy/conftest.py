"""Small heads of each task, and one service of them that the tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caller import serving
from cells import write_cells
from helpers import tiny_encoder, write_colours
from PIL import Image

import selfsight
from selfsight.deploy.about import about_export, as_metadata
from selfsight.deploy.graphs import inputs_of, write_graph
from selfsight.encoders.store import save
from selfsight.heads.head import load_head

EXPORTED = ("shades", "parts", "cells")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """heads/ with colours and shades (classify, on one encoder), parts (inspect), cells and spots (segment; spots does
    not tell objects apart), boxed (detect) and colours-2, another version; new/ with pictures; cache/."""
    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_CACHE", str(folder / "cache"))
        save(tiny_encoder(32), folder / "encoder")
        save(tiny_encoder(64), folder / "finer")
        how: dict[str, Any] = {"model": str(folder / "encoder")}
        colours, heads = write_colours(folder / "learn", 8), folder / "heads"
        selfsight.train.classify(str(colours), out=str(heads / "colours"), method="linear", **how)
        selfsight.train.classify(str(write_colours(folder / "more", 6, seed=3)), out=str(heads / "colours-2"), **how)
        with (folder / "shades.csv").open("w") as table:
            table.write("path,label\n")
            for i, file in enumerate(sorted(colours.rglob("*.png"))):
                table.write(f"{file.relative_to(colours)},{('dark', 'light')[i % 2]}\n")
        selfsight.train.classify(str(colours), out=str(heads / "shades"), labels=str(folder / "shades.csv"), **how)
        selfsight.train.inspect(str(colours / "red"), out=str(heads / "parts"), false_alarms=0.2, size=32, **how)
        finer = {"model": str(folder / "finer"), "size": 64, "method": "linear"}
        made = write_cells(folder / "cells", 4, 0)
        selfsight.train.segment(
            str(made / "images"), labels=str(made / "cells.json"), out=str(heads / "cells"), **finer
        )
        spots = {"labels": str(made / "masks"), "objects": False, "out": str(heads / "spots")}
        selfsight.train.segment(str(made / "images"), **spots, **finer)
        boxed = {"labels": str(made / "cells.json"), "method": "prototypes", "size": 64}
        selfsight.train.detect(str(made / "images"), out=str(heads / "boxed"), model=str(folder / "finer"), **boxed)
        for name in EXPORTED:  # and these have an export beside them
            head, file = load_head(heads / name), heads / f"{name}.onnx"
            write_graph(head, file, about=as_metadata(about_export(head, inputs_of(head), "fp32")))
    write_new(folder / "new", write_cells(folder / "unseen", 3, 1) / "images")
    return folder


def write_new(new: Path, cells: Path) -> None:
    """Pictures of several formats and sizes: one is to be turned, one has 16 bits, one is broken."""
    new.mkdir()
    rng = np.random.default_rng(5)
    for i, file in enumerate(sorted(write_colours(new.parent / "unlike", 2, seed=9, size=40).rglob("*.png"))):
        shutil.copy(file, new / f"colour-{i}.png")
    for file in sorted(cells.iterdir()):
        shutil.copy(file, new / f"cells-{file.name}")
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = rng.integers(0, 255, (30, 50, 3), np.uint8)
    Image.fromarray(pixels).save(new / "turned.jpg", exif=turned, quality=95)
    Image.fromarray((rng.integers(0, 60000, (33, 21))).astype(np.uint16)).save(new / "deep.png")
    Image.fromarray(pixels).save(new / "flat.tif")
    (new / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")


@pytest.fixture(scope="session")
def service(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service of the heads, in a folder of its own, with the heads beside it."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(place / "heads", folder / "heads")
    heads = [f"heads/{name}" for name in ("colours", "shades", "parts", "cells", "spots", "boxed")]
    with serving(folder, *heads, "--token-file", "token", "--state", "state", OMP_NUM_THREADS="1") as caller:
        caller.folder = folder  # type: ignore[attr-defined]
        yield caller
