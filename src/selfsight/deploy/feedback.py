"""What people say of the answers of a service: decisions in a journal for each head, which `adapt` reads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, cast

from selfsight.data.annotations.rle import lengths
from selfsight.data.boxed import within
from selfsight.data.boxes import Box
from selfsight.data.decisions import Journal, Value
from selfsight.deploy.received import Page, Refused
from selfsight.errors import SelfsightError
from selfsight.heads.voice import Voice

REMEMBERED = 10_000  # images that are known by the id of their request, and decisions that are known of a head
MOST_REGIONS = 10_000  # of a mask, or boxes
MOST_TEXT = 2_000  # letters of a label
TEACHES = {"segment": "mask", "detect": "boxes"}  # what a head of a task learns from, if not from a label
NAMES = {"label": "a label", "mask": "a mask", "boxes": "boxes"}
EDGES = ("x0", "y0", "x1", "y1")


class Known(NamedTuple):
    """What is remembered of an image: the id and hash of its content, and its size."""

    id: str
    content_hash: str
    height: int
    width: int

    @classmethod
    def of(cls, page: Page) -> Known:
        """From its header."""
        row = page.row
        sides = (int(row.get(side) or 0) for side in ("height", "width"))
        return cls(str(row["id"]), str(row.get("content_hash")), *sides)


class Decided:
    """The journal of a head, and the last decisions in it, at most `REMEMBERED`; older ones are read when asked for."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._last = journal, OrderedDict[tuple[str, str], Value]()
        self._all = True  # whether all decisions are remembered
        for each in journal.read()[0]:
            self._remember(each.id, each.field, each.new)

    def decide(self, item: str, content: str, field: str, value: Value, by: str) -> None:
        """Append a decision, with what was decided before. It is on disk when this returns."""
        old = self._last.get((item, field))
        if old is None and not self._all:
            before = self._journal.latest(field).get(item)
            old = None if before is None else before.new
        self._journal.decide(item, content, field, value, old=old, by=by)
        self._remember(item, field, value)

    def _remember(self, item: str, field: str, value: Value) -> None:
        self._last[item, field] = value
        self._last.move_to_end((item, field))
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
            self._all = False


class Feedback:
    """The journals of the heads of a service: `FOLDER/NAME.decisions/`, as beside a collection NAME.lance.

    The id and the content hash of an item are those of an image's content: the same image has the same wherever it
    comes from, and a collection that holds the file has its content hash.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock, self._count = folder, threading.Lock(), 0
        self._told: dict[str, Decided] = {}
        self._asked: OrderedDict[str, tuple[str, list[Known]]] = OrderedDict()

    def remember(self, request_id: str, name: str, pages: list[Page]) -> None:
        """These were the images of a request."""
        with self._lock:
            self._asked[request_id] = name, [Known.of(page) for page in pages]
            self._count += len(pages)
            while self._count > REMEMBERED:
                self._count -= len(self._asked.popitem(last=False)[1][1])

    def images_of(self, request_id: str, name: str) -> list[Known]:
        """The images of a request to the head `name`. Raises `Refused` where that is not known."""
        with self._lock:
            asked, images = self._asked.get(request_id, ("", []))
        if asked != name:
            raise Refused(
                HTTPStatus.NOT_FOUND, "No request of this id to this head is remembered.", "Send the image itself."
            )
        return images

    def give(self, name: str, head: Voice, image: Known, told: Mapping[str, object], by: str) -> str:
        """Write what somebody said of an image; returns the field. It is on disk when this returns. told: its `label`,
        `mask` or `boxes`. Raises `Refused` for what this head cannot learn from."""
        field, value = checked(head, told, image)
        item, content = image.id, image.content_hash
        with self._lock:
            if name not in self._told:
                self._told[name] = Decided(Journal(self._folder / f"{name}.lance"))
            try:
                self._told[name].decide(item, content, field, value, by)
            except SelfsightError as error:
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        return field


def checked(head: Voice, told: Mapping[str, object], image: Known) -> tuple[str, Value]:
    """(field, value) of what was said. Raises `Refused` for what has no meaning for the head."""
    field = TEACHES.get(head.about.task, "label")
    if field not in told:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"This head is for {head.about.task}, and learns from {NAMES[field]}.",
            f'Send {{"{field}": …}}.',
        )  # fmt: skip
    size = f"{image.width} x {image.height} pixels"
    if field == "label":
        _check_label(told[field], getattr(head.about, "kind", "class"))
    elif field == "mask" and not _fits(told[field], image):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"A mask is {{class: run lengths of COCO}} of {size}."
        )  # fmt: skip
    elif field == "boxes" and not _are_boxes(told[field], image):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"Boxes are a list of {{label, x0, y0, x1, y1}}, in pixels of an image of {size}, each with an area in it.",
        )
    return field, cast(Value, told[field])


def _fits(mask: Any, image: Known) -> bool:
    """Whether a mask is run lengths of classes, of the size of the image."""
    size = [image.height, image.width]
    try:
        regions = [rle for of in mask.values() for rle in (of if isinstance(of, list) else [of])]
        return len(regions) <= MOST_REGIONS and all(list(lengths(rle)[:2]) == size for rle in regions)
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def _are_boxes(boxes: Any, image: Known) -> bool:
    """Whether these are boxes with an area in the image, each of a class."""
    try:
        known = [Box(**box) for box in boxes]
        named = all(isinstance(box.label, str) and box.label.strip() and len(box.label) <= MOST_TEXT for box in known)
        plain = all(type(box[edge]) in (int, float) and isfinite(box[edge]) for box in boxes for edge in EDGES)
        return len(known) <= MOST_REGIONS and named and plain and not within("", known, image.width, image.height)[1]
    except (ValueError, TypeError, AttributeError, OverflowError):
        return False


def _check_label(label: Any, kind: str) -> None:
    """Raise `Refused` for what is no label of this kind."""
    wrong = HTTPStatus.UNPROCESSABLE_ENTITY
    number = isinstance(label, int | float) and not isinstance(label, bool)
    if kind == "number" and not number:
        raise Refused(wrong, "This head estimates a number: the label is one.")
    if kind == "classes" and not (isinstance(label, list) and all(isinstance(one, str) for one in label)):
        raise Refused(wrong, "This head names several classes: the label is a list of them.")
    if kind in ("class", "grade") and not (isinstance(label, str) and label.strip()):
        raise Refused(wrong, "The label is the name of a class, as text.")
    if len(str(label)) > MOST_TEXT:
        raise Refused(wrong, "The label is longer than any class.")
