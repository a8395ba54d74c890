"""Faults of pixels: planted by the test among pictures of all kinds of depth, each found, and none where none is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import picture, write_folder
from PIL import Image
from scipy.ndimage import gaussian_filter

from selfsight.curation.pixels import (
    Measures,
    exact_duplicates,
    measure,
    odd_channels,
    of_pixels,
    pixel_faults,
    tail_above,
)
from selfsight.curation.ranking import Ranking
from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.errors import MachineError

SHAPE = (96, 128)


def faults_of(grey: np.ndarray) -> dict[str, np.ndarray]:
    """What can be made of a sound picture [H, W], 0 to 1, by its kind of fault."""
    return {
        "dark": 0.1 * grey,
        "bright": 0.95 + 0.05 * grey,
        "blurred": gaussian_filter(grey, 4),
        "low_information": np.round(grey) * 0.4 + 0.3,
        "odd_size": grey[:20, :28],
        "odd_ratio": grey[:24],
    }


def plant(folder: Path, depth: int, count: int = 40) -> None:
    """`count` sound pictures and one of each fault, named after it, of 8 bits, of 16, or of float."""
    rng = np.random.default_rng(0)
    folder.mkdir()

    def save(name: str, grey: np.ndarray) -> None:
        if depth == 8:
            Image.fromarray((255 * grey).round().astype(np.uint8)).save(folder / f"{name}.png")
        elif depth == 16:
            Image.fromarray((3000 + 20000 * grey).astype(np.uint16)).save(folder / f"{name}.png")
        else:
            Image.fromarray((40.0 * grey - 7.0).astype(np.float32)).save(folder / f"{name}.tiff")

    for i in range(count):
        save(f"{i:03d}", picture(rng, *SHAPE, channels=1) / 255)
    for kind, grey in faults_of(picture(rng, *SHAPE, channels=1) / 255).items():
        save(kind, grey)


@pytest.mark.parametrize("depth", [8, 16, 32])
def test_every_planted_fault_is_found_first_and_alone(tmp_path: Path, depth: int):
    plant(tmp_path / "photos", depth)
    items = open_source(tmp_path / "photos")
    found = pixel_faults(measure(items, items.usable, measure_format(items)))
    names = [Path(uri).stem for uri in items.usable["uri"].to_pylist()]
    for ranking in found:
        assert names[ranking.numbers[0]] == ranking.kind, ranking.kind
        flagged = {names[number] for number in ranking.numbers[: ranking.estimated]}
        assert not any(name.isdigit() for name in flagged), (ranking.kind, flagged)
        assert ranking.kind in flagged
        assert (np.diff(ranking.score) <= 0).all() and ranking.score.min() >= 0.0 and ranking.score.max() <= 1.0


def test_nothing_is_found_among_pictures_of_one_kind(tmp_path: Path):
    """Neither in usual ones nor in those that are dark, blurred and small one like the other."""
    for kind in ("usual", "blurred"):
        rng = np.random.default_rng(1)
        (tmp_path / kind).mkdir()
        for i in range(60):
            pixels = picture(rng, 48, 64)
            pixels = pixels if kind == "usual" else (0.2 * gaussian_filter(pixels, (3, 3, 0))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
        items = open_source(tmp_path / kind)
        found = pixel_faults(measure(items, items.usable, measure_format(items)))
        assert {ranking.kind: ranking.estimated for ranking in found if ranking.estimated} == {}


def test_measures_are_what_their_names_say():
    """Against a slow reference: quantiles by sorting, entropy by counting, the Laplacian by its neighbours."""
    grey = np.random.default_rng(2).integers(0, 256, (30, 40)) ** 2 / 65025
    grey = np.round(grey * 255) / 255
    levels = np.sort(grey.ravel())
    padded = np.pad(grey, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    shares = [np.mean(grey == level) for level in np.unique(grey)]
    found = of_pixels(grey)
    assert found["dark"] == pytest.approx(-np.log2(levels[int(np.ceil(0.99 * 1200)) - 1] + 1 / 64))
    assert found["bright"] == pytest.approx(-np.log2(1 - levels[int(np.ceil(0.05 * 1200)) - 1] + 1 / 64))
    assert found["blurred"] == pytest.approx(-np.log10(laplacian.var() / grey.var()), abs=1e-3)
    assert found["low_information"] == pytest.approx(sum(share * np.log2(share) for share in shares))


def test_contrast_is_not_sharpness_and_light_is_neither():
    grey = picture(np.random.default_rng(3), 64, 64, channels=1) / 255
    paler = of_pixels(0.3 + 0.4 * grey)
    assert paler["blurred"] == pytest.approx(of_pixels(grey)["blurred"], abs=0.05)


def test_few_sound_items_are_called_faults():
    """Of 200 collections of sound items, in heavy tails too, at most a hundredth of the items."""
    rng, flagged, many = np.random.default_rng(4), 0, 500
    for draw in range(200):
        values = rng.standard_normal(many) if draw % 2 else rng.logistic(size=many)
        nothing = np.full(many, np.nan)
        values = dict.fromkeys(("dark", "bright", "low_information", "odd_size", "odd_ratio"), nothing) | {
            "blurred": values
        }
        flagged += sum(ranking.estimated for ranking in pixel_faults(Measures(values, {}, np.empty(0))))
    assert flagged <= 0.01 * 200 * many


def test_the_share_of_sound_items_beyond_is_that_of_a_logistic_distribution():
    values = np.random.default_rng(5).logistic(3.0, 2.0, 100_000)
    beyond = tail_above(values, 1e-9)
    for level in (0.1, 0.01, 0.001):
        assert (beyond <= level).mean() == pytest.approx(level, rel=0.3)


def test_channels_are_odd_only_where_nine_in_ten_have_others():
    assert odd_channels(["RGB"] * 18 + ["L", "RGBA"]).numbers.tolist() == [18, 19]
    assert odd_channels(["RGB"] * 8 + ["L", "L"]).numbers.tolist() == []
    assert odd_channels([]).estimated == 0


def test_copies_are_paired_with_the_first_of_them():
    found: Ranking = exact_duplicates(["a", "b", "a", "c", "b", "a"])
    assert found.numbers.tolist() == [[0, 2], [1, 4], [0, 5]] and found.estimated == 3


def test_small_pictures_that_find_no_room_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = open_source(write_folder(tmp_path / "photos", 4))
    monkeypatch.setattr("selfsight.curation.pixels.free_bytes", lambda: 10_000)
    with pytest.raises(MachineError, match=r"Small copies of 4 pictures need .* SELFSIGHT_CACHE"):
        measure(items, items.usable, measure_format(items))
