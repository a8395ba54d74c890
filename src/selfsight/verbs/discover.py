"""discover: objects without any label, in clusters that a person names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, ClassVar

from selfsight.errors import DataError, SelfsightError
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from selfsight.data.annotations.outlines import Outline, Outlines
    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.discovered import Discovered

CLUSTER = "cluster-{:02d}"
OBJECTS, NAMED, CLUSTERS = "objects.json", "named.json", "clusters"


@dataclass(frozen=True)
class ObjectCluster(Result):
    """Objects that look alike.

    name: of the cluster; once it was named, that of what it holds.
    objects: how many.
    sheet: the PNG that shows them.
    """

    name: str
    objects: int
    sheet: str


@dataclass(frozen=True)
class Discovery(Result):
    """The objects that were found.

    source: of the pictures.
    objects: how many were found.
    pictures: how many pictures have one.
    items: how many pictures were looked at.
    clusters: of objects that look alike, the largest first; with --named those that have a name.
    file: the COCO file of the objects: box, pixels, score, and the cluster as class.
    sheet: the PNG that shows the first pictures with their objects.
    unnamed: how many objects are in clusters without a name, and so not in the file.
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    """

    if_any: ClassVar = ("sheet", "unnamed")
    source: str
    objects: int
    pictures: int
    items: int
    clusters: list[ObjectCluster]
    file: str
    set_aside: int
    reasons: dict[str, int]
    sheet: str | None = None
    unnamed: int | None = None


@checked
def discover(
    source: str,
    *,
    out: str,
    model: str | Encoder | None = None,
    most: int = 3,
    clusters: int = 12,
    size: int | None = None,
    named: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> Discovery:
    """Find objects without any label, and put those that look alike together.

    Each picture is cut where its patches look least alike; what stands out most from what is around it is an object.
    Then name the clusters, not the objects: selfsight label OUT/clusters shows a sheet of each. --named writes the
    objects by these names, and train detect learns from them: no box is drawn.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    out
        Folder for objects.json, a COCO file; discover.png, a sheet of pictures with their objects; and clusters/, a
        sheet of each cluster.
    model
        A run, or what `embed --model` takes. Not needed with --named.
    most
        Objects of a picture, at most.
    clusters
        How many clusters to make. Two may bear one name, so rather too many than too few.
    size
        Longer side of the encoder's input, in pixels; its own if not given. Twice that finds smaller objects, in some
        ten times the time.
    named
        Write OUT/named.json: the objects of OUT by the names that selfsight label OUT/clusters gave. A cluster without
        a name, or called background, is left out.
    seed
        Of the clusters.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.importers import check_outside, open_source

    if most < 1 or clusters < 1:
        raise SelfsightError(f"--most and --clusters are 1 or more, not {most} and {clusters}.")
    if Path(out).is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for what is found: -o FOLDER")
    items = open_source(source)
    check_outside(out, items.about.location)
    if named:
        return _named(source, items, Path(out))
    if model is None:
        raise SelfsightError("--model says how pictures are seen: a run, or what `embed --model` takes.")
    if (Path(out) / OBJECTS).exists():
        raise SelfsightError(
            f"{out} holds objects that were found before, and its clusters may have names. Give another -o."
        )
    return _found(source, items, model, Path(out), most, clusters, size, seed)


def _found(
    source: str, items: Collection, model: str | Encoder, out: Path, most: int, clusters: int, size: int | None,
    seed: int,
) -> Discovery:  # fmt: skip
    """Look, and write what was found."""
    from selfsight.data.annotations import coco
    from selfsight.data.canvases import measure_format
    from selfsight.data.written import note
    from selfsight.encoders.weights import encoder_of
    from selfsight.files import write_whole
    from selfsight.heads.discovered import discovered, view_of
    from selfsight.report.discovered import draw

    encoder = encoder_of(model, measure_format(items))
    least = 4 * max(encoder.level_strides)
    if size is not None and size < least:
        raise SelfsightError(f"--size is at least {least} for this encoder, not {size}.")
    rows = items.usable
    bad: dict[int, str] = {}
    found = list(discovered(view_of(encoder, size), items, rows, most, bad))
    reasons = items.reasons(bad.values())
    if not found:
        why = counted(reasons) if reasons else "nothing stands out from what is around it"
        raise DataError(f"No object was found in {source}: {why}.")
    order = _clustered(found, clusters, seed)
    names = [CLUSTER.format(number + 1) for number in order]
    out.mkdir(parents=True, exist_ok=True)
    sheets = draw(items, rows, encoder, found, names, out)
    write_whole(out / OBJECTS, coco.write(_outlines(rows, found, names), sorted(set(names))))
    note("pictures", out, items.path)
    listed = [ObjectCluster(name, names.count(name), str(sheet)) for name, sheet in sheets.items()]
    return Discovery(
        source, len(found), len({one.row for one in found}), len(rows) - len(bad), listed, str(out / OBJECTS),
        sum(reasons.values()), reasons, str(out / "discover.png"),
    )  # fmt: skip


def _clustered(found: Sequence[Discovered], clusters: int, seed: int) -> np.ndarray:
    """The cluster [N] of each object, 0 the largest."""
    import numpy as np

    from selfsight.curation.selection import clusters as of

    which = of(np.stack([one.feature for one in found]), min(clusters, len(found)), seed)
    rank = np.argsort(np.argsort(-np.bincount(which), kind="stable"))
    return np.asarray(rank[which])


def _outlines(rows: pa.Table, found: Sequence[Discovered], names: Sequence[str]) -> dict[str, Outlines]:
    """{name of the picture: its objects}; their scores are 1 for the clearest of all."""
    from selfsight.data.annotations.outlines import Outline, Outlines
    from selfsight.data.boxes import Box

    clearest = max(one.clear for one in found)
    images: dict[str, Outlines] = {}
    mine: dict[int, list[Outline]] = {}
    for one, name in zip(found, names, strict=True):
        outline = Outline(name, one.runs, Box(name, *one.box), score=round(one.clear / clearest, 4))
        mine.setdefault(one.row, []).append(outline)
    for number in sorted(mine):
        row = rows.slice(number, 1).select(["uri", "page", "width", "height"]).to_pylist()[0]
        called = row["uri"] if row["page"] is None else f"{row['uri']}.{row['page']}"
        images[called] = Outlines(tuple(mine[number]), (row["width"], row["height"]))
    return images


# -- names --


def _named(source: str, items: Collection, out: Path) -> Discovery:
    """Write the objects of `out` by the names of their clusters."""
    from selfsight.data.annotations import coco
    from selfsight.data.annotations.outlines import BACKGROUND, Outlines
    from selfsight.files import write_whole

    file = out / OBJECTS
    if not file.exists():
        raise SelfsightError(f"{out} holds no {OBJECTS}. First: selfsight discover {quote(source)} --model M -o {out}")
    try:
        before = coco.read(file.read_bytes())
    except ValueError as reason:
        raise DataError(f"{file} cannot be read: {reason}.") from None
    given = {name: said for name, said in _names_of(out / CLUSTERS).items() if said != BACKGROUND}
    if not given:
        raise DataError(f"No cluster of {out} has a name. Name them: selfsight label {quote(str(out / CLUSTERS))}")
    images, kept, unnamed = {}, dict.fromkeys(given, 0), 0
    for called, image in before.images.items():
        mine = [one for one in image.outlines if one.label in given]
        unnamed += len(image.outlines) - len(mine)
        for one in mine:
            kept[one.label] += 1
        if mine:
            images[called] = Outlines(tuple(_renamed(one, given[one.label]) for one in mine), image.size)
    write_whole(out / NAMED, coco.write(images, sorted(set(given.values()))))
    listed = [ObjectCluster(given[name], kept[name], str(out / CLUSTERS / f"{name}.png")) for name in sorted(given)]
    reasons = items.reasons()
    return Discovery(
        source, sum(kept.values()), len(images), len(items.usable), listed, str(out / NAMED), sum(reasons.values()),
        reasons, unnamed=unnamed,
    )  # fmt: skip


def _renamed(outline: Outline, name: str) -> Outline:
    return replace(outline, label=name, box=outline.box and replace(outline.box, label=name))


def _names_of(folder: Path) -> Mapping[str, str]:
    """{cluster: the name that it was given}."""
    from selfsight.data.importers import open_source
    from selfsight.data.labels import Labels

    if not folder.is_dir():
        raise DataError(f"{folder} is not there, with the sheets of the clusters. Discover again, with another -o.")
    sheets = open_source(str(folder))
    labels = Labels.of(sheets, folders=False)
    return {
        Path(uri).stem: str(value)
        for uri, value in zip(labels.rows["uri"].to_pylist(), labels.values, strict=True)
        if value is not None
    }


def show(result: Discovery) -> None:
    """Print how many were found, and what to do next."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    folder = Path(result.file).parent
    console.print(
        f"{result.objects:,} objects in {result.pictures:,} of {result.items:,} pictures, in "
        f"{len(result.clusters)} clusters:"
    )
    for each in result.clusters:
        console.print(f"{each.objects:>7,}  {each.name}  {quote(each.sheet)}")
    if result.set_aside:
        console.print(f"{result.set_aside:,} items set aside ({counted(result.reasons)}).")
    console.print(f"Written to {quote(result.file)}.")
    if result.unnamed is None:
        console.print(f"{quote(str(result.sheet))} shows pictures with their objects.")
        console.print(f"Next, name the clusters: selfsight label {quote(str(folder / CLUSTERS))}")
        console.print(f"Then: selfsight discover {quote(result.source)} -o {quote(str(folder))} --named")
    else:
        if result.unnamed:
            console.print(f"{result.unnamed:,} objects are in clusters without a name; they are left out.")
        given = f"--labels {quote(result.file)}"
        console.print(f"Next: selfsight train detect {quote(result.source)} {given} --model M -o heads/found")
