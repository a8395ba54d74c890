"""The page on which boxes are drawn: what a person draws is what the journal holds and what detectors learn from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Browser
from PIL import Image

import selfsight
from selfsight.curation.regions import Regions
from selfsight.data.annotations import coco
from selfsight.data.annotations.outlines import Outline, Outlines
from selfsight.data.boxed import Boxed
from selfsight.data.boxes import Box
from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.errors import DataError, SelfsightError
from selfsight.pages.draw import drawing
from selfsight.pages.drawn import Drawn
from selfsight.pages.pictures import Pictures

Page = Callable[..., Any]
ENTER, DELETE, LEFT, ESCAPE = "\ue007", "\ue017", "\ue012", "\ue00c"  # as WebDriver names the keys
WIDTH, HEIGHT = 64, 48  # of the plates


def boxed(items: Collection) -> Boxed:
    return Boxed.of(Labels.of(items, kind="boxes"))


def lines(items: Collection) -> list[tuple[str, Any, Any]]:
    return [(d.id, d.old, d.new) for d in Journal(items.path).read()[0]]


def edges(label: str, *xyxy: float, **flags: bool) -> dict[str, Any]:
    return {"label": label, **dict(zip(("x0", "y0", "x1", "y1"), xyxy, strict=True)), **flags}


# -- what is kept --


def test_boxes_are_what_a_detector_learns_from(items: Collection, plates: Path, tmp_path: Path) -> None:
    drawn = Drawn(items, "anna")
    one, empty, other = drawn.ids[:3]
    assert drawn.give(one, [Box("dent", 4.25, 5, 20, 30.5), Box("scratch", 10, 2, 60, 9)]) == []
    drawn.give(empty, [])
    known = boxed(items)
    assert sorted(known.labels.ids) == sorted([one, empty]) and known.names == ("dent", "scratch")
    place = known.labels.ids.index(one)
    assert known.at(place).boxes.tolist() == [[4.25, 5, 20, 30.5], [10, 2, 60, 9]]
    assert known.at(known.labels.ids.index(empty)).boxes.shape == (0, 4)  # looked at, and background
    assert [box.label for box in Regions.of(items, None).boxes] == ["dent", "scratch"]  # what curate doubts
    again = Drawn(open_source(plates))  # resumes
    assert again.marked == {one: ["dent", "scratch"], empty: []} and again.counts == {"dent": 1, "scratch": 1}
    assert (drawn.given, again.given) == (2, 0) and again.boxes(other) is None
    for kind in ("boxes.json", "voc", "yolo"):
        out = tmp_path / "out" / kind
        told = selfsight.label(str(plates), kind="box", export=str(out))
        assert (told.labelled, told.kind, told.classes) == (2, "box", {"dent": 1, "scratch": 1})
        read = Boxed.of(Labels.of(items, path=str(out), kind="boxes"))
        assert sorted(read.labels.ids) == sorted(known.labels.ids)
        assert np.allclose(read.at(read.labels.ids.index(one)).boxes, known.at(place).boxes, atol=1e-6)
        assert np.array_equal(read.counts().sum(0), [1, 1])


def test_boxes_are_cut_to_the_picture_and_strays_are_named(items: Collection) -> None:
    drawn = Drawn(items)
    item = drawn.ids[0]
    told = drawn.give(item, [Box("a", -5, 40, 3, 60), Box("a", 2, 2, 2.5, 30), Box("b", 70, 0, 90, 9)])
    assert told == ["a box of less than a pixel", "a box outside its image"]
    assert lines(items) == [(item, None, [edges("a", 0, 40, 3, 48)])]
    with pytest.raises(SelfsightError, match="cannot be the name of a class"):
        drawn.give(item, [Box(" ", 1, 1, 9, 9)])
    with pytest.raises(SelfsightError, match="There is no item"):
        drawn.give("nobody", [])
    assert len(lines(items)) == 1


def test_undo_is_the_inverse_and_leaves_what_others_drew(items: Collection) -> None:
    drawn, other = Drawn(items, "anna"), Drawn(items, "ben")
    one, two = drawn.ids[:2]
    first, second = [edges("a", 1, 1, 9, 9)], [edges("b", 2, 2, 9, 9)]
    drawn.give(one, [Box(**first[0])])
    drawn.give(one, [Box(**second[0])])
    drawn.give(one, [Box(**second[0])])  # counts already
    drawn.give(two, [])
    assert [drawn.undo(), drawn.undo(), drawn.undo(), drawn.undo()] == [two, one, one, None]
    assert lines(items)[3:] == [(two, [], None), (one, second, first), (one, first, None)]
    assert drawn.marked == {} and drawn.given == 0 and Labels.of(items, kind="boxes").kind == "none"
    drawn.give(one, [Box(**first[0])])
    other.give(one, [Box(**second[0])])
    with pytest.raises(SelfsightError, match="changed since, by ben: nothing was taken back"):
        drawn.undo()
    assert boxed(items).names == ("b",)


def test_what_another_process_drew_is_seen_before_an_answer_is_compared_with_it(items: Collection) -> None:
    """Anna draws a, ben b in a process of his own, and anna a again: that is an answer, and the last one."""
    anna, ben = Drawn(items, "anna"), Drawn(items, "ben")
    item, a, b = anna.ids[0], Box("dent", 4, 5, 20, 30), Box("dent", 8, 8, 12, 12)
    for who, box in ((anna, a), (ben, b), (anna, a)):
        who.give(item, [box])
    first, second = [edges("dent", 4, 5, 20, 30)], [edges("dent", 8, 8, 12, 12)]
    assert lines(items) == [(item, None, first), (item, first, second), (item, second, first)]
    ben.refresh()
    assert ben.boxes(item) == first


def test_boxes_of_the_collection_are_corrected_and_come_back(plates: Path) -> None:
    given = [edges("dent", 3, 4, 20, 30), edges("dent", 30, 4, 40, 44, iscrowd=True)]
    objects = tuple(Outline(each["label"], None, Box(**each), "iscrowd" in each) for each in given)
    known = {"plate-000.png": Outlines(objects, (WIDTH, HEIGHT)), "plate-001.png": Outlines((), (WIDTH, HEIGHT))}
    (plates / "boxes.json").write_bytes(coco.write(known))
    items = open_source(plates / "boxes.json")
    drawn = Drawn(items)
    assert sorted(drawn.marked.values()) == [[], ["dent"]]  # the second was looked at: nothing is there
    item = next(item for item, classes in drawn.marked.items() if classes)
    assert drawn.boxes(item) == given
    drawn.give(item, [Box(**given[1]), Box("dent", 5, 4, 20, 30)])
    assert lines(items) == [(item, given, [given[1], edges("dent", 5, 4, 20, 30)])]
    place = boxed(items).labels.ids.index(item)
    assert boxed(items).at(place).unsure.tolist() == [True, False]
    drawn.undo()
    assert boxed(items).at(place).boxes.tolist() == [[3, 4, 20, 30], [30, 4, 40, 44]]


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """Two pictures stored 80 wide and 48 high, which stand 48 wide and 80 high by EXIF's 6 (turned clockwise) and 8
    (the other way round). Where a 20 x 12 block at x 10, y 8 of the stored one is red, the rest is grey."""
    pixels = np.full((48, 80, 3), 120, np.uint8)
    pixels[8:20, 10:30] = (200, 20, 20)
    (tmp_path / "turned").mkdir()
    for orientation in (6, 8):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(tmp_path / "turned" / f"{orientation}.jpg", exif=exif, quality=100, subsampling=0)
    return tmp_path / "turned"


# Orientation 6: what is stored at (x, y) stands at (48 - y, x). 8: at (y, 80 - x).
UPRIGHT = {"6.jpg": (28.0, 10.0, 40.0, 30.0), "8.jpg": (8.0, 50.0, 20.0, 70.0)}


def test_boxes_on_turned_pictures_are_those_of_the_upright_ones(turned: Path, tmp_path: Path) -> None:
    """As drawn, as exported and read again, and the same as a COCO file that states the stored picture says."""
    items = open_source(turned)
    drawn = Drawn(items)
    for item, uri in zip(items.usable["id"].to_pylist(), items.usable["uri"].to_pylist(), strict=True):
        drawn.give(item, [Box("block", *UPRIGHT[uri])])
    stored = [{"id": n, "file_name": uri, "width": 80, "height": 48} for n, uri in enumerate(UPRIGHT)]
    objects = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 8, 20, 12]} for n in range(2)]
    whole = {"images": stored, "annotations": objects, "categories": [{"id": 1, "name": "block"}]}
    (tmp_path / "stored.json").write_text(json.dumps(whole))
    selfsight.label(str(turned), kind="box", export=str(tmp_path / "out.json"))
    assert coco.read((tmp_path / "out.json").read_bytes()).images["6.jpg"].size == (48, 80)
    for path in (None, str(tmp_path / "out.json"), str(tmp_path / "stored.json")):
        read = Boxed.of(Labels.of(items, path=path, kind="boxes"))
        found = dict(zip(read.labels.rows["uri"].to_pylist(), read.values, strict=True))
        assert {uri: (box.x0, box.y0, box.x1, box.y1) for uri, (box,) in found.items()} == UPRIGHT


def test_mistakes_are_one_sentence(plates: Path, tmp_path: Path) -> None:
    for more, said in (
        ({"model": "runs/first"}, "--model suggests classes, not boxes. Train a head"),
        ({"classes": "dent,,spot"}, "'' cannot be the name of a class"),
        (
            {"export": "boxes.csv"},
            r"Boxes are written as \.json, or into a folder called voc or yolo, not as 'boxes.csv'",
        ),
        ({"head": str(tmp_path)}, "is not a head: it has no head.json"),
    ):
        with pytest.raises(SelfsightError, match=said) as error:
            selfsight.label(str(plates), kind="box", **more)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"has a box\. Draw some"):
        selfsight.label(str(plates), kind="box", export=str(tmp_path / "boxes.json"))
    with pytest.raises(DataError, match="or draw boxes: selfsight label SOURCE --kind box"):
        boxed(open_source(plates))


def test_the_server_refuses_what_the_page_does_not_send(items: Collection, serve: Page) -> None:
    def guess(item: str) -> list[dict[str, Any]]:
        raise ValueError("the head is out of its mind")

    drawn = Drawn(items)
    item = drawn.ids[0]
    with serve(drawing(drawn, Pictures(items), drawn.ids, "plates", guess)) as visitor:
        assert visitor.get("api/items/nobody").status == visitor.get("api/guesses/nobody").status == 404
        for bad in ({"x0": "left"}, {"x0": None}, {"label": "a" * 300}):
            box = edges("a", 1, 1, 9, 9) | bad
            assert visitor.post("api/boxes", {"id": item, "boxes": [box]}).status == 422
        nan = visitor.raw(
            "POST", f"/{visitor.token}/api/boxes",
            {"Host": visitor.host, "Origin": f"http://{visitor.host}", "Content-Type": "application/json"},
            json.dumps({"id": item, "boxes": [edges("a", float("nan"), 1, 9, 9)]}).encode(),
        )  # fmt: skip
        assert nan.status == 422
        refused = visitor.post("api/boxes", {"id": item, "boxes": [edges("a|b", 1, 1, 9, 9)]})
        assert refused.status == 400 and "cannot be the name of a class" in refused.json["what"]
        said = visitor.get(f"api/guesses/{item}").json
        assert said == {"objects": [], "late": False, "failed": said["failed"]}
        assert said["failed"] == "The head has no guess for this one: the head is out of its mind"
    assert lines(items) == []


# -- the page --


class Drawing(Browser):
    """The page, with the mouse at places in pixels of the file that is shown."""

    def place(self, x: float, y: float, size: tuple[int, int] = (WIDTH, HEIGHT)) -> tuple[float, float]:
        left, top, wide, high = self.js(
            "const b = document.querySelector('#view img').getBoundingClientRect();return [b.x, b.y, b.width, b.height]"
        )
        return left + x * wide / size[0], top + y * high / size[1]

    def draw(self, *points: tuple[float, float], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        self.drag(*(self.place(x, y, size) for x, y in points))

    def shown(self, kind: str) -> int:
        return len(self.js("return [...document.querySelectorAll(arguments[0])]", f"#view rect.{kind}"))

    def begin(self, visitor: Any) -> None:
        self.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")


@pytest.fixture
def page(driver: Any) -> Drawing:
    driver.get("about:blank")
    driver.get_log("browser")
    return Drawing(driver)


def near(box: dict[str, Any], label: str, *xyxy: float) -> bool:
    """Whether a box is where the mouse was, to half a pixel of the screen, of which there are 10 to a plate's."""
    return box["label"] == label and np.allclose([box[e] for e in ("x0", "y0", "x1", "y1")], xyxy, atol=0.1)


def test_what_is_drawn_is_what_is_kept(items: Collection, serve: Page, page: Drawing) -> None:
    drawn = Drawn(items, classes=["dent", "spot"])
    first, second, third = drawn.ids[:3]
    with serve(drawing(drawn, Pictures(items), drawn.ids, "plates")) as visitor:
        page.begin(visitor)
        assert page.texts(".class .cut") == ["dent", "spot"]
        page.draw((10, 10), (30, 40))
        page.draw((50, 45), (40, 20))  # from the lower right
        page.press("2")
        page.draw((55, 5), (70, 12))  # out of the picture
        assert page.shown("box") == 3 and page.text("#saved") == "Enter saves" and lines(items) == []
        page.draw((20, 20))  # selects
        page.draw((30, 25), (34, 25))  # its right edge
        page.draw((34, 40), (32, 44))  # and its lower right corner
        page.press("2")
        page.draw((45, 30))
        page.press(DELETE)
        assert (page.shown("box"), page.text("#suggestion b")) == (2, "")
        page.press("z")  # the box that was removed is there again
        assert page.shown("box") == 3
        page.press(ENTER)
        page.until(lambda: lines(items) and page.text("#saved") == "saved")
        [(item, old, boxes)] = lines(items)
        assert (item, old) == (first, None)
        assert near(boxes[0], "spot", 10, 10, 32, 44)
        assert near(boxes[1], "dent", 40, 20, 50, 45) and near(boxes[2], "spot", 55, 5, 64, 12)
        page.until(lambda: page.text("#size"))
        page.press(" ")  # nothing is there: background
        page.until(lambda: page.text("#labelled") == "2")
        assert lines(items)[1] == (second, None, [])
        page.until(lambda: page.text("#size"))
        page.draw((1, 1), (9, 9))
        page.press(LEFT)  # goes on and saves too
        page.until(lambda: len(lines(items)) == 3 and page.text("#suggestion").startswith("Nothing is here"))
        assert lines(items)[2][0] == third
        page.press("z")  # takes that back: the box is there, and on no disk
        page.until(lambda: len(lines(items)) == 4 and page.shown("box") == 1)
        page.until(lambda: page.text("#labelled") == "2")
        assert lines(items)[3][2] is None
        page.press("z")
        page.until(lambda: page.shown("box") == 0)
        page.press("z", "z")  # the two pictures before
        page.until(lambda: len(lines(items)) == 6 and page.shown("box") == 3 and page.text("#labelled") == "0")
        assert page.complaints() == []
    assert Drawn(open_source(items.about.location)).marked == {}


def test_guesses_count_once_a_person_took_them(items: Collection, serve: Page, page: Drawing) -> None:
    objects = [
        edges("dent", 5.126, 5, 15, 15) | {"score": 0.9},
        edges("spot", 20, 20, 40, 40) | {"score": 0.8},
        edges("dent", 45, 5, 60, 40) | {"score": 0.7},
    ]
    go = threading.Event()

    def guess(item: str) -> list[dict[str, Any]]:
        if item == fourth:
            raise ValueError("no memory is left")
        assert item != first or go.wait(20)
        return objects

    drawn = Drawn(items)
    first, _, third, fourth = drawn.ids[:4]
    with serve(drawing(drawn, Pictures(items), drawn.ids[:4], "plates", guess, 0.2)) as visitor:
        page.begin(visitor)
        page.press(ENTER)  # before the head said anything
        page.until(lambda: "still looks" in page.text("#note"))
        go.set()
        page.until(lambda: page.shown("guess") == 3)
        assert page.text("#suggestion span:last-child") == "The bold one: dent, 90 %" and lines(items) == []
        page.press("y", "n")  # the first, and not the second
        page.until(lambda: (page.shown("guess"), page.shown("box")) == (1, 1))
        page.press(ENTER)
        page.until(lambda: len(lines(items)) == 1)
        assert lines(items)[0] == (first, None, [edges("dent", 5.13, 5, 15, 15)])  # and not what nobody took
        page.until(lambda: page.shown("guess") == 3)
        page.draw((30, 30))  # a click takes the one below
        page.until(lambda: (page.shown("guess"), page.shown("box")) == (2, 1))
        page.press("z", "a")
        page.until(lambda: (page.shown("guess"), page.shown("box")) == (0, 3))
        page.press(ENTER)
        page.until(lambda: len(lines(items)) == 2)
        assert [box["label"] for box in lines(items)[1][2]] == ["dent", "spot", "dent"]
        page.until(lambda: page.shown("guess") == 3)
        page.press(ENTER)
        page.until(lambda: "No guess was taken, of 3" in page.text("#note"))
        assert len(lines(items)) == 2
        page.press(ENTER)  # so nothing is there
        page.until(lambda: len(lines(items)) == 3)
        assert lines(items)[2] == (third, None, [])
        page.until(lambda: "has no guess for this one: no memory is left" in page.text("#suggestion"))
        page.draw((1, 1), (9, 9))  # people go on without it
        page.press(ENTER)
        page.until(lambda: len(lines(items)) == 4)
        assert page.complaints() == []
    assert boxed(items).counts().sum() == 5


def test_turned_and_large_pictures_are_drawn_on_in_pixels_of_the_file(
    turned: Path, serve: Page, page: Drawing, tmp_path: Path
) -> None:
    Image.new("L", (3000, 1200), 90).save(turned / "wide.png")  # sent with 2,000 px
    items = open_source(turned)
    drawn = Drawn(items, classes=["block"])
    uris = dict(zip(items.usable["id"].to_pylist(), items.usable["uri"].to_pylist(), strict=True))
    want = UPRIGHT | {"wide.png": (600, 300, 2700, 900)}
    with serve(drawing(drawn, Pictures(items), drawn.ids, "turned")) as visitor:
        page.begin(visitor)
        for done in range(3):
            uri = page.until(lambda: page.text("#name"))
            size = (3000, 1200) if uri == "wide.png" else (48, 80)
            x0, y0, x1, y1 = want[uri]
            page.draw((x0, y0), (x1, y1), size=size)
            shot = tmp_path / "shot.png"
            page.driver.save_screenshot(str(shot))
            if uri != "wide.png":  # what lies below the box is the red block
                middle = page.place((x0 + x1) / 2, (y0 + y1) / 2, size)
                red, green, _ = Image.open(shot).convert("RGB").getpixel((int(middle[0]), int(middle[1])))  # type: ignore[misc]
                assert red > green + 100
            page.press(ENTER)
            page.until(lambda done=done: len(lines(items)) == done + 1 and page.text("#saved") == "saved")
    found = {uris[item]: new[0] for item, _, new in lines(items)}
    for uri, box in found.items():
        screen = 5.0 if uri == "wide.png" else 0.1  # a pixel of the screen, or more
        assert np.allclose([box[edge] for edge in ("x0", "y0", "x1", "y1")], want[uri], atol=screen)


def test_a_refused_name_loses_no_box(items: Collection, serve: Page, page: Drawing) -> None:
    drawn = Drawn(items)
    with serve(drawing(drawn, Pictures(items), drawn.ids, "plates")) as visitor:
        page.begin(visitor)
        page.draw((5, 5), (20, 20))
        page.until(lambda: "Name the class first" in page.text("#note"))
        page.press(*"a|b", ENTER)
        page.draw((5, 5), (20, 20))
        page.draw((5, 5), (5.2, 20))  # a slip
        page.until(lambda: page.text("#note").startswith("A box is a pixel"))
        first = page.text("#name")
        page.press(ENTER)
        page.until(lambda: "cannot be the name of a class" in page.text("#note") and page.shown("box") == 1)
        assert page.text("#name") == first and page.text("#saved") == "not saved" and lines(items) == []
        page.draw((10, 10))
        page.press("/", *"ab", ENTER)
        page.press(ENTER)
        page.until(lambda: len(lines(items)) == 1)
        assert near(lines(items)[0][2][0], "ab", 5, 5, 20, 20)
