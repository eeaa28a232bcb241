"""What a pool can be built from, as a stream of blocks.

A source says what it is (`identity`, so that an interrupted build goes on only with the same data), how many rows it
has where that is known, and yields its rows from any row on. `checked` holds every block to the same rules.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from dask.base import compute, is_dask_collection
from dask.delayed import Delayed
from dask.tokenize import TokenizationError, tokenize
from scipy import sparse

from dal.errors import SourceError
from dal.pool.encodings import Encode
from dal.pool.fields import Values, as_field, as_ids, as_kind, is_pandas, kind_of, refuse_no_sequence
from dal.pool.ids import refuse_repeated

BLOCK_BYTES = 16 * 2**20
MAX_BLOCK_ROWS = 2**16
SAMPLED_ROWS = 256
MAX_FEATURES = 2**14
"""Dense columns beyond this make records that no scan is quick with; a vocabulary is a hundred thousand wide."""
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
        Display fields; the same in all blocks, of the kinds (text, integers, numbers or booleans) of the first one.
        None is a gap.
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

    @property
    def single(self) -> bool:
        """Whether it can be read only once."""

    @property
    def told(self) -> Mapping[str, Any]:
        """What the pool keeps of it, so that what is appended can be matched by name."""

    def blocks(self, start: int) -> Iterator[Block]:
        """Yield the rows from `start` on, at most some 16 MiB at a time."""


def open_source(
    source: object,
    ids: Values | str | None,
    features: Sequence[str] | None,
    display: Mapping[str, Values] | Sequence[str],
) -> Source:
    """Recognise a source that is no table and check all that can be checked without reading it.

    Raises
    ------
    SourceError
        It cannot be used; the message says why.
    """
    path = None
    if isinstance(source, str | Path):
        path, source = Path(source), _mapped(Path(source))
    if is_of_xarray(source) and hasattr(source, "data_vars"):
        raise SourceError("a Dataset holds several arrays: pass one of them, such as dataset['x']")
    if is_of_xarray(source) and hasattr(source, "data"):
        source = source.data
    if is_dask_collection(source) and (isinstance(source, Delayed) or not hasattr(source, "chunks")):
        raise SourceError(f"of Dask, a pool is built from an array or a DataFrame, got {type(source).__name__}")
    if _is_array(source) or sparse.issparse(source):
        if features is not None:
            raise SourceError(
                "features names columns of a table; an array is used whole, so pass the columns of it you want"
            )
        if isinstance(ids, str):
            raise SourceError(f"ids={ids!r} names a column of a table; for an array pass the ids themselves, one a row")
        if not isinstance(display, Mapping):
            if len(display):
                raise SourceError("display names columns of a table; for an array pass a dict of name to values")
            display = {}
        kind = _DaskArray if is_dask_collection(source) else _Array
        return kind(source, path, ids, display)
    if not isinstance(source, Iterable):
        raise SourceError(
            f"a pool is built from an array, a table, a file or an iterable of Block, got {type(source).__name__}"
        )
    if ids is not None or features is not None or display:
        raise SourceError("blocks carry their own ids and fields: pass neither ids, features nor display with them")
    return _Blocks(source)


def file_identity(path: Path) -> Identity:
    """Return what makes a file the same: path, size and time."""
    told = path.stat()
    return {"kind": "file", "path": str(path.absolute()), "size": told.st_size, "mtime_ns": told.st_mtime_ns}


def is_of_xarray(source: object) -> bool:
    """Say whether this is an array, or several, of xarray."""
    return type(source).__module__.startswith("xarray.")


def is_frame_of_dask(source: object) -> bool:
    """Return whether this is a DataFrame of Dask, of pandas inside."""
    return is_dask_collection(source) and is_pandas(getattr(source, "_meta", None), "DataFrame")


def token_of(collection: object) -> str | None:
    """Return what makes a collection of Dask the same; None where that cannot be told."""
    try:
        token: str = tokenize(collection, ensure_deterministic=True)
    except (TokenizationError, TypeError, ValueError):
        return None
    return token


# ---- arrays


def _mapped(path: Path) -> npt.NDArray[Any]:
    if not path.is_file():
        raise SourceError(f"there is no file {path}; a pool is built from a .npy, .parquet or .csv file")
    if path.suffix.lower() != ".npy":
        raise SourceError(
            f"{path}: expected a .npy, .parquet, .pq, .csv, .tsv or .tab file, got {path.suffix or 'no suffix'}"
        )
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # an array of objects cannot be mapped either
        raise SourceError(f"{path} cannot be read as an array of numbers: {error}") from error
    return array


def _is_array(source: object) -> bool:
    return all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__"))


class _Array:
    """An array of NumPy, or anything that has a shape and gives slices of rows: sparse matrices, Zarr, HDF5."""

    single = False
    told: Mapping[str, Any] = {}

    def __init__(self, array: Any, path: Path | None, ids: Values | None, display: Mapping[str, Values]) -> None:  # noqa: ANN401
        height = int(array.shape[0]) if array.shape else 0
        self._array = array.tocsr() if sparse.issparse(array) else array
        first = _dense(self._array[:1]) if height else np.empty(array.shape)
        _refuse_records(first, array.shape, "the array")
        if not height:
            raise SourceError("the array has no rows; a pool has at least one")
        self.n_rows: int | None = height
        self._row_bytes = max(1, first.nbytes)
        self._ids = None if ids is None else as_ids(ids, 0, height)
        self._fields = {name: as_field(name, values, 0, height) for name, values in display.items()}
        self.identity: Identity | None = {
            **({"kind": "array"} if path is None else file_identity(path)),
            "shape": list(array.shape),
            "dtype": first.dtype.str,
            "sample": self._sample(),
        }
        if self._ids is not None:
            # Ids in memory are compared before anything is written; those of a stream, by the index at its end.
            refuse_repeated(self._ids)

    def _sample(self) -> str:
        # Reading all of a mapped array to name it would take as long as building.
        rows = np.unique(np.linspace(0, self._array.shape[0] - 1, SAMPLED_ROWS).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(_dense(self._array[rows])).tobytes())
        ids = None if self._ids is None else self._ids[rows].tolist()
        digest.update(f" {ids}".encode())
        for name, column in self._fields.items():
            digest.update(f"{name} {column.take(rows).to_pylist()}".encode())
        return digest.hexdigest()

    def blocks(self, start: int) -> Iterator[Block]:
        step = max(1, BLOCK_BYTES // self._row_bytes)
        for first in range(start, self._array.shape[0], step):
            part = slice(first, first + step)
            ids = None if self._ids is None else self._ids[part]
            yield Block(_dense(self._array[part]), ids, {name: column[part] for name, column in self._fields.items()})


def _dense(part: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - whatever an array gives for some rows
    """Return rows as a plain array; what is masked is no value, so NaN."""
    if sparse.issparse(part):
        if part.shape[1] > MAX_FEATURES:
            raise SourceError(
                f"the sparse matrix has {part.shape[1]:,} columns, and records have at most {MAX_FEATURES:,} features: "
                "reduce it, such as by a TruncatedSVD"
            )
        return np.asarray(part.toarray())
    if isinstance(part, np.ma.MaskedArray):
        if part.mask is np.ma.nomask:  # an array with a mask is of floats from its first rows on, masked or not
            return np.asarray(part.data)
        return np.where(np.ma.getmaskarray(part), np.float32(np.nan), part.data)
    return np.asarray(part)


class _DaskArray:
    """An array of Dask, of which some chunks of rows are computed at a time."""

    single = False
    told: Mapping[str, Any] = {}

    def __init__(self, array: Any, path: Path | None, ids: Values | None, display: Mapping[str, Values]) -> None:  # noqa: ANN401, ARG002
        _refuse_records(array, array.shape, "the Dask array")
        self._array = array
        self._heights = array.chunks[0]
        self._known = not any(math.isnan(height) for height in self._heights)
        self.n_rows: int | None = int(sum(self._heights)) if self._known else None
        if self.n_rows == 0:
            raise SourceError("the array has no rows; a pool has at least one")
        self._ids = None if ids is None else self._beside(ids, "ids")
        self._fields = {name: self._beside(values, name) for name, values in display.items()}

    def _beside(self, values: Values, name: str) -> Values:
        """Cut what stands beside the records as they are."""
        if hasattr(values, "to_dask_array"):
            values = values.to_dask_array()
        if not is_dask_collection(values):
            refuse_no_sequence(values, name)
            if self._known and len(values) != self.n_rows:
                raise SourceError(f"{len(values)} values of {name} were given for {self.n_rows} records")
            return values
        if values.ndim != 1:
            raise SourceError(f"{name} has shape {values.shape}; one value a record was expected")
        if self._known and not any(math.isnan(height) for height in values.chunks[0]):
            if values.shape[0] != self.n_rows:
                raise SourceError(f"{values.shape[0]} values of {name} were given for {self.n_rows} records")
            return values.rechunk((self._heights,))
        if values.numblocks[0] != len(self._heights):
            raise SourceError(f"{name} has other chunks than the array, and their sizes are not known: make them alike")
        return values

    @property
    def identity(self) -> Identity | None:
        token = token_of([self._array, self._ids, self._fields])
        return None if token is None else {"kind": "Dask array", "token": token}

    def blocks(self, start: int) -> Iterator[Block]:
        row = 0
        for first, last in self._groups():
            height = int(sum(self._heights[first:last])) if self._known else 0
            if self._known and row + height <= start:
                row += height
                continue
            lazy = [
                self._array,
                *[each for each in (self._ids, *self._fields.values()) if is_dask_collection(each)],
            ]
            computed = iter(compute(*(each.blocks[first:last] for each in lazy)))  # type: ignore[no-untyped-call]
            features = _dense(next(computed))
            beside = [
                next(computed) if is_dask_collection(each) else each[row : row + len(features)]
                for each in (*(() if self._ids is None else (self._ids,)), *self._fields.values())
            ]
            yield from self._cut(features, beside, max(0, start - row))
            row += len(features)
        for values in (self._ids, *self._fields.values()):
            if values is not None and not is_dask_collection(values) and len(values) != row:
                raise SourceError(f"{len(values)} values were given for {row} records")

    def _groups(self) -> Iterator[tuple[int, int]]:
        """Take together as many small chunks as make a block; those of unknown size one by one."""
        row_bytes = self._array.dtype.itemsize * math.prod(self._array.shape[1:])
        first, held = 0, 0.0
        for at, height in enumerate(self._heights):
            if at > first and not (held + height * row_bytes <= BLOCK_BYTES):  # also where it is NaN
                yield first, at
                first, held = at, 0.0
            held += height * row_bytes
        yield first, len(self._heights)

    def _cut(self, features: npt.NDArray[Any], beside: list[Values], skip: int) -> Iterator[Block]:
        step = max(1, BLOCK_BYTES // max(1, features[:1].nbytes))
        for first in range(skip, len(features), step):
            parts = [values[first : first + step] for values in beside]
            ids = None if self._ids is None else parts.pop(0)
            yield Block(features[first : first + step], ids, dict(zip(self._fields, parts, strict=True)))


# ---- blocks


class _Blocks:
    identity: Identity | None = None
    n_rows: int | None = None
    single = True
    told: Mapping[str, Any] = {}

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


def checked(
    blocks: Iterator[Block], row: int, encode: Encode, kinds: Mapping[str, str] | None = None
) -> Iterator[Block]:
    """Blocks as they are stored: encoded features, ids as text, fields as Arrow arrays of one kind each.

    Parameters
    ----------
    blocks
        What a source gives.
    row
        Row of the first.
    encode
        What turns features into what is stored.
    kinds
        Of the display fields, where the pool has them already. Default: those of the first block.

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
            if kinds is None:
                kinds = {name: kind_of(values) or "text" for name, values in stored.fields.items()}
            fields = {name: as_kind(values, kinds[name], name, row) for name, values in stored.fields.items()}
            yield Block(stored.features, stored.ids, fields)
        row += len(stored.features)


def _stored(block: Block, row: int, encode: Encode) -> Block:
    height = len(block.features) if block.features.ndim else 0
    _refuse_records(block.features, block.features.shape, f"the block from row {row} on")
    ids = None if block.ids is None else as_ids(block.ids, row, height)
    fields = {name: as_field(name, values, row, height) for name, values in block.fields.items()}
    return Block(encode(_dense(block.features), row), ids, fields)


def _refuse_records(array: Any, shape: tuple[int, ...], which: str) -> None:  # noqa: ANN401 - has a dtype
    if array.dtype.kind not in "fiub":
        raise SourceError(
            f"{which} has dtype {array.dtype}; features are floats or integers: encode or vectorise text and "
            "categories first (in a table, choose columns with --features, and show others with --display)"
        )
    if len(shape) not in (2, 4):
        raise SourceError(f"{which} has shape {shape}; expected (N, d), or (N, h, w, c) for images")
    if 0 in shape[1:]:
        raise SourceError(f"{which} has shape {shape}: records without features")


def _refuse_change(block: Block, first: Block, rows: str) -> None:
    shape, expected = block.features.shape[1:], first.features.shape[1:]
    if shape != expected:
        raise SourceError(f"{rows} have records of shape {shape}, the rows before them {expected}")
    if block.features.dtype != first.features.dtype:
        raise SourceError(f"{rows} hold {block.features.dtype}, the rows before them {first.features.dtype}")
    if (block.ids is None) != (first.ids is None):
        raise SourceError(f"{rows} have {'no ids' if block.ids is None else 'ids'}, the rows before them differ")
    if set(block.fields) != set(first.fields):
        raise SourceError(f"{rows} have the display fields {list(block.fields)}, the rows before {list(first.fields)}")
