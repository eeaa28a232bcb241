"""Candidates: the rows a scan keeps, how many of them, and the shortlist that a batch is chosen from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dal.selection.once import first_of_equals
from dal.selection.order import Floats64, Positions, Rows, best_by_key, key_order, power_keys, power_masses, rank_within

Floats32 = npt.NDArray[np.float32]


STRATIFIED_SHARE = 0.5
"""Share of the shortlist that is spread over the cells; half guards against one large ambiguous region at hardly any
cost where there is none (10 % noise: area .813 against .798 global; no noise: .840 against .8385)."""


_LEAST_KEY = -600.0
_TINY = float(np.finfo(np.float64).tiny)


class Capacity(NamedTuple):
    """The rows that a scan keeps, fixed before the pass: the best `total`, and the best `per_cell` of each cell.

    ``cells`` is 0 where nothing is stratified. With a ``beta`` the best of all are those by :func:`power_keys`, and
    those of a cell by score. ``per_class`` has, for each class code, how many of the records predicted to be of it are
    kept as well, the best in the order of the best of all; it is empty where no class has a quota.
    """

    total: int
    cells: int
    per_cell: int
    beta: float | None = None
    per_class: tuple[int, ...] = ()

    def ranked(self, score: Floats64, rows: Rows, seed: int, round: int) -> Floats64:
        """Return the numbers by which rows are kept: their scores, or the keys of a draw with scores as odds."""
        return score if self.beta is None else power_keys(score, rows, self.beta, seed, round)

    @property
    def rows(self) -> int:
        """The most rows that are kept."""
        return self.total + self.cells * self.per_cell + sum(self.per_class)


@dataclass(frozen=True)
class Candidates:
    """The best rows of a scan.

    Attributes
    ----------
    rows : ndarray of shape (n,), int64
        Absolute rows, ascending.
    scores : ndarray of shape (n,), float64
    cells : ndarray of shape (n,), int64
        Cell of each row; -1 where nothing is stratified.
    predicted : ndarray of shape (n,), int64
        Class code the learner predicts; -1 without a model.
    embeddings : ndarray of shape (n, d), float32
        Where the records stand for the sake of diversity; (n, 0) where the selector does not look.
    proba : ndarray of shape (n, m), float32, or None
        Class probabilities, where the selector looks at them.
    classes : ndarray of shape (n, m), int64, or None
        Class codes of these, where they are the largest of each record; None where they are those of all classes.
    inner : ndarray of shape (n, width), float32, or None
        The learner's own embeddings, as those of a network's last layer, where it has some and the selector looks.
    weights : ndarray of shape (n,), float64, or None
        What each record of a shortlist stands for; None where it is its score.
    content : ndarray of shape (n,), uint64, or None
        Hashes of the features, where one of equal records is kept; see :func:`dal.selection.once.content_hash`.
    """

    rows: Rows
    scores: Floats64
    cells: Positions
    predicted: Positions
    embeddings: Floats32
    proba: Floats32 | None = field(default=None)
    inner: Floats32 | None = field(default=None)
    weights: Floats64 | None = field(default=None)
    classes: Positions | None = field(default=None)
    content: npt.NDArray[np.uint64] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(part.nbytes for part in self._parts() if part is not None)

    def without_embeddings(self) -> "Candidates":
        """Return the candidates with embeddings of no width."""
        return replace(self, embeddings=np.empty((len(self), 0), dtype=np.float32))

    def bare(self) -> "Candidates":
        """Return the candidates without all that is wide: with what their keys need; themselves, if that is all."""
        if not self.embeddings.shape[1] and self.proba is None and self.classes is None and self.inner is None:
            return self
        return self.without_embeddings().without_predictions()

    def without_predictions(self) -> "Candidates":
        """Return the candidates without what a model says of them beyond the predicted class."""
        return replace(self, proba=None, classes=None, inner=None)

    def take(self, positions: Positions) -> "Candidates":
        """Return the candidates at these positions, in this order."""
        taken: list[Any] = [None if part is None else part[positions] for part in self._parts()]
        return Candidates(*taken)

    def _parts(self) -> list[npt.NDArray[Any] | None]:
        return [getattr(self, name) for name in _PARTS]


_PARTS = tuple(part.name for part in fields(Candidates))
"""Listed once: asking a dataclass takes as long as taking some of a span's candidates."""


_WANTED = ("rows", "scores", "cells", "predicted", "embeddings")
_OPTIONAL = ("proba", "classes", "inner", "content")


def candidate_arrays(candidates: Candidates) -> dict[str, npt.NDArray[Any]]:
    """Return the candidates of a scan as named arrays, for a file."""
    arrays = {name: getattr(candidates, name) for name in (*_WANTED, *_OPTIONAL)}
    return {name: array for name, array in arrays.items() if array is not None}


def candidates_from(arrays: Mapping[str, npt.NDArray[Any]]) -> Candidates:
    """Read what :func:`candidate_arrays` returned."""
    parts: dict[str, Any] = {name: arrays.get(name) for name in _OPTIONAL}
    return Candidates(*(arrays[name] for name in _WANTED), **parts)


def shortlist(candidates: Candidates, capacity: Capacity, seed: int, round: int) -> Candidates:
    """Cut what a scan kept down to the shortlist: half by score alone, half spread over the cells, or drawn.

    The quotas of the cells are water-filled: the largest q with sum over cells of min(kept, q) <= share of the total,
    so that small cells are exhausted and a large ambiguous one is capped.
    """
    everything = np.arange(len(candidates))
    if capacity.beta is not None:
        return _half_drawn(candidates, capacity, seed, round)
    if not capacity.cells:
        best = best_by_key(candidates.scores, candidates.rows, capacity.total, seed, round)
        return candidates.take(np.sort(best))
    stratified = int(STRATIFIED_SHARE * capacity.total)
    best = best_by_key(candidates.scores, candidates.rows, capacity.total - stratified, seed, round)
    order = key_order(candidates.scores, candidates.rows, seed, round)
    rank = rank_within(candidates.cells[order])
    quota = _water_fill(np.bincount(candidates.cells, minlength=capacity.cells), stratified, capacity.per_cell)
    spread = order[rank < quota]
    return candidates.take(np.intersect1d(everything, np.union1d(best, spread)))


def _half_drawn(candidates: Candidates, capacity: Capacity, seed: int, round: int) -> Candidates:
    r"""Take half by score from the cells in turn, and draw the others in proportion to a power of their scores.

    The weights :math:`w` of drawn records estimate the sum of scores over the pool (Horvitz and Thompson, 1952). A
    record of score :math:`u` is drawn where :math:`\beta \ln u + G` reaches the last key :math:`T`, so

    .. math:: w = u^{1 - \beta} \frac{z}{1 - e^{-z}}, \quad z = u^\beta e^{-T}

    With :math:`\beta` 1 this is 1 where few of many are drawn: scores have decided how likely that was. Where nearly
    all are drawn it is in proportion to the score. A record of the first half stands for itself: it weighs its score as
    a share of the largest one, or the limit of :math:`w` for a large :math:`z` where that is more.

    Of n equal records one is drawn, with the chance :math:`1 - e^{-n z}`, and n is not known here. Its weight is that
    of one record, so that the sum is neither over all records nor over different ones.
    """
    beta = capacity.beta or 0.0
    order = key_order(candidates.scores, candidates.rows, seed, round)
    best = order[:0]
    content = candidates.content
    if capacity.cells:
        order = order[first_of_equals(content, None, candidates.scores, candidates.rows, seed, round)[order]]
        in_turn = np.argsort(rank_within(candidates.cells[order]), kind="stable")
        best = order[in_turn[: int(STRATIFIED_SHARE * capacity.total)]]
    # Of equal records one may be the best of its cell, and another be drawn.
    keys = capacity.ranked(candidates.scores, candidates.rows, seed, round)
    rest = np.flatnonzero(first_of_equals(content, None, keys, candidates.rows, seed, round))
    rest = np.setdiff1d(rest, best) if content is None else rest[~np.isin(content[rest], content[best])]
    keys = keys[rest]
    last = best_by_key(keys, candidates.rows[rest], capacity.total - len(best), seed, round)
    # A last record of score 0 has a key near the logarithm of the smallest number, whose exponential would overflow.
    threshold = max(float(np.min(keys[last])), _LEAST_KEY) if len(last) else 0.0
    scores = np.maximum(candidates.scores, 0.0)
    z = np.maximum(power_masses(scores, beta) * np.exp(-threshold), _TINY)
    weights = scores ** (1.0 - beta) * z / -np.expm1(-z)
    alone = scores[best] / np.max(scores[best], initial=_TINY)
    weights[best] = np.maximum(alone, scores[best] ** (1.0 - beta) * z[best])
    chosen = np.union1d(best, rest[last])
    return replace(candidates, weights=weights / (np.max(weights[chosen], initial=0.0) or 1.0)).take(chosen)


def _water_fill(counts: Positions, total: int, most: int) -> int:
    """Find the largest quota up to `most` with ``minimum(counts, quota).sum() <= total``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    return low


def leading(proba: npt.NDArray[np.floating], most: int) -> tuple[Floats32, Positions | None]:
    """Cut class probabilities down to the largest of each record.

    Parameters
    ----------
    proba : ndarray of shape (n, C)
    most : int
        Classes of each record that are kept.

    Returns
    -------
    proba : ndarray of shape (n, min(C, most)), float32
        Adding up to 1 for each record.
    classes : ndarray of shape (n, most), int64, or None
        Their codes, ascending for each record; None where all classes are kept.

    Examples
    --------
    >>> shares, classes = leading(np.array([[0.25, 0.0, 0.75]]), 2)
    >>> shares.tolist(), classes.tolist()
    ([[0.25, 0.75]], [[0, 2]])
    """
    if proba.shape[1] <= most:
        return proba.astype(np.float32), None
    classes = np.sort(np.argpartition(proba, -most, axis=1)[:, -most:], axis=1).astype(np.int64)
    largest = np.take_along_axis(proba, classes, axis=1)
    return (largest / largest.sum(axis=1, keepdims=True)).astype(np.float32), classes


UNUSABLE = "hold infinite values, or missing ones that the learner does not take"
"""Why records are never asked, in words: the complement of `usable`."""


def usable(X: Floats32, *, missing: bool) -> npt.NDArray[np.bool_]:
    """Mark the records that a learner can be given: all features finite, or missing where it takes such records.

    An infinite feature is no missing one: no learner is given it.
    """
    finite = np.isfinite(X).all(axis=1)
    return ~np.isinf(X).any(axis=1) if missing and not finite.all() else finite
