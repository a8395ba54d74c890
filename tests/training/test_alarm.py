"""The alarm: each kind named on its own course of figures, silence on sound ones, and a real collapse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_batches, tiny_encoder, train, two_views

from selfsight.objectives.vicreg import VICReg
from selfsight.training import alarm
from selfsight.training.alarm import REMEDIES, SPREAD, Alarm, Alert
from selfsight.training.recipe import Budget
from selfsight.training.run import Run

SOUND = {
    "loss": (5.0, 3.0), "contrast": (0.1, 0.4), "spread": (0.6, 0.9), "scale": (0.4, 0.8),
    "effective_rank": (20.0, 40.0), "rank_share": (0.3, 0.6),
    "assignment_entropy": (0.9, 0.4), "cluster_entropy": (0.95, 0.95),
}  # fmt: skip


def course(steps: int = 300, falls_at: int = 100, **ends: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows whose figures go from the first value to the second between step `falls_at` and 40 steps later; those
    not given are sound and change from the start to the end."""
    rows = []
    for step in [1, *range(10, steps + 1, 10)]:
        row: dict[str, Any] = {"step": step}
        for name, (a, b) in SOUND.items():
            row[name] = a + (b - a) * step / steps
        for name, (a, b) in ends.items():
            row[name] = a + (b - a) * min(1.0, max(0.0, (step - falls_at) / 40))
        rows.append(row)
    return rows


def raised(rows: list[dict[str, Any]]) -> list[Alert]:
    alarm = Alarm()
    return [alert for row in rows for alert in alarm.look(row)]


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("constant", {"spread": (0.8, 0.05), "contrast": (0.4, 0.001)}),
        ("constant", {"scale": (0.5, 0.02), "contrast": (0.4, 0.1)}),  # to a point, the directions as they were
        ("constant", {"spread": (0.8, 0.2), "contrast": (0.4, 0.04)}),  # nearly all of it lost
        ("constant", {"contrast": (0.3, 0.0)}),  # spread out, and yet nothing told apart
        ("constant", {"contrast": (0.3, 0.1)}),  # or a third of what was
        ("dimensional", {"effective_rank": (40.0, 1.5), "rank_share": (0.4, 0.015)}),
        ("cluster", {"cluster_entropy": (0.9, 0.08), "assignment_entropy": (0.4, 0.0)}),
        ("cluster", {"cluster_entropy": (0.98, 0.45), "assignment_entropy": (0.8, 0.3)}),  # most are given up
        ("teacher peaked", {"cluster_entropy": (0.9, 0.02), "assignment_entropy": (0.88, 0.01)}),
        ("teacher uniform", {"assignment_entropy": (0.4, 0.999)}),
    ],
)
def test_each_kind_is_named_once_and_within_100_steps(kind: str, figures: dict[str, tuple[float, float]]):
    (alert,) = raised(course(**figures))
    assert alert.kind == kind and alert.remedy == REMEDIES[kind]
    assert 100 < alert.step <= 200
    assert all(name in figures or name in SOUND for name in alert.figures)


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def test_how_few_directions_are_too_few_depends_on_the_task():
    """Six of forty directions are a collapse for a task of pairs, but serve clusters and pixels; two do not."""
    clusters = ("assignment_entropy", "cluster_entropy")
    for left, left_out, named in (
        (6.0, clusters, True), (6.0, (), False), (6.0, ("contrast", *clusters), False),
        (2.0, (), True), (2.0, ("contrast", *clusters), True),
    ):  # fmt: skip
        rows = without(course(effective_rank=(40.0, left), rank_share=(0.4, left / 100)), *left_out)
        assert [alert.kind for alert in raised(rows)] == ["dimensional"] * named


def test_directions_that_go_with_contrast_and_spread_are_named_before_they_are_few():
    """Two of the three may fall: a task can do with fewer directions, or with less of one other figure."""
    fall = {"rank_share": (0.46, 0.14), "contrast": (0.6, 0.4), "spread": (0.95, 0.65)}
    clusters = ("assignment_entropy", "cluster_entropy")
    (alert,) = raised(without(course(**fall), *clusters))
    assert alert.kind == "dimensional" and 100 < alert.step <= 200
    for kept in fall:
        others = {name: ends for name, ends in fall.items() if name != kept}
        assert raised(without(course(**others), *clusters)) == []


@pytest.mark.parametrize(
    "contrast, spread, kinds",
    [
        ((0.001, 0.001), (0.6, 0.3), ["constant"]),  # other images as the second view: the loss falls to chance
        ((0.01, 0.01), (0.6, 0.3), []),  # hardly told apart
        ((0.001, 0.001), (0.8, 0.6), []),  # spread out still
        ((0.001, 0.001), (0.2, 0.4), []),  # a slow beginning: images spread out before they are told apart
    ],
)
def test_images_that_are_not_told_apart_are_named_though_the_loss_falls(
    contrast: tuple[float, float], spread: tuple[float, float], kinds: list[str]
):
    rows = course(falls_at=0, loss=(6.6, 6.2), contrast=contrast, spread=spread)
    assert [alert.kind for alert in raised(rows)] == kinds
    assert all(alert.step == 100 for alert in raised(rows))


def test_features_that_become_the_same_are_named_where_no_views_are_compared():
    (alert,) = raised(without(course(spread=(0.7, 0.005)), "contrast", "assignment_entropy", "cluster_entropy"))
    assert alert.kind == "constant" and alert.figures == {"spread": pytest.approx(0.01, abs=0.01)}
    assert raised(without(course(spread=(0.7, 0.1)), "contrast", "assignment_entropy", "cluster_entropy")) == []


def test_answers_that_become_right_move_though_the_loss_does_not():
    still = {name: (value, value) for name, (value, _) in SOUND.items() if name != "contrast"}
    rows = without(course(steps=150, accuracy=(0.1, 0.4), falls_at=40, **still), "contrast")
    assert raised(rows) == []


def test_a_loss_that_never_moved_is_named_within_100_steps():
    noise = np.random.default_rng(0)
    still = {name: (value, value) for name, (value, _) in SOUND.items()}
    rows = [{k: v if k == "step" else v * noise.normal(1, 0.02) for k, v in row.items()} for row in course(**still)]
    (alert,) = raised(rows)
    assert alert.kind == "loss not moving" and alert.step <= 100
    assert "In 100 steps the loss went from" in alert.sentence


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"loss": (5.0, 5.0)},  # images are told apart better, whatever the loss says
        {"contrast": (0.1, 0.1)},  # the loss falls
        {"scale": (0.5, 0.02)},  # weight decay alone: images are told apart as before
        {"spread": (0.8, 0.2), "contrast": (0.4, 0.2)},  # most embeddings in one corner, and yet told apart
        {"falls_at": 0, "spread": (0.2, 0.2), "contrast": (0.01, 0.08)},  # crowded from the start, slowly told apart
        {"rank_share": (0.4, 0.05)},  # few of very many directions that there could be, but 20 to 40 of them
        {"effective_rank": (40.0, 6.0)},  # few directions, but half of those that a small batch allows
        {"assignment_entropy": (0.4, 0.0)},  # sure of each image, of all clusters alike
        {
            "falls_at": 0,
            "spread": (0.05, 0.9),
            "contrast": (0.0, 0.4),
        },  # a random network whose answers are alike, and which learns
        {"falls_at": 0, "rank_share": (0.02, 0.4), "effective_rank": (1.2, 30.0)},
    ],
)
def test_silence_where_something_is_learnt(figures: dict[str, Any]):
    assert raised(course(**figures)) == []


@pytest.mark.parametrize("loss, kinds", [((5.0, 0.05), ["constant"]), ((5.0, 0.5), [])])
def test_features_without_views_have_collapsed_where_their_task_became_trivial(
    loss: tuple[float, float], kinds: list[str]
):
    """A teacher that is the student makes itself easy to predict; a task that is hard still is being learnt."""
    rows = course(loss=loss, spread=(0.8, 0.1))
    alerts = raised([{name: value for name, value in row.items() if name != "contrast"} for row in rows])
    assert [alert.kind for alert in alerts] == kinds


def test_a_loss_that_never_moves_is_named_though_directions_change():
    (alert,) = raised(course(steps=400, loss=(5.0, 5.0), contrast=(0.1, 0.1)))
    assert alert.kind == "loss not moving" and alert.step == 290


@pytest.mark.parametrize("figures", [{"loss": (5.0, 5.0), "contrast": (0.0, 0.0)}, {"spread": (0.1, 0.1)}])
def test_a_long_warm_up_is_waited_for(figures: dict[str, tuple[float, float]]):
    rows = course(steps=600, **figures | {"contrast": (0.0, 0.0), "scale": (0.4, 0.4), "rank_share": (0.5, 0.5)})
    for row in rows:
        row["learning_rate"] = 1e-3 * min(1.0, row["step"] / 400)
    (alert,) = raised(rows)
    assert 400 < alert.step <= 500


def test_a_run_that_has_converged_stands_still_and_is_sound():
    rows = course(steps=100)
    rows += [rows[-1] | {"step": step} for step in range(110, 5000, 10)]
    assert raised(rows) == []


def test_a_dip_that_passes_is_no_collapse():
    rows = course()
    for row in rows[12:14]:
        row |= {"spread": 0.01, "contrast": 0.0}
    assert raised(rows) == []


def test_what_came_back_and_went_again_is_named_again():
    rows = course(steps=600)
    for low in (range(15, 25), range(40, 50)):
        for i in low:
            rows[i] |= {"spread": SPREAD / 2, "contrast": 0.0}
    assert [alert.kind for alert in raised(rows)] == ["constant", "constant"]


def test_figures_that_are_missing_or_not_finite_say_nothing():
    assert raised([{"step": r["step"], "loss": r["loss"]} for r in course()]) == []
    rows = course()
    for row in rows:
        row["spread"] = float("nan")
    assert raised(rows) == []


def test_a_real_collapse_is_in_the_log_of_the_run_and_survives_a_resume(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(24), batch_size=12)
    how = {"learning_rate": 3e-3, "budget": Budget(steps=200)}
    # Nothing but agreement is asked for.
    alone = VICReg(tiny_encoder(), two_views(), variance=0.0, covariance=0.0, hidden=32, width=16)
    _, run, _ = train(alone, batches, tmp_path / "run", **how)
    alarms = [event for event in run.read_log() if event.kind == "alarm"]
    assert alarms and alarms[0].step <= 110
    assert alarms[0].text.startswith(("constant: ", "dimensional: "))
    # What a resumed run is shown again it does not say again.
    alarm = Alarm()
    said = [alert.kind for row in Run(tmp_path / "run").read_metrics() for alert in alarm.look(row)]
    assert said == [event.text.split(":")[0] for event in alarms]


def test_the_page_has_the_thresholds_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    said = {name: float(value) for name, value in re.findall(r"^\| `([A-Z_]+)` \| ([0-9.]+) \|", page, re.MULTILINE)}
    code = {name: value for name, value in vars(alarm).items() if name.isupper()}
    assert said == {name: value for name, value in code.items() if isinstance(value, int | float)}
    for kind in alarm.REMEDIES:
        assert f"\n| {kind} |" in page
