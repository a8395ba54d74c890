"""What `curate` says of sources: the sites, cameras or batches that items are from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.errors import DataError, SelfsightError
from selfsight.verbs.curate_results import Curation, Measured, Source

if TYPE_CHECKING:
    from selfsight.curation.sources import Figure, Judgement
    from selfsight.encoders.encoder import Encoder


def sources_of(judgements: Sequence[Judgement]) -> list[Source]:
    """The same, as a result."""
    return [
        Source(
            one.source, one.items, one.labelled, one.verdict, one.why, _measured(one.difference),
            _if_measured(one.harm), {name: _measured(each) for name, each in one.evidence.items()},
            _if_measured(one.gain), _if_measured(one.loss),
        )
        for one in judgements
    ]  # fmt: skip


def _measured(figure: Figure) -> Measured:
    return Measured(*(round(float(each), 4) for each in (figure.value, figure.low, figure.high)))


def _if_measured(figure: Figure | None) -> Measured | None:
    return None if figure is None else _measured(figure)


def run_of(model: str | Encoder | None) -> Path | None:
    """The folder of the run that a model is of, None for other models."""
    return Path(model) if isinstance(model, str) and (Path(model) / "recipe.yaml").is_file() else None


def summed(source: str, model: str | Encoder | None, labels: str | None, summary: str) -> Curation:
    """The result of writing what a source tells of itself, under the name of the file."""
    import numpy as np

    from selfsight.curation.faults import class_names
    from selfsight.curation.how_many import LEVEL
    from selfsight.curation.summaries import LEAST_ITEMS, to_json
    from selfsight.curation.told import summaries_of
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.data.labels import Labels
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import encoder_of
    from selfsight.files import write_whole

    out = Path(summary)
    if model is None:
        raise SelfsightError("--summary tells of features. Give the encoder that all sources use: --model RUN")
    if out.suffix.lower() != ".json":
        raise SelfsightError(f"A summary is written as .json, not as {summary!r}. For example: --summary north.json")
    items = open_source(source)
    check_outside(summary, items.about.location, "--summary")
    encoder = encoder_of(model, measure_format(items))
    rows, features, bad = pooled(encoder, items)
    if len(rows) < LEAST_ITEMS:
        raise DataError(f"{source} has {len(rows)} items; a summary is made of {LEAST_ITEMS} or more.")
    names = class_names(Labels.of(items, rows, labels))
    everything = {out.stem: np.arange(len(rows))}
    (told,) = summaries_of(encoder, items, rows, features, everything, names, run_of(model))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, to_json(told))
    reasons = items.reasons(bad.values())
    return Curation({}, {}, LEVEL, source, told.items, sum(reasons.values()), reasons, 0, [], summary=summary)


def compared(source: str) -> Curation:
    """The result of comparing the sources whose summaries are in a folder. A file that cannot be compared is left out
    with a note that says why. Raises `DataError` where fewer than two are left."""
    from selfsight.curation.how_many import LEVEL
    from selfsight.curation.sources import comparable, judge
    from selfsight.curation.summaries import MOST_BYTES, from_json

    files = sorted(Path(source).glob("*.json"))
    if len(files) < 2:
        raise DataError(
            f"{source} holds {len(files)} summaries (.json), and two or more are compared. Each site makes its own: "
            "selfsight curate SOURCE --model RUN --summary SITE.json"
        )
    told, notes = [], []
    for file in files:
        try:
            with file.open("rb") as content:
                told.append(from_json(content.read(MOST_BYTES + 1), file))
        except (DataError, OSError) as error:
            notes.append(f"left out: {error}".rstrip("."))
    together, others = comparable(told)
    notes += others
    if notes and len(together) < 2:
        raise DataError(f"Of {len(files)} summaries in {source}, {len(together)} can be compared. {notes[0]}.")
    found = sources_of(judge(together))
    return Curation({}, {}, LEVEL, source, sum(one.items for one in found), 0, {}, 0, notes, sources=found)


def table_of(sources: Sequence[Source]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headings, rows) for people."""
    gain = any(one.gain is not None for one in sources)
    loss = any(one.loss is not None for one in sources)
    extra = ["gain without it"] * gain + ["loss"] * loss
    headings = ("source", "items", "difference", "harm", *extra, "verdict", "why")
    rows = []
    for one in sources:
        optional = [_told(one.gain, "+.1f")] * gain + [_told(one.loss, "+.1f")] * loss
        rows.append((one.source, f"{one.items:,}", _told(one.difference, ".1f"), _told(one.harm, ".2f"), *optional,
                     one.verdict, one.why))  # fmt: skip
    return headings, rows


def _told(figure: Measured | None, format: str) -> str:
    if figure is None:
        return "unknown"
    return f"{figure.value:{format}} ({figure.low:{format}} to {figure.high:{format}})"
