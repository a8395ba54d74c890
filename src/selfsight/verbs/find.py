"""find: the pictures that are most like one, or like a part of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from selfsight.errors import DataError, SelfsightError, meant
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.data.sources.source import Source
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.alike import Edges, Spot

LOOKED_AT = 1000  # pictures in which a part is looked for: those that are most like it as wholes
PRINTED = 10


@dataclass(frozen=True)
class FoundPicture(Result):
    """A picture that is like the one that was given.

    rank: 1 is the most like it.
    similarity: cosine of the features, 1 for the same; with a box, of its best patch and the marked part, both less the
        usual patch.
    id: of the item.
    uri: path of the item, relative to the source.
    page: page or frame in a file that holds several.
    copies: how many more items are exact copies of it.
    box: where it is most like the marked part, x0, y0, x1, y1 in pixels of the upright file.
    """

    if_any: ClassVar = ("page", "box")
    rank: int
    similarity: float
    id: str
    uri: str
    page: int | None
    copies: int
    box: list[float] | None = None

    @property
    def name(self) -> str:
        """Its file, and which page or frame of it."""
        return self.uri if self.page is None else f"{self.uri} #{self.page}"


@dataclass(frozen=True)
class FoundPictures(Result):
    """What is most like a picture.

    like: the picture that was given.
    box: the part of it that is looked for, as edges in its pixels.
    pictures: what is most like it, best first.
    same: the items that are exact copies of it, itself among them; they are not among `pictures`.
    items: how many there are to compare with.
    looked_at: in how many of them the part was looked for.
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    sheet: the PNG that shows the pictures; None if none was asked for.
    page: the HTML page, likewise.
    """

    if_any: ClassVar = ("box", "looked_at")
    like: str
    box: list[float] | None
    pictures: list[FoundPicture]
    same: list[str]
    items: int
    looked_at: int | None
    set_aside: int
    reasons: dict[str, int]
    sheet: str | None = None
    page: str | None = None


class Asked(NamedTuple):
    """The picture that was given: as it is called, its pixels [H, W, C] of own depth, and the hash of its content."""

    name: str
    pixels: np.ndarray
    content: str


@checked
def find(
    source: str,
    *,
    model: str | Encoder,
    like: str,
    box: str | Sequence[float] | None = None,
    count: int = 39,
    out: str | None = None,
    device: str | None = None,
) -> FoundPictures:
    """Find the pictures that are most like one, or like a part of it.

    Pictures are compared by the cosine of their features. With --box it is only the part in the box that is looked for,
    at any place of the other pictures, and where they are most like it is said and drawn. No label is used.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, or what `embed --model` takes.
    like
        The picture: an item of SOURCE, by its path there or its id, or any other file.
    box
        The part of it that is looked for: x0,y0,x1,y1 in pixels of the upright picture, from its upper left corner.
    count
        How many pictures to find.
    out
        Folder for find.png, a sheet of the pictures, find.html, a page of them, and find.json.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import encoder_of

    if count < 1:
        raise SelfsightError(f"--count is how many pictures to find: 1 or more, not {count}.")
    if out is not None and Path(out).is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for find.png and find.html: -o FOLDER")
    items = open_source(source)
    if out is not None:
        check_outside(out, items.about.location)
    encoder = encoder_of(model, measure_format(items))
    asked = _asked(items, encoder, like, source)
    edges = None if box is None else edges_of(box, asked)
    rows, features, bad = pooled(encoder, items)
    contents = rows["content_hash"].to_pylist()
    ranked, spots = _ranked(encoder, items, asked, edges, rows, features, bad)
    first = rows.take([number for number, _ in ranked[:count]])
    pictures = [
        FoundPicture(rank, likeness, row["id"], row["uri"], row["page"], contents.count(row["content_hash"]) - 1,
                     list(spots[number].box) if edges else None)
        for rank, ((number, likeness), row) in enumerate(zip(ranked[:count], first.to_pylist(), strict=True), start=1)
    ]  # fmt: skip
    same = [uri for uri, content in zip(rows["uri"].to_pylist(), contents, strict=True) if content == asked.content]
    reasons = items.reasons(bad.values())
    result = FoundPictures(
        asked.name, list(edges) if edges else None, pictures, same, len(rows), len(spots) if edges else None,
        sum(reasons.values()), reasons,
    )  # fmt: skip
    if out is None:
        return result
    return _written(
        result, asked, items, first, encoder, [spots.get(number) for number, _ in ranked[:count]], Path(out)
    )


def _ranked(
    encoder: Encoder, items: Collection, asked: Asked, edges: Edges | None, rows: pa.Table, features: np.ndarray,
    bad: dict[str, str],
) -> tuple[list[tuple[int, float]], dict[int, Spot]]:  # fmt: skip
    """([(number of the row, how like it is), …] best first, {number: where it is most like the part in `edges`}), of
    each content but that of the picture itself the first item."""
    import numpy as np

    from selfsight.data.pixels import resize
    from selfsight.heads.alike import Wanted
    from selfsight.probing.neighbours import nearest

    contents = np.asarray(rows["content_hash"].to_pylist())
    others = np.sort(np.unique(contents, return_index=True)[1])
    others = others[contents[others] != asked.content]
    if not len(others):
        raise DataError(f"All pictures are exact copies of {asked.name}: there is no other to compare it with.")
    part, side = asked.pixels, encoder.geometry.size
    if edges is not None:
        x0, y0, x1, y1 = (int(edge) for edge in (*edges[:2], *np.ceil(edges[2:])))
        part = part[y0:y1, x0:x1]
    query = encoder.encode(encoder.geometry.to_input(resize(part, side, side)[None])).pooled.float().cpu().numpy()
    cosines, order = nearest(query, features[others], len(others) if edges is None else LOOKED_AT)
    numbers = others[order[0]]
    if edges is None:
        return list(zip(numbers.tolist(), cosines[0].tolist(), strict=True)), {}
    wanted = Wanted(encoder, items, rows, asked.pixels, edges)
    unread: dict[int, str] = {}
    spots = {int(numbers[n]): spot for n, spot in wanted.spots(items, rows.take(numbers), unread).items()}
    bad |= {rows["id"][int(numbers[n])].as_py(): reason for n, reason in unread.items()}
    if not spots:
        raise DataError(f"None of the pictures can be read any more: {next(iter(unread.values()))}.")
    return sorted(((n, spot.likeness) for n, spot in spots.items()), key=lambda pair: -pair[1]), spots


def edges_of(box: str | Sequence[float], asked: Asked) -> Edges:
    """The edges of a box, within the picture. Raises `SelfsightError` for what is no box, or holds none of it."""
    said = box if isinstance(box, str) else ",".join(f"{edge:g}" for edge in box)
    height, width = asked.pixels.shape[:2]
    try:
        x0, y0, x1, y1 = (float(part) for part in said.split(","))
    except ValueError:
        raise SelfsightError(f"--box takes x0,y0,x1,y1, four numbers of pixels, not {said!r}.") from None
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not (cut[0] < cut[2] and cut[1] < cut[3]):
        raise SelfsightError(
            f"--box {said} holds nothing of {asked.name}, which is {width} x {height} pixels. Give x0,y0,x1,y1 within "
            "it, x0 below x1 and y0 below y1."
        )
    return cut


def _asked(items: Collection, encoder: Encoder, like: str, source: str) -> Asked:
    """The picture that `like` names: an item, or a file. Raises `SelfsightError`."""
    from selfsight.data.collection import DROPPED
    from selfsight.data.decoding import read_items
    from selfsight.data.formats.format import Unreadable

    called = items.table.select(["id", "uri", "page"]).to_pylist()
    places = [i for i, row in enumerate(called) if like in (row["id"], row["uri"], f"{row['uri']} #{row['page']}")]
    if len(places) > 1:
        several = f"{like} holds {len(places):,} pictures"
        raise SelfsightError(f"{several}. Name one: --like '{like} #{called[places[0]]['page']}'")
    row, opened = (items.table.take(places).to_pylist()[0], items.source) if places else _of_file(like, source, called)
    if row["status"] != "ok" and row["reason"] != DROPPED:  # which can be read, and be looked for
        raise DataError(f"{like} cannot be read: {row['reason']}.")
    [pixels] = read_items(opened, [row], encoder.geometry.format)
    if isinstance(pixels, Unreadable):
        raise DataError(f"{like} cannot be compared with the pictures of {source}: {pixels}.")
    return Asked(like if places else Path(like).name, pixels, row["content_hash"])


def _of_file(like: str, source: str, called: list[dict[str, Any]]) -> tuple[Any, Source]:
    """(the row, the source) of a file that is one picture. Raises `SelfsightError`."""
    from selfsight.data.items import rows_of
    from selfsight.data.sources.choose import make_source
    from selfsight.data.sources.source import Options

    if not Path(like).is_file():
        close = meant(like, [row["uri"] for row in called])
        raise SelfsightError(f"--like {like} is neither an item of {source} nor a file.{close}")
    opened = make_source(like, Options())
    if opened.kind != "file":
        raise SelfsightError(f"--like {like} is not one picture. Give an image file, or an item of {source}.")
    rows = [row for entry in opened.entries() for row in rows_of(opened, entry, {})]
    if len(rows) != 1:
        raise SelfsightError(f"--like {like} holds {len(rows):,} pictures. Give a file of one.")
    return {"page": None} | rows[0], opened


def _written(
    result: FoundPictures, asked: Asked, items: Collection, rows: pa.Table, encoder: Encoder,
    spots: list[Spot | None], out: Path,
) -> FoundPictures:  # fmt: skip
    """The result with its sheet and its page, drawn of `rows` into the folder `out`; find.json is beside them."""
    from selfsight.data.written import note
    from selfsight.files import write_whole
    from selfsight.report.found_page import Found, build, drawn
    from selfsight.report.sheet import contact_sheet

    captions = [[f"{each.rank} · {each.similarity:.3f}", each.name] for each in result.pictures]
    tiles = drawn(items, rows, encoder, spots)
    query = Found.of(asked.pixels, encoder.geometry, result.box)
    shown = [query.picture, *(each.heat or each.picture for each in tiles)]
    out.mkdir(parents=True, exist_ok=True)
    result = replace(result, sheet=str(out / "find.png"), page=str(out / "find.html"))
    write_whole(out / "find.png", contact_sheet(shown, [["what was looked for", asked.name], *captions]))
    write_whole(out / "find.html", build(asked.name, query, tiles, captions, result.looked_at or result.items))
    write_whole(out / "find.json", json.dumps(result.to_dict(), indent=2))
    note("pictures", out, items.path)
    return result


def show(result: FoundPictures) -> None:
    """Print the first of them, and where they are drawn."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    part = "a part of " if result.box else ""
    among = result.looked_at or result.items
    console.print(f"Most like {part}{result.like}, of {among:,} pictures:")
    for each in result.pictures[:PRINTED]:
        where = f"  at {','.join(f'{edge:.0f}' for edge in each.box)}" if each.box else ""
        console.print(f"{each.rank:>4}  {each.similarity:.3f}  {each.name}{where}")
    if result.looked_at and result.items > LOOKED_AT + len(result.same):
        console.print(f"Looked for in the {result.looked_at:,} pictures most like the part, of {result.items:,}.")
    if others := [uri for uri in result.same if uri != result.like]:
        console.print(f"Exact copies of it: {', '.join(others[:PRINTED])}{', …' if len(others) > PRINTED else ''}")
    if result.set_aside:
        console.print(f"{result.set_aside:,} items set aside ({counted(result.reasons)}).")
    if result.sheet is None:
        console.print(f"To see all {len(result.pictures)}, on a sheet and a page: -o FOLDER")
    else:
        console.print(f"All {len(result.pictures)} are drawn in {result.sheet} and {result.page}")
