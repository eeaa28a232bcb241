"""Equal records, of which a batch is to hold one: logs hold thousands of copies of one event.

"Equal" is an equivalence, unlike "within a distance": which record of a group is kept does not depend on the order in
which records come, so that a scan keeps one of each exactly. A hash of their features tells records apart.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.selection.order import Floats64, Positions, Rows, row_hash, splitmix64
from dal.selection.records import Records, parts_of

Floats32 = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_BLOCK_ROWS = 128


@dataclass(frozen=True)
class Once:
    """The rule that one of equal records is kept, and none that equals a record asked before.

    Attributes
    ----------
    known : ndarray of uint64
        Ascending hashes of the records asked before, by :func:`content_hash`.
    """

    known: Hashes

    @classmethod
    def after(cls, asked: Records) -> "Once":
        """Return the rule once these records, (n, d), are asked."""
        hashes = np.empty(len(asked), dtype=np.uint64)
        for part in parts_of(asked):
            hashes[part] = content_hash(asked[part])
        hashes.sort()  # not np.unique, which makes a table of hashes: ten times as long for a million
        return cls(np.concatenate([hashes[:1], hashes[1:][hashes[1:] != hashes[:-1]]]))

    def fresh(self, content: Hashes) -> Mask:
        """Mark the records that equal none asked before."""
        if not len(self.known):
            return np.ones(len(content), dtype=bool)
        nearest = np.minimum(np.searchsorted(self.known, content), len(self.known) - 1)
        marked: Mask = self.known[nearest] != content
        return marked

    def again(self) -> "Once":
        """Return the rule where records asked before may be asked again."""
        return Once(self.known[:0])

    def digest(self) -> str:
        """Name the rule by its content."""
        return hashlib.sha256(self.known.tobytes()).hexdigest()


def content_hash(X: Floats32) -> Hashes:
    r"""Hash the features of each record: equal records have equal hashes.

    .. math:: h(x) = \sum_i a_i m(x_i) \bmod 2^{64}

    with odd numbers :math:`a_i` that look random, and the bits of a feature mixed by a bijection :math:`m`: those of
    short numbers end in zeros, and so would the differences of their products. One of :math:`n` records has the hash of
    a different one of :math:`m`, such as those asked before, with a chance of about :math:`n m / 2^{64}`: of a million
    among themselves :math:`3 \cdot 10^{-8}`. Missing features are equal, whichever of the many NaNs marks them.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32

    Examples
    --------
    >>> hashes = content_hash(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], np.float32))
    >>> bool(hashes[0] == hashes[1]), bool(hashes[0] == hashes[2])
    (True, False)
    """
    factors = splitmix64(np.arange(X.shape[1], dtype=np.uint64)) | np.uint64(1)
    hashes = np.empty(len(X), dtype=np.uint64)
    with np.errstate(over="ignore"):
        # In blocks that stay in the core's cache: a third of the time.
        for start in range(0, len(X), _BLOCK_ROWS):
            # Adding 0 turns -0.0 into 0.0: equal numbers must have equal bits.
            block = np.ascontiguousarray(X[start : start + _BLOCK_ROWS] + np.float32(0))
            missing = np.isnan(block)
            if missing.any():
                block[missing] = np.nan
            bits = block.view(np.uint32)
            bits ^= bits >> np.uint32(15)
            bits *= np.uint32(0x2C1B3C6D)
            bits ^= bits >> np.uint32(12)
            hashes[start : start + len(bits)] = (bits * factors).sum(axis=1)
    return hashes


def first_of_equals(
    content: Hashes | None, groups: Positions | None, values: Floats64, rows: Rows, seed: int, round: int
) -> Mask:
    """Mark the records that are the best by the key of their values among the equal ones of their group.

    Parameters
    ----------
    content : ndarray of uint64, or None
        Hashes of the records; None where equal records are kept.
    groups : ndarray of int64, or None
        None where all are of one group.
    values, rows, seed, round
        Of the keys.
    """
    first = np.ones(len(rows), dtype=bool)
    if content is None:
        return first
    # Most records have no equal: sorting all of them shows it in a fraction of the time that positions take.
    ordered = np.sort(content)
    if not (ordered[1:] == ordered[:-1]).any():
        return first
    kinds = content if groups is None else content ^ row_hash(groups, seed, round)
    order = np.argsort(kinds)
    again = kinds[order[1:]] == kinds[order[:-1]]
    order = order[np.append(False, again) | np.append(again, False)]
    first[order] = False
    if not len(order):
        return first
    order = order[_best_of_runs(kinds[order], values[order])]
    # Thousands of copies of one record have one score. Different rows have different hashes.
    order = order[_best_of_runs(kinds[order], ~row_hash(rows[order], seed, round))]
    first[order] = True
    return first


def _best_of_runs(kinds: Hashes, values: npt.NDArray[np.generic]) -> Mask:
    """Mark the largest values of each run of one kind; there must be some."""
    starts = np.flatnonzero(np.append(True, kinds[1:] != kinds[:-1]))
    largest = np.maximum.reduceat(values, starts)
    marked: Mask = values == np.repeat(largest, np.diff(starts, append=len(kinds)))
    return marked
