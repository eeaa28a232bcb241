"""What learning curves come to: areas, labels saved, paired differences. Pure.

Strategies are compared on the same splits and the same first labels, seed by seed, so that the spread between splits,
which is larger than any difference between good strategies, cancels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A value with its 95 % interval; an end is None where it has none."""

    value: float | None
    low: float | None
    high: float | None


def area(labels: Sequence[float], accuracy: Sequence[float]) -> float:
    """Return the area under a learning curve, divided by its width: a mean accuracy.

    Examples
    --------
    >>> area([10, 20, 40], [0.5, 0.7, 0.8])
    0.7
    """
    x, y = np.asarray(labels, float), np.asarray(accuracy, float)
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def thirds(labels: Sequence[float], accuracy: Sequence[float]) -> tuple[float, float, float]:
    """Compute the area of each third of the budget, divided by the third's width.

    Examples
    --------
    >>> [round(each, 3) for each in thirds([10, 40], [0.1, 0.4])]
    [0.15, 0.25, 0.35]
    """
    x, y = np.asarray(labels, float), np.asarray(accuracy, float)
    ends = np.linspace(x[0], x[-1], 4)
    points = [np.unique(np.r_[low, x[(x > low) & (x < high)], high]) for low, high in pairwise(ends)]
    first, second, third = (area(each.tolist(), np.interp(each, x, y).tolist()) for each in points)
    return first, second, third


class Gains(NamedTuple):
    """Areas above random of a strategy and of the oracle: (seeds, thirds), seed by seed the same."""

    strategy: Floats
    oracle: Floats


def share_closed(sets: Sequence[Gains], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Interval, ...]:
    """Compute the share of the gap from random to the oracle that a strategy closes: by third, the mean over sets.

    A set's share is that of the mean gains. The interval is that of a bootstrap that draws seeds of each set.

    Examples
    --------
    >>> gains = Gains(np.array([[0.1, 0.0, -0.1]] * 2), np.array([[0.2, 0.1, 0.1]] * 2))
    >>> [round(each.value, 6) for each in share_closed([gains], resamples=10)]
    [0.5, 0.0, -1.0]
    """
    rng = np.random.default_rng(seed)
    value = np.mean([each.strategy.mean(axis=0) / each.oracle.mean(axis=0) for each in sets], axis=0)
    drawn = []
    for each in sets:
        picks = rng.integers(0, len(each.oracle), (resamples, len(each.oracle)))
        drawn.append(each.strategy[picks].mean(axis=1) / each.oracle[picks].mean(axis=1))
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975), axis=0)
    return tuple(Interval(*each) for each in zip(value.tolist(), low.tolist(), high.tolist(), strict=True))


def labels_to_reach(labels: Floats, accuracy: Floats, target: float) -> float:
    """Return the labels at which a curve first reaches a target, on a straight line between points; inf if it does not.

    Examples
    --------
    >>> curve = np.array([10.0, 20.0, 30.0]), np.array([0.5, 0.7, 0.9])
    >>> round(labels_to_reach(*curve, 0.8), 6), labels_to_reach(*curve, 0.5), labels_to_reach(*curve, 0.95)
    (25.0, 10.0, inf)
    """
    reached = np.flatnonzero(accuracy >= target)
    if not len(reached):
        return float("inf")
    at = int(reached[0])
    if at == 0:
        return float(labels[0])
    low, high = accuracy[at - 1], accuracy[at]
    return float(labels[at - 1] + (labels[at] - labels[at - 1]) * (target - low) / (high - low))


def labels_to_final(
    labels: Floats, curves: Floats, baseline: Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the labels that a strategy needs to reach the baseline's final accuracy, both by their mean curves.

    Parameters
    ----------
    labels : ndarray of shape (points,)
    curves, baseline : ndarray of shape (seeds, points)
        In the same order of seeds.
    resamples : int
        Of a bootstrap that draws seeds, the same for both: each resample has its own target and its own mean curve.
    seed : int

    Returns
    -------
    Interval
        Percentiles; None where more than that share of the resamples never reaches the target.

    Examples
    --------
    >>> labels, curves = np.array([10.0, 20.0, 30.0]), np.array([[0.5, 0.7, 0.9], [0.5, 0.7, 0.9]])
    >>> labels_to_final(labels, curves, np.array([[0.4, 0.5, 0.6], [0.4, 0.5, 0.6]]), resamples=100)
    Interval(value=15.0, low=15.0, high=15.0)
    """
    value = _needed(labels, curves, baseline)
    drawn = np.random.default_rng(seed).integers(0, len(curves), (resamples, len(curves)))
    needed = [_needed(labels, curves[each], baseline[each]) for each in drawn]
    # "higher" and "lower" interpolate nothing, so that infinite values stay what they are.
    low = float(np.quantile(needed, 0.025, method="lower"))
    high = float(np.quantile(needed, 0.975, method="higher"))
    return Interval(_finite(value), _finite(low), _finite(high))


def _needed(labels: Floats, curves: Floats, baseline: Floats) -> float:
    # Both means by the same sum: in another order the last bit differs, and a baseline would miss its own final.
    return labels_to_reach(labels, curves.mean(axis=0), float(baseline.mean(axis=0)[-1]))


def mean_interval(values: Floats) -> Interval:
    """Return a mean with its t interval.

    Examples
    --------
    >>> [round(each, 4) for each in mean_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.4841, 4.4841]
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


class Paired(NamedTuple):
    """A strategy against another, seed by seed.

    Attributes
    ----------
    difference : Interval
        Mean difference of the areas.
    wins, ties, losses : int
        Seeds on which the area is larger, the same, smaller.
    verdict : {"better", "same", "worse"}
        By whether the interval of the difference leaves zero out.
    """

    difference: Interval
    wins: int
    ties: int
    losses: int
    verdict: str


def paired(areas: Floats, others: Floats) -> Paired:
    """Compare areas of the same seeds.

    Examples
    --------
    >>> paired(np.array([0.9, 0.8, 0.7, 0.8]), np.array([0.8, 0.7, 0.6, 0.75])).verdict
    'better'
    """
    differences = areas - others
    interval = mean_interval(differences)
    verdict = "same"
    if interval.low is not None and interval.low > 0:
        verdict = "better"
    elif interval.high is not None and interval.high < 0:
        verdict = "worse"
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Paired(interval, wins, len(differences) - wins - losses, losses, verdict)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
