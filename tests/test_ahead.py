"""What is fetched ahead: in which order, how far, and how closely one request follows another."""

import time
from concurrent.futures import Future
from typing import Any
from unittest import mock

from dal.pool.ahead import FIRST_BYTES, PACE_BYTES, ReadAhead

UNIT_BYTES = FIRST_BYTES // 4
AFTER = UNIT_BYTES / PACE_BYTES


class Line:
    """A line that notes what is asked for, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.seconds: list[float] = []
        self.futures: dict[int, Future[list[Any]]] = {}

    def __call__(self, lot: range, seconds: float) -> "Future[list[Any]]":
        self.asked += lot
        self.seconds.append(seconds)
        future: Future[list[Any]] = Future()
        self.futures |= dict.fromkeys(lot, future)
        return future

    def answer(self, *units: int) -> None:
        for unit in units:
            self.futures[unit].set_result([unit])

    def ahead(self, budget: int, readers: int = 1) -> ReadAhead:
        found = ReadAhead(self, 1, UNIT_BYTES, 0, None, budget)
        for _ in range(readers):
            found.join()
        return found


def assert_spaced(line: Line, seconds: float, began: float) -> None:
    """Compare the waits with those of requests that follow each other by these seconds, less the time of asking."""
    elapsed = time.monotonic() - began
    for number, wait in enumerate(line.seconds):
        assert max(number * seconds - elapsed, 0) - 1e-6 <= wait <= number * seconds + 1e-6


def test_requests_follow_each_other_by_their_bytes() -> None:
    line, began = Line(), time.monotonic()
    line.ahead(FIRST_BYTES).expect("reader", range(100))
    assert line.asked == [0, 1, 2, 3]
    assert_spaced(line, AFTER, began)


def test_two_readers_share_no_pace() -> None:
    line, began = Line(), time.monotonic()
    ahead = line.ahead(FIRST_BYTES, readers=2)
    ahead.expect("one", range(4))
    ahead.expect("other", range(4, 8))
    assert line.asked == list(range(8))
    assert_spaced(line, AFTER / 2, began)


def test_a_reader_that_waits_is_given_more_and_another_is_not() -> None:
    line = Line()
    ahead = line.ahead(4 * FIRST_BYTES)
    ahead.expect("reader", range(100))
    line.answer(0, 1, 2, 3)
    for unit in range(4):
        assert ahead.take("reader", unit) == unit
    # Those had come; a unit stays in the budget until the next one is taken.
    assert len(line.asked) == 4 + 3
    ahead._lot_of("reader", 4)
    assert len(line.asked) == 4 + 8
    ahead._lot_of("reader", 5)
    assert len(line.asked) == 5 + 16
    ahead._lot_of("reader", 6)
    assert len(line.asked) == 6 + 16


def test_what_a_reader_waits_for_is_asked_at_once_and_nothing_before_it() -> None:
    line = Line()
    ahead = line.ahead(FIRST_BYTES)
    ahead.expect("reader", range(100))
    ahead._lot_of("reader", 50)
    assert line.asked[4:5] == [50]
    assert line.seconds[4] == 0
    assert all(line.futures[unit].cancelled() for unit in range(4))
    assert line.asked[5:] == [51, 52, 53]


def test_the_indexes_of_the_next_shards_are_asked_for_first() -> None:
    line, prepared = Line(), mock.Mock()
    ahead = ReadAhead(line, 1, UNIT_BYTES, 2, prepared, FIRST_BYTES)
    ahead.join()
    ahead.expect("reader", range(100))
    asked = [call.args[0] for call in prepared.prepare.call_args_list]
    assert asked[:4] == [0, 1, 2, 3]
    for future in line.futures.values():
        if not future.done():
            future.set_result([None, None])
    ahead.take("reader", 0)
    ahead.take("reader", 2)
    asked = [call.args[0] for call in prepared.prepare.call_args_list]
    assert asked == sorted(set(asked))
    assert line.asked[-1] // 2 < asked[-1] < 12
