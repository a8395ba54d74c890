"""YOLO: one text file per image. A line is class, centre and size as parts of the image, and maybe a confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from selfsight.data.boxes import Box, Boxes, centred
from selfsight.errors import SelfsightError


def read(data: bytes, names: Mapping[str, str] | None = None) -> Boxes:
    """The boxes of a file, as parts of the image. names: of the classes by number, where they are known.

    Raises `ValueError` for a line that is not a box, and for a class that is not among `names`.
    """
    boxes = tuple(_box(line) for line in data.decode("utf-8-sig").splitlines() if line.strip())
    if names and (strange := next((box.label for box in boxes if box.label not in names), None)):
        raise ValueError(f"an unknown class {strange}")
    return Boxes(tuple(replace(box, label=names[box.label]) for box in boxes) if names else boxes, (1.0, 1.0))


def read_names(data: bytes, is_yaml: bool) -> dict[str, str]:
    """The names of classes by number: one a line (`classes.txt`), or the `names` of a `data.yaml`; {} where there are
    none."""
    text = data.decode("utf-8-sig", "replace")
    if not is_yaml:
        return {str(number): line.strip() for number, line in enumerate(text.rstrip().splitlines())}
    try:
        root = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    names = root.get("names") if isinstance(root, dict) else None
    numbered = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else [])
    return {str(number): str(name) for number, name in numbered}


def write(boxes: Sequence[Box], width: int, height: int) -> bytes:
    """The file that `read` turns into these boxes of an image of this size; it has no place for `difficult`,
    `truncated` and `iscrowd`. Raises `SelfsightError` for a class of several words."""
    lines = []
    for box in boxes:
        if len(box.label.split()) != 1:
            raise SelfsightError(f"YOLO has no class {box.label!r}: a class is one word or number. Rename it first.")
        centre = (box.x0 + box.x1) / 2 / width, (box.y0 + box.y1) / 2 / height
        size = (box.x1 - box.x0) / width, (box.y1 - box.y0) / height
        lines.append(" ".join((box.label, *(repr(float(number)) for number in (*centre, *size)))) + "\n")
    return "".join(lines).encode()


def _box(line: str) -> Box:
    label, *cells = line.split()
    x, y, width, height, *confidence = (float(cell) for cell in cells)
    if len(confidence) > 1:
        raise ValueError("more than class, centre, size and confidence")
    return centred(label, x, y, width, height)
