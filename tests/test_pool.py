"""Pool and Reader against the plain NumPy array that the pool was made from."""

import gc
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import zstd
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from dal.errors import ChunkError, InputError, PoolError, PoolIncomplete, PoolNotFound
from dal.pool import Pool, Reader, Sizes, _zarr
from dal.pool import build as building
from dal.pool import ids as indexing
from dal.pool.chunks import rows_or_fill

N, D = 237, 5
SMALL = Sizes(chunk_bytes=16 * D * 4, field_rows=8, index_rows=16, bucket_entries=50)
"""By which a few hundred rows make many chunks and buckets."""
build_small = partial(Pool.build, sizes=SMALL)
small_reader = partial(Reader, unit_bytes=2 * 16 * D * 4)
"""Reads them in many units."""


def records(n: int = N, shape: tuple[int, ...] = (D,), seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def names(n: int = N) -> list[str]:
    return [f"{row * 7919 % 1009:04d}-é" for row in range(n)]


def read(pool: Pool, start: int, stop: int) -> np.ndarray:
    """Read rows as `Pool.read` does, over many units."""
    found = np.empty((stop - start, pool.n_features), np.float32)
    small_reader(pool).read_into(start, found)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool for tests to copy."""
    display = {
        "text": [f"text {row}" if row % 3 else "" for row in range(N)],
        "year": np.arange(N, dtype=np.int32) + 1900,
        "size": np.arange(N) / 4,
        "new": np.arange(N) % 2 == 0,
    }
    path = tmp_path_factory.mktemp("built") / "pool.zarr"
    build_small(records(), path, ids=names(), display=display)
    return path


@pytest.fixture
def pool(built: Path, tmp_path: Path) -> Pool:
    return Pool.open(shutil.copytree(built, tmp_path / "pool.zarr"))


def foreign(path: Path, values: np.ndarray, **layout: object) -> Path:
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, **layout)
    array[...] = values
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"chunks": (16, D), "compressors": None, "filters": None},
    "checksum": {"chunks": (16, D), "compressors": [Crc32cCodec()]},
    "odd chunks": {"chunks": (23, D), "compressors": None},
    "one chunk": {"chunks": (N, D), "compressors": None},
    "narrow chunks": {"chunks": (16, 2), "compressors": None},
    "big-endian": {"chunks": (16, D), "serializer": BytesCodec(endian="big"), "compressors": None},
    "compressed": {"chunks": (23, D)},
    "sharded": {"chunks": (8, D), "shards": (32, D), "compressors": None},
    "sharded, index first": {
        "chunks": (8, D),
        "shards": {"shape": (32, D), "index_location": "start"},
        "compressors": None,
    },
    "sharded, big-endian": {
        "chunks": (8, D),
        "shards": (32, D),
        "serializer": BytesCodec(endian="big"),
        "compressors": None,
    },
    "sharded, compressed": {"chunks": (8, 5), "shards": (64, 5)},
    "sharded, whole records compressed": {"chunks": (8, D), "shards": (64, D)},
    "blosc": {"chunks": (23, D), "compressors": [BloscCodec(cname="lz4", shuffle="bitshuffle")]},
    "blosc in shards": {"chunks": (8, D), "shards": (64, D), "compressors": [BloscCodec(cname="zstd")]},
    "zstd, checksum": {"chunks": (16, D), "compressors": [ZstdCodec(), Crc32cCodec()]},
    "checksum, zstd": {"chunks": (16, D), "compressors": [Crc32cCodec(), ZstdCodec()]},
    "gzip": {"chunks": (16, D), "compressors": [GzipCodec()]},
    "version 2": {"chunks": (19, D), "zarr_format": 2},
    "version 2, F order": {"chunks": (19, D), "zarr_format": 2, "order": "F", "compressors": None},
}


def test_describes_itself(pool: Pool, tmp_path: Path) -> None:
    assert (pool.n_rows, pool.record_shape, pool.n_features, pool.dtype) == (N, (D,), D, np.float32)
    assert (pool.chunk_rows, pool.write_rows, pool.nbytes) == (16, 16, N * D * 4)
    assert pool.fields == ("text", "year", "size", "new")
    assert pool.path == str(tmp_path / "pool.zarr")
    assert pool.fingerprint == Pool.open(tmp_path / "pool.zarr").fingerprint


def test_relative_path_is_absolute(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moved = Pool.open("pool.zarr")
    monkeypatch.chdir("/")
    assert moved.path == pool.path
    np.testing.assert_array_equal(moved.read(3, 9), records()[3:9])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("tile", [1, 7, 16, 64, 300])
def test_reader_equals_slices(layout: dict[str, Any], tile: int, tmp_path: Path) -> None:
    pool = Pool.open(foreign(tmp_path / "array", records(), **layout))
    reader = small_reader(pool)
    for start in range(3, N, tile):
        stop = min(start + tile, N)
        np.testing.assert_array_equal(reader.read(start, stop), records()[start:stop])
    for whole in (pool.read(5, N), read(pool, 5, N)):
        np.testing.assert_array_equal(whole, records()[5:])
    np.testing.assert_array_equal(pool.take([200, 4, 4, N - 1]), records()[[200, 4, 4, N - 1]])


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_blocks_are_shown_in_order_and_whole(layout: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    truth = (records() * 100).astype(dtype)
    # A piece is two records and some of the next.
    reader = small_reader(Pool.open(foreign(tmp_path / "array", truth, **layout)), piece_bytes=48)
    for start, stop, height in [(3, 40, 4), (40, 41, 4), (41, 90, 7), (90, N, 64), (0, 16, 16), (16, 16, 4)]:
        seen: list[tuple[int, np.ndarray]] = []
        tile = reader.read_in_blocks(start, stop, height, lambda at, block, seen=seen: seen.append((at, block.copy())))
        assert [at for at, _ in seen] == list(range(0, stop - start, height))
        for at, block in seen:
            np.testing.assert_array_equal(block, truth[start + at : min(start + at + height, stop)])
        np.testing.assert_array_equal(tile, truth[start:stop])
        assert tile.dtype == np.float32
        assert not tile.flags.writeable
    reader.finish()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_reads_in_any_order(pool: Pool, data: st.DataObject) -> None:
    reader, truth = small_reader(pool), records()
    for _ in range(6):
        start = data.draw(st.integers(0, N))
        stop = data.draw(st.integers(start, N))
        np.testing.assert_array_equal(reader.read(start, stop), truth[start:stop])
    rows = data.draw(st.lists(st.integers(0, N - 1), max_size=40))
    np.testing.assert_array_equal(pool.take(rows), truth[rows])
    assert pool.record_ids(rows) == [names()[row] for row in rows]
    assert pool.rows_of([names()[row] for row in rows]).tolist() == rows


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int8", "int64", "uint16", ">f4", ">i2"])
@pytest.mark.parametrize("compressors", [None, "auto"])
def test_other_types_are_read_as_float32(dtype: str, compressors: str | None, tmp_path: Path) -> None:
    values = (records() * 40).clip(0, 100).astype(dtype)
    pool = Pool.open(foreign(tmp_path / "array", values, chunks=(16, D), compressors=compressors))
    reader = small_reader(pool)
    for start in range(5, N, 12):
        got = reader.read(start, min(start + 12, N))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, values[start : start + 12].astype(np.float32))
    assert pool.take([9, 3]).dtype == np.float32


def test_float64_beyond_float32_is_infinite(tmp_path: Path) -> None:
    pool = Pool.open(foreign(tmp_path / "array", np.full((4, 2), 1e300), chunks=(2, 2)))
    assert np.isposinf(pool.reader().read(1, 4)).all()


def test_images_are_flattened(tmp_path: Path) -> None:
    images = (records(31, (4, 3, 2)) * 50).clip(0, 255).astype(np.uint8)
    pool = build_small(images, tmp_path / "pool.zarr")
    assert (pool.record_shape, pool.n_features, pool.dtype) == ((4, 3, 2), 24, np.uint8)
    np.testing.assert_array_equal(pool.read(3, 30), images.reshape(31, 24)[3:30].astype(np.float32))
    np.testing.assert_array_equal(pool.take([30, 1]), images.reshape(31, 24)[[30, 1]].astype(np.float32))


def test_a_tile_in_the_held_unit_is_a_view_and_each_chunk_is_read_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: (opened.append(self.parent.name), original(self, *a, **k))[1]
    )
    reader = small_reader(pool)
    first, second = reader.read(32, 40), reader.read(40, 48)
    assert np.shares_memory(first.base, second.base)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    for start in range(48, N, 8):
        reader.read(start, min(start + 8, N))
    assert sorted(map(int, opened)) == list(range(2, 15))
    opened.clear()
    pool.take([230, 17, 18, 231, 17])
    assert opened == ["1", "14"]


def test_a_zarr_without_what_is_private_reads_and_builds_the_same(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zarr.core.sync", None)
    monkeypatch.setattr(_zarr, "_private_sync", _zarr._private_sync.__wrapped__)
    _zarr._warn.cache_clear()
    array = foreign(tmp_path / "a", records(), chunks=(16, D), fill_value=0.0)
    shutil.rmtree(array / "c" / "3")
    with pytest.warns(RuntimeWarning, match="zarr"):
        assert Pool.open(array, missing_chunks="fill").holes() == (1, 15)
    with pytest.raises(PoolError, match="1 of 15 chunks"):
        Pool.open(array)
    assert Pool.open(f"{pool.path}/features").holes() == (0, 15)
    np.testing.assert_array_equal(pool.take([3, 200, 3]), records()[[3, 200, 3]])
    zeros = build_small(np.zeros((N, D), np.float32), tmp_path / "zeros.zarr")
    assert zeros.holes() == (0, 15)
    shutil.rmtree(Path(zeros.path) / "features" / "c" / "2")
    with pytest.raises(ChunkError, match=r"features.*c/2/0"):
        zeros.read(0, N)


@pytest.mark.parametrize(
    "layout",
    [{"zarr_format": 2}, {"chunk_key_encoding": {"name": "v2", "separator": "/"}}, {}, {"shards": (4, 4)}],
    ids=str,
)
def test_keys_of_chunks_are_those_of_zarr(layout: dict[str, Any], tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(8, 6), chunks=(2, 2), dtype="i4", **layout)
    assert _zarr.chunk_key(array, (1, 0)) == array.metadata.encode_chunk_key((1, 0))


def test_what_pool_returns_is_the_callers(pool: Pool) -> None:
    for own in (pool.read(3, 20), pool.take([5, 6])):
        own[...] = 0
    np.testing.assert_array_equal(pool.read(3, 20), records()[3:20])


def test_pickled_pool_is_small_and_reads(pool: Pool) -> None:
    pool.read(0, N)
    data = pickle.dumps(pool)
    assert len(data) < 8000
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.take([100, 2]), records()[[100, 2]])
    assert copy.rows_of([names()[9]]).tolist() == [9]


def test_an_array_in_a_pool_opens_as_plain_array(pool: Pool) -> None:
    array = Pool.open(f"{pool.path}/features")
    np.testing.assert_array_equal(array.read(2, 50), records()[2:50])
    assert array.record_ids([3]) == ["3"]
    assert array.fields == ()


# ---- ids and fields


def test_unknown_ids_have_no_row(pool: Pool) -> None:
    asked = ["none", names()[236], "", names()[0], "none"]
    assert pool.rows_of(asked).tolist() == [-1, 236, -1, 0, -1]
    assert pool.rows_of([]).tolist() == []


@pytest.mark.parametrize("distinct", [1, 3])
def test_ids_whose_hashes_collide(distinct: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = indexing.HASHES[indexing.HASH]
    # far apart, so that the colliding ids are in several buckets, and runs of them go over several index chunks
    few = {indexing.HASH: lambda ids: full(ids) % np.uint64(distinct) * np.uint64(2**62) + np.uint64(5)}
    monkeypatch.setattr(indexing, "HASHES", few)
    pool = build_small(records(), tmp_path / "pool.zarr", ids=names())
    asked = [*names()[::-1], "unknown", names()[4]]
    assert pool.rows_of(asked).tolist() == [*range(N - 1, -1, -1), -1, 4]


def slow_hash(text: str) -> int:
    """The hash as its docstring defines it, in whole numbers."""

    def mixed(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    data = text.encode("utf-8", "surrogatepass")
    found = mixed(len(data))
    for start in range(0, len(data), 8):
        found = mixed(found ^ int.from_bytes(data[start : start + 8], "little"))
    return found


def test_hashes_are_those_that_pools_hold() -> None:
    texts = np.array(["007", "é", "record 12"], dtype=object)
    assert indexing.hash_ids(texts, "pandas").tolist() == [
        4175678020806771434,
        16908809132758853863,
        15908475300816855857,
    ]
    assert indexing.HASH == "splitmix64/1"
    assert indexing.hash_ids(texts).tolist() == [
        16568435594678004626,
        12213114911819052007,
        3574735065323355514,
    ]


@given(texts=st.lists(st.text(st.characters(exclude_categories=())) | st.text("a\0", min_size=30), max_size=20))
def test_the_hash_is_what_it_is_said_to_be(texts: list[str]) -> None:
    hashes = indexing.hash_ids(np.array([*texts, ""], dtype=object))
    assert hashes.tolist() == list(map(slow_hash, [*texts, ""]))


def as_of_old(pool: Pool) -> Pool:
    """Index a pool's ids as dal did before it stored which hash it took."""
    group = zarr.open_group(Path(pool.path), mode="r+")
    hashes = indexing.hash_ids(np.array(names(), dtype=object), "pandas")
    order = np.argsort(hashes)
    fence = hashes[order][:: group["ids_index/hash"].chunks[0]]
    for name, values in {"hash": hashes[order], "row": order, "fence": fence}.items():
        group[f"ids_index/{name}"][:] = values
    told = {key: value for key, value in group.attrs["dal"].items() if key != "id_hash"} | {"version": 1}
    group.attrs["dal"] = told
    return Pool.open(pool.path)


def test_a_pool_of_before_is_looked_up_by_its_own_hash(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    old = as_of_old(pool)
    assert old.rows_of(["none", *names()]).tolist() == [-1, *range(N)]
    monkeypatch.setitem(sys.modules, "pandas.util", None)
    with pytest.raises(PoolError, match=r"pip install 'dal-learn\[pandas\]'"):
        old.rows_of([names()[3]])
    added = {name: [None, None] for name in pool.fields}
    Pool.open(pool.path).append(records(2), ids=["new", "newer"], display=added, sizes=SMALL)
    for grown in (old.refreshed(), Pool.open(pool.path)):
        assert grown.rows_of(["newer", names()[7]]).tolist() == [N + 1, 7]


@pytest.mark.slow
def test_pools_are_built_and_read_without_pandas(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,a,b,when\nx,1,2,2024-05-01\ny,,4,\n")
    script = """
import importlib.abc, sys
class NoPandas(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoPandas())
import numpy, pyarrow, pyarrow.parquet
from dal.pool import Pool
pool = Pool.build("x.csv", "csv.zarr", ids="id", display=["when"])
assert pool.rows_of(["y", "z"]).tolist() == [1, -1]
pyarrow.parquet.write_table(pyarrow.table({"a": [1.5, None], "t": pyarrow.array([1, 2], "duration[s]")}), "x.parquet")
told = Pool.build("x.parquet", "parquet.zarr", display=["t"]).display([0, 1])
assert told == {"t": ["0 days 00:00:01", "0 days 00:00:02"]}, told
pool = Pool.build(numpy.eye(3), "array.zarr", ids=["a", "b", "c"], display={"text": ["", None, "x"]})
assert pool.append(numpy.ones((1, 3)), ids=[7], display={"text": [""]}).rows_of(["7"]).tolist() == [3]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True, timeout=100)


def test_an_unknown_hash_is_refused(pool: Pool) -> None:
    change(pool, id_hash="splitmix64/2")
    with pytest.raises(PoolError, match="splitmix64/2"):
        Pool.open(pool.path)


def test_the_index_is_sorted_and_whole(pool: Pool) -> None:
    index = zarr.open_group(Path(pool.path) / "ids_index", mode="r")
    hashes, rows, fence = (np.asarray(index[name][:]) for name in ("hash", "row", "fence"))
    expected = indexing.hash_ids(np.array(names(), dtype=object))
    np.testing.assert_array_equal(hashes, np.sort(expected))
    np.testing.assert_array_equal(expected[rows], hashes)
    np.testing.assert_array_equal(fence, hashes[::16])
    assert not list(Path(pool.path).parent.glob(".*"))


def test_rows_are_ids_where_there_are_none(tmp_path: Path) -> None:
    pool = Pool.build(records(12), tmp_path / "pool.zarr")
    assert pool.record_ids([11, 0, 11]) == ["11", "0", "11"]
    asked = ["11", "0", "12", "007", "-1", "x", "\u0667", "²", "", "1" * 30, "1_0", " 1"]
    assert pool.rows_of(asked).tolist() == [11, 0, *[-1] * 10]
    assert pool.display([1]) == {}


def test_integer_ids_become_text(tmp_path: Path) -> None:
    pool = Pool.build(records(3), tmp_path / "pool.zarr", ids=[30, np.int64(-4), 2**70])
    assert pool.record_ids([0, 1, 2]) == ["30", "-4", str(2**70)]
    assert pool.rows_of(["-4"]).tolist() == [1]


def test_ids_other_than_text_are_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match=r"`record_ids`.*got int: 7"):
        pool.rows_of(["a", 7])  # type: ignore[list-item]


def test_display_in_the_order_asked(pool: Pool) -> None:
    assert pool.display([5, 0, 200, 5]) == {
        "text": ["text 5", "", "text 200", "text 5"],
        "year": [1905, 1900, 2100, 1905],
        "size": [1.25, 0.0, 50.0, 1.25],
        "new": [False, True, True, False],
    }
    assert pool.display([]) == {"text": [], "year": [], "size": [], "new": []}
    assert {type(value) for values in pool.display([1]).values() for value in values} == {str, int, float, bool}


@pytest.mark.parametrize("rows", [[N], [-1], [0.5], [[1]], [True], ["1"]])
def test_rows_that_are_not_there(pool: Pool, rows: list[Any]) -> None:
    for method in (pool.take, pool.record_ids, pool.display):
        with pytest.raises(InputError, match="row"):
            method(rows)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, N + 1)])
def test_ranges_that_are_not_there(pool: Pool, start: int, stop: int) -> None:
    with pytest.raises(InputError, match=f"rows {start} to {stop}"):
        pool.reader().read(start, stop)
    with pytest.raises(InputError, match=f"rows {start} to {stop}"):
        pool.read(start, stop)


# ---- damage


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 9)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_at_the_end(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-11] ^= 4
    file.write_bytes(data)


DAMAGE = [flip, flip_at_the_end, truncate, lengthen, empty, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_damage_is_named(damage: Callable[[Path], None], sharded: bool, tmp_path: Path) -> None:
    sizes = replace(SMALL, max_files=2, shard_chunks=4) if sharded else SMALL
    pool = Pool.build(records(), tmp_path / "pool.zarr", sizes=sizes)
    number, rows = ("1", "rows 64 to 127") if sharded else ("3", "rows 48 to 63")
    damage(tmp_path / "pool.zarr/features/c" / number / "0")
    reader = small_reader(pool)
    np.testing.assert_array_equal(reader.read(16, 32), records()[16:32])
    for _ in range(2):
        with pytest.raises(ChunkError, match=rf"features: chunk c/{number}/0 \({rows}\)"):
            reader.read(60, 100)
        # a failed read must not leave its rubbish to the next
        np.testing.assert_array_equal(reader.read(16, 32), records()[16:32])
    with pytest.raises(ChunkError, match=rows):
        pool.take([3, 90, 63])
    np.testing.assert_array_equal(reader.read(130, 200), records()[130:200])


COMPRESSED = {
    "zstd": [ZstdCodec()],
    "blosc": [BloscCodec(cname="lz4", shuffle="bitshuffle")],
    "zstd, checksum": [ZstdCodec(), Crc32cCodec()],
    "blosc, checksum": [BloscCodec(), Crc32cCodec()],
}


@pytest.mark.parametrize("damage", [truncate, lengthen, empty, Path.unlink])
@pytest.mark.parametrize("compressors", COMPRESSED.values(), ids=COMPRESSED)
def test_damage_to_compressed_chunks_is_named(
    damage: Callable[[Path], None], compressors: list[BytesBytesCodec], tmp_path: Path
) -> None:
    path = foreign(tmp_path / "array", records(), chunks=(16, D), compressors=compressors)
    reader = small_reader(Pool.open(path))
    assert reader._files is not None
    damage(path / "c/3/0")
    np.testing.assert_array_equal(reader.read(16, 32), records()[16:32])
    for _ in range(2):
        with pytest.raises(ChunkError, match=r"chunk c/3/0 \(rows 48 to 63\)"):
            reader.read(60, 100)
        np.testing.assert_array_equal(reader.read(16, 32), records()[16:32])


@pytest.mark.parametrize("damage", [flip, flip_at_the_end])
@pytest.mark.parametrize("compressors", list(COMPRESSED.values())[2:], ids=list(COMPRESSED)[2:])
def test_a_flipped_bit_is_found_where_a_compressed_chunk_has_a_checksum(
    damage: Callable[[Path], None], compressors: list[BytesBytesCodec], tmp_path: Path
) -> None:
    path = foreign(tmp_path / "array", records(), chunks=(16, D), compressors=compressors)
    damage(path / "c/3/0")
    with pytest.raises(ChunkError, match="does not match its checksum"):
        read(Pool.open(path), 40, 70)


@pytest.mark.parametrize("compressors", COMPRESSED.values(), ids=COMPRESSED)
@pytest.mark.parametrize("rows", [8, 32])
def test_a_compressed_chunk_of_another_length_is_refused(
    rows: int, compressors: list[BytesBytesCodec], tmp_path: Path
) -> None:
    path = foreign(tmp_path / "array", records(), chunks=(16, D), compressors=compressors)
    other = foreign(tmp_path / "other", records(), chunks=(rows, D), compressors=compressors)
    (path / "c/3/0").write_bytes((other / "c/3/0").read_bytes())
    with pytest.raises(ChunkError, match=rf"chunk c/3/0 .*decompress.* {16 * D * 4}"):
        read(Pool.open(path), 40, 70)


@pytest.mark.parametrize("length", [2**30, 16 * D * 4])
def test_a_chunk_that_would_fill_the_memory_is_refused_before_it_does(length: int, tmp_path: Path) -> None:
    path = foreign(tmp_path / "array", records(), chunks=(16, D), compressors=COMPRESSED["zstd"])
    packed = zstd.compress(np.zeros(length, np.uint8))
    (path / "c/3/0").write_bytes(packed if length > 2**20 else packed + bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ChunkError, match="chunk c/3/0"):
        read(Pool.open(path), 40, 70)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "kB"


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shards": (2**14, 2)}], ids=["v3", "v2", "shards"])
def test_a_billion_chunks_are_counted_without_a_list_of_them(options: dict[str, Any], tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(10**9, 2), chunks=(1, 2), dtype="f4", fill_value=7, **options)
    array[3:5] = 1.0
    stored, of = (1, 61_036) if "shards" in options else (2, 10**9)
    with pytest.raises(PoolError, match=f"{of - stored} of {of} chunks are not stored"):
        Pool.open(tmp_path / "a")
    pool = Pool.open(tmp_path / "a", missing_chunks="fill")
    assert pool.read(2, 6).tolist() == [[7, 7], [1, 1], [1, 1], [7, 7]]
    assert pool.take([10**9 - 1, 4]).tolist() == [[7, 7], [1, 1]]


def test_what_is_no_chunk_is_not_counted_as_one(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(4, 2), chunks=(2, 2), dtype="f4")
    array[:2] = 1.0
    for name in ("c/1/0.0123456789abcdef0123456789abcdef.partial", "c/2/0", "c/01/0", "notes", "c/0/00"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(b"")
    with pytest.raises(PoolError, match="1 of 2 chunks are not stored"):
        Pool.open(tmp_path / "a")


def test_damage_behind_the_blocks_shown_is_found_at_the_latest_when_finished(pool: Pool) -> None:
    flip_at_the_end(Path(pool.path) / "features/c/3/0")  # rows 48 to 63, the second half of a read unit
    asked: list[Callable[[Reader], object]] = [
        Reader.finish,
        lambda reader: reader.read_in_blocks(64, 70, 2, lambda *_: None),
        lambda reader: reader.read(0, 3),
    ]
    for ask in asked:
        reader = small_reader(pool, piece_bytes=4 * D)
        seen: list[int] = []
        reader.read_in_blocks(50, 54, 2, lambda at, block, seen=seen: seen.append(at + len(block)))
        assert seen == [2, 4]
        with pytest.raises(ChunkError, match=r"c/3/0 \(rows 48 to 63\) cannot be read"):
            ask(reader)
        with pytest.raises(ChunkError):  # nor is what was read of it taken for good afterwards
            reader.read(50, 54)
        np.testing.assert_array_equal(reader.read(5, 9), records()[5:9])


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_records_that_equal_the_fill_value_are_not_missing(sharded: bool, tmp_path: Path) -> None:
    sizes = replace(SMALL, max_files=1) if sharded else SMALL
    for dtype, value in (("uint8", 0), ("float32", np.nan)):
        pool = Pool.build(np.full((100, D), value, dtype), tmp_path / dtype, sizes=sizes)
        assert (pool.write_rows > pool.chunk_rows) == sharded
        np.testing.assert_array_equal(read(pool, 3, 100), np.full((97, D), value, np.float32))


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
@pytest.mark.parametrize("array", ["ids", "fields/text", "fields/new", "ids_index/hash", "ids_index/row"])
def test_damage_to_ids_and_fields_is_named(damage: Callable[[Path], None], array: str, pool: Pool) -> None:
    damage(Path(pool.path) / array / "c/1")
    ask = {"ids": lambda: pool.record_ids(np.arange(N)), "ids_index": lambda: pool.rows_of(names())}
    with pytest.raises(ChunkError, match=f"{array}: chunk c/1"):
        ask.get(array.split("/")[0], lambda: pool.display([9, 10]))()


@pytest.mark.parametrize("layout", ["plain", "checksum", "narrow chunks", "compressed", "sharded", "version 2"])
def test_missing_chunks_of_plain_arrays(layout: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "array", records(), **LAYOUTS[layout], fill_value=9)
    chunk = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0].isdigit())[1]
    chunk.unlink()
    with pytest.raises(PoolError, match=r"1 of \d+ chunks are not stored.*missing_chunks='fill'"):
        Pool.open(path)
    expected = np.asarray(zarr.open_array(path, mode="r")[...])
    assert (expected == 9).any()
    pool = Pool.open(path, missing_chunks="fill")
    np.testing.assert_array_equal(read(pool, 3, N), expected[3:])


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_chunks_that_a_shard_leaves_out_hold_the_fill_value(compressors: str | None, tmp_path: Path) -> None:
    values = records()
    values[70:90] = 9  # over one whole chunk, in the middle of a shard
    layout = {"chunks": (8, D), "shards": (32, D), "compressors": compressors, "fill_value": 9}
    path = foreign(tmp_path / "array", values, **layout)
    pool = Pool.open(path)
    np.testing.assert_array_equal(read(pool, 3, N), values[3:])


def test_a_chunk_of_a_plain_array_that_goes_later(tmp_path: Path) -> None:
    path = foreign(tmp_path / "array", records(), **LAYOUTS["plain"])
    pool = Pool.open(path)
    (path / "c/2/0").unlink()
    with pytest.raises(ChunkError, match=r"chunk c/2/0 \(rows 32 to 47\) is missing"):
        read(pool, 40, 50)


# ---- what is no pool


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(PoolNotFound, match="no pool at"):
            Pool.open(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((5,), "f4", r"got \(5,\)"),
        ((5, 2, 2), "f4", r"got \(5, 2, 2\)"),
        ((0, 3), "f4", "empty"),
        ((5, 0), "f4", "empty"),
        ((5, 2), "c8", "complex64"),
        ((5, 2), str, "encode or vectorise"),
    ],
)
def test_arrays_that_are_no_pool(shape: tuple[int, ...], dtype: str | type, message: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array", shape=shape, dtype=dtype, chunks=tuple(max(1, n) for n in shape))
    with pytest.raises(PoolError, match=message):
        Pool.open(tmp_path / "array")


def test_a_group_of_others(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "group")
    group.create_array("embeddings", shape=(3, 2), dtype="f4")
    group.create_array("models/clip/image", shape=(5, 4), dtype="f2")
    (tmp_path / "group" / "README").write_text("of nobody's interest")
    with pytest.raises(PoolError, match=r"group/embeddings .3, 2. float32, .*group/models/clip/image .5, 4. float16"):
        Pool.open(tmp_path / "group")
    with pytest.raises(PoolError, match="holds no array"):
        Pool.open(zarr.create_group(tmp_path / "empty").store.root)
    (tmp_path / "x.npy").write_bytes(b"no zip")
    for inner in ("x.npy", "x.npy/features"):
        with pytest.raises(PoolError, match=r"the file .*x\.npy"):
            Pool.open(tmp_path / inner)


def test_a_zip_archive_is_read(tmp_path: Path) -> None:
    built = build_small(records(), tmp_path / "pool.zarr", ids=names())
    shutil.make_archive(str(tmp_path / "root"), "zip", tmp_path / "pool.zarr")
    shutil.make_archive(str(tmp_path / "folder"), "zip", tmp_path, "pool.zarr")
    for place in (tmp_path / "root.zip", tmp_path / "folder.zip" / "pool.zarr"):
        opened = pickle.loads(pickle.dumps(Pool.open(place)))
        assert opened.fingerprint == built.fingerprint
        np.testing.assert_array_equal(read(opened, 3, N), records()[3:])
        assert opened.rows_of(names()[::-1]).tolist() == list(range(N))[::-1]
        assert Pool.open(str(place / "features")).read(0, 2).tolist() == records()[:2].tolist()
        assert opened.refreshed() is opened
        with pytest.raises(PoolError, match="ZIP archive"):
            Pool.open(place).append(records(), ids=[f"new {name}" for name in names()])
        with pytest.raises(PoolError):
            build_small(records(), place, overwrite=True)
    with pytest.raises(PoolNotFound, match=r"open one of .*folder\.zip/pool\.zarr"):
        Pool.open(tmp_path / "folder.zip")


PACKED = [
    (np.int16, {"scale_factor": 0.5, "add_offset": 10}, lambda x: x * 0.5 + 10),
    (np.int16, {"scale_factor": [0.01], "_FillValue": 3}, lambda x: np.where(x == 3, np.nan, x * 0.01)),
    (np.uint8, {"_FillValue": 0, "missing_value": [1, 2]}, lambda x: np.where(x < 3, np.nan, x)),
    (np.float32, {"_FillValue": -9999.9}, lambda x: np.where(x == np.float32(-9999.9), np.nan, x)),
    (np.float64, {"missing_value": "AAAAAAAAFEA="}, lambda x: np.where(x == 5, np.nan, x)),
    (np.float32, {"valid_range": [0, 7]}, lambda x: np.where((x < 0) | (x > 7), np.nan, x)),
    (np.float32, {"_FillValue": "AAAAAAAA+H8=", "scale_factor": 1.0, "units": "K"}, lambda x: x),
    (np.float32, {"_FillValue": "NaN"}, lambda x: x),
]


@pytest.mark.parametrize(("dtype", "attributes", "meant"), PACKED, ids=[str(each[1]) for each in PACKED])
@pytest.mark.parametrize("version", [2, 3])
def test_packed_values_are_unpacked(
    version: Literal[2, 3],
    dtype: type,
    attributes: dict[str, Any],
    meant: Callable[[Any], Any],
    tmp_path: Path,
) -> None:
    stored = (np.arange(N * D).reshape(N, D) % 13).astype(dtype)
    if np.dtype(dtype).kind == "f":
        stored[5, 2] = -9999.9
    array = zarr.create_array(
        tmp_path / "a", shape=stored.shape, chunks=(16, D), dtype=dtype, zarr_format=version, fill_value=12
    )
    array[:] = stored
    array.attrs.update(attributes)
    expected = meant(stored.astype(np.float64) if np.dtype(dtype).kind in "iu" else stored).astype(np.float32)
    pool = Pool.open(tmp_path / "a")
    np.testing.assert_array_equal(pool.read(3, N), expected[3:])
    np.testing.assert_array_equal(pool.take([200, 5]), expected[[200, 5]])
    np.testing.assert_array_equal(small_reader(pool).read(5, 9), expected[5:9])
    np.testing.assert_array_equal(read(pool, 3, N), expected[3:])


@pytest.mark.parametrize("chunk_rows", [100, 250])
def test_the_buffers_of_a_reader_are_freed_with_it(chunk_rows: int, tmp_path: Path) -> None:
    X = np.random.default_rng(3).normal(size=(600, 4)).astype(np.float32)
    array = zarr.create_array(tmp_path / "pool.zarr", shape=X.shape, dtype="float32", chunks=(chunk_rows, 4))
    array[:] = X
    reader = Reader(Pool.open(tmp_path / "pool.zarr"))
    np.testing.assert_array_equal(reader.read(150, 580), X[150:580])
    alive = weakref.ref(reader)
    gc.disable()  # it would free a cycle too, but only some time later
    try:
        del reader
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "attributes",
    [
        {"scale_factor": "a"},
        {"scale_factor": [1.0, 2.0]},
        {"scale_factor": 0},
        {"_FillValue": 300},
        {"_FillValue": 1.5},
        {"_Unsigned": "true"},
        {"scale_factor": 2, "valid_max": 5},
        {"missing_value": "none"},
    ],
    ids=str,
)
def test_packing_that_is_not_applied_is_refused_by_name(attributes: dict[str, Any], tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=np.ones((3, 2), np.int8), attributes=attributes)
    with pytest.raises(PoolError, match=list(attributes)[-1]):
        Pool.open(tmp_path / "a")


def change(pool: Pool, **values: object) -> None:
    file = Path(pool.path) / "zarr.json"
    told = json.loads(file.read_text())
    told["attributes"]["dal"] |= values
    file.write_text(json.dumps(told))


def test_pools_that_cannot_be_read(pool: Pool) -> None:
    change(pool, version=3)
    with pytest.raises(PoolError, match=r"formats .*got 3"):
        Pool.open(pool.path)
    change(pool, version=1, complete=False, n_rows=120, source_rows=500)
    with pytest.raises(PoolIncomplete, match="holds 120 of 500 rows"):
        Pool.open(pool.path)
    change(pool, complete=True, n_rows=500)
    with pytest.raises(PoolError, match="500 rows of features, got 237"):
        Pool.open(pool.path)
    (Path(pool.path) / "features/zarr.json").unlink()
    with pytest.raises(PoolError, match="'features' is missing"):
        Pool.open(pool.path)
    (Path(pool.path) / "zarr.json").write_text("{")
    with pytest.raises(PoolError, match="metadata cannot be read"):
        Pool.open(pool.path)


def test_a_store_that_is_not_local() -> None:
    pool = build_small(records(), "memory://test-pool/pool.zarr", ids=names())
    for found in (pool.read(3, 99), read(pool, 3, 99)):
        np.testing.assert_array_equal(found, records()[3:99])
    assert pool.rows_of([names()[7]]).tolist() == [7]
    again = Pool.open("memory://test-pool/pool.zarr")
    np.testing.assert_array_equal(again.take([N - 1]), records()[[N - 1]])


def test_a_pool_read_in_another_process(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(pickle.dumps(pool))
    script = "import pickle, sys; print(pickle.load(open('pickle', 'rb')).take([11]).tobytes().hex())"
    root = str(Path(building.__file__).parents[2])
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        check=True,
    )
    assert bytes.fromhex(told.stdout.decode().strip()) == records()[11].tobytes()


@pytest.mark.parametrize(
    "layout",
    [{"chunks": (10,), "compressors": None}, {"chunks": (10,)}, {"chunks": (5,), "shards": (20,), "compressors": None}],
)
def test_entries_of_a_lost_chunk_are_the_fill_value(layout: dict[str, object], tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(93,), dtype="uint16", fill_value=7, **layout)
    array[:] = expected = np.arange(100, 193, dtype=np.uint16)
    for start, stop in [(0, 93), (3, 41), (20, 30), (87, 93), (50, 50)]:
        np.testing.assert_array_equal(rows_or_fill(array, start, stop), expected[start:stop])
    (tmp_path / "a" / "c" / "1").unlink()
    lost = slice(20, 40) if "shards" in layout else slice(10, 20)
    expected[lost] = 7
    np.testing.assert_array_equal(rows_or_fill(array, 3, 93), expected[3:])


def test_entries_of_a_torn_chunk_are_refused(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(30,), chunks=(10,), dtype="uint16", compressors=None)
    array[:] = np.arange(30, dtype=np.uint16)
    chunk = tmp_path / "a" / "c" / "1"
    chunk.write_bytes(chunk.read_bytes()[:7])
    with pytest.raises(ChunkError, match=r"chunk c/1 .*rows 10 to 19.*20 bytes, got 7"):
        rows_or_fill(array, 3, 25)
    np.testing.assert_array_equal(rows_or_fill(array, 20, 30), np.arange(20, 30))
