import math
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.errors import InputError
from dal.ruler import RoundRecord, accuracy, explore_counts, wilson


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
    with pytest.raises(InputError, match="confidence between 0 and 1"):
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
    for history, where in ((HISTORY[2:3], "the last 1 rounds"), ([], "any round")):
        estimate = accuracy(history, rounds=1)
        assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, 0.0, 1.0, 0)
        assert estimate.text == f"not enough evidence: no explore answers in {where}"


def test_a_window_without_rounds_is_refused() -> None:
    with pytest.raises(InputError, match="rounds=0"):
        accuracy(HISTORY, rounds=0)


def test_explore_counts_add_up() -> None:
    assert explore_counts(HISTORY) == (18, 30)
