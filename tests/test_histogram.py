"""Histograms of scores: the same counts whatever the order in which their parts come."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dal.scan.worker.histogram import BINS, Histogram

SCORES = st.lists(
    st.one_of(st.just(0.0), st.floats(-1e30, 1e30), st.floats(-2, 2), st.floats(-1e-9, 1e-9)), min_size=1, max_size=30
)


def same(a: Histogram, b: Histogram) -> bool:
    return a.edges == b.edges and a.counts.tolist() == b.counts.tolist()


@given(SCORES, st.randoms(use_true_random=False), st.integers(1, 5))
def test_parts_in_any_order_add_up_to_the_whole(scores: list[float], random: object, pieces: int) -> None:
    whole = Histogram.of(np.array(scores), unit=False)
    shuffled = np.array(scores)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = [Histogram.of(part, unit=False) for part in np.array_split(shuffled, pieces)]
    added = Histogram.zero()
    for part in parts:
        added = added + part
    nested = Histogram.zero()
    for part in reversed(parts):
        nested = part + nested
    assert same(added, whole)
    assert same(nested, whole)


@given(SCORES)
def test_each_value_lies_in_its_bin(scores: list[float]) -> None:
    found = Histogram.of(np.array(scores), unit=False)
    low, high = found.edges
    # Values of a billionth beside those of a quintillion count as zero.
    values = np.array(scores)
    places = np.clip(np.floor((values - low) / ((high - low) / BINS) + 1e-6), 0, BINS - 1).astype(int)
    assert found.counts.sum() == len(scores)
    assert set(np.flatnonzero(found.counts)) <= {place + step for place in places.tolist() for step in (-1, 0, 1)}
    assert low <= values.min() + (high - low) / BINS
    assert high >= values.max()


def test_bins_are_as_narrow_as_the_values_let_them() -> None:
    assert Histogram.of(np.array([10.0, 11.9]), unit=False).edges == (10.0, 12.0)
    assert Histogram.of(np.array([-0.5, 0.5]), unit=False).edges == (-0.5, 1.5)
    assert Histogram.of(np.array([0.25, 1.0]), unit=True).edges == (0.0, 1.0)
    assert Histogram.of(np.array([0.25, 1.0]), unit=True).counts[[16, 63]].tolist() == [1, 1]
