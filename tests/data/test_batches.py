"""Which items make up a step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from copy import copy
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import collection_of, garble, make_batches, make_canvases, picture
from PIL import Image

from selfsight.data.batches import Batches, collate
from selfsight.data.canvases import Canvases, Resident, Streamed
from selfsight.data.importers import open_source
from selfsight.errors import SelfsightError
from selfsight.training.measure import measure_normalisation
from selfsight.views.make import make_views
from selfsight.views.plan import Colour, ViewGroup, ViewPlan


def at(batches: Batches, uris: list[str], epoch: int = 0) -> list[list[int]]:
    """The constants of the clips of `uris` of `collection_of`, as file numbers."""
    names = batches.canvases.rows["uri"].to_pylist()
    order = batches.order(epoch).tolist()
    batch = batches.gather(np.array([order.index(names.index(u)) for u in uris]), epoch)
    return (batch.pixels[:, :, 0, 0, 0].int() // 10 - 1).tolist()


def subset(canvases: Canvases, rows: list[int]) -> Canvases:
    """The same items in other rows."""
    assert isinstance(canvases, Resident)
    other = copy(canvases)
    other.rows, other.ids = canvases.rows.take(rows), [canvases.ids[i] for i in rows]
    other.shapes, other.offsets = canvases.shapes[rows], canvases.offsets[rows]
    other.sides = canvases.sides[rows]
    return other


def test_every_item_once_an_epoch_but_the_remainder(images: Callable[..., Path]):
    batches = make_batches(images(11), 4)
    assert batches.steps_per_epoch == 2
    steps = list(islice(batches.steps(), 20))
    assert [b.epoch for b in steps] == [i // 2 for i in range(20)]
    seen: Counter[str] = Counter()
    for one, two in zip(steps[::2], steps[1::2], strict=True):
        both = one.ids + two.ids
        assert len(set(both)) == 8 and set(both) <= set(batches.ids)
        seen.update(both)
    assert set(seen) == set(batches.ids)  # what is left over is not always the same
    assert len({tuple(b.ids) for b in steps}) == 20  # and no two orders are alike


def test_a_batch_larger_than_the_collection_is_all_of_it(images: Callable[..., Path]):
    batches = make_batches(images(3), 100)
    assert batches.batch_size == 3 and batches.steps_per_epoch == 1
    assert sorted(next(batches.steps()).ids) == batches.ids


def test_pixels_ids_and_keys_belong_together(images: Callable[..., Path]):
    batches = make_batches(images(8), 4)
    for batch in islice(batches.steps(), 3):
        for k, item in enumerate(batch.ids):
            canvas = batches.canvases[batches.ids.index(item)]
            assert (batch.pixels[k, 0].permute(1, 2, 0).numpy() == canvas).all()
            assert int(batch.keys[k]) == int(item[:16], 16)
            assert tuple(batch.shapes[k, 0].tolist()) == canvas.shape[:2]


def test_the_order_is_a_function_of_ids_not_of_rows(images: Callable[..., Path]):
    batches = make_batches(images(8), 4)
    rows = np.random.default_rng(0).permutation(8).tolist()
    moved = Batches(subset(batches.canvases, rows), 4, 0)
    for one, two in islice(zip(batches.steps(), moved.steps(), strict=False), 6):
        assert one.ids == two.ids and torch.equal(one.pixels, two.pixels)
    # Without two of the items the others keep their places relative to each other.
    fewer = Batches(subset(batches.canvases, [0, 1, 2, 3, 4, 5]), 3, 0)
    gone = set(batches.ids[6:])
    expected = [batches.ids[i] for i in batches.order(3) if batches.ids[i] not in gone]
    assert [fewer.ids[i] for i in fewer.order(3)] == expected


def test_the_order_depends_on_the_seed_and_epoch(images: Callable[..., Path]):
    batches = make_batches(images(8), 4)
    other = Batches(batches.canvases, 4, 1)
    assert batches.order(0).tolist() != batches.order(1).tolist()
    assert batches.order(0).tolist() != other.order(0).tolist()


def test_steps_from_k_are_the_steps_after_k(images: Callable[..., Path]):
    batches = make_batches(images(11), 4)
    whole = [b.ids for b in islice(batches.steps(), 9)]
    for first in range(7):
        assert [b.ids for b in islice(batches.steps(first), 2)] == whole[first : first + 2]


def test_collate_repeats_the_edge():
    a = np.arange(2 * 3 * 1, dtype=np.uint8).reshape(2, 3, 1)
    b = np.full((4, 2, 1), 9, np.uint8)
    pixels, shapes = collate([a, b])
    assert shapes.tolist() == [[2, 3], [4, 2]]
    assert pixels[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]]
    assert pixels[1, 0].tolist() == [[9, 9, 9]] * 4
    rng = np.random.default_rng(0)
    arrays = [picture(rng, h, w) for h, w in [(5, 9), (8, 4), (8, 9), (1, 1)]]
    for array, padded in zip(arrays, collate(arrays)[0], strict=True):
        wanted = np.pad(array, ((0, 8 - array.shape[0]), (0, 9 - array.shape[1]), (0, 0)), mode="edge")
        assert (padded.permute(1, 2, 0).numpy() == wanted).all()


def test_frame_triplets(tmp_path: Path):
    columns = [
        {"sequence": "a", "frame": 7}, {"sequence": "a", "frame": 8}, {"sequence": "a", "frame": 9},
        {"sequence": "b", "frame": 8}, {"sequence": "a", "frame": 11}, {},
    ]  # fmt: skip
    batches = Batches(make_canvases(collection_of(tmp_path / "f", columns), 8), 6, 0, "frames")
    got = at(batches, [f"{i}.png" for i in range(6)])
    # a: 7 8 9 and, after a gap, 11; b has one frame; the last item is no frame. An end repeats itself.
    assert got == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5]]


def test_group_partners(tmp_path: Path):
    columns = [{"group": "p"}, {"group": "p"}, {"group": "q"}, {"group": "q"}, {"group": "q"}, {}, {}]
    batches = Batches(make_canvases(collection_of(tmp_path / "g", columns), 8), 7, 0, "group")
    seen = [set() for _ in columns]
    for epoch in range(30):
        clip = at(batches, [f"{i}.png" for i in range(7)], epoch)
        assert [c[0] for c in clip] == list(range(7))
        for i, c in enumerate(clip):
            seen[i].add(c[1])
    assert seen == [{1}, {0}, {3, 4}, {2, 4}, {2, 3}, {5}, {6}]  # another of the group; alone, itself


def test_a_partner_does_not_depend_on_the_batch(tmp_path: Path):
    batches = Batches(make_canvases(collection_of(tmp_path / "g", [{"group": "p"}] * 6), 8), 6, 0, "group")
    whole = batches.gather(np.arange(6), 4).pixels
    alone = batches.gather(np.array([3]), 4).pixels
    assert torch.equal(whole[3:4], alone)


@pytest.mark.parametrize("companion", [None, "frames", "group"])
def test_streamed_batches_are_the_resident_ones_bad_items_included(tmp_path: Path, companion: str | None):
    """Whether a failure was known beforehand or is found on the way: the same item takes the place."""
    columns = [{"sequence": "s", "frame": i, "group": str(i % 4)} for i in range(17)]
    collection = collection_of(tmp_path / "f", columns, sizes=[(20 + i, 30) for i in range(17)])
    for i in (3, 4, 11):
        garble(tmp_path / "f" / f"{i}.png")
    resident, streamed = (
        Batches(make_canvases(collection, 16, held), 5, 0, companion) for held in ("resident", "stream")
    )
    for one, two in islice(zip(resident.steps(2), streamed.steps(2), strict=True), 12):
        assert one.ids == two.ids and torch.equal(one.pixels, two.pixels) and torch.equal(one.shapes, two.shapes)
        assert len(set(one.ids)) == 5
    assert resident.canvases.set_aside == streamed.canvases.set_aside and len(resident.canvases.set_aside) == 3


def test_a_place_is_refilled_by_a_readable_item_until_none_is_left(tmp_path: Path):
    collection = collection_of(tmp_path / "f", [{}] * 12, sizes=[(40, 40)] * 12)
    for i in range(11):
        garble(tmp_path / "f" / f"{i}.png")
    batches = Batches(make_canvases(collection, 16, "stream"), 4, 0)
    assert {i for b in islice(batches.steps(), 6) for i in b.ids} == {collection.usable["id"][k].as_py() for k in [
        collection.usable["uri"].to_pylist().index("11.png")
    ]}  # fmt: skip


def test_what_was_decoded_ahead_for_no_one_is_let_go(images: Callable[..., Path]):
    batches = Batches(make_canvases(open_source(images(12)), 16, "stream"), 4, 0)
    steps = batches.steps()
    next(steps)
    assert isinstance(batches.canvases, Streamed) and len(batches.canvases._coming) == 8  # two batches ahead
    steps.close()
    assert not batches.canvases._coming


KINDS = ("RGB", "grey", "uint16", "float")


def pictures_of(kind: str, folder: Path) -> Path:
    """Eighteen pictures of as many shapes, the largest of which is needed by few steps."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(18):
        height, width = (int(side) for side in rng.integers(34, 100, 2))
        pixels = picture(rng, height, width, 3 if kind == "RGB" else 1)
        if kind in ("RGB", "grey"):
            Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        else:
            deep = pixels.astype(np.uint16) * 200 if kind == "uint16" else pixels.astype(np.float32) / 50
            np.save(folder / f"{i:02d}.npy", deep)
    return folder


PLAN = ViewPlan((ViewGroup(2, 32, (0.3, 1.0), colour=Colour(blur=0.5)), ViewGroup(2, 16, (0.05, 0.9))))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_all_processes_are_the_batch_of_one(tmp_path: Path, kind: str, world: int):
    canvases = make_canvases(open_source(pictures_of(kind, tmp_path / kind)), 48)
    normalise = measure_normalisation(canvases)
    whole = Batches(canvases, 6, 0)
    parts = [Batches(canvases, 6, 0, None, rank, world) for rank in range(world)]
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch}
    alone = 0  # parts that would be smaller, were they padded for themselves
    for one, *shares in islice(zip(whole.steps(1), *(part.steps(1) for part in parts), strict=True), 6):
        assert [item for share in shares for item in share.ids] == one.ids
        assert torch.equal(torch.cat([share.pixels for share in shares]), one.pixels)
        assert torch.equal(torch.cat([share.shapes for share in shares]), one.shapes)
        alone += sum(share.shapes.amax((0, 1)).tolist() != list(share.pixels.shape[-2:]) for share in shares)
        seen = [make_views(share, PLAN, normalise, 5) for share in shares]
        for v, view in enumerate(make_views(one, PLAN, normalise, 5)):
            assert torch.equal(torch.cat([views[v].pixels for views in seen]), view.pixels)
            assert torch.equal(torch.cat([views[v].affine for views in seen]), view.affine)
    assert alone > 0
    assert {"RGB": torch.uint8, "grey": torch.uint8, "uint16": torch.uint16}.get(
        kind, torch.float16
    ) == one.pixels.dtype


@pytest.mark.parametrize("held", ["resident", "stream"])
@pytest.mark.parametrize("companion", [None, "frames", "group"])
def test_stand_ins_are_those_of_one_process_padded_alike(tmp_path: Path, held: str, companion: str | None):
    rng = np.random.default_rng(1)
    columns = [{"sequence": "s", "frame": i, "group": str(i % 4)} for i in range(24)]
    sizes = [(int(h), int(w)) for h, w in rng.integers(24, 80, (24, 2))]
    collection = collection_of(tmp_path / "f", columns, sizes)
    for i in range(0, 24, 3):
        garble(tmp_path / "f" / f"{i}.png")
    whole, *parts = (
        Batches(make_canvases(collection, 24, held), 6, 0, companion, rank, world)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    cut = 0
    for one, *shares in islice(zip(whole.steps(), *(part.steps() for part in parts), strict=True), 20):
        assert [item for share in shares for item in share.ids] == one.ids
        assert torch.equal(torch.cat([share.pixels for share in shares]), one.pixels)
        assert torch.equal(torch.cat([share.shapes for share in shares]), one.shapes)
        cut += int((torch.tensor(whole.canvases.sides[one.indices]) > torch.tensor(one.pixels.shape[-2:])).sum())
    assert cut > 0  # some stood in for smaller ones


def test_each_process_decodes_its_own_part_only(images: Callable[..., Path]):
    batches = Batches(make_canvases(open_source(images(12)), 16, "stream"), 4, 0, None, 1, 2)
    steps = batches.steps()
    batch = next(steps)
    assert isinstance(batches.canvases, Streamed)
    order, coming = batches.order(0), set(batches.canvases._coming)
    assert batch.indices.tolist() == order[2:4].tolist()
    assert coming == {*order[6:8].tolist(), *order[10:12].tolist()}  # of the two steps ahead
    steps.close()


@pytest.mark.parametrize(("size", "world", "fits"), [(7, 2, 6), (9, 4, 8), (3, 8, 8)])
def test_a_batch_that_cannot_be_shared_is_refused(images: Callable[..., Path], size: int, world: int, fits: int):
    canvases = make_canvases(open_source(images(12)), 16)
    wanted = f"batch of {size} items cannot be shared evenly by {world} processes. Give --batch-size {fits}."
    with pytest.raises(SelfsightError, match=re.escape(wanted)):
        Batches(canvases, size, 0, None, 0, world)


def test_more_processes_than_images_are_refused(images: Callable[..., Path]):
    with pytest.raises(SelfsightError, match=r"3 images cannot be shared by 4 processes\. Start at most 3\."):
        Batches(make_canvases(open_source(images(3)), 16), 8, 0, None, 0, 4)
