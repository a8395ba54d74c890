"""Views of a plan: a function of (seed, epoch, item, view) and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import PLAIN, batch_of, picture

from selfsight.data.collection import item_id
from selfsight.data.geometry import Geometry
from selfsight.views.crops import pyramid, sample
from selfsight.views.make import View, make_views
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

NORMALISE = Geometry(3, 32, (0.0, 255.0), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
UNIT = Geometry(3, 32, (0.0, 255.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IDS = [item_id("x", str(i)) for i in range(10)]
STRONG = Colour(blur=0.5)


def canvases(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [picture(rng, h, w) for h, w in sizes]


def same(one: View, two: View) -> bool:
    return torch.equal(one.pixels, two.pixels) and torch.equal(one.affine, two.affine)


def difference_in_other_batches(arrays: list[np.ndarray], plan: ViewPlan) -> float:
    """The largest change of any item's views when it is in other batches, in other places."""
    whole = make_views(batch_of(arrays, IDS[: len(arrays)]), plan, UNIT, 3)
    worst = 0.0
    for chosen in ([2, 0, 1], [1], [0], [4, 3], list(range(len(arrays)))[::-1]):
        part = make_views(batch_of([arrays[i] for i in chosen], [IDS[i] for i in chosen]), plan, UNIT, 3)
        for one, two in zip(whole, part, strict=True):
            assert two.ids == [IDS[i] for i in chosen]
            assert torch.equal(one.affine[chosen], two.affine)
            worst = max(worst, float((one.pixels[chosen] - two.pixels).abs().max()))
    return worst


@pytest.mark.parametrize("size", [12, 20, 40])
def test_an_items_crops_are_the_same_bytes_in_any_batch(size: int):
    plan = ViewPlan((ViewGroup(2, size, colour=PLAIN), ViewGroup(1, size + 3, scale=(0.05, 1.0), colour=PLAIN)))
    assert difference_in_other_batches(canvases([(48, 48)] * 6), plan) == 0.0


@pytest.mark.parametrize("size", [12, 20, 40])
def test_an_items_views_with_colour_are_the_same_bytes_in_any_batch(size: int):
    plan = ViewPlan((ViewGroup(2, size, colour=STRONG),))
    assert difference_in_other_batches(canvases([(48, 48)] * 6), plan) == 0.0


@pytest.mark.parametrize("size, scale", [(40, (0.2, 1.0)), (14, (0.8, 1.0)), (10, (0.8, 1.0)), (5, (0.8, 1.0))])
def test_the_padding_of_mixed_shapes_is_not_seen(size: int, scale: tuple[float, float]):
    # A canvas is padded to the largest of its batch. Coordinates are then divided by other sides, so the last
    # bits may differ, and no more: from the canvas itself (40) and from the levels of the pyramid (14, 10, 5).
    plan = ViewPlan((ViewGroup(4, size, scale=scale, colour=PLAIN),))
    arrays = canvases([(36, 48), (48, 36), (37, 41), (33, 64), (36, 36)])
    assert difference_in_other_batches(arrays, plan) < 1e-5


def test_epoch_seed_item_view_and_group_each_change_the_view():
    arrays = [canvases([(40, 40)])[0]] * 2  # two items of the same pixels
    plan = ViewPlan((ViewGroup(2, 16), ViewGroup(1, 16)))
    views = make_views(batch_of(arrays, IDS[:2]), plan, NORMALISE, 0)
    later = make_views(batch_of(arrays, IDS[:2], epoch=1), plan, NORMALISE, 0)
    other = make_views(batch_of(arrays, IDS[:2]), plan, NORMALISE, 1)
    seen = torch.cat([v.pixels for v in [*views, *later, *other]])
    affines = torch.cat([v.affine for v in [*views, *later, *other]])
    assert len({x.numpy().tobytes() for x in seen}) == 18
    assert len({x.numpy().tobytes() for x in affines}) == 18
    again = make_views(batch_of(arrays, IDS[:2]), plan, NORMALISE, 0)
    assert all(same(a, b) for a, b in zip(views, again, strict=True))


def test_pixels_are_what_the_affine_says():
    arrays = canvases([(60, 80)] * 4)
    plan = ViewPlan((ViewGroup(3, 12, scale=(0.1, 1.0), colour=PLAIN),))
    batch = batch_of(arrays, IDS[:4])
    for view in make_views(batch, plan, UNIT, 0):
        levels = pyramid(batch.pixels[:, 0].float() / 255, 3)
        assert (sample(levels, view.affine.double().numpy(), 12) - view.pixels).abs().max() < 1e-4


def test_normalisation_window_mean_and_deviation():
    deep = Geometry(1, 32, (100.0, 300.0), (0.5,), (0.25,))
    pixels = torch.tensor([50, 100, 200, 300, 1000], dtype=torch.int32).to(torch.uint16).view(1, 1, 5)
    unit = deep.to_unit(pixels)
    assert unit.flatten().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert deep.normalise(unit).flatten().tolist() == [-2.0, -2.0, 0.0, 2.0, 2.0]
    assert torch.allclose(deep.undo(deep.normalise(unit)), unit)
    three = NORMALISE.normalise(torch.tensor([0.7, 0.65, 0.6]).view(3, 1, 1)).flatten()
    assert torch.allclose(three, torch.tensor([1.0, 1.0, 1.0]))


def test_make_views_normalises_and_leaves_the_batch_alone():
    batch = batch_of(canvases([(30, 30)] * 2), IDS[:2])
    kept = batch.pixels.clone()
    plan = ViewPlan((ViewGroup(1, 16, colour=PLAIN),))
    (unit,), (normal,) = make_views(batch, plan, UNIT, 0), make_views(batch, plan, NORMALISE, 0)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    assert torch.allclose(normal.pixels * std + mean, unit.pixels, atol=1e-6)
    assert torch.equal(batch.pixels, kept)


@pytest.mark.parametrize("shared", [set(), {"geometry"}, {"colour"}, {"geometry", "colour"}])
def test_shared_randomness(shared: set[str]):
    group = ViewGroup(3, 16, colour=Colour(jitter=1, brightness=0.8), shared=frozenset(shared))
    one, two, three = make_views(batch_of(canvases([(40, 40)] * 3), IDS[:3]), ViewPlan((group,)), NORMALISE, 0)
    assert torch.equal(one.affine, two.affine) == torch.equal(two.affine, three.affine) == ("geometry" in shared)
    assert torch.equal(one.pixels, two.pixels) == (len(shared) == 2)
    # With one geometry for both, the same colour twice is the same view and a different colour is not.
    whole = replace(group, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    one, two, _ = make_views(batch_of(canvases([(40, 40)] * 3), IDS[:3]), ViewPlan((whole,)), NORMALISE, 0)
    assert torch.equal(one.pixels, two.pixels) == ("colour" in shared)


def test_two_sizes_and_their_scales():
    plan = ViewPlan((ViewGroup(2, 24, scale=(0.5, 1.0)), ViewGroup(4, 12, scale=(0.05, 0.2))))
    views = make_views(batch_of(canvases([(64, 64)] * 8), IDS[:8]), plan, NORMALISE, 0)
    assert [(v.group, v.pixels.shape[-1]) for v in views] == [(0, 24)] * 2 + [(1, 12)] * 4
    for view in views:
        side = torch.tensor([24.0, 12.0])[view.group]
        share = (view.affine[:, 0, 0].abs() * view.affine[:, 1, 1]) * side**2 / 64**2
        low, high = [(0.4, 1.0), (0.05, 0.2)][view.group]  # what leaves the canvas is cut, so 0.5 is not strict
        assert (share >= low - 1e-5).all() and (share <= high + 1e-5).all()


def test_draws_of_ones_own_are_of_the_item_and_the_view():
    ids = [item_id("k", str(i)) for i in range(500)]
    arrays = canvases([(4, 4)]) * 500
    plan = ViewPlan((ViewGroup(2, 8, draws=16, colour=PLAIN), ViewGroup(1, 8, colour=PLAIN)))
    one, two, none = make_views(batch_of(arrays, ids), plan, NORMALISE, 0)
    assert none.draws is None and one.draws is not None and two.draws is not None
    assert one.draws.shape == (500, 16) and one.draws.min() >= 0 and one.draws.max() < 1
    counts = torch.histc(one.draws, 16, 0, 1).double()
    assert ((counts - 500) ** 2 / 500).sum() < 45  # chi-square, 15 degrees of freedom
    assert not torch.equal(one.draws, two.draws)
    alone = make_views(batch_of(arrays[:1], ids[7:8]), plan, NORMALISE, 0)[0]
    assert torch.equal(alone.draws, one.draws[7:8])


def test_frames_of_a_clip_share_geometry_and_colour():
    arrays = canvases([(40, 40)] * 2)
    batch = batch_of(arrays, IDS[:2])
    batch.pixels = batch.pixels.repeat(1, 3, 1, 1, 1)  # the same picture three times
    batch.shapes = batch.shapes.repeat(1, 3, 1)
    plan = ViewPlan((ViewGroup(2, 16, colour=STRONG),), companion="frames")
    for view in make_views(batch, plan, NORMALISE, 0):
        assert view.pixels.shape == (2, 3, 3, 16, 16)
        assert torch.equal(view.pixels[:, 0], view.pixels[:, 1]) and torch.equal(view.pixels[:, 1], view.pixels[:, 2])
    # And frames stay in their order.
    batch.pixels = batch.pixels.clone()
    batch.pixels[:, 0], batch.pixels[:, 1], batch.pixels[:, 2] = 50, 100, 150
    plain = ViewPlan((ViewGroup(1, 16, colour=PLAIN),), companion="frames")
    means = make_views(batch, plain, UNIT, 0)[0].pixels.mean((0, 2, 3, 4)) * 255
    assert torch.allclose(means, torch.tensor([50.0, 100.0, 150.0]), atol=0.01)


def test_group_companions_alternate():
    batch = batch_of(canvases([(40, 40)] * 2), IDS[:2])
    pixels = torch.stack([torch.full((2, 3, 40, 40), 50), torch.full((2, 3, 40, 40), 200)], 1).to(torch.uint8)
    batch.pixels, batch.shapes = pixels, batch.shapes.repeat(1, 2, 1)
    plan = ViewPlan((ViewGroup(4, 16, colour=PLAIN),), companion="group")
    means = [float(v.pixels.mean() * 255) for v in make_views(batch, plan, UNIT, 0)]
    assert means == pytest.approx([50, 200, 50, 200], abs=0.01)


def test_a_crop_of_a_padded_canvas_stays_within_the_canvas():
    small, large = np.full((20, 20, 3), 60, np.uint8), np.full((50, 50, 3), 200, np.uint8)
    batch = batch_of([small, large], IDS[:2])
    batch.pixels[0, 0, :, 20:] = 255  # were the padding sampled, it would show
    batch.pixels[0, 0, :, :, 20:] = 255
    plan = ViewPlan((ViewGroup(30, 16, scale=(0.1, 0.3), colour=PLAIN),))
    for view in make_views(batch, plan, UNIT, 0):
        corners = view.affine[0] @ torch.tensor([[0.0, 16.0], [0.0, 16.0], [1.0, 1.0]])
        assert corners.min() >= -1e-4 and corners.max() <= 20 + 1e-4


def test_union_of_plans_shares_equal_groups():
    a, b = ViewGroup(2, 32), ViewGroup(4, 16)
    plan = ViewPlan((a,)).union(ViewPlan((replace(a, count=6), b)))
    assert plan.groups == (replace(a, count=6), b) and plan.count == 10 and plan.largest == 32
    with pytest.raises(ValueError, match="companions"):
        ViewPlan((a,)).union(ViewPlan((a,), companion="frames"))
