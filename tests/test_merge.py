import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.scan.merge import Best, Thresholds, concatenate, distinct, no_thresholds
from dal.selection.candidates import Candidates, Capacity
from dal.selection.order import key_order, power_keys


def made(n: int, seed: int, levels: int, cells: int, width: int = 2, kinds: int | None = None) -> Candidates:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(np.arange(3_000, 3_000 + 10 * n), n, replace=False)).astype(np.int64)
    return Candidates(
        rows,
        rng.integers(0, levels, n) / levels,
        rng.integers(0, cells, n),
        rng.integers(-1, 3, n),
        rng.standard_normal((n, width)).astype(np.float32),
        # Equal records of different scores and cells, which is more than there is.
        content=None if kinds is None else rng.integers(0, kinds, n).astype(np.uint64),
    )


def full_sort(c: Candidates, capacity: Capacity, seed: int, round: int) -> Candidates:
    ranked = c.scores if capacity.beta is None else power_keys(c.scores, c.rows, capacity.beta, seed, round)
    keep = set(firsts(c, key_order(ranked, c.rows, seed, round).tolist())[: capacity.total])
    order = key_order(c.scores, c.rows, seed, round).tolist()
    for cell in range(capacity.cells):
        keep |= set(firsts(c, [i for i in order if c.cells[i] == cell])[: capacity.per_cell])
    order = key_order(ranked, c.rows, seed, round).tolist()
    for code, most in enumerate(capacity.per_class):
        keep |= set(firsts(c, [i for i in order if c.predicted[i] == code])[:most])
    return c.take(np.array(sorted(keep), dtype=np.int64))


def firsts(c: Candidates, order: list[int]) -> list[int]:
    seen, found = set(), []
    for position in order:
        kind = position if c.content is None else int(c.content[position])
        if kind not in seen:
            found.append(position)
        seen.add(kind)
    return found


def assert_same(a: Candidates, b: Candidates) -> None:
    for name in ("rows", "scores", "cells", "predicted", "embeddings"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 200),
    levels=st.sampled_from([1, 3, 1000]),
    total=st.integers(1, 60),
    cells=st.integers(0, 5),
    per_cell=st.integers(1, 12),
    parts=st.integers(1, 9),
    eager=st.booleans(),
    beta=st.sampled_from([None, 1.0]),
    per_class=st.sampled_from([(), (3, 0, 1), (0, 12, 40)]),
    width=st.sampled_from([0, 2]),  # of features, which the coordinator does not hold
    kinds=st.sampled_from([None, 3, 40, 10**6]),  # of content
)
@settings(max_examples=200, deadline=None)
def test_any_order_and_grouping_keeps_what_a_full_sort_keeps(
    seed: int,
    n: int,
    levels: int,
    total: int,
    cells: int,
    per_cell: int,
    parts: int,
    eager: bool,
    beta: float | None,
    per_class: tuple[int, ...],
    width: int,
    kinds: int | None,
) -> None:
    everything = made(n, seed, levels, max(cells, 1), width, kinds)
    capacity = Capacity(total, cells, per_cell if cells else 0, beta, per_class)
    shuffled = np.random.default_rng(seed).permutation(n)
    merge = Best(capacity, seed, 7)
    if eager:
        merge._most = 0  # compress at every step
        # Thresholds that other rows of the pool have set, counted elsewhere, are as good.
        sample = Best(capacity, seed, 7)
        sample.add(everything.take(shuffled[: n // 2]))
        merge.raise_to(sample.tighten(n))
    for piece in np.array_split(shuffled, parts):
        part = everything.take(piece)
        # A worker is told the thresholds that the merge has reached, and keeps its own best under them.
        ranked = capacity.ranked(part.scores, part.rows, seed, 7)
        admitted = merge.thresholds.admit(part.scores, ranked, part.cells, part.predicted)
        worker = Best(capacity, seed, 7)
        bare = part.take(admitted)
        worker.add(bare.take(distinct(bare, capacity, seed, 7)))
        result = worker.result()
        if result is not None:
            merge.add(result)
        if eager:
            merge.tighten(n)
    found = merge.result()
    assert found is not None
    assert_same(found, full_sort(everything, capacity, seed, 7))


def test_rows_that_are_never_asked_pass_no_threshold() -> None:
    capacity = Capacity(5, 2, 3)
    scores = np.array([-np.inf, 0.0, -1e300])
    for ranked in (scores, scores - 1):
        admitted = no_thresholds(capacity).admit(scores, ranked, np.array([0, 1, 0]), np.array([0, 1, 0]))
        assert admitted.tolist() == [1, 2]


def test_a_row_below_the_overall_threshold_passes_by_its_cell() -> None:
    thresholds = Thresholds(0.9, np.array([0.5, 0.95]))
    scores, cells = np.array([0.9, 0.6, 0.6, 0.4]), np.array([1, 0, 1, 0])
    predicted = np.array([0, 0, 0, -1])
    assert thresholds.admit(scores, scores, cells, predicted).tolist() == [0, 1]
    assert thresholds.admit(scores, np.array([0.0, 0.1, 0.9, 0.8]), cells, predicted).tolist() == [1, 2]


def test_a_row_passes_by_its_class_and_none_without_one() -> None:
    thresholds = Thresholds(0.9, None, np.array([0.5, np.inf, np.inf]))
    scores = np.array([0.9, 0.6, 0.4, 0.8, 0.8])
    assert thresholds.admit(scores, scores, None, np.array([1, 0, 0, 1, -1])).tolist() == [0, 1]
    assert no_thresholds(Capacity(5, 0, 0, per_class=(2, 0))).classes.tolist() == [np.finfo(float).min, np.inf, np.inf]


def test_joining_keeps_the_order() -> None:
    a, b = made(5, 1, 9, 2), made(3, 2, 9, 2)
    joined = concatenate([a, b])
    assert joined.rows.tolist() == a.rows.tolist() + b.rows.tolist()
