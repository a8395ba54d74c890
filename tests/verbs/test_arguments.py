"""Arguments of verbs: whatever the signature does not name is refused before anything is done."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfsight
from selfsight.verbs import VERBS, Verb
from selfsight.verbs.arguments import checked, typed


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("runs", (("lst", "run"), {}), "action takes 'list', 'remove', not 'lst'. Did you mean list?"),
        ("cache", (("show",), {}), "action takes 'list', 'clear', not 'show'"),
        (
            "pretrain",
            (("photos",), {"out": "run", "views": "crops"}),
            "views takes 'full', 'crop-only', not 'crops'",
        ),
        ("pretrain", (("photos",), {"out": "run", "steps": 2.5}), "steps takes a whole number, not 2.5"),
        ("pretrain", (("photos",), {"out": "run", "minutes": "20"}), "minutes takes a number, not '20'"),
        ("plan", (("photos",), {"positives": "patient"}), "positives takes 'image', 'group', not 'patient'"),
        ("embed", (("photos",), {"model": "run", "tokens": "patch"}), "tokens takes 'pooled', 'patches', not 'patch'"),
        ("import_", (("photos",), {"out": "a.lance", "include": "*.png"}), "include takes a list of text"),
        ("report", (("run",), {"thumbnails": "no"}), "thumbnails takes True or False, not 'no'"),
        ("compare", (("one", 2), {}), "runs takes text, not 2"),
    ],
)
def test_what_the_signature_does_not_name_is_refused(
    verb: str, arguments: tuple[tuple[Any, ...], dict[str, Any]], said: str
) -> None:
    with pytest.raises(selfsight.SelfsightError) as error:
        getattr(selfsight, verb)(*arguments[0], **arguments[1])
    assert said in str(error.value)


def test_nothing_is_removed_for_a_word_that_is_no_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("resolved: {}\n")
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "canvases" / "one").mkdir(parents=True)
    for call in (lambda: selfsight.runs("lst", str(run)), lambda: selfsight.cache("show")):  # type: ignore[arg-type]
        with pytest.raises(selfsight.SelfsightError, match="action takes"):
            call()
    assert (run / "recipe.yaml").exists() and (tmp_path / "cache" / "canvases" / "one").exists()


def test_paths_may_be_paths_and_whole_numbers_are_numbers(tmp_path: Path) -> None:
    with pytest.raises(selfsight.SelfsightError, match="does not exist"):
        selfsight.pretrain(tmp_path / "none", out=tmp_path / "run", minutes=1)  # type: ignore[arg-type]


@checked
def numbers(
    *, steps: int | None = None, rate: float = 1.0, strict: bool = False, names: list[str] | None = None
) -> object:
    return steps, rate, strict, names


def test_numbers_of_numpy_become_pythons() -> None:
    given = numbers(steps=np.int64(3), rate=np.float64(0.5), strict=np.bool_(True), names=["a"])  # type: ignore[arg-type]
    assert given == (3, 0.5, True, ["a"]) and [type(value) for value in given] == [int, float, bool, list]  # type: ignore[attr-defined]
    assert numbers(steps=5.0) == (5, 1.0, False, None)  # type: ignore[arg-type]
    assert numbers(rate=2, names=("a", "b")) == (None, 2, False, ("a", "b"))  # type: ignore[arg-type]
    for wrong in ({"steps": np.float32(2.5)}, {"steps": True}, {"rate": True}, {"names": "ab"}, {"names": [1]}):
        with pytest.raises(selfsight.SelfsightError, match=f"{next(iter(wrong))} takes"):
            numbers(**wrong)  # type: ignore[arg-type]


@checked
def several(*, shots: str | int | Sequence[str | int] = "1,all") -> object:
    return shots


def test_text_or_a_number_or_some_of_them() -> None:
    for given in ("1,5", 5, [5], (1, "all"), [1, 5, "all"]):
        assert several(shots=given) == given  # type: ignore[arg-type]
    assert several(shots=np.array([1, 5])) == [1, 5] and several(shots=np.int64(5)) == 5  # type: ignore[arg-type]
    for wrong in (2.5, [2.5], [None], {"1": 5}):
        with pytest.raises(selfsight.SelfsightError, match="shots takes text or a whole number or a list of text or a"):
            several(shots=wrong)  # type: ignore[arg-type]


def test_on_the_command_line_text_stands_for_all_that_is_not_a_number() -> None:
    assert typed(str | int | Sequence[str]) is str and typed(str | Path | None) == (str | None)
    assert typed(float | None) == (float | None) and typed(list[str] | None) == (list[str] | None)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_checked(name: str) -> None:
    verb = Verb(name).function
    first = next(iter(inspect.signature(verb).parameters))
    with pytest.raises((selfsight.SelfsightError, TypeError)) as error:
        verb(**{first: object()}) if name not in ("runs", "cache", "compare") else verb(object())
    assert error.type is TypeError or f"{first} takes" in str(error.value)
