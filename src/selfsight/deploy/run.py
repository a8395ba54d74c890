"""Say what an exported head makes of images: python run.py [--model NAME.onnx] IMAGE…

Prints one JSON line an image, with the columns of `selfsight predict`. Needs numpy, Pillow and onnxruntime, and nothing
else: `selfsight export` puts it beside the ONNX file, whose metadata say what it takes and what its answers mean.

An image is what Pillow reads, of 8 bits or of 16 in grey (of several frames the first), turned upright as its EXIF
says, or an array [H, W] or [H, W, C] in a .npy. Where the head looks at tiles, an image is one tile.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MOST = 200_000_000  # pixels of an image
LARGE = 4_000_000  # pixels, above which maps are kept in half precision
Image.MAX_IMAGE_PIXELS = MOST
WHITE = {8: 255.0, 16: 65535.0}
DTYPES = {"uint8": 8, "uint16": 16, "bool": 8}
PIXELS = {8: np.uint8, 16: np.uint16, 32: np.float32}


Row = dict[str, object]  # of predictions


class Want(TypedDict):
    """What a network takes: pixels of this mode, of so many channels and bits, brought to `size` by a rule, the sides
    padded to a multiple of `stride`; `free`, whether others than (height, width) are taken; `looked`, whether it is
    also told which of them count. window: the intensities that are black and white."""

    mode: str
    channels: int
    depth: int
    window: tuple[float, float]
    rule: str
    size: int
    stride: int
    height: int
    width: int
    free: bool
    looked: bool


class Decision(TypedDict):
    """How probabilities become a label."""

    rule: str
    weights: list[float]
    positive: str
    threshold: float
    costs: list[list[float]]


class Runs(TypedDict):
    """A mask: its height and width, and its run lengths, column by column."""

    size: list[int]
    counts: list[int] | str


class Unreadable(Exception):
    """An image that cannot be used; the message is the reason."""


# -- from a file to pixels --


def read(path: Path, want: Want) -> np.ndarray:
    """Pixels [H, W, C] of a file, upright, in the mode and depth that are wanted. Raises `Unreadable`."""
    try:
        pixels = _array(path) if path.suffix.lower() == ".npy" else _picture(path, want)
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise Unreadable(f"cannot be decoded: {(str(error).splitlines() or ['broken data'])[0]}") from None
    if pixels.shape[0] * pixels.shape[1] > MOST or not pixels.size:
        raise Unreadable(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, where 1 to {MOST:,} are read")
    if pixels.shape[2] != want["channels"]:
        raise Unreadable(f"{pixels.shape[2]} channels, not {want['channels']}")
    return _to_depth(pixels, want)


def _array(path: Path) -> np.ndarray:
    pixels: np.ndarray = np.load(path, allow_pickle=False)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.dtype.kind not in "buif":
        raise Unreadable(f"an array of shape {pixels.shape} and dtype {pixels.dtype} is not an image [H, W, C]")
    if pixels.dtype == bool:
        return np.where(pixels, np.uint8(255), np.uint8(0))
    return pixels if pixels.dtype.name in DTYPES else pixels.astype(np.float32)


def _picture(path: Path, want: Want) -> np.ndarray:
    with Image.open(path) as opened:
        deep = opened.format == "PNG" and _png_depth(path) == 16 and not opened.mode.startswith("I")
        if deep and want["depth"] > 8:
            raise Unreadable("PNG of 16 bits and several channels, of which Pillow drops the low bits: use .npy")
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        if want["mode"] not in ("L", "RGB"):
            raise Unreadable(f"grey, not {want['channels']} channels")
        pixels = np.asarray(image)
        pixels = pixels.astype(np.uint16 if image.mode.startswith("I;16") else np.float32)
        return np.repeat(pixels[:, :, None], want["channels"], axis=2)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode != want["mode"]:
        if want["mode"].isdigit():
            raise Unreadable(f"{image.mode}, not {want['channels']} channels")
        if image.mode == "CMYK":  # which has ways to and from RGB only
            image = image.convert("RGB")
        image = image.convert(want["mode"])
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


def _to_depth(pixels: np.ndarray, want: Want) -> np.ndarray:
    """Pixels of any depth as those of the depth that is wanted."""
    have, depth, (low, high) = DTYPES.get(pixels.dtype.name, 32), want["depth"], want["window"]
    if have == 32:
        finite = pixels[np.isfinite(pixels)]
        if not finite.size:
            raise Unreadable("no value in it is finite")
        if depth == 32:
            return np.asarray(np.nan_to_num(pixels, nan=low, posinf=high, neginf=low))
        darkest, brightest = float(finite.min()), float(finite.max())
        if darkest >= 0.0 and brightest <= 1.0:
            darkest, brightest = 0.0, 1.0
        unit = np.nan_to_num(pixels, nan=darkest, posinf=brightest, neginf=darkest).astype(np.float64) - darkest
        unit /= max(brightest - darkest, np.finfo(np.float64).tiny)
        return _rounded(unit * WHITE[depth], np.dtype(PIXELS[depth]))
    if depth == 32:
        return np.float32(low) + pixels.astype(np.float32) * np.float32((high - low) / WHITE[have])
    if have == 8 and depth == 16:
        return pixels.astype(np.uint16) * 257  # 255 * 257 = 65535
    if have == 16 and depth == 8:
        pixels = (pixels >> 8).astype(np.uint8)
    return pixels


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    fitted = values if dtype.kind == "f" else values.round().clip(0, np.iinfo(dtype).max)
    found: np.ndarray = fitted.astype(dtype)
    return found


# -- from pixels to an input, and back --


def valid_size(height: int, width: int, want: Want) -> tuple[int, int]:
    """(h, w) of the part of the input that shows the image. Raises `Unreadable` for an image of more than a tile."""
    size, longer = want["size"], max(height, width)
    if want["rule"] == "squash":
        return size, size
    if want["rule"] == "tiles" and longer > size:
        raise Unreadable(f"{width} x {height} is more than a tile of {size} x {size}: cut it into tiles first")
    down, across = (max(1, (2 * side * size + longer) // (2 * longer)) for side in (height, width))
    return down, across


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels [H, W, C] at another size by Pillow's antialiased bicubic filter, each channel on its own."""
    if pixels.shape[:2] == (height, width):
        return pixels
    modes = {1: "L", 3: "RGB", 4: "CMYK"}
    if pixels.dtype == np.uint8 and pixels.shape[2] in modes:
        mode = modes[pixels.shape[2]]
        image = Image.frombytes(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
        found = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        return found.reshape(height, width, -1)
    planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in pixels.transpose(2, 0, 1)]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return _rounded(np.stack(resized, axis=2), pixels.dtype)


def to_file(maps: np.ndarray, valid: tuple[int, int], file: tuple[int, int]) -> np.ndarray:
    """Maps [K, h, w] of an input at the pixels of the file [K, H, W]: linear between centres, without the padding."""
    for axis in (2, 1):
        cells, last, length = maps.shape[axis], valid[axis - 1] - 1, file[axis - 1]
        span = (2 * np.arange(length) + 1) * (valid[axis - 1] * cells) / (2 * length * cells)
        at = (span - 0.5).clip(0, last)
        lower = at.astype(np.int64)
        part = (at - lower).reshape((-1, 1) if axis == 1 else (-1,))
        upper = np.minimum(lower + 1, last)
        maps = maps.take(lower, axis) * (1 - part) + maps.take(upper, axis) * part
    return maps.astype(np.float32)


def mask_to_input(mask: np.ndarray, valid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask [H, W] bool of the file in the input (h, w), False in the padding."""
    rows, columns = ((2 * np.arange(n) + 1) * length // (2 * n) for n, length in zip(valid, mask.shape, strict=True))
    found = np.zeros(size, bool)
    found[: valid[0], : valid[1]] = mask[np.ix_(rows, columns)]
    return found


# -- what is said --


class Model:
    """An exported network. about: what its metadata say."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        content = self.session.get_modelmeta().custom_metadata_map
        self.about: dict[str, Any] = {name: json.loads(text) for name, text in content.items()}
        self.names = [one.name for one in self.session.get_outputs()]
        roi = self.about.get("roi")
        self.roi = None if roi is None else from_runs(roi)

    def row(self, path: Path) -> Row:
        """What it says of an image, as `selfsight predict` has it in a row."""
        row: Row = {"uri": str(path), "reason": ""}
        try:
            row |= self.answer(read(path, self.about["input"]))
        except Unreadable as reason:
            row["reason"] = str(reason)
        return row | {"head": self.about["digest"]}

    def answer(self, pixels: np.ndarray) -> Row:
        """What it says of pixels [H, W, C] of own depth. Raises `Unreadable` for those that do not fit."""
        want, file = self.about["input"], (pixels.shape[0], pixels.shape[1])
        if self.roi is not None and self.roi.shape != file:
            high, wide = self.roi.shape
            raise Unreadable(f"{file[1]} x {file[0]} pixels, where the mask of where it looks has {wide} x {high}")
        valid = valid_size(*file, want)
        size = tuple(-(-side // want["stride"]) * want["stride"] for side in valid)
        if not want["free"] and size != (want["height"], want["width"]):
            raise Unreadable(f"becomes an input of {size[1]} x {size[0]}, not {want['width']} x {want['height']}")
        shown = resize(pixels, *valid)
        padding = ((0, size[0] - valid[0]), (0, size[1] - valid[1]), (0, 0))
        batch = np.pad(shown, padding, mode="edge").transpose(2, 0, 1)[None]
        given = {"pixels": np.ascontiguousarray(batch)}
        if want["looked"]:
            looked = np.ones(file, bool) if self.roi is None else self.roi
            given["looked"] = mask_to_input(looked, valid, (size[0], size[1]))[None]
        found = dict(zip(self.names, self.session.run(None, given), strict=True))
        found = {name: values[0] for name, values in found.items()}
        task = self.about["task"]
        if task in ("segment", "detect"):
            return self.segment(found, pixels, valid) if task == "segment" else self.detect(found, valid, file)
        if task == "inspect":
            told = {"score": float(found["score"]), "p": float(found["p"]), "defect": bool(found["defect"])}
            return told | {"map": None}
        return self.classify(found) if task == "classify" else {"features": found["pooled"].tolist()}

    def classify(self, found: dict[str, np.ndarray]) -> Row:
        """The label, grade, labels or number of an image."""
        about = self.about
        if about["kind"] == "number":
            return {name: float(found[name]) for name in ("value", "low", "high", "novel")}
        p, classes = found["probabilities"].astype(np.float64), about["classes"]
        inside = None if about["threshold"] is None else p >= about["threshold"]
        told: Row
        if about["kind"] == "classes":
            named = p >= 0.5
            told = {"labels": _named(classes, named), "score": float(p[named].max()) if named.any() else None}
        else:
            if inside is not None:
                inside |= p == p.max()
            place = decided(p, classes, about["decision"])
            told = {"label": classes[place], "score": float(p[place])}
        told["probabilities"] = found["probabilities"].tolist()
        told["set"] = None if inside is None else _named(classes, inside)
        if about["kind"] != "classes":
            left = inside is not None and inside.sum() != 1
            told["abstain"] = bool(left or found["novel"] < about["new"])
        return told | {"novel": float(found["novel"])}

    def detect(self, found: dict[str, np.ndarray], valid: tuple[int, int], file: tuple[int, int]) -> Row:
        """The objects of an image, of the surest that the network tells, and their counts."""
        about, scores, kinds = self.about, found["scores"].astype(np.float64), found["labels"]
        boxes = (found["boxes"] * np.tile([file[1] / valid[1], file[0] / valid[0]], 2)).clip(0, [*file[::-1]] * 2)
        some = np.argsort(-scores, kind="stable")
        some = some[(scores[some] >= about["least"]) & ((boxes[some, 2:] - boxes[some, :2]).min(1) > 0)]
        some = some[one_each(boxes[some], kinds[some], about["same"])]
        some = some[scores[some] >= np.array(about["thresholds"])[kinds[some]]]
        objects, counts = list[Row](), list[Row]()
        for place in some.tolist():
            said: Row = {"label": about["classes"][kinds[place]], "score": float(scores[place]), "rle": None}
            objects.append(said | dict(zip(("x0", "y0", "x1", "y1"), boxes[place].tolist(), strict=True)))
        for kind, (name, width) in enumerate(zip(about["classes"], about["widths"], strict=True)):
            count = int((kinds[some] == kind).sum())
            off = (width or 0.0) * (count + 1) ** 0.5
            ends = (None, None) if width is None else (max(0, math.ceil(count - off)), math.floor(count + off))
            counts.append({"label": name, "count": count, "low": ends[0], "high": ends[1]})
        return {"objects": objects, "counts": counts, "overlay": None}

    def segment(self, found: dict[str, np.ndarray], pixels: np.ndarray, valid: tuple[int, int]) -> Row:
        """The objects of an image, and how sure the network is of a pixel."""
        file, lean = (pixels.shape[0], pixels.shape[1]), np.array(self.about["lean"], np.float32)
        planes = [found["probabilities"], *(found[name][None] for name in ("centre", "boundary") if name in found)]
        maps = to_file(np.concatenate(planes), valid, file)
        looked = np.ones(file, bool) if self.roi is None else self.roi
        own = maps[: len(lean)]
        maps[:, ~looked] = 0.0
        own[0][~looked] = 1.0
        mask = np.where(looked, (np.log(np.maximum(own, 1e-12)) + lean[:, None, None]).argmax(0), 0)
        sure = np.take_along_axis(own, mask[None], 0)[0][looked].sum(dtype=np.float64)
        if mask.size > LARGE:
            maps = maps.astype(np.float16)
        numbers = apart(mask, maps[len(lean) :], self.about["watershed"], self.about["least"])
        objects = things(numbers, mask, maps[: len(lean)], in_grey(pixels, self.about["input"]["window"]))
        said = [{"label": self.about["classes"][kind], **thing} for kind, thing in objects]
        return {"score": float(sure / looked.sum()), "mask": None, "objects": said}


def _named(classes: list[str], inside: np.ndarray) -> list[str]:
    return [name for name, there in zip(classes, inside, strict=True) if there]


def decided(p: np.ndarray, classes: list[str], decision: Decision) -> int:
    """The place of the class that is decided for probabilities [K]."""
    if decision["rule"] == "balanced":
        return int((p * np.array(decision["weights"])).argmax())
    if decision["rule"] == "costs":
        return int((p @ np.array(decision["costs"])).argmin())
    if decision["rule"] == "threshold":
        place = classes.index(decision["positive"])
        others = np.where(np.arange(len(p)) == place, -1.0, p)
        return place if p[place] >= decision["threshold"] else int(others.argmax())
    return int(p.argmax())


def one_each(boxes: np.ndarray, kinds: np.ndarray, same: float) -> np.ndarray:
    """Places of one box for each object, of boxes [N, 4], the surest first, as in `heads/detect_objects.py`."""
    some: list[int] = []
    for place, two in enumerate(boxes):
        ones = boxes[[each for each in some if kinds[each] == kinds[place]]]
        shared = (np.minimum(ones[:, 2:], two[2:]) - np.maximum(ones[:, :2], two[:2])).clip(0).prod(1)
        union = (ones[:, 2:] - ones[:, :2]).prod(1) + (two[2:] - two[:2]).prod() - shared
        around = np.maximum(ones[:, 2:], two[2:]) - np.minimum(ones[:, :2], two[:2])
        apart = (ones[:, :2] + ones[:, 2:] - two[:2] - two[2:]) / 2
        if not (shared / union - (apart**2).sum(1) / (around**2).sum(1) > same).any():
            some.append(place)
    return np.array(some, np.int64)


# -- objects in a mask --


def in_grey(pixels: np.ndarray, window: list[float]) -> np.ndarray:
    """Pixels [H, W, C] as grey [H, W] uint8, through the window of intensities."""
    unit = ((pixels.astype(np.float32) - np.float32(window[0])) / np.float32(window[1] - window[0])).clip(0.0, 1.0)
    grey: np.ndarray = (255.0 * unit[:, :, :3].mean(2)).round().astype(np.uint8)
    return grey


def apart(mask: np.ndarray, maps: np.ndarray, threshold: float, least: int) -> np.ndarray:
    """Objects [H, W], from 1, of a mask of classes: by a watershed from the centres with `maps` [2, H, W] of centre and
    boundary; with none [0, H, W] the parts of each class that hang together."""
    found = np.zeros(mask.shape, np.int32)
    if not len(maps):
        for kind in np.unique(mask[mask > 0]):
            parts = components(mask == kind, corners=True)
            np.copyto(found, parts + found.max(), where=parts > 0)
    else:
        inside = mask > 0
        depth = -maps[0].astype(np.float32) * (1.0 - maps[1])
        seeds = components((-depth > threshold) & inside, corners=False)
        parts = components(inside, corners=True)
        lonely = np.ones(parts.max() + 1, bool)
        lonely[parts[seeds > 0]] = lonely[0] = False
        np.copyto(seeds, parts + seeds.max(), where=lonely[parts])
        found = watershed(depth, seeds, inside)
    counts = np.bincount(found.reshape(-1))
    keep = counts >= max(1, least)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0)[found]


def components(mask: np.ndarray, corners: bool) -> np.ndarray:
    """The parts [H, W] of a mask that hang together, from 1 in reading order; at corners too, if wanted."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    reach = 1 if corners else 0
    for row in range(1, mask.shape[0]):
        above, here = int(first[row - 1]), int(first[row])
        while above < first[row] and here < first[row + 1]:
            if starts[above] < ends[here] + reach and starts[here] < ends[above] + reach:
                low, high = sorted((root(above), root(here)))
                parent[high] = low
            if ends[above] < ends[here]:
                above += 1
            else:
                here += 1
    roots, number = np.unique([root(run) for run in parent], return_inverse=True)
    found = np.zeros(mask.shape, np.int32)
    found[mask] = np.repeat(number.reshape(-1) + 1, ends - starts) if len(roots) else 0
    return found


def watershed(depth: np.ndarray, seeds: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Objects that grow from seeds over `inside`, the lowest of `depth` first; what was reached first goes first."""
    width = depth.shape[1] + 2  # with a border, so that no neighbour is missing
    value = np.pad(depth.astype(np.float64), 1).reshape(-1).tolist()
    free = np.pad(inside & (seeds == 0), 1).reshape(-1).tolist()
    found = np.pad(seeds, 1).reshape(-1).tolist()
    heap = [(value[at], 0, at) for at in np.flatnonzero(np.pad(seeds, 1)).tolist()]
    heapq.heapify(heap)
    age = 0
    while heap:
        _, _, at = heapq.heappop(heap)
        for other in (at - width, at - 1, at + 1, at + width):
            if free[other]:
                age += 1
                free[other], found[other] = False, found[at]
                heapq.heappush(heap, (value[other], age, other))
    return np.array(found, np.int32).reshape(-1, width)[1:-1, 1:-1]


def things(numbers: np.ndarray, mask: np.ndarray, probabilities: np.ndarray, grey: np.ndarray) -> list[tuple[int, Row]]:
    """(place of its class, what is said of it) of each object [H, W] from 1; see `selfsight predict`."""
    height, width = numbers.shape
    order = np.argsort(numbers.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(numbers.reshape(-1)))
    found = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        y, x = np.divmod(order[start:end], width)
        kind = int(np.bincount(mask[y, x]).argmax())
        said: Row = {"score": float(probabilities[kind][y, x].mean(dtype=np.float64))}
        said |= {"x0": float(x.min()), "y0": float(y.min()), "x1": float(x.max() + 1), "y1": float(y.max() + 1)}
        said |= {"area": float(len(x)), "x": float(x.mean() + 0.5), "y": float(y.mean() + 0.5)}
        said["intensity"] = float(grey[y, x].mean(dtype=np.float64)) / 255
        found.append((kind, said | {"rle": to_runs(np.sort(x * height + y), height, width)}))
    return found


def to_runs(flat: np.ndarray, height: int, width: int) -> Runs:
    """Pixels, numbered column by column, as COCO writes them: run lengths in letters of five bits."""
    breaks = np.flatnonzero(np.diff(flat, prepend=-2) != 1)
    stops = flat[np.append(breaks[1:], len(flat)) - 1] + 1
    edges = np.stack([flat[breaks], stops], axis=1).reshape(-1)
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    counts = counts if counts[-1] else counts[:-1]
    letters = ""
    for place, count in enumerate(counts):
        rest, more = count - counts[place - 2] if place > 2 else count, True
        while more:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != (-1 if bits & 0x10 else 0)
            letters += chr(48 + (bits | 0x20 if more else bits))
    return {"size": [height, width], "counts": letters}


def from_runs(runs: Runs) -> np.ndarray:
    """Run lengths, a list, as a mask [H, W] bool."""
    height, width = runs["size"]
    counts = np.array(runs["counts"], np.int64)
    mask: np.ndarray = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    return mask


def main() -> None:
    """Print a line an image."""
    parser = argparse.ArgumentParser(description="Say what an exported head makes of images, one JSON line each.")
    parser.add_argument("--model", type=Path, help="the .onnx file; the one beside run.py if there is one only")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    given, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"there is no option {unknown[0].partition('=')[0]}. There is --model NAME.onnx, and nothing else")
    beside = sorted(Path(__file__).parent.glob("*.onnx"))
    if given.model is None and len(beside) != 1:
        parser.error(f"there are {len(beside)} .onnx files beside run.py. Name one: --model NAME.onnx")
    if given.model is not None and not given.model.is_file():
        parser.error(f"there is no file {given.model}")
    model = Model(given.model or beside[0])
    for path in given.images:
        print(json.dumps(model.row(path)), flush=True)


if __name__ == "__main__":
    main()
