"""embed: from images and an encoder to a table of features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.errors import SelfsightError
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder

NOT_CARRIED = ("status", "reason")  # the same for every row, as only items that can be read have features


@dataclass(frozen=True)
class Embedding(Result):
    """Features of images, one row per image.

    table: `features` and the columns of the collection except `status` and `reason`. Its metadata hold `root` (what the
        uris are relative to) and, with patches, `grid` (their rows and columns).
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    file: where the table was written; None if it was not.
    """

    table: pa.Table
    set_aside: int
    reasons: dict[str, int]
    file: str | None = None

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        return self.table["id"].to_pylist()  # type: ignore[no-any-return]

    @property
    def uris(self) -> list[str]:
        """The place of each row's image in its source."""
        return self.table["uri"].to_pylist()  # type: ignore[no-any-return]

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """[N, D], or [N, P, D] with patches, in the order of the rows."""
        from selfsight.files import to_numpy

        return to_numpy(self.table["features"])

    @property
    def root(self) -> str:
        """What the uris are relative to: a folder, or the file or name that holds all images."""
        return str(self.table.schema.metadata[b"root"].decode())

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches of an image; None with pooled features."""
        grid = self.table.schema.metadata.get(b"grid")
        return None if grid is None else tuple(json.loads(grid))

    def to_dict(self) -> dict[str, Any]:
        shape = list(self.features.shape)
        said = {"items": shape[0], "shape": shape, "set_aside": self.set_aside, "reasons": self.reasons}
        return said | {"file": self.file, "root": self.root, "grid": self.grid}


@checked
def embed(
    source: str,
    *,
    model: str | Encoder,
    out: str | None = None,
    tokens: Literal["pooled", "patches"] = "pooled",
    collection: str | None = None,
    device: str | None = None,
) -> Embedding:
    """Turn images into features, one row per image: its id, uri, label and whatever else is known of it, and features.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    out
        File to write: .parquet, .npy (with a .items.csv of the other columns beside it), .csv or .lance.
    tokens
        pooled: one vector per image. patches: one vector per patch, in reading order.
    collection
        Where to keep the table of items, instead of the cache folder.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.console import console
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.data.written import note
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import encoder_of
    from selfsight.files import TABLES, as_vectors, save_table

    if out is not None and Path(out).suffix.lower() not in TABLES:
        raise SelfsightError(f"Cannot tell the format of {out!r}. End it in one of {', '.join(TABLES)}.")
    if tokens == "patches" and out is not None and Path(out).suffix.lower() == ".csv":
        raise SelfsightError("Patches do not fit a .csv. Write .parquet, .npy or .lance.")
    items = open_source(source, collection)
    if "features" in items.columns:
        raise SelfsightError(
            "The collection already has a column features, and embed writes one. Import it under another name: "
            "--columns NAME=features."
        )
    if out is not None:
        check_outside(out, items.about.location)
    format = measure_format(items)
    encoder = encoder_of(model, format)
    takes = encoder.geometry.format
    if (takes.mode, takes.depth) != (format.mode, format.depth):
        console().print(f"The encoder takes {takes}; these images are {format}, and are translated.", soft_wrap=True)
    metadata = {"root": _root(items).encode("utf-8", "backslashreplace")}
    if tokens == "patches":
        rows, features, bad = _patches(encoder, items)
        metadata["grid"] = json.dumps(encoder.grid).encode()
    else:
        rows, features, bad = pooled(encoder, items)
    known = rows.drop_columns([name for name in NOT_CARRIED if name in rows.column_names])
    table = known.append_column("features", as_vectors(features)).replace_schema_metadata(metadata)
    reasons = items.reasons(bad.values())
    result = Embedding(table, sum(reasons.values()), reasons)
    if out is None:
        return result
    save_table(table, out)
    note("features", Path(out), items.path)
    return replace(result, file=out)


def _root(items: Collection) -> str:
    """What the uris are relative to; kept features are of use without the images too."""
    try:
        return items.source.root
    except SelfsightError:
        return items.about.location


def _patches(encoder: Encoder, items: Collection) -> tuple[pa.Table, npt.NDArray[Any], dict[str, str]]:
    """Patch features [N, P, Dp], as `pooled` gives its; not kept, because they are large."""
    from selfsight.console import console
    from selfsight.data.canvases import nothing_decoded
    from selfsight.encoders.features import gathered, item_features

    rows = items.usable

    def told() -> Iterator[tuple[list[int], np.ndarray, dict[int, str]]]:
        said = False
        for numbers, features, failed in item_features(encoder, items, rows, "patches"):
            if numbers and not said:
                size = features[0].nbytes * len(rows)
                console().print(f"Features of {len(rows):,} items take {size / 1e6:,.0f} MB", style="dim")
                said = True
            yield numbers, features, failed

    numbers, features, bad = gathered(told(), rows)
    if not len(numbers):
        raise nothing_decoded(items, list(bad.values()))
    return rows.take(numbers), features, bad


def show(result: Embedding) -> None:
    """Print what was made, and where it is."""
    shape = " x ".join(f"{n:,}" for n in result.features.shape)
    reasons = f" ({counted(result.reasons)})" if result.reasons else ""
    print(f"Features {shape}, {result.set_aside:,} items set aside{reasons}.")
    if result.file is None:
        print("No file was written. Give one: -o features.parquet")
    else:
        beside = f" and {result.file[:-4]}.items.csv" if result.file.lower().endswith(".npy") else ""
        print(f"Written to {result.file}{beside}.")
