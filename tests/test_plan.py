from hypothesis import given, settings
from hypothesis import strategies as st

from dal.scan import plan
from dal.scan.plan import Interval
from dal.selection.candidates import Capacity

intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), max_size=6).map(
    lambda pairs: disjoint([Interval(10 * a, 10 * a + b) for a, b in pairs])
)


def disjoint(given_intervals: list[Interval]) -> list[Interval]:
    kept: list[Interval] = []
    for interval in sorted(given_intervals):
        if not kept or kept[-1].stop <= interval.start:
            kept.append(interval)
    return kept


def rows_of(some: list[Interval]) -> list[int]:
    return [row for interval in some for row in range(interval.start, interval.stop)]


@given(intervals, st.integers(615, 700))
@settings(max_examples=80, deadline=None)
def test_what_remains_is_what_is_not_done(done: list[Interval], n_rows: int) -> None:
    left = plan.remaining(n_rows, done)
    assert rows_of(left) == [row for row in range(n_rows) if row not in set(rows_of(done))]


@given(intervals, st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_cuts_cover_every_row_once_and_fall_on_whole_units(some: list[Interval], rows: int, seed: int) -> None:
    spans = plan.cut(some, rows, seed)
    assert sorted(rows_of(spans)) == rows_of(some)
    edges = {interval.start for interval in some} | {interval.stop for interval in some}
    assert all(edge % rows == 0 or edge in edges for span in spans for edge in span)
    assert spans == plan.cut(some, rows, seed)


@given(intervals, st.integers(1, 5), st.integers(0, 8), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_probes_are_single_units_and_lose_no_row(some: list[Interval], unit: int, count: int, seed: int) -> None:
    first, rest = plan.probes(some, unit, count, seed)
    assert sorted(rows_of(first) + rows_of(rest)) == rows_of(some)
    assert all(span.stop - span.start <= unit for span in first)
    assert len(first) == count or not rest


def test_spans_of_ten_billion_rows_stay_under_the_most_tasks() -> None:
    rows = plan.span_rows(10**10, 512, threads=256, unit=32_768, rows_per_second=None)
    assert 10**10 / rows <= plan.LIMITS.tasks
    assert rows % 32_768 == 0


def test_a_tile_is_a_power_of_two_that_fits() -> None:
    for n_features in (1, 3, 128, 784, 3072, 150_528, 10**7):
        tile = plan.tile_rows(n_features)
        assert tile & (tile - 1) == 0
        assert 1 <= tile <= plan.LIMITS.tile_rows
        assert tile == 1 or tile * n_features * 4 <= plan.LIMITS.tile_bytes


@given(
    intervals, st.integers(1, 4), st.integers(1, 6), st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers()
)
@settings(max_examples=80, deadline=None)
def test_a_feed_loses_no_row_and_cuts_on_units(
    some: list[Interval], unit: int, factor: int, most: list[int], seed: int
) -> None:
    feed = plan.Feed()
    feed.extend(plan.cut(some, unit * factor, seed))
    sent: list[Interval] = []
    while feed:
        assert feed.rows == len(rows_of(some)) - len(rows_of(sent))
        wanted = most[len(sent) % len(most)]
        span = feed.next(wanted, unit)
        if len(sent) % 5 == 3 and span not in sent:
            feed.again(span)
            assert feed.next(plan.NO_LIMIT, unit) == span
        sent.append(span)
        assert 0 < span.stop - span.start < 1.25 * max(wanted, unit) + unit
    assert feed.rows == 0
    assert sorted(rows_of(sent)) == rows_of(some)
    edges = {edge for interval in some for edge in interval}
    assert all(edge % unit == 0 or edge in edges for span in sent for edge in span)


def test_spans_grow_with_what_has_been_seen_and_shrink_to_the_end() -> None:
    large = Capacity(100_000, 256, 391)
    assert plan.growing_rows(0, 256, large) == 0
    assert plan.growing_rows(10**8, 256, large) == 10 * plan.growing_rows(10**7, 256, large)
    assert plan.growing_rows(0, 2, Capacity(10_000, 0, 0)) == plan.NO_LIMIT
    left = [plan.shrinking_rows(rows, 4, 1e6) for rows in (10**8, 10**7, 10**6, 0)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 1e6 * plan.LIMITS.shortest_seconds


@given(st.integers(0, 10**9), st.sampled_from([1, 256, 16_384]), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_soundings_are_whole_tiles_of_a_small_part_of_the_pool(n_rows: int, tile: int, threads: int, seed: int) -> None:
    tiles = plan.soundings(n_rows, tile, threads, Capacity(100_000, 256, 391), seed)
    assert sum(stop - start for start, stop in tiles) <= n_rows / plan.LIMITS.sounded_share
    assert len(set(tiles)) == len(tiles) <= threads
    assert all(start % tile == stop % tile == 0 and 0 <= start < stop <= n_rows for start, stop in tiles)
