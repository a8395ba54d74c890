"""What an exported network says of itself: in the metadata of the ONNX file, and in the NAME.json beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from selfsight.data.annotations.rle import encode
from selfsight.deploy.exported import content_of
from selfsight.deploy.graphs import Inputs, stride_of
from selfsight.encoders.encoder import Encoder
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.classify_voice import NEW
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.detect_objects import LEAST, SAME
from selfsight.heads.head import Head
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.segment_head import SegmentHead

FORMAT_VERSION = 1
STEPS = {
    "squash": "Resize to size x size, whatever the aspect.",
    "fit": "Resize so that the longer side is of `size`, the other side * size / longer, rounded half up. Repeat the "
    "last row below and the last column to the right until both sides are multiples of `stride`.",
    "tiles": "Take tiles of at most size x size at the file's own scale; a picture no larger than one is resized so "
    "that its longer side is of `size`. Repeat the last row below and the last column to the right until both sides "
    "are multiples of `stride`.",
}


def about_export(model: Head | Encoder, takes: Inputs, precision: str) -> dict[str, object]:
    """Plain values by name, which both `run.py` and other languages go by.

    task: "encode" of an encoder alone. digest: of the head or encoder. content: of the files of the head folder. input:
    how pixels become the graph's, see `steps`. roi: the mask of where it looks, as run lengths of COCO. The rest is
    what a task's tensors mean: classes, decision, thresholds.
    """
    encoder = model.encoder if isinstance(model, Head) else model
    geometry = encoder.geometry
    roi = model.roi if isinstance(model, InspectHead | SegmentHead) else None
    use = model.about.intended_use if isinstance(model, Head) else "To tell how alike pictures are by their features."
    return {
        "format_version": FORMAT_VERSION,
        "task": model.about.task if isinstance(model, Head) else "encode",
        "digest": model.digest,
        "content": content_of(model.path) if isinstance(model, Head) and model.path else "",
        "encoder": encoder.digest,
        "licence": encoder.licence,
        "intended_use": use,
        "notes": model.about.notes if isinstance(model, Head) else [],
        "precision": precision,
        "input": {
            "mode": geometry.mode,
            "channels": geometry.channels,
            "depth": geometry.depth,
            "window": list(geometry.window),
            "mean": list(geometry.mean),
            "std": list(geometry.std),
            "rule": geometry.rule,
            "size": geometry.size,
            "stride": stride_of(encoder),
            "height": takes.size[0],
            "width": takes.size[1],
            "free": takes.free,
            "looked": takes.looked,
        },
        "steps": steps(encoder, takes),
        "roi": None if roi is None else encode(roi, compressed=False),
        **(_of_task(model) if isinstance(model, Head) else {}),
    }


def as_metadata(about: Mapping[str, object]) -> dict[str, str]:
    """The same as the text that ONNX metadata are: JSON, each."""
    return {name: json.dumps(value) for name, value in about.items()}


def steps(encoder: Encoder, takes: Inputs) -> list[str]:
    """How a picture becomes the graph's input, in words, for those who write it in another language."""
    geometry = encoder.geometry
    kind = {8: "uint8", 16: "uint16", 32: "float32"}[geometry.depth]
    channels = f"{geometry.channels} channels" if geometry.mode.isdigit() else geometry.mode
    found = [
        "Decode in full and turn the picture upright as its EXIF says.",
        f"Bring it to {channels}, {kind}: from 8 to 16 bits times 257, from 16 to 8 bits divided by 256 without the "
        "rest.",
        STEPS[geometry.rule]
        + " The filter is bicubic (a = -0.5) and antialiased, as Pillow's, each channel on its own.",
        f"Give it as `pixels` {kind} [batch, channels, height, width]. Window, mean and std are inside the graph.",
    ]
    if takes.looked:
        found.append(
            "Give `looked` bool [batch, height, width]: false in the padding, and where the mask `roi`, brought to the "
            "input by the nearest pixel, is false."
        )
    return found


def _of_task(head: Head) -> dict[str, object]:
    """What the tensors of a head mean."""
    if isinstance(head, ClassifyHead):
        about = head.about
        decision = {
            name: getattr(about.decision, name) for name in ("rule", "weights", "positive", "threshold", "costs")
        }
        return {
            "kind": about.kind,
            "classes": list(about.classes),
            "decision": decision,
            "threshold": about.threshold,
            "coverage": about.coverage,
            "new": NEW,
        }
    if isinstance(head, InspectHead):
        rate = float(head.module.calibrate.rate)
        return {"false_alarms": rate, "threshold": head.about.threshold, "usual": head.about.usual}
    if isinstance(head, DetectHead):
        told = head.about
        names = ("classes", "thresholds", "widths", "coverage", "found")
        return {name: getattr(told, name) for name in names} | {"least": LEAST, "same": SAME}
    if isinstance(head, SegmentHead):
        about_ = head.about
        return {
            "classes": list(about_.classes),
            "numbers": list(about_.numbers),
            "lean": np.asarray(head.module.calibrate.lean.cpu(), np.float64).tolist(),
            "told_apart": about_.told_apart,
            "watershed": about_.threshold,
            "least": about_.least,
        }
    return {}
