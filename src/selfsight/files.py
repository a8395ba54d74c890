"""What the product writes: whole files, by path or URI, and tables in the format that a name asks for.

The only file that touches pylance. Lance commits a version whole or not at all; it moves updated rows, so nothing above
relies on the position of a row.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psutil import pid_exists

from selfsight.errors import DataError, MachineError, SelfsightError, first_line, in_words

if TYPE_CHECKING:
    from lance import LanceDataset as LanceDataset

Place = str | os.PathLike[str]  # a path, or a URI that fsspec knows such as s3://bucket/name
CSV_ROWS = 4096  # made into text at a time
TABLES = (".parquet", ".npy", ".csv", ".lance")
LANCE_WRITES = {"data", "_versions", "_transactions", "_indices", "_deletions", "_latest.manifest", "_refs"}
KEPT = timedelta(days=1)  # elder versions of a table stay for whoever still reads them


# -- whole files --


@contextmanager
def whole(place: Place) -> Iterator[BinaryIO]:
    """A binary file open for writing. A reader sees the old content or the new, never a part, also after the power
    went; nothing changes if the block raises."""
    if "://" in str(place):
        import fsspec

        buffer = io.BytesIO()
        yield buffer
        files, path = fsspec.url_to_fs(str(place))
        files.pipe_file(path, buffer.getvalue())
        return
    path = Path(place)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(place: Place, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part. Text is written as UTF-8."""
    with whole(place) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def read_json(file: Path) -> dict[str, object] | None:
    """The object that a JSON file holds; None where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def bytes_in(folder: Path) -> int:
    """Bytes of all files of a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def own_folder(folder: Path) -> Path:
    """Where this process makes what takes the place of `folder` in one step: FOLDER.PROCESS."""
    return folder.with_name(f"{folder.name}.{os.getpid()}")


def clear_left(folder: Path) -> None:
    """Delete the `own_folder`s of processes that were killed, and what this one has in its own."""
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*"):
        process = left.suffix[1:]
        if process.isdecimal() and (int(process) == os.getpid() or not pid_exists(int(process))):
            shutil.rmtree(left, ignore_errors=True)


# -- any table, as a file --


def save_table(table: pa.Table, out: Place) -> None:
    """Write a table in the format that the suffix of `out` names.

    .npy holds the one column of vectors, and the other columns are in a .items.csv beside it. In .csv a vector takes a
    column for each number (f0, f1, … of `features`), lists and structs are JSON. Raises `SelfsightError` for another
    suffix, and for vectors that the format cannot hold.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in TABLES:
        raise SelfsightError(f"Cannot tell the format of {str(out)!r}. End it in one of {', '.join(TABLES)}.")
    if "://" not in str(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".lance":
        write_lance(table, out)
    elif suffix == ".parquet":
        import pyarrow.parquet

        with whole(out) as file:
            pyarrow.parquet.write_table(table, file)
    elif suffix == ".csv":
        _write_csv(table, out)
    else:
        names = [name for name in table.column_names if _is_vector(table.schema.field(name).type)]
        if len(names) != 1:
            raise SelfsightError(f"A .npy holds one column of vectors, not {len(names)}. Write .parquet.")
        with whole(out) as file:
            np.save(file, to_numpy(table[names[0]]))
        _write_csv(table.drop_columns(names), str(out)[: -len(suffix)] + ".items.csv")


def ids_in(file: Path) -> set[str]:
    """The column `id` of a table that `save_table` wrote, or of predictions; nothing where it is not there or cannot be
    read."""
    try:
        if file.suffix.lower() == ".lance":
            return set(open_lance(file).to_table(columns=["id"])["id"].to_pylist())
        if file.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return set(pyarrow.parquet.read_table(file, columns=["id"])["id"].to_pylist())
        if file.suffix.lower() in (".json", ".jsonl"):
            text = file.read_text(encoding="utf-8")
            rows = json.loads(text) if file.suffix.lower() == ".json" else map(json.loads, text.splitlines())
            return {row["id"] for row in rows}
        items = file.with_suffix(".items.csv") if file.suffix.lower() == ".npy" else file
        with items.open(encoding="utf-8", newline="") as lines:
            return {row["id"] for row in csv.DictReader(lines)}
    except (SelfsightError, OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return set()


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, vectors or matrices as an array [N], [N, D] or [N, P, D]."""
    array, sides = column.combine_chunks(), [len(column)]
    while _is_vector(array.type):
        sides.append(array.type.list_size)
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False).reshape(sides))


def as_vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    """An array [N, D] or [N, P, D] as a column of float32 vectors or matrices."""
    column: Any = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    for side in values.shape[:0:-1]:  # innermost first
        column = pa.FixedSizeListArray.from_arrays(column, side)
    return column


def _is_vector(type: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(type))


def _write_csv(table: pa.Table, out: Place) -> None:
    """Some thousand rows at a time: as text, a table takes many times its memory."""
    header: list[str] = []
    for field in table.schema:
        if not _is_vector(field.type):
            header.append(field.name)
            continue
        if _is_vector(field.type.value_type):
            raise SelfsightError(f"A .csv cannot hold the matrices of {field.name}. Write .parquet, .npy or .lance.")
        before = "f" if field.name == "features" else f"{field.name}_"
        header += [f"{before}{i}" for i in range(field.type.list_size)]
    if twice := [name for name in header if header.count(name) > 1]:
        raise SelfsightError(f"A .csv would have two columns {twice[0]}. Write .parquet, .npy or .lance.")
    with whole(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        for start in range(0, len(table), CSV_ROWS):
            writer.writerows(_csv_rows(table.slice(start, CSV_ROWS)))
        text.detach()  # flushed; `whole` closes the file


def _csv_rows(table: pa.Table) -> Iterator[list[str]]:
    cells: list[list[str]] = []
    for column in table.columns:
        if _is_vector(column.type):
            cells += [[f"{x:.7g}" for x in numbers] for numbers in to_numpy(column).T]
        else:
            cells.append([_cell(value) for value in column.to_pylist()])
    return map(list, zip(*cells, strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


# -- Lance tables --


def lance_exists(path: Place) -> bool:
    """Whether a table was ever committed at `path`; a kill may leave a folder without one."""
    _recover(Path(path))
    return any((Path(path) / "_versions").glob("*"))


def open_lance(path: Place, version: int | None = None) -> LanceDataset:
    """The Lance data set at `path`. Raises `SelfsightError` where there is none that can be read."""
    import lance

    try:
        return lance.dataset(str(path), version=version)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path} is not a collection ({first_line(error)}). Give a folder of images, or a .lance folder."
        ) from None


def write_lance(rows: pa.Table | pa.RecordBatchReader, path: Place) -> None:
    """Write `rows` as a new version of the table at `path`. Raises `SelfsightError` if `path` is a folder of others."""
    import lance

    exists = lance_exists(path)
    if not exists and Path(path).is_dir() and {p.name for p in Path(path).iterdir()} - LANCE_WRITES:
        raise SelfsightError(f"{path} is a folder of other things. Give another name.")
    with writing(path):
        # Lance holds a file's pages until it is whole, so that small files keep memory flat.
        written = lance.write_dataset(
            rows, str(path), mode="overwrite" if exists else "create", max_rows_per_file=2**16
        )
        written.cleanup_old_versions(older_than=KEPT)


def append_lance(rows: pa.Table, path: Place) -> None:
    """Add `rows` to the table at `path`, which begins with them if there is none, whoever else adds to it."""
    import lance

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        if lance_exists(path) or not _begun(rows, path):
            lance.write_dataset(rows, str(path), mode="append" if lance_exists(path) else "create")


def _begun(rows: pa.Table, path: Path) -> bool:
    """Begin a table with `rows` in one step; False if there is something at `path` by then. Lance's own "create" lets
    a second process overwrite what the first one began."""
    import lance

    fresh = own_folder(_begun_at(path))
    clear_left(_begun_at(path))
    try:
        lance.write_dataset(rows, str(fresh), mode="create")
        fresh.rename(path)  # which fails where another process was quicker
    except OSError:
        if not path.exists():
            raise
        return False
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _begun_at(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def remove_rows(path: Path, gone: pa.Array, metadata: dict[str, str] | None = None) -> None:
    """Rewrite the table at `path` without the rows whose id is in `gone`, and remove every older version of it."""
    import lance

    _recover(path)
    clear_left(_begun_at(path))
    dataset = lance.dataset(str(path))
    schema = dataset.schema.with_metadata(metadata) if metadata else dataset.schema
    kept = (batch.filter(pc.invert(pc.is_in(batch["id"], gone))).cast(schema) for batch in dataset.to_batches())
    fresh, old = path.with_name(f".{path.name}.selfsight-fresh"), _old(path)
    shutil.rmtree(fresh, ignore_errors=True)
    with writing(fresh):
        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, kept), str(fresh))
    os.replace(path, old)
    os.replace(fresh, path)
    _remove(old, path)


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Around what writes a table: a full disk or a read-only folder is one sentence, and loses only this version."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: {in_words(error)}. The earlier content is unchanged. Remove the cause and try "
            "again."
        ) from None


def _recover(path: Path) -> None:
    """Finish a `remove_rows` that was killed between its two renamings."""
    old = _old(path)
    if old.exists():
        if not path.exists():
            os.replace(old, path)
        else:
            _remove(old, path)


def _old(path: Path) -> Path:
    """A name that nobody else gives to a folder of theirs."""
    return path.with_name(f".{path.name}.selfsight-old")


def _remove(old: Path, path: Path) -> None:
    """Delete what Lance wrote into `old`; whatever somebody else put there moves to `path`."""
    for entry in list(old.iterdir()):
        if entry.name not in LANCE_WRITES:
            os.replace(entry, path / entry.name)
    shutil.rmtree(old)
