"""What `curate --review` does: the page on which people decide of what was found, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsight.errors import MachineError, SelfsightError
from selfsight.verbs.curate import ISSUES, curate
from selfsight.verbs.curate_results import Curation, Issue, Issues, Partner

if TYPE_CHECKING:
    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder
    from selfsight.pages.reviewed import Reviewed
    from selfsight.report.cloud import Cloud, How


def review_page(
    source: str, model: str | Encoder | None, labels: str | None, sources: str | None, out: str | None,
    thumbnails: bool, how: How | None,
    by: str, port: int | None, others: Mapping[str, object],
) -> Curation:  # fmt: skip
    """Show the page of what the folder `out` says until Ctrl-C; where it says nothing yet, curate first. Returns what
    is left. how: the map is drawn. others: {option: what was given} of those that it does not go with."""
    from selfsight.console import console
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import open_source
    from selfsight.encoders.weights import encoder_of

    try:
        from selfsight.pages.review import MOST_BYTES, reviewing
        from selfsight.pages.server import Server
    except ModuleNotFoundError as missing:
        raise MachineError(f"Pages need {missing.name}: pip install 'selfsight[serve]'") from None
    from selfsight.pages.reviewed import Reviewed, issues_in

    folder = check_review(out, how, others)
    items = open_source(source)
    encoder = None if model is None else encoder_of(model, measure_format(items))
    if not (folder / ISSUES).exists():
        curate(source, model=model, labels=labels, sources=sources, out=str(folder), thumbnails=thumbnails)
    issues = issues_in(folder / ISSUES)
    reviewed = Reviewed(items, issues, by, labels)
    app = reviewing(items, reviewed, None if encoder is None else map_of(items, encoder, how))
    server = Server(app, port, MOST_BYTES)
    console().print(
        f"Review what {folder / ISSUES} says, {reviewed.open:,} of {len(reviewed.cases):,} cases open, and stop with "
        f"Ctrl-C:\n  {server.address}",
        soft_wrap=True,
    )
    server.run()
    return _left(source, items, issues, reviewed, str(folder))


def check_review(out: str | None, how: How | None, others: Mapping[str, object]) -> Path:
    """The folder of the report. Raises `SelfsightError` for what has no meaning."""
    from selfsight.report.cloud import chosen_how

    if out is None:
        raise SelfsightError("--review shows what the folder of the report says. Give it: -o FOLDER")
    if given := [option for option, value in others.items() if value not in (None, False)]:
        raise SelfsightError(f"--review does not go with {given[0]}. Review first, then run curate with {given[0]}.")
    chosen_how(0, how)
    return Path(out)


def map_of(items: Collection, encoder: Encoder, how: How | None) -> Callable[[], Cloud]:
    """What draws the map of the usable items."""

    def cloud() -> Cloud:
        from selfsight.encoders.features import pooled
        from selfsight.probing.neighbours import graph_of
        from selfsight.report.cloud import cloud_of

        rows, features, _ = pooled(encoder, items)
        return cloud_of(items, rows, features, graph_of(encoder, items, rows, features), how)

    return cloud


def _left(source: str, items: Collection, issues: Any, reviewed: Reviewed, out: str) -> Curation:
    """What was found, without what is decided."""
    from selfsight.data.collection import Collection

    again = Collection.open(items.path)
    open_ = [case for number, case in enumerate(reviewed.cases) if not reviewed.outcome(number)]
    left: dict[str, list[Issue]] = {kind: [] for kind in reviewed.estimated}
    for case in open_:
        names = [again.uri_of(item) for item in case.items]
        pair = Partner(case.items[1], names[1]) if len(names) > 1 else None
        left[case.kind].append(Issue(case.items[0], names[0], case.score, pair, case.suggested or None))
    reasons = again.reasons()
    intervals = {kind: issues["intervals"][kind] for kind in left}
    return Curation(
        {kind: Issues(reviewed.estimated[kind], each) for kind, each in left.items()},
        intervals, issues["error_rate"], source, len(again.usable), sum(reasons.values()), reasons,
        len(reviewed.cases) - len(open_), issues["notes"], reviewed=reviewed.given, report=out,
    )  # fmt: skip
