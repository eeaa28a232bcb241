"""The comparison of learners: folds, weights and intervals against plain loops, and how often the intervals hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from dal.errors import InputError
from dal.evidence.comparison import ALIKE, HEAVIEST, Judged, compare, margin_strata, raked
from dal.evidence.folds import FEWEST_RECORDS, again, dealt, grouped, lacking, marks_of

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def records(n: int, d: int = 3, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


# -- folds -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 60), st.integers(2, 6), st.integers(0, 4))
def test_folds_follow_contents_and_are_even(seed: int, n: int, n_folds: int, repeat: int) -> None:
    rng = np.random.default_rng(seed)
    X = records(n, seed=seed)[rng.integers(0, n, n)]  # some are there several times
    codes = rng.integers(0, 3, n)
    order = rng.permutation(n)
    marks = again(marks_of(X), repeat)
    folds = dealt(marks, codes, n_folds)
    shuffled = dealt(again(marks_of(X[order]), repeat), codes[order], n_folds)
    assert np.array_equal(shuffled, folds[order])
    for mark in np.unique(marks):
        assert len(set(folds[marks == mark])) == 1
    kinds = {mark: min(codes[marks == mark]) for mark in np.unique(marks)}
    for kind in set(kinds.values()):
        of = [folds[marks == mark][0] for mark, each in kinds.items() if each == kind]
        counts = np.bincount(of, minlength=n_folds)
        assert counts.max() - counts.min() <= 1


def test_repeats_deal_differently() -> None:
    marks, codes = marks_of(records(200)), np.arange(200) % 2
    first, second = (dealt(again(marks, repeat), codes, 5) for repeat in (0, 1))
    assert 0.1 < (first == second).mean() < 0.35


def slow_groups(X: NDArray[np.float32]) -> list[set[int]]:
    """Join records by plain loops: equal ones, and those at a tenth of the median distance to the nearest other one."""
    distinct = np.unique(X, axis=0).astype(np.float64)
    apart = np.sqrt(((distinct[:, None] - distinct[None]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.inf)
    radius = 0.1 * math.sqrt(np.median((apart**2).min(axis=1)))
    points = X.astype(np.float64)
    groups = [{at} for at in range(len(X))]
    for a in range(len(X)):
        for b in range(a):
            if math.dist(points[a], points[b]) < radius:
                mine = next(group for group in groups if a in group)
                theirs = next(group for group in groups if b in group)
                if mine is not theirs:
                    mine |= theirs
                    groups.remove(theirs)
    return groups


def test_near_equal_records_are_one_group_in_chains() -> None:
    X = records(60, d=2)
    spread = np.float32(0.004)
    X = np.concatenate([X, X[:10] + spread, X[:5] + 2 * spread, X[20:23], 1000 + X[30:33]])
    groups = grouped(X)
    found = {frozenset(np.flatnonzero(groups == name).tolist()) for name in np.unique(groups)}
    assert found == {frozenset(group) for group in slow_groups(X)}
    assert max(map(len, found)) == 3
    order = np.random.default_rng(1).permutation(len(X))
    assert np.array_equal(grouped(X[order]), groups[order])


def test_missing_numbers_and_copies_of_one_record_are_grouped_by_equality() -> None:
    X = records(6)
    X[3:5, 1] = np.nan
    X[4] = X[3]
    groups = grouped(X)
    assert groups[3] == groups[4]
    assert len(np.unique(groups)) == 5
    assert len(np.unique(grouped(np.ones((4, 2), np.float32)))) == 1


def test_groups_are_told_apart_far_from_the_origin() -> None:
    """Features of large numbers: a product of matrices in single precision would take all records for near-equal."""
    X = records(50) + np.float32(3000)
    assert len(np.unique(grouped(X))) == 50


@pytest.mark.parametrize(
    ("distinct", "second", "why"),
    [
        (FEWEST_RECORDS - 1, 12, str(FEWEST_RECORDS)),
        (100, 4, "two classes"),
        (100, 5, ""),
        (FEWEST_RECORDS, 5, ""),
    ],
)
def test_few_labels_are_refused_with_the_reason(distinct: int, second: int, why: str) -> None:
    codes = (np.arange(distinct) < second).astype(np.int64)
    said = lacking(np.arange(distinct, dtype=np.uint64), codes, 5)
    assert why in said
    assert bool(said) == bool(why)
    # Copies are no further evidence.
    assert lacking(np.repeat(np.arange(distinct, dtype=np.uint64), 3), np.repeat(codes, 3), 5) == said


# -- weights -----------------------------------------------------------------------------------------------------------


def test_raked_weights_have_the_shares_of_the_pool_both_ways() -> None:
    rng = np.random.default_rng(3)
    pool = rng.integers(0, 3, 3000), rng.integers(0, 2, 3000)
    mine = rng.choice(3, 400, p=[0.6, 0.3, 0.1]), rng.choice(2, 400, p=[0.8, 0.2])
    weights = raked(mine, pool)
    assert weights.sum() == pytest.approx(1)
    for strata, theirs in zip(mine, pool, strict=True):
        shares = np.bincount(strata, weights=weights)
        assert shares == pytest.approx(np.bincount(theirs) / 3000, abs=1e-3)


def test_a_mean_over_chosen_records_comes_out_as_that_of_the_pool() -> None:
    """What decided the choice is what the weights go by: records at small margins, which are mistaken more often."""
    rng = np.random.default_rng(4)
    margin = rng.random(200_000)
    right = rng.random(200_000) < 0.5 + 0.5 * margin
    chosen = np.flatnonzero(rng.random(200_000) < 0.02 * (1.02 - margin))
    sample = rng.choice(200_000, 1000, replace=False)
    mine, theirs = margin_strata(margin[chosen], margin[sample])
    weights = raked([mine], [theirs])
    assert right[chosen].mean() < right.mean() - 0.05
    assert weights @ right[chosen] == pytest.approx(right.mean(), abs=0.03)


def test_no_record_carries_the_result_and_a_stratum_without_labels_is_left_out() -> None:
    weights = raked([np.append(np.zeros(99, np.int64), 1)], [np.append(np.zeros(10, np.int64), np.ones(90, np.int64))])
    assert weights.max() == pytest.approx(HEAVIEST / 100, rel=0.01)
    lost = raked([np.array([0, 0, 1])], [np.array([0, 1, 1, 2, 2, 2])])
    assert lost.tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    unknown = raked([np.array([0, 0, 3])], [np.array([0, 0, 0, 0])])
    assert 0 < unknown[2] < 0.2


def test_weights_stay_numbers_where_the_sample_lacks_what_labels_have_both_ways() -> None:
    mine = np.append(np.ones(59, np.int64), 0), np.append(np.zeros(59, np.int64), 1)
    weights = raked(mine, [np.zeros(5000, np.int64), np.ones(5000, np.int64)])
    assert np.isfinite(weights).all()
    assert weights.min() > 0
    assert weights.sum() == pytest.approx(1)


# -- the comparison ----------------------------------------------------------------------------------------------------


def judged(n: int, right: tuple[float, float], seed: int = 0, repeats: int = 3) -> tuple[list[Judged], Codes, Floats]:
    rng = np.random.default_rng(seed)
    names = ["one", "other"]
    correct = [(rng.random((repeats, n)) < share).astype(float) for share in right]
    confidence = rng.random((repeats, n))
    found = [Judged(name, each, 1 - each, confidence) for name, each in zip(names, correct, strict=True)]
    folds = np.stack([rng.permutation(np.arange(n) % 5) for _ in range(repeats)])
    return found, folds, rng.random((repeats, n)) + 0.1


def test_judged_scores_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    proba, truth = rng.dirichlet([1, 1, 1], (2, 7)), rng.dirichlet([0.2, 0.2, 0.2], 7)
    found = Judged.of("x", proba, truth)
    for repeat in range(2):
        for at in range(7):
            given = proba[repeat, at]
            brier = sum(truth[at, c] * sum((given[k] - (k == c)) ** 2 for k in range(3)) for c in range(3))
            assert found.brier[repeat, at] == pytest.approx(brier)
            assert found.correct[repeat, at] == truth[at, int(given.argmax())]
            assert found.confidence[repeat, at] == given.max()


def test_a_record_without_a_class_is_wrong() -> None:
    proba = np.array([[[0.0, 0.0], [0.9, 0.1], [0.0, 0.0]]])
    found = Judged.of("a", proba, np.array([[1.0, 0.0], [1.0, 0.0], [0.3, 0.7]]))
    assert found.correct.tolist() == [[0, 1, 0]]


def test_the_interval_is_that_of_nadeau_and_bengio_where_weights_are_equal() -> None:
    found, folds, _ = judged(400, (0.7, 0.9))
    one, other = compare(found, folds, np.ones_like(folds, dtype=float))
    gaps = [
        float((found[1].correct[r] - found[0].correct[r])[folds[r] == fold].mean())
        for r in range(3)
        for fold in range(5)
    ]
    half = stats.t.ppf(0.975, 14) * math.sqrt((1 / 15 + 1 / 4) * np.var(gaps, ddof=1))
    assert other.difference == pytest.approx(np.mean(gaps))
    assert other.difference_high - other.difference == pytest.approx(half)
    assert (one.verdict, other.verdict) == ("in use", "better")
    assert one.difference == one.difference_low == one.difference_high == 0


def test_means_are_weighted_and_calibration_is_that_of_loops() -> None:
    found, folds, weights = judged(150, (0.6, 0.8))
    one, other = compare(found, folds, weights)
    shares = weights / weights.sum(axis=1, keepdims=True)
    means = [float((shares * each.correct).sum(axis=1).mean()) for each in found]
    assert (one.accuracy, other.accuracy) == pytest.approx(means)
    assert other.difference == pytest.approx(means[1] - means[0])
    assert other.brier == pytest.approx(1 - means[1])
    error = 0.0
    for low in np.arange(10) / 10:
        mine = (found[0].confidence >= low) & (found[0].confidence < low + 0.1)
        error += abs(float((shares * (found[0].confidence - found[0].correct))[mine].sum() / 3))
    assert one.calibration == pytest.approx(error)
    assert one.low < one.accuracy < one.high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 120))
def test_the_order_of_labels_does_not_matter(seed: int, n: int) -> None:
    found, folds, weights = judged(n, (0.6, 0.7), seed)
    order = np.random.default_rng(seed).permutation(n)
    moved = [Judged(e.name, e.correct[:, order], e.brier[:, order], e.confidence[:, order]) for e in found]
    for one, other in zip(
        compare(found, folds, weights), compare(moved, folds[:, order], weights[:, order]), strict=True
    ):
        assert {**vars(one)} == pytest.approx({**vars(other)})


def test_equal_learners_are_not_told_apart_and_never_for_sure_on_few_records() -> None:
    for n, verdict in ((50, "too early to tell"), (4000, "alike")):
        found, folds, _ = judged(n, (0.9, 0.9))
        same = compare([found[0], Judged("twin", *list(vars(found[0]).values())[1:])], folds, np.ones((3, n)))[1]
        assert same.verdict == verdict
        assert same.difference == 0
        assert same.difference_high == -same.difference_low > 0
        assert (same.difference_high < ALIKE) == (verdict == "alike")


def test_more_rivals_make_wider_intervals() -> None:
    found, folds, weights = judged(200, (0.7, 0.75))
    rivals = [Judged(f"rival {at}", *list(vars(found[1]).values())[1:]) for at in range(5)]
    alone, among = compare(found, folds, weights)[1], compare([found[0], *rivals], folds, weights)[1]
    assert among.difference == alone.difference
    assert among.difference_high > alone.difference_high


def test_shapes_that_do_not_agree_are_refused() -> None:
    found, folds, weights = judged(50, (0.7, 0.8))
    with pytest.raises(InputError, match="shape"):
        compare(found, folds, weights[:, :-1])


def drawn(n: int, seed: tuple[int, int]) -> tuple[NDArray[np.float32], Codes]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 4), dtype=np.float32)
    return X, (X[:, 0] * X[:, 1] * 1.5 + X[:, 0] + 0.7 * rng.standard_normal(n) > 0).astype(np.int64)


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 200])
def test_intervals_hold_the_difference_of_learners_fitted_on_other_samples(n: int) -> None:
    """In 150 samples: of a stable and of an unstable learner, whose difference is measured on 10,000 other records."""
    makers = (LogisticRegression, lambda: DecisionTreeClassifier(max_depth=4, random_state=0))
    X, y = drawn(10_000, (0, 0))
    right = np.array([[(make().fit(*drawn(n, (1, s))).predict(X) == y).mean() for make in makers] for s in range(100)])
    truth = right.mean(axis=0)
    held = np.zeros(2)
    for sample in range(150):
        X, y = drawn(n, (2, sample))
        folds = np.stack([dealt(again(marks_of(X), repeat), y, 5) for repeat in range(3)])
        proba = np.zeros((2, 3, n, 2))
        for repeat in range(3):
            for fold in range(5):
                out = folds[repeat] == fold
                for at, make in enumerate(makers):
                    proba[at, repeat, out] = make().fit(X[~out], y[~out]).predict_proba(X[out])
        tried = [Judged.of(str(at), proba[at], np.eye(2)[y]) for at in range(2)]
        one, other = compare(tried, folds, np.ones((3, n)))
        held += [
            one.low <= truth[0] <= one.high,
            other.difference_low <= truth[1] - truth[0] <= other.difference_high,
        ]
    # Of 150, a coverage of 0.95 gives at least 137 in 96 of 100 cases.
    assert held.min() >= 137
