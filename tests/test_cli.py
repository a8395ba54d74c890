"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from selfsight.verbs import Verb, every_verb


def selfsight(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "selfsight", *arguments], capture_output=True, text=True, cwd=cwd)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['selfsight', '--help']\nfrom selfsight.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print(sorted(m for m in ('torch', 'lance', 'timm', 'sklearn', 'numpy', 'pyarrow') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert all(f" {verb.words[0]} " in out for verb in every_verb())


@pytest.mark.parametrize("verb", every_verb(), ids=lambda verb: " ".join(verb.words))
def test_each_verb_explains_itself(verb: Verb) -> None:
    done = selfsight(*verb.words, "--help")
    assert done.returncode == 0 and " --json " in done.stdout
    for name, parameter in inspect.signature(verb.function).parameters.items():
        any_number = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        assert f" {name.upper()} " in done.stdout if any_number else f" --{name.replace('_', '-')} " in done.stdout


def test_json_is_one_object_and_nothing_else(images: Callable[..., Path], tmp_path: Path) -> None:
    photos = images(12)
    run, few = str(tmp_path / "run"), ("--steps", "2", "--batch-size", "4")
    done = selfsight("pretrain", str(photos), "-o", run, *few, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    done = selfsight("embed", str(photos), "--model", run, "-o", str(tmp_path / "f.csv"), "--json")
    assert json.loads(done.stdout)["items"] == 12
    again = selfsight("pretrain", str(photos), "-o", run, *few)
    assert again.returncode == 2 and "finished" in again.stderr and not again.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("pretrain", "nowhere", "-o", "run"), 2, "nowhere does not exist"),
        (("pretrain", ".", "-o", "../run"), 3, "No readable image"),
        (("pretrain", ".", "-o", "run"), 2, "stays as it is"),
        (("report", "nowhere"), 2, "not a run"),
        (("embed", ".", "--model", "resnet18", "-o", "f.xls"), 2, "f.xls"),
        (("import", "a.png", "-o", "file/photos.lance"), 4, "file"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_code_of_its_kind(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    if arguments[0] == "import":
        Image.new("L", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "file").write_text("no folder")
    done = selfsight(*arguments, cwd=tmp_path)
    assert done.returncode == code and not done.stdout
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_budgets(images: Callable[..., Path], tmp_path: Path) -> None:
    done = selfsight("pretrain", str(images(3)), "-o", str(tmp_path / "run"), "--steps", "2", "--minutes", "1")
    assert done.returncode == 2 and "--minutes" in done.stderr and "--steps" in done.stderr
