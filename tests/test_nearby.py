"""Of very many records asked before, those near candidates: the same choice as from all, a block at a time."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dal
from benchmarks import growing
from dal.loop import batch as composing
from dal.selection.batch import Known, choose, select
from dal.selection.candidates import Candidates, Capacity, shortlist
from dal.selection.codebook import Codebook
from dal.selection.distances import median_to_nearest
from dal.selection.familiar import Familiar
from dal.selection.nearby import median_apart, nearby
from dal.selection.once import Once, content_hash
from dal.selection.order import row_hash
from dal.selection.problem import Problem
from dal.selection.records import MOST_ASKED, Mapped, at_once, joined
from dal.selection.search import NEAREST
from dal.selection.strategy import STRATEGIES, Strategy

pytestmark = pytest.mark.exact


class Unread:
    """An array of which a part is read when it is indexed; counts the records that are read at once."""

    def __init__(self, X: np.ndarray) -> None:
        self.X, self.shape, self.most, self.read = X, X.shape, 0, 0

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, positions: slice | np.ndarray, /) -> np.ndarray:
        found = self.X[positions].copy()
        self.most, self.read = max(self.most, len(found)), self.read + len(found)
        return found


def finite(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sound = np.isfinite(X).all(axis=1)
    return X[sound], sound


def problem_of(points: np.ndarray, proba: np.ndarray, classes: np.ndarray | None = None) -> Problem:
    nothing, n = points[:0], len(points)
    rows, zeros = np.arange(700, 700 + n), np.zeros(n, np.int64)
    weights = np.ones(n, np.float32)
    return Problem(rows, weights, zeros, points, proba, nothing, True, 1, 2, apart=0.7, crowd=n, classes=classes)


@pytest.mark.parametrize(
    ("n", "d", "m"),
    [(1, 3, 1), (1023, 2048, 5), (1024, 2048, 5), (1025, 2048, 5), (4096, 3, 513), (4097, 3, 512), (9001, 3, 511)],
)
def test_nearby_are_the_nearest_by_brute_force(n: int, d: int, m: int) -> None:
    rng = np.random.default_rng(n)
    points, asked = (rng.standard_normal((size, d)).astype(np.float32) for size in (m, n))
    asked[n // 3, 0] = np.nan if n > 1 else 0.0
    asked[n - 1] = points[0]  # the very last one is the nearest of the first candidate
    source = Unread(asked)
    found = nearby(problem_of(points, np.full((m, 2), 0.5, np.float32)), source, finite)
    assert len(found) <= m
    assert source.most <= at_once(source)
    for point in points[:: max(1, m // 40)].astype(np.float64):
        apart = np.linalg.norm(asked.astype(np.float64) - point, axis=1)
        assert apart[found].min() <= np.nanmin(apart) + 2e-3
    assert n - 1 in found


@pytest.mark.parametrize("few", [False, True])
def test_where_classes_count_those_that_cover_most_are_among_them(few: bool) -> None:
    rng = np.random.default_rng(3)
    n, m, classes = 5000, 60, 7
    points, asked = (rng.standard_normal((size, 4)).astype(np.float32) for size in (m, n))
    proba = rng.dirichlet(np.full(classes, 0.3), m).astype(np.float32)
    codes = rng.integers(-1, classes, n)
    full, kept = proba, None
    if few:  # each candidate has the largest three alone
        kept = np.sort(np.argsort(-proba, axis=1)[:, :3], axis=1)
        proba = np.take_along_axis(proba, kept, axis=1)
        full = np.zeros_like(full)
        np.put_along_axis(full, kept, proba, axis=1)
    problem = problem_of(points, proba, kept)
    found = nearby(problem, Unread(asked), finite, codes)
    assert len(found) <= 2 * m
    squared = ((points[:, None].astype(float) - asked[None]) ** 2).sum(axis=2)
    share = np.where(codes >= 0, 0.5 + 0.5 * np.sqrt(full[:, np.maximum(codes, 0)]), 1.0)
    covered = np.exp(-squared / problem.bandwidth**2) * share
    np.testing.assert_allclose(covered[:, found].max(axis=1), covered.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(squared[:, found].min(axis=1), squared.min(axis=1), atol=1e-5)
    assert (covered.argmax(axis=1) != squared.argmin(axis=1)).any(), "classes make a difference here"


def given_to(strategy: Strategy, n: int, seed: int = 0, d: int = 6) -> dict[str, Any]:
    """Candidates on scattered rows, and asked records among which are copies, near-copies, and some without a place."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(np.arange(10**6, 10**6 + 50 * n), n, replace=False))
    points = rng.standard_normal((n, d)).astype(np.float32)
    proba = rng.dirichlet(np.ones(3), n).astype(np.float32)
    cells, scores = rng.integers(0, 9, n), rng.integers(1, 400, n) / 400
    asked = rng.standard_normal((1500, d)).astype(np.float32)
    asked[100:140], asked[140:180] = points[:40], points[40:80] + np.float32(1e-3)
    asked[200], asked[201], asked[202:300] = np.nan, np.inf, asked[300:398]
    return {
        "candidates": Candidates(rows, scores, cells, proba.argmax(axis=1), points, proba),
        "strategy": strategy,
        "k": 60,
        "capacity": Capacity(n - 50, 0, 0),
        "codebook": Codebook.fit(points, 9, 0),
        "asked": asked,
        "asked_codes": rng.integers(-1, 3, len(asked)),
        "excluded": np.append(rows[::17], np.arange(30)),
        "random_state": 5,
        "round": 2,
    }


NEAR = [name for name in STRATEGIES if Strategy.named(name).traits.nearest_asked]


@pytest.mark.parametrize("name", [*NEAR, "of a search"])
def test_the_choice_is_that_from_all_asked_records(name: str) -> None:
    strategy = NEAREST if name == "of a search" else Strategy.named(name)
    assert strategy.traits.nearest_asked
    given = given_to(strategy, 900)
    source = Unread(given["asked"])
    expected = choose(**given, most_asked=10**6)
    assert choose(**given | {"asked": source}, most_asked=1499).tolist() == expected.tolist()
    assert len(expected) == 60
    others = {"asked": given["asked"][300:], "asked_codes": given["asked_codes"][300:]}
    unasked = choose(**given | others, most_asked=10**6)
    assert unasked.tolist() != expected.tolist(), "the asked records make a difference"


@pytest.mark.parametrize("k", [0, 5])
def test_nothing_is_read_where_nothing_can_be_chosen(k: int) -> None:
    given = given_to(Strategy(), 100)
    source, rows = Unread(given["asked"]), given["candidates"].rows
    excluded = rows if k else rows[:9]
    options = {"k": k, "asked": source, "excluded": excluded, "most_asked": 10}
    assert choose(**given | options).tolist() == []
    assert not source.read


@pytest.mark.parametrize(("n_asked", "all_at_once"), [(1490, True), (1491, False), (None, False)])
def test_records_that_are_chosen_for_a_batch_do_not_change_how_others_are_looked_at(
    n_asked: int | None, all_at_once: bool
) -> None:
    given = given_to(Strategy(), 100) | {"k": 5}
    source = Unread(given["asked"])
    choose(**given | {"asked": source}, n_asked=n_asked, most_asked=1490)
    assert (source.read == 1500) == all_at_once


@pytest.mark.parametrize(
    ("name", "offset"),
    [("default", 100), *((name, far) for name in ("k_center", "of a search") for far in (0, 100, 1000))],
)
def test_far_from_all_others_near_duplicates_are_known_as_well(name: str, offset: float) -> None:
    strategy = NEAREST if name == "of a search" else Strategy.named(name)
    given = given_to(strategy, 600, d=3)
    rng, c, asked = np.random.default_rng(4), given["candidates"], given["asked"]
    points = c.embeddings.copy()
    points[::2] += np.float32(offset)
    asked[::2] += np.float32(offset)
    asked[600:1140] = (points + rng.normal(0, 1e-3, points.shape))[60:]
    asked[100:180] = asked[300:380]
    given |= {"candidates": replace(c, embeddings=points), "capacity": Capacity(600, 0, 0), "k": 200}
    expected = choose(**given, most_asked=10**6)
    found = choose(**given | {"asked": Unread(asked)}, most_asked=10)
    # Kernels and distances of the selectors themselves are rounded so far off, which changes the order.
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert 20 < len(found) <= 60, "the others are near-duplicates of asked ones"


def test_the_bandwidth_comes_from_distinct_records_that_have_a_place() -> None:
    rng = np.random.default_rng(8)
    kinds = rng.standard_normal((3000, 4)).astype(np.float32)
    asked = kinds[rng.integers(0, len(kinds), 30_000)]
    asked[rng.random(len(asked)) < 0.5] = np.nan
    seen = np.unique(finite(asked)[0], axis=0)
    everything = median_to_nearest(seen, np.arange(len(seen)), 3, 4)
    source = Unread(asked)
    found = median_apart(source, finite, 3, 4)
    assert found == pytest.approx(everything, rel=0.1)
    assert source.most <= 2000
    assert source.read < 12_000, "no more than it takes"
    assert median_apart(Unread(np.repeat(kinds[:1], 5000, axis=0)), finite, 3, 4) is None
    assert median_apart(Unread(np.full((50, 4), np.nan, np.float32)), finite, 3, 4) is None
    late = np.repeat(kinds[:1], 5000, axis=0)
    late[np.argsort(row_hash(np.arange(5000), 3, 4))[-1]] = kinds[1]
    assert median_apart(Unread(late), finite, 3, 4) == pytest.approx(float(np.linalg.norm(kinds[0] - kinds[1])))


def test_where_all_asked_records_are_copies_the_bandwidth_is_that_of_candidates() -> None:
    given = given_to(Strategy(), 300)
    given["asked"] = np.repeat(given["asked"][:1], 1500, axis=0)
    expected = choose(**given, most_asked=10**6)
    assert choose(**given | {"asked": Unread(given["asked"])}, most_asked=10).tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "class_coverage"])
def test_the_choice_is_that_from_all_where_there_are_leaves(name: str) -> None:
    given = given_to(Strategy.named(name), 5000, d=12)
    expected = choose(**given, most_asked=10**6)
    assert choose(**given | {"asked": Unread(given["asked"])}, most_asked=10).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["bait", "typiclust", "coverage"])
def test_selectors_that_look_at_all_are_given_all(name: str) -> None:
    strategy = Strategy.named(name)
    given = given_to(strategy, 300) | {"asked_proba": np.full((1500, 3), 1 / 3, np.float32)}
    expected = choose(**given, most_asked=10**6)
    assert choose(**given | {"asked": Unread(given["asked"])}, most_asked=10).tolist() == expected.tolist()


def test_in_the_space_of_the_learner_as_well() -> None:
    given = given_to(Strategy(), 900)
    turn = np.random.default_rng(9).standard_normal((6, 4)).astype(np.float32)
    c = given["candidates"]
    given["candidates"] = replace(c, inner=c.embeddings @ turn)
    with np.errstate(invalid="ignore"):
        expected = choose(**given, asked_inner=given["asked"] @ turn, most_asked=10**6)
        through = Mapped(Unread(given["asked"]), lambda X: X @ turn, 4)
        found = choose(**given | {"asked": Unread(given["asked"])}, asked_inner=through, most_asked=10)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("held", [True, False])
def test_a_models_own_embeddings_of_asked_records_are_computed_once_where_they_are_few(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = given_to(Strategy(), 100)
    c, source = given["candidates"], Unread(given["asked"])
    candidates = replace(c, inner=c.embeddings[:, :4])
    nothing: Any = None
    model: Any = SimpleNamespace(predict_embedded=lambda X: (None, 2 * X[:, :4]))
    composer = composing.Composer(nothing, nothing, nothing, model, None, missing=False, directions=False)
    monkeypatch.setattr(composing, "_HELD_NUMBERS", 6000 if held else 5999)
    inner = composer._inner(source, candidates)
    assert inner is not None
    for _ in range(2):
        found = inner[90:210]
        np.testing.assert_array_equal(found[:110], 2 * given["asked"][90:200, :4])
        assert np.isnan(found[110:112]).all()
    assert source.read == (1500 if held else 240)
    assert composer._inner(source, candidates.take(np.arange(0))) is None


def test_chosen_records_are_joined_to_unread_ones() -> None:
    given = given_to(Strategy(), 100)
    X, c = given["asked"], given["candidates"]
    known = Known(np.arange(len(X)), Unread(X), None, given["asked_codes"], None, len(X)).joined(c)
    whole = np.concatenate([X, c.embeddings])
    assert len(known.X) == len(whole) == len(known.rows)
    assert known.X.shape == whole.shape
    mixed = np.array([1599, 3, 1500, 1499, 3, 1501])
    for part in (slice(None), slice(1490, 1510), slice(-9, None, 2), mixed, np.arange(1600) % 7 == 0):
        np.testing.assert_array_equal(known.X[part], whole[part])
    assert isinstance(joined(X, c.embeddings), np.ndarray)


def test_what_a_scan_leaves_out_is_the_same_where_asked_records_are_unread() -> None:
    X = np.random.default_rng(4).standard_normal((MOST_ASKED + 500, 2)).astype(np.float32)
    X[7] = np.nan
    codebook = Codebook.fit(X, 0, 0)
    assert Once.after(Unread(X)).known.tolist() == np.unique(content_hash(X)).tolist()
    options: dict[str, Any] = {"directions": False, "seed": 3, "round": 4, "most_numbers": 100}
    found, unread = (Familiar.to(each, codebook, **options) for each in (X, Unread(X)))
    assert found is not None
    assert unread is not None
    assert found.digest() == unread.digest()
    assert len(found.near.points) == 50
    few, all_of_them = Unread(X[:MOST_ASKED]), np.unique(codebook.embed(X[:MOST_ASKED]), axis=0)
    kept = Familiar.to(few, codebook, **options)
    assert kept is not None
    least = np.sort(np.argsort(row_hash(np.arange(len(all_of_them)), 3, 4))[:50])
    np.testing.assert_array_equal(kept.near.points, all_of_them[least])


class Drawn:
    """A million records that are drawn when they are read: in memory they would take 256 MB."""

    shape = (1_000_000, 64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: slice | np.ndarray, /) -> np.ndarray:
        rows = np.arange(len(self))[positions] if isinstance(positions, slice) else positions
        hashes = row_hash(rows.astype(np.int64), 1, 1)
        bits = hashes[:, None] >> np.arange(64, dtype=np.uint64)[None]
        return (bits & np.uint64(1)).astype(np.float32)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_features_of_asked_records() -> None:
    c = given_to(Strategy(), 300, d=64)["candidates"]
    codebook = Codebook.fit(c.embeddings, 0, 0)
    options: dict[str, Any] = {"capacity": Capacity(300, 0, 0), "codebook": codebook, "excluded": np.arange(10**6)}
    tracemalloc.start()
    rows = choose(c, Strategy(), 20, asked=Drawn(), random_state=1, round=2, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 20
    assert peak < 100e6


@pytest.mark.slow
def test_a_campaign_of_many_labels_chooses_as_from_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place: Path = growing.grown(tmp_path, MOST_ASKED + 300, 6, "logistic")
    real, seen = composing.choose_balanced, []

    def compared(
        candidates: Candidates,
        strategy: Strategy,
        k: int,
        quotas: Sequence[int],
        known: Known,
        **how: Any,  # noqa: ANN401
    ) -> np.ndarray:
        rows: np.ndarray = real(candidates, strategy, k, quotas, known, **how)
        seed, round, embed = how["random_state"], how["round"], how["codebook"].embed
        short = shortlist(candidates, how["capacity"], seed, round)
        placed, X = replace(short, embeddings=embed(short.embeddings)), known.X[:]
        apart = median_apart(X, lambda part: (embed(part), np.ones(len(part), bool)), seed, round)
        expected = select(placed, strategy, k, embed(X), seed, round, apart=apart)
        seen.append((isinstance(known.X, np.ndarray), rows.tolist() == expected.tolist(), len(known.X)))
        return rows

    monkeypatch.setattr(composing, "choose_balanced", compared)
    batch = dal.Campaign.open(place).next_batch()
    assert len(batch.rows) == growing.BATCH
    assert seen == [(False, True, MOST_ASKED + 300)]
