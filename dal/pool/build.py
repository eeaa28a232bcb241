"""Building a pool: layout, writing in whole units, going on after an interruption.

Rows are written unit by unit (a shard, or a chunk where there are no shards), and the number of rows that are safely
written is kept in the pool's attributes. A build that is run again with the same source goes on from there; units
beyond that row are written once more. When all rows are in, the index of the ids is made and the pool is marked
complete.
"""

import contextlib
import errno
import itertools
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from dal.choices import ENCODINGS
from dal.errors import DalError, PoolError, SourceError
from dal.locks import locked
from dal.places import Nodes, NotOurs, Place, Url, for_zarr, names_at, place_of
from dal.pool.chunks import read_rows
from dal.pool.encodings import Encode, Floats32, encoder, scale_of
from dal.pool.fields import Values, field_path, kind_of, stored_type, to_store
from dal.pool.ids import HASH, is_bucket, sorted_entries
from dal.pool.pictures import Pictures, size_of
from dal.pool.sources import Block, Source, checked, open_source
from dal.pool.store import ATTRIBUTE, INDEX, VERSION, VERSIONS, Pool, array_of, damaged, description
from dal.pool.tables import ENDINGS, Rows, is_table, open_table
from dal.pool.texts import Texts

CHUNK_BYTES = 16 * 2**20
MAX_FILES = 4096
SHARD_CHUNKS = 16
# Ids and fields are looked up for some rows anywhere, and each row costs the decoding of a chunk: these are small.
FIELD_ROWS = 2**12
INDEX_ROWS = 2**17

_ARRAYS = ("features", "ids", "fields", "scale")
_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
"""Names of files that Zarr writes before it renames them."""

Progress = Callable[[int, int | None], None]
_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def build_pool(
    source: Any,  # noqa: ANN401 - see Parameters
    path: str | Path | Url,
    *,
    ids: Sequence[str | int] | npt.NDArray[Any] | str | None = None,
    features: Sequence[str] | None = None,
    display: Mapping[str, Values] | Sequence[str] = (),
    text: str | None = None,
    vectoriser: object = None,
    header: bool | None = None,
    size: tuple[int, int] | None = None,
    background: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Pool:
    """Build a pool in bounded memory; run again after an interruption, it goes on where it was.

    Features are stored as float32, whatever their type: float64 is rounded, integers beyond 2**24 lose digits, null
    is NaN. Arrays and blocks of uint8 stay uint8. NaN is allowed; such records are counted by scans and never asked.
    A narrower `dtype` makes the pool smaller and less exact; what is read is float32 all the same.

    Parameters
    ----------
    source
        An array (N, d) or (N, h, w, c) of NumPy or Dask, or what gives slices of rows like one; a DataFrame of pandas,
        Dask or Polars, a table of pyarrow; the path of a ``.npy``, ``.parquet``, ``.pq``, ``.csv`` or ``.tsv`` file, or
        of a folder of pictures, whose record ids are the paths below it; or an iterable of `Block`, which cannot be
        resumed. Of Dask some chunks, or one partition, are computed at a time.
    path
        Where the pool goes: a path, or the URL of a store.
    ids
        Record ids, text or integers: one a row for arrays, the name of a column, or of the index of a DataFrame, for
        tables. Default: row numbers.
    features
        For tables, the feature columns: numbers, or one column of lists of one length. Default: all that are neither
        ids nor display nor an index, and then every one of them must be numeric; `Pool.feature_names` tells them.
    display
        Fields to show to annotators: a dict of name to values for arrays, names of columns for tables. In CSV files
        they keep their text. Integers and booleans may have gaps.
    text, vectoriser
        For tables, a column of texts and what makes features of it: a transformer of scikit-learn, dense or with few
        columns, such as TF-IDF and a truncated SVD. One that is not fitted is copied and fitted on 50,000 of the texts,
        the same ones every time. The text is shown to annotators.
    header
        For CSV files, whether the first line names the columns; where it does not, they are f0, f1, ... Default: it
        does, and a file whose first line holds numbers is refused.
    size
        For pictures, height and width that all are resized to. Default: they must have one size.
    background
        For pictures, the colour that is seen through transparent pixels, such as "black" or "#336699". Default: white.
    dtype
        How features are stored, each rounded to float32 first. ``"float32"``; ``"float16"`` and ``"bfloat16"``, rounded
        to nearest even, where what is beyond their range becomes infinite; ``"int8"``, 127 steps to each side of zero
        for each feature; ``"uint8"``, for whole numbers from 0 to 255. int8 takes one more pass over the source, so not
        an iterable of `Block`; it and uint8 refuse NaN. Default: float32, or uint8 where the source is.
    overwrite
        Replace the pool at `path`, finished or not. What is not a pool is never replaced.
    progress
        Called with the rows done and the rows in all (None where that is not known beforehand).

    Returns
    -------
    Pool
        The finished pool, opened.

    Raises
    ------
    SourceError
        The source cannot be used. What its schema tells is refused before anything is written; a bad row stops the
        build and leaves a pool that says that it is incomplete.
    PoolError
        There is something else at `path`, or the disk is full.

    Examples
    --------
    >>> import numpy, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> pool = build_pool(numpy.eye(3), f"{folder.name}/pool.zarr", ids=["a", "b", "c"])
    >>> pool.take([2, 0]).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    >>> pool.rows_of(["c", "unknown"]).tolist()
    [2, -1]
    >>> folder.cleanup()
    """
    opened = _source(source, _Options(ids, features, display, text, vectoriser, header, size, background))
    _refuse_dtype(dtype, opened)
    identity = None if opened.identity is None else {**opened.identity, "stored": dtype}
    where = place_of(path)
    # Zarr leaves out chunks that hold nothing but the fill value, and a pool takes a missing chunk for a lost one.
    with _faults_told(where), zarr.config.set({"array.write_empty_chunks": True}), contextlib.ExitStack() as held:
        group = _existing(where)
        if group is not None:
            held.enter_context(_alone(where, tidy=True))
            group = _existing(where)  # as whoever held it left it
        build = _resumed(where, group, identity, overwrite=overwrite)
        start = build.rows if build else 0
        scale = None
        if dtype == "int8":
            scale = build.scale() if build else _scale(opened)
        blocks = checked(opened.blocks(start), start, encoder(dtype, scale), build.kinds if build else None)
        if build is None:
            head, n_rows = _head(blocks, opened.n_rows)
            encoding = dtype or head[0].features.dtype.name
            with _denial_told(where):
                if group is None:
                    held.enter_context(_alone_in_new(where))
                build = _created(
                    where, group, head[0], n_rows, opened, encoding=encoding, identity=identity, scale=scale
                )
            blocks = itertools.chain(head, blocks)
        with build.full_disk_told():
            build.write(blocks, progress)
            build.write_index()
            if isinstance(where, Path):  # last of all the pool is finished: a build that was killed can be run again
                _note(where).unlink(missing_ok=True)
            build.complete()
        return Pool.open(where)


def append_pool(
    source: Any,  # noqa: ANN401 - see Parameters
    path: str | Path | Url,
    *,
    ids: Sequence[str | int] | npt.NDArray[Any] | str | None = None,
    features: Sequence[str] | None = None,
    display: Mapping[str, Values] | Sequence[str] = (),
    text: str | None = None,
    vectoriser: object = None,
    header: bool | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Pool:
    """Add records at the end of a pool; those that are there keep their rows.

    Whoever has the pool open goes on seeing the records of then. What is added is seen all at once, when it is all
    written and its ids are indexed; an append that is interrupted, or refused in the middle, leaves the pool as it was,
    and is begun anew.

    Parameters
    ----------
    source, ids, features, display, header, size
        As for `build_pool`, and alike: the same shape, ids if the pool has ids, the same display fields. The columns of
        a table are found by the names that the pool has, in whatever order they are, so they need not be named; other
        columns are left out. Where the pool was made of an array, columns are matched by their order, with a warning.
    path
        A pool that dal built.
    text, vectoriser
        As for `build_pool`; the vectoriser is the one that the pool was built with, fitted.
    progress
        Called with the rows added and the rows to add (None where that is not known beforehand).

    Returns
    -------
    Pool
        The longer pool.

    Raises
    ------
    SourceError
        The source cannot be used, or an id is there already.
    PoolError
        There is no pool that can be appended to, or somebody else is appending to it.

    Examples
    --------
    >>> import numpy, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> before = build_pool(numpy.eye(2), f"{folder.name}/pool.zarr", ids=["a", "b"])
    >>> after = append_pool(numpy.ones((1, 2)), f"{folder.name}/pool.zarr", ids=["c"])
    >>> after.n_rows, before.n_rows, after.rows_of(["c"]).tolist()
    (3, 2, [2])
    >>> folder.cleanup()
    """
    where = place_of(path)
    with _faults_told(where):
        Pool.open(where)
        if isinstance(where, Path) and not where.is_dir():
            raise PoolError(f"{where} lies in a ZIP archive, which is only read; unpack it first")
        group = zarr.open(for_zarr(where), mode="r+")
    if not isinstance(group, zarr.Group):
        raise PoolError(f"{where} is a plain Zarr array: only pools that dal built can be appended to")
    state = description(group)
    given = _Options(ids, features, display, text, vectoriser, header, size, None)
    opened = _source(source, _by_name(where, state, source, given), state)
    if isinstance(opened, Texts) and not opened.fitted:
        raise SourceError(
            "a vectoriser that is not fitted would make other features than the pool's: pass the fitted one"
        )
    _tell_order(where, state.get("made_from", {}), opened)
    with _faults_told(where), zarr.config.set({"array.write_empty_chunks": True}), _alone(where):
        _remove_partial(where)
        build = _Build(where, zarr.open_group(for_zarr(where), mode="r+"))
        encode = encoder(state["encoding"], build.scale() if state["encoding"] == "int8" else None)
        blocks = build.checked(opened.blocks(0), encode)
        with build.full_disk_told():
            build.append(blocks, progress, opened.n_rows)
        return Pool.open(where)


def _note(where: Path) -> Path:
    return where.with_name(f".{where.name}.lock")


@contextlib.contextmanager
def _alone(where: Place, *, tidy: bool = False) -> Iterator[None]:
    """Keep a second writer of a local pool away; the system frees the lock when the process ends, however it ends.

    Parameters
    ----------
    where
        The pool; its folder is there.
    tidy
        Whether the file beside it that tells others which process holds it is deleted where the writing fails.
    """
    if isinstance(where, Url):
        yield
        return
    note = _note(where)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(where, note))
        except BlockingIOError as error:
            raise PoolError(f"process {error.strerror} is writing to {where}: wait for it to end") from error
        except OSError as error:
            raise PoolError(
                f"{where} cannot be locked: {error.strerror}; get write access to it and to the folder that it is in"
            ) from error
        try:
            yield
        except BaseException:
            if tidy:
                note.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _alone_in_new(where: Place) -> Iterator[None]:
    """Make the folder of a new pool and lock it; refuse one in which another process has begun a pool meanwhile."""
    if isinstance(where, Path):
        where.mkdir(parents=True, exist_ok=True)
    with _alone(where, tidy=True):
        if _existing(where) is not None:
            raise PoolError(f"another process has begun a pool at {where}: choose another path, or run the same again")
        yield


@dataclass(frozen=True)
class _Options:
    """How a source is to be read, as it was asked for."""

    ids: Values | str | None
    features: Sequence[str] | None
    display: Mapping[str, Values] | Sequence[str]
    text: str | None
    vectoriser: object
    header: bool | None
    size: tuple[int, int] | None
    background: str | None


def _source(source: object, how: _Options, state: Mapping[str, Any] | None = None) -> Source:
    """Recognise what a pool is to be built from, and refuse options of another kind of source."""
    if isinstance(source, str | os.PathLike):
        source = place_of(source)
    if isinstance(source, Url):
        raise SourceError(f"a pool is built from a file of this machine, got {source}: download it, or open it by Dask")
    folder = isinstance(source, Path) and source.is_dir()
    if not folder and (how.size is not None or how.background is not None):
        raise SourceError("size and background are for a folder of pictures")
    if (how.text is None) != (how.vectoriser is None):
        raise SourceError("text and vectoriser belong together (--text, --vectoriser): a column, and what reads it")
    if how.text is not None:
        if not is_table(source) or how.features is not None or not (how.ids is None or isinstance(how.ids, str)):
            raise SourceError(
                "text is a column of a table, such as a .parquet or .csv file, and takes the place of features"
            )
        return Texts(
            open_table(source, how.ids, None, how.display, text=how.text, header=how.header), how.text, how.vectoriser
        )
    if is_table(source):
        return open_table(source, how.ids, how.features, how.display, header=how.header)
    if how.header is not None:
        raise SourceError("header is for CSV files (--header, --no-header)")
    if not folder:
        return open_source(source, how.ids, how.features, how.display)
    if how.ids is not None or how.features is not None or len(how.display):
        raise SourceError("pictures have their paths for ids and no columns: pass neither ids, features nor display")
    assert isinstance(source, Path)
    _refuse_folder(source)
    told = (state or {}).get("made_from", {})
    size = how.size if how.size is not None else told.get("size")
    return Pictures(source, size_of(size), how.background or told.get("background"), told.get("mode"))


def _refuse_folder(path: Path) -> None:
    """Refuse folders that are no pictures but something that is known."""
    if any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
        raise SourceError(
            f"{path} is a Zarr store; an array of numbers is a pool as it is, and zarr.open(path) can be passed "
            "in Python"
        )
    tables = sorted(each.name for each in path.iterdir() if each.suffix.lower() in ENDINGS)
    if tables:
        raise SourceError(
            f"{path} holds {len(tables)} tables, such as {tables[0]}; a pool is built of one, or in Python of a frame "
            "of Dask: build_pool(dask.dataframe.read_parquet(folder), ...)"
        )


def _by_name(where: Place, state: Mapping[str, Any], source: object, given: _Options) -> _Options:
    """Take for a table's columns those that have the names that the pool keeps; refuse others."""
    told = state.get("made_from", {})
    if not is_table(source):
        return given

    def agreed(which: str, asked: object, known: object, *, same: bool) -> Any:  # noqa: ANN401
        if asked is not None and not same:
            raise SourceError(
                f"{where} was built with {which} {known!r}, and {asked!r} was asked for: columns are matched by name, "
                "so rename them in the source"
            )
        return known

    ids, text, features = given.ids, given.text, given.features
    if told.get("ids"):
        ids = agreed("ids", ids, told["ids"], same=str(ids) == told["ids"])
    if told.get("text") or told.get("features"):
        text = agreed("text", text, told.get("text"), same=text == told.get("text"))
    if told.get("features"):
        known = told["features"]
        asked = None if features is None else [str(name) for name in features]
        features = agreed("features", asked, known, same=asked is not None and sorted(asked) == sorted(known))
    shown = [str(name) for name in given.display if name != text]
    fields = [name for name in state["fields"] if name != text]
    display = agreed("display", shown or None, fields, same=sorted(shown) == sorted(fields))
    return replace(given, ids=ids, text=text, features=features, display=display)


def _tell_order(where: Place, told: Mapping[str, Any], opened: Source) -> None:
    """Warn where features are matched by their order, since one side has no names."""
    if isinstance(opened, Rows) and not told.get("features"):
        named = ", ".join(opened.columns.features)
        _log.warning("%s keeps no names of features: the columns %s are matched by their order", where, named)
    elif told.get("features") and not isinstance(opened, Rows):
        named = ", ".join(told["features"])
        _log.warning("%s has the features %s: a source without names is matched by its order", where, named)


@contextlib.contextmanager
def _faults_told(where: Place) -> Iterator[None]:
    """Say what a disk that fails means for a build or an append."""
    try:
        yield
    except DalError:
        raise
    except OSError as error:
        what = "no space left; free space" if error.errno in _FULL else f"{error.strerror or error}; mend that"
        file = f" ({error.filename})" if error.filename else ""
        raise PoolError(f"{where}: {what}, and run the same again{file}") from error


@contextlib.contextmanager
def _denial_told(where: Place) -> Iterator[None]:
    """Say that a pool cannot be made at a place, as on a file system that is read-only or full."""
    try:
        yield
    except OSError as error:
        raise PoolError(
            f"no pool can be made at {where}: {error.strerror or error}; choose a place that you may write to"
        ) from error


def _refuse_dtype(dtype: str | None, source: Source) -> None:
    if dtype is not None and dtype not in ENCODINGS:
        raise SourceError(f"a pool stores its features as one of {', '.join(ENCODINGS)}; got dtype {dtype!r}")
    if dtype == "int8" and source.single:
        raise SourceError(
            "int8 takes a first pass over the source, for the scale of each feature, and an iterable of Block or a "
            "stream is read only once; pass an array, a table or a file, or take bfloat16"
        )


def _scale(source: Source) -> Floats32:
    return scale_of(block.features for block in checked(source.blocks(0), 0, encoder("float32")))


def _existing(where: Place) -> zarr.Group | None:
    """Return the pool at `where`, finished or not; None where there is nothing."""
    try:
        group = zarr.open_group(for_zarr(where), mode="r")  # to write, Zarr would make a folder of what is not there
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(where, Path) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        if isinstance(where, Path) and where.exists() and not _is_begun(where):
            raise PoolError(
                f"{where} holds something that is not a pool; it is left alone, choose another path"
            ) from error
        return None
    if not description(group):
        raise PoolError(f"{where} is a Zarr group that is not a pool; it is left alone, choose another path")
    return zarr.open_group(for_zarr(where), mode="r+")


def _is_begun(folder: Path) -> bool:
    """Say whether a folder is empty, or holds nothing but what Zarr writes before a group's first file is whole."""
    return folder.is_dir() and all(
        _PARTIAL.fullmatch(path.name) and path.name.startswith("zarr.") and path.is_file() for path in folder.iterdir()
    )


def _remove_partial(where: Place) -> None:
    """Delete the files that Zarr was writing in a local pool when it was interrupted; stores of objects have none."""
    if isinstance(where, Url):
        return
    for name in ("", *_ARRAYS, *_indexes(where)):
        if name and (where / name).is_symlink():  # it leads out of the pool
            continue
        for folder, folders, files in os.walk(where / name):
            if not name:
                folders.clear()  # others may have put their own into the pool's folder
            for file in files:
                path = Path(folder) / file
                if _PARTIAL.fullmatch(file) and not path.is_symlink():
                    path.unlink()


def _resumed(
    where: Place, group: zarr.Group | None, identity: Mapping[str, Any] | None, *, overwrite: bool
) -> "_Build | None":
    """Return the interrupted build of the same source, or None to begin anew; refuses to replace anything else."""
    if group is None or overwrite:
        return None
    state = description(group)
    if (wrong := damaged(state)) is not None:
        raise PoolError(
            f"{where}: its description is damaged ({wrong}); pass overwrite=True (--overwrite) to replace it"
        )
    if state["complete"]:
        raise PoolError(
            f"{where} is a finished pool of {state['n_rows']} rows; pass overwrite=True (--overwrite) to replace it"
        )
    if state["version"] not in VERSIONS:
        raise PoolError(
            f"{where} has pool format {state['version']}, expected one of {VERSIONS};"
            " pass overwrite=True (--overwrite) to replace it"
        )
    if state["n_rows"] == 0:
        return None
    if identity is None:
        raise SourceError(
            f"{where} holds an interrupted build of {state['n_rows']} rows; this source has no identity by which to go "
            "on, pass overwrite=True (--overwrite) to begin anew"
        )
    if state["source"] != identity:
        raise SourceError(
            f"{where} holds an interrupted build of another source or dtype: {state['source']}, not {dict(identity)}; "
            "pass overwrite=True (--overwrite) to begin anew"
        )
    _remove_partial(where)
    return _Build(where, group)


def _head(blocks: Iterator[Block], n_rows: int | None) -> tuple[list[Block], int | None]:
    """Return the first blocks, and the number of rows if they are all: a small pool is laid out for its size."""
    head: list[Block] = []
    held = 0
    while not head or (n_rows is None and held < CHUNK_BYTES):
        block = next(blocks, None)
        if block is None:
            n_rows = sum(len(block.features) for block in head)
            break
        head.append(block)
        held += block.features.nbytes
    if not head:
        raise SourceError("the source has no rows; a pool has at least one")
    return head, n_rows


@dataclass(frozen=True)
class _Layout:
    """How the rows of an array lie in chunks and shards."""

    chunk_rows: int
    shard_rows: int | None

    @classmethod
    def of(cls, chunk_rows: int, n_rows: int | None) -> "_Layout":
        """Chunks of at most `chunk_rows`, a power of two; in shards where there would be too many files."""
        if n_rows is None:
            return cls(chunk_rows, None)
        chunk_rows = min(chunk_rows, 1 << (n_rows - 1).bit_length())
        many = -(-n_rows // chunk_rows) > MAX_FILES
        return cls(chunk_rows, chunk_rows * SHARD_CHUNKS if many else None)


def _feature_rows(record_bytes: int) -> int:
    return 1 << max(0, (CHUNK_BYTES // record_bytes).bit_length() - 1)


def _created(
    where: Place,
    group: zarr.Group | None,
    first: Block,
    n_rows: int | None,
    source: Source,
    *,
    encoding: str,
    identity: Mapping[str, Any] | None,
    scale: Floats32 | None,
) -> "_Build":
    """Lay out a new pool, in place of the one that is there."""
    state = {
        "version": VERSION,
        "complete": False,
        "n_rows": 0,
        "source_rows": n_rows,
        "fingerprint": secrets.token_hex(16),
        "fields": list(first.fields),
        "kinds": {name: kind_of(values) for name, values in first.fields.items()},
        "made_from": dict(source.told),
        "has_ids": first.ids is not None,
        "encoding": encoding,
        "source": identity,
    }
    if group is None:
        _remove_partial(where)
        group = zarr.create_group(for_zarr(where), attributes={ATTRIBUTE: state})
    else:  # marked incomplete first: whatever interrupts the removal, what is left is known as a pool to begin anew
        _remove_partial(where)
        own = _own(where, [*_ARRAYS, *_indexes(where)])
        group.attrs[ATTRIBUTE] = state
        own.delete()
    if scale is not None:
        _create(group, "scale", scale.dtype, _Layout.of(FIELD_ROWS, len(scale)), len(scale))[:] = scale
    record_shape = first.features.shape[1:]
    height = _feature_rows(first.features[:1].nbytes)
    _create(group, "features", first.features.dtype, _Layout.of(height, n_rows), n_rows, record_shape)
    if first.ids is not None:
        _create(group, "ids", np.dtype(object), _Layout.of(FIELD_ROWS, n_rows), n_rows)
    for name, values in first.fields.items():
        kind = kind_of(values)
        assert kind is not None  # `checked` gives every field one
        _create(group, field_path(name), stored_type(kind), _Layout.of(FIELD_ROWS, n_rows), n_rows)
    return _Build(where, group)


def _indexes(where: Place) -> list[str]:
    """Name the indexes of ids that builds and appends have made."""
    return [name for name in names_at(where) if re.fullmatch(rf"{INDEX}(_\d+)?", name)]


def _own(where: Place, names: Iterable[str]) -> Nodes:
    """Look through arrays of a pool that are to be deleted, before anything is."""
    try:
        return Nodes.found(where, names)
    except NotOurs as error:
        raise PoolError(f"{error}; nothing was deleted") from error


def _create(
    group: zarr.Group,
    name: str,
    dtype: np.dtype[Any],
    layout: _Layout,
    n_rows: int | None,
    record_shape: tuple[int, ...] = (),
) -> "zarr.Array[Any]":
    text = dtype.kind in "OT"
    plain = name == "features" or name.startswith(INDEX)
    return group.create_array(
        name,
        shape=(n_rows or 0, *record_shape),
        chunks=(layout.chunk_rows, *record_shape),
        shards=None if layout.shard_rows is None else (layout.shard_rows, *record_shape),
        dtype=str if text else dtype,
        # Embeddings and hashes hardly compress, and reading them uncompressed is several times faster.
        compressors=[Crc32cCodec()] if plain else [ZstdCodec(level=1, checksum=True)],
        fill_value=float("nan") if dtype.kind == "f" else None,
    )


def _kind(dtype: np.dtype[Any]) -> str:
    """Return the kind of a field in a pool that says nothing of kinds."""
    return {"b": "boolean", "i": "integer", "f": "number"}.get(dtype.kind, "text")


class _Column:
    """Appends to an array, writing whole units only until it is finished."""

    def __init__(self, array: "zarr.Array[Any]", rows: int = 0) -> None:
        self.array = array
        self.unit = int((array.shards or array.chunks)[0])
        self.rows = rows
        self._buffer: npt.NDArray[Any] = np.empty((self.unit, *array.shape[1:]), dtype=array.dtype)
        self._held = rows % self.unit
        if self._held:  # what is appended begins within a unit, which is written anew
            self._buffer[: self._held] = read_rows(array, rows - self._held, rows)

    def append(self, values: npt.NDArray[Any]) -> None:
        while len(values):
            part = values[: self.unit - self._held]
            self._buffer[self._held : self._held + len(part)] = part
            self._held += len(part)
            self.rows += len(part)
            values = values[len(part) :]
            if self._held == self.unit:
                self.flush()

    def flush(self) -> None:
        if self._held:
            if self.array.shape[0] < self.rows:  # the length of the source was not known
                self.array.resize((self.rows, *self.array.shape[1:]))
            self.array[self.rows - self._held : self.rows] = self._buffer[: self._held]
            self._held = 0


class _Build:
    """A pool being written; `rows` of it are safe."""

    def __init__(self, where: Place, group: zarr.Group) -> None:
        self._where = where
        self._group = group
        self._state = description(group)
        self.rows: int = self._state["n_rows"]

    def write(self, blocks: Iterator[Block], progress: Progress | None) -> None:
        """Write all rows, saving how far it is."""
        # Units are powers of two, so every one divides the largest.
        step = max(int((array.shards or array.chunks)[0]) for array in map(self._array, self._names()))
        rows = self.rows
        for rows in self._written(blocks):
            self._save(rows // step * step)
            if progress is not None:
                progress(rows, self._state["source_rows"])
        self._refuse_shorter(rows)
        self._save(rows)

    def append(self, blocks: Iterator[Block], progress: Progress | None, n_new: int | None) -> None:
        """Write rows behind those that are there; they are seen once they are all there and their ids are indexed."""
        for array in map(self._array, self._names()):
            if array.shape[0] > self.rows:  # left by an append that was interrupted
                array.resize((self.rows, *array.shape[1:]))
        before = rows = self.rows
        for rows in self._written(blocks):
            if progress is not None:
                progress(rows - before, n_new)
        if rows == before:  # the index in use has this number of rows in its name
            raise SourceError("the source has no rows to append")
        index = f"{INDEX}_{rows}"
        self._index_written(index, rows)
        old = self._state.get("index", INDEX)
        self._state |= {"n_rows": rows, "source_rows": rows, "index": index, "kinds": self.kinds}
        self._group.attrs[ATTRIBUTE] = self._state
        self.rows = rows
        # The index before stays for whoever has the pool open; those before it go.
        _own(self._where, set(_indexes(self._where)) - {index, old}).delete()

    def _written(self, blocks: Iterator[Block]) -> Iterator[int]:
        features = self._column("features")
        ids = self._column("ids") if self._state["has_ids"] else None
        fields = {name: self._column(field_path(name)) for name in self._state["fields"]}
        columns = [features, *([ids] if ids else []), *fields.values()]
        for block in blocks:
            features.append(block.features)
            if ids is not None and block.ids is not None:
                ids.append(np.asarray(block.ids))
            for name, column in fields.items():
                column.append(to_store(block.fields[name], name, column.array.dtype))
            yield features.rows
        for column in columns:
            column.flush()

    def write_index(self) -> None:
        """Write the sorted index of the ids, and refuse ids that repeat."""
        self._index_written(INDEX, self.rows)

    def _index_written(self, index: str, n_rows: int) -> None:
        if not self._state["has_ids"]:
            return
        _own(self._where, [index]).delete()  # of a build or an append that was interrupted
        layout = _Layout.of(INDEX_ROWS, n_rows)
        hashes, rows = (
            _Column(_create(self._group, f"{index}/{name}", np.dtype(kind), layout, n_rows))
            for name, kind in (("hash", np.uint64), ("row", np.int64))
        )
        fence = []
        with self._spill() as folder:
            for entries in sorted_entries(self._array("ids"), folder):
                firsts = entries["hash"][-hashes.rows % layout.chunk_rows :: layout.chunk_rows]
                fence.append(firsts.copy())  # a view would keep every bucket in memory
                hashes.append(entries["hash"])
                rows.append(entries["row"])
        hashes.flush()
        rows.flush()
        whole = np.concatenate(fence)
        layout = _Layout.of(INDEX_ROWS, len(whole))
        _create(self._group, f"{index}/fence", np.dtype(np.uint64), layout, len(whole))[:] = whole
        # Known with the index itself, in the one write of the attributes that follows.
        self._state |= {"version": VERSION, "id_hash": HASH}

    def scale(self) -> Floats32:
        """Return the scale of each feature by which the rows so far are stored."""
        array = self._array("scale")
        return read_rows(array, 0, array.shape[0])

    def complete(self) -> None:
        """Mark the pool as finished."""
        self._save(self.rows, complete=True)

    @contextlib.contextmanager
    def full_disk_told(self) -> Iterator[None]:
        """Say what a full disk means for the build."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise PoolError(
                f"{self._where}: no space left; free space and run again; it goes on from row {self.rows}"
            ) from error

    def _array(self, name: str) -> "zarr.Array[Any]":
        return array_of(self._where, self._group, name)

    def _names(self) -> list[str]:
        """Name the arrays that have a row for each record."""
        ids = ["ids"] if self._state["has_ids"] else []
        return ["features", *ids, *(field_path(name) for name in self._state["fields"])]

    @property
    def kinds(self) -> dict[str, str]:
        """Name the kind of each display field."""
        known = dict(self._state.get("kinds", {}))
        return {name: known.get(name) or _kind(self._array(field_path(name)).dtype) for name in self._state["fields"]}

    def checked(self, blocks: Iterator[Block], encode: Encode) -> Iterator[Block]:
        """Pass blocks on as they are stored, and refuse the first one if the pool is not made of such."""
        given = next(blocks, None)
        if given is None:
            raise SourceError("the source has no rows to append")
        if (given.ids is not None) != self._state["has_ids"]:
            which = "have ids, and these have none" if given.ids is None else "have none, and these have ids"
            raise SourceError(f"the records of {self._where} {which}")
        if set(given.fields) != set(self.kinds):
            raise SourceError(
                f"the display fields {list(self.kinds)} were expected, as in {self._where}; these are "
                f"{list(given.fields)}"
            )
        shape, expected = given.features.shape[1:], self._array("features").shape[1:]
        if shape != expected:
            raise SourceError(f"records of shape {expected} were expected, as in {self._where}; these have {shape}")
        return checked(itertools.chain([given], blocks), 0, encode, self.kinds)

    def _column(self, name: str) -> _Column:
        return _Column(self._array(name), self.rows)

    def _save(self, rows: int, *, complete: bool = False) -> None:
        if rows > self.rows or complete:
            self._state |= {"n_rows": rows, "complete": complete}
            self._group.attrs[ATTRIBUTE] = self._state
            self.rows = rows

    def _refuse_shorter(self, rows: int) -> None:
        expected = self._state["source_rows"]
        if expected not in (None, rows):
            raise SourceError(f"the source gave {rows} rows, {expected} were expected; it changed while it was read")

    @contextlib.contextmanager
    def _spill(self) -> Iterator[Path]:
        """Yield a folder beside the pool, or in the temporary folder where the pool is not local."""
        if isinstance(self._where, Url):
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
            return
        beside = self._where.with_name(f".{self._where.name}.ids")
        _remove_spill(beside)  # of a build that was killed
        beside.mkdir()
        try:
            yield beside
        finally:
            _remove_spill(beside)


def _remove_spill(folder: Path) -> None:
    """Delete a folder of buckets, if it holds nothing else."""
    if not folder.is_symlink() and not folder.exists():
        return
    own = [] if folder.is_symlink() or not folder.is_dir() else sorted(folder.iterdir())
    if folder.is_symlink() or not folder.is_dir() or not all(map(is_bucket, own)):
        raise PoolError(f"{folder} is needed for the ids, and holds something that dal did not write; move it")
    for path in own:
        path.unlink()
    folder.rmdir()
