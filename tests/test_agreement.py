from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.agreement import majority
from dal.errors import LabelError
from dal.selection import row_hash


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
    with pytest.raises(LabelError, match="one label a row"):
        majority([1, 2], [0], seed=0)
