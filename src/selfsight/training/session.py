"""One start of a run, from the settled recipe to the saved encoder: everything around the loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from selfsight.console import console
from selfsight.data.batches import Batches
from selfsight.data.canvases import Canvases
from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.distributed import gathered, main_first
from selfsight.encoders.store import read_folder, save
from selfsight.encoders.whitening import whiten
from selfsight.errors import TrainingError
from selfsight.files import write_whole
from selfsight.machine import cores_of_process, environment, kind_of
from selfsight.training.adaptation import Adaptation
from selfsight.training.build import build, normalisation_of, starting_encoder
from selfsight.training.clock import Clock
from selfsight.training.doubts import doubts
from selfsight.training.estimate import check_memory, memory_of, memory_told
from selfsight.training.loop import Done, Stopped
from selfsight.training.measure import canvas_features, seconds_to_whiten, whitening_items
from selfsight.training.pretraining import train
from selfsight.training.recipe import Recipe
from selfsight.training.recorder import Watch
from selfsight.training.run import LeftOut, Run
from selfsight.training.settle import Settled
from selfsight.training.show import Show
from selfsight.training.threads import threads_for
from selfsight.training.watch import online_knn

SHOWN = {
    "loss": "loss {:.3f}",
    "effective_rank": "rank {:.0f}",
    "spread": "spread {:.2f}",
    "agreement": "agreement {:.2f}",
    "views_per_second": "{:,.0f} views/s",
}


class Session:
    """A claimed run, about to be trained. Every process has one, and only the main process writes.

    started: `time.monotonic()` at the start of the command.
    watched: labelled images, used only to show k-NN accuracy during training.

    Raises `SelfsightError` if a step would need more memory than there is.
    """

    def __init__(
        self,
        run: Run,
        settled: Settled,
        canvases: Canvases,
        accelerator: Accelerator,
        started: float,
        watched: Collection | None = None,
    ) -> None:
        self.run, self.recipe, self.canvases, self.accelerator = run, settled.recipe, canvases, accelerator
        recipe, self.main = self.recipe, accelerator.is_main_process
        cores = cores_of_process(accelerator.num_processes)
        self.threads = threads_for(recipe, kind_of(str(accelerator.device)), cores, run.begun)
        torch.set_num_threads(self.threads.number if self.threads else recipe.threads)
        with main_first(accelerator):
            self.normalise = _normalisation(run, canvases, recipe)
            start = starting_encoder(recipe, settled.format, self.normalise, run.start)
        self.objective = build(recipe, settled.format, self.normalise, start)
        ranks = accelerator.process_index, accelerator.num_processes
        self.batches = Batches(canvases, recipe.batch_size, recipe.seed, recipe.views.companion, *ranks)
        self.memory = memory_of(self.objective, self.batches, self.normalise, recipe, str(accelerator.device))
        check_memory(self.memory, recipe)
        self.encoder = self.objective.trained.to(accelerator.device)
        self.clock = Clock(recipe.budget, started, self.batches.steps_per_epoch, recipe.accumulate)
        self.clock.first_step, self.clock.first_seconds = settled.first_step, settled.first_seconds
        self.watches: list[Watch] = [online_knn(self.encoder, watched)] if watched else []
        self.adaptation = self._adaptation() if start is not None and self.main else None
        self.watches += [self.adaptation.measure] if self.adaptation else []
        if recipe.budget.minutes is not None:
            self.clock.reserve = self._seconds_to_end()

    def train(self, trackers: Sequence[str] = ()) -> Done:
        """Train until the budget is spent. Returns the steps done and skipped.

        Raises `Stopped` if the user stops it, and `SelfsightError` if memory is used up, steps are not finite, or there
        was no time for a single step.
        """
        run, recipe, clock = self.run, self.recipe, self.clock
        if self.main:
            device = str(self.accelerator.device)
            write_whole(run.path / "environment.json", json.dumps(environment(device), indent=2))
            self._note_doubts()
        title = f"{recipe.objective} with {recipe.encoder} into {run.path}"
        what = self.objective, self.batches, self.normalise, recipe, run, clock, self.accelerator
        with self._set_aside(), Show(title, SHOWN) as show, memory_told(self.memory, recipe):
            done = train(*what, show, self.watches, trackers, self.threads)
        if done.step == 0:
            raise TrainingError(
                f"{recipe.budget.minutes:g} minutes are too few: {clock.seconds:.0f} s went by before the first step, "
                f"and {clock.reserve:.0f} s are kept for measuring the features in the end. "
                "Give another -o and more --minutes."
            )
        return done

    def _note_doubts(self) -> None:
        """Say, before the first step, what speaks against the images or their views."""
        if self.run.read_metrics():
            return
        odd = self.canvases.collection.oddities.items()
        notes = [f"{len(uris):,} of the images used: {note}" for note, uris in odd]
        for text in doubts(self.batches, self.objective.views, self.normalise, self.recipe.seed):
            console().print(f"{text}.", style="yellow", soft_wrap=True)
            notes.append(text)
        for text in notes:
            self.run.log("note", f"{text}.", 0)

    def keep(self, done: Done) -> None:
        """Whiten the encoder, or what is kept of its adaptation, and save it, which finishes the run. Raises
        `SelfsightError` if its features are not finite."""
        if not self.main:
            return
        run, recipe = self.run, self.recipe
        encoder = self.adaptation.keep(run, done.step) if self.adaptation else self.encoder
        items = whitening_items(encoder, self.adaptation is not None)
        features = canvas_features(encoder, self.batches, self.normalise, items)
        if not torch.isfinite(features).all():
            raise TrainingError(
                f"The encoder of {run.path} gives values that are not finite, and is not kept. Start again, in another "
                f"folder, with a --learning-rate below {recipe.learning_rate:.2g}."
            )
        if not whiten(encoder, features):
            text = f"Features are kept as they are: {recipe.encoder} ends in more than the linear layer of a whitening."
            run.log("note", text, done.step)
        run.write_set_aside(set_aside(self.canvases))  # this may be the first to read an item
        run.finish(done.step, self.clock.seconds)
        save(encoder, run.path / "encoder")
        shutil.rmtree(run.path / "encoder.before", ignore_errors=True)  # of the run that was extended

    def _adaptation(self) -> Adaptation:
        """The comparison with the starting weights. They are read again, as the encoder may have been trained
        already."""
        start = read_folder(self.run.start).to(self.accelerator.device)
        return Adaptation(start, self.encoder, self.batches, self.normalise, self.recipe.precision)

    def _seconds_to_end(self) -> float:
        """Seconds that a run by minutes has to keep for its ending."""
        adapted = 1.3 * self.adaptation.seconds_to_keep if self.adaptation else 0
        items = whitening_items(self.encoder, self.adaptation is not None)
        return seconds_to_whiten(self.encoder, self.batches, self.normalise, whiten_by=items) + adapted

    @contextmanager
    def _set_aside(self) -> Iterator[None]:
        """Context that knows the items which failed to decode in earlier starts. At its end the failures of all
        processes are stored, but only if every process got there, as they wait for each other."""
        canvases, ended = self.canvases, False
        canvases.set_aside |= {item.id: item.reason for item in self.run.read_set_aside() if item.at == "decoding"}
        try:
            yield
            ended = True
        except Stopped:
            ended = True
            raise
        finally:
            canvases.set_aside = gathered(canvases.set_aside) if ended else canvases.set_aside
            if self.main:
                self.run.write_set_aside(set_aside(canvases))


def set_aside(canvases: Canvases) -> list[LeftOut]:
    """The items set aside at import or while decoding, in the order of their paths."""
    items, failed = canvases.collection, canvases.set_aside
    columns = (items.set_aside[name].to_pylist() for name in ("id", "uri", "reason"))
    found = [LeftOut(item, uri, reason, "import") for item, uri, reason in zip(*columns, strict=True)]
    if failed:
        uris = dict(zip(canvases.ids, canvases.rows["uri"].to_pylist(), strict=True))
        found += [LeftOut(item, uris.get(item, ""), reason) for item, reason in failed.items()]
    return sorted(found, key=lambda item: item.uri)


def _normalisation(run: Run, canvases: Canvases, recipe: Recipe) -> Geometry:
    """The normalisation: of the starting weights, or measured. It is stored at the first start, for resumed runs."""
    if kept := run.read_normalisation():
        return canvases.geometry(kept["mean"], kept["std"])
    normalise = normalisation_of(recipe, canvases)
    run.write_normalisation({"window": normalise.window, "mean": normalise.mean, "std": normalise.std})
    return normalise
