"""The tables of the leaderboard, from its rows: see objectives.py."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from selfsight.verbs.compare import CRITERIA


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an objective and encoder: means over seeds."""
    out = []
    for name, kind in dict.fromkeys((row["objective"], row["encoder"]) for row in rows):
        seeds = [row for row in rows if (row["objective"], row["encoder"]) == (name, kind)]
        mean = {key: statistics.mean(row[key] for row in seeds)
                for key in ("knn", "linear", "cpu_seconds", "peak_mb", "steps") if key in seeds[0]}  # fmt: skip
        mean |= {"objective": name, "encoder": kind, "seeds": len(seeds)}
        mean["spread"] = statistics.stdev(row["knn"] for row in seeds) if len(seeds) > 1 else None
        mean["few_shot"] = statistics.mean(row["few_shot"][0] for row in seeds)
        mean["verdicts"] = ", ".join(dict.fromkeys(row["verdict"] for row in seeds if "verdict" in row))
        if "criteria" in seeds[0]:
            mean["criteria"] = {key: statistics.mean(row["criteria"][key] for row in seeds) for key in CRITERIA}
        out.append(mean)
    return sorted(out, key=lambda row: -row["knn"])


def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlation of each label-free criterion, and of their mean rank, with k-NN."""
    ranks = {}
    for name, worth in CRITERIA.items():
        values = [row["criteria"][name] for row in rows]
        ranks[name] = rankdata([worth * v if worth else -abs(v - 1.0) for v in values])
    ranks["mean rank"] = np.mean(list(ranks.values()), 0)
    knn = [row["knn"] for row in rows]
    return {name: float(spearmanr(rank, knn).statistic) for name, rank in ranks.items()}


def table(rows: list[dict[str, Any]], budget: str) -> None:
    """A table a data set, best first, then how well criteria without labels would have ranked."""
    for data in dict.fromkeys(row["data"] for row in rows if row["budget"] == budget):
        found = summary([row for row in rows if (row["budget"], row["data"]) == (budget, data)])
        random = {row["encoder"]: row["knn"] for row in found if row["objective"] == "random"}
        runs = [row for row in found if "criteria" in row]
        top = max((row["knn"] for row in runs), default=0.0)
        print(f"\n{data}, {budget}\n")
        print("| objective | encoder | k-NN | seeds | behind the best | over random weights | linear | 5-shot | steps "
              "| CPU s | MB | verdict |\n|---|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for row in found:
            knn = f"{100 * row['knn']:.1f}" + (f" ± {100 * row['spread']:.1f}" if row["spread"] is not None else "")
            gain = f"{100 * (row['knn'] - random[row['encoder']]):+.1f}" if row["encoder"] in random else ""
            cells = [row["objective"], row["encoder"], knn, row["seeds"], f"{100 * (top - row['knn']):.1f}", gain]
            cells += [f"{100 * row['linear']:.1f}", f"{100 * row['few_shot']:.1f}"]
            cells += [f"{row[key]:.0f}" if key in row else "" for key in ("steps", "cpu_seconds", "peak_mb")]
            print("| " + " | ".join(map(str, [*cells, row["verdicts"]])) + " |")
        for kind in ("", "conv", "vit"):
            some = [row for row in runs if row["encoder"].startswith(kind)]
            if len(some) > 2:
                said = ", ".join(f"{name} {value:+.2f}" for name, value in correlations(some).items())
                print(f"\nRank correlation with k-NN over {len(some)} {kind + ' ' if kind else ''}runs: {said}")
