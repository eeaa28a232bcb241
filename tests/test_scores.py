import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal import scores
from dal.errors import SettingsError

pytestmark = pytest.mark.exact

MODEL_SCORES = scores.OF_ONE_MODEL


def slow_scores(name: str, p: np.ndarray) -> list[float]:
    """The definitions, one record at a time, on sorted probabilities."""
    values = []
    for row in p.astype(np.float64):
        first, second = sorted(row, reverse=True)[:2]
        if name == "least_confident":
            values.append((1 - first) * len(row) / (len(row) - 1))
        elif name == "margin":
            values.append(1 - (first - second))
        elif name == "ratio":
            values.append(second / first)
        else:
            values.append(-sum(x * np.log(x) for x in row if x > 0) / np.log(len(row)))
    return values


def softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", MODEL_SCORES)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    n_classes=st.integers(2, 12),
    sharpness=st.floats(0.01, 30),
)
@settings(max_examples=40, deadline=None)
def test_scores_equal_their_definitions_from_probabilities_and_from_decisions(
    name: str, seed: int, n: int, n_classes: int, sharpness: float
) -> None:
    z = (np.random.default_rng(seed).standard_normal((n, n_classes)) * sharpness).astype(np.float32)
    p = softmax(z)
    expected = slow_scores(name, p)
    by_probabilities = scores.of_probabilities(name, p)
    by_decisions = scores.of_decisions(name, np.ascontiguousarray(z.T), n_classes)
    np.testing.assert_allclose(by_probabilities.score, expected, atol=1e-9)
    # Single precision; a margin of e^-30 has no more digits than that.
    np.testing.assert_allclose(by_decisions.score, expected, atol=1e-6)
    np.testing.assert_array_equal(by_probabilities.predicted, p.argmax(axis=1))
    np.testing.assert_array_equal(by_decisions.predicted, z.argmax(axis=1))
    np.testing.assert_allclose(by_decisions.confidence, p.max(axis=1), atol=1e-6)
    assert np.isfinite(by_decisions.score).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("least_confident", [0.6 * 3 / 2, 0.0, 1.0]),
        ("margin", [1 - (0.4 - 0.35), 0.0, 1.0]),
        ("ratio", [0.35 / 0.4, 0.0, 1.0]),
        ("entropy", [1.0805 / np.log(3), 0.0, 1.0]),
    ],
)
def test_scores_of_hand_computed_records(name: str, expected: list[float]) -> None:
    p = np.array([[0.4, 0.35, 0.25], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(scores.of_probabilities(name, p).score, expected, atol=5e-5)


@pytest.mark.parametrize("name", MODEL_SCORES)
def test_a_binary_model_with_one_column_scores_as_its_two_probabilities(name: str) -> None:
    log_odds = np.linspace(-6, 6, 41)
    positive = 1 / (1 + np.exp(-log_odds))
    p = np.stack([1 - positive, positive], axis=1)
    scored = scores.of_decisions(name, log_odds[None], 2)
    np.testing.assert_allclose(scored.score, slow_scores(name, p), atol=1e-12)
    np.testing.assert_array_equal(scored.predicted, (log_odds > 0).astype(int))


@pytest.mark.parametrize("name", MODEL_SCORES)
def test_unseen_classes_count_as_probability_zero(name: str) -> None:
    z = np.random.default_rng(3).standard_normal((20, 3))
    p = np.concatenate([softmax(z), np.zeros((20, 2))], axis=1)
    np.testing.assert_allclose(
        scores.of_decisions(name, z.T, 5).score, scores.of_probabilities(name, p).score, atol=1e-12
    )


def test_binary_scores_all_order_records_alike() -> None:
    positive = np.random.default_rng(5).random(200)
    p = np.stack([1 - positive, positive], axis=1)
    orders = [np.argsort(scores.of_probabilities(name, p).score).tolist() for name in MODEL_SCORES]
    assert all(order == orders[0] for order in orders)


def test_extreme_decisions_give_no_nan() -> None:
    z = np.array([[1e4, -1e4, 0.0], [0.0, 1e4, 0.0], [-1e4, 0.0, 0.0]], dtype=np.float32)
    for name in MODEL_SCORES:
        assert np.isfinite(scores.of_decisions(name, z, 3).score).all()


def test_an_unknown_score_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SettingsError, match=r"margin.*got 'marign'"):
        scores.resolved("marign")


# -- committees ----------------------------------------------------------------------


def slow_committee(name: str, members: np.ndarray) -> list[float]:
    """The definitions, one record at a time, with all members at hand: (m, n, C)."""
    m, n, n_classes = members.shape
    values = []
    for i in range(n):
        if name == "vote_entropy":
            votes = [sum(int(member[i].argmax()) == c for member in members) / m for c in range(n_classes)]
            values.append(-sum(v * np.log(v) for v in votes if v > 0))
        else:
            # The mean Kullback-Leibler divergence of the members from their consensus.
            mean = members[:, i].mean(axis=0)
            terms = [
                sum(p * np.log(p / q) for p, q in zip(member[i], mean, strict=True) if p > 0) for member in members
            ]
            values.append(sum(terms) / m)
    return [value / np.log(n_classes) for value in values]


@pytest.mark.parametrize("name", scores.OF_COMMITTEE)
@given(
    seed=st.integers(0, 2**32 - 1),
    m=st.integers(1, 7),
    n=st.integers(1, 20),
    n_classes=st.integers(2, 6),
    sharpness=st.floats(0.01, 30),
)
@settings(max_examples=40, deadline=None)
def test_scores_of_a_committee_equal_their_definitions(
    name: str, seed: int, m: int, n: int, n_classes: int, sharpness: float
) -> None:
    z = np.random.default_rng(seed).standard_normal((m, n, n_classes)) * sharpness
    members = np.stack([softmax(each) for each in z])
    scored = scores.of_committee(name, iter(members))
    np.testing.assert_allclose(scored.score, slow_committee(name, members), atol=1e-9)
    np.testing.assert_array_equal(scored.predicted, members.mean(axis=0).argmax(axis=1))
    np.testing.assert_allclose(scored.confidence, members.mean(axis=0).max(axis=1), atol=1e-12)
    assert (scored.score >= 0).all()
    assert (scored.score <= 1 + 1e-12).all()


def test_scores_of_a_committee_by_hand() -> None:
    # Votes 3 : 1 of two classes, and 2 : 1 : 1 of four; a committee that agrees though each member is unsure.
    two = [np.array([[p, 1 - p]]) for p in (0.9, 0.8, 0.6, 0.3)]
    assert scores.of_committee("vote_entropy", two).score[0] == pytest.approx(0.811278, abs=1e-6)  # bits
    four = [np.eye(4)[[c]] for c in (0, 0, 1, 2)]
    assert scores.of_committee("vote_entropy", four).score[0] == pytest.approx(1.5 / 2)
    assert scores.of_committee("bald", four).score[0] == pytest.approx(1.5 / 2)
    assert scores.of_committee("bald", [np.full((1, 3), 1 / 3)] * 5).score[0] == pytest.approx(0, abs=1e-15)
    # H(.65) - (H(.9) + H(.4)) / 2 = .934068 - (.468996 + .970951) / 2 bits
    pair = [np.array([[0.9, 0.1]]), np.array([[0.4, 0.6]])]
    assert scores.of_committee("bald", pair).score[0] == pytest.approx(0.214095, abs=1e-6)


def test_a_committee_takes_memory_of_one_member_whatever_its_size() -> None:
    n, n_classes = 20_000, 8

    def members(m: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(m):
            p = rng.random((n, n_classes))
            yield p / p.sum(axis=1, keepdims=True)

    peaks = {}
    for m in (2, 40):
        tracemalloc.start()
        scores.of_committee("bald", members(m))
        peaks[m] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[40] < 1.05 * peaks[2] < 10 * n * n_classes * 8


def test_a_committee_of_nobody_and_scores_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        scores.of_committee("bald", [])
    with pytest.raises(SettingsError, match="committee, got 'margin'"):
        scores.of_committee("margin", [np.full((1, 2), 0.5)])
    with pytest.raises(SettingsError, match="one model, got 'bald'"):
        scores.of_probabilities("bald", np.full((1, 2), 0.5))


# -- gradients ----------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_expected_gradient_lengths_equal_those_of_gradients_written_out(seed: int, n_classes: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    p, h = rng.dirichlet(np.ones(n_classes), 15), rng.standard_normal((15, d)) * 5
    expected = []
    for record, probabilities in zip(h, p, strict=True):
        lengths = [
            np.linalg.norm(np.outer(probabilities - np.eye(n_classes)[c], [*record, 1.0])) for c in range(n_classes)
        ]
        expected.append(float(probabilities @ lengths))
    scored = scores.of_gradients(p, h)
    np.testing.assert_allclose(scored.score / (1 - scored.score), expected, rtol=1e-9)
    np.testing.assert_array_equal(scored.predicted, p.argmax(axis=1))


def test_the_gradient_is_that_of_the_log_loss() -> None:
    """By finite differences, so that the closed form is not compared with itself alone."""
    rng = np.random.default_rng(1)
    W, b, h = rng.standard_normal((3, 2)), rng.standard_normal(3), rng.standard_normal(2)

    def loss(parameters: np.ndarray, c: int) -> float:
        z = parameters[:6].reshape(3, 2) @ h + parameters[6:]
        return float(np.log(np.exp(z).sum()) - z[c])

    at, step = np.concatenate([W.ravel(), b]), 1e-6
    p = softmax((W @ h + b)[None])
    expected = 0.0
    for c in range(3):
        slopes = [(loss(at + step * e, c) - loss(at - step * e, c)) / (2 * step) for e in np.eye(9)]
        expected += p[0, c] * float(np.linalg.norm(slopes))
    score = scores.of_gradients(p, h[None]).score[0]
    assert score / (1 - score) == pytest.approx(expected, rel=1e-7)
