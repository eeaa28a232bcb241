"""Reading ahead of those who compute: the chunks of a pool on an object store, within a budget of bytes."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Any

from dal.pool.chunks import ChunkObjects

AHEAD_BYTES = 512 * 2**20
"""At most, for each thread. At 200 ms a request this gives 1.9 GB/s beside what is on its way, as much as the lightest
learner takes in."""
FIRST_BYTES = 128 * 2**20
"""To begin with: doubled as often as a reader has to wait, since a learner that takes its time needs no more."""
PACE_BYTES = 3 * 2**30
"""A second and thread: requests follow each other no faster. Begun together, they would share the line and arrive
together, so that the reader waits for all of them before it has the first, and then the line waits for the reader."""

SHARDS_AHEAD = 4
"""Whose indexes are asked for before their chunks: else each shard would begin with two delays, one after the other."""

Fetched = list[Any]
"""Of each unit of a lot: its chunks as they are stored, or its records."""


class _Expected:
    """The lots of one reader, in order: requested ones, and waiting ones."""

    def __init__(self, lots: Iterable[range]) -> None:
        self.waiting = deque(lots)
        self.begun: deque[tuple[range, Future[Fetched]]] = deque()
        self.prepared: set[int] = set()
        self.running = False
        self.bytes = 0


class ReadAhead:
    """Fetches units that readers will want, while they compute; readers of several threads share it.

    A unit is what a reader decodes at a time, a lot is what is fetched together: one unit, but the first two of a
    shard, to make up for the request of its index.

    Parameters
    ----------
    fetch : callable
        Begins to fetch the units of a range after some seconds, and returns the future of a list of them.
    unit_rows, unit_bytes : int
        Of a unit, decoded.
    shard_units : int
        Units of a shard; 0 without shards.
    objects : ChunkObjects or None
        Decodes the chunks of a unit; None where units are fetched as records.

    budget : int, default=AHEAD_BYTES
        At most, for each reader: bytes of units that are asked for and not yet decoded. Only a reader that has to wait
        asks for its next lot beyond that.
    """

    def __init__(
        self,
        fetch: Callable[[range, float], "Future[Fetched]"],
        unit_rows: int,
        unit_bytes: int,
        shard_units: int,
        objects: ChunkObjects | None,
        budget: int = AHEAD_BYTES,
    ) -> None:
        self._most = budget
        self._budget = min(budget, FIRST_BYTES)
        self.objects = objects
        self._fetch = fetch
        self._unit_rows = unit_rows
        self._unit_bytes = unit_bytes
        self._shard_units = shard_units
        self._readers = 0
        self._bytes = 0
        self._next_at = 0.0
        self._expected: dict[Hashable, _Expected] = {}
        self._lock = threading.Lock()

    def join(self) -> None:
        """Count one more reader, in a thread of its own."""
        with self._lock:
            self._readers += 1

    def expect_rows(self, start: int, stop: int) -> Hashable:
        """Begin to fetch rows [start, stop), and return the name under which they are taken."""
        self.expect((start, stop), range(start // self._unit_rows, -(-stop // self._unit_rows)))
        return (start, stop)

    def expect(self, who: Hashable, units: Iterable[int]) -> None:
        """Begin to fetch units in this order; a second call for the same reader does nothing."""
        with self._lock:
            if who not in self._expected:
                self._expected[who] = _Expected(_lots(units, self._shard_units))
                self._prepare(self._expected[who])
                self._top_up()

    def forget(self, who: Hashable) -> None:
        """Cancel what is no longer wanted."""
        with self._lock:
            expected = self._expected.pop(who, None)
            if expected is not None:
                for _, future in expected.begun:
                    future.cancel()
                self._bytes -= expected.bytes
                self._top_up()

    def take(self, who: Hashable, unit: int) -> Any:  # noqa: ANN401 - a unit
        """Wait for a unit, and return it. Units before it in the order are cancelled."""
        with self._lock:
            lot, future = self._lot_of(who, unit)
        return future.result()[unit - lot.start]

    def _lot_of(self, who: Hashable, unit: int) -> "tuple[range, Future[Fetched]]":
        expected = self._expected.get(who)
        if expected is None or not any(unit in lot for lot in (*expected.waiting, *(lot for lot, _ in expected.begun))):
            lot = range(unit, unit + 1)
            return lot, self._fetch(lot, 0.0)
        expected.running = True
        while expected.begun and unit not in expected.begun[0][0]:
            self._free(expected)
        while not expected.begun:
            if unit in expected.waiting[0]:
                self._begin(expected, at_once=True)
            else:
                expected.waiting.popleft()
        if not expected.begun[0][1].done():
            self._budget = min(2 * self._budget, self._most)
        self._top_up()
        return expected.begun[0]

    def _free(self, expected: _Expected) -> None:
        lot, future = expected.begun.popleft()
        future.cancel()
        expected.bytes -= len(lot) * self._unit_bytes
        self._bytes -= len(lot) * self._unit_bytes

    def _begin(self, expected: _Expected, *, at_once: bool = False) -> None:
        lot, now = expected.waiting.popleft(), time.monotonic()
        size = len(lot) * self._unit_bytes
        at = now if at_once else max(now, self._next_at)
        self._next_at = max(at, self._next_at) + size / (PACE_BYTES * max(1, self._readers))
        expected.begun.append((lot, self._fetch(lot, at - now)))
        expected.bytes += size
        self._bytes += size
        self._prepare(expected)

    def _prepare(self, expected: _Expected) -> None:
        """Ask for the indexes of the shards that come next."""
        if not self._shard_units or self.objects is None:
            return
        for lot in itertools.islice(expected.waiting, SHARDS_AHEAD * self._shard_units):
            shard = lot.start // self._shard_units
            if shard not in expected.prepared:
                expected.prepared.add(shard)
                self.objects.prepare(shard)

    def _top_up(self) -> None:
        """Ask for more as far as the budget goes: for the readers at work, then for what will be read next."""
        while True:
            wanting = [each for each in self._expected.values() if each.waiting and each.bytes < self._budget]
            if not wanting:
                return
            least = min(wanting, key=lambda each: each.bytes if each.running else self._budget)
            if self._bytes + len(least.waiting[0]) * self._unit_bytes > self._budget * max(1, self._readers):
                return
            self._begin(least)


def _lots(units: Iterable[int], shard_units: int) -> list[range]:
    """Return a lot for each unit, but one for the first two of a shard.

    Examples
    --------
    >>> _lots([3, 4, 5, 6, 8], 4)
    [range(3, 4), range(4, 6), range(6, 7), range(8, 9)]
    """
    lots: list[range] = []
    for unit in units:
        if lots and shard_units > 1 and unit == lots[-1].stop and unit % shard_units == 1:
            lots[-1] = range(unit - 1, unit + 1)
        else:
            lots.append(range(unit, unit + 1))
    return lots
