"""A pretext task of a user's own, registered in a script of theirs, is one like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from helpers import SMALL_RECIPE

SCRIPT = '''
import json
import selfsight
from selfsight.objectives.objective import Loss, Objective, embed_views, in_float32, projector, register
from selfsight.objectives.shared import quarters


@in_float32
def distance(z):
    """Mean squared distance of two views, and a hinge that keeps the deviations above one."""
    return (z[0] - z[1]).square().sum(1).mean() + (1.0 - z.std(1)).clamp_min(0.0).mean()


@register("mine")
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
    how = {"out": "run", "objective": "mine", "recipe": "recipe.yaml"}
    steps = [selfsight.pretrain("photos", steps=3, **how).steps]
    steps.append(selfsight.pretrain("photos", steps=2, extend=True, **how).steps)
    report = selfsight.report("run")
    listed = [task.name for task in selfsight.objectives("mine").objectives]
    print(json.dumps({"steps": steps, "items": report.items, "listed": listed}))
'''


def test_it_trains_extends_reports_and_is_listed(images: Callable[..., Path], tmp_path: Path):
    images(12, "photos")
    recipe = SMALL_RECIPE.replace("objective: simclr", "objective: mine")
    recipe = recipe.replace("objective_options: {hidden: 64, width: 32}", "objective_options: {width: 8}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"steps": [3, 5], "items": 12, "listed": ["mine"]}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "mine" in page and "3 steps" not in page and "5 steps" in page
