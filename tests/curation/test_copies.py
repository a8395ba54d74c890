"""Near duplicates: each change that makes one is seen through, and like parts are told apart."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from selfsight.curation.copies import candidates, groups_of, looks, near_duplicates
from selfsight.curation.overlay import agreement
from selfsight.probing.neighbours import neighbour_graph

SIDE = 96


def texture(seed: int) -> Image.Image:
    """A drawn scene: coarse shapes with finer structure over them, in colour."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (width, width, 0)) * width for width in (2, 5, 12)]
    values = sum(layers)
    values = (values - values.mean()) / values.std()
    return Image.fromarray((128 + 45 * values).clip(0, 255).astype(np.uint8))


def small(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1)


def compressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": lambda picture: picture.crop((8, 14, 82, 90)),
    "flip": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "transpose": lambda picture: picture.transpose(Image.Transpose.TRANSVERSE),
    "jpeg": compressed,
    "brightness": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "resize": lambda picture: picture.resize((50, 40)),
    "all": lambda picture: compressed(
        ImageEnhance.Brightness(picture.crop((4, 10, 86, 90)).transpose(Image.Transpose.ROTATE_270)).enhance(1.2)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_agrees_whichever_of_the_two_is_first(change: str) -> None:
    picture = texture(1)
    one, other = (small(each).mean(0) for each in (picture, CHANGES[change](picture)))
    found = agreement(np.stack([one, other]), np.stack([other, one]))
    assert found.min() > 0.75


def test_pictures_that_share_nothing_do_not_agree() -> None:
    pictures = np.stack([small(texture(seed)).mean(0) for seed in range(20)])
    assert agreement(pictures, np.roll(pictures, 1, axis=0)).max() < 0.4


def parts(count: int) -> np.ndarray:
    """Pictures of parts of one make in one place: the same outlines, each with a grain of its own."""
    rows, columns = np.mgrid[:64, :64]
    outline = 120.0 * (np.hypot(rows - 32, columns - 30) < 20) + 60.0 * (abs(columns - 50) < 5)
    rng = np.random.default_rng(3)
    grain = np.stack([gaussian_filter(rng.normal(size=(64, 64)), 1.2) for _ in range(count)])
    return (outline + 50 + 12 * grain / grain.std())[:, None].clip(0, 255).astype(np.uint8)


def test_like_parts_are_not_called_copies() -> None:
    made = parts(60)
    copy = np.rint(made[:2, :, ::-1] * 0.9).astype(np.uint8)  # of two of them, flipped and darker
    pictures = np.concatenate([made, copy])
    units = np.random.default_rng(0).normal(size=(62, 8)) * 0.05 + np.eye(8)[0]
    units[60:] = units[:2] + 0.01
    units = (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32)
    found = near_duplicates(units, neighbour_graph(units), lambda numbers: pictures[numbers])
    assert {tuple(pair) for pair in found.numbers[: found.estimated].tolist()} == {(0, 60), (1, 61)}
    assert found.low <= 2 <= found.high


def test_copies_are_found_that_the_encoder_does_not_see_and_leaks_come_first() -> None:
    scenes = [texture(seed) for seed in range(60)]
    changed = [CHANGES[name](scenes[number]) for number, name in enumerate(CHANGES)]
    pictures = np.stack([small(each) for each in [*scenes, *changed]])
    units = np.random.default_rng(0).normal(size=(len(pictures), 32)).astype(np.float32)
    near = [0, 4, 5, 6]  # the encoder knows these changes, and has never seen a turned picture
    units[[60 + number for number in near]] = units[near] + 0.1
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    split = np.zeros(len(pictures), int)
    split[[3, 64]] = 1  # the pairs 3 and 4 lie across
    found = near_duplicates(units, neighbour_graph(units, 5), lambda numbers: pictures[numbers], split)
    sure = [tuple(pair) for pair in found.numbers[: found.estimated].tolist()]
    wanted = {(number, 60 + number) for number in range(len(CHANGES))}
    assert {*sure[:2]} == {(3, 63), (4, 64)} and {*sure} <= wanted
    assert len({*sure}) >= len(wanted) - 1  # a crop that is turned too may be missed
    assert (np.diff(found.score[2 : found.estimated]) <= 0).all() and found.score[found.estimated :].max() < 0.5


def test_looks_are_the_same_whichever_way_a_picture_is_turned() -> None:
    picture = small(texture(5)).astype(np.float32)[None]
    turned = [np.rot90(side, quarter, (2, 3)) for side in (picture, picture[..., ::-1]) for quarter in range(4)]
    assert np.ptp([looks(each)[0] for each in turned], axis=0).max() < 1e-4
    assert np.abs(looks(picture) - looks(small(texture(6))[None])).max() > 0.1


def test_candidates_are_the_pairs_of_both_graphs() -> None:
    rng = np.random.default_rng(0)
    units, look = (rng.normal(size=(40, 4)).astype(np.float32) for _ in range(2))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    graph = neighbour_graph(units, 3)
    wanted = set()
    for vectors, count in ((units, 3), (look / np.linalg.norm(look, axis=1, keepdims=True), 10)):
        for one in range(40):
            others = sorted((other for other in range(40) if other != one), key=lambda o: -vectors[one] @ vectors[o])
            wanted |= {tuple(sorted((one, other))) for other in others[:count]}
    found = candidates(units, graph, look)
    assert len(found) == len(wanted) and {tuple(pair) for pair in found.tolist()} == wanted


def test_groups_are_what_pairs_link() -> None:
    pairs = np.array([[0, 1], [1, 5], [3, 4]])
    assert groups_of(pairs, 7).tolist() == [0, 0, 1, 2, 2, 0, 3]
    numbers = groups_of(pairs, 7, np.array([0, 1, 2, 2, 3, 4, 5]))  # 2 and 3 are one patient
    assert numbers[2] == numbers[3] == numbers[4] != numbers[0] == numbers[5] and numbers[6] not in numbers[:6]
    assert groups_of(np.empty((0, 2), np.int64), 3).tolist() == [0, 1, 2]


def test_of_one_item_there_are_no_copies() -> None:
    one = np.ones((1, 4), np.float32)
    found = near_duplicates(one, neighbour_graph(one), lambda numbers: np.zeros((len(numbers), 1, 64, 64), np.uint8))
    assert found.numbers.shape == (0, 2) and found.estimated == 0
