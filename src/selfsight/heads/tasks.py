"""The tasks that a head can be for. What reads head.json comes here, and nothing else asks for the name of a task.

A third task, NAME, is added so:

1. `heads/NAME_voice.py`: a subclass of `About` with what its head.json says beside what every head's does, and one of
   `Voice`, which turns tensors into what is said of an item. Neither needs torch.
   `heads/NAME_head.py`: a subclass of that and of `Head` with what verbs ask of it, `of`, `predict`, `evaluate` and
   `decides`, and `told_of` where `predict --watch` is to know it. Its network has the parts `prepare`, `encoder`,
   `task` and `calibrate`; all its tensors are in `head.safetensors`, which `save_head` writes.
2. A row here.
3. `verbs/train/NAME.py`, which learns and saves it. `verbs.evaluate.show` takes its figures, `report.report` its page;
   where there is none yet, they say so in a sentence.

Predictions that have pictures (`draws`) are written by `heads/pictures.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfsight.errors import DataError, meant
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.head import Head
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.voice import About

TASKS: dict[str, type[Head]] = {
    "classify": ClassifyHead,
    "detect": DetectHead,
    "inspect": InspectHead,
    "segment": SegmentHead,
}


def head_type(task: str) -> type[Head]:
    """The heads of a task. Raises `DataError` for one that there is not, as in a folder of a newer version."""
    if task not in TASKS:
        raise DataError(
            f"There is no task {task!r} here; a newer selfsight may know it. This one knows {', '.join(TASKS)}."
            f"{meant(task, TASKS)}"
        )
    return TASKS[task]


def read_about(content: Mapping[str, object]) -> About:
    """What head.json says. Raises `KeyError`, `TypeError` or `DataError` for anything else."""
    return head_type(str(content["task"])).about_type.of(content)
