"""embed: from images and an encoder to a table of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Embedding(Result):
    """Features of images, one row an image: `table` with columns id, uri and features. set_aside: how many items cannot
    be read, with their reasons."""

    table: pa.Table
    set_aside: int
    reasons: dict[str, int]

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

    def to_dict(self) -> dict[str, Any]:
        shape = list(self.features.shape)
        return {"items": shape[0], "shape": shape, "set_aside": self.set_aside, "reasons": self.reasons}


@checked
def embed(
    source: str,
    *,
    model: str,
    out: str | None = None,
    tokens: Literal["pooled", "patches"] = "pooled",
    collection: str | None = None,
    device: str | None = None,
) -> Embedding:
    """Turn images into features, one row an image: id, uri, features.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    out
        File to write: .parquet, .npy (with a .items.csv of ids beside it), .csv or .lance.
    tokens
        pooled: one vector an image. patches: one vector a patch, in reading order.
    collection
        Where to keep the table of items, instead of the cache folder.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.console import console
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import load
    from selfsight.files import TABLES, save_table
    from selfsight.machine import best_device

    if out is not None and Path(out).suffix.lower() not in TABLES:
        raise SelfsightError(f"Cannot tell the format of {out!r}. End it in one of {', '.join(TABLES)}.")
    if tokens == "patches" and out is not None and Path(out).suffix.lower() == ".csv":
        raise SelfsightError("Patches do not fit a .csv. Write .parquet, .npy or .lance.")
    items = open_source(source, collection)
    if out is not None:
        check_outside(out, items.about.location)
    format = measure_format(items)
    encoder = load(model, format).to(best_device())
    takes = encoder.geometry.format
    if (takes.mode, takes.depth) != (format.mode, format.depth):
        console().print(f"The encoder takes {takes}; these images are {format}, and are translated.", soft_wrap=True)
    if tokens == "patches":
        result = _patches(encoder, items)
    else:
        rows, features, bad = pooled(encoder, items)
        result = _embedding(rows, features, items, bad.values())
    if out is not None:
        save_table(result.table, out)
    return result


def _embedding(rows: pa.Table, features: npt.NDArray[Any], items: Collection, bad: Iterable[str]) -> Embedding:
    """The features of `rows`; `bad`: the reasons of what was set aside while decoding."""
    import pyarrow as pa

    from selfsight.files import as_vectors

    table = pa.table({"id": rows["id"], "uri": rows["uri"], "features": as_vectors(features)})
    reasons = items.reasons(bad)
    return Embedding(table, sum(reasons.values()), reasons)


def _patches(encoder: Encoder, items: Collection) -> Embedding:
    """Patch features [N, P, Dp], not kept: they are large."""
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
    return _embedding(rows.take(numbers), features, items, bad.values())


def show(result: Embedding) -> None:
    """Print what was made."""
    shape = " x ".join(f"{n:,}" for n in result.features.shape)
    reasons = f" ({counted(result.reasons)})" if result.reasons else ""
    print(f"Features {shape}, {result.set_aside:,} items set aside{reasons}.")
