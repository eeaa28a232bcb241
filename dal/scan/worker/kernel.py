"""Score a span: read it tile by tile, score each tile, keep the best. Also the in-process specification."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from dal._threads import one_thread
from dal.errors import LearnerError
from dal.learners.models import Model, score_block, see_block
from dal.places import Place, for_zarr
from dal.plugins import Carried
from dal.pool import Pool, Reader
from dal.pool.chunks import rows_or_fill
from dal.pool.condition import Condition
from dal.scan.merge import SLACK, SLACK_WITH_FEATURES, Best, Thresholds, distinct, no_thresholds
from dal.scan.plan import Interval
from dal.scan.worker.histogram import Histogram
from dal.scores import OF_ONE_MODEL, Scored, of_decisions
from dal.selection.candidates import Candidates, Capacity, leading, usable
from dal.selection.codebook import Codebook
from dal.selection.familiar import Copies, Familiar
from dal.selection.once import Once, content_hash
from dal.selection.order import power_masses, uniform
from dal.selection.search import Likeness

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

LISTED_INVALID_ROWS = 1000
NO_CELL = 2**16 - 1
"""What stands where no cell was stored."""
_CONFIDENCE_STEPS = 2**20
"""The confidences of tiles are added up as integers: a float sum would depend on the order of the spans."""
_MASS_STEPS = 2**64
"""Finer, because the power of a small score is smaller still."""
KERNEL_VERSION = 14
"""Raised when the same order would keep other rows, or other things of them: it enters the journal's digest."""


@dataclass(frozen=True)
class Order:
    """Everything that defines a pass, but the pool and the model.

    Attributes
    ----------
    score : str or Carried
        A built-in one by name, or one of a user's own.
    capacity : Capacity
    tile : int
        Rows scored at once.
    seed, round : int
    codebook : Codebook or None
        Where cells are wanted.
    carry : bool
        Whether the features of candidates are wanted.
    missing : bool
        Whether records with missing (NaN) features may be asked.
    inner : int
        Width of the learner's own embeddings that candidates carry; 0 where they carry none.
    proba : int
        How many of their class probabilities they carry as well, of the same pass of the learner: the largest ones.
    likeness : Likeness, Copies or None
        In place of the score, without a model.
    where : Condition or None
        What records must meet to be kept.
    familiar : Familiar or None
        Records that are not kept.
    once : Once or None
        Whether one of equal records is kept, and which are not.
    """

    score: str | Carried
    capacity: Capacity
    tile: int
    seed: int
    round: int
    codebook: Codebook | None
    carry: bool
    missing: bool = False
    inner: int = 0
    proba: int = 0
    likeness: Likeness | Copies | None = None
    where: Condition | None = None
    familiar: Familiar | None = None
    once: Once | None = None

    @property
    def slack(self) -> float:
        """At how many times what is kept it is compressed."""
        return SLACK_WITH_FEATURES if self.carry or self.inner else SLACK


class Task(NamedTuple):
    """A piece of work: what a worker needs beside the job.

    Attributes
    ----------
    interval : Interval
    excluded : ndarray of int64
        Rows of the interval that are excluded.
    thresholds : Thresholds
        The thresholds that the merge had reached when the task was made.
    sounded : Capacity or None
        The capacity of a sounding: it is scored for the thresholds alone, and its rows again with their span.
    """

    interval: Interval
    excluded: Rows
    thresholds: Thresholds
    sounded: Capacity | None


@dataclass(frozen=True)
class Cells:
    """The store of the cell of every row, so that it is computed once in a campaign.

    Attributes
    ----------
    place : Path or Url
        Of a Zarr array of uint16, one entry a row, one chunk a unit.
    write : bool
        Whether this pass computes and writes them, or reads them.
    """

    place: Place
    write: bool

    @cached_property
    def array(self) -> "zarr.Array[Any]":
        """The array, opened once a process and pass: opening it for every span took a hundredth of a pass."""
        return zarr.open_array(for_zarr(self.place), mode="r+" if self.write else "r")


@dataclass(frozen=True)
class Tally:
    """The counts of a pass or a part of it; adding tallies in any order gives the same sums.

    Attributes
    ----------
    rows : int
        Rows read.
    invalid : int
        Rows with an infinite feature, with a missing one (NaN) unless the learner takes such, or whose score overflows;
        never asked.
    invalid_rows : ndarray of int64
        The first of them.
    histogram : Histogram
        Of the scores of the valid rows.
    predicted : ndarray of shape (n_classes,), int64
    confidence : int
        Sum of the confidences, in steps of 2^-20.
    bytes_read : int
        Of features, as they are stored.
    mass : int
        Sum of score^beta over the rows that may be asked, in steps of 2^-64; 0 unless rows are drawn by it.
    """

    rows: int
    invalid: int
    invalid_rows: Rows
    histogram: Histogram
    predicted: npt.NDArray[np.int64]
    confidence: int
    bytes_read: int
    mass: int

    @classmethod
    def zero(cls, n_classes: int) -> "Tally":
        """Return the tally of nothing."""
        return cls(0, 0, np.empty(0, np.int64), Histogram.zero(), np.zeros(n_classes, np.int64), 0, 0, 0)

    def __add__(self, other: "Tally") -> "Tally":
        invalid_rows = self.invalid_rows
        if len(other.invalid_rows):
            invalid_rows = np.sort(np.concatenate([invalid_rows, other.invalid_rows]))[:LISTED_INVALID_ROWS]
        return Tally(
            self.rows + other.rows,
            self.invalid + other.invalid,
            invalid_rows,
            self.histogram + other.histogram,
            self.predicted + other.predicted,
            self.confidence + other.confidence,
            self.bytes_read + other.bytes_read,
            self.mass + other.mass,
        )

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the predicted class; NaN where nothing was predicted."""
        counted = int(self.predicted.sum())
        return self.confidence / _CONFIDENCE_STEPS / counted if counted else float("nan")

    @property
    def power_mass(self) -> float:
        """Sum of score^beta over the rows that may be asked; see :func:`dal.selection.order.propensities`."""
        return self.mass / _MASS_STEPS


@dataclass(frozen=True)
class SpanResult:
    """The result of one span, which a worker sends back.

    Attributes
    ----------
    interval : Interval
    candidates : Candidates or None
    tally : Tally
    seconds : float
    repeated : float
        The most that ranks a row left out because it equals another one of the span; -inf without any.
    record : bytes or None
        The result as :mod:`dal.scan.worker.record` wrote it, where it was read from that; a journal adds it as it is.
    """

    interval: Interval
    candidates: Candidates | None
    tally: Tally
    seconds: float
    repeated: float = -inf
    record: bytes | None = None


def score_span(
    pool: Pool,
    model: Model | None,
    order: Order,
    interval: Interval,
    excluded: Rows,
    thresholds: Thresholds,
    cells: Cells | None = None,
    reader: Reader | None = None,
) -> SpanResult:
    """Score one span and keep its best rows.

    Parameters
    ----------
    pool : Pool
    model : Model or None
        None scores by hash alone.
    order : Order
    interval : Interval
        Starts on a tile.
    excluded : ndarray of int64
        Ascending rows of this span that are not to be asked.
    thresholds : Thresholds
        What the merge has reached so far; lower scores are dropped at once.
    cells : Cells, optional
        Where the cells of the rows are stored.
    reader : Reader, optional
        Of this pool, kept from one span to the next: the pages of new buffers cost 10 to 20 ms a span. Not to be used
        again when a span has failed.

    Raises
    ------
    LearnerError
        If the model refuses some rows or returns no predictions; the message names the rows.

    Returns
    -------
    SpanResult
        The candidates hold every row of the span that is among the best of the pool.
    """
    started = time.perf_counter()
    reader = reader or pool.reader()
    reader.expect(*interval)
    try:
        with one_thread:
            span = _Span(pool, model, order, interval, excluded, thresholds, cells, reader)
            for start in range(interval.start, interval.stop, order.tile):
                stop = min(start + order.tile, interval.stop)
                try:
                    span.score_tile(start, stop)
                except LearnerError as error:
                    raise LearnerError(f"Rows {start:,} to {stop - 1:,} of {pool.path}: {error}") from error
            return span.result(started)
    finally:
        reader.forget(*interval)


def score_rows(
    pool: Pool, model: Model | None, order: Order, rows: Rows, X: npt.NDArray[np.float32]
) -> tuple[Candidates | None, int, float]:
    """Score rows whose features are at hand, and keep the best of them.

    Parameters
    ----------
    pool : Pool
    model : Model or None
    order : Order
    rows : ndarray of int64
        Ascending.
    X : ndarray of shape (n, d), float32

    Returns
    -------
    candidates : Candidates or None
        Without features; None where none of the rows can be asked.
    mass : int
        As in :class:`Tally`.
    repeated : float
        As in :class:`SpanResult`.
    """
    with one_thread:
        everything, order = no_thresholds(order.capacity), replace(order, carry=False)
        span = _Span(pool, model, order, Interval(0, len(rows)), rows[:0], everything, None, None)
        for start in range(0, len(rows), order.tile):
            span.score_given(X[start : start + order.tile], rows[start : start + order.tile], start)
    return span.best.result(), span.tally.mass, span.best.repeated


class _Span:
    def __init__(
        self,
        pool: Pool,
        model: Model | None,
        order: Order,
        interval: Interval,
        excluded: Rows,
        thresholds: Thresholds,
        cells: Cells | None,
        reader: Reader | None,
    ) -> None:
        self.pool = pool
        # A score that is a hash needs no model, even where there is one, unless classes have quotas.
        self.model = model if order.score != "random" or order.capacity.per_class else None
        self.order = order
        self.interval = interval
        self.excluded = excluded
        self.told = thresholds
        self.reader = reader
        self.best = Best(order.capacity, order.seed, order.round, order.slack)
        self.tally = Tally.zero(len(model.classes) if model else 0)
        self.cells = cells
        # Every decision value of a network is not finite where a feature is not, so nothing need be looked for; a
        # transformation before it may hide that, or refuse it.
        self.name = order.score if isinstance(order.score, str) else ""
        network = self.model.network if self.model is not None and self.name in OF_ONE_MODEL else None
        self.shows_invalid = network is not None and network.steps is None and not order.inner
        self.assigns = cells is None or cells.write
        self.cell_of_row = self._cells_of_span() if order.capacity.cells else None

    def _cells_of_span(self) -> npt.NDArray[np.uint16]:
        if self.cells is None or self.cells.write:
            return np.zeros(self.interval.stop - self.interval.start, dtype=np.uint16)
        cells = rows_or_fill(self.cells.array, *self.interval)
        if (cells == NO_CELL).any():
            # A chunk that was lost, as in a power cut, reads as the fill value.
            self.assigns = True
        return cells

    def score_tile(self, start: int, stop: int) -> None:
        rows = np.arange(start, stop, dtype=np.int64)
        assert self.reader is not None  # else its features are at hand
        if self.shows_invalid and len(rows) == self.order.tile:
            X, scored = self._scored_while_read(self.reader, start, stop)
            self._take_in(X, rows, start, np.ones(len(rows), dtype=bool), scored, _Inner(None, None))
        else:
            self.score_given(self.reader.read(start, stop), rows, start)

    def score_given(self, X: Floats32, rows: Rows, start: int) -> None:
        """Score a tile whose features are at hand; `start` is its place in the span."""
        valid = np.ones(len(rows), dtype=bool)
        valid[invalid_rows(X, missing=self.order.missing)] = False
        scored, seen = (
            self._scored(X, rows, start, valid) if valid.any() else (_nothing(len(rows)), self._unseen(len(rows)))
        )
        self._take_in(X, rows, start, valid, scored, seen)

    def _take_in(
        self, X: Floats32, rows: Rows, start: int, valid: npt.NDArray[np.bool_], scored: Scored, seen: "_Inner"
    ) -> None:
        count = len(rows)
        score = scored.score[:count].astype(np.float64)
        valid &= np.isfinite(score) & np.isfinite(scored.confidence[:count])
        if seen.embeddings is not None:
            valid &= np.isfinite(seen.embeddings[:count]).all(axis=1)
        tally = self._counted(score, scored, rows, valid)
        score[~valid] = -np.inf
        low, high = np.searchsorted(self.excluded, (rows[0], rows[-1] + 1))
        score[self.excluded[low:high] - start] = -np.inf
        self.tally += replace(tally, mass=self._mass(score))
        self._keep(X, score, scored.predicted, seen, rows, start)

    def _scored_while_read(self, reader: Reader, start: int, stop: int) -> tuple[Floats32, Scored]:
        """Multiply each block as it comes from storage: then it is in the core's cache, later it would be in memory."""
        assert self.model is not None  # with a network
        assert self.model.network is not None
        network = self.model.network
        decisions = np.empty((len(network.coef), stop - start), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            X = reader.read_in_blocks(
                start,
                stop,
                network.block_rows,
                lambda position, block: network.decide(block, decisions[:, position : position + len(block)]),
            )
            scored = of_decisions(self.name, decisions, len(self.model.classes))
        return X, scored._replace(predicted=self.model.seen[scored.predicted])

    def _scored(self, X: Floats32, rows: Rows, start: int, valid: npt.NDArray[np.bool_]) -> "tuple[Scored, _Inner]":
        if self.model is None:
            if self.order.likeness is not None:
                near, cells = self.order.likeness(_filled(X, valid, self.order.tile))
                score = near[: len(X)]
                if self.cell_of_row is not None:
                    self.cell_of_row[start - self.interval.start :][: len(X)] = cells[: len(X)]
            else:
                score = uniform(rows, self.order.seed, self.order.round)
            return _nothing(len(X))._replace(score=score, confidence=np.zeros(len(X))), _Inner(None, None)
        tile, seen = _filled(X, valid, self.order.tile), _Inner(None, None)
        if self.order.inner:
            scored, proba, embeddings = see_block(self.order.score, self.model, tile)
            seen = _Inner(embeddings, proba.astype(np.float32) if self.order.proba else None)
        else:
            scored = score_block("margin" if self.order.score == "random" else self.order.score, self.model, tile)
        if self.order.score == "random":
            scored = scored._replace(score=uniform(rows, self.order.seed, self.order.round))
        return scored._replace(predicted=self.model.seen[scored.predicted]), seen

    def _unseen(self, count: int) -> "_Inner":
        """Return the embeddings of records that the learner is not given, none of which is kept."""
        if not self.order.inner:
            return _Inner(None, None)
        proba = np.zeros((count, len(self.tally.predicted)), np.float32) if self.order.proba else None
        return _Inner(np.zeros((count, self.order.inner), np.float32), proba)

    def _counted(self, score: Floats64, scored: Scored, rows: Rows, valid: npt.NDArray[np.bool_]) -> Tally:
        count = len(score)
        predicted, confidence = scored.predicted[:count], scored.confidence[:count]
        invalid = np.flatnonzero(~valid)
        if len(invalid):
            score, predicted, confidence = score[valid], predicted[valid], confidence[valid]
        # A hash predicts nothing; its -1 becomes bin 0, which is cut off.
        classes = np.bincount(predicted + 1, minlength=len(self.tally.predicted) + 1)[1:]
        return Tally(
            rows=count,
            invalid=len(invalid),
            invalid_rows=rows[invalid][:LISTED_INVALID_ROWS],
            histogram=Histogram.of(score, unit=bool(self.name)),
            predicted=classes,
            confidence=int(np.sum(confidence, dtype=np.float64) * _CONFIDENCE_STEPS),
            bytes_read=count * self.pool.n_features * self.pool.dtype.itemsize,
            mass=0,
        )

    def _mass(self, score: Floats64) -> int:
        beta = self.order.capacity.beta
        return 0 if beta is None else int(float(power_masses(score, beta).sum()) * _MASS_STEPS)

    def _keep(
        self,
        X: Floats32,
        score: Floats64,
        predicted: npt.NDArray[np.int64],
        seen: "_Inner",
        rows: Rows,
        start: int,
    ) -> None:
        cells = self._cells_of_tile(X, start, len(score))
        ranked = self.order.capacity.ranked(score, rows, self.order.seed, self.order.round)
        positions = self.told.raised(self.best.thresholds).admit(score, ranked, cells, predicted[: len(score)])
        if self.order.where is not None and len(positions):
            # Only of those that could be kept: a condition reads columns, and takes longer than a score.
            positions = positions[self.order.where.met_by(self.pool, rows[positions], X[positions])]
        if self.order.likeness is not None:
            positions = positions[score[positions] > 0]
        if not len(positions):
            return
        once, familiar = self.order.once, self.order.familiar
        looks = self.order.carry or once is not None or familiar is not None
        own = X[positions] if looks else np.empty((len(positions), 0), np.float32)
        bare = Candidates(
            rows[positions],
            score[positions],
            np.full(len(positions), -1, np.int64) if cells is None else cells[positions].astype(np.int64),
            predicted[positions],
            np.empty((len(positions), 0), np.float32),
            content=None if once is None else content_hash(own),
        )
        left = np.arange(len(bare))
        if once is not None and bare.content is not None:
            left = left[once.fresh(bare.content)]
            # Equal records are alike in all that follows, and one of each is looked at.
            first = distinct(bare.take(left), self.order.capacity, self.order.seed, self.order.round)
            self.best.forget_equals(np.delete(ranked[positions[left]], first))
            left = left[first]
        if familiar is not None and len(left):
            left = left[~familiar(own[left])]
        if not len(left):
            return
        if len(left) < len(positions):
            positions, bare, own = positions[left], bare.take(left), own[left]
        proba, classes = (None, None) if seen.proba is None else leading(seen.proba[positions], self.order.proba)
        self.best.add(
            replace(
                bare,
                embeddings=own if self.order.carry else bare.embeddings,
                proba=proba,
                inner=None if seen.embeddings is None else seen.embeddings[positions],
                classes=classes,
            )
        )

    def _cells_of_tile(self, X: Floats32, start: int, count: int) -> npt.NDArray[np.uint16] | None:
        if self.cell_of_row is None:
            return None
        tile = self.cell_of_row[start - self.interval.start :][:count]
        if self.order.codebook is not None and self.assigns:
            tile[:] = self.order.codebook.assign(X)[:count]
        return tile

    def result(self, started: float) -> SpanResult:
        assert self.reader is not None
        self.reader.finish()
        if self.cells is not None and self.cells.write and self.cell_of_row is not None:
            self.cells.array[self.interval.start : self.interval.stop] = self.cell_of_row
        best = self.best.result()
        return SpanResult(self.interval, best, self.tally, time.perf_counter() - started, self.best.repeated)


class _Inner(NamedTuple):
    """The learner's embeddings and probabilities of a tile, where candidates carry them."""

    embeddings: Floats32 | None
    proba: Floats32 | None


def _nothing(count: int) -> Scored:
    """Return the scores of records that no model was asked about."""
    return Scored(np.full(count, np.nan), np.full(count, -1, dtype=np.int64), np.full(count, np.nan))


def _filled(X: Floats32, valid: npt.NDArray[np.bool_], tile: int) -> Floats32:
    """Return a whole tile, with its first valid record in place of those that are invalid or beyond the pool's end.

    Zeros will not do: a learner of positive numbers or of categories may refuse a record of zeros.
    """
    if valid.all() and len(X) == tile:
        return X
    filled = np.repeat(X[np.argmax(valid)][None], tile, axis=0)
    filled[: len(X)][valid] = X[valid]
    return filled


def invalid_rows(X: Floats32, *, missing: bool) -> Rows:
    """Find the positions of rows with an infinite value, or, unless those may be asked, a NaN.

    One matrix-vector product finds the suspects: a value that is not finite makes its row's sum not finite. Only those
    are looked at closely, because a sum may also overflow by itself.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(X @ np.ones(X.shape[1], dtype=np.float32)))
    return suspects[~usable(X[suspects], missing=missing)] if len(suspects) else suspects
