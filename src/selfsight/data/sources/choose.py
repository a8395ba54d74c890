"""Which source a location names."""

# ruff: noqa: PTH100, PTH111, PTH112, PTH113, PTH116, PTH119, PTH120, PTH122, PTH207
# Paths are text here: a million of them pass through, and pathlib would take most of the time.

from __future__ import annotations

import glob
import os
import re
import stat
from dataclasses import replace
from itertools import product

from selfsight.data.sources.archive import TarSource, ZipSource
from selfsight.data.sources.coco import CocoSource, coco_root
from selfsight.data.sources.columns import check_columns
from selfsight.data.sources.dataset import HuggingFaceSource, TorchvisionSource
from selfsight.data.sources.folder import FileSource, FolderSource, in_words
from selfsight.data.sources.names import is_hidden, known_suffixes, suffix_of
from selfsight.data.sources.parquet import ParquetSource, holds_images
from selfsight.data.sources.source import Options, Source
from selfsight.data.sources.table import LISTS, TableSource
from selfsight.errors import DataError, SelfsightError

ACCEPTED = (
    "Give a folder, an image or video file, a list (.txt) or table (.csv, .tsv, .parquet) of paths, a COCO file "
    "(.json), a .zip or .tar archive, a .parquet of images, hf:NAME or torchvision:NAME."
)
_TABLES = (*LISTS, ".csv", ".tsv", ".parquet")
_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")
_MANY = 100_000  # files that braces may stand for
# What is kept beside shards.
_NOTES = (".json", ".txt", ".md", ".idx", ".yaml")
_SAVED = ({"dataset_info.json", "state.json"}, {"dataset_dict.json"})  # by `datasets.save_to_disk`


def make_source(location: str, options: Options) -> Source:
    """The source that a location names: a path, a pattern of paths, `hf:NAME` or `torchvision:NAME`.

    Raises `SelfsightError` for what does not exist, or is nothing of what is accepted.
    """
    check_columns(options.columns)
    if options.root is not None:
        root = os.path.abspath(os.path.expanduser(options.root))
        if not os.path.isdir(root):
            raise SelfsightError(
                f"The root {options.root} is not a folder. Give the one that the paths are relative to."
            )
        options = replace(options, root=root)
    scheme, _, name = location.partition(":")
    if scheme == "hf" and name:
        local = os.path.abspath(os.path.expanduser(name))
        return HuggingFaceSource(f"hf:{local}" if os.path.isdir(local) else location, os.path.basename(name), options)
    if scheme == "torchvision" and name:
        return TorchvisionSource(location, name, options)
    if "\0" in location or not location:
        raise SelfsightError(f"{location!r} names nothing. {ACCEPTED}")
    path = os.path.abspath(os.path.expanduser(location))
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise DataError(f"{location} cannot be read ({in_words(error)}).") from None
    except OSError:  # nothing of this name: perhaps a pattern
        found = _matching(path)
        if found is None:
            raise SelfsightError(f"{location} does not exist. {ACCEPTED}") from None
        return _of_files(path, found, _standing(path), options)
    if stat.S_ISDIR(mode):
        return _of_folder(path, options)
    if stat.S_ISREG(mode):
        return _of_files(path, [path], os.path.dirname(path), options)
    raise SelfsightError(f"{location} is neither a file nor a folder. {ACCEPTED}")


def _of_folder(path: str, options: Options) -> Source:
    try:
        with os.scandir(path) as found:
            inside = {file.name: file.is_dir(follow_symlinks=False) for file in found if not is_hidden(file.name)}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({in_words(error)}).") from None
    if any(saved <= inside.keys() for saved in _SAVED):
        return HuggingFaceSource(path, os.path.basename(path), options)
    if shards := _alone(path, inside, ".tar"):
        return TarSource(path, shards, path, options)
    tables = _alone(path, inside, ".parquet")
    if tables and holds_images(tables[0], options.columns.get("path")):
        return ParquetSource(path, tables, path, options)
    return FolderSource(path, options)


def _alone(folder: str, inside: dict[str, bool], suffix: str) -> list[str]:
    """The files of a folder with this suffix, sorted, if nothing but notes lies beside them. inside: name -> is a
    folder."""
    if any(is_dir or not name.lower().endswith((suffix, *_NOTES)) for name, is_dir in inside.items()):
        return []
    return [os.path.join(folder, name) for name in sorted(inside) if name.lower().endswith(suffix)]


def _of_files(location: str, paths: list[str], root: str, options: Options) -> Source:
    """The source of one file, or of several of one kind."""
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise SelfsightError(f"{location} matches files of several kinds, such as {paths[0]} and {paths[-1]}.")
    kind = kinds.pop()
    if all(path.lower().endswith(".parquet") for path in paths) and holds_images(paths[0], options.columns.get("path")):
        return ParquetSource(location, paths, root, options)
    if kind == "table":
        return TableSource(location, paths, root, options)
    if kind == "coco":
        return CocoSource(location, paths, coco_root(paths[0]), options)
    if kind == "tar":
        return TarSource(location, paths, root, options)
    if kind in ("zip", "image") and len(paths) > 1:
        raise SelfsightError(f"{location} matches {len(paths)} files. Give their folder, with --include if need be.")
    if kind == "zip":
        return ZipSource(location, options)
    if kind == "image":
        return FileSource(location, options)
    if _COMPRESSED_TAR.search(paths[0]):
        raise DataError(
            f"{paths[0]} is compressed, so that its images cannot be read one by one. Unpack it: tar -xf {paths[0]}"
        )
    raise SelfsightError(f"{paths[0]} is not a file that selfsight reads. {ACCEPTED}")


def _kind(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _TABLES:
        return "table"
    if suffix == ".json":
        return "coco"
    if suffix in (".zip", ".tar"):
        return suffix[1:]
    return "image" if suffix_of(os.path.basename(path)) in known_suffixes() else ""


# -- patterns --


def _matching(pattern: str) -> list[str] | None:
    """The files that a pattern matches: braces in their order, wildcards sorted. None if it is not a pattern.

    Raises `SelfsightError` if one of the alternatives in braces matches nothing.
    """
    found: list[str] = []
    alternatives = _expand(pattern)
    if len(alternatives) == 1 and not glob.has_magic(pattern):
        return None
    for path in alternatives:
        there = glob.glob(_escaped(path), recursive=True)
        matches = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, there))
        if not matches:
            raise SelfsightError(
                f"{path} {'matches no file' if glob.has_magic(path) else 'does not exist'}. {ACCEPTED}"
            )
        found += matches
    return list(dict.fromkeys(found))


def _escaped(pattern: str) -> str:
    """A pattern in which the folders that there are stand for themselves, brackets in their names and all."""
    folder = _standing(pattern)
    return glob.escape(folder) + pattern[len(folder) :]


def _standing(pattern: str) -> str:
    """The innermost folder of a pattern that there is."""
    folder = os.path.dirname(pattern)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _expand(pattern: str) -> list[str]:
    """`{a,b}` and `{000..012}` written out."""
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, …
    choices = [[text] if i % 2 == 0 else _choices(text) for i, text in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MANY:
        raise SelfsightError(f"{pattern} stands for {count:,} files, above the limit of {_MANY:,}.")
    return ["".join(parts) for parts in product(*choices)]


def _choices(inside: str) -> list[str]:
    first, dots, last = inside.partition("..")
    if not dots or not (first + last).isdecimal():
        return [part.strip() for part in inside.split(",")]
    if len(last) > 9 or int(last) - int(first) >= _MANY:
        raise SelfsightError(f"{{{inside}}} stands for more than {_MANY:,} files.")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
