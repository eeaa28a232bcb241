import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, rankdata
from sklearn.cluster import kmeans_plusplus
from sklearn.datasets import load_digits

from dal._threads import one_thread
from dal.errors import SettingsError
from dal.selection import facility_location
from dal.selection.batch import choose, posed, select
from dal.selection.candidates import Candidates, Capacity, leading, shortlist
from dal.selection.codebook import Codebook
from dal.selection.distances import DUPLICATE_DISTANCE
from dal.selection.explore import explore_count, interleaved, uniform_rows
from dal.selection.facility_location import LEAF_ROWS
from dal.selection.order import best_by_key, key_order, power_keys, power_masses, propensities, row_hash, uniform
from dal.selection.strategy import STRATEGIES, Strategy

pytestmark = pytest.mark.exact

NO_LABELED = np.empty((0, 4), dtype=np.float32)


def made_candidates(n: int, seed: int = 0, d: int = 4, levels: int = 1000, cells: int = 1) -> Candidates:
    """Candidates on scattered rows that do not start at 0, with ties where levels are few."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(np.arange(10**6, 10**6 + 50 * n + 50), n, replace=False))
    return Candidates(
        rows.astype(np.int64),
        rng.integers(1, levels + 1, n) / levels,
        rng.integers(0, cells, n),
        rng.integers(0, 3, n),
        rng.standard_normal((n, d)).astype(np.float32),
        rng.dirichlet(np.ones(3), n).astype(np.float32),
    )


def slow_order(score: np.ndarray, rows: np.ndarray, seed: int, round: int) -> list[int]:
    hashes = [int(row_hash(rows[i : i + 1], seed, round)[0]) for i in range(len(rows))]
    return sorted(range(len(rows)), key=lambda i: (-score[i], hashes[i], rows[i]))


def slow_facility_location(
    c: Candidates,
    weights: np.ndarray,
    k: int,
    labeled: np.ndarray,
    sigma: float,
    codes: np.ndarray | None = None,
    radius: float | None = None,
) -> list[int]:
    """Plain greedy in double precision on the whole kernel: the objective written out, no laziness, no leaves.

    With the classes of the labeled records, those of all records count.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = ((a[:, None, :].astype(float) - b[None].astype(float)) ** 2).sum(axis=2)
        return np.exp(-squared / sigma**2)

    K = kernel(c.embeddings, c.embeddings)
    of_labeled = kernel(c.embeddings, labeled)
    bar = np.exp(-((DUPLICATE_DISTANCE if radius is None else radius / sigma) ** 2))
    near, barred = bar < K, (of_labeled > bar).any(axis=1)
    if codes is not None:
        p = c.proba.astype(float)
        for i in range(len(c)):
            for j in range(len(c)):
                K[i, j] *= 1.0 if i == j else sum(np.sqrt(p[i] * p[j]))
            for j, code in enumerate(codes):
                of_labeled[i, j] *= 1.0 if code < 0 else (1 + np.sqrt(p[i, code])) / 2
    covered = of_labeled.max(axis=1, initial=0.0)
    picks: list[int] = []
    for _ in range(k):
        gains = (np.maximum(K - covered[:, None], 0) * weights[:, None]).sum(axis=0)
        gains[barred] = -1
        picks.append(int(gains.argmax()))
        barred = barred | near[picks[-1]]
        covered = np.maximum(covered, K[:, picks[-1]])
    return picks


# -- order -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 5), st.integers(0, 70))
@settings(max_examples=80, deadline=None)
def test_the_best_by_key_equal_a_full_sort(seed: int, n: int, levels: int, count: int) -> None:
    c = made_candidates(n, seed, levels=levels)
    expected = slow_order(c.scores, c.rows, seed, 3)
    assert key_order(c.scores, c.rows, seed, 3).tolist() == expected
    assert set(best_by_key(c.scores, c.rows, count, seed, 3).tolist()) == set(expected[:count])


def test_row_hashes_depend_on_row_seed_and_round_and_look_uniform() -> None:
    rows = np.arange(7, 100_007)
    a, b, c = row_hash(rows, 1, 1), row_hash(rows, 1, 2), row_hash(rows, 2, 1)
    assert len(np.unique(a)) == len(rows)
    for other in (b, c):
        assert abs(np.corrcoef(a.astype(float), other.astype(float))[0, 1]) < 0.02
    counts = np.bincount((a >> np.uint64(56)).astype(int), minlength=256)
    expected = len(rows) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 340  # chi-square, 255 degrees of freedom: p = 0.0003


def test_coverage_for_a_learner_of_directions_covers_directions() -> None:
    """Records of four directions, of lengths that differ a thousandfold: one of each direction, whatever its length."""
    rng = np.random.default_rng(0)
    of = rng.integers(0, 4, 600)
    X = (10 * np.eye(4)[of] + 0.1 * rng.standard_normal((600, 4))) * rng.lognormal(0, 2, (600, 1))
    X[5], X[6] = 0, np.nan
    X = X.astype(np.float32)
    c = replace(made_candidates(600), embeddings=X)
    codebook = Codebook.fit(X, 0, 0)

    def chosen(strategy: str, *, directions: bool) -> list[int]:
        rows = choose(
            c, Strategy.named(strategy), 4, capacity=Capacity(600, 0, 0), codebook=codebook, asked=X[:0],
            excluded=np.empty(0, np.int64), random_state=0, round=1, directions=directions,
        )  # fmt: skip
        return np.searchsorted(c.rows, rows).tolist()

    found = chosen("coverage", directions=True)
    assert set(of[found]) == {0, 1, 2, 3}
    assert found != chosen("coverage", directions=False)
    assert chosen("default", directions=True) == chosen("default", directions=False), "of scored records, as before"
    filled = np.where(np.isnan(X), codebook.mean, X).astype(float)
    lengths = np.linalg.norm(filled, axis=1, keepdims=True)
    expected = np.divide(filled, lengths, out=np.zeros_like(filled), where=lengths > 0)
    np.testing.assert_allclose(codebook.directions(X), expected, atol=1e-6)
    plain = select(replace(c, embeddings=expected.astype(np.float32)), Strategy.named("coverage"), 4, NO_LABELED, 0, 1)
    assert np.searchsorted(c.rows, plain).tolist() == found
    huge = np.float32([[3e38, -3e38], [1e-38, 0]])
    np.testing.assert_allclose(
        Codebook.fit(X[:, :2], 0, 0).directions(huge), [[0.5**0.5, -(0.5**0.5)], [1, 0]], rtol=1e-6
    )


# -- strategies ----------------------------------------------------------------------


def test_a_strategy_of_no_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SettingsError, match=r"default, coverage, power.*random.*got 'marginal'"):
        Strategy.named("marginal")


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": "x"},
        {"selector": "x"},
        {"shortlist": 0},
        {"explore": 1.0},
        {"beta": -1.0},
        {"score": "random"},
        {"score": "random", "selector": "badge"},
    ],
)
def test_strategy_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        Strategy(**wrong)


def test_capacities_stratify_only_where_the_pool_is_large_and_cells_are_not_too_many() -> None:
    default = Strategy()
    assert default.capacity(100, 1_000_000) == Capacity(1000, 62, 17)
    assert default.capacity(100, 19_999) == Capacity(1000, 0, 0)  # fewer than 20 rows a candidate
    assert default.capacity(100, 500) == Capacity(500, 0, 0)
    assert default.capacity(1000, 10**7) == Capacity(10_000, 256, 40)
    assert default.capacity(100, 1_000_000, n_cells=30) == Capacity(1000, 30, 34)
    assert default.capacity(100, 1_000_000, n_cells=256) == Capacity(1000, 0, 0)
    mixed = Strategy.named("class_coverage")
    assert mixed.capacity(100, 5_000) == Capacity(2000, 125, 16, 1.0)
    assert mixed.capacity(2, 10**6) == Capacity(40, 2, 20, 1.0)
    assert mixed.capacity(2, 10**6, n_cells=256) == Capacity(40, 256, 1, 1.0)
    assert mixed.capacity(2, 10**6, n_cells=1) == Capacity(40, 0, 0, 1.0)
    assert default.cold().capacity(10, 1_000_000).total == 2000
    assert Strategy.named("margin").capacity(100, 10**6) == Capacity(100, 0, 0)
    assert Strategy.named("power").capacity(100, 10**6) == Capacity(100, 0, 0, 4.0)
    assert Strategy.named("cluster_margin").capacity(100, 10**6) == Capacity(1000, 0, 0)


def test_every_name_gives_a_strategy_and_a_cold_one_that_needs_no_model() -> None:
    for name in STRATEGIES:
        cold = Strategy.named(name, explore=0.1).cold()
        assert (cold.score, cold.traits.weighs, cold.traits.proba, cold.explore) == ("random", False, False, 0.1)
    assert Strategy().cold() == Strategy.named("coverage")
    assert Strategy.named("badge").cold() == Strategy.named("coverage")
    assert Strategy.named("power").cold() == Strategy.named("random")
    assert Strategy.named("k_center").cold() == Strategy.named("k_center")


def test_cells_are_wished_for_by_those_that_take_them_in_turn_however_small_the_pool() -> None:
    assert Strategy().n_cells(100, 10_000) == 0
    assert Strategy().n_cells(100, 1_000_000) == 62
    assert Strategy.named("cluster_margin").n_cells(100, 10_000) == 62
    assert Strategy.named("stratified").n_cells(1, 40) == 2
    assert Strategy.named("margin").n_cells(100, 1_000_000) == 0


# -- the shortlist ----------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(10, 300), st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_the_shortlist_is_half_global_and_half_water_filled(seed: int, n: int, cells: int) -> None:
    c = made_candidates(n, seed, levels=7, cells=cells)
    total = max(4, n // 3)
    capacity = Capacity(total, cells, -(-total // cells))
    kept = set(shortlist(c, capacity, seed, 1).rows.tolist())

    order = slow_order(c.scores, c.rows, seed, 1)
    expected = {int(c.rows[i]) for i in order[: total - total // 2]}
    best_quota = 0
    for quota in range(capacity.per_cell + 1):
        if sum(min((c.cells == cell).sum(), quota) for cell in range(cells)) <= total // 2:
            best_quota = quota
    for cell in range(cells):
        of_cell = [i for i in order if c.cells[i] == cell]
        expected |= {int(c.rows[i]) for i in of_cell[:best_quota]}
    assert kept == expected


# -- selectors: one contract for all ----------------------------------------------------------------------


class SelectorContract:
    """What every selector keeps. A new selector subclasses this and names its strategy."""

    strategy: Strategy

    def choose(
        self, c: Candidates, k: int, labeled: np.ndarray = NO_LABELED, seed: int = 5, round: int = 2
    ) -> list[int]:
        return select(c, self.strategy, k, labeled, seed, round).tolist()

    @pytest.mark.parametrize("k", [0, 1, 7, 60])
    def test_gives_k_distinct_candidates(self, k: int) -> None:
        c = made_candidates(60)
        chosen = self.choose(c, k)
        assert len(set(chosen)) == len(chosen) == k
        assert set(chosen) <= set(c.rows.tolist())

    def test_gives_all_there_are_when_asked_for_more(self) -> None:
        c = made_candidates(20)
        assert sorted(self.choose(c, 50)) == c.rows.tolist()

    def test_does_not_depend_on_the_order_of_its_input(self) -> None:
        c = made_candidates(3000, levels=5)
        shuffled = c.take(np.random.default_rng(1).permutation(3000))
        assert self.choose(c, 80) == self.choose(shuffled, 80)

    def test_another_seed_settles_ties_differently(self) -> None:
        c = replace(made_candidates(200, levels=1), proba=np.full((200, 3), 1 / 3, np.float32))
        c = replace(c, embeddings=np.zeros((200, 4), np.float32) + np.arange(200, dtype=np.float32)[:, None] * 1e3)
        assert self.choose(c, 10, seed=5) != self.choose(c, 10, seed=6)
        assert self.choose(c, 10, seed=5) == self.choose(c, 10, seed=5)

    def test_gives_the_same_for_the_same_seed_whatever_was_chosen_before(self) -> None:
        c, labeled = made_candidates(500, cells=7), made_candidates(20, seed=9).embeddings
        first = self.choose(c, 25, labeled)
        self.choose(c, 13, seed=77)
        assert self.choose(c, 25, labeled) == first

    def test_does_not_change_what_it_is_given(self) -> None:
        c, labeled = made_candidates(50), made_candidates(5, seed=9).embeddings
        assert c.proba is not None
        given_arrays = (c.rows, c.scores, c.cells, c.embeddings, c.proba, labeled)
        before = [array.copy() for array in given_arrays]
        self.choose(c, 10, labeled)
        for array, old in zip(given_arrays, before, strict=True):
            np.testing.assert_array_equal(array, old)

    def test_never_takes_an_excluded_row(self) -> None:
        c = made_candidates(300, cells=3, d=12)  # wide enough that none is another's near-duplicate
        codebook = Codebook.fit(made_candidates(500, seed=6, d=12).embeddings, 5, seed=0)
        excluded = np.sort(np.concatenate([c.rows[::3], np.arange(50)]))
        for k in (20, 300):
            rows = choose(
                c,
                self.strategy,
                k,
                capacity=Capacity(300, 0, 0),
                codebook=codebook,
                asked=c.embeddings[::3],
                excluded=excluded,
                random_state=5,
                round=2,
            )
            assert len(rows) == len(set(rows.tolist())) == min(k, 200)
            assert not set(rows.tolist()) & set(excluded.tolist())

    def test_takes_labeled_records_into_account_where_it_looks(self) -> None:
        c = made_candidates(30)
        chosen = self.choose(c, 30, c.embeddings[10:20])
        expected = np.delete(c.rows, np.arange(10, 20)) if self.strategy.traits.features else c.rows
        assert sorted(chosen) == expected.tolist()

    def test_takes_one_of_near_duplicates_where_it_looks(self) -> None:
        originals = 40 * np.stack(np.meshgrid(*[np.arange(3)] * 4), axis=-1).reshape(81, 4)
        copies = originals[:20] + 1e-4 * np.random.default_rng(0).standard_normal((20, 4))
        c = replace(made_candidates(101, cells=4), embeddings=np.concatenate([originals, copies]).astype("f4"))
        labeled = (originals + 1000).astype("f4")
        chosen = np.searchsorted(c.rows, self.choose(c, 101, labeled))
        if self.strategy.traits.features:
            assert sorted((chosen % 81).tolist()) == list(range(81))
        else:
            assert sorted(chosen.tolist()) == list(range(101))

    def test_takes_one_of_equal_records_where_it_looks(self) -> None:
        c = replace(made_candidates(30), embeddings=np.ones((30, 4), np.float32))
        best = int(c.rows[slow_order(c.scores, c.rows, 5, 2)[0]])
        assert self.choose(c, 5) == [best] if self.strategy.traits.features else len(self.choose(c, 5)) == 5

    @pytest.mark.slow
    def test_takes_a_hundred_thousand_candidates(self) -> None:
        c = made_candidates(100_000, d=8, cells=64)
        chosen = self.choose(c, 400, made_candidates(300, seed=9, d=8).embeddings)
        assert len(set(chosen)) == len(chosen) == 400
        assert set(chosen) <= set(c.rows.tolist())

    @pytest.mark.parametrize("scores", [0.0, 1.0])
    def test_takes_constant_scores(self, scores: float) -> None:
        c = replace(made_candidates(40), scores=np.full(40, scores))
        assert len(self.choose(c, 15)) == 15

    def test_takes_one_dimension(self) -> None:
        c = made_candidates(40, d=1)
        assert len(self.choose(c, 15, np.empty((0, 1), np.float32))) == 15


class WeighingContract(SelectorContract):
    """What selectors keep that look where records stand and weigh them by their scores."""

    def test_takes_one_of_many_near_duplicates(self) -> None:
        kinds = 40 * made_candidates(12, seed=4).embeddings
        noise = 1e-4 * np.random.default_rng(0).standard_normal((12 * 9, 4))
        c = replace(made_candidates(12 * 9, cells=4), embeddings=(np.repeat(kinds, 9, axis=0) + noise).astype("f4"))
        # Distances within a kind would else be taken for what tells records apart.
        labeled = 40 * made_candidates(30, seed=5).embeddings + 1000
        chosen = self.choose(c, 50, labeled)
        assert sorted((np.searchsorted(c.rows, chosen) // 9).tolist()) == list(range(12))


class TestTop(SelectorContract):
    strategy = Strategy.named("margin")

    def test_takes_the_best_by_key_in_order(self) -> None:
        c = made_candidates(300, levels=6)
        expected = [int(c.rows[i]) for i in slow_order(c.scores, c.rows, 5, 2)[:40]]
        assert self.choose(c, 40) == expected


class TestFacilityLocation(WeighingContract):
    strategy = Strategy()

    @pytest.mark.parametrize("n_labeled", [2, 15])
    def test_equals_plain_greedy_in_one_leaf(self, n_labeled: int) -> None:
        c = made_candidates(150, seed=3)
        labeled = made_candidates(n_labeled, seed=4).embeddings
        sigma = bandwidth_beside(labeled, c)
        picks = slow_facility_location(c, c.scores, 30, labeled, sigma)
        assert self.choose(c, 30, labeled) == c.rows[picks].tolist()

    def test_leaves_lose_at_most_one_percent_of_the_objective_of_flat_greedy(self) -> None:
        c = made_candidates(2 * LEAF_ROWS + 100, seed=11, d=16)
        labeled = made_candidates(300, seed=12, d=16).embeddings
        sigma = bandwidth_beside(labeled, c)
        rows = self.choose(c, 300, labeled)
        picks = np.searchsorted(c.rows, rows)
        flat = slow_flat_greedy(c, 300, labeled, sigma)
        assert objective(c, picks, labeled, sigma) >= 0.99 * objective(c, flat, labeled, sigma)

    @pytest.mark.parametrize(("n", "leaves"), [(40, 1), (41, 2), (120, 3), (201, 6), (290, 8)])
    def test_leaves_are_as_few_and_as_equal_as_can_be(self, n: int, leaves: int) -> None:
        solved: list[int] = []

        def watched(solve: Callable, tasks: Iterable) -> list:
            tasks = list(tasks)
            solved.extend(len(leaf.points) for leaf in tasks)
            return [solve(leaf) for leaf in tasks]

        # No gain is left after the first round, so no leaf is solved twice.
        problem = posed(made_candidates(n, seed=2), self.strategy, NO_LABELED, 5, 2, mapper=watched)
        with one_thread:
            facility_location.facility_location(problem, n, leaf_rows=40, leaves_worth_sending=1)
        assert len(solved) == leaves
        assert sum(solved) == n
        assert max(solved) <= 40
        assert max(solved) - min(solved) <= leaves

    @pytest.mark.parametrize("k", [1, 37, 200, 590])
    def test_the_merge_of_two_rounds_is_that_of_all_picks_of_all_leaves(self, k: int) -> None:
        """Leaves of very different worth, so that some are asked twice; and gains that tie."""
        c = made_candidates(600, seed=5)
        crowd = np.where(c.embeddings[:, 0] > 0.5, 1.0, 0.01)
        c = replace(c, scores=np.round(c.scores * crowd, 2) + 0.01, embeddings=np.round(c.embeddings * 4) / 4)
        calls: list[facility_location.Leaf] = []

        def watched(solve: Callable, leaves: Iterable) -> list:
            calls.extend(leaves := list(leaves))
            return [solve(leaf) for leaf in leaves]

        problem = posed(c, self.strategy, NO_LABELED, 5, 2, mapper=watched)
        with one_thread:
            chosen = problem.rows[facility_location.facility_location(problem, k, leaf_rows=40)].tolist()
        leaves = [leaf for leaf in calls if leaf.floor == 0.0]
        assert 15 <= len(leaves) < len(calls) or k > 500
        order = slow_order(c.scores, c.rows, 5, 2)
        position = {c.embeddings[i].tobytes(): rank for rank, i in reversed(list(enumerate(order)))}
        merged = []
        for leaf in leaves[: len({leaf.points.tobytes() for leaf in leaves})]:
            everything = facility_location.solve_leaf(leaf._replace(most=10**9, floor=0.0))
            assert not everything.truncated
            names = [position[leaf.points[i].tobytes()] for i in everything.positions]
            merged += list(zip((-everything.gains).tolist(), names, strict=True))
        expected = [int(c.rows[order[rank]]) for _, rank in sorted(merged)[:k]]
        assert chosen[: len(expected)] == expected

    def test_lazy_greedy_gives_the_sequence_that_apricot_publishes(self) -> None:
        """Facility location of scikit-learn's digits by squared correlation, from apricot's own tests."""
        kernel = (np.corrcoef(load_digits().data) ** 2).astype(np.float32)
        n = len(kernel)
        greedy = facility_location.lazy_greedy(kernel, np.zeros(n, np.float32), np.ones(n, np.float32))
        gains, positions = zip(*islice(greedy, 10), strict=True)
        assert list(positions) == [424, 1647, 396, 339, 1030, 331, 983, 1075, 1482, 1539]
        np.testing.assert_allclose(gains[:4], [736.794, 114.278, 65.415, 61.304], atol=2e-3)

    @pytest.mark.slow  # apricot compiles for seconds
    @pytest.mark.parametrize("seed", range(3))
    def test_unweighted_picks_and_gains_are_apricots(self, seed: int) -> None:
        from apricot import FacilityLocationSelection

        points = np.random.default_rng(seed).random((500, 2)).astype(np.float32)
        squared = ((points[:, None].astype(np.float64) - points) ** 2).sum(axis=2)
        theirs = FacilityLocationSelection(60, metric="precomputed", optimizer="lazy", random_state=0)
        theirs.fit(np.exp(-squared / 0.2**2))
        leaf = facility_location.Leaf(points, np.ones(500, np.float32), np.empty((0, 2), np.float32), 0.2, 60, 0.0)
        ours = facility_location.solve_leaf(leaf)
        assert ours.positions.tolist() == theirs.ranking.tolist()
        np.testing.assert_allclose(ours.gains, theirs.gains, rtol=1e-4)

    def test_near_duplicates_are_not_picked_even_across_leaves(self) -> None:
        base = made_candidates(900, seed=2, d=6)
        copies = 3
        rng = np.random.default_rng(0)
        embeddings = np.repeat(base.embeddings, copies, axis=0) + 1e-4 * rng.standard_normal((900 * copies, 6))
        n = 900 * copies
        c = replace(made_candidates(n, seed=3), embeddings=embeddings.astype(np.float32), scores=np.full(n, 0.5))
        assert n > LEAF_ROWS
        chosen = self.choose(c, 850, np.empty((0, 6), np.float32))
        originals = np.searchsorted(c.rows, chosen) // copies
        assert len(set(originals.tolist())) == len(chosen) == 850

    def test_copies_give_a_short_batch(self) -> None:
        c = made_candidates(40)
        c = replace(c, embeddings=np.repeat(c.embeddings[:4], 10, axis=0))
        chosen = self.choose(c, 20)
        assert len(chosen) == 4
        # Of identical records the best by key is taken.
        order = slow_order(c.scores, c.rows, 5, 2)
        best_of_group = {min(range(10 * g, 10 * g + 10), key=order.index) for g in range(4)}
        assert {int(np.searchsorted(c.rows, row)) for row in chosen} == best_of_group

    def test_where_all_candidates_are_copies_of_labeled_records_one_of_each_kind_is_asked(self) -> None:
        c = made_candidates(40)
        c = replace(c, embeddings=np.repeat(c.embeddings[:4], 10, axis=0))
        chosen = self.choose(c, 20, c.embeddings)
        assert len({int(np.searchsorted(c.rows, row)) // 10 for row in chosen}) == len(chosen) == 4

    def test_many_near_duplicates_across_leaves_end_soon(self) -> None:
        line = np.linspace(0, 1, 4000, dtype=np.float32)[:, None]
        c = replace(made_candidates(4000), embeddings=line, scores=np.full(4000, 0.5))
        labeled = np.array([[0.0], [0.5], [1.0]], dtype=np.float32)
        chosen = self.choose(c, 60, labeled)
        places = np.sort(line[np.searchsorted(c.rows, chosen), 0])
        assert 0 < len(chosen) <= 60
        assert np.diff(places).min() >= 0.1 * 0.5 * 0.99

    def test_tight_clusters_of_many_take_little_memory(self) -> None:
        rng = np.random.default_rng(0)
        centers = np.array([[0, 0], [1, 0], [0, 1]], dtype=np.float32)
        points = centers[rng.integers(0, 3, 20_000)] + 1e-5 * rng.standard_normal((20_000, 2)).astype(np.float32)
        c = replace(made_candidates(20_000), embeddings=points, scores=np.full(20_000, 0.5))
        tracemalloc.start()
        chosen = self.choose(c, 2000, centers + 5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(chosen) == 3
        assert peak < 200e6


class TestMaxHerding(SelectorContract):
    strategy = Strategy.named("coverage")

    def test_equals_plain_greedy_with_unit_weights_whatever_the_scores(self) -> None:
        c, labeled = made_candidates(120, seed=8), made_candidates(6, seed=9).embeddings
        sigma = 2 * median_to_nearest(c.embeddings)
        picks = slow_facility_location(c, np.ones(120), 20, labeled, sigma)
        assert self.choose(c, 20, labeled) == c.rows[picks].tolist()

    def test_a_column_with_a_long_tail_is_compared_by_normal_scores(self) -> None:
        c = made_candidates(200, seed=8)
        points = c.embeddings.copy()
        points[:, 0] = np.exp(2 * points[:, 0] / points[:, 0].std())
        straight = points.copy()
        straight[:, 0] = norm.ppf(rankdata(points[:, 0]) / 201) / np.sqrt(points.shape[1])
        # A pick stands for ten of the candidates.
        tenth = np.median([np.sort(np.linalg.norm(straight - each, axis=1))[10] for each in straight])
        sigma = max(2 * median_to_nearest(straight), tenth)
        picks = slow_facility_location(replace(c, embeddings=straight), np.ones(200), 20, straight[:6], sigma)
        assert self.choose(replace(c, embeddings=points), 20, points[:6]) == c.rows[picks].tolist()

    def test_a_class_in_the_tail_of_a_column_is_in_the_first_batch(self) -> None:
        """Standardised, nine of ten records of such a pool lie in one spot, and all of a batch are chosen from it."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((2000, 4)).astype(np.float32)
        X[:, 0] = np.exp(1.5 * X[:, 0])
        rare = X[:, 0] > np.quantile(X[:, 0], 0.8)
        embeddings = Codebook.fit(X, 0, 0).embed(X)
        c = Candidates(np.arange(2000), np.zeros(2000), np.zeros(2000, np.int64), np.full(2000, -1), embeddings)
        nothing = np.empty((0, 4), np.float32)
        found = [rare[select(c, self.strategy, 20, nothing, seed, 1)].any() for seed in range(10)]
        assert sum(found) == 10


class TestClassCoverage(WeighingContract):
    strategy = Strategy.named("class_coverage")

    @pytest.mark.parametrize("known", ["all", "some", "none"])
    def test_equals_plain_greedy_with_the_classes_in_the_kernel(self, known: str) -> None:
        c = made_candidates(120, seed=3)
        c = replace(c, weights=np.random.default_rng(1).uniform(0.1, 1, 120))
        labeled = made_candidates(15, seed=4).embeddings
        codes = {"all": np.arange(15) % 3, "some": np.arange(15) % 4 - 1, "none": np.full(15, -1)}[known]
        sigma = bandwidth_beside(labeled, c, crowd=20)
        picks = slow_facility_location(c, c.weights, 30, labeled, sigma, codes)
        assert picks != slow_facility_location(c, c.weights, 30, labeled, sigma)
        given = c if known != "none" else c.take(np.random.default_rng(2).permutation(120))
        found = select(given, self.strategy, 30, labeled, 5, 2, codes=None if known == "none" else codes)
        assert found.tolist() == c.rows[picks].tolist()

    def test_equal_records_of_two_classes_do_not_narrow_the_bandwidth(self) -> None:
        c, labeled = made_candidates(120, seed=3), made_candidates(15, seed=4).embeddings
        twice, codes = np.concatenate([labeled] * 2), np.repeat([0, 2], 15)
        problems = [
            posed(c, self.strategy, *each, 5, 2, codes=of) for each, of in (((labeled,), codes[:15]), ((twice,), codes))
        ]
        assert [len(each.labeled) for each in problems] == [15, 30]
        assert problems[0].bandwidth == problems[1].bandwidth

    def test_the_largest_probabilities_with_their_classes_are_as_good_as_all(self) -> None:
        rng = np.random.default_rng(6)
        full = np.zeros((300, 40), np.float32)
        for row in full:
            row[rng.choice(40, 16, replace=False)] = rng.dirichlet(np.ones(16))
        shares, classes = leading(full, 16)
        c = replace(made_candidates(300, seed=3), proba=full)
        cut = replace(c, proba=shares, classes=classes)
        labeled, codes = made_candidates(30, seed=4).embeddings, rng.integers(0, 40, 30)
        found = [select(each, self.strategy, 60, labeled, 5, 2, codes=codes).tolist() for each in (c, cut)]
        assert found[0] == found[1]

    @given(st.integers(0, 2**32), st.integers(2, 300), st.integers(0, 40))
    @settings(max_examples=50, deadline=None)
    def test_half_of_the_shortlist_is_of_the_cells_in_turn_and_half_is_drawn(
        self, seed: int, n: int, cells: int
    ) -> None:
        c = made_candidates(n, seed, levels=7, cells=max(cells, 1))
        total = max(2, n // 3)
        capacity = Capacity(total, cells, -(-total // cells) if cells else 0, 1.0)
        found = shortlist(c, capacity, seed, 1)

        left, best = slow_order(c.scores, c.rows, seed, 1), []
        while cells and len(best) < total // 2:
            turn = [next(i for i in left if c.cells[i] == cell) for cell in sorted({c.cells[i] for i in left})]
            best += [i for i in left if i in turn][: total // 2 - len(best)]
            left = [i for i in left if i not in best]
        keys = power_keys(c.scores, c.rows, 1.0, seed, 1)
        drawn = sorted(left, key=lambda i: -keys[i])[: total - len(best)]
        largest = max((c.scores[i] for i in best), default=1.0)
        z = c.scores / np.exp(min(keys[i] for i in drawn))
        weights = {int(c.rows[i]): max(c.scores[i] / largest, z[i]) for i in best}
        weights |= {int(c.rows[i]): z[i] / (1 - np.exp(-z[i])) for i in drawn}
        heaviest = max(weights.values())
        expected = {row: weight / heaviest for row, weight in weights.items()}
        assert dict(zip(found.rows.tolist(), found.weights.tolist(), strict=True)) == pytest.approx(expected)

    def test_drawn_weights_estimate_the_sum_over_the_pool_without_bias(self) -> None:
        """The sum of the scores of half of the pool, out of the whole of it and the draws of many seeds."""
        rng = np.random.default_rng(4)
        c = replace(made_candidates(200), scores=rng.uniform(0, 1, 200) ** 3)
        half = np.zeros(200, bool)
        half[:100] = True
        ratios = []
        for seed in range(400):
            found = shortlist(c, Capacity(60, 0, 0, 1.0), seed, 1)
            mine = half[np.searchsorted(c.rows, found.rows)]
            ratios.append(found.weights[mine].sum() / found.weights.sum())
        expected = c.scores[half].sum() / c.scores.sum()
        assert abs(np.mean(ratios) - expected) < 4 * np.std(ratios) / np.sqrt(len(ratios))

    @pytest.mark.parametrize("scores", [np.zeros(50), np.r_[np.zeros(30), np.ones(20)], np.full(50, 1e-300)])
    def test_scores_of_nothing_are_weighed_by_finite_numbers(self, scores: np.ndarray) -> None:
        c = replace(made_candidates(50, cells=3), scores=scores)
        for total in (20, 50):
            found = shortlist(c, Capacity(total, 3, total, 1.0), 1, 1)
            assert len(found) == total
            assert np.isfinite(found.weights).all()
            assert found.weights.max() == 1


class TestPower(SelectorContract):
    strategy = Strategy.named("power")

    def test_takes_the_largest_gumbel_keys_in_order(self) -> None:
        c = made_candidates(300, levels=6)
        keys = []
        for row, score in zip(c.rows, c.scores, strict=True):
            draw = float(uniform(np.array([row]), 5, 2)[0])
            keys.append(4.0 * np.log(score) - np.log(-np.log(draw)))
        expected = sorted(range(300), key=lambda i: -keys[i])[:40]
        assert self.choose(c, 40) == c.rows[expected].tolist()

    def test_draws_in_proportion_to_a_power_of_the_score(self) -> None:
        c = replace(made_candidates(5), scores=np.array([0.9, 0.5, 0.7, 0.2, 0.6]))
        strategy = replace(self.strategy, beta=2.0)
        firsts = [int(np.searchsorted(c.rows, select(c, strategy, 2, NO_LABELED, seed, 1)[0])) for seed in range(2500)]
        expected = 2500 * c.scores**2 / (c.scores**2).sum()
        counts = np.bincount(firsts, minlength=5)
        assert ((counts - expected) ** 2 / expected).sum() < 20.5  # chi-square, 4 degrees of freedom: p = 0.0004

    def test_records_of_score_zero_come_last(self) -> None:
        c = replace(made_candidates(40), scores=np.where(np.arange(40) % 2, 0.0, 1e-3))
        chosen = np.searchsorted(c.rows, self.choose(c, 40))
        assert (chosen[:20] % 2 == 0).all()
        assert (chosen[20:] % 2 == 1).all()

    def test_its_propensities_make_an_estimate_unbiased(self) -> None:
        """LURE (Farquhar et al. 2021) over the draws is the pool's mean loss; the plain mean of the draws is not."""
        n, k, beta = 60, 12, 1.5
        rng = np.random.default_rng(3)
        c = replace(made_candidates(n), scores=rng.uniform(0.05, 1, n))
        losses = c.scores + rng.uniform(0, 0.2, n)
        strategy = replace(self.strategy, beta=beta)
        mass = float((c.scores**beta).sum())
        unbiased, naive = [], []
        for seed in range(1000):
            drawn = np.searchsorted(c.rows, select(c, strategy, k, NO_LABELED, seed, 1))
            q = propensities(c.scores[drawn], beta, mass)
            m = np.arange(1, k + 1)
            weight = 1 + (n - k) / (n - m) * (1 / ((n - m + 1) * q) - 1)
            unbiased.append(float((weight * losses[drawn]).mean()))
            naive.append(float(losses[drawn].mean()))
        error = np.std(unbiased) / np.sqrt(len(unbiased))
        assert abs(np.mean(unbiased) - losses.mean()) < 3.5 * error
        assert np.mean(naive) - losses.mean() > 20 * error

    @given(st.integers(0, 2**32), st.integers(2, 40), st.floats(0, 8))
    @settings(max_examples=50, deadline=None)
    def test_propensities_are_those_of_drawing_one_after_the_other(self, seed: int, k: int, beta: float) -> None:
        score = np.random.default_rng(seed).uniform(0.01, 1, k)
        rest = [*(score**beta).tolist(), 3.0]
        expected = []
        for _ in range(k):
            expected.append(rest[0] / sum(rest))
            rest.pop(0)
        np.testing.assert_allclose(propensities(score, beta, float((score**beta).sum() + 3.0)), expected, rtol=1e-9)

    @pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
    def test_rows_that_are_never_asked_have_no_mass(self, beta: float) -> None:
        assert power_masses(np.array([0.5, -np.inf, 1.0]), beta).tolist() == [0.5**beta, 0.0, 1.0]

    def test_rows_that_are_never_asked_have_no_key(self) -> None:
        keys = power_keys(np.array([0.5, -np.inf, 0.0]), np.array([3, 4, 5]), 2.0, 0, 0)
        assert np.isfinite(keys).tolist() == [True, False, True]


class TestStratified(SelectorContract):
    strategy = Strategy.named("stratified")

    def test_takes_a_record_of_each_cell_in_turn(self) -> None:
        c = made_candidates(200, cells=9)
        left = {cell: [i for i in slow_order(c.scores, c.rows, 5, 2) if c.cells[i] == cell] for cell in range(9)}
        c = replace(c, embeddings=np.arange(800, dtype=np.float32).reshape(200, 4))  # none is near another
        turns = sorted(range(9), key=lambda cell: int(row_hash(np.array([cell]), 5, 2)[0]))
        expected = []
        while len(expected) < 70:
            expected += [left[cell].pop(0) for cell in turns if left[cell]]
        assert self.choose(c, 70) == c.rows[expected[:70]].tolist()


class TestClusterMargin(WeighingContract):
    strategy = Strategy.named("cluster_margin")

    def test_takes_a_random_record_of_the_smallest_cell_first(self) -> None:
        c = replace(made_candidates(60), cells=np.repeat([4, 2, 9, 7], [30, 3, 20, 7]))
        c = replace(c, embeddings=np.arange(240, dtype=np.float32).reshape(60, 4))
        labeled = np.array([[-100.0] * 4, [-110.0] * 4, [-120.0] * 4], dtype=np.float32)
        left = {cell: np.flatnonzero(c.cells == cell).tolist() for cell in (2, 7, 9, 4)}
        for members in left.values():
            members.sort(key=lambda i: int(row_hash(c.rows[i : i + 1], 5, 2)[0]))
        expected = []
        while len(expected) < 40:
            expected += [left[cell].pop(0) for cell in (2, 7, 9, 4) if left[cell]]
        assert self.choose(c, 40, labeled) == c.rows[expected[:40]].tolist()

    def test_without_cells_of_the_scan_the_codebook_gives_them(self) -> None:
        c = replace(made_candidates(400, d=2), cells=np.full(400, -1))
        codebook = Codebook.fit(c.embeddings, 8, seed=0)
        options = {"capacity": Capacity(300, 0, 0), "codebook": codebook, "random_state": 5, "round": 2}
        nothing = {"asked": np.empty((0, 2), np.float32), "excluded": np.empty(0, np.int64)}
        rows = choose(c, self.strategy, 8, **options, **nothing)
        cells = codebook.assign(c.embeddings[np.searchsorted(c.rows, rows)])
        assert sorted(cells.tolist()) == list(range(8))


class TestKCenter(SelectorContract):
    strategy = Strategy.named("k_center")

    @pytest.mark.parametrize("n_labeled", [0, 1, 8])
    def test_equals_plain_farthest_first(self, n_labeled: int) -> None:
        c = made_candidates(150, seed=3)
        labeled = made_candidates(n_labeled, seed=4).embeddings if n_labeled else NO_LABELED
        points = c.embeddings.astype(float)
        centers = [row.astype(float) for row in labeled]
        expected = [] if n_labeled else [slow_order(c.scores, c.rows, 5, 2)[0]]
        centers += [points[i] for i in expected]
        while len(expected) < 30:
            nearest = [min(((point - center) ** 2).sum() for center in centers) for point in points]
            expected.append(int(np.argmax(nearest)))
            centers.append(points[expected[-1]])
        assert self.choose(c, 30, labeled) == c.rows[expected].tolist()


class TestWeightedKMeans(WeighingContract):
    strategy = Strategy.named("weighted_kmeans")

    def test_equals_plain_lloyd_from_the_same_start(self) -> None:
        c = made_candidates(200, seed=3)
        labeled = 1e-3 * made_candidates(40, seed=4).embeddings + 100
        k = 12
        order = slow_order(c.scores, c.rows, 5, 2)
        points = c.embeddings[order]
        weights = c.scores[order].astype(np.float32).astype(float)
        seed = int(row_hash(np.array([k]), 5, 2)[0] >> np.uint64(32))
        centers = kmeans_plusplus(points, k, sample_weight=weights, random_state=seed)[0].astype(float)
        for _ in range(100):
            cluster = [int(((point - centers) ** 2).sum(axis=1).argmin()) for point in points]
            moved = [np.average(points[np.equal(cluster, j)], 0, weights[np.equal(cluster, j)]) for j in range(k)]
            if np.allclose(moved, centers, atol=1e-12):
                break
            centers = np.array(moved)
        expected = {}
        for j in range(k):
            members = np.flatnonzero(np.equal(cluster, j)).tolist()
            nearest = min(members, key=lambda i: ((points[i] - centers[j]) ** 2).sum())
            expected[order[nearest]] = weights[members].sum()
        chosen = np.searchsorted(c.rows, self.choose(c, k, labeled)).tolist()
        assert chosen == sorted(expected, key=lambda i: -expected[i])


class TestBadge(WeighingContract):
    strategy = Strategy.named("badge")

    @pytest.mark.parametrize("n_classes", [2, 5])
    def test_equals_k_means_plus_plus_on_gradients_written_out(self, n_classes: int) -> None:
        c = made_candidates(150, seed=3)
        proba = np.random.default_rng(1).dirichlet(np.ones(n_classes), 150).astype(np.float32)
        c = replace(c, proba=proba)
        labeled = 1e-3 * made_candidates(40, seed=4).embeddings + 100
        order = slow_order(c.scores, c.rows, 5, 2)
        gradients = []
        for i in order:
            hypothetical = np.zeros(n_classes)
            hypothetical[int(proba[i].argmax())] = 1
            gradients.append(np.outer(proba[i] - hypothetical, [*c.embeddings[i].astype(float), 1.0]).ravel())
        G = np.array(gradients)
        picks = [int((G**2).sum(axis=1).argmax())]
        while len(picks) < 25:
            squared = np.array([min(((g - G[p]) ** 2).sum() for p in picks) for g in G])
            draw = float(uniform(np.array([len(picks)]), 5, 2)[0]) * squared.sum()
            picks.append(int(np.flatnonzero(np.cumsum(squared) > draw)[0]))
        assert self.choose(c, 25, labeled) == c.rows[[order[p] for p in picks]].tolist()

    def test_sure_predictions_have_no_gradient_and_follow_by_key(self) -> None:
        c = replace(made_candidates(30), proba=np.eye(3, dtype=np.float32)[np.arange(30) % 3])
        labeled = 1e-3 * made_candidates(9, seed=4).embeddings + 100
        assert self.choose(c, 10, labeled) == c.rows[slow_order(c.scores, c.rows, 5, 2)[:10]].tolist()


class TestUncertaintyHerding(WeighingContract):
    strategy = Strategy.named("uncertainty_herding")
    test_takes_a_hundred_thousand_candidates = None  # the code of another one

    def test_covers_a_uniform_sample_of_the_pool_by_uncertainty(self) -> None:
        assert self.strategy.capacity(100, 10**6) == Capacity(4000, 0, 0, 0.0)
        assert self.strategy.capacity(1000, 10**6, 256) == Capacity(10_000, 0, 0, 0.0)
        assert self.strategy.capacity(100, 500) == Capacity(500, 0, 0, 0.0)
        scores, rows = np.r_[np.zeros(50), np.ones(50)], np.arange(100)
        ranked = self.strategy.capacity(5, 100).ranked(scores, rows, 3, 1)
        np.testing.assert_array_equal(np.argsort(ranked), np.argsort(uniform(rows, 3, 1)), "whatever the score")
        c, labeled = made_candidates(120, seed=8), made_candidates(6, seed=9).embeddings
        picks = slow_facility_location(c, c.scores, 20, labeled, bandwidth_beside(labeled, c))
        assert self.choose(c, 20, labeled) == c.rows[picks].tolist()


class TestDropQuery(WeighingContract):
    strategy = Strategy.named("dropquery")
    test_takes_a_hundred_thousand_candidates = None  # the code of another one

    def test_is_a_k_means_of_its_candidates(self) -> None:
        c, labeled = made_candidates(200, seed=3), made_candidates(9, seed=4).embeddings
        twin = Strategy("dropout", "weighted_kmeans", shortlist=20)
        assert self.choose(c, 12, labeled) == select(c, twin, 12, labeled, 5, 2).tolist()
        assert self.strategy.capacity(100, 10**4) == Capacity(2000, 0, 0)


class TestBait(WeighingContract):
    strategy = Strategy.named("bait")

    def test_equals_the_trace_written_out(self) -> None:
        """The inverse of each candidate's matrix, in double precision, and the candidate of the least trace."""
        c, known = made_candidates(80, seed=3, d=5), made_candidates(8, seed=4, d=5)
        known = replace(known, embeddings=known.embeddings + 20)
        labeled_proba = known.proba.copy()
        labeled_proba[3] = np.nan

        def outer(point: np.ndarray, proba: np.ndarray) -> np.ndarray:
            most = proba.astype(float).max()
            return 0 if np.isnan(most) else most * (1 - most) * np.outer(point.astype(float), point)

        each = [outer(*pair) for pair in zip(c.embeddings, c.proba, strict=True)]
        had = 0.01 * (c.embeddings.astype(float) ** 2).sum() / 80 * np.eye(5)
        had = had + sum(outer(*pair) for pair in zip(known.embeddings, labeled_proba, strict=True))
        expected: list[int] = []
        while len(expected) < 12:
            traces = [np.trace(np.linalg.inv(had + one) @ sum(each)) for one in each]
            traces = [np.inf if i in expected else trace for i, trace in enumerate(traces)]
            expected.append(int(np.argmin(traces)))
            had = had + each[expected[-1]]
        found = select(c, self.strategy, 12, known.embeddings, 5, 2, labeled_proba=labeled_proba)
        assert found.tolist() == c.rows[expected].tolist()
        assert found.tolist() != self.choose(c, 12, known.embeddings), "what the labels tell is not asked again"

    def test_another_seed_settles_ties_differently(self) -> None:
        """Records of which each tells as much as any other."""
        c = replace(made_candidates(60, levels=1), embeddings=np.eye(60, dtype=np.float32))
        c, nothing = replace(c, proba=np.full((60, 2), 0.5, np.float32)), np.empty((0, 60), np.float32)
        assert self.choose(c, 10, nothing, seed=5) != self.choose(c, 10, nothing, seed=6)
        assert self.choose(c, 10, nothing, seed=5) == self.choose(c, 10, nothing, seed=5)

    def test_sees_what_the_labels_tell_in_a_round(self) -> None:
        """Labels of records of which no class is sure tell more than sure ones: the batch turns elsewhere."""
        c = replace(made_candidates(60, seed=2), embeddings=made_candidates(60, seed=2).embeddings + 5)
        X, rows = c.embeddings, np.arange(60)
        given = {"capacity": Capacity(60, 0, 0), "codebook": Codebook.fit(X, 0, 0), "asked": X[:5] - 9, "round": 1}
        given |= {"excluded": rows[:0], "random_state": 0}
        sure, unsure = np.eye(3, dtype=np.float32)[[0] * 5], np.full((5, 3), 1 / 3, np.float32)
        batches = [choose(c, self.strategy, 10, asked_proba=each, **given).tolist() for each in (None, sure, unsure)]
        assert batches[0] == batches[1] != batches[2]


class TestTypiClust(SelectorContract):
    strategy = Strategy.named("typiclust")

    def test_takes_the_typical_record_of_each_large_cluster_without_labels(self) -> None:
        """Blobs of several sizes, two of them with labels, one too small: typical by the distances written out."""
        sizes, rng = (30, 26, 22, 18, 14, 4), np.random.default_rng(0)
        of = np.repeat(np.arange(6), sizes)
        points = (50 * np.eye(6)[of] + rng.standard_normal((len(of), 6))).astype(np.float32)
        c = replace(made_candidates(len(of)), embeddings=points)
        labeled = (50 * np.eye(6)[[0, 3]] + 3).astype(np.float32)

        def typical(blob: int) -> list[int]:
            members = np.flatnonzero(of == blob)
            apart = np.linalg.norm(points[members][:, None].astype(float) - points[members][None], axis=2)
            return members[
                np.argsort(np.sort(apart, axis=1)[:, 1 : 1 + min(20, len(members) - 1)].mean(axis=1))
            ].tolist()

        # As many clusters as labels: those of the two labels, and four of this batch.
        chosen = np.searchsorted(c.rows, self.choose(c, 4, labeled)).tolist()
        assert chosen == [typical(blob)[0] for blob in (1, 2, 4, 0)]


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_representatives_are_those_of_a_plain_loop(seed: int, n: int, n_labeled: int, d: int) -> None:
    """Whatever the selector, asking for all gives one of each group of near-duplicates, the best by key."""
    rng = np.random.default_rng(seed)
    # Few values, so that records are equal or near; uneven ones, so that no distance is just the radius.
    values = rng.uniform(0, 0.5, 12).astype(np.float32)
    c = replace(made_candidates(n, seed), embeddings=values[rng.integers(0, 12, (n, d))])
    labeled = rng.integers(0, 12, (n_labeled, d)).astype(np.float32)
    labeled = np.unique(labeled, axis=0)
    sigma = bandwidth_beside(labeled, c) if len(labeled) > 1 else bandwidth_of_candidates(c)
    radius = DUPLICATE_DISTANCE * sigma

    def near(a: np.ndarray, b: np.ndarray) -> bool:
        return float(np.sqrt(((a.astype(float) - b.astype(float)) ** 2).sum())) <= radius

    def leaders(positions: list[int]) -> list[int]:
        kept: list[int] = []
        for i in positions:
            if not any(near(c.embeddings[i], c.embeddings[j]) for j in kept):
                kept.append(i)
        return kept

    order = slow_order(c.scores, c.rows, 5, 2)
    fresh = [i for i in order if not any(near(c.embeddings[i], point) for point in labeled)]
    expected = leaders(fresh or order)
    chosen = select(c, Strategy.named("badge"), n, labeled, 5, 2)
    assert sorted(chosen.tolist()) == sorted(c.rows[expected].tolist())


def test_copies_that_differ_a_little_do_not_collapse_the_bandwidth() -> None:
    """As in a log: most labels are of one event over and over, and the candidates of many."""
    rng = np.random.default_rng(3)
    labeled = (1e-4 * rng.standard_normal((40, 4))).astype(np.float32)
    # 20 tight groups of 10 candidates: what differs is the group.
    groups = 5 * rng.standard_normal((20, 4))
    points = np.repeat(groups, 10, axis=0) + 0.01 * rng.standard_normal((200, 4))
    c = replace(made_candidates(200), embeddings=points.astype(np.float32))
    c = replace(c, scores=np.where(np.arange(200) < 40, 0.99, 0.9))  # four groups a little ahead in score
    chosen = np.searchsorted(c.rows, select(c, Strategy(), 20, labeled, 5, 2))
    assert bandwidth_beside(labeled, c) > 1000 * median_to_nearest(labeled)
    assert len(np.unique(chosen // 10)) == 20


def bandwidth_beside(labeled: np.ndarray, c: Candidates, crowd: int = 10) -> float:
    """The bandwidth with labels: of these, but never less than how the candidates crowd."""
    positions = np.unique(c.embeddings, axis=0, return_index=True)[1]
    if len(positions) <= crowd:
        return median_to_nearest(labeled)
    points = c.embeddings[positions].astype(float)
    sample = sorted(range(len(points)), key=lambda i: int(row_hash(c.rows[[positions[i]]], 5, 2)[0]))[:256]
    tenth = [np.sort(np.sqrt(((points - points[i]) ** 2).sum(axis=1)))[crowd] for i in sample]
    return max(median_to_nearest(labeled), float(np.median(tenth)))


@pytest.mark.parametrize("d", [2, 40])
def test_a_pick_of_the_default_covers_forty_candidates_at_most(d: int) -> None:
    c = made_candidates(250, seed=6, d=d)
    labeled = made_candidates(7, seed=7, d=d).embeddings / 10
    sigma = bandwidth_beside(labeled, c)
    sample = sorted(range(len(c)), key=lambda i: int(row_hash(c.rows[[i]], 5, 2)[0]))[:256]
    widths = []
    for i in sample:
        squared = ((c.embeddings[i].astype(float) - c.embeddings.astype(float)) ** 2).sum(axis=1)
        grid = sigma * np.geomspace(0.1, 1, 400)
        within = np.exp(-squared / grid[:, None] ** 2).sum(axis=1) <= 40
        widths.append(grid[within].max(initial=0.1 * sigma))
    problem = posed(c, Strategy(), labeled, 5, 2)
    assert problem.reach == pytest.approx(np.median(widths), rel=6e-3)
    assert (problem.reach < 0.9 * sigma) == (d == 40), "in few dimensions the tenth neighbour is near"
    assert problem.duplicate_distance == pytest.approx(DUPLICATE_DISTANCE * sigma)
    shuffled = c.take(np.random.default_rng(0).permutation(len(c)))
    assert posed(shuffled, Strategy(), labeled, 5, 2).reach == problem.reach
    picks = slow_facility_location(c, c.scores, 30, labeled, problem.reach, radius=problem.duplicate_distance)
    assert select(c, Strategy(), 30, labeled, 5, 2).tolist() == c.rows[picks].tolist()
    assert posed(c, Strategy.named("class_coverage"), labeled, 5, 2).reach == pytest.approx(
        bandwidth_beside(labeled, c, crowd=20)
    )


def test_near_duplicates_are_told_by_the_distance_at_which_records_differ() -> None:
    """They are where a pick reaches less far, too: a scan leaves out those of asked records by that distance."""
    c = made_candidates(250, seed=6, d=40)
    labeled = made_candidates(7, seed=7, d=40).embeddings
    sigma = bandwidth_beside(labeled, c)
    c.embeddings[:7] = labeled + np.float32(0.098 * sigma) * np.eye(7, 40, dtype=np.float32)
    problem = posed(c, Strategy(), labeled, 5, 2)
    assert problem.reach < 0.95 * sigma
    assert sorted(select(c, Strategy(), 250, labeled, 5, 2)) == sorted(c.rows[7:])


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_reach_does_not_depend_on_the_unit(size: float) -> None:
    c = made_candidates(300, seed=6, d=30)
    labeled = made_candidates(7, seed=7, d=30).embeddings
    scaled = replace(c, embeddings=c.embeddings * np.float32(size))
    reach = posed(scaled, Strategy(), labeled * np.float32(size), 5, 2).reach
    assert reach == pytest.approx(size * posed(c, Strategy(), labeled, 5, 2).reach, rel=1e-4)


def bandwidth_of_candidates(c: Candidates) -> float:
    distinct = np.unique(c.embeddings, axis=0)
    return 2 * median_to_nearest(distinct) if len(distinct) > 1 else 1.0


def median_to_nearest(points: np.ndarray) -> float:
    distances = np.sqrt(((points[:, None].astype(float) - points[None]) ** 2).sum(axis=2))
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def slow_flat_greedy(c: Candidates, k: int, labeled: np.ndarray, sigma: float) -> np.ndarray:
    K, covered = rbf(c.embeddings, c.embeddings, sigma), rbf(c.embeddings, labeled, sigma).max(axis=1)
    picks = []
    gains = np.maximum(K - covered[:, None], 0).T @ c.scores
    for _ in range(k):
        # Upper bounds by submodularity: re-evaluate the top until it stays on top.
        while True:
            best = int(gains.argmax())
            fresh = float(np.maximum(K[:, best] - covered, 0) @ c.scores)
            if fresh >= gains[best] - 1e-9:
                break
            gains[best] = fresh
        picks.append(best)
        covered = np.maximum(covered, K[:, best])
        gains[best] = -1
    return np.array(picks)


def rbf(a: np.ndarray, b: np.ndarray, sigma: float) -> np.ndarray:
    a, b = a.astype(float), b.astype(float)
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.exp(-np.maximum(squared, 0) / sigma**2)


def objective(c: Candidates, picks: np.ndarray, labeled: np.ndarray, sigma: float) -> float:
    covered = np.maximum(
        rbf(c.embeddings, labeled, sigma).max(axis=1), rbf(c.embeddings, c.embeddings[picks], sigma).max(axis=1)
    )
    return float(c.scores @ covered)


# -- cells ----------------------------------------------------------------------


def test_cells_are_the_nearest_centers_and_the_same_for_any_block() -> None:
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((3000, 5)) * [1, 10, 100, 1, 0] + [0, 5, 0, 0, 7]).astype(np.float32)
    X[17, 2] = np.nan
    codebook = Codebook.fit(X[:2000], 12, seed=3)
    assert codebook.scale[4] == 1.0  # a constant feature is not divided by zero
    valid = X[2000:]
    embedded = (valid - codebook.mean.astype(float)) / codebook.scale / np.sqrt(5) @ codebook.axes
    distances = ((embedded[:, None] - codebook.centers[None]) ** 2).sum(axis=2)
    first, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - first > 1e-4  # single precision of numbers below 100
    assert clear.sum() > 990
    np.testing.assert_array_equal(codebook.assign(valid)[clear], distances.argmin(axis=1)[clear])
    assert Codebook.fit(X[:2000], 12, seed=3).digest() == codebook.digest()
    assert Codebook.fit(X[:2000], 12, seed=4).digest() != codebook.digest()


def test_cells_of_wide_records_lie_along_the_axes_on_which_records_differ_most() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 40)) * 3 + rng.standard_normal((4000, 40)) + 7
    X = X.astype(np.float32)
    codebook = Codebook.fit(X[1000:3000], 20, seed=3)
    embedded = ((X - codebook.mean) / codebook.scale / np.sqrt(40)).astype(np.float64)
    assert codebook.axes.shape == (40, 16)
    np.testing.assert_allclose(codebook.axes.T @ codebook.axes, np.eye(16), atol=1e-5)
    spread = (embedded[1000:3000] @ codebook.axes).var(axis=0)
    expected = np.sort(np.linalg.eigvalsh(np.cov(embedded[1000:3000].T, bias=True)))[::-1][:16]
    np.testing.assert_allclose(spread, expected, rtol=1e-4)
    projected = embedded[3:] @ codebook.axes
    distances = ((projected[:, None] - codebook.centers[None]) ** 2).sum(axis=2)
    cells = codebook.assign(X[3:])
    chosen = distances[np.arange(len(cells)), cells]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-6)
    assert len(np.unique(cells)) == 20


@given(st.data())
def test_of_equally_near_centers_the_first_is_the_cell_in_any_block(data: st.DataObject) -> None:
    # Small integers: single precision is exact, so that ties are ties.
    small = st.integers(-4, 4)
    centers = data.draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(4)), elements=small))
    X = data.draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 300), st.just(4)), elements=small))
    X[data.draw(hnp.arrays(bool, X.shape))] = np.nan
    mean = data.draw(hnp.arrays(np.float32, 4, elements=small))
    codebook = Codebook(mean, np.full(4, 0.5, np.float32), np.eye(4, dtype=np.float32), centers)
    placed = np.where(np.isnan(X), 0, X - mean)
    expected = [min(range(len(centers)), key=lambda cell: ((record - centers[cell]) ** 2).sum()) for record in placed]
    np.testing.assert_array_equal(codebook.assign(X), expected)


def test_huge_values_are_embedded_as_finite_ones() -> None:
    X = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    X[7] = [3.4e38, -3.4e38, 1e30]
    X[:, 2] = np.float32(1e6) + np.float32(0.06) * (np.arange(500) % 2)  # constant but for rounding
    codebook = Codebook.fit(X, 5, seed=0)
    assert np.isfinite(codebook.embed(X)).all()
    assert np.isfinite(codebook.centers).all()
    assert codebook.scale[2] == 1.0


def test_few_distinct_records_make_few_cells() -> None:
    X = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    assert len(Codebook.fit(X, 20, seed=0).centers) == 3


# -- the explore share ----------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500)), min_size=1, max_size=20))
@settings(max_examples=80, deadline=None)
def test_fractions_of_explore_shares_are_carried_forward(batches: list[tuple[float, int]]) -> None:
    due, explored = 0.0, 0
    for share, k in batches:
        count = explore_count(share, due, explored, k)
        assert 0 <= count <= k
        due, explored = due + share * k, explored + count
        assert explored == int(np.floor(due + 1e-9))


def test_uniform_rows_are_uniform_never_excluded_and_complete() -> None:
    excluded = np.array([0, 3, 19])
    everything = list(uniform_rows(20, excluded, seed=4, round=2))
    assert sorted(everything) == sorted(set(range(20)) - {0, 3, 19})
    firsts = [next(uniform_rows(20, excluded, seed, 1)) for seed in range(3400)]
    counts = np.bincount(firsts, minlength=20)
    assert counts[excluded].sum() == 0
    expected = 3400 / 17
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 42  # chi-square, 16 degrees: p = 0.0004


def test_uniform_rows_stay_lazy_on_ten_billion_rows() -> None:
    rows = list(islice(uniform_rows(10**10, np.empty(0, np.int64), 1, 1), 500))
    assert len(set(rows)) == 500
    assert max(rows) > 9 * 10**9
    assert min(rows) < 10**9


@given(st.integers(0, 40), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_interleaving_keeps_all_and_the_order_of_each(n_chosen: int, n_drawn: int) -> None:
    chosen, drawn = list(range(100, 100 + n_chosen)), list(range(500, 500 + n_drawn))
    mixed = interleaved(chosen, drawn)
    assert [row for row in mixed if row < 500] == chosen
    assert [row for row in mixed if row >= 500] == drawn
    if n_chosen >= 10 and n_drawn >= 2:
        places = [mixed.index(row) for row in drawn]
        assert np.diff(places).max() <= 2 * len(mixed) / n_drawn
