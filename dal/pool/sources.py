"""Sources of pools as streams of blocks.

A source has an identity, so that an interrupted build is resumed only with the same data. It has a number of rows where
that is known, and yields its rows from any row on. `checked` applies the same rules to every block.
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
from dal.pool.sizes import SIZES, Sizes

SAMPLED_ROWS = 256
MAX_FEATURES = 2**14
"""Most dense columns: wider records make every scan slow, and a vocabulary has a hundred thousand words."""
Identity = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Some rows of a source.

    Parameters
    ----------
    features : array of shape (n, d) or (n, h, w, c)
        Floats, integers or booleans.
    ids : sequence of str or int, optional
        Record ids, one a row; in all blocks or in none.
    fields : mapping of str to sequence
        Display fields, one value a row; the same fields in all blocks, of the kinds (text, integers, numbers or
        booleans) of the first one. None is a gap.
    """

    features: npt.NDArray[Any]
    ids: Values | None = None
    fields: Mapping[str, Values] = field(default_factory=dict)


class Source(Protocol):
    """A stream of blocks."""

    @property
    def identity(self) -> Identity | None:
        """Values that identify the source; None where it cannot be identified."""

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None where it is not known beforehand."""

    @property
    def single(self) -> bool:
        """Whether the source can be read only once."""

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Description of the source that the pool keeps, so that appended sources can be matched by name."""

    def blocks(self, start: int) -> Iterator[Block]:
        """Yield the rows from `start` on, some at a time."""


def open_source(
    source: object,
    ids: Values | str | None,
    features: Sequence[str] | None,
    display: Mapping[str, Values] | Sequence[str],
    sizes: Sizes = SIZES,
) -> Source:
    """Open a source that is no table, and check everything that can be checked without reading it.

    Parameters
    ----------
    source : object
        An array, the path of a ``.npy`` file, or an iterable of `Block`.
    ids : sequence, optional
        Record ids, one a row.
    features : None
        Refused here: it names columns of a table.
    display : mapping of str to sequence
        Display fields, one value a row.
    sizes : Sizes, optional
        Of the blocks, but for those of an iterable of them.

    Raises
    ------
    SourceError
        The source or an argument cannot be used; the message says why.
    """
    path = None
    if isinstance(source, str | Path):
        path, source = Path(source), _mapped(Path(source))
    if is_of_xarray(source) and hasattr(source, "data_vars"):
        raise SourceError("`source` must be one array, got a Dataset; pass one of its arrays, such as dataset['x']")
    if is_of_xarray(source) and hasattr(source, "data"):
        source = source.data
    if is_dask_collection(source) and (isinstance(source, Delayed) or not hasattr(source, "chunks")):
        raise SourceError(f"`source` must be an array or a DataFrame of Dask, got {type(source).__name__}")
    if _is_array(source) or sparse.issparse(source):
        if features is not None:
            raise SourceError(
                "`features` must be left out for an array, which is used whole; pass the columns of it that you want"
            )
        if isinstance(ids, str):
            raise SourceError(f"`ids` must be the ids themselves for an array, one a row, got the name {ids!r}")
        if not isinstance(display, Mapping):
            if len(display):
                raise SourceError("`display` must be a dict of name to values for an array, got names of columns")
            display = {}
        kind = _DaskArray if is_dask_collection(source) else _Array
        return kind(source, path, ids, display, sizes)
    if not isinstance(source, Iterable):
        raise SourceError(
            f"`source` must be an array, a table, a file or an iterable of Block, got {type(source).__name__}"
        )
    if ids is not None or features is not None or display:
        raise SourceError("`ids`, `features` and `display` must be left out for blocks, which carry their own")
    return _Blocks(source)


def file_identity(path: Path) -> Identity:
    """Return the identity of a file: path, size and modification time."""
    status = path.stat()
    return {"kind": "file", "path": str(path.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_of_xarray(source: object) -> bool:
    """Check whether an object is an array, or a set of arrays, of xarray."""
    return type(source).__module__.startswith("xarray.")


def is_frame_of_dask(source: object) -> bool:
    """Check whether an object is a Dask DataFrame of pandas partitions."""
    return is_dask_collection(source) and is_pandas(getattr(source, "_meta", None), "DataFrame")


def token_of(collection: object) -> str | None:
    """Return the token that identifies a Dask collection; None where Dask has no deterministic one."""
    try:
        token: str = tokenize(collection, ensure_deterministic=True)
    except (TokenizationError, TypeError, ValueError):
        return None
    return token


# ---- arrays


FILES = "an .npy, .parquet, .csv, .tsv, .arrow or .feather file, or a folder of pictures"
"""The sources of a pool on a disk, for messages."""


def _mapped(path: Path) -> npt.NDArray[Any]:
    if not path.is_file():
        raise SourceError(f"`source` must be {FILES}, got {path}, which does not exist")
    if path.suffix.lower() != ".npy":
        raise SourceError(
            f"`source` must be {FILES}, got {path} with {path.suffix or 'no suffix'}; write it as one of these"
        )
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # an array of objects cannot be mapped either
        raise SourceError(
            f"{path} cannot be read as an array of numbers: {error}; save it again by numpy.save"
        ) from error
    return array


def _is_array(source: object) -> bool:
    return all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__"))


class _Array:
    """An array of NumPy, or anything that has a shape and can be sliced by rows: sparse matrices, Zarr, HDF5."""

    single = False
    made_from: Mapping[str, Any] = {}

    def __init__(
        self,
        array: Any,  # noqa: ANN401
        path: Path | None,
        ids: Values | None,
        display: Mapping[str, Values],
        sizes: Sizes,
    ) -> None:
        height = int(array.shape[0]) if array.shape else 0
        self._array = array.tocsr() if sparse.issparse(array) else array
        first = _dense(self._array[:1]) if height else np.empty(array.shape)
        _refuse_records(first, array.shape, "the array")
        if not height:
            raise SourceError("the array must have at least one row, got no rows")
        self.n_rows: int | None = height
        self._block_rows = sizes.rows_of_block(first.nbytes)
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
        # A sample identifies the array: reading all of a mapped array would take as long as the build.
        rows = np.unique(np.linspace(0, self._array.shape[0] - 1, SAMPLED_ROWS).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(_dense(self._array[rows])).tobytes())
        ids = None if self._ids is None else self._ids[rows].tolist()
        digest.update(f" {ids}".encode())
        for name, column in self._fields.items():
            digest.update(f"{name} {column.take(rows).to_pylist()}".encode())
        return digest.hexdigest()

    def blocks(self, start: int) -> Iterator[Block]:
        for first in range(start, self._array.shape[0], self._block_rows):
            part = slice(first, first + self._block_rows)
            ids = None if self._ids is None else self._ids[part]
            yield Block(_dense(self._array[part]), ids, {name: column[part] for name, column in self._fields.items()})


def _dense(part: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - a slice of any array
    """Return rows as a plain array; masked values become NaN."""
    if sparse.issparse(part):
        if part.shape[1] > MAX_FEATURES:
            raise SourceError(
                f"the sparse matrix must have at most {MAX_FEATURES:,} columns, got {part.shape[1]:,}; reduce it, "
                "such as "
                "by a TruncatedSVD"
            )
        return np.asarray(part.toarray())
    if isinstance(part, np.ma.MaskedArray):
        if (
            part.mask is np.ma.nomask
        ):  # one with a mask gives floats in every block, masked or not: one dtype throughout
            return np.asarray(part.data)
        return np.where(np.ma.getmaskarray(part), np.float32(np.nan), part.data)
    return np.asarray(part)


class _DaskArray:
    """A Dask array, computed some chunks of rows at a time."""

    single = False
    made_from: Mapping[str, Any] = {}

    def __init__(
        self,
        array: Any,  # noqa: ANN401
        path: Path | None,  # noqa: ARG002
        ids: Values | None,
        display: Mapping[str, Values],
        sizes: Sizes,
    ) -> None:
        _refuse_records(array, array.shape, "the Dask array")
        self._array, self._sizes = array, sizes
        self._heights = array.chunks[0]
        self._known = not any(math.isnan(height) for height in self._heights)
        self.n_rows: int | None = int(sum(self._heights)) if self._known else None
        if self.n_rows == 0:
            raise SourceError("the array must have at least one row, got no rows")
        self._ids = None if ids is None else self._beside(ids, "ids")
        self._fields = {name: self._beside(values, name) for name, values in display.items()}

    def _beside(self, values: Values, name: str) -> Values:
        """Split ids or field values by the chunks of the records."""
        if hasattr(values, "to_dask_array"):
            values = values.to_dask_array()
        if not is_dask_collection(values):
            refuse_no_sequence(values, name)
            if self._known and len(values) != self.n_rows:
                raise SourceError(f"`{name}` must have {self.n_rows} values, one a record, got {len(values)}")
            return values
        if values.ndim != 1:
            raise SourceError(f"`{name}` must have one value a record, got shape {values.shape}")
        if self._known and not any(math.isnan(height) for height in values.chunks[0]):
            if values.shape[0] != self.n_rows:
                raise SourceError(f"`{name}` must have {self.n_rows} values, one a record, got {values.shape[0]}")
            return values.rechunk((self._heights,))
        if values.numblocks[0] != len(self._heights):
            raise SourceError(
                f"`{name}` must have the chunks of the array, whose sizes are unknown, got others; rechunk it"
            )
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
                raise SourceError(f"ids and display fields must have {row} values, one a record, got {len(values)}")

    def _groups(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of small chunks that together make a block; chunks of unknown size one by one."""
        row_bytes = self._array.dtype.itemsize * math.prod(self._array.shape[1:])
        first, held = 0, 0.0
        for at, height in enumerate(self._heights):
            if at > first and not (
                held + height * row_bytes <= self._sizes.block_bytes
            ):  # negated, so that NaN ends a group as well
                yield first, at
                first, held = at, 0.0
            held += height * row_bytes
        yield first, len(self._heights)

    def _cut(self, features: npt.NDArray[Any], beside: list[Values], skip: int) -> Iterator[Block]:
        step = self._sizes.rows_of_block(features[:1].nbytes)
        for first in range(skip, len(features), step):
            parts = [values[first : first + step] for values in beside]
            ids = None if self._ids is None else parts.pop(0)
            yield Block(features[first : first + step], ids, dict(zip(self._fields, parts, strict=True)))


# ---- blocks


class _Blocks:
    identity: Identity | None = None
    n_rows: int | None = None
    single = True
    made_from: Mapping[str, Any] = {}

    def __init__(self, blocks: Iterable[object]) -> None:
        self._blocks = blocks

    def blocks(self, start: int) -> Iterator[Block]:  # noqa: ARG002 -- without an identity no build is resumed
        for block in self._blocks:
            if not isinstance(block, Block):
                raise SourceError(f"`source` must yield Block objects, got {type(block).__name__}")
            yield block


# ---- the rules that every block keeps


def checked(
    blocks: Iterator[Block], row: int, encode: Encode, kinds: Mapping[str, str] | None = None
) -> Iterator[Block]:
    """Yield blocks as they are stored: encoded features, ids as text, fields as Arrow arrays of one kind each.

    Parameters
    ----------
    blocks : iterator of Block
        Blocks of a source.
    row : int
        Row of the first record.
    encode : Encode
        Converts features to their stored type.
    kinds : mapping of str to str, optional
        Kinds of the display fields in an existing pool. Default: those of the first block.

    Raises
    ------
    SourceError
        A block breaks a rule; the message names the rows.
    """
    first: Block | None = None
    for block in blocks:
        if not isinstance(block.features, np.ndarray):
            raise SourceError(f"features must be NumPy arrays, got {type(block.features).__name__} from row {row} on")
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
            f"{which} must hold floats or integers, got dtype {array.dtype}; encode or vectorise text and categories "
            "first (in a table, choose columns with --features, and show others with --display)"
        )
    if len(shape) not in (2, 4):
        raise SourceError(f"{which} must have shape (N, d), or (N, h, w, c) for images, got {shape}")
    if 0 in shape[1:]:
        raise SourceError(f"{which} must have at least one feature, got shape {shape}")


def _refuse_change(block: Block, first: Block, rows: str) -> None:
    shape, expected = block.features.shape[1:], first.features.shape[1:]
    if shape != expected:
        raise SourceError(f"records must have shape {expected} like those before them, got {shape} in {rows}")
    if block.features.dtype != first.features.dtype:
        raise SourceError(
            f"features must be {first.features.dtype} like those before, got {block.features.dtype} in {rows}"
        )
    if (block.ids is None) != (first.ids is None):
        raise SourceError(
            f"all blocks or none must have ids, got {'none' if block.ids is None else 'ids'} in {rows} alone"
        )
    if set(block.fields) != set(first.fields):
        raise SourceError(
            f"display fields must be {list(first.fields)} like before, got {list(block.fields)} in {rows}"
        )
