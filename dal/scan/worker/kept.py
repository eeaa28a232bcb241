"""The best rows of the spans that a process has scored, kept with their features until the end of the pass."""

import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dal.scan.merge import Best, Thresholds
from dal.scan.plan import Interval
from dal.scan.worker.kernel import Order, SpanResult

Floats32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Kept:
    """The best rows of all spans that this process has scored in one pass.

    Features do not travel with the candidates of every span, of which five in six are dropped later: they wait here,
    and those of the rows that are left in the end are asked for. What is lost with a process is read from the pool.

    Parameters
    ----------
    order : Order
    """

    def __init__(self, order: Order) -> None:
        self._best = Best(order.capacity, order.seed, order.round, order.slack)
        self._spans: list[Interval] = []
        self._rows = 0
        self._lock = threading.Lock()

    def raised(self, told: Thresholds) -> Thresholds:
        """Return thresholds raised to what the spans scored here have reached."""
        return told.raised(self._best.thresholds)

    def take_from(self, result: SpanResult) -> SpanResult:
        """Keep the features of a span's candidates, and return its result without them."""
        if result.candidates is None:
            return result
        with self._lock:
            # Scored again because its result was lost, a span must not count twice: thresholds would rise too far.
            start, stop = result.interval
            if not any(start < other.stop and other.start < stop for other in self._spans):
                self._spans.append(result.interval)
                self._rows += stop - start
                self._best.add(result.candidates.without_predictions())
                self._best.tighten(self._rows)
        return replace(result, candidates=result.candidates.without_embeddings())

    def features(self, rows: Rows) -> tuple[Rows, Floats32]:
        """Return those of the rows that are kept here, in any order, and their features."""
        with self._lock:
            found = self._best.held(rows)
        if found is None:
            return rows[:0], np.empty((0, 0), dtype=np.float32)
        return found.rows, found.embeddings
