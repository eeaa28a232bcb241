"""Tables as sources: what becomes a feature, an id and a display field, by name; CSV files, frames, Arrow's types."""

import bz2
import gzip
import itertools
import json
import logging
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zarr
from click.testing import CliRunner
from scipy import sparse

from dal.cli import main
from dal.errors import DalError, PoolIncomplete, SourceError
from dal.pool import Block, Pool, Sizes, csvs, sources, tables


class Stopped(Exception):
    pass


SMALL = Sizes(chunk_bytes=64, field_rows=8, index_rows=16, block_bytes=100, block_rows=7, csv_block_bytes=100)
"""By which some dozen rows make many blocks and chunks."""
build_small = partial(Pool.build, sizes=SMALL)
append_small = partial(Pool.append, sizes=SMALL)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def parquet(path: Path, row_group: int = 50, **columns: object) -> Path:
    pa.parquet.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def frame(n: int = 40) -> pd.DataFrame:
    rows = np.arange(n)
    return pd.DataFrame({"key": [f"{row:03d}" for row in rows], "x": rows / 4, "y": rows * 2.0, "note": rows % 3})


def rows_of(pool: Pool) -> list[list[float]]:
    found: list[list[float]] = pool.read(0, pool.n_rows).tolist()
    return found


# ---- names


@pytest.mark.parametrize("ending", [".csv", ".parquet", "frame", "Dask"])
def test_an_append_finds_columns_by_name_in_any_order(ending: str, tmp_path: Path) -> None:
    def given(name: str, data: pd.DataFrame) -> Any:  # noqa: ANN401
        if ending == "frame":
            return data
        if ending == "Dask":
            return dd.from_pandas(data, npartitions=3)
        path = tmp_path / f"{name}{ending}"
        data.to_csv(path, index=False) if ending == ".csv" else data.to_parquet(path)
        return path

    whole, path = frame(), tmp_path / "pool.zarr"
    pool = Pool.build(given("a", whole[:30]), path, ids="key", display=["note"])
    assert pool.feature_names == ("x", "y")
    assert "features x, y" in repr(pool)
    more = whole[30:][["note", "y", "key", "x"]].assign(extra=7.5, other="text")
    grown = Pool.open(path).append(given("b", more))
    np.testing.assert_array_equal(grown.read(0, 40), whole[["x", "y"]].to_numpy(np.float32))
    assert grown.record_ids([3, 33]) == ["003", "033"]
    assert grown.display([29, 31])["note"] == (["2", "1"] if ending == ".csv" else [2, 1])
    assert grown.feature_names == ("x", "y")

    for wrong, message in (
        ({"features": ["x", "extra"]}, "`features` must be"),
        ({"ids": "other"}, "`ids` must be 'key'"),
        ({"display": ["extra"]}, "`display` must be"),
        ({"text": "other", "vectoriser": object()}, "`text` must be"),
    ):
        with pytest.raises(SourceError, match=message):
            Pool.open(path).append(given("c", more.assign(key=more.key + "c")), **wrong)
    with pytest.raises(SourceError, match=r"columns.*got \['y'\]"):
        Pool.open(path).append(given("d", more.drop(columns="y").assign(key=more.key + "d")))
    assert Pool.open(path).n_rows == 40
    asked = Pool.open(path).append(
        given("e", more.assign(key=more.key + "e")), features=["y", "x"], ids="key", display=["note"]
    )
    np.testing.assert_array_equal(asked.read(40, 50), grown.read(30, 40))


def test_the_command_line_says_what_becomes_a_feature_and_appends_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ",key,x,y\n0,k0,1,10\n1,k1,2,20\n")
    write(tmp_path / "b.csv", "y,x,key\n30,3,k2\n")
    pool = str(tmp_path / "pool.zarr")
    shown = CliRunner().invoke(main, ["pool", "build", str(tmp_path / "a.csv"), pool, "--ids", "key"])
    assert "features: x, y\n" in shown.output, shown.output
    assert "left out, as an index: Unnamed: 0" in shown.output
    shown = CliRunner().invoke(main, ["pool", "append", str(tmp_path / "b.csv"), pool])
    assert shown.exit_code == 0, shown.output
    assert rows_of(Pool.open(pool)) == [[1, 10], [2, 20], [3, 30]]
    assert Pool.open(pool).record_ids([2]) == ["k2"]
    refused = CliRunner().invoke(main, ["pool", "append", str(write(tmp_path / "c.csv", "key,x,z\nk3,1,2\n")), pool])
    assert refused.exit_code == 1
    assert "got ['y']" in refused.output


def test_without_names_columns_are_matched_by_order_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Pool.build(np.array([[1.0, 2]]), tmp_path / "array.zarr")
    source = parquet(tmp_path / "x.parquet", b=[3.0], a=[4.0])
    with caplog.at_level(logging.WARNING):
        assert rows_of(Pool.open(tmp_path / "array.zarr").append(source)) == [[1, 2], [3, 4]]
    assert "b, a are matched by their order" in caplog.text
    caplog.clear()
    Pool.build(source, tmp_path / "named.zarr")
    with caplog.at_level(logging.WARNING):
        assert rows_of(Pool.open(tmp_path / "named.zarr").append(np.array([[5.0, 6]]))) == [[3, 4], [5, 6]]
    assert "has the features b, a" in caplog.text
    with pytest.raises(SourceError, match=r"shape \(2,\)"):
        Pool.open(tmp_path / "named.zarr").append(np.ones((1, 3)))


def test_a_pool_of_an_older_dal_grows_by_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Pool.build(np.array([[1.0, 2]]), tmp_path / "old.zarr", display={"n": [7], "new": [True]})
    group = zarr.open_group(tmp_path / "old.zarr")
    told = dict(group.attrs["dal"])  # type: ignore[arg-type]
    for name in ("kinds", "made_from"):
        del told[name]
    del group["fields/new"]
    group.create_array("fields/new", data=np.array([True]))
    group.attrs["dal"] = told
    assert Pool.open(tmp_path / "old.zarr").display([0]) == {"n": [7], "new": [True]}
    source = parquet(tmp_path / "x.parquet", a=[3.0, 5], b=[4.0, 6], n=[8, None], new=[True, None])
    with pytest.raises(SourceError, match=r"'new'.*gaps"):
        Pool.open(tmp_path / "old.zarr").append(source)
    source = parquet(tmp_path / "y.parquet", a=[3.0, 5], b=[4.0, 6], n=[8, None], new=[True, False])
    pool = Pool.open(tmp_path / "old.zarr").append(source)
    assert rows_of(pool) == [[1, 2], [3, 4], [5, 6]]
    assert pool.display([2, 1, 0]) == {"n": [None, 8, 7], "new": [False, True, True]}


# ---- an index is no feature


def test_an_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    data = pd.DataFrame({"x": [1.5, 2, 3], "y": [4.0, 5, 6]}, index=[70, 90, 80])
    path = tmp_path / "x"
    named = data.rename_axis("record")
    data.to_parquet(path.with_suffix(".parquet"))
    named.to_parquet(path.with_suffix(".pq"))
    data.to_csv(path.with_suffix(".csv"))
    data.to_csv(tmp_path / "once.csv")
    pd.read_csv(tmp_path / "once.csv").to_csv(path.with_suffix(".tsv"), sep="\t")  # a second index
    data.rename_axis("__null_dask_index__").to_parquet(tmp_path / "dask.parquet")
    expected = [[1.5, 4], [2, 5], [3, 6]]
    for number, (source, left_out) in enumerate(
        [
            (path.with_suffix(".parquet"), ("__index_level_0__",)),
            (path.with_suffix(".pq"), ("record",)),
            (path.with_suffix(".csv"), ("Unnamed: 0",)),
            (path.with_suffix(".tsv"), ("Unnamed: 0_", "Unnamed: 0")),
            (tmp_path / "dask.parquet", ("__null_dask_index__",)),
            (data, ()),
            (named, ("record",)),
            (dd.from_pandas(named, npartitions=2, sort=False), ("record",)),
            (pa.Table.from_pandas(named), ("record",)),
        ]
    ):
        pool = Pool.build(source, tmp_path / f"{number}.zarr")
        assert rows_of(pool) == expected
        assert pool.feature_names == ("x", "y")
        assert pool.left_out == left_out
    for number, source in enumerate([path.with_suffix(".pq"), named, dd.from_pandas(named, npartitions=2, sort=False)]):
        pool = Pool.build(source, tmp_path / f"named-{number}.zarr", ids="record")
        assert pool.record_ids([0, 1, 2]) == ["70", "90", "80"]
        assert pool.feature_names == ("x", "y")
    chosen = Pool.build(path.with_suffix(".pq"), tmp_path / "chosen.zarr", features=["record", "x"])
    assert rows_of(chosen) == [[70, 1.5], [90, 2], [80, 3]]


# ---- CSV


def test_a_header_of_numbers_is_refused_with_both_readings(tmp_path: Path) -> None:
    for number, text in enumerate(
        ["5.1,3.5,0\n4.9,3.0,1\n", "a1,0.5,x\nb2,1.5,y\n", "true,1\nfalse,2\n", "x,1e5\n1,2\n"]
    ):
        source = write(tmp_path / f"{number}.csv", text)
        with pytest.raises(SourceError, match=r"numbers.*header=False \(--no-header\).*header=True \(--header\)"):
            Pool.build(source, tmp_path / "pool.zarr")
    source = tmp_path / "0.csv"
    pool = Pool.build(source, tmp_path / "no.zarr", header=False)
    np.testing.assert_array_equal(pool.read(0, 2), np.array([[5.1, 3.5, 0], [4.9, 3.0, 1]], np.float32))
    assert pool.feature_names == ("f0", "f1", "f2")
    assert rows_of(Pool.build(source, tmp_path / "yes.zarr", header=True)) == [[np.float32(4.9), 3.0, 1]]
    assert rows_of(Pool.build(source, tmp_path / "named.zarr", features=["0", "3.5"])) == [[1, 3]]
    with pytest.raises(SourceError, match="numbers"):
        Pool.open(tmp_path / "no.zarr").append(source)
    assert Pool.open(tmp_path / "no.zarr").append(source, header=False).n_rows == 4
    shown = CliRunner().invoke(main, ["pool", "build", str(source), str(tmp_path / "cli.zarr")])
    assert (shown.exit_code, "--no-header" in shown.output) == (1, True)
    shown = CliRunner().invoke(main, ["pool", "build", str(source), str(tmp_path / "cli.zarr"), "--no-header"])
    assert "2 records of 3 float32" in shown.output
    assert Pool.build(write(tmp_path / "y.csv", "y,2020_01\n1,2\n"), tmp_path / "y.zarr").feature_names == (
        "y",
        "2020_01",
    )
    for other in (np.eye(2), parquet(tmp_path / "x.parquet", x=[1.0])):
        with pytest.raises(SourceError, match="`header`"):
            Pool.build(other, tmp_path / "other.zarr", header=False)


WRITTEN: dict[str, tuple[str, bytes]] = {
    "capital": ("x.CSV", b"key,x,y\na,1,2\n\xc3\xa9,3,4.5\n"),
    "semicolons": ("x.csv", b"key;x;y\na;1;2\n\xc3\xa9;3;4.5\n"),
    "semicolons, commas in texts": ("x.csv", b'"key";"x";"y"\n"a";1;2\n"\xc3\xa9";3;4.5\n'),
    "bars": ("x.csv", b"key|x|y\na|1|2\n\xc3\xa9|3|4.5\n"),
    "tabs": ("x.tsv", b"key\tx\ty\na\t1\t2\n\xc3\xa9\t3\t4.5\n"),
    "tab": ("x.TAB", b"key\tx\ty\na\t1\t2\n\xc3\xa9\t3\t4.5\n"),
    "sep": ("x.csv", b"sep=;\r\nkey;x;y\r\na;1;2\r\n\xc3\xa9;3;4.5\r\n"),
    "sep of two": ("x.csv", b"sep=|\nkey|x|y\na|1|2\n\xc3\xa9|3|4.5\n"),
    "blank lines": ("x.csv", b"\n \r\n\nkey,x,y\na,1,2\n\n\xc3\xa9,3,4.5\n\n"),
    "mark": ("x.csv", b"\xef\xbb\xbfkey,x,y\na,1,2\n\xc3\xa9,3,4.5\n"),
    "mark and sep": ("x.csv", b"\xef\xbb\xbfsep=;\nkey;x;y\na;1;2\n\xc3\xa9;3;4.5\n"),
    "UTF-16": ("x.csv", "key,x,y\na,1,2\né,3,4.5\n".encode("utf-16")),
    "UTF-16, tabs": ("x.csv", "\ufeffkey\tx\ty\r\na\t1\t2\r\né\t3\t4.5\r\n".encode("utf-16-be")),
    "old Mac": ("x.csv", b"key,x,y\ra,1,2\r\xc3\xa9,3,4.5\r"),
    "gzip": ("x.csv.gz", gzip.compress(b"key,x,y\na,1,2\n\xc3\xa9,3,4.5\n", mtime=0)),
    "bzip2": ("x.TSV.BZ2", bz2.compress(b"key\tx\ty\na\t1\t2\n\xc3\xa9\t3\t4.5\n")),
    "quoted header": ("x.csv", b'"key","x","y"\na,1,2\n\xc3\xa9,3,4.5'),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_csv_files_as_other_programs_write_them(how: str, tmp_path: Path) -> None:
    name, content = WRITTEN[how]
    (tmp_path / name).write_bytes(content)
    pool = Pool.build(tmp_path / name, tmp_path / "pool.zarr", ids="key")
    assert rows_of(pool) == [[1, 2], [3, 4.5]]
    assert pool.record_ids([0, 1]) == ["a", "é"]
    assert pool.feature_names == ("x", "y")


REFUSED = {
    "latin": (b"key,x\ncaf\xe9,1\n", "UTF-8.*in line 2.*iconv"),
    "UTF-16 without a mark": ("key,x\na,1\n".encode("utf-16-le"), "UTF-16.*save it as UTF-8"),
    "decimal comma": (b"key;x\na;1,5\nb;1.002,25\n", r"decimal comma.*x \(string\)"),
    "two ways": (b"a;b,c\n1;2,3\n", "commas or semicolons.*sep=;"),
    "no names": (b",,\n1,2,3\n", "first line"),
    "text": (b"key,x\na,one\n", r"x \(string\)"),
    "all unnamed": (b",\n1,2\n", "first line"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_csv_files_that_cannot_be_told_are_refused(how: str, tmp_path: Path) -> None:
    content, message = REFUSED[how]
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        Pool.build(tmp_path / "x.csv", tmp_path / "pool.zarr", ids="key" if b"key" in content[:20] else None)


def test_bytes_that_are_no_utf8_behind_the_sample_are_told(tmp_path: Path) -> None:
    lines = b"".join(b"k%0500d,1\n" % at for at in range(2200))
    assert len(lines) > csvs.SAMPLE_BYTES
    (tmp_path / "x.csv").write_bytes(b"key,x\n" + lines + b"caf\xe9,2\n")
    with pytest.raises(SourceError, match=r"UTF-8.*iconv"):
        Pool.build(tmp_path / "x.csv", tmp_path / "pool.zarr", ids="key", sizes=Sizes(csv_block_bytes=2**18))


def test_truth_values_in_csv_are_features(tmp_path: Path) -> None:
    lines = [("true", "True", "")] * 30 + [("false", "False", "TRUE"), ("0", "NA", "false"), ("1", "true", "0.5")]
    text = "a,b,c\n" + "".join(",".join(line) + "\n" for line in lines)
    pool = build_small(write(tmp_path / "x.csv", text), tmp_path / "pool.zarr")
    nan = np.nan
    np.testing.assert_array_equal(pool.read(29, 33), [[1, 1, nan], [0, 0, 1], [0, nan, 0], [1, 1, 0.5]])
    with pytest.raises(SourceError, match="maybe for 'a' in row 33"):
        build_small(write(tmp_path / "y.csv", f"{text}maybe,true,\n"), tmp_path / "other.zarr")


def test_booleans_in_a_plain_zarr_array(tmp_path: Path) -> None:
    values = np.array([[True, False], [False, False], [True, True]])
    for name, how in (("plain", {}), ("raw", {"compressors": None})):
        zarr.create_array(tmp_path / name, data=values, chunks=(2, 2), **how)  # type: ignore[arg-type]
        assert rows_of(Pool.open(tmp_path / name, missing_chunks="fill")) == [[1, 0], [0, 0], [1, 1]]
    assert rows_of(Pool.build(values, tmp_path / "pool.zarr")) == [[1, 0], [0, 0], [1, 1]]


# ---- display fields with gaps


def gaps(first: int | None) -> list[int | None]:
    return [first, *range(1, 20), 2**53 + 1, None, 7]


def test_a_group_of_a_parquet_file_is_not_held_as_a_whole(tmp_path: Path) -> None:
    # It has as many rows as the program that wrote it liked, a million by default.
    x = np.random.default_rng(0).random(10**6)
    source = parquet(tmp_path / "x.parquet", row_group=10**6, x=x)
    before, found, most = pa.total_allocated_bytes(), [], 0
    for block in tables.open_table(str(source), None, None, [], sizes=Sizes(block_bytes=2**18)).blocks(10**5):
        found.append(block.features[:, 0].copy())
        most = max(most, pa.total_allocated_bytes() - before)
    assert 2**18 < most < x.nbytes / 2
    np.testing.assert_array_equal(np.concatenate(found), x[10**5 :].astype(np.float32))


@pytest.mark.parametrize("first", [0, None])
@pytest.mark.parametrize("make", ["parquet", "frame", "Dask", "Arrow", "blocks", "array"])
def test_integers_and_booleans_with_gaps_keep_their_type_whichever_block_has_the_gap(
    make: str, first: int | None, tmp_path: Path
) -> None:
    whole, truth = gaps(first), [None if value is None else value % 2 == 0 for value in gaps(first)]
    n = len(whole)
    table = pa.table({"x": np.arange(n, dtype=float), "n": pa.array(whole, pa.int64()), "b": truth})
    data = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get)
    display: Any = ["n", "b"]
    source: Any
    if make == "parquet":
        pa.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=5)
        source = tmp_path / "x.parquet"
    elif make == "Arrow":
        source = table
    elif make == "frame":
        source = data
    elif make == "Dask":
        source = dd.from_pandas(data, npartitions=5)
    elif make == "array":
        source, display = np.arange(n, dtype=float)[:, None], {"n": whole, "b": truth}
    else:
        cuts = itertools.pairwise([0, 2, 3, n])  # a block of gaps alone takes the kind of those before it
        parts = [slice(*cut) for cut in cuts]
        source = [Block(np.arange(n)[p, None] * 1.0, None, {"n": whole[p], "b": truth[p]}) for p in parts]
        display = ()
    pool = build_small(source, tmp_path / "pool.zarr", display=display)
    assert pool.kinds == {"n": "integer", "b": "boolean"}
    assert pool.display(range(n)) == {"n": whole, "b": truth}
    assert [type(value) for value in pool.display([1])["n"]] == [int]
    more = pd.DataFrame({"b": [None, True], "n": [None, 5.0], "x": [1.0, 2.0]})  # a float, as pandas makes of a gap
    grown = append_small(Pool.open(tmp_path / "pool.zarr"), more)
    assert grown.display([n, n + 1]) == {"n": [None, 5], "b": [None, True]}
    text = write(tmp_path / "more.csv", "b,n,x\nFALSE,9,1\n,,2\n")
    assert append_small(Pool.open(tmp_path / "pool.zarr"), text).display([n + 2, n + 3]) == {
        "n": [9, None],
        "b": [False, None],
    }
    with pytest.raises(SourceError, match=r"'n' must hold integers.*0 \(5.5\)"):
        append_small(Pool.open(tmp_path / "pool.zarr"), more.assign(n=5.5))


def test_fields_of_any_kind_go_on_as_they_began(tmp_path: Path) -> None:
    first = pd.DataFrame(
        {
            "x": [1.0, 2],
            "text": ["a", None],
            "mixed": [1, "one"],
            "day": pd.to_datetime(["2020-01-02", None]),
            "kind": pd.Categorical(["u", "v"]),
            "size": [0.5, np.nan],
            "period": pd.period_range("2020", periods=2, freq="Y"),
        }
    )
    pool = Pool.build(first, tmp_path / "pool.zarr", features=["x"], display=list(first.columns[1:]))
    shown = pool.display([0, 1])
    assert shown["text"] == ["a", ""]
    assert shown["mixed"] == ["1", "one"]
    assert shown["day"][0].startswith("2020-01-02")  # type: ignore[attr-defined]
    assert shown["day"][1] == ""
    assert shown["kind"] == ["u", "v"]
    assert shown["size"][0] == 0.5
    assert shown["period"] == ["2020", "2021"]
    second = first.assign(text=[5, 6], mixed=[2.5, None], kind="w", size=[3, 4])
    assert Pool.open(tmp_path / "pool.zarr").append(second).display([2, 3]) | {"day": 0, "period": 0} == {
        "text": ["5", "6"], "mixed": ["2.5", ""], "day": 0, "kind": ["w", "w"], "size": [3.0, 4.0], "period": 0,
    }  # fmt: skip
    with pytest.raises(SourceError, match=r"'size' must hold numbers.*1 \('large'\)"):
        Pool.open(tmp_path / "pool.zarr").append(first.assign(size=["3", "large"]))


# ---- Arrow's types


def test_extension_types_are_ids_and_features(tmp_path: Path) -> None:
    keys = [uuid.UUID(int=7), uuid.UUID(int=9)]
    raw = pa.array([key.bytes for key in keys], pa.binary(16))
    flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8()))
    columns = {
        "key": pa.ExtensionArray.from_storage(pa.uuid(), raw),
        "word": pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", "b"], pa.string_view())),
        "x": pa.array([7, 8], pa.int8()).dictionary_encode(),
        "run": pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array([1.5])),
        "flag": flags,
    }
    table = pa.table(columns)
    pool = Pool.build(table, tmp_path / "pool.zarr", ids="key", display=["word", "flag"])
    np.testing.assert_array_equal(pool.read(0, 2), [[7, 1.5], [8, 1.5]])
    assert pool.record_ids([0, 1]) == list(map(str, keys))
    assert pool.display([0, 1]) == {"word": ["a", "b"], "flag": [True, None]}
    plain = table.drop(["run", "word"]).append_column("word", pa.array(["a", "b"]).dictionary_encode())
    pa.parquet.write_table(plain, tmp_path / "x.parquet")
    stored = Pool.build(tmp_path / "x.parquet", tmp_path / "stored.zarr", ids="key", display=["word", "flag"])
    assert stored.record_ids([0, 1]) == list(map(str, keys))
    of_frame = Pool.build(pd.DataFrame({"key": keys, "x": [1.0, 2]}), tmp_path / "frame.zarr", ids="key")
    assert of_frame.record_ids([1]) == [str(keys[1])]
    of_array = Pool.build(np.eye(2), tmp_path / "array.zarr", ids=keys)
    assert of_array.rows_of([str(keys[1])]).tolist() == [1]


LISTS: dict[str, Callable[[], pa.DataType]] = {
    "list": lambda: pa.list_(pa.float32()),
    "large list": lambda: pa.large_list(pa.float64()),
    "fixed": lambda: pa.list_(pa.float32(), 2),
    "view": lambda: pa.list_view(pa.float32()),
    "large view": lambda: pa.large_list_view(pa.float16()),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_type_are_embeddings_and_null_ones_are_nan(kind: str, tmp_path: Path) -> None:
    values = [[1, 2], None, [3, None], [5, 6], *[[7, 8]] * 20, None, [9, 1]]
    column = pa.array(values, LISTS[kind]())
    nan = np.nan
    expected = [[nan, nan] if each is None else [nan if v is None else v for v in each] for each in values]
    pool = build_small(pa.table({"emb": column}), tmp_path / "pool.zarr")
    np.testing.assert_array_equal(pool.read(0, len(values)), expected)
    assert (pool.feature_names, pool.record_shape) == (("emb",), (2,))
    sliced = build_small(pa.table({"emb": column.slice(2)}), tmp_path / "sliced.zarr")
    np.testing.assert_array_equal(sliced.read(0, len(values) - 2), expected[2:])
    if "view" not in kind:
        source = parquet(tmp_path / "x.parquet", row_group=3, emb=column)
        stored = build_small(source, tmp_path / "stored.zarr")
        np.testing.assert_array_equal(stored.read(0, len(values)), expected)


def test_tensors_are_pictures_or_embeddings(tmp_path: Path) -> None:
    pixels = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    pool = Pool.build(parquet(tmp_path / "x.parquet", picture=tensors), tmp_path / "pool.zarr")
    assert (pool.record_shape, pool.encoding) == ((2, 3, 3), "uint8")
    np.testing.assert_array_equal(pool.read(0, 2), pixels.reshape(2, -1))
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])
    turned = pa.ExtensionArray.from_storage(kind, pa.array([[1, 2, 3, 4, 5, 6], None], pa.list_(pa.float32(), 6)))
    flat = Pool.build(pa.table({"t": turned}), tmp_path / "flat.zarr")
    np.testing.assert_array_equal(flat.read(0, 2), [turned[:1].to_numpy_ndarray().ravel(), [np.nan] * 6])
    missing = pa.ExtensionArray.from_storage(tensors.type, pa.array([None, [1] * 18], tensors.type.storage_type))
    with pytest.raises(SourceError, match=r"'picture'.*null in rows 0"):
        Pool.build(pa.table({"picture": missing}), tmp_path / "missing.zarr")


# ---- ids


def test_ids_are_kept_as_they_are(tmp_path: Path) -> None:
    kept = ["007", " 7", "7 ", "nan", "None", "é", "e\u0301", "1e3", "-0"]
    x = np.arange(len(kept)) * 1.0
    text = "key,x\n" + "".join(f'"{key}",{at}\n' for at, key in enumerate(kept))
    for number, source in enumerate(
        [
            write(tmp_path / "x.csv", text),
            parquet(tmp_path / "x.parquet", key=kept, x=x),
            pd.DataFrame({"key": kept, "x": x}),
            pd.DataFrame({"key": pd.array(kept, dtype=object), "x": x}),
            dd.from_pandas(pd.DataFrame({"key": kept, "x": x}), npartitions=3),
        ]
    ):
        pool = Pool.build(source, tmp_path / f"{number}.zarr", ids="key")
        assert pool.record_ids(range(len(kept))) == kept
        assert pool.rows_of(kept).tolist() == list(range(len(kept)))


def test_whole_floats_are_integers_as_ids_and_others_none(tmp_path: Path) -> None:
    whole = pd.DataFrame({"key": [192.0, 7.0, 2.0**40], "x": [1.0, 2, 3]})
    pool = Pool.build(whole, tmp_path / "pool.zarr", ids="key")
    assert pool.record_ids([0, 1, 2]) == ["192", "7", str(2**40)]
    assert Pool.build(np.eye(2), tmp_path / "array.zarr", ids=np.array([5.0, 6])).record_ids([0, 1]) == ["5", "6"]
    for strange in (np.nan, 1.5, np.inf, 1e300):
        with pytest.raises(SourceError, match=r"`ids`.*rows 1 \("):
            Pool.build(whole.assign(key=[1.0, strange, 2]), tmp_path / "other.zarr", ids="key")
    for strange in (None, "", "a\0b", "\ud800", b"x", 1.5, True):
        with pytest.raises(SourceError, match=r"`ids`.*rows 1 "):
            Pool.build(np.eye(3), tmp_path / "other.zarr", ids=["a", strange, "b"])
    assert not (tmp_path / "other.zarr").exists()


def test_texts_with_gaps_become_features(tmp_path: Path) -> None:
    class Length:
        def transform(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(text)] for text in texts])

    data = pd.DataFrame({"key": ["a", "b", "c"], "note": ["one", np.nan, None], "more": [1, 2, 3]})
    for number, source in enumerate([data, dd.from_pandas(data, npartitions=2), pa.Table.from_pandas(data)]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dal.pool.texts.joblib.hash", lambda _: "a class of a test cannot be pickled")
            path = tmp_path / f"{number}.zarr"
            pool = Pool.build(source, path, ids="key", text="note", vectoriser=Length())
            assert rows_of(pool) == [[3], [0], [0]]
            assert pool.display([0, 1, 2]) == {"note": ["one", "", ""]}
            assert pool.feature_names == ("note",)
            other = data.assign(key=["d", "e", "f"], note="four")[["more", "note", "key"]]
            grown = Pool.open(path).append(other, vectoriser=Length(), text="note")
            assert rows_of(grown)[3:] == [[4]] * 3
            with pytest.raises(SourceError, match=r"`text` must be 'note'"):
                Pool.open(path).append(other.assign(body="x"), vectoriser=Length(), text="body")
            with pytest.raises(SourceError, match="`text` and `vectoriser`"):
                Pool.open(path).append(other)


# ---- Dask


def test_arrays_of_dask_are_computed_some_chunks_at_a_time(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(30, 2)
    ids, notes = [f"k{at}" for at in range(30)], np.arange(30)
    computed: list[int] = []

    def seen(block: np.ndarray) -> np.ndarray:
        computed.append(len(block))
        return block

    def array(*, known: bool = True) -> Any:  # noqa: ANN401
        made = da.from_array(rows, chunks=((4, 1, 10, 9, 6), (1, 1))).map_blocks(seen, dtype=np.float32)
        return made if known else made[da.from_array(np.ones(30, bool), chunks=((4, 1, 10, 9, 6),))]

    how = {
        "ids": da.from_array(np.array(ids, object), chunks=7),
        "display": {"n": notes, "m": da.from_array(notes, 30)},
    }
    most = 0

    def watch(done: int, of: int | None) -> None:
        nonlocal most
        most = max(most, sum(computed) // 2 - done)
        assert of == 30

    pool = build_small(array(), tmp_path / "pool.zarr", **how, progress=watch)
    assert most <= 20, "it is not computed whole before it is written"
    np.testing.assert_array_equal(pool.read(0, 30), rows)
    assert pool.record_ids(range(30)) == ids
    assert pool.display([29, 3]) == {"n": [29, 3], "m": [29, 3]}
    unknown = build_small(array(known=False), tmp_path / "unknown.zarr", ids=ids)
    np.testing.assert_array_equal(unknown.read(0, 30), rows)
    assert unknown.record_ids([29]) == ["k29"]
    grown = append_small(
        Pool.open(tmp_path / "unknown.zarr"), array(known=False), ids=[f"more {at}" for at in range(30)]
    )
    np.testing.assert_array_equal(grown.read(30, 60), rows)
    for wrong, message in (
        ({"ids": ids[:-1]}, "`ids` must have 30 values.*got 29"),
        ({"ids": da.ones((2, 2))}, "one value a record"),
        ({"features": ["x"]}, "`features`"),
    ):
        with pytest.raises(SourceError, match=message):
            build_small(array(), tmp_path / "wrong.zarr", **wrong)
    with pytest.raises(SourceError, match=r"30 values.*got 31"):
        build_small(array(known=False), tmp_path / "wrong.zarr", ids=[*ids, "x"])
    with pytest.raises(SourceError, match=r"got \(5,\)"):
        build_small(da.ones(5), tmp_path / "one.zarr")


@pytest.mark.parametrize("make", ["array", "unknown", "frame"])
def test_an_interrupted_build_of_dask_goes_on(make: str, tmp_path: Path) -> None:
    rows = np.arange(80, dtype=np.float32).reshape(40, 2)
    source: Any = da.from_array(rows, chunks=(6, 2))
    if make == "unknown":
        source = source[source.sum(axis=1) >= 0]
    if make == "frame":
        source = dd.from_pandas(pd.DataFrame(rows, columns=["x", "y"]), npartitions=7)

    def stop(done: int, _: int | None) -> None:
        if done >= 25:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(source, tmp_path / "pool.zarr", progress=stop)
    with pytest.raises(PoolIncomplete):
        Pool.open(tmp_path / "pool.zarr")
    with pytest.raises(SourceError, match="another source"):
        build_small(source + 1, tmp_path / "pool.zarr")
    done: list[int] = []
    pool = build_small(source, tmp_path / "pool.zarr", progress=lambda at, _: done.append(at))
    assert done[0] > 15, "it went on"
    np.testing.assert_array_equal(pool.read(0, 40), rows)


def test_a_graph_that_has_no_token_is_built_and_not_resumed(tmp_path: Path) -> None:
    class Odd:
        def __dask_tokenize__(self) -> object:
            raise dask.tokenize.TokenizationError("never twice the same")

    source = da.from_array(np.eye(30), chunks=(5, 30))
    assert sources.token_of([source, Odd()]) is None
    assert sources.token_of(source) == sources.token_of(da.from_array(np.eye(30), chunks=(5, 30)))
    assert sources.token_of(source) != sources.token_of(source + 1)


def test_frames_are_read_partition_by_partition(tmp_path: Path) -> None:
    data = frame(50)
    seen: list[int] = []

    def watched(part: pd.DataFrame) -> pd.DataFrame:
        seen.append(len(part))
        return part

    lazy = dd.from_pandas(data, npartitions=10).map_partitions(watched, meta=data.iloc[:0])
    most = 0

    def watch(done: int, _: int | None) -> None:
        nonlocal most
        most = max(most, sum(seen) - done)

    pool = build_small(lazy[lazy.x != 0.25], tmp_path / "pool.zarr", ids="key", progress=watch)
    expected = data[data.x != 0.25]
    np.testing.assert_array_equal(pool.read(0, 49), expected[["x", "y", "note"]].to_numpy(np.float32))
    assert pool.record_ids(range(49)) == expected.key.tolist()
    assert most <= 15
    lists = pd.DataFrame({"emb": [np.arange(3.0) + row for row in range(9)], "note": [{"a": 1}] * 9})
    with dask.config.set({"dataframe.convert-string": False}):  # else Dask makes text of the lists
        lazy_lists = dd.from_delayed([dask.delayed(lists[:4]), dask.delayed(lists[4:])], meta=lists.iloc[:0])
        embedded = build_small(lazy_lists, tmp_path / "lists.zarr", features=["emb"])
    np.testing.assert_array_equal(embedded.read(0, 9), np.stack(lists.emb.to_list()))


@pytest.mark.parametrize("kind", ["pandas", "Dask"])
def test_columns_of_a_frame_need_not_be_called_by_text(kind: str, tmp_path: Path) -> None:
    data = pd.DataFrame(np.arange(8.0).reshape(4, 2))
    source = data if kind == "pandas" else dd.from_pandas(data, npartitions=2)
    pool = Pool.build(source, tmp_path / "pool.zarr")
    assert pool.feature_names == ("0", "1")
    assert rows_of(pool) == data.to_numpy().tolist()
    chosen = Pool.build(source, tmp_path / "chosen.zarr", features=[1])  # type: ignore[list-item]
    assert rows_of(chosen) == data[[1]].to_numpy().tolist()
    data.columns = ["x", "x"]
    with pytest.raises(SourceError, match=r"unique.*\['x'\]"):
        Pool.build(data, tmp_path / "twice.zarr")


def test_an_interrupted_build_of_a_frame_goes_on_and_other_values_are_another_source(tmp_path: Path) -> None:
    data = frame(50)

    def stop(done: int, _: int | None) -> None:
        if done >= 25:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(data, tmp_path / "pool.zarr", ids="key", progress=stop)
    for other, columns in ((data.assign(x=0.0), None), (data, ["y", "x"])):
        with pytest.raises(SourceError, match="another source"):
            build_small(other, tmp_path / "pool.zarr", ids="key", features=columns)
    pool = build_small(data.copy(), tmp_path / "pool.zarr", ids="key")
    np.testing.assert_array_equal(pool.read(0, 50), data[["x", "y", "note"]].to_numpy(np.float32))


# ---- other sources


def test_what_gives_rows_like_an_array_is_taken(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3) % 7
    zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(3, 3))
    masked = np.ma.masked_equal(rows, 3)
    for number, (source, expected) in enumerate(
        [
            (zarr.open_array(tmp_path / "x.zarr", mode="r"), rows),
            (sparse.csr_matrix(rows), rows),
            (sparse.coo_array(rows), rows),
            (masked, np.where(rows == 3, np.nan, rows)),
            (masked.astype(int), np.where(rows == 3, np.nan, rows)),
            (da.from_array(masked, chunks=(4, 3)), np.where(rows == 3, np.nan, rows)),
        ]
    ):
        pool = build_small(source, tmp_path / f"{number}.zarr")
        np.testing.assert_array_equal(pool.read(0, 20), expected)

    class DataArray:  # gives a stream of one row for each number, as that of xarray does
        data = da.from_array(rows, chunks=(6, 3))
        dtype = data.dtype

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            raise AssertionError

    class Dataset(DataArray):
        data_vars = ()

    for each in (DataArray, Dataset):
        each.__module__ = "xarray.core"
    np.testing.assert_array_equal(build_small(DataArray(), tmp_path / "xarray.zarr").read(0, 20), rows)
    with pytest.raises(SourceError, match="got a Dataset"):
        build_small(Dataset(), tmp_path / "dataset.zarr")
    with pytest.raises(SourceError, match=r"20,000; .*TruncatedSVD"):
        build_small(sparse.csr_matrix((3, 20_000)), tmp_path / "wide.zarr")


def test_streams_are_read_once(tmp_path: Path) -> None:
    table = pa.table({"key": [f"k{at}" for at in range(30)], "x": np.arange(30.0)})

    class Stream:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return table.to_reader(max_chunksize=9).__arrow_c_stream__(requested_schema)

    for number, source in enumerate([table, table.to_reader(max_chunksize=4), Stream()]):
        pool = build_small(source, tmp_path / f"{number}.zarr", ids="key")
        assert rows_of(pool) == [[float(at)] for at in range(30)]
        assert pool.record_ids([29]) == ["k29"]
    with pytest.raises(SourceError, match=r"int8.*stream"):
        build_small(table.to_reader(), tmp_path / "narrow.zarr", ids="key", dtype="int8")
    assert build_small(table, tmp_path / "narrow.zarr", ids="key", dtype="int8").encoding == "int8"


def test_sources_of_other_kinds_are_named(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=np.eye(3))
    (tmp_path / "parts").mkdir()
    for name in ("part.0.parquet", "part.1.parquet"):
        parquet(tmp_path / "parts" / name, x=[1.0])
    for source, message in (
        (tmp_path / "x.zarr", r"Zarr store.*x\.zarr"),
        (tmp_path / "parts", r"2 tables.*dask.dataframe.read_parquet"),
        (dd.from_pandas(frame(), npartitions=2).x, "of Dask, got Series"),
        (frame().x, r"got \(40,\)"),
        ({"x": [1]}, "Block.*got str"),
        (frame()[:0], "no rows"),
        (pa.table({"x": pa.array([], pa.float64())}), "no rows"),
    ):
        with pytest.raises(SourceError, match=message):
            Pool.build(source, tmp_path / "pool.zarr")
    for name in ("x.parq", "x.PQ", "x.Parquet"):
        source = parquet(tmp_path / name, x=[1.0, 2])
        assert rows_of(Pool.build(source, tmp_path / f"{name}.zarr")) == [[1], [2]]
    np.save(tmp_path / "x.npy", np.eye(2))
    (tmp_path / "x.npy").rename(tmp_path / "x.NPY")
    assert rows_of(Pool.build(tmp_path / "x.NPY", tmp_path / "npy.zarr")) == [[1, 0], [0, 1]]


# ---- what new users bring


@pytest.mark.parametrize(
    "values", [{"a", "b"}, "ab", {"a": 1, "b": 2}, (each for each in "ab")], ids=["set", "text", "dict", "generator"]
)
def test_what_has_no_order_is_no_column(values: Any, tmp_path: Path) -> None:  # noqa: ANN401
    for given in ({"ids": values} if not isinstance(values, str) else {}, {"display": {"v": values}}):
        for source in (np.eye(2), da.from_array(np.eye(2), chunks=1)):
            if given:
                with pytest.raises(SourceError, match="one value a record"):
                    Pool.build(source, tmp_path / "pool.zarr", **given)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pd.to_timedelta([1.5, None], unit="D"), ["1 days 12:00:00", ""]),
        (np.array([36, "NaT"], "m8[h]"), ["1 days 12:00:00", ""]),
        (pd.period_range("2020-01", periods=2, freq="M"), ["2020-01", "2020-02"]),
        (pd.interval_range(0, 2), ["(0, 1]", "(1, 2]"]),
        (pd.arrays.SparseArray([0, 7]), [0, 7]),
        (pd.Categorical(["a", None]), ["a", ""]),
    ],
    ids=["timedelta", "timedelta of NumPy", "period", "interval", "sparse", "category"],
)
def test_a_field_is_shown_alike_whatever_holds_it(values: Any, shown: list[object], tmp_path: Path) -> None:  # noqa: ANN401
    whole = pd.DataFrame({"x": [1.0, 2], "v": values})
    sources: list[Any] = [whole, dd.from_pandas(whole, npartitions=2)]
    if whole.v.dtype.kind == "m":
        whole.to_parquet(tmp_path / "a.parquet")
        sources += [tmp_path / "a.parquet", pa.Table.from_pandas(whole)]
    for at, source in enumerate(sources):
        assert Pool.build(source, tmp_path / f"{at}.zarr", display=["v"]).display([0, 1])["v"] == shown
    for at, each in enumerate((values, whole.v)):
        assert Pool.build(np.eye(2), tmp_path / f"array{at}.zarr", display={"v": each}).display([0, 1])["v"] == shown


def test_bytes_that_are_no_text_are_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'v'.*Unicode"):
        Pool.build(np.eye(2), tmp_path / "pool.zarr", display={"v": [b"a", b"\xff"]})


def test_display_fields_have_any_name(tmp_path: Path) -> None:
    names = ["zarr.json", "km/h", "a\\b", "a", ".x", "__x", "x" * 300, "..", "~x", "c", "é", "e\u0301", "A", "a\nb"]
    path = tmp_path / "pool.zarr"
    Pool.build(np.eye(2), path, display={name: [f"{name}0", f"{name}1"] for name in names})
    frame = pd.DataFrame([[1.0, 0.0, *(f"{name}2" for name in names)]], columns=["u", "v", *names])
    pool = Pool.open(path).append(frame, features=["u", "v"], display=names)
    assert pool.display([0, 2]) == {name: [f"{name}0", f"{name}2"] for name in names}
    assert Pool.build(np.eye(2), path, overwrite=True).fields == ()
    assert sorted(found.name for found in path.iterdir()) == ["features", "zarr.json"]
    for wrong in ("", "a\0b", "a\ud800", 5):
        with pytest.raises(SourceError, match="name of a display field"):
            Pool.build(np.eye(2), tmp_path / "other.zarr", display={wrong: [1, 2]})  # type: ignore[dict-item]


@pytest.mark.parametrize("column", ["note", "unused"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_quote_that_is_never_closed_swallows_no_records(column: str, encoding: str, tmp_path: Path) -> None:
    display = ["note"] if column == "note" else []
    for at, end in enumerate(('2,"abc\n3,d\n', '2,"abc\n3,""\n', '2,"12"" wide\r\n3,d', '2,"\n3,d\n\n')):
        path = write(tmp_path / f"{at}.csv", f"x,{column}\n1,a\n{end}", encoding)
        with pytest.raises(SourceError, match=f"quote in the column '{column}'"):
            Pool.build(path, tmp_path / "pool.zarr", features=["x"], display=display)
    for at, (end, last) in enumerate((('2,"a\nb"', "a\nb"), ('2,"a\n"\n\n', "a\n"), ('2,"a\n"""\r\n', 'a\n"'))):
        path = write(tmp_path / f"sound{at}.csv", f"x,{column}\n1,a\n{end}", encoding)
        pool = Pool.build(path, tmp_path / f"{at}.zarr", features=["x"], display=display)
        assert rows_of(pool) == [[1], [2]]
        assert not display or pool.display([1])["note"] == [last]


def test_separators_that_an_ending_or_a_line_promises(tmp_path: Path) -> None:
    assert Pool.build(write(tmp_path / "a.tsv", "x,y\n1,2\n"), tmp_path / "1.zarr").feature_names == ("x", "y")
    assert Pool.build(write(tmp_path / "b.tsv", "x,1\ty\n1\t2\n"), tmp_path / "2.zarr").feature_names == ("x,1", "y")
    with pytest.raises(SourceError, match="'é'"):
        Pool.build(write(tmp_path / "c.csv", "sep=é\nxéy\n1é2\n"), tmp_path / "3.zarr")


def test_columns_of_frames_that_are_called_by_numbers_or_not_at_all(tmp_path: Path) -> None:
    numbered = pd.DataFrame({0: [5, 6], 1: [1.0, 2], 2: ["a", "b"]})
    pool = Pool.build(numbered, tmp_path / "1.zarr", ids=0, display=[2])  # type: ignore[arg-type, list-item]
    assert (pool.record_ids([0, 1]), pool.display([1]), rows_of(pool)) == (["5", "6"], {"2": ["b"]}, [[1], [2]])
    more = pd.DataFrame({2: ["c"], 1: [3.0], 0: [7]})
    assert Pool.open(tmp_path / "1.zarr").append(more, ids=0, display=[2]).record_ids([2]) == ["7"]  # type: ignore[arg-type, list-item]
    unnamed = pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=[None, "", "x"])
    assert Pool.build(unnamed, tmp_path / "2.zarr").feature_names == ("x",)
    unnamed[["", "x"]].to_parquet(tmp_path / "a.parquet")
    assert Pool.build(tmp_path / "a.parquet", tmp_path / "3.zarr").feature_names == ("x",)
    with pytest.raises(SourceError, match="more than once"):
        Pool.build(numbered, tmp_path / "4.zarr", features=["1", "1"])


def test_sources_of_dask_that_are_no_frame_are_refused(tmp_path: Path) -> None:
    part = pd.DataFrame({"x": [1.0], "y": [2.0]})
    broken = dd.from_map(lambda at: part[["x", "y"][: 2 - at]], [0, 1], meta=part)
    with pytest.raises(SourceError, match=r"partitions.*\['y'\]"):
        Pool.build(broken, tmp_path / "pool.zarr")
    with pytest.raises(SourceError, match="got Delayed"):
        Pool.build(dd.from_pandas(part, npartitions=1).to_delayed()[0], tmp_path / "other.zarr")


def test_a_source_is_a_place_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a%20#b.npy", np.eye(2))
    url = f"file://{tmp_path}/a%2520%23b.npy"
    assert rows_of(Pool.build(url, tmp_path / "pool.zarr")) == [[1, 0], [0, 1]]
    monkeypatch.chdir(tmp_path)
    for wrong in ("", "https://localhost/a.csv"):
        with pytest.raises(DalError):
            Pool.build(wrong, tmp_path / "other.zarr")
    assert not (tmp_path / "other.zarr").exists()


# ---- files of Arrow


def arrow(path: Path, table: pa.Table, *, stream: bool) -> Path:
    kind = pa.ipc.new_stream if stream else pa.ipc.new_file
    with kind(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return path


@pytest.mark.parametrize("kind", ["stream", "file", "feather"])
def test_a_file_of_arrow_is_a_table(kind: str, tmp_path: Path) -> None:
    expected = frame()
    table = pa.Table.from_pandas(expected, preserve_index=False)
    source = tmp_path / ("table.feather" if kind == "feather" else "table.arrow")
    if kind == "feather":
        expected.to_feather(source)
    else:
        arrow(source, table, stream=kind == "stream")
    pool = build_small(source, tmp_path / "pool.zarr", ids="key", features=["y", "x"], display=["note"])
    np.testing.assert_array_equal(pool.read(0, 40), expected[["y", "x"]].to_numpy(np.float32))
    assert pool.display([5]) == {"note": [2]}
    opened = tables.open_table(source, "key", ["x"], [], sizes=SMALL)
    assert max(len(block.features) for block in opened.blocks(0)) <= 7
    for start in (0, 1, 9, 25, 39):
        rows = np.concatenate([block.features for block in opened.blocks(start)])
        np.testing.assert_array_equal(rows[:, 0], expected["x"].to_numpy(np.float32)[start:])


def test_a_folder_that_datasets_saved_is_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    names = [f"data-{at:05d}-of-00003.arrow" for at in range(3)]
    for at, name in enumerate(names):
        arrow(folder / name, table.slice(at * 15, 15), stream=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    pool = Pool.build(folder, tmp_path / "pool.zarr", ids="key", features=["x", "y"])
    np.testing.assert_array_equal(pool.read(0, 40), frame()[["x", "y"]].to_numpy(np.float32))
    with pytest.raises(SourceError, match="train"):
        Pool.build(tmp_path / "saved", tmp_path / "other.zarr", ids="key")
    (folder / "state.json").write_text("{}")
    with pytest.raises(SourceError, match=r"state\.json"):
        Pool.build(folder, tmp_path / "other.zarr", ids="key")
