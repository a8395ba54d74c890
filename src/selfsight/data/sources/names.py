"""Names of files: their suffixes, and very many of them in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache

import numpy as np

from selfsight.data.formats.format import families

_FRESH = 65_536  # hashes gathered before they are sorted in

# A folder of images beside a folder of masks: the masks are not items.
_IMAGES = frozenset(("images", "image", "imgs", "img", "jpegimages"))
_MASKS = frozenset(("mask", "masks", "segmentation", "segmentations", "segmentationclass", "segmentationobject"))
_MASKS |= {"groundtruth", "groundtruths", "ground_truth", "ground_truths"}
# In a WebDataset sample, KEY.seg.png is the mask of KEY.png.
_OF_MASKS = _MASKS | {"seg"}
# Folders in which systems keep what is nobody's image: Synology's thumbnails, macOS's forks in archives, deleted files.
_SYSTEM = frozenset(("@eadir", "__macosx", "$recycle.bin", "#recycle", "system volume information"))


@cache
def known_suffixes() -> frozenset[str]:
    """The suffixes of all formats, and "": see `suffix_of`."""
    return frozenset({""}).union(*(family.SUFFIXES for family in families().values()))


def suffix_of(name: str) -> str:
    """The lower-case suffix with its dot; "" where there is none, or digits only as in DICOM's `1.2.840.113`."""
    stem, _, end = name.rpartition(".")
    return f".{end.lower()}" if stem and end and not end.isdigit() else ""


def stem_of(name: str) -> str:
    """The name without the suffix that `suffix_of` gives."""
    return name[: len(name) - len(suffix_of(name))]


def mask_folders(names: Collection[str]) -> set[str]:
    """Which of the folders that lie beside each other hold masks of the images in another."""
    lower = {name: name.lower() for name in names}
    masks = {name for name, low in lower.items() if low in _MASKS}
    return masks if masks and not _IMAGES.isdisjoint(lower.values()) else set()


def is_mask(kind: str) -> bool:
    """Whether what follows the key of a WebDataset member, `.seg.png`, says that it is a mask."""
    return kind.lower().rpartition(".")[0].strip(".") in _OF_MASKS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not shown to people: its name begins with a dot, or is one of the system's own."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM


def row_uri(part: str, number: int) -> str:
    """The name of an item without a file: its row, after the part of the data set that it is in, if there are any."""
    return f"{part}/{number:08d}" if part else f"{number:08d}"


def in_utf8(name: str) -> str:
    """A name of the file system with any bytes that are not UTF-8 written out: `\\xff`."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Seen:
    """A set of names of 8 bytes each: it keeps their 64-bit hashes (two of a million share one once in 10^7)."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.int64)
        self._fresh: set[int] = set()

    def add(self, name: str) -> bool:
        """Whether `name` is new; from now on it is not."""
        key = hash(name)
        if key in self._fresh:
            return False
        place = int(self._sorted.searchsorted(key))
        if place < len(self._sorted) and self._sorted[place] == key:
            return False
        self._fresh.add(key)
        if len(self._fresh) == _FRESH:
            fresh = np.fromiter(self._fresh, np.int64, _FRESH)
            self._sorted = np.sort(np.concatenate([self._sorted, fresh]))
            self._fresh.clear()
        return True


class Names:
    """Names by number, in the order in which they were added, and their numbers by any of their keys.

    keys_of: all keys by which a name is to be found. About 10 bytes a name and 12 a key, besides the letters.
    """

    def __init__(self, keys_of: Callable[[str], Iterable[str]]) -> None:
        self._keys_of = keys_of
        self._letters = bytearray()
        self._ends = array("q", [0])
        self._hashes = array("q")
        self._owners = array("i")

    def add(self, name: str) -> None:
        """Add a name. Not after `sort`."""
        number = len(self)
        self._letters += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._letters))
        for key in self._keys_of(name):
            self._hashes.append(hash(key))
            self._owners.append(number)

    def sort(self) -> Names:
        """Make `find` possible."""
        hashes = np.array(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        self._found = hashes[order]
        self._numbers = np.array(self._owners, np.int32)[order]
        self._hashes, self._owners = array("q"), array("i")
        return self

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._letters[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def find(self, key: str) -> list[int]:
        """The numbers of the names that have this key, ascending."""
        start = int(self._found.searchsorted(hash(key)))
        end = int(self._found.searchsorted(hash(key), "right"))
        numbers = sorted(set(self._numbers[start:end].tolist()))
        return [number for number in numbers if key in self._keys_of(self[number])]
