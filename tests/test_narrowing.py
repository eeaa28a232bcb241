"""The choice of a stored type by evidence, against slow twins; pools that are built by it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.cli import main
from dal.errors import SourceError
from dal.pool import Block, Pool, Sizes
from dal.pool import narrowing as module
from dal.pool.encodings import decoder, encoder, scale_of
from dal.pool.narrowing import Sample, dtype_by_evidence, evidence_text, sample_of
from dal.selection.order import row_hash

RNG = np.random.default_rng(11)
NORMAL = RNG.standard_normal((3000, 6)).astype(np.float32)
FLAGS = (RNG.random((3000, 6)) < 0.3).astype(np.float32)
"""Whole steps of an int8 scale."""
TAILS = np.exp(2 * NORMAL)
SMALL = Sizes(chunk_bytes=2**12, block_rows=170)


def all_of(X: npt.NDArray[np.float32]) -> Sample:
    return sample_of([X], whole=True)


# ---- the sample


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 40), st.lists(st.integers(0, 300), max_size=6))
def test_a_sample_is_the_records_of_the_least_hashes_for_any_blocks(n: int, most: int, cuts: list[int]) -> None:
    X = np.arange(2 * n, dtype=np.float32).reshape(n, 2)[::-1].copy()
    blocks = np.split(X, sorted(min(cut, n) for cut in cuts))
    found = sample_of(blocks, whole=True, most_rows=most)
    least = np.sort(np.argsort(row_hash(np.arange(n), 0, 0))[:most])
    np.testing.assert_array_equal(found.features, X[least])
    np.testing.assert_array_equal(found.largest, X.max(axis=0))
    assert (found.read, found.finite, found.whole) == (n, True, True)


def test_a_sample_of_wide_records_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED_BYTES", 4 * 24 * 17)
    found = sample_of([np.ones((60, 2, 3, 4), np.float32), np.ones((60, 2, 3, 4), np.float32)], whole=True)
    assert (found.features.shape, found.read) == ((17, 24), 120)


def test_the_largest_values_are_those_of_all_records_and_finite() -> None:
    X = NORMAL[:400].copy()
    X[7], X[301, 2], X[390, 2], X[391, 4] = -50, np.nan, -80, np.inf
    found = sample_of([X[:300], X[300:]], whole=True, most_rows=3)
    assert found.largest.tolist() == [50, 50, 80, 50, 50, 50]
    assert not found.finite


# ---- the figures


def kept_twin(X: npt.NDArray[np.float32], dtype: str) -> float:
    """Compute the share as the module's text says it, model by model and record by record."""
    scale = scale_of([X]) if dtype == "int8" else None
    Y = np.empty(X.shape, np.float32)
    decoder(dtype, scale)(encoder(dtype, scale)(X, 0), Y)
    drawn = np.random.default_rng(0).standard_normal((X.shape[1], 64))
    shares = []
    for model in range(64):
        z, narrow = np.zeros(len(X)), np.zeros(len(X))
        for feature, column in enumerate(X.T.astype(np.float64)):
            quarter, three = np.quantile(column, [0.25, 0.75])
            unit = column.std() if model < 32 or quarter == three else three - quarter
            if unit > 0:
                z += drawn[feature, model] * (column - column.mean()) / unit
                narrow += drawn[feature, model] * (Y[:, feature].astype(np.float64) - column.mean()) / unit
        middle = np.median(z)
        far = [abs(value - middle) for value in z]
        k = max(1, round(len(X) / 100))
        last = sorted(far)[k - 1]
        near = sorted((abs(value - middle), row) for row, value in enumerate(narrow.tolist()))[:k]
        shares.append(np.mean([far[row] <= last + 1e-6 * z.std() for _, row in near]))
    return min(float(np.mean(shares[:32])), float(np.mean(shares[32:])))


@pytest.mark.parametrize("X", [NORMAL[5:1405], TAILS[5:1405], FLAGS[5:1405]], ids=["normal", "tails", "flags"])
def test_the_share_that_is_kept_equals_the_twin(X: npt.NDArray[np.float32]) -> None:
    found = dtype_by_evidence(all_of(X))
    for dtype, share in found.kept.items():
        assert share == pytest.approx(kept_twin(X, dtype), abs=0.003)


def test_the_narrowest_type_that_keeps_the_scores_is_chosen() -> None:
    of = {name: dtype_by_evidence(all_of(X)) for name, X in {"n": NORMAL, "f": FLAGS, "t": TAILS}.items()}
    assert [of[name].chosen for name in "nft"] == ["float16", "int8", "float16"]
    assert of["f"].kept["int8"] == 1
    assert of["t"].kept["int8"] < of["n"].kept["int8"] < 0.95 < of["t"].kept["float16"]
    assert of["f"].error["int8"] < of["n"].error["int8"] < of["t"].error["int8"]
    # The outliers of one feature are no part of the sample, but of its scale.
    spread = all_of(NORMAL)
    far = dtype_by_evidence(Sample(spread.features, spread.largest * 1000, True, 10**6, True))
    assert far.kept["int8"] < 0.2


def test_outliers_have_no_say_in_half_of_the_models() -> None:
    """One feature's outliers hide its bulk from models that divide by its deviation; a forest would not miss it."""
    X = FLAGS.copy()
    X[:, 0] = NORMAL[:, 0]
    X[:3, 0] = 10_000
    assert dtype_by_evidence(all_of(X)).chosen == "float16"


@pytest.mark.parametrize(
    ("sample", "chosen", "reasons"),
    [
        (all_of(NORMAL[:999]), "float32", {"int8": "fewer than 1,000", "float16": "fewer than 1,000"}),
        (all_of(NORMAL * 1e5), "float32", {"float16": "6 of 6 features exceed 65,504"}),
        (all_of(np.where(NORMAL > 3, np.nan, FLAGS)), "float16", {"int8": "no NaN"}),
        (all_of(np.where(NORMAL > 3, -np.inf, FLAGS)), "float16", {"int8": "no NaN and no infinity"}),
        (sample_of([FLAGS], whole=False), "float16", {"int8": "a pass over all records"}),
        (sample_of([], whole=True), "float32", {"int8": "fewer", "float16": "fewer"}),
    ],
    ids=["few", "large", "missing", "infinite", "first", "none"],
)
def test_types_that_cannot_be_are_named_with_the_reason(sample: Sample, chosen: str, reasons: dict[str, str]) -> None:
    found = dtype_by_evidence(sample)
    assert found.chosen == chosen
    assert set(found.refused) == set(reasons)
    assert all(reasons[dtype] in found.refused[dtype] for dtype in reasons)
    assert all(reason in evidence_text(vars(found)) for reason in reasons.values())


def test_constant_and_missing_features_have_no_say() -> None:
    X = np.concatenate([NORMAL, np.full((3000, 1), 7e4, np.float32) * 0 + 3, np.full((3000, 1), np.nan)], axis=1)
    found = dtype_by_evidence(all_of(X.astype(np.float32)))
    assert found.kept["float16"] > 0.95


# ---- pools


def test_a_pool_keeps_the_type_the_figures_and_what_an_append_has(tmp_path: Path) -> None:
    for name, X, dtype in (("n", NORMAL, "float16"), ("f", FLAGS, "int8"), ("l", NORMAL * 1e5, "float32")):
        pool = Pool.build(X, tmp_path / name, dtype="auto", sizes=SMALL)
        assert pool.encoding == pool.evidence["chosen"] == dtype
        assert pool.evidence == {**vars(dtype_by_evidence(all_of(X)))}
        given_dtype = Pool.build(X, tmp_path / f"{name}-given", dtype=dtype, sizes=SMALL)
        assert not given_dtype.evidence
        np.testing.assert_array_equal(pool.read(3, 3000), given_dtype.read(3, 3000))
        longer = pool.append(X[:40])
        assert (longer.encoding, longer.evidence) == (dtype, pool.evidence)
        np.testing.assert_array_equal(longer.read(3000, 3040), pool.read(0, 40))


def test_uint8_is_kept(tmp_path: Path) -> None:
    pool = Pool.build(FLAGS.astype(np.uint8), tmp_path / "pool.zarr", dtype="auto")
    assert (pool.encoding, pool.evidence) == ("uint8", {})


def blocks(X: npt.NDArray[np.float32]) -> Iterator[Block]:
    for start, stop in ((0, 0), (0, 1500), (1500, 2100), (2100, len(X))):
        yield Block(X[start:stop])


class Lengths:
    """Encodes a text as its length and what is left of it by 7."""

    id = "lengths"

    def encode(self, batch: list[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(text), len(text) % 7] for text in batch], np.float32)


def test_encoded_records_are_judged_by_the_first_and_encoded_once(tmp_path: Path) -> None:
    texts = pa.table({"text": ["x" * (3 + 37 * row % 500) if row % 50 else "" for row in range(2500)]})
    sizes = Sizes(group_texts=256)
    pool = Pool.build(texts, tmp_path / "pool.zarr", text="text", encoder=Lengths(), dtype="auto", sizes=sizes)
    assert (pool.encoding, pool.evidence["read"]) == ("float16", 2048)
    assert pool.unencoded["count"] == 50
    given_dtype = Pool.build(texts, tmp_path / "given.zarr", text="text", encoder=Lengths(), sizes=sizes)
    np.testing.assert_array_equal(pool.read(3, 2500), given_dtype.read(3, 2500))


def test_of_a_stream_the_first_records_decide_and_values_beyond_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    X = FLAGS.copy()
    X[[2100, 2100, 2999], [0, 1, 4]] = 70_000
    pool = Pool.build(blocks(X), tmp_path / "pool.zarr", dtype="auto")
    assert (pool.encoding, pool.evidence["read"], pool.evidence["whole"]) == ("float16", 2100, False)
    assert "of the first 2,100 records" in evidence_text(pool.evidence)
    assert "2 records have values beyond float16" in caplog.text
    caplog.clear()
    pool.append(np.full((4, 6), -1e6))
    assert "4 records have values beyond float16" in caplog.text
    with pytest.raises(SourceError, match="at least one row"):
        Pool.build(iter([]), tmp_path / "none.zarr", dtype="auto")
    with pytest.raises(SourceError, match="floats or integers"):
        Pool.build(iter([Block(np.array([["a"]]))]), tmp_path / "none.zarr", dtype="auto")
    assert not (tmp_path / "none.zarr").exists()


class Stopped(BaseException):
    """Stands for the end of a process between two writes."""


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_a_build_that_is_resumed_keeps_its_type(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = {"int8": FLAGS, "float16": NORMAL}[dtype]
    build: Any = partial(Pool.build, X, tmp_path / "pool.zarr", dtype="auto", sizes=SMALL)

    def stop(done: int, rows: int | None) -> None:
        if done > 1200:
            raise Stopped

    with pytest.raises(Stopped):
        build(progress=stop)
    for other in (dtype, None):
        with pytest.raises(SourceError, match=r"'stored': 'auto'.*another source or dtype"):
            Pool.build(X, tmp_path / "pool.zarr", dtype=other, sizes=SMALL)
    # It is not judged again, and would come to another type.
    monkeypatch.setattr("dal.pool.build.dtype_by_evidence", None)
    pool = build()
    whole = Pool.build(X, tmp_path / "whole.zarr", dtype=dtype, sizes=SMALL)
    assert (pool.encoding, pool.evidence["chosen"]) == (dtype, dtype)
    np.testing.assert_array_equal(pool.read(0, 3000), whole.read(0, 3000))


def test_the_command_line_says_the_figures(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NORMAL)
    order = ["pool", "build", str(tmp_path / "x.npy"), str(tmp_path / "pool.zarr"), "--dtype", "auto"]
    built = CliRunner().invoke(main, order)
    assert built.exit_code == 0, built.output
    line = evidence_text(Pool.open(tmp_path / "pool.zarr").evidence)
    assert line.startswith("float16 by evidence: of the best 1 % of scores int8 keeps 0.")
    assert line.endswith("0.95 is asked (3,000 of 3,000 records)")
    shown = CliRunner().invoke(main, ["pool", "info", str(tmp_path / "pool.zarr")])
    for output in (built.output, shown.output):
        assert line in " ".join(output.split())
