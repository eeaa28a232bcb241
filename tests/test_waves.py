"""Passes by waves against a sort of the declared blocks, on real stores and with real worker processes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.errors import ChunkError, SettingsError
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.pool import Pool, Sizes
from dal.scan import Carried, Cells, Journal, Limits, Progress, Waves, plan, sample_codebook
from dal.scan.plan import Interval
from dal.scan.waves import Course, block_rows, intervals_of, ordered_blocks, quantile_bound, wave_ends, without
from dal.selection.candidates import Candidates, Capacity
from dal.selection.codebook import Codebook
from dal.selection.order import power_keys, row_hash
from dal.selection.strategy import Strategy
from tests import toy_learners
from tests.faults import Interrupted, interrupted_after
from tests.test_scan import (
    CLASSES,
    N,
    assert_same,
    full_sort,
    invalid_of,
    kernel_scores,
    pools,
    records,
    run,
)

__all__ = ["pools", "records"]  # fixtures

TILE, BLOCKS = 64, 313
LIMITS = Limits(tile_rows=TILE)
ASKED = [7, 4095, 4096, 19_999]
CARRIED = np.array([3, 4095, 4097, 9_000, 12_345, 12_346, 20_005])


@pytest.fixture(scope="module")
def codebook_of(pools: dict[str, Pool]) -> Callable[[int], Codebook]:
    """A function that makes the codebook of a number of cells, once."""
    return cache(lambda cells: sample_codebook(pools["built"], cells, 3))


@pytest.fixture(scope="module")
def models(records: np.ndarray) -> dict[str, Model]:
    X, y = records[100:400], np.random.default_rng(1).integers(0, 4, 300)
    names = {"logistic": "logistic", "plain": "sklearn.linear_model:LogisticRegression", "forest": "forest"}
    made = {key: Learner.named(name, CLASSES, random_state=0).fit(X, y) for key, name in names.items()}
    made["embedding"] = Learner(toy_learners.Embedding(), CLASSES, trusted=toy_learners.NAMES).fit(X, y)
    return made


def twin(
    records: np.ndarray, model: Model, strategy: Strategy, codebook: Codebook, waves: Waves, carried: np.ndarray
) -> tuple[Candidates, int, float]:
    """Sort wave after wave in plain loops; return the candidates, the number of blocks, and what reached the floor."""
    bad = invalid_of(records, model)
    score, _ = kernel_scores(records, model, strategy.score, TILE, bad)
    if len(carried):
        score[carried] = kernel_scores(records[carried], model, strategy.score, TILE, bad[carried])[0]
    capacity = strategy.capacity(40, N, len(codebook.centers))
    hashes = [int(row_hash(np.array([TILE * block]), 11, -2)[0]) for block in range(BLOCKS)]
    order = sorted(range(BLOCKS), key=lambda block: hashes[block])
    if waves.after is not None:
        at = order.index(waves.after // TILE)
        order = order[at + 1 :] + order[: at + 1]
    count = max(32, -(-waves.rows_for_each * capacity.total // TILE))
    while True:
        declared = {row for block in order[:count] for row in range(TILE * block, min(TILE * block + TILE, N))}
        left = sorted((declared | set(carried.tolist())) - set(ASKED) - set(np.flatnonzero(bad).tolist()))
        reached = -np.inf
        if len(left) >= capacity.total:
            if capacity.beta is None:
                reached = sorted(score[left])[-capacity.total] / max(score[left])
            else:
                keys = power_keys(score[left], np.array(left), capacity.beta, 11, 4)
                kept = sorted(zip(keys, score[left], strict=True))[-capacity.total :]
                # The best of each cell is kept, so that the best of all is.
                best = max(score[left]) if capacity.cells else max(each for _, each in kept)
                reached = 1 - np.exp(capacity.beta * np.log(best) - kept[0][0])
        if reached >= waves.floor or count == BLOCKS:
            break
        count = min(-(-3 * count // 2), BLOCKS)
    exclude = sorted(set(range(N)) - set(left))
    expected = full_sort(records, model, strategy, 40, exclude, codebook, TILE, bad)
    return replace(expected, scores=score[expected.rows]), count, reached


CASES = [
    ("logistic", Strategy(), Waves(0.9, rows_for_each=1)),
    ("logistic", Strategy(), Waves(0.98, TILE * 17, rows_for_each=12)),
    ("plain", Strategy.named("margin"), Waves(0.95, 20_010, rows_for_each=1)),
    ("plain", Strategy.named("class_coverage"), Waves(0.8, 0, rows_for_each=1)),
    ("logistic", Strategy("margin", "power", beta=4.0), Waves(0.9, rows_for_each=1)),
    ("forest", Strategy.named("margin"), Waves(0.9, rows_for_each=1)),
    ("embedding", Strategy.named("badge"), Waves(0.9, 1_000, rows_for_each=1)),
    ("logistic", Strategy(), Waves(0.9999)),
]


@pytest.mark.exact
@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize(("learner", "strategy", "waves"), CASES)
def test_every_layout_gives_what_a_sort_of_the_declared_blocks_gives(
    learner: str,
    strategy: Strategy,
    waves: Waves,
    carries: bool,
    pools: dict[str, Pool],
    models: dict[str, Model],
    records: np.ndarray,
    codebook_of: Callable[[int], Codebook],
) -> None:
    model = models[learner]
    codebook = codebook_of(strategy.capacity(40, N).cells)
    rows = CARRIED if carries else CARRIED[:0]
    kept = np.setdiff1d(rows, ASKED)
    expected, blocks, reached = twin(records, model, strategy, codebook, waves, kept)
    for name in ("built", "odd", "sharded"):
        found = run(
            pools[name],
            model,
            strategy,
            codebook,
            waves=waves,
            carried=Carried(rows, records[rows]) if carries else None,
            limits=LIMITS,
        )
        assert_same(found.candidates, expected)
        reach = found.summary.reach
        assert reach is not None
        assert (reach.blocks, reach.n_blocks, reach.carried) == (blocks, BLOCKS, len(kept))
        assert reach.reached == pytest.approx(reached, rel=1e-12)
        assert found.summary.tally.rows == reach.rows
        assert (reach.reached >= waves.floor) == (blocks < BLOCKS)
    assert blocks == BLOCKS if waves.floor > 0.99 else blocks < BLOCKS


@pytest.mark.exact
@pytest.mark.parametrize("strategy", [Strategy("margin", "power", beta=4.0), Strategy()])
def test_spans_in_any_order_reach_the_same(
    strategy: Strategy, pools: dict[str, Pool], models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    codebook = sample_codebook(pools["built"], max(Strategy().capacity(40, N).cells, 2), 3)
    options = {"waves": Waves(0.9, rows_for_each=1), "limits": replace(LIMITS, span_bytes=1)}
    first = run(pools["built"], models["logistic"], strategy, codebook, **options)
    cut = plan.cut
    for order in (reversed, sorted):
        monkeypatch.setattr(plan, "cut", lambda *given, order=order: list(order(cut(*given))))
        other = run(pools["built"], models["logistic"], strategy, codebook, **options)
        assert_same(other.candidates, first.candidates)
        assert (other.summary.reach, other.summary.best) == (first.summary.reach, first.summary.best)
    options["limits"] = replace(LIMITS, span_bytes=1, threads=3)
    together = run(pools["odd"], models["logistic"], strategy, codebook, **options)
    assert_same(together.candidates, first.candidates)
    assert (together.summary.reach, together.summary.best) == (first.summary.reach, first.summary.best)


@pytest.mark.exact
def test_rows_that_fail_in_an_early_wave_are_tried_again_and_counted(
    pools: dict[str, Pool], models: dict[str, Model]
) -> None:
    course = Course(Waves(0.9, rows_for_each=1), 10_000, 10, seed=3, total=10)
    first, second = course.next(), course.next()
    lost, done = first[0], [*first[1:], second[0]]
    again = Course(Waves(0.9, rows_for_each=1), 10_000, 10, seed=3, total=10)
    assert again.resume(done) == sorted([lost, *second[1:]])
    assert again.begun == 2
    nothing = Candidates(
        *(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)),
        np.empty((0, 0), np.float32),
    )
    reach = again.reach(Capacity(10, 0, 0), nothing, None, None, Carried(CARRIED[:0], np.empty((0, 0), np.float32)), 10)
    assert reach.rows == again.rows - 10


@pytest.mark.slow
@pytest.mark.exact
def test_workers_give_the_same_as_one_process(
    pools: dict[str, Pool], models: dict[str, Model], records: np.ndarray, cluster: Client
) -> None:
    strategy, waves = Strategy(), Waves(0.99, 640, rows_for_each=1)
    codebook = sample_codebook(pools["built"], strategy.capacity(40, N).cells, 3)
    carried = Carried(CARRIED, records[CARRIED])
    told: list[Progress] = []
    options = {"waves": waves, "carried": carried, "limits": LIMITS}
    alone = run(pools["built"], models["logistic"], strategy, codebook, progress=told.append, **options)
    assert alone.summary.reach is not None
    assert alone.summary.reach.waves > 2
    assert [each.wave for each in told] == sorted(each.wave for each in told)
    assert told[-1].rows_total == told[-1].rows_done == alone.summary.reach.rows
    for name, limits in (("odd", LIMITS), ("sharded", replace(LIMITS, span_bytes=1, up_rows=10, up_share=1))):
        found = run(
            pools[name], models["logistic"], strategy, codebook, client=cluster, **(options | {"limits": limits})
        )
        assert_same(found.candidates, alone.candidates)
        assert found.summary.reach == alone.summary.reach


@pytest.mark.exact
@pytest.mark.parametrize("threads", [1, 3])
def test_a_pass_killed_after_any_span_goes_on_and_ends_the_same(
    threads: int, pools: dict[str, Pool], models: dict[str, Model], records: np.ndarray, tmp_path: Path
) -> None:
    strategy, waves = Strategy(), Waves(0.99, 640, rows_for_each=1)
    limits = replace(LIMITS, span_bytes=TILE * 48 * 8, threads=threads)
    codebook = sample_codebook(pools["built"], strategy.capacity(40, N).cells, 3)
    options = {"waves": waves, "carried": Carried(CARRIED, records[CARRIED]), "limits": limits}
    whole = run(pools["built"], models["logistic"], strategy, codebook, **options)
    assert whole.summary.reach is not None

    for number in range(1, whole.summary.spans, 5 * threads):
        journal, ended = Journal(tmp_path / str(number)), interrupted_after(number)
        with pytest.raises(Interrupted):
            run(pools["built"], models["logistic"], strategy, codebook, journal=journal, progress=ended, **options)
        found = run(pools["built"], models["logistic"], strategy, codebook, journal=journal, **options)
        assert found.summary.spans_resumed == number
        assert found.summary.reach == whole.summary.reach
        assert found.summary.tally.rows == whole.summary.tally.rows
        assert_same(found.candidates, whole.candidates)
    # A journal of other waves is of another pass.
    other = {**options, "waves": Waves(0.99, after=1_280)}
    assert (
        run(pools["built"], models["logistic"], strategy, codebook, journal=journal, **other).summary.spans_resumed == 0
    )


def test_cells_are_read_where_they_are_stored_and_never_written(
    pools: dict[str, Pool], models: dict[str, Model], tmp_path: Path
) -> None:
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    options = {"waves": Waves(0.9, rows_for_each=1), "limits": LIMITS}
    plain = run(pools["built"], models["logistic"], Strategy(), codebook, **options)
    cells = Cells(tmp_path / "cells.zarr", write=True)
    found = run(pools["built"], models["logistic"], Strategy(), codebook, cells=cells, **options)
    assert not found.summary.wrote_cells
    assert not (tmp_path / "cells.zarr").exists()
    assert_same(found.candidates, plain.candidates)
    run(pools["built"], models["logistic"], Strategy(), codebook, cells=cells, limits=LIMITS)
    stored = replace(cells, write=False)
    read = run(pools["built"], models["logistic"], Strategy(), codebook, cells=stored, **options)
    assert_same(read.candidates, plain.candidates)
    # Other cells than those that would be computed: they are what counts.
    zarr.open_array(cells.place, mode="r+")[:] = 0
    altered = run(pools["built"], models["logistic"], Strategy(), codebook, cells=replace(stored), **options)
    assert set(altered.candidates.cells.tolist()) == {0}


def test_hashes_are_not_ranked_by_waves(pools: dict[str, Pool], models: dict[str, Model]) -> None:
    codebook = sample_codebook(pools["built"], 8, 3)
    with pytest.raises(SettingsError, match="`waves` must be None where records are ranked by a hash"):
        run(pools["built"], models["logistic"], Strategy.named("random"), codebook, waves=Waves(0.9))
    with pytest.raises(SettingsError, match="`waves` must be None"):
        run(pools["built"], None, Strategy().cold(), codebook, waves=Waves(0.9))


@settings(deadline=None)
@given(st.integers(1, 3_000), st.sampled_from([2, 16, 100]), st.integers(0, 9), st.integers(0, 10**6))
def test_waves_take_each_row_once(n_rows: int, block: int, seed: int, after: int) -> None:
    order = ordered_blocks(n_rows, block, seed, after % n_rows)
    assert sorted(order.tolist()) == list(range(-(-n_rows // block)))
    assert order[-1] == after % n_rows // block
    ends = [0, *wave_ends(len(order))]
    assert ends[-1] == len(order)
    taken = [intervals_of(order[start:end], block, n_rows) for start, end in pairwise(ends)]
    rows = sorted(interval for wave in taken for interval in wave)
    assert [row for start, stop in rows for row in (start, stop)][1:-1:2] == [start for start, _ in rows][1:]
    assert (rows[0].start, rows[-1].stop) == (0, n_rows)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 5))
def test_appended_blocks_change_nothing_about_the_order_of_the_others(before: int, more: int, seed: int) -> None:
    old, new = ordered_blocks(before, 1, seed, None), ordered_blocks(before + more, 1, seed, None)
    assert new[new < before].tolist() == old.tolist()


@given(st.lists(st.integers(0, 60), max_size=8, unique=True), st.lists(st.integers(0, 60), max_size=8, unique=True))
def test_what_is_left_is_what_is_not_done(intervals: Sequence[int], done: Sequence[int]) -> None:
    def paired(edges: Sequence[int]) -> list[Interval]:
        ends = sorted(edges)[: len(edges) // 2 * 2]
        return [Interval(*pair) for pair in zip(ends[::2], ends[1::2], strict=True)]

    def rows(of: Sequence[Interval]) -> set[int]:
        return {row for start, stop in of for row in range(start, stop)}

    assert rows(without(paired(intervals), paired(done), 60)) == rows(paired(intervals)) - rows(paired(done))


@pytest.mark.parametrize("share", [0.95, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.3))])
def test_the_bound_holds_with_rows_that_are_carried_over(share: float) -> None:
    """Nine rows in a hundred are scored, and this share of the best 200 is carried over."""
    n_rows, block, total, held = 200_000, 200, 200, 0
    waves = Waves(0.9, rows_for_each=90)
    for seed in range(60):
        score = np.random.default_rng(seed).random(n_rows)
        ranked = np.argsort(-score)
        carried = np.sort(np.append(ranked[: int(share * total)], ranked[100_000 : 100_000 + int((1 - share) * total)]))
        course = Course(waves, n_rows, block, seed, total)
        rows = np.concatenate([np.arange(*interval) for interval in course.next()])
        rows = np.union1d(rows, carried)
        kept = np.sort(rows[np.argsort(-score[rows])[:total]])
        last = float(score[kept].min())
        nothing = np.full(total, -1)
        candidates = Candidates(kept, score[kept], nothing, nothing, np.empty((total, 0), np.float32))
        given = Carried(carried, np.empty((len(carried), 0), np.float32))
        bound = course.reach(Capacity(total, 0, 0), candidates, last, 1.0, given).bound
        assert bound is not None
        held += bound >= np.count_nonzero(score >= last) / n_rows
    assert held / 60 >= 0.88  # 0.95 in the long run; fewer than 53 of 60 come once in fifty times


@pytest.mark.parametrize("length", [1, 50, 1_000])
def test_the_bound_holds_in_pools_where_neighbours_are_alike(length: int) -> None:
    """Of 100,000 rows in blocks of 100 one in a hundred is wanted, in runs of `length` rows."""
    rng, wanted = np.random.default_rng(length), np.zeros(100_000, dtype=np.int64)
    for start in rng.choice(100_000 // length, 1_000 // length, replace=False) * length:
        wanted[start : start + length] = 1
    by_block = wanted.reshape(1_000, 100).sum(axis=1)
    held = 0
    for _ in range(400):
        chosen = by_block[rng.choice(1_000, 100, replace=False)]
        held += quantile_bound(chosen[chosen > 0], 100, 1_000, 10_000) >= 0.01
    assert held / 400 >= 0.93


def test_blocks_are_whole_tiles() -> None:
    for n_rows in (100, 10**6, 10**8, 10**10):
        assert block_rows(n_rows, 4_096, 3 * 4_096) % 4_096 == 0


def test_a_wave_whose_chunk_is_damaged_ends_and_goes_on_once_it_is_mended(
    records: np.ndarray, models: dict[str, Model], tmp_path: Path
) -> None:
    pool = Pool.build(records, tmp_path / "pool.zarr", sizes=Sizes(chunk_bytes=TILE * records.shape[1] * 4))
    assert pool.chunk_rows == TILE
    codebook = sample_codebook(pool, Strategy().capacity(40, N).cells, 3)
    options = {"waves": Waves(0.9, rows_for_each=1), "limits": LIMITS}
    expected = run(pool, models["logistic"], Strategy(), codebook, **options)
    number = ordered_blocks(N, TILE, 11, None)[3]
    damaged = tmp_path / "pool.zarr" / "features" / "c" / str(number) / "0"
    whole = damaged.read_bytes()
    damaged.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    journal = Journal(tmp_path / "journal")
    with pytest.raises(ChunkError, match=rf"chunk c/{number}/0 \(rows {TILE * number} to"):
        run(pool, models["logistic"], Strategy(), codebook, journal=journal, **options)
    damaged.write_bytes(whole)
    found = run(pool, models["logistic"], Strategy(), codebook, journal=journal, **options)
    assert_same(found.candidates, expected.candidates)
    assert found.summary.reach == expected.summary.reach
