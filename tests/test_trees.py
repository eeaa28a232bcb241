"""Trees as flat arrays, against scikit-learn's own walk."""

import pickle
import sys
from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from threadpoolctl import threadpool_limits

from dal.errors import LearnerError
from dal.learners import _sklearn, trees
from dal.learners.learner import Learner
from dal.learners.trees import Trees

pytestmark = pytest.mark.exact

ESTIMATORS = [
    RandomForestClassifier(7, random_state=0),
    RandomForestClassifier(5, max_leaf_nodes=6, bootstrap=False, max_features=None, random_state=0),
    ExtraTreesClassifier(4, random_state=0),
    DecisionTreeClassifier(criterion="log_loss", random_state=0),
    ExtraTreeClassifier(max_depth=1, random_state=0),
    HistGradientBoostingClassifier(max_iter=4, min_samples_leaf=3, early_stopping=False),
    HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=3, min_samples_leaf=1, early_stopping=False),
]


def labelled(
    seed: int, rows: int, features: int, classes: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw records of few different values, so that many meet a threshold exactly."""
    random = np.random.default_rng(seed)
    X = (random.integers(-3, 4, (rows, features)) / 3).astype(np.float32)
    return X, np.resize(np.arange(classes), rows)


def fitted_to(estimator: BaseEstimator, X: npt.NDArray[np.float32], codes: npt.NDArray[np.int64]) -> BaseEstimator:
    # Boosting's threads wait for each other by spinning, which takes seconds where other tests run beside.
    with threadpool_limits(limits=1):
        return estimator.fit(X, codes)


def predicted(estimator: BaseEstimator, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    laid_out = Trees.of(estimator)
    assert laid_out is not None
    probabilities = laid_out.predict_proba(X)
    assert probabilities is not None
    return probabilities


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 70), classes=st.integers(2, 4))
def test_the_walk_ends_in_scikit_learns_leaves(estimator: BaseEstimator, seed: int, rows: int, classes: int) -> None:
    X, codes = labelled(seed, 60, 3, classes)
    fitted = fitted_to(estimator, X, codes)
    others = labelled(seed + 1, rows, 3, classes)[0]
    # The neighbours of a value stand on either side of a threshold that meets it.
    for records in (others, np.nextafter(others, np.float32(9)), np.nextafter(others, np.float32(-9))):
        assert predicted(fitted, records).tobytes() == fitted.predict_proba(records).tobytes()


@pytest.mark.parametrize("estimator", [ESTIMATORS[0], ESTIMATORS[5]], ids=str)
def test_blocks_of_wide_records_are_walked_to_the_last(estimator: BaseEstimator) -> None:
    X, codes = labelled(0, 300, 3_000, 3)
    fitted = fitted_to(estimator, X, codes)
    assert 300 % (trees._BLOCK_BYTES // (4 * 3_000)) % 16 not in (0, 1)
    expected = fitted.predict_proba(X)
    assert len(np.unique(expected)) > 5
    assert predicted(fitted, X).tobytes() == expected.tobytes()
    assert predicted(fitted, np.asfortranarray(X)).tobytes() == expected.tobytes()


def test_thresholds_between_two_floats_are_met_from_the_right_side() -> None:
    low = np.float32(2)
    high = np.nextafter(low, np.float32(3))
    fitted = DecisionTreeClassifier().fit(np.array([[low], [high]], np.float32), [0, 1])
    # In single precision the middle would be one of both.
    assert low < fitted.tree_.threshold[0] < high
    assert predicted(fitted, np.array([[low], [high]], np.float32)).tolist() == [[1, 0], [0, 1]]


def test_a_tree_that_asks_nothing_is_one_leaf() -> None:
    X = np.zeros((6, 2), np.float32)
    fitted = RandomForestClassifier(3, random_state=0).fit(X, [0, 0, 0, 1, 1, 1])
    assert predicted(fitted, X).tobytes() == fitted.predict_proba(X).tobytes()
    assert predicted(fitted, X[:0]).shape == (0, 2)


def test_leaves_that_add_the_same_are_one_row() -> None:
    X, codes = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32), np.resize(np.arange(5), 300)
    fitted = RandomForestClassifier(20, random_state=0).fit(X, codes)
    laid_out = Trees.of(fitted)
    assert laid_out is not None
    assert sum(each.get_n_leaves() for each in fitted.estimators_) > 1000
    assert sorted(laid_out.leaves.tolist(), reverse=True) == np.eye(5).tolist()
    assert predicted(fitted, X[3:]).tobytes() == fitted.predict_proba(X[3:]).tobytes()


@pytest.mark.parametrize("same_hashes", [False, True])
def test_rows_are_one_where_all_bits_are(same_hashes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.25, 0.75], [1.0, 0.0]])
    if same_hashes:  # so that (1, 0) and (0, 1) have the same sum
        monkeypatch.setattr(trees, "row_hash", lambda rows, *_: np.zeros(len(rows), np.uint64))
    distinct, place = trees._distinct(rows)
    assert distinct[place].tobytes() == rows.tobytes()
    assert len(distinct) == (6 if same_hashes else 4)


def test_what_asks_more_than_a_threshold_is_not_laid_out() -> None:
    X, codes = labelled(0, 60, 2, 2)
    with_categories = HistGradientBoostingClassifier(max_iter=3, categorical_features=[0], min_samples_leaf=1)
    assert Trees.of(fitted_to(with_categories, np.abs(3 * X), codes)) is None
    assert Trees.of(LogisticRegression().fit(X, codes)) is None
    assert Trees.of(RandomForestClassifier(3).fit(X, np.stack([codes, codes], axis=1))) is None


def test_a_scikit_learn_without_what_is_private_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    X, codes = labelled(0, 60, 2, 2)
    model = Learner(HistGradientBoostingClassifier(max_iter=3), ("a", "b")).fit(X, codes)
    expected = model.predict_proba(X)
    assert Trees.of(model.estimator) is not None
    monkeypatch.setattr(_sklearn, "_PRIVATE", ("_renamed",))
    _sklearn._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="predict_proba"):
        assert Trees.of(model.estimator) is None
    assert Trees.of(model.estimator) is None, "without another warning"
    again = Learner(HistGradientBoostingClassifier(max_iter=3), ("a", "b")).fit(X, codes)
    assert again.predict_proba(X).tobytes() == expected.tobytes()


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("estimator", [ESTIMATORS[0], ESTIMATORS[3], ESTIMATORS[5]], ids=str)
def test_a_worker_without_numba_computes_the_same_bits(
    estimator: BaseEstimator, holes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, codes = labelled(0, 300, 4, 3)
    X[np.random.default_rng(0).random(X.shape) < holes] = np.nan
    learner = Learner(estimator, ("a", "b", "c"))
    with_numba = learner.fit(X, codes)
    sent = pickle.dumps(with_numba.for_score("margin"))
    expected = with_numba.predict_proba(X)
    assert len(np.unique(expected, axis=0)) > 2
    monkeypatch.setitem(sys.modules, "numba", None)
    trees._walker.cache_clear()
    try:
        received = pickle.loads(sent)
        for rows in (300, 17, 1):
            assert received.predict_proba(X[:rows]).tobytes() == expected[:rows].tobytes()
        assert Trees.of(with_numba.estimator) is None
        assert learner.fit(X, codes).predict_proba(X).tobytes() == expected.tobytes()
    finally:
        trees._walker.cache_clear()


@pytest.mark.parametrize("holes_in_fit", [0.0, 0.2])
@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(7, random_state=0),
        ExtraTreesClassifier(7, random_state=0),
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(5, monotonic_cst=[1, 0, -1, 0], random_state=0),
        HistGradientBoostingClassifier(max_iter=9, min_samples_leaf=3, random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_missing_values_go_where_scikit_learn_sends_them(estimator: BaseEstimator, holes_in_fit: float) -> None:
    X, codes = labelled(0, 300, 4, 2)
    rng = np.random.default_rng(0)
    estimator = fitted_to(estimator, np.where(rng.random(X.shape) < holes_in_fit, np.float32(np.nan), X), codes)
    others = np.where(rng.random(X.shape) < 0.3, np.float32(np.nan), labelled(1, 300, 4, 2)[0])
    others[7] = np.nan
    laid_out = Trees.of(estimator)
    assert laid_out is not None
    found, expected = laid_out.predict_proba(others), estimator.predict_proba(others)
    assert found is not None
    assert len(np.unique(expected, axis=0)) > 2
    assert found.tobytes() == expected.tobytes()


def test_values_that_no_tree_takes_are_left_to_scikit_learn() -> None:
    X, codes = labelled(0, 60, 2, 2)
    laid_out = Trees.of(RandomForestClassifier(3, random_state=0).fit(X, codes))
    assert laid_out is not None
    for value in (np.inf, -np.inf):
        assert laid_out.predict_proba(np.where(X > 0.9, np.float32(value), X)) is None
    assert laid_out.predict_proba(np.full((3, 2), 3e38, np.float32)) is not None  # whose sum overflows


def spoiled(records: npt.NDArray[np.float32], value: float) -> npt.NDArray[np.float32]:
    return np.where(records > 0.9, np.float32(value), records)


def test_what_a_pipelines_own_steps_spoil_is_treated_as_by_scikit_learn() -> None:
    X, codes = labelled(0, 60, 2, 2)
    spoil = FunctionTransformer(spoiled, kw_args={"value": 0.0})
    pipeline = make_pipeline(spoil, RandomForestClassifier(3, random_state=0))
    model = Learner(pipeline, ("a", "b"), trusted=["tests.test_trees.spoiled"]).fit(X, codes)
    model.estimator.set_params(functiontransformer__kw_args={"value": np.nan})
    assert model.predict_proba(X).tobytes() == model.estimator.predict_proba(X).tobytes()
    model.estimator.set_params(functiontransformer__kw_args={"value": np.inf})
    with pytest.raises(LearnerError, match="refused records of shape"):
        model.predict_proba(X)


@pytest.mark.parametrize("estimator", [ESTIMATORS[0], ESTIMATORS[5]], ids=str)
@pytest.mark.parametrize("width", [1, 4])
def test_records_of_another_width_are_refused_by_scikit_learn(estimator: BaseEstimator, width: int) -> None:
    X, codes = labelled(0, 60, 3, 2)
    laid_out = Trees.of(fitted_to(estimator, X, codes))
    assert laid_out is not None
    assert laid_out.predict_proba(np.zeros((5, width), np.float32)) is None
    model = Learner(estimator, ("a", "b")).fit(X, codes)
    with pytest.raises(LearnerError, match="refused records of shape"):
        model.predict_proba(np.zeros((5, width), np.float32))


def test_doubles_are_left_to_a_boosted_model_itself() -> None:
    X, codes = labelled(0, 60, 2, 2)
    fitted = fitted_to(HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=1), X, codes)
    laid_out = Trees.of(fitted)
    assert laid_out is not None
    assert laid_out.predict_proba(X.astype(np.float64)) is None


def test_where_nothing_can_be_kept_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    X, codes = labelled(0, 60, 2, 2)
    fitted = ESTIMATORS[0].fit(X, codes)
    expected = predicted(fitted, X)
    compile_it = numba.njit

    def without_a_place(*, nogil: bool, cache: bool = False) -> Callable[..., object]:
        if cache:
            raise RuntimeError("cannot cache function '_walk': no locator available")
        return compile_it(nogil=nogil)  # type: ignore[no-any-return]

    monkeypatch.setattr(numba, "njit", without_a_place)
    trees._walker.cache_clear()
    try:
        assert predicted(fitted, X).tobytes() == expected.tobytes()
    finally:
        trees._walker.cache_clear()
