"""embed: from images and an encoder to a table of features."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsight.errors import SelfsightError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder


def embed(
    source: str,
    *,
    model: str,
    out: str | None = None,
    tokens: Literal["pooled", "patches"] = "pooled",
    collection: str | None = None,
) -> pa.Table:
    """Turn images into features, one row an image: id, uri, features.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, an encoder folder, or the name of a timm model.
    out
        File to write: .parquet, .npy (with a .items.csv of ids beside it), .csv or .lance.
    tokens
        pooled: one vector an image. patches: one vector a patch, in reading order.
    collection
        Where to keep the table of items, instead of the cache folder.
    """
    from selfsight.console import console
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.encoders.features import pooled
    from selfsight.encoders.store import load
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
        table = _patches(encoder, items)
    else:
        rows, features, bad = pooled(encoder, items)
        table = _table(rows, features, items, bad.values())
    if out is not None:
        save_table(table, out)
    return table


def _table(rows: pa.Table, features: Any, items: Collection, bad: Iterable[str]) -> pa.Table:
    """A table of id, uri and features; the reasons of the items set aside, `bad` while decoding, in its metadata."""
    import pyarrow as pa

    from selfsight.files import as_vectors

    table = pa.table({"id": rows["id"], "uri": rows["uri"], "features": as_vectors(features)})
    reasons = Counter([*items.set_aside["reason"].to_pylist(), *bad])
    return table.replace_schema_metadata({"set_aside": json.dumps(dict(reasons.most_common()))})


def _patches(encoder: Encoder, items: Collection) -> pa.Table:
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
    return _table(rows.take(numbers), features, items, bad.values())


def summary(table: pa.Table) -> dict[str, Any]:
    """What `--json` says of the table."""
    from selfsight.files import to_numpy

    shape = to_numpy(table["features"]).shape
    reasons = json.loads(table.schema.metadata[b"set_aside"])
    return {"items": shape[0], "shape": list(shape), "set_aside": sum(reasons.values()), "reasons": reasons}


def show(result: dict[str, Any]) -> None:
    """Print what was made."""
    shape = " x ".join(f"{n:,}" for n in result["shape"])
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in result["reasons"].items())
    print(f"Features {shape}, {result['set_aside']:,} items set aside{f' ({reasons})' if reasons else ''}.")
