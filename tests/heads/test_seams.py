"""Pictures in tiles: what a head says of them is what it says of the whole, without a step at the edges of tiles, and
takes memory for a row of tiles, not for the picture."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import tiny_encoder
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter
from whole_maps import blended, scores_to_file

from selfsight.data.geometry import Geometry
from selfsight.data.masks import Masks
from selfsight.data.placements import Placement, tiles
from selfsight.encoders.encoder import Encoder
from selfsight.heads.blending import Blend
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.inspect_modules import Conformal, Inspect, InspectModule, Patches, PatchMemory, chosen_levels
from selfsight.heads.inspect_voice import InspectAbout
from selfsight.heads.pictures import in_grey
from selfsight.heads.pictures import overlay as map_overlay
from selfsight.heads.placed import Placed, place
from selfsight.heads.scenes import KEPT, Sight
from selfsight.heads.segment import room_at
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.segment_maps import LARGE, Whole
from selfsight.heads.segment_modules import Calibrate, Readout, Segment, SegmentModule
from selfsight.heads.segment_pictures import COLOURS, SHARE, overlay
from selfsight.heads.segment_voice import SegmentAbout

TILE = 256  # px
REACH = 90  # px: half of what a patch at stride 16 sees (99), and half of its cell, smoothing and guiding (16 each)
SAID = {
    "method": "", "setting": "", "metrics": {}, "geometry": {}, "encoder": "", "licence": "", "intended_use": "",
    "items": 1,
}  # fmt: skip


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """[H, W, 3] uint8, grain of several sizes."""
    rng = np.random.default_rng(seed)
    grain = sum(gaussian_filter(rng.normal(0, 40 * s, (height, width, 3)), (s, s, 0)) for s in (1, 3, 10))
    return (128 + grain).clip(0, 255).astype(np.uint8)


def sized(size: int) -> Encoder:
    """A convolutional encoder with the strides 2 to 16, always of the same weights, for tiles of `size`."""
    encoder = tiny_encoder(32)
    encoder.geometry = replace(encoder.geometry, size=size, rule="tiles")
    return encoder.eval()


@torch.inference_mode()
def inspection(size: int) -> InspectHead:
    """A head that remembers patches of another texture."""
    encoder = sized(size)
    patches = Patches(chosen_levels(encoder.level_strides), torch.ones(2))
    levels = encoder.encode(encoder.geometry.to_input(texture(128, 128, 1)[None]), levels=True).levels
    assert levels is not None
    bank = patches(levels)[0].flatten(1).T[::7].clone()
    module = InspectModule(encoder, Inspect(patches, PatchMemory(bank)), Conformal(*torch.ones(3, 1)))
    about = InspectAbout(**SAID, false_alarms=0.05, promised=0.05, threshold=1.0, usual=0.5, good=1, defects=0)
    return InspectHead(None, about, module, pa.table({}))


def segmentation(size: int) -> SegmentHead:
    """A head of three classes, guided, that tells objects apart, with weights drawn at random."""
    encoder, draw = sized(size), torch.Generator().manual_seed(3)
    weight = 0.2 * torch.randn(5, sum(encoder.level_channels), generator=draw)
    task = Segment(Readout(encoder.level_channels, weight, torch.zeros(5)), 3, 4)
    calibrate = Calibrate(torch.tensor(1.0), torch.zeros(3), torch.tensor([0.0, 0.1, 0.2]))
    names = {"classes": ["background", "a", "b"], "numbers": [0, 1, 2], "told_apart": True}
    about = SegmentAbout(**SAID, **names, threshold=0.5, least=4, radius=4, held_out=0)
    return SegmentHead(None, about, SegmentModule(encoder, task, calibrate), pa.table({}))


def whole_of(head: SegmentHead, one: Placed) -> Whole:
    """The maps of a file, from each of its inputs alone."""
    answers = []
    for pixels in one.inputs:
        with torch.inference_mode():
            found = head.module(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        answers.append({name: tensor[0].numpy() for name, tensor in found.items()})
    return Whole(answers, one.placements, head.lean)


def maps_of(kind: str, size: int, pixels: np.ndarray) -> tuple[np.ndarray, list[Placement]]:
    """Maps [K, H, W] of a picture by a head with inputs of `size`, and where these lie."""
    head = inspection(size) if kind == "inspect" else segmentation(size)
    one = place(0, pixels, head.encoder.geometry, max(head.encoder.level_strides), None)
    if isinstance(head, InspectHead):
        (told,) = head.judge([one])
        assert told.map is not None
        return told.map[None], one.placements
    whole = whole_of(head, one)
    assert whole.centre is not None and whole.boundary is not None
    return np.concatenate([whole.probabilities, whole.centre[None], whole.boundary[None]]), one.placements


def inner_edges(placements: list[Placement], axis: int) -> list[int]:
    """Where tiles begin or end along an axis (0: columns), but at the edges of the file."""
    ends = {each.source[side] for each in placements for side in (axis, axis + 2)}
    return sorted(ends - {0, placements[0].file[1 - axis]})


@pytest.mark.parametrize("kind", ["inspect", "segment"])
def test_tiles_agree_with_the_whole(kind: str) -> None:
    pixels = texture(448, 640)
    whole, (alone,) = maps_of(kind, 640, pixels)
    found, placements = maps_of(kind, TILE, pixels)
    assert len(placements) == 6 and alone.valid == (448, 640)
    spread = whole.std((1, 2), keepdims=True)
    off = np.abs(found - whole) / spread
    clear = np.ones(whole.shape[1:], bool)  # where no tile sees an edge that is not the file's
    for axis, side in ((0, 1), (1, 0)):
        for edge in inner_edges(placements, axis):
            near = np.abs(np.arange(whole.shape[1 + side]) + 0.5 - edge) < REACH
            clear &= ~(near[None] if side else near[:, None])
    assert 0.05 < clear.mean() < 0.5
    assert off[:, clear].max() < 5e-3  # of the map's standard deviation; running sums of the guided filter in float32
    assert off.mean() < 0.02 and np.quantile(off, 0.99) < 0.3


def steps(off: np.ndarray, placements: list[Placement]) -> list[float]:
    """How much `off` [K, H, W] changes where tiles begin or end, as part of the most that it changes from one of the 16
    columns or rows on both sides to the next: above 1 a line shows."""
    found = []
    for axis in (0, 1):
        jumps = np.abs(np.diff(off, axis=2 - axis)).mean(2 - (1 - axis))  # [K, along the axis]
        edges = np.array(inner_edges(placements, axis), int) - 1
        for edge in edges:
            beside = np.setdiff1d(np.arange(max(0, edge - 16), min(edge + 17, jumps.shape[1])), edges)
            found += (jumps[:, edge] / jumps[:, beside].max(1)).tolist()
    return found


@pytest.mark.parametrize("kind", ["inspect", "segment"])
def test_no_step_shows_where_tiles_begin_and_end(kind: str) -> None:
    pixels = texture(600, 700, 2)
    found, placements = maps_of(kind, TILE, pixels)
    assert len({each.source for each in placements}) == 12 and placements[-1].source[:2] == (700 - 256, 600 - 256)
    assert max(steps(found, placements)) < 1.25
    assert max(steps(found - maps_of(kind, 700, pixels)[0], placements)) < 1.25


def test_a_plain_mean_has_steps() -> None:
    """The test above can fail: of tiles that count alike up to their edges."""
    pixels, head = texture(600, 700, 2), inspection(TILE)
    one = place(0, pixels, head.encoder.geometry, 16, None)
    drawn = []
    for each in one.inputs:
        with torch.inference_mode():
            drawn.append(head.module.raw(torch.from_numpy(each).permute(2, 0, 1)[None])["map"][0].numpy())
    off = scores_to_file(drawn, one.placements)[None] - maps_of("inspect", 700, pixels)[0]
    assert min(steps(off, one.placements)) > 2.5


def test_tiles_are_weighed_by_how_far_their_edges_are() -> None:
    """Each pixel by itself; of some tiles only, as where --roi leaves some out."""
    rng = np.random.default_rng(0)
    every = tiles(90, 150, 64, 16)
    some = [every[k] for k in (0, 1, 5, len(every) - 1)]
    maps = [rng.normal(size=(2, *each.size)) for each in some]
    found = blended(maps, some)
    for y in range(0, 90, 3):
        for x in range(0, 150, 7):
            total, weights = np.zeros(2), 0.0
            for scores, each in zip(maps, some, strict=True):
                x0, y0, x1, y1 = each.source
                if x0 <= x < x1 and y0 <= y < y1:
                    weight = 1.0
                    for at, start, stop, side in ((x, x0, x1, 150), (y, y0, y1, 90)):
                        far = [at + 0.5 - start] * (start > 0) + [stop - at - 0.5] * (stop < side)
                        weight *= max(min([64, *far]) / 64 - 1 / 16, 1e-6)
                    total += weight * scores[:, y - y0, x - x0]
                    weights += weight
            if weights:
                assert found[:, y, x] == pytest.approx(total / weights, rel=1e-4, abs=1e-5)
            else:
                assert np.isnan(found[:, y, x]).all()


def test_of_one_input_the_map_is_as_it_was() -> None:
    rng = np.random.default_rng(0)
    for rule, size in (("fit", 64), ("squash", 48), ("fit", 700)):
        geometry = replace(Geometry(1, 64, (0.0, 255.0), (0.0,), (1.0,)), size=size, rule=rule)
        placements = geometry.placements(560, 331, 16)
        maps = [rng.normal(size=(3, *placements[0].size)).astype(np.float32)]
        assert (blended(maps, placements) == scores_to_file(maps, placements)).all()


def test_no_more_than_a_row_of_tiles_is_held() -> None:
    placements = tiles(8000, 500, 224, 32)
    blend, scores = Blend(placements), np.ones((4, 224, 224), np.float32)
    seen = 0
    tracemalloc.start()
    for _ in placements:
        for rows, found in blend.add(scores):
            assert rows.start == seen and np.allclose(found, 1.0)
            seen = rows.stop
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 8000
    assert peak < 0.5 * 4 * 4 * 8000 * 500  # half of one whole float32 map of the four


def test_the_maps_of_a_segmentation_against_a_plain_reference() -> None:
    head = segmentation(TILE)
    one = place(0, texture(300, 420, 4), replace(head.encoder.geometry, rule="fit"), 16, None)
    whole = whole_of(head, one)
    with torch.inference_mode():
        told = {k: v[0].numpy() for k, v in head.module(torch.from_numpy(one.inputs[0]).permute(2, 0, 1)[None]).items()}
    wanted = scores_to_file([told["probabilities"]], one.placements)
    lean = np.array([0.0, 0.1, 0.2])[:, None, None]
    assert whole.probabilities.dtype == np.float32 and (whole.probabilities == wanted).all()
    assert (whole.mask == (np.log(wanted) + lean).argmax(0)).mean() > 0.9999
    chosen = np.take_along_axis(wanted, whole.mask[None].astype(int), 0)
    assert whole.score == pytest.approx(chosen.mean(), rel=1e-5)
    (judged,) = head.judge([one])
    assert (judged.mask == whole.mask).all() and judged.score == pytest.approx(whole.score, rel=1e-5)
    assert (judged.grey == in_grey(one.pixels, head.encoder.geometry)).all()


def test_a_large_picture_is_kept_in_half_precision() -> None:
    side = int(LARGE**0.5) + 8
    placements = tiles(side, side, 512, 32)
    rng = np.random.default_rng(0)
    answers = []
    for each in placements:
        first = rng.uniform(0.1, 0.9) * np.ones(each.size, np.float32)
        answers.append({"probabilities": np.stack([first, 1 - first])})
    whole = Whole(answers, placements, np.zeros(2, np.float32))
    wanted = blended([each["probabilities"] for each in answers], placements)
    assert whole.probabilities.dtype == np.float16 and whole.mask.dtype == np.uint8
    assert np.abs(whole.probabilities - wanted).max() < 5e-4
    assert (whole.mask == wanted.argmax(0)).all()


def test_overlays_in_strips_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    shape = (1100, 90)
    grey = rng.integers(0, 256, shape).astype(np.uint8)
    mask = (gaussian_filter(rng.normal(size=shape), 6) > 0.02).astype(np.uint8) * rng.integers(
        1, 3, (1100, 1), np.uint8
    )
    objects = np.where(mask > 0, np.arange(1100)[:, None] // 40 + 1, 0).astype(np.int32)
    colours = np.array([(0, 0, 0), *COLOURS[:2]])
    share = np.where(mask > 0, SHARE, 0.0)[:, :, None]
    drawn = (1 - share) * grey[:, :, None] + share * colours[mask]
    for values in (mask, objects):
        edge = (maximum_filter(values, 5) != minimum_filter(values, 5)) & (mask > 0)
        drawn[edge] = 0.35 * drawn[edge] + 0.65 * (colours[mask][edge] if values is mask else 255)
    assert (np.asarray(overlay(grey, mask, objects)) == drawn.round()).all()
    assert np.asarray(map_overlay(grey, np.zeros(shape, np.float32), 0.5, 1.0))[:, :, 0].tolist() == grey.tolist()


def test_pictures_in_tiles_are_counted_by_their_tiles() -> None:
    """How many pictures are compared on while a segmentation is learnt, by what they take in memory, a large one at
    most half of it."""
    encoder = tiny_encoder(32)
    sight = Sight(encoder, 256, "tiles")
    levels = encoder.encode(torch.zeros(1, 3, 256, 256), levels=True).levels
    assert levels is not None
    each = sum(2 * level.numel() for level in levels)  # bytes in half precision, of an input
    each += 256 * 256 * (4 + 8 + 8 + 2 * 2 * (3 + 2))  # grey, class, centre and boundary, and two times its scores
    for side, inputs in ((256, 1), (448, 4), (1500, 64), (6000, 961)):
        rows = pa.table({"height": [side, side], "width": [side, side]})
        assert len(tiles(side, side, 256, 16)) == inputs
        masks = Masks(SimpleNamespace(rows=rows), ({}, {}), ("background", "a", "b"), True)  # type: ignore[arg-type]
        assert sight.bytes_of(3) == each and sight.room(3) == KEPT // 2 // each
        assert room_at(sight, masks) == (KEPT // (each * inputs) if inputs < 961 else 2)
