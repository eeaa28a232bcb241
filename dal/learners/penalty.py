"""Penalty: a logistic regression that shrinks its coefficients further where its labels show that this pays."""

import warnings
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_array

from dal.evidence.folds import dealt, marks_of

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.integer[Any]]

FOLDS = 5
STEP = 4.0
FEWEST, MOST = 30, 5_000
"""Least and largest number of records to choose by. With fewer, the given penalty stays. Of more, a part is drawn by
hash: all would take minutes."""

OF_LOSS, OF_MISTAKES = 2.0, 1.0
"""Standard errors within which a larger C counts as no worse than the best one."""


class TunedLogisticRegression(LogisticRegression):  # type: ignore[misc]
    """A logistic regression whose penalty is raised above the given one where its labels speak for it.

    `C` is divided by four again and again, while the log loss of records that are held out falls. Of these values, the
    one nearest to `C` is taken that is no worse than the best by more than chance, in both log loss (two standard
    errors) and mistakes (one): the rule of one standard error (Breiman et al., 1984), with the given penalty in the
    place of the simplest model. All classes count alike. Larger values of `C` are not tried: cross-validation has not
    shown where they pay (decision 0022).

    The choice is a function of the records, their labels and weights, not of their order. Equal records are held out
    together.

    Parameters
    ----------
    C : float, default=1.0
        Inverse of the weakest penalty, which stays without evidence for a stronger one.
    least_C : float, default=0.001
        The smallest value that is tried. With ``least_C=C`` nothing is chosen.
    max_iter : int, default=1000

    Attributes
    ----------
    C_ : float
        The value that the coefficients were fitted with.
    judged_ : int
        Records that were held out to choose it; 0 where they were fewer than 30.
    chosen_ : str
        The choice in words.

    Examples
    --------
    Of two hundred features, two say something of the class:

    >>> X = np.random.default_rng(0).standard_normal((600, 200), dtype=np.float32)
    >>> y = (X[:, 0] + X[:, 1] + np.random.default_rng(1).standard_normal(600) > 0).astype(int)
    >>> TunedLogisticRegression().fit(X, y).chosen_
    'C = 0.25 instead of 1, by cross-validation on 600 labels'
    """

    def __init__(self, C: float = 1.0, *, least_C: float = 0.001, max_iter: int = 1000) -> None:
        super().__init__(C=C, max_iter=max_iter)
        self.C: float
        self.least_C = least_C

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Choose the penalty, and fit with it on all records.

        Parameters
        ----------
        X : array of shape (n, d)
            Dense.
        y : array of shape (n,)
        sample_weight : array of shape (n,), optional
        """
        records = check_array(X, dtype=[np.float32, np.float64], order="C")
        codes: Codes = np.unique(np.asarray(y), return_inverse=True)[1]
        weights = np.ones(len(codes)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        self.C_, self.judged_ = self._chosen(records, codes, weights)
        given = self.C
        try:
            self.C = self.C_
            super().fit(records, y, sample_weight)
        finally:
            self.C = given
        return self

    @property
    def _chooses(self) -> bool:
        return float(self.C) >= STEP * self.least_C

    @property
    def chosen_(self) -> str:
        """The choice in words; empty where there was none to make."""
        if not self._chooses:
            return ""
        if not self.judged_:
            return f"C = {self.C_:.3g}, as fewer than {FEWEST} labels can be held out to choose by"
        if self.C_ == self.C:
            return (
                f"C = {self.C_:.3g}; by cross-validation on {self.judged_:,} labels, no smaller one is clearly better"
            )
        return f"C = {self.C_:.3g} instead of {self.C:.3g}, by cross-validation on {self.judged_:,} labels"

    def _chosen(self, X: Floats, codes: Codes, weights: Floats) -> tuple[float, int]:
        """Return C, and the number of records that it was chosen by."""
        if not self._chooses:
            return self.C, 0
        drawn, folds = held_out(X, codes)
        X, codes, weights = X[drawn], codes[drawn], weights[drawn]
        parts = [_Part(X, codes, weights, folds == fold, self.max_iter) for fold in range(FOLDS)]
        parts = [part for part in parts if part.is_judged]
        judged = np.concatenate([part.codes for part in parts]) if parts else codes[:0]
        if len(judged) < FEWEST:
            return self.C, 0
        shares = np.concatenate([part.held_weights for part in parts])
        shares = shares / np.bincount(judged, weights=shares)[judged]
        shares /= shares.sum()
        tried: list[float] = []
        losses: list[Floats] = []
        mistakes: list[Floats] = []
        value = float(self.C)
        while value >= self.least_C:
            loss, mistake = (np.concatenate(each) for each in zip(*(part.judge(value) for part in parts), strict=True))
            if losses and loss @ shares >= losses[-1] @ shares:
                break
            tried.append(value)
            losses.append(loss)
            mistakes.append(mistake)
            value /= STEP
        steps = nearest(np.array(losses), shares, OF_LOSS), nearest(np.array(mistakes), shares, OF_MISTAKES)
        return tried[min(steps)], len(judged)


class _Part:
    """A fold: the records that it holds out, and a model of the others, fitted with one penalty after another."""

    def __init__(self, X: Floats, codes: Codes, weights: Floats, held: npt.NDArray[np.bool_], max_iter: int) -> None:
        self._X, self._codes, self._weights = X[~held], codes[~held], weights[~held]
        self._model = LogisticRegression(max_iter=max_iter, warm_start=True)
        # A record can be judged where others of its class are learned from.
        held = held & np.isin(codes, self._codes) & (weights > 0)
        self._held, self.codes, self.held_weights = X[held], codes[held], weights[held]

    @property
    def is_judged(self) -> bool:
        """Whether a model can be fitted, and there is a record to judge it by."""
        return len(self.codes) > 0 and len(np.unique(self._codes)) > 1

    def judge(self, C: float) -> tuple[Floats, Floats]:
        """Return the log loss of each record that is held out, and whether its class is mistaken."""
        with warnings.catch_warnings():
            # The fit on all records tells of its own; a fold is not what people use.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.set_params(C=C).fit(self._X, self._codes, self._weights)
        decisions = self._model.decision_function(self._held).astype(np.float64)
        if decisions.ndim == 1:
            decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
        columns = np.searchsorted(self._model.classes_, self.codes)
        losses: Floats = -log_softmax(decisions, axis=1)[np.arange(len(columns)), columns]
        return losses, (decisions.argmax(axis=1) != columns).astype(np.float64)


def held_out(X: Floats, codes: Codes) -> tuple[Codes, Codes]:
    """Return positions of records to choose by, in an order of their contents, and the fold that holds each out.

    The folds have the same number of each class, but for one. Equal records share a fold: a record of doubtful class is
    there once for each of its classes.
    """
    marks = marks_of(X)
    order = np.lexsort((codes, marks))[:MOST]
    return order, dealt(marks[order], codes[order], FOLDS)


def nearest(values: Floats, shares: Floats, errors: float) -> int:
    """Return the first of several models that is worse than the best by no more than some standard errors.

    Parameters
    ----------
    values : ndarray of shape (models, n)
        Losses of each model on each record.
    shares : ndarray of shape (n,)
        Weights of the records; they add up to 1.
    errors : float
        Standard errors of the mean paired difference.
    """
    gaps = values - values[np.argmin(values @ shares)]
    means = gaps @ shares
    deviations = np.sqrt((gaps - means[:, None]) ** 2 @ shares**2)
    return int(np.flatnonzero(means <= errors * deviations)[0])
