"""The objects of the pictures of a collection, found without any label, in pixels of their files.

Patches are the keys of a ViT's last block, which tell things apart better than what the block gives; of other encoders
those of inspection (`inspect_modules.Patches`), of which a border is left out: convolutions see the edge there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from timm.models.vision_transformer import VisionTransformer

from selfsight.curation.discovery import Basis, Piece, basis, objects_in
from selfsight.data.annotations.rle import Runs, encode_part
from selfsight.data.collection import Collection
from selfsight.data.placements import Placement, mask_to_file
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.tokens import is_token_model, last_keys
from selfsight.heads.inspect import takes
from selfsight.heads.modules import as_tensor
from selfsight.heads.normality import Look, Part
from selfsight.heads.placed import Placed, inputs_of
from selfsight.heads.view import View

SAMPLE = 64  # pictures that the basis is taken from
SPACED = 7  # of their patches each so-manieth
FINE = 40  # directions by which objects are compared with each other


class Discovered(NamedTuple):
    """An object. row: number of its picture. box: x0, y0, x1, y1 in pixels of the upright file. clear: how far it
    stands out. runs: its pixels. feature: [K] of it, to compare it with others."""

    row: int
    box: tuple[float, float, float, float]
    clear: float
    runs: Runs
    feature: np.ndarray


class Keys(View):
    """A ViT at one input size, whose patches are the keys of its last block."""

    def measure(self, items: Collection, rows: pa.Table) -> None:
        """Nothing is to be measured: keys are of one scale."""

    @torch.inference_mode()
    def parts_of(self, several: list[Placed]) -> list[Part]:
        found: dict[tuple[int, int], Look] = {}
        for which, given, mask in inputs_of(several):
            pixels, looked = (as_tensor(each, self.encoder.device) for each in (given, mask))
            keys = last_keys(cast(VisionTransformer, self.encoder.net), self.prepare(pixels)).half()
            found |= {place: Look(keys[i].clone(), looked[i]) for i, place in enumerate(which)}
        return [[found[i, j] for j in range(len(one.inputs))] for i, one in enumerate(several)]


def view_of(encoder: Encoder, size: int | None = None) -> View:
    """How pictures are looked at: whole, with their aspect where the encoder takes it, at `size` or its own."""
    size = size or encoder.geometry.size
    fits = takes(encoder, 2 * encoder.geometry.size)
    kind = Keys if is_token_model(encoder.net) else View
    return kind(encoder, size if fits else encoder.geometry.size, "fit" if fits else "squash", None)


def discovered(view: View, items: Collection, rows: pa.Table, most: int, bad: dict[int, str]) -> Iterator[Discovered]:
    """The clearest objects of each of `rows`, at most `most` a picture; the reasons of those that cannot be read go
    into `bad`."""
    view.measure(items, rows)
    sample = rows.take(pa.array(spread(len(rows), SAMPLE)))
    some = [_rows(part)[::SPACED] for _, part in view.parts(items, sample, {}, "Measuring")]
    if not some:
        return
    patches = np.concatenate(some)
    coarse, fine = basis(patches), basis(patches, FINE)
    border = 0 if isinstance(view, Keys) else 1
    sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
    for number, part in view.parts(items, rows, bad, "Looking for objects"):
        [at] = view.encoder.geometry.placements(*sizes[number], view.stride)
        grid = part[0].patches.permute(1, 2, 0).float().cpu().numpy()
        counts = part[0].counts.cpu().numpy()
        if border and min(counts.shape) > 2 * border:
            counts[[0, -1]] = counts[:, [0, -1]] = False
        for piece in objects_in(coarse.of(grid), counts, at.size, most):
            yield _in_file(number, piece, at, grid, fine)


def _rows(part: Part) -> np.ndarray:
    look = part[0]
    return np.asarray(look.patches[:, look.counts].T.float().cpu().numpy())


def _in_file(number: int, piece: Piece, at: Placement, grid: np.ndarray, fine: Basis) -> Discovered:
    rows, columns = piece.place
    whole = np.zeros(at.size, np.int32)
    whole[piece.place] = piece.inside
    mask = mask_to_file([whole], [at]) > 0
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(y):  # smaller than a pixel of the file
        corners = at.points_to_file(np.array([[columns.start, rows.start], [columns.stop, rows.stop]]))
        (x0, y0), (x1, y1) = corners.clip(0, at.file[::-1]).astype(int).tolist()
        y, x = np.array([y0, max(y0, y1 - 1)]), np.array([x0, max(x0, x1 - 1)])
        mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = True
    inside = mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    runs = encode_part(inside, int(y[0]), int(x[0]), *mask.shape)
    box = float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)
    return Discovered(number, box, piece.clear, runs, _feature(whole > 0, grid, fine))


def _feature(inside: np.ndarray, grid: np.ndarray, fine: Basis) -> np.ndarray:
    """The mean of the patches whose share of an object [H, W] is at least half of the largest share, of unit length."""
    h, w = grid.shape[:2]
    share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(inside[None].astype(np.float32)), (h, w))[
        0
    ].numpy()
    mean = fine.of(grid[share >= share.max() / 2].mean(0))
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)
