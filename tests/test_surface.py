"""What `import selfsight` gives: verbs, groups of verbs and nouns; lazily, and with their types."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import selfsight
from selfsight.heads.comparison import HeadComparison
from selfsight.heads.curves import LabelCurve
from selfsight.heads.detect_evaluation import DetectEvaluation
from selfsight.heads.evaluation import HeadEvaluation
from selfsight.heads.inspect_evaluation import InspectEvaluation
from selfsight.heads.segment_evaluation import SegmentEvaluation
from selfsight.results import Result
from selfsight.verbs import Verb, every_verb, groups
from selfsight.verbs.arguments import kinds_of

SRC = Path(__file__).parent.parent / "src"
GROUP = '''"""Learn a head."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfsight.verbs.learn.classify_images import classify_images as classify_images
'''
TASK = '''
"""A task."""
from __future__ import annotations
from dataclasses import dataclass
from selfsight.results import Result

@dataclass(frozen=True)
class Learnt(Result):
    source: str
    head_size: int
    written: str | None

def classify_images(source: str, *, head_size: int = 3, out: str | None = None) -> Learnt:
    """Learn classes.

    Parameters
    ----------
    source
        Where the images are.
    head_size
        Of the head.
    out
        File.
    """
    return Learnt(source, head_size, out)

def show(result: Learnt) -> None:
    """Print it."""
    print(f"learnt from {result.source}")
'''


USER = '''
"""What a user writes who never looks into selfsight."""

from typing import assert_type

import numpy as np
import numpy.typing as npt
from torch import Tensor

import selfsight

try:
    imported = selfsight.import_("photos", out="photos.lance")
except selfsight.SelfsightError as error:
    raise SystemExit(error.exit_code) from None
assert_type(imported.set_aside, int)
assert_type(imported.labels, dict[str, int])
planned = selfsight.plan("photos.lance", minutes=20, objective="vicreg")
assert_type(planned.estimate.seconds, float)
pretrained = selfsight.pretrain("photos.lance", out="runs/first", minutes=20, views="crop-only")
assert_type(pretrained.evidence.effective_rank, float | None)
assert_type(pretrained.alarms, list[str])
extended = selfsight.pretrain("photos.lance", out="runs/first", steps=100, extend=True)
assert_type(extended.items + extended.skipped, int)
embedding = selfsight.embed("photos.lance", model="runs/first")
assert_type(embedding.features, npt.NDArray[np.float32])
assert_type(embedding.uris, list[str])
encoder = selfsight.load("runs/first")
assert_type(encoder, selfsight.Encoder)
assert_type(encoder.dim, int)
images = encoder.geometry.to_input(np.zeros((2, 64, 64, 3), np.uint8))
assert_type(encoder(images).pooled, Tensor)
assert_type(selfsight.embed("photos.lance", model=encoder).file, str | None)
assert_type(selfsight.find("photos.lance", model=encoder, like="a.png", box=[0, 0, 8, 8]).pictures[0].similarity, float)
assert_type(selfsight.odd("photos.lance", model=encoder).pictures[0].score, float)
assert_type(selfsight.label("photos.lance", export="labels.csv").classes, dict[str, int])
evaluation = selfsight.evaluate("runs/first", train="labelled/train", test="labelled/test")
assert_type(evaluation.encoder.few_shot["5"].mean, float)
assert_type(evaluation.about.notes, list[str])
comparison = selfsight.compare("runs/first", "runs/second", probe="labelled/test")
assert_type(comparison.runs[0].knn, float | None)
assert_type(selfsight.compare("heads/first", "heads/second", test="labelled/test").better, int | None)
assert_type([head.classes for head in selfsight.runs("list").heads or []], list[list[str] | None])
assert_type(selfsight.report("runs/first").verdict.sentence, str)
assert_type([entry.bytes for entry in selfsight.cache("list").entries or []], list[int])
assert_type([run.licence for run in selfsight.runs("list").runs or []], list[str | None])
assert_type(selfsight.forget("photos.lance", "a.jpg").items, int)
assert_type(selfsight.demo(seeds=2).evaluation.encoder.knn["top1"], float | None)
assert_type([task.when for task in selfsight.objectives().objectives], list[str])
assert_type(selfsight.learn.classify_images("labelled/train", out="head").head_size, int)
'''


def python(code: str, *arguments: str) -> str:
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_looking_around_imports_nothing_heavy() -> None:
    code = "import selfsight, sys; dir(selfsight); selfsight.report, selfsight.pretrain, selfsight.SelfsightError\n"
    code += "print([m for m in ('torch', 'lance', 'timm', 'sklearn', 'numpy', 'pyarrow') if m in sys.modules])"
    assert python(code) == "[]\n"


STEPS = (
    "import selfsight.objectives.objective as o; assert o.find('simclr').family",
    "import selfsight.report.page as p; assert p.build",
    "said = contextlib.suppress(selfsight.SelfsightError)\nwith said: selfsight.objectives('no'); raise SystemExit(1)",
    "from selfsight.objectives import objective, shared; assert shared.quarters and objective.register",
    "import selfsight.objectives.objective, selfsight.report.page; assert selfsight.report.page.build",
)


@pytest.mark.parametrize("first", range(len(STEPS)))
def test_a_verb_and_a_room_of_one_name_both_work_in_any_order(first: int) -> None:
    steps = [*STEPS[first:], *STEPS[:first]]
    code = ["import contextlib, selfsight", *steps, *steps[::-1]]
    code += ["import selfsight.objectives.objective as again; assert again is o", "assert callable(selfsight.report)"]
    python("\n".join(code))


@pytest.mark.parametrize("before", ["", "import selfsight.report.page, selfsight.objectives.objective"])
def test_help_and_signature_of_a_verb_beside_a_room(before: str) -> None:
    code = f"import inspect, pickle, selfsight\n{before}\nhelp(selfsight.report)\nprint(selfsight.report.__name__)\n"
    code += "print(list(inspect.signature(selfsight.objectives).parameters))\n"
    code += "print(callable(pickle.loads(pickle.dumps(selfsight.report))))"
    said = python(code).splitlines()
    assert "report(run: 'str'" in "\n".join(said) and any("Write one web page about a run" in line for line in said)
    assert said[-3:] == ["report", "['name']", "True"]


def test_a_name_that_there_is_not() -> None:
    code = "import selfsight\n"
    code += "for name in ('nothing', 'train_', '__path_'):\n    assert not hasattr(selfsight, name), name\n"
    python(code + "assert not hasattr(selfsight.report, 'nothing')")


def seen(package: Path) -> dict[str, str]:
    """{name: the module that it is from} of what type checkers see in a package."""
    text = (package / "__init__.py").read_text()
    return {name: module for module, name in re.findall(r"^    from (\S+) import (\w+) as \2$", text, re.MULTILINE)}


def test_type_checkers_see_every_public_name() -> None:
    import selfsight

    names = seen(SRC / "selfsight")
    assert sorted(names) == selfsight.__all__
    assert {name: getattr(selfsight, name).__module__ for name in names} == names
    assert (SRC / "selfsight" / "py.typed").exists()


def test_type_checkers_see_every_verb_of_every_group() -> None:
    for group, verbs in groups().items():
        assert seen(SRC / "selfsight" / "verbs" / group) == {verb.name: verb.module.__name__ for verb in verbs}


def test_a_package_under_verbs_is_a_group(tmp_path: Path) -> None:
    package = tmp_path / "learn"
    package.mkdir()
    (package / "__init__.py").write_text(GROUP)
    assert seen(package) == {"classify_images": "selfsight.verbs.learn.classify_images"}
    (package / "classify_images.py").write_text(TASK)
    (package / "_private.py").write_text("raise SystemExit('imported')")
    code = "import sys, selfsight.verbs\nselfsight.verbs.__path__.append(sys.argv.pop(1))\nimport selfsight\n"
    code += "learn = selfsight.learn\n"
    shown = python(f"{code}print(learn.classify_images('x').to_dict(), dir(learn), learn.__module__)", str(tmp_path))
    assert shown == "{'source': 'x', 'head_size': 3, 'written': None} ['classify_images'] selfsight.verbs\n"
    line = f"{code}from selfsight.cli import main\nmain()"
    given = ("learn", "classify-images", "photos", "--head-size", "5", "-o", "file")
    assert python(line, str(tmp_path), *given) == "learnt from photos\n"
    found = json.loads(python(line, str(tmp_path), *given, "--json"))
    assert found == {"source": "photos", "head_size": 5, "written": "file"}
    assert "Learn a head." in python(line, str(tmp_path), "--help")
    assert "classify-images" in python(line, str(tmp_path), "learn", "--help")
    assert "--out -o" in python(line, str(tmp_path), "learn", "classify-images", "--help")


@pytest.mark.parametrize("verb", every_verb(), ids=lambda verb: " ".join(verb.words))
def test_each_verb_gives_a_result_that_is_shown_and_is_json(verb: Verb) -> None:
    results_of = (HeadEvaluation, InspectEvaluation, SegmentEvaluation, DetectEvaluation, HeadComparison, LabelCurve)
    names = vars(verb.module) | {kind.__name__: kind for kind in results_of}
    results = kinds_of(eval(verb.function.__annotations__["return"], names))
    assert all(isinstance(result, type) and issubclass(result, Result) for result in results)
    assert list(inspect.signature(verb.module.show).parameters) == ["result"]


def test_completion_is_installed_only_when_asked_for(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
        line = [sys.executable, "-m", "selfsight", *arguments]
        return subprocess.run(line, capture_output=True, text=True, env=environment)

    assert "--install-completion" in run("--help").stdout and not list(tmp_path.rglob("*"))
    done = run("--install-completion", "--shell", "bash")
    assert done.returncode == 0, done.stderr
    written = "\n".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "pretrain" in written and "--batch-size" in written


def test_a_type_checker_knows_every_result_of_the_installed_package(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is a development tool: pip install -e '.[dev]'")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    shutil.copytree(SRC / "selfsight", site / "selfsight")
    (site / "selfsight" / "verbs" / "learn").mkdir()  # and a group of verbs, as a newcomer adds it
    (site / "selfsight" / "verbs" / "learn" / "__init__.py").write_text(GROUP)
    (site / "selfsight" / "verbs" / "learn" / "classify_images.py").write_text(TASK)
    line = "    from selfsight.verbs.cache import"
    text = (SRC / "selfsight" / "__init__.py").read_text()
    (site / "selfsight" / "__init__.py").write_text(
        text.replace(line, f"    from selfsight.verbs import learn as learn\n{line}")
    )
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))
    installed = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # not the copy at hand

    def mypy(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        line = [sys.executable, "-m", "mypy", "--strict", "--python-executable", tmp_path / "venv/bin/python", name]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=installed).stdout

    assert mypy("user.py", USER) == "Success: no issues found in 1 source file\n"
    wrong = mypy("wrong.py", 'import selfsight\nselfsight.pretrain("photos", out="run", minuts=3)\n')
    assert 'Unexpected keyword argument "minuts"' in wrong and wrong.endswith("(checked 1 source file)\n")


def test_choices_are_spelt_out_for_people_and_checked() -> None:
    spelt = list(inspect.signature(selfsight.pretrain).parameters)
    assert spelt[:4] == ["source", "out", "minutes", "epochs"] and spelt[-2:] == ["energy", "strict"]
    assert list(inspect.signature(selfsight.plan).parameters) == spelt[:-5]
    words = inspect.getdoc(selfsight.plan) or ""
    assert [line for line in words.splitlines() if line in spelt] == spelt[:-5]
    for verb in (selfsight.plan, selfsight.pretrain):
        with pytest.raises(TypeError, match="minuts"):
            verb("photos", out="run", minuts=3)  # type: ignore[call-arg]
