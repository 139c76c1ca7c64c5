"""One support vector machine and its average precision; the svm stage's processes run this."""

import functools
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

Array = NDArray[Any]


@dataclass(frozen=True)
class Fit:
    """A task: classifiers of one class against the rest, one for each cost."""

    key: tuple[Any, ...]
    """Key of the task in the log of finished tasks."""
    train: Path
    """(n, d) float64 normalised features, .npy."""
    test: Path
    rows: Array
    """(k,) places of the training images to use."""
    labels: Array
    """(k,) labels, 1 or -1."""
    answers: Array
    """(m,) labels of the test images: 1 or 0, or -1 for ignored ones."""
    costs: tuple[float, ...]
    folds: int
    """Number of folds of the cross-validation; 0 for none."""
    seed: int


def prepare() -> None:
    """Ignore Ctrl-C: the parent handles it and ends these processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(fit: Fit) -> dict[str, Any]:
    """Return the average precision in 0..1 for each cost, as OpenSelfSup's svm_tools compute it.

    ``test`` is measured on the test images after training on all rows. ``folds`` is the mean over the
    cross-validation, by scikit-learn's average precision.
    """
    whole, tested = _load(fit.train), _load(fit.test)
    features = whole if len(fit.rows) == len(whole) else whole[fit.rows]
    seen = fit.answers >= 0
    found: dict[str, Any] = {"key": list(fit.key), "test": [], "folds": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops after 2000 passes
        for cost in fit.costs:
            model = LinearSVC(
                C=cost,
                class_weight={1: 2, -1: 1},
                penalty="l2",
                loss="squared_hinge",
                dual=True,
                tol=1e-4,
                max_iter=2000,
                random_state=fit.seed,
            )
            if fit.folds:
                scores = cross_val_score(
                    model, features, fit.labels, cv=fit.folds, scoring="average_precision"
                )
                found["folds"].append(float(scores.mean()))
            model.fit(features, fit.labels)
            scores = model.decision_function(tested)
            found["test"].append(average_precision(fit.answers[seen], scores[seen]))
    return found


@functools.cache
def _load(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r")  # its pages are shared by the processes
    return array


def average_precision(labels: Array, scores: Array) -> float:
    """Return the area under the monotone precision-recall curve, as PASCAL VOC 2010 and later do.

    Args:
        labels: (n,) labels; those above 0 are positive.
        scores: (n,) scores of the images.
    """
    hits = labels[np.argsort(-scores, kind="stable")] > 0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / hits.sum())
