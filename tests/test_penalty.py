"""The penalty chosen on the labels: against cross-validation by scikit-learn's own functions, fold by fold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.penalty import FEWEST, FOLDS, TunedLogisticRegression, held_out, nearest

CLASSES = ("ant", "bee", "cat")


def drawn(
    n: int, d: int, *, told: float = 1.0, n_classes: int = 3, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw records of which only the first features say something of the class."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % n_classes)
    X = rng.standard_normal((n, d), dtype=np.float32)
    X[:, :n_classes] += np.float32(told) * np.eye(n_classes, dtype=np.float32)[codes]
    return X, codes


def twin(X: NDArray[np.float32], codes: NDArray[np.int64]) -> float:
    """Choose by plain loops and scikit-learn's cross-validation, where every class is in every fold."""
    order, folds = held_out(X, codes)
    X, codes = X[order], codes[order]
    kinds = np.unique(codes)
    weight = np.array([1 / len(kinds) / (codes == code).sum() for code in codes])
    tried: list[tuple[float, NDArray[np.float64], NDArray[np.float64]]] = []
    for C in (1, 1 / 4, 1 / 16, 1 / 64, 1 / 256):
        plain = LogisticRegression(C=C, max_iter=1000)
        said = cross_val_predict(plain, X, codes, cv=PredefinedSplit(folds), method="predict_proba")
        loss = -np.log([row[kinds.tolist().index(code)] for row, code in zip(said, codes, strict=True)])
        if tried and (loss * weight).sum() >= (tried[-1][1] * weight).sum():
            break
        tried.append((C, loss, (kinds[said.argmax(axis=1)] != codes).astype(float)))
    chosen = []
    for measure, errors in ((1, 2.0), (2, 1.0)):
        best = min(tried, key=lambda one: (one[measure] * weight).sum())
        for one in tried:
            gap = one[measure] - best[measure]
            mean = (gap * weight).sum()
            if mean <= errors * np.sqrt(((gap - mean) ** 2 * weight**2).sum()):
                chosen.append(one[0])
                break
    return max(chosen)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(("n", "d", "told"), [(300, 4, 3.0), (150, 60, 0.7), (400, 90, 0.4), (90, 40, 0.0)])
def test_the_penalty_is_that_of_a_plain_cross_validation(n: int, d: int, told: float, n_classes: int) -> None:
    X, codes = drawn(n, d, told=told, n_classes=n_classes)
    fitted, expected = TunedLogisticRegression().fit(X, codes + 5), twin(X, codes + 5)
    assert (fitted.C_, fitted.judged_) == (expected, n)
    plain = LogisticRegression(C=fitted.C_, max_iter=1000).fit(X, codes + 5)
    np.testing.assert_array_equal(fitted.coef_, plain.coef_)
    assert fitted.coef_.dtype == np.float32
    assert fitted.get_params() == TunedLogisticRegression().get_params()


def test_noise_asks_for_a_stronger_penalty_and_clear_classes_do_not() -> None:
    assert TunedLogisticRegression().fit(*drawn(300, 4, told=3.0)).C_ == 1
    assert TunedLogisticRegression().fit(*drawn(400, 90, told=0.4)).C_ < 0.1
    assert TunedLogisticRegression(least_C=0.25).fit(*drawn(600, 90, told=0.4)).C_ == 0.25


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_labels_does_not_matter(seed: int) -> None:
    X, codes = drawn(120, 30, told=0.6)
    order = np.random.default_rng(seed).permutation(len(codes))
    model, other = (TunedLogisticRegression().fit(X[each], codes[each]) for each in (slice(None), order))
    assert (other.C_, other.judged_) == (model.C_, model.judged_)
    (drawn_, folds), (drawn_again, again) = held_out(X, codes), held_out(X[order], codes[order])
    assert X[drawn_].tobytes() == X[order][drawn_again].tobytes()
    assert folds.tolist() == again.tolist()


def test_folds_hold_as_many_of_each_class_and_equal_records_together(monkeypatch: pytest.MonkeyPatch) -> None:
    X, codes = drawn(203, 5)
    X, codes = np.concatenate([X, X[20:60]]), np.concatenate([codes, (codes[20:60] + 1) % 3])
    order, folds = held_out(X, codes)
    assert sorted(order.tolist()) == list(range(243))
    fold = dict(zip(order.tolist(), folds.tolist(), strict=True))
    assert [fold[20 + each] for each in range(40)] == [fold[203 + each] for each in range(40)]
    order, folds = held_out(X[:203], codes[:203])
    counts = np.array([np.bincount(codes[order][folds == each], minlength=3) for each in range(FOLDS)])
    assert np.ptp(counts, axis=0).max() <= 1
    monkeypatch.setattr("dal.learners.penalty.MOST", 50)
    fewer, _ = held_out(X[:203], codes[:203])
    assert fewer.tolist() == order[:50].tolist()


def test_few_labels_leave_the_penalty_as_it_is() -> None:
    X, codes = drawn(FEWEST - 1, 60, told=0.2)
    few = TunedLogisticRegression().fit(X, codes)
    assert (few.C_, few.judged_) == (1, 0)
    assert few.chosen_ == "C = 1, as fewer than 30 labels can be held out to choose by"


def test_classes_of_one_label_are_learned_and_not_judged() -> None:
    X, codes = drawn(100, 20, n_classes=2)
    codes[[7, 40]] = [2, 3]
    fitted = TunedLogisticRegression().fit(X, codes)
    assert fitted.judged_ == 98
    assert fitted.classes_.tolist() == [0, 1, 2, 3]
    # Of two classes the one label of the second is held out once; then there is nothing to fit.
    codes = np.zeros(100, dtype=np.int64)
    codes[11] = 1
    assert TunedLogisticRegression().fit(X, codes).judged_ == 80


def test_weights_count_in_the_choice() -> None:
    X, codes = drawn(300, 40, told=1.2)
    other, noise = drawn(300, 40, told=0.0, seed=1)
    both, labels = np.concatenate([X, other]), np.concatenate([codes, noise])
    weights = np.repeat([1.0, 1e-9], 300)
    clear, mixed = TunedLogisticRegression().fit(both, labels, weights), TunedLogisticRegression().fit(both, labels)
    assert clear.C_ > mixed.C_
    # A weight of four is a C of four.
    heavy, strong = drawn(400, 90, told=0.4), TunedLogisticRegression(C=4, least_C=0.004)
    assert TunedLogisticRegression().fit(*heavy, np.full(400, 4.0)).C_ == strong.fit(*heavy).C_ / 4


def test_nearest_is_the_first_that_chance_cannot_tell_from_the_best() -> None:
    shares = np.full(100, 0.01)
    base = np.ones(100)
    better = base - 0.1
    noisy = base + np.where(np.arange(100) % 2, 1.0, -1.0)
    assert nearest(np.array([base, better]), shares, 2.0) == 1
    assert nearest(np.array([base + 0.05, noisy]), shares, 2.0) == 0
    assert nearest(np.array([base + 0.05, noisy]), shares, 0.4) == 1
    assert nearest(np.array([base, base]), shares, 0.0) == 0


def test_the_preset_chooses_and_its_model_comes_back() -> None:
    X, codes = drawn(400, 90, told=0.4)
    model = Learner.named("logistic", CLASSES).fit(X, codes)
    loaded = Model.loads(model.dumps())
    assert loaded.chosen == model.chosen
    assert loaded.chosen.startswith("C = 0.")
    assert loaded.chosen.endswith(" instead of 1, by cross-validation on 400 labels")
    assert loaded.network is not None
    assert loaded.network.steps is None  # the scaler is folded into the coefficients
    last = loaded.estimator[-1]
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=last.C_, max_iter=1000)).fit(X, codes)
    np.testing.assert_allclose(loaded.predict_proba(X), plain.predict_proba(X), rtol=0, atol=1e-6)
    assert Learner(plain, CLASSES).fit(X, codes).chosen == ""


def test_a_committee_takes_the_penalty_of_the_model() -> None:
    X, codes = drawn(400, 90, told=0.4)
    learner = Learner.named("logistic", CLASSES)
    model = learner.fit(X, codes, committee=True)
    chosen = model.estimator[-1].C_
    assert chosen < 1
    assert {(each[-1].C_, each[-1].judged_, each[-1].chosen_) for each in model.bootstraps} == {(chosen, 0, "")}
    again = learner.settled(model).fit(X[:40], codes[:40])
    assert (again.estimator[-1].C_, again.chosen) == (chosen, "")
    assert learner.estimator[-1].get_params() == TunedLogisticRegression().get_params()
    forest = Learner.named("forest", CLASSES)
    assert forest.settled(forest.fit(X, codes)) is forest


def test_records_that_no_fit_can_take_are_refused() -> None:
    X, codes = drawn(60, 5)
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        TunedLogisticRegression().fit(X, codes)
