"""What every source gives: a listing of its files that reads none of them, and any one of them opened."""

from __future__ import annotations

import io
import posixpath
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from types import MappingProxyType
from typing import Any, BinaryIO

# What a manifest may say of an item, besides columns that the user names.
KNOWN_COLUMNS = ("label", "split", "group", "site", "sequence", "frame")
# Cells of these columns that mean "not known", in any case: as spreadsheets, R and pandas write them.
# "none" is not among them, as it may be a class.
BLANKS = ("NA", "N/A", "#N/A", "<NA>", "NaN", "null")


@dataclass(frozen=True)
class Options:
    """How a source is to be listed; kept with the collection, so that it can be listed and opened again.

    include: patterns of `fnmatch` on paths relative to the source; `*` crosses folders. A file must match one of them,
    if
        there are any.
    exclude: patterns that a file must not match.
    columns: what the columns of the collection are filled from, see `sources.columns`.
    root: folder that the paths of a manifest are relative to.
    rate: frames per second to take of videos; None for all.
    blanks: texts, in any case, by which a cell of a known column says that it holds nothing.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    root: str | None = None
    rate: float | None = 1.0
    blanks: tuple[str, ...] = BLANKS

    def wanted(self, uri: str) -> bool:
        """Whether a file is to be listed."""
        if self.include and not any(fnmatchcase(uri, pattern) for pattern in self.include):
            return False
        return not any(fnmatchcase(uri, pattern) for pattern in self.exclude)

    def is_blank(self, text: str) -> bool:
        """Whether a cell of a known column says that it holds nothing."""
        return text.lower() in self._blank_words

    @cached_property
    def _blank_words(self) -> frozenset[str]:
        return frozenset(word.lower() for word in self.blanks)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Options:
        """What `to_dict` gave."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclass(slots=True)
class Entry:
    """One file of a source, as its listing shows it.

    uri: its path relative to the source, with `/`; unique.
    bytes: its size, to recognise an unchanged file; None where the source cannot say.
    modified_ns: time of its last change, likewise.
    columns: what the source says of it.
    reason: why it is set aside without being opened; "" if it is not.
    """

    uri: str
    bytes: int | None = None
    modified_ns: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


class Member(io.BytesIO):
    """A file within another: its bytes, and the time of the last change of the file that holds it."""

    def __init__(self, data: bytes, modified_ns: int) -> None:
        super().__init__(data)
        self.modified_ns = modified_ns


class Source(ABC):
    """A listing and an opener. Safe to use from several threads.

    kind: of source. location: an absolute path or a name, by which it is found again. name: what item ids are made
    from; the same wherever the source lies. options: how it is listed. others: how many files are not images, by
    suffix; filled by `entries`. brings: columns beside the known ones that nobody asked for and that `entries` filled.
    contradicted: {uri: which row gives it which label} of items without a label because rows differ; filled by
    `entries`. aside: {which annotation: why it is not used}; filled by `entries`.
    """

    kind: str
    location: str
    name: str
    options: Options
    others: Counter[str]
    brings: tuple[str, ...] = ()
    contradicted: Mapping[str, str] = MappingProxyType({})
    aside: Mapping[str, str] = MappingProxyType({})

    @cached_property
    def root(self) -> str:
        """What the uris are relative to: a folder, or the location of what holds the images itself."""
        return self.location

    @property
    def keywords(self) -> dict[str, str]:
        """Columns that the listing leaves to whoever opens the files: their name -> a DICOM keyword."""
        return {}

    def meant(self, name: str) -> list[str]:
        """The paths, as an `Entry` has them, that somebody may mean by `name`, there or not: also without `./`, and
        as Windows writes them."""
        return [name, posixpath.normpath(name), posixpath.normpath(name.replace("\\", "/"))]

    def holds(self, uri: str) -> bool:
        """Whether `open` finds a file of this name, image or not: masks and boxes lie beside the images."""
        return False

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """The files, in an order that does not change while the files do not. Reads none of the images.

        Resets `others`. A file that is there but cannot be taken is an `Entry` with a reason.
        """

    @abstractmethod
    def open(self, uri: str) -> BinaryIO:
        """An image file, open at its first byte.

        Raises `Unreadable` with the reason: "file vanished since import", "no permission to read", …
        """
