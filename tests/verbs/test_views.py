"""--views crop-only and --positives group: what becomes of the views, in the recipe and on real files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import PLAIN, SMALL_RECIPE
from PIL import Image

import selfsight
from selfsight.objectives.shared import restyled
from selfsight.training.run import Run
from selfsight.views.plan import Colour, ViewGroup, ViewPlan


@pytest.fixture
def patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve flat images, two a patient: of a patient the one is red and the other green, of its own brightness."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL_RECIPE)
    Path("scans").mkdir()
    with Path("scans/t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient"])
        for i in range(12):
            colour = [(100 + 25 * (i // 2), 0, 0), (0, 100 + 25 * (i // 2), 0)][i % 2]
            Image.new("RGB", (40, 40), colour).save(f"scans/{i:02d}.png")
            writer.writerow([f"{i:02d}.png", f"p{i // 2}"])
    selfsight.import_("scans/t.csv", out="scans.lance", columns="group=patient")
    return "scans.lance"


def test_the_plan_keeps_its_crops_and_loses_the_rest():
    plan = ViewPlan((ViewGroup(2, 32, (0.3, 1.0)), ViewGroup(4, 16, (0.1, 0.3), draws=5, colour=Colour(blur=1.0))))
    bare = restyled(plan, "crop-only", "image")
    assert [g.colour for g in bare.groups] == [PLAIN, PLAIN] and [g.flip for g in bare.groups] == [0.0, 0.0]
    assert [(g.count, g.size, g.scale, g.draws) for g in bare.groups] == [
        (2, 32, (0.3, 1.0), 0),
        (4, 16, (0.1, 0.3), 5),
    ]
    assert restyled(plan, "full", "image") == plan
    assert restyled(plan, "full", "group").companion == "group"


@pytest.mark.parametrize("objective", ["simclr", "swav", "simclr+0.5*byol"])
def test_crops_alone_leave_colours_as_they_are_and_every_second_view_is_of_another_image(patients: str, objective: str):
    how = {"recipe": "small.yaml"} if objective == "simclr" else {"size": 32, "batch_size": 8}
    selfsight.pretrain(patients, out="run", steps=1, objective=objective, views="crop-only", positives="group", **how)
    recipe = Run(Path("run")).read_recipe()[1]
    assert recipe.views.companion == "group" and all(g.colour == PLAIN for g in recipe.views.groups)
    assert yaml.safe_load(Path("run/recipe.yaml").read_text())["asked"]["positives"] == "group"
    sheet = np.asarray(Image.open("run/views.png").convert("RGB")).astype(int)
    for row in range(3):
        y = 4 + 100 * row + 48
        canvas, one, two = (sheet[y, x] for x in (52, 160, 260))
        assert canvas[:2].argmax() == one[:2].argmax() != two[:2].argmax()  # red and green of one patient
        assert abs(canvas - one).max() <= 2 and abs(canvas[:2].max() - two[:2].max()) <= 2


def test_without_groups_or_pairs_it_is_refused(patients: str):
    with pytest.raises(selfsight.SelfsightError, match=r"no item of .*scans has a group.*--columns group="):
        selfsight.pretrain("scans", out="run", steps=1, positives="group", recipe="small.yaml")
    with pytest.raises(selfsight.SelfsightError, match="has a single view"):
        selfsight.pretrain(patients, out="run", steps=1, positives="group", objective="rotation")
