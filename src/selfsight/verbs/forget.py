"""forget: remove items for good."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
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
class Forgotten(Result):
    """forgotten: the items that are gone. items: how many are left."""

    forgotten: list[Item]
    items: int


@checked
def forget(collection: str, *ids: str) -> Forgotten:
    """Remove items from a collection and from everything made of it, so that their bytes are gone.

    The table, its older versions, the features, the journal of decisions and the decoded pixels in the cache folder are
    rewritten or deleted. A new import leaves the items out, for their ids (hashes of their paths) are remembered.
    Your own files stay as they are, and so do runs: an encoder that was trained on an item has seen it, and a
    report may show it. The command line asks first; in Python the call is the answer.

    Parameters
    ----------
    collection
        A .lance collection; or the folder or other source whose table the cache folder keeps.
    ids
        Ids of the items, or their paths relative to the source; @FILE names a file with one a line.
    """
    from selfsight.data.cache import cache_folder
    from selfsight.data.canvases import decoded_before, remove_canvases
    from selfsight.data.collection import Collection
    from selfsight.data.importers import open_source
    from selfsight.data.lock import Busy, locked
    from selfsight.data.manifest import beside

    items = open_source(collection, as_is=True)  # with the rows of files that are gone already
    wanted = [name for given in ids for name in _names(given)]
    if not wanted:
        raise SelfsightError("Say which items to forget, by id or by path: selfsight forget photos.lance a.jpg")
    table = items.table
    pairs = list(zip(table["id"].to_pylist(), table["uri"].to_pylist(), strict=True))
    known = {name for pair in pairs for name in pair}
    gone = [(item, uri) for item, uri in pairs if {item, uri} & set(wanted)]
    # A later import drops the rows of files that are gone; what was made of them before is still there.
    called = {_id_of(items, name): name for name in wanted if name not in known}
    dropped = items.remembered(set(called)) | decoded_before(set(called))
    gone += [(item, called[item]) for item in sorted(dropped)]
    unknown = [name for item, name in called.items() if item not in dropped]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise SelfsightError(
            f"{items.path} has no item {', '.join(unknown[:3])}{more}. Nothing was removed. "
            f"Give ids, or paths relative to {items.about.location}."
        )
    if len(gone) - len(dropped) == len(pairs):
        raise SelfsightError(f"Those are all items of {items.path}. Delete the folder itself.")
    try:
        with locked(beside(items.path, ".lance.lock")):
            remove_canvases({item for item, _ in gone})
            shutil.rmtree(beside(items.path, ".lance.partial"), ignore_errors=True)  # of a stopped import
            left = items.forget([item for item, _ in gone])
    except Busy as busy:
        raise MachineError(f"{items.path} is being imported by process {busy}. Wait for it, and try again.") from None
    for table in sorted((cache_folder() / "collections").glob("*/items.lance")):  # of the same source, by other verbs
        if Collection.exists(table) and table.resolve() != items.path.resolve():
            other = Collection.open(table)
            if other.about.location == items.about.location:
                other.forget([item for item, _ in gone])
    return Forgotten([Item(item, uri) for item, uri in gone], len(left))


def removes(collection: str, *ids: str) -> str:
    """What `forget` with these arguments removes, in words; nothing if it removes nothing."""
    names = [name for given in ids for name in _names(given)]
    few = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    return f"{few} from {collection} and whatever was made of it, for good" if names else ""


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


def _names(given: str) -> list[str]:
    if not given.startswith("@"):
        return [given]
    try:
        lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{given[1:]} cannot be read as a list of ids ({type(error).__name__}).") from None
    return [line.strip() for line in lines if line.strip()]


def show(result: Forgotten) -> None:
    """Print what is gone and what is not."""
    print(f"Forgot {len(result.forgotten):,} items, {result.items:,} are left.")
    print("Your files are as they were. Runs that were trained on these items, and their reports, are not changed.")
