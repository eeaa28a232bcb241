"""The choice of a stored type by evidence, against slow twins; pools that are built by it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.cli import main
from dal.errors import SourceError
from dal.pool import Block, Pool, Sizes
from dal.pool import narrowing as module
from dal.pool.encodings import decoder, encoder, scale_of
from dal.pool.narrowing import Evidence, Sample, dtype_by_evidence, evidence_text, sample_of
from dal.selection.order import row_hash

RNG = np.random.default_rng(11)
NORMAL = RNG.standard_normal((3000, 6)).astype(np.float32)
FLAGS = (RNG.random((3000, 6)) < 0.3).astype(np.float32)
"""Whole steps of an int8 scale."""
TAILS = np.exp(2 * NORMAL)
EQUAL = np.random.default_rng(12).random(3000) < 0.6
SMALL = Sizes(chunk_bytes=2**12, block_rows=170)


def defaults(X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return records of which 0.6 are zeros, of either sign."""
    return np.where(EQUAL[:, None], np.copysign(np.float32(0), NORMAL), X)


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
    monkeypatch.setattr(module, "LEAST_SAMPLED", 5)
    found = sample_of([np.ones((60, 2, 3, 4), np.float32), np.ones((60, 2, 3, 4), np.float32)], whole=True)
    assert (found.features.shape, found.read) == ((17, 24), 120)
    assert sample_of([np.ones((60, 500), np.float32)], whole=True).features.shape == (5, 500)
    monkeypatch.setattr(module, "WIDEST", 499)
    found = sample_of([np.ones((60, 500), np.float32)] * 2, whole=True)
    assert (found.features.shape, found.read) == ((0, 500), 120)


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
    X = np.array(list(dict.fromkeys(map(tuple, X.tolist()))), np.float32)
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


@pytest.mark.parametrize(
    "X",
    [NORMAL[5:1405], TAILS[5:1405], FLAGS[5:1405], defaults(NORMAL)[5:]],
    ids=["normal", "tails", "flags", "defaults"],
)
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


def test_equal_records_do_not_hide_the_others() -> None:
    """Among most records of zeros lies the boundary, which any type keeps; int8 takes the rest apart."""
    far = defaults(TAILS)
    found = dtype_by_evidence(all_of(far))
    assert (found.chosen, found.sampled, found.read) == ("float16", int((~EQUAL).sum()) + 1, 3000)
    assert found.kept["int8"] < 0.3
    holed = np.where(EQUAL[:, None], np.float32(np.nan), TAILS)
    assert dtype_by_evidence(all_of(holed)).sampled == found.sampled
    more = np.where(np.arange(3000)[:, None] < 2500, 0, TAILS)
    assert "fewer than 1,000 distinct" in dtype_by_evidence(all_of(more)).refused["int8"]
    # Of few distinct records no best 1 % is to be seen, but a type that leaves them as they are is as good.
    flags = dtype_by_evidence(all_of(FLAGS))
    assert (flags.chosen, flags.sampled, flags.refused) == ("int8", 64, {})
    thirds = dtype_by_evidence(all_of(FLAGS / np.float32(3) + FLAGS[:, ::-1]))
    assert (thirds.chosen, set(thirds.refused)) == ("float32", {"int8", "float16"})


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 0.1])
def test_records_that_do_not_differ_are_not_narrowed(value: float) -> None:
    found = dtype_by_evidence(all_of(np.full((3000, 2), value, np.float32)))
    assert (found.chosen, found.kept, len(found.refused)) == ("float32", {}, 2)


def test_figures_do_not_depend_on_the_unit() -> None:
    """Also where the squares of values are beyond float32; warnings are errors here."""
    usual = dtype_by_evidence(all_of(NORMAL))
    for factor in (2.0**80, 2.0**-60):
        found = dtype_by_evidence(all_of(NORMAL * np.float32(factor)))
        assert (found.kept["int8"], found.error["int8"]) == pytest.approx((usual.kept["int8"], usual.error["int8"]))
    ends = np.where(FLAGS > 0, np.finfo(np.float32).max, np.finfo(np.float32).min)
    assert dtype_by_evidence(all_of(ends)).chosen == "int8"


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
        (all_of(np.where(NORMAL > 3, np.nan, FLAGS)), "float16", {"int8": "cannot hold NaN"}),
        (all_of(np.where(NORMAL > 3, -np.inf, FLAGS)), "float16", {"int8": "cannot hold NaN or infinity"}),
        (sample_of([FLAGS], whole=False), "float16", {"int8": "a pass over all records"}),
        (
            sample_of([np.ones((1, 20_000), np.float32)], whole=False),
            "float32",
            {"int8": "more than 16,384 features", "float16": "too wide to judge"},
        ),
        (sample_of([], whole=True), "float32", {"int8": "fewer", "float16": "fewer"}),
    ],
    ids=["few", "large", "missing", "infinite", "first", "wide", "none"],
)
def test_types_that_cannot_be_are_named_with_the_reason(sample: Sample, chosen: str, reasons: dict[str, str]) -> None:
    found = dtype_by_evidence(sample)
    assert found.chosen == chosen
    assert set(found.refused) == set(reasons)
    assert all(reasons[dtype] in found.refused[dtype] for dtype in reasons)
    assert all(reason in evidence_text(vars(found)) for reason in reasons.values())


def test_constant_and_missing_features_have_no_say() -> None:
    X = np.concatenate([NORMAL, np.full((3000, 1), 0.1), np.full((3000, 1), np.nan)], axis=1)
    found = dtype_by_evidence(all_of(X.astype(np.float32)))
    assert found.kept["float16"] > 0.95


def test_shares_are_rounded_down() -> None:
    found = Evidence("float32", {"int8": 0.57, "float16": 0.9496}, {}, {}, 1234, 60_000, True)
    assert "int8 keeps 0.570, float16 keeps 0.949; 0.95 is asked (judged by 1,234 distinct of 60,000 records)" in (
        evidence_text(vars(found))
    )


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


def test_a_stream_waits_in_memory_until_its_type_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    written: list[int] = []

    def stream(width: int, dtype: str) -> Iterator[Block]:
        for row in range(0, 2400, 100):
            taken.append(row)
            yield Block(np.tile(FLAGS[row : row + 100], -(-width // 6))[:, :width].astype(dtype))

    def note(_done: int, _rows: int | None) -> None:
        written.append(len(taken))

    def build(width: int, dtype: str) -> Pool:
        del taken[:], written[:]
        path = tmp_path / f"{width}-{dtype}"
        return Pool.build(stream(width, dtype), path, dtype="auto", sizes=SMALL, progress=note)

    monkeypatch.setattr(module, "SAMPLED_BYTES", 4 * 60 * 1500)
    monkeypatch.setattr(module, "WIDEST", 100)
    assert build(6, "float64").evidence["read"] == 2000
    assert build(60, "float64").evidence["read"] == 1500
    assert build(100, "float64").evidence["read"] == 1300
    wide = build(101, "float64")
    assert (wide.encoding, wide.evidence["read"]) == ("float32", 100)
    assert written[0] == 1
    assert build(100, "uint8").encoding == "uint8"
    assert written[0] == 1


def test_records_too_wide_to_judge_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDEST", 5)
    pool = Pool.build(FLAGS, tmp_path / "pool.zarr", dtype="auto", sizes=SMALL)
    assert (pool.encoding, pool.evidence["read"], pool.evidence["sampled"]) == ("float32", 170, 0)
    assert "no int8: records of more than 5 features" in evidence_text(pool.evidence)


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
        with pytest.raises(SourceError, match=r"another source or dtype .*instead of .auto"):
            Pool.build(X, tmp_path / "pool.zarr", dtype=other, sizes=SMALL)
    # It is not judged again, and would come to another type.
    monkeypatch.setattr("dal.pool.build.dtype_by_evidence", None)
    pool = build()
    whole = Pool.build(X, tmp_path / "whole.zarr", dtype=dtype, sizes=SMALL)
    assert (pool.encoding, pool.evidence["chosen"]) == (dtype, dtype)
    np.testing.assert_array_equal(pool.read(0, 3000), whole.read(0, 3000))


def stopped_at(row: int, done: int, rows: int | None) -> None:
    if done > row:
        raise Stopped


def test_records_beyond_float16_are_counted_over_interruptions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    X = NORMAL.copy()
    # Of three parts: written before the first interruption, written again after it, and after the second one.
    X[[5, 900, 1199, 1201, 1203, 2100, 2999]] = 1e6
    build: Any = partial(Pool.build, X, tmp_path / "pool.zarr", dtype="float16", sizes=SMALL)
    for row in (1200, 2000):
        with pytest.raises(Stopped):
            build(progress=partial(stopped_at, row))
    assert "beyond" not in caplog.text
    pool = build()
    assert np.isinf(pool.read(0, 3000)).any(axis=1).sum() == 7
    assert "7 records have values beyond float16" in caplog.text
    assert "beyond_float16" not in zarr.open_group(pool.path, mode="r").attrs["dal"]  # type: ignore[operator]


def test_encoded_records_beyond_float16_are_counted_over_interruptions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = pa.table({"text": ["x" * (70_000 if row in (3, 250, 450) else 9) for row in range(600)]})
    sizes = Sizes(group_texts=64, chunk_bytes=2**9, block_rows=64)
    how: Any = {"text": "text", "encoder": Lengths(), "sizes": sizes}
    pool = Pool.build(texts.slice(10, 100), tmp_path / "pool.zarr", dtype="float16", **how)
    with pytest.raises(Stopped):
        pool.append(texts, **how, progress=partial(stopped_at, 400))
    assert "beyond" not in caplog.text
    longer = pool.append(texts, **how)
    assert np.isinf(longer.read(0, 700)).any(axis=1).sum() == 3
    assert "3 records have values beyond float16" in caplog.text


def test_a_damaged_note_of_the_choice_is_named(tmp_path: Path) -> None:
    path = Pool.build(NORMAL, tmp_path / "pool.zarr", dtype="auto").path
    group = zarr.open_group(path, mode="r+")
    whole: Any = dict(group.attrs["dal"])  # type: ignore[arg-type]
    for wrong in ({"chosen": "float16"}, [], {**whole["evidence"], "kept": {"int8": "much"}}):
        group.attrs["dal"] = {**whole, "evidence": wrong}
        shown = CliRunner().invoke(main, ["pool", "info", path])
        assert shown.exit_code == 1
        assert "evidence" in shown.output


def test_the_command_line_says_the_figures(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NORMAL)
    order = ["pool", "build", str(tmp_path / "x.npy"), str(tmp_path / "pool.zarr"), "--dtype", "auto"]
    built = CliRunner().invoke(main, order)
    assert built.exit_code == 0, built.output
    line = evidence_text(Pool.open(tmp_path / "pool.zarr").evidence)
    assert line.startswith("float16 by evidence: of the best 1 % of scores int8 keeps 0.")
    assert line.endswith("0.95 is asked (judged by 3,000 distinct of 3,000 records)")
    shown = CliRunner().invoke(main, ["pool", "info", str(tmp_path / "pool.zarr")])
    for output in (built.output, shown.output):
        assert line in " ".join(output.split())
