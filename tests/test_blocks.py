"""Learners that are fitted block by block: the same model whatever the order of records, and in bounded memory."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import dal
from dal.campaign.features import Features
from dal.campaign.kept import Records
from dal.campaign.view import View
from dal.errors import LearnerError
from dal.learners.blocks import InBlocks
from dal.learners.learner import Learner
from tests.forked import Process

CLASSES = ["a", "b", "c"]


class Unweighted(GaussianNB):
    def partial_fit(self, X: np.ndarray, y: np.ndarray, classes: np.ndarray | None = None) -> "Unweighted":
        return super().partial_fit(X, y, classes)


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    y = np.random.default_rng(seed).integers(0, 3, count)
    X = np.random.default_rng(seed + 1).normal(2 * np.eye(3, 5)[y], 1.0).astype(np.float32)
    return X, y


def parameters(estimator: object) -> list[np.ndarray]:
    names = ("coef_", "intercept_", "theta_", "var_", "feature_log_prob_", "class_log_prior_", "mean_", "scale_")
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    found = [np.asarray(getattr(step, name)) for step in steps for name in names if hasattr(step, name)]
    return [*found, *(each for step in steps for each in getattr(step, "coefs_", ()))]


def sgd(**more: object) -> InBlocks:
    return InBlocks(make_pipeline(StandardScaler(), SGDClassifier("log_loss", random_state=0)), **more)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 60), st.integers(1, 30), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_records_changes_no_bit(count: int, block: int, shuffled: object, weighted: bool) -> None:
    X, y = records(count)
    y[:2] = 0, 1
    weights = np.random.default_rng(3).choice([0.5, 1.0], count) if weighted else None
    order = list(range(count))
    shuffled.shuffle(order)  # type: ignore[attr-defined]
    one = sgd(epochs=2, block_rows=block).fit(X, y, weights)
    other = sgd(epochs=2, block_rows=block).fit(X[order], y[order], None if weights is None else weights[order])
    for a, b in zip(parameters(one.estimator_), parameters(other.estimator_), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("estimator", [GaussianNB(), MultinomialNB()])
def test_an_estimator_that_counts_learns_in_one_pass_as_from_all_records_at_once(estimator: object) -> None:
    X, y = records(400)
    X = np.abs(X)
    found = InBlocks(estimator, block_rows=37).fit(X, y)
    assert found.epochs_ == 1
    for a, b in zip(parameters(found.estimator_), parameters(clone(estimator).fit(X, y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_scaler_learns_from_all_records_before_the_last_step_does() -> None:
    X, y = records(300)
    found = sgd(block_rows=50, epochs=1).fit(3 * X + 7, y).estimator_
    whole = StandardScaler().fit(3 * X.astype(np.float64) + 7)
    np.testing.assert_allclose(found[0].mean_, whole.mean_, rtol=1e-5)
    np.testing.assert_allclose(found[0].scale_, whole.scale_, rtol=1e-5)


def test_classes_that_the_first_block_lacks_are_learned() -> None:
    X, y = records(600)
    y[:], y[5], y[411] = 0, 1, 2
    found = sgd(block_rows=10, epochs=1).fit(X, y)
    assert found.estimator_.predict_proba(X[:4]).shape == (4, 3)


def test_it_learns_as_well_as_all_records_at_once() -> None:
    X, y = records(3000)
    test, truth = records(2000, seed=9)
    found = Learner.named("sgd", CLASSES).fit(X, y)
    whole = Learner.named("logistic", CLASSES).fit(X, y)
    right = [(model.predict_proba(test).argmax(axis=1) == truth).mean() for model in (found, whole)]
    assert right[1] - 0.01 < right[0]
    assert found.kind == "MLPClassifier"
    assert found.network is not None


def test_weights_are_learned_from() -> None:
    X, y = records(500)
    X, wrong = np.concatenate([X, X]), np.concatenate([y, (y + 1) % 3])
    learner = Learner(InBlocks(GaussianNB()), CLASSES)
    assert learner.takes_weights
    model = learner.fit(X, wrong, np.repeat([1.0, 0.01], 500))
    assert (model.predict_proba(X[:500]).argmax(axis=1) == y).mean() > 0.8


@pytest.mark.parametrize(
    ("estimator", "named"),
    [
        (RandomForestClassifier(), "RandomForestClassifier"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "LogisticRegression"),
        (make_pipeline(PCA(2), GaussianNB()), "PCA"),
    ],
)
def test_estimators_that_cannot_learn_in_blocks_are_refused_by_name(estimator: object, named: str) -> None:
    with pytest.raises(LearnerError, match=f"partial_fit.*{named}"):
        Learner(InBlocks(estimator), CLASSES).check(5)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"block_rows": 0}, {"block_rows": -5}])
def test_fewer_than_one_epoch_or_record_is_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(LearnerError, match=f"`{name}` must be a number of at least 1, got {wrong[name]}"):
        Learner(InBlocks(GaussianNB(), **wrong), CLASSES).check(5)


def test_one_that_takes_no_weights_is_refused_where_labels_have_some() -> None:
    learner = Learner(InBlocks(make_pipeline(Normalizer(), Unweighted())), CLASSES)
    assert not learner.takes_weights
    with pytest.raises(LearnerError, match="sample_weight"):
        learner.check(5, weighted=True)


def test_the_estimator_of_an_incremental_is_fitted_in_blocks() -> None:
    wrappers = pytest.importorskip("dask_ml.wrappers")
    learner = Learner(wrappers.Incremental(GaussianNB()), CLASSES)
    assert learner.fits_in_blocks
    assert learner.fit(*records(300)).kind == "GaussianNB"
    assert not Learner(wrappers.ParallelPostFit(GaussianNB()), CLASSES).fits_in_blocks


def campaign_of(folder: Path, estimator: object = "sgd") -> dal.Campaign:
    X, y = records(1500)
    pool = dal.Pool.build(X, folder / "pool.zarr")
    made = dal.Campaign.create(folder / "c", pool, CLASSES, batch_size=300, estimator=estimator)
    batch = made.next_batch()
    assert isinstance(batch, dal.Batch)
    made.label(batch, y[batch.rows])
    made.label([str(row) for row in range(700, 900)], y[700:900], annotator="ann")
    return made


@pytest.mark.parametrize("estimator", [pytest.param("sgd", marks=pytest.mark.slow), InBlocks(GaussianNB())])
def test_a_campaign_fits_what_was_never_in_memory_as_it_fits_an_array(tmp_path: Path, estimator: object) -> None:
    campaign = campaign_of(tmp_path, estimator)
    labels = campaign.answers.labels()
    X = Features(View(campaign)).records(labels.rows)
    assert isinstance(X, Records)
    model = campaign.fit()
    batch = campaign.next_batch()
    assert isinstance(batch, dal.Batch)
    assert len(batch.rows) == 300
    given = dal.Pool.open(campaign.settings.pool).take(labels.rows)
    twin = Learner.of(estimator, CLASSES).fit(given, labels.codes)
    assert all(
        np.array_equal(a, b) and np.array_equal(a, c)
        for a, b, c in zip(*(parameters(each.estimator) for each in (model, campaign.model, twin)), strict=True)
    )


def _next(directory: Path) -> None:
    dal.Campaign.open(directory).next_batch()


@pytest.mark.slow
def test_killed_in_the_middle_of_a_fit_the_next_one_gives_the_same_model(tmp_path: Path) -> None:
    estimator = sgd(epochs=40, block_rows=50)
    campaign = campaign_of(tmp_path, estimator)
    labels = campaign.answers.labels()
    process = Process(target=_next, args=(campaign.directory,))
    process.start()
    while (last := campaign.rounds.last) is None or last.number != 2:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert campaign.rounds.get(2).status == "frozen"
    campaign.next_batch()
    twin = Learner(estimator, CLASSES).fit(dal.Pool.open(campaign.settings.pool).take(labels.rows), labels.codes)
    for a, b in zip(parameters(campaign.model.estimator), parameters(twin.estimator), strict=True):
        np.testing.assert_array_equal(a, b)
