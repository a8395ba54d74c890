"""The page of an inspection: what it finds, at what price, what it missed, what it was made from, how to use it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from selfsight.data.collection import Collection
from selfsight.encoders.licences import concern
from selfsight.errors import SelfsightError
from selfsight.files import read_json
from selfsight.heads.inspect_evaluation import InspectEvaluation
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.metrics import number, percent
from selfsight.heads.pictures import in_grey, overlay
from selfsight.probing.evaluation import Interval
from selfsight.report import nameless
from selfsight.report.head_worth import by_table, figures_table
from selfsight.report.pictures import data_uri
from selfsight.report.template import render
from selfsight.report.tested import folder_of, tested_of
from selfsight.report.verdict import Verdict

THUMBNAIL = 200  # px
MOST_TILES = 12
BINS, WIDTH, HEIGHT, LEFT, BELOW = 40, 640, 160, 10, 34


class Tile(NamedTuple):
    """A part on the page: its overlay as a picture, its name and what it is; picture and name may be ""."""

    picture: str
    name: str
    what: str


class Strip(NamedTuple):
    """Parts on the page under a heading, with a sentence, and why pictures are missing."""

    title: str
    sentence: str
    tiles: list[Tile]
    missing: str


def build(head: InspectHead, thumbnails: bool = True, names: bool = True) -> tuple[str, Verdict, int]:
    """The page of `head` as HTML, its verdict, and how many good parts it learnt from.

    thumbnails: whether the page shows images. names: whether it names items and paths. Raises `SelfsightError` if the
    evaluation in its folder cannot be read.
    """
    about, lineage = head.about, read_json(folder_of(head) / "lineage.json") or {}
    tested, notes = tested_of(head, InspectEvaluation.of)
    notes = [*notes, *about.notes, *(tested.notes if tested else [])]
    told = verdict(head, tested)
    held = head.items.filter(head.items["fold"].to_numpy() >= 0)["held_out"].to_numpy()
    scores = {"good parts that were held out": held}
    if tested is not None:
        scores |= {
            f"{named} of the test": np.array(tested.scores[name])
            for name, named in (("good", "good parts"), ("defect", "defects"))
            if name in tested.scores
        }
    known = about.metrics["held_out"]
    sides = ({"test": tested.metrics} if tested else {}) | ({"known defects": known} if known else {})
    name = str(folder_of(head)) if names else nameless.HEAD
    content: dict[str, object] = {
        "title": folder_of(head).name, "about": about, "verdict": told, "thumbnails": thumbnails, "names": names,
        "metrics": figures_table(sides), "defects": by_table(tested.defects if tested else {}), "tested": tested,
        "histogram": histogram(scores, limit_of(held, about.promised)),
        "strips": _strips(head, tested, thumbnails, names),
        "notes": notes if names else nameless.head_notes(notes), "shifts": about.shifts, "tried": about.tried,
        "facts": _facts(head, lineage, names), "concern": concern(about.licence),
        "intended": about.intended_use if names else nameless.intended(about.intended_use),
        "predict": f"selfsight predict NEW/ --head {shlex.quote(name)} -o found/",
        "evaluate": f"selfsight evaluate {shlex.quote(name)} --test LABELLED --masks MASKS",
    }  # fmt: skip
    return render("inspect_page.html", content), told, about.items


def collections(head: InspectHead) -> list[str]:
    """Where the images are that the page may show."""
    lineage, (tested, _) = read_json(folder_of(head) / "lineage.json") or {}, tested_of(head, InspectEvaluation.of)
    return [*filter(None, [str(lineage.get("collection", "")), tested.collection if tested else ""])]


def verdict(head: InspectHead, tested: InspectEvaluation | None) -> Verdict:
    """What the head is worth beside chance, which has an AUROC of 0.5."""
    metrics: dict[str, Interval] = tested.metrics if tested else head.about.metrics["held_out"]
    promised = f"at most {100 * head.about.promised:.3g} % of good parts are to be called a defect"
    if not metrics:
        return Verdict(
            "not measured",
            f"It knows good parts alone. Promised: {promised}. How many defects it finds is not known.",
        )
    auroc = metrics["auroc"]
    sign = Interval(auroc.value, *(None if end is None else end - 0.5 for end in (auroc.low, auroc.high))).sign
    word = {1: "better than chance", 0: "not measurably better than chance", -1: "worse than chance"}[sign]
    of = f"{tested.items - tested.good:,} defects of the test" if tested else f"{head.about.defects:,} known defects"
    sentence = f"It finds {percent(metrics['found'])} of {of}"
    if tested is not None:
        sentence += f", and calls {percent(tested.metrics['false_alarms'])} of {tested.good:,} good parts a defect"
    figures = {"auroc": auroc.value or 0.0, "found": metrics["found"].value or 0.0}
    return Verdict(word, f"{sentence}; promised: {promised}. AUROC {number('auroc', auroc)}.", figures)


def limit_of(held: np.ndarray, rate: float) -> float:
    """The score from which a part is called a defect, as its p-value among the `held` [N] is at most the rate."""
    allowed = int(np.floor(rate * (len(held) + 1) + 1e-9)) - 1  # held-out parts that may score as high
    return float(np.nextafter(np.sort(held)[::-1][max(0, allowed)], np.inf))


def histogram(scores: dict[str, np.ndarray], limit: float) -> Markup:
    """How many of each group have a score, in strips over one axis, and the limit as a line."""
    every = np.concatenate(list(scores.values()))
    low, high = float(min(every.min(), limit)), float(max(every.max(), limit))
    span = (high - low) or 1.0
    parts, step = [], HEIGHT + 24
    for row, (name, values) in enumerate(scores.items()):
        counts = np.histogram(values, BINS, (low, low + span))[0]
        top = 20 + row * step
        parts.append(f'<text x="{LEFT}" y="{top - 6}">{len(values):,} {name}</text>')
        for place, count in enumerate(counts.tolist()):
            if count:
                tall = max(1.0, count / counts.max() * HEIGHT)
                at, wide = LEFT + place * WIDTH / BINS, WIDTH / BINS - 1
                box = f'x="{at:.1f}" y="{top + HEIGHT - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
                parts.append(f'<rect class="bar" {box}><title>{count:,}</title></rect>')
        parts.append(f'<path class="grid" d="M{LEFT} {top + HEIGHT}h{WIDTH}"/>')
    bottom = 20 + len(scores) * step - 24
    x = LEFT + (limit - low) / span * WIDTH
    parts.append(f'<path class="limit" d="M{x:.1f} 14V{bottom}"/>')
    for value in (low, limit, low + span):
        at = LEFT + (value - low) / span * WIDTH
        anchor = "start" if value == low else "end" if value > limit else "middle"
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{value:.3g}</text>')
    box = f"0 0 {WIDTH + 2 * LEFT} {bottom + BELOW}"
    return Markup(f'<svg class="scores" viewBox="{box}" role="img" aria-label="Scores">{"".join(parts)}</svg>')


# -- pictures --


def _strips(head: InspectHead, tested: InspectEvaluation | None, thumbnails: bool, names: bool) -> list[Strip]:
    lineage = read_json(folder_of(head) / "lineage.json") or {}
    wanted = [
        (
            "Good parts that look least normal",
            "Each was judged by what did not learn from it. If one has a defect, take it out and train again.",
            str(lineage.get("collection", "")),
            [(one.id, one.uri, f"p {one.p:.3f}") for one in head.about.suspicious],
        ),
    ]  # fmt: skip
    if tested is not None:
        for title, sentence, judged in (
            ("Defects that look most normal", "Those above the limit were found.", tested.missed),
            ("Good parts of the test that look least normal", "Those above the limit are false alarms.", tested.alarms),
        ):
            named = [(one.id, one.uri, f"{one.label}, p {one.p:.3f}") for one in judged[:MOST_TILES]]
            wanted.append((title, sentence, tested.collection, named))
    strips = []
    for title, sentence, place, parts in wanted:
        pictures, missing = _pictures(head, place, [item for item, _, _ in parts]) if thumbnails else ({}, "")
        missing = nameless.NO_PICTURES if missing and not names else missing
        tiles = [Tile(pictures.get(item, ""), uri if names else "", what) for item, uri, what in parts]
        strips.append(Strip(title, sentence, tiles, missing))
    return strips


def _pictures(head: InspectHead, place: str, ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """({id: overlay} of the items in the collection at `place`, why some are missing)."""
    if not place:
        return {}, "The pictures are missing, as lineage.json does not say where they are."
    try:
        items = Collection.open(place)
        items.source  # noqa: B018
    except SelfsightError as error:
        return {}, f"The pictures are not there any more: {error}"
    rows = items.table.filter([item in ids for item in items.table["id"].to_pylist()])
    names, found = rows["id"].to_pylist(), {}
    for one in head.inspect(items, rows, {}, maps=True, title="Pictures"):
        if one.map is not None:
            grey = in_grey(one.pixels, head.encoder.geometry)
            drawn = overlay(grey, one.map, head.about.usual, head.about.threshold)
            drawn.thumbnail((THUMBNAIL, THUMBNAIL))
            found[names[one.number]] = data_uri(drawn)
    return found, ""


def _facts(head: InspectHead, lineage: dict[str, object], names: bool) -> list[tuple[str, str]]:
    about, geometry = head.about, head.encoder.geometry
    rows = [("good parts", f"{about.good:,}"), ("known defects", f"{about.defects:,}")]
    if names:
        rows.append(("collection", f"{lineage.get('collection')}, version {lineage.get('collection_version')}"))
        rows.append(("command", str(lineage.get("command", ""))))
    rows += [("encoder", f"{about.encoder}, {geometry.size} px, {geometry.rule}"), ("licence", about.licence)]
    rows += [("method", f"{about.method}, {about.setting}"), ("seed", str(lineage.get("seed", "")))]
    if about.roi is not None:
        rows.append(("looks at", f"a mask of {about.roi[1]} x {about.roi[0]} px"))
    return [*rows, ("this head", head.digest)]
