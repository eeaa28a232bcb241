"""scikit-learn beyond its public interface, in one place: the trees of a boosted model.

Without it, boosted models predict by scikit-learn's own `predict_proba`, with one warning.
"""

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier

_PRIVATE = ("_predictors", "_baseline_prediction", "_loss", "_preprocessor")
_NODE = ("feature_idx", "num_threshold", "left", "right", "is_leaf", "missing_go_to_left", "is_categorical", "value")


class Boosted(NamedTuple):
    """The trees of a boosted model.

    Attributes
    ----------
    trees : list of structured ndarray
        Nodes of the trees of all rounds; within a round one for each column.
    start : ndarray of shape (n_columns,), float64
        The sums before the first tree.
    preprocessed : bool
        Whether records are transformed before the trees get them.
    """

    trees: list[npt.NDArray[Any]]
    start: npt.NDArray[np.float64]
    preprocessed: bool


@functools.cache
def _warn() -> None:
    warnings.warn(
        f"scikit-learn {sklearn.__version__} keeps boosted trees differently: dal predicts with its predict_proba,"
        " several times slower",
        RuntimeWarning,
        stacklevel=4,
    )


def boosted(estimator: HistGradientBoostingClassifier) -> Boosted | None:
    """Return the trees of a fitted model; None, with one warning, where scikit-learn keeps them differently."""
    if all(hasattr(estimator, name) for name in _PRIVATE):
        trees: list[Any] = [getattr(tree, "nodes", None) for trees in estimator._predictors for tree in trees]
        if all(nodes is not None and set(_NODE) <= set(nodes.dtype.names or ()) for nodes in trees):
            start = np.asarray(estimator._baseline_prediction, dtype=np.float64).reshape(-1)
            return Boosted(trees, start, estimator._preprocessor is not None)
    _warn()
    return None


def probabilities(estimator: HistGradientBoostingClassifier, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the probabilities of sums over all trees, (n_records, n_columns), of a model that `boosted` took apart."""
    found: npt.NDArray[np.float64] = estimator._loss.predict_proba(np.asfortranarray(sums))
    return found
