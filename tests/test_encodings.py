"""Narrow pools against twins in plain NumPy and struct, and their scans against scans of what they hold."""

import ctypes
import platform
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from dal.choices import ENCODINGS
from dal.cli import main
from dal.errors import ChunkError, PoolError, SourceError
from dal.learners.learner import Learner
from dal.pool import Block, Pool, Reader, Sizes
from dal.pool import build as building
from dal.pool.encodings import decoder, encoder, scale_of
from dal.scan import sample_codebook, scan
from dal.selection.strategy import Strategy

N, D = 237, 5
NARROW = [name for name in ENCODINGS if name != "float32"]
STORED = {"float32": "f4", "float16": "f2", "bfloat16": "u2", "int8": "i1", "uint8": "u1"}


def records(n: int = N, d: int = D, seed: int = 7) -> np.ndarray:
    """Features of very different ranges, one of them all zero."""
    X = np.random.default_rng(seed).standard_normal((n, d)) * 10.0 ** (np.arange(d) % 5 - 2)
    X[:, 3] = 0
    return X.astype(np.float32)


def source_of(encoding: str, n: int = N, d: int = D) -> np.ndarray:
    return (np.abs(records(n, d)) * 10).clip(0, 255).round() if encoding == "uint8" else records(n, d)


def bfloat16_of(value: float) -> float:
    """Round a float32 to the nearer of its neighbours among those whose lower half is zero; of a tie, to the even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if value != value or value in (float("inf"), float("-inf")):
        return value
    sign, size = bits >> 31, bits & 0x7FFF_FFFF
    below, rest = divmod(size, 2**16)
    chosen = below + 1 if rest > 2**15 or (rest == 2**15 and below % 2) else below
    return float(struct.unpack("<f", struct.pack("<I", sign << 31 | chosen << 16))[0])


def twin(encoding: str, X: np.ndarray) -> np.ndarray:
    """Give what a pool of `X` is to be read as."""
    if encoding == "float16":
        return X.astype(np.float16).astype(np.float32)
    if encoding == "bfloat16":
        return np.array([[bfloat16_of(value) for value in row] for row in X.tolist()], dtype=np.float32)
    if encoding == "int8":
        columns = []
        for column in X.T:
            scale = np.float32(np.abs(column).max() / np.float32(127)) if column.any() else np.float32(1)
            columns.append(np.array([np.float32(round(float(x / scale))) * scale for x in column]))
        return np.array(columns, dtype=np.float32).T
    return X


SMALL = Sizes(chunk_bytes=16 * D, field_rows=2, block_bytes=23 * D * 4, block_rows=23, csv_block_bytes=1500)
"""By which a few hundred rows make many blocks and chunks."""
build_small = partial(Pool.build, sizes=SMALL)
small_reader = partial(Reader, unit_bytes=2 * 16 * D)
"""Reads them in many units."""


# ---- what is read


@pytest.mark.parametrize("shard", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_way_of_reading_equals_the_twin(encoding: str, shard: bool, tmp_path: Path) -> None:
    X = source_of(encoding)
    sizes = replace(SMALL, max_files=2 if shard else 10**6)
    pool = Pool.build(X, tmp_path / "pool.zarr", dtype=encoding, sizes=sizes)
    expected = twin(encoding, X)
    assert (pool.encoding, pool.dtype) == (encoding, np.dtype(STORED[encoding]))
    assert pool.nbytes == N * D * pool.dtype.itemsize
    assert pool.chunk_rows < 20
    assert (pool.write_rows > pool.chunk_rows) == shard
    assert zarr.open_group(pool.path, mode="r").attrs["dal"]["encoding"] == encoding
    for tile in (1, 7, 16, 64, 300):
        reader = small_reader(pool)
        for start in range(3, N, tile):
            got = reader.read(start, min(start + tile, N))
            assert (got.dtype, got.flags.writeable) == (np.float32, False)
            np.testing.assert_array_equal(got, expected[start : start + tile])
    np.testing.assert_array_equal(pool.read(5, N), expected[5:])
    whole = np.empty((N - 5, D), np.float32)
    small_reader(pool).read_into(5, whole)
    np.testing.assert_array_equal(whole, expected[5:])
    rows = [200, 4, 4, N - 1, 17, 16, 15]
    np.testing.assert_array_equal(pool.take(rows), expected[rows])
    # Whole chunks are written past Zarr's codecs, and are what these would write.
    features, again = tmp_path / "pool.zarr" / "features", tmp_path / "again"
    again.mkdir()
    shutil.copy(features / "zarr.json", again)
    zarr.open_array(again, mode="r+")[:] = zarr.open_array(features, mode="r")[:]
    files = [path.relative_to(features) for path in features.rglob("*") if path.is_file()]
    assert len(files) > 1
    for file in files:
        assert (features / file).read_bytes() == (again / file).read_bytes(), file


def test_a_tile_is_decoded_into_the_buffer_of_the_one_before(tmp_path: Path) -> None:
    for encoding in NARROW:
        reader = small_reader(build_small(source_of(encoding), tmp_path / encoding, dtype=encoding))
        first = reader.read(3, 40)
        assert np.shares_memory(first, reader.read(40, 77))


@pytest.mark.parametrize("encoding", NARROW)
def test_images(encoding: str, tmp_path: Path) -> None:
    X = source_of(encoding, 31, 24)
    pool = Pool.build(X.reshape(31, 4, 3, 2), tmp_path / "pool.zarr", dtype=encoding)
    assert (pool.record_shape, pool.n_features) == ((4, 3, 2), 24)
    np.testing.assert_array_equal(pool.read(2, 31), twin(encoding, X)[2:])


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_a_store_that_is_not_local(encoding: str) -> None:
    pool = build_small(records(), f"memory://narrow/{encoding}.zarr", dtype=encoding)
    np.testing.assert_array_equal(pool.read(3, N), twin(encoding, records())[3:])


def test_plain_arrays_hold_numbers_and_nothing_else(tmp_path: Path) -> None:
    for dtype in ("uint16", "int8", "float16", "float64"):
        values = (records() * 5).clip(0, 100).astype(dtype)
        array = zarr.create_array(tmp_path / dtype, shape=values.shape, dtype=dtype, chunks=(16, D))
        array[...] = values
        pool = Pool.open(tmp_path / dtype)
        assert pool.encoding == dtype
        np.testing.assert_array_equal(pool.read(3, N), values[3:].astype(np.float32))


def test_without_a_dtype_it_is_float32_or_the_uint8_given(tmp_path: Path) -> None:
    whole = source_of("uint8").astype(np.uint8)
    assert Pool.build(records(), tmp_path / "a").encoding == "float32"
    assert Pool.build(whole, tmp_path / "b").encoding == "uint8"
    assert Pool.build(whole, tmp_path / "c", dtype="float32").dtype == np.float32


# ---- rounding


FLOATS = st.floats(width=32, allow_nan=False)


@settings(deadline=None, max_examples=200)
@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_bfloat16_is_the_nearest(values: list[float]) -> None:
    X = np.array([values], dtype=np.float32)
    stored = encoder("bfloat16")(X, 0)
    got = np.empty(X.shape, np.float32)
    decoder("bfloat16", None)(stored, got)
    np.testing.assert_array_equal(got, twin("bfloat16", X))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(X))
    usual = np.isfinite(got) & (np.abs(X) >= np.finfo(np.float32).tiny)
    assert (np.abs(got[usual].astype(float) - X[usual]) <= np.abs(X[usual].astype(float)) * 2**-8).all()


def test_bfloat16_of_ties_and_of_what_is_no_number(tmp_path: Path) -> None:
    # 1 + 2**-8 lies between 1 and 1 + 2**-7; then the largest float32, and NaNs whose upper half alone is infinity.
    bits = np.array([0x3F80_8000, 0x3F81_8000, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000], np.uint32)
    nans = np.array([0x7F80_0001, 0xFF80_0001, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FC0_0000], np.uint32)
    X = np.stack([bits, nans]).view(np.float32)
    got = Pool.build(X, tmp_path / "pool.zarr", dtype="bfloat16").read(0, 2)
    assert got[0].tolist() == [1.0, 1 + 2**-6, np.inf, np.inf, -np.inf]
    assert np.isnan(got[1]).all()


def test_float16_keeps_nan_and_makes_infinite_what_is_beyond(tmp_path: Path) -> None:
    X = np.array([[np.nan, 1e6, -1e300, 65504, 2**-25]])
    got = Pool.build(X, tmp_path / "pool.zarr", dtype="float16").read(0, 1)
    np.testing.assert_array_equal(got, np.array([[np.nan, np.inf, -np.inf, 65504, 0]], np.float32))


def test_every_half_is_decoded_as_numpy_casts_it() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for halves in (every, every[::-1], finite, finite[np.signbit(finite)], every[np.isnan(every)]):
        for values in (halves.reshape(-1, 2)[3:], halves.reshape(-1, 2)[3:].astype(">f2")):
            got = np.full(values.shape, 7, np.float32)
            decoder("float16", None)(values, got)
            expected = values.astype(np.float32)
            np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="sets a register of such processors through glibc"
)
def test_halves_are_decoded_where_subnormals_are_flushed_to_zero() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 2)
    expected = every.astype(np.float32)
    got = np.empty(every.shape, np.float32)
    libm = ctypes.CDLL("libm.so.6")
    before, flushed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    assert libm.fegetenv(before) == 0
    assert libm.fegetenv(flushed) == 0
    flushed[7] |= 0x8040  # of the register MXCSR: results, and operands, that are subnormal become zero
    assert libm.fesetenv(flushed) == 0
    try:
        flushes = np.float32(2.0**-149) * np.float32(2.0**112) == 0
        decoder("float16", None)(every, got)
    finally:
        assert libm.fesetenv(before) == 0
    assert flushes
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_halves_that_are_no_numbers_stay_where_they_are() -> None:
    X = np.random.default_rng(3).standard_normal((50, 3)).astype(np.float16)
    for value in (np.inf, -np.inf, np.nan, -np.nan):
        holed = X.copy()
        holed[[7, 7, 49], [0, 2, 1]] = value
        got = np.empty((50, 6), np.float32)
        decoder("float16", None)(holed, got[:, ::2])
        np.testing.assert_array_equal(got[:, ::2], holed.astype(np.float32))
    decoder("float16", None)(X[:0], np.empty((0, 3), np.float32))


@pytest.mark.parametrize("width", [1, 3, 16, 5000, 8192, 10_001])
@pytest.mark.parametrize("height", [0, 1, 7, 2731, 20_000])
def test_int8_of_any_width_is_multiplied_feature_by_feature(width: int, height: int) -> None:
    height = min(height, 2**18 // width)
    rng = np.random.default_rng(width)
    steps = rng.integers(-127, 128, (height, width)).astype(np.int8)
    scale = rng.random(width, dtype=np.float32) + np.float32(0.1)
    expected = steps.astype(np.float32) * scale
    for got in (np.empty((height, width), np.float32), np.empty((height, 2 * width), np.float32)[:, ::2]):
        decoder("int8", scale)(steps, got)
        np.testing.assert_array_equal(got, expected)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(FLOATS, FLOATS).filter(lambda two: np.isfinite(two).all()), min_size=1))
def test_int8_is_within_half_a_step(values: list[tuple[float, float]]) -> None:
    X = np.array(values, dtype=np.float32)
    scale = scale_of([X[:1], X[1:]] if len(X) > 1 else [X])
    got = np.empty(X.shape, np.float32)
    decoder("int8", scale)(encoder("int8", scale)(X, 0), got)
    assert (scale > 0).all()
    # what float32 itself rounds off 127 steps is allowed on top
    assert (np.abs(got.astype(float) - X) <= scale.astype(float) * (0.5 + 2e-5)).all()
    assert np.isfinite(got).all()


def test_the_scale_is_a_127th_of_the_largest_and_one_where_all_are_zero(tmp_path: Path) -> None:
    X = records()
    pool = build_small(X, tmp_path / "pool.zarr", dtype="int8")
    scale = np.asarray(zarr.open_group(pool.path, mode="r")["scale"][:])  # type: ignore[index]
    np.testing.assert_array_equal(scale, np.where(X.any(axis=0), np.abs(X).max(axis=0) / np.float32(127), 1))
    assert scale.dtype == np.float32
    assert scale[3] == 1
    steps = np.asarray(zarr.open_group(pool.path, mode="r")["features"][:])  # type: ignore[index]
    assert np.abs(steps).max(axis=0).tolist() == [127, 127, 127, 0, 127]


# ---- building


def tables(folder: Path, X: np.ndarray) -> dict[str, Any]:
    table = pa.table({f"f{n}": X[:, n] for n in range(D)})
    pa.parquet.write_table(table, folder / "x.parquet", row_group_size=50)
    pa.csv.write_csv(table, folder / "x.csv")
    np.save(folder / "x.npy", X)
    return {"array": X, "npy": folder / "x.npy", "parquet": folder / "x.parquet", "csv": folder / "x.csv"}


@pytest.mark.parametrize("encoding", NARROW)
def test_every_source_gives_the_same_pool(encoding: str, tmp_path: Path) -> None:
    X = source_of(encoding)
    for kind, source in tables(tmp_path, X).items():
        pool = build_small(source, tmp_path / f"{kind}.zarr", dtype=encoding)
        np.testing.assert_array_equal(pool.read(2, N), twin(encoding, X)[2:], err_msg=kind)


def blocks(X: np.ndarray) -> Iterator[Block]:
    for start, stop in ((0, 3), (3, 3), (3, 100), (100, len(X))):
        yield Block(X[start:stop])


@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "uint8"])
def test_blocks(encoding: str, tmp_path: Path) -> None:
    X = source_of(encoding)
    pool = build_small(blocks(X), tmp_path / "pool.zarr", dtype=encoding)
    np.testing.assert_array_equal(pool.read(2, N), twin(encoding, X)[2:])


def test_blocks_are_refused_for_int8(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"int8.*iterable of Block"):
        Pool.build(blocks(records()), tmp_path / "pool.zarr", dtype="int8")
    assert not list(tmp_path.iterdir())


def test_unknown_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="`dtype` must be one of float32, float16, bfloat16, int8, uint8, auto, got 'float8'"
    ):
        Pool.build(records(), tmp_path / "pool.zarr", dtype="float8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_int8_does_not_have_is_refused_before_anything_is_written(bad: float, tmp_path: Path) -> None:
    X = records()
    X[[40, 41, 200], [0, 4, 3]] = bad
    with pytest.raises(SourceError, match=r"`int8`.*finite.*rows 40, 41; use float32"):
        build_small(X, tmp_path / "pool.zarr", dtype="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1, 256, 0.5, 2**40, 255.00000001])
def test_what_uint8_does_not_have_is_refused(bad: float, tmp_path: Path) -> None:
    X = source_of("uint8").astype(np.float64)
    X[40:47, 2] = bad
    with pytest.raises(SourceError, match=r"`uint8`.*rows 40, 41, 42, 43, 44 and 2 more"):
        Pool.build(X, tmp_path / "pool.zarr", dtype="uint8")


def test_a_source_that_grew_between_the_passes_is_refused() -> None:
    scale = scale_of([records()])
    with pytest.raises(SourceError, match=r"first pass.*rows 9:"):
        encoder("int8", scale)(np.concatenate([records(2), records(1) * 1000]), 7)


class Stopped(BaseException):
    """Stands for whatever ends a process between two writes."""


def test_int8_interrupted_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build gives up after ever more writes; it goes on by the scale that it has stored."""
    np.save(tmp_path / "x.npy", records())
    original, rows, passes = LocalStore.set, [], []
    monkeypatch.setattr(building, "scale_of", lambda found: (passes.append(len(rows)), scale_of(found))[1])
    for allowed in range(1, 200, 2):
        left = iter(range(allowed))

        async def failing(self: LocalStore, *args: object, left: Iterator[int] = left, **options: object) -> None:
            if next(left, None) is None:
                raise Stopped
            await original(self, *args, **options)

        monkeypatch.setattr(LocalStore, "set", failing)
        try:
            pool = build_small(tmp_path / "x.npy", tmp_path / "pool.zarr", dtype="int8")
        except Stopped:
            group = tmp_path / "pool.zarr"
            rows.append(
                zarr.open_group(group, mode="r").attrs["dal"]["n_rows"] if (group / "zarr.json").exists() else 0
            )
            continue
        break
    np.testing.assert_array_equal(pool.read(0, N), twin("int8", records()))
    assert rows == sorted(rows)
    assert len(set(rows)) > 3
    assert passes == list(range(1 + max(n for n, done in enumerate(rows) if done == 0) + 1))


def test_another_dtype_does_not_go_on(tmp_path: Path) -> None:
    def stop(done: int, rows: int | None) -> None:
        if done > 100:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(records(), tmp_path / "pool.zarr", dtype="bfloat16", progress=stop)
    for dtype in ("float16", "int8", None):
        with pytest.raises(SourceError, match=r"another source or dtype .*instead of .bfloat16.*overwrite=True"):
            build_small(records(), tmp_path / "pool.zarr", dtype=dtype)
    pool = build_small(records(), tmp_path / "pool.zarr", dtype="bfloat16")
    np.testing.assert_array_equal(pool.read(0, N), twin("bfloat16", records()))


def test_a_scale_that_is_gone_or_an_encoding_of_the_future(tmp_path: Path) -> None:
    pool = build_small(records(), tmp_path / "pool.zarr", dtype="int8")
    (tmp_path / "pool.zarr/scale/c/1").unlink()
    with pytest.raises(ChunkError, match="scale: chunk c/1"):
        pool.read(3, 9)
    group = zarr.open_group(pool.path, mode="r+")
    group.attrs["dal"] = {**group.attrs["dal"], "encoding": "int4"}  # type: ignore[dict-item]
    with pytest.raises(PoolError, match=r"'int4'.*newer dal"):
        Pool.open(pool.path)


def test_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", records())
    made = CliRunner().invoke(
        main, ["pool", "build", str(tmp_path / "x.npy"), str(tmp_path / "pool.zarr"), "--dtype", "int8"]
    )
    assert made.exit_code == 0, made.output
    assert "237 records of 5 int8" in made.output
    np.testing.assert_array_equal(Pool.open(tmp_path / "pool.zarr").read(3, N), twin("int8", records())[3:])


# ---- scans


@pytest.mark.parametrize("encoding", NARROW)
def test_a_scan_equals_one_of_a_float32_pool_of_what_is_held(encoding: str, tmp_path: Path) -> None:
    n, d = 40_003, 12
    X = source_of(encoding, n, d)
    if encoding in ("float16", "bfloat16"):
        X[[5, 16_384, n - 1], [0, 3, 11]] = np.nan, np.inf, -np.inf
    narrow = Pool.build(X, tmp_path / "narrow.zarr", dtype=encoding)
    wide = Pool.build(narrow.read(0, n), tmp_path / "wide.zarr")
    labels = np.random.default_rng(1).integers(0, 3, 300)
    model = Learner.named("logistic", ("a", "b", "c"), random_state=0).fit(wide.take(np.arange(100, 400)), labels)
    books = [sample_codebook(pool, 4, 11) for pool in (narrow, wide)]
    found, expected = (
        scan(pool, model, Strategy(), 40, [7, 16_390], random_state=11, round=4, codebook=book)
        for pool, book in zip((narrow, wide), books, strict=True)
    )
    assert len(expected.candidates) > 40
    for name in ("rows", "scores", "cells", "predicted", "embeddings"):
        ours, theirs = getattr(found.candidates, name), getattr(expected.candidates, name)
        assert ours.tobytes() == theirs.tobytes(), name
    tally, other = found.summary.tally, expected.summary.tally
    assert (tally.rows, tally.invalid, tally.confidence) == (n, other.invalid, other.confidence)
    assert tally.invalid == (3 if encoding in ("float16", "bfloat16") else 0)
