"""Tables as sources of pools: files of Parquet and CSV, frames of pandas and Dask, whatever gives an Arrow stream.

A table is a schema and batches of rows from any row on. Which of its columns are ids, features and shown is chosen by
name, once, by `_choose`.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from dask.base import compute
from dask.delayed import delayed

from dal.errors import SourceError
from dal.pool import csvs
from dal.pool.fields import NAMED, as_texts, is_gap, is_pandas, is_text, of_pandas, plain, plain_type
from dal.pool.sources import (
    BLOCK_BYTES,
    MAX_BLOCK_ROWS,
    SAMPLED_ROWS,
    Block,
    Identity,
    file_identity,
    is_frame_of_dask,
    is_of_xarray,
    token_of,
)

if TYPE_CHECKING:
    import pandas as pd

CSV_BLOCK_BYTES = 4 * 2**20
PARQUET = (".parquet", ".pq", ".parq")
ENDINGS = (*PARQUET, *csvs.ENDINGS)
INDEX = re.compile(r"|Unnamed: \d+(\.\d+)?|__index_level_\d+__|__null_dask_index__")
"""Names that pandas and Dask give to an index that has none, and to a column without a name."""
_NO_VALUE = frozenset(text.lower() for text in pa.csv.ConvertOptions().null_values)


class Table(Protocol):
    """Rows of columns that have names and types."""

    schema: "pa.Schema"
    index: frozenset[str]
    """Columns that are an index: features only where they are asked for by name."""
    n_rows: int | None
    single: bool
    commas: frozenset[str]
    """Columns of text that looks like numbers with a decimal comma."""

    def identity(self, columns: Sequence[str]) -> Identity | None:
        """Return what makes it the same table."""

    def batches(self, columns: "Columns", start: int) -> Iterator["pa.RecordBatch"]:
        """Give the rows from `start` on, with the columns that are used."""


@dataclass(frozen=True)
class Columns:
    """What each column of a table is for."""

    ids: str | None
    features: tuple[str, ...]
    display: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    nested: bool = False

    @property
    def all(self) -> list[str]:
        """Name every column that is read, once."""
        return list(dict.fromkeys([*([self.ids] if self.ids else []), *self.features, *self.display]))


def is_table(source: object) -> bool:
    """Say whether a source is a table: its columns have names."""
    if isinstance(source, str | Path):
        return csvs.ending_of(Path(source)) in ENDINGS and not Path(source).is_dir()
    if is_pandas(source, "DataFrame") or is_frame_of_dask(source):
        return True
    # Series, and arrays of xarray, give streams as well: one column, or one row for each number.
    is_array = hasattr(source, "dtype") or is_of_xarray(source)
    return hasattr(source, "__arrow_c_stream__") and not is_array


def open_table(
    source: object,
    ids: object,
    features: Sequence[str] | None,
    display: Sequence[str] | Mapping[str, object],
    *,
    text: str | None = None,
    header: bool | None = None,
) -> "Rows":
    """Open a table and choose its columns.

    Parameters
    ----------
    source
        What `is_table` says yes to.
    ids, features, display
        Names of columns.
    text
        Name of a column of texts, which blocks have as a field; they have no features then.
    header
        For CSV files: whether the first line names the columns.

    Raises
    ------
    SourceError
        It cannot be used; the message says why.
    """
    told = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    if isinstance(ids, int | tuple):
        ids = str(ids)
    if not (ids is None or isinstance(ids, str)) or isinstance(display, Mapping | str):
        raise SourceError(f"{told} is a table: ids is the name of a column, display a list of names of columns")
    if isinstance(features, str):
        raise SourceError(f"features is a list of names of columns, got {features!r}")
    features, display = None if features is None else [str(name) for name in features], [str(name) for name in display]
    twice = sorted({name for name in features or () if (features or []).count(name) > 1})
    if twice:
        raise SourceError(f"features names the columns {twice} more than once")
    wanted = [*([ids] if ids else []), *(features or ()), *display, *([text] if text else [])]
    try:
        table = _opened(source, wanted, header)
        chosen = _of_texts if text is not None else _choose
        columns = chosen(table, ids, [text] if text is not None else features, display)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise SourceError(f"{told} cannot be read: {error}") from error
    return Rows(table, columns, told, header)


def _opened(source: Any, wanted: Sequence[str], header: bool | None) -> Table:  # noqa: ANN401 - see `is_table`
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise SourceError(f"there is no file {path}; a pool is built from a .npy, .parquet or .csv file")
        if csvs.ending_of(path) not in PARQUET:
            return _Csv(path, header, wanted)
    if header is not None:
        raise SourceError("header is for CSV files (--header, --no-header)")
    if isinstance(source, str | Path):
        return _Parquet(Path(source))
    if is_pandas(source, "DataFrame"):
        return _Frame(source)
    return _DaskFrame(source) if is_frame_of_dask(source) else _Stream(source)


def _choose(table: Table, ids: str | None, features: Sequence[str] | None, display: Sequence[str]) -> Columns:
    """Choose the columns that are features, or say why the table cannot be used."""
    schema = table.schema
    named = [*([ids] if ids else []), *(features or ()), *display]
    types = _types_of(schema, named)
    if features is not None and ids in features:
        raise SourceError(f"the column {ids!r} holds the ids, so it cannot be a feature; leave it out of features")
    _refuse_roles(types, ids, display)
    left = [name for name in schema.names if name not in named]
    left_out = () if features is not None else tuple(name for name in left if _is_index(table, name))
    chosen = tuple(features) if features is not None else tuple(name for name in left if name not in left_out)
    if not chosen:
        raise SourceError(f"no column is left for the features; the table has {schema.names}")
    lists = [name for name in chosen if _is_list(types[name])]
    if lists and len(chosen) > 1:
        raise SourceError(
            f"{lists} hold lists, and a list is the only feature column; name it with features (--features)"
        )
    strange = {name: str(types[name]) for name in chosen if name not in lists and not _is_number(types[name])}
    if strange:
        _refuse_features(strange, table.commas)
    return Columns(ids, chosen, tuple(display), left_out, bool(lists))


def _of_texts(table: Table, ids: str | None, text: Sequence[str] | None, display: Sequence[str]) -> Columns:
    """Choose the columns of a table whose features are made of texts."""
    shown = tuple(dict.fromkeys([*(text or ()), *display]))
    types = _types_of(table.schema, [*([ids] if ids else []), *shown])
    _refuse_roles(types, ids, shown)
    for name in text or ():
        # All of a CSV file is text.
        if not isinstance(table, _Csv) and not is_text(types[name]):
            raise SourceError(f"the column {name!r} holds {types[name]}; a vectoriser takes texts")
    return Columns(ids, (), shown)


def _is_index(table: Table, name: str) -> bool:
    return name in table.index or INDEX.fullmatch(name) is not None


def _types_of(schema: "pa.Schema", named: list[str]) -> dict[str, "pa.DataType"]:
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise SourceError(f"columns have the same name: {repeated}; rename them")
    unknown = [name for name in named if name not in schema.names]
    if unknown:
        raise SourceError(f"there are no columns {unknown}; the table has {schema.names}")
    return {name: plain_type(schema.field(name).type) for name in schema.names}


def _refuse_roles(types: Mapping[str, "pa.DataType"], ids: str | None, display: Sequence[str]) -> None:
    if ids and not _is_key(types[ids]):
        raise SourceError(f"the column {ids!r} holds {types[ids]}; ids are text or integers")
    nested = [name for name in display if pa.types.is_nested(types[name])]
    if nested:
        raise SourceError(f"the columns {nested} hold lists or structures; display fields are single values")


def _refuse_features(strange: Mapping[str, str], commas: frozenset[str]) -> None:
    told = ", ".join(f"{name} ({kind})" for name, kind in strange.items())
    if commas & set(strange):
        raise SourceError(
            f"features are numbers with a decimal point, and these columns seem to have a decimal comma: {told}. Write "
            "the file with points, as pandas does: read_csv(..., decimal=',').to_csv(..., index=False)"
        )
    raise SourceError(
        f"features are numbers, and these columns are not: {told}. Encode or vectorise them first; or say which "
        "columns are features with features (--features), and which are only shown with display (--display)"
    )


def _is_number(kind: "pa.DataType") -> bool:
    # A column of a CSV file that is empty as far as was read has the type null.
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def _is_list(kind: "pa.DataType") -> bool:
    types = pa.types
    is_list = (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )
    return bool(is_list and _is_number(plain_type(kind.value_type)))


def _is_key(kind: "pa.DataType") -> bool:
    # pandas makes floats of integers as soon as one is missing; those that are whole are read as integers.
    types = pa.types
    return bool(is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind))


class Rows:
    """The rows of a table as a source."""

    def __init__(self, table: Table, columns: Columns, name: str, header: bool | None) -> None:
        self._table, self.columns, self._name, self._header = table, columns, name, header
        self.n_rows: int | None = table.n_rows
        self.single = table.single

    @property
    def identity(self) -> Identity | None:
        """The table, and what each of its columns is for."""
        told = self._table.identity(self.columns.all)
        columns = self.columns
        chosen = {"ids": columns.ids, "features": list(columns.features), "display": list(columns.display)}
        return (
            None if told is None else {**told, **chosen, **({} if self._header is None else {"header": self._header})}
        )

    @property
    def told(self) -> Mapping[str, Any]:
        """The names of the columns that are ids and features, and of those that were left out."""
        columns = self.columns
        return {"ids": columns.ids, "features": list(columns.features), "left_out": list(columns.left_out)}

    def blocks(self, start: int) -> Iterator[Block]:
        """Give the rows from `start` on."""
        row, width = start, None
        try:
            for batch in self._table.batches(self.columns, start):
                if batch.num_rows:
                    block = _block(batch, self.columns, row, width)
                    width = block.features.shape[1:]
                    yield block
                row += batch.num_rows
        except UnicodeDecodeError as error:
            raise SourceError(f"{self._name} cannot be read: {error}") from error
        except (pa.ArrowException, OSError) as error:
            if "invalid UTF8" in str(error):
                raise SourceError(csvs.not_utf8(Path(self._name))) from error
            raise SourceError(f"{self._name} cannot be read: {error}") from error


def _block(batch: "pa.RecordBatch", columns: Columns, row: int, width: tuple[int, ...] | None) -> Block:
    features: npt.NDArray[Any]
    if columns.nested:
        features = _matrix(batch.column(columns.features[0]), columns.features[0], row, width)
    else:
        features = np.empty((batch.num_rows, len(columns.features)), dtype=np.float32)
        for position, name in enumerate(columns.features):
            with np.errstate(over="ignore"):
                features[:, position] = _numbers(batch.column(name), name, row)
    ids = None if columns.ids is None else plain(batch.column(columns.ids))
    return Block(features, ids, {name: batch.column(name) for name in columns.display})


def _numbers(column: "pa.Array", name: str, row: int) -> npt.NDArray[Any]:
    """Convert a column to floats, null to NaN."""
    column = plain(column)
    if is_text(column.type):  # of a CSV file, whose first block had truth values or nothing in this column
        column = _of_words(column, name, row)
    numbers: npt.NDArray[Any] = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _of_words(column: "pa.Array", name: str, row: int) -> "pa.Array":
    words = [None if word is None else word.strip().lower() for word in column.to_pylist()]
    numbers: list[float | None] = []
    for at, word in enumerate(words):
        if word is None or word in _NO_VALUE:
            numbers.append(None)
            continue
        try:
            numbers.append(1.0 if word == "true" else 0.0 if word == "false" else float(word))
        except ValueError as error:
            raise SourceError(f"features are numbers, and {name!r} is {column[at]} in row {row + at}") from error
    return pa.array(numbers, pa.float64())


def _matrix(column: "pa.Array", name: str, row: int, width: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """Convert a column of lists of one length to a matrix, and one of tensors to pictures where they have 3 axes.

    A list that is null becomes a record of NaN.
    """
    lists = plain(column)
    missing = np.asarray(lists.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), -1).to_numpy())
    if width is not None:
        expected = int(np.prod(width))
    elif pa.types.is_fixed_size_list(lists.type):
        expected = lists.type.list_size
    elif not missing.all():
        expected = int(lengths[~missing][0])
    else:
        last = row + len(lengths) - 1
        raise SourceError(f"the lists in {name!r} are null in rows {row} to {last}; leave these records out")
    ragged = np.flatnonzero(~missing & ((lengths != expected) | (lengths < 1)))
    if len(ragged):
        told = ", ".join(f"{row + n} ({lengths[n]})" for n in ragged[:NAMED].tolist())
        raise SourceError(f"the lists in {name!r} must have one length, the first has {expected}; not so rows {told}")
    if not isinstance(column.type, pa.FixedShapeTensorType):
        with np.errstate(over="ignore"):
            return _with_gaps(_numbers(lists.drop_null().flatten(), name, row).reshape(-1, expected), missing)
    tensors = column.drop_null().to_numpy_ndarray()
    if missing.any() and tensors.dtype == np.uint8:
        rows = ", ".join(str(row + n) for n in np.flatnonzero(missing)[:NAMED].tolist())
        raise SourceError(f"the tensors in {name!r} are null in rows {rows}, and bytes have no NaN; leave them out")
    return _with_gaps(tensors if tensors.ndim == 4 else tensors.reshape(len(tensors), expected), missing)


def _with_gaps(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    if values.dtype == np.uint8 and not missing.any():
        return values
    filled = np.full((len(missing), *values.shape[1:]), np.nan, dtype=np.float32)
    filled[~missing] = values
    return filled


# ---- files


class _Parquet:
    single = False
    commas: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.parquet.ParquetFile(path) as file:
            self.schema = file.schema_arrow
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        self.index = index_of(self.schema)
        self._heights = [group.num_rows for group in groups]
        self._bytes = sum(group.total_byte_size for group in groups)
        self.n_rows: int | None = sum(self._heights)
        if not self.n_rows:
            raise SourceError(f"{path} has no rows; a pool has at least one")

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the file stands for all
        return file_identity(self._path)

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        ends = list(itertools.accumulate(self._heights))
        group = sum(end <= start for end in ends)
        skip = start - (ends[group - 1] if group else 0)
        row_bytes = max(1, self._bytes // max(1, ends[-1]))
        rows = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES // row_bytes))
        with pa.parquet.ParquetFile(self._path) as file:
            yield from _without(file.iter_batches(rows, range(group, len(ends)), columns.all), skip)


class _Csv:
    """A file of separated values. Ids and display fields keep their text as it stands in the file ("007")."""

    n_rows: int | None = None
    single = False

    def __init__(self, path: Path, header: bool | None, wanted: Sequence[str]) -> None:
        self._path = path
        self._dialect = csvs.dialect_of(path, header=header, wanted=wanted)
        self.index = frozenset(self._dialect.unnamed)
        if len(set(self._dialect.names)) < len(self._dialect.names):
            self.schema = pa.schema([(name, pa.null()) for name in self._dialect.names])  # refused by `_types_of`
            return
        try:
            with self._open({}, None) as reader:  # infers types from the first block
                self.schema = reader.schema
                first = reader.read_next_batch()
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                raise SourceError(f"{path} has no rows; a pool has at least one") from error
            raise
        texts = [field.name for field in self.schema if is_text(field.type)]
        self.commas = frozenset(name for name in texts if _has_commas(first.column(name)))

    def _open(self, types: Mapping[str, "pa.DataType"], include: list[str] | None) -> "pa.csv.CSVStreamingReader":
        return pa.csv.open_csv(
            self._dialect.open(),
            read_options=pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, column_names=self._dialect.names),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, delimiter=self._dialect.separator),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=include),
        )

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the file stands for all
        return file_identity(self._path)

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        # Types told, not inferred: a column of integers may go on with 1.5, and ids with letters. Truth values are read
        # as words, which go on with anything.
        words = {field.name for field in self.schema if pa.types.is_boolean(field.type) or pa.types.is_null(field.type)}
        numbers = set(columns.features) - words
        # A column that is both a feature and shown is read as a number.
        last = self._dialect.names[-1]
        wanted = list(dict.fromkeys([*columns.all, last]))
        types = {name: pa.float64() if name in numbers else pa.string() for name in wanted}
        ending: object = None
        with self._open(types, wanted) as reader:
            for batch in _without(reader, start):
                if batch.num_rows:
                    ending = batch.column(last)[-1].as_py()
                yield batch.select(columns.all)
        # Arrow takes a quote that is never closed for one that is closed by the end of the file.
        if isinstance(ending, str) and re.search("[\r\n]", ending) and not self._dialect.ends_in_quotes():
            begin = ending.splitlines()[0]
            raise SourceError(
                f"{self._path}: a quote is opened in the column {last!r} and never closed, at {begin[:40]!r}: all that "
                "follows would be part of that field; close the quote, or write it twice within quotes"
            )


def _has_commas(column: "pa.Array") -> bool:
    told = column.slice(0, SAMPLED_ROWS).drop_null()
    return bool(len(told) and pc.all(pc.match_substring_regex(told, csvs.DECIMAL_COMMA)).as_py())


def _without(batches: Iterable["pa.RecordBatch"], skip: int) -> Iterator["pa.RecordBatch"]:
    """Leave out the first rows of all."""
    for batch in batches:
        kept = batch.slice(min(skip, batch.num_rows))
        skip -= batch.num_rows - kept.num_rows
        yield kept


# ---- frames


class _Frame:
    """A frame of pandas. Its index is no column, but may be named for the ids."""

    single = False
    commas: frozenset[str] = frozenset()

    def __init__(self, frame: "pd.DataFrame") -> None:
        if not len(frame):
            raise SourceError("the DataFrame has no rows; a pool has at least one")
        self._frame = frame
        self.schema, self.index = _schema_of(frame)
        self.n_rows: int | None = len(frame)

    def identity(self, columns: Sequence[str]) -> Identity | None:
        rows = np.unique(np.linspace(0, len(self._frame) - 1, SAMPLED_ROWS).astype(np.int64))
        told = _batch_of(self._frame.iloc[rows], self.schema, columns).to_pydict()
        digest = hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest()
        return {"kind": "frame", "rows": len(self._frame), "sample": digest}

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        yield from _parts_of(self._frame, self.schema, columns.all, start)


class _DaskFrame:
    """A frame of Dask, computed one partition after another."""

    n_rows: int | None = None
    single = False
    commas: frozenset[str] = frozenset()

    def __init__(self, frame: Any) -> None:  # noqa: ANN401 - a collection of Dask
        self._frame = frame
        meta = frame._meta
        if any(kind.type is np.object_ for kind in meta.dtypes):  # the first partition tells what its objects are
            meta = self._part(0)
        self.schema, self.index = _schema_of(meta)

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the graph stands for all
        token = token_of(self._frame)
        return None if token is None else {"kind": "Dask frame", "token": token}

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        first = 0
        if start:
            (lengths,) = compute([delayed(len)(part) for part in self._frame.to_delayed()])  # type: ignore[no-untyped-call]
            ends = np.cumsum(lengths)
            first = int(np.searchsorted(ends, start, side="right"))
            start -= int(ends[first - 1]) if first else 0
        for number in range(first, self._frame.npartitions):
            part = self._part(number)
            yield from _parts_of(part, self.schema, columns.all, min(start, len(part)))
            start = 0

    def _part(self, number: int) -> "pd.DataFrame":
        (part,) = compute(self._frame.partitions[number])  # type: ignore[no-untyped-call]
        assert is_pandas(part, "DataFrame")
        frame: pd.DataFrame = part
        return frame


def _schema_of(frame: "pd.DataFrame") -> tuple["pa.Schema", frozenset[str]]:
    """Return names and types of the columns of a frame, those of its index before the others, and which are those."""
    names = [str(name) for name in frame.columns]
    levels = [str(name) for name in frame.index.names if name is not None and str(name) not in names]
    types = [(name, _arrow_of(values).type) for name, values in _columns_of(frame, [*levels, *names])]
    unnamed = [str(name) for name in frame.columns if is_gap(name)]
    return pa.schema(types), frozenset([*levels, *unnamed])


def _columns_of(frame: "pd.DataFrame", wanted: Sequence[str]) -> Iterator["tuple[str, pd.Series[Any]]"]:
    own = [str(name) for name in frame.columns]
    levels = [str(name) for name in frame.index.names]
    for at, name in enumerate(wanted):
        if name in own:
            # By its number where a name repeats: the schema holds both, and is refused.
            position = own.index(name) if own.count(name) == 1 else at - (len(wanted) - len(own))
            yield name, frame.iloc[:, position]
        else:
            yield name, frame.index.get_level_values(levels.index(name)).to_series()


def _batch_of(frame: "pd.DataFrame", schema: "pa.Schema", wanted: Sequence[str]) -> "pa.RecordBatch":
    missing = [name for name in wanted if name not in map(str, [*frame.columns, *frame.index.names])]
    if missing:
        raise SourceError(f"there are no columns {missing} in one of the partitions; it has {list(frame.columns)}")
    arrays = {name: _arrow_of(values, schema.field(name).type) for name, values in _columns_of(frame, wanted)}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _parts_of(
    frame: "pd.DataFrame", schema: "pa.Schema", wanted: Sequence[str], start: int
) -> Iterator["pa.RecordBatch"]:
    first = _batch_of(frame.iloc[:SAMPLED_ROWS], schema, wanted)
    step = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES * first.num_rows // max(1, first.nbytes)))
    for at in range(start, len(frame), step):
        yield _batch_of(frame.iloc[at : at + step], schema, wanted)


def _arrow_of(values: "pd.Series[Any]", kind: "pa.DataType | None" = None) -> "pa.Array":
    """Convert a column of pandas to Arrow.

    Parameters
    ----------
    values
        The column, or some rows of it.
    kind
        What its objects are in all rows; some of them may look like something else.
    """
    try:
        if values.dtype.type is not np.object_:
            return of_pandas(values)
        array = pa.array(values, type=kind, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return as_texts(values.tolist())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


class _Stream:
    """What gives an Arrow stream: a table of pyarrow or Polars, a reader of batches."""

    commas: frozenset[str] = frozenset()
    index: frozenset[str] = frozenset()

    def __init__(self, source: Any) -> None:  # noqa: ANN401 - whatever has the method
        # What has a length is in memory, and its buffers are shared; a reader is read once.
        self.single = not hasattr(source, "__len__")
        self._rows: Any = pa.RecordBatchReader.from_stream(source) if self.single else pa.table(source)
        self.schema: pa.Schema = self._rows.schema
        self.index = index_of(self.schema)
        self.n_rows: int | None = None if self.single else self._rows.num_rows
        if self.n_rows == 0:
            raise SourceError("the table has no rows; a pool has at least one")

    def identity(self, columns: Sequence[str]) -> Identity | None:
        if self.single:
            return None
        rows = np.unique(np.linspace(0, self._rows.num_rows - 1, SAMPLED_ROWS).astype(np.int64))
        told = [self._rows.select(list(columns)).slice(row, 1).to_pydict() for row in rows.tolist()]
        digest = hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest()
        return {"kind": "table", "rows": self._rows.num_rows, "sample": digest}

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        batches: Iterable[pa.RecordBatch] = self._rows if self.single else self._rows.to_batches()
        for batch in _without((batch.select(columns.all) for batch in batches), start):
            step = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES * batch.num_rows // max(1, batch.nbytes)))
            for at in range(0, batch.num_rows, step):
                yield batch.slice(at, step)


def index_of(schema: "pa.Schema") -> frozenset[str]:
    """Return the columns that pandas wrote as its index."""
    told = (schema.pandas_metadata or {}).get("index_columns", [])
    return frozenset(name for name in told if isinstance(name, str))
