"""A COCO file as a source: the images that it lists, with their boxes and masks."""

# ruff: noqa: PTH119, PTH120
# Paths are text here, as in the other sources.

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from selfsight.data.annotations import coco
from selfsight.data.sources.columns import Columns
from selfsight.data.sources.names import Seen
from selfsight.data.sources.source import Entry, Options
from selfsight.data.sources.table import Finder, TableSource, entry_of, open_manifest
from selfsight.errors import DataError


class CocoSource(TableSource):
    """The images that COCO files list, by their path relative to the root, found as those of a table are."""

    kind = "coco"

    def __init__(self, location: str, manifests: list[str], root: str, options: Options) -> None:
        super().__init__(location, manifests, root, options)
        self._files = manifests
        self.aside: dict[str, str] = {}
        self.brings = ("boxes", "mask") if any(one.outlined for one in self._read.values()) else ("boxes",)

    @cached_property
    def _read(self) -> dict[str, coco.Coco]:
        return {path: read_coco(path) for path in self._files}

    def entries(self) -> Iterator[Entry]:
        finder, columns, seen = Finder(self.root, bool(self.options.root)), Columns(self), Seen()
        self.others, self.aside = Counter(), {}
        for path, file in self._read.items():
            folder, called = os.path.dirname(os.path.realpath(path)), finder.uri(os.path.realpath(path))
            beside = finder.scope(folder)
            self.aside |= {one.where: one.reason for one in file.aside}
            for number, (name, outlines) in enumerate(file.images.items(), 1):
                entry = entry_of(finder, name, folder, beside, f"image {number} of {called}")
                if not self.options.wanted(entry.uri):
                    continue
                if not seen.add(entry.uri):
                    self.others["listed before"] += 1
                    continue
                said = {"boxes": outlines.boxes, "mask": outlines if "mask" in self.brings else None}
                asked = {key: value for key, value in columns.fill(entry.uri).items() if value is not None}
                entry.columns = {key: value for key, value in said.items() if value is not None} | asked
                yield entry


def read_coco(path: str) -> coco.Coco:
    """A COCO file. Raises `SelfsightError` for what is none."""
    with open_manifest(path) as file:
        data = file.read()
    try:
        return coco.read(data)
    except ValueError as error:
        raise DataError(f"{path} is {error}. Give a COCO file of objects (instances.json), or a folder.") from None


def coco_root(path: str) -> str:
    """The folder that the names in a COCO file are relative to, where nobody says: its own, or the one around
    `annotations`."""
    folder = os.path.dirname(os.path.realpath(path))
    return os.path.dirname(folder) if os.path.basename(folder) == "annotations" else folder
