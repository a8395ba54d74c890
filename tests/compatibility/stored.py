"""What the tests of compatibility and `record.py` share: the fixture put to work, the commands, and how their outputs
are compared with the stored ones."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import lance
import pytest

from selfsight.verbs import every_verb

HERE = Path(__file__).parent
FIXTURE, JSON, HELP = HERE / "fixture", HERE / "json", HERE / "help"
WORK, CACHE, MEASURED = "{work}", "{cache}", "{measured}"  # in place of what differs from one machine to the next
COLUMNS = "label=class,group=patient,boxes=boxes,mask=mask"
STEPS = 8  # of the runs of the fixture
ITEM = "train/round/0.png"  # the item that is forgotten, and of which two decisions were made

# What `--json` says of time, of the machine or of the size of files: that it is said counts, not what.
NOT_COMPARED = {"seconds", "seconds_a_step", "seconds_before", "seconds_after", "bytes", "memory_bytes"}
NOT_COMPARED |= {"largest_batch", "checkpoint_bytes", "device", "at_hand", "pace", "difference"}
TOLERANCE = 1e-4  # of a number, relative; of small ones a hundredth of it, absolute

ITEMS = "collection/items.lance"
_WITH = ("--recipe", "recipe.yaml", "--steps")
# Every verb but `demo`, which has no input of its own. In this order, in one folder that begins as a copy of the
# fixture: {name of the stored output: command}.
COMMANDS: dict[str, tuple[str, ...]] = {
    "import": ("import", "images/items.csv", "-o", "fresh/items.lance", "--columns", COLUMNS),
    "import_again": ("import", "images/items.csv", "-o", ITEMS, "--columns", COLUMNS),
    "import_part": ("import", ITEMS, "-o", "fresh/part.lance", "--include", "train/*"),
    "objectives": ("objectives", "simclr"),
    "plan": ("plan", ITEMS, *_WITH, "2", "-o", "planned.yaml"),
    "pretrain": ("pretrain", ITEMS, "-o", "fresh/run", *_WITH, "2"),
    "pretrain_planned": ("pretrain", ITEMS, "-o", "fresh/planned", "--recipe", "planned.yaml"),
    "runs_list": ("runs", "list", "."),
    "runs_remove": ("runs", "remove", "fresh/planned", "--yes"),
    "embed": ("embed", ITEMS, "--model", "run", "-o", "features.parquet"),
    "embed_patches": ("embed", ITEMS, "--model", "run", "--tokens", "patches", "-o", "patches.npy"),
    "odd": ("odd", ITEMS, "--model", "run", "-o", "odd"),
    "curate": ("curate", ITEMS, "--model", "run", "-o", "curated"),
    "find": ("find", ITEMS, "--model", "run", "--like", "train/round/1.png", "-o", "find"),
    "label": ("label", ITEMS, "--export", "labels.csv"),
    "evaluate": ("evaluate", "run", "--train", "images/train", "--test", "images/test", "--shots", "1,all",
                 "--seeds", "2"),
    "compare": ("compare", "run", "stopped/checkpoints/step-00000002", "--images", ITEMS, "--probe", "images/train"),
    "report": ("report", "run", "--out", "report.html"),
    "export": ("export", "run", "-o", "exported/run.onnx", "--calibrate", ITEMS),
    "cache_list": ("cache", "list"),
    "cache_clear": ("cache", "clear", "--yes"),
    "pretrain_resumed": ("pretrain", ITEMS, "-o", "stopped", *_WITH, str(STEPS)),
    "pretrain_extended": ("pretrain", ITEMS, "-o", "run", *_WITH, "2", "--extend"),
    "report_extended": ("report", "run"),
    "forget": ("forget", ITEMS, ITEM, "--yes"),
}  # fmt: skip
# {name of the stored help: the words that ask for it}: of the whole command line, of each group and of each verb.
HELPS: dict[str, tuple[str, ...]] = {"selfsight": ()}
HELPS |= {"-".join(words): words for verb in every_verb() for words in (verb.words[:1], verb.words)}


@contextmanager
def place(work: Path) -> Iterator[Path]:
    """A process in the folder `work`, with a cache beside it, one thread, and help of one width without colour."""
    import torch
    from accelerate.state import AcceleratorState

    work.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as changed:
        changed.chdir(work)
        changed.setenv("SELFSIGHT_CACHE", str(cache_of(work)))
        changed.setenv("COLUMNS", "100")
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
            changed.delenv(name, raising=False)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        yield work
        AcceleratorState._reset_state(reset_partial_state=True)


def cache_of(work: Path) -> Path:
    return work.with_name(f"{work.name}-cache")


def unpack(work: Path) -> None:
    """Copy the fixture to `work`, tell its collection where its images are now, and give them the times of their last
    change, by which an image is known to be the one that was imported, and which git does not keep."""
    shutil.copytree(FIXTURE, work, dirs_exist_ok=True)
    move_collection(work / ITEMS, WORK, str(work))
    for row in lance.dataset(str(work / ITEMS)).to_table(columns=["uri", "modified_ns"]).to_pylist():
        os.utime(work / "images" / row["uri"], ns=(row["modified_ns"], row["modified_ns"]))


def move_collection(table: Path, old: str, new: str) -> None:
    """Replace the beginning of the location of a collection's images."""
    dataset = lance.dataset(str(table))
    dataset.replace_schema_metadata(metadata_with(dataset.schema.metadata, old, new))


def metadata_with(metadata: dict[bytes, bytes], old: str, new: str) -> dict[str, str]:
    """The metadata of a collection whose images are at `new`, where it says `old`."""
    texts = {key.decode(): value.decode() for key, value in metadata.items()}
    about = json.loads(texts["selfsight"])
    about["location"] = about["location"].replace(old, new)
    return texts | {"selfsight": json.dumps(about)}


def say(*arguments: str) -> str:
    """What a command prints on stdout. Its mistakes end in an AssertionError."""
    from selfsight.cli import main

    printed, before = io.StringIO(), sys.argv
    sys.argv = ["selfsight", *arguments]
    try:
        with redirect_stdout(printed):
            main()
    except SystemExit as end:
        assert not end.code, f"selfsight {' '.join(arguments)} ended with {end.code}"
    finally:
        sys.argv = before
    return printed.getvalue()


def answer(name: str, work: Path) -> Any:
    """The normalised `--json` of a command, given in `work`."""
    said = normalised(json.loads(say(*COMMANDS[name], "--json")), work)
    for part in ("entries", "cleared", "kept"):  # named by hashes of places
        if name.startswith("cache") and part in said:
            rows = [row | {"name": MEASURED} for row in said[part]]
            said[part] = sorted(rows, key=lambda row: (row["kind"], str(row["source"])))
    if name.startswith("runs"):
        for part in said.keys() & {"runs", "removed"}:
            said[part] = sorted(said[part], key=lambda row: row["run"])
    return said


def normalised(value: Any, work: Path) -> Any:
    """`value` without what differs from one machine to the next."""
    if isinstance(value, dict):
        return {
            normalised(key, work): MEASURED if key in NOT_COMPARED else normalised(inner, work)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [normalised(inner, work) for inner in value]
    if isinstance(value, str):
        value = value.replace(str(cache_of(work)), CACHE).replace(str(work), WORK)
        value = re.sub(rf"({CACHE}/collections/\w+-)[0-9a-f]{{12}}/", rf"\1{MEASURED}/", value)  # a hash of the path
        return re.sub(r"\d[\d,.]* (?=(?:s|MB|GB)\b)", f"{MEASURED} ", value)
    return value


def differences(stored: Any, now: Any, where: str = "") -> list[str]:
    """Where `now` lacks a key of `stored`, or has another value. More keys are welcome."""
    if stored == MEASURED:
        return [] if now is not None else [f"{where}: nothing"]
    if isinstance(stored, dict) and isinstance(now, dict):
        lacking = [f"{where}/{key}: lacking" for key in stored.keys() - now.keys()]
        both = stored.keys() & now.keys()
        return lacking + [d for key in both for d in differences(stored[key], now[key], f"{where}/{key}")]
    if isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        return [d for i, pair in enumerate(zip(stored, now, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (stored, now))
    if numbers and math.isclose(stored, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE / 100):
        return []
    return [] if stored == now else [f"{where}: {stored!r} was stored, now {now!r}"]


def help_of(name: str) -> str:
    """The help that is stored under this name, as it is now."""
    text = say(*HELPS[name], "--help")
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def options_of(text: str) -> dict[str, tuple[str | None, str | None]]:
    """{option, argument or verb: (its default, its choices)} of a help text."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if match := re.fullmatch(r"│ (?:\*  |   )?(\S.*?)(?:\s{2,}(\S.*?))?\s*│", line):
            rows.append([match[1], match[2] or ""])
        elif rows and line.startswith("│"):  # further indented: the rest of a description
            rows[-1][1] += f" {line.strip('│ ')}"
    found = {}
    for names, said in rows:
        default, choices = (re.search(rf"\[{word}: (.*?)\]", said) for word in ("default", "choices"))
        for name in re.findall(r"--?[\w-]+|^[A-Za-z_]+", names):
            found[name] = (default[1] if default else None, choices[1] if choices else None)
    return found
