"""demo: the whole way on data that ships with scikit-learn, in about two minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.probing.evaluation import Evaluation
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.heads.evaluation import HeadEvaluation
    from selfsight.heads.inspect_evaluation import InspectEvaluation

LABELS_PER_CLASS = 5  # of the head
GOOD = "0"  # the digit that the inspection takes for good
# What someone who knows the data would say of it: a mirrored digit is another sign, and a quarter of a
# digit is none. Chosen on a fifth of the training images.
RECIPE = """\
resolved:
  objective: vicreg
  size: 32
  batch_size: 128
  views:
    groups: [{count: 2, size: 32, scale: [0.5, 1.0], flip: 0.0, colour: {solarise: 0.0}}]
"""


@dataclass(frozen=True)
class Demo(Result):
    """The result of the demo.

    evaluation: what `evaluate` measured.
    report: path of the page.
    run: folder of the run.
    images: folder of the images.
    head: folder of the head.
    head_evaluation: what `evaluate` measured of it.
    head_report: path of its page.
    inspection: what `evaluate` measured of a head that saw one digit only.
    inspection_report: path of its page.
    """

    evaluation: Evaluation
    report: str
    run: str
    images: str
    head: str
    head_evaluation: HeadEvaluation
    head_report: str
    inspection: InspectEvaluation
    inspection_report: str


@checked
def demo(*, out: str = "runs/demo", minutes: float = 1.0, seeds: int = 3, device: str | None = None) -> Demo:
    """Pretrain on 1,797 handwritten digits without their labels, evaluate with a few, write the report; then learn to
    read them from 5 labels per class, and to tell other digits from one of which alone examples were seen.

    Parameters
    ----------
    out
        Folder of the demo: the images, the run with its report, and two heads with theirs.
    minutes
        Time of the pretraining.
    seeds
        Random draws of the labels for each figure.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.training.run import Run
    from selfsight.verbs.evaluate import evaluate
    from selfsight.verbs.pretrain import pretrain
    from selfsight.verbs.report import report
    from selfsight.verbs.train.classify import classify
    from selfsight.verbs.train.inspect import inspect

    folder = Path(out)
    images = folder / "digits"
    run = folder / "run"
    write_digits(images)
    if not Run(run).finished:
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE)
        pretrain(str(images / "train"), out=str(run), minutes=minutes, recipe=str(recipe))
    result = evaluate(str(run), train=str(images / "train"), test=str(images / "test"), shots="1,5,10", seeds=seeds)
    page = report(str(run))
    head, labels = folder / "head", folder / "labels.csv"
    write_labels(images / "train", labels)
    classify(str(images / "train"), model=str(run), out=str(head), labels=str(labels))
    from selfsight.heads.evaluation import HeadEvaluation
    from selfsight.heads.inspect_evaluation import InspectEvaluation

    measured = evaluate(str(head), test=str(images / "test"))
    assert isinstance(measured, HeadEvaluation)
    inspector = folder / "inspect"
    inspect(str(images / "train" / GOOD), model=str(run), normal=GOOD, out=str(inspector))
    inspected = evaluate(str(inspector), test=str(images / "test"))
    assert isinstance(inspected, InspectEvaluation)
    pages = [report(str(each)).report for each in (head, inspector)]
    return Demo(result, page.report, str(run), str(images), str(head), measured, pages[0], inspected, pages[1])


def write_digits(folder: Path) -> None:
    """scikit-learn's handwritten digits (8 x 8 pixels, enlarged to 32) as PNG: every fifth is for testing."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("test" if i % 5 == 4 else "train") / str(label) / f"{i:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
            image.resize((32, 32), Image.Resampling.BICUBIC).save(path)


def write_labels(images: Path, file: Path) -> None:
    """A table of labels for some of the images, drawn by a seed: the others have none."""
    import random

    draw, lines = random.Random(0), ["path,label"]
    for folder in sorted(images.iterdir()):
        drawn = draw.sample(sorted(path.name for path in folder.glob("*.png")), LABELS_PER_CLASS)
        lines += [f"{folder.name}/{name},{folder.name}" for name in sorted(drawn)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def show(result: Demo) -> None:
    """Print the table, what the head is worth, where the pages are and what to type next."""
    from selfsight.heads.metrics import percent
    from selfsight.verbs.evaluate import show as show_evaluation

    show_evaluation(result.evaluation)
    right = f"{percent(result.head_evaluation.metrics['top1'])} of {result.head_evaluation.items:,} test images"
    print(f"\nThe report: {result.report}")
    print(f"A head from {LABELS_PER_CLASS} labels per class is right on {right}. Its page: {result.head_report}")
    print(
        f"A head that saw the digit {GOOD} only tells the others from it with AUROC "
        f"{result.inspection.metrics['auroc'].value:.3f}. Its page: {result.inspection_report}"
    )
    print("Now with your own images:\n  selfsight pretrain photos/ -o runs/first --minutes 20")
