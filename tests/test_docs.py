"""The README and docs/: every command and every piece of Python runs, in order, as it is written but for its budget;
every link leads somewhere; all of it builds as a site."""

from __future__ import annotations

import ast
import csv
import errno
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import forked
import numpy as np
import pytest
import yaml
from helpers import write_folder
from PIL import Image

from selfsight.verbs import every_verb

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATA = Path(os.environ.get("SELFSIGHT_DATA", ROOT.parent / "shared" / "data"))
REAL = ("wbc", "covid-cxr", "neu", "bccd", "magnetic-tile")  # sets that some lines need, and not everybody has


def blocks(page: Path, kind: str) -> list[str]:
    """The blocks of code of a page that are of one kind: "python", or "" for plain ones."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == kind]


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.startswith("selfsight ")]


def python(page: Path) -> str:
    """The Python of a page as one script, with two small steps in place of each budget."""
    return re.sub(r"\b(minutes|epochs|steps)=\d+", "steps=2, batch_size=4", "\n".join(blocks(page, "python")))


def of_real_data(line: str) -> bool:
    return any(word.split("/")[0] in REAL for word in shlex.split(line))


def shortened(line: str) -> str:
    """The line with two steps, small ones where its verb lets choose, in place of its budget; three seconds of a verb
    that has no steps."""
    words = tuple(line.split()[1:])
    [taken] = (signature(verb.function).parameters for verb in every_verb() if verb.words == words[: len(verb.words)])
    few = {"steps": "--steps 2", "batch_size": "--batch-size 4"}
    steps = " ".join(few[name] for name in few if name in taken)
    line = re.sub(r"--port \d+", "--port 0", line)  # a free one
    return re.sub(r"--(minutes|epochs) \S+", steps or "--minutes 0.05", line)


def run(lines: list[str], folder: Path) -> None:
    """Run command lines, or the Python file that one names, one after the other."""
    forked.run([shlex.split(line) for line in lines], folder)


def write_examples(folder: Path) -> None:
    """What the pages speak of: photos/, today/, labelled/, cells/ with masks/ and boxes.json, scans.csv with patients
    and hospitals; steel/, enough labels to tell what is drift, and line/ with line.csv."""
    write_folder(folder / "photos", 12)
    write_folder(folder / "today", 6, seed=1)
    for split in ("train", "test"):
        for seed, name in enumerate(("good", "bad")):
            write_folder(folder / "labelled" / split / name, 4, seed=seed)
    cells = sorted(write_folder(folder / "cells", 6, seed=3).rglob("*.png"))
    for number, cell in enumerate(cells):
        mask = np.zeros((40, 48), np.uint8)
        mask[8 : 20 + number, 10:30] = 1
        target = folder / "masks" / cell.relative_to(folder / "cells")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    images = [{"id": n, "file_name": cell.relative_to(folder / "cells").as_posix(), "width": 48, "height": 40}
              for n, cell in enumerate(cells)]  # fmt: skip
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 8, 20, 12 + n]} for n in range(len(cells))]
    categories = [{"id": 1, "name": "cell"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    for seed, name in enumerate(("good", "bad")):
        write_folder(folder / "steel" / name, 24, size=(24, 24), seed=10 + seed)
    write_folder(folder / "line", 10, size=(24, 24), seed=12)
    (folder / "line.csv").write_text("path,label\n000.png,good\nodd/ones/001.png,bad\n")
    scans = sorted(write_folder(folder / "scans", 24, seed=2).rglob("*.png"))
    with (folder / "scans.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("filename", "patient", "hospital", "finding"))
        for i, scan in enumerate(scans):
            hospital, finding = ("North", "East", "South", "West")[i // 6], ("normal", "pneumonia")[i // 2 % 2]
            table.writerow((scan.relative_to(folder), f"P{i // 2:02d}", hospital, finding))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_python_run(page: Path, tmp_path: Path) -> None:
    write_examples(tmp_path)
    lines = [shortened(line) for line in commands(page) if not of_real_data(line)]
    if script := python(page):
        (tmp_path / "script.py").write_text(script, encoding="utf-8")
        lines.append("script.py")
    if lines:
        run(lines, tmp_path)


@pytest.mark.parametrize(
    "line", [line for page in PAGES for line in commands(page) if of_real_data(line)], ids=lambda line: line.split()[4]
)
def test_commands_on_real_tables_run(line: str, tmp_path: Path) -> None:
    for name in REAL:
        if (DATA / name).is_dir():
            (tmp_path / name).symlink_to(DATA / name)
        elif name in line:
            pytest.skip(f"there is no {DATA / name}; SELFSIGHT_DATA names another folder")
    run([shortened(line)], tmp_path)


def test_every_verb_has_a_page() -> None:
    assert {page.stem for page in PAGES} >= {"-".join(verb.words) for verb in every_verb()}


def texts() -> list[str]:
    """Every text in the source, with … for what is filled in."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return found


def test_the_messages_of_troubleshooting_are_those_of_the_source() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    known = [*texts(), *(os.strerror(code) for code in (errno.ENOSPC, errno.EACCES, errno.EROFS))]
    parts = {part.strip() for message in messages for part in message.split("…") if len(part.strip()) > 2}
    assert len(parts) > 40
    assert not [part for part in sorted(parts) if not any(part in text for text in known)]


# -- links, and the site --

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
LINKED = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#` may name on a page: its headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    wrong = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if re.match(r"\w+:", link):
            wrong.append(f"{link}: not on this machine")
        elif page.is_relative_to(ROOT / "docs") and not target.is_relative_to(ROOT / "docs"):
            wrong.append(f"{link}: not on the site; name the file without a link")
        elif not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: no such heading")
    assert not wrong


def in_menu(entries: list[str | dict[str, object]]) -> list[str]:
    """The pages of a menu and of the menus in it."""
    found = []
    for entry in entries:
        what = entry if isinstance(entry, str) else next(iter(entry.values()))
        found += in_menu(what) if isinstance(what, list) else [str(what)]
    return found


def test_every_page_is_in_the_menu_once() -> None:
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(in_menu(SITE["nav"])) == sorted(pages)


def test_the_site_builds_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical, which builds the site, is not installed: pip install '.[docs]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(in_menu(SITE["nav"]))  # and the page for what is not found
    fetched = r"""<(?:link|script|img|iframe|source)\b[^>]*\b(?:href|src)=["']?(?:https?:)?//[^"'> ]*"""
    assert {page.name: re.findall(fetched, page.read_text(encoding="utf-8")) for page in built} == {
        page.name: [] for page in built
    }
