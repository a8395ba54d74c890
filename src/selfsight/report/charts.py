"""The charts of the page, as plain plotly figures. Colours are set where they are drawn: they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from selfsight.probing.evaluation import Evaluation

Row = Mapping[str, float | None]  # of metrics


class Figure(TypedDict):
    """A plotly figure as plain JSON."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]


class Chart(TypedDict):
    """A figure with its words.

    id: of the element on the page.
    title: above the figure.
    caption: below it.
    figure: as plotly draws it.
    """

    id: str
    title: str
    caption: str
    figure: Figure


# What a row of metrics holds besides the parts of the loss.
KNOWN = {
    "step", "progress", "epoch", "loss", "effective_rank", "centre_norm", "spread", "agreement", "contrast",
    "learning_rate", "skipped", "views_per_second", "waiting", "seconds", "gradient_norm", "knn", "alignment",
    "uniformity", "rank_share", "neighbour_stability", "scale", "assignment_entropy", "cluster_entropy",
    "drift", "encoder_learning_rate",
}  # fmt: skip

# (id, title, what good looks like, metric to name, vertical range)
CURVES: tuple[tuple[str, str, str, dict[str, str], list[float] | None], ...] = (
    ("loss", "Loss", "What training lowers. It should fall, fast at first.", {"loss": "loss"}, None),
    ("parts", "Parts of the loss", "The terms it is made of, before weighting.", {}, None),
    (
        "accuracy",
        "Accuracy of the pretext task",
        "How often its question is answered rightly, in %, on the batch that was just learnt from.",
        {"accuracy": "accuracy, %"},
        None,
    ),
    (
        "rank",
        "Effective rank",
        "How many independent directions the answers vary in. One means collapse.",
        {"effective_rank": "effective rank"},
        None,
    ),
    (
        "agreement",
        "View agreement and contrast",
        "Agreement: how alike two views of one image are, from 0 to 1. Contrast: how much more alike than views of "
        "different images. Contrast should rise.",
        {"agreement": "agreement", "contrast": "contrast"},
        None,
    ),
    (
        "spread",
        "Spread and centre norm",
        "Spread: how different the answers are; 0 is collapse. Centre norm: how much all answers have in common; it "
        "may be high in healthy runs of objectives that do not centre.",
        {"spread": "spread", "centre_norm": "centre norm"},
        [0.0, 1.05],
    ),
    (
        "stability",
        "Neighbours under views",
        "How far two views of a batch agree on which images are alike: 0 by chance, 1 wholly. It should rise.",
        {"neighbour_stability": "stability"},
        None,
    ),
    (
        "clusters",
        "Assignments to clusters",
        "Of an image: 1 is undecided, 0 is certain. Of all images together: 0 means that all share one cluster.",
        {"assignment_entropy": "of an image", "cluster_entropy": "of all together"},
        [0.0, 1.05],
    ),
    (
        "knn",
        "k-NN on labelled images",
        "Of images given with --probe, whose labels nothing learns from: how many are like their nearest neighbours, "
        "in %. The first point is of the beginning.",
        {"knn": "k-NN, %"},
        None,
    ),
    (
        "drift",
        "Drift from the starting weights",
        "How far images lie to each other otherwise than at the start: 0 is not at all, 1 is as if nothing of it were "
        "left. It stands at 0 while the heads warm up.",
        {"drift": "drift"},
        [0.0, 1.05],
    ),
    ("gradient", "Norm of the gradient", "A burst may come before trouble.", {"gradient_norm": "norm"}, None),
    (
        "rate",
        "Learning rate",
        "The size of a step: up in the warm-up, then down.",
        {"learning_rate": "learning rate", "encoder_learning_rate": "of the encoder, which had learnt before"},
        None,
    ),
    ("speed", "Speed", "Views trained on in a second.", {"views_per_second": "views/s"}, None),
    (
        "waiting",
        "Waiting for data",
        "Share of the time in which training waited for images, in %. Above 30\u00a0% the disk or the decoding is what "
        "limits speed.",
        {"waiting": "waiting, %"},
        [0.0, 100.0],
    ),
)


def curves(rows: Sequence[Row]) -> list[Chart]:
    """The charts of those of `CURVES` for which `rows` of metrics hold figures."""
    parts = {key: key.replace("_", " ") for row in rows[:1] for key in row if key not in (*KNOWN, "accuracy")}
    if len(parts) == 1 and all(row.get(key) == row["loss"] for key in parts for row in rows):
        parts = {}  # the loss itself
    out: list[Chart] = []
    for name, title, caption, lines, span in CURVES:
        lines = parts if name == "parts" else lines
        shown = {key: text for key, text in lines.items() if any(row.get(key) is not None for row in rows)}
        if shown:
            figure = _lines(rows, shown, 100.0 if name in ("waiting", "knn", "accuracy") else 1.0)
            if span:
                figure["layout"]["yaxis"]["range"] = span
            out.append({"id": f"curve-{name}", "title": title, "caption": caption, "figure": figure})
    return out


def _lines(rows: Sequence[Row], names: dict[str, str], factor: float) -> Figure:
    rows = [row for row in rows if any(row.get(key) is not None for key in names)]
    steps = [row["step"] for row in rows]
    mode = "lines+markers" if len(rows) < 30 else "lines"
    traces = []
    for slot, (key, name) in enumerate(names.items()):
        values = [None if (value := row.get(key)) is None else value * factor for row in rows]
        traces.append(
            {"type": "scatter", "mode": mode, "x": steps, "y": values, "name": name, "meta": {"slot": slot}}
            | {"hovertemplate": "step %{x:,}: %{y:.4~g}<extra>" + name + "</extra>"}
        )
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {}, "showlegend": len(names) > 1}
    return {"data": traces, "layout": layout}


def map_figure(projection: np.ndarray) -> Figure:
    """The map, with one point per item at its `projection` [N, 2]. The page's script shows pictures and names."""
    trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "hoverinfo": "none", "meta": {"slot": 0}}
    trace |= {"x": _short(projection[:, 0]), "y": _short(projection[:, 1]), "marker": {"size": 7, "opacity": 0.7}}
    axis = {"visible": False}
    layout = {"xaxis": axis, "yaxis": axis | {"scaleanchor": "x"}, "showlegend": False, "hovermode": "closest"}
    return {"data": [trace], "layout": layout}


def _short(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def label_curve(evaluation: Evaluation, titles: dict[str, str]) -> Figure | None:
    """Accuracy (balanced, where that leads) in % over labels per class, with bars of one standard deviation; None for
    fewer than two points."""
    # All labels: at their mean per class, or beyond the largest number drawn, where common classes have many more.
    drawn = [float(count) for count in evaluation.encoder.few_shot if count != "all"]
    per_class = max(
        evaluation.about.train_items / max(1, len(evaluation.about.classes)), *(1.5 * n for n in drawn), 0.0
    )
    traces, places = [], set()
    for slot, (key, title) in enumerate(titles.items()):
        few = evaluation.sides[key].few_shot if key in evaluation.sides else {}
        drawn_of = {count: draws for count, value in few.items() if (draws := value.by(evaluation.about.leading))}
        points = [(per_class if count == "all" else float(count), value) for count, value in drawn_of.items()]
        points = sorted((point for point in points if point[0] > 0), key=lambda point: point[0])
        if not points:
            continue
        places |= {x for x, _ in points}
        error = {"type": "data", "array": [100 * value.std for _, value in points], "visible": True}
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "name": title, "meta": {"slot": slot}, "error_y": error}
            | {"x": [x for x, _ in points], "y": [100 * value.mean for _, value in points]}
            | {"hovertemplate": "%{x:.4~g} labels per class: %{y:.1f} %<extra>" + title + "</extra>"}
        )
    if len(places) < 2:
        return None
    ticks = sorted(places)
    xaxis = {"title": {"text": "labels per class"}, "type": "log", "tickvals": ticks}
    every = f"all {evaluation.about.train_items:,}"
    xaxis["ticktext"] = [
        every if x == per_class and "all" in evaluation.encoder.few_shot else f"{x:,.0f}" for x in ticks
    ]
    title = "balanced accuracy, %" if evaluation.about.leading == "balanced" else "accuracy, %"
    layout = {"xaxis": xaxis, "yaxis": {"title": {"text": title}}, "showlegend": True}
    return {"data": traces, "layout": layout}
