r"""A pilot's outlook: the labels that an accuracy will take, from a learning curve on a few hundred random labels.

The error of a learner that has learned m random labels is taken to be

.. math:: e\,(\rho + (1-\rho) \exp(-\kappa B_\lambda(m / n))), \quad B_\lambda(x) = (x^\lambda - 1) / \lambda

with e the error at the n labels of the pilot, a share :math:`\rho` of it that no label removes, and the exponent
:math:`\kappa` at which the rest falls there. At :math:`\lambda = 0` that is a power law, at 1 an exponential one; these
and the laws between them are those that describe learning curves best (Viering and Loog, TPAMI 45 (2023) 7799). Which
one holds cannot be seen in a pilot, and neither can the share, so both are drawn: many laws, each weighted by how well
it agrees with the pilot. Their quantiles are the intervals.

The default's curve is that of random sampling on another scale: of the labels that random sampling would take beyond
the pilot, it takes a share. How large that is on other sets is known, see `SHARES`; the rounds of a campaign that has
asked by the default move it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dal._threads import one_thread
from dal.errors import InputError
from dal.evidence.ruler import FARTHEST, Estimate

Floats = npt.NDArray[np.float64]

SHARES = {
    "digits": 0.27,
    "sms_spam": 0.17,
    "imbalanced": 0.81,
    "v_letter": 0.80,
    "v_satimage": 0.22,
    "cifar10_lite0": 0.64,
    "trec": 0.66,
    "stackoverflow_wl": 1.45,
}
"""Share of the labels beyond a pilot of random ones that the default takes to come where random sampling comes.

Geometric means over twice, three and four times the pilot, measured by ``python -m benchmarks plan`` on its sets whose
accuracy still rises by a point; the others of its sets were not looked at.
"""
SHAPES = (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
EXPONENTS = (0.05, 2.5)
INFLATION = 1.5
"""Variance of the measured accuracies, as a multiple of that between records: the learned ones vary as well."""
DISCREPANCY = 0.02
"""Standard deviation by which a real curve leaves the law where the labels are fewer by a factor e."""

_DRAWN, _KEPT = 100_000, 4_000


class Curve(NamedTuple):
    """A learning curve, measured on records that were held out.

    Attributes
    ----------
    sizes : ndarray of float64, shape (s,)
        Records learned from, ascending.
    right : ndarray of float64, shape (s, n)
        Of each record of the pilot, the share of the fits that predicted it rightly.
    """

    sizes: Floats
    right: Floats


class Seen(NamedTuple):
    """Explore answers of a campaign by the default, predicted by a model that had learned a number of labels."""

    labels: int
    right: int
    asked: int


@dataclass(frozen=True)
class Outlook:
    """Laws that agree with a pilot, all equally probable.

    Attributes
    ----------
    n : int
        Labels of the pilot.
    start : int
        Labels from which on the default chooses.
    error, floor, exponent, shape : ndarray of float64, shape (j,)
        See the module.
    share : ndarray of float64, shape (j,)
        Labels that the default takes of those that random sampling takes beyond the start.
    """

    n: int
    start: int
    error: Floats
    floor: Floats
    exponent: Floats
    shape: Floats
    share: Floats

    def needed(self, target: float, *, default: bool = False) -> Floats:
        """Compute by each law the labels that an accuracy takes, (j,); infinite where it stays below."""
        left = (1 - target) / np.maximum(self.error, 1e-12)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            grown = -np.log(np.maximum(left - self.floor, 0) / (1 - self.floor)) / self.exponent
            labels = self.n * _stretched(grown, self.shape)
        return self._by_default(labels) if default else labels

    def _by_default(self, labels: Floats) -> Floats:
        """Return the labels that the default takes where random sampling takes these, (j,)."""
        return np.where(labels > self.start, self.start + self.share * (labels - self.start), labels)

    def accuracy(self, labels: Floats, *, default: bool = False) -> Floats:
        """Compute the accuracy by each law after some numbers of labels, (j, len(labels))."""
        m = np.asarray(labels, dtype=np.float64)[None]
        if default:
            m = np.where(m > self.start, self.start + (m - self.start) / self.share[:, None], m)
        return 1 - _errors(m / self.n, self.error, self.floor, self.exponent, self.shape)


def _errors(x: Floats, error: Floats, floor: Floats, exponent: Floats, shape: Floats) -> Floats:
    with np.errstate(over="ignore"):
        falling = np.exp(-exponent[:, None] * _grown(x, shape[:, None]))
        return np.minimum(error[:, None] * (floor[:, None] + (1 - floor[:, None]) * falling), 1.0)


def _grown(x: Floats, shape: Floats) -> Floats:
    """Compute the transform of Box and Cox."""
    flat = shape == 0
    safe = np.where(flat, 1.0, shape)
    return np.where(flat, np.log(x), (x**safe - 1) / safe)


def _stretched(grown: Floats, shape: Floats) -> Floats:
    """Compute the inverse of `_grown`; infinite beyond the most that it takes."""
    flat = shape == 0
    safe = np.where(flat, 1.0, shape)
    inner = np.maximum(1 + safe * grown, 0.0)
    return np.where(flat, np.exp(grown), inner ** (1 / safe))


@one_thread
def outlook(curve: Curve, *, start: int | None = None, seen: Sequence[Seen] = (), seed: int = 0) -> Outlook:
    """Draw laws that agree with a pilot, and with what the default has shown since.

    Parameters
    ----------
    curve : Curve
    start : int, optional
        Labels from which on the default chooses; by default all of the pilot.
    seen : sequence of Seen
    seed : int

    Raises
    ------
    InputError
        If the curve has fewer than two sizes, or not as many rows.
    """
    if len(curve.sizes) < 2 or curve.right.shape[0] != len(curve.sizes) or not (np.diff(curve.sizes) > 0).all():
        raise InputError(
            f"`curve` must have two ascending sizes or more, and as many rows, got sizes {curve.sizes.tolist()} and"
            f" {curve.right.shape[0]} rows"
        )
    sizes, n = curve.sizes, curve.right.shape[1]
    rng = np.random.default_rng([seed, n])
    measured = 1 - curve.right.mean(axis=1)
    x = sizes / n
    covariance = INFLATION * np.cov(curve.right) / n
    covariance += np.diag((DISCREPANCY * np.log(x)) ** 2 + 1 / n**2)
    spread = 5 * math.sqrt(covariance[-1, -1])
    error = rng.uniform(max(measured[-1] - spread, 1e-4), min(measured[-1] + spread, 1.0), _DRAWN)
    floor = rng.uniform(0, 1, _DRAWN)
    exponent = np.exp(rng.uniform(math.log(EXPONENTS[0]), math.log(EXPONENTS[1]), _DRAWN))
    shape = rng.choice(SHAPES, _DRAWN)
    known = np.log(list(SHARES.values()))
    # As another set would have it, of which these are a sample.
    share = np.exp(rng.normal(known.mean(), known.std(ddof=1) * math.sqrt(1 + 1 / len(known)), _DRAWN))
    off = _errors(x[None], error, floor, exponent, shape) - measured
    logs: Floats = -0.5 * (np.linalg.solve(np.linalg.cholesky(covariance), off.T) ** 2).sum(axis=0)
    found = Outlook(n, n if start is None else start, error, floor, exponent, shape, share)
    for each in seen:
        p = np.clip(found.accuracy(np.array([each.labels]), default=True)[:, 0], 1e-6, 1 - 1e-6)
        logs += each.right * np.log(p) + (each.asked - each.right) * np.log1p(-p)
    weights = np.exp(logs - np.max(logs))
    ends = np.cumsum(weights) / weights.sum()
    kept = np.minimum(np.searchsorted(ends, (np.arange(_KEPT) + 0.5) / _KEPT), _DRAWN - 1)
    return Outlook(n, found.start, error[kept], floor[kept], exponent[kept], shape[kept], share[kept])


# -- the plan ----------------------------------------------------------------------------------------------------------


class Band(NamedTuple):
    """An expected learning curve, with the interval of its points.

    Attributes
    ----------
    labels : tuple of int
    accuracy, low, high : tuple of float
    """

    labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def point(self, index: int) -> str:
        """Return a point in words."""
        return f"{self.accuracy[index]:.3f} ({self.low[index]:.3f} to {self.high[index]:.3f})"


TIMES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Points of the expected curves, as multiples of the pilot; the last one is `FARTHEST`."""


def band(found: Outlook, *, default: bool = False, confidence: float = 0.95) -> Band:
    """Compute the expected curve at `TIMES` the pilot."""
    labels = np.round(found.n * np.array(TIMES))
    low, middle, high = _quantiles(found.accuracy(labels, default=default), confidence)
    return Band(tuple(labels.astype(int).tolist()), tuple(middle.tolist()), tuple(low.tolist()), tuple(high.tolist()))


def accuracy_now(found: Outlook, confidence: float = 0.95) -> Estimate:
    """Estimate the accuracy on the pool of a learner that has learned the pilot's labels and no others."""
    low, middle, high = _quantiles(found.accuracy(np.array([float(found.n)])), confidence)[:, 0].tolist()
    text = f"{middle:.3f} ({low:.3f} to {high:.3f}, {100 * confidence:g} %) with {found.n:,} random labels"
    return Estimate(middle, low, high, found.n, text)


def forecast(found: Outlook, target: float, *, default: bool = False, confidence: float = 0.95) -> Estimate:
    """Estimate the labels that an accuracy takes in all, by random sampling or by the default.

    Returns
    -------
    Estimate
        `high` is infinite where the interval goes beyond `FARTHEST` times the pilot on the scale of random sampling,
        and `value` is None where the median does: no curve is followed farther.
    """
    farthest, by_random = FARTHEST * found.n, found.needed(target)
    labels = found.needed(target, default=True) if default else by_random
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    low = min(float(np.quantile(labels, ends[0], method="inverted_cdf")), farthest)
    # Beyond, a law says no more than that it takes more.
    labels = np.where(by_random > farthest, math.inf, labels)
    value, high = np.quantile(labels, [0.5, ends[1]], method="inverted_cdf").tolist()
    if value == math.inf:
        text = (
            f"not enough evidence: more than {low:,.0f} labels ({100 * ends[1]:g} %); what random sampling reaches with"
            f" {farthest:,} reaches it with a probability of {np.isfinite(labels).mean():.0%}, and no curve is followed"
            " farther"
        )
        return Estimate(None, low, math.inf, found.n, text)
    interval = f"{low:,.0f} to {high:,.0f}" if high < math.inf else f"{low:,.0f} or more"
    return Estimate(value, low, high, found.n, f"{value:,.0f} labels ({interval}, {100 * confidence:g} %)")


def _quantiles(values: Floats, confidence: float) -> Floats:
    found: Floats = np.quantile(values, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2], axis=0)
    return found
