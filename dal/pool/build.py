"""Building a pool: layout, writing in whole units, resuming after an interruption.

Rows are written unit by unit (a shard, or a chunk where there are no shards), and the number of rows that are safely
written is kept in the pool's attributes. A build that is run again with the same source resumes there, and so does an
append of encoded records; units beyond that row are written again. When all rows are in, the index of the ids is made
and the pool is marked complete.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import math
import os
import re
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from dal._distribution import needs
from dal.choices import AUTO, ENCODINGS
from dal.errors import DalError, PoolError, SourceError, StoreError
from dal.locks import locked
from dal.places import Nodes, NotOurs, Place, Url, for_zarr, names_at, place_of
from dal.pool._zarr import storing_all_chunks, whole
from dal.pool.chunks import ChunkFiles, ChunkObjects, read_rows
from dal.pool.encoded import TEXTS_AT_ONCE, Encoded, RawArrays, RawSource, RawTexts, joined
from dal.pool.encodings import Encode, Floats32, encoder, may_be_infinite, scale_of, scale_of_largest
from dal.pool.fields import Values, kind_of, to_store
from dal.pool.ids import HASH, is_bucket, sorted_entries
from dal.pool.narrowing import FIRST_ROWS, Evidence, dtype_by_evidence, rows_to_judge, sample_of
from dal.pool.sizes import SIZES, Sizes
from dal.pool.sources import Block, Source, checked, open_source
from dal.pool.store import (
    APPENDING,
    ATTRIBUTE,
    INDEX,
    VERSION,
    VERSIONS,
    Pool,
    array_of,
    damaged_key,
    description,
    opened_at,
    opened_group,
)
from dal.pool.stored import PICTURE, field_path, stored_type
from dal.pool.tables import ENDINGS, Rows, is_table, open_table
from dal.pool.texts import Texts
from dal.stores.lease import Held, Lease
from dal.stores.objects import begun, wait
from dal.stores.zarr_store import BegunMeanwhile, Found, ZarrObjects
from dal.texts import brief

_WRITERS = 128
"""Units on their way to an object store at a time, at most: of small ones 640 a second at 200 ms a request, about as
many as a core encodes."""
_WRITING_BYTES = 520 * 2**20
"""Of units on their way to an object store at a time: 32 chunks of 16 MiB with checksums; a larger one goes alone.
Chunks share the line and arrive together: of half as many, the line would wait for a delay in each turn."""
_READS = 32
"""Of ids in an object store, at a time: of about 32,768 each, which take some 2 MiB."""
_SAVE_SECONDS = 5.0
"""Between two notes in an object store of the rows that are safe: a build that is killed does so much again."""

_ENCODING = "dal.encoding"
_ARRAYS = ("features", "ids", "fields", "scale")
_BEYOND = "beyond_float16"
"""Attribute of a build or an append that is under way."""
_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
"""Names of files that Zarr writes before it renames them."""

Progress = Callable[[int, int | None], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_NONE = np.empty(0)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Options:
    """Options for reading a source, as the user passed them."""

    ids: Values | str | None
    features: Sequence[str] | None
    display: Mapping[str, Values] | Sequence[str]
    text: str | None
    vectoriser: object
    header: bool | None
    size: tuple[int, int] | None
    background: str | None = None
    encoder: object = None
    images: bool = False
    client: object = None
    sizes: Sizes = SIZES


def build(
    source: object, where: Place, how: Options, *, dtype: str | None, overwrite: bool, progress: Progress | None
) -> Pool:
    """Build a pool at a place, see :meth:`dal.pool.store.Pool.build`."""
    opened = _source(source, how)
    _refuse_dtype(dtype, opened)
    with _disk_errors(where), storing_all_chunks(), contextlib.ExitStack() as held:
        store = for_zarr(where)
        if isinstance(store, ZarrObjects):  # together with the lock: each is a delay of the network
            held.enter_context(_leased(where, store, store.asking("", old=True)))
        group = _existing(where, store)
        if group is not None:
            if isinstance(store, ZarrObjects):
                store.remember("", *_nodes(description(group).get("fields", ())))
            else:
                held.enter_context(_locked(where, tidy=True))
            group = _existing(where, store)  # again, because the holder of the lock may have changed it meanwhile
        if isinstance(opened, Encoded) and group is not None and not overwrite:
            opened.keep_batch_size(description(group).get("source"))
        identity = None if opened.identity is None else {**opened.identity, "stored": dtype}
        build = _resumed(where, group, identity, how.sizes, overwrite=overwrite)
        start = build.rows if build else 0
        if build and isinstance(opened, Encoded):
            opened.resume(build.missing)
        held.enter_context(_noted(where, store, opened))
        given, stored = opened.blocks(start), dtype
        evidence, scale = None, None
        if dtype == AUTO and build:
            stored = build.encoding
        elif dtype == AUTO:
            given, evidence, scale = _judged(opened, given)
            stored = evidence.chosen if evidence else None
        if stored != "int8":
            scale = None
        elif build:
            scale = build.scale()
        elif scale is None:
            scale = _scale(opened)
        encode = _Saying(encoder(stored, scale))
        if build:
            encode.resume(build.beyond)
        blocks = checked(given, start, encode, build.kinds if build else None)
        if build is None:
            head, n_rows = _head(blocks, opened.n_rows, how.sizes)
            encoding = stored or head[0].features.dtype.name
            with _creation_errors(where):
                if group is None:
                    held.enter_context(_locked_new(where, store))
                build = _create_build(
                    where,
                    store,
                    group,
                    head[0],
                    n_rows,
                    opened,
                    how.sizes,
                    encoding=encoding,
                    identity=identity,
                    scale=scale,
                    evidence=evidence,
                )
            blocks = itertools.chain(head, blocks)
        held.callback(build.close)
        build.encoded = opened if isinstance(opened, Encoded) else None
        build.saying = encode
        with build.full_disk_errors():
            build.write(blocks, progress)
            build.write_index()
            if isinstance(where, Path):  # before the pool is marked complete, so that a killed build can be run again
                _note(where).unlink(missing_ok=True)
            build.complete()
        encode.warn(where)
        return _written(where, store)


def append(pool: Pool, source: object, how: Options, *, progress: Progress | None) -> Pool:
    """Append records at the end of a pool, see :meth:`dal.pool.store.Pool.append`."""
    where = pool.place
    with _disk_errors(where), storing_all_chunks(), contextlib.ExitStack() as held:
        store = for_zarr(where)
        if isinstance(store, ZarrObjects):  # together with the lock: each is a delay of the network
            nodes = _nodes([*pool.fields, *[PICTURE] * pool.has_pictures])
            held.enter_context(_leased(where, store, store.asking("", *nodes)))
            # What is known was read before the lock was held, perhaps. Looked at again while the begun units are read.
            unchanged, listed = store.unchanged(), begun(store.objects.names())

        @cache
        def indexes() -> set[str]:
            """Return the names of the indexes that lie there; refuse a pool that was written before it was locked."""
            if not isinstance(store, ZarrObjects):
                return _indexes(names_at(where))
            if not unchanged.result():
                raise PoolError(f"{where} was written by another process meanwhile; run the same again")
            return _indexes(listed.result())

        pool.check_same(opened_at(where, lambda: store))
        if isinstance(where, Path) and not where.is_dir():
            raise PoolError(
                f"a pool to append to must be a folder or a URL, got the ZIP archive {where}; unpack it first"
            )
        group = zarr.open(store, mode="r+")
        if not isinstance(group, zarr.Group):
            raise PoolError(f"a pool to append to must be one that dal built, got the plain Zarr array {where}")
        state = description(group)
        _refuse_other_encoder(where, state.get("made_from", {}), how.encoder)
        opened = _source(source, _by_name(where, state, source, how), state)
        if isinstance(opened, Texts) and not opened.fitted:
            raise SourceError(
                "`vectoriser` must be the fitted one of the pool, got one that is not fitted; it would make other "
                "features"
            )
        _warn_of_order(where, state.get("made_from", {}), opened)
        if not isinstance(store, ZarrObjects):
            held.enter_context(_locked(where))
            _remove_partial(where)
            group = zarr.open_group(store, mode="r+")
        build = _Build(where, group, how.sizes)
        held.callback(build.close)
        encode = _Saying(encoder(state["encoding"], build.scale() if state["encoding"] == "int8" else None))
        build.encoded = opened if isinstance(opened, Encoded) else None
        build.saying = encode
        if APPENDING in state:  # what is written of it now would look like another process's
            indexes()
        start = build.begun()
        held.enter_context(_noted(where, store, opened))
        blocks = build.checked(opened.blocks(start), start, encode)
        with build.full_disk_errors():
            build.append(blocks, progress, opened.n_rows, start, indexes)
        encode.warn(where)
        return _written(where, store)


def _written(where: Place, store: Any) -> Pool:  # noqa: ANN401 - as `for_zarr`
    """Open the pool that was just written; the metadata of an object store are known."""
    if not isinstance(store, ZarrObjects):
        return Pool.open(where)
    return opened_group(where, zarr.open_group(store.with_read_only(read_only=True), mode="r"))


def _nodes(fields: Iterable[str], *, ids: bool = True, scale: bool = True) -> list[str]:
    """Return the arrays of a pool and their groups, whose metadata are asked for together."""
    paths = [field_path(name) for name in fields]
    return [
        "features",
        *(["scale"] if scale else []),
        *(["ids", *_index_nodes(INDEX)] if ids else []),
        *(["fields", *paths] if paths else []),
    ]


def _index_nodes(index: str) -> list[str]:
    return [index, *(f"{index}/{name}" for name in ("hash", "row", "fence"))]


def _delete(store: Any, own: Nodes, *nodes: str) -> None:  # noqa: ANN401 - as `for_zarr`
    """Delete the files of nodes, once all that was written of the pool's metadata is there."""
    if not isinstance(store, ZarrObjects):
        own.delete()
        return
    store.settle()
    if own.files:
        store.refuse_writing()
        own.delete()
    store.know_deleted(*nodes)


def _settle(store: Any) -> None:  # noqa: ANN401 - as `for_zarr`
    """Wait until what was written of the pool's metadata is there."""
    if isinstance(store, ZarrObjects):
        store.settle()


def _note(where: Path) -> Path:
    return where.with_name(f".{where.name}.lock")


@contextlib.contextmanager
def _leased(where: Place, store: ZarrObjects, asked: "Future[Found] | None" = None) -> Iterator[None]:
    """Lock a pool in an object store by a lease, see :mod:`dal.stores.lease`, and remember its metadata.

    Parameters
    ----------
    where : Url
        The pool.
    store : ZarrObjects
    asked : Future, optional
        Metadata that were asked for before.
    """
    try:
        lease = Lease(store.objects)
    except Held as error:
        raise PoolError(f"{error} is writing to {where}; wait for it to end") from None
    except StoreError:
        if asked is not None:  # a store that cannot be read either is said to be so
            store.know(asked)
        raise
    with contextlib.closing(lease), store.writing_if(lease.check), store.remembering():
        if asked is not None:
            store.know(asked)
        yield
        store.settle(root=False)
        if store.knows_root:  # the last write of the root's, under way, is refused where the next holder has written it
            lease.release()


@contextlib.contextmanager
def _locked(where: Place, *, tidy: bool = False) -> Iterator[None]:
    """Lock a pool against a second writer.

    The system frees the lock of a local pool when the process ends, however it ends. Of other places, object stores
    alone have one, see `_leased`.

    Parameters
    ----------
    where : Path or Url
        The pool; a local folder exists.
    tidy : bool, default=False
        Whether to delete the note beside it, which names the process that holds it, if the writing fails.
    """
    if isinstance(where, Url):
        yield
        return
    note = _note(where)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(where, note))
        except BlockingIOError as error:
            raise PoolError(f"process {error.strerror} is writing to {where}; wait for it to end") from error
        except OSError as error:
            raise PoolError(
                f"{where} cannot be locked: {error.strerror}; get write access to it and to its folder"
            ) from error
        try:
            yield
        except BaseException:
            if tidy:
                note.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _locked_new(where: Place, store: Any) -> Iterator[None]:  # noqa: ANN401 - as `for_zarr`
    """Make the folder of a new pool and lock it; refuse one in which another process has begun a pool meanwhile."""
    if isinstance(store, ZarrObjects):  # locked already; the root's metadata are written only if there are none
        yield
        return
    if isinstance(where, Path):
        where.mkdir(parents=True, exist_ok=True)
    with _locked(where, tidy=True):
        if _existing(where, store) is not None:
            raise _begun_meanwhile(where)
        yield


@contextlib.contextmanager
def _noted(where: Place, store: Any, source: Source) -> Iterator[None]:  # noqa: ANN401 - as `for_zarr`
    """Leave a note while this process encodes; where a process that was killed has left one, encode in another one.

    A record may kill the process that decodes or encodes it, and would kill each one that goes on. The note lies beside
    a local pool, locked by the process that is at work, and at the root of a pool in an object store.
    """
    if not isinstance(source, Encoded) or not source.here:
        yield
    elif isinstance(store, ZarrObjects):
        source.apart = wait(store.objects.get(_ENCODING)) is not None
        store.refuse_writing()
        wait(store.objects.put(_ENCODING, b"a process of dal encodes, or was killed"))
        try:
            yield
        finally:
            try:
                store.refuse_writing()
                wait(store.objects.delete([_ENCODING]))
            except StoreError as error:  # the next one encodes in a process apart, and deletes it
                _log.warning("%s/%s was left: %s", where, _ENCODING, error)
    elif isinstance(where, Url):
        yield
    else:
        note = where.with_name(f".{where.name}.encoding")
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            file = note.open("a+b")
        except OSError as error:
            raise PoolError(
                f"{note} cannot be written: {error.strerror or error}; get write access to its folder, or choose "
                "another one"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # Another process is at work, which the pool's own lock will say; or no file can be locked here.
                if not isinstance(error, BlockingIOError) and file.tell() == 0:
                    note.unlink(missing_ok=True)
                yield
                return
            source.apart = file.tell() > 0
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
            try:
                yield
            finally:
                note.unlink(missing_ok=True)


def _begun_meanwhile(where: Place) -> PoolError:
    return PoolError(f"{where} must be free, got a pool begun by another process; choose another path, or run again")


def _source(source: object, how: Options, state: Mapping[str, Any] | None = None) -> Source:
    """Open the source of a pool, and refuse options of another kind of source."""
    if isinstance(source, str | os.PathLike):
        source = place_of(source)
    if isinstance(source, Url):
        raise SourceError(f"`source` must be a file of this machine, got {source}; download it, or open it with Dask")
    folder = isinstance(source, Path) and source.is_dir() and not is_table(source)
    if how.encoder is not None:
        return Encoded(_raw(source, how), how.encoder, how.client, how.sizes)
    if how.images or how.client is not None:
        raise SourceError("`images` and `client` must be left out without `encoder` (--images, --encoder)")
    if not folder and (how.size is not None or how.background is not None):
        raise SourceError("`size` and `background` must be left out unless the source is a folder of pictures")
    if (how.text is None) != (how.vectoriser is None):
        raise SourceError("`text` and `vectoriser` must be passed together (--text, --vectoriser), got one of them")
    if how.text is not None:
        if not is_table(source) or how.features is not None or not (how.ids is None or isinstance(how.ids, str)):
            raise SourceError(
                "`text` must name a column of a table, such as a .parquet or .csv file, and `features` must be left out"
            )
        return Texts(
            open_table(source, how.ids, None, how.display, text=how.text, header=how.header, sizes=how.sizes),
            how.text,
            how.vectoriser,
            how.sizes,
        )
    if is_table(source):
        return open_table(source, how.ids, how.features, how.display, header=how.header, sizes=how.sizes)
    if how.header is not None:
        raise SourceError("`header` must be left out for sources other than CSV files (--header, --no-header)")
    if not folder:
        return open_source(source, how.ids, how.features, how.display, how.sizes)
    if how.ids is not None or how.features is not None or len(how.display):
        raise SourceError("`ids`, `features` and `display` must be left out for pictures, whose ids are their paths")
    assert isinstance(source, Path)
    _refuse_folder(source)
    with needs("images", "a folder of pictures as a source"):
        from dal.pool.pictures import Pictures, size_of
    known = (state or {}).get("made_from", {})
    size = how.size if how.size is not None else known.get("size")
    return Pictures(source, size_of(size), how.background or known.get("background"), known.get("mode"), how.sizes)


def raw_records(source: object, how: Options) -> RawSource:
    """Open the raw records of a source for an encoder, as a build does."""
    return _raw(place_of(source) if isinstance(source, str | os.PathLike) else source, how)


def _raw(source: object, how: Options) -> RawSource:
    """Open the source of raw records for an encoder."""
    if how.vectoriser is not None or how.features is not None or how.size is not None or how.background is not None:
        raise SourceError(
            "`vectoriser`, `features`, `size` and `background` must be left out with `encoder`, which makes features"
        )
    if (how.text is not None) == how.images:
        raise SourceError(
            "`encoder` must come with a column of texts or with pictures, got "
            f"{'both' if how.images else 'neither'}; pass text=... or images=True (--text COLUMN, --images)"
        )
    if how.text is not None:
        if not is_table(source) or not (how.ids is None or isinstance(how.ids, str)):
            raise SourceError("`text` must name a column of a table, such as a .parquet or .csv file")
        sizes = replace(how.sizes, block_rows=min(how.sizes.block_rows, TEXTS_AT_ONCE))
        table = open_table(source, how.ids, None, how.display, text=how.text, header=how.header, sizes=sizes)
        return RawTexts(table, how.text)
    if is_table(source) or how.header is not None:
        raise SourceError("`source` must be a folder of pictures or an array of them with `images`, got a table")
    with needs("images", "pictures as a source"):
        from dal.pool.pictures import PictureFiles, PictureShards, shards_in
    if not isinstance(source, Path):
        return RawArrays(open_source(source, how.ids, None, how.display, how.sizes))
    shards = shards_in(source) if source.exists() else []
    if not shards and not source.is_dir():
        return RawArrays(open_source(source, how.ids, None, how.display, how.sizes))
    if how.ids is not None or len(how.display):
        raise SourceError("`ids` and `display` must be left out for files of pictures, whose ids are their paths")
    if shards:
        return PictureShards(shards)
    _refuse_folder(source)
    return PictureFiles(source)


def _refuse_other_encoder(where: Place, kept: Mapping[str, Any], encoder: object) -> None:
    """Raise an error unless appended records are encoded as those of the pool."""
    wanted = kept.get("encoder")
    given = getattr(encoder, "id", None)
    if wanted == given and (wanted is not None or encoder is None):
        return
    if wanted is None:
        raise SourceError(f"`encoder` must be left out, as {where} was built, got {given or encoder!r}")
    got = "none" if encoder is None else repr(given)
    raise SourceError(
        f"`encoder` must be {wanted!r}, which made the features of {where}, got {got}; other weights or another "
        "preprocessing make features that cannot be compared: build a new pool for them"
    )


def _refuse_folder(path: Path) -> None:
    """Raise an error for a folder that is a Zarr store or holds tables."""
    if any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
        raise SourceError(
            f"`source` must be a folder of pictures, got the Zarr store {path}; an array of numbers is a pool as it "
            "is, "
            "and Python takes zarr.open(path)"
        )
    tables = sorted(each.name for each in path.iterdir() if each.suffix.lower() in ENDINGS)
    if tables:
        raise SourceError(
            f"`source` must be a folder of pictures, got {len(tables)} tables in {path}, such as {tables[0]}; pass one "
            "table, or in Python a Dask frame: Pool.build(dask.dataframe.read_parquet(folder), ...)"
        )


def _by_name(where: Place, state: Mapping[str, Any], source: object, given: Options) -> Options:
    """Return the options with the column names that the pool keeps; refuse others."""
    kept = state.get("made_from", {})
    if not is_table(source):
        return given

    def agreed(which: str, asked: object, known: object, *, same: bool) -> Any:  # noqa: ANN401
        if asked is not None and not same:
            raise SourceError(
                f"`{which}` must be {known!r}, as {where} was built, got {asked!r}; columns are matched by name, so "
                "rename "
                "them in the source"
            )
        return known

    ids, text, features = given.ids, given.text, given.features
    if kept.get("ids"):
        ids = agreed("ids", ids, kept["ids"], same=str(ids) == kept["ids"])
    if kept.get("text") or kept.get("features"):
        text = agreed("text", text, kept.get("text"), same=text == kept.get("text"))
    if kept.get("features"):
        known = kept["features"]
        asked = None if features is None else [str(name) for name in features]
        features = agreed("features", asked, known, same=asked is not None and sorted(asked) == sorted(known))
    shown = [str(name) for name in given.display if name != text]
    fields = [name for name in state["fields"] if name != text]
    display = agreed("display", shown or None, fields, same=sorted(shown) == sorted(fields))
    return replace(given, ids=ids, text=text, features=features, display=display)


def _warn_of_order(where: Place, kept: Mapping[str, Any], opened: Source) -> None:
    """Warn where features are matched by their order, because one side has no names."""
    if isinstance(opened, Rows) and not kept.get("features"):
        named = ", ".join(opened.columns.features)
        _log.warning("%s keeps no feature names: the columns %s are matched by their order", where, named)
    elif kept.get("features") and not isinstance(opened, Rows):
        named = ", ".join(kept["features"])
        _log.warning("%s has the features %s: the source has no names and is matched by order", where, named)


@contextlib.contextmanager
def _disk_errors(where: Place) -> Iterator[None]:
    """Turn a failure of the disk into an error that says how to go on."""
    try:
        yield
    except DalError:
        raise
    except OSError as error:
        what = "no space left; free space" if error.errno in _FULL else f"{error.strerror or error}; remedy that"
        file = f" ({error.filename})" if error.filename else ""
        raise PoolError(f"{where}: {what}, and run the same again{file}") from error


@contextlib.contextmanager
def _creation_errors(where: Place) -> Iterator[None]:
    """Turn a failure to create the pool, as on a read-only file system, into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise PoolError(
            f"{where} cannot be created: {error.strerror or error}; choose a place that you may write to"
        ) from error


def _refuse_dtype(dtype: str | None, source: Source) -> None:
    if dtype is not None and dtype not in (*ENCODINGS, AUTO):
        raise SourceError(f"`dtype` must be one of {', '.join((*ENCODINGS, AUTO))}, got {dtype!r}")
    if dtype in ("int8", "uint8") and isinstance(source, Encoded):
        raise SourceError(
            "`dtype` must be float32, bfloat16, float16 or auto for encoded records, which may be missing, got "
            f"{dtype}; leave it out, or take auto"
        )
    if dtype == "int8" and source.single:
        raise SourceError(
            "`source` must be readable twice for int8, which takes a first pass for the scale of each feature, got an "
            "iterable of Block or a stream; pass an array, a table or a file, or take auto or bfloat16"
        )


def _scale(source: Source) -> Floats32:
    return scale_of(block.features for block in checked(source.blocks(0), 0, encoder("float32")))


def _judged(source: Source, blocks: Iterator[Block]) -> tuple[Iterator[Block], Evidence | None, Floats32 | None]:
    """Return the blocks of a source again, the evidence for a stored type, and the int8 scale; None for uint8.

    All records are read once for it, but of a source that can be read or encoded only once, the first ones: these wait
    in memory until the type is known. Records too wide to judge are read no further than their first block.
    """
    whole = not source.single and not isinstance(source, Encoded)
    firsts: list[Block] = []
    seen: list[npt.NDArray[Any]] = []

    def noted() -> Iterator[Block]:
        for block in blocks:
            firsts.append(block)
            yield block

    n_seen, wanted = 0, 1
    for stored in checked(noted(), 0, encoder(None)):
        seen.append(stored.features)
        n_seen += len(stored.features)
        wanted = rows_to_judge(math.prod(stored.features.shape[1:]), FIRST_ROWS)
        if whole or stored.features.dtype == np.uint8 or n_seen >= wanted:
            break
    given = itertools.chain(firsts, blocks)
    if not seen or seen[0].dtype == np.uint8:
        return given, None, None
    as_floats = encoder("float32")
    whole = whole and wanted > 0
    records = (block.features for block in checked(source.blocks(0), 0, as_floats)) if whole else iter(seen)
    sample = sample_of(records, whole=whole)
    return given, dtype_by_evidence(sample), scale_of_largest(sample.largest)


def _existing(where: Place, store: Any) -> zarr.Group | None:  # noqa: ANN401 - as `for_zarr`
    """Return the pool at `where`, finished or not; None where there is nothing."""
    try:
        group = zarr.open_group(store, mode="r")  # in mode r+ Zarr would create a missing folder
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(where, Path) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        if isinstance(where, Path) and where.exists() and not _is_begun(where):
            raise PoolError(
                f"{where} must be free or a pool, got something that is not a pool; it is left alone, choose another "
                "path"
            ) from error
        return None
    if not description(group):
        raise PoolError(
            f"{where} must be a pool, got a Zarr group that is not a pool; it is left alone, choose another path"
        )
    return zarr.open_group(store, mode="r+")


def _is_begun(folder: Path) -> bool:
    """Check whether a folder holds at most the partial file that Zarr writes before a group's metadata."""
    return folder.is_dir() and all(
        _PARTIAL.fullmatch(path.name) and path.name.startswith("zarr.") and path.is_file() for path in folder.iterdir()
    )


def _remove_partial(where: Place) -> None:
    """Delete partial files that an interrupted Zarr left in a local pool; object stores have none."""
    if isinstance(where, Url):
        return
    for name in ("", *_ARRAYS, *_indexes(names_at(where))):
        if name and (where / name).is_symlink():  # it leads out of the pool
            continue
        for folder, folders, files in os.walk(where / name):
            if not name:
                folders.clear()  # other programs may keep folders within the pool's
            for file in files:
                path = Path(folder) / file
                if _PARTIAL.fullmatch(file) and not path.is_symlink():
                    path.unlink()


def _resumed(
    where: Place, group: zarr.Group | None, identity: Mapping[str, Any] | None, sizes: Sizes, *, overwrite: bool
) -> "_Build | None":
    """Return the interrupted build of the same source, or None to start over; refuse to replace anything else."""
    if group is None or overwrite:
        return None
    state = description(group)
    if (wrong := damaged_key(state)) is not None:
        raise PoolError(
            f"{where}: its description is damaged ({wrong}); pass overwrite=True (--overwrite) to replace it"
        )
    if state["complete"]:
        raise PoolError(
            f"{where} must be free, got a finished pool of {state['n_rows']} rows; pass overwrite=True (--overwrite) "
            "to "
            "replace it"
        )
    if state["version"] not in VERSIONS:
        raise PoolError(
            f"{where} must have one of the pool formats {VERSIONS}, got {state['version']}; pass overwrite=True "
            "(--overwrite) to replace it"
        )
    if state["n_rows"] == 0:
        return None
    if identity is None:
        raise SourceError(
            f"`source` must have an identity to resume the build of {state['n_rows']} rows in {where}, got a stream; "
            "pass overwrite=True (--overwrite) to start over"
        )
    if state["source"] != identity:
        raise SourceError(
            f"`source` must be that of the interrupted build in {where}, got another source or dtype"
            f" ({_difference(state['source'], identity)}); pass overwrite=True (--overwrite) to start over"
        )
    _remove_partial(where)
    return _Build(where, group, sizes)


def _difference(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Return where the identities of two sources differ, for a message; values of one another as they are stored."""
    before = before or {}
    differing = [name for name in dict.fromkeys((*now, *before)) if now.get(name) != before.get(name)]
    if "mtime_ns" in differing:
        differing.remove("mtime_ns")
        return f"the file was changed since{''.join(f', {name}' for name in differing)}"
    return ", ".join(f"{name} {brief(now.get(name))} instead of {brief(before.get(name))}" for name in differing)


def _head(blocks: Iterator[Block], n_rows: int | None, sizes: Sizes) -> tuple[list[Block], int | None]:
    """Return the first blocks, and the number of rows if they are all: a small pool gets a layout of its size."""
    head: list[Block] = []
    held = 0
    while not head or (n_rows is None and held < sizes.chunk_bytes):
        block = next(blocks, None)
        if block is None:
            n_rows = sum(len(block.features) for block in head)
            break
        head.append(block)
        held += block.features.nbytes
    if not head:
        raise SourceError("`source` must have at least one row, got no rows")
    return head, n_rows


@dataclass(frozen=True)
class _Layout:
    """Heights of the chunks and shards of an array, in rows."""

    chunk_rows: int
    shard_rows: int | None

    @classmethod
    def of(cls, chunk_rows: int, n_rows: int | None, sizes: Sizes) -> "_Layout":
        """Return chunks of at most `chunk_rows`, a power of two, in shards where there would be too many files."""
        if n_rows is None:
            return cls(chunk_rows, None)
        chunk_rows = min(chunk_rows, 1 << (n_rows - 1).bit_length())
        many = -(-n_rows // chunk_rows) > sizes.max_files
        return cls(chunk_rows, chunk_rows * sizes.shard_chunks if many else None)

    @classmethod
    def of_features(cls, record_bytes: int, n_rows: int | None, sizes: Sizes) -> "_Layout":
        """Return chunks of records of this size."""
        return cls.of(1 << max(0, (sizes.chunk_bytes // record_bytes).bit_length() - 1), n_rows, sizes)


def _create_build(
    where: Place,
    store: Any,  # noqa: ANN401 - as `for_zarr`
    group: zarr.Group | None,
    first: Block,
    n_rows: int | None,
    source: Source,
    sizes: Sizes,
    *,
    encoding: str,
    identity: Mapping[str, Any] | None,
    scale: Floats32 | None,
    evidence: Evidence | None,
) -> "_Build":
    """Lay out a new pool, in place of an existing one."""
    state = {
        "version": VERSION,
        "complete": False,
        "n_rows": 0,
        "source_rows": n_rows,
        "fingerprint": secrets.token_hex(16),
        "fields": list(first.fields),
        "kinds": {name: kind_of(values) for name, values in first.fields.items()},
        "made_from": dict(source.made_from),
        "has_ids": first.ids is not None,
        "encoding": encoding,
        "source": identity,
        **({"evidence": asdict(evidence)} if evidence else {}),
    }
    if group is None:
        _remove_partial(where)
        nodes = _nodes(first.fields, ids=first.ids is not None, scale=scale is not None)
        asked = store.asking(*nodes) if isinstance(store, ZarrObjects) else None
        try:
            group = zarr.create_group(store, attributes={ATTRIBUTE: state})
        except BegunMeanwhile:
            raise _begun_meanwhile(where) from None
        if asked is not None:
            store.know(asked)
    else:  # marked incomplete first: if the removal is interrupted, the rest is still known as a pool to start over
        _remove_partial(where)
        own = _own(where, [*_ARRAYS, *_indexes(names_at(where))])
        group.attrs[ATTRIBUTE] = state
        _delete(store, own, *_nodes(first.fields))
    if scale is not None:
        _create(group, "scale", scale.dtype, _Layout.of(sizes.field_rows, len(scale), sizes), len(scale))[:] = scale
    record_shape = first.features.shape[1:]
    records = _Layout.of_features(first.features[:1].nbytes, n_rows, sizes)
    wanted = [_Wanted("features", first.features.dtype, records, n_rows, record_shape)]
    rows = _Layout.of(sizes.field_rows, n_rows, sizes)
    if first.ids is not None:
        wanted.append(_Wanted("ids", np.dtype(object), rows, n_rows))
    for name, values in first.fields.items():
        kind = kind_of(values)
        assert kind is not None  # `checked` casts every field to a kind
        layout = _Layout.of(sizes.picture_rows, n_rows, sizes) if name == PICTURE else rows
        wanted.append(_Wanted(field_path(name), stored_type(kind), layout, n_rows))
    _each(where, lambda each: _create(group, *each), wanted)
    return _Build(where, group, sizes, new=True)


def _indexes(names: Iterable[str]) -> set[str]:
    """Return the names of the id indexes that builds and appends have made, among those in a pool's folder."""
    return {name for name in names if re.fullmatch(rf"{INDEX}(_\d+)?", name)}


def _own(where: Place, names: Iterable[str]) -> Nodes:
    """Collect the arrays of a pool that are to be deleted, before anything is deleted."""
    try:
        return Nodes.found(where, names)
    except NotOurs as error:
        raise PoolError(f"{error}; nothing was deleted") from error


class _Wanted(NamedTuple):
    """An array that is to be created; see `_create`."""

    name: str
    dtype: np.dtype[Any]
    layout: "_Layout"
    n_rows: int | None
    record_shape: tuple[int, ...] = ()


def _each(place: object, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function for each item: one after another on this machine, together where each waits for a network."""
    if not isinstance(place, Url):
        return [function(each) for each in items]
    with ThreadPoolExecutor(_WRITERS, "dal-each") as threads:
        return list(threads.map(function, items))


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
    array = group.create_array(
        name,
        shape=(n_rows or 0, *record_shape),
        chunks=(layout.chunk_rows, *record_shape),
        shards=None if layout.shard_rows is None else (layout.shard_rows, *record_shape),
        dtype=str if text else dtype,
        # Embeddings and hashes hardly compress, and reading them uncompressed is several times faster.
        compressors=[Crc32cCodec()] if plain else [ZstdCodec(level=1, checksum=True)],
        fill_value=float("nan") if dtype.kind == "f" else None,
    )
    return whole(array)


def _kind(dtype: np.dtype[Any]) -> str:
    """Return the kind of a field in a pool that does not store kinds."""
    return {"b": "boolean", "i": "integer", "f": "number"}.get(dtype.kind, "text")


class _Writes:
    """Writes of whole units: at once on this machine, several at a time to an object store.

    Parameters
    ----------
    remote : bool
    """

    def __init__(self, *, remote: bool) -> None:
        self._threads = ThreadPoolExecutor(_WRITERS, "dal-write") if remote else None
        self._under_way: dict[Future[None], tuple[int, int]] = {}
        """First row and bytes of each."""
        self._bytes = 0
        self._ended: SimpleQueue[Future[None]] = SimpleQueue()

    def write(self, start: int, size: int, store: Callable[[], None]) -> None:
        """Call what stores rows from `start` on, of this number of bytes, which must not change until it returns."""
        if self._threads is None:
            store()
            return
        self._collect()
        # For any of them, not for the oldest: else they end together, and the network waits for the next ones.
        while self._under_way and self._bytes + size > _WRITING_BYTES:
            self._take(self._ended.get())
        future = self._threads.submit(store)
        self._under_way[future] = (start, size)
        self._bytes += size
        future.add_done_callback(self._ended.put)

    def safe(self, rows: int) -> int:
        """Return how many of the first `rows` rows are written."""
        self._collect()
        return min([rows, *(start for start, _ in self._under_way.values())])

    def wait(self) -> None:
        """Wait for all, and raise the first error."""
        while self._under_way:
            self._take(self._ended.get())

    def _collect(self) -> None:
        """Forget the writes that are done, and raise the first error."""
        while not self._ended.empty():
            self._take(self._ended.get())

    def _take(self, ended: "Future[None]") -> None:
        _, size = self._under_way.pop(ended)
        self._bytes -= size
        ended.result()

    def close(self) -> None:
        """End, without those that have not begun."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def _text_length(values: npt.NDArray[Any]) -> int:
    """Return the length of all texts together, which lie outside of their array; 0 for numbers."""
    return int(np.strings.str_len(values).sum()) if values.dtype.kind == "T" else 0


def _store(array: "zarr.Array[Any]", start: int, values: npt.NDArray[Any]) -> None:
    array[start : start + len(values)] = values


class _Column:
    """A writer that appends to an array in whole units until it is flushed."""

    # Buffers are used again when they are written: the pages of a new one cost as much as filling it.

    def __init__(
        self,
        array: "zarr.Array[Any]",
        writes: _Writes,
        rows: int = 0,
        head: npt.NDArray[Any] = _NONE,
    ) -> None:
        self.array = array
        self._writes = writes
        self.unit = int((array.shards or array.chunks)[0])
        self.rows = rows
        chunks = ChunkObjects.of(array, fill=False) or ChunkFiles.of(array, fill=False)
        self._chunks = chunks if chunks is not None and chunks.written_plain else None
        self._written: deque[npt.NDArray[Any]] = deque()
        self._begin()
        self._held = len(head)
        if self._held:  # appended rows begin within a unit, which is written again
            self._buffer[: self._held] = head

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
            start, held, room, chunks = self.rows - self._held, self._held, self._room, self._chunks

            def store() -> None:
                if chunks is not None:
                    chunks.write(start // self.unit, held, room)
                else:
                    _store(self.array, start, room[:held])
                self._written.append(room)

            self._writes.write(start, room.nbytes + _text_length(room[:held]), store)
            self._begin()
            self._held = 0

    def _begin(self) -> None:
        """Take a buffer for the next unit."""
        if self._written:
            self._room = self._written.pop()
        elif self._chunks is not None:
            self._room = self._chunks.room()
        else:
            self._room = np.empty((self.unit, *self.array.shape[1:]), dtype=self.array.dtype)
        self._buffer: npt.NDArray[Any] = self._room if self._chunks is None else self._chunks.records(self._room)


class _Saying:
    """Encodes, and counts the records of which float16 makes a value infinite that is none: they are never asked."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._rows: list[npt.NDArray[np.intp]] = []
        self._before = 0

    def __call__(self, features: npt.NDArray[Any], row: int) -> npt.NDArray[Any]:
        stored = self._encode(features, row)
        if stored.dtype == np.float16 and may_be_infinite(stored):
            beyond = (np.isinf(stored) & np.isfinite(features)).reshape(len(stored), -1).any(axis=1)
            self._rows.append(row + np.flatnonzero(beyond))
        return stored

    def resume(self, records: int) -> None:
        """Start from the number of them that an interrupted build has written down."""
        self._before = records

    def before(self, row: int) -> int:
        """Return their number before a row; later calls name no earlier one."""
        rows = np.concatenate([np.empty(0, np.intp), *self._rows])
        self._before += int((rows < row).sum())
        self._rows = [rows[rows >= row]]
        return self._before

    def warn(self, where: Place) -> None:
        """Warn of such records, if there are any."""
        if records := self._before + sum(map(len, self._rows)):
            _log.warning(
                "%s: %d records have values beyond float16 (65,504), stored as infinite: they are never asked; build"
                " a pool of float32 for them",
                where,
                records,
            )


class _Build:
    """A pool that is being written; `rows` of it are safe."""

    def __init__(self, where: Place, group: zarr.Group, sizes: Sizes, *, new: bool = False) -> None:
        self._where = where
        self._new = new  # so that nothing of an interrupted build lies there
        self._group = group
        self._sizes = sizes
        self._state = description(group)
        self.rows: int = self._state["n_rows"]
        self._remote = isinstance(where, Url) and where.is_object_store
        self._writes = _Writes(remote=self._remote)
        self._saved_at = time.monotonic()
        self.encoded: Encoded | None = None
        """The source that knows which records could not be encoded; the pool keeps their names."""
        self.saying: _Saying | None = None
        """The encoder that knows how many records exceed float16, which is written down until all are written."""

    @property
    def beyond(self) -> int:
        """Number of records among the safe rows that exceed float16."""
        return int(self._state.get(_BEYOND, 0))

    @property
    def missing(self) -> Mapping[str, Any]:
        """Records among the safe rows that could not be encoded."""
        found: Mapping[str, Any] = self._state.get("unencoded", {})
        return found

    def write(self, blocks: Iterator[Block], progress: Progress | None) -> None:
        """Write all rows, and save the number of safe rows on the way."""
        rows = first = self.rows
        for rows in self._write_blocks(blocks, first, self._heads(first)):
            if (safe := self._safe(rows)) is not None:
                self._save(safe)
            if progress is not None:
                progress(rows, self._state["source_rows"])
        self._refuse_shorter(rows)
        if self._state["has_ids"]:  # else `complete` follows at once
            self._save(rows)
        self.rows = rows

    def begun(self) -> int:
        """Return how many rows of this source an interrupted append has written; forget those of another one.

        Only rows of encoded records are worth going on from: others are read again in no time.
        """
        noted = self._state.get(APPENDING)
        if noted is None:
            return 0
        if self.encoded is not None:
            self.encoded.keep_batch_size(noted["source"])
        source = None if self.encoded is None else self.encoded.identity
        if (
            self.encoded is not None
            and source is not None
            and (noted["source"], noted["before"]) == (source, self.rows)
        ):
            self.encoded.resume(noted["unencoded"])
            if self.saying is not None:
                self.saying.resume(noted.get(_BEYOND, 0))
            return int(noted["rows"])
        # Written before the rows are: killed and run again, the other source would take them for its own.
        del self._state[APPENDING]
        self._group.attrs[ATTRIBUTE] = self._state
        _settle(self._group.store)
        return 0

    def append(
        self,
        blocks: Iterator[Block],
        progress: Progress | None,
        n_new: int | None,
        begun: int,
        names: Callable[[], set[str]],
    ) -> None:
        """Write rows after the existing ones; they become visible once all are written and their ids are indexed.

        The first `begun` rows are written already. `names` returns the names of the indexes that lie there, and is
        called before anything is written.
        """
        before = self.rows
        heads = self._heads(before + begun)
        indexes = names()
        # Longer ones hold rows of an interrupted append.
        self._resize(before + max(begun, (n_new or 0) * self._remote))
        rows = first = before + begun
        for rows in self._write_blocks(blocks, first, heads):
            if self.encoded is not None and (safe := self._safe(rows)) is not None:
                self._note(self.encoded, before, safe - before)
            if progress is not None:
                progress(rows - before, n_new)
        if rows == before:  # the name of the index in use holds the number of rows
            raise SourceError("`source` must have at least one row to append, got no rows")
        self._resize(rows)
        index = f"{INDEX}_{rows}"
        self._write_index(index, rows, rest=index in indexes)
        old = self._state.get("index", INDEX)
        self._state.pop(APPENDING, None)
        self._state |= {"n_rows": rows, "source_rows": rows, "index": index, "kinds": self.kinds}
        if self.encoded is not None:
            more = self.encoded.missing_before(rows - before)
            self._state["unencoded"] = joined(self._state.get("unencoded", {}), more, before)
        self._group.attrs[ATTRIBUTE] = self._state
        self.rows = rows
        # Pools that are open use the previous index: it stays, older ones go.
        if older := indexes - {index, old}:
            _delete(self._group.store, _own(self._where, older))

    def _note(self, encoded: Encoded, before: int, rows: int) -> None:
        """Write down the rows of an append that are safe, from which it goes on if it is interrupted."""
        source = encoded.identity
        if source is None or rows <= self._state.get(APPENDING, {"rows": 0})["rows"]:
            return
        unencoded = encoded.missing_before(rows)
        self._state[APPENDING] = {"source": source, "before": before, "rows": rows, "unencoded": unencoded}
        if self.saying is not None and (records := self.saying.before(rows)):
            self._state[APPENDING][_BEYOND] = records
        self._group.attrs[ATTRIBUTE] = self._state

    def _safe(self, rows: int) -> int | None:
        """Return how many of the first rows are safe in all arrays; None where it is too early to note it again."""
        # In an object store each such note is a request that the build waits for.
        if self._remote and time.monotonic() - self._saved_at <= _SAVE_SECONDS:
            return None
        self._saved_at = time.monotonic()
        return self._writes.safe(rows) // self._step * self._step

    @cached_property
    def _step(self) -> int:
        # Units are powers of two, so every one divides the largest.
        return max(int((array.shards or array.chunks)[0]) for array in map(self._array, self._names()))

    def _resize(self, rows: int) -> None:
        """Cut longer arrays to this length; in an object store make shorter ones longer, all in one delay."""

        def resize(name: str) -> None:
            array = self._array(name)
            if array.shape[0] > rows or (self._remote and array.shape[0] < rows):
                array.resize((rows, *array.shape[1:]))

        _each(self._where, resize, self._names())

    def _heads(self, first: int) -> dict[str, npt.NDArray[Any]]:
        """Return, by array, the records before a row that share its unit, which will be written again."""

        def read(name: str) -> npt.NDArray[Any]:
            array = self._array(name)
            start = first - first % int((array.shards or array.chunks)[0])
            return read_rows(array, start, first) if start < first else _NONE

        return dict(zip(self._names(), _each(self._where, read, self._names()), strict=True))

    def _write_blocks(
        self, blocks: Iterator[Block], first: int, heads: Mapping[str, npt.NDArray[Any]]
    ) -> Iterator[int]:
        """Write blocks from a row on, and yield the number of rows after each."""
        by_name = {name: _Column(whole(self._array(name)), self._writes, first, heads[name]) for name in self._names()}
        columns = list(by_name.values())
        features, ids = by_name["features"], by_name.get("ids")
        fields = {name: by_name[field_path(name)] for name in self._state["fields"]}
        for block in blocks:
            features.append(block.features)
            if ids is not None and block.ids is not None:
                ids.append(np.asarray(block.ids))
            for name, column in fields.items():
                column.append(to_store(block.fields[name], name, column.array.dtype))
            yield features.rows
        for column in columns:
            column.flush()
        self._writes.wait()

    def write_index(self) -> None:
        """Write the sorted index of the ids, and refuse ids that repeat."""
        self._write_index(INDEX, self.rows, rest=not self._new)

    def _write_index(self, index: str, n_rows: int, *, rest: bool) -> None:
        """Write an index, and delete the rest of one that an interrupted build or append left."""
        if not self._state["has_ids"]:
            return
        if rest:
            _delete(self._group.store, _own(self._where, [index]), *_index_nodes(index))
        elif isinstance(self._group.store, ZarrObjects) and not self._new:
            self._group.store.know_deleted(*_index_nodes(index))
        layout = _Layout.of(self._sizes.index_rows, n_rows, self._sizes)
        n_fence = -(-n_rows // layout.chunk_rows)
        fences = _Layout.of(self._sizes.index_rows, n_fence, self._sizes)
        wanted = [
            _Wanted(f"{index}/hash", np.dtype(np.uint64), layout, n_rows),
            _Wanted(f"{index}/row", np.dtype(np.int64), layout, n_rows),
            _Wanted(f"{index}/fence", np.dtype(np.uint64), fences, n_fence),
        ]
        arrays = _each(self._where, lambda each: _create(self._group, *each), wanted)
        hashes, rows = (_Column(array, self._writes) for array in arrays[:2])
        fence = []
        with self._spill() as folder:
            ahead = _READS if self._remote else 0
            for entries in sorted_entries(self._array("ids"), folder, self._sizes.bucket_entries, ahead):
                firsts = entries["hash"][-hashes.rows % layout.chunk_rows :: layout.chunk_rows]
                fence.append(firsts.copy())  # a view would keep every bucket in memory
                hashes.append(entries["hash"])
                rows.append(entries["row"])
        hashes.flush()
        rows.flush()
        hashes_of_fence = np.concatenate(fence)
        self._writes.write(0, hashes_of_fence.nbytes, lambda: _store(arrays[2], 0, hashes_of_fence))
        self._writes.wait()
        # Known with the index itself, in the one write of the attributes that follows.
        self._state |= {"version": VERSION, "id_hash": HASH}

    @property
    def encoding(self) -> str:
        """The stored type of the features."""
        name: str = self._state["encoding"]
        return name

    def scale(self) -> Floats32:
        """Return the scale of each feature by which the existing rows are stored."""
        array = self._array("scale")
        return read_rows(array, 0, array.shape[0])

    def close(self) -> None:
        """Write no more."""
        self._writes.close()

    def complete(self) -> None:
        """Mark the pool as finished."""
        self._save(self.rows, complete=True)

    @contextlib.contextmanager
    def full_disk_errors(self) -> Iterator[None]:
        """Turn the failure of a full disk into an error that names the row to resume from."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise PoolError(
                f"{self._where}: no space left; free space and run again; it resumes from row {self.rows}"
            ) from error

    def _array(self, name: str) -> "zarr.Array[Any]":
        return array_of(self._where, self._group, name)

    def _names(self) -> list[str]:
        """Return the names of the arrays that have a row for each record."""
        ids = ["ids"] if self._state["has_ids"] else []
        return ["features", *ids, *(field_path(name) for name in self._state["fields"])]

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each display field, by name."""
        known = dict(self._state.get("kinds", {}))
        return {name: known.get(name) or _kind(self._array(field_path(name)).dtype) for name in self._state["fields"]}

    def checked(self, blocks: Iterator[Block], start: int, encode: Encode) -> Iterator[Block]:
        """Yield blocks of a source from row `start` on as they are stored; refuse a first that the pool is unlike."""
        given = next(blocks, None)
        if given is None and start:  # an interrupted append has written them all
            return blocks
        if given is None:
            raise SourceError("`source` must have at least one row to append, got no rows")
        if (given.ids is not None) != self._state["has_ids"]:
            wanted, got = ("ids", "none") if given.ids is None else ("no ids", "ids")
            raise SourceError(f"records must have {wanted}, like those of {self._where}, got {got}")
        if set(given.fields) != set(self.kinds):
            raise SourceError(
                f"display fields must be {list(self.kinds)}, as in {self._where}, got {list(given.fields)}"
            )
        shape, expected = given.features.shape[1:], self._array("features").shape[1:]
        if shape != expected:
            raise SourceError(f"records must have shape {expected}, as in {self._where}, got {shape}")
        return checked(itertools.chain([given], blocks), start, encode, self.kinds)

    def _save(self, rows: int, *, complete: bool = False) -> None:
        if rows > self.rows or complete:
            self._state |= {"n_rows": rows, "complete": complete}
            if self.encoded is not None:
                self._state["unencoded"] = self.encoded.missing_before(rows)
            self._state.pop(_BEYOND, None)
            if self.saying is not None and not complete and (records := self.saying.before(rows)):
                self._state[_BEYOND] = records
            self._group.attrs[ATTRIBUTE] = self._state
            self.rows = rows

    def _refuse_shorter(self, rows: int) -> None:
        expected = self._state["source_rows"]
        if expected not in (None, rows):
            raise SourceError(
                f"`source` must have {expected} rows, got {rows}; it changed while it was read, run again"
            )

    @contextlib.contextmanager
    def _spill(self) -> Iterator[Path]:
        """Yield a folder beside the pool, or in the temporary folder where the pool is not local."""
        if isinstance(self._where, Url):
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
            return
        beside = self._where.with_name(f".{self._where.name}.ids")
        _remove_spill(beside)  # left by a killed build
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
        raise PoolError(f"{folder} must be free for the ids, got files that dal did not write; move them")
    for path in own:
        path.unlink()
    folder.rmdir()
