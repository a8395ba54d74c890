"""runs: which there are, and that only what is a run of nobody else is removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny_encoder, write_colours

import selfsight
from selfsight.encoders.store import save
from selfsight.results import duration
from selfsight.training.run import Run
from selfsight.verbs.pretrain import show as show_pretrained
from selfsight.verbs.runs import removes, show

STEPS = 2


@pytest.fixture
def first(images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run runs/first, with all that verbs write into a run; the working folder is the one above."""
    monkeypatch.chdir(tmp_path)
    images(6)
    selfsight.pretrain("photos", out="runs/first", steps=STEPS, batch_size=4)
    return Path("runs/first")


def stopped(first: Path, name: str) -> Path:
    """A run without its encoder: what a kill leaves."""
    copy = Path(shutil.copytree(first, f"runs/{name}"))
    shutil.rmtree(copy / "encoder")
    return copy


def training(run: Path) -> subprocess.Popen[str]:
    """Another process that has claimed a run, until its stdin is closed."""
    code = "import sys; from selfsight.training.run import Run\n"
    code += "with Run.open(sys.argv[1]).claimed(): print('claimed', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "claimed\n"
    return process


def test_runs_are_listed_with_their_state(first: Path):
    second = stopped(first, "deep/second")
    with (second / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "seconds": 120.5}\n{"step": 8, "sec')  # a kill cut the last row
    damaged = stopped(first, "third")
    (damaged / "recipe.yaml").write_text("asked: [")
    took = json.loads((first / "finished.json").read_text())["seconds"]
    size = sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    rows = selfsight.runs().runs
    assert [(row.run, row.state) for row in rows] == [
        ("runs/deep/second", "stopped"), ("runs/first", "finished"), ("runs/third", "damaged"),
    ]  # fmt: skip
    assert rows[1].to_dict() == {
        "run": "runs/first", "state": "finished", "objective": "simclr", "encoder": "resnet18", "items": 6,
        "weights": "random", "licence": "none: trained from random weights", "steps": STEPS, "seconds": took,
        "bytes": size,
    }  # fmt: skip
    assert (rows[0].steps, rows[0].seconds) == (7, 120.5)
    assert [row.run for row in selfsight.runs("list", "runs/deep", "runs/first").runs] == [
        "runs/deep/second", "runs/first",
    ]  # fmt: skip


def test_a_run_has_one_duration(first: Path, capsys: pytest.CaptureFixture[str]):
    """That of the whole command, which is longer than up to the last step."""
    shutil.rmtree(first)
    result = selfsight.pretrain("photos", out="runs/first", steps=STEPS, batch_size=4)
    (first / "finished.json").write_text(json.dumps({"steps": STEPS, "seconds": 134.2}))
    last = json.loads((first / "metrics.jsonl").read_text().splitlines()[-1])
    [listed] = selfsight.runs().runs
    assert listed.seconds == 134.2 and last["seconds"] < result.seconds
    show(selfsight.runs())
    show_pretrained(replace(result, seconds=listed.seconds))
    page = Path(selfsight.report("runs/first").report).read_text()
    said = capsys.readouterr().out.split("\n")
    assert "2.2 min" in said[1] and said[2].endswith("on 6 images in 2.2 min, import and decoding included.")
    assert "· 2.2 min, import and decoding included" in page
    (first / "finished.json").unlink()  # as older versions left it
    assert selfsight.runs().runs[0].seconds == last["seconds"]


def test_the_log_says_it_too(first: Path):
    [text] = [event.text for event in Run.open(first).read_log() if event.kind == "finished"]
    assert text == f"after {duration(Run.open(first).seconds)}"


def test_what_is_damaged_is_listed_whatever_it_holds(first: Path):
    for name, file, content in (("a", "recipe.yaml", b"\xff\xfe\x00"), ("b", "metrics.jsonl", b'{"step": \n{}\n')):
        (stopped(first, name) / file).write_bytes(content)
    assert [row.state for row in selfsight.runs().runs] == ["damaged", "damaged", "finished"]


def test_a_run_that_trains_is_not_removed_and_neither_are_others_with_it(first: Path):
    second = stopped(first, "second")
    before = sorted(Path("runs").rglob("*"))
    process = training(second)
    try:
        assert [row.state for row in selfsight.runs().runs] == ["finished", "training"]
        with pytest.raises(selfsight.SelfsightError, match=f"runs/second is being trained by process {process.pid}"):
            selfsight.runs("remove", "runs/first", "runs/second")
        assert sorted(Path("runs").rglob("*")) == sorted([*before, second / "lock"])
    finally:
        process.communicate("", timeout=60)
    removed = selfsight.runs("remove", "runs/first", "runs/second", "runs/../runs/first/").removed
    assert [row.state for row in removed] == ["finished", "stopped"]
    assert not any(Path("runs").iterdir()) and Path("photos").is_dir()


def test_a_run_with_all_that_verbs_write_into_it_is_removed(first: Path):
    for split in ("train", "test"):
        for label in ("good", "bad"):
            shutil.copytree("photos", f"labelled/{split}/{label}")
    selfsight.evaluate("runs/first", train="labelled/train", test="labelled/test")
    selfsight.report("runs/first")
    (first / "recipe.yaml.partial").write_text("what a kill leaves")
    selfsight.runs("remove", "runs/first")
    assert not first.exists()


def test_what_is_no_run_is_refused_and_nothing_is_removed(first: Path):
    Path("mine").mkdir()
    (Path("mine") / "thesis.txt").write_text("years of work")
    stopped(first, "second")
    (Path("runs/second") / "photos").mkdir()
    before = sorted(Path().rglob("*"))
    for given, said in (
        ("mine", "mine is not a run"),
        ("nowhere", "nowhere is not a run"),
        ("runs", "runs is not a run"),
        ("runs/second", "runs/second also holds files that are not a run's: photos"),
    ):
        with pytest.raises(selfsight.SelfsightError, match=said):
            selfsight.runs("remove", "runs/first", given)
    with pytest.raises(selfsight.SelfsightError, match="selfsight runs remove runs/first"):
        selfsight.runs("remove")
    with pytest.raises(selfsight.SelfsightError, match="nowhere is not a folder"):
        selfsight.runs("list", "nowhere")
    assert sorted(Path().rglob("*")) == before


def test_on_the_command_line(first: Path):
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "selfsight", "runs", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "runs/first" in said("list", "runs") and "finished" in said()
    assert json.loads(said("list", "--json"))["runs"][0]["steps"] == STEPS
    assert said("remove", "runs/first", "--yes").startswith("Removed runs/first, ")
    assert "No runs here" in said()


def test_removing_asks_first_where_somebody_types(first: Path):
    def removed(answer: str | None, *more: str) -> tuple[int, str]:
        """Exit code and stderr, where a terminal answers, or where there is none."""
        command = [sys.executable, "-m", "selfsight", "runs", "remove", "runs/first", *more]
        terminal, stdin = os.openpty() if answer is not None else (-1, subprocess.DEVNULL)
        if answer is not None:
            os.write(terminal, answer.encode())
        done = subprocess.run(command, capture_output=True, text=True, stdin=stdin)
        for opened in (terminal, stdin) if answer is not None else ():
            os.close(opened)
        return done.returncode, done.stderr

    code, said = removed(None)
    assert code == 2 and first.exists()
    assert re.fullmatch(
        r"selfsight: This would remove runs/first \(finished, [\d.]+ MB\)\. To do it, add --yes\.\n", said
    )
    for no in ("n\n", "\n", "\x04"):
        code, said = removed(no)
        assert (
            code == 2 and said.startswith("Remove runs/first (finished, ") and said.endswith("Nothing was removed.\n")
        )
        assert first.exists()
    assert (
        removed(None, "extra")[1]
        == "selfsight: extra is not a run: it has no recipe.yaml. Runs are made by: selfsight pretrain\n"
    )
    code, said = removed("y\n")
    assert code == 0 and not first.exists()


def test_a_long_path_is_printed_whole(first: Path):
    deep = Path("runs") / "/".join(f"a_folder_of_somebody_{i}" for i in range(5)) / "run"
    shutil.copytree(first, deep)
    command = [sys.executable, "-m", "selfsight", "runs"]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}).stdout
    assert f"    {deep}" in said.splitlines() and "    runs/first" in said.splitlines()
    shutil.rmtree(deep)
    lines = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    ).stdout.splitlines()
    assert len(lines) == 2 and lines[1].endswith("  runs/first") and len(lines[1]) <= 80


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """heads/colours and heads/numbers; the working folder is the one above."""
    monkeypatch.chdir(tmp_path)
    save(tiny_encoder(32), tmp_path / "encoder")
    write_colours(tmp_path / "train", 4)
    rows = [f"{path.relative_to('train')},{i}" for i, path in enumerate(sorted(Path("train").rglob("*.png")))]
    Path("numbers.csv").write_text("\n".join(["path,label", *rows]))
    selfsight.train.classify("train", model="encoder", out="heads/colours", method="prototypes")
    selfsight.train.classify("train", model="encoder", out="heads/numbers", labels="numbers.csv", kind="number")
    return tmp_path / "heads"


def test_heads_are_listed_and_removed_with_all_that_verbs_write_into_them(
    heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("heads/colours", "heads/hurt")
    Path("heads/hurt/head.json").write_text("{")
    found = selfsight.runs()
    assert found.runs == [] and [row.head for row in found.heads or []] == [
        "heads/colours", "heads/hurt", "heads/numbers",
    ]  # fmt: skip
    size = sum(path.stat().st_size for path in Path("heads/colours").rglob("*") if path.is_file())
    colours, hurt, numbers = (row.to_dict() for row in found.heads or [])
    assert colours == {
        "head": "heads/colours", "bytes": size, "state": "ready", "task": "classify", "kind": "class",
        "method": "prototypes", "classes": ["blue", "green", "red"], "items": 12, "licence": "unknown",
    } | {"licence": colours["licence"]}  # fmt: skip
    assert hurt.keys() == {"head", "bytes", "state"} and numbers["classes"] == []
    show(found)
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("classify  3 classes  prototypes ") and any("  a number  " in line for line in said)
    assert {"heads/colours", "heads/hurt", "heads/numbers"} <= {line.split(" (licence")[0].split()[-1] for line in said}
    selfsight.evaluate("heads/colours", test="train")
    selfsight.report("heads/colours")
    result = selfsight.runs("remove", "heads/../heads/colours/", "heads/hurt", "heads/colours")
    assert result.removed == [] and [row.head for row in result.removed_heads or []] == ["heads/colours", "heads/hurt"]
    assert [path.name for path in heads.iterdir()] == ["numbers"] and Path("train").is_dir()


def test_a_head_with_something_of_somebodys_in_it_is_not_removed(heads: Path) -> None:
    (heads / "colours" / "thesis.txt").write_text("years of work")
    before = sorted(Path().rglob("*"))
    with pytest.raises(selfsight.SelfsightError, match="colours also holds files that are not a head's: thesis"):
        selfsight.runs("remove", "heads/numbers", "heads/colours")
    assert sorted(Path().rglob("*")) == before
    assert removes("remove", "heads/numbers").startswith("heads/numbers (a head, ") and removes("list") == ""
