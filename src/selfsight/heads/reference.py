"""The features of whole pictures of a head that says where: by them drift is told from what it learnt from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfsight.data.collection import Collection
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.heads.modules import Prepare, as_tensor
from selfsight.heads.placed import Placed, batched, inputs_of, placed

MOST = 300  # items, whose features are kept


def with_features(
    table: pa.Table, count: int, encoder: Encoder, items: Collection, stride: int, roi: np.ndarray | None
) -> pa.Table:
    """The table of a head's items with the column `features` [D], of up to 300 of its first `count` rows; the others
    have none."""
    chosen = table["id"].take(pa.array(spread(count, MOST)))
    rows = items.usable.filter(pc.is_in(items.usable["id"], chosen.combine_chunks()))
    numbers, features, _ = pooled_where(encoder, items, rows, stride, roi, "Remembering")
    found = dict(zip(rows["id"].take(pa.array(numbers, pa.int64())).to_pylist(), features, strict=True))
    column = pa.array([found.get(item) for item in table["id"].to_pylist()], pa.list_(pa.float32()))
    return table.append_column("features", column)


def pooled_where(
    encoder: Encoder, items: Collection, rows: pa.Table, stride: int, roi: np.ndarray | None, title: str
) -> tuple[list[int], np.ndarray, dict[int, str]]:
    """(numbers of those of `rows` that can be read, in their order; their features [N, D], of each the mean over its
    inputs; {number: reason} of the others)."""
    bad: dict[int, str] = {}
    found: dict[int, np.ndarray] = {}
    prepare = Prepare(encoder.geometry)

    def good() -> Iterator[Placed]:
        for one in placed(items, rows, encoder.geometry, stride, roi, title):
            if isinstance(one, Placed):
                yield one
            else:
                bad[one[0]] = one[1]

    for several in batched(good()):
        sums = np.zeros((len(several), encoder.dim), np.float32)
        for which, pixels, _ in inputs_of(several):
            pooled = encoder.encode(prepare(as_tensor(pixels, encoder.device)), levels=True).pooled
            np.add.at(sums, [place for place, _ in which], pooled.float().cpu().numpy())
        for one, total in zip(several, sums, strict=True):
            found[one.number] = total / len(one.inputs)
    numbers = sorted(found)
    features = np.stack([found[number] for number in numbers]) if numbers else np.zeros((0, encoder.dim), np.float32)
    return numbers, features, bad
