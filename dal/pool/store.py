"""Opening a pool and reading it: records by row, record ids, display fields."""

import asyncio
import base64
import contextlib
import copy
import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import ZipStore

from dal._distribution import install_line
from dal.choices import ENCODINGS, Missing
from dal.errors import ChunkError, InputError, NotInstalled, PoolError, PoolIncomplete, PoolNotFound
from dal.places import Place, Url, for_zarr, place_of
from dal.pool import ids
from dal.pool.ahead import AHEAD_BYTES, ReadAhead
from dal.pool.chunks import (
    PIECE_BYTES,
    ChunkFiles,
    ChunkObjects,
    Stored,
    grouped,
    missing_chunks,
    read_rows,
    take_rows,
)
from dal.pool.encodings import Decode, decoder
from dal.pool.packing import Packing
from dal.pool.sizes import SIZES, Sizes
from dal.pool.stored import KINDS, PICTURE, field_path, from_store
from dal.stores.objects import begun
from dal.stores.zarr_store import ZarrObjects

# All attributes of dal are under one key of the group's.
ATTRIBUTE = "dal"
APPENDING = "appending"
"""Key of the note that an append leaves of what it has written: no property of the pool, which has its old rows."""
VERSION = 2
"""Format of new pools. Version 1 stored no name of the hash that its ids are indexed by."""
VERSIONS = (1, 2)
INDEX = "ids_index"
"""Name of the id index in a pool without appends; later ones are named in the description."""
# A tile is at most this large, so that a read unit of this size is decoded once, wherever the tiles lie in it.
UNIT_BYTES = 8 * 2**20
# Zarr keeps a task for each chunk of a read: a unit of a million chunks of one row would take gigabytes.
UNIT_CHUNKS = 1024
_DEPTH = 5
_NAMED_COLUMNS = 20

# The attributes that a build writes.
Description = dict[str, Any]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Visit = Callable[[int, npt.NDArray[np.float32]], None]
"""Receives the position of a block's first record in its tile, and the block."""


def listed(names: Sequence[str]) -> str:
    """Return names separated by commas: the first ones, and the number of the rest.

    Examples
    --------
    >>> listed(["a", "b"])
    'a, b'
    """
    more = len(names) - _NAMED_COLUMNS
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED_COLUMNS])} and {more} more"


def description(group: zarr.Group) -> Description:
    """Return dal's attributes of a pool; empty where there are none."""
    described = group.attrs.get(ATTRIBUTE)
    return dict(described) if isinstance(described, Mapping) else {}


def seen(group: zarr.Group) -> Description:
    """Return the description of a pool without the note of an append that is under way."""
    described = description(group)
    described.pop(APPENDING, None)
    return described


def damaged_key(described: Description) -> str | None:
    """Return the first key of a description that holds no valid value; None where all do."""
    made_from = described.get("made_from", {})
    features = made_from.get("features", []) if isinstance(made_from, dict) else None
    kinds = described.get("kinds", {})
    sound = {
        "complete": isinstance(described.get("complete"), bool),
        "version": type(described.get("version")) is int,
        "n_rows": type(described.get("n_rows")) is int and described["n_rows"] >= 0,
        "fields": _are_texts(described.get("fields", [])),
        "kinds": isinstance(kinds, dict) and _are_texts(list(kinds.values())) and set(kinds.values()) <= set(KINDS),
        "made_from": _are_texts(features),
        "evidence": "evidence" not in described or _is_evidence(described["evidence"]),
        "id_hash": isinstance(described.get("id_hash", ""), str),
        "index": re.fullmatch(rf"{INDEX}(_\d+)?", str(described.get("index", INDEX))) is not None,
    }
    return next((name for name, is_sound in sound.items() if not is_sound), None)


def _is_evidence(values: object) -> bool:
    kinds = {"chosen": str, "kept": dict, "refused": dict, "sampled": int, "read": int, "whole": bool}
    if not isinstance(values, dict) or not all(type(values.get(name)) is kind for name, kind in kinds.items()):
        return False
    return all(isinstance(share, int | float) and 0 <= share <= 1 for share in values["kept"].values())


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def array_of(where: Place, group: zarr.Group, name: str) -> "zarr.Array[Any]":
    """Return an array of a pool.

    Parameters
    ----------
    where : Path or Url
        The pool, for messages.
    group : zarr.Group
        The pool's group.
    name : str
        Path of the array in the group.

    Raises
    ------
    PoolError
        The array is missing, or is a group.
    """
    try:
        array = group[name]
    except (KeyError, ValueError) as error:
        raise PoolError(f"{where}: the array {name!r} is missing; restore it, or build the pool again") from error
    if not isinstance(array, zarr.Array):
        raise PoolError(f"{where}: {name!r} must be an array, got a group; restore it, or build the pool again")
    return array


class Pool:
    """The records of a pool, read in place. Small and picklable: it carries opened arrays, never data.

    Returned by `Pool.build` and `Pool.open`.

    Attributes
    ----------
    place : Path or Url
        Where the pool lies; `path` is the same as text.
    n_rows : int
        Number of records.
    record_shape : tuple of int
        ``(d,)`` or ``(h, w, c)``.
    n_features : int
        Product of `record_shape`; the width of what `read` and `take` return.
    dtype : numpy.dtype
        Stored type; reads return float32.
    encoding : str
        Meaning of the stored values: the name of `dtype`, or ``"bfloat16"`` for uint16 that holds the upper halves of
        float32, or ``"int8"`` in a pool that dal built for whole steps of the feature's scale.
    chunk_rows : int
        Rows of a chunk (of an inner chunk where there are shards).
    write_rows : int
        Rows of a shard, or of a chunk where there are no shards.
    nbytes : int
        Size of the stored records in bytes, before compression.
    fingerprint : str
        Identity of the pool. In a pool that dal built, drawn at random when its build began. For a plain Zarr array,
        a digest of shape, dtype and chunking alone: the values do not enter.
    fields : tuple of str
        Names of the display fields.
    kinds : dict of str to str
        Kind of each display field: "text", "integer", "number" or "boolean". Integers and booleans may have gaps,
        which are None. Empty in pools that do not store kinds.
    feature_names : tuple of str
        Columns of the table that became the features: one for each feature, or one of lists, or one of texts. Empty
        in pools built from arrays or pictures.
    left_out : tuple of str
        Columns of the table that were taken for its index and so left out of the features.
    encoder : str or None
        Id of the encoder that made the features, where one did.
    has_pictures : bool
        Whether it holds a small picture of each record, see `pictures`: in pools of encoded pictures.
    unencoded : mapping
        The records that could not be encoded: their ``count``, and as ``named`` row, id and cause of the first ones.
    evidence : mapping
        In a pool that was built by ``dtype="auto"``, the attributes of the :class:`dal.pool.narrowing.Evidence` for its
        type; empty in others.
    packing : Packing or None
        Conversion of a plain array's values, where its attributes ask for one.
    missing_chunks : {"refuse", "fill"}
        As passed to `open`; a pool that dal built always refuses.
    """

    def __init__(self, place: Place, features: "zarr.Array[Any]", group: zarr.Group | None, *, fill: bool) -> None:
        self.place = place
        self._features = features
        self._group = group
        # Other programs pack values by attributes; dal's own pools have encodings.
        self.packing = None if group is not None else Packing.of(place, np.dtype(features.dtype), dict(features.attrs))
        self.missing_chunks: Missing = "fill" if fill else "refuse"
        self._fill = fill
        self._described = described = {} if group is None else seen(group)
        self._has_ids = bool(described.get("has_ids"))
        self._index = described.get("index", INDEX)
        self._id_hash = described.get("id_hash", ids.HASH_OF_OLD)
        fields = described.get("fields", ())
        self.fields: tuple[str, ...] = tuple(name for name in fields if name != PICTURE)
        self.kinds: dict[str, str] = {
            name: kind for name, kind in described.get("kinds", {}).items() if name != PICTURE
        }
        self.has_pictures = PICTURE in fields
        made_from = described.get("made_from", {})
        text = made_from.get("text")
        self.feature_names: tuple[str, ...] = (text,) if text else tuple(made_from.get("features", ()))
        self.left_out: tuple[str, ...] = tuple(made_from.get("left_out", ()))
        self.encoder: str | None = made_from.get("encoder")
        self.unencoded: Mapping[str, Any] = described.get("unencoded", {})
        self.evidence: Mapping[str, Any] = described.get("evidence", {})
        self.fingerprint: str = described.get("fingerprint") or _digest(features)
        # While records are being appended, the arrays may be longer than the number of rows in the description.
        self.n_rows = int(described.get("n_rows", features.shape[0]))
        self.record_shape = tuple(int(length) for length in features.shape[1:])
        self.n_features = int(np.prod(self.record_shape))
        self.dtype: np.dtype[Any] = np.dtype(features.dtype)
        self.encoding: str = described.get("encoding", self.dtype.name)
        self.chunk_rows = int(features.chunks[0])
        self.write_rows = int((features.shards or features.chunks)[0])
        self.nbytes = self.n_rows * self.n_features * self.dtype.itemsize

    @property
    def path(self) -> str:
        """Absolute path, or URL, as text that opens the pool again."""
        return str(self.place)

    @classmethod
    def build(
        cls,
        source: object,
        path: str | Path | Url,
        *,
        ids: Sequence[str | int] | npt.NDArray[Any] | str | None = None,
        features: Sequence[str] | None = None,
        display: Mapping[str, Any] | Sequence[str] = (),
        text: str | None = None,
        vectoriser: object = None,
        header: bool | None = None,
        size: tuple[int, int] | None = None,
        background: str | None = None,
        encoder: object = None,
        images: bool = False,
        client: Any = None,  # noqa: ANN401 - a Client of Dask
        dtype: str | None = None,
        sizes: Sizes = SIZES,
        overwrite: bool = False,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> "Pool":
        """Build a pool in bounded memory; run again after an interruption, it resumes.

        Features of all types are stored as float32: float64 is rounded, integers beyond 2**24 lose digits, null becomes
        NaN. Arrays and blocks of uint8 stay uint8. NaN is allowed; scans count such records and never ask for them. A
        narrower `dtype` makes the pool smaller and less exact; reads return float32 all the same.

        Parameters
        ----------
        source : object
            An array (N, d) or (N, h, w, c) of NumPy or Dask, or any object that can be sliced by rows; a DataFrame of
            pandas, Dask or Polars, a table of pyarrow; the path of a ``.npy``, ``.parquet``, ``.pq``, ``.csv``,
            ``.tsv``, ``.arrow`` or ``.feather`` file, of a folder that `datasets` saved, or of a folder of pictures,
            whose record ids are the paths below it; or an iterable of `Block`, which cannot be resumed. Dask
            collections are computed some chunks, or one partition, at a time, by the Dask client of this process, if
            there is one. Apart from an encoder, nothing else of a build could use a client: blocks are read and written
            one after another, in bounded memory.
        path : str, Path or Url
            Where to write the pool: a path, or the URL of a store.
        ids : sequence of str or int, or str, optional
            Record ids, text or integers: one a row for arrays, the name of a column, or of the index of a DataFrame,
            for tables. Default: row numbers.
        features : sequence of str, optional
            For tables, the feature columns: numbers, or one column of lists of one length. Default: all columns other
            than ids, display fields and index, and then every one of them must be numeric; `Pool.feature_names` lists
            them.
        display : mapping of str to sequence, or sequence of str, optional
            Fields to show to annotators: a dict of name to values for arrays, names of columns for tables. Fields of
            CSV files keep their text. Integers and booleans may have gaps.
        text, vectoriser : str and object, optional
            For tables, a column of texts and the transformer that turns them into features: one of scikit-learn, dense
            or with few columns, such as TF-IDF and a truncated SVD. An unfitted one is cloned and fitted on a sample of
            50,000 texts, the same sample every time. Annotators see the text.
        header : bool, optional
            For CSV files, whether the first line names the columns; without names they are f0, f1, ... Default: it
            does, and a file whose first line holds numbers is refused.
        size : tuple of int, optional
            For pictures, height and width in pixels to resize all to. Default: they must all have one size.
        background : str, optional
            For pictures, the colour behind transparent pixels, such as "black" or "#336699". Default: white.
        encoder : Encoder, optional
            Turns texts (with `text`) or pictures (with `images`) into features, once, see :mod:`dal.encoders`. The pool
            keeps its id. A record that cannot be decoded, or an empty text, is kept as missing and never asked.
        images : bool, default=False
            With `encoder`: the source is a folder of pictures, or of tar files of pictures, or an array of them,
            (N, h, w, c) of uint8. The pool keeps a small one of each, see `pictures`.
        client : distributed.Client, optional
            With `encoder`: workers that encode; each process loads the model once. Default: this process.
        dtype : str, optional
            Stored type of the features, each rounded to float32 first. ``"float32"``; ``"float16"`` and ``"bfloat16"``,
            rounded to nearest even, with values beyond their range infinite; ``"int8"``, 127 steps to each side of zero
            for each feature; ``"uint8"``, for whole numbers from 0 to 255. int8 needs an extra pass over the source, so
            no iterable of `Block`; int8 and uint8 refuse NaN. ``"auto"``, the narrowest of int8, float16 and float32
            that leaves the scores of a sample as they are, see :mod:`dal.pool.narrowing`; it takes the same extra pass,
            but looks at the first records alone of a source that can be read or encoded only once, and keeps uint8.
            `Pool.evidence` has the figures. Default: float32, or uint8 for a source of uint8.
        sizes : Sizes, optional
            Of the chunks and shards that are written, and of what is read and sorted at a time, such as
            ``Sizes(chunk_bytes=4 * 2**20)``. The defaults suit files and object stores alike.
        overwrite : bool, default=False
            Replace the pool at `path`, finished or not. Anything other than a pool is never replaced.
        progress : callable, optional
            Called with the number of rows done and of all rows (None where that is not known beforehand).

        Returns
        -------
        Pool
            The finished pool, opened.

        Raises
        ------
        SourceError
            The source cannot be used. Faults of its schema are refused before anything is written; a bad row stops the
            build and leaves a pool that is marked incomplete.
        PoolError
            Something else is at `path`, or the disk is full.

        Examples
        --------
        >>> import numpy, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> pool = Pool.build(numpy.eye(3), f"{folder.name}/pool.zarr", ids=["a", "b", "c"])
        >>> pool.take([2, 0]).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
        >>> pool.rows_of(["c", "unknown"]).tolist()
        [2, -1]
        >>> folder.cleanup()
        """
        from dal.pool.build import Options, build

        how = Options(
            ids, features, display, text, vectoriser, header, size, background, encoder, images, client, sizes
        )
        return build(source, place_of(path), how, dtype=dtype, overwrite=overwrite, progress=progress)

    @classmethod
    def open(cls, path: str | Path | Url, *, missing_chunks: Missing = "refuse") -> "Pool":
        """Open a pool that dal built, or a plain Zarr array.

        A plain array has its row numbers as record ids, and no display fields.

        Parameters
        ----------
        path : str, Path or Url
            Path, or URL of any store that Zarr opens.
        missing_chunks : {"refuse", "fill"}, default="refuse"
            Meaning of a chunk of a plain array that is not stored: an error, or the array's fill value.

        Returns
        -------
        Pool

        Raises
        ------
        PoolNotFound
            Nothing is at `path`.
        PoolIncomplete
            The build of the pool was interrupted.
        PoolError
            `path` cannot be read as a pool.
        """
        where = place_of(path)
        with contextlib.ExitStack() as held:
            node = _opened(where, held, "", "features")
            if isinstance(node, zarr.Group):
                return opened_group(where, node)
        _refuse_shape(where, node)
        # A web server tells no names; there a missing chunk is refused when it is read.
        if missing_chunks == "refuse" and not str(where).startswith("http"):
            _refuse_holes(where, node)
        return cls(where, node, None, fill=missing_chunks == "fill")

    def __repr__(self) -> str:
        named = f", features {listed(self.feature_names)}" if self.feature_names else ""
        return f"Pool({self.path!r}, {self.n_rows} rows of {self.record_shape} {self.encoding}{named})"

    def head(self, n_rows: int) -> "Pool":
        """Return the pool of its first `n_rows` records, as it was before later appends.

        Parameters
        ----------
        n_rows : int
            From 1 to the number of records.

        Raises
        ------
        InputError
            The pool has fewer records.
        """
        if not 1 <= n_rows <= self.n_rows:
            raise InputError(f"`n_rows` must be from 1 to {self.n_rows}, the records of the pool, got {n_rows}")
        shorter = copy.copy(self)
        shorter.n_rows = n_rows
        shorter.nbytes = n_rows * self.n_features * self.dtype.itemsize
        return shorter

    def refreshed(self) -> "Pool":
        """Return the pool as it is now: this object, or a new one if records were appended since.

        Reads one small file, so it is cheap enough to call before every look-up.

        Raises
        ------
        PoolNotFound
            The pool no longer exists.
        PoolError
            Another pool lies there now: its rows are other records.
        """
        with contextlib.ExitStack() as held:
            now = _opened(self.place, held, "")
        if isinstance(now, zarr.Group):
            described = seen(now)
            if described == self._described and self._group is not None and self.n_rows == described["n_rows"]:
                return self
        self.check_same(now)
        return self if isinstance(now, zarr.Array) else opened_group(self.place, now)

    def check_same(self, now: "zarr.Array[Any] | zarr.Group") -> None:
        """Raise an error if another pool lies there now."""
        fingerprint = seen(now).get("fingerprint") if isinstance(now, zarr.Group) else _digest(now)
        if fingerprint != self.fingerprint:
            raise PoolError(
                f"{self.place} must be the pool that was opened, got another pool or array; restore it, or open the "
                "pool"
                " again"
            )

    def append(
        self,
        source: object,
        *,
        ids: Sequence[str | int] | npt.NDArray[Any] | str | None = None,
        features: Sequence[str] | None = None,
        display: Mapping[str, Any] | Sequence[str] = (),
        text: str | None = None,
        vectoriser: object = None,
        header: bool | None = None,
        size: tuple[int, int] | None = None,
        encoder: object = None,
        client: Any = None,  # noqa: ANN401 - a Client of Dask
        sizes: Sizes = SIZES,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> "Pool":
        """Append records at the end of a pool; existing records keep their rows.

        Pools that are open meanwhile go on showing the records of before. The new records become visible at once, when
        all are written and their ids are indexed. An append that is interrupted, or refused in the middle, leaves the
        pool unchanged, and starts over when run again; one of encoded records goes on from the last whole chunk.

        Parameters
        ----------
        source, ids, features, display, header, size
            As for `build`, and alike: the same shape, ids if the pool has ids, the same display fields. The columns of
            a table are found by the names in the pool, in any order, so they need not be named; other columns are left
            out. For a pool built from an array, columns are matched by their order, with a warning.
        text, vectoriser : str and object, optional
            As for `build`; the vectoriser is the one that the pool was built with, fitted.
        encoder, client : Encoder and distributed.Client, optional
            As for `build`; the encoder has the id of the one that the pool was built with.
        sizes : Sizes, optional
            As for `build`. The pool keeps its chunks and shards; its index of ids is written by these sizes.
        progress : callable, optional
            Called with the number of rows appended and of all rows to append (None where that is not known beforehand).

        Returns
        -------
        Pool
            The longer pool.

        Raises
        ------
        SourceError
            The source cannot be used, or an id exists already.
        PoolError
            There is no pool that can be appended to, or another process is appending to it.

        Examples
        --------
        >>> import numpy, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> before = Pool.build(numpy.eye(2), f"{folder.name}/pool.zarr", ids=["a", "b"])
        >>> after = before.append(numpy.ones((1, 2)), ids=["c"])
        >>> after.n_rows, before.n_rows, after.rows_of(["c"]).tolist()
        (3, 2, [2])
        >>> folder.cleanup()
        """
        from dal.pool.build import Options, append

        images = bool(self._described.get("made_from", {}).get("images"))
        how = Options(ids, features, display, text, vectoriser, header, size, None, encoder, images, client, sizes)
        return append(self, source, how, progress=progress)

    def holes(self) -> tuple[int, int]:
        """Return the number of chunks (shards, where there are any) that are not stored, and of all expected ones."""
        return missing_chunks(self._features)

    @property
    def asks_missing(self) -> bool:
        """Whether records with missing features may be asked: where an encoder made them, it could not read these."""
        return self.encoder is None

    @property
    def is_remote(self) -> bool:
        """Whether the records come over a network, and are worth asking for ahead."""
        return isinstance(self.place, Url) and self.place.is_object_store

    @property
    def ahead_bytes(self) -> int:
        """Memory that a reader takes for what it fetches ahead, if it is allowed to; 0 where nothing is."""
        return AHEAD_BYTES if self.is_remote else 0

    def unit_rows(self, unit_bytes: int = UNIT_BYTES) -> int:
        """Return the rows that a reader reads at a time: whole chunks of at least `unit_bytes` together."""
        chunk_bytes = self.chunk_rows * self.n_features * self.dtype.itemsize
        return self.chunk_rows * min(max(1, -(-unit_bytes // chunk_bytes)), UNIT_CHUNKS)

    def read_ahead(self, unit_rows: int | None = None, budget: int = AHEAD_BYTES) -> ReadAhead | None:
        """Return what fetches records ahead, for readers of several threads; None where they come from this machine.

        Parameters
        ----------
        unit_rows : int, optional
            As for `Reader`.
        budget : int, optional
            Bytes that each reader may fetch ahead.
        """
        if not self.is_remote:
            return None
        rows = unit_rows or self.unit_rows()
        fetch = _Fetcher(self, rows)
        shard_units = self.write_rows // rows if fetch.objects and self.write_rows > self.chunk_rows else 0
        return ReadAhead(fetch, rows, rows * self.n_features * self.dtype.itemsize, shard_units, fetch.objects, budget)

    def reader(self, ahead: ReadAhead | None = None) -> "Reader":
        """Return a new reader; use one for each task or thread.

        Parameters
        ----------
        ahead : ReadAhead, optional
            Of this pool, where several readers share it.
        """
        return Reader(self, ahead=ahead)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return records [start, stop).

        Parameters
        ----------
        start, stop : int
            Rows.

        Returns
        -------
        ndarray of float32, shape (stop - start, n_features)

        Raises
        ------
        InputError
            The rows are not all in the pool.
        ChunkError
            A chunk is missing or damaged.
        """
        self._refuse_range(start, stop)
        records = np.empty((stop - start, self.n_features), dtype=np.float32)
        self.reader().read_into(start, records)
        return records

    def take(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return the records of `rows`, in the order asked; each chunk is read once.

        Parameters
        ----------
        rows : sequence of int
            Rows, in any order; may repeat.

        Returns
        -------
        ndarray of float32, shape (len(rows), n_features)

        Raises
        ------
        InputError
            A row is not in the pool.
        ChunkError
            A chunk is missing or damaged.
        """
        wanted = self._checked(rows)
        records = np.empty((len(wanted), self.n_features), dtype=np.float32)
        reader = Reader(self, unit_rows=self.chunk_rows)
        groups = list(grouped(wanted // self.chunk_rows))
        reader.expect_units([chunk for chunk, _ in groups])
        for chunk, positions in groups:
            records[positions] = reader.picked(chunk, wanted[positions] - chunk * self.chunk_rows)
        return records

    def record_ids(self, rows: Rows) -> list[str]:
        """Return the record ids of `rows`, in the order asked.

        Parameters
        ----------
        rows : sequence of int

        Raises
        ------
        InputError
            A row is not in the pool.
        ChunkError
            A chunk is missing or damaged.
        """
        wanted = self._checked(rows)
        if not self._has_ids:
            return [str(row) for row in wanted.tolist()]
        found: list[str] = take_rows(self._array("ids"), wanted).tolist()
        if "" in found:  # the fill value: ids have at least one character
            row = wanted[found.index("")]
            raise ChunkError(
                f"{self.path}: the record id of row {row} must not be empty; restore the chunk of `ids` that holds it"
            )
        return found

    def rows_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the rows of `record_ids`, in the order asked; -1 where the pool has no such record.

        Memory does not grow with the pool: one chunk of the index and one of the ids are held at a time.

        Parameters
        ----------
        record_ids : sequence of str

        Returns
        -------
        ndarray of int64, shape (len(record_ids),)

        Raises
        ------
        InputError
            An id is not a text.
        """
        strange = [record_id for record_id in record_ids if not isinstance(record_id, str)]
        if strange:
            raise InputError(f"`record_ids` must be str, got {type(strange[0]).__name__}: {strange[0]!r}")
        if self._has_ids:
            try:
                found = ids.find_rows(record_ids, self._array("ids"), self._index_arrays(), self._id_hash)
            except (PoolError, FileNotFoundError):  # two appends since the pool was opened have removed its index
                latest = self.refreshed()
                if latest._index == self._index:
                    raise
                found = ids.find_rows(record_ids, latest._array("ids"), latest._index_arrays(), latest._id_hash)
            return np.where(found < self.n_rows, found, -1)
        return np.array([self._row_named(record_id) for record_id in record_ids], dtype=np.int64)

    def display(self, rows: Rows, names: Sequence[str] | None = None) -> dict[str, list[object]]:
        """Return the display fields of `rows`: for each field its values, in the order asked.

        Parameters
        ----------
        rows : sequence of int
        names : sequence of str, optional
            The fields that are wanted; by default all.

        Returns
        -------
        dict of str to list

        Raises
        ------
        InputError
            A row is not in the pool.
        ChunkError
            A chunk is missing or damaged.
        """
        wanted = self._checked(rows)
        return {
            name: from_store(take_rows(self._array(field_path(name)), wanted), self.kinds.get(name))
            for name in (self.fields if names is None else names)
        }

    def pictures(self, rows: Rows) -> list[bytes | None]:
        """Return small pictures of `rows` for people, as JPEG or PNG files, in the order asked.

        Parameters
        ----------
        rows : sequence of int

        Returns
        -------
        list of bytes or None
            None for a record that could not be decoded.

        Raises
        ------
        InputError
            The pool holds no pictures beside its features, or a row is not in the pool.
        ChunkError
            A chunk is missing or damaged.
        """
        if not self.has_pictures:
            raise InputError(f"the pool must hold pictures beside its features, got {self.path} without any")
        found = take_rows(self._array(field_path(PICTURE)), self._checked(rows))
        return [base64.b64decode(text) if text else None for text in found.tolist()]

    def _index_arrays(self) -> ids.Index:
        hashes, rows, fence = (self._array(f"{self._index}/{name}") for name in ("hash", "row", "fence"))
        return hashes, rows, fence

    def _decoder(self) -> Decode:
        if self.packing is not None:
            return self.packing.unpack
        if self._group is None or self.encoding != "int8":  # int8 in a plain array is integers
            return decoder(self.encoding, None)
        return decoder(self.encoding, read_rows(self._array("scale"), 0, self.n_features))

    def _array(self, name: str) -> "zarr.Array[Any]":
        assert self._group is not None  # ids and fields exist in groups only
        return array_of(self.place, self._group, name)

    def _row_named(self, record_id: str) -> int:
        # int() also parses "007" and "٧", which are no record ids: compare the text.
        row = int(record_id) if record_id.isdecimal() and len(record_id) < 19 else -1
        return row if 0 <= row < self.n_rows and str(row) == record_id else -1

    def _refuse_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise InputError(f"rows must be from 0 to {self.n_rows}, the end of the pool, got rows {start} to {stop}")

    def _checked(self, rows: Rows) -> npt.NDArray[np.int64]:
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (len(wanted) and wanted.dtype.kind not in "iu"):
            raise InputError(f"`rows` must be a 1-D sequence of integers, got {wanted.ndim}-D {wanted.dtype}")
        outside = wanted[(wanted < 0) | (wanted >= self.n_rows)]
        if len(outside):
            raise InputError(f"`rows` must be from 0 to {self.n_rows - 1}, the rows of the pool, got {outside[0]}")
        return wanted.astype(np.int64)


class Reader:
    """A reader of a pool, tile by tile, that holds one decoded read unit. Not thread-safe: use one for each task.

    In ascending order every chunk is decoded once. What `read` returns is read-only and valid until the next call: it
    is a view of the held unit. Where a tile spans units, or is stored in another type than float32, it is a view of a
    buffer that the next tile overwrites.

    Parameters
    ----------
    pool : Pool
        The pool to read.
    unit_rows : int, optional
        Rows decoded at a time, a multiple of the pool's `chunk_rows`. Default: whole chunks of at least `unit_bytes`
        together, at most 1,024 of them.
    unit_bytes : int, default=8 MiB
    piece_bytes : int, default=256 KiB
        Of an uncompressed chunk in a local file, read and visited at a time.
    """

    # Buffers live as long as the reader: under the memory settings of Dask's nanny a fresh 16 MiB array for each chunk
    # costs more (page faults) than reading the chunk.

    def __init__(
        self,
        pool: Pool,
        unit_rows: int | None = None,
        ahead: ReadAhead | None = None,
        *,
        unit_bytes: int = UNIT_BYTES,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._pool = pool
        self._unit_rows = unit_rows or pool.unit_rows(unit_bytes)
        self._files = ChunkFiles.of(pool._features, fill=pool._fill, piece_bytes=piece_bytes)
        self._ahead = ahead or pool.read_ahead(self._unit_rows)
        self._objects = self._ahead.objects if self._ahead is not None else None
        if self._ahead is not None:
            self._ahead.join()
        self._who: Hashable = None
        self._decode = pool._decoder()
        self._as_stored = pool.dtype == np.float32 and pool.packing is None
        self._bytes = np.empty(0, dtype=np.uint8)
        self._number = -1
        self._arriving: Iterator[int] = iter(())
        self._ready = self._stored = 0
        self._held: npt.NDArray[Any] = np.empty((0, pool.n_features), dtype=pool.dtype)
        self._tile = np.empty((0, pool.n_features), dtype=np.float32)

    def expect(self, start: int, stop: int) -> None:
        """Prepare to read records [start, stop) in order: where they come over a network, fetch ahead.

        Parameters
        ----------
        start, stop : int
            Rows.
        """
        if self._ahead is not None and start < stop:
            self._who = self._ahead.expect_rows(start, stop)

    def expect_units(self, numbers: Sequence[int]) -> None:
        """Prepare to read these units in order."""
        if self._ahead is not None:
            self._who = tuple(numbers)
            self._ahead.expect(self._who, numbers)

    def forget(self, start: int, stop: int) -> None:
        """Cancel what was prepared for the records [start, stop)."""
        if self._ahead is not None:
            self._ahead.forget((start, stop))

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return records [start, stop); the array is read-only and valid until the next call.

        Parameters
        ----------
        start, stop : int
            Rows.

        Returns
        -------
        ndarray of float32, shape (stop - start, n_features)

        Raises
        ------
        ChunkError
            A chunk is missing or damaged.
        """
        records = self.read_in_blocks(start, stop, max(stop - start, 1), lambda *_: None)
        self.finish()
        return records

    def read_in_blocks(self, start: int, stop: int, height: int, visit: Visit) -> npt.NDArray[np.float32]:
        """Read like `read`, and visit each block of `height` records as soon as it is in the core's cache.

        A chunk's checksum stands at its end: blocks are verified only when a later chunk is asked for, or by `finish`.

        Parameters
        ----------
        start, stop : int
            Rows.
        height : int
            Records in a block.
        visit : callable
            Called with the position of a block's first record in the tile, and the block (read-only).
        """
        self._pool._refuse_range(start, stop)
        number = start // self._unit_rows
        base = number * self._unit_rows
        within = self._as_stored and start < stop <= base + self._unit_rows
        records = self._held[:0] if within else self._room(stop - start)
        for first in range(start, stop, height):
            last = min(first + height, stop)
            if within:
                records = self._upto(number, last - base)[start - base : stop - base]
            else:
                self._fill(first, records[first - start : last - start])
            block = records[first - start : last - start]
            block.flags.writeable = False
            visit(first - start, block)
        records = records.view()
        records.flags.writeable = False
        return records

    def finish(self) -> None:
        """Read the held unit to its end, and so verify its checksum.

        Raises
        ------
        ChunkError
            Records returned before are damaged.
        """
        if self._number >= 0:
            self._upto(self._number, self._stored)

    def read_into(self, start: int, target: npt.NDArray[np.float32]) -> None:
        """Fill `target` with the records from `start` on."""
        stop = start + len(target)
        self.expect(start, stop)
        try:
            self._fill(start, target)
            self.finish()
        finally:
            self.forget(start, stop)

    def _room(self, rows: int) -> npt.NDArray[np.float32]:
        if len(self._tile) < rows:
            self._tile = np.empty((rows, self._pool.n_features), dtype=np.float32)
        return self._tile[:rows]

    def _fill(self, start: int, target: npt.NDArray[np.float32]) -> None:
        done = 0
        while done < len(target):
            number, offset = divmod(start + done, self._unit_rows)
            count = min(len(target) - done, self._unit_rows - offset)
            self._decode(self._upto(number, offset + count)[offset : offset + count], target[done : done + count])
            done += count

    def picked(self, number: int, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return some records of one read unit as a new array.

        Parameters
        ----------
        number : int
            Number of the unit.
        offsets : ndarray of int64
            Positions in the unit.
        """
        stored = self.unit(number)[offsets]
        if self._as_stored:
            return stored
        records = np.empty(stored.shape, dtype=np.float32)
        self._decode(stored, records)
        return records

    def unit(self, number: int) -> npt.NDArray[Any]:
        """Return the records of one read unit in the stored type; read-only, valid until another unit is asked for."""
        self._upto(number, 0)
        self.finish()
        return self._held

    def _upto(self, number: int, rows: int) -> npt.NDArray[Any]:
        """Return the records of one read unit, with at least the first `rows` read."""
        if number != self._number:
            self.finish()
            self._begin(number)
        try:
            while self._ready < rows:
                self._ready = next(self._arriving)
        except BaseException:
            self._number = -1  # the buffer is half overwritten
            raise
        return self._held

    def _begin(self, number: int) -> None:
        self._number = -1
        pool, start = self._pool, number * self._unit_rows
        stop = min(start + self._unit_rows, pool.n_rows)
        if self._objects is not None and self._ahead is not None:
            stored = self._ahead.take(self._who, number)
            chunk, pieces = start // pool.chunk_rows, self._objects.pieces(stored)
            if pieces is not None:
                self._held = pieces.view(pool.dtype).reshape(-1, pool.n_features)[: stop - start]
                self._ready, self._stored = 0, pool.chunk_rows
                checked, size = self._objects.checking(chunk, stored[0]), len(pieces)
                self._arriving = (count * pool.chunk_rows // size for count in checked)
            else:
                objects = self._objects
                self._receive(start, stop, lambda at, chunk, into: objects.reading(chunk, stored[at], into))
        elif self._ahead is not None:
            self._held = self._held[:0].copy()
            self._held = self._ahead.take(self._who, number)
            self._ready = self._stored = stop - start
        elif self._files is None:
            self._held = self._held[:0].copy()  # freed first, so that the next unit can take its memory
            self._held = read_rows(pool._features, start, stop, fill=pool._fill).reshape(stop - start, -1)
            self._ready = self._stored = stop - start
        else:
            files = self._files
            self._receive(start, stop, lambda _, chunk, into: files.reading(chunk, into))
        self._held.flags.writeable = False
        self._number = number

    def _receive(self, start: int, stop: int, reading: "_Reading") -> None:
        """Make the buffer ready for rows [start, stop), and begin to fill it."""
        pool = self._pool
        chunks = range(start // pool.chunk_rows, -(-stop // pool.chunk_rows))
        record_bytes = pool.n_features * pool.dtype.itemsize
        if len(self._bytes) < len(chunks) * pool.chunk_rows * record_bytes:
            self._bytes = np.empty(len(chunks) * pool.chunk_rows * record_bytes, dtype=np.uint8)
        # The last chunk is stored at its full height: beyond the last row it is padding.
        self._ready, self._stored = 0, len(chunks) * pool.chunk_rows
        held = self._bytes[: self._stored * record_bytes].view(pool.dtype).reshape(-1, pool.n_features)
        self._held = held[: stop - start]
        self._arriving = _rows_read(reading, chunks, self._bytes, pool.chunk_rows, record_bytes)


_Reading = Callable[[int, int, npt.NDArray[Any]], Iterator[int]]
"""Fills an array with the chunk at a position, of a number, and yields how many of its bytes are there so far."""


# Not a method: the reader holds this generator, which stops at its last chunk. If it held the reader in turn, the
# buffers of readers that are done would stay until the garbage collector comes, which counts objects, not bytes.
def _rows_read(
    reading: _Reading, chunks: range, into: npt.NDArray[Any], chunk_rows: int, record_bytes: int
) -> Iterator[int]:
    """Fill a buffer with chunks, and yield the number of rows read so far."""
    size = chunk_rows * record_bytes
    for at, chunk in enumerate(chunks):
        for count in reading(at, chunk, into[at * size : (at + 1) * size]):
            yield (at * size + count) * chunk_rows // size


class _Fetcher:
    """Fetches read units of a pool: of each its chunks as they are stored, or, where only Zarr can read them, rows."""

    def __init__(self, pool: Pool, unit_rows: int) -> None:
        self._pool = pool
        self._unit_rows = unit_rows
        self.objects = ChunkObjects.of(pool._features, fill=pool._fill)

    def __call__(self, units: range, seconds: float) -> "Future[list[Any]]":
        """Begin to fetch units after some seconds."""
        pool, step = self._pool, self._unit_rows // self._pool.chunk_rows
        n_chunks = -(-pool.n_rows // pool.chunk_rows)
        if self.objects is None:
            return _READERS.submit(lambda: list(map(self._rows, units)))
        chunks = [range(n * step, min((n + 1) * step, n_chunks)) for n in units]
        return begun(_of_units(self.objects, chunks, seconds))

    def _rows(self, number: int) -> npt.NDArray[Any]:
        pool, start = self._pool, number * self._unit_rows
        stop = min(start + self._unit_rows, pool.n_rows)
        return read_rows(pool._features, start, stop, fill=pool._fill).reshape(stop - start, -1)


_READERS = ThreadPoolExecutor(4, "dal-read")
"""Threads in which Zarr reads ahead what dal cannot decode by itself."""


async def _of_units(objects: ChunkObjects, units: list[range], seconds: float) -> list[list[Stored]]:
    if seconds > 0:
        await asyncio.sleep(seconds)
    found = iter(await objects.fetched(itertools.chain.from_iterable(units)))
    return [list(itertools.islice(found, len(unit))) for unit in units]


def opened_group(where: Place, group: zarr.Group) -> Pool:
    """Return the pool of an open Zarr group; refuse one that is not a finished pool."""
    return Pool(where, _features_of(where, group), group, fill=False)


def _opened(where: Place, held: contextlib.ExitStack, *nodes: str) -> "zarr.Array[Any] | zarr.Group":
    """Open what lies at a place; while `held` is open, an object store is asked once for the metadata of `nodes`."""

    def store() -> Any:  # noqa: ANN401 - as `for_zarr`
        found = for_zarr(where)
        if isinstance(found, ZarrObjects):
            held.enter_context(found.remembering(*nodes))
        return found

    return opened_at(where, store)


def opened_at(where: Place, store: Callable[[], Any]) -> "zarr.Array[Any] | zarr.Group":
    """Open what lies at a place, for reading, by the place as Zarr takes it."""
    try:
        if isinstance(where, Path) and (archive := _archive_of(where)) is not None:
            return _opened_within(archive, "/".join(where.relative_to(archive).parts))
        return zarr.open(store(), mode="r")
    except PoolError:
        raise
    except FileNotFoundError as error:
        raise PoolNotFound(f"no pool at {where}; build one with `dal pool build`, or check the path") from error
    except NotInstalled as error:  # it names the line to install
        raise PoolError(f"{where}: {error}") from error
    except ImportError as error:
        raise PoolError(
            f"{where}: this kind of store needs more packages: {error}; {install_line('remote')}"
        ) from error
    except (ValueError, KeyError, TypeError, BadZipFile) as error:
        raise PoolError(f"{where}: the metadata cannot be read: {error}") from error
    except OSError as error:
        raise PoolError(
            f"{where}: {error.strerror or error} ({error.filename}); remedy that, and run the same again"
        ) from error


def _archive_of(where: Path) -> Path | None:
    """Return the ZIP archive that a path leads through; None where there is no file on the way."""
    file = next((path for path in (where, *where.parents) if path.is_file()), None)
    if file is not None and not is_zipfile(file):
        raise PoolError(
            f"a pool must be a folder, a ZIP archive that Zarr wrote, or a URL, got the file {file}; build a pool of "
            "it "
            "first: dal pool build"
        )
    return file


def _opened_within(archive: Path, path: str) -> "zarr.Array[Any] | zarr.Group":
    try:
        return zarr.open(ZipStore(archive, mode="r", read_only=True), path=path, mode="r")
    except FileNotFoundError as error:
        with ZipFile(archive) as file:
            names = [name.rpartition("/") for name in file.namelist()]
        nodes = sorted({folder for folder, _, name in names if name in ("zarr.json", ".zarray", ".zgroup")})
        raise PoolNotFound(
            f"no pool at {path or 'the root'} of {archive}; "
            + (f"open one of {listed([f'{archive}/{node}' for node in nodes])}" if nodes else "Zarr did not write it")
        ) from error


def _arrays_in(where: Place, group: zarr.Group) -> str:
    """Return a text that lists the arrays of a group, at any depth, with shapes and types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr warns of every file that is not its own
        members = group.members(max_depth=_DEPTH)
    found = [
        f"{where}/{path} {node.shape} {node.dtype}" for path, node in sorted(members) if isinstance(node, zarr.Array)
    ]
    return f"open one of its arrays: {listed(found)}" if found else "it holds no array"


def _features_of(where: Place, group: zarr.Group) -> "zarr.Array[Any]":
    described = description(group)
    if not described:
        raise PoolError(f"{where} must be a pool that dal built, got another Zarr group; {_arrays_in(where, group)}")
    if (wrong := damaged_key(described)) is not None:
        raise PoolError(
            f"{where}: its description is damaged ({wrong}); restore zarr.json from a copy, or build the pool again"
        )
    if described["version"] not in VERSIONS:
        raise PoolError(
            f"{where} must have one of the pool formats {VERSIONS}, got {described['version']}; use a newer dal"
        )
    if not described["complete"]:
        of = described.get("source_rows") or "an unknown number of"
        raise PoolIncomplete(f"{where} holds {described['n_rows']} of {of} rows; run the same build again to resume it")
    if described.get("encoding") not in (None, *ENCODINGS):
        raise PoolError(
            f"{where} must store features by a known encoding, got {described['encoding']!r}; use a newer dal"
        )
    if (known_as := described.get("id_hash", ids.HASH_OF_OLD)) not in ids.HASHES:
        raise PoolError(f"{where} must index its ids by a known hash, got {known_as!r}; use a newer dal")
    features = group.get("features")
    if not isinstance(features, zarr.Array):
        raise PoolError(f"{where}: the array 'features' is missing; restore it, or build the pool again")
    if features.shape[0] < described["n_rows"]:
        raise PoolError(
            f"{where} must have {described['n_rows']} rows of features, got {features.shape[0]}; build it again"
        )
    return features


def _refuse_shape(where: Place, array: "zarr.Array[Any]") -> None:
    if len(array.shape) not in (2, 4):
        raise PoolError(f"{where} must have shape (N, d), or (N, h, w, c) for images, got {array.shape}")
    if 0 in array.shape:
        raise PoolError(f"{where} must have records and features, got the empty shape {array.shape}")
    if np.dtype(array.dtype).kind not in "fiub":
        raise PoolError(f"{where} must hold numbers or booleans, got {array.dtype}; encode or vectorise first")


def _refuse_holes(where: Place, array: "zarr.Array[Any]") -> None:
    missing, expected = missing_chunks(array)
    if missing:
        raise PoolError(
            f"{where}: {missing} of {expected} chunks are not stored; restore them, or pass missing_chunks='fill' if "
            "they "
            f"mean the fill value {array.fill_value}, as Zarr and Dask leave out chunks of zeros (--missing-chunks "
            "fill, "
            'or missing_chunks = "fill" in campaign.toml)'
        )


def _digest(array: "zarr.Array[Any]") -> str:
    # Only attributes that all versions of Zarr agree on: the full metadata gain keys from version to version.
    layout = [array.shape, np.dtype(array.dtype).str, array.chunks, array.shards]
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:32]
