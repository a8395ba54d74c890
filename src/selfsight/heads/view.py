"""An encoder at one input size, and what it sees of parts: patches, as an inspection compares them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from selfsight.data.collection import Collection
from selfsight.data.geometry import Rule
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.heads.inspect_modules import Patches, around, chosen_levels
from selfsight.heads.modules import Prepare, as_tensor
from selfsight.heads.normality import Look, Part
from selfsight.heads.placed import Placed, batched, inputs_of, placed

MEASURED = 16  # parts, on which the scales of levels are measured
KEPT = 512 * 2**20  # bytes of patches that are kept rather than computed twice


class View:
    """How an inspection looks: an encoder whose geometry has this size and rule, the scales of its levels, and the
    mask [H, W] bool of where it looks, None for everywhere."""

    def __init__(self, encoder: Encoder, size: int, rule: Rule, roi: np.ndarray | None) -> None:
        geometry = replace(encoder.geometry, size=size, rule=rule)
        self.encoder = Encoder(encoder.net, geometry, encoder.about).eval()
        self.prepare = Prepare(geometry)
        self.stride = max(self.encoder.level_strides)
        self.roi = roi
        self.chosen = chosen_levels(self.encoder.level_strides)
        self.patches = Patches(self.chosen, torch.ones(len(self.chosen)))

    def measure(self, items: Collection, rows: pa.Table) -> None:
        """Set the scales of levels, the root mean square length of their vectors, from some parts."""
        squares, count = torch.zeros(len(self.chosen), dtype=torch.float64), 0
        some = rows.take(pa.array(spread(len(rows), MEASURED)))
        for one in placed(items, some, self.encoder.geometry, self.stride, self.roi, "Measuring"):
            if isinstance(one, Placed):
                for _, given, _ in inputs_of([one]):
                    pixels = as_tensor(given, self.encoder.device)
                    levels = self.encoder.encode(self.prepare(pixels), levels=True).levels or []
                    means = [around(levels[place]).square().sum(1).mean() for place in self.chosen]
                    squares += len(pixels) * torch.stack(means).cpu().double()
                    count += len(pixels)
        scales = (squares / max(1, count)).sqrt().clamp_min(1e-12).float()
        self.patches = Patches(self.chosen, scales.to(self.encoder.device))

    def part(self, one: Placed) -> Part:
        """What is seen of an item."""
        return self.parts_of([one])[0]

    @torch.inference_mode()
    def parts_of(self, several: list[Placed]) -> list[Part]:
        """What is seen of items."""
        found: dict[tuple[int, int], Look] = {}
        for which, given, mask in inputs_of(several):
            pixels, looked = (as_tensor(each, self.encoder.device) for each in (given, mask))
            levels = self.encoder.encode(self.prepare(pixels), levels=True).levels or []
            patches = self.patches(levels).half()
            found |= {place: Look(patches[i].clone(), looked[i]) for i, place in enumerate(which)}
        return [[found[i, j] for j in range(len(one.inputs))] for i, one in enumerate(several)]

    def parts(self, items: Collection, rows: pa.Table, bad: dict[int, str], title: str) -> Iterator[tuple[int, Part]]:
        """(number of the row, part) of each row; the reasons of those that cannot be read go into `bad`."""

        def good() -> Iterator[Placed]:
            for one in placed(items, rows, self.encoder.geometry, self.stride, self.roi, title):
                if isinstance(one, Placed):
                    yield one
                else:
                    bad[one[0]] = one[1]

        for several in batched(good()):
            yield from zip((one.number for one in several), self.parts_of(several), strict=True)


class Seen:
    """The parts of some rows, to be gone through several times: kept where they fit, else seen anew."""

    def __init__(self, view: View, items: Collection, rows: pa.Table, title: str) -> None:
        self.view, self.items, self.rows, self.title = view, items, rows, title
        self.kept: list[tuple[int, Part]] | None = None
        self.bad: dict[int, str] = {}

    def __iter__(self) -> Iterator[tuple[int, Part]]:
        if self.kept is not None:
            yield from self.kept
            return
        keeping: list[tuple[int, Part]] | None = []
        held = 0
        for number, part in self.view.parts(self.items, self.rows, self.bad, self.title):
            held += sum(2 * look.patches.numel() + look.looked.numel() for look in part)
            if keeping is not None and held <= KEPT:
                keeping.append((number, part))
            else:
                keeping = None
            yield number, part
        self.kept = keeping
