"""The scan against a full sort of the pool, on real stores and with real worker processes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler

from dal.errors import ChunkError, ClusterError, LearnerError, SettingsError
from dal.learners.learner import Learner
from dal.learners.models import Model, dropout_masks
from dal.pool import Pool
from dal.scan import Cells, Journal, Limits, Progress, Scan, driver, hosts, plan, sample_codebook, scan
from dal.scan import cluster as cluster_engine
from dal.scan import run as run_module
from dal.scan.merge import Best
from dal.scan.run import Run
from dal.scan.worker.kernel import Order, SpanResult, Tally, score_block
from dal.scan.worker.record import decode, encode
from dal.scan.worker.spans import Job, packed
from dal.selection.candidates import Candidates, Capacity
from dal.selection.codebook import Codebook
from dal.selection.order import key_order, power_keys, uniform
from dal.selection.strategy import Strategy
from tests import toy_learners
from tests.clusters import own_cluster
from tests.faults import Interrupted, interrupted_after

CLASSES = ("a", "b", "c", "d")
N, D = 20_011, 12
BAD_ROWS = [5, 8_191, 8_192, 20_010]
TAKE_MISSING = ("forest", "hgb", "imputing")
FIELDS = ("rows", "scores", "cells", "predicted", "embeddings", "proba", "inner")


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((4, D))
    X = (means[rng.integers(0, 4, N)] + rng.standard_normal((N, D))).astype(np.float32)
    X[BAD_ROWS[0]] = np.nan
    X[BAD_ROWS[1], 3] = np.inf
    X[BAD_ROWS[2], 0] = -np.inf
    X[BAD_ROWS[3], D - 1] = np.nan
    return X


@pytest.fixture(scope="module")
def pools(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pool]:
    """The same records in four layouts: built by dal, chunks that fit no tile, shards, compressed."""
    folder = tmp_path_factory.mktemp("pools")
    made = {"built": Pool.build(records, folder / "built.zarr")}
    layouts = {
        "odd": {"chunks": (777, D)},
        "sharded": {"chunks": (512, D), "shards": (4096, D), "compressors": None},
        "split": {"chunks": (1024, 5)},
    }
    for name, layout in layouts.items():
        array = zarr.create_array(folder / f"{name}.zarr", shape=records.shape, dtype="float32", **layout)
        array[:] = records
        made[name] = Pool.open(folder / f"{name}.zarr")
    return made


@pytest.fixture(scope="module")
def codebook_of(pools: dict[str, Pool]) -> Callable[[int], Codebook]:
    """A function that makes the codebook of a number of cells, once."""
    return cache(lambda cells: sample_codebook(pools["built"], cells, 3))


@pytest.fixture(scope="module")
def models(records: np.ndarray) -> dict[str, Model]:
    rng = np.random.default_rng(1)
    X, y = records[100:400], rng.integers(0, 4, 300)
    names = {
        "logistic": "logistic",
        "forest": "forest",
        "svc": "sklearn.svm:LinearSVC",
        "mlp": "mlp",
        "head": "head",
        "plain": "sklearn.linear_model:LogisticRegression",
        "hgb": "hgb",
    }
    made = {key: Learner.named(name, CLASSES, random_state=0).fit(X, y) for key, name in names.items()}
    imputing = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    made["imputing"] = Learner(imputing, CLASSES).fit(X, y)
    made["embedding"] = Learner(toy_learners.Embedding(), CLASSES, trusted=toy_learners.NAMES).fit(X, y)
    return {**made, "bootstraps": Learner.named(names["plain"], CLASSES).fit(X, y, committee=True)}


def invalid_of(X: np.ndarray, model: Model | None) -> np.ndarray:
    missing = np.isnan(X).any(axis=1) & (model is None or not model.takes_missing)
    return np.isinf(X).any(axis=1) | missing


def kernel_scores(
    X: np.ndarray, model: Model | None, name: str, tile: int, bad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and predicted classes as the scan computes them, to the last bit; see `plain_scores`."""
    score = np.empty(len(X))
    predicted = np.full(len(X), -1)
    if model is None:
        score[:] = uniform(np.arange(len(X)), 11, 4)
        return score, predicted
    for start, block in blocks(X, tile, bad):
        scored, count = score_block(name, model, block), len(X[start : start + tile])
        score[start : start + tile] = scored.score[:count]
        predicted[start : start + tile] = model.seen[scored.predicted[:count]]
    return score, predicted


def blocks(X: np.ndarray, tile: int, bad: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cut records into whole tiles, with zeros for bad ones and behind the last."""
    for start in range(0, len(X), tile):
        block, part = np.zeros((tile, X.shape[1]), np.float32), X[start : start + tile]
        block[: len(part)] = np.where(bad[start : start + tile, None], 0, part)
        yield start, block


def plain_scores(X: np.ndarray, model: Model, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores by their definitions, from what scikit-learn's own estimators say of the whole pool in double precision.

    Also the predicted classes, and how far each record is from a tie of any vote that was taken.
    """
    X, estimator = X.astype(np.float64), model.estimator
    if hasattr(estimator, "predict_proba"):
        p = estimator.predict_proba(X)
    else:
        p = np.exp(estimator.decision_function(X))
        p /= p.sum(axis=1, keepdims=True)
    n_classes = p.shape[1]
    if name in ("vote_entropy", "bald"):
        members = np.stack([each.predict_proba(X) for each in model.bootstraps or estimator.estimators_])
        p = members.mean(axis=0)
        votes = (members.argmax(axis=2)[..., None] == np.arange(n_classes)).mean(axis=0)
        score = (
            plain_entropy(votes) if name == "vote_entropy" else plain_entropy(p) - plain_entropy(members).mean(axis=0)
        )
        score /= np.log(n_classes)
        margins = np.diff(np.sort(members, axis=2)[..., -2:], axis=2)[..., 0]
        apart = margins.min(axis=0) if name == "vote_entropy" else np.full(len(X), 1.0)
    first, second = np.sort(p, axis=1)[:, :-3:-1].T
    if name == "expected_gradient_length":
        assert type(estimator) is LogisticRegression
        gradients = [np.linalg.norm(p - np.eye(n_classes)[c], axis=1) for c in range(n_classes)]
        length = (p * np.stack(gradients, axis=1)).sum(axis=1) * np.linalg.norm(np.c_[X, np.ones(len(X))], axis=1)
        score = length / (1 + length)
    elif name == "dropout":
        passes = np.stack([estimator.predict_proba(X * mask.astype(float)) for mask in dropout_masks(X.shape[1])])
        changed = (passes.argmax(axis=2) != p.argmax(axis=1)).mean(axis=0)
        score = np.where(changed > 0.5, 1, (3 * changed + 1 - (first - second)) / 4)
        apart = np.diff(np.sort(passes, axis=2)[..., -2:], axis=2)[..., 0].min(axis=0)
    elif name not in ("vote_entropy", "bald"):
        score = {
            "margin": 1 - (first - second),
            "ratio": second / first,
            "least_confident": (1 - first) * n_classes / (n_classes - 1),
            "entropy": plain_entropy(p) / np.log(n_classes),
        }[name]
    if name not in ("vote_entropy", "dropout"):
        apart = np.full(len(X), 1.0)
    return score, p.argmax(axis=1), np.minimum(apart, first - second)


def plain_entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


NEAR = 5e-6
"""Decision values are sums of at most a hundred products below 100, in single precision: 100 x 2^-24, and somewhat more
where an activation or a logarithm follows."""


def assert_scores_are_right(found: tuple[np.ndarray, np.ndarray], X: np.ndarray, model: Model, name: str) -> None:
    sound = np.isfinite(X).all(axis=1)
    score, predicted, apart = plain_scores(np.where(sound[:, None], X, 0), model, name)
    clear = sound & (apart > NEAR)
    assert clear.mean() > 0.9
    np.testing.assert_allclose(found[0][clear], score[clear], rtol=0, atol=NEAR)
    np.testing.assert_array_equal(found[1][clear], predicted[clear])


def full_sort(
    X: np.ndarray,
    model: Model | None,
    strategy: Strategy,
    k: int,
    exclude: list[int],
    codebook: Codebook,
    tile: int,
    bad: np.ndarray,
) -> Candidates:
    """Score the whole pool in memory, tile after tile, sort it by key, and cut."""
    score, predicted = kernel_scores(X, model, strategy.score, tile, bad)
    clean = np.where(np.isnan(X), codebook.mean, np.where(np.isfinite(X), X, 0)).astype(np.float32)
    asked = set(exclude) | set(np.flatnonzero(bad).tolist())
    capacity = strategy.capacity(k, len(X), len(codebook.centers))
    ranked = score if capacity.beta is None else power_keys(score, np.arange(len(X)), capacity.beta, 11, 4)
    order = [i for i in key_order(ranked, np.arange(len(X)), 11, 4).tolist() if i not in asked]
    keep = set(order[: capacity.total])
    cells = np.full(len(X), -1)
    if capacity.cells:
        cells = codebook.assign(clean).astype(np.int64)
        order = [i for i in key_order(score, np.arange(len(X)), 11, 4).tolist() if i not in asked]
        for cell in range(capacity.cells):
            keep |= set([i for i in order if cells[i] == cell][: capacity.per_cell])
    rows = np.array(sorted(keep), dtype=np.int64)
    looks = strategy.selector not in ("top", "power")
    embeddings = X[rows] if looks else np.empty((len(rows), 0), np.float32)
    proba = model.predict_proba(embeddings).astype(np.float32) if strategy.traits.proba and model else None
    inner = None
    if model is not None and model.embedding_width and looks:
        seen = [model.predict_embedded(block) for _, block in blocks(X, tile, bad)]
        inner = np.concatenate([each for _, each in seen])[rows]
        if strategy.traits.proba:
            proba = np.concatenate([each for each, _ in seen])[rows].astype(np.float32)
    return Candidates(rows, score[rows], cells[rows], predicted[rows], embeddings, proba, inner)


def run(pool: Pool, model: Model | None, strategy: Strategy, codebook: Codebook, **options: object) -> Scan:
    exclude = options.pop("exclude", [7, 4095, 4096, 19_999])
    return scan(pool, model, strategy, 40, exclude, random_state=11, round=4, codebook=codebook, **options)


def assert_same(a: Candidates, b: Candidates) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def summary_of(result: Scan) -> dict:
    tally = result.summary.tally
    return {
        "rows": tally.rows,
        "invalid": tally.invalid,
        "invalid_rows": tally.invalid_rows.tolist(),
        "histogram": (tally.histogram.counts.tolist(), tally.histogram.edges),
        "predicted": tally.predicted.tolist(),
        "confidence": tally.confidence,
        "mass": tally.mass,
    }


CASES = [
    ("logistic", Strategy()),
    ("logistic", Strategy(score="entropy")),
    ("plain", Strategy()),
    ("plain", Strategy(score="ratio")),
    ("forest", Strategy(score="margin")),
    ("mlp", Strategy()),
    ("head", Strategy()),
    ("svc", Strategy.named("least_confident")),
    ("logistic", Strategy.named("power")),
    ("plain", Strategy.named("badge")),
    ("plain", Strategy.named("class_coverage")),
    ("plain", Strategy.named("bait")),
    ("head", Strategy.named("dropquery")),
    ("forest", Strategy.named("bald")),
    ("bootstraps", Strategy(score="vote_entropy")),
    ("plain", Strategy.named("expected_gradient_length")),
    ("hgb", Strategy()),
    ("imputing", Strategy(score="entropy")),
    ("embedding", Strategy()),
    ("embedding", Strategy.named("badge")),
    ("embedding", Strategy.named("class_coverage")),
    (None, Strategy().cold()),
    (None, Strategy.named("random")),
]


@pytest.mark.exact
@pytest.mark.parametrize(("learner", "strategy"), CASES)
def test_every_layout_gives_what_a_full_sort_gives(
    learner: str | None,
    strategy: Strategy,
    pools: dict[str, Pool],
    models: dict[str, Model],
    records: np.ndarray,
    codebook_of: Callable[[int], Codebook],
) -> None:
    model = models[learner] if learner else None
    codebook = codebook_of(strategy.capacity(40, N).cells)
    tile = plan.tile_rows(D, model.tile_rows if model else None)
    bad = invalid_of(records, model)
    expected = full_sort(records, model, strategy, 40, [7, 4095, 4096, 19_999], codebook, tile, bad)
    first = run(pools["built"], model, strategy, codebook)
    assert_same(first.candidates, expected)
    invalid = BAD_ROWS[1:3] if learner in TAKE_MISSING else BAD_ROWS
    assert first.summary.tally.invalid_rows.tolist() == invalid
    assert first.summary.tally.rows == N
    assert first.summary.tally.histogram.counts.sum() == N - len(invalid)
    for name in ("odd", "sharded", "split"):
        other = run(pools[name], model, strategy, codebook)
        assert_same(other.candidates, expected)
        assert summary_of(other) == summary_of(first)


@pytest.mark.exact
@pytest.mark.parametrize(("learner", "name"), [(key, s.score) for key, s in CASES if key])
def test_what_is_sorted_are_the_scores_of_the_definitions(
    learner: str, name: str, models: dict[str, Model], records: np.ndarray
) -> None:
    model = models[learner]
    bad = invalid_of(records, model)
    found = kernel_scores(records, model, name, plan.tile_rows(D, model.tile_rows), bad)
    assert_scores_are_right(found, records, model, name)


def test_the_mass_of_a_draw_is_that_of_the_rows_that_may_be_asked(
    records: np.ndarray, pools: dict[str, Pool], models: dict[str, Model]
) -> None:
    asked = [7, 4095, 4096, 19_999]
    found = run(pools["odd"], models["plain"], Strategy.named("power"), Codebook.fit(records[:100], 2, 0))
    left = np.delete(records, asked + BAD_ROWS, axis=0)
    p = np.sort(models["plain"].predict_proba(left).astype(float), axis=1)
    masses = (1 - (p[:, -1] - p[:, -2])) ** 4.0
    assert found.summary.tally.power_mass == pytest.approx(masses.sum(), rel=1e-5)
    assert len(found.candidates) == 40


@pytest.mark.exact
def test_small_tiles_and_spans_in_any_order_change_nothing(pools: dict[str, Pool], models: dict[str, Model]) -> None:
    strategy = Strategy()
    codebook = sample_codebook(pools["built"], strategy.capacity(40, N).cells, 3)
    limits = Limits(tile_rows=256, threads=1)  # of several, spans follow the pace of a machine that may be busy
    whole = run(pools["odd"], models["logistic"], strategy, codebook, limits=limits)
    spans = run(pools["odd"], models["logistic"], strategy, codebook, limits=Limits(tile_rows=256, span_bytes=1))
    assert spans.summary.spans > 15 > whole.summary.spans
    assert_same(spans.candidates, whole.candidates)
    assert summary_of(spans) == summary_of(whole)


@pytest.mark.parametrize(
    ("learner", "strategy"),
    [case if at % 3 == 0 else pytest.param(*case, marks=pytest.mark.slow) for at, case in enumerate(CASES)],
)
def test_two_workers_give_the_same_as_one_process(
    learner: str | None,
    strategy: Strategy,
    pools: dict[str, Pool],
    models: dict[str, Model],
    cluster: Client,
    codebook_of: Callable[[int], Codebook],
) -> None:
    model = models[learner] if learner else None
    codebook = codebook_of(strategy.capacity(40, N).cells)
    alone = run(pools["built"], model, strategy, codebook)
    seen: list[Progress] = []
    for name in ("built", "odd"):
        together = run(pools[name], model, strategy, codebook, client=cluster, progress=seen.append)
        assert_same(together.candidates, alone.candidates)
        assert summary_of(together) == summary_of(alone)
    assert seen[-1].rows_done == seen[-1].rows_total == N


def test_embeddings_come_from_the_pass_that_scores_and_are_counted_in_a_workers_memory(
    pools: dict[str, Pool], models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, model, strategy = pools["built"], models["embedding"], Strategy.named("badge")
    codebook = sample_codebook(pool, strategy.capacity(40, N).cells, 3)
    monkeypatch.setattr(toy_learners.Embedding, "passes", 0)
    found = run(pool, model, strategy, codebook, limits=Limits(tile_rows=1024)).candidates
    assert toy_learners.Embedding.passes == -(-N // 1024)
    assert found.inner is not None
    assert found.proba is not None
    plain = run(pool, model, Strategy.named("margin"), codebook).candidates
    assert plain.inner is None, "a selector that does not look brings none"
    order = Order("margin", strategy.capacity(40, N), 1024, 0, 0, codebook, carry=True)
    narrow, wide = (hosts.worker_bytes(pool, replace(order, inner=each), 4, model) for each in (0, 50))
    assert wide.holding - narrow.holding == 3 * 4 * 50 * order.capacity.rows
    assert wide.scoring - narrow.scoring == 2 * 4 * 50 * 1024


def test_more_candidates_than_the_coordinator_has_memory_for_are_refused(
    pools: dict[str, Pool], models: dict[str, Model]
) -> None:
    pool, model, strategy = pools["built"], models["embedding"], Strategy.named("badge")
    codebook = sample_codebook(pool, strategy.capacity(40, N).cells, 3)
    order = driver._order(pool, model, strategy, 40, 0, 0, codebook, Limits())
    need = driver.memory_here(pool, order, strategy, model)
    assert need < driver.memory_here(pool, replace(order, inner=order.inner + 50), strategy, model)
    with pytest.raises(SettingsError, match=rf"{order.capacity.rows:,} candidates.*shortlist.*than {order.inner} "):
        run(pool, model, strategy, codebook, limits=Limits(coordinator_bytes=need - 1))
    found = run(pool, model, strategy, codebook, limits=Limits(coordinator_bytes=need)).candidates
    assert found.nbytes <= need <= 20 * found.nbytes
    wide = replace(order, capacity=Capacity(10**9, 0, 0))
    assert driver.memory_here(pool, wide, strategy, model) < 2**28, "no more than all records"


def test_an_embedding_of_another_width_than_it_says_is_refused_before_a_campaign() -> None:
    learner = Learner(toy_learners.TooNarrow(), CLASSES, trusted=toy_learners.NAMES)
    with pytest.raises(LearnerError, match="predict_embedded"):
        learner.check(D)


NETWORKS = [
    LogisticRegression(),
    *(MLPClassifier((4, 3), activation=name, max_iter=30) for name in ("identity", "logistic", "tanh", "relu")),
]


@pytest.mark.parametrize("name", ["margin", "ratio", "entropy", "least_confident"])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("estimator", NETWORKS, ids=str)
def test_a_network_asks_no_record_with_a_value_that_is_not_finite(
    estimator: BaseEstimator, name: str, n_classes: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 5)).astype(np.float32)
    model = Learner(estimator, CLASSES[:n_classes]).fit(X[:200], rng.integers(0, n_classes, 200))
    assert model.network is not None
    bad = rng.choice(3000, 90, replace=False)
    for value, rows in zip([np.nan, np.inf, -np.inf], np.split(bad, 3), strict=True):
        X[rows, rng.integers(0, 5, 30)] = value
    found = scan(Pool.build(X, tmp_path / "pool.zarr"), model, Strategy.named(name), 3000)
    assert found.summary.tally.invalid_rows.tolist() == sorted(bad.tolist())
    assert sorted(found.candidates.rows.tolist()) == np.setdiff1d(np.arange(3000), bad).tolist()


@pytest.mark.parametrize("learner", [*TAKE_MISSING, "logistic", None])
def test_records_with_missing_features_are_asked_where_the_learner_takes_them(
    learner: str | None, models: dict[str, Model], records: np.ndarray, cluster: Client, tmp_path: Path
) -> None:
    model, strategy = (models[learner], Strategy()) if learner else (None, Strategy().cold())
    X = records[:9000].copy()
    rng = np.random.default_rng(5)
    holed = rng.choice(9000, 3000, replace=False)
    X[holed, rng.integers(0, D, 3000)] = np.nan
    X[16:64] = np.nan
    one = Pool.build(X, tmp_path / "one.zarr")
    array = zarr.create_array(tmp_path / "other.zarr", shape=X.shape, dtype="float32", chunks=(777, 5))
    array[:] = X
    other = Pool.open(tmp_path / "other.zarr")
    codebook = sample_codebook(one, strategy.capacity(40, 9000).cells, 3)
    tile = plan.tile_rows(D, model.tile_rows if model else None)
    missing = np.isnan(X).any(axis=1)
    for taken in [True, False] if model is None else [model.takes_missing]:
        given = SimpleNamespace(takes_missing=taken) if model is None else model
        expected = full_sort(X, model, strategy, 40, [3, 20], codebook, tile, invalid_of(X, given))
        assert (missing[expected.rows].sum() > 100) == taken
        for pool, client in [(one, None), (other, None), (other, cluster)]:
            found = run(pool, model, strategy, codebook, exclude=[3, 20], client=client, missing=taken)
            assert_same(found.candidates, expected)
            assert found.summary.tally.invalid == invalid_of(X, given).sum()
            assert np.isfinite(found.candidates.scores).all()


def test_a_learner_is_given_no_record_that_the_pool_does_not_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.gamma(2, 1, (700, 3)).astype(np.float32) + np.float32(0.1)
    model = Learner(make_pipeline(PowerTransformer("box-cox"), LogisticRegression()), CLASSES).fit(
        X[:90], np.arange(90) % 4
    )
    X[100] = np.nan
    X[300] = 0  # which the learner would refuse
    pool = Pool.build(X, tmp_path / "pool.zarr")
    with pytest.raises(LearnerError, match="Rows 0 to 699"):
        scan(pool, model, Strategy.named("margin"), 5)
    X[300] = 1
    found = scan(Pool.build(X, tmp_path / "other.zarr"), model, Strategy.named("margin"), 700)
    assert found.summary.tally.invalid_rows.tolist() == [100]
    assert len(found.candidates) == 699


@pytest.mark.parametrize("workers", [1, 3])
def test_one_and_three_workers_give_the_same(workers: int, pools: dict[str, Pool], models: dict[str, Model]) -> None:
    limits = Limits(span_bytes=1)
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    alone = run(pools["built"], models["forest"], Strategy(), codebook, limits=limits)
    with own_cluster(workers, processes=False, protocol="tcp") as (_, client):
        together = run(pools["sharded"], models["forest"], Strategy(), codebook, client=client, limits=limits)
    assert_same(together.candidates, alone.candidates)


@pytest.mark.parametrize("cells_stored", [False, True])
def test_soundings_and_growing_spans_change_nothing(
    cells_stored: bool,
    pools: dict[str, Pool],
    models: dict[str, Model],
    cluster: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    alone = run(pools["built"], models["logistic"], Strategy(), codebook)
    limits = Limits(tile_rows=256, sounded_share=9, up_rows=1, up_share=2)
    expected = run(pools["odd"], models["logistic"], Strategy(), codebook, limits=limits)
    sounded: list[object] = []
    sound = Run.sound
    monkeypatch.setattr(Run, "sound", lambda self, result: [sounded.append(result), sound(self, result)])
    cells = Cells(tmp_path / "cells.zarr", write=True) if cells_stored else None
    together = run(pools["odd"], models["logistic"], Strategy(), codebook, client=cluster, cells=cells, limits=limits)
    assert len(sounded) == 2
    assert None not in sounded
    assert together.summary.spans > 8
    assert together.summary.tally.rows == N
    assert_same(together.candidates, expected.candidates)
    assert summary_of(together) == summary_of(expected)
    assert together.candidates.rows.tolist() == alone.candidates.rows.tolist()
    if cells_stored:
        np.testing.assert_array_equal(
            zarr.open_array(cells.place, mode="r")[expected.candidates.rows], expected.candidates.cells
        )


@given(seed=st.integers(0, 2**32), count=st.integers(30, 60), failing=st.integers(0, 2))
@settings(deadline=None, max_examples=30)
def test_half_the_soundings_tell_what_the_best_of_all_their_rows_reach(seed: int, count: int, failing: int) -> None:
    random = np.random.default_rng(seed)
    capacity, rows = Capacity(900, 6, 60), 400
    order = Order("margin", capacity, rows, 0, 0, None, carry=False)
    pool = SimpleNamespace(n_rows=10**6, n_features=4, dtype=np.dtype("f4"), write_rows=rows, fingerprint="", path="")
    state = Run(cast("Pool", pool), None, order, np.empty(0, np.int64), None, None, None)
    spans = [plan.Interval(rows * number, rows * (number + 1)) for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "soundings", lambda *_: spans)
        assert state.soundings(64) == spans
    share = plan.share_of(capacity, count)
    scores, cells = random.random(rows * count), random.integers(0, 6, rows * count)
    nothing = np.zeros((rows, 0), np.float32)
    half = -(-count // 2)
    for done, (start, stop) in enumerate(spans, 1):
        assert state.sounded_enough == (2 * (done - 1) >= count)
        best = Best(share, 0, 0)
        part = slice(start, stop)
        best.add(Candidates(np.arange(start, stop), scores[part], cells[part], cells[part], nothing))
        found = SpanResult(plan.Interval(start, stop), best.result(), replace(Tally.zero(0), rows=rows), 0.1)
        state.sound(None if done <= failing else found)
        if done in (half, count):
            seen = slice(failing * rows, stop)
            told = state.task(spans[0]).thresholds
            admitted = np.count_nonzero(scores[seen] >= told.overall)
            # As many as are kept, and hardly more.
            assert capacity.total <= admitted <= 1.2 * capacity.total
            of_cells = [np.count_nonzero(scores[seen][cells[seen] == cell] >= told.cells[cell]) for cell in range(6)]
            assert all(60 <= each <= 90 for each in of_cells)


def test_features_wait_on_the_workers_and_are_read_again_where_a_worker_has_lost_them(
    pools: dict[str, Pool], models: dict[str, Model], cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    expected = run(pools["built"], models["logistic"], Strategy(), codebook)
    read: list[int] = []
    take, by_keeper = cluster_engine._Cluster._take, cluster_engine._Cluster._by_keeper
    monkeypatch.setattr(
        cluster_engine._Cluster, "_take", lambda self, rows: [read.append(len(rows)), take(self, rows)][1]
    )
    kept = run(pools["built"], models["logistic"], Strategy(), codebook, client=cluster)
    assert not read
    assert_same(kept.candidates, expected.candidates)
    for found in (kept, expected):
        np.testing.assert_array_equal(found.candidates.embeddings, pools["built"].take(found.candidates.rows))
    assert kept.summary.bytes_up < 2 * expected.summary.bytes_up

    def half_lost(engine: cluster_engine._Cluster, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
        gone = "tcp://127.0.0.1:9"
        (first, own), *others = by_keeper(engine, rows)
        return [(gone, own), *others] if others else [(first, own[1::2]), (gone, own[::2])]

    monkeypatch.setattr(cluster_engine._Cluster, "_by_keeper", half_lost)
    lost = run(pools["built"], models["logistic"], Strategy(), codebook, client=cluster)
    assert 0 < read[0] < len(expected.candidates)
    assert_same(lost.candidates, expected.candidates)


def test_spans_of_a_heavy_learner_are_cut_within_chunks(
    pools: dict[str, Pool], models: dict[str, Model], cluster: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(tile_rows=256, shortest_seconds=0.0, last_tasks_per_second=10**9)
    unit = plan.unit_rows(256, pools["odd"].write_rows)
    assert unit == 1024
    spans: list[plan.Interval] = []
    finish = Run.finish
    monkeypatch.setattr(Run, "finish", lambda self, result: [spans.append(result.interval), finish(self, result)])
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    expected = run(pools["odd"], models["forest"], Strategy(), codebook, limits=limits)
    spans.clear()
    found = run(pools["odd"], models["forest"], Strategy(), codebook, client=cluster, limits=limits)
    assert any(start % unit for start, _ in spans)
    assert all(start % 256 == 0 for start, _ in spans)
    assert_same(found.candidates, expected.candidates)
    assert summary_of(found) == summary_of(expected)
    # Two spans that write cells must not meet in a chunk of them.
    spans.clear()
    cells = Cells(tmp_path / "cells.zarr", write=True)
    written = run(pools["odd"], models["forest"], Strategy(), codebook, client=cluster, cells=cells, limits=limits)
    assert not any(start % unit for start, _ in spans)
    assert_same(written.candidates, expected.candidates)


def test_features_that_are_too_large_to_keep_are_read_again(
    pools: dict[str, Pool], models: dict[str, Model], cluster: Client
) -> None:
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    expected = run(pools["built"], models["logistic"], Strategy(), codebook)
    found = run(pools["built"], models["logistic"], Strategy(), codebook, client=cluster, limits=Limits(kept_bytes=0))
    assert_same(found.candidates, expected.candidates)
    np.testing.assert_array_equal(found.candidates.embeddings, pools["built"].take(found.candidates.rows))


def test_a_second_pass_knows_the_pace_and_finds_the_same(
    pools: dict[str, Pool], models: dict[str, Model], cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_engine._PACES.clear()
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    expected = run(pools["odd"], models["logistic"], Strategy(), codebook)
    probed: list[int] = []
    probes = plan.probes
    monkeypatch.setattr(plan, "probes", lambda *told: [probed.append(told[2]), probes(*told)][1])
    for _ in range(3):
        found = run(pools["odd"], models["logistic"], Strategy(), codebook, client=cluster)
        assert_same(found.candidates, expected.candidates)
        assert summary_of(found) == summary_of(expected)
        assert len(probed) == 1
    run(pools["odd"], models["forest"], Strategy(), codebook, client=cluster)
    assert len(probed) == 2
    assert all(pace > 0 for pace in cluster_engine._PACES[cluster].values())


def test_a_host_is_asked_once_until_something_is_in_the_way(
    pools: dict[str, Pool], cluster: Client, tmp_path: Path, records: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = hosts.ask_hosts

    def counted(client: Client, *given: object, **options: object) -> dict[str, object]:
        answers = ask(client, *given, **options)
        asked.extend(answers)
        return answers

    monkeypatch.setattr(hosts, "ask_hosts", counted)
    pool = Pool.build(records, tmp_path / "pool.zarr")
    for _ in range(2):
        scan(pool, None, Strategy.named("random"), 5, client=cluster)
        assert len(asked) == 1
    scan(Pool.build(records, tmp_path / "other.zarr"), None, Strategy.named("random"), 5, client=cluster)
    assert len(asked) == 2
    away = Pool.build(records, tmp_path / "away.zarr")
    (tmp_path / "away.zarr" / "features").rename(tmp_path / "features")
    for count in (3, 4):
        with pytest.raises(ClusterError, match="cannot read the pool"):
            scan(away, None, Strategy.named("random"), 5, client=cluster)
        assert len(asked) == count


@pytest.mark.exact
def test_a_worker_keeps_the_last_model_alone(models: dict[str, Model], pools: dict[str, Pool]) -> None:
    def job(name: str | None, score: str = "margin") -> Job:
        order = Order(score, Capacity(5, 0, 0), 64, 0, 0, None, carry=False)
        model = packed(models[name] if name else None, score)
        return Job(pools["odd"], model, name or "", order, None)

    X = pools["odd"].read(100, 200)
    first = job("forest").model()
    np.testing.assert_array_equal(first.predict_proba(X), models["forest"].predict_proba(X))
    assert job("forest").model() is first
    np.testing.assert_array_equal(job("plain").model().predict_proba(X), models["plain"].predict_proba(X))
    assert job("forest").model() is not first
    assert job(None).model() is None
    # For probabilities a forest travels without its members, and is not taken for one that has them.
    members = [list(model.committee(X)) for model in (models["forest"], job("forest", "bald").model())]
    np.testing.assert_array_equal(*members)
    assert sum(map(len, job("forest").packed_model)) < sum(map(len, job("forest", "bald").packed_model)) / 2
    assert job("forest").model() is not job("forest", "bald").model()


# -- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_cluster", [False, True])
def test_stored_cells_are_read_back_and_change_nothing(
    on_cluster: bool,
    pools: dict[str, Pool],
    models: dict[str, Model],
    tmp_path: Path,
    cluster: Client,
    records: np.ndarray,
) -> None:
    client = cluster if on_cluster else None
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    assert len(codebook.centers) > 1
    computed = run(pools["built"], models["logistic"], Strategy(), codebook)
    path = tmp_path / "cells.zarr"
    written = run(pools["built"], models["forest"], Strategy(), codebook, cells=Cells(path, write=True), client=client)
    assert written.summary.wrote_cells
    clean = np.where(np.isnan(records), codebook.mean, records).astype(np.float32)
    finite = np.isfinite(clean).all(axis=1)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:][finite], codebook.assign(clean)[finite])
    read = run(pools["built"], models["logistic"], Strategy(), codebook, cells=Cells(path, write=False), client=client)
    assert_same(read.candidates, computed.candidates)
    assert not read.summary.wrote_cells


# -- threads of this process ------------------------------------------------------------------------------------------

COMPILED = {None, "logistic", "plain", "head", "mlp", "forest", "hgb"}
"""Learners of `models` that dal's own kernels score; a forest's committee is asked through scikit-learn."""


@pytest.mark.exact
@pytest.mark.parametrize(("learner", "strategy"), CASES)
def test_threads_give_what_one_gives_and_run_no_code_of_others(
    learner: str | None,
    strategy: Strategy,
    pools: dict[str, Pool],
    models: dict[str, Model],
    codebook_of: Callable[[int], Codebook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models[learner] if learner else None
    codebook = codebook_of(strategy.capacity(40, N).cells)
    limits = Limits(tile_rows=512, span_bytes=1, shortest_seconds=0.0, threads=1)
    alone = run(pools["odd"], model, strategy, codebook, limits=limits)
    assert alone.summary.spans >= 20
    scored, met = set(), threading.Barrier(3)
    score_span = run_module.score_span

    def met_in_the_first_three(*given: object) -> SpanResult:
        name = threading.current_thread().name
        if name.startswith("dal-scan") and name not in scored:
            scored.add(name)
            met.wait(30)
        return score_span(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "score_span", met_in_the_first_three)
    together = run(pools["odd"], model, strategy, codebook, limits=replace(limits, threads=3))
    assert_same(together.candidates, alone.candidates)
    assert summary_of(together) == summary_of(alone)
    simple = strategy.score in ("random", "margin", "entropy", "ratio", "least_confident")
    assert len(scored) == (3 if learner in COMPILED and simple else 0)


def test_threads_write_the_cells_that_one_writes(
    pools: dict[str, Pool], models: dict[str, Model], codebook_of: Callable[[int], Codebook], tmp_path: Path
) -> None:
    codebook, found = codebook_of(Strategy().capacity(40, N).cells), []
    for threads in (1, 3):
        limits = Limits(tile_rows=512, span_bytes=1, threads=threads)
        cells = Cells(tmp_path / f"{threads}.zarr", write=True)
        found.append(run(pools["odd"], models["logistic"], Strategy(), codebook, cells=cells, limits=limits))
        read = run(
            pools["odd"], models["plain"], Strategy(), codebook, cells=replace(cells, write=False), limits=limits
        )
        found.append(read)
    assert_same(found[2].candidates, found[0].candidates)
    assert_same(found[3].candidates, found[1].candidates)
    written = [zarr.open_array(tmp_path / f"{threads}.zarr", mode="r")[:] for threads in (1, 3)]
    np.testing.assert_array_equal(written[1], written[0])
    assert len(np.unique(written[0])) > 2


def test_a_span_that_fails_ends_the_pass_of_all_threads(
    pools: dict[str, Pool], models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, journal = Limits(tile_rows=512, span_bytes=1, threads=3), Journal(tmp_path / "journal")
    last = plan.cut([plan.Interval(0, N)], plan.unit_rows(512, 777), 0)[-1]
    score_span = run_module.score_span

    def damaged(*given: object) -> SpanResult:
        if given[3] == last:
            raise ChunkError("no checksum fits")
        return score_span(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "score_span", damaged)
        with pytest.raises(ChunkError, match="no checksum fits"):
            scan(pools["odd"], models["plain"], Strategy.named("margin"), 30, journal=journal, limits=limits)
    assert not any(each.name.startswith("dal-scan") for each in threading.enumerate())
    mended = scan(pools["odd"], models["plain"], Strategy.named("margin"), 30, journal=journal, limits=limits)
    assert mended.summary.spans_resumed >= mended.summary.spans - 6  # of each thread two were sent
    limits = Limits(tile_rows=512, threads=1)
    assert_same(
        mended.candidates,
        scan(pools["odd"], models["plain"], Strategy.named("margin"), 30, limits=limits).candidates,
    )


# -- the journal ------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize(("learner", "strategy"), [("logistic", "default"), ("embedding", "badge")])
def test_a_span_comes_back_from_the_journal_as_it_was(
    learner: str, strategy: str, pools: dict[str, Pool], models: dict[str, Model], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    run(pools["built"], models[learner], Strategy.named(strategy), codebook, journal=journal)
    for result in journal.results():
        again = decode(encode(result))
        assert again.interval == result.interval
        assert again.candidates is not None
        assert result.candidates is not None
        assert_same(again.candidates, result.candidates)
        assert again.tally.histogram.counts.tolist() == result.tally.histogram.counts.tolist()
        assert again.tally.histogram.edges == result.tally.histogram.edges


def minus_confidence(probabilities: np.ndarray) -> np.ndarray:
    """Score in another range than [0, 1], as a user's own may."""
    return -10 * probabilities.max(axis=1)


def test_scores_of_any_range_are_counted_alike_for_any_spans(pools: dict[str, Pool], models: dict[str, Model]) -> None:
    strategy = Strategy(score=minus_confidence, selector="top")
    codebook = sample_codebook(pools["built"], 0, 3)
    found = [
        run(pools["built"], models["logistic"], strategy, codebook, limits=limits)
        for limits in (Limits(tile_rows=512, span_bytes=1), Limits(tile_rows=512))
    ]
    histogram = found[0].summary.tally.histogram
    assert (histogram.edges, histogram.counts.tolist()) == (
        found[1].summary.tally.histogram.edges,
        found[1].summary.tally.histogram.counts.tolist(),
    )
    low, _ = histogram.edges
    assert -10 <= low < 0
    assert histogram.counts.sum() == found[0].summary.tally.rows - found[0].summary.tally.invalid
    assert (histogram.counts > 0).sum() > 10
    assert f"scores {low:g} |" in repr(found[0])


@pytest.mark.parametrize("damage", ["cut", "zeros behind", "bit"])
def test_what_a_power_cut_tore_is_scored_again(damage: str, pools: dict[str, Pool], tmp_path: Path) -> None:
    limits = Limits(tile_rows=512, span_bytes=1)
    journal = Journal(tmp_path / "journal")
    expected = scan(pools["odd"], None, Strategy.named("random"), 30, random_state=2, journal=journal, limits=limits)
    whole = journal.path.read_bytes()
    torn = {"cut": whole[:-5], "zeros behind": whole + bytes(100), "bit": bytearray(whole)}[damage]
    if damage == "bit":
        torn[len(whole) // 2] ^= 4
    journal.path.write_bytes(torn)
    resumed = scan(pools["odd"], None, Strategy.named("random"), 30, random_state=2, journal=journal, limits=limits)
    spans = expected.summary.spans
    assert {"cut": spans - 1, "zeros behind": spans}.get(damage, resumed.summary.spans_resumed) == (
        resumed.summary.spans_resumed
    )
    assert 0 < resumed.summary.spans_resumed < spans or damage == "zeros behind"
    assert_same(resumed.candidates, expected.candidates)
    # What was scored again stands where the torn part stood.
    again = scan(pools["odd"], None, Strategy.named("random"), 30, random_state=2, journal=journal, limits=limits)
    assert again.summary.spans_resumed == again.summary.spans == spans
    assert_same(again.candidates, expected.candidates)


@pytest.mark.exact
@pytest.mark.parametrize("threads", [1, 3])
def test_finished_spans_are_not_scored_again(
    threads: int, pools: dict[str, Pool], models: dict[str, Model], tmp_path: Path
) -> None:
    limits = Limits(tile_rows=512, span_bytes=1, threads=threads)
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    journal = Journal(tmp_path / "journal")
    expected = run(pools["odd"], models["forest"], Strategy(), codebook, limits=limits)

    seen: list[Progress] = []
    with pytest.raises(Interrupted):
        run(
            pools["odd"],
            models["forest"],
            Strategy(),
            codebook,
            journal=journal,
            progress=interrupted_after(9, seen),
            limits=limits,
        )
    scored = seen[-1].rows_done
    told: list[Progress] = []
    resumed = run(
        pools["odd"], models["forest"], Strategy(), codebook, journal=journal, progress=told.append, limits=limits
    )
    assert resumed.summary.spans_resumed == 9
    # The pace is that of the rows scored now.
    assert told[0].rows_resumed == scored
    assert told[-1].bytes_read == (N - scored) * D * 4
    assert told[-1].rows_per_second == pytest.approx((N - scored) / told[-1].seconds)
    assert f"best score {expected.candidates.scores.max():.4f}" in str(told[-1])
    assert resumed.summary.spans == expected.summary.spans
    assert_same(resumed.candidates, expected.candidates)
    assert summary_of(resumed) == summary_of(expected)
    # Another round is another pass: nothing is taken over.
    other = scan(
        pools["odd"],
        models["forest"],
        Strategy(),
        40,
        random_state=11,
        round=5,
        codebook=codebook,
        journal=journal,
        limits=limits,
    )
    assert other.summary.spans_resumed == 0


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_only_its_spans(
    pools: dict[str, Pool], models: dict[str, Model], mortal_cluster: Client
) -> None:
    limits = Limits(tile_rows=512, span_bytes=1)
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    expected = run(pools["odd"], models["forest"], Strategy(), codebook, limits=limits)
    victims = list(mortal_cluster.run(os.getpid).values())

    def kill_one(progress: Progress) -> None:
        if progress.rows_done > N // 4 and victims:
            os.kill(victims.pop(), signal.SIGKILL)
            victims.clear()

    survived = run(
        pools["odd"], models["forest"], Strategy(), codebook, client=mortal_cluster, progress=kill_one, limits=limits
    )
    assert not victims
    assert_same(survived.candidates, expected.candidates)
    assert summary_of(survived) == summary_of(expected)


def test_a_damaged_chunk_is_named_from_a_worker(records: np.ndarray, tmp_path: Path, cluster: Client) -> None:
    pool = Pool.build(records, tmp_path / "pool.zarr")
    chunk = next((tmp_path / "pool.zarr" / "features" / "c").rglob("0"))
    chunk = chunk if chunk.is_file() else next(path for path in chunk.rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises((ChunkError, ClusterError), match="checksum"):
        scan(pool, None, Strategy.named("random"), 5, client=cluster)
    with pytest.raises(ChunkError, match="checksum"):
        scan(pool, None, Strategy.named("random"), 5)


def test_a_model_of_another_width_is_refused_before_anything_is_read(pools: dict[str, Pool]) -> None:
    model = Learner.named("logistic", CLASSES).fit(np.eye(5, dtype=np.float32), [0, 1, 0, 1, 2])
    with pytest.raises(SettingsError, match=r"`model` must be fitted on the 12 features.*got 5"):
        scan(pools["built"], model, Strategy.named("margin"), 5)


def test_a_score_that_needs_a_model_is_refused_without_one(pools: dict[str, Pool]) -> None:
    with pytest.raises(SettingsError, match="`model`"):
        scan(pools["built"], None, Strategy.named("margin"), 5)


def test_a_pool_in_which_everything_was_asked_gives_no_candidates(pools: dict[str, Pool]) -> None:
    found = scan(pools["built"], None, Strategy.named("random"), 5, np.arange(N))
    assert len(found.candidates) == 0
    assert "0 candidates of 20,011 rows" in repr(found)


def test_a_scan_shows_itself(pools: dict[str, Pool], models: dict[str, Model]) -> None:
    shown = repr(scan(pools["built"], models["logistic"], Strategy.named("margin"), 5))
    assert "5 candidates of 20,011 rows" in shown
    assert "4 rows hold infinite values, or missing ones" in shown


SCRIPT = """
import sys
from dal.pool import Pool
from dal.scan import Journal, scan
from dal.selection.strategy import Strategy
from dal.scan import Limits
def told(progress):
    print(progress.rows_done, flush=True)
    sys.stdin.readline()
journal, limits = Journal(sys.argv[2]), Limits(tile_rows=256, span_bytes=1)
strategy = Strategy.named("random")
scan(Pool.open(sys.argv[1]), None, strategy, 30, random_state=2, journal=journal, progress=told, limits=limits)
"""


def test_a_coordinator_killed_in_mid_scan_goes_on_from_its_journal(pools: dict[str, Pool], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, pools["odd"].path, str(tmp_path / "journal")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for _ in range(6):
            assert process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline()
        process.kill()
    limits = Limits(tile_rows=256, span_bytes=1)
    resumed = scan(
        pools["odd"],
        None,
        Strategy.named("random"),
        30,
        random_state=2,
        journal=Journal(tmp_path / "journal"),
        limits=limits,
    )
    whole = scan(pools["odd"], None, Strategy.named("random"), 30, random_state=2, limits=limits)
    assert resumed.summary.spans_resumed == 7
    assert_same(resumed.candidates, whole.candidates)


KILLED: list[object] = []
"""Kept: a process that is killed collects no garbage, which would clean up after all, in any thread."""


def killed(cluster: object, *exception: object) -> None:
    """What a killed coordinator does to clean up."""
    KILLED.append(cluster)


def test_a_plugin_that_a_dead_coordinator_left_serves_nobody_else(
    pools: dict[str, Pool], models: dict[str, Model], tmp_path: Path, cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebook = sample_codebook(pools["built"], Strategy().capacity(40, N).cells, 3)
    with monkeypatch.context() as dead:
        dead.setattr(cluster_engine._Cluster, "__exit__", killed)
        run(pools["odd"], models["plain"], Strategy(), codebook, cells=Cells(tmp_path / "a", True), client=cluster)
    written = (tmp_path / "a" / "c" / "0").stat().st_mtime_ns
    run(pools["odd"], models["plain"], Strategy(), codebook, cells=Cells(tmp_path / "b", True), client=cluster)
    assert (tmp_path / "a" / "c" / "0").stat().st_mtime_ns == written
    np.testing.assert_array_equal(
        zarr.open_array(tmp_path / "a", mode="r")[:], zarr.open_array(tmp_path / "b", mode="r")[:]
    )


@pytest.mark.slow
def test_a_worker_that_was_stopped_does_not_hang_the_start(pools: dict[str, Pool], mortal_cluster: Client) -> None:
    limits = Limits(probe_seconds=1.0)
    hosts._PROVEN.clear()
    workers = list(mortal_cluster.run(os.getpid).values())
    try:
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        with pytest.raises(ClusterError, match="answered within 1 s"):
            scan(pools["built"], None, Strategy.named("random"), 5, client=mortal_cluster, limits=limits)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


def test_records_so_far_away_that_the_learner_overflows_are_not_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((800, 3)).astype(np.float32)
    model = Learner(GaussianNB(), CLASSES).fit(X[:100], np.arange(100) % 4)
    X[[17, 400]] = [[1e30, 0, 0], [-3.4e38, 3.4e38, 1]]
    found = scan(Pool.build(X, tmp_path / "pool.zarr"), model, Strategy.named("entropy"), 900)
    assert found.summary.tally.invalid_rows.tolist() == [17, 400]
    assert len(found.candidates) == 798


def test_dropout_raises_no_value_beyond_what_a_learner_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((800, 6)).astype(np.float32)
    model = Learner(RandomForestClassifier(5, random_state=0), CLASSES).fit(X[:100], np.arange(100) % 4)
    X[17] = 3e38
    found = scan(Pool.build(X, tmp_path / "pool.zarr"), model, Strategy.named("dropout"), 900)
    assert found.candidates.rows.tolist() == list(range(800))
