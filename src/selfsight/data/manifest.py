"""What a run, a head and a collection hold: one list, read by all that list, clear, remove or forget them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# What is left by whatever the loop trains.
TRAINED = {
    "environment.json": "the machine and the versions",
    "run.log": "what happened: resumes, alarms, skipped steps",
    "lock": "the process that trains it",
    "finished.json": "the steps and the seconds that it took in all",
    "metrics.jsonl": "the figures of training",
    "tensorboard": "the same, for TensorBoard",
    "checkpoints": "the last two states that training can go on from",
    "trackers.json": "the run's names in other trackers",
    "wandb": "what Weights & Biases keeps offline",
    "mlflow": "what MLflow keeps",
    "mlflow.db": "what MLflow keeps",
    "trackio": "what Trackio keeps",
}
RUN = TRAINED | {
    "recipe.yaml": "what was asked, what was chosen and why, and which data",
    "normalisation.json": "window, mean and deviation of the images",
    "set_aside.json": "the items that could not be read, with their paths and the reasons",
    "views.png": "what the objective sees",
    "neighbours.png": "what the encoder finds alike",
    "reconstructions.png": "what an objective that hides pixels makes of them",
    "start": "the encoder with the starting weights",
    "adaptation.json": "what training made of the starting weights",
    "encoder": "the trained encoder",
    "encoder.before": "the encoder before the extension that is under way",
    "evaluation.json": "what evaluate measured",
    "evaluation.csv": "the same, as a table",
    "report.html": "the page",
    "energy.json": "the energy that training took",
}
HEAD = TRAINED | {
    "head.json": "task, classes, calibration, thresholds, metrics, geometry, licence",
    "head.safetensors": "the weights of the head",
    "encoder": "the encoder that it stands on",
    "items.parquet": "the items that it learnt from",
    "lineage.json": "command, versions, seed, and the digests of data, run and encoder",
    "training.safetensors": "what only training needs",
    "evaluation.json": "what evaluate measured",
    "confusion.png": "its confusion matrix",
    "reliability.png": "how often it is right where it is so sure",
    "report.html": "the page",
    "drift.html": "the page of the drift of a stream that it was adapted to",
    "drift.png": "the distance of the stream over time",
    "drift.jsonl": "a line for each window of the stream",
}
# Beside a collection X.lance, as X and this suffix.
COLLECTION = {
    ".lance": "the table of items",
    ".lance.lock": "the process that writes it",
    ".lance.partial": "the rows of an import that was stopped",
    ".features": "features of the items, by encoder",
    ".decisions": "what people decided of the items: it cannot be made again",
}
# What older versions put into the folder of a collection.
COLLECTION_BEFORE = {"features": ".features", "decisions.jsonl": ".decisions"}
NOT_OURS = {".DS_Store"}  # put there by the system, and of no worth to anybody


def beside(collection: Path, suffix: str) -> Path:
    """Where a part of the collection X.lance lies: X and a suffix of `COLLECTION`."""
    if suffix not in COLLECTION:
        raise ValueError(f"a collection has no part {suffix!r}")
    return collection.with_name(collection.name.removesuffix(".lance") + suffix)


def before(collection: Path, suffix: str) -> Path | None:
    """Where an older version put this part of a collection, None if it had none."""
    names = [name for name, now in COLLECTION_BEFORE.items() if now == suffix]
    return collection.with_name(names[0]) if names else None


def strangers(folder: Path, parts: Mapping[str, str]) -> list[str]:
    """Names in `folder` that are none of `parts`, nor one that was being written."""
    names = {path.name for path in folder.iterdir()} - NOT_OURS
    return sorted(name for name in names if name.removesuffix(".partial") not in parts)


def walk_of(head: Path) -> Path:
    """Where `adapt` keeps how far it has come along a stream, beside the head that it writes."""
    return head.with_name(f"{head.name}.state")
