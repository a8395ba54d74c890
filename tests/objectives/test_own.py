"""A pretext task of a user's own, registered in a script of theirs, is one like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import SMALL_RECIPE

from selfsight.data.pixels import PixelFormat
from selfsight.objectives.facts import Facts
from selfsight.objectives.objective import Objective, find, register, registry
from selfsight.training.checkpoints import Sums
from selfsight.training.recorder import Recorder
from selfsight.training.run import Run

SCRIPT = '''
import json
import selfsight
from selfsight.objectives.objective import Loss, Objective, embed_views, in_float32, projector, register
from selfsight.objectives.shared import quarters


@in_float32
def distance(z):
    """Mean squared distance of two views, and a hinge that keeps the deviations above one."""
    return (z[0] - z[1]).square().sum(1).mean() + (1.0 - z.std(1)).clamp_min(0.0).mean()


@register("own")
class Mine(Objective):
    family, when, least_views = "contrastive", "For whom it is.", 2
    rules = {"views": quarters, "objective_options": lambda facts, chosen: ({"width": 8}, "small is enough")}

    def __init__(self, encoder, views, width: int = 16):
        super().__init__(encoder, views)
        self.projector = projector([encoder.dim, width])

    def forward(self, views, progress):
        z = embed_views(self.encoder, self.projector, views)
        loss = distance(z)
        return Loss(loss, {"distance": loss.detach()}, z.detach())


if __name__ == "__main__":
    how = {"out": "run", "objective": "own", "recipe": "recipe.yaml"}
    steps = [selfsight.pretrain("photos", steps=3, **how).steps]
    steps.append(selfsight.pretrain("photos", steps=2, extend=True, **how).steps)
    report = selfsight.report("run")
    listed = [task.name for task in selfsight.objectives("own").objectives]
    print(json.dumps({"steps": steps, "items": report.items, "listed": listed}))
'''


def test_it_trains_extends_reports_and_is_listed(images: Callable[..., Path], tmp_path: Path):
    images(12, "photos")
    recipe = SMALL_RECIPE.replace("objective: simclr", "objective: own")
    recipe = recipe.replace("objective_options: {hidden: 64, width: 32}", "objective_options: {width: 8}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"steps": [3, 5], "items": 12, "listed": ["own"]}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "own" in page and "3 steps" not in page and "5 steps" in page


def test_a_name_that_is_taken_is_refused():
    ours = registry()["simclr"]
    with pytest.raises(ValueError, match=r"Two objectives are called 'simclr'.*SimCLR.*Mine.*Rename yours"):
        register("simclr")(type("Mine", (Objective,), {}))
    assert find("simclr") is ours
    assert register("simclr")(ours) is ours  # of a module that is loaded again


def test_an_objective_without_rules_of_its_own_can_be_in_a_sum(monkeypatch: pytest.MonkeyPatch):
    from selfsight.objectives import objective

    bare = type("Bare", (Objective,), {"rules": {}, "family": "contrastive", "least_views": 2})
    monkeypatch.setitem(objective._REGISTRY, "bare", bare)
    facts = Facts(100, 64, PixelFormat("RGB", 8), "cpu", False, 1, 2**40, lambda side: 0.0, lambda side: 0)
    chosen = {"size": 64, "view_style": "full", "encoder": "resnet18"}
    alone, several = (
        find("simclr").rules["views"](facts, chosen)[0],
        find("bare+simclr").rules["views"](facts, chosen)[0],
    )
    assert several == alone  # both look at quarters, which are shared


def test_a_part_of_a_loss_may_not_hide_a_figure_of_every_row(tmp_path: Path):
    recorder = Recorder(Run(tmp_path), torch.device("cpu"), lambda row: None).opened(0, Sums())
    recorder.means.add({"loss": torch.tensor(1.0), "alignment": torch.tensor(2.0)})
    with pytest.raises(ValueError, match="A part of the loss is called alignment"):
        recorder.write({"step": 1, "progress": 0.1}, {"alignment": 0.5}, {})
