"""The folder of a training, and of a pretraining."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import yaml
from safetensors import SafetensorError

from selfsight.data.lock import Busy, holder, locked
from selfsight.errors import DataError, MachineError, SelfsightError, check_version, in_words
from selfsight.files import read_json, write_whole
from selfsight.results import duration
from selfsight.training.recipe import FORMAT_VERSION, Recipe, plain


class Event(NamedTuple):
    """Something that happened to a run.

    time: local, ISO 8601.
    step: steps done before it.
    kind: "resumed", "skipped", "alarm", ….
    text: what happened.
    """

    time: str
    step: int
    kind: str
    text: str


class LeftOut(NamedTuple):
    """An item that could not be read.

    id: of the item.
    uri: of the item; "" in runs of older versions.
    reason: why.
    at: when this was found out, "import" or "decoding".
    """

    id: str
    uri: str
    reason: str
    at: str = "decoding"


@dataclass(frozen=True)
class Folder:
    """The folder that every training writes: `run.log`, `metrics.jsonl`, `checkpoints/`, `set_aside.json`,
    `energy.json`, `finished.json`.

    path: of the folder.
    last: set by a subclass, the file that is written last. Where it exists, the training is finished.
    """

    path: Path
    last: ClassVar[str]

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return self.finished or any(self.checkpoints.glob("step-*"))

    @property
    def finished(self) -> bool:
        return (self.path / self.last).exists()

    def write_set_aside(self, items: Iterable[LeftOut]) -> None:
        """Write `set_aside.json`: the items that were not learnt from, and why."""
        write_whole(self.path / "set_aside.json", json.dumps([item._asdict() for item in items], indent=1))

    def read_set_aside(self) -> list[LeftOut]:
        """The items in `set_aside.json`; empty if there is none. Older versions wrote {id: reason}."""
        file = self.path / "set_aside.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        if isinstance(kept, dict):
            return [LeftOut(item, "", reason) for item, reason in kept.items()]
        return [LeftOut(**item) for item in kept]

    def finish(self, steps: int, seconds: float) -> None:
        """Write `finished.json` with the steps and active seconds of the whole training, and log it. Call it before
        `last` is written."""
        write_whole(self.path / "finished.json", json.dumps({"steps": steps, "seconds": seconds}))
        self.log("finished", f"after {duration(seconds)}", steps)

    @property
    def seconds(self) -> float:
        """Active seconds of the whole command over all its starts: import, decoding, training and the ending. For an
        unfinished run, or one that an older version finished, up to the last row of metrics."""
        kept = read_json(self.path / "finished.json") if self.finished else None
        values = kept or (self.read_metrics() or [{}])[-1]
        return float(cast(float, values.get("seconds", 0.0)))

    @property
    def in_use(self) -> bool:
        """Whether a process of this machine trains it now."""
        return holder(self.path / "lock") is not None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Context that keeps other processes of this machine out of the run. Raises `MachineError` if one trains it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path / "lock"):
                yield
        except Busy as other:
            raise MachineError(
                f"{self.path} is being trained by process {other}. Wait for it, or give another -o."
            ) from None

    @contextmanager
    def machine_errors(self) -> Iterator[None]:
        """Context in which a full disk, a read-only folder or the like raises `MachineError`, with the cause and what
        is left of the run."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            kept = any(self.checkpoints.glob("*"))
            way = (
                f"The run in {self.path} is kept up to its last checkpoint. Remove the cause and give"
                if kept
                else "Remove the cause and give"
            )
            raise MachineError(f"{in_words(error)}. {way} the same command to go on.") from None

    def log(self, kind: str, text: str, step: int) -> None:
        """Append to `run.log`: time, step, kind ("resumed", "skipped", "alarm", …) and text, divided by tabs."""
        with (self.path / "run.log").open("a", encoding="utf-8") as file:
            file.write(_line(Event(datetime.now().isoformat(timespec="seconds"), step, kind, text)))

    def read_log(self) -> list[Event]:
        """The lines of `run.log`, oldest first."""
        if not (self.path / "run.log").exists():
            return []
        lines = (self.path / "run.log").read_text(encoding="utf-8").splitlines()
        split = (line.split("\t", 3) for line in lines)
        return [Event(p[0], int(p[1].removeprefix("step ")), p[2], p[3]) for p in split if len(p) == 4]

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of `metrics.jsonl`, oldest first."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one

    def go_back_to(self, step: int) -> None:
        """Remove what was written after `step`, as a resumed run does these steps again: rows of metrics, alarms,
        skips."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_whole(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        last = {"alarm": step, "skipped": step - 1}  # a step that is skipped is named by those before it
        events = [event for event in self.read_log() if event.step <= last.get(event.kind, event.step)]
        if len(events) < len(self.read_log()):
            write_whole(self.path / "run.log", "".join(map(_line, events)))

    def clear(self) -> None:
        """Remove what an attempt without a step left. The next attempt, perhaps with other data, measures again."""
        for name in ("run.log", "metrics.jsonl", "set_aside.json", "energy.json", "finished.json"):
            (self.path / name).unlink(missing_ok=True)


class Run(Folder):
    """The folder of a pretraining.

    It adds `recipe.yaml`, `environment.json`, `views.png` and `encoder/`. A run from given weights also has `start/`,
    the encoder before training, and `adaptation.json`. Later verbs add `evaluation.json` and `report.html`.
    """

    last = "encoder/config.json"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in the folder `path`. Raises `SelfsightError` if there is none."""
        run = cls(Path(path))
        if not run.recipe_file.exists():
            raise SelfsightError(f"{path} is not a run: it has no recipe.yaml. Runs are made by: selfsight pretrain")
        return run

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def start(self) -> Path:
        """The folder of the encoder before training, of a run from given weights."""
        return self.path / "start"

    @property
    def adaptation_file(self) -> Path:
        """The file that `Adaptation` writes."""
        return self.path / "adaptation.json"

    def write_recipe(self, asked: Mapping[str, object], recipe: Recipe, data: Mapping[str, object]) -> None:
        """Write `recipe.yaml`: the request, the resolved values with their reasons, and `data`, which pins the
        collection."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"format_version": FORMAT_VERSION, "asked": plain(asked), "data": dict(data)}
        content["resolved"] = {k: v for k, v in recipe.to_dict().items() if k != "reasons"}
        content["reasons"] = recipe.reasons
        write_whole(self.recipe_file, yaml.safe_dump(content, sort_keys=False))

    def read_recipe(self) -> tuple[dict[str, Any], Recipe, dict[str, Any]]:
        """(asked, recipe, data) from `recipe.yaml`."""
        try:
            content = yaml.safe_load(self.recipe_file.read_text(encoding="utf-8"))
            check_version(content["format_version"], FORMAT_VERSION, self.path)
            asked, data = content["asked"], content["data"]
            values = content["resolved"] | {"reasons": content["reasons"]}
            if asked.pop("pretrained", None):  # before format 3
                asked["weights"] = f"timm:{values['encoder']}"
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.recipe_file} is damaged ({type(error).__name__}). Start in another -o.") from None
        return asked, Recipe.from_dict(values), data

    def write_normalisation(self, values: dict[str, tuple[float, ...]]) -> None:
        """Store window, mean and std of the images, so that a resumed run uses the same."""
        write_whole(self.path / "normalisation.json", json.dumps(values))

    def read_normalisation(self) -> dict[str, tuple[float, ...]] | None:
        """{window, mean, std} of the images as training sees them; None if nothing was measured yet."""
        file = self.path / "normalisation.json"
        if not file.exists():
            return None
        return {name: tuple(values) for name, values in json.loads(file.read_text(encoding="utf-8")).items()}

    def clear(self) -> None:
        super().clear()
        (self.path / "normalisation.json").unlink(missing_ok=True)
        shutil.rmtree(self.start, ignore_errors=True)


def _line(event: Event) -> str:
    return f"{event.time}\tstep {event.step}\t{event.kind}\t{event.text}\n"
