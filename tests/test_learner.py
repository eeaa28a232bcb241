# ruff: noqa: ARG002 - estimators take X and y, whether they look at them or not
import pickle
import sys
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
import skops.io
from dask_ml.wrappers import Incremental, ParallelPostFit
from distributed import Client
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, ExtraTreesClassifier, RandomForestClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_info

from dal._threads import one_thread
from dal.errors import LabelError, LearnerError
from dal.learners.blocks import inside
from dal.learners.learner import Learner
from dal.learners.models import Model

CLASSES = ("ant", "bee", "cat", "dog")


def records(n: int = 60, n_classes: int = 4, n_features: int = 5, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % n_classes)
    X = rng.standard_normal((n, n_features)).astype(np.float32)
    return X + 2 * np.eye(n_classes, n_features, dtype=np.float32)[codes], codes


class Constant(ClassifierMixin, BaseEstimator):
    """Predicts what it is told to, whatever it has seen."""

    def __init__(self, value: float | None = None, columns: int | None = None) -> None:
        self.value = value
        self.columns = columns

    def fit(self, X, y):  # noqa: ANN001, ANN201
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):  # noqa: ANN001, ANN201
        out = np.full((len(X), self.columns or len(self.classes_)), 1 / len(self.classes_))
        if self.value is not None:
            out[: len(X) // 3] = self.value
        return out


CONSTANT = f"{Constant.__module__}.Constant"


def drawn_once() -> Constant:
    return Constant()


class Forgetful(Constant):
    """Does not come back from a file as it was."""

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"columns": None, "value": 1 / 3}


EVERY_KIND = [
    "logistic",
    "forest",
    "hgb",
    "mlp",
    SVC(),
    LinearSVC(),
    make_pipeline(PCA(3), LogisticRegression()),
    make_pipeline(PCA(2), LinearSVC()),
    KNeighborsClassifier(algorithm="brute"),
    GaussianNB(),
    make_pipeline(StandardScaler(), make_pipeline(PCA(3), LogisticRegression())),
]


def learner_of(kind: object, classes: tuple[str, ...] = CLASSES) -> Learner:
    return Learner.named(kind, classes, random_state=7) if isinstance(kind, str) else Learner(kind, classes)


@pytest.mark.exact
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_every_learner_is_fitted_aligned_and_comes_back_bit_equal(kind: object) -> None:
    learner = learner_of(kind)
    X, codes = records()
    codes = np.array([0, 2, 3])[codes % 3]  # a fit that has not seen "bee"
    X += 2 * np.eye(4, 5, dtype=np.float32)[codes]
    model = learner.fit(X, codes)
    assert model.seen.tolist() == [0, 2, 3]
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (60, 4)
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    # the columns are the right ones: the estimator's own prediction is the most probable class
    own = model.seen[model.estimator.predict(X)]
    assert (probabilities.argmax(axis=1) == own).mean() > 0.95
    assert (own == codes).mean() > 0.8
    loaded = Model.loads(model.dumps())
    assert loaded.predict_proba(X).tobytes() == probabilities.tobytes()
    assert (loaded.classes, loaded.n_features, loaded.warnings) == (CLASSES, 5, model.warnings)


@pytest.mark.exact
def test_a_fitted_model_is_what_a_worker_loads_to_the_last_bit() -> None:
    # PCA keeps a part of a larger array; saved, it gets another layout, by which BLAS sums in another order
    X, codes = records(n=640, n_features=100)
    model = Learner(make_pipeline(PCA(64), LogisticRegression()), CLASSES).fit(X, codes)
    loaded = Model.loads(model.dumps())
    assert loaded.predict_proba(X[7:500]).tobytes() == model.predict_proba(X[7:500]).tobytes()


def test_a_model_has_one_digest_however_often_it_is_saved() -> None:
    model = Learner.named("logistic", CLASSES).fit(*records())
    assert model.dumps() == model.dumps() == Model.loads(model.dumps()).dumps()


def test_a_learner_comes_back_from_its_archive_unfitted() -> None:
    learner = Learner(make_pipeline(StandardScaler(), SVC(C=3)), CLASSES)
    loaded = Learner.loads(learner.dumps(), CLASSES[:2])
    assert loaded.estimator.get_params()["svc__C"] == 3
    assert loaded.classes == CLASSES[:2]
    assert not hasattr(loaded.estimator[-1], "classes_")
    own = Learner(Constant(columns=9), CLASSES, trusted=[CONSTANT])
    assert Learner.loads(own.dumps(), CLASSES, trusted=[CONSTANT]).estimator.columns == 9
    with pytest.raises(LearnerError, match="not trusted"):
        Learner.loads(own.dumps(), CLASSES)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_every_learner_passes_its_check_and_is_left_unfitted(kind: object) -> None:
    learner = learner_of(kind)
    learner.check(n_features=5)
    assert not hasattr(learner.estimator, "classes_")


@pytest.mark.exact
@pytest.mark.parametrize("kind", ["logistic", "head", "forest", "hgb", "mlp"])
def test_presets_give_the_same_model_for_the_same_random_state(kind: str) -> None:
    X, codes = records()
    first, again = (Learner.named(kind, CLASSES, random_state=5).fit(X, codes).predict_proba(X) for _ in range(2))
    assert first.tobytes() == again.tobytes()


@pytest.mark.exact
@pytest.mark.parametrize("estimator", [SVC(), LinearSVC()], ids=str)
def test_decision_values_alone_become_their_softmax(estimator: BaseEstimator) -> None:
    X, codes = records()
    model = Learner(estimator, CLASSES).fit(X, codes)
    with one_thread:
        values = model.estimator.decision_function(X)
    expected = [np.exp(row) / sum(np.exp(row)) for row in values]
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-12)
    np.testing.assert_array_equal(model.decision_function(X), values)


def test_huge_decision_values_do_not_overflow() -> None:
    X, codes = records(n_classes=2)
    model = Learner(LinearSVC(), ("no", "yes")).fit(X, codes)
    probabilities = model.predict_proba(X * np.float32(1e6))
    assert np.isfinite(probabilities).all()


@pytest.mark.exact
@pytest.mark.parametrize("estimator", [SVC(), LinearSVC()], ids=str)
def test_two_classes_with_decision_values_alone_become_the_sigmoid(estimator: BaseEstimator) -> None:
    X, codes = records(n_classes=2)
    model = Learner(estimator, CLASSES).fit(X, 1 + 2 * codes)  # bee and dog, of four
    with one_thread:
        values = model.estimator.decision_function(X)
    np.testing.assert_allclose(model.predict_proba(X)[:, 3], 1 / (1 + np.exp(-values)), rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], 1 / (1 + np.exp(values)), rtol=1e-12)
    np.testing.assert_array_equal(model.decision_function(X), values[:, None])


def test_there_are_no_decision_values_where_the_estimator_has_none() -> None:
    assert Learner(GaussianNB(), CLASSES).fit(*records()).decision_function(records()[0]) is None


@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic_regression_stays_in_float32_and_shows_its_coefficients(n_classes: int) -> None:
    X, codes = records(n_classes=n_classes)
    model = Learner.named("logistic", CLASSES[:n_classes]).fit(X.astype(np.float64), codes)
    assert model.network is not None
    assert model.network.coef.dtype == np.float32
    assert model.network.coef.shape == (1 if n_classes == 2 else 4, 5)
    values = model.network.decisions(X).T
    np.testing.assert_allclose(values, model.decision_function(X), rtol=1e-5, atol=1e-6)
    powers = np.exp(np.hstack([np.zeros_like(values), values]) if n_classes == 2 else values)
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), model.predict_proba(X), atol=1e-6)
    assert model.predict_proba(X).dtype == np.float32


@pytest.mark.parametrize("n_classes", [2, 4])
def test_records_of_any_length_are_divided_by_it_within_the_product(n_classes: int) -> None:
    X, codes = records(n_classes=n_classes)
    X = X * np.float32(10) ** np.arange(len(X), dtype=np.float32)[:, None].clip(0, 6) - 1
    X[3], X[4] = 0, np.nan
    sound = np.arange(len(X)) != 4
    model = Learner.named("head", CLASSES[:n_classes]).fit(X[sound], codes[sound])
    assert model.network is not None
    assert model.network.steps is None
    with np.errstate(invalid="ignore"):
        values = model.network.decisions(X).T
    expected = model.decision_function(X[sound])
    np.testing.assert_allclose(values[sound], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(values[4]).all()
    lengths = np.sqrt((X[sound].astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    last = model.estimator[-1]
    by_hand = X[sound] / np.where(lengths > 0, lengths, 1) @ last.coef_.T.astype(np.float64) + last.intercept_
    np.testing.assert_allclose(values[sound], by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "estimator",
    [GaussianNB(), LinearSVC(), make_pipeline(StandardScaler(), make_pipeline(LogisticRegression()))],
    ids=str,
)
def test_only_a_plain_last_step_is_a_network(estimator: BaseEstimator) -> None:
    assert Learner(estimator, CLASSES).fit(*records()).network is None


@pytest.mark.exact
@pytest.mark.parametrize("kind", ["logistic", "head", "forest", "hgb", "mlp"])
def test_a_model_that_has_scored_can_be_pickled(kind: str) -> None:
    X, codes = records()
    model = Learner.named(kind, CLASSES).fit(X, codes)
    assert (model.network is None) == (kind in ("forest", "hgb"))
    expected = model.predict_proba(X)
    assert pickle.loads(pickle.dumps(model)).predict_proba(X).tobytes() == expected.tobytes()


ACTIVATIONS = {
    "identity": lambda sums: sums,
    "logistic": lambda sums: 1 / (1 + np.exp(-sums)),
    "tanh": np.tanh,
    "relu": lambda sums: np.where(sums > 0, sums, 0),
}


@pytest.mark.exact
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_networks_decision_values_are_as_exact_as_its_probabilities(
    activation: str, n_classes: int, scaled: bool
) -> None:
    X, codes = records(1500, n_classes)
    X += np.float32(1)
    network = MLPClassifier((12, 7), activation=activation, max_iter=60, random_state=0)
    model = Learner(make_pipeline(StandardScaler(), network) if scaled else network, CLASSES).fit(X, codes)
    assert model.network is not None
    assert model.network.steps is None  # folded
    small = replace(model.network, block_bytes=4 * 5 * 128)
    values = small.decisions(X).T
    assert values.dtype == np.float32
    exact = X.astype(np.float64)
    if scaled:
        exact = model.estimator[0].transform(exact)
    last = model.estimator[-1] if scaled else model.estimator
    *hidden, output = zip(last.coefs_, last.intercepts_, strict=True)
    for weights, intercepts in hidden:
        exact = ACTIVATIONS[activation](exact @ weights.astype(np.float64) + intercepts)
    exact = exact @ output[0].astype(np.float64) + output[1]
    assert len(np.unique(np.argmax(np.hstack([np.zeros((1500, 1)), exact]), axis=1))) >= n_classes - 1
    np.testing.assert_allclose(values, exact, rtol=1e-5, atol=1e-5)
    # In blocks, at any place of the records, come the same bits.
    height = small.block_rows
    assert height == 128
    assert small.decisions(X[height:]).T.tobytes() == values[height:].tobytes()


@pytest.mark.parametrize(("offset", "folded"), [(0.0, True), (3.0, True), (1e5, False)])
def test_a_scaler_is_folded_only_where_the_probabilities_stay_the_same(offset: float, folded: bool) -> None:
    X, codes = records(600)
    X = (X * np.float32([1, 10, 0.1, 1000, 1]) + np.float32(offset) * np.float32([1, 10, 0.1, 1000, 1])).astype("f4")
    model = Learner.named("logistic", CLASSES).fit(X, codes)
    assert model.network is not None
    assert (model.network.steps is None) == folded
    values = model.network.decisions(X).T.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), model.predict_proba(X), atol=1e-6)


def test_kind_and_tile_rows_are_of_the_last_step() -> None:
    X, codes = records()
    found = {kind: Learner.named(kind, CLASSES).fit(X, codes) for kind in ("logistic", "forest", "hgb")}
    assert [(model.kind, model.tile_rows) for model in found.values()] == [
        ("TunedLogisticRegression", None),
        ("RandomForestClassifier", 8192),
        ("HistGradientBoostingClassifier", 4096),
    ]
    trees = make_pipeline(StandardScaler(), ExtraTreesClassifier(2))
    assert Learner(trees, CLASSES).fit(X, codes).tile_rows == 8192


def test_n_jobs_is_1_however_deep_and_the_users_estimator_is_untouched() -> None:
    forest = RandomForestClassifier(3, n_jobs=-1)
    inner = make_pipeline(StandardScaler(), BaggingClassifier(forest, n_estimators=2, n_jobs=4))
    vote = make_pipeline(VotingClassifier([("inner", inner), ("nb", GaussianNB())], voting="soft", n_jobs=2))
    model = Learner(vote, CLASSES, trusted=["sklearn.utils._bunch.Bunch"]).fit(*records())
    used = {name: value for name, value in model.estimator.get_params().items() if name.endswith("n_jobs")}
    assert len(used) == 3
    assert set(used.values()) == {1}
    # what was really fitted, not only the parameters
    fitted = model.estimator[-1].named_estimators_["inner"][-1].estimators_[0]
    assert fitted.n_jobs == 1
    assert (forest.n_jobs, inner[-1].n_jobs, vote[-1].n_jobs) == (-1, 4, 2)


class ThreadCounter(Constant):
    def fit(self, X, y):  # noqa: ANN001, ANN201
        self.threads_ = [pool["num_threads"] for pool in threadpool_info()]
        return super().fit(X, y)


def test_a_fit_runs_on_one_thread() -> None:
    model = Learner(ThreadCounter(), CLASSES, trusted=[f"{ThreadCounter.__module__}.ThreadCounter"]).fit(*records())
    assert set(model.estimator.threads_) == {1}


def test_weights_reach_the_last_step_of_nested_pipelines() -> None:
    X, codes = records()
    weights = (codes == 1) * 5.0 + 1
    nested = Learner(make_pipeline(StandardScaler(), Pipeline([("nb", GaussianNB())])), CLASSES)
    expected = GaussianNB().fit(StandardScaler().fit_transform(X), codes, sample_weight=weights)
    np.testing.assert_array_equal(nested.fit(X, codes, weights).estimator[-1][-1].theta_, expected.theta_)
    with pytest.raises(LearnerError, match="sample_weight"):
        Learner(KNeighborsClassifier(), CLASSES).fit(X, codes, weights)


@pytest.mark.parametrize("wrap", [ParallelPostFit, Incremental, lambda inner: ParallelPostFit(Incremental(inner))])
def test_wrappers_of_dask_ml_are_taken_off(wrap: type) -> None:
    inner = GaussianNB()
    learner = Learner(wrap(inner), CLASSES)
    assert inside(learner.estimator) is inner
    assert learner.fits_in_blocks == (wrap is not ParallelPostFit), "that of an Incremental is fitted block by block"
    learner.check(5)


def test_warnings_of_a_fit_are_kept_and_not_raised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Learner(MLPClassifier((4,), max_iter=2, random_state=0), CLASSES).fit(*records())
    assert len(model.warnings) == 1
    assert model.warnings[0].startswith(f"{ConvergenceWarning.__name__}: ")
    assert Model.loads(model.dumps()).warnings == model.warnings


class NoMethods(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):  # noqa: ANN001, ANN201
        self.classes_ = np.unique(y)
        return self


class Uncloneable(Constant):
    def __init__(self, value: float | None = None) -> None:
        self.value = [value]
        self.columns = None


class Foreign(Constant):
    def fit(self, X, y):  # noqa: ANN001, ANN201
        self.classes_ = np.array(["x", "y", "z"])
        return self


class Refusing(Constant):
    def fit(self, X, y):  # noqa: ANN001, ANN201
        raise ValueError("cannot learn this")


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (Ridge(), "Ridge"),
        (make_pipeline(StandardScaler(), Ridge()), "got the regressor Ridge"),
        (GaussianNB, r"such as GaussianNB\(\), got the class"),
        (object(), "got object, which has no fit"),
        (KMeans(2), "KMeans is no classifier"),
        (OneClassSVM(), "OneClassSVM is no classifier"),
        (NoMethods(), "neither predict_proba nor decision_function"),
        (Uncloneable(), "Uncloneable cannot be cloned"),
        (Foreign(), r"Foreign\.classes_"),
        (VotingClassifier([("nb", GaussianNB())]), "`voting` must be 'soft'"),
        (Refusing(), r"made-up records of 5 features: .*640 labels of 3 classes: cannot learn this"),
        (SVC(decision_function_shape="ovo"), "`decision_function_shape` must be 'ovr'"),
        (
            make_pipeline(StandardScaler(), SVC(decision_function_shape="ovo")),
            "`svc__decision_function_shape` must be 'ovr'",
        ),
        (Constant(value=np.nan), r"Constant\.predict_proba: 213 of 640 rows hold values that are not finite"),
        (Constant(columns=7), r"\(640, 3\).*got \(640, 7\)"),
        (Constant(value=-0.5), "values from -0.5 to 0.333 with row sums from -1.5 to 1"),
        (Constant(value=2.0), "row sums from 1 to 6"),
        (make_pipeline(FunctionTransformer(lambda X: X), GaussianNB()), "<lambda>.* without a lambda"),
        (Forgetful(value=0.3), "row sums"),
        (Constant(), rf"not trusted: {CONSTANT}.*trusted=\['{CONSTANT}'\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_check_refuses(estimator: object, said: str) -> None:
    with pytest.raises(LearnerError, match=said):
        Learner(estimator, CLASSES).check(5)


def test_a_class_of_the_users_own_is_loaded_when_it_is_trusted() -> None:
    learner = Learner(Constant(), CLASSES, trusted=[CONSTANT])
    learner.check(5)
    model = learner.fit(*records())
    assert model.trusted == (CONSTANT,)
    data = model.dumps()
    assert type(Model.loads(data, trusted=[CONSTANT]).estimator).__name__ == "Constant"
    with pytest.raises(LearnerError, match="not trusted"):
        Model.loads(data)


def test_a_class_of_the_main_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Constant, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Constant", Constant, raising=False)
    with pytest.raises(LearnerError, match="other processes cannot find"):
        Learner(Constant(), CLASSES, trusted=["__main__.Other"]).check(5)


@pytest.mark.parametrize("classes", [(), ("one",), ("a", "b", "a")])
def test_check_refuses_classes_that_cannot_be_told_apart(classes: tuple[str, ...]) -> None:
    with pytest.raises(LabelError, match="`classes`"):
        Learner(GaussianNB(), classes).check(5)


def test_a_learner_that_needs_more_than_a_handful_of_records_passes() -> None:
    Learner(make_pipeline(PCA(64), LogisticRegression()), CLASSES).check(100)
    Learner(KNeighborsClassifier(50, algorithm="brute"), CLASSES).check(100)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([2] * 60, r"got 60 of one \(cat\); label more"),
        ([0] * 59, r"got \(59,\) labels for 60 records"),
        ([0, 4] * 30, "class codes from 0 to 3"),
        ([0, -1] * 30, "class codes from 0 to 3"),
        ([0.0, 1.0] * 30, "got float64"),
        (["ant", "bee"] * 30, "class codes from 0 to 3"),
    ],
)
def test_fit_refuses_labels_that_are_none(labels: list, said: str) -> None:
    with pytest.raises(LearnerError, match=said):
        Learner(GaussianNB(), CLASSES).fit(records()[0], labels)


def test_fit_refuses_no_labels_at_all() -> None:
    with pytest.raises(LearnerError, match=r"got 0 of one \(none\)"):
        Learner(GaussianNB(), CLASSES).fit(np.empty((0, 5), np.float32), [])


def test_a_refusal_of_the_estimator_says_on_what() -> None:
    X, codes = records()
    X[7, 2] = np.nan
    with pytest.raises(LearnerError, match=r"LogisticRegression could not be fitted on 60 labels of 4 classes: .*NaN"):
        Learner.named("logistic", CLASSES).fit(X, codes)


def test_predictions_that_are_not_finite_are_given_as_they_are() -> None:
    X, codes = records()
    model = Learner(GaussianNB(), CLASSES).fit(X, codes)
    X[[3, 5]] = 1e30
    assert np.flatnonzero(~np.isfinite(model.predict_proba(X)).all(axis=1)).tolist() == [3, 5]
    assert np.isnan(model.predict_proba(X[[3, 5]])).all()  # as a tile of such records alone


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "got 0 bytes"),
        (b"not a model", "skops cannot read"),
        (skops.io.dumps([1, 2]), "got a saved list"),
        (skops.io.dumps({"format": 99}), "format 2, got format 99"),
    ],
)
def test_loads_refuses_what_is_no_model(data: bytes, said: str) -> None:
    with pytest.raises(LearnerError, match=said):
        Model.loads(data)


def test_loads_refuses_a_truncated_model() -> None:
    data = Learner(GaussianNB(), CLASSES).fit(*records()).dumps()
    with pytest.raises(LearnerError, match="skops cannot read"):
        Model.loads(data[: len(data) // 2])


def test_what_cannot_be_saved_is_refused() -> None:
    estimator = GaussianNB().fit(*records())
    estimator.generator_ = (n for n in range(3))
    with pytest.raises(LearnerError, match="GaussianNB cannot be saved with skops"):
        Model(estimator, CLASSES, 5, (0, 1, 2, 3)).dumps()


def test_a_learner_is_named_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    here = types.ModuleType("my_learners")
    here.ready, here.make, here.Kind, here.number = SVC(C=3), drawn_once, GaussianNB, lambda: 3
    here.needs_arguments = Pipeline
    monkeypatch.setitem(sys.modules, "my_learners", here)
    assert Learner.named("my_learners:ready", CLASSES).estimator is here.ready
    assert isinstance(Learner.named("my_learners:make", CLASSES).estimator, Constant)
    assert isinstance(Learner.named("my_learners:Kind", CLASSES).estimator, GaussianNB)
    with pytest.raises(LearnerError, match="got int, which has no fit"):
        Learner.named("my_learners:number", CLASSES).check(5)
    with pytest.raises(LearnerError, match="`my_learners:needs_arguments`"):
        Learner.named("my_learners:needs_arguments", CLASSES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("svm", "`estimator` must be one of logistic, head, forest, hgb, mlp, sgd, `module:object` .* got 'svm'"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("sklearn.svm:NoSuchThing", "no attribute 'NoSuchThing'"),
        (":x", "got ':x'"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, said: str) -> None:
    with pytest.raises(LearnerError, match=said):
        Learner.named(name, CLASSES)


# -- committees ----------------------------------------------------------------------


def of_three_classes() -> tuple[np.ndarray, np.ndarray]:
    """Records of all classes but the second."""
    X, codes = records(90)
    codes = np.array([0, 2, 3])[codes % 3]
    return X + np.eye(4, 5, dtype=np.float32)[codes], codes


ENSEMBLES = [
    RandomForestClassifier(7, max_depth=3, random_state=0),
    ExtraTreesClassifier(5, max_depth=3, random_state=0),
    make_pipeline(StandardScaler(), PCA(3), RandomForestClassifier(4, max_depth=3, random_state=0)),
    BaggingClassifier(LogisticRegression(max_iter=500), 5, random_state=0),
    BaggingClassifier(GaussianNB(), 6, max_features=0.6, random_state=0),
    VotingClassifier(
        [("nb", GaussianNB()), ("lr", make_pipeline(StandardScaler(), LogisticRegression()))], voting="soft"
    ),
]


@pytest.mark.parametrize("estimator", ENSEMBLES, ids=str)
def test_the_members_of_an_ensemble_are_its_committee(estimator: BaseEstimator) -> None:
    X, codes = of_three_classes()
    model = Learner(estimator, CLASSES).fit(X, codes, committee=True)
    assert model.bootstraps == ()
    members = list(model.committee(X))
    last = model.estimator[-1] if isinstance(model.estimator, Pipeline) else model.estimator
    assert len(members) == len(last.estimators_)
    assert len({member.tobytes() for member in members}) > 1
    assert all((member[:, 1] == 0).all() for member in members)
    # Each of these estimators predicts the mean of its members.
    np.testing.assert_allclose(np.mean(members, axis=0), model.predict_proba(X), atol=1e-6)


@pytest.mark.exact
@pytest.mark.parametrize(
    "estimator",
    [
        *ENSEMBLES[:3],
        RandomForestClassifier(9, class_weight="balanced", criterion="log_loss", random_state=1),
        make_pipeline(StandardScaler(with_mean=False), ExtraTreesClassifier(3, random_state=0)),
        DecisionTreeClassifier(min_samples_leaf=4, random_state=0),
    ],
    ids=str,
)
def test_trees_give_bit_for_bit_what_scikit_learn_gives(estimator: BaseEstimator) -> None:
    X, codes = of_three_classes()
    model = Learner(estimator, CLASSES).fit(X[:70], codes[:70], sample_weight=np.linspace(0.1, 3, 70))
    others = records(200, seed=9)[0].astype("f4")
    expected = model.estimator.predict_proba(others)
    assert len(np.unique(expected)) > 3
    assert model.predict_proba(others)[:, model.seen].tobytes() == expected.tobytes()
    # Fortran order and doubles come out of a pipeline's first steps.
    assert model.predict_proba(np.asfortranarray(others))[:, model.seen].tobytes() == expected.tobytes()


def test_a_bagging_member_that_missed_a_class_gives_it_no_probability() -> None:
    X, codes = of_three_classes()
    codes[codes == 3] = 2
    codes[5] = 3  # a third of the bootstraps miss the single record
    model = Learner(BaggingClassifier(KNeighborsClassifier(3, algorithm="brute"), 8, random_state=0), CLASSES).fit(
        X, codes
    )
    members = list(model.committee(X))
    own = [len(each.classes_) for each in model.estimator.estimators_]
    assert set(own) == {2, 3}
    for member, seen in zip(members, own, strict=True):
        assert (member[:, 3] == 0).all() == (seen == 2)
        np.testing.assert_allclose(member.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.exact
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("kind", ["logistic", GaussianNB(), LinearSVC(), SVC()], ids=str)
def test_a_single_learner_is_joined_by_bootstraps_of_every_class(kind: object, n_classes: int) -> None:
    X, codes = records(80, n_classes)
    codes[3] = 1  # and one that is rare
    learner = learner_of(kind, CLASSES[:n_classes])
    model = learner.fit(X, codes, committee=True)
    alone = learner.fit(X, codes)
    assert len(model.bootstraps) == 10
    np.testing.assert_array_equal(model.predict_proba(X), alone.predict_proba(X))
    members = list(model.committee(X))
    assert len({member.tobytes() for member in members}) > 5
    for member, estimator in zip(members, model.bootstraps, strict=True):
        assert member.shape == (80, n_classes)
        np.testing.assert_allclose(member.sum(axis=1), 1, rtol=1e-5)
        assert (member.argmax(axis=1) == estimator.predict(X)).mean() > 0.95
        assert estimator.classes_.tolist() == list(range(n_classes))
    again = list(Model.loads(model.dumps()).committee(X))
    assert [member.tobytes() for member in again] == [member.tobytes() for member in members]
    refitted = list(learner.fit(X, codes, committee=True).committee(X))
    np.testing.assert_array_equal(refitted, members)


def test_bootstraps_resample_records_with_their_weights() -> None:
    X, codes = records(60)
    weights = np.where(np.arange(60) < 30, 1.0, 0.0)
    X[30:] = 1e3  # these have no weight, and would move any model
    model = Learner(GaussianNB(), CLASSES).fit(X, codes, weights, committee=True)
    assert all(np.abs(each.theta_).max() < 10 for each in model.bootstraps)


class Dropout(Constant):
    """Gives samples of its own, one after the other."""

    def committee_proba(self, X):  # noqa: ANN001, ANN201
        for sample in range(3):
            p = np.zeros((len(X), len(self.classes_)))
            p[:, sample % p.shape[1]] = 1
            yield p


def test_samples_that_an_estimator_offers_are_its_committee() -> None:
    X, codes = of_three_classes()
    name = f"{Dropout.__module__}.Dropout"
    model = Learner(Dropout(), CLASSES, trusted=[name]).fit(X, codes, committee=True)
    assert [member.argmax(axis=1)[7] for member in model.committee(X)] == [0, 2, 3]
    Learner(Dropout(), CLASSES, trusted=[name]).check(5, "bald")


def test_a_model_without_a_committee_says_how_to_get_one() -> None:
    X, codes = records()
    with pytest.raises(LearnerError, match="LogisticRegression has no committee: fit it with committee=True"):
        next(Learner.named("logistic", CLASSES).fit(X, codes).committee(X))


# -- the last layer ----------------------------------------------------------------------


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_networks_last_layer_gives_its_probabilities(activation: str) -> None:
    X, codes = records()
    network = MLPClassifier((6, 4), activation=activation, max_iter=300, random_state=0)
    model = Learner(make_pipeline(StandardScaler(), network), CLASSES).fit(X, codes)
    h, last = model.layer_inputs(X), model.estimator[-1]
    z = h @ last.coefs_[-1] + last.intercepts_[-1]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(axis=1, keepdims=True), model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("estimator", [LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())])
def test_a_logistic_regressions_inputs_give_its_decisions(estimator: BaseEstimator) -> None:
    X, codes = records()
    model = Learner(estimator, CLASSES).fit(X, codes)
    last = model.estimator[-1] if isinstance(model.estimator, Pipeline) else model.estimator
    values = model.layer_inputs(X) @ last.coef_.T + last.intercept_
    np.testing.assert_allclose(values, model.estimator.decision_function(X), atol=1e-4)


@pytest.mark.parametrize("kind", ["forest", GaussianNB(), LinearSVC()], ids=str)
def test_gradients_are_refused_before_the_first_round_where_there_is_no_softmax_layer(kind: object) -> None:
    with pytest.raises(LearnerError, match="`expected_gradient_length`"):
        learner_of(kind).check(5, "expected_gradient_length")
    learner_of(kind).check(5, "bald")


def test_tuned_finds_on_a_cluster_what_scikit_learn_finds_here(cluster: Client) -> None:
    from sklearn.model_selection import GridSearchCV

    X, codes = records(n=120, n_features=8, seed=5)
    X += np.random.default_rng(1).standard_normal(X.shape, dtype=np.float32)
    learner = Learner(make_pipeline(StandardScaler(), LogisticRegression(C=1e-4)), CLASSES)
    grid = {"logisticregression__C": [1e-4, 1e-2, 1.0, 100.0]}
    alone = GridSearchCV(learner.estimator, grid, cv=5, scoring="accuracy").fit(X, codes)
    tuned = learner.tuned(X, codes, grid, cluster)
    assert tuned.estimator.get_params()["logisticregression__C"] == alone.best_params_["logisticregression__C"]
    assert alone.best_params_["logisticregression__C"] != learner.estimator.get_params()["logisticregression__C"]
    assert (tuned.classes, tuned.trusted) == (learner.classes, learner.trusted)


def test_tuned_refuses_parameters_that_the_estimator_lacks() -> None:
    with pytest.raises(LearnerError, match=r"LogisticRegression has no \['C'\]; it has .*logisticregression__C"):
        Learner.named("logistic", CLASSES).tuned(*records(), {"C": [1]}, client=None)


def test_a_model_predicts_names_as_scikit_learn_does() -> None:
    X, codes = records(90, 3)
    names = np.array(["ham", "spam", "eggs"])
    model = Learner(LogisticRegression(), names).fit(X, codes)
    alone = LogisticRegression().fit(X, names[codes])
    assert model.classes_.tolist() == ["ham", "spam", "eggs"]
    np.testing.assert_array_equal(model.predict(X.tolist()), alone.predict(X))
    probabilities = model.predict_proba(X.astype(np.float64))
    np.testing.assert_allclose(probabilities[:, np.argsort(names)], alone.predict_proba(X), atol=1e-5)
    with pytest.raises(LearnerError, match="refused"):
        model.predict(X[:, :1])


def test_a_model_predicts_no_class_from_what_is_not_finite() -> None:
    X, codes = records(60, 2)
    model = Learner(Constant(value=np.nan), ("a", "b")).try_fit(X, codes)
    with pytest.raises(LearnerError, match="20 of 60"):
        model.predict(X)
