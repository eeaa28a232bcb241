"""The bytes of a span's result: what was written comes back, and what is damaged does not."""

import io
import struct
import zlib
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal.scan.plan import Interval
from dal.scan.worker.histogram import Histogram
from dal.scan.worker.kernel import SpanResult, Tally
from dal.scan.worker.record import decode, encode, next_record
from dal.selection.candidates import Candidates

EDGES = [0, 1, 2**15 - 1, 2**15, 2**31 - 1, 2**31, 10**12]


def result_of(start: int, count: int, seed: int, *, wide: bool) -> SpanResult:
    rng = np.random.default_rng(seed)
    candidates = Candidates(
        start + np.cumsum(rng.integers(1, 5, count)),
        rng.standard_normal(count),
        rng.integers(-1, 2**16, count),
        rng.integers(-1, 9, count),
        rng.standard_normal((count, 3)).astype(np.float32) if wide else np.empty((count, 0), np.float32),
        proba=rng.random((count, 2)).astype(np.float32) if wide else None,
        inner=rng.standard_normal((count, 5)).astype(np.float32) if wide else None,
        classes=rng.integers(0, 9, (count, 2)) if wide else None,
        content=rng.integers(0, 2**64, count, dtype=np.uint64) if wide else None,
    )
    invalid = start + np.arange(count // 2)
    histogram = Histogram(rng.integers(0, 2**33, 64), -3, -40)
    tally = Tally(5 * count, len(invalid), invalid, histogram, rng.integers(0, start + 9, 9), 2**70, 8, 3**60)
    return SpanResult(Interval(start, start + 5 * count), candidates if count else None, tally, 0.1, -np.inf)


def assert_equal(found: object, expected: object) -> None:
    """Compare all that two dataclasses hold, types of arrays included."""
    for name in (each.name for each in fields(expected)):  # type: ignore[arg-type]
        one, other = getattr(found, name), getattr(expected, name)
        if name == "record":
            continue
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other)
        elif isinstance(other, Candidates | Tally | Histogram):
            assert_equal(one, other)
        else:
            assert one == other, name


@given(st.sampled_from(EDGES), st.sampled_from([-3, 0, 5]), st.integers(0, 40), st.booleans())
def test_a_record_comes_back_as_it_was(edge: int, beside: int, count: int, wide: bool) -> None:
    result = result_of(max(edge + beside, 0), count, edge % 97 + count, wide=wide)
    record = encode(result)
    again = decode(record)
    assert_equal(again, result)
    assert again.record == record
    found = again.candidates
    assert found is None or all(array.flags.aligned for array in (found.scores, found.embeddings, found.rows))


def test_integers_take_the_bytes_that_they_need() -> None:
    few, many = (len(encode(result_of(start, 1_000, 3, wide=False))) for start in (10**6, 10**12))
    assert few < 1_000 * (4 + 8 + 4 + 2) + 1_000 * 2 + 1_500
    assert many - few > 1_000 * 4


@pytest.mark.parametrize("at", [0, 7, 9, 40, -1])
def test_a_record_that_is_damaged_or_torn_is_no_record(at: int) -> None:
    record = encode(result_of(7, 20, 1, wide=True))
    file = io.BytesIO(record + record[:-1])
    assert next_record(file) == record
    assert next_record(file) is None
    damaged = bytearray(record)
    damaged[at] ^= 1
    assert next_record(io.BytesIO(bytes(damaged))) is None
    assert zlib.crc32(record[12:]) == int.from_bytes(record[8:12], "little")


@pytest.mark.parametrize("length", [2**20, 2**62, 2**64 - 1])
def test_a_torn_head_that_tells_of_more_than_there_is_reads_nothing(length: int) -> None:
    record = bytearray(encode(result_of(7, 5, 0, wide=False)))
    record[: struct.calcsize("<Q")] = struct.pack("<Q", length)
    assert next_record(io.BytesIO(record)) is None
