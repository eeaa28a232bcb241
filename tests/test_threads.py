"""The same bits on one core and on many: what fits, scores and chooses runs on one thread, whoever calls it."""

import io
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.system
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_info, threadpool_limits

from dal import Campaign
from dal._threads import allowed_threads, cores, one_thread
from dal.campaign import Measuring
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.loop.campaign import Batch
from dal.map import fit_projection
from dal.pool import Pool
from dal.scan import sample_codebook, scan
from dal.selection.batch import select
from dal.selection.strategy import Strategy

CLASSES = ("a", "b", "c")
THREADS = (1, 2, 3)


def threads_now(api: str) -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == api}


# -- the limit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["blas", "openmp"])
def test_threads_that_meet_have_one_each_and_all_get_theirs_back(api: str) -> None:
    """Two threads of a worker: the second comes while the first is inside, and stays when that has gone."""
    both_in, first_out = threading.Event(), threading.Event()
    seen: dict[str, set[int]] = {}

    def second() -> None:
        threadpool_limits(3, "openmp")
        with one_thread, one_thread:
            seen["together"] = threads_now(api)
            both_in.set()
            assert first_out.wait(30)
            seen["alone"] = threads_now(api)
        seen["after"] = threads_now(api)
        with one_thread:
            seen["again"] = threads_now(api)
        seen["in the end"] = threads_now(api)

    with threadpool_limits(3):
        worker = threading.Thread(target=second)
        with one_thread:
            worker.start()
            assert both_in.wait(30)
            assert threads_now(api) == {1}
        first_out.set()
        worker.join(30)
        assert seen == {"together": {1}, "alone": {1}, "after": {3}, "again": {1}, "in the end": {3}}
        assert threads_now(api) == {3}


def test_a_library_that_is_imported_meanwhile_is_limited_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with threadpool_limits(3):
        with one_thread:
            threadpool_limits(2)  # as one that has just been loaded
            monkeypatch.setitem(sys.modules, "a_new_module", types.ModuleType("a_new_module"))
            with one_thread:
                assert threads_now("blas") == {1}
        assert threads_now("blas") == {3}


@pytest.mark.parametrize(
    ("limit", "most"), [("1", 1), ("3", 3), ("4,2", 4), ("16", None), ("0", None), ("all", None), ("", None)]
)
def test_threads_are_no_more_than_openmp_may_use(limit: str, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask.system, "CPU_COUNT", 7)  # it knows a container's quota
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert cores() == 7
    assert allowed_threads() == (most or 7)


# -- what runs below it -----------------------------------------------------------------------------------------------

_SEEN: list[set[int]] = []


def watched(X: np.ndarray) -> np.ndarray:
    _SEEN.append(threads_now("blas") | threads_now("openmp"))
    return X


class Watched(ClassifierMixin, BaseEstimator):
    """Notes how many threads there are in each of its methods."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Watched":
        watched(X)
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.full((len(watched(X)), len(self.classes_)), 1 / len(self.classes_))

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return self.predict_proba(X)


CALLS: dict[str, Callable[[Learner, Model, np.ndarray], object]] = {
    "fit": lambda learner, _, X: learner.fit(X, np.arange(len(X)) % 3),
    "predict_proba": lambda _, model, X: model.predict_proba(X),
    "decision_function": lambda _, model, X: model.decision_function(X),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_estimator_is_called_on_one_thread(call: str) -> None:
    X = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    trusted = [f"{Watched.__module__}.Watched", f"{Watched.__module__}.watched"]
    pipeline = make_pipeline(FunctionTransformer(watched), Watched())
    learner = Learner(pipeline, CLASSES, trusted=trusted)
    model = learner.fit(X, np.arange(30) % 3)
    _SEEN.clear()
    with threadpool_limits(3):
        CALLS[call](learner, model, X)
    assert len(_SEEN) == 2  # the first step and the last
    assert all(seen == {1} for seen in _SEEN)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((3, 48))
    return (means[rng.integers(0, 3, 6000)] + 2 * rng.standard_normal((6000, 48))).astype(np.float32)


@pytest.fixture(scope="module")
def pool(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.build(records, tmp_path_factory.mktemp("threads") / "pool.zarr")


def of_model(model: Model, X: np.ndarray) -> list[Any]:
    given = [model.predict_proba(X)]
    if model.network is not None:
        given += [model.network.decisions(X), model.layer_inputs(X), *model.committee(X)]
    return given


ESTIMATORS = {
    "logistic": LogisticRegression(max_iter=200),
    "mlp": MLPClassifier((32, 16), max_iter=15, random_state=0),
    "boosting": HistGradientBoostingClassifier(max_iter=5, random_state=0),
}


def computed(what: str, pool: Pool, records: np.ndarray) -> list[Any]:
    """Give arrays of one part of the product."""
    if what in ESTIMATORS:
        learner = Learner(ESTIMATORS[what], CLASSES)
        model = learner.fit(records[:1500], np.arange(1500) % 3, committee=what != "boosting")
        return of_model(model, records)
    codebook = sample_codebook(pool, 40, 3)
    if what == "codebook":
        return [codebook.axes, codebook.centers, codebook.assign(records)]
    if what == "map":
        projection, extent = fit_projection(pool, 3)
        return [projection.components, extent, projection.place(records)]
    strategy = Strategy.named(what)
    model = Learner(LogisticRegression(max_iter=200), CLASSES).fit(records[:300], np.arange(300) % 3)
    found = scan(pool, model, strategy, 60, codebook=codebook, random_state=5, with_features=True).candidates
    return [found.rows, found.scores, select(found, strategy, 60, records[:300], 5, 1)]


@pytest.mark.exact
@pytest.mark.parametrize(
    "what",
    [*ESTIMATORS, "codebook", "map", "default", "coverage", "weighted_kmeans", "badge", "cluster_margin", "k_center"],
)
def test_any_number_of_threads_gives_the_same_bits(what: str, pool: Pool, records: np.ndarray) -> None:
    given = []
    for count in THREADS:
        with threadpool_limits(count):
            given.append(computed(what, pool, records))
    for other in given[1:]:
        for first, second in zip(given[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


# -- all of it together -----------------------------------------------------------------------------------------------


def kept_by(directory: Path, pool: Pool, truth: np.ndarray, records: np.ndarray) -> dict[str, Any]:
    """Play three rounds, and give everything that the campaign has computed and keeps."""
    campaign = Campaign.create(
        directory,
        pool,
        CLASSES,
        batch_size=40,
        random_state=7,
        estimator="mlp",
        explore=0.2,
        measuring=Measuring(holdout=directory.parent / "holdout.npz"),
    )
    kept: dict[str, Any] = {}
    for number in (1, 2, 3):
        batch = campaign.next_batch()
        assert isinstance(batch, Batch)
        for asked in campaign.rounds.batch(number):
            kept[f"{number}: {asked.record_id}"] = (asked.row, asked.score, asked.predicted, asked.confidence)
        current = campaign.rounds.get(number)
        kept[f"{number}: measured"] = (current.notes or {}).get("measured")
        with np.load(io.BytesIO(campaign.rounds.load_scan(current))) as arrays:
            kept |= {f"{number}: {name}": array.tolist() for name, array in arrays.items()}
        if current.model is not None:
            network = Model.loads(campaign.rounds.load_model(current.model)).estimator[-1]
            kept[f"{number}: model"] = [weights.tolist() for weights in network.coefs_]
        campaign.label(batch, truth[batch.rows])
    return kept


@pytest.mark.exact
@pytest.mark.slow
def test_a_campaign_computes_the_same_on_any_number_of_threads(pool: Pool, records: np.ndarray, tmp_path: Path) -> None:
    truth = records[:, :3].argmax(axis=1)
    np.savez(tmp_path / "holdout.npz", X=records[:500], y=np.array(CLASSES)[truth[:500]])
    given = []
    for count in THREADS:
        with threadpool_limits(count):
            given.append(kept_by(tmp_path / f"on {count}", pool, truth, records))
    assert given[0]["3: measured"]["holdout_asked"] == 500
    assert given[0]["2: model"]
    assert given[1] == given[0]
    assert given[2] == given[0]
