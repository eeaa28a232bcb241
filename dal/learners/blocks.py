"""Fits in bounded memory: an estimator that learns by `partial_fit` is given one block of records after another."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.pipeline import Pipeline

from dal.errors import LearnerError
from dal.selection.once import content_hash
from dal.selection.order import splitmix64
from dal.selection.records import Unread

Positions = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

BLOCK_NUMBERS = 2**21
"""Features of a block: 8 MiB. The model depends on it."""
SEEN, FEWEST_EPOCHS, MOST_EPOCHS = 1_000_000, 5, 200
"""Records that a stochastic descent is to see in all, and the bounds of its epochs."""


class Lazy(Unread, Protocol):
    """Unread records of which a part can be named."""

    def part(self, positions: Positions, /) -> "Lazy":
        """Return a part of them that is not read yet."""


Source: TypeAlias = Lazy | npt.NDArray[Any]


def part_of(X: Source, positions: Positions) -> Source:
    """Return a part of records; of lazy ones, without reading it."""
    return X[positions] if isinstance(X, np.ndarray) else X.part(positions)


class InBlocks(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator that is fitted block by block, in memory that hardly grows with the number of records.

    Records come in the order of a hash of their contents, another one in each epoch, so that the model does not depend
    on their order. Per record, 32 bytes are held.

    Parameters
    ----------
    estimator : estimator
        With `partial_fit`; or a pipeline of such, and of steps that need no fit, such as ``Normalizer``. A step learns
        from one pass over the records, before the next step does.
    epochs : int, optional
        Passes of the last step. Default: where it has the parameter `max_iter`, as one that descends has, enough for a
        million records in all, and 5 to 200; one where it has none, such as naive Bayes, which counts.
    block_rows : int, optional
        Records of a block. Default: as many as have two million features.

    Attributes
    ----------
    estimator_ : estimator
        The fitted one, which predicts by itself.
    epochs_ : int
    classes_ : ndarray

    Examples
    --------
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X = np.random.default_rng(0).normal(np.arange(300)[:, None] % 2, 0.1, (300, 2)).astype(np.float32)
    >>> InBlocks(GaussianNB(), block_rows=50).fit(X, np.arange(300) % 2).estimator_.predict(X[:3]).tolist()
    [0, 1, 0]
    """

    def __init__(self, estimator: BaseEstimator, *, epochs: int | None = None, block_rows: int | None = None) -> None:
        self.estimator = estimator
        self.epochs = epochs
        self.block_rows = block_rows

    @property
    def takes_weights(self) -> bool:
        """Whether a weight can be given to each record."""
        *_, (_, last) = _steps(self.estimator)
        return hasattr(last, "partial_fit") and "sample_weight" in _parameters(last)

    def fit(self, X: Source, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Fit a clone of the estimator.

        Parameters
        ----------
        X : array of shape (n, d), or records that are read in parts
        y : array of shape (n,)
        sample_weight : array of shape (n,), optional

        Raises
        ------
        LearnerError
            If a step learns from records and has no `partial_fit`, the last one takes no weights and there are some, or
            `epochs` or `block_rows` is below 1.
        """
        for name, count in (("epochs", self.epochs), ("block_rows", self.block_rows)):
            if count is not None and count < 1:
                raise LearnerError(
                    f"`{name}` must be a number of at least 1, got {count}; leave it out for the usual one"
                )
        fitted = clone(self.estimator)
        *before, (name, last) = _steps(fitted)
        _check(before, name, last)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weights is not None and not self.takes_weights:
            raise LearnerError(f"`{type(last).__name__}.partial_fit` must take sample_weight: the labels have weights")
        size = max(1, BLOCK_NUMBERS // X.shape[1]) if self.block_rows is None else self.block_rows
        marks = _marks(X, codes, weights, size)
        done: list[Any] = []
        for _, step in before:
            if _learns(step):
                for part in _blocks(marks, 0, size):
                    step.partial_fit(_through(done, _read(X, part)))
            done.append(step)
        descends = "max_iter" in last.get_params()
        usual = min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-SEEN // len(codes)))) if descends else 1
        self.epochs_ = usual if self.epochs is None else self.epochs
        for epoch in range(self.epochs_):
            for number, part in enumerate(_blocks(marks, epoch, size)):
                # A block may lack a class that others have.
                more: dict[str, Any] = {} if epoch or number else {"classes": self.classes_}
                if weights is not None:
                    more["sample_weight"] = weights[part]
                last.partial_fit(_through(done, _read(X, part)), self.classes_[codes[part]], **more)
        self.estimator_ = fitted
        return self

    def predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
        """Return the probabilities of the fitted estimator."""
        found: npt.NDArray[np.floating[Any]] = self.estimator_.predict_proba(X)
        return found

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the classes by the fitted estimator."""
        found: npt.NDArray[Any] = self.estimator_.predict(X)
        return found


def inside(estimator: BaseEstimator) -> BaseEstimator:
    """Return the estimator that is fitted in blocks, fitted where it is; any other one as it is."""
    if not isinstance(estimator, InBlocks):
        return estimator
    return getattr(estimator, "estimator_", estimator.estimator)


def _steps(estimator: BaseEstimator) -> Sequence[tuple[str, Any]]:
    """Return the steps of a pipeline that do something, or the estimator as the one step."""
    if not isinstance(estimator, Pipeline):
        return [(type(estimator).__name__, estimator)]
    return [(name, step) for name, step in estimator.steps if step is not None and step != "passthrough"]


def _learns(step: Any) -> bool:  # noqa: ANN401 - anybody's
    tags = step.__sklearn_tags__() if hasattr(step, "__sklearn_tags__") else None
    return tags is None or bool(tags.requires_fit)


def _check(before: Sequence[tuple[str, Any]], name: str, last: Any) -> None:  # noqa: ANN401
    for each, step in [*((each, step) for each, step in before if _learns(step)), (name, last)]:
        if not hasattr(step, "partial_fit"):
            raise LearnerError(
                f"`estimator` must learn by partial_fit to be fitted in blocks, got {type(step).__name__}"
                f" ({each}), which has none; take one that has, such as SGDClassifier, or fit it without blocks"
            )


def _parameters(step: Any) -> Sequence[str]:  # noqa: ANN401
    return list(inspect.signature(step.partial_fit).parameters)


def _marks(X: Source, codes: Positions, weights: npt.NDArray[np.float64] | None, size: int) -> npt.NDArray[np.uint64]:
    """Hash each record with its class and its weight: the order of records comes from nothing else."""
    marks = np.empty(len(codes), dtype=np.uint64)
    for start in range(0, len(codes), size):
        part = np.arange(start, min(start + size, len(codes)))
        marks[part] = content_hash(_read(X, part))
    marks = splitmix64(marks ^ splitmix64(codes.astype(np.uint64)))
    return marks if weights is None else splitmix64(marks ^ weights.view(np.uint64))


def _blocks(marks: npt.NDArray[np.uint64], epoch: int, size: int) -> Iterator[Positions]:
    """Yield the positions of the records of each block of an epoch."""
    order = np.argsort(splitmix64(marks + np.uint64(epoch)), kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _read(X: Source, part: Positions) -> Floats32:
    return np.ascontiguousarray(X[part], dtype=np.float32)


def _through(steps: Sequence[Any], X: Floats32) -> Any:  # noqa: ANN401 - as the steps give it
    for step in steps:
        X = step.transform(X)
    return X
