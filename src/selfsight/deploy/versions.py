"""The heads of a service, by name: a new version is loaded beside the old one, tried, and only then switched to."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import numpy as np

from selfsight.console import console
from selfsight.data.formats.format import Unreadable
from selfsight.deploy.exported import Exported, export_of, open_export
from selfsight.deploy.received import Refused, Sent, pages_of, pixels_of
from selfsight.deploy.shared_exports import share_exports
from selfsight.encoders.licences import concern
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.predictions import Row, said
from selfsight.heads.voice import Voice
from selfsight.machine import asked_device, best_device

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # of a head: it stands in addresses
MOST_EXAMPLE = 4 * 2**20  # bytes of the image that is kept in memory as an example


@dataclass
class Version:
    """A head that is served under a name.

    folder: it was loaded from. before: the version that it took the place of. example: an image that the head was asked
    about, in memory only, on which the next version is tried.
    """

    name: str
    folder: Path
    head: Voice
    before: Version | None = None
    example: Sent | None = None


@dataclass(frozen=True)
class Switched:
    """A version that took the place of another: names, digests, and what both say of the example."""

    head: str
    head_digest: str
    digest_before: str
    says: str
    said_before: str


class Versions:
    """The heads that are served. Names are those of their folders.

    commercial: whether heads whose encoder may not be used commercially are refused.
    """

    def __init__(self, folders: Sequence[str], commercial: bool) -> None:
        """Load and try each. Raises `SelfsightError` for two of one name, `DataError` for one that is none."""
        self._commercial, self._lock = commercial, threading.Lock()
        self._versions: dict[str, Version] = {}
        for given in folders:
            folder = Path(given).expanduser().absolute()
            if not folder.exists():
                raise DataError(f"There is no head {given}: serve takes folders. See where yours are: selfsight runs")
            if not (folder / "head.json").is_file():
                raise DataError(f"{given} is not a head: it has no head.json. Heads are made by selfsight train.")
            if folder.name in self._versions:
                raise SelfsightError(
                    f"Two heads are called {folder.name}. Rename the folder of one: it is its address."
                )
            if not NAME.fullmatch(folder.name):
                raise SelfsightError(
                    f"{folder.name!r} cannot stand in an address. Rename the folder: letters, digits, . _ - are fine."
                )
            version = Version(folder.name, folder, self._loaded(folder))
            self._versions[folder.name] = version
            self._try(version.head, example_for(version.head))
        self._share()

    def __iter__(self) -> Iterator[Version]:
        return iter(list(self._versions.values()))

    def of(self, name: str) -> Version:
        """The version that is served under a name. Raises `Refused`."""
        found = self._versions.get(name)
        if found is None:
            known = ", ".join(self._versions)
            raise Refused(HTTPStatus.NOT_FOUND, f"No head of this name is served. Served here: {known}.")
        return found

    def load(self, name: str, folder: str | None) -> Switched:
        """Serve what is in `folder`, beside the folder of the head that is served now, or that folder read again.

        Raises `Refused` where there is no head, or it is not fit to take the other's place, which then stays.
        """
        with self._lock:
            now = self.of(name)
            if folder is not None and not NAME.fullmatch(folder):
                raise Refused(
                    HTTPStatus.UNPROCESSABLE_ENTITY, "A version is named by its folder's name, without a path.",
                    f"Put it beside {now.folder.name}.",
                )  # fmt: skip
            place = now.folder.parent / (folder or now.folder.name)
            if not (place / "head.json").is_file():
                raise Refused(HTTPStatus.NOT_FOUND, f"There is no head {place.name} beside {now.folder.name}.")
            example = now.example or example_for(now.head)
            try:
                head = self._loaded(place)
                if head.about.task != now.head.about.task:
                    raise DataError(f"It is for {head.about.task}, and {name} is for {now.head.about.task}.")
                says, before = self._try(head, example), self._try(now.head, example)
            except (SelfsightError, Refused) as error:
                raise Refused(HTTPStatus.CONFLICT, f"{place.name} is not served: {error}", f"{name} stays.") from None
            self._versions[name] = Version(name, place, head, Version(name, now.folder, now.head), now.example)
            self._share()
            return Switched(name, head.digest, now.head.digest, says, before)

    def rollback(self, name: str) -> Switched:
        """Serve the version before, and keep this one as the one before. Raises `Refused` where there is none."""
        with self._lock:
            now = self.of(name)
            if now.before is None:
                raise Refused(HTTPStatus.CONFLICT, f"There is no version of {name} before this one.")
            example = now.example or example_for(now.head)
            head = now.before.head
            says, before = self._try(head, example), self._try(now.head, example)
            self._versions[name] = Version(
                name, now.before.folder, head, Version(name, now.folder, now.head), now.example
            )
            self._share()
            return Switched(name, head.digest, now.head.digest, says, before)

    def _share(self) -> None:
        heads = [version.head for version in self._versions.values()]
        exported = [head for head in heads if isinstance(head, Exported)]
        share_exports(exported)
        if len(heads) - len(exported) > 1:
            from selfsight.deploy.shared import share

            share(heads)

    def _loaded(self, folder: Path) -> Voice:
        head = opened(folder)
        why = concern(head.about.licence)
        if self._commercial and why is not None:
            raise SelfsightError(f"{folder.name} is not served with --commercial: {why}")
        return head

    def _try(self, head: Voice, example: Sent) -> str:
        """What a head says of an example. Raises `DataError` where it says nothing that can be said."""
        row = answer_of(head, example)
        numbers = [value for value in row.values() if isinstance(value, float)]
        if not np.isfinite(numbers).all():
            raise DataError("its answer about the example is no number: its weights are damaged.")
        return said(row)


def opened(folder: Path) -> Voice:
    """The head in `folder`, by the export beside it, unless another device than the processor was asked for; else by
    PyTorch, which only then is imported. Raises `DataError` where there is none, or it is damaged."""
    file = export_of(folder)
    if (folder / "head.json").is_file() and file.is_file() and asked_device() in (None, "cpu"):
        found = open_export(folder, file)
        if isinstance(found, Exported):
            return found
        console().print(f"{folder.name} computes with PyTorch: {found}", soft_wrap=True)
    from selfsight.heads.head import load_head

    head = load_head(folder)
    head.module.to(best_device())
    return head


def answer_of(head: Voice, sent: Sent) -> Row:
    """What a head says of one image. Raises `DataError` for one that cannot be read or that it does not take."""
    pages = pages_of(sent)[:1]
    [pixels] = pixels_of(sent, pages, head.geometry.format) if not pages[0].reason else [None]
    try:
        if pixels is None or isinstance(pixels, Unreadable):
            raise Unreadable(pages[0].reason if pixels is None else str(pixels))
        return head.say([head.place(0, pixels)])[0]
    except Unreadable as reason:
        raise DataError(f"it does not take the example: {reason}.") from None


def example_for(head: Voice) -> Sent:
    """A picture of a head's own form, from dark to bright, for when nobody has asked it yet."""
    geometry, roi = head.geometry, getattr(head.about, "roi", None)
    height, width = roi or (geometry.size, geometry.size)
    low, high = geometry.window
    ramp = np.linspace(low, high, height * width).reshape(height, width, 1).repeat(geometry.channels, 2)
    out = io.BytesIO()
    np.save(out, ramp.astype({8: np.uint8, 16: np.uint16, 32: np.float32}[geometry.depth]), allow_pickle=False)
    return Sent("", out.getvalue())
