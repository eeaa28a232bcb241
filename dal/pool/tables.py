"""Tables as sources of pools: Parquet and CSV files, frames of pandas and Dask, anything that exports an Arrow stream.

A table is a schema and batches of rows, readable from any row on. `_choose` decides once, by name, which of its columns
are ids, features and display fields.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
from dask.base import compute
from dask.delayed import delayed

from dal.errors import SourceError
from dal.pool import csvs
from dal.pool.fields import NAMED, as_texts, is_gap, is_pandas, is_text, of_pandas, plain, plain_type
from dal.pool.sizes import SIZES, Sizes
from dal.pool.sources import (
    FILES,
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

PARQUET = (".parquet", ".pq", ".parq")
ARROW = (".arrow", ".feather")
ENDINGS = (*PARQUET, *ARROW, *csvs.ENDINGS)
_READ_BYTES = 2**16
"""Of each column of a Parquet file, read at a time."""
_OF_DATASETS = ("state.json", "dataset_dict.json")
"""Files that the library `datasets` writes into a folder: of one table, and of several."""
INDEX = re.compile(r"|Unnamed: \d+(\.\d+)?|__index_level_\d+__|__null_dask_index__")
"""Names that pandas and Dask give to an unnamed index, and to an unnamed column."""
_NO_VALUE = frozenset(text.lower() for text in pa.csv.ConvertOptions().null_values)


class Table(Protocol):
    """Rows of columns that have names and types."""

    schema: "pa.Schema"
    index: frozenset[str]
    """Index columns: features only where they are asked for by name."""
    n_rows: int | None
    single: bool
    commas: frozenset[str]
    """Text columns that look like numbers with a decimal comma."""

    def identity(self, columns: Sequence[str]) -> Identity | None:
        """Return what identifies the table, so that an interrupted build is resumed only with the same one."""

    def batches(self, columns: "Columns", start: int) -> Iterator["pa.RecordBatch"]:
        """Yield the rows from `start` on, with the columns that are used."""


@dataclass(frozen=True)
class Columns:
    """The use of each column of a table."""

    ids: str | None
    features: tuple[str, ...]
    display: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    nested: bool = False

    @property
    def all(self) -> list[str]:
        """Names of all columns that are read, each once."""
        return list(dict.fromkeys([*([self.ids] if self.ids else []), *self.features, *self.display]))


def is_table(source: object) -> bool:
    """Check whether a source is a table, whose columns have names."""
    if isinstance(source, str | Path):
        if Path(source).is_dir():
            return any((Path(source) / name).is_file() for name in _OF_DATASETS)
        return csvs.ending_of(Path(source)) in ENDINGS
    if is_pandas(source, "DataFrame") or is_frame_of_dask(source):
        return True
    # Series and arrays of xarray export streams as well, of one column, or of one row for each number.
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
    sizes: Sizes = SIZES,
) -> "Rows":
    """Open a table and choose its columns.

    Parameters
    ----------
    source : object
        A source for which `is_table` returns True.
    ids : str, int or None
        Name of the column of ids.
    features : sequence of str, optional
        Names of the feature columns.
    display : sequence of str
        Names of the display columns.
    text : str, optional
        Name of a column of texts. Blocks have it as a field, and no features.
    header : bool, optional
        For CSV files: whether the first line names the columns.
    sizes : Sizes, optional
        Of what is read at a time.

    Returns
    -------
    Rows

    Raises
    ------
    SourceError
        The table or a column cannot be used; the message says why.
    """
    where = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    if isinstance(ids, int | tuple):
        ids = str(ids)
    if not (ids is None or isinstance(ids, str)) or isinstance(display, Mapping | str):
        raise SourceError(
            "`ids` must name a column of the table, and `display` must be a list of columns, got "
            f"{type(ids).__name__} and "
            f"{type(display).__name__} for {where}"
        )
    if isinstance(features, str):
        raise SourceError(f"`features` must be a list of column names, got the text {features!r}")
    features, display = None if features is None else [str(name) for name in features], [str(name) for name in display]
    twice = sorted({name for name in features or () if (features or []).count(name) > 1})
    if twice:
        raise SourceError(f"`features` must name each column once, got {twice} more than once")
    wanted = [*([ids] if ids else []), *(features or ()), *display, *([text] if text else [])]
    try:
        table = _opened(source, wanted, header, sizes)
        chosen = _of_texts if text is not None else _choose
        columns = chosen(table, ids, [text] if text is not None else features, display)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise SourceError(f"{where} cannot be read: {error}") from error
    return Rows(table, columns, where, header)


def _opened(source: Any, wanted: Sequence[str], header: bool | None, sizes: Sizes) -> Table:  # noqa: ANN401 - see `is_table`
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise SourceError(f"`source` must be {FILES}, got {path}, which does not exist")
        if not path.is_dir() and csvs.ending_of(path) not in (*PARQUET, *ARROW):
            return _Csv(path, header, wanted, sizes)
    if header is not None:
        raise SourceError("`header` must be left out for sources other than CSV files (--header, --no-header)")
    if isinstance(source, str | Path):
        path = Path(source)
        kind = _Parquet if csvs.ending_of(path) in PARQUET and not path.is_dir() else _Arrow
        return kind(path, sizes)
    if is_pandas(source, "DataFrame"):
        return _Frame(source, sizes)
    return _DaskFrame(source, sizes) if is_frame_of_dask(source) else _Stream(source, sizes)


def _choose(table: Table, ids: str | None, features: Sequence[str] | None, display: Sequence[str]) -> Columns:
    """Choose the feature columns, or raise an error that says why the table cannot be used."""
    schema = table.schema
    named = [*([ids] if ids else []), *(features or ()), *display]
    types = _types_of(schema, named)
    if features is not None and ids in features:
        raise SourceError(f"`features` must not hold the column of ids, got {ids!r}; leave it out of features")
    _refuse_roles(types, ids, display)
    left = [name for name in schema.names if name not in named]
    left_out = () if features is not None else tuple(name for name in left if _is_index(table, name))
    chosen = tuple(features) if features is not None else tuple(name for name in left if name not in left_out)
    if not chosen:
        raise SourceError(f"a table must have a column for the features, got only {schema.names}; add or name one")
    lists = [name for name in chosen if _is_list(types[name])]
    if lists and len(chosen) > 1:
        raise SourceError(
            f"a column of lists must be the only feature column, got {lists} beside others; name it with features "
            "(--features)"
        )
    strange = {name: str(types[name]) for name in chosen if name not in lists and not _is_number(types[name])}
    if strange:
        _refuse_features(strange, table.commas)
    return Columns(ids, chosen, tuple(display), left_out, bool(lists))


def _of_texts(table: Table, ids: str | None, text: Sequence[str] | None, display: Sequence[str]) -> Columns:
    """Choose the columns of a table whose features are made from texts."""
    shown = tuple(dict.fromkeys([*(text or ()), *display]))
    types = _types_of(table.schema, [*([ids] if ids else []), *shown])
    _refuse_roles(types, ids, shown)
    for name in text or ():
        # All columns of a CSV file can be read as text.
        if not isinstance(table, _Csv) and not is_text(types[name]):
            raise SourceError(f"`text` must name a column of texts, got {name!r} of {types[name]}")
    return Columns(ids, (), shown)


def _is_index(table: Table, name: str) -> bool:
    return name in table.index or INDEX.fullmatch(name) is not None


def _types_of(schema: "pa.Schema", named: list[str]) -> dict[str, "pa.DataType"]:
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise SourceError(f"column names must be unique, got repeats: {repeated}; rename the columns")
    unknown = [name for name in named if name not in schema.names]
    if unknown:
        raise SourceError(f"columns must exist in the table, got {unknown}; it has {schema.names}")
    return {name: plain_type(schema.field(name).type) for name in schema.names}


def _refuse_roles(types: Mapping[str, "pa.DataType"], ids: str | None, display: Sequence[str]) -> None:
    if ids and not _is_key(types[ids]):
        raise SourceError(f"`ids` must name a column of text or integers, got {ids!r} of {types[ids]}")
    nested = [name for name in display if pa.types.is_nested(types[name])]
    if nested:
        raise SourceError(f"`display` must name columns of single values, got lists or structures in {nested}")


def _refuse_features(strange: Mapping[str, str], commas: frozenset[str]) -> None:
    named = ", ".join(f"{name} ({kind})" for name, kind in strange.items())
    if commas & set(strange):
        raise SourceError(
            f"features must be numbers with a decimal point, got columns with a decimal comma: {named}; write the file "
            "with points, as pandas does: read_csv(..., decimal=',').to_csv(..., index=False)"
        )
    raise SourceError(
        f"features must be numbers, got other columns: {named}; encode or vectorise them first, or name the feature "
        "columns with features (--features) and those to be shown only with display (--display)"
    )


def _is_number(kind: "pa.DataType") -> bool:
    # Arrow gives a CSV column that is empty in the first block the type null.
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
    # pandas makes floats of integers as soon as one is missing; whole floats are read as integers.
    types = pa.types
    return bool(is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind))


class Rows:
    """The rows of a table as a source of blocks.

    Parameters
    ----------
    table : Table
    columns : Columns
    name : str
        Name of the table, for messages.
    header : bool or None
        As the user passed it.
    """

    def __init__(self, table: Table, columns: Columns, name: str, header: bool | None) -> None:
        self._table, self.columns, self._name, self._header = table, columns, name, header
        self.n_rows: int | None = table.n_rows
        self.single = table.single

    @property
    def identity(self) -> Identity | None:
        """The table's identity and the use of each column."""
        identity = self._table.identity(self.columns.all)
        columns = self.columns
        chosen = {"ids": columns.ids, "features": list(columns.features), "display": list(columns.display)}
        if identity is None:
            return None
        return {**identity, **chosen, **({} if self._header is None else {"header": self._header})}

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Names of the columns of ids and features, and of those left out."""
        columns = self.columns
        return {"ids": columns.ids, "features": list(columns.features), "left_out": list(columns.left_out)}

    def blocks(self, start: int) -> Iterator[Block]:
        """Yield the rows from `start` on."""
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
    if is_text(column.type):  # in the first block of the CSV file this column held truth values or nothing
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
            raise SourceError(f"features must be numbers, got {column[at]} for {name!r} in row {row + at}") from error
    return pa.array(numbers, pa.float64())


def _matrix(column: "pa.Array", name: str, row: int, width: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """Convert a column of lists of one length to a matrix, and one of tensors with 3 axes to pictures.

    A null list becomes a record of NaN.
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
        raise SourceError(
            f"the lists in {name!r} must not all be null, got rows {row} to {last}; leave these records out"
        )
    ragged = np.flatnonzero(~missing & ((lengths != expected) | (lengths < 1)))
    if len(ragged):
        named = ", ".join(f"{row + n} ({lengths[n]})" for n in ragged[:NAMED].tolist())
        raise SourceError(f"the lists in {name!r} must have one length, {expected}, got others in rows {named}")
    if not isinstance(column.type, pa.FixedShapeTensorType):
        with np.errstate(over="ignore"):
            return _with_gaps(_numbers(lists.drop_null().flatten(), name, row).reshape(-1, expected), missing)
    tensors = column.drop_null().to_numpy_ndarray()
    if missing.any() and tensors.dtype == np.uint8:
        rows = ", ".join(str(row + n) for n in np.flatnonzero(missing)[:NAMED].tolist())
        raise SourceError(f"tensors of bytes in {name!r} must not be null, got null in rows {rows}; leave them out")
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

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self._path, self._sizes = path, sizes
        with pa.parquet.ParquetFile(path) as file:
            self.schema = file.schema_arrow
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        self.index = index_of(self.schema)
        self._heights = [group.num_rows for group in groups]
        self._bytes = sum(group.total_byte_size for group in groups)
        self.n_rows: int | None = sum(self._heights)
        if not self.n_rows:
            raise SourceError(f"{path} must have at least one row, got no rows")

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the file's identity covers them
        return file_identity(self._path)

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        ends = list(itertools.accumulate(self._heights))
        group = sum(end <= start for end in ends)
        skip = start - (ends[group - 1] if group else 0)
        rows = self._sizes.rows_of_block(self._bytes, ends[-1])
        # By default all of a group's columns are held, and a group is as large as its writer made it.
        with pa.parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=_READ_BYTES) as file:
            yield from _without(file.iter_batches(rows, range(group, len(ends)), columns.all), skip)


class _Arrow:
    """A file of Arrow, or a folder of them as `datasets` saves it; mapped into memory, not read into it."""

    single = False
    commas: frozenset[str] = frozenset()

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self._sizes = sizes
        self._paths = _files_of_datasets(path) if path.is_dir() else [path]
        self._heights: list[int] = []
        for each in self._paths:
            with _ipc(each) as (schema, batches):
                self.schema = schema
                self._heights.append(sum(batch.num_rows for batch in batches))
        self.index = index_of(self.schema)
        self.n_rows: int | None = sum(self._heights)
        if not self.n_rows:
            raise SourceError(f"{path} must have at least one row, got no rows")

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the files' identity covers them
        return {"kind": "arrow", "files": [file_identity(path) for path in self._paths]}

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        for path, height in zip(self._paths, self._heights, strict=True):
            if start >= height:
                start -= height
                continue
            with _ipc(path) as (_, batches):
                yield from _cut(_without((each.select(columns.all) for each in batches), start), self._sizes)
            start = 0


@contextmanager
def _ipc(path: Path) -> Iterator[tuple["pa.Schema", Iterator["pa.RecordBatch"]]]:
    """Open a file of Arrow, of either format: as a stream, or with an index at its end."""
    with pa.memory_map(str(path)) as file:
        if file.size() >= 6 and file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
        else:
            file.seek(0)
            stream = pa.ipc.open_stream(file)
            yield stream.schema, iter(stream)


def _files_of_datasets(folder: Path) -> list[Path]:
    """Return the files of a table that `datasets` saved, in their order."""
    if not (folder / "state.json").is_file():
        splits = sorted(each.parent.name for each in folder.glob("*/state.json"))
        raise SourceError(f"`source` must be one table, got the tables {splits} in {folder}; pass one of its folders")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / str(each["filename"]) for each in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder / 'state.json'} cannot be read: {error}; save the table again") from error


class _Csv:
    """A file of separated values. Ids and display fields keep their text as it stands in the file ("007")."""

    n_rows: int | None = None
    single = False

    def __init__(self, path: Path, header: bool | None, wanted: Sequence[str], sizes: Sizes) -> None:
        self._path, self._sizes = path, sizes
        self._dialect = csvs.dialect_of(path, header=header, wanted=wanted)
        self.index = frozenset(self._dialect.unnamed)
        if len(set(self._dialect.names)) < len(self._dialect.names):
            self.schema = pa.schema([(name, pa.null()) for name in self._dialect.names])  # `_types_of` refuses it
            return
        try:
            with self._open({}, None) as reader:  # infers types from the first block
                self.schema = reader.schema
                first = reader.read_next_batch()
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                raise SourceError(f"{path} must have at least one row, got no rows") from error
            raise
        texts = [field.name for field in self.schema if is_text(field.type)]
        self.commas = frozenset(name for name in texts if _has_commas(first.column(name)))

    def _open(self, types: Mapping[str, "pa.DataType"], include: list[str] | None) -> "pa.csv.CSVStreamingReader":
        return pa.csv.open_csv(
            self._dialect.open(),
            read_options=pa.csv.ReadOptions(block_size=self._sizes.csv_block_bytes, column_names=self._dialect.names),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, delimiter=self._dialect.separator),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=include),
        )

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the file's identity covers them
        return file_identity(self._path)

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        # Types are fixed, not inferred: a column of integers may continue with 1.5, and ids with letters. Truth values
        # are
        # read as words, which may continue with anything.
        words = {field.name for field in self.schema if pa.types.is_boolean(field.type) or pa.types.is_null(field.type)}
        numbers = set(columns.features) - words
        # A column that is both feature and display field is read as a number.
        last = self._dialect.names[-1]
        wanted = list(dict.fromkeys([*columns.all, last]))
        types = {name: pa.float64() if name in numbers else pa.string() for name in wanted}
        ending: object = None
        with self._open(types, wanted) as reader:
            for batch in _without(reader, start):
                if batch.num_rows:
                    ending = batch.column(last)[-1].as_py()
                yield batch.select(columns.all)
        # Arrow takes an unclosed quote as closed by the end of the file, and would swallow all records after it.
        if isinstance(ending, str) and re.search("[\r\n]", ending) and not self._dialect.ends_in_quotes():
            begin = ending.splitlines()[0]
            raise SourceError(
                f"{self._path}: quotes must be closed, got an open quote in the column {last!r} at {begin[:40]!r}; "
                "close the "
                "quote, or double it within quotes"
            )


def _has_commas(column: "pa.Array") -> bool:
    values = column.slice(0, SAMPLED_ROWS).drop_null()
    return bool(len(values) and pc.all(pc.match_substring_regex(values, csvs.DECIMAL_COMMA)).as_py())


def _without(batches: Iterable["pa.RecordBatch"], skip: int) -> Iterator["pa.RecordBatch"]:
    """Skip the first rows of all batches together."""
    for batch in batches:
        kept = batch.slice(min(skip, batch.num_rows))
        skip -= batch.num_rows - kept.num_rows
        yield kept


def _cut(batches: Iterable["pa.RecordBatch"], sizes: Sizes) -> Iterator["pa.RecordBatch"]:
    for batch in batches:
        step = sizes.rows_of_block(batch.nbytes, batch.num_rows)
        for at in range(0, batch.num_rows, step):
            yield batch.slice(at, step)


# ---- frames


class _Frame:
    """A pandas frame. Its index is no feature column, but may be named for the ids."""

    single = False
    commas: frozenset[str] = frozenset()

    def __init__(self, frame: "pd.DataFrame", sizes: Sizes) -> None:
        if not len(frame):
            raise SourceError("the DataFrame must have at least one row, got no rows")
        self._frame, self._sizes = frame, sizes
        self.schema, self.index = _schema_of(frame)
        self.n_rows: int | None = len(frame)

    def identity(self, columns: Sequence[str]) -> Identity | None:
        rows = np.unique(np.linspace(0, len(self._frame) - 1, SAMPLED_ROWS).astype(np.int64))
        sample = _batch_of(self._frame.iloc[rows], self.schema, columns).to_pydict()
        digest = hashlib.sha256(repr(sample).encode("utf-8", "backslashreplace")).hexdigest()
        return {"kind": "frame", "rows": len(self._frame), "sample": digest}

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        yield from _parts_of(self._frame, self.schema, columns.all, start, self._sizes)


class _DaskFrame:
    """A Dask frame, computed one partition after another."""

    n_rows: int | None = None
    single = False
    commas: frozenset[str] = frozenset()

    def __init__(self, frame: Any, sizes: Sizes) -> None:  # noqa: ANN401 - a collection of Dask
        self._frame, self._sizes = frame, sizes
        meta = frame._meta
        if any(kind.type is np.object_ for kind in meta.dtypes):  # only real values show the type of objects
            meta = self._part(0)
        self.schema, self.index = _schema_of(meta)

    def identity(self, columns: Sequence[str]) -> Identity | None:  # noqa: ARG002 - the graph's token covers them
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
            yield from _parts_of(part, self.schema, columns.all, min(start, len(part)), self._sizes)
            start = 0

    def _part(self, number: int) -> "pd.DataFrame":
        (part,) = compute(self._frame.partitions[number])  # type: ignore[no-untyped-call]
        assert is_pandas(part, "DataFrame")
        frame: pd.DataFrame = part
        return frame


def _schema_of(frame: "pd.DataFrame") -> tuple["pa.Schema", frozenset[str]]:
    """Return the schema of a frame, index levels before columns, and the names of the index columns."""
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
            # By position where a name repeats: the schema then holds both, and is refused.
            position = own.index(name) if own.count(name) == 1 else at - (len(wanted) - len(own))
            yield name, frame.iloc[:, position]
        else:
            yield name, frame.index.get_level_values(levels.index(name)).to_series()


def _batch_of(frame: "pd.DataFrame", schema: "pa.Schema", wanted: Sequence[str]) -> "pa.RecordBatch":
    missing = [name for name in wanted if name not in map(str, [*frame.columns, *frame.index.names])]
    if missing:
        raise SourceError(
            f"all partitions must have the same columns, got one without {missing}: {list(frame.columns)}"
        )
    arrays = {name: _arrow_of(values, schema.field(name).type) for name, values in _columns_of(frame, wanted)}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _parts_of(
    frame: "pd.DataFrame", schema: "pa.Schema", wanted: Sequence[str], start: int, sizes: Sizes
) -> Iterator["pa.RecordBatch"]:
    first = _batch_of(frame.iloc[:SAMPLED_ROWS], schema, wanted)
    step = sizes.rows_of_block(first.nbytes, first.num_rows)
    for at in range(start, len(frame), step):
        yield _batch_of(frame.iloc[at : at + step], schema, wanted)


def _arrow_of(values: "pd.Series[Any]", kind: "pa.DataType | None" = None) -> "pa.Array":
    """Convert a pandas column to Arrow.

    Parameters
    ----------
    values : pandas.Series
        The column, or some of its rows.
    kind : pyarrow.DataType, optional
        Type of its objects over all rows; a few rows alone may look like another type.
    """
    try:
        if values.dtype.type is not np.object_:
            return of_pandas(values)
        array = pa.array(values, type=kind, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return as_texts(values.tolist())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


class _Stream:
    """An object that exports an Arrow stream: a table of pyarrow or Polars, a reader of batches."""

    commas: frozenset[str] = frozenset()
    index: frozenset[str] = frozenset()

    def __init__(self, source: Any, sizes: Sizes) -> None:  # noqa: ANN401 - any object with the method
        self._sizes = sizes
        # An object with a length is in memory, and its buffers are shared; a reader can be read only once.
        self.single = not hasattr(source, "__len__")
        self._rows: Any = pa.RecordBatchReader.from_stream(source) if self.single else pa.table(source)
        self.schema: pa.Schema = self._rows.schema
        self.index = index_of(self.schema)
        self.n_rows: int | None = None if self.single else self._rows.num_rows
        if self.n_rows == 0:
            raise SourceError("the table must have at least one row, got no rows")

    def identity(self, columns: Sequence[str]) -> Identity | None:
        if self.single:
            return None
        rows = np.unique(np.linspace(0, self._rows.num_rows - 1, SAMPLED_ROWS).astype(np.int64))
        sample = [self._rows.select(list(columns)).slice(row, 1).to_pydict() for row in rows.tolist()]
        digest = hashlib.sha256(repr(sample).encode("utf-8", "backslashreplace")).hexdigest()
        return {"kind": "table", "rows": self._rows.num_rows, "sample": digest}

    def batches(self, columns: Columns, start: int) -> Iterator["pa.RecordBatch"]:
        batches: Iterable[pa.RecordBatch] = self._rows if self.single else self._rows.to_batches()
        yield from _cut(_without((batch.select(columns.all) for batch in batches), start), self._sizes)


def index_of(schema: "pa.Schema") -> frozenset[str]:
    """Return the names of the columns that pandas wrote as its index."""
    columns = (schema.pandas_metadata or {}).get("index_columns", [])
    return frozenset(name for name in columns if isinstance(name, str))
