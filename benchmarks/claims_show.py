"""What claims.py measured, as tables and pictures; and where a ViT looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from selfsight.encoders.encoder import Encoder

Rows = list[dict[str, Any]]

# -- where a ViT looks --


@torch.inference_mode()
def attention_of(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """[N, heads, h, w] how the class token of a ViT divides its attention among the patches in the last layer, each
    map with sum 1, of images `pixels` [N, S, S, C]."""
    net: Any = encoder.eval().net
    block, seen, out = net.blocks[-1].attn, [], []
    hook = block.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    for start in range(0, len(pixels), 64):
        grid = encoder(encoder.geometry.to_input(pixels[start : start + 64])).grid
        tokens = seen.pop()  # [B, 1 + N, D]
        query, key, _ = block.qkv(tokens).unflatten(2, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = block.q_norm(query), block.k_norm(key)
        weights = (query[:, :, :1] * block.scale @ key.mT).softmax(-1)[:, :, 0, net.num_prefix_tokens :]
        out.append((weights / weights.sum(-1, keepdim=True)).unflatten(2, grid))
    hook.remove()
    return torch.cat(out).numpy()


def colour_of(pixels: np.ndarray, patch: int) -> np.ndarray:
    """[N, 1, h, w] how far the mean colour of each patch is from that of its image, each map with sum 1: a control."""
    count, side, _, channels = pixels.shape
    grid = side // patch
    means = pixels.reshape(count, grid, patch, grid, patch, channels).mean((2, 4))
    far = np.linalg.norm(means - means.mean((1, 2), keepdims=True), axis=3)[:, None]
    return far / far.sum((2, 3), keepdims=True)


def inside(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w] the part of each patch that lies in `boxes` [M, 4], to a tenth of a patch's side."""
    fine = np.zeros((height * 10, width * 10), dtype=np.float32)
    for left, top, right, bottom in np.round(boxes * np.tile([width, height], 2) * 10).astype(int):
        fine[top:bottom, left:right] = 1
    return fine.reshape(height, 10, width, 10).mean((1, 3))


def pointing(maps: np.ndarray, boxes: list[np.ndarray]) -> dict[str, Any]:
    """How many times their part of the area the boxes get of `maps` [N, heads, h, w]: mean over images of the mean of
    the heads, and of each head. `elsewhere`: where each map is laid on another image, which tells a map that follows
    its image from one that favours a place."""
    covered = np.stack([inside(each, *maps.shape[2:]) for each in boxes])[:, None]  # [N, 1, h, w]
    area = covered.mean((2, 3))  # [N, 1]
    ratios = (maps * covered).sum((2, 3)) / area  # [N, heads]
    elsewhere = (np.roll(maps, len(maps) // 2, axis=0) * covered).sum((2, 3)) / area
    return {
        "images": len(maps), "area": float(area.mean()), "pointing": float(ratios.mean()),
        "elsewhere": float(elsewhere.mean()), "share_above_1": float((ratios.mean(1) > 1).mean()),
        "heads": ratios.mean(0).tolist(),
    }  # fmt: skip


# -- tables --


def tables(rows: Rows) -> None:
    """A table of each claim that has rows."""
    for claim, (title, show) in TABLES.items():
        found = [row for row in rows if row["claim"] == claim]
        if found:
            print(f"\n## {claim}\n\n{title}\n")
            show(found)


def _table(head: str, lines: Sequence[Sequence[Any]]) -> None:
    print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}")
    for line in lines:
        print("| " + " | ".join(map(str, line)) + " |")


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _by_arm(rows: Rows) -> dict[str, Rows]:
    return {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}


def _common(rows: Rows, shots: str = "5") -> list[str]:
    """k-NN, linear and few-shot cells of the seeds of an arm."""
    few = [row["few_shot"][shots][0] for row in rows]
    return [_percent([row["knn"] for row in rows]), _percent([row["linear"] for row in rows]), _percent(few)]


def gaps(rows: Rows, probe: str) -> list[tuple[int, float, float]]:
    """(images, full, crop-only) of each size that has both."""
    score = {row["arm"]: row[probe] for row in rows}
    sizes = rows[0]["settings"]["sizes"]
    both = [n for n in sizes if f"full-{n}" in score and f"crop-only-{n}" in score]
    return [(n, score[f"full-{n}"], score[f"crop-only-{n}"]) for n in both]


def _crop_only(rows: Rows) -> None:
    knn, linear = gaps(rows, "knn"), gaps(rows, "linear")
    lines = []
    for (n, full, crop), (_, full2, crop2) in zip(knn, linear, strict=True):
        cells = [full, crop, full - crop, full2, crop2, full2 - crop2]
        lines.append([f"{n:,}", *(f"{100 * v:.1f}" for v in cells)])
    lines += [["random weights", f"{100 * r['knn']:.1f}", "", "", f"{100 * r['linear']:.1f}", "", ""]
              for r in rows if r["arm"] == "random"]  # fmt: skip
    _table("images | k-NN, full | crop-only | gap | linear, full | crop-only | gap", lines)
    for name, found in (("k-NN", knn), ("linear", linear)):
        if len(found) > 1:
            each = [full - crop for _, full, crop in found]
            shrinks = all(later < earlier for earlier, later in pairwise(each))
            said = "shrinks at every step" if shrinks else "does not shrink at every step: refuted at this scale"
            print(f"\nThe gap in {name} {said} ({', '.join(f'{100 * gap:.1f}' for gap in each)} points).")


def _mae(rows: Rows) -> None:
    lines = []
    for arm, seeds in _by_arm(rows).items():
        tried = ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in seeds[0]["tried"].items())
        lines.append([arm, _percent([row["accuracy"] for row in seeds]), len(seeds), seeds[0]["rate"], tried])
    _table("start | test accuracy | seeds | learning rate | held-out accuracy of each rate", lines)


def _imbalance(rows: Rows) -> None:
    score = {row["arm"]: row for row in rows}
    _table("data | k-NN | linear | 5-shot | verdict",
           [[arm, *_common(each), each[0].get("verdict", "")] for arm, each in _by_arm(rows).items()])  # fmt: skip
    for name in ("simclr", "swav"):
        if {f"{name}-clean", f"{name}-uneven"} <= score.keys():
            clean, uneven = score[f"{name}-clean"], score[f"{name}-uneven"]
            lost = ", ".join(f"{probe} {100 * (uneven[probe] - clean[probe]):+.1f}" for probe in ("knn", "linear"))
            print(f"\n{name}, uneven data against clean data, in points: {lost}.")


def _groups(rows: Rows) -> None:
    lines = []
    for arm, seeds in _by_arm(rows).items():
        for task in seeds[0]["tasks"]:
            lines.append([arm, task, *_common([row["tasks"][task] for row in seeds]), len(seeds)])
    _table("data, positives | task | k-NN | linear | 5-shot | seeds", sorted(lines, key=lambda line: line[1]))


def _attention(rows: Rows) -> None:
    lines = []
    for row in rows:
        heads = ", ".join(f"{head:.2f}" for head in row["heads"])
        above = f"{100 * row['share_above_1']:.0f} %"
        lines.append([row["arm"], f"{row['pointing']:.2f}", f"{row['elsewhere']:.2f}", above, heads, row["images"]])
    _table("map | pointing | on another image | images above 1 | each head | images", lines)
    print(f"\nThe boxes hold {100 * rows[0]['area']:.1f} % of the area.")


def _weights(rows: Rows) -> None:
    arms, shots = _by_arm(rows), [str(count) for count in rows[0]["settings"]["shots"]]
    lines = []
    for arm, seeds in arms.items():
        few = []
        for count in shots:
            means, spreads = zip(*(row["few_shot"][count] for row in seeds), strict=True)
            few.append(f"{100 * mean(means):.1f} ± {100 * mean(spreads):.1f}")
        lines.append([arm, *_common(seeds, shots[0])[:2], *few, len(seeds)])
    _table(" | ".join(["data, weights", "k-NN", "linear", *(f"{count} a class" for count in shots), "seeds"]), lines)
    for data in ("steel", "xray"):
        before, adapted = arms.get(f"{data}-before"), arms.get(f"{data}-adapted")
        for count in shots if before and adapted else ():
            start, spread = before[0]["few_shot"][count]
            ends = [row["few_shot"][count][0] for row in adapted]
            spread = max([spread, *(row["few_shot"][count][1] for row in adapted)])
            word = "not below" if min(ends) >= start - spread else "BELOW"
            moved = ", ".join(f"{100 * (end - start):+.1f}" for end in ends)
            print(f"\n{data}, {count} labels a class: adaptation ends {word} its start by more than the spread "
                  f"({moved} points; spread {100 * spread:.1f}).")  # fmt: skip


TABLES: dict[str, tuple[str, Callable[[Rows], None]]] = {
    "crop-only": (
        "Scores in % on CIFAR-10's test images of SimCLR after the same steps, by images it learnt from and style of "
        "views; one seed; all probes learn from the same labels.", _crop_only,
    ),
    "mae": (
        "Accuracy in % on CIFAR-10's test images after fine-tuning on a tenth of the training labels, from what MAE "
        "learnt of all training images, and from random weights; ± over seeds of fine-tuning.", _mae,
    ),
    "imbalance": (
        "Scores in % on CIFAR-10's test images, by what the encoder learnt from: as many of each class (clean), or 100 "
        "to 1 between classes with a tenth of junk (uneven), as many images; one seed; all probes learn from the same, "
        "even labels.", _imbalance,
    ),
    "groups": (
        "Balanced accuracy in % where positives are crops of one image or of two of a group (patient; steel plate, "
        "whose quarters are the images), after the same steps; ± over seeds; groups of the test were never seen.",
        _groups,
    ),
    "attention": (
        "How many times their part of the area the white cells of a smear get of the class token's attention in the "
        "last layer (1 is chance; colour: how far a patch's colour is from the image's mean).", _attention,
    ),
    "weights": (
        "Balanced accuracy in % of ImageNet's weights before and after adaptation to the training images, of the same "
        "network from scratch after the same steps, and of random weights; k-NN and linear ± over seeds, few labels ± "
        "over draws of them.", _weights,
    ),
}  # fmt: skip


# -- pictures --

INK, PALE, FULL, CROPS = (40, 40, 48), (225, 225, 230), (31, 98, 178), (214, 96, 30)
MOST = 2.5  # times an even share, which is the palest colour of a map
HEAT = np.array([(0, 0, 0), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])  # from none to most


def draw_crop_only(rows: Rows, out: Path) -> None:
    """Score over number of images, full and crop-only, a panel for each probe, random weights as a dashed line."""
    if not rows or not gaps(rows, "knn"):
        return
    image = Image.new("RGB", (1400, 560), "white")
    for i, (probe, title) in enumerate((("knn", "k-NN"), ("linear", "linear probe"))):
        _panel(ImageDraw.Draw(image), 90 + 700 * i, rows, probe, f"{title}, % of CIFAR-10's test images")
    _save(image, out)


def _panel(draw: ImageDraw.ImageDraw, left: int, rows: Rows, probe: str, title: str) -> None:
    found, width, top, bottom = gaps(rows, probe), 560, 80, 480
    font = ImageFont.load_default(22)
    random = [100 * row[probe] for row in rows if row["arm"] == "random"]
    values = [100 * value for _, *pair in found for value in pair] + random
    low, high = 5 * np.floor(min(values) / 5 - 0.2), 5 * np.ceil(max(values) / 5 + 0.2)
    logs = np.log([n for n, *_ in found])
    span = max(float(logs[-1] - logs[0]), 1e-9)

    def at(n: float, value: float) -> tuple[float, float]:
        right = 40 + (width - 120) * (np.log(n) - logs[0]) / span
        return left + right, bottom - (bottom - top) * (value - low) / (high - low)

    draw.text((left, 20), title, INK, font)
    for tick in np.arange(low, high + 1, 5):
        y = at(found[0][0], tick)[1]
        draw.line([(left, y), (left + width, y)], PALE, 2)
        draw.text((left - 12, y), f"{tick:.0f}", INK, font, anchor="rm")
    for value in random:
        y = at(found[0][0], value)[1]
        for x in range(left, left + width, 16):
            draw.line([(x, y), (x + 8, y)], INK, 2)
        draw.text((left + width, y + 6), "random weights", INK, font, anchor="ra")
    for which, (colour, name) in enumerate(((FULL, "full"), (CROPS, "crop-only"))):
        points = [at(n, 100 * pair[which]) for n, *pair in found]
        draw.line(points, colour, 5, joint="curve")
        for x, y in points:
            draw.ellipse([x - 7, y - 7, x + 7, y + 7], colour)
        draw.text((points[-1][0] + 16, points[-1][1]), name, colour, font, anchor="lm")
    for n, *_ in found:
        draw.text((at(n, low)[0], bottom + 14), f"{n:,}", INK, font, anchor="ma")
    draw.text((left + width / 2, bottom + 44), "images (log)", INK, font, anchor="ma")


def draw_attention(found: dict[str, Any], out: Path, count: int = 6) -> None:
    """A column an image, a row each for the image with its boxes and for the maps of every arm, heads' mean. Images lie
    evenly over all in the order of their names; none is chosen."""
    width, height, margin = 200, 150, 130
    _, boxes, pixels, _ = next(iter(found.values()))
    font = ImageFont.load_default(18)
    chosen = np.linspace(0, len(pixels) - 1, count).astype(int)
    image = Image.new("RGB", (margin + count * (width + 6), (1 + len(found)) * (height + 6)), "white")
    draw = ImageDraw.Draw(image)
    names = {"random": "attention,\nrandom\nweights", "dino": "attention,\nDINO"}
    for row, label in enumerate(["white cells\nin boxes", *(names.get(arm, arm) for arm in found)]):
        draw.text((8, row * (height + 6) + 20), label, INK, font)
    for column, i in enumerate(chosen):
        x = margin + column * (width + 6)
        whole = Image.fromarray(pixels[i]).resize((width, height), Image.Resampling.BICUBIC)
        image.paste(whole, (x, 0))
        for box in boxes[i] * (width, height, width, height):
            draw.rectangle([x + box[0], box[1], x + box[2], box[3]], outline=(0, 160, 60), width=3)
        for row, (maps, *_) in enumerate(found.values(), 1):
            image.paste(_heated(whole, maps[i].mean(0)), (x, row * (height + 6)))
    _save(image, out)


def _heated(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """A map [h, w] over its image in grey, black where there is none and pale at `MOST` times its mean."""
    scaled = Image.fromarray((255 * weights / weights.mean() / MOST).clip(0, 255).astype(np.uint8))
    strength = np.asarray(scaled.resize(image.size, Image.Resampling.NEAREST), dtype=np.float32) / 255
    stops = np.linspace(0, 1, len(HEAT))
    colour = np.stack([np.interp(strength, stops, HEAT[:, c]) for c in range(3)], -1)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    return Image.fromarray((0.3 * grey + 0.7 * colour).astype(np.uint8))


def _save(image: Image.Image, out: Path) -> None:
    """As a PNG of 256 colours, which is small."""
    image.quantize(256).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} KB")
