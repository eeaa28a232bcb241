import math
from collections import Counter
from itertools import combinations
from random import Random

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from dal.errors import LabelError
from dal.evidence.agreement import agreement
from dal.evidence.votes import Labels, dawid_skene, label, majority, relabelling
from dal.selection.order import row_hash


def slow_majority(rows: list[int], labels: list[int], seed: int) -> dict[int, int]:
    result = {}
    for row in sorted(set(rows)):
        votes = Counter(label for at, label in zip(rows, labels, strict=True) if at == row and label >= 0)
        if votes:
            tied = sorted(label for label, count in votes.items() if count == max(votes.values()))
            draw = int(row_hash(np.array([row], np.int64), seed, 0)[0])
            result[row] = tied[draw % len(tied)]
    return result


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(10**9, 10**9 + 6), st.integers(-1, 3)), max_size=40),
    st.integers(0, 2**63 - 1),
    st.randoms(use_true_random=False),
)
def test_equals_the_slow_count_in_any_order(answers: list[tuple[int, int]], seed: int, shuffle: Random) -> None:
    expected = slow_majority([row for row, _ in answers], [label for _, label in answers], seed)
    shuffle.shuffle(answers)
    rows, labels = majority([row for row, _ in answers], [label for _, label in answers], seed=seed)
    assert dict(zip(rows.tolist(), labels.tolist(), strict=True)) == expected
    assert rows.tolist() == sorted(expected)
    assert rows.dtype == labels.dtype == np.int64


def test_ties_are_spread_over_the_tied_classes_and_follow_the_seed() -> None:
    rows = np.repeat(np.arange(5000, 7000), 2)
    labels = np.tile([2, 7], 2000)
    first, second = (majority(rows, labels, seed=seed)[1] for seed in (1, 2))
    assert set(first.tolist()) == {2, 7}
    assert 850 < np.count_nonzero(first == 2) < 1150
    assert 850 < np.count_nonzero(first == second) < 1150


def test_a_record_does_not_depend_on_the_others() -> None:
    alone = majority([7, 7], [0, 1], seed=3)[1]
    among = majority([2, 7, 7, 9], [1, 1, 0, 0], seed=3)[1]
    assert alone[0] == among[1]


def test_refuses_what_does_not_match() -> None:
    with pytest.raises(LabelError, match="`labels`"):
        majority([1, 2], [0], seed=0)


# -- Dawid and Skene ---------------------------------------------------------------------------------------------------

Given = list[tuple[int, str, int]]


def slow_dawid_skene(answers: Given, n_classes: int) -> dict[int, list[float]]:
    """The two steps as they stand in the paper, one sum after another, with the prior of the docstring."""
    by_row: dict[int, list[tuple[str, int]]] = {}
    for row, who, code in answers:
        if code >= 0:
            by_row.setdefault(row, []).append((who, code))
    names = {who for said in by_row.values() for who, _ in said}
    several = {row: said for row, said in by_row.items() if len(said) > 1}
    T = {
        row: [sum(code == c for _, code in said) / len(said) for c in range(n_classes)] for row, said in several.items()
    }

    def errors() -> dict[str, list[list[float]]]:
        theta = {}
        for who in names:
            theta[who] = []
            for c in range(n_classes):
                line = [2.0 if answer == c else 1 / (n_classes - 1) for answer in range(n_classes)]
                for row, said in several.items():
                    for name, code in said:
                        if name == who:
                            line[code] += T[row][c]
                theta[who].append([x / sum(line) for x in line])
        return theta

    theta = errors()
    for _ in range(1000):
        before = {row: list(shares) for row, shares in T.items()}
        total = [sum(T[row][c] for row in T) + 1 / n_classes for c in range(n_classes)]
        for row, said in several.items():
            joint = [
                total[c] / sum(total) * math.prod(theta[who][c][code] for who, code in said) for c in range(n_classes)
            ]
            T[row] = [x / sum(joint) for x in joint]
        theta = errors()
        if max((abs(a - b) for row in T for a, b in zip(T[row], before[row], strict=True)), default=0) <= 1e-6:
            break
    for row, said in by_row.items():
        if len(said) == 1:
            ((who, code),) = said
            likelihood = [theta[who][c][code] for c in range(n_classes)]
            T[row] = [x / sum(likelihood) for x in likelihood]
    return dict(sorted(T.items()))


answer_sets = st.dictionaries(
    st.tuples(st.integers(10**9, 10**9 + 7), st.sampled_from(["ann", "bob", "cat", "dan"])),
    st.integers(-1, 2),
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(answer_sets)
def test_dawid_skene_equals_the_slow_one(given_answers: dict[tuple[int, str], int]) -> None:
    answers = [(row, who, code) for (row, who), code in given_answers.items()]
    expected = slow_dawid_skene(answers, 3)
    columns = [list(column) for column in zip(*answers, strict=True)] if answers else [[], [], []]
    found = dawid_skene(*columns, n_classes=3, seed=5)
    assert found.labels.rows.tolist() == list(expected)
    assert found.labels.proba == pytest.approx(np.array(list(expected.values())).reshape(-1, 3), abs=1e-4)
    best = found.labels.proba.max(axis=1, initial=0)
    assert found.labels.proba[np.arange(len(best)), found.labels.codes] == pytest.approx(best)
    assert found.confusion.sum(axis=2) == pytest.approx(1.0)


def simulated(
    rng: np.random.Generator, accuracy: dict[str, float], n: int, n_classes: int, overlap: int
) -> tuple[np.ndarray, Given]:
    """Give the truth, and the answers of annotators who err in their own measure."""
    truth = rng.integers(0, n_classes, n)
    answers = []
    for row, code in enumerate(truth.tolist()):
        for who in rng.choice(list(accuracy), overlap, replace=False).tolist():
            right = rng.random() < accuracy[who]
            answers.append((row, who, code if right else int((code + rng.integers(1, n_classes)) % n_classes)))
    return truth, answers


def test_it_finds_who_errs_and_beats_the_majority() -> None:
    accuracy = {"ann": 0.95, "bob": 0.9, "clicker": 0.4, "dice": 0.35, "eve": 0.45}
    truth, answers = simulated(np.random.default_rng(3), accuracy, 1500, 3, overlap=3)
    rows, who, codes = zip(*answers, strict=True)
    found = dawid_skene(rows, who, codes, n_classes=3, seed=0)
    right = (found.labels.codes == truth).mean()
    assert right > (majority(rows, codes, seed=0)[1] == truth).mean() + 0.1
    for name, matrix in zip(found.annotators, found.confusion, strict=True):
        assert np.diag(matrix).mean() == pytest.approx(accuracy[name], abs=0.06)
    # Posteriors mean what they say: of those near 0.9, nine in ten are right.
    sure = found.labels.proba.max(axis=1)
    for low, high in ((0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        bin_ = (sure >= low) & (sure < high)
        assert (found.labels.codes[bin_] == truth[bin_]).mean() == pytest.approx(sure[bin_].mean(), abs=0.08)


def test_a_rare_class_with_single_answers_is_not_swallowed() -> None:
    answers = [(row, "ann", int(row % 100 == 0)) for row in range(1000)]
    found = dawid_skene(*zip(*answers, strict=True), n_classes=2, seed=0)
    assert found.labels.codes.tolist() == [int(row % 100 == 0) for row in range(1000)]


def test_ties_of_posteriors_are_spread_by_the_hash() -> None:
    rows = np.repeat(np.arange(5000, 6000), 2)
    found = dawid_skene(rows, ["ann", "bob"] * 1000, np.tile([0, 1], 1000), n_classes=2, seed=1)
    assert set(found.labels.codes.tolist()) == {0, 1}


def test_skipped_answers_are_no_opinions() -> None:
    found = dawid_skene([1, 1, 2], ["ann", "bob", "ann"], [1, -1, -1], n_classes=2, seed=0)
    assert found.labels.rows.tolist() == [1]
    assert found.annotators == ["ann"]


def test_a_doubtful_record_is_trained_on_as_both() -> None:
    labels = Labels(np.array([5, 6, 7]), np.array([0, 1, 2]), np.array([[0.7, 0.3, 0], [0.002, 0.998, 0], [0, 0, 1.0]]))
    positions, codes, weights = labels.weighted()
    assert [*zip(positions.tolist(), codes.tolist(), strict=True)] == [(0, 0), (0, 1), (1, 1), (2, 2)]
    assert weights.tolist() == pytest.approx([0.7, 0.3, 1.0, 1.0])
    assert Labels(np.array([5]), np.array([1])).weighted()[2] is None


def test_the_vote_is_chosen_by_name() -> None:
    columns = [1, 1, 1], ["ann", "bob", "cat"], [0, 1, 1]
    assert label(*columns, vote="majority", n_classes=2, seed=0).proba is None
    assert label(*columns, vote="dawid_skene", n_classes=2, seed=0).proba.shape == (1, 2)


# -- agreement ---------------------------------------------------------------------------------------------------------

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, nominal, missing data.
PUBLISHED = {
    "A": "1233214 12...".replace(" ", ""),
    "B": "123322412535"[:9] + "5.3",
    "C": ".33323422" + "51.",
    "D": "123324412" + "51.",
}


def test_alpha_is_the_published_one() -> None:
    answers = [(row, who, int(code)) for who, line in PUBLISHED.items() for row, code in enumerate(line) if code != "."]
    found = agreement(*zip(*answers, strict=True), seed=0)
    assert found.alpha == pytest.approx(0.743, abs=0.0005)
    assert found.records == 11


def as_matrix(answers: dict[tuple[int, str], int]) -> np.ndarray:
    rows, names = sorted({row for row, _ in answers}), sorted({who for _, who in answers})
    matrix = np.full((len(names), len(rows)), np.nan)
    for (row, who), code in answers.items():
        if code >= 0:
            matrix[names.index(who), rows.index(row)] = code
    return matrix


@settings(max_examples=100, deadline=None)
@given(answer_sets)
def test_agreement_equals_the_libraries(answers: dict[tuple[int, str], int]) -> None:
    rows, who = zip(*answers, strict=True) if answers else ((), ())
    found = agreement(rows, who, list(answers.values()), seed=0, repeats=50)
    opinions = {key: code for key, code in answers.items() if code >= 0}
    alike = [a == b for (r, _), a in opinions.items() for (s, _), b in opinions.items() if r == s]
    pairs_of_answers = len(alike) - len(opinions)
    if not pairs_of_answers:
        assert (found.records, found.percent, found.alpha) == (0, None, None)
        assert "no record has two answers" in found.text
        return
    assert found.percent == pytest.approx((sum(alike) - len(opinions)) / pairs_of_answers)
    doubly = Counter(row for row, _ in opinions)
    if len({code for (row, _), code in opinions.items() if doubly[row] > 1}) > 1:
        expected = krippendorff.alpha(as_matrix(answers), level_of_measurement="nominal", value_domain=[0, 1, 2])
        assert found.alpha == pytest.approx(expected)
        assert found.low <= found.high
    else:
        assert found.alpha is None
    shared = {}
    for a, b in combinations(sorted({who for _, who in opinions}), 2):
        both = [row for row in doubly if (row, a) in opinions and (row, b) in opinions]
        if both:
            shared[a, b] = [opinions[row, a] for row in both], [opinions[row, b] for row in both]
    assert {(pair.first, pair.second): pair.n for pair in found.pairs} == {
        key: len(a) for key, (a, _) in shared.items()
    }
    for pair in found.pairs:
        a, b = shared[pair.first, pair.second]
        assert pair.agreement == pytest.approx(np.mean(np.equal(a, b)))
        if len({*a, *b}) > 1:
            assert pair.kappa == pytest.approx(cohen_kappa_score(a, b))
        else:
            assert pair.kappa is None
    kappas = [1.0 if pair.kappa is None else pair.kappa for pair in found.pairs]
    assert kappas == sorted(kappas)


@pytest.mark.slow
def test_the_interval_of_alpha_covers_the_truth() -> None:
    accuracy = {"ann": 0.9, "bob": 0.85, "cat": 0.8}
    rng = np.random.default_rng(7)
    _, answers = simulated(rng, accuracy, 60_000, 3, overlap=3)
    truth = agreement(*zip(*answers, strict=True), seed=0, repeats=2).alpha
    covered = 0
    for repeat in range(200):
        _, answers = simulated(rng, accuracy, 80, 3, overlap=3)
        found = agreement(*zip(*answers, strict=True), seed=repeat, repeats=400)
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 199


def test_who_disagrees_comes_first() -> None:
    accuracy = {"ann": 0.97, "bob": 0.97, "dice": 0.34}
    _, answers = simulated(np.random.default_rng(1), accuracy, 300, 3, overlap=3)
    pairs = agreement(*zip(*answers, strict=True), seed=0).pairs
    assert {pairs[0].first, pairs[0].second, pairs[1].first, pairs[1].second} == {"ann", "bob", "dice"}
    assert (pairs[2].first, pairs[2].second) == ("ann", "bob")


# -- a second answer ---------------------------------------------------------------------------------------------------


def test_what_is_doubtful_and_matters_comes_first() -> None:
    proba = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
    order, worth = relabelling(proba, [0.5, 1.0, np.nan, 0.9])
    assert order.tolist() == [2, 3, 0, 1]
    half = math.log(2) / math.log(3)
    assert worth.tolist() == pytest.approx([0.5 * half, 0.0, 1.0, 0.9 * half])
