"""adapt: a head follows a stream of pictures: how far it has drifted, and the head for it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.errors import MachineError, SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from selfsight.data.collection import Collection
    from selfsight.deploy.stream import Walk, Window
    from selfsight.report.drift_page import Line

THUMBNAIL = 120  # px
PAUSE = 60.0  # seconds between two writings of the head, at least, while it watches
LONGEST = 10.0  # seconds between two looks for new pictures, while none come


@dataclass(frozen=True)
class Adapted(Result):
    """The result of `adapt`.

    head: its folder. digest: of the adapted head; parent: of the one before. changed: whether they differ. windows,
    images: that were followed. set_aside: pictures that could not be read. waiting: pictures too few for a window.
    alarms: windows with drift. drifting: whether the last one drifts. distance, limit: of the last window. labels: that
    the head has learnt from. rollbacks: how often it went back. notes: what a user must know. report: the page.
    """

    head: str
    digest: str
    parent: str
    changed: bool
    windows: int
    images: int
    set_aside: int
    waiting: int
    alarms: int
    drifting: bool
    distance: float | None
    limit: float | None
    labels: int
    rollbacks: int
    notes: list[str]
    report: str


@checked
def adapt(
    head: str,
    *,
    stream: str,
    out: str,
    labels: str | None = None,
    false_alarms: float = 0.01,
    window: int = 64,
    watch: bool = False,
    thumbnails: bool = True,
    device: str | None = None,
) -> Adapted:
    """Follow a stream of pictures with a head: say how far it has drifted, and write the head adapted to it.

    The stream is walked in its order, by the column time, by sequence and frame, or else by name, in windows. Each is
    compared with what the head learnt from. While it drifts, the shift that all classes have in common is taken away,
    and the surest pictures of each class move the middle of the class. Labels that came back are learnt. A guard
    compares the head with the one that it began as, and goes back where it is worse by more than chance.

    A head that inspects, segments, names several classes or estimates a number is watched alone: its drift is told, and
    it stays as it is. The same command goes on where it was stopped, or with the pictures that have come since. Where
    there is nothing to adapt, the same head is written.

    Parameters
    ----------
    head
        A head, made by `selfsight train`. One of one class or grade an item adapts, others are watched.
    stream
        Folder of images, or any other source that `selfsight import --help` names.
    out
        Folder for the head as it is then, with drift.html, drift.png and drift.jsonl. FOLDER.state is beside it.
    labels
        Labels that came back: STATE/heads/NAME.decisions of `selfsight serve`, or a CSV or Parquet with the columns
        label and path or id. If not given: what `selfsight label` recorded of the stream.
    false_alarms
        The share of windows without drift that may be called drift.
    window
        Pictures in a window.
    watch
        Go on as pictures arrive, until Ctrl-C; the head is written once a minute, if a window has passed.
    thumbnails
        Small copies of the pictures that drifted most on the page; `--no-thumbnails` leaves them out.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.console import console
    from selfsight.data.importers import check_outside
    from selfsight.data.lock import Busy, locked
    from selfsight.data.manifest import walk_of
    from selfsight.data.written import note
    from selfsight.deploy.adapting import follower_of
    from selfsight.deploy.stream import Walk, opened
    from selfsight.files import read_json
    from selfsight.heads.head import load_head
    from selfsight.heads.succession import place_for

    folder = Path(out).expanduser()
    known = load_head(head)
    if not 8 <= window <= 1024:
        raise SelfsightError(f"--window lies from 8 to 1024, not at {window}.")
    if folder.resolve() == Path(head).expanduser().resolve():
        raise SelfsightError(f"{out} is the head itself, which stays as it is. Give another -o.")
    if place_for(folder) and "adapted" not in (read_json(folder / "lineage.json") or {}):
        raise SelfsightError(f"{out} is a head that adapt did not write, and stays as it is. Give another -o.")
    check_outside(out, stream)
    adapter = follower_of(known, false_alarms)
    if labels is not None and not adapter.adapts:
        raise SelfsightError(f"{head} learns no labels here: {adapter.notes[0]}. Leave out --labels.")
    items = opened(stream, watch)
    state = walk_of(folder)
    key: dict[str, object] = {
        "head": known.digest, "stream": items.about.location, "window": window, "false alarms": false_alarms,
    }  # fmt: skip
    try:
        state.mkdir(parents=True, exist_ok=True)
        with locked(state / "lock"):
            walk = Walk(adapter, state, key, window)
            try:
                write = (lambda now: _written(walk, now, folder, thumbnails)) if watch else None
                _walked(walk, items, stream, labels, write)
            except KeyboardInterrupt:
                if not watch:
                    raise
                walk = Walk(follower_of(known, false_alarms), state, key, window)  # as it was between two windows
                items = opened(stream, watch)
                console().print("Stopped; the state is written.")
            result = _written(walk, items, folder, thumbnails)
    except Busy as other:
        raise MachineError(f"Process {other} is adapting to {out} already. Wait for it, or give another -o.") from None
    note("head", folder, items.path)
    return result


def _walked(
    walk: Walk, items: Collection, source: str, labels: str | None, write: Callable[[Collection], Adapted] | None
) -> None:
    """Walk the stream to its end; where `write` is given, on until Ctrl-C, and it is called at most once a minute after
    a window, with the items that have come."""
    import time

    from selfsight.console import console, track
    from selfsight.deploy.stream import STILL, labelling_of, opened, still

    written, idle = -PAUSE, STILL
    while True:
        labelling = labelling_of(items, labels, walk.adapter)
        for did in walk.late(items, items.usable, labelling):
            console().print(did, soft_wrap=True)
        fresh = walk.fresh(items.usable if write is None else still(items.usable))
        for _, window in track(walk.along(items, fresh, labelling), "Following", len(fresh), lambda step: step[0]):
            _say(window)
            if write is not None and window is not None and time.monotonic() - written > PAUSE:
                write(items)
                written = time.monotonic()
        if write is None:
            _say(walk.rest(labelling))
            break
        idle = STILL if len(fresh) else min(2.0 * idle, LONGEST)
        time.sleep(0.0 if len(fresh) else idle)
        items = opened(source, True)
    walk.save()


def _say(window: Window | None) -> None:
    """Print a window in which something happened."""
    from selfsight.console import console

    if window is None or not (window.told.did or window.told.drift.alarm):
        return
    drift = window.told.drift
    what = "; ".join(window.told.did) or "drift goes on"
    console().print(
        f"window {window.number}: distance {drift.distance:.2f}, limit {drift.limit:.2f}: {what}", soft_wrap=True
    )


def _written(walk: Walk, items: Collection, folder: Path, thumbnails: bool) -> Adapted:
    """Write the head as it is now, and the report."""
    from selfsight.deploy.adapted import changed, lineage_from, save_adapted
    from selfsight.files import write_whole

    adapter = walk.adapter
    head = save_adapted(adapter, folder, lineage_from(adapter, items))
    lines = walk.lines
    html, png = _page(walk, items, folder.name, lines, thumbnails)
    write_whole(folder / "drift.html", html)
    write_whole(folder / "drift.png", png)
    write_whole(folder / "drift.jsonl", walk.log.read_bytes() if walk.log.exists() else b"")
    aside = walk.bad + len(items.set_aside)
    counts, last = adapter.counts, lines[-1] if lines else None
    return Adapted(
        str(folder), head.digest, adapter.head.digest, changed(adapter), counts.windows, counts.images, aside,
        walk.waiting, counts.alarms, bool(last and last["drift"]), last["distance"] if last else None,
        last["limit"] if last else None,
        len(adapter.labels), counts.rollbacks, [*adapter.notes, *counts.notes], str(folder / "drift.html"),
    )  # fmt: skip


def _page(walk: Walk, items: Collection, title: str, lines: list[Line], thumbnails: bool) -> tuple[str, bytes]:
    """(drift.html, drift.png)."""
    import pyarrow.compute as pc

    from selfsight.report.drift_page import FarTile, build, drift_png
    from selfsight.report.pictures import data_uri, thumbnails_of

    encoder = walk.adapter.head.encoder
    pictures: dict[str, str] = {}
    if thumbnails and walk.far:
        import pyarrow as pa

        rows = items.usable.filter(pc.is_in(items.usable["id"], pa.array([one.id for one in walk.far])))
        small = thumbnails_of(items, rows, encoder, THUMBNAIL)
        pictures = {rows["id"][number].as_py(): data_uri(image) for number, image in small.items()}
    tiles = [FarTile(pictures.get(one.id, ""), one.uri, one.distance, one.window) for one in walk.far]
    alarms, windows = walk.adapter.counts.alarms, len(lines)
    word = "drifting" if lines and lines[-1]["drift"] else "no drift now"
    rate = walk.adapter.drift.false_alarms
    sentence = (
        f"{alarms:,} of {windows:,} windows are farther from what the head learnt from than the limit; without drift "
        f"about {rate * windows:.2g} would be."
    )
    html = build(
        title, Path(items.about.location).name, walk.adapter.head.digest, lines, tiles, thumbnails, rate,
        (word, sentence),
    )  # fmt: skip
    return html, drift_png(lines)


def show(result: Adapted) -> None:
    """Print how far the stream has drifted, what was done, and what to do next."""
    from selfsight.console import results

    console, where = results(soft_wrap=True), shlex.quote(result.head)
    console.print(f"{result.images:,} pictures in {result.windows:,} windows: {result.alarms:,} with drift.")
    if result.distance is not None and result.limit is not None:
        now = "drifts" if result.drifting else "does not drift"
        console.print(f"The last window {now}: distance {result.distance:.2f}, limit {result.limit:.2f}.")
    if result.set_aside:
        console.print(f"{result.set_aside:,} pictures cannot be read.")
    if result.waiting:
        console.print(f"{result.waiting:,} pictures are too few for a window, and wait for more.")
    if result.labels:
        console.print(f"It has learnt from {result.labels:,} labels that came back.")
    for text in result.notes:
        console.print(f"Note: {text}.")
    if not result.changed:
        console.print(f"There is nothing to adapt now: {where} is the same head as before.")
    console.print(f"The page, to open in any browser: {shlex.quote(result.report)}")
    console.print(f"Next: selfsight evaluate {where} --test LABELLED")
