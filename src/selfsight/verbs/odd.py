"""odd: the pictures that are least like the others."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfsight.errors import DataError, SelfsightError
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder

MOST = 48  # pictures: what fits a sheet
PRINTED = 10


@dataclass(frozen=True)
class OddPicture(Result):
    """One of the pictures that are least like the others.

    rank: 1 is the least like the others.
    score: mean cosine distance to its 10 nearest others.
    id: of the item.
    uri: path of the item, relative to the source.
    page: page or frame in a file that holds several.
    copies: how many more items are exact copies of it.
    """

    if_any: ClassVar = ("page",)
    rank: int
    score: float
    id: str
    uri: str
    page: int | None
    copies: int

    @property
    def name(self) -> str:
        """Its file, and which page or frame of it."""
        return self.uri if self.page is None else f"{self.uri} #{self.page}"


@dataclass(frozen=True)
class OddPictures(Result):
    """What is least like the others.

    pictures: the 48 highest scores, highest first.
    median: the score of a usual picture, to compare with.
    items: how many were compared.
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    sheet: the PNG that shows the pictures; None if none was asked for.
    """

    pictures: list[OddPicture]
    median: float
    items: int
    set_aside: int
    reasons: dict[str, int]
    sheet: str | None = None


@checked
def odd(source: str, *, model: str | Encoder, out: str | None = None, device: str | None = None) -> OddPictures:
    """Find the pictures that are least like the others: often defects, mistakes and strays.

    The score of a picture is the mean cosine distance of its features to those of the 10 pictures nearest to it: 0 if
    they are all the same, about 1 if they have nothing in common. Exact copies count as one picture. No label is used.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    out
        Folder for odd.png, a sheet of the 48 pictures with the highest scores, and odd.json.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    import numpy as np

    from selfsight.curation.odd import least_alike
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import encoder_of

    if out is not None and Path(out).is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for odd.png and odd.json: -o FOLDER")
    items = open_source(source)
    if out is not None:
        check_outside(out, items.about.location)
    encoder = encoder_of(model, measure_format(items))
    rows, features, bad = pooled(encoder, items)
    contents = rows["content_hash"].to_pylist()
    numbers, scores = least_alike(features, contents)
    if not len(numbers):
        raise DataError(f"{source} holds one picture only, and none to compare it with. Give a source with more.")
    first, copies = rows.take(numbers[:MOST]), Counter(contents)
    ranked = enumerate(zip(scores[:MOST].tolist(), first.to_pylist(), strict=True), start=1)
    pictures = [
        OddPicture(rank, score, row["id"], row["uri"], row["page"], copies[row["content_hash"]] - 1)
        for rank, (score, row) in ranked
    ]
    reasons = items.reasons(bad.values())
    result = OddPictures(pictures, float(np.median(scores)), len(rows), sum(reasons.values()), reasons)
    return result if out is None else _written(result, items, first, encoder, Path(out))


def _written(result: OddPictures, items: Collection, rows: pa.Table, encoder: Encoder, out: Path) -> OddPictures:
    """The result with its sheet, drawn of `rows` into the folder `out`; odd.json is beside it."""
    from selfsight.data.written import note
    from selfsight.files import write_whole
    from selfsight.report.pictures import thumbnails_of
    from selfsight.report.sheet import TILE, contact_sheet

    captions = []
    for each in result.pictures:
        copies = f" · and {each.copies:,} exact cop{'y' if each.copies == 1 else 'ies'}" if each.copies else ""
        captions.append([f"{each.rank} · {each.score:.3f}{copies}", each.name])
    thumbnails = thumbnails_of(items, rows, encoder, TILE)
    out.mkdir(parents=True, exist_ok=True)
    result = replace(result, sheet=str(out / "odd.png"))
    write_whole(out / "odd.png", contact_sheet(list(thumbnails.values()), captions))
    write_whole(out / "odd.json", json.dumps(result.to_dict(), indent=2))
    note("pictures", out, items.path)
    return result


def show(result: OddPictures) -> None:
    """Print the first of them, and where they are drawn."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    console.print(
        f"Least like the others, of {result.items:,} pictures. Half of all have a score below {result.median:.3f}."
    )
    for each in result.pictures[:PRINTED]:
        console.print(f"{each.rank:>4}  {each.score:.3f}  {each.name}")
    if result.set_aside:
        console.print(f"{result.set_aside:,} items set aside ({counted(result.reasons)}).")
    if result.sheet is None:
        console.print(f"To see these and further ones, up to {MOST}, on one sheet: -o FOLDER")
    else:
        console.print(f"The first {len(result.pictures)} are drawn in {result.sheet}.")
