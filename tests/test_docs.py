"""Every `selfsight` command of the README and docs/ runs, in order, as it is written, but for its budget."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from helpers import write_folder

from selfsight.verbs import every_verb

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATA = Path(os.environ.get("SELFSIGHT_DATA", ROOT.parent / "shared" / "data"))
REAL = ("wbc", "covid-cxr", "neu", "bccd", "magnetic-tile")  # sets that some lines need, and not everybody has


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line.split(" #")[0].strip() for b in blocks for line in b.splitlines() if line.startswith("selfsight ")]


def of_real_data(line: str) -> bool:
    return any(word.split("/")[0] in REAL for word in shlex.split(line))


def shortened(line: str) -> str:
    """The line with two steps, small ones where its verb lets choose, in place of its budget."""
    words = tuple(line.split()[1:])
    [taken] = (signature(verb.function).parameters for verb in every_verb() if verb.words == words[: len(verb.words)])
    few = {"steps": "--steps 2", "batch_size": "--batch-size 4"}
    return re.sub(r"--(minutes|epochs) \S+", " ".join(few[name] for name in few if name in taken), line)


def run(line: str, folder: Path) -> None:
    short = shortened(line)
    command = [sys.executable, "-m", *shlex.split(short)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", 12)
    for split in ("train", "test"):
        for seed, name in enumerate(("good", "bad")):
            write_folder(tmp_path / "labelled" / split / name, 4, seed=seed)
    for line in commands(page):
        if not of_real_data(line):
            run(line, tmp_path)


@pytest.mark.parametrize(
    "line", [line for page in PAGES for line in commands(page) if of_real_data(line)], ids=lambda line: line.split()[4]
)
def test_commands_on_real_tables_run(line: str, tmp_path: Path) -> None:
    for name in REAL:
        if (DATA / name).is_dir():
            (tmp_path / name).symlink_to(DATA / name)
        elif name in line:
            pytest.skip(f"there is no {DATA / name}; SELFSIGHT_DATA names another folder")
    run(line, tmp_path)


def test_every_verb_has_a_page() -> None:
    assert {page.stem for page in PAGES} >= {"-".join(verb.words) for verb in every_verb()}
