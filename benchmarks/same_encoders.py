"""Whether the present code trains the same encoders as an earlier revision, to the bit, on this machine.

    python benchmarks/same_encoders.py                   against b83fcf1, where the large refactoring began
    python benchmarks/same_encoders.py --before main~3

Five pretext tasks, 40 steps each with one thread, in float32 and in the precision that the rules choose, on 24
synthetic images of 40 px. The earlier revision comes from a temporary `git worktree`. Prints a table of hashes of the
saved encoders' tensors; the exit code is 1 if one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
BEFORE, STEPS, IMAGES, SIDE = "b83fcf1", 40, 24, 40
NARROW = "encoder: resnet18\n  encoder_args: {layers: [1, 1, 1, 0], channels: [8, 16, 32, 32]}"
VIT = "encoder: vit_tiny_patch16_224\n  encoder_args: {patch_size: 8, depth: 2, embed_dim: 32, num_heads: 2}"
OBJECTIVES = {"simclr": NARROW, "dino": VIT, "mae": VIT, "vicreg": NARROW, "rotation+0.5*jigsaw": NARROW}
PRECISIONS = {"float32": '  precision: "no"\n', "chosen": ""}
RECIPE = """resolved:
  objective: {objective}
  {encoder}
  size: 32
  canvas_side: 32
  batch_size: 8
  threads: 1
"""
# Run with the sources of one revision before all others: folder of the runs, images, steps, names of recipes.
CHILD = """import sys
from pathlib import Path
import selfsight
runs, images, steps, *recipes = sys.argv[1:]
print(Path(selfsight.__file__).parents[2])
for recipe in recipes:
    selfsight.pretrain(images, out=f"{runs}/{Path(recipe).stem}", steps=int(steps), recipe=recipe)
"""


def write_images(folder: Path) -> None:
    """Waves of random direction and colour with some noise, the same every time."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(IMAGES):
        waves = np.stack([np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 12, (3, 3))], 2)
        pixels = 127 + 90 * waves + rng.normal(0, 10, waves.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")


def write_recipes(folder: Path, objectives: list[str]) -> dict[str, list[Path]]:
    """{precision: recipe files, one an objective}."""
    folder.mkdir()
    files: dict[str, list[Path]] = {}
    for precision, line in PRECISIONS.items():
        for number, objective in enumerate(objectives):
            file = folder / f"{precision}-{number}.yaml"
            file.write_text(RECIPE.format(objective=objective, encoder=OBJECTIVES[objective]) + line)
            files.setdefault(precision, []).append(file)
    return files


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """The files of a revision, in `folder` for a while."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def train(tree: Path, work: Path, name: str, recipes: dict[str, list[Path]], steps: int) -> Path:
    """Train all recipes with the code of `tree`, in a process for each precision; the folder of the runs."""
    runs = work / name
    runs.mkdir()
    settings = {"PYTHONPATH": str(tree / "src"), "SELFSIGHT_CACHE": str(work / f"{name}-cache"), "OMP_NUM_THREADS": "1"}
    for files in recipes.values():
        command = [sys.executable, "-c", CHILD, str(runs), str(work / "photos"), str(steps), *map(str, files)]
        done = subprocess.run(command, env=os.environ | settings, cwd=runs, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree} failed:\n{done.stderr}")
        if Path(done.stdout.splitlines()[0]).resolve() != tree.resolve():
            raise SystemExit(f"{tree} was meant, but selfsight was imported from {done.stdout.splitlines()[0]}.")
    return runs


def hash_of(run: Path) -> str:
    """Hash of the names, types, shapes and bytes of the saved encoder's tensors, in the order of their names."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(load_file(run / "encoder" / "model.safetensors").items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def precision_of(run: Path) -> str:
    """What a run computed in."""
    chosen = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["resolved"]["precision"]
    return {"no": "float32"}.get(chosen, chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", default=BEFORE, help=f"revision to compare with ({BEFORE})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each training ({STEPS})")
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), help="of the pretext tasks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_images(work / "photos")
        recipes = write_recipes(work / "recipes", arguments.only)
        with worktree(arguments.before, work / "tree") as tree:
            before = train(tree, work, "before", recipes, arguments.steps)
        after = train(ROOT, work, "after", recipes, arguments.steps)
        print(f"{'objective':<22}{'precision':<22}{arguments.before:<14}{'now':<14}same")
        different = 0
        for precision, files in recipes.items():
            for objective, file in zip(arguments.only, files, strict=True):
                runs = before / file.stem, after / file.stem
                one, other = map(hash_of, runs)
                used = " -> ".join(dict.fromkeys(map(precision_of, runs)))
                label = f"chosen: {used}" if precision == "chosen" else used
                print(f"{objective:<22}{label:<22}{one:<14}{other:<14}{'yes' if one == other else 'NO'}")
                different += one != other
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
