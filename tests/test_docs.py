"""Every `selfsight` command of the README and docs/ runs, in order, as it is written, but for its budget."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_folder

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line.split(" #")[0].strip() for b in blocks for line in b.splitlines() if line.startswith("selfsight ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", 12)
    for split in ("train", "test"):
        for seed, name in enumerate(("good", "bad")):
            write_folder(tmp_path / "labelled" / split / name, 4, seed=seed)
    for line in commands(page):
        short = re.sub(r"--(minutes|epochs) \S+", "--steps 2 --batch-size 4", line)
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(short)], cwd=tmp_path, capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_every_verb_has_a_page() -> None:
    from selfsight.cli import VERBS

    assert {page.stem for page in (ROOT / "docs").glob("*.md")} >= set(VERBS)
