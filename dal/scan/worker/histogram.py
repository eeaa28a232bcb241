"""Counts of scores in bins: added in any order they give the same, though nobody knows the range of a score."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 64
UNIT = -6
"""Exponent of the width at which the bins span [0, 1]."""
_FINEST = 30
"""Bins are no finer than the largest value's magnitude by this power of two: indices stay small."""
_LOWEST = -256


@dataclass(frozen=True)
class Histogram:
    """The numbers of records in 64 bins of equal width, a power of two.

    Bins lie at multiples of their width, so that two of them add up to one of twice the width. A histogram has the
    narrowest bins that hold all its values: it depends on the values alone, and not on the order in which parts came.
    That of a built-in score always has bins over [0, 1].

    Attributes
    ----------
    counts : ndarray of shape (64,), int64
    exponent : int
        The bins are 2^exponent wide.
    first : int
        The first bin begins at ``first * 2^exponent``.
    """

    counts: npt.NDArray[np.int64]
    exponent: int = UNIT
    first: int = 0

    @classmethod
    def zero(cls) -> "Histogram":
        """Return the histogram of nothing."""
        return cls(np.zeros(BINS, np.int64))

    @classmethod
    def of(cls, scores: npt.NDArray[np.floating], *, unit: bool) -> "Histogram":
        """Count finite scores.

        Parameters
        ----------
        scores : ndarray of shape (n,)
        unit : bool
            Whether they lie in [0, 1], as those of all built-in scores do.

        Examples
        --------
        >>> Histogram.of(np.array([-3.0, 0.0, 40.0]), unit=False).edges
        (-3.0, 61.0)
        >>> Histogram.of(np.array([0.0, 1.0]), unit=True).edges
        (0.0, 1.0)
        """
        if unit:
            bins = np.minimum((scores * BINS).astype(np.uint8), BINS - 1)
            return cls(np.bincount(bins, minlength=BINS))
        if not len(scores):
            return cls.zero()
        scores = scores.astype(np.float64)
        # Of nothing but zeros the bins are the finest there are: any other value makes them wider.
        exponent = max(int(np.frexp(np.abs(scores).max())[1]) - _FINEST, _LOWEST) if scores.any() else _LOWEST
        places = np.floor(np.ldexp(scores, -exponent)).astype(np.int64)
        places[(scores < 0) & (places == 0)] = -1  # so small that it became zero
        return _fitted(*np.unique(places, return_counts=True), exponent)

    def __add__(self, other: "Histogram") -> "Histogram":
        if self.exponent == other.exponent and self.first == other.first:
            return Histogram(self.counts + other.counts, self.exponent, self.first)
        if not self.counts.any() or not other.counts.any():
            return self if self.counts.any() else other
        exponent = max(self.exponent, other.exponent)
        places = [(each.first + np.arange(BINS)) >> min(exponent - each.exponent, 62) for each in (self, other)]
        return _fitted(np.concatenate(places), np.concatenate([self.counts, other.counts]), exponent)

    @property
    def edges(self) -> tuple[float, float]:
        """The ends of the range: the beginning of the first bin, and the end of the last one."""
        return float(np.ldexp(self.first, self.exponent)), float(np.ldexp(self.first + BINS, self.exponent))


def _fitted(places: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], exponent: int) -> Histogram:
    """Return the histogram with the narrowest bins that hold bins at these multiples of 2^exponent."""
    places, counts = places[counts > 0], counts[counts > 0]
    low, high = int(np.min(places)), int(np.max(places))
    coarser = 0
    while (high >> coarser) - (low >> coarser) >= BINS:
        coarser += 1
    bins = np.zeros(BINS, np.int64)
    np.add.at(bins, (places >> coarser) - (low >> coarser), counts)
    return Histogram(bins, exponent + coarser, low >> coarser)
