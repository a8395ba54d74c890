"""What is said while a verb works: sparse lines off a terminal, tables whose paths can be copied."""

from __future__ import annotations

import re

import pytest

from selfsight.console import Sparse, table, track
from selfsight.results import duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(seconds: float, parts: int, first: float = 0.0, known: bool = True) -> list[tuple[int, str]]:
    """The lines of work that takes so long, by the second at which they come."""
    clock = Clock()
    sparse, found = Sparse(clock), []
    for i in range(1, parts + 1):
        clock.now = 1000.0 + seconds * i / parts
        share = first + (1.0 - first) * i / parts
        if (left := sparse(share if known else None)) is not None:
            found.append((round(clock.now - 1000.0), left))
    return found


def test_short_work_says_nothing_and_long_work_little() -> None:
    assert told(1.9, 100) == [] and told(2.0, 100) == []
    assert told(30.0, 300) == [(2, ", 28 s left")]
    assert [at for at, _ in told(200.0, 2000)] == [2, 62, 122, 182]  # a tenth is 20 s: a minute is rarer
    long = told(36_000.0, 3600)  # seconds of which a tenth is an hour: that is rarer
    assert [left for _, left in long] == ["", *(f", {10 - hour}.0 h left" for hour in range(1, 9)), ", 60 min left"]
    assert [at // 3600 for at, _ in long] == list(range(10))
    assert told(10.0, 2) == [(5, "")]  # one part alone says nothing of the pace


def test_what_was_done_before_does_not_count_for_the_pace() -> None:
    assert told(50.0, 1000, first=0.5)[0] == (2, ", 48 s left")


def test_without_a_total_there_is_a_line_a_minute() -> None:
    assert told(150.0, 150, known=False) == [(2, ""), (62, ""), (122, "")]


def test_a_line_says_how_many_of_how_many(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("selfsight.console.FIRST_SECONDS", 0.0)
    assert list(track(range(4), "Reading plate[v1]", 4000, size=lambda _: 1000)) == [0, 1, 2, 3]
    out, err = capsys.readouterr()
    assert not out and re.fullmatch(r"Reading plate\[v1\]: 1,000 of 4,000\n", err)


def test_figures_stand_to_the_right_and_paths_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table(("encoder", "items", "run"), [("resnet18", "1,438", "runs/first"), ("vit", "3", "runs/[b] b")])
    assert capsys.readouterr().out.splitlines() == [
        "encoder   items  run",
        "resnet18  1,438  runs/first",
        "vit           3  runs/[b] b",
    ]
    path = "/home/somebody/" + "a" * 60
    table(("encoder", "items", "run"), [("resnet18", "1,438", "runs/first"), ("vit", "3", path)])
    assert capsys.readouterr().out.splitlines() == [
        "encoder   items  run",
        "resnet18  1,438",
        "    runs/first",
        "vit           3",
        f"    {path}",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.4, "8 s"), (89, "89 s"), (134, "2.2 min"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
