"""What `--labels` of boxes and masks names: a COCO file, or a folder of VOC, YOLO or LabelMe files or of masks.

A file belongs to the image of the same path, else of the same without suffix; where none has it, to the one whose path
ends alike. A page of a file is called by the path and its number, `stack.tif.3`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from selfsight.data.annotations import labelme, voc, yolo
from selfsight.data.annotations.masks import read_mask, upright_mask
from selfsight.data.annotations.outlines import Aside, MaskValue, Outlines, value_of
from selfsight.data.annotations.rle import encode
from selfsight.data.boxes import Boxes
from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.coco import read_coco
from selfsight.data.sources.folder import open_file
from selfsight.data.sources.names import is_hidden, stem_of, suffix_of
from selfsight.errors import DataError, SelfsightError
from selfsight.results import counted

Drawn: TypeAlias = Literal["boxes", "masks"]
Found: TypeAlias = Outlines | Boxes | Path  # of one image; a path is that of its mask
OF_MASKS = (".png", ".tif", ".tiff", ".gif", ".bmp")
_OF_BOXES = (".xml", ".txt", ".json")
_NAMES = ("classes.txt", "obj.names", "data.yaml", "data.yml", "dataset.yaml")  # of YOLO's classes
_ENDINGS = ("_mask", "_masks", "_seg", "_label", "_labels", "-mask", "_gt")
_CLASSES, _OBJECTS = "SegmentationClass", "SegmentationObject"  # folders of VOC
_SHOWN = 3


def annotated(path: str, kind: Drawn, rows: pa.Table) -> tuple[list[object], tuple[Aside, ...], str]:
    """What a file or folder says of items: a list of boxes as the column holds them, or a mask {class: regions}, None
    for an item that it does not name; what is set aside; a sentence on both, without its full stop.

    Raises `SelfsightError` for what is nothing of the kind, and where no item is named.
    """
    found, aside = _read(Path(path).expanduser(), path, kind)
    names, stems = _named(rows)
    owner, strange, doubted = _matched(list(found), names, stems, Path(path).expanduser().is_file())
    aside += doubted
    if found and not owner and not doubted:
        raise DataError(
            f"{path} names no image of the source: its first is {next(iter(found))}. Files are named as their images."
        )
    columns = [rows[name].to_pylist() for name in ("width", "height", "exif_orientation")]
    values: list[object] = []
    for place, (width, height, turn) in enumerate(zip(*columns, strict=True)):
        value = None
        if place in owner:
            value = _upright(found[owner[place]], path, kind, (width, height, turn), names[place])
        if isinstance(value, Aside):
            aside.append(value)
            value = None
        values.append(value)
    if not any(value is not None for value in values) and aside:
        raise DataError(f"{path} has no annotation that can be used: {aside[0].where}: {aside[0].reason}.")
    return values, tuple(aside), ". ".join(filter(None, [told(aside), _told_strange(strange, path)]))


def told(aside: Iterable[Aside]) -> str:
    """How many annotations are set aside, why and which, as a sentence without its full stop; "" for none."""
    every = list(aside)
    if not every:
        return ""
    reasons = Counter(one.reason for one in every)
    named = "; ".join(one.where for one in every[:_SHOWN]) + ("; …" if len(every) > _SHOWN else "")
    many = "1 annotation is" if len(every) == 1 else f"{len(every):,} annotations are"
    return f"{many} set aside ({counted(dict(reasons.most_common()))}): {named}"


def _told_strange(strange: list[str], path: str) -> str:
    if not strange:
        return ""
    these = "1 annotation belongs" if len(strange) == 1 else f"{len(strange):,} annotations belong"
    return f"{these} to no image of the source, such as {strange[0]} of {path}"


def _read(folder: Path, path: str, kind: Drawn) -> tuple[dict[str, Found], list[Aside]]:
    """{path of an image or its annotations: what is said of it}, and what is set aside."""
    if folder.is_file() and folder.suffix.lower() == ".json":
        whole = read_coco(str(folder))
        if kind == "masks" and not whole.outlined:
            raise DataError(f"{path} has boxes and no masks. Give one with a segmentation, or a folder of masks.")
        return dict(whole.images), list(whole.aside)
    if not folder.is_dir():
        lacks = f"holds no {kind}" if folder.exists() else "does not exist"
        raise SelfsightError(
            f"{path} {lacks}. Give a COCO file (.json), or a folder of "
            f"{'VOC, YOLO or LabelMe files' if kind == 'boxes' else 'masks or LabelMe files'}."
        )
    files = sorted(_files(folder))
    names = _names(folder)
    suffixes = _OF_BOXES if kind == "boxes" else (".json",)
    chosen = [file for file in files if suffix_of(file) in suffixes and file.rpartition("/")[2] not in _NAMES]
    if kind == "masks" and not chosen:
        chosen = [file for file in files if suffix_of(file) in OF_MASKS and _OBJECTS not in file.split("/")]
    if not chosen:
        raise DataError(f"{path} holds no file of {kind}: {', '.join(files[:_SHOWN]) or 'it is empty'}.")
    found: dict[str, Found] = {}
    aside: list[Aside] = []
    for file in chosen:
        try:
            found[file] = _one(folder / file, file, names, aside)
        except (Unreadable, ValueError, OSError) as error:
            aside.append(Aside(file, str(error)))
    return found, aside


def _one(file: Path, called: str, names: dict[str, str], aside: list[Aside]) -> Found:
    """What one file says."""
    if suffix_of(called) in OF_MASKS:
        return file
    with open_file(str(file)) as opened:
        data = opened.read()
    if suffix_of(called) == ".json":
        outlines, unused = labelme.read(data)
        aside += [replace(one, where=f"{called}, {one.where}") for one in unused]
        return outlines
    return voc.read(data) if suffix_of(called) == ".xml" else yolo.read(data, names)


def _names(folder: Path) -> dict[str, str]:
    """The names of YOLO's classes, from a file in the folder or beside it."""
    for place in (folder / name for folder in (folder, folder.parent) for name in _NAMES):
        if place.is_file():
            return yolo.read_names(place.read_bytes(), place.suffix in (".yaml", ".yml"))
    return {}


def _files(folder: Path) -> Iterator[str]:
    """The files below a folder, relative to it, with "/"."""
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside = Path(here).relative_to(folder).as_posix()
        yield from (name if inside == "." else f"{inside}/{name}" for name in names if not is_hidden(name))


def _upright(said: Found, path: str, kind: Drawn, size: tuple[Any, Any, Any], uri: str) -> Any:
    """What is said of an image of this (width, height, orientation), in pixels of the upright one; or why it is not."""
    width, height, turn = size
    if not width or not height:
        return Aside(uri, "an image whose size is not known")
    try:
        if isinstance(said, Path):
            return _mask_value(said, width, height, turn)
        if kind == "masks" and isinstance(said, Outlines):
            return said.mask(width, height, turn)
        boxes = said.boxes if isinstance(said, Outlines) else said
        return [asdict(box) for box in boxes.upright(width, height, turn)]
    except (Unreadable, ValueError) as error:
        return Aside(uri, str(error))


def _mask_value(file: Path, width: int, height: int, turn: int | None) -> MaskValue:
    """The mask in a file; VOC's masks of objects beside those of classes tell its objects apart."""
    classes = _pixels(file, width, height, turn)
    parts = [_OBJECTS if part == _CLASSES else part for part in file.parts]
    if _CLASSES not in file.parts or not Path(*parts).is_file():
        return value_of(classes)
    objects = _pixels(Path(*parts), width, height, turn)
    value: MaskValue = value_of(np.where(classes < 0, classes, 0))
    for number in np.unique(objects[(objects > 0) & (classes > 0)]).tolist():
        mask = (objects == number) & (classes > 0)
        value.setdefault(str(np.bincount(classes[mask]).argmax()), []).append(encode(mask))
    return value


def _pixels(file: Path, width: int, height: int, turn: int | None) -> np.ndarray:
    with open_file(str(file)) as opened:
        return upright_mask(read_mask(opened), height, width, turn)


# -- which file is of which image --


def _named(rows: pa.Table) -> tuple[list[str], list[str]]:
    """What each item is called, as COCO files of ours call it, `uri` or `uri.PAGE`; and the same without the suffix."""
    uris = rows["uri"].to_pylist()
    pages = rows["page"].to_pylist() if "page" in rows.column_names else [None] * len(uris)
    ends = ["" if page is None else f".{page}" for page in pages]
    names = [uri + end for uri, end in zip(uris, ends, strict=True)]
    return names, [stem_of(uri) + end for uri, end in zip(uris, ends, strict=True)]


def _matched(
    files: list[str], names: list[str], stems: list[str], listed: bool
) -> tuple[dict[int, str], list[str], list[Aside]]:
    """{place of an item: its file}, the files of no item, and those of which it is not clear which item they are of.

    The whole name counts first, then the end of it, then both without suffixes; what has its file is asked no more.
    listed: whether the files are names of images, so that their suffixes count too.
    """
    owner: dict[int, str] = {}
    doubted: dict[str, str] = {}
    for keyed, keys, loose in ((str, names, listed), (_plain, names, True), (_plain, stems, True)):
        for ends in (_whole, _ends) if loose else (_whole,):
            taken = set(owner.values())
            free = {file: keyed(file) for file in files if file not in taken}
            owner |= _claimed(free, {n: key for n, key in enumerate(keys) if n not in owner}, ends, doubted)
    taken = set(owner.values())
    left = [file for file in files if file not in taken]
    return owner, [f for f in left if f not in doubted], [Aside(f, doubted[f]) for f in left if f in doubted]


def _claimed(
    files: dict[str, str], items: dict[int, str], ends: Callable[[str], Iterator[str]], doubted: dict[str, str]
) -> dict[int, str]:
    """{place: file} of items and files whose keys have an end in common. Of a file that several items could have, none
    has it but the one whose key is alike the longest; `doubted` is filled with why the others are not used."""
    by_end: dict[str, list[str]] = {}
    for file, key in files.items():
        for end in ends(key):
            by_end.setdefault(end, []).append(file)
    claims: dict[str, list[int]] = {}
    for place, key in items.items():
        alike = next((by_end[end] for end in ends(key) if end in by_end), [])
        if len(alike) == 1:
            claims.setdefault(alike[0], []).append(place)
        else:
            doubted |= dict.fromkeys(alike, "one of several files for the same image")
    found: dict[int, str] = {}
    for file, places in claims.items():
        lengths = [_common(files[file], items[place]) for place in places]
        best = [place for place, length in zip(places, lengths, strict=True) if length == max(lengths)]
        if len(best) == 1:
            found[best[0]] = file
        else:
            doubted[file] = "several images are called so"
    return found


def _common(one: str, other: str) -> int:
    """How many parts two paths have in common at their end."""
    parts = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    count = 0
    for a, b in parts:
        if a != b:
            break
        count += 1
    return count


def _whole(key: str) -> Iterator[str]:
    """A path alone."""
    yield key


def _ends(stem: str) -> Iterator[str]:
    """A path, and what is left of it without its first folder, the first two, …"""
    while stem:
        yield stem
        stem = stem.partition("/")[2]


def _plain(file: str) -> str:
    """The path of a file without its suffix, and without `_mask` and the like."""
    stem = stem_of(file)
    return next((stem.removesuffix(end) for end in _ENDINGS if stem.endswith(end) and stem != end), stem)
