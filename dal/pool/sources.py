"""What a pool can be built from, as a stream of blocks.

A source says what it is (`identity`, so that an interrupted build goes on only with the same data), how many rows it
has where that is known, and yields its rows from any row on. `checked` holds every block to the same rules.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from dal.errors import SourceError
from dal.pool.encodings import Encode

BLOCK_BYTES = 16 * 2**20
MAX_BLOCK_ROWS = 2**16
CSV_BLOCK_BYTES = 4 * 2**20
SAMPLED_ROWS = 256
NAMED = 5
TEXT = np.dtypes.StringDType()
Values = Sequence[Any] | npt.NDArray[Any]
Identity = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Some rows of a source.

    Parameters
    ----------
    features : array of shape (n, d) or (n, h, w, c)
        Floats, integers or booleans.
    ids : sequence of str or int, optional
        Record ids; in all blocks or in none.
    fields : mapping of str to sequence
        Display fields; the same in all blocks.
    """

    features: npt.NDArray[Any]
    ids: Values | None = None
    fields: Mapping[str, Values] = field(default_factory=dict)


class Source(Protocol):
    """A stream of blocks."""

    @property
    def identity(self) -> Identity | None:
        """What makes it the same source; None where it cannot be known."""

    @property
    def n_rows(self) -> int | None:
        """Rows, where they are known beforehand."""

    def blocks(self, start: int) -> Iterator[Block]:
        """Yield the rows from `start` on, at most some 16 MiB at a time."""


def open_source(
    source: object,
    ids: Values | str | None,
    features: Sequence[str] | None,
    display: Mapping[str, Values] | Sequence[str],
) -> Source:
    """Recognise a source and check all that can be checked without reading it.

    Raises
    ------
    SourceError
        It cannot be used; the message says why.
    """
    if isinstance(source, np.ndarray):
        return _array_source(source, None, ids, features, display)
    if isinstance(source, str | Path):
        return _file_source(Path(source), ids, features, display)
    if not isinstance(source, Iterable):
        raise SourceError(f"a pool is built from an array, a file or an iterable of Block, got {type(source).__name__}")
    if ids is not None or features is not None or display:
        raise SourceError("blocks carry their own ids and fields: pass neither ids, features nor display with them")
    return _Blocks(source)


def _file_source(
    path: Path, ids: Values | str | None, features: Sequence[str] | None, display: Mapping[str, Values] | Sequence[str]
) -> Source:
    if not path.is_file():
        raise SourceError(f"there is no file {path}; a pool is built from a .npy, .parquet or .csv file")
    if path.suffix == ".npy":
        return _array_source(_mapped(path), path, ids, features, display)
    if path.suffix not in (".parquet", ".csv"):
        raise SourceError(f"{path}: expected a .npy, .parquet or .csv file, got {path.suffix or 'no suffix'}")
    if not (ids is None or isinstance(ids, str)) or isinstance(display, Mapping | str):
        raise SourceError(f"{path} is a table: ids is the name of a column, display a list of names of columns")
    try:
        table = _Parquet(path) if path.suffix == ".parquet" else _Csv(path)
        table.columns = _choose(table.schema, ids, features, display)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    return table


def open_texts(path: Path, ids: str | None, column: str, display: Sequence[str]) -> Source:
    """Open a table for a column of texts, which its blocks have as a field; they have no features.

    Raises
    ------
    SourceError
        It cannot be used; the message says why.
    """
    if path.suffix not in (".parquet", ".csv") or not path.is_file():
        raise SourceError(f"{path}: texts are a column of a .parquet or .csv file")
    if not (ids is None or isinstance(ids, str)) or isinstance(display, Mapping | str):
        raise SourceError(f"{path} is a table: ids is the name of a column, display a list of names of columns")
    try:
        table = _Parquet(path) if path.suffix == ".parquet" else _Csv(path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    shown = tuple(dict.fromkeys([column, *display]))
    _refuse_names(table.schema.names, [*([ids] if ids else []), *shown])
    kind = table.schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if path.suffix == ".parquet" and not _is_text(value):  # all of a CSV file is text
        raise SourceError(f"the column {column!r} holds {kind}; a vectoriser takes texts")
    if ids and not _is_key(table.schema.field(ids).type):
        raise SourceError(f"the column {ids!r} holds {table.schema.field(ids).type}; ids are text or integers")
    table.columns = _Columns(ids, (), shown, nested=False)
    return table


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # an array of objects cannot be mapped either
        raise SourceError(f"{path} cannot be read as an array of numbers: {error}") from error
    return array


# ---- arrays


def _array_source(
    array: npt.NDArray[Any],
    path: Path | None,
    ids: Values | str | None,
    names: Sequence[str] | None,
    display: Mapping[str, Values] | Sequence[str],
) -> Source:
    if names is not None:
        raise SourceError(
            "features names columns of a table; an array is used whole, so pass the columns of it you want"
        )
    if isinstance(ids, str):
        raise SourceError(f"ids={ids!r} names a column of a table; for an array pass the ids themselves, one a row")
    if not isinstance(display, Mapping):
        if len(display):
            raise SourceError("display names columns of a table; for an array pass a dict of name to values")
        display = {}
    _refuse_records(array, "the array")
    if not len(array):
        raise SourceError("the array has no rows; a pool has at least one")
    texts = None if ids is None else _texts(ids, 0, len(array))
    fields = {name: _field(name, values, 0, len(array)) for name, values in display.items()}
    return _Array(array, path, texts, fields)


class _Array:
    def __init__(
        self,
        array: npt.NDArray[Any],
        path: Path | None,
        ids: npt.NDArray[np.object_] | None,
        fields: dict[str, npt.NDArray[Any]],
    ) -> None:
        self._array, self._ids, self._fields = array, ids, fields
        self.n_rows: int | None = len(array)
        self.identity: Identity | None = {
            **({"kind": "array"} if path is None else _file_identity(path)),
            "shape": list(array.shape),
            "dtype": array.dtype.str,
            "sample": self._sample(),
        }
        if ids is not None:
            _refuse_repeats(ids)

    def _sample(self) -> str:
        # Reading all of a mapped array to name it would take as long as building.
        rows = np.unique(np.linspace(0, len(self._array) - 1, SAMPLED_ROWS).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(self._array[rows]).tobytes())
        for name, column in {"": self._ids, **self._fields}.items():
            digest.update(f"{name} {None if column is None else column[rows].tolist()}".encode())
        return digest.hexdigest()

    def blocks(self, start: int) -> Iterator[Block]:
        step = max(1, BLOCK_BYTES // max(1, self._array[:1].nbytes))
        for first in range(start, len(self._array), step):
            part = slice(first, first + step)
            ids = None if self._ids is None else self._ids[part]
            yield Block(self._array[part], ids, {name: column[part] for name, column in self._fields.items()})


def _refuse_repeats(ids: npt.NDArray[np.object_]) -> None:
    # What is in memory anyway is compared before anything is written; streams are, by the index, at their end.
    repeated = pd.Series(ids).duplicated(keep=False).to_numpy()
    if repeated.any():
        rows = np.flatnonzero(repeated)
        named = "; ".join(
            f"{text!r} in rows {', '.join(map(str, np.flatnonzero(ids == text)[:NAMED]))}"
            for text in list(dict.fromkeys(ids[rows]))[:NAMED]
        )
        raise SourceError(f"record ids must be unique, these repeat: {named}. Remove the repeats, or choose another id")


# ---- tables


@dataclass(frozen=True)
class _Columns:
    """What each column of a table is for."""

    ids: str | None
    features: tuple[str, ...]
    display: tuple[str, ...]
    nested: bool

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*([self.ids] if self.ids else []), *self.features, *self.display]))


def _choose(schema: "pa.Schema", ids: str | None, features: Sequence[str] | None, display: Sequence[str]) -> _Columns:
    """Which columns are features, or why the table cannot be used."""
    if isinstance(features, str):
        raise SourceError(f"features is a list of names of columns, got {features!r}")
    named = [*([ids] if ids else []), *(features or ()), *display]
    _refuse_names(schema.names, named)
    if features is not None and ids in features:
        raise SourceError(f"the column {ids!r} holds the ids, so it cannot be a feature; leave it out of features")
    if ids and not _is_key(schema.field(ids).type):
        raise SourceError(f"the column {ids!r} holds {schema.field(ids).type}; ids are text or integers")
    nested_display = [name for name in display if pa.types.is_nested(schema.field(name).type)]
    if nested_display:
        raise SourceError(f"the columns {nested_display} hold lists or structures; display fields are single values")
    chosen = tuple(features) if features is not None else tuple(name for name in schema.names if name not in named)
    if not chosen:
        raise SourceError(f"no column is left for the features; the table has {schema.names}")
    lists = [name for name in chosen if _is_list(schema.field(name).type)]
    if lists and len(chosen) > 1:
        raise SourceError(
            f"{lists} hold lists, and a list is the only feature column; name it with features (--features)"
        )
    _refuse_types({name: schema.field(name).type for name in chosen if name not in lists})
    return _Columns(ids, chosen, tuple(display), bool(lists))


def _refuse_names(exist: list[str], named: list[str]) -> None:
    repeated = sorted({name for name in exist if exist.count(name) > 1})
    if repeated:
        raise SourceError(f"columns have the same name: {repeated}; rename them")
    unknown = [name for name in named if name not in exist]
    if unknown:
        raise SourceError(f"there are no columns {unknown}; the table has {exist}")


def _refuse_types(types: Mapping[str, "pa.DataType"]) -> None:
    strange = {name: str(kind) for name, kind in types.items() if not _is_number(kind)}
    if strange:
        told = ", ".join(f"{name} ({kind})" for name, kind in strange.items())
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
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and _is_number(kind.value_type))


def _is_key(kind: "pa.DataType") -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(_is_text(value) or pa.types.is_integer(value) or pa.types.is_null(value))


def _is_text(kind: "pa.DataType") -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


class _Parquet:
    columns: _Columns

    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.parquet.ParquetFile(path) as file:
            self.schema = file.schema_arrow
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        self._heights = [group.num_rows for group in groups]
        self._bytes = sum(group.total_byte_size for group in groups)
        self.n_rows: int | None = sum(self._heights)
        if not self.n_rows:
            raise SourceError(f"{path} has no rows; a pool has at least one")

    @property
    def identity(self) -> Identity | None:
        return _table_identity(self._path, self.columns)

    def blocks(self, start: int) -> Iterator[Block]:
        ends = list(itertools.accumulate(self._heights))
        group = sum(end <= start for end in ends)
        skip = start - (ends[group - 1] if group else 0)
        row_bytes = max(1, self._bytes // max(1, ends[-1]))
        rows = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES // row_bytes))
        try:
            with pa.parquet.ParquetFile(self._path) as file:
                batches = file.iter_batches(rows, range(group, len(ends)), self.columns.all)
                yield from _from_batches(batches, self.columns, start, skip)
        except pa.ArrowException as error:
            raise SourceError(f"{self._path} cannot be read: {error}") from error


class _Csv:
    """A CSV file. Ids and display fields keep their text as it stands in the file ("007")."""

    n_rows: int | None = None
    columns: _Columns

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open({}, None) as reader:  # infers types from the first block
            self.schema = reader.schema

    def _open(self, types: Mapping[str, "pa.DataType"], include: list[str] | None) -> "pa.csv.CSVStreamingReader":
        return pa.csv.open_csv(
            self._path,
            read_options=pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=include),
        )

    @property
    def identity(self) -> Identity | None:
        return _table_identity(self._path, self.columns)

    def blocks(self, start: int) -> Iterator[Block]:
        columns = self.columns
        # Types told, not inferred: a column of integers may go on with 1.5, and ids with letters.
        types = {name: pa.float64() if name in columns.features else pa.string() for name in columns.all}
        # A column that is both a feature and shown is read as a number.
        try:
            with self._open(types, columns.all) as reader:
                yield from _from_batches(reader, columns, start, start)
        except pa.ArrowException as error:
            raise SourceError(f"{self._path} cannot be read: {error}") from error


def _from_batches(batches: Iterable["pa.RecordBatch"], columns: _Columns, start: int, skip: int) -> Iterator[Block]:
    """Blocks of a table from row `start` on, which is `skip` rows into the batches."""
    row = start
    for batch in batches:
        kept = batch.slice(min(skip, batch.num_rows))
        skip -= batch.num_rows - kept.num_rows
        if kept.num_rows:
            yield _block(kept, columns, row)
            row += kept.num_rows


def _block(batch: "pa.RecordBatch", columns: _Columns, row: int) -> Block:
    if columns.nested:
        features = _matrix(batch.column(columns.features[0]), columns.features[0], row)
    else:
        features = np.empty((batch.num_rows, len(columns.features)), dtype=np.float32)
        for position, name in enumerate(columns.features):
            with np.errstate(over="ignore"):
                features[:, position] = _numbers(batch.column(name))
    ids = None if columns.ids is None else batch.column(columns.ids).cast(pa.string()).to_pylist()
    return Block(features, ids, {name: _shown(batch.column(name), name, row) for name in columns.display})


def _numbers(column: "pa.Array") -> npt.NDArray[Any]:
    """Convert a column to floats, null to NaN."""
    numbers: npt.NDArray[Any] = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _matrix(column: "pa.Array", name: str, row: int) -> npt.NDArray[np.float32]:
    """Convert a column of lists of one length to a matrix."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    width = int(lengths[0])
    ragged = np.flatnonzero((lengths != width) | (lengths < 1))
    if len(ragged):
        told = ", ".join(f"{row + n} ({'null' if lengths[n] < 0 else lengths[n]})" for n in ragged[:NAMED].tolist())
        raise SourceError(f"the lists in {name!r} must have one length, row {row} has {width}; not so rows {told}")
    with np.errstate(over="ignore"):
        return _numbers(column.flatten()).astype(np.float32).reshape(len(lengths), width)


def _shown(column: "pa.Array", name: str, row: int) -> npt.NDArray[Any]:
    """Convert a display column to one of the four types that are stored."""
    kind = column.type
    if pa.types.is_floating(kind):
        return _numbers(column)
    if not (pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind != pa.uint64())):
        texts = pc.fill_null(column.cast(pa.string()), "").to_pylist()
        return np.array(texts, dtype=TEXT)
    if column.null_count:
        rows = (np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[:NAMED] + row).tolist()
        raise SourceError(f"the display column {name!r} ({kind}) is empty in rows {rows}; fill it, or store it as text")
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values if pa.types.is_boolean(kind) else values.astype(np.int64)


def _file_identity(path: Path) -> Identity:
    told = path.stat()
    return {"kind": "file", "path": str(path.absolute()), "size": told.st_size, "mtime_ns": told.st_mtime_ns}


def _table_identity(path: Path, columns: _Columns) -> Identity:
    chosen = {"ids": columns.ids, "features": list(columns.features), "display": list(columns.display)}
    return {**_file_identity(path), **chosen}


# ---- blocks


class _Blocks:
    identity: Identity | None = None
    n_rows: int | None = None

    def __init__(self, blocks: Iterable[object]) -> None:
        self._blocks = blocks

    def blocks(self, start: int) -> Iterator[Block]:  # noqa: ARG002 -- without an identity a build never goes on
        for block in self._blocks:
            if not isinstance(block, Block):
                raise SourceError(
                    f"a pool is built from an array, a file or an iterable of Block; this gave {type(block).__name__}"
                )
            yield block


# ---- the rules that every block keeps


def checked(blocks: Iterator[Block], row: int, encode: Encode) -> Iterator[Block]:
    """Blocks as they are stored: encoded features, ids as text, fields as text, int64, float64 or bool.

    Parameters
    ----------
    blocks
        What a source gives.
    row
        Row of the first.
    encode
        What turns features into what is stored.

    Raises
    ------
    SourceError
        A block breaks a rule; the rows are named.
    """
    first: Block | None = None
    for block in blocks:
        if not isinstance(block.features, np.ndarray):
            raise SourceError(f"the features from row {row} on are {type(block.features).__name__}, not a NumPy array")
        stored = _stored(block, row, encode)
        first = first or stored
        _refuse_change(stored, first, f"rows {row} to {row + len(stored.features) - 1}")
        if len(stored.features):
            yield stored
        row += len(stored.features)


def _stored(block: Block, row: int, encode: Encode) -> Block:
    height = len(block.features) if block.features.ndim else 0
    _refuse_records(block.features, f"the block from row {row} on")
    ids = None if block.ids is None else _texts(block.ids, row, height)
    fields = {name: _field(name, values, row, height) for name, values in block.fields.items()}
    return Block(encode(block.features, row), ids, fields)


def _refuse_records(array: npt.NDArray[Any], which: str) -> None:
    if array.dtype.kind not in "fiub":
        raise SourceError(
            f"{which} has dtype {array.dtype}; features are floats or integers: encode or vectorise text and "
            "categories first (in a table, choose columns with --features, and show others with --display)"
        )
    if array.ndim not in (2, 4):
        raise SourceError(f"{which} has shape {array.shape}; expected (N, d), or (N, h, w, c) for images")
    if 0 in array.shape[1:]:
        raise SourceError(f"{which} has shape {array.shape}: records without features")


def _refuse_change(block: Block, first: Block, rows: str) -> None:
    shape, expected = block.features.shape[1:], first.features.shape[1:]
    if shape != expected:
        raise SourceError(f"{rows} have records of shape {shape}, the rows before them {expected}")
    if block.features.dtype != first.features.dtype:
        raise SourceError(f"{rows} hold {block.features.dtype}, the rows before them {first.features.dtype}")
    if (block.ids is None) != (first.ids is None):
        raise SourceError(f"{rows} have {'no ids' if block.ids is None else 'ids'}, the rows before them differ")
    kinds = {name: values.dtype for name, values in _arrays(block.fields)}
    before = {name: values.dtype for name, values in _arrays(first.fields)}
    if kinds != before:
        raise SourceError(f"{rows} have the display fields {kinds}, the rows before them {before}")


def _arrays(fields: Mapping[str, Values]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    return ((name, np.asarray(values)) for name, values in fields.items())


def _texts(ids: Values, row: int, height: int) -> npt.NDArray[np.object_]:
    """Record ids as text, or why they cannot be ids."""
    values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if len(values) != height:
        raise SourceError(f"{len(values)} ids were given for the {height} records from row {row} on")
    if set(map(type, values)) != {str}:
        values = [str(v) if isinstance(v, int | np.integer) and not isinstance(v, bool) else v for v in values]
        values = [str(v) if isinstance(v, np.str_) else v for v in values]
    strange = [n for n, value in enumerate(values) if type(value) is not str or not value]
    if strange:
        told = ", ".join(f"{row + n} ({values[n]!r})" for n in strange[:NAMED])
        raise SourceError(f"every record needs an id, text or integer; not so rows {told}")
    texts: npt.NDArray[np.object_] = np.fromiter(values, dtype=object, count=height)
    return texts


def _field(name: str, values: Values, row: int, height: int) -> npt.NDArray[Any]:
    """Values of a display field in one of the four types that are stored."""
    if not isinstance(name, str) or not name or name.startswith((".", "__")) or "/" in name:
        raise SourceError(f"{name!r} cannot name a display field: it becomes a path in the store; rename it")
    if len(values) != height:
        raise SourceError(f"{len(values)} values of {name!r} were given for the {height} records from row {row} on")
    array = values if isinstance(values, np.ndarray) else _typed(list(values))
    if array.ndim != 1:
        raise SourceError(f"the display field {name!r} has shape {array.shape}; a field has one value a record")
    if array.dtype.kind == "b" or array.dtype == TEXT:
        return array
    if np.can_cast(array.dtype, np.int64):
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    return np.array(["" if value is None else str(value) for value in array.tolist()], dtype=TEXT)


def _typed(values: list[Any]) -> npt.NDArray[Any]:
    # Text stays out of NumPy's fixed-width type: one long text would make every other as wide.
    kinds = set(map(type, values))
    plain = bool(kinds) and (kinds <= {bool} or kinds <= {int, float})
    return np.array(values, dtype=None if plain else object)
