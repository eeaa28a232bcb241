import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal import scores
from dal.errors import SettingsError

MODEL_SCORES = [name for name in scores.NAMES if name != "random"]


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
        scores.check_name("marign")
