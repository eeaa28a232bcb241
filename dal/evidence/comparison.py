"""Comparison of learners: which is better on the pool by the labels there are, where that is known at all.

Each learner is judged on records that are held out, the same ones for all. The labelled records are no sample of the
pool: they were chosen because the learner in use was unsure of them, which is to its disadvantage. So they are weighted
to the pool first, see `raked`. The interval of a difference is that of Nadeau and Bengio, which knows that the fits of
a cross-validation share their records.

Weights do not mend the accuracy itself, and neither do the records that were drawn at random alone: what was asked
after one of them is unlike it, so that a learner that is not fitted on it knows its surroundings less than the rest of
the pool. They mostly show an accuracy that is too low, and so no more than what it is at least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dal.errors import InputError
from dal.evidence.ruler import Estimate, effective_number, share_interval

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Verdict = Literal["in use", "better", "worse", "alike", "too early to tell"]

ALIKE = 0.01
"""Difference of accuracies within which two learners count as alike, where the whole interval is."""
NOT_ENOUGH = "not enough evidence"
FEWEST_DRAWN = 20
"""Records drawn at random below which nothing is known of an accuracy."""
HEAVIEST = 10.0
"""Most that a record weighs, as a multiple of the mean: one record must not carry the result."""


# -- weights to the pool -----------------------------------------------------------------------------------------------


def raked(strata: Sequence[Integers], of_pool: Sequence[Integers], rounds: int = 50) -> Floats:
    """Weigh labelled records so that their shares in each stratum are those of a uniform sample of the pool.

    Iterative proportional fitting (Deming and Stephan, Ann. Math. Stat. 11 (1940) 427): the weights are fitted to the
    shares by the first way of dividing, then by the second, and again. A stratum without a labelled record is left out.

    Parameters
    ----------
    strata : sequence of ndarray of int64, shape (n,)
        For each way of dividing, such as by predicted class, the stratum of each labelled record.
    of_pool : sequence of ndarray of int64, shape (m,)
        The same of records drawn uniformly from the pool.
    rounds : int, default=50

    Returns
    -------
    ndarray of float64, shape (n,)
        They add up to 1; none is over `HEAVIEST` times the mean.

    Examples
    --------
    >>> raked([np.array([0, 0, 0, 1])], [np.array([0, 1, 1, 1])]).round(3).tolist()
    [0.083, 0.083, 0.083, 0.75]
    """
    n = len(strata[0])
    weights = np.full(n, 1 / n)
    sizes = [1 + max(int(np.max(mine)), int(np.max(theirs))) for mine, theirs in zip(strata, of_pool, strict=True)]
    # A stratum of labelled records that the sample of the pool lacks is a small one, not an empty one.
    counts = [np.bincount(theirs, minlength=size) for theirs, size in zip(of_pool, sizes, strict=True)]
    shares = [np.where(count == 0, 0.5, count) / np.where(count == 0, 0.5, count).sum() for count in counts]
    for _ in range(rounds):
        for mine, share, size in zip(strata, shares, sizes, strict=True):
            there = np.bincount(mine, weights=weights, minlength=size)
            weights = weights * np.divide(share, there, out=np.zeros(size), where=there > 0)[mine]
            weights /= weights.sum()
    # Each cut lowers the mean; cuts to the mean itself would go on for ever.
    for _ in range(rounds):
        if weights.max() <= 1.001 * HEAVIEST * weights.mean():
            break
        weights = np.minimum(weights, HEAVIEST * weights.mean())
    return weights / weights.sum()


def margin_strata(labelled: Floats, of_pool: Floats, n_bins: int = 5) -> tuple[Integers, Integers]:
    """Cut margins of labelled records and of a sample of the pool at the quantiles of the latter."""
    edges = np.unique(np.quantile(of_pool, np.arange(1, n_bins) / n_bins))
    return np.searchsorted(edges, labelled, side="right"), np.searchsorted(edges, of_pool, side="right")


# -- judging -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """The predictions of one learner for records held out, each in every repeat.

    Attributes
    ----------
    name : str
    correct : ndarray of float64, shape (repeats, n)
        Probability that the predicted class is the record's; 0 or 1 where its label is sure.
    brier : ndarray of float64, shape (repeats, n)
        Squared distance of the probabilities to the label, summed over classes: 0 is best, 2 worst.
    confidence : ndarray of float64, shape (repeats, n)
        Probability of the predicted class.
    """

    name: str
    correct: Floats
    brier: Floats
    confidence: Floats

    @classmethod
    def of(cls, name: str, proba: Floats, truth: Floats) -> "Judged":
        """Judge probabilities, (repeats, n, C), by those of the labels, (n, C).

        A record whose probabilities are all 0 was given no class, so it is wrong.
        """
        predicted = proba.argmax(axis=2)
        correct = np.take_along_axis(np.broadcast_to(truth, proba.shape), predicted[..., None], axis=2)[..., 0]
        correct = np.where(proba.any(axis=2), correct, 0.0)
        brier = (proba**2).sum(axis=2) - 2 * (proba * truth).sum(axis=2) + 1
        return cls(name, correct, brier, proba.max(axis=2))


@dataclass(frozen=True)
class Compared:
    """A learner against the one in use, on the pool.

    Attributes
    ----------
    name : str
    accuracy : Estimate
        On the pool, of the learner fitted on about as many labels as there are. Where some of the labels were not drawn
        at random, `low` is what it is at least, and there is no value.
    difference, difference_low, difference_high : float
        Of its accuracy to that of the learner in use; paired, over the same records and fits. The interval holds for
        all learners that were compared together.
    brier : float
        Mean Brier score: 0 is best, 2 worst.
    calibration : float
        Expected calibration error: mean distance of confidence to accuracy, over ten equal ranges of confidence.
    verdict : {"in use", "better", "worse", "alike", "too early to tell"}
    """

    name: str
    accuracy: Estimate
    difference: float
    difference_low: float
    difference_high: float
    brier: float
    calibration: float
    verdict: Verdict


def compare(
    judged: Sequence[Judged], folds: Integers, weights: Floats, drawn: Booleans, *, confidence: float = 0.95
) -> tuple[Compared, ...]:
    """Compare learners with the first of them, which is the one in use.

    Parameters
    ----------
    judged : sequence of Judged
    folds : ndarray of int64, shape (repeats, n)
        The fold that held each record out.
    weights : ndarray of float64, shape (repeats, n)
        Of the records; any scale.
    drawn : ndarray of bool, shape (n,)
        Whether each record was drawn uniformly from the pool.
    confidence : float, default=0.95
        Of each accuracy, and of all differences together, by Bonferroni.

    Returns
    -------
    tuple of Compared
        In the order given.

    Raises
    ------
    InputError
        If the shapes do not agree.
    """
    shapes = {folds.shape, weights.shape, (len(folds), *drawn.shape), *(each.correct.shape for each in judged)}
    if len(shapes) > 1:
        raise InputError(f"`judged`, `folds`, `weights` and `drawn` must agree in shape, got {sorted(shapes)}")
    shares = weights / weights.sum(axis=1, keepdims=True)
    each_confidence = 1 - (1 - confidence) / max(1, len(judged) - 1)
    found = []
    for each in judged:
        gap, gap_variance, freedom = _corrected(each.correct - judged[0].correct, folds, shares)
        half = _critical(freedom, each_confidence) * math.sqrt(gap_variance)
        ends = max(-1.0, gap - half), min(1.0, gap + half)
        first = each is judged[0]
        found.append(
            Compared(
                each.name,
                _accuracy(each.correct, folds, shares, drawn, confidence),
                gap,
                *((0.0, 0.0) if first else ends),
                float((shares * each.brier).sum(axis=1).mean()),
                _calibration_error(each, shares),
                "in use" if first else _verdict(*ends),
            )
        )
    return tuple(found)


def _corrected(values: Floats, folds: Integers, shares: Floats) -> tuple[float, float, int]:
    r"""Compute a weighted mean over held-out records, its variance, and the degrees of freedom of that.

    The variance of the mean over J folds is :math:`(1/J + n_2/n_1) S^2`, with n_2 / n_1 records held out for each one
    learned from (Nadeau and Bengio, Machine Learning 52 (2003) 239; over repeats: Bouckaert and Frank, PAKDD 2004).
    The folds of a weighted mean weigh differently, so their sums of weighted deviations take the place of their means.
    """
    repeats, n_folds = len(folds), int(np.max(folds)) + 1
    mean = float((shares * values).sum(axis=1).mean())
    deviations = np.stack(
        [
            n_folds * np.bincount(fold, weights=share * (value - mean), minlength=n_folds)
            for fold, share, value in zip(folds, shares, values, strict=True)
        ]
    )
    count = repeats * n_folds
    between = float((deviations**2).sum()) / (count - 1)
    variance = _correction(folds) * between
    # Where hardly any record tells two learners apart, the folds may agree by chance, and even entirely. As much as
    # the records vary, with one more that speaks for either side, is the least (Agresti and Min, Stat. Med. 24 (2005)).
    share, value = shares.mean(axis=0), values.mean(axis=0)
    least = float((share**2 * (value - mean) ** 2).sum() + 2 * (share**2).sum() ** 2)
    return mean, max(variance, least), count - 1


def _correction(folds: Integers) -> float:
    """Return the factor of Nadeau and Bengio, see `_corrected`."""
    repeats, n_folds = len(folds), int(np.max(folds)) + 1
    return 1 / (repeats * n_folds) + 1 / (n_folds - 1)


def _critical(freedom: int, confidence: float) -> float:
    from scipy.special import stdtrit  # where a comparison is read again, nothing of SciPy is needed

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _accuracy(correct: Floats, folds: Integers, shares: Floats, drawn: Booleans, confidence: float) -> Estimate:
    """Estimate the accuracy on the pool, or what it is at least, by the records that were drawn from it."""
    n = int(drawn.sum())
    if n < FEWEST_DRAWN:
        text = f"{NOT_ENOUGH}: {n} of {len(drawn):,} labels are of records drawn at random, {FEWEST_DRAWN} are needed"
        return Estimate(None, 0.0, 1.0, n, text)
    if not drawn.all():
        shares = np.broadcast_to(drawn / n, folds.shape)
    mean = min(1.0, float((shares * correct).sum(axis=1).mean()))  # rounding may put it 1e-16 above
    low, high = share_interval(mean, _worth(folds, shares), confidence)
    if drawn.all():
        text = f"{in_short(mean, low, high)}, {100 * confidence:g} %, on {n:,} labels, all drawn at random"
        return Estimate(mean, low, high, n, text)
    one_sided = 50 * (1 + confidence)
    text = f"{in_short(None, low, 1.0)} ({one_sided:g} %) on the {n:,} labels of records drawn at random"
    return Estimate(None, low, 1.0, n, text)


def in_short(value: float | None, low: float, high: float) -> str:
    """Return an accuracy for a table: with its interval, or what it is at least; a bound of 0.000 tells nothing."""
    if value is not None:
        return f"{value:.3f} ({low:.3f} to {high:.3f})"
    return f"at least {low:.3f}" if low >= 0.0005 else NOT_ENOUGH


def _worth(folds: Integers, shares: Floats) -> float:
    """Return how many independent records the held-out ones are worth, whose fits share records.

    By Nadeau and Bengio's factor, see `_corrected`, where the folds vary as much as their records do. As much as the
    folds at hand vary, a learner that is right on one more record could have the lower bound.
    """
    return effective_number(shares.mean(axis=0)) / ((int(np.max(folds)) + 1) * _correction(folds))


def _calibration_error(judged: Judged, shares: Floats) -> float:
    weight, confidence, correct = shares.ravel() / len(shares), judged.confidence.ravel(), judged.correct.ravel()
    bins = np.clip(confidence * 10, 0, 9).astype(np.int64)
    gaps = np.bincount(bins, weights=weight * (confidence - correct), minlength=10)
    return float(np.abs(gaps).sum())


def _verdict(low: float, high: float) -> Verdict:
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "alike" if max(-low, high) <= ALIKE else "too early to tell"
