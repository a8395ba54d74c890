"""What measuring a head asks of the items of a test, whatever its task: which belong together, and what a reader must
know of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa

from selfsight.data.annotations.outlines import Aside
from selfsight.data.labels import Labels
from selfsight.data.sources.annotated import told
from selfsight.errors import SelfsightError, meant
from selfsight.heads.head import Head
from selfsight.heads.targets import written_label

MOST_VALUES = 50  # of the column of `by`


class Marked(Protocol):
    """Items with masks or boxes: their labels, those that are not used, and notes."""

    @property
    def labels(self) -> Labels: ...
    @property
    def aside(self) -> tuple[Aside, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def places_by(rows: pa.Table, by: str | None, location: str) -> dict[str, np.ndarray]:
    """{value of the column `by`: places of its rows}; none without a column. location: of the rows, for messages.

    Raises `SelfsightError` where there is no such column, or it has too many values.
    """
    if by is None:
        return {}
    if by not in rows.column_names:
        there = sorted(rows.column_names)
        raise SelfsightError(f"{location} has no column {by}.{meant(by, there)} It has {', '.join(there)}.")
    values = np.array([written_label("" if value is None else value) for value in rows[by].to_pylist()])
    names = sorted(set(values.tolist()))
    if len(names) > MOST_VALUES:
        raise SelfsightError(f"The column {by} has {len(names):,} values; --by takes one of at most {MOST_VALUES}.")
    return {name or "(none)": np.flatnonzero(values == name) for name in names}


def to_know(head: Head, marked: Marked, bad: dict[int, str]) -> list[str]:
    """Notes on a test with masks or boxes. marked: the pictures that were measured. bad: why others cannot be read."""
    learnt = set(head.items["content_hash"].to_pylist())
    known = sum(content in learnt for content in marked.labels.rows["content_hash"].to_pylist())
    doubt, unused = marked.labels.doubt, [one for one in marked.aside if one not in marked.labels.aside]
    notes = [*([doubt] if doubt else []), *marked.notes]  # the doubt tells of what the labels set aside
    notes += [f"{known:,} of the pictures are among those that it learnt from; the figures flatter"] if known else []
    notes += [told(unused)] if unused else []
    notes += [f"{len(bad):,} pictures cannot be read ({next(iter(bad.values()))})"] if bad else []
    return notes
