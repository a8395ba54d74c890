"""train classify: from a few labels to a head that names classes, grades or numbers."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from selfsight.errors import SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.data.labels import Labels
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.calibration import Decision
    from selfsight.heads.classify import Learnt, Wish
    from selfsight.heads.self_training import SelfTraining
    from selfsight.probing.evaluation import Interval
    from selfsight.training.recipe import Budget

TUNED = ("finetune", "norm", "lora")


@dataclass(frozen=True)
class Classifier(Result):
    """The result of `train classify`.

    head: its folder. kind: of the labels: class, classes, grade or number. classes: in the order of probabilities.
    method: that scores features. items: labelled ones that it learnt from. unlabelled: items without a label. metrics:
    of items that were held out in turn, with 95 % intervals. decision: how probabilities become a label, and its price.
    tried: {method and setting: loss on held-out items}, the best first. commonest: share of the labels that are of the
    commonest class, None where an item has no one class. over_frozen: how much better a tuned encoder is than the
    frozen one, on labels that tuning did not see, None if nothing was tuned. self_training: what came of it, None if it
    was not asked for. over_before: how much better it is than the head that was in the folder, None if there was none.
    replaced: whether it took its place. notes: what a user must know.
    """

    head: str
    kind: str
    classes: list[str]
    method: str
    items: int
    unlabelled: int
    metrics: dict[str, Interval]
    decision: Decision
    tried: dict[str, float]
    commonest: float | None
    over_frozen: Interval | None
    self_training: SelfTraining | None
    over_before: Interval | None
    replaced: bool
    notes: list[str]


@checked
def classify(
    source: str,
    *,
    model: str | Encoder,
    out: str,
    labels: str | None = None,
    kind: Literal["class", "grade", "number"] = "class",
    method: Literal["prototypes", "linear", "ordinal", "knn", "finetune", "norm", "lora"] | None = None,
    self_train: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    miss_rate: float | None = None,
    positive: str | None = None,
    costs: str | None = None,
    coverage: float = 0.9,
    seed: int = 0,
    device: str | None = None,
) -> Classifier:
    """Learn a head from the labelled items of SOURCE: it names the class, the classes, the grade or the number.

    The encoder stays as it is, unless --method tunes it. What is not named is chosen by cross-validation on the labels,
    with groups (patients, parts) on one side; the same held-out items calibrate the probabilities, size the prediction
    sets and measure the head. Items without a label are left out, unless --self-train guesses them. If -o holds a head
    already, the new one takes its place unless it is measurably worse; the old one is kept in FOLDER.before.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME alone),
        torchvision:NAME or package:NAME.
    out
        Folder for the head.
    labels
        A CSV or Parquet with the columns label (several as a|b) and path or id. If not given: what `selfsight label`
        recorded, the column `label`, or else the names of the outermost folders.
    kind
        class: one class an item, or several where a label has several. grade: ordered classes. number: a quantity.
    method
        prototypes: the nearest class mean. linear: logistic or ridge regression. ordinal: for grades. knn: the nearest
        labelled items vote. One of these is chosen if not given; they take seconds. Only if asked for, and for minutes,
        the encoder is tuned: finetune, all of it; norm, the weights of its norms; lora, low-rank changes of a ViT's
        attention (`pip install 'selfsight[lora]'`). Where that is not better, the frozen head is kept.
    self_train
        Guess labels of unlabelled items and learn from those that are seen to be right; nothing is learnt from guesses
        that do not help.
    minutes
        Of the whole command, with finetune, norm and lora. Ctrl-C saves, and the same command goes on.
    steps
        Of tuning, in place of minutes; if neither is given, a number that fits the labels.
    miss_rate
        The largest share of the items of --positive that may be missed, such as 0.01: sets the threshold and prints the
        false alarms that it costs.
    positive
        The class that must not be missed; of two classes the rarer, if not given.
    costs
        A CSV with the columns truth, answer and cost: the answer with the least expected cost is given.
    coverage
        Share of the prediction sets (for numbers: intervals) that are to hold the truth.
    seed
        Of the folds, and of tuning.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    started = time.monotonic()
    import shutil

    import pyarrow as pa

    from selfsight.data.canvases import measure_format
    from selfsight.data.labels import Labels
    from selfsight.data.written import note
    from selfsight.encoders.features import pooled_labelled
    from selfsight.encoders.weights import encoder_of
    from selfsight.heads.classify import Wish
    from selfsight.heads.classify_head import ClassifyHead, about_of, items_of, state_of
    from selfsight.heads.head import save_head
    from selfsight.heads.lineage import lineage_of
    from selfsight.heads.succession import gain_over, opened

    budget = _budget(method, self_train, minutes, steps)
    items, folder, before = opened(source, out, ClassifyHead)
    every = Labels.of(items, path=labels, kind=kind)
    encoder = encoder_of(model, measure_format(items))
    taught, features, bad = pooled_labelled(encoder, items, every.labelled(least=2))
    wish = Wish(method, coverage, miss_rate, positive, costs, seed)
    tuning = folder.with_name(f"{folder.name}.tuning")
    if method in TUNED:
        found = _tuned(encoder, items, taught, features, wish, budget, tuning, started)
    else:
        found = _frozen(encoder, items, taught, features, wish, every if self_train else None)
    learnt = found.learnt
    notes = [every.doubt] if every.doubt else []
    notes += [f"{items.uri_of(item)} {reason}" for item, reason in sorted(bad.items())]
    about = about_of(learnt, taught, found.encoder, [*notes, *found.notes])
    gain = None if before is None else gain_over(before, learnt, taught, items)
    if replaced := gain is None or gain.sign >= 0:
        lineage = lineage_of(items, taught, found.encoder, model, seed, before)
        lineage |= {"tuned_from": encoder.digest} if found.encoder is not encoder else {}
        table = items_of(learnt, taught, found.features)
        if found.guesses is not None:
            table = pa.concat_tables([table, found.guesses], promote_options="default")
        save_head(folder, about, state_of(learnt), found.encoder, table, lineage)
        note("head", folder, items.path)
    shutil.rmtree(tuning, ignore_errors=True)
    return Classifier(
        str(folder), about.kind, list(about.classes), f"{about.method} {about.setting}".strip(), about.items,
        len(every) - int(every.known.sum()), about.metrics["held_out"], about.decision, about.tried,
        float(learnt.targets.values.mean(0).max()) if about.kind in ("class", "grade") else None, found.over_frozen,
        found.self_training, gain, replaced, about.notes,
    )  # fmt: skip


class _Found(NamedTuple):
    """What was learnt: features are of the labelled items, by the encoder; guesses are rows of items.parquet."""

    encoder: Encoder
    features: np.ndarray
    learnt: Learnt
    notes: list[str]
    over_frozen: Interval | None = None
    self_training: SelfTraining | None = None
    guesses: pa.Table | None = None


def _budget(method: str | None, self_train: bool, minutes: float | None, steps: int | None) -> Budget | None:
    """The budget that was given. Raises `SelfsightError` for options that do not go together."""
    from selfsight.training.recipe import Budget

    if method not in TUNED and (minutes is not None or steps is not None):
        asked = "--steps" if minutes is None else "--minutes"
        raise SelfsightError(f"{asked} is for --method {', '.join(TUNED[:-1])} and {TUNED[-1]}. Others take seconds.")
    if self_train and method in (*TUNED, "knn"):
        raise SelfsightError(
            f"--self-train does not go with --method {method}. Leave --method out, or give prototypes or linear."
        )
    return None if minutes is None and steps is None else Budget(minutes=minutes, steps=steps)


def _frozen(
    encoder: Encoder, items: Collection, labels: Labels, features: np.ndarray, wish: Wish, every: Labels | None
) -> _Found:
    """A head on frozen features; of `every` item, if given, those without a label are guessed."""
    import numpy as np

    from selfsight.data.spread import spread
    from selfsight.encoders.features import pooled
    from selfsight.heads.classify import learn
    from selfsight.heads.self_training import POOL, check_kind, self_trained

    if every is None:
        return _Found(encoder, features, learn(labels, features, wish), [])
    check_kind(labels)
    learnt = learn(labels, features, wish)
    open_ = np.flatnonzero(~every.known)
    pool = every.take(open_[spread(len(open_), POOL)])
    of_pool = features[:0]
    if len(pool):
        rows, of_pool, _ = pooled(encoder, items, pool.rows)
        pool = pool.take(np.flatnonzero(np.isin(pool.ids, rows["id"].to_pylist())))
    learnt, done, guesses = self_trained(learnt, labels, features, pool, of_pool, wish)
    return _Found(encoder, features, learnt, [f"self-training: {done.why}"], None, done, guesses)


def _tuned(
    encoder: Encoder, items: Collection, labels: Labels, features: np.ndarray, wish: Wish, budget: Budget | None,
    folder: Path, started: float,
) -> _Found:  # fmt: skip
    """A head on the encoder that the labels tuned, or on the frozen one if that is not worse."""
    from selfsight.heads.tuned_head import tuned_head

    found = tuned_head(encoder, items, labels, features, wish, budget, folder, started)
    return _Found(found.encoder, found.features, found.learnt, [found.note], found.gain)


def show(result: Classifier) -> None:
    """Print what was learnt, how well it does on held-out items, and what to do next."""
    from selfsight.console import results, table
    from selfsight.heads.metrics import shown
    from selfsight.report.head_worth import decided

    console = results(soft_wrap=True)
    of = f"{len(result.classes)} classes" if result.classes else "a number"
    without = f"; {result.unlabelled:,} without a label are left out" if result.unlabelled else ""
    console.print(f"Learnt {of} from {result.items:,} labelled items by {result.method}{without}.")
    if result.metrics:
        rows = [(title, value) for title, value in shown(result.metrics)]
        table(("on items held out in turn", "value [95 % interval]"), rows)
    if result.metrics and result.commonest is not None:
        console.print(f"Always answering the commonest class would be right on {100 * result.commonest:.1f} %.")
    for sentence in decided(result.decision):
        console.print(sentence)
    for text in result.notes:
        console.print(f"Note: {text}.")
    where = shlex.quote(result.head)
    if not result.replaced:
        console.print(f"It is worse than the head in {where}, which stays. Nothing was written.")
        return
    if result.over_before is not None:
        console.print(f"It took the place of the head that was there, now in {where}.before.")
    console.print(f"Next: selfsight predict NEW/ --head {where} -o predictions.parquet")
