"""Which items make up a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from helpers import make_batches, picture
from PIL import Image

from selfsight.data.batches import Batches, collate
from selfsight.data.canvases import Canvases, resident
from selfsight.data.collection import Collection, item_id, rows_table
from selfsight.data.decoding import read_header


def collection_with(folder: Path, columns: list[dict], sizes: list[tuple[int, int]] | None = None) -> Collection:
    """Real files 0.png, 1.png, … of constant value 10, 20, … with the given columns."""
    folder.mkdir()
    rows = []
    for i, more in enumerate(columns):
        path = folder / f"{i}.png"
        Image.fromarray(np.full((*(sizes[i] if sizes else (8, 8)), 3), 10 * (i + 1), np.uint8)).save(path)
        row = {"id": item_id("x", path.name), "uri": path.name, "content_hash": str(i), "status": "ok", "reason": ""}
        rows.append(row | read_header(path.read_bytes()) | more)
    return Collection.write(folder.parent / "c.lance", rows_table(rows), folder)


def values(batches: Batches, uris: list[str]) -> list[list[int]]:
    """The constants of the clips of `uris`, as file numbers."""
    names = batches.canvases.rows["uri"].to_pylist()
    batch = batches.gather(np.array([names.index(u) for u in uris]), 0)
    return (batch.pixels[:, :, 0, 0, 0].int() // 10 - 1).tolist()


def subset(canvases: Canvases, rows: list[int]) -> Canvases:
    """The same items in other rows."""
    return Canvases(
        canvases.rows.take(rows), canvases.shapes[rows], canvases.offsets[rows], canvases.pixels, canvases.channels,
        canvases.window, {},
    )  # fmt: skip


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
    batches = Batches(resident(collection_with(tmp_path / "f", columns), 3, 8), 6, 0, "frames")
    got = values(batches, [f"{i}.png" for i in range(6)])
    # a: 7 8 9 and, after a gap, 11; b has one frame; the last item is no frame. An end repeats itself.
    assert got == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5]]


def test_group_partners(tmp_path: Path):
    columns = [{"group": "p"}, {"group": "p"}, {"group": "q"}, {"group": "q"}, {"group": "q"}, {}, {}]
    batches = Batches(resident(collection_with(tmp_path / "g", columns), 3, 8), 7, 0, "group")
    seen = [set() for _ in columns]
    names = batches.canvases.rows["uri"].to_pylist()
    indices = np.array([names.index(f"{i}.png") for i in range(7)])
    for epoch in range(30):
        clip = (batches.gather(indices, epoch).pixels[:, :, 0, 0, 0].int() // 10 - 1).tolist()
        assert [c[0] for c in clip] == list(range(7))
        for i, c in enumerate(clip):
            seen[i].add(c[1])
    assert seen == [{1}, {0}, {3, 4}, {2, 4}, {2, 3}, {5}, {6}]  # another of the group; alone, itself


def test_a_partner_does_not_depend_on_the_batch(tmp_path: Path):
    columns = [{"group": "p"}] * 6
    batches = Batches(resident(collection_with(tmp_path / "g", columns), 3, 8), 6, 0, "group")
    whole = batches.gather(np.arange(6), 4).pixels
    alone = batches.gather(np.array([3]), 4).pixels
    assert torch.equal(whole[3:4], alone)
