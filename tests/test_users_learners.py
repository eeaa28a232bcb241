"""Learners that users of scikit-learn bring: what `check` accepts, a round uses, and scores as the learner says."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.decomposition import NMF, PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    OneHotEncoder,
    PowerTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC

from dal import Campaign
from dal.campaign import Measuring
from dal.errors import LabelError, LearnerError
from dal.learners.learner import Learner
from dal.learners.models import score_block
from dal.pool import Pool
from dal.selection.explore import uniform_rows

CLASSES = ("ant", "bee", "cat")


class DrawsAgain(BaseEstimator):
    """As a step of imbalanced-learn: it changes the records of a fit, and has no `transform`."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "DrawsAgain":  # noqa: ARG002
        return self

    def fit_resample(self, X: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:  # noqa: ANN401
        rarest = np.bincount(y)[np.unique(y)].min()
        rows = np.concatenate([np.flatnonzero(y == each)[:rarest] for each in np.unique(y)])
        return X[rows], y[rows]


class Balanced(Pipeline):
    """As the pipeline of imbalanced-learn."""

    def fit(self, X: Any, y: np.ndarray) -> "Balanced":  # noqa: ANN401
        for _, step in self.steps[:-1]:
            if hasattr(step, "fit_resample"):
                X, y = step.fit_resample(X, y)
            else:
                X = step.fit_transform(X, y)
        self.steps[-1][1].fit(X, y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: ANN401
        for _, step in self.steps[:-1]:
            X = X if hasattr(step, "fit_resample") else step.transform(X)
        return self.steps[-1][1].predict_proba(X)


class FromZero(GaussianNB):
    """As XGBoost: the classes of a fit must be 0 to k-1."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "FromZero":
        if not np.array_equal(np.unique(y), np.arange(y.max() + 1)):
            raise ValueError(f"Invalid classes inferred from unique values of `y`, got {np.unique(y)}")
        return super().fit(X, y)


class Unsure(ClassifierMixin, BaseEstimator):
    """Gives float32 probabilities in a list, and both decision values of two classes."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Unsure":
        self.classes_, self.means_ = np.unique(y), np.array([X[y == each].mean(axis=0) for each in np.unique(y)])
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return -((X[:, None] - self.means_[None]) ** 2).sum(axis=2)


def to_csc(X: np.ndarray) -> sparse.csc_matrix:
    return sparse.csc_matrix(X)


class OfNearOnes(GaussianNB):
    """As label spreading: of a record that is far from all others, it says nothing."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.where(np.abs(X).max(axis=1, keepdims=True) > 50, np.nan, super().predict_proba(X))


TRUSTED = [f"{__name__}.{each.__name__}" for each in (DrawsAgain, Balanced, FromZero, OfNearOnes, Unsure, to_csc)]


def bins() -> KBinsDiscretizer:
    return KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf")


def forest(**how: Any) -> RandomForestClassifier:  # noqa: ANN401
    return RandomForestClassifier(9, random_state=0, **how)


def logistic(**how: Any) -> LogisticRegression:  # noqa: ANN401
    return LogisticRegression(max_iter=300, **how)


def one_hot(**how: Any) -> OneHotEncoder:  # noqa: ANN401
    return OneHotEncoder(handle_unknown="ignore", **how)


def drawn(kind: str, n: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % 3)
    mean = np.eye(3, 4)[codes]
    X = {
        "numbers": lambda: rng.standard_normal((n, 4)) + 3 * mean,
        "counts": lambda: rng.poisson(1 + 4 * mean),
        "categories": lambda: np.c_[codes + 1, rng.integers(1, 5, (n, 3))],
        "positive": lambda: rng.gamma(2, 1, (n, 4)) + mean + 0.01,
    }[kind]()
    return X.astype(np.float32), codes


USERS = {
    "one-hot, linear": ("categories", make_pipeline(one_hot(), logistic())),
    "one-hot in float32": ("categories", make_pipeline(one_hot(dtype=np.float32), logistic())),
    "one-hot, network": (
        "categories",
        make_pipeline(
            one_hot(dtype=np.float32), MLPClassifier((5,), max_iter=60, learning_rate_init=0.05, random_state=0)
        ),
    ),
    "one-hot, forest": ("categories", make_pipeline(one_hot(), forest())),
    "bins, linear": ("numbers", make_pipeline(bins(), logistic())),
    "bins, trees": ("numbers", make_pipeline(bins(), ExtraTreesClassifier(9, random_state=0))),
    "bins, bagging": ("numbers", make_pipeline(bins(), BaggingClassifier(logistic(), 4, max_features=0.5))),
    "bins, voting": (
        "numbers",
        make_pipeline(bins(), VotingClassifier([("a", logistic()), ("b", forest())], voting="soft")),
    ),
    "tf-idf, linear": ("counts", make_pipeline(TfidfTransformer(), logistic())),
    "tf-idf, forest": ("counts", make_pipeline(TfidfTransformer(), forest())),
    "sparse columns, best, scaled": (
        "numbers",
        make_pipeline(FunctionTransformer(to_csc), SelectKBest(k=3), MaxAbsScaler(), logistic()),
    ),
    "columns": (
        "categories",
        make_pipeline(
            make_column_transformer((one_hot(), [0, 1]), (StandardScaler(), [2]), sparse_threshold=1.0), logistic()
        ),
    ),
    "union": ("numbers", make_pipeline(FeatureUnion([("a", PCA(2)), ("b", bins())]), logistic())),
    "bagging of features": ("numbers", BaggingClassifier(logistic(), 5, max_features=0.5, random_state=0)),
    "bagging of pipelines": (
        "numbers",
        BaggingClassifier(make_pipeline(StandardScaler(), logistic()), 4, max_features=2, random_state=0),
    ),
    "bagging of boosting": (
        "numbers",
        BaggingClassifier(HistGradientBoostingClassifier(max_iter=4), 3, max_features=0.5, random_state=0),
    ),
    "drawn again, linear": ("numbers", Balanced([("s", StandardScaler()), ("d", DrawsAgain()), ("l", logistic())])),
    "drawn again, forest": ("numbers", Balanced([("d", DrawsAgain()), ("f", forest())])),
    "from zero": ("numbers", FromZero()),
    "two decision values": ("numbers", Unsure()),
    "calibrated": ("numbers", CalibratedClassifierCV(LinearSVC(), cv=2)),
    "stacked": ("numbers", StackingClassifier([("a", logistic()), ("b", GaussianNB())], cv=2)),
    "searched": ("numbers", GridSearchCV(logistic(), {"C": [0.1, 1]}, cv=2)),
    "one versus rest": ("numbers", OneVsRestClassifier(logistic())),
    "svc": ("numbers", SVC()),
    "sgd": ("numbers", SGDClassifier(random_state=0)),
    "neighbours": ("numbers", KNeighborsClassifier(3)),
    "discriminants": ("numbers", QuadraticDiscriminantAnalysis(reg_param=0.1)),
    "linear discriminants": ("numbers", LinearDiscriminantAnalysis()),
    "dummy": ("numbers", DummyClassifier()),
    "boosting of categories": (
        "categories",
        HistGradientBoostingClassifier(categorical_features=[0, 1], max_iter=9, early_stopping=False),
    ),
    "multinomial": ("counts", MultinomialNB()),
    "complement": ("counts", ComplementNB()),
    "bernoulli": ("numbers", BernoulliNB()),
    "categorical": ("categories", CategoricalNB(min_categories=9)),
    "logarithm": ("counts", make_pipeline(FunctionTransformer(np.log1p), logistic())),
    "chi2": ("counts", make_pipeline(SelectKBest(chi2, k=2), logistic())),
    "factors": ("counts", make_pipeline(NMF(2, init="nndsvda", tol=1e-2, random_state=0), logistic())),
    "logarithm of what is positive": ("positive", make_pipeline(FunctionTransformer(np.log), logistic())),
    "powers": ("positive", make_pipeline(PowerTransformer("box-cox"), logistic())),
    "frames, forest": ("numbers", make_pipeline(StandardScaler().set_output(transform="pandas"), forest())),
    "frames, voting": (
        "numbers",
        make_pipeline(
            StandardScaler().set_output(transform="pandas"),
            VotingClassifier([("a", logistic()), ("b", GaussianNB())], voting="soft"),
        ),
    ),
    "splines": ("numbers", make_pipeline(SplineTransformer(), logistic())),
    "nothing before": ("numbers", Pipeline([("p", "passthrough"), ("s", StandardScaler()), ("l", logistic())])),
}


def margin_of(model: Any, X: np.ndarray, seen: list[int]) -> np.ndarray:  # noqa: ANN401
    """One minus the gap of the two largest probabilities that the user's own estimator gives."""
    estimator = model.estimator
    if hasattr(estimator, "predict_proba"):
        p = estimator.predict_proba(X)
    else:
        z = estimator.decision_function(X).reshape(len(X), -1)
        z = np.c_[np.zeros(len(X)), z] if z.shape[1] == 1 else z
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
    assert p.shape == (len(X), len(seen))
    first, second = np.sort(p, axis=1)[:, :-3:-1].T
    return 1 - (first - second)


HEAVY = ("factors", "one-hot, network", "powers", "searched", "stacked")


@pytest.mark.filterwarnings("ignore:Bins whose width")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in sorted(USERS)]
)
def test_what_is_accepted_for_a_pool_scores_it_as_the_users_estimator_does(name: str) -> None:
    kind, estimator = USERS[name]
    X, codes = drawn(kind)
    learner = Learner(estimator, CLASSES, trusted=TRUSTED)
    learner.check(4, "bald", records=X)
    seen = codes != 1  # a class that nobody has found yet
    for rows, known in ((seen, [0, 2]), (codes >= 0, [0, 1, 2])):
        model = learner.fit(X[rows], codes[rows], committee=len(known) == 3)
        assert model.seen.tolist() == known
        expected = margin_of(model, X, known)
        found = score_block("margin", model.for_score("margin"), X)
        np.testing.assert_allclose(found.score, expected, atol=2e-6)
        proba = model.predict_proba(X)
        assert (proba[:, ~np.isin(np.arange(3), known)] == 0).all()
        right = proba.argmax(axis=1) == codes
        assert right[rows].mean() > (0.3 if name == "dummy" else 0.45)
        sure = proba.max(axis=1) > np.sort(proba, axis=1)[:, -2] + 1e-5
        np.testing.assert_array_equal(model.seen[found.predicted][sure], proba.argmax(axis=1)[sure])
    members = np.stack(list(model.committee(X)))
    disagreement = entropy(members.mean(axis=0)) - entropy(members).mean(axis=0)
    np.testing.assert_allclose(score_block("bald", model, X).score, disagreement / np.log(3), atol=1e-6)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


@pytest.mark.parametrize("name", ["one-hot in float32", "bins, linear"])
def test_gradients_of_sparse_records_are_those_of_dense_ones(name: str) -> None:
    kind, estimator = USERS[name]
    X, codes = drawn(kind)
    learner = Learner(estimator, CLASSES)
    learner.check(4, "expected_gradient_length", records=X)
    model = learner.fit(X, codes)
    h = model.estimator[0].transform(X).toarray()
    p = model.estimator.predict_proba(X)
    length = sum(p[:, c] * np.linalg.norm(p - np.eye(3)[c], axis=1) for c in range(3))
    g = length * np.sqrt((h**2).sum(axis=1) + 1)
    np.testing.assert_allclose(score_block("expected_gradient_length", model, X).score, g / (1 + g), atol=1e-6)


@pytest.mark.parametrize("name", ["one-hot in float32", "bins, bagging", "drawn again, forest", "multinomial"])
def test_what_a_campaign_accepts_it_asks_by(name: str, tmp_path: Path) -> None:
    kind, estimator = USERS[name]
    X, codes = drawn(kind)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    how = {"estimator": estimator, "batch_size": 9, "trusted": TRUSTED, "measuring": Measuring(stop_set=0)}
    campaign = Campaign.create(
        tmp_path / "c", pool, CLASSES, strategy="bald" if "bagging" in name else "default", **how
    )
    for found in (np.where(codes == 1, 0, codes), codes):
        batch = campaign.next_batch()
        campaign.label(batch, found[batch.rows])
    assert len(campaign.next_batch().rows) == 9
    assert campaign.rounds.get(3).trained_on == 18


def test_records_of_which_a_learner_says_nothing_are_not_drawn_and_stop_no_campaign(tmp_path: Path) -> None:
    X, codes = drawn("numbers", 600)
    far = np.fromiter(islice(uniform_rows(600, np.arange(30), 0, 1), 20), np.int64)  # those that would be drawn first
    X[far] *= 1000
    pool = Pool.build(X, tmp_path / "pool.zarr")
    how = {
        "estimator": OfNearOnes(),
        "batch_size": 10,
        "trusted": TRUSTED,
        "explore": 0.1,
        "measuring": Measuring(stop_set=200),
    }
    campaign = Campaign.create(tmp_path / "c", pool, CLASSES, strategy="margin", **how)
    campaign.label([str(row) for row in range(30)], codes[:30])
    batch = campaign.next_batch()
    assert sum(asked.explore for asked in campaign.rounds.batch(1)) == 1
    assert not np.isin(batch.rows, far).any()
    assert 0 <= campaign.rounds.get(1).notes["measured"]["uncertainty"] <= 1


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        ("numbers", MultinomialNB()),
        ("numbers", make_pipeline(PowerTransformer("box-cox"), GaussianNB())),
        ("categories", make_pipeline(OneHotEncoder(), logistic())),
    ],
)
def test_what_the_pool_cannot_be_scored_by_is_refused_at_once(
    kind: str, estimator: BaseEstimator, tmp_path: Path
) -> None:
    X = drawn(kind, 1000)[0]
    if kind == "categories":  # more than a sample of labels will have shown
        X[:, 1] = np.arange(1000)
    with pytest.raises(LearnerError, match="records of the pool"):
        Campaign.create(tmp_path / "c", Pool.build(X, tmp_path / "p.zarr"), CLASSES, estimator=estimator)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("X", [np.ones((300, 4)), np.full((300, 4), np.nan), np.ones((3, 4))])
def test_pools_of_few_or_equal_or_no_records_are_no_reason_to_refuse_a_learner(X: np.ndarray) -> None:
    for name in ("logistic", "forest", "hgb"):
        Learner.named(name, CLASSES).check(4, "margin", records=X.astype(np.float32))


@pytest.mark.parametrize("by", ["names", "codes", "numpy codes"])
def test_class_weights_name_classes_also_those_that_a_fit_has_not_seen(by: str) -> None:
    X, codes = drawn("numbers")
    rows = codes != 1
    weights = {"ant": 1.0, "bee": 9.0, "cat": 30.0}
    given = weights if by == "names" else dict(enumerate(weights.values()))
    if by == "numpy codes":
        given = {np.int64(code): weight for code, weight in given.items()}
    for make in (logistic, forest, lambda **how: make_pipeline(StandardScaler(), SVC(**how))):
        learner = Learner(make(class_weight=given), CLASSES)
        learner.check(4, records=X)
        model = learner.fit(X[rows], codes[rows])
        own = make(class_weight={0: 1.0, 1: 30.0}).fit(X[rows], codes[rows] // 2)
        np.testing.assert_allclose(
            model.decision_function(X) if hasattr(own, "decision_function") else model.predict_proba(X)[:, [0, 2]],
            own.decision_function(X)[:, None] if hasattr(own, "decision_function") else own.predict_proba(X),
            atol=1e-4,
        )
    with pytest.raises(LabelError, match=r"class_weight.*dog"):
        Learner(logistic(class_weight={"dog": 1}), CLASSES).check(4)


def test_classes_that_are_numbers_are_weighted_by_their_names() -> None:
    X, codes = drawn("numbers")
    model = Learner(GaussianNB(), ("1", "0", "2")).fit(X, codes)
    assert model.seen.tolist() == [0, 1, 2]
    weighted = Learner(logistic(class_weight={0: 50.0, 1: 1.0, 2: 1.0}), ("1", "0", "2")).fit(X, codes)
    plain = Learner(logistic(), ("1", "0", "2")).fit(X, codes)
    more = weighted.predict_proba(X)[:, 1] - plain.predict_proba(X)[:, 1]
    assert more.mean() > 0.01  # the class called 0 has the code 1


def test_a_feature_that_no_labelled_record_has_yet_is_no_reason_to_refuse_a_fit() -> None:
    X, codes = drawn("numbers")
    holed = X.copy()
    holed[:, 3] = np.nan
    for name in ("hgb", "forest"):
        model = Learner.named(name, CLASSES).fit(holed, codes)
        assert (model.predict_proba(X).argmax(axis=1) == codes).mean() > 0.9
    model = Learner(TAKE_MISSING["imputed"], CLASSES).fit(holed, codes)
    np.testing.assert_allclose(model.predict_proba(X), model.predict_proba(holed), atol=1e-6)


def test_what_is_configured_for_all_of_scikit_learn_changes_no_model() -> None:
    X, codes = drawn("numbers")
    learner = Learner(make_pipeline(StandardScaler(), VotingClassifier([("a", logistic())], voting="soft")), CLASSES)
    expected = learner.fit(X, codes).predict_proba(X)
    with sklearn.config_context(transform_output="pandas", assume_finite=True):
        model = learner.fit(X, codes)
        np.testing.assert_array_equal(model.predict_proba(X), expected)
        assert [member.shape for member in model.committee(X)] == [(240, 3)]
        X[3] = np.nan
        with pytest.raises(LearnerError, match="NaN"):
            learner.fit(X, codes)


@pytest.mark.parametrize("weighted", [True, False])
def test_steps_that_draw_records_again_take_no_weights(weighted: bool) -> None:
    X = drawn("numbers")[0]
    learner = Learner(USERS["drawn again, linear"][1], CLASSES, trusted=TRUSTED)
    assert not learner.takes_weights
    if weighted:
        with pytest.raises(LearnerError, match="sample_weight"):
            learner.check(4, records=X, weighted=True)
    else:
        learner.check(4, records=X)


TAKE_MISSING = {
    "hgb": HistGradientBoostingClassifier(max_iter=9),
    "forest": forest(),
    "imputed": make_pipeline(SimpleImputer(), StandardScaler(), logistic()),
    "imputed counts": make_pipeline(SimpleImputer(strategy="most_frequent"), MultinomialNB()),
    "one-hot": make_pipeline(one_hot(), logistic()),
    "bagging": BaggingClassifier(HistGradientBoostingClassifier(max_iter=4), 2),
    "dummy": DummyClassifier(),
}
REFUSE_MISSING = {
    "linear": logistic(),
    "scaled": make_pipeline(StandardScaler(), logistic()),  # whose first step takes them
    "network": MLPClassifier((3,), max_iter=5),
    "neighbours": KNeighborsClassifier(),
    "sums that become NaN": Unsure(),
}


@pytest.mark.parametrize("name", [*TAKE_MISSING, *REFUSE_MISSING])
def test_whether_a_learner_takes_missing_features_is_tried(name: str) -> None:
    estimator = (TAKE_MISSING | REFUSE_MISSING)[name]
    learner = Learner(estimator, CLASSES, trusted=TRUSTED)
    assert learner.takes_missing(4) == (name in TAKE_MISSING)
    X, codes = drawn("counts")
    model = learner.fit(X, codes)
    assert model.takes_missing == (name in TAKE_MISSING)
    assert type(model).loads(model.dumps(), TRUSTED).takes_missing == model.takes_missing


def test_a_learner_that_needs_many_records_is_tried_on_many_for_missing_ones() -> None:
    neighbours = KNeighborsClassifier(60)
    assert Learner(make_pipeline(SimpleImputer(), neighbours), CLASSES).takes_missing(4)
    assert not Learner(neighbours, CLASSES).takes_missing(4)


REAL = {
    "xgboost": lambda: pytest.importorskip("xgboost").XGBClassifier(n_estimators=4),
    "lightgbm": lambda: pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=4, verbose=-1, min_child_samples=2),
    "catboost": lambda: pytest.importorskip("catboost").CatBoostClassifier(
        iterations=4, verbose=0, allow_writing_files=False
    ),
    "imblearn": lambda: pytest.importorskip("imblearn.pipeline").make_pipeline(
        StandardScaler(), pytest.importorskip("imblearn.over_sampling").RandomOverSampler(), logistic()
    ),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_other_packages_learners_score_as_they_predict(name: str) -> None:
    estimator = REAL[name]()
    X, codes = drawn("numbers")
    trusted = [
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "catboost.core.CatBoostClassifier",
        "imblearn.pipeline.Pipeline",
        "imblearn.over_sampling._random_over_sampler.RandomOverSampler",
    ]
    learner = Learner(estimator, CLASSES, trusted=trusted)
    learner.check(4, "margin", records=X)
    rows = codes != 1
    model = learner.fit(X[rows], codes[rows])
    assert model.seen.tolist() == [0, 2]
    found = score_block("margin", model.for_score("margin"), X)
    np.testing.assert_allclose(found.score, margin_of(model, X, [0, 2]), atol=2e-6)
    assert (model.predict_proba(X).argmax(axis=1)[rows] == codes[rows]).mean() > 0.8
