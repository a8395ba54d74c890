"""The page on which masks are painted: what a person draws is what the journal holds, to the pixel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import chromium
from PIL import Image

import selfsight
from selfsight.data.annotations.rle import decode, encode
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks
from selfsight.errors import SelfsightError
from selfsight.pages.paint import painting
from selfsight.pages.painted import Painted
from selfsight.pages.pictures import Pictures


def half(height: int, width: int, left: bool = True) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = left
    mask[:, width // 2 :] = not left
    return mask


def region(name: str, mask: np.ndarray, told: bool = False) -> dict[str, Any]:
    return {"name": name, "told": told, "counts": encode(mask)["counts"]}


def current(items: Collection) -> dict[str, Any]:
    return {item: decision.new for item, decision in items.decisions.latest("mask").items()}


def test_a_mask_is_in_the_journal_at_the_size_of_the_file(items: Collection) -> None:
    painted = Painted(items, "anna")
    item = painted.ids[0]
    height, width = painted.size(item)
    mask = half(height, width)
    painted.give(item, height, width, [region("scratch", mask), region("background", ~mask)])
    assert {name: decode(runs).tolist() for name, runs in current(items)[item].items()} == {
        "scratch": mask.tolist(), "background": (~mask).tolist(),
    }  # fmt: skip
    again = Painted(items)
    assert again.marked[item] == ["background", "scratch"] and again.counts == {"scratch": 1, "background": 1}
    assert again.regions(item, height, width) == [region("scratch", mask), region("background", ~mask)]
    smaller = again.regions(item, height // 2, width // 2)
    assert smaller is not None and smaller[0]["counts"] == encode(half(height // 2, width // 2))["counts"]
    painted.give(item, height // 2, width // 2, [region("scratch", half(height // 2, width // 2))])
    assert (decode(current(items)[item]["scratch"]) == mask).all()
    painted.give(item, height, width, [])  # everything erased
    assert current(items)[item] is None and item not in Painted(items).marked


def test_objects_that_touch_stay_apart_and_a_part_leaves_the_rest_open(items: Collection) -> None:
    painted = Painted(items)
    one, two = painted.ids[:2]
    height, width = painted.size(one)
    mask = half(height, width)
    painted.give(one, height, width, [region("cell", mask, True), region("cell", ~mask, True)])
    part = np.zeros((height, width), bool)
    part[:4] = True
    painted.give(two, height, width, [region("cell", part), region("background", part[::-1])])
    masks = Masks.of(items, Labels.of(items, kind="masks"))
    assert masks.told_apart and masks.names == ("background", "cell")
    places = {item: place for place, item in enumerate(masks.labels.ids)}
    classes, objects = masks.at(places[one])
    assert (classes == 1).all() and len(np.unique(objects)) == 2
    classes, _ = masks.at(places[two])
    assert np.unique(classes[:4]).tolist() == [1] and np.unique(classes[-4:]).tolist() == [0]
    assert (classes[4:-4] == -1).all()


def test_a_stroke_undoes_no_objects_and_the_smaller_lies_on_top(items: Collection) -> None:
    painted = Painted(items)
    item = painted.ids[0]
    height, width = painted.size(item)
    cell, nucleus = np.zeros((2, height, width), bool)
    cell[4:40, 4:40] = True
    nucleus[10:20, 10:20] = True
    painted.give(item, height, width, [region("nucleus", nucleus), region("cell", cell, True)])
    found = painted.regions(item, height, width)
    assert found is not None and [one["name"] for one in found] == ["cell", "nucleus"]  # the later is drawn on top
    for mixed in ([True, True, False], [False, True, True]):
        parts = [half(height, width), half(height, width, False), nucleus]
        told = [region("cell", part, one) for part, one in zip(parts, mixed, strict=True)]
        painted.give(item, height, width, told)
        assert len(current(items)[item]["cell"]) == 3


def test_what_is_not_painted_over_keeps_its_pixels(items: Collection) -> None:
    painted = Painted(items)
    item = painted.ids[0]
    height, width = painted.size(item)
    fine = np.zeros((height, width), bool)
    fine[5:8, 5:8] = True  # an edge that half the size cannot hold
    painted.give(item, height, width, [region("cell", fine, True)])
    shown = painted.regions(item, height // 2, width // 2)
    assert shown is not None
    more = np.zeros((height // 2, width // 2), bool)
    more[15:18, 15:18] = True
    painted.give(item, height // 2, width // 2, [*shown, region("cell", more, True)])
    kept, new = current(items)[item]["cell"]
    assert (decode(kept) == fine).all() and decode(new).sum() == 4 * more.sum()


def test_what_is_no_mask_is_refused_and_nothing_is_written(items: Collection) -> None:
    painted = Painted(items)
    item = painted.ids[0]
    height, width = painted.size(item)
    for regions, said in (
        ([{"name": "a", "told": False, "counts": "!!"}], "This is no mask"),
        ([region("a", np.ones((3, 3), bool))], "This is no mask"),
        ([region("a|b", np.ones((height, width), bool))], "cannot be the name of a class"),
    ):
        with pytest.raises(SelfsightError, match=said):
            painted.give(item, height, width, regions)
    with pytest.raises(SelfsightError, match="There is no item"):
        painted.give("nobody", height, width, [])
    assert current(items) == {}


def test_masks_are_exported_and_read_again(items: Collection, plates: Path, tmp_path: Path) -> None:
    painted = Painted(items)
    item = painted.ids[0]
    height, width = painted.size(item)
    painted.give(
        item,
        height,
        width,
        [region("cell", half(height, width), True), region("cell", half(height, width, False), True)],
    )
    out = tmp_path / "masks.json"
    told = selfsight.label(str(plates), kind="mask", export=str(out))
    assert (told.labelled, told.classes, told.exported) == (1, {"cell": 1}, str(out))
    read = Masks.of(items, Labels.of(items, path=str(out), kind="masks"))
    assert len(read) == 1 and len(np.unique(read.at(0)[1])) == 2
    with pytest.raises(SelfsightError, match=r"written as \.json, or into a folder called labelme, .* not as"):
        selfsight.label(str(plates), kind="mask", export="masks.csv")
    with pytest.raises(SelfsightError, match="--model suggests classes, not masks"):
        selfsight.label(str(plates), kind="mask", model="run")


def test_masks_are_exported_in_every_format_and_read_again(items: Collection, plates: Path, tmp_path: Path) -> None:
    """LabelMe keeps every pixel and object, masks the classes, VOC and YOLO the box around each object."""
    painted = Painted(items)
    one, two = painted.ids[:2]
    height, width = painted.size(one)
    ring = half(height, width)
    ring[10:20, 5:9] = False  # a hole
    corner = ~half(height, width)
    corner[8:] = False
    painted.give(one, height, width, [region("cell", ring, True), region("cell", corner, True)])
    painted.give(two, height, width, [region("rod", corner, True), region("background", half(height, width))])
    want = Masks.of(items, Labels.of(items, kind="masks"))
    for kind in ("labelme", "masks", "voc", "yolo"):
        out = tmp_path / "out" / kind
        for _ in range(2):  # what it wrote itself it writes again
            assert selfsight.label(str(plates), kind="mask", export=str(out)).labelled == 2
        if kind in ("labelme", "masks"):
            found = Masks.of(items, Labels.of(items, path=str(out), kind="masks"))
            for place in range(2):
                classes, objects = want.at(place)
                again, parts = found.at(found.labels.ids.index(want.labels.ids[place]))
                assert (again == classes).all() and (kind == "masks" or (parts == objects).all())
        else:
            boxes = Labels.of(items, path=str(out), kind="boxes")
            found_boxes = dict(zip(boxes.ids, boxes.values, strict=True))
            assert [box.label for box in found_boxes[one]] == ["cell", "cell"]
            (box,) = found_boxes[two]
            edges = (box.x0, box.y0, box.x1, box.y1)
            assert box.label == "rod" and edges == pytest.approx((width // 2, 0, width, 8))
    (tmp_path / "labelme").mkdir()
    (tmp_path / "labelme" / "mine.json").write_text("{}")
    with pytest.raises(SelfsightError, match="is there already and holds something else"):
        selfsight.label(str(plates), kind="mask", export=str(tmp_path / "labelme"))
    painted.give(one, height, width, [region("cell", ring)])
    painted.give(two, height, width, [])
    with pytest.raises(SelfsightError, match="do not tell objects apart, so there is no box"):
        selfsight.label(str(plates), kind="mask", export=str(tmp_path / "out" / "voc"))


def test_the_server_refuses_what_the_page_does_not_send(items: Collection, serve: Callable[[Any], Any]) -> None:
    painted = Painted(items)
    with serve(painting(painted, Pictures(items), painted.ids, "plates")) as visitor:
        assert visitor.get("api/items/nobody?height=4&width=4").status == 404
        assert visitor.get(f"api/items/{painted.ids[0]}?height=0&width=4").status == 422
        assert visitor.post("api/mask", {"id": painted.ids[0], "height": 4, "width": 4, "regions": "x"}).status == 422
        bad = {"id": painted.ids[0], "height": 4, "width": 4, "regions": [{"name": "a", "told": False, "counts": "0"}]}
        assert "This is no mask" in visitor.post("api/mask", bad).json["what"]
    assert current(items) == {}


# -- the page --


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with chromium(tmp_path / "profile") as driver:
        driver.set_window_size(1200, 800)
        yield driver


def drag(driver: Any, *points: tuple[int, int]) -> None:
    """With the left button, from point to point of the view, from its middle."""
    from selenium.webdriver.common.action_chains import ActionChains

    view = driver.find_element("id", "view")
    chain = ActionChains(driver, duration=20).move_to_element_with_offset(view, *points[0]).click_and_hold()
    for before, point in pairwise(points):
        chain.move_by_offset(point[0] - before[0], point[1] - before[1])
    chain.release().perform()


def keys(driver: Any, *pressed: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for key in pressed:
        ActionChains(driver).send_keys(key).perform()


def until(driver: Any, holds: Callable[[], Any]) -> Any:
    import time

    end = time.monotonic() + 20
    while not (found := holds()):
        assert time.monotonic() < end, driver.find_element("tag name", "body").text
        time.sleep(0.02)
    return found


def test_what_is_painted_is_what_is_kept(
    items: Collection, serve: Callable[[Any], Any], browser: Any, tmp_path: Path
) -> None:
    painted = Painted(items)
    first, second = painted.ids[:2]
    height, width = painted.size(first)
    guessed = half(height, width)

    def guess(item: str) -> dict[str, Any] | None:
        return {"cell": dict(encode(guessed))} if item == second else None

    def saved() -> bool:
        return browser.find_element("id", "saved").text == "saved"

    with serve(painting(painted, Pictures(items), painted.ids, "plates", guess)) as visitor:
        browser.get(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        until(browser, lambda: browser.find_element("id", "name").text)
        keys(browser, "/", *"cell", "\ue007")
        drag(browser, (-60, 0), (60, 0))
        until(browser, saved)
        stroke = decode(current(items)[first]["cell"])
        ys, xs = np.nonzero(stroke)
        assert (
            stroke[height // 2, width // 2] and abs(ys.mean() - height / 2) < 1.5 and abs(xs.mean() - width / 2) < 1.5
        )
        assert not stroke[0].any() and not stroke[-1].any()
        keys(browser, "n")
        drag(browser, (-60, 120), (60, 120))
        until(browser, lambda: saved() and isinstance(current(items)[first]["cell"], list))
        objects = [decode(runs) for runs in current(items)[first]["cell"]]
        assert (objects[0] == stroke).all() and np.nonzero(objects[1])[0].mean() > height / 2 + 3
        keys(browser, "f")
        until(browser, lambda: saved() and "background" in current(items)[first])
        rest = decode(current(items)[first]["background"])
        assert (rest == ~(objects[0] | objects[1])).all()
        keys(browser, "z")
        until(browser, lambda: saved() and "background" not in current(items)[first])
        browser.save_screenshot(str(tmp_path / "paint.png"))
        with Image.open(tmp_path / "paint.png") as shot:
            assert shot.size[0] >= 1000
        keys(browser, "\ue007")
        until(browser, lambda: "guess" in browser.find_element("id", "suggestion").text)
        assert second not in current(items)  # a guess is nobody's answer yet
        keys(browser, "\ue007")
        until(browser, lambda: second in current(items) and saved())
        assert (decode(current(items)[second]["cell"]) == guessed).all()
        assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    again = open_source(items.about.location)
    assert json.dumps(sorted(Painted(again).marked)) == json.dumps(sorted([first, second]))
