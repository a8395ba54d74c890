"""The map of a whole collection: where each item lies on a plane by its features, and what can colour it."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa

from selfsight.console import console
from selfsight.data.collection import Collection
from selfsight.errors import MachineError
from selfsight.probing.neighbours import Graph
from selfsight.report.atlas import Colouring, columns

How: TypeAlias = Literal["umap", "pca"]
SEED = 0
LONG = 5000  # items, from which it is said that UMAP takes a while
SPREAD = 10.0  # of the principal components that UMAP begins with, as of its own starts


@dataclass(frozen=True)
class Cloud:
    """Items on a plane.

    ids: of the items [N]. projection: [N, 2], within [0, 1]. how: it was made. columns: what can colour the items.
    """

    ids: list[str]
    projection: np.ndarray
    how: How
    columns: dict[str, Colouring]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        x, y = self.projection.round(5).T.tolist()
        coloured = {name: asdict(colouring) for name, colouring in self.columns.items()}
        return {"ids": self.ids, "x": x, "y": y, "how": self.how, "columns": coloured}


def cloud_of(items: Collection, rows: pa.Table, features: np.ndarray, graph: Graph, how: How | None = None) -> Cloud:
    """The map of `rows` by their `features` [N, D] and the graph of these. how: as `projected` takes it.

    Raises `MachineError` as `projected` does.
    """
    chosen = chosen_how(len(rows), how)
    return Cloud(rows["id"].to_pylist(), projected(features, graph, chosen), chosen, columns(items, rows))


def chosen_how(count: int, how: How | None) -> How:
    """UMAP where it is installed and there are items enough, unless another way is named.

    Raises `MachineError` where UMAP is named and not installed.
    """
    installed = importlib.util.find_spec("umap") is not None
    if how == "umap" and not installed:
        raise MachineError("UMAP is not installed: pip install 'selfsight[map]'. Without it: --map pca")
    return how or ("umap" if installed and count > 3 else "pca")


def projected(features: np.ndarray, graph: Graph, how: How) -> np.ndarray:
    """The directions of `features` [N, D] on a plane, [N, 2] within [0, 1], with the aspect kept.

    pca: their first two principal components. umap: these, moved so that neighbours of the graph lie near each other
    (McInnes et al., "UMAP: Uniform Manifold Approximation and Projection", JOSS 2018).
    """
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    plane = _components(units)
    if how == "umap" and len(units) > 3:
        plane = _moved(units, plane, graph)
    low = plane.min(0)
    return np.asarray((plane - low) / (float((plane - low).max()) or 1.0))


def _components(units: np.ndarray) -> np.ndarray:
    """The first two principal components [N, 2]; 0 where there are fewer."""
    from sklearn.decomposition import PCA

    out = np.zeros((len(units), 2))
    count = min(2, *units.shape)
    if len(units) > 1 and float(units.std(0).max()) > 1e-6:
        out[:, :count] = PCA(count, svd_solver="covariance_eigh").fit_transform(units)
    return out


def _moved(units: np.ndarray, plane: np.ndarray, graph: Graph) -> np.ndarray:
    from umap import UMAP

    if len(units) > LONG:
        console().print(f"Drawing the map of {len(units):,} items (UMAP).", soft_wrap=True)
    own = np.arange(len(units))[:, None]
    index = np.hstack([own, graph.index]).astype(np.int32)
    far = np.hstack([np.zeros_like(own, np.float32), (1.0 - graph.cosine).clip(0.0)]).astype(np.float32)
    scale = SPREAD / max(float(np.abs(plane).max()), 1e-12)
    jitter = np.random.default_rng(SEED).normal(0.0, 1e-4, plane.shape)  # copies would stay on one point
    model = UMAP(
        n_neighbors=index.shape[1], metric="cosine", init=(plane * scale + jitter).astype(np.float32),
        precomputed_knn=(index, far), random_state=SEED, n_jobs=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot place new items
        return np.asarray(model.fit_transform(units.astype(np.float32)))
