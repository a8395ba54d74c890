"""forget: remove items for good."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.errors import DataError, MachineError, SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.data.collection import Collection


@dataclass(frozen=True)
class Item:
    """An item by its id and its path relative to the source."""

    id: str
    uri: str


@dataclass(frozen=True)
class Elsewhere:
    """Where forgotten items still are, or may be.

    kind: "collection"; "features", a table that `embed -o` or `predict -o` wrote; "labels", one that `label --export`
    wrote; "pictures", what `odd -o` or `report -o` drew; "run", which may have learnt from them; "walk", a head that
    was adapted along them, whose state and page were removed; or "head", which has learnt from them: their rows and
    features were removed from it, and it is to be trained again.
    path: of it.
    items: of a collection, the items with their ids or with the same content.
    """

    kind: str
    path: str
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Forgotten(Result):
    """The result of `forget`.

    forgotten: the items that are gone.
    items: how many are left.
    elsewhere: what else is known to hold the forgotten items.
    """

    forgotten: list[Item]
    items: int
    elsewhere: list[Elsewhere]


@checked
def forget(collection: str, *ids: str, group: str | None = None) -> Forgotten:
    """Remove items from a collection and from everything made of it, so that their bytes are gone.

    The table, its older versions, the features, the journal of decisions and the decoded pixels in the cache folder are
    rewritten or deleted. A new import leaves the items out, for their ids (hashes of their paths) are remembered.
    Your own files stay as they are, and so do runs: an encoder that was trained on an item has seen it, and a
    report may show it. Heads lose the item's row and features, and are named, as they have learnt from it. Other
    collections, tables of features and runs that may hold an item are listed. The command line asks first; in Python
    the call is the answer.

    Parameters
    ----------
    collection
        A .lance collection; or the folder or other source whose table the cache folder keeps.
    ids
        Ids of the items, or their paths: relative to the source, or as its manifest has them; @FILE names a file with
        one a line.
    group
        Every item of this group, such as a patient.
    """
    from selfsight.data.canvases import remove_canvases
    from selfsight.data.importers import open_source
    from selfsight.data.lock import Busy, locked
    from selfsight.data.manifest import beside

    items = open_source(collection, as_is=True)  # with the rows of files that are gone already
    wanted = [name for given in ids for name in _names(given)]
    if not wanted and group is None:
        raise SelfsightError("Say which items to forget, by id, path or --group: selfsight forget photos.lance a.jpg")
    gone = _named(items, wanted) | (_grouped(items, group) if group is not None else {})
    here = set(items.table["id"].to_pylist())
    if here <= gone.keys():
        raise SelfsightError(f"Those are all items of {items.path}. Delete the folder itself.")
    rows = items.table.select(["id", "content_hash"]).to_pylist()
    contents = {row["content_hash"] for row in rows if row["id"] in gone} - {None}
    try:
        with locked(beside(items.path, ".lance.lock")):
            remove_canvases(set(gone))
            shutil.rmtree(beside(items.path, ".lance.partial"), ignore_errors=True)  # of a stopped import
            left = items.forget(list(gone))
    except Busy as busy:
        raise MachineError(f"{items.path} is being imported by process {busy}. Wait for it, and try again.") from None
    tables = [items.path, *_forget_in_cache(items, gone)]
    forgotten = [Item(item, uri) for item, uri in gone.items()]
    return Forgotten(forgotten, len(left), _elsewhere(tables, gone, contents))


def _named(items: Collection, wanted: list[str]) -> dict[str, str]:
    """{id: uri} of the items that are named, with those of which only what was made of them is left. Raises
    `SelfsightError` for a name of none, or that may mean several."""
    from selfsight.data.canvases import decoded_before

    pairs = list(zip(items.table["id"].to_pylist(), items.table["uri"].to_pylist(), strict=True))
    known = {name for pair in pairs for name in pair}
    meant = {name: [name] if name in known else _meant(items, name) for name in wanted}
    # A later import drops the rows of files that are gone; what was made of them before is still there.
    called = {_id_of(items, uri): uri for uris in meant.values() for uri in uris if uri not in known}
    dropped = items.remembered(set(called)) | decoded_before(set(called))
    there = known | {called[item] for item in dropped}
    chosen: set[str] = set()
    for name, uris in meant.items():
        found = [uri for uri in dict.fromkeys(uris) if uri in there]
        if len(found) > 1 and name not in found:
            raise SelfsightError(f"{name} may mean {' or '.join(found[:3])}. Nothing was removed. Give one of these.")
        chosen |= {name} if name in found else set(found)
    unknown = [name for name, uris in meant.items() if chosen.isdisjoint(uris)]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise SelfsightError(
            f"{items.path} has no item {', '.join(unknown[:3])}{more}. Nothing was removed. "
            f"Give ids, or paths relative to {items.about.location}."
        )
    gone = {item: uri for item, uri in pairs if {item, uri} & chosen}
    return gone | {item: called[item] for item in sorted(dropped) if called[item] in chosen}


def _meant(items: Collection, name: str) -> list[str]:
    """The ids or paths that `name`, which names no item, may mean."""
    if re.fullmatch(r"[0-9a-f]{32}", name):
        return [name]
    try:
        return [name, *items.source.meant(name)]
    except SelfsightError:  # the source itself is gone
        return [name, name.replace("\\", "/")]


def removes(collection: str, *ids: str, group: str | None = None) -> str:
    """What `forget` with these arguments removes, in words; nothing if it removes nothing."""
    names = [name for given in ids for name in _names(given)]
    names = [*names[:5], *([f"{len(names) - 5:,} more"] if len(names) > 5 else [])]
    names += [f"every item of the group {group}"] if group is not None else []
    return f"{', '.join(names)} from {collection} and whatever was made of it, for good" if names else ""


def _id_of(items: Collection, name: str) -> str:
    """The id that is meant by an id, or by a path relative to the source."""
    from selfsight.data.collection import item_id

    if re.fullmatch(r"[0-9a-f]{32}", name):
        return name
    try:
        source = items.source.name
    except SelfsightError:  # the source itself is gone
        source = Path(items.about.location).name
    return item_id(source, name)


def _grouped(items: Collection, group: str) -> dict[str, str]:
    """{id: uri} of the items of a group. Raises `SelfsightError` where there is none."""
    found = items.of_group(group)
    if found:
        return found
    groups = sorted(set(items.table["group"].to_pylist()) - {None})
    some = f"There are {', '.join(groups[:3])}{', …' if len(groups) > 3 else ''}"
    way = some if groups else "It was imported without groups: give selfsight import --columns group=COLUMN"
    raise SelfsightError(f"{items.path} has no group {group}. Nothing was removed. {way}.")


def _names(given: str) -> list[str]:
    if not given.startswith("@"):
        return [given]
    try:
        lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{given[1:]} cannot be read as a list of ids ({type(error).__name__}).") from None
    return [line.strip() for line in lines if line.strip()]


def _forget_in_cache(items: Collection, gone: dict[str, str]) -> list[Path]:
    """Forget the items in the tables that other verbs keep of the same source; returns these tables."""
    from selfsight.data.cache import cache_folder
    from selfsight.data.collection import Collection

    found = []
    for table in sorted((cache_folder() / "collections").glob("*/items.lance")):
        if Collection.exists(table) and table.resolve() != items.path.resolve():
            other = Collection.open(table)
            if other.about.location == items.about.location:
                other.forget(list(gone))
                found.append(table)
    return found


def _elsewhere(tables: list[Path], gone: dict[str, str], contents: set[str]) -> list[Elsewhere]:
    """What is known to hold items, or may. tables: the collections that held them until now."""
    from selfsight.data.collection import Collection
    from selfsight.data.written import collections, written
    from selfsight.files import ids_in

    ids = set(gone)
    out, held = [], {path.resolve() for path in tables}
    for path in sorted({*collections(), *(path.resolve() for path in tables[0].parent.glob("*.lance"))}):
        try:
            other = Collection.open(path)
            found = {item: gone[item] for item in other.remembered(ids)} | other.holding(ids, contents)
        except (SelfsightError, KeyError, ValueError):  # damaged, or no collection
            continue
        if found:
            held.add(path)
            out.append(Elsewhere("collection", str(path), [Item(item, uri) for item, uri in found.items()]))
    for kind in ("features", "labels"):
        out += [Elsewhere(kind, line.path) for line in written(kind) if ids_in(Path(line.path)) & ids]
    out += [Elsewhere("pictures", line.path) for line in written("pictures") if Path(line.collection) in held]
    out += _heads(ids, contents)
    return out + [Elsewhere("run", path) for path, table in _runs(tables[0].parent) if table.resolve() in held]


def _heads(ids: set[str], contents: set[str]) -> list[Elsewhere]:
    """The known heads that held any of the items and have learnt from them, whose rows are removed; and those that
    `adapt` led past them, whose state and page are removed."""
    from selfsight.data.written import written
    from selfsight.deploy.stream import forget_walk
    from selfsight.heads.head import forget_in

    folders = {file.parent.resolve() for way in ("*", "*/*", "heads/*/*") for file in Path().glob(f"{way}/head.json")}
    folders |= {Path(line.path) for line in written("head")}
    folders |= {found for path in folders if (found := path.with_name(f"{path.name}.before")).is_dir()}
    walks = [Elsewhere("walk", str(path)) for path in sorted(folders) if forget_walk(path, ids)]
    return walks + [Elsewhere("head", str(path)) for path in sorted(folders) if forget_in(path, ids, contents)]


def _runs(beside: Path) -> list[tuple[str, Path]]:
    """(run, its collection) of the runs that are known, here, in runs/ or beside a collection."""
    from selfsight.data.written import written
    from selfsight.training.run import Run

    ways = [(Path(), "*"), (Path(), "*/*"), (Path("runs"), "*/*"), (beside, "*"), (beside, "*/*")]
    files = {file for folder, way in ways for file in folder.glob(f"{way}/recipe.yaml")}
    found = {file.parent.resolve() for file in files} | {Path(line.path) for line in written("run")}
    out = []
    for path in sorted(found):
        try:
            out.append((str(path), Path(Run.open(path).read_recipe()[2]["collection"])))
        except (SelfsightError, KeyError, ValueError):  # no run, or damaged
            continue
    return out


def show(result: Forgotten) -> None:
    """Print what is gone, what is not, and what else holds it."""
    print(
        f"Forgot {len(result.forgotten):,} item{'' if len(result.forgotten) == 1 else 's'}, {result.items:,} are left."
    )
    print("Your files are as they were. Runs that were trained on these items, and their reports, are not changed.")
    for other in result.elsewhere:
        path = shlex.quote(other.path)
        if other.kind == "collection":
            ids = " ".join(item.id for item in other.items[:3]) + (" …" if len(other.items) > 3 else "")
            print(f"{other.path} still holds {len(other.items):,} of them: selfsight forget {path} {ids}")
        elif other.kind == "features":
            print(f"{other.path} still holds features of them: delete it, or write it again with selfsight embed.")
        elif other.kind == "labels":
            print(
                f"{other.path} still holds labels of them: delete it, or write it again with selfsight label --export."
            )
        elif other.kind == "pictures":
            print(f"{other.path} may show them: delete it, or make it again.")
        elif other.kind == "walk":
            print(f"{other.path} was adapted along them: its state and its page are removed; adapt begins anew.")
        elif other.kind == "head":
            print(f"{other.path} has learnt from them: their rows are removed; train it again, or delete it.")
        else:
            print(f"{other.path} may have learnt from them: selfsight runs remove {path}")
