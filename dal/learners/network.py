"""Networks: logistic regressions and multi-layer perceptrons as plain matrix products in single precision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from dal._threads import one_thread
from dal.learners.estimators import last_step, rows_of, steps_before, transformed
from dal.learners.penalty import TunedLogisticRegression

Floats = npt.NDArray[np.floating[Any]]


ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "identity": lambda values: values,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda values: np.maximum(values, 0, out=values),
}
"""Activations by scikit-learn's names; they may overwrite their input."""


LEAST_BLOCK_ROWS = 64


FOLDED_MEANS = 4.0
"""Up to this mean of a feature, in its deviations, a scaler is folded into the coefficients."""


@dataclass(frozen=True, eq=False)
class Network:
    """Decision values as matrix products: of a logistic regression, and of a network with layers before that.

    ``predict_proba`` is their softmax; where there is one, its sigmoid is the probability of the second class seen.

    Parameters
    ----------
    coef
        (C', h), float32; columns contiguous, which is the faster side for short blocks.
    intercept
        (C',).
    hidden
        Weights (d, h) and intercepts (h,) of the layers before, the first one first.
    activation
        Name of the activation after each hidden layer.
    steps
        Transformations before the products; None if there are none.
    normalized
        Whether records are divided by their lengths before the products.
    block_bytes
        Of a block of records that stays in the core's cache while it is multiplied.
    """

    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[Any]
    hidden: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
    activation: str
    steps: Pipeline | None
    normalized: bool = False
    block_bytes: int = 256 * 2**10

    @property
    def block_rows(self) -> int:
        """Height of a block, a power of two: 256 KiB stay in the core's cache while they are multiplied."""
        width = len(self.hidden[0][0]) if self.hidden else self.coef.shape[1]
        most = max(LEAST_BLOCK_ROWS, self.block_bytes // (4 * width))
        return int(1 << (most.bit_length() - 1))

    @one_thread
    def decisions(self, X: npt.NDArray[np.float32]) -> Floats:
        """Compute the decision values of records, class-major: (C', n)."""
        records = X if self.steps is None else rows_of(transformed(self.steps, X))
        values = np.empty((len(self.coef), len(X)), dtype=np.float32)
        for start in range(0, len(X), self.block_rows):
            part = slice(start, start + self.block_rows)
            self.decide(records[part], values[:, part])
        return values

    def decide(self, block: Any, values: Floats) -> None:  # noqa: ANN401 - records, dense or sparse
        """Fill `values`, (C', n), with the decision values of one block of records that need no steps.

        All values of a record with a feature that is not finite are not finite either.
        """
        finite: npt.NDArray[np.bool_] | None = None
        for weights, intercepts in self.hidden:
            sums = block @ weights
            sums += intercepts
            # What is not finite makes every sum over the features so, but an activation may hide it.
            finite = np.isfinite(sums[:, 0]) if finite is None else finite
            block = ACTIVATIONS[self.activation](sums)
        if sparse.issparse(block):
            values[:] = (block @ self.coef.T).T
        else:
            np.matmul(self.coef, block.T, out=values)
        if self.normalized:
            values /= _lengths(block)
        values += self.intercept[:, None]
        if finite is not None:
            values[:, ~finite] = np.nan


def network_of(estimator: BaseEstimator) -> Network | None:
    """Return the estimator as matrix products; None if it is neither a logistic regression nor a network."""
    last = last_step(estimator)
    if type(last) in (LogisticRegression, TunedLogisticRegression):
        # One-versus-rest is no softmax.
        if last.coef_.dtype != np.float32 or (last.solver == "liblinear" and len(last.coef_) > 1):
            return None
        layers = [(last.coef_.T, last.intercept_)]
        activation = "identity"
    elif type(last) is MLPClassifier:
        if last.coefs_[0].dtype != np.float32:
            return None
        layers = list(zip(last.coefs_, last.intercepts_, strict=True))
        activation = last.activation
    else:
        return None
    steps = steps_before(estimator)
    if steps is not None and (folded := _folded(steps, *layers[0])) is not None:
        layers[0], steps = folded, None
    *hidden, (weights, intercept) = layers
    normalized = not hidden and steps is not None and len(steps) == 1 and _divides_by_length(steps[0])
    if normalized:
        steps = None
    return Network(np.asfortranarray(weights.T), intercept, tuple(hidden), activation, steps, normalized)


def _divides_by_length(step: BaseEstimator) -> bool:
    return type(step) is Normalizer and step.norm == "l2"


def _lengths(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the length of each record, and 1 of one that has none, as scikit-learn does."""
    lengths: npt.NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", block, block))
    lengths[lengths == 0] = 1
    return lengths


def _folded(
    steps: Pipeline, weights: npt.NDArray[np.float32], intercept: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Fold a StandardScaler into the first layer's weights, which saves two passes over the records.

    Only where every feature's mean is within a few of its deviations: far from zero, the product would subtract large
    numbers from each other in single precision, and no longer equal ``predict_proba`` within 1e-6.
    """
    scaler = steps[0]
    plain = len(steps) == 1 and type(scaler) is StandardScaler and scaler.with_mean and scaler.with_std
    if not plain or np.max(np.abs(scaler.mean_) / scaler.scale_) > FOLDED_MEANS:
        return None
    scaled = weights.astype(np.float64) / scaler.scale_[:, None]
    return scaled.astype(np.float32), (intercept - scaler.mean_ @ scaled).astype(np.float32)
