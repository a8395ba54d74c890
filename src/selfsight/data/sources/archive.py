"""Archives read without unpacking: .zip, and .tar shards as WebDataset makes them."""

# ruff: noqa: PTH116, PTH119
# Paths are text here: a million of them pass through, and pathlib would take most of the time.

from __future__ import annotations

import json
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from threading import Lock
from typing import Any, BinaryIO

from selfsight.data.formats.format import Unreadable, unreadable
from selfsight.data.sources.columns import Columns, plain_columns
from selfsight.data.sources.folder import in_words, open_file
from selfsight.data.sources.names import (
    Names,
    in_utf8,
    is_hidden,
    is_mask,
    known_suffixes,
    mask_folders,
    stem_of,
    suffix_of,
)
from selfsight.data.sources.source import Entry, Member, Options, Source
from selfsight.errors import DataError, first_line

MAX_BYTES = 2 * 2**30  # of a member, unpacked: it is held in memory
_MAX_NAME = 4096  # letters of a path; a hostile one of 65,535 may name a folder with every second
_MAX_TEXT = 16 * 2**20  # bytes of a JSON text that describes a sample
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, OverflowError),
    *(NotImplementedError, MemoryError),
)


class _Archive(Source):
    """What zip and tar share."""

    def __init__(self, location: str, name: str, options: Options) -> None:
        self.location = location
        self.name = name
        self.options = options
        self.others = Counter()
        self._lock = Lock()

    @property
    def keywords(self) -> dict[str, str]:
        return plain_columns(self.options.columns)

    def _lists(self, uri: str, masks: tuple[str, ...]) -> bool:
        """Whether a member is listed as an image. If not, it is counted. `masks`: see `_mask_folders`."""
        suffix = suffix_of(uri.rpartition("/")[2])
        if not self.options.wanted(uri):
            return False
        if suffix not in known_suffixes():
            self.others[in_utf8(suffix)] += 1
        elif not self.options.include and uri.startswith(masks):
            self.others["masks"] += 1
        else:
            return True
        return False


def _mask_folders(uris: Iterable[str]) -> tuple[str, ...]:
    """The folders of masks among the members, with their last "/"."""
    below: dict[str, set[str]] = {}
    known: set[str] = set()
    for uri in uris:
        folder = uri.rpartition("/")[0]
        while folder and folder not in known and len(folder) < _MAX_NAME:
            known.add(folder)
            parent, slash, name = folder.rpartition("/")
            below.setdefault(parent + slash, set()).add(name)
            folder = parent
    return tuple(f"{parent}{name}/" for parent, names in below.items() for name in mask_folders(names))


def _uri(name: str) -> str:
    """The path of a member, "" for what is hidden."""
    uri = name.replace("\\", "/").removeprefix("./").lstrip("/")
    return "" if any(map(is_hidden, filter(None, uri.split("/")))) else uri


def _stamp(path: str) -> tuple[int, int]:
    """Time of the last change and size of an archive. Raises `Unreadable`."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise Unreadable("the archive vanished since import") from None
    except OSError as error:
        raise Unreadable(in_words(error)) from None
    return found.st_mtime_ns, found.st_size


def _check_unchanged(path: str, stamp: tuple[int, int]) -> None:
    if _stamp(path) != stamp:
        raise Unreadable("the archive has changed since it was listed")


class ZipSource(_Archive):
    """The images in a zip archive, by their path in it."""

    kind = "zip"

    def __init__(self, path: str, options: Options) -> None:
        super().__init__(path, stem_of(os.path.basename(path)), options)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._archive: zipfile.ZipFile | None = None
        self._seen = (0, 0)
        self._doubled = 0

    def entries(self) -> Iterator[Entry]:
        self.others = Counter()
        try:
            with self._lock:
                self._read_index()
        except Unreadable as reason:
            raise DataError(f"{self.location} is not a zip archive that can be read ({reason}).") from None
        columns = Columns(self)
        masks = _mask_folders(self._members)
        self.others.update({"listed before": self._doubled} if self._doubled else {})
        for uri, member in self._members.items():
            if self._lists(uri, masks):
                entry = Entry(uri, member.file_size, self._seen[0], reason=_zip_problem(member))
                if not entry.reason:
                    entry.columns = columns.fill(uri)
                yield entry

    def _read_index(self) -> zipfile.ZipFile:
        """The archive, its members known; not read again while it is the same."""
        before, self._seen = self._seen, _stamp(self.location)
        if self._archive and before == self._seen:
            return self._archive
        if self._archive:
            self._archive.close()
            self._archive = None
        try:
            self._archive = zipfile.ZipFile(self.location)
        except _BROKEN_ZIP as error:
            raise Unreadable(_in_zip_words(error)) from None
        named = [(_uri(member.filename), member) for member in self._archive.infolist()]
        named = [(uri, member) for uri, member in named if uri and not uri.endswith("/")]
        self._members = dict(named)  # of several under one name the last counts, as when unpacking
        self._doubled = len(named) - len(self._members)
        return self._archive

    def holds(self, uri: str) -> bool:
        return uri in self._members

    def open(self, uri: str) -> BinaryIO:
        with self._lock:
            archive = self._archive or self._read_index()
            _check_unchanged(self.location, self._seen)
            if uri not in self._members:
                raise Unreadable("not in the archive any more")
            member = self._members[uri]
            if problem := _zip_problem(member):
                raise Unreadable(problem)
            try:
                return Member(archive.read(member), self._seen[0])
            except _BROKEN_ZIP as error:
                raise Unreadable(f"damaged in the archive: {_in_zip_words(error)}") from None


def _zip_problem(member: zipfile.ZipInfo) -> str:
    """Why a member is not even opened, "" if it can be."""
    if member.flag_bits & 1:
        return "encrypted"
    if member.file_size > MAX_BYTES:
        return _too_large(member.file_size)
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link inside an archive"
    known = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return "" if member.compress_type in known else f"compressed by method {member.compress_type}, which is not read"


def _in_zip_words(error: BaseException) -> str:
    return str(unreadable(error)) if isinstance(error, MemoryError) else first_line(error)[:200]


def _too_large(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB unpacked, above the limit of {MAX_BYTES >> 30} GiB"


class TarSource(_Archive):
    """The images in tar shards: `shard.tar/path`, or the path alone where the location is one archive.

    The files of a sample (one name up to its first dot) stand side by side: `.cls` or `.cls.txt` is the label
    of its images, `.json` their row of a manifest, `.seg.png` beside `.png` a mask. One pass over the headers makes the
    index.
    """

    kind = "tar"

    def __init__(self, location: str, shards: list[str], root: str, options: Options) -> None:
        name = stem_of(os.path.basename(location)) if [location] == shards else os.path.basename(root)
        super().__init__(location, name, options)
        self._shards = {
            "" if [location] == shards else os.path.relpath(s, root).replace(os.sep, "/"): s for s in shards
        }
        self._index: _TarIndex | None = None

    def entries(self) -> Iterator[Entry]:
        self.others = Counter()
        with self._lock:
            if not (self._index and self._index.is_current()):
                self._index = _TarIndex(self._shards)
            index = self._index
        columns = Columns(self)
        masks = _mask_folders(index.names)
        for key, sample in groupby(range(len(index.names)), key=lambda number: _sample_of(index.names[number])):
            numbers = list(sample)
            cells: dict[str, Any] | None = None
            images, mask = self._images(index, key, numbers)
            for number in numbers:
                uri = index.names[number]
                if number not in images:
                    self.others["masks"] += 1
                    continue
                if not self._lists(uri, masks):
                    continue
                if index.names.find(uri)[0] != number:
                    self.others["listed before"] += 1
                    continue
                entry = Entry(uri, index.sizes[number], index.stamp(number)[0], reason=index.problems.get(number, ""))
                if not entry.reason:
                    cells = self._cells(index, key, numbers) if cells is None else cells
                    entry.columns = mask | columns.fill(uri, cells)
                yield entry
        for shard, reason in index.broken.items():
            yield Entry(f"rest of {shard or os.path.basename(self.location)}", reason=reason)

    def _images(self, index: _TarIndex, key: str, numbers: list[int]) -> tuple[set[int], dict[str, str]]:
        """(the members of a sample that are not masks of another, {"mask": path of the mask} if there is one)."""
        uris = {number: index.names[number] for number in numbers}
        suffixes = known_suffixes() - {""}
        pictures = [n for n, uri in uris.items() if suffix_of(uri) in suffixes and self.options.wanted(uri)]
        masks = [number for number in pictures if is_mask(uris[number][len(key) :])]
        if not masks or len(masks) == len(pictures):
            return set(numbers), {}
        self.brings = ("mask",)
        return set(numbers) - set(masks), {"mask": uris[masks[0]]}

    def _cells(self, index: _TarIndex, key: str, numbers: list[int]) -> dict[str, Any]:
        """What the text files of a sample say of its images."""
        cells: dict[str, Any] = {}
        kinds = [index.names[number][len(key) :] for number in numbers]
        pictures = [f"_{kind}" for kind in kinds if suffix_of(f"_{kind}") in known_suffixes() - {""}]
        stems = {stem_of(name).removeprefix("_") for name in pictures}
        dotted = stems.pop() if len(stems) == 1 else ""  # of a name that itself holds dots
        for number, whole in zip(numbers, kinds, strict=True):
            kind = whole.removeprefix(dotted)
            if kind not in (".json", ".cls", ".cls.txt"):
                continue
            try:
                if index.sizes[number] > _MAX_TEXT:
                    raise ValueError("too long")
                text = index.read(number).decode()
                if kind == ".json":
                    found = json.loads(text)
                    cells = {**found, **cells} if isinstance(found, dict) else cells
                else:
                    cells["label"] = text
            except (Unreadable, ValueError, RecursionError):
                self.others[f"unreadable {kind}"] += 1
        return cells

    def holds(self, uri: str) -> bool:
        return bool(self._index and self._index.names.find(uri))

    def open(self, uri: str) -> BinaryIO:
        with self._lock:
            index = self._index = self._index or _TarIndex(self._shards)
        numbers = index.names.find(uri)
        if not numbers:
            raise Unreadable("not in the archive any more")
        if problem := index.problems.get(numbers[0]):
            raise Unreadable(problem)
        return Member(index.read(numbers[0]), index.stamp(numbers[0])[0])


class _TarIndex:
    """Where the members of some shards lie: about 40 bytes each, and their names.

    problems: why a member cannot be taken, by its number. broken: why a shard is not read to its end.
    """

    def __init__(self, shards: dict[str, str]) -> None:
        self.names = Names(lambda uri: (uri,))
        self.sizes = array("q")
        self.problems: dict[int, str] = {}
        self.broken: dict[str, str] = {}
        self._offsets = array("q")
        self._paths = list(shards.values())
        self._starts: list[int] = []
        self._stamps: list[tuple[int, int]] = []
        for shard, path in shards.items():
            self._starts.append(len(self.names))
            self._stamps.append((0, 0))
            try:
                self._stamps[-1] = _stamp(path)
                for member in _members(path, self._stamps[-1][1]):
                    self._add(shard, member)
            except Unreadable as reason:
                self.broken[shard] = str(reason)
        self.names.sort()

    def _add(self, shard: str, member: tarfile.TarInfo) -> None:
        uri = _uri(member.name)
        if member.isdir() or not uri:
            return
        problem = ""
        if not uri.isascii() and in_utf8(uri) != uri:
            problem = "the file name is not UTF-8"
        elif not member.isreg():
            problem = "a link inside an archive" if member.issym() or member.islnk() else "not a file"
        elif member.issparse():
            problem = "a file with holes inside an archive"
        elif member.size > MAX_BYTES:
            problem = _too_large(member.size)
        if problem:
            self.problems[len(self.names)] = problem
        self.names.add(in_utf8(f"{shard}/{uri}" if shard else uri))
        self.sizes.append(member.size)
        self._offsets.append(member.offset_data)

    def is_current(self) -> bool:
        """Whether the shards are still those that were read."""
        try:
            return [_stamp(path) for path in self._paths] == self._stamps
        except Unreadable:
            return False

    def _shard(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def stamp(self, number: int) -> tuple[int, int]:
        """Time of the last change and size of the shard of a member."""
        return self._stamps[self._shard(number)]

    def read(self, number: int) -> bytes:
        """A member. Raises `Unreadable`."""
        path = self._paths[self._shard(number)]
        _check_unchanged(path, self.stamp(number))
        with open_file(path) as file:
            file.seek(self._offsets[number])
            data = file.read(self.sizes[number])
        if len(data) < self.sizes[number]:
            raise Unreadable("the archive has changed since it was listed")
        return data


def _sample_of(uri: str) -> str:
    """What the files of one sample share: folder and name up to the first dot."""
    folder, slash, name = uri.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _members(path: str, size: int) -> Iterator[tarfile.TarInfo]:
    """The complete members of a tar of `size` bytes. Raises `Unreadable` where it is damaged or breaks off."""
    damaged, block, last = "the archive is damaged from here on", b"", -1
    with open_file(path) as file:
        if file.read(6).startswith(_COMPRESSED):
            raise DataError(f"{path} is compressed, so that its images cannot be read one by one. Unpack it first.")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    if member.size < 0 or tar.offset <= last:  # it would be read again and again
                        raise Unreadable(damaged)
                    if member.offset_data + member.size > size:
                        raise Unreadable(f"the archive ends within {in_utf8(member.name)[-80:]}")
                    last = tar.offset
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    yield member
                file.seek(tar.offset)
                block = file.read(tarfile.BLOCKSIZE)
        except tarfile.TarError as error:
            raise Unreadable(f"{damaged} ({first_line(error)})") from None
        except OSError as error:
            raise Unreadable(in_words(error)) from None
        except (EOFError, ValueError, OverflowError, RecursionError, MemoryError):  # what hostile headers lead to
            raise Unreadable(damaged) from None
    if block != bytes(tarfile.BLOCKSIZE):  # a header that is none, or nothing
        raise Unreadable(damaged if block else "the archive ends without its end marker")
