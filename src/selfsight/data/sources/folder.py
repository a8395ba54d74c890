"""A folder, listed recursively, or one file. Opening regular files, in which every local source ends."""

# ruff: noqa: PTH113, PTH114, PTH116, PTH119, PTH120
# Paths are text here: a million of them pass through, and pathlib would take most of the time.

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterator
from operator import attrgetter
from typing import BinaryIO

from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.columns import Columns, plain_columns
from selfsight.data.sources.names import in_utf8, is_hidden, known_suffixes, mask_folders, suffix_of
from selfsight.data.sources.source import Entry, Options, Source
from selfsight.errors import DataError


class LocalSource(Source):
    """Files of this machine, by their path relative to the folder `root`."""

    root: str

    def meant(self, name: str) -> list[str]:
        inside = os.path.realpath(self.root)
        absolute = [os.path.relpath(name, inside).replace(os.sep, "/")] if name.startswith(os.sep) else []
        return [*super().meant(name), *absolute]

    def holds(self, uri: str) -> bool:
        try:
            return os.path.isfile(os.path.join(self.root, uri))
        except ValueError:  # a NUL in the name
            return False

    def open(self, uri: str) -> BinaryIO:
        return open_file(os.path.join(self.root, uri))


class FolderSource(LocalSource):
    """The images below a folder, by their path relative to it."""

    kind = "folder"

    def __init__(self, folder: str, options: Options) -> None:
        self.location = self.root = os.path.realpath(folder)
        self.name = os.path.basename(self.location) or "root"
        self.options = options
        self.others = Counter()

    @property
    def keywords(self) -> dict[str, str]:
        return plain_columns(self.options.columns)

    def entries(self) -> Iterator[Entry]:
        self.others = Counter()
        columns = Columns(self)
        for entry in self.listed():
            if not entry.reason:
                entry.columns = columns.fill(entry.uri)
            yield entry

    def listed(self) -> Iterator[Entry]:
        """The entries, before their columns are filled."""
        return list_folder(self.root, self.options, self.others)


class FileSource(FolderSource):
    """One image or video. Its items are those that its folder would give for it."""

    kind = "file"

    def __init__(self, path: str, options: Options) -> None:
        super().__init__(os.path.dirname(path), options)
        self._file = os.path.basename(path)
        self.location = os.path.join(self.root, self._file)

    def listed(self) -> Iterator[Entry]:
        try:
            yield _entry(self._file, os.stat(self.location))
        except OSError as error:
            raise DataError(f"{self.location} cannot be read ({in_words(error)}).") from None


def list_folder(root: str, options: Options, others: Counter[str]) -> Iterator[Entry]:
    """The images below `root`; other files are counted in `others` by suffix, hidden files and folders as hidden.

    Links are followed once the folders themselves are done, and no folder is listed twice: loops end, and
    a folder keeps its own path. Raises `SelfsightError` if `root` itself cannot be read.
    """
    suffixes = known_suffixes()
    everything = not (options.include or options.exclude)
    known: set[tuple[int, int]] = set()
    folders: list[tuple[str, bool]] = [("", False)]  # path with its last "/", whether it holds masks
    links: deque[tuple[str, bool]] = deque()
    while folders or links:
        prefix, masks = folders.pop() if folders else links.popleft()
        try:
            found = _scan(os.path.join(root, prefix), known, others)
        except OSError as error:
            if not prefix:
                raise DataError(f"{root} cannot be read ({in_words(error)}).") from None
            yield Entry(in_utf8(prefix[:-1]), reason=f"folder: {in_words(error)}")
            continue
        below = []
        for file in found:
            uri = prefix + file.name
            if _is_folder(file):
                below.append(file)
                continue
            if not (everything or options.wanted(uri)):
                continue
            suffix = suffix_of(file.name)
            if suffix not in suffixes:
                others[in_utf8(suffix)] += 1
            elif masks and not options.include:
                others["masks"] += 1
            else:
                yield _listed(file, uri)
        of_masks = mask_folders([folder.name for folder in below])
        steps = [(folder, f"{prefix}{folder.name}/", masks or folder.name in of_masks) for folder in below]
        steps = [step for step in steps if everything or _may_hold(step[1], options)]
        links.extend(step[1:] for step in steps if step[0].is_symlink())
        folders.extend(step[1:] for step in reversed(steps) if not step[0].is_symlink())


def _scan(path: str, known: set[tuple[int, int]], others: Counter[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing if it is in `known`, to which it is added."""
    here = os.stat(path)
    if (here.st_dev, here.st_ino) in known:
        return []
    known.add((here.st_dev, here.st_ino))
    with os.scandir(path) as found:
        everything = list(found)
    seen = sorted((file for file in everything if not is_hidden(file.name)), key=attrgetter("name"))
    if len(seen) < len(everything):
        others["hidden"] += len(everything) - len(seen)
    return seen


def _is_folder(file: os.DirEntry[str]) -> bool:
    try:
        return file.is_dir()
    except OSError:  # a link in a loop, or to where we may not look
        return False


def _listed(file: os.DirEntry[str], uri: str) -> Entry:
    try:
        return _entry(uri, file.stat())
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ELOOP) and file.is_symlink()
        return Entry(in_utf8(uri), reason="a link to nothing" if gone else in_words(error))


def _entry(uri: str, found: os.stat_result) -> Entry:
    if not stat.S_ISREG(found.st_mode):
        return Entry(in_utf8(uri), reason="not a file")
    if not uri.isascii() and in_utf8(uri) != uri:
        return Entry(in_utf8(uri), reason="the file name is not UTF-8")
    return Entry(uri, found.st_size, found.st_mtime_ns)


def _may_hold(folder: str, options: Options) -> bool:
    """Whether a folder (with its last "/") can hold a wanted file, so that what cannot is not even entered."""
    if any(pattern.endswith("*") and not Options(exclude=(pattern,)).wanted(folder) for pattern in options.exclude):
        return False
    return not options.include or any(_meets(pattern, folder) for pattern in options.include)


def _meets(pattern: str, folder: str) -> bool:
    """Whether the letters before the first wildcard of a pattern lead into a folder or lie in it."""
    start = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return start.startswith(folder) or folder.startswith(start)


def in_words(error: OSError) -> str:
    """Why a file cannot be read, for the user."""
    if isinstance(error, FileNotFoundError):
        return "it is not there any more"
    if isinstance(error, PermissionError):
        return "no permission to read"
    return error.strerror or type(error).__name__


def open_file(path: str) -> BinaryIO:
    """A regular file at its first byte; never waits, as opening a pipe would. Raises `Unreadable`."""
    try:
        # without O_NONBLOCK, opening a pipe waits for its writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:  # a NUL in the name
        raise Unreadable("no such file") from None
    except FileNotFoundError:
        raise Unreadable("a link to nothing" if os.path.islink(path) else "file vanished since import") from None
    except OSError as error:
        raise Unreadable(in_words(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("not a file")
    return os.fdopen(descriptor, "rb")
