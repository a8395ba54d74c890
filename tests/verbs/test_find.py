"""find: what is like a picture or a part of it comes first, against slow references and pictures composed with a known
thing."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder, write_folder
from PIL import Image

import selfsight
from selfsight.data.placements import Placement
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.alike import cells_in, spot
from selfsight.report.sheet import COLUMNS, GAP, LINE, TILE
from selfsight.verbs.find import FoundPictures, show

SIDE = 20  # px of the sprite


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "photos", 12)
    shutil.copy(folder / "004.png", folder / "again.png")
    shutil.copy(folder / "002.png", folder / "twice.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_order_is_that_of_the_cosines_and_copies_count_as_one(photos: Path, encoder: Encoder) -> None:
    found = selfsight.find(str(photos), model=encoder, like="004.png", count=20)
    embedded = selfsight.embed(str(photos), model=encoder)
    units = embedded.features / np.linalg.norm(embedded.features, axis=1, keepdims=True)
    cosines = dict(zip(embedded.uris, (units @ units[embedded.uris.index("004.png")]).tolist(), strict=True))
    wanted = sorted((name for name in cosines if name not in ("004.png", "again.png")), key=lambda n: -cosines[n])
    once = [name for name in wanted if name not in ("002.png", "twice.png")]
    shown = [each.uri for each in found.pictures]
    assert [name for name in shown if name not in ("002.png", "twice.png")] == once and len(shown) == len(once) + 1
    for each in found.pictures:
        assert each.similarity == pytest.approx(cosines[each.uri], abs=1e-4)
        assert each.copies == (each.uri in ("002.png", "twice.png"))
    assert sorted(found.same) == ["004.png", "again.png"] and (found.items, found.set_aside) == (14, 1)


def test_a_file_from_elsewhere_finds_the_item_with_its_pixels(photos: Path, encoder: Encoder, tmp_path: Path) -> None:
    Image.open(photos / "006.png").save(tmp_path / "mine.tif")  # the same pixels, other bytes
    found = selfsight.find(str(photos), model=encoder, like=str(tmp_path / "mine.tif"), count=3)
    assert found.pictures[0].uri == "006.png" and found.pictures[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert (found.like, found.same, len(found.pictures)) == ("mine.tif", [], 3)
    known = selfsight.find(str(photos), model=encoder, like=str(photos / "006.png"), count=1)
    assert known.same == ["006.png"] and known.pictures[0].uri != "006.png"


def compose(rng: np.random.Generator, sprite: bool, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """(a grey texture [H, W, 3], with or without a chequered red sprite; x0, y0 of the sprite)."""
    pixels = rng.normal(110, 12, (*size, 1)).repeat(3, 2)
    y, x = (int(rng.integers(0, side - SIDE)) for side in size)
    if sprite:
        chequers = np.indices((SIDE, SIDE)).sum(0) // 3 % 2
        pixels[y : y + SIDE, x : x + SIDE] = np.where(chequers[..., None], (230, 40, 30), (60, 10, 10))
    return pixels.clip(0, 255).astype(np.uint8), (x, y)


def drawn_in(found: FoundPictures) -> tuple[list[Image.Image], list[Image.Image]]:
    """(the pictures of the page: the marked one, then each twice; the tiles of the sheet: one of each)."""
    coded = re.findall('data:image/jpeg;base64,([^"]+)', Path(str(found.page)).read_text(encoding="utf-8"))
    tiles, (across, down) = [], (TILE + GAP, TILE + 2 * LINE + GAP)
    with Image.open(str(found.sheet)) as sheet:
        for i in range(1 + len(found.pictures)):
            x, y = GAP + i % COLUMNS * across, GAP + i // COLUMNS * down
            tiles.append(sheet.crop((x, y, x + TILE, y + TILE)))
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in coded], tiles


def marked(picture: Image.Image, size: tuple[int, int]) -> list[float]:
    """The edges of the box in a picture of a file of `size` W, H, in px of the file: of what is bluer than a scene or a
    map is. Within its line it hides nothing."""
    red, _, blue = np.moveaxis(np.asarray(picture.convert("RGB"), np.int64), 2, 0)
    line = blue - red > 60
    rows, columns = np.nonzero(line)
    assert not line[rows.min() + 6 : rows.max() - 5, columns.min() + 6 : columns.max() - 5].any()
    scale = max(size) / max(picture.size)
    bands = (np.array(picture.size) * scale - size) / 2  # beside it, in a square tile
    corners = np.array([(columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)])
    edges: list[float] = (corners * scale - bands).ravel().tolist()
    return edges


def check_drawn(found: FoundPictures, sizes: dict[str, tuple[int, int]]) -> None:
    """The boxes are where they are said to be, in the marked picture, and in each that was found, twice on the page and
    once on the sheet. sizes: W, H of the files."""
    names, boxes = [found.like, *(one.uri for one in found.pictures)], [found.box, *(one.box for one in found.pictures)]
    page, tiles = drawn_in(found)
    twice = [0, *(i for i in range(1, len(boxes)) for _ in range(2))]
    for i, picture in [*zip(twice, page, strict=True), *enumerate(tiles)]:
        size = sizes[names[i]]
        assert marked(picture, size) == pytest.approx(boxes[i], abs=max(size) / 80)


def test_a_marked_thing_is_found_where_it_is(encoder: Encoder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places: dict[str, tuple[int, int]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    (tmp_path / "scenes").mkdir()
    for i in range(24):
        size = ((64, 80), (90, 64))[i % 2]
        sizes[f"{i:02d}.png"] = size[::-1]
        pixels, places[f"{i:02d}.png"] = compose(rng, i % 3 > 0, size)
        Image.fromarray(pixels).save(tmp_path / "scenes" / f"{i:02d}.png")
    x, y = places["01.png"]
    box = (x, y, x + SIDE, y + SIDE)
    found = selfsight.find(str(tmp_path / "scenes"), model=encoder, like="01.png", box=box, out=str(tmp_path / "out"))
    first, rest = found.pictures[:15], found.pictures[15:]
    assert all(int(each.uri[:2]) % 3 for each in first) and len(rest) == 8 and found.looked_at == 23
    assert min(each.similarity for each in first) > max(each.similarity for each in rest)
    for each in first:
        assert each.box is not None
        (x0, y0, x1, y1), (x, y) = each.box, places[each.uri]
        assert x0 < x + SIDE / 2 < x1 and y0 < y + SIDE / 2 < y1 and max(x1 - x0, y1 - y0) < 3.1 * SIDE
    page = Path(str(found.page)).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1 + 2 * 23 and str(tmp_path) not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert json.loads((tmp_path / "out" / "find.json").read_text()) == found.to_dict()
    check_drawn(found, sizes)


def test_a_box_is_of_the_upright_picture(encoder: Encoder, tmp_path: Path) -> None:
    """A file that carries a quarter turn: the box is where a person sees the thing, and so is what is found."""
    rng = np.random.default_rng(1)
    (tmp_path / "turned").mkdir()
    pixels, (x, y) = compose(rng, True, (64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # as it lies, the upright picture is turned a quarter to the left
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned" / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    for i in range(3):
        Image.fromarray(compose(rng, False, (64, 96))[0]).save(tmp_path / "turned" / f"{i}.png")
    box = f"{x},{y},{x + SIDE},{y + SIDE}"
    folder = str(tmp_path / "turned")
    like, out = str(tmp_path / "upright.png"), str(tmp_path / "out")
    found = selfsight.find(folder, model=encoder, like=like, box=box, count=1, out=out)
    check_drawn(found, {"upright.png": (96, 64), "turned.png": (96, 64)})
    [first] = found.pictures
    assert first.uri == "turned.png" and first.similarity == pytest.approx(1.0, abs=0.02) and first.box is not None
    assert first.box[0] < x + SIDE / 2 < first.box[2] and first.box[1] < y + SIDE / 2 < first.box[3]


def test_cells_and_spots_by_hand() -> None:
    """A file of 80 x 40 in an input of 40 x 40 whose lower half is padding, with a grid of 4 x 4: a cell is 20 px."""
    at = Placement((40, 80), (0, 0, 80, 40), (40, 40), (20, 40))
    assert np.argwhere(cells_in((0, 0, 40, 20), at, (4, 4))).tolist() == [[0, 0], [0, 1]]
    assert np.argwhere(cells_in((61, 21, 64, 24), at, (4, 4))).tolist() == [[1, 3]]  # no centre: the cell it is in
    heat = np.zeros((4, 4))
    heat[0, 1:3] = (0.9, 0.5)
    heat[1, 3] = 0.8  # as high as half of the way, but not beside the best
    found = spot(heat, at)
    assert found.box == (20, 0, 60, 20) and found.likeness == 0.9 and found.level == 0.45
    assert found.map().shape == (40, 80) and found.map()[10, 30] == pytest.approx(0.975 * (0.975 * 0.9 + 0.025 * 0.5))


def test_an_encoder_of_one_size_sees_parts_too(tmp_path: Path) -> None:
    fixed = tiny_encoder(name="vit_tiny_patch16_224", dynamic_img_size=False)
    found = selfsight.find(str(write_folder(tmp_path / "p", 4)), model=fixed, like="000.png", box="0,0,20,20")
    assert len(found.pictures) == 3 and all(each.box for each in found.pictures)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"like": "000.pgn"}, "neither an item of .* nor a file. Did you mean 000.png"),
        ({"like": "broken.png"}, "broken.png cannot be read: "),
        ({"like": "{tmp}/list.txt"}, "is not one picture"),
        ({"like": "000.png", "box": "1,2,3"}, "four numbers of pixels, not '1,2,3'"),
        ({"like": "000.png", "box": "10,5,5,10"}, "which is 48 x 40 pixels"),
        ({"like": "000.png", "box": "48,0,60,40"}, "holds nothing of 000.png"),
        ({"like": "000.png", "box": "nan,0,60,40"}, "holds nothing of 000.png"),
        ({"like": "000.png", "count": 0}, "1 or more, not 0"),
        ({"like": "000.png", "out": "{tmp}/list.txt"}, "is a file"),
    ],
)
def test_mistakes_are_one_sentence(
    photos: Path, encoder: Encoder, tmp_path: Path, asked: dict[str, object], said: str
) -> None:
    (tmp_path / "list.txt").write_text("photos/000.png\n")
    words = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in asked.items()}
    with pytest.raises((SelfsightError, DataError), match=said):
        selfsight.find(str(photos), model=encoder, **words)  # type: ignore[arg-type]


def test_a_picture_that_is_alone_is_said(encoder: Encoder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", 1)
    with pytest.raises(DataError, match="no other to compare it with"):
        selfsight.find(str(folder), model=encoder, like="000.png")


def test_what_is_printed(photos: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    show(selfsight.find(str(photos), model=encoder, like="004.png", box="5.5,0,20,9", count=2))
    said = capsys.readouterr().out
    assert "Most like a part of 004.png, of 11 pictures:" in said and "Exact copies of it: again.png" in said
    assert "1 items set aside" in said and "-o FOLDER" in said and re.search(r"  1  \d\.\d{3}  \S+  at \d+,", said)
