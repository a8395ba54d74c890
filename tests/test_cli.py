"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from selfsight.cli import GROUPS, app, main
from selfsight.verbs import HEADINGS, Verb, every_verb


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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import photos", "--out is missing: the collection to make, NAME.lance. For example: selfsight import photos/ "
         "-o photos.lance"),
        ("embed photos", "--model is missing: a run, an encoder folder, "),
        ("evaluate run", "--train FOLDER --test FOLDER"),
        ("evaluate", "MODEL is missing: a run, an encoder folder, "),
        ("evaluate run --train", "--train needs a value: folder of labelled images"),
        ("evaluate run --train --test there", "--train needs a value: folder of labelled images"),
        ("pretrain photos -o", "-o needs a value: folder of the run. For example: selfsight pretrain photos/ -o "),
        ("forget", "COLLECTION is missing: a .lance collection; "),
        ("evalute run", "There is no verb evalute. Did you mean evaluate? Type selfsight --help."),
        ("frobnicate", "There is no verb frobnicate. Type selfsight --help."),
        ("--vers", "There is no option --vers. Did you mean --version? Type selfsight --help."),
        ("pretrain photos -o run --minuts 3", "There is no option --minuts. Did you mean --minutes? Type selfsight"),
        ("pretrain photos -o run --minuts=3", "There is no option --minuts. Did you mean --minutes? Type selfsight"),
        ("pretrain photos -o run -q", "There is no option -q. Type selfsight pretrain --help."),
        ("pretrain photos -o run --views full2", "--views takes 'full', 'crop-only', not 'full2'. Did you mean full?"),
        ("runs lst", "ACTION takes 'list', 'remove', not 'lst'. Did you mean list?"),
        ("pretrain photos -o run --minutes abc", "--minutes takes a number, not 'abc'."),
        ("pretrain photos -o run --steps 2.5", "--steps takes a whole number, not '2.5'."),
        ("pretrain photos -o run --extend=maybe", "--extend takes True or False, not 'maybe'."),
        ("pretrain photos -o run --steps 1 --steps 2", "--steps is given twice. Type selfsight pretrain --help."),
        ("report run more", "'more' is one word too many. Type selfsight report --help."),
        ("plan photos --objective simclr2", "Did you mean simclr?"),
        ("plan photos --optimiser adam", "Did you mean adamw?"),
        ("objectives vicregg", "Did you mean vicreg?"),
        ("embed . --model run --device gpu", "--device takes cpu, cuda, cuda:N or mps, not 'gpu'."),
    ],
)  # fmt: skip
def test_a_command_line_that_is_not_understood_is_one_sentence(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["selfsight", *line.split()])
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cyclopts' for tests that forget to give words
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert err.startswith("selfsight: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", every_verb(), ids=lambda verb: " ".join(verb.words))
def test_the_example_of_each_verb_is_understood(verb: Verb) -> None:
    words = verb.example.split()
    assert tuple(words[1 : 1 + len(verb.words)]) == verb.words
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_options_stand_under_headings_where_there_are_many(capsys: pytest.CaptureFixture[str]) -> None:
    def under(verb: str) -> dict[str, list[str]]:
        with contextlib.suppress(SystemExit):
            app([verb, "--help"])
        panels = re.findall(r"╭─ (\w+) ─+╮\n(.*?)╰", capsys.readouterr().out, re.DOTALL)
        return {title: re.findall(r"^│ (?:\*  |   )?.*?(--[\w-]+)", text, re.MULTILINE) for title, text in panels}

    found = under("pretrain")
    assert list(found) == ["Arguments", "Data", "Encoder", "Training", "Budget", "Machine", "Output"]
    assert found["Budget"] == ["--minutes", "--epochs", "--steps", "--extend"]
    assert found["Output"] == ["--out", "--track", "--json"] and found["Machine"] == ["--device", "--energy"]
    assert list(under("report")) == ["Arguments", "Options"]
    for title, names in HEADINGS.items():
        assert title in GROUPS and len(set(names)) == len(names)
    assert "Options" not in {title for verb in ("pretrain", "plan", "import") for title in under(verb)}


@pytest.mark.parametrize(("verb", "words"), [("runs", ("list", "remove")), ("cache", ("list", "clear"))])
def test_help_has_a_line_for_each_word(verb: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        app([verb, "--help"])
    said = capsys.readouterr().out
    assert all(re.search(rf"^│ +• {word}: ", said, re.MULTILINE) for word in words)


def test_two_budgets(images: Callable[..., Path], tmp_path: Path) -> None:
    done = selfsight("pretrain", str(images(3)), "-o", str(tmp_path / "run"), "--steps", "2", "--minutes", "1")
    assert done.returncode == 2 and "--minutes" in done.stderr and "--steps" in done.stderr
