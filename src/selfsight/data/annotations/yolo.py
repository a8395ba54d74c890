"""YOLO: one text file per image. A line is class, centre and size as parts of the image, and maybe a confidence."""

from __future__ import annotations

from collections.abc import Sequence

from selfsight.data.boxes import Box, Boxes, centred
from selfsight.errors import SelfsightError


def read(data: bytes) -> Boxes:
    """The boxes of a file, as parts of the image. Raises `ValueError` for a line that is not a box."""
    return Boxes(tuple(_box(line) for line in data.decode("utf-8-sig").splitlines() if line.strip()), (1.0, 1.0))


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
