"""Trust: how far labels of chosen records are learned from, where they mislead a learner about all others."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.errors import LearnerError
from dal.evidence.folds import dealt, marks_of
from dal.learners.blocks import Source
from dal.learners.deep import deep_of
from dal.learners.learner import Learner
from dal.learners.models import Model, finite

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

WEIGHTS = (1.0, 1 / 4, 1 / 16, 1 / 64)
"""Weights of chosen labels that are tried. None is 0: a rare class may be known by chosen labels alone."""
FOLDS = 5
FEWEST = 8
"""Labels of random records to judge by; with fewer, chosen ones count fully."""
MOST = 300
"""Labels of random records, and of chosen ones, that the trial takes. Of more, a part is drawn by hash, which weighs as
much as all: twenty fits on all labels would take minutes."""
READ_AT_ONCE = 16_384
LEAST = 1e-3
"""Probability below which a mistake costs no more: a class that a fold lacks has the probability 0."""


@dataclass(frozen=True)
class Trust:
    """The trust in labels of chosen records.

    Attributes
    ----------
    weight : float
        Of each label whose record was not drawn uniformly; those of random records weigh 1.
    judged : int
        Labels of random records that were held out to choose it; 0 where it could not be chosen.
    beaten : bool
        Whether one class named for all of them would have been right more often than the learner with full trust.
    reason : str
        Why weights are not tried, in words; empty where they are, given enough labels.
    """

    weight: float = 1.0
    judged: int = 0
    beaten: bool = False
    reason: str = ""

    def weights(self, random: Mask, given: Floats | None = None) -> Floats | None:
        """Return the weights of labels, (n,); None where all weigh 1.

        Parameters
        ----------
        random : ndarray of bool, shape (n,)
            Labels of records that were drawn uniformly.
        given : ndarray of shape (n,), optional
            Weights that they have otherwise.

        Examples
        --------
        >>> random = np.array([True, False])
        >>> Trust(0.25).weights(random).tolist(), Trust(0.25).weights(random, np.array([0.5, 0.5])).tolist()
        ([1.0, 0.25], [0.5, 0.125])
        """
        if self.weight == 1:
            return given
        return np.where(random, 1.0, self.weight) * (1.0 if given is None else given)


def trust_in(
    learner: Learner, X: Source, codes: Codes, weights: Floats | None, random: Mask, model: Model, records: Codes
) -> Trust:
    """Choose the weight of chosen labels by cross-validation, in which labels of random records alone are judged.

    Chosen labels weigh 1 where the learner, with all labels alike, is right more often than the largest class named for
    all. Else those weights are found that make the fewest mistakes, and that have the least log loss, each time the one
    nearest to 1; of the two the larger is taken (decision 0032).

    The choice is a function of the records and their labels, not of their order. Equal records are held out together.

    Parameters
    ----------
    learner : Learner
    X : ndarray of shape (n, d), or records that are read in parts
    codes : ndarray of int64, shape (n,)
    weights : ndarray of shape (n,), optional
    random : ndarray of bool, shape (n,)
        Labels of records that were drawn uniformly.
    model : Model
        Fitted on all of these labels alike: what it has chosen by them, such as a penalty, holds in all folds.
    records : ndarray of int64, shape (n,)
        The record of each label: one whose label is in doubt has several, whose weights add up to 1.
    """
    if deep_of(learner.estimator) is not None:
        return Trust(reason="a network would be trained again and again")
    if len(np.unique(records[random])) < FEWEST or random.all():
        return Trust()
    marks, given = _marks(X), np.ones(len(codes)) if weights is None else np.asarray(weights, dtype=np.float64)
    order, scale = np.lexsort((codes, marks)), np.empty(len(codes))
    parts = [order[random[order] == kind] for kind in (True, False)]
    taken = [_first(part, records) for part in parts]
    for part, mine in zip(parts, taken, strict=True):
        scale[part] = given[part].sum() / given[mine].sum()
    drawn = np.concatenate(taken)
    trial = _Trial(
        learner.settled(model),
        X[drawn],
        codes[drawn],
        (given * scale)[drawn],
        random[drawn],
        records[drawn],
        _folds(marks, random, codes, drawn),
    )
    reason = "" if learner.takes_weights else "the learner takes no weights"
    try:
        full = trial.judge(1.0)
        largest = 1 - float(np.max(np.bincount(trial.codes, weights=trial.shares)))
        skilled, beaten = full.mistakes < largest - _BITS, full.mistakes > largest + _BITS
        if skilled or reason:
            return Trust(1.0, trial.n_judged, beaten, "" if skilled else reason)
        judged = [full, *map(trial.judge, WEIGHTS[1:])]
    except LearnerError as error:
        return Trust(reason=f"the learner cannot be fitted on a part of the labels: {error}")
    first = min(_first_least([each.mistakes for each in judged]), _first_least([each.loss for each in judged]))
    return Trust(WEIGHTS[first], trial.n_judged, beaten)


_BITS = 1e-12
"""Difference of two shares that add up the same records in another order, at most."""


@dataclass(frozen=True)
class _Judged:
    mistakes: float
    loss: float


@dataclass(frozen=True)
class _Trial:
    learner: Learner
    X: Floats32
    codes: Codes
    given: Floats
    random: Mask
    records: Codes
    folds: Codes

    @property
    def n_judged(self) -> int:
        return len(np.unique(self.records[self.random]))

    @property
    def shares(self) -> Floats:
        """The weights by which labels are judged; they add up to 1."""
        weights: Floats = self.given * self.random
        return weights / float(weights.sum())

    def judge(self, weight: float) -> _Judged:
        """Return the share of mistakes and the mean log loss of the random labels, each held out once."""
        weights = Trust(weight).weights(self.random, self.given)
        losses, mistakes = np.zeros(len(self.codes)), np.zeros(len(self.codes))
        for fold in range(FOLDS):
            out = self.random & (self.folds == fold)
            if out.any():
                found = self._predicted(self.folds != fold, out, weights)
                proba: Floats = np.clip(found, LEAST, None)
                proba /= proba.sum(axis=1, keepdims=True)
                losses[out] = -np.log(proba[np.arange(len(proba)), self.codes[out]])
                # A record that a model predicts nothing finite of, far from all others, has no class, and is a mistake.
                mistakes[out] = (proba.argmax(axis=1) != self.codes[out]) | ~found.any(axis=1)
        return _Judged(float(mistakes @ self.shares), float(losses @ self.shares))

    def _predicted(self, learned: Mask, judged: Mask, weights: Floats | None) -> Floats:
        codes, proba = self.codes[learned], np.zeros((int(judged.sum()), len(self.learner.classes)))
        if len(np.unique(codes)) < 2:
            proba[:, codes[:1]] = 1
            return proba
        # Without weights a learner that takes none is fitted, too.
        given = weights[learned] if weights is not None and self.learner.takes_weights else None
        return finite(self.learner.try_fit(self.X[learned], codes, given).predict_proba(self.X[judged]))


def _first(part: Codes, records: Codes) -> Codes:
    """Return all labels of the first `MOST` records of a part."""
    mine = records[part]
    _, at = np.unique(mine, return_index=True)
    return part[np.isin(mine, mine[np.sort(at)[:MOST]])]


def _marks(X: Source) -> npt.NDArray[np.uint64]:
    """Return the mark of each record; they are read in blocks."""
    starts = range(0, len(X), READ_AT_ONCE)
    return np.concatenate([np.empty(0, np.uint64), *(marks_of(X[at : at + READ_AT_ONCE]) for at in starts)])


def _folds(marks: npt.NDArray[np.uint64], random: Mask, codes: Codes, drawn: Codes) -> Codes:
    """Return the fold that holds each drawn label out; -1 of a chosen record that no random one equals."""
    of_random = drawn[random[drawn]]
    fold_of = dict(
        zip(marks[of_random].tolist(), dealt(marks[of_random], codes[of_random], FOLDS).tolist(), strict=True)
    )
    return np.array([fold_of.get(mark, -1) for mark in marks[drawn].tolist()])


def _first_least(values: list[float]) -> int:
    """Return the first of the values that is no larger than the least one, but for the last bits."""
    return int(np.flatnonzero(np.array(values) <= min(values) + _BITS)[0])
