"""Building pools: every kind of source against the array it came from, interruptions, refusals."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from dal.errors import PoolError, PoolIncomplete, SettingsError, SourceError
from dal.pool import Block, Pool, Sizes
from dal.pool import build as building
from dal.pool import ids as indexing

N, D = 237, 5
SMALL = Sizes(
    chunk_bytes=16 * D * 4,
    field_rows=8,
    index_rows=16,
    bucket_entries=50,
    block_bytes=23 * D * 4,
    block_rows=23,
    csv_block_bytes=1500,
)
"""By which a few hundred rows make many blocks, chunks and buckets."""
build_small = partial(Pool.build, sizes=SMALL)


def records(n: int = N, shape: tuple[int, ...] = (D,), seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def names(n: int = N) -> list[str]:
    return [f"{row * 7919 % 1009:04d}" for row in range(n)]


def texts(n: int = N) -> list[str]:
    return [f'text "{row}",\nand more' if row % 3 else "" for row in range(n)]


def parquet(path: Path, row_group: int = 50, **columns: object) -> Path:
    pa.parquet.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def wide(path: Path, **columns: object) -> Path:
    return parquet(path, **{f"f{n}": records()[:, n] for n in range(D)}, **columns)


def csv(path: Path, header: str, lines: list[str]) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def csv_of_records(path: Path) -> Path:
    quoted = [text.replace('"', '""') for text in texts()]
    rows = zip(names(), records().tolist(), quoted, strict=True)
    lines = [f'{name},"{text}",{",".join(map(repr, values))}' for name, values, text in rows]
    return csv(path, "id,text,f0,f1,f2,f3,f4", lines)


def blocks(cuts: tuple[int, ...] = (0, 3, 3, 40, 41, 200, N)) -> Iterator[Block]:
    for start, stop in itertools.pairwise(cuts):
        part = slice(start, stop)
        yield Block(records()[part], names()[part], {"text": texts()[part]})


def npy(path: Path) -> Path:
    np.save(path, records())
    return path


Make = Callable[[Path], tuple[Any, dict[str, Any]]]
SOURCES: dict[str, Make] = {
    "array": lambda _: (records(), {"ids": names(), "display": {"text": texts()}}),
    "npy": lambda folder: (npy(folder / "x.npy"), {"ids": np.array(names()), "display": {"text": np.array(texts())}}),
    "parquet": lambda folder: (
        wide(folder / "x.parquet", id=names(), text=texts()),
        {"ids": "id", "display": ["text"]},
    ),
    "parquet lists": lambda folder: (
        parquet(folder / "x.parquet", id=names(), text=texts(), emb=list(records())),
        {"ids": "id", "display": ["text"], "features": ["emb"]},
    ),
    "csv": lambda folder: (csv_of_records(folder / "x.csv"), {"ids": "id", "display": ["text"]}),
    "blocks": lambda _: (blocks(), {}),
}


def check(pool: Pool) -> None:
    np.testing.assert_array_equal(pool.read(0, N), records())
    assert pool.record_ids(np.arange(N)) == names()
    np.testing.assert_array_equal(pool.rows_of(names()), np.arange(N))
    assert pool.display(np.arange(N)) == {"text": texts()}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("sizes", [SMALL, Sizes()], ids=["small", "usual"])
def test_every_source_gives_the_same_pool(make: Make, sizes: Sizes, tmp_path: Path) -> None:
    source, options = make(tmp_path)
    told: list[tuple[int, int | None]] = []
    pool = Pool.build(
        source,
        tmp_path / "pool.zarr",
        sizes=sizes,
        progress=lambda done, rows: told.append((done, rows)),
        **options,
    )
    assert pool.dtype == np.float32
    assert pool.write_rows == (16 if sizes is SMALL else 256)
    check(pool)
    group = zarr.open_group(tmp_path / "pool.zarr", mode="r")
    heights = [group[name].chunks[0] for name in ("ids", "fields/text", "ids_index/hash")]  # type: ignore[union-attr]
    assert heights == ([8, 8, 16] if sizes is SMALL else [256] * 3)
    assert told == sorted(told)
    if sizes is SMALL:
        assert len(told) >= 5, "the source is read in blocks"
    assert told[-1][0] == N
    assert told[-1][1] in (N, None)
    assert {path.name for path in tmp_path.iterdir()} <= {"pool.zarr", "x.npy", "x.parquet", "x.csv"}


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, N), max_size=8), shard=st.booleans())
def test_any_cut_into_blocks(cuts: list[int], shard: bool, tmp_path: Path) -> None:
    sizes = replace(SMALL, max_files=3 if shard else 10**6)
    check(Pool.build(blocks((0, *sorted(cuts), N)), tmp_path / "pool.zarr", sizes=sizes, overwrite=True))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"chunk_bytes": 0}, "chunk_bytes"), ({"block_rows": 2.0}, "block_rows"), ({"field_rows": 3}, "power of two")],
)
def test_sizes_that_cannot_be_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        Sizes(**wrong)


def test_large_pools_are_sharded(tmp_path: Path) -> None:
    sizes = replace(SMALL, max_files=3, shard_chunks=4)
    pool = Pool.build(records(), tmp_path / "pool.zarr", ids=names(), display={"text": texts()}, sizes=sizes)
    assert (pool.chunk_rows, pool.write_rows) == (16, 64)
    assert len(list((tmp_path / "pool.zarr/features/c").iterdir())) == 4
    check(pool)


@pytest.mark.parametrize(
    ("shape", "dtype", "chunk_rows"),
    [((100, 128), "f4", 128), ((100_000, 128), "f4", 32768), ((3, 64, 64, 3), "u1", 4), ((1, 2), "f4", 1)],
)
def test_chunks_are_as_tall_as_16_mib_allow(
    shape: tuple[int, ...], dtype: str, chunk_rows: int, tmp_path: Path
) -> None:
    pool = Pool.build(np.zeros(shape, dtype), tmp_path / "pool.zarr")
    assert (pool.chunk_rows, pool.write_rows) == (chunk_rows, chunk_rows)
    codecs = zarr.open_group(Path(pool.path), mode="r")["features"].metadata.codecs  # type: ignore[union-attr]
    assert [codec.to_dict()["name"] for codec in codecs] == ["bytes", "crc32c"]


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "i1", "i8", "u4", "bool", "u1"])
def test_features_of_any_type(dtype: str, tmp_path: Path) -> None:
    values = (records() * 30).clip(0, 100).astype(dtype)
    pool = build_small(values, tmp_path / "pool.zarr")
    assert pool.dtype == (np.uint8 if dtype == "u1" else np.float32)
    np.testing.assert_array_equal(pool.read(7, N), values[7:].astype(np.float32))


def test_nan_and_numbers_beyond_float32_are_kept_for_the_scan_to_count(tmp_path: Path) -> None:
    pool = Pool.build(np.array([[np.nan, 1e300], [1, 2]]), tmp_path / "pool.zarr")
    np.testing.assert_array_equal(pool.read(0, 2), np.array([[np.nan, np.inf], [1, 2]], np.float32))


def test_parquet_types(tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "x.parquet",
        n=pa.array([7, -1, 30], pa.int32()),
        a=pa.array([1, None, 3], pa.int64()),
        b=pa.array([True, False, None]),
        c=pa.array([0.5, 2**40, 1e300], pa.float64()),
        when=pa.array([0, None, 1], pa.date32()),
        kind=pa.array(["x", None, "x"]).dictionary_encode(),
        year=pa.array([1900, 2000, 2100], pa.int16()),
        size=pa.array([0.5, None, 2], pa.float32()),
        new=pa.array([True, False, True]),
        large=pa.array([2**64 - 1, 0, 1], pa.uint64()),
    )
    fields = ["when", "kind", "year", "size", "new", "large"]
    pool = build_small(source, tmp_path / "pool.zarr", ids="n", display=fields)
    expected = np.array([[1, 1, 0.5], [np.nan, 0, 2**40], [3, np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(pool.read(0, 3), expected)
    assert pool.record_ids([0, 1, 2]) == ["7", "-1", "30"]
    shown = pool.display([2, 0])
    assert shown == {
        "when": ["1970-01-02", "1970-01-01"],
        "kind": ["x", "x"],
        "year": [2100, 1900],
        "size": [2.0, 0.5],
        "new": [True, True],
        "large": ["1", str(2**64 - 1)],
    }
    assert pool.display([1])["kind"] == [""]
    assert np.isnan(np.array(pool.display([1])["size"], float)).all()


def test_csv_text_is_kept_and_types_are_not_those_of_the_first_lines(tmp_path: Path) -> None:
    lines = [f"{row:03d},{row},{row:02d}" for row in range(200)] + ["x1,1.5,NA", "NA,,1e3"]
    pool = build_small(
        csv(tmp_path / "x.csv", "id,f,shown", lines), tmp_path / "pool.zarr", ids="id", display=["shown"]
    )
    assert pool.record_ids([7, 200, 201]) == ["007", "x1", "NA"]
    assert pool.display([7, 200, 201]) == {"shown": ["07", "NA", "1e3"]}
    np.testing.assert_array_equal(pool.take([7, 200, 201]), np.array([[7], [1.5], [np.nan]], np.float32))


def test_chosen_features_in_the_order_asked_and_a_column_may_also_be_shown(tmp_path: Path) -> None:
    source = wide(tmp_path / "x.parquet", id=names(), text=texts())
    pool = build_small(source, tmp_path / "pool.zarr", features=["f3", "f1"], display=["f3"])
    np.testing.assert_array_equal(pool.read(5, N), records()[5:, [3, 1]])
    assert pool.display([9]) == {"f3": [float(records()[9, 3])]}
    assert pool.record_ids([9]) == ["9"]


# ---- interruptions


class Stopped(BaseException):
    """Stands for whatever ends a process between two writes."""


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "blocks"])
def test_interrupted_at_any_write(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build gives up after ever more writes, and goes on each time."""
    source, options = SOURCES[kind](tmp_path)
    original, rows = LocalStore.set, []
    for allowed in range(8, 400, 9):
        left = iter(range(allowed))

        async def failing(self: LocalStore, *args: object, left: Iterator[int] = left, **options: object) -> None:
            if next(left, None) is None:
                raise Stopped
            await original(self, *args, **options)

        monkeypatch.setattr(LocalStore, "set", failing)
        try:
            pool = build_small(source, tmp_path / "pool.zarr", **options)
        except Stopped:
            rows.append(zarr.open_group(tmp_path / "pool.zarr", mode="r").attrs["dal"]["n_rows"])
            continue
        break
    check(pool)
    assert rows == sorted(rows)
    assert len(set(rows)) > 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = LocalStore.set, iter(range(40))

    async def full(self: LocalStore, *args: object, **options: object) -> None:
        if next(left, None) is None:
            raise OSError(code, os.strerror(code))
        await original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", full)
        with pytest.raises(
            PoolError, match=r"pool.zarr: no space left; free space and run again; .* from row"
        ) as raised:
            build_small(records(), tmp_path / "pool.zarr", ids=names(), display={"text": texts()})
    with pytest.raises(PoolIncomplete, match=rf"holds {str(raised.value).split()[-1]} of {N} rows"):
        Pool.open(tmp_path / "pool.zarr")
    check(build_small(records(), tmp_path / "pool.zarr", ids=names(), display={"text": texts()}))


def interrupted(path: Path, source: str | Path | np.ndarray | Iterator[Block], **options: object) -> None:
    def stop(done: int, rows: int | None) -> None:
        if done > 100:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(source, path, progress=stop, **options)  # type: ignore[arg-type]


def test_another_source_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "pool.zarr"
    interrupted(path, records(), ids=names())
    others = [(records(seed=8), names()), (records(), names()[::-1]), (records(), None), (records()[:-1], names()[:-1])]
    for array, ids in others:
        with pytest.raises(SourceError, match=r"another source or dtype.*overwrite=True"):
            build_small(array, path, ids=ids)
    with pytest.raises(PoolIncomplete):
        Pool.open(path)
    pool = build_small(records(seed=8), path, ids=names(), overwrite=True)
    np.testing.assert_array_equal(pool.read(0, N), records(seed=8))


def test_a_changed_file_or_other_columns_do_not_go_on(tmp_path: Path) -> None:
    path, source = tmp_path / "pool.zarr", csv_of_records(tmp_path / "x.csv")
    interrupted(path, source, ids="id", display=["text"])
    with pytest.raises(SourceError, match=r'another source.*features \["f0"\] instead of \["f0", "f1"'):
        build_small(source, path, ids="id", features=["f0"], display=["text"])
    os.utime(source, ns=(0, 0))
    with pytest.raises(SourceError, match=r"another source.*file was changed since[^0-9{]*overwrite=True"):
        build_small(source, path, ids="id", display=["text"])
    check(build_small(source, path, ids="id", display=["text"], overwrite=True))


def test_blocks_do_not_go_on(tmp_path: Path) -> None:
    interrupted(tmp_path / "pool.zarr", blocks())
    with pytest.raises(SourceError, match=r"identity.*overwrite=True"):
        build_small(blocks(), tmp_path / "pool.zarr")
    check(build_small(blocks(), tmp_path / "pool.zarr", overwrite=True))


def test_a_finished_pool_is_replaced_only_when_told(tmp_path: Path) -> None:
    first = Pool.build(records(), tmp_path / "pool.zarr", ids=names(), display={"text": texts()})
    with pytest.raises(PoolError, match=r"finished pool of 237 rows; pass overwrite=True"):
        Pool.build(records(), tmp_path / "pool.zarr", ids=names(), display={"text": texts()})
    check(Pool.open(first.path))
    second = Pool.build(records(9), tmp_path / "pool.zarr", overwrite=True)
    assert (second.n_rows, second.fields, second.record_ids([3])) == (9, (), ["3"])
    assert second.fingerprint != first.fingerprint
    assert {path.name for path in (tmp_path / "pool.zarr").iterdir()} == {"zarr.json", "features"}


def test_a_bad_source_does_not_harm_the_pool_that_it_would_replace(tmp_path: Path) -> None:
    pool = build_small(blocks(), tmp_path / "pool.zarr")
    for bad in (np.array([["a"]]), iter([]), iter([Block(np.ones((2, 2)), ["a", ""])])):
        with pytest.raises(SourceError):
            build_small(bad, tmp_path / "pool.zarr", overwrite=True)
    check(pool)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_pool_is_never_replaced(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").write_text("years")
    (tmp_path / "file").write_text("years")
    zarr.create_array(tmp_path / "array", shape=(2, 2), dtype="f4")
    zarr.create_group(tmp_path / "group").create_array("x", shape=(2, 2), dtype="f4")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/zarr.json").write_text("[]")
    before = sorted(tmp_path.rglob("*"))
    for name in ("folder", "file", "array", "group", "json"):
        with pytest.raises(PoolError, match=f"{name} .*not a pool; it is left alone"):
            Pool.build(records(), tmp_path / name, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert Pool.build(records(), tmp_path / "empty", overwrite=overwrite).n_rows == N


# ---- refusals


def ragged() -> pa.Array:
    return pa.array([[1.0, 2.0], [3.0], [1.0, 2.0], None, [1.0, 2.0, 3.0]])


def blank(value: object) -> list[object]:
    return [*names()[:2], value, *names()[3:]]


ARRAYS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "strings": (np.array([["a", "b"]]), {}, "dtype <U1; .*encode or vectorise .*--features.*--display"),
    "objects": (np.array([["a", 1]], object), {}, "dtype object"),
    "complex": (np.ones((2, 2), complex), {}, "dtype complex128"),
    "dates": (np.zeros((2, 2), "M8[s]"), {}, "dtype datetime64"),
    "1-D": (np.ones(5), {}, r"got \(5,\)"),
    "3-D": (np.ones((5, 2, 2)), {}, r"got \(5, 2, 2\)"),
    "0-D": (np.array(1.0), {}, r"got \(\)"),
    "no rows": (np.ones((0, 3)), {}, "no rows"),
    "no features": (np.ones((3, 0)), {}, r"shape \(3, 0\)"),
    "repeats": (records(), {"ids": ["a", "b", "a", "b", *names()[4:]]}, "'a' in rows 0, 2; 'b' in rows 1, 3"),
    "repeats after conversion": (records(2), {"ids": ["7", 7]}, "'7' in rows 0, 1"),
    "too few ids": (records(), {"ids": ["a"]}, "`ids` must have 237 values.*got 1"),
    "None id": (records(), {"ids": blank(None)}, r"rows 2 \(None\)"),
    "empty id": (records(), {"ids": blank("")}, r"rows 2 \(''\)"),
    "NaN id": (records(), {"ids": blank(float("nan"))}, r"rows 2 \(nan\)"),
    "bool id": (records(), {"ids": blank(True)}, r"rows 2 \(True\)"),
    "float ids": (records(3), {"ids": np.ones(3) / 2}, r"rows 0 \(0.5\), 1"),
    "name for ids": (records(), {"ids": "id"}, "`ids`.*'id'"),
    "names for display": (records(), {"display": ["text"]}, "dict of name to values"),
    "features": (records(), {"features": ["a"]}, "`features`"),
    "short field": (records(), {"display": {"text": ["a"]}}, "'text' must have 237 values.*got 1"),
    "2-D field": (records(), {"display": {"text": np.ones((N, 2))}}, r"shape \(237, 2\)"),
    "no Unicode as field": (records(), {"display": {"a\0": names()}}, r"name of a display field.*'a\\x00'"),
    "list": ([[1, 2], [3, 4]], {}, "Block.*got list"),
    "number": (7, {}, "got int"),
    "no blocks": (iter([]), {}, "no rows"),
    "ids for blocks": (iter([]), {"ids": ["a"]}, "`ids`, `features` and `display`"),
    "list as block features": (iter([Block([[1.0]])]), {}, "NumPy arrays, got list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", ARRAYS)
def test_refused_arrays(name: str, tmp_path: Path) -> None:
    source, options, message = ARRAYS[name]
    with pytest.raises(SourceError, match=message):
        Pool.build(source, tmp_path / "pool.zarr", **options)
    assert not list(tmp_path.iterdir())


def numbers(**columns: object) -> dict[str, Any]:
    return {"id": ["a", "b", "c", "d", "e"], "x": [1.0, 2, 3, 4, 5], **columns}


WORDS = ["q", "r", "s", "t", "u"]
TABLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "text feature": (
        numbers(title=WORDS),
        {"ids": "id"},
        r"features.*title \(string\);.*--features.*--display",
    ),
    "text feature named": (numbers(title=WORDS), {"features": ["x", "title"]}, r"title \(string\)"),
    "dates": (numbers(day=pa.array([0] * 5, pa.date32())), {"ids": "id"}, r"day \(date32"),
    "text lists": (numbers(tags=[["a"]] * 5), {"features": ["tags"]}, r"tags \(list"),
    "unknown ids": (numbers(), {"ids": "key"}, r"columns.*\['key'\].*\['id', 'x'\]"),
    "unknown feature": (numbers(), {"features": ["y", "x"]}, r"columns.*\['y'\]"),
    "unknown display": (numbers(), {"ids": "id", "display": ["z"]}, r"columns.*\['z'\]"),
    "overlap": (numbers(k=[1, 2, 3, 4, 5]), {"ids": "k", "features": ["k", "x"]}, "column of ids, got 'k'"),
    "no features": (numbers(), {"ids": "id", "display": ["x"]}, "a column for the features"),
    "float ids": (numbers(), {"ids": "x", "features": ["x"]}, "column of ids, got 'x'"),
    "truth ids": (numbers(y=[True] * 5), {"ids": "y", "features": ["x"]}, "`ids`.*'y' of bool"),
    "list and numbers": (numbers(emb=[[1.0]] * 5), {"ids": "id"}, r"lists.*\['emb'\].*--features"),
    "ragged": (numbers(emb=ragged()), {"features": ["emb"]}, r"length, 2, got others in rows 1 \(1\), 4 \(3\)"),
    "null id": (numbers(k=["a", None, "b", None, "c"]), {"ids": "k", "features": ["x"]}, r"rows 1 \(None\), 3"),
    "shown lists": (numbers(emb=[[1.0]] * 5), {"ids": "id", "display": ["emb"]}, r"`display`.*\['emb'\]"),
    "ids not a name": (numbers(), {"ids": ["a"]}, "`ids`.*got list"),
    "display a dict": (numbers(), {"ids": "id", "display": {"x": WORDS}}, "`display`.*got str and dict"),
    "no rows": ({"id": pa.array([], pa.string()), "x": pa.array([], pa.float32())}, {"ids": "id"}, "no rows"),
}


@pytest.mark.parametrize("name", TABLES)
def test_refused_tables(name: str, tmp_path: Path) -> None:
    columns, options, message = TABLES[name]
    source = parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(SourceError, match=message):
        Pool.build(source, tmp_path / "pool.zarr", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


CSVS = {
    "empty": ("", [], {}, "first line"),
    "no rows": ("id,x", [""], {"ids": "id"}, "no rows"),
    "no end of line": ("id,x", [], {"ids": "id"}, "no rows"),
    "text": ("id,x", ["a,q"], {"ids": "id"}, r"x \(string\)"),
    "short line": ("id,x", ["a,1", "b"], {"ids": "id"}, "cannot be read: .*Expected 2 columns, got 1"),
    "same name": ("x,x", ["1,2"], {}, r"unique.*\['x'\]"),
    "empty id": ("id,x", ["a,1", ",2", "c,3"], {"ids": "id"}, r"rows 1 \(''\)"),
}


@pytest.mark.parametrize("name", CSVS)
def test_refused_csv(name: str, tmp_path: Path) -> None:
    header, lines, options, message = CSVS[name]
    source = tmp_path / "x.csv"
    source.write_text("\n".join([header, *lines]))
    with pytest.raises(SourceError, match=message):
        Pool.build(source, tmp_path / "pool.zarr", **options)
    assert not (tmp_path / "pool.zarr").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"rubbish", "cannot be read as an array"),
        ("x.npy", b"", "cannot be read as an array"),
        ("x.parquet", b"rubbish", "cannot be read"),
        ("x.json", b"{}", r"\.tsv.*\.json"),
        (None, b"", r"none\.npy, which does not exist"),
    ],
)
def test_refused_files(name: str | None, content: bytes, message: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        Pool.build(tmp_path / (name or "none.npy"), tmp_path / "pool.zarr")
    assert not (tmp_path / "pool.zarr").exists()


LATER = {
    "shape": (Block(np.ones((4, 2), "f4"), ["a", "b", "c", "d"]), r"got \(2,\) in rows 100 to 103"),
    "dtype": (Block(np.ones((1, D), "u1"), ["a"]), "float32.*got uint8 in rows 100 to 100"),
    "no ids": (Block(np.ones((1, D), "f4")), "ids, got none in rows 100 to 100"),
    "empty id": (Block(np.ones((2, D), "f4"), ["x", ""]), r"`ids`.*rows 101 \(''\)"),
    "ids too few": (Block(np.ones((2, D), "f4"), ["x"]), "`ids` must have 2 values.*row 100.*got 1"),
    "field": (Block(np.ones((1, D), "f4"), ["x"], {"new": ["y"]}), r"display fields.*\['new'\] in rows 100 to 100"),
    "objects": (Block(np.array([["a"] * D]), ["x"]), "block from row 100 on.*dtype <U1"),
    "no block": ((np.ones((1, D)), ["x"]), "Block.*got tuple"),
    "repeat": (Block(np.ones((1, D), "f4"), [names()[40]]), f"'{names()[40]}' in rows 40, 100"),
}


@pytest.mark.parametrize("name", LATER)
def test_a_bad_block_later_on_leaves_an_incomplete_pool(name: str, tmp_path: Path) -> None:
    bad, message = LATER[name]

    def source() -> Iterator[Any]:
        yield Block(records()[:100], names()[:100])
        yield bad

    with pytest.raises(SourceError, match=message):
        build_small(source(), tmp_path / "pool.zarr")
    with pytest.raises(PoolIncomplete):
        Pool.open(tmp_path / "pool.zarr")
    assert not list(tmp_path.glob(".*"))


def test_many_repeats_in_a_table_are_named_in_part(tmp_path: Path) -> None:
    ids = [str(row % 30) for row in range(N)]
    with pytest.raises(SourceError, match="must be unique") as raised:
        Pool.build(wide(tmp_path / "x.parquet", id=ids), tmp_path / "pool.zarr", ids="id")
    named = str(raised.value).split("repeats: ")[1].split("; remove")[0].split("; ")
    assert len(named) == 5
    for part in named:
        text, rows = part.split(" in rows ")
        assert [int(row) % 30 for row in rows.split(", ")] == [int(text.strip("'"))] * 5


def test_equal_hashes_are_no_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "HASHES", {indexing.HASH: lambda ids: np.zeros(len(ids), np.uint64)})
    check(build_small(blocks(), tmp_path / "pool.zarr"))
    repeated = [*names()[:-1], names()[3]]
    with pytest.raises(SourceError, match=f"'{names()[3]}' in rows 3, 236"):
        build_small(wide(tmp_path / "x.parquet", id=repeated), tmp_path / "other.zarr", ids="id")
    # The same, where they are too many to be compared at a time.
    (tmp_path / "buckets").mkdir()
    for ids, repeats in ((names(), False), (repeated, True)):
        array = zarr.create_array(tmp_path / f"{repeats}.zarr", data=np.array(ids, "T"), chunks=(8,))
        found = indexing.sorted_entries(array, tmp_path / "buckets", 50, compared=50)
        if repeats:
            with pytest.raises(SourceError, match=f"'{names()[3]}' in rows 3, 236"):
                list(found)
        else:
            assert [row for entries in found for row in entries["row"].tolist()] == list(range(N))


def test_writes_under_way_keep_within_their_bytes_and_are_safe_when_they_end() -> None:
    rng, lock = np.random.default_rng(0), threading.Lock()
    writes, ended = building._Writes(remote=True), set[int]()
    running = most = 0

    def store(row: int, size: int) -> None:
        nonlocal running, most
        with lock:
            running += size
            most = max(most, running)
        time.sleep(row % 5 / 1000)
        with lock:
            running -= size
            ended.add(row)

    sizes = rng.integers(1, building._WRITING_BYTES // 3, 150).tolist()
    for row, size in enumerate(sizes):
        writes.write(row, size, lambda row=row, size=size: store(row, size))
        with lock:
            safe = writes.safe(row + 1)
            assert set(range(safe)) <= ended
    writes.write(150, 2 * building._WRITING_BYTES, lambda: store(150, 0))  # a larger one goes alone
    writes.wait()
    assert writes.safe(151) == 151
    assert ended == set(range(151))
    assert building._WRITING_BYTES // 2 < most <= building._WRITING_BYTES
    writes.write(151, 1, lambda: [][0])
    with pytest.raises(IndexError):
        writes.wait()
    writes.close()


def test_what_is_on_its_way_counts_its_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted: list[int] = []

    def write(_: object, start: int, size: int, store: Callable[[], None]) -> None:
        noted.append(size)
        store()

    monkeypatch.setattr(building._Writes, "write", write)
    pool = Pool.build(np.zeros((10, 1), np.float32), tmp_path / "pool.zarr", display={"note": ["x" * 10_000] * 10})
    assert max(noted) >= 100_000
    assert pool.display([9])["note"] == ["x" * 10_000]


def test_a_place_where_nothing_can_be_written_is_named() -> None:
    with pytest.raises(PoolError, match=r"/proc/pool\.zarr cannot be created"):
        Pool.build(np.eye(3), "/proc/pool.zarr")
