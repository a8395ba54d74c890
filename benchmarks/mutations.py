"""Whether the tests notice small faults: some thirty, each put into a copy of the code, each with the test to see it.

    python benchmarks/mutations.py [--check] [--only NAME ...]

Copies `src` and `tests` as they are on disk, and runs every test that is named below once: all must pass. Then it
changes one line after another, and runs the one test that must fail then. Prints a row a fault; the exit code is 1 if
a fault survives, if a test fails without any, or if a line is not there exactly once. `--check` stops before the
faults. After a refactoring, update a mutation's file, line or test and keep what it gets wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds for a test
PASSED, FAILED = 0, 1  # exit codes of pytest; others are of tests that could not be run
HUNG = -1


@dataclass(frozen=True)
class Mutation:
    """A fault: `line`, which `file` of `src/selfsight` has exactly once, becomes `fault`, and `test` must fail."""

    name: str
    file: str
    line: str
    fault: str
    test: str


MUTATIONS = (
    # -- objectives --
    Mutation(
        "SimCLR takes other views of an item for negatives",
        "objectives/simclr.py",
        'similarity.masked_fill(same, float("-inf")).logsumexp(1)',
        "similarity.logsumexp(1)",
        "tests/objectives/test_simclr.py",
    ),
    Mutation(
        "SimCLR's gradient goes through one side only",
        "objectives/simclr.py",
        "z @ z.T / temperature",
        "z @ z.T.detach() / temperature",
        "tests/objectives/test_simclr.py",
    ),
    Mutation(
        "SimSiam's gradient goes through the target too",
        "objectives/losses.py",
        "F.normalize(targets.detach().float(), dim=2)",
        "F.normalize(targets.float(), dim=2)",
        "tests/objectives/test_pairs.py",
    ),
    Mutation(
        "MoCo multiplies by its temperature",
        "objectives/moco.py",
        'torch.einsum("vbd,wcd->vwbc", q, k) / temperature',
        'torch.einsum("vbd,wcd->vwbc", q, k) * temperature',
        "tests/objectives/test_pairs.py",
    ),
    Mutation(
        "a teacher keeps what it should take",
        "objectives/teacher.py",
        "p.lerp_(q, weight)",
        "p.lerp_(q, 1.0 - weight)",
        "tests/objectives/test_pairs.py",
    ),
    Mutation(
        "Barlow Twins divides by variances",
        "objectives/barlow.py",
        "(centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()",
        "(centred.square().mean(dim=1, keepdim=True) + 1e-5)",
        "tests/objectives/test_barlow.py",
    ),
    Mutation(
        "EMP makes the coding rate small",
        "objectives/emp.py",
        "total = -rate - self.weight * agreed",
        "total = rate - self.weight * agreed",
        "tests/objectives/test_emp.py",
    ),
    Mutation(
        "LeJEPA compares unsorted projections with quantiles",
        "objectives/lejepa.py",
        "(standard @ along).sort(dim=1).values",
        "(standard @ along)",
        "tests/objectives/test_lejepa.py",
    ),
    Mutation(
        "LeJEPA's shape pushes the deviation too",
        "objectives/lejepa.py",
        "(deviation.detach() + 1e-4)",
        "(deviation + 1e-4)",
        "tests/objectives/test_lejepa.py",
    ),
    Mutation(
        "LeJEPA's small views are part of the mean",
        "objectives/lejepa.py",
        "z[large.to(z.device)].mean(0)",
        "z.mean(0)",
        "tests/objectives/test_lejepa.py",
    ),
    Mutation(
        "Sinkhorn stops one iteration early",
        "objectives/prototypes.py",
        "for _ in range(iterations):",
        "for _ in range(iterations - 1):",
        "tests/objectives/test_swav.py",
    ),
    Mutation(
        "I-JEPA's context shows the targets",
        "objectives/ijepa.py",
        "block(draws[:, :2], grid, context, context) & ~torch.stack(masks).any(0)",
        "block(draws[:, :2], grid, context, context)",
        "tests/objectives/test_ijepa.py",
    ),
    Mutation(
        "patches are cut column by column",
        "objectives/patches.py",
        "cells.permute(0, 2, 4, 1, 3, 5).flatten(3)",
        "cells.permute(0, 4, 2, 1, 3, 5).flatten(3)",
        "tests/objectives/test_patches.py",
    ),
    # -- views --
    Mutation(
        "a crop's sides are its area",
        "views/crops.py",
        "np.clip(np.sqrt(area * ratio), 1.0, width)",
        "np.clip(area * ratio, 1.0, width)",
        "tests/views/test_crops.py",
    ),
    Mutation(
        "a flip mirrors about the crop's left edge",
        "views/crops.py",
        "np.where(flipped, x + w, x)",
        "x",
        "tests/views/test_crops.py",
    ),
    Mutation(
        "views lie half a pixel off",
        "views/crops.py",
        "torch.arange(size, device=first.device, dtype=torch.float32) + 0.5",
        "torch.arange(size, device=first.device, dtype=torch.float32)",
        "tests/views/test_crops.py",
    ),
    Mutation(
        "hue turns half as far",
        "views/colour.py",
        "turn = hue * (2.0 * math.pi)",
        "turn = hue * math.pi",
        "tests/views/test_colour.py",
    ),
    Mutation(
        "the window's upper end is its width",
        "data/geometry.py",
        ".sub_(low).div_(high - low)",
        ".sub_(low).div_(high)",
        "tests/views/test_make.py",
    ),
    # -- the loop --
    Mutation(
        "the rate never comes down to nought behind a warm-up",
        "training/optimisers.py",
        "min(1.0, (progress - warmup) / (1.0 - warmup))",
        "min(1.0, progress - warmup)",
        "tests/training/test_optimisers.py",
    ),
    Mutation(
        "biases and norms are decayed",
        "objectives/contract.py",
        '"params": plain, "weight_decay_scale": 0.0',
        '"params": plain, "weight_decay_scale": 1.0',
        "tests/training/test_optimisers.py",
    ),
    Mutation(
        "accumulated gradients are a sum",
        "training/stepping.py",
        "self.accelerator.backward(found.total / self.accumulate)",
        "self.accelerator.backward(found.total)",
        "tests/training/test_loop.py::test_accumulated_batches_are_one_large_batch",
    ),
    Mutation(
        "dropout is the same at every step",
        "training/loop.py",
        "seed * 1_000_003 + step",
        "seed * 1_000_003",
        "tests/training/test_loop.py::test_what_a_model_draws_is_of_the_seed_and_the_step",
    ),
    Mutation(
        "a skipped step leaves its running statistics",
        "training/stepping.py",
        "buffer.copy_(kept)",
        "kept.copy_(buffer)",
        "tests/training/test_loop.py::test_a_skipped_step_leaves_no_trace_in_running_statistics",
    ),
    Mutation(
        "the clock counts a night's sleep as training",
        "training/clock.py",
        "time.monotonic() - self.started - self.slept",
        "time.monotonic() - self.started",
        "tests/training/test_clock.py",
    ),
    Mutation(
        "a run goes on from its oldest checkpoint",
        "training/checkpoints.py",
        'sorted(folder.glob("step-*[0-9]"), reverse=True)',
        'sorted(folder.glob("step-*[0-9]"))',
        "tests/training/test_checkpoints.py",
    ),
    # -- the store --
    Mutation(
        "features come in the order in which they were kept",
        "data/features.py",
        "rows, places = rows[order], places[order]",
        "rows, places = rows, places[order]",
        "tests/data/test_feature_store.py",
    ),
    Mutation(
        "features of changed contents are taken for known",
        "data/features.py",
        'for name in ("id", "content_hash")]',
        'for name in ("id", "id")]',
        "tests/data/test_feature_store.py",
    ),
    Mutation(
        "a decision replaces those before it",
        "data/decisions.py",
        'file.open("ab")',
        'file.open("wb")',
        "tests/data/test_decisions.py",
    ),
    Mutation(
        "an encoder forgets its window",
        "encoders/store.py",
        '"window": p.window',
        '"window": (0.0, 255.0)',
        "tests/encoders/test_store.py",
    ),
    Mutation(
        "batch norms are measured in eval mode",
        "encoders/statistics.py",
        "norm.train()",
        "norm.eval()",
        "tests/encoders/test_statistics.py",
    ),
    # -- probes --
    Mutation(
        "near neighbours count less than far ones",
        "probing/neighbours.py",
        "(similarity.astype(np.float64) - 1.0) / TEMPERATURE",
        "(1.0 - similarity.astype(np.float64)) / TEMPERATURE",
        "tests/probing/test_neighbours.py",
    ),
    Mutation(
        "the linear probe puts scores into wrong columns",
        "probing/linear.py",
        "weight[model.classes_], bias[model.classes_] = rows, ends",
        "weight[: len(rows)], bias[: len(rows)] = rows, ends",
        "tests/probing/test_linear.py",
    ),
    Mutation(
        "the linear probe sees the length of features",
        "probing/linear.py",
        "np.asarray(normalize(features))",
        "np.asarray(features)",
        "tests/probing/test_linear.py",
    ),
    Mutation(
        "the linear probe chooses the worst strength",
        "probing/linear.py",
        "np.argmax(hits)",
        "np.argmin(hits)",
        "tests/probing/test_linear.py",
    ),
    Mutation(
        "LiDAR divides by one view too many",
        "probing/criteria.py",
        "rest.T @ rest / (items * (views - 1))",
        "rest.T @ rest / (items * views)",
        "tests/probing/test_criteria.py",
    ),
)


def misplaced(mutations: Sequence[Mutation], package: Path) -> list[str]:
    """A sentence for each mutation whose line is not exactly once in its file, with the files that have it."""
    sources = {str(path.relative_to(package)): path.read_text() for path in sorted(package.rglob("*.py"))}
    out = []
    for mutation in mutations:
        count = sources.get(mutation.file, "").count(mutation.line)
        if count != 1:
            now = ", ".join(file for file, text in sources.items() if mutation.line in text) or "no file"
            out.append(
                f"{mutation.name!r}: {mutation.file} has {mutation.line!r} {count} times, not once ({now} has it). "
                "Update the mutation's file and line to the code as it is now, and keep what the fault gets wrong."
            )
    return out


def pytest(folder: Path, *tests: str) -> int:
    """pytest's exit code for these tests of the copy in `folder`, or `HUNG`. Nothing is compiled into it."""
    about = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | about, capture_output=True, text=True, timeout=PATIENCE * len(tests)
        )
    except subprocess.TimeoutExpired:
        return HUNG
    if done.returncode not in (PASSED, FAILED) or (len(tests) > 1 and done.returncode != PASSED):
        print(done.stdout[-4000:], done.stderr[-1000:], sep="\n", flush=True)
    return done.returncode


def try_out(mutation: Mutation, folder: Path) -> int:
    """The exit code of a mutation's test with the fault in the copy in `folder`, which is then as it was."""
    file = folder / "src" / "selfsight" / mutation.file
    sound, times = file.read_text(), file.stat()
    file.write_text(sound.replace(mutation.line, mutation.fault))
    os.utime(file, (1, 1))  # no compiled file is of that time
    try:
        return pytest(folder, mutation.test)
    finally:
        file.write_text(sound)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def chosen(names: Sequence[str] | None) -> list[Mutation]:
    """The mutations of these names, or all. Ends the program where one is not known."""
    if unknown := set(names or ()) - {mutation.name for mutation in MUTATIONS}:
        raise SystemExit(f"No mutation is called {', '.join(sorted(unknown))}. See MUTATIONS in {__file__}.")
    return [mutation for mutation in MUTATIONS if not names or mutation.name in names]


def measure(mutations: Sequence[Mutation], folder: Path) -> int:
    """Try the mutations one by one, print a row each; how many survive."""
    outcomes = {PASSED: "NO", FAILED: "yes", HUNG: "NO: its test hangs"}
    print("| fault | file | test | caught | s |\n|---|---|---|---|---|", flush=True)
    survive, first = 0, time.monotonic()
    for mutation in mutations:
        began = time.monotonic()
        code = try_out(mutation, folder)
        survive += code != FAILED
        caught, seconds = outcomes.get(code, f"NO: pytest ended with {code}"), time.monotonic() - began
        print(f"| {mutation.name} | {mutation.file} | {mutation.test} | {caught} | {seconds:.1f} |", flush=True)
    print(f"{len(mutations) - survive} of {len(mutations)} faults are caught, in {time.monotonic() - first:.0f} s.")
    return survive


def main() -> int:
    """Check, then mutate; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="stop before the faults")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutations only")
    asked = parser.parse_args()
    mutations = chosen(asked.only)
    if sentences := misplaced(mutations, ROOT / "src" / "selfsight"):
        print("\n".join(sentences))
        return 1
    with tempfile.TemporaryDirectory(prefix="selfsight-mutations-") as name:
        folder = Path(name)
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy2(ROOT / "pyproject.toml", folder)
        tests = list(dict.fromkeys(mutation.test for mutation in mutations))
        if (code := pytest(folder, *tests)) != PASSED:
            print(f"Without a fault, a test fails (pytest ended with {code}). Mend that first: {', '.join(tests)}")
            return 1
        print(f"{len(tests)} tests pass without a fault.", flush=True)
        return int(not asked.check and measure(mutations, folder) > 0)


if __name__ == "__main__":
    sys.exit(main())
