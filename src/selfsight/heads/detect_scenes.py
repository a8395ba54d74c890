"""Pictures with boxes as a detector learns from them: the levels of a frozen encoder, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from selfsight.data.boxed import Boxed, Truth
from selfsight.data.collection import Collection
from selfsight.data.geometry import Rule
from selfsight.data.placements import Placement
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError
from selfsight.heads.detect_fit import Piece
from selfsight.heads.detect_modules import grid_stride, used_levels
from selfsight.heads.modules import Prepare, as_tensor
from selfsight.heads.placed import Placed, inputs_of, placed

KEPT = 1024 * 2**20  # bytes of levels that are held at once; a picture takes at most a quarter of it
SEEN = 0.5  # of the area of an object, below which what a tile shows of it is unsure


@dataclass
class BoxScene:
    """A picture with boxes. place: among those that were asked for. placements: of its inputs. pieces: what is seen of
    each. mirrored: the same of its mirror image; [] where that is not looked at. whole: whether none is left out."""

    place: int
    placements: list[Placement]
    pieces: list[Piece]
    mirrored: list[Piece]
    whole: bool = True


class BoxSight:
    """How a detector looks: an encoder whose geometry has this size and rule, and the levels that it uses."""

    def __init__(self, encoder: Encoder, size: int, rule: Rule) -> None:
        geometry = replace(encoder.geometry, size=size, rule=rule)
        self.encoder = Encoder(encoder.net, geometry, encoder.about).eval()
        self.prepare = Prepare(geometry)
        self.stride = max(self.encoder.level_strides)
        self.used = used_levels(self.encoder.level_strides)
        self.strides = tuple(self.encoder.level_strides[place] for place in self.used)
        self.channels = tuple(self.encoder.level_channels[place] for place in self.used)
        self.grid = grid_stride(self.encoder.level_strides)

    def scenes(
        self, items: Collection, boxed: Boxed, mirror: bool, bad: dict[str, str], title: str
    ) -> list[BoxScene]:  # fmt: skip
        """The pictures, in their order; reasons of what cannot be read go into `bad` by id."""
        found = []
        for one in placed(items, boxed.labels.rows, self.encoder.geometry, self.stride, None, title):
            if isinstance(one, Placed):
                found.append(self._scene(one, boxed, mirror))
            else:
                bad[boxed.labels.ids[one[0]]] = one[1]
        return sorted(found, key=lambda scene: scene.place)

    def inputs(self, items: Collection, boxed: Boxed, title: str) -> list[Piece]:
        """The inputs of the pictures, each a piece whose one level is its pixels, in order of the pictures; those that
        cannot be read are left out."""
        found: list[tuple[int, list[Piece]]] = []
        for one in placed(items, boxed.labels.rows, self.encoder.geometry, self.stride, None, title):
            if isinstance(one, Placed):
                truth = boxed.at(one.number)
                one = self._roomy(one, truth.boxes)
                pixels = [as_tensor(each.transpose(2, 0, 1).copy(), torch.device("cpu")) for each in one.inputs]
                pieces = [piece_of([each], of, truth, False) for each, of in zip(pixels, one.placements, strict=True)]
                found.append((one.number, pieces))
        return [piece for _, pieces in sorted(found, key=lambda each: each[0]) for piece in pieces]

    def _scene(self, one: Placed, boxed: Boxed, mirror: bool) -> BoxScene:
        truth = boxed.at(one.number)
        some = self._roomy(one, truth.boxes)
        own, flipped = self._pieces(some, truth, False), self._pieces(some, truth, True) if mirror else []
        return BoxScene(some.number, some.placements, own, flipped, len(some.inputs) == len(one.inputs))

    def _pieces(self, one: Placed, truth: Truth, flip: bool) -> list[Piece]:
        pieces = {j: piece_of(levels, one.placements[j], truth, flip) for j, levels in self._levels(one, flip)}
        return [pieces[j] for j in range(len(one.inputs))]

    def again(self, items: Collection, boxed: Boxed, place: int) -> Iterator[tuple[Placement, list[Tensor]]]:
        """Each input of a picture with its levels, one after the other. Raises `DataError` if it cannot be read any
        more."""
        rows = boxed.labels.rows.slice(place, 1)
        for one in placed(items, rows, self.encoder.geometry, self.stride, None, "Looking at a held-out picture"):
            if not isinstance(one, Placed):
                raise DataError(f"{items.uri_of(rows['id'][0].as_py())} cannot be read any more: {one[1]}")
            yield from ((one.placements[j], levels) for j, levels in self._levels(one, False))

    def _levels(self, one: Placed, flip: bool) -> Iterator[tuple[int, list[Tensor]]]:
        """The levels of each input, in half precision, with its number."""
        for which, given, _ in inputs_of([one]):
            pixels = as_tensor(given, self.encoder.device)
            seen = pixels.flip(3) if flip else pixels
            with torch.no_grad():
                levels = self.encoder.encode(self.prepare(seen), levels=True).levels or []
            for place, (_, j) in enumerate(which):
                yield j, [levels[i][place].half().cpu().clone() for i in self.used]

    def _roomy(self, one: Placed, boxes: np.ndarray) -> Placed:
        """As many of the inputs of a picture as there is room for: those with objects first, the rest spread evenly."""
        room = max(1, int(KEPT // 4 // self.bytes_of()))
        if len(one.inputs) <= room:
            return one
        full = [j for j, of in enumerate(one.placements) if len(of.boxes_to_input(boxes)[0])]
        some = {full[j] for j in spread(len(full), min(len(full), (room + 1) // 2)).tolist()}
        rest = [j for j in range(len(one.inputs)) if j not in some]
        used = sorted(some | {rest[j] for j in spread(len(rest), room - len(some)).tolist()})
        return one._replace(
            inputs=[one.inputs[j] for j in used],
            placements=[one.placements[j] for j in used],
            looked=[one.looked[j] for j in used],
        )

    def bytes_of(self) -> float:
        """Bytes of the levels of an input."""
        side = self.encoder.geometry.size
        return sum(2 * count * (side / stride) ** 2 for count, stride in zip(self.channels, self.strides, strict=True))

    def room(self, boxed: Boxed, views: int) -> int:
        """How many pictures fit, two or more, seen so many times each."""
        geometry = self.encoder.geometry
        most = max(1, int(KEPT // 4 // self.bytes_of()))
        inputs = [min(most, len(geometry.placements(*boxed.size(i), self.stride))) for i in range(len(boxed))]
        return int(max(2, KEPT // (views * self.bytes_of() * float(np.mean(inputs)))))


def piece_of(levels: list[Tensor], placement: Placement, truth: Truth, flip: bool) -> Piece:
    """An input with the objects in it; of those that it cuts, what is left of less than half is unsure."""
    boxes, left, share = placement.boxes_to_input(truth.boxes)
    if flip:
        boxes = np.stack(
            [placement.size[1] - boxes[:, 2], boxes[:, 1], placement.size[1] - boxes[:, 0], boxes[:, 3]], 1
        )
    unsure = truth.unsure[left] | (share < SEEN)
    edges = torch.from_numpy(boxes).float()
    sure = torch.from_numpy(~unsure)
    return Piece(levels, edges[sure], torch.from_numpy(truth.kinds[left])[sure], edges[~sure])
