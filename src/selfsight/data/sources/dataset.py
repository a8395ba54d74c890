"""Data sets of libraries: Hugging Face `datasets`, saved or by name, and torchvision's by name."""

from __future__ import annotations

import inspect
import io
import socket
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO

from selfsight.data.cache import cache_folder, check_room
from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.columns import Columns, first_of, missing_column, with_class_names
from selfsight.data.sources.folder import open_file
from selfsight.data.sources.names import row_uri
from selfsight.data.sources.source import Entry, Options, Source
from selfsight.errors import DataError, MachineError, SelfsightError, first_line, meant

# Splits of torchvision's data sets; of those that overlap others only where the others are missing.
_SPLITS = ("train", "val", "valid", "test", "unlabeled")
_OVERLAPPING = {"trainval": ("train", "val")}


class _Dataset(Source):
    """Splits of items found by number: `train/00000012`, or the number alone where there are no splits."""

    kind = "dataset"

    def __init__(self, location: str, name: str, options: Options) -> None:
        self.location = location
        self.name = name
        self.options = options
        self.others = Counter()
        self._lock = RLock()  # the libraries promise nothing about threads
        self._loaded: dict[str, Any] | None = None

    @abstractmethod
    def _load(self) -> dict[str, Any]:
        """The splits by name. Raises `SelfsightError`."""

    def _splits(self) -> dict[str, Any]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _find(self, uri: str) -> tuple[Any, int]:
        """The split and the number in it. Raises `Unreadable`."""
        name, _, number = uri.rpartition("/")
        try:
            split = self._splits().get(name)
        except SelfsightError as error:
            raise Unreadable(str(error)) from None
        if split is None or not number.isdecimal() or int(number[:18]) >= len(split):
            raise Unreadable("not in the data set any more")
        return split, int(number)


# -- Hugging Face --


class HuggingFaceSource(_Dataset):
    """A folder that `datasets.save_to_disk` wrote, or `hf:NAME`: a name on the hub, or a folder of data files."""

    def _load(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise MachineError(
                f"{self.location} is read by the datasets package. Run: pip install 'selfsight[huggingface]'"
            ) from None
        from selfsight.machine import hub_answers

        name = self.location.removeprefix("hf:")
        asked = name != self.location and not Path(name).is_dir()
        offline = asked and not hub_answers(name, "dataset", datasets.config.HF_ENDPOINT)
        before = datasets.config.HF_HUB_OFFLINE
        try:
            datasets.config.HF_HUB_OFFLINE = before or offline  # else it asks again and again, for half a minute
            loaded = datasets.load_from_disk(name) if name == self.location else datasets.load_dataset(name)
        except Exception as error:
            if offline:
                raise MachineError(
                    f"{self.location} is not on this machine and the hub does not answer. Fetch it where there is a "
                    "network, save it with save_to_disk, and give that folder."
                ) from None
            raise DataError(f"{self.location} cannot be loaded ({first_line(error)}).") from None
        finally:
            datasets.config.HF_HUB_OFFLINE = before
        splits = loaded if isinstance(loaded, dict) else {str(loaded.split or ""): loaded}
        return {
            str(split): _Split(rows, self.options.columns.get("path"), self.location) for split, rows in splits.items()
        }

    def entries(self) -> Iterator[Entry]:
        self.others = Counter()
        for name, split in self._splits().items():
            columns = Columns(self, split.rows.column_names, self.location)
            if len(split.classes) == 1:
                columns.cells.setdefault("label", *split.classes)
            rows = split.listed({*columns.cells.values()})
            for number in range(len(split)):
                try:
                    size, cells = next(rows)
                except Exception as error:
                    raise DataError(f"{self.location} is damaged ({first_line(error)}).") from None
                uri = row_uri(name, number)
                if self.options.wanted(uri):
                    known = {"split": name} if name else {}
                    yield Entry(uri, size, split.modified_ns, known | columns.fill(uri, cells, name))

    def open(self, uri: str) -> BinaryIO:
        split, number = self._find(uri)
        try:
            with self._lock:
                value = split.images[number][split.image] or {}
        except Exception as error:
            raise Unreadable(f"not readable by datasets: {first_line(error)}") from None
        if value.get("bytes") is not None:
            return io.BytesIO(value["bytes"])
        if not value.get("path"):
            raise Unreadable("no image in this row")
        return open_file(value["path"])


class _Split:
    """The rows of one split. image: the column of the images. classes: names of the classes, by column of labels."""

    def __init__(self, rows: Any, asked: str | None, called: str) -> None:
        import datasets

        features = rows.features
        self.image = _image_column(features, asked, called)
        self.classes = {name: f.names for name, f in features.items() if isinstance(f, datasets.ClassLabel)}
        try:
            self.rows = rows.cast_column(self.image, datasets.Image(decode=False))
        except Exception as error:
            raise DataError(f"Column {self.image!r} of {called} holds no images ({first_line(error)}).") from None
        self.images = self.rows.select_columns([self.image])
        files = [file["filename"] for file in rows.cache_files]
        self.modified_ns = max((Path(file).stat().st_mtime_ns for file in files), default=None)

    def __len__(self) -> int:
        return len(self.rows)

    def listed(self, names: set[str]) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Bytes of the image, where it lies in the table, and the cells of the columns `names`, a row at a time."""
        import pyarrow.compute as pc

        needed = [name for name in self.rows.column_names if name in names - {self.image}]
        for table in self.rows.select_columns([*needed, self.image]).with_format("arrow").iter(1000):
            sizes = pc.binary_length(pc.struct_field(table[self.image], "bytes")).to_pylist()
            for size, cells in zip(sizes, table.select(needed).to_pylist(), strict=True):
                yield size, with_class_names(cells, self.classes)


def _image_column(features: Any, asked: str | None, called: str) -> str:
    from datasets import Image

    if asked:
        if column := first_of(asked, features):
            return column
        raise SelfsightError(missing_column(called, f"path={asked}", features))
    # Without the metadata of `datasets`, images are plain {bytes, path}.
    images = [n for n, f in features.items() if isinstance(f, Image) or (isinstance(f, dict) and "bytes" in f)]
    if len(images) == 1 or "image" in images:
        return "image" if "image" in images else images[0]
    if images:
        raise SelfsightError(f"{called} has several columns of images: {', '.join(images)}. Add --columns path=COLUMN")
    raise DataError(f"{called} has no column of images. Its columns: {', '.join(features)}.")


# -- torchvision --


class TorchvisionSource(_Dataset):
    """`torchvision:NAME`, kept (and once fetched, where torchvision does so) in the cache folder."""

    def _load(self) -> dict[str, Any]:
        from torchvision import datasets

        from selfsight.machine import PATIENCE

        names = {name.lower(): name for name in datasets.__all__}
        name = names.get(self.name.lower(), "")
        kind = getattr(datasets, name, None)
        if not inspect.isclass(kind):
            hint = (
                meant(self.name, datasets.__all__) or " They are listed in the documentation of torchvision.datasets."
            )
            raise SelfsightError(f"torchvision has no data set {self.name!r}.{hint}")
        accepted = inspect.signature(kind).parameters
        root = cache_folder() / "torchvision"
        given: dict[str, Any] = {"root": str(root)} if "root" in accepted else {}
        if "download" in accepted:
            given["download"] = True
        before = socket.getdefaulttimeout()
        if not root.is_dir():
            check_room(root)
        try:
            socket.setdefaulttimeout(PATIENCE)  # torchvision sets none: it would wait for minutes
            return _torchvision_splits(kind, given, set(accepted))
        except Exception as error:
            raise SelfsightError(
                f"{self.location} cannot be loaded from {root} ({first_line(error)}). Put its files there, or give "
                "the folder of its images."
            ) from None
        finally:
            socket.setdefaulttimeout(before)

    def entries(self) -> Iterator[Entry]:
        self.others = Counter()
        columns = Columns(self)
        for name, split in self._splits().items():
            labels = _labels(split)
            for number in range(len(split)):
                uri = row_uri(name, number)
                if self.options.wanted(uri):
                    known = ({"split": name} if name else {}) | ({"label": labels[number]} if labels else {})
                    yield Entry(uri, columns=known | columns.fill(uri, table=name))

    def open(self, uri: str) -> BinaryIO:
        from PIL import Image

        split, number = self._find(uri)
        try:
            with self._lock:
                item = split[number]
        except Exception as error:
            raise Unreadable(f"not readable by torchvision: {first_line(error)}") from None
        image = item[0] if isinstance(item, tuple) else item
        if not isinstance(image, Image.Image):
            raise Unreadable(f"a {type(image).__name__}, not an image")
        file = io.BytesIO()
        if image.mode in ("F", "CMYK"):  # which PNG does not know
            image.save(file, "TIFF")
        else:
            image.save(file, "PNG", compress_level=1)
        file.seek(0)
        return file


def _torchvision_splits(kind: Any, given: dict[str, Any], accepted: set[str]) -> dict[str, Any]:
    if "train" in accepted:
        return {"train": kind(train=True, **given), "test": kind(train=False, **given)}
    argument = next((name for name in ("split", "image_set") if name in accepted), None)
    if argument is None:
        return {"": kind(**given)}
    found: dict[str, Any] = {}
    for split in (*_SPLITS, *_OVERLAPPING):
        if not any(other in found for other in _OVERLAPPING.get(split, ())):
            with suppress(ValueError):  # it has no such split
                found[split] = kind(**{argument: split}, **given)
    if not found:
        raise ValueError("it asks for more than a name")
    return found


def _labels(split: Any) -> list[str | None] | None:
    """The class of each item of a torchvision data set, None where they are not listed."""
    every = [getattr(split, name, None) for name in ("targets", "_labels", "labels", "y")]
    every.append([sample[1] for sample in getattr(split, "_samples", None) or [] if len(sample) == 2])
    numbers = next((values for values in every if values is not None and len(values) == len(split)), None)
    if numbers is None:
        return None
    classes = getattr(split, "classes", None) or getattr(split, "categories", None)
    numbers = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    if not all(isinstance(number, int) for number in numbers):  # boxes, names of files
        return None
    if not classes:
        return [str(number) for number in numbers]
    names = [name if isinstance(name, str) else name[0] for name in classes]  # ImageNet's have synonyms
    return [names[number] if 0 <= number < len(names) else None for number in numbers]
