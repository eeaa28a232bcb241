import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from dal.errors import InputError
from dal.evidence.ruler import (
    RoundRecord,
    accuracy,
    beaten_by_one_class,
    class_shares,
    explore_counts,
    labels_saved,
    lure,
    lure_weights,
    wilson,
)


def inside(share: float, successes: int, n: int, confidence: float) -> bool:
    """The interval's definition: shares from which the observed one is within z standard errors."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return abs(successes / n - share) <= z * math.sqrt(share * (1 - share) / n)


def slow_wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    observed = successes / n
    ends = []
    for far in (0.0, 1.0):
        good, bad = observed, far
        for _ in range(100):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if inside(middle, successes, n, confidence) else (good, middle)
        ends.append(good if far != observed else observed)
    return ends[0], ends[1]


@given(st.integers(1, 2000), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=60, deadline=None)
def test_wilson_is_the_interval_of_its_definition(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    assert wilson(successes, n, confidence) == pytest.approx(slow_wilson(successes, n, confidence), abs=1e-9)


@given(st.integers(1, 10**9), st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_stays_between_0_and_1_and_holds_the_observed_share(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson(n - successes, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_wilson_of_published_values() -> None:
    # Newcombe, Stat. Med. 17 (1998) 857, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_without_answers_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_counts_that_cannot_be_are_refused(successes: int, n: int) -> None:
    with pytest.raises(InputError, match=f"{successes} of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, math.nan])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(InputError, match="`confidence`"):
        wilson(1, 2, confidence)


HISTORY = [
    RoundRecord(4, 100, 1, 10, 1.0, 5000),  # left out of every window below: would pull the accuracy down
    RoundRecord(5, 150, 8, 10, 2.0, 4950),
    RoundRecord(6, 200, 0, 0, 3.0, 4900),
    RoundRecord(7, 250, 9, 10, 4.0, 4850),
]


def test_accuracy_is_over_the_last_rounds_only() -> None:
    estimate = accuracy(HISTORY, rounds=3)
    assert (estimate.value, estimate.n) == (17 / 20, 20)
    assert (estimate.low, estimate.high) == wilson(17, 20)
    assert "0.850 (0.640 to 0.948, 95 %) on 20 explore answers of the last 3 rounds" in estimate.text
    assert "models then in use" in estimate.text


def test_accuracy_of_fewer_rounds_than_asked_for_says_how_many() -> None:
    estimate = accuracy(HISTORY, rounds=9, confidence=0.5)
    assert (estimate.value, estimate.n) == (18 / 30, 30)
    assert "the last 4 rounds" in estimate.text
    assert "50 %" in estimate.text


def test_accuracy_without_explore_answers_is_not_a_number() -> None:
    for history, where in ((HISTORY[2:3], "the last round"), ([], "any round")):
        estimate = accuracy(history, rounds=1)
        assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, 0.0, 1.0, 0)
        assert estimate.text == f"not enough evidence: no explore answers in {where}"


def test_a_window_without_rounds_is_refused() -> None:
    with pytest.raises(InputError, match="`rounds`"):
        accuracy(HISTORY, rounds=0)


def test_explore_counts_add_up() -> None:
    assert explore_counts(HISTORY) == (18, 30)


def test_a_holdout_counts_for_more_than_the_explore_share() -> None:
    history = [*HISTORY, RoundRecord(8, 300, 9, 10, 5.0, 4800, holdout_correct=180, holdout_asked=240)]
    estimate = accuracy(history, rounds=3)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.75, *wilson(180, 240), 240)
    assert estimate.text.endswith("on 240 holdout records")
    # the model of the last round has not been judged: its predecessor's result is not passed off as its own
    assert accuracy([*history, RoundRecord(9, 350, 9, 10, 6.0, 4750)], rounds=1).value == 0.9


def test_class_shares_are_those_of_the_explore_answers() -> None:
    shares = class_shares([150, 0, 50])
    assert [(share.value, share.low, share.high, share.n) for share in shares] == [
        (0.75, *wilson(150, 200), 200),
        (0.0, *wilson(0, 200), 200),
        (0.25, *wilson(50, 200), 200),
    ]
    nothing = class_shares([0, 0])
    assert [(share.value, share.low, share.high) for share in nothing] == [(None, 0.0, 1.0)] * 2


# -- labels saved: a learner whose expected accuracy is known ---------------------------------------------------------


DIMENSIONS, APART = 200, 4.0
PHI = NormalDist().cdf


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two normal classes that differ in the first of many dimensions."""
    y = rng.integers(0, 2, n)
    X = rng.normal(size=(n, DIMENSIONS))
    X[:, 0] += APART * (y - 0.5)
    return X, y


def nearest_mean(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    means = [X[y == code].mean(axis=0) if (y == code).any() else np.zeros(DIMENSIONS) for code in (0, 1)]
    across = means[1] - means[0]
    return across, float((means[0] + means[1]) @ across / 2)


def true_accuracy(across: np.ndarray, threshold: float) -> float:
    length = float(np.linalg.norm(across))
    return (PHI((across[0] * APART / 2 - threshold) / length) + PHI((across[0] * APART / 2 + threshold) / length)) / 2


def expected_accuracy(labels: int) -> float:
    rng = np.random.default_rng([7, labels])
    return float(np.mean([true_accuracy(*nearest_mean(*draw(rng, labels))) for _ in range(500)]))


def judge_of(X: np.ndarray, y: np.ndarray) -> object:
    def fit_and_judge(learned: np.ndarray, judged: np.ndarray) -> np.ndarray:
        across, threshold = nearest_mean(X[learned], y[learned])
        return (X[judged] @ across > threshold) == y[judged]

    return fit_and_judge


@pytest.mark.slow
def test_the_interval_of_the_labels_saved_holds_the_truth_as_often_as_it_says() -> None:
    """Random sampling needs 200 labels for the accuracy that the campaign has with 50."""
    target, spent, explore, asked = 200, 50, 1000, 1000
    accuracy_then = expected_accuracy(target)
    said = []
    for repeat in range(100):
        rng = np.random.default_rng([3, repeat])
        X, y = draw(rng, explore)
        correct = int(rng.binomial(asked, accuracy_then))
        said.append(labels_saved(judge_of(X, y), explore, (correct, asked), spent, seed=repeat))
    told = [estimate for estimate in said if estimate.value is not None]
    assert len(told) > 80
    # 95 % of some 95; three standard errors are 7 points
    assert np.mean([estimate.low <= target - spent <= estimate.high for estimate in told]) >= 0.88
    # And it says something: that labels were saved, in most cases, and in the middle how many. Its upper end is open
    # mostly, because so near to the end of the curve a hundredth of accuracy costs hundreds of labels.
    assert np.median([estimate.low for estimate in told]) > 0
    assert np.median([estimate.value for estimate in told]) == pytest.approx(target - spent, rel=0.2)


def test_labels_saved_are_found_where_the_curve_is_a_power_law() -> None:
    """Accuracy 0.9 - 1 / sqrt(m) without noise: 0.8375 takes 256 labels."""

    def fit_and_judge(learned: np.ndarray, judged: np.ndarray) -> np.ndarray:
        return np.full(len(judged), 0.9 - len(learned) ** -0.5)

    estimate = labels_saved(fit_and_judge, 400, (837_500, 1_000_000), 100)
    assert estimate.value == pytest.approx(156, abs=3)
    assert estimate.low < estimate.value < estimate.high < 170
    assert "instead of 100" in estimate.text
    worse = labels_saved(fit_and_judge, 400, (837_500, 1_000_000), 300)
    assert worse.value == pytest.approx(-44, abs=3)


@pytest.mark.parametrize(
    ("n", "accuracy_seen", "spent", "said"),
    [
        (199, (180, 200), 100, "199 explore answers, 200 are needed"),
        (200, (0, 0), 100, "no explore answer was predicted"),
        (200, (180, 200), 801, "explore share of a quarter, or 201 explore answers"),
        # 0.9 is the curve's end: never reached
        (400, (360, 400), 100, "beyond 1600 labels, if at all"),
        # 0.8757 is reached at 1,694 labels, more than four times 400
        (400, (875_700, 1_000_000), 100, "beyond 1600 labels, if at all"),
    ],
)
def test_labels_saved_are_not_told_without_evidence(
    n: int, accuracy_seen: tuple[int, int], spent: int, said: str
) -> None:
    def fit_and_judge(learned: np.ndarray, judged: np.ndarray) -> np.ndarray:
        return np.full(len(judged), 0.9 - len(learned) ** -0.5)

    estimate = labels_saved(fit_and_judge, n, accuracy_seen, spent)
    assert estimate.value is None
    assert estimate.text.startswith("not enough evidence: ")
    assert said in estimate.text


# -- records that were chosen ------------------------------------------------------------------------------------------


def power_draw(scores: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one after the other, each with probability in proportion to its score among those left: slow and obvious."""
    left, order, q = list(range(len(scores))), [], []
    for _ in range(count):
        share = scores[left] / scores[left].sum()
        position = int(rng.choice(len(left), p=share))
        q.append(share[position])
        order.append(left.pop(position))
    return np.array(order), np.array(q)


def test_lure_is_unbiased_where_the_plain_mean_is_not() -> None:
    rng = np.random.default_rng(5)
    wrong_share = rng.beta(1, 6, 300)
    loss = (rng.uniform(size=300) < wrong_share).astype(float)
    found, plain = [], []
    for _ in range(400):
        order, q = power_draw(wrong_share, 40, rng)
        found.append(float((lure_weights(q, 300) * loss[order]).mean()))
        plain.append(float(loss[order].mean()))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - loss.mean()) < 3 * error
    assert np.mean(plain) - loss.mean() > 10 * error


def test_lure_weights_of_a_hand_worked_draw() -> None:
    # N = 5, M = 2: v1 = 1 + 3/4 (1 / (5 * 0.4) - 1), v2 = 1 + 3/3 (1 / (4 * 0.5) - 1)
    assert lure_weights([0.4, 0.5], 5) == pytest.approx([0.625, 0.5])
    # everything was drawn: nothing is left to stand for
    assert lure_weights([0.7, 0.6, 1.0], 3) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.slow
def test_the_interval_of_lure_holds_the_truth_as_often_as_it_says() -> None:
    covered, told = 0, 0
    for repeat in range(1500):
        rng = np.random.default_rng([11, repeat])
        score = rng.beta(1, 6, 2000)
        loss = (rng.uniform(size=2000) < score).astype(float)
        keys = np.log(score) + rng.gumbel(size=2000)
        order = np.argsort(-keys)[:200]
        q = score[order] / (score.sum() - np.concatenate([[0.0], np.cumsum(score[order])[:-1]]))
        estimate = lure(loss[order], q, 2000)
        if estimate.value is not None:
            told += 1
            covered += estimate.low <= loss.mean() <= estimate.high
    assert told > 1200
    # 0.94 in 3,000 cases, which the docstring says; three standard errors are 0.018
    assert covered / told >= 0.922


def test_lure_says_when_a_few_records_carry_everything() -> None:
    q = np.r_[np.full(59, 0.3), 1e-9]
    estimate = lure(np.zeros(60), q, 10_000)
    assert estimate.value is None
    assert "not enough evidence: 60 records" in estimate.text
    even = lure(np.r_[np.ones(20), np.zeros(180)], 1 / (10_000 - np.arange(200)), 10_000)
    assert even.value == pytest.approx(0.1)
    assert (even.low, even.high) == pytest.approx(wilson(20, 200), abs=2e-3)


@pytest.mark.parametrize(
    ("losses", "q", "n", "said"),
    [
        ([0.0], [0.0], 5, "above 0"),
        ([0.0], [1.5], 5, "above 0"),
        ([0.0, 1.0], [0.5, 0.5], 1, "of at most 1 records, got 2"),
        ([0.0, 2.0], [0.5, 0.5], 9, "`losses` must be 2"),
        ([0.0], [0.5, 0.5], 9, "`losses` must be 2"),
    ],
)
def test_lure_refuses_what_it_cannot_correct(losses: list[float], q: list[float], n: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lure(losses, q, n)


# -- a model against one class for all records ------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_model_is_beaten_by_one_class_where_the_sign_test_says_so(answers: list[tuple[bool, int]]) -> None:
    right, codes = [each for each, _ in answers], [code for _, code in answers]
    common = min(range(4), key=lambda code: (-codes.count(code), code))
    lost = sum(1 for each, code in answers if code == common and not each)
    differ = lost + sum(1 for each, code in answers if code != common and each)
    beaten = differ > 0 and binomtest(lost, differ, alternative="greater").pvalue < 0.01
    assert beaten_by_one_class(right, codes) == (common if beaten else None)
    shuffled = np.random.default_rng(len(answers)).permutation(len(answers))
    assert beaten_by_one_class([right[at] for at in shuffled], [codes[at] for at in shuffled]) == (
        common if beaten else None
    )


def test_few_models_as_good_as_one_class_are_warned_of() -> None:
    rng = np.random.default_rng(8)
    warned = 0
    for _ in range(2000):
        codes = (rng.random(100) < 0.4).astype(int)
        right = rng.random(100) < 0.6  # as often as class 0
        warned += beaten_by_one_class(right.tolist(), codes.tolist()) is not None
    assert warned < 40
    codes = (rng.random(100) < 0.25).astype(int)
    assert beaten_by_one_class((rng.random(100) < 0.45).tolist(), codes.tolist()) == 0


@pytest.mark.parametrize(("wrong", "beaten"), [(2500, None), (2600, 1)])
def test_thousands_of_answers_are_compared(wrong: int, beaten: int | None) -> None:
    """2 to the power of 5,000 is no float."""
    codes = [1] * wrong + [0] * (5000 - wrong)
    assert beaten_by_one_class([code == 0 for code in codes], codes) == beaten
    assert (binomtest(wrong, 5000, alternative="greater").pvalue < 0.01) == (beaten is not None)


def test_predictions_without_their_classes_are_refused() -> None:
    with pytest.raises(InputError, match="codes"):
        beaten_by_one_class([True], [])
