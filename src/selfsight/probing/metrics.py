"""Classification metrics of class scores, all fractions in [0, 1], all from scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np

NAMES = ("top1", "balanced", "top2", "macro_f1", "auroc")


def metrics(scores: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """scores [N, C], larger is likelier; truth [N] class numbers.

    top1: accuracy. balanced: mean recall over classes. top2: truth among the best two. macro_f1: mean F1
    over classes. auroc: mean one-against-rest area, None where a class has no example or every one.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

    guess = scores.argmax(1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    present = np.unique(truth)
    areas = [roc_auc_score(truth == c, scores[:, c]) for c in present] if len(present) > 1 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is guessed but absent from the truth
        return {
            "top1": float(accuracy_score(truth, guess)),
            "balanced": float(balanced_accuracy_score(truth, guess)),
            "top2": float((best == truth[:, None]).any(1).mean()),
            "macro_f1": float(f1_score(truth, guess, average="macro")),
            "auroc": float(np.mean(areas)) if areas else None,
        }
