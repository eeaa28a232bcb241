"""The bias of a labelled set: how the labelled records differ from the pool that they were asked from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dal.classes import spelled
from dal.evidence.ruler import Estimate, class_shares, wilson

Integers = npt.NDArray[np.int64]
Standing = Literal["over", "under", "as the pool", "unknown"]

_NAMED = 3
"""Classes that a sentence names at most."""


@dataclass(frozen=True)
class Share:
    """A part of the labels, such as a class, beside the same part of the pool.

    Attributes
    ----------
    name : str
    labels : int
        Labels of this part.
    share : float
        Of all labels; 0 where there are none.
    pool : Estimate
        Its share of the pool.
    """

    name: str
    labels: int
    share: float
    pool: Estimate

    @property
    def factor(self) -> float | None:
        """Its share of the labels as a multiple of that of the pool; None where the latter is unknown or 0."""
        return self.share / self.pool.value if self.pool.value else None

    @property
    def standing(self) -> Standing:
        """Whether the share among the labels is above, below or within the interval of the pool's."""
        if self.pool.value is None:
            return "unknown"
        if self.share > self.pool.high:
            return "over"
        return "under" if self.share < self.pool.low else "as the pool"

    @property
    def text(self) -> str:
        """Both shares, in words."""
        known = f"{self.share:.1%} of the labels"
        if self.pool.value is None:
            return f"{known}, of the pool unknown"
        return f"{known}, {self.pool.value:.1%} ({self.pool.low:.1%} to {self.pool.high:.1%}) of the pool"


def of_classes(names: Sequence[str], labels: Sequence[int], explored: Sequence[int]) -> tuple[Share, ...]:
    """Compare the classes of the labels with those of the explore answers, which are a random sample.

    Parameters
    ----------
    names : sequence of str
    labels, explored : sequence of int
        Labels, and explore answers, of each class.

    Returns
    -------
    tuple of Share
        In the order given.

    Examples
    --------
    >>> [(each.text, each.standing) for each in of_classes(["ham", "spam"], [30, 30], [18, 2])][1]
    ('50.0% of the labels, 10.0% (2.8% to 30.1%) of the pool', 'over')
    """
    total = max(1, sum(labels))
    pool = class_shares(explored)
    return tuple(
        Share(name, count, count / total, estimate) for name, count, estimate in zip(names, labels, pool, strict=True)
    )


def of_regions(labelled: Integers, codes: Integers, sample: Integers, classes: Sequence[str]) -> tuple[Share, ...]:
    """Compare the regions of the labelled records with those of records drawn uniformly from the pool.

    Parameters
    ----------
    labelled, codes : ndarray of int64, shape (n,)
        Region and class of each labelled record.
    sample : ndarray of int64, shape (m,)
        Region of each drawn one.
    classes : sequence of str

    Returns
    -------
    tuple of Share
        The most over-represented first. They are numbered by their size in the pool, and named for the most frequent
        class of their labels.

    Examples
    --------
    >>> found = of_regions(np.array([5, 5, 5, 2]), np.array([1, 1, 0, 0]), np.array([2, 2, 2, 5]), ["ham", "spam"])
    >>> [(each.name, each.labels, each.share, each.pool.value) for each in found]
    [('2, mostly spam', 3, 0.75, 0.25), ('1, mostly ham', 1, 0.25, 0.75)]
    """
    size = 1 + int(max(np.max(labelled, initial=-1), np.max(sample, initial=-1)))
    there, drawn = np.bincount(labelled, minlength=size), np.bincount(sample, minlength=size)
    shares = []
    order = np.flatnonzero(there + drawn)[np.argsort(-drawn[there + drawn > 0], kind="stable")]
    for number, region in enumerate(order.tolist(), 1):
        of = np.bincount(codes[labelled == region], minlength=len(classes))
        name = f"{number}, mostly {classes[int(np.argmax(of))]}" if there[region] else f"{number}, no label"
        shares.append(
            Share(
                name,
                int(there[region]),
                int(there[region]) / max(1, len(labelled)),
                _estimate(int(drawn[region]), len(sample)),
            )
        )
    return tuple(sorted(shares, key=lambda each: (each.pool.value or 0.0) - each.share))


def _estimate(count: int, n: int) -> Estimate:
    low, high = wilson(count, n)
    return Estimate(count / n if n else None, low, high, n, "")


def distance(shares: Sequence[Share]) -> tuple[float, float] | None:
    r"""Compute the total variation distance of the labels to the pool, and its mean for as many random labels.

    It is the part of the labels that would have to lie in other parts of the pool: half the sum of
    :math:`|q_i - p_i|`. Shares of samples differ by chance as well. By the normal approximation, the differences of
    n and of m records then have the standard deviation :math:`\sqrt{p_i (1 - p_i) (1/n + 1/m)}`, and the mean of
    their size is :math:`\sqrt{2/\pi}` of it.

    Returns
    -------
    tuple of float, or None
        None without labels, or where a share of the pool is unknown.

    Examples
    --------
    >>> shares = [Share("a", 75, 0.75, _estimate(50, 100)), Share("b", 25, 0.25, _estimate(50, 100))]
    >>> found, by_chance = distance(shares)
    >>> found, round(by_chance, 3)
    (0.25, 0.056)
    """
    n = sum(each.labels for each in shares)
    if not n or any(each.pool.value is None for each in shares):
        return None
    pool = np.array([each.pool.value for each in shares], dtype=np.float64)
    found = min(1.0, 0.5 * float(np.abs(np.array([each.share for each in shares]) - pool).sum()))
    deviations = np.sqrt(pool * (1 - pool) * (1 / n + 1 / shares[0].pool.n))
    return found, 0.5 * math.sqrt(2 / math.pi) * float(deviations.sum())


def represented(shares: Sequence[Share]) -> str:
    """Return, in words, which classes are over- and under-represented among the labels; empty where none are.

    Examples
    --------
    >>> for part in represented(of_classes(["ham", "spam"], [30, 30], [190, 10])).split("; "):
    ...     print(part)
    over-represented: spam (50.0% of the labels, 5.0% (2.7% to 9.0%) of the pool)
    under-represented: ham (50.0% of the labels, 95.0% (91.0% to 97.3%) of the pool)
    """
    parts = []
    for standing in ("over", "under"):
        mine = [each for each in shares if each.standing == standing]
        mine.sort(key=lambda each: -abs(each.share - (each.pool.value or 0.0)))
        more = f" and {len(mine) - _NAMED:,} more" if len(mine) > _NAMED else ""
        if mine:
            parts.append(
                f"{standing}-represented: "
                + ", ".join(f"{spelled(each.name)} ({each.text})" for each in mine[:_NAMED])
                + more
            )
    return "; ".join(parts)
