"""Reading rows of Zarr arrays so that a missing or damaged chunk raises an error that names it.

Zarr returns its fill value for a missing chunk, and an uncompressed chunk carries no checksum of its own. Every read of
a pool goes through this module, by one of three ways. `ChunkFiles` opens the files of local arrays directly: several
times faster than Zarr for uncompressed chunks, 1.7 and 1.3 times for Blosc and Zstandard. `ChunkObjects` does the same
for object stores, by one request a chunk. `read_rows` asks Zarr for everything else. The first two write the
uncompressed chunks of a build as well.
"""

import asyncio
import itertools
import math
import re
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from io import SEEK_END, BufferedReader
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import blosc
from zarr.registry import get_buffer_class
from zarr.storage import LocalStore

from dal.errors import ChunkError, StoreError
from dal.pool._zarr import chunk_key, wait_for
from dal.stores.objects import Objects, begun, wait
from dal.stores.zarr_store import ZarrObjects

Stored = memoryview | None
"""Bytes of a chunk as they are stored; None where it is not."""

# Read and checksum in pieces that stay in a core's L2 cache: 10.3 GB/s against 8.4 GB/s for whole 16 MiB chunks.
PIECE_BYTES = 256 * 2**10
CHECKSUM_BYTES = 4
_BLOSC_HEADER_BYTES = 16
_OVERHEAD_BYTES = 2**16
"""Allowance for data that does not compress: no codec adds more than this to twice the size of a chunk."""
_RUN_BYTES = 32 * 2**20 + 2**16  # two chunks of 16 MiB with their checksums
_INDEXES = 256
"""Of shards, kept by a reader; 256 B each for the shards that dal writes."""
ABSENT = 2**64 - 1  # offset and length in a shard's index of a chunk that it does not hold
REMEDY = "restore it from a copy, or build the pool again"


def grouped(numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield each distinct number, ascending, with the positions that hold it.

    Parameters
    ----------
    numbers : ndarray of int64, shape (n,)

    Examples
    --------
    >>> [(number, positions.tolist()) for number, positions in grouped(np.array([3, 1, 3]))]
    [(1, [1]), (3, [0, 2])]
    """
    order = np.argsort(numbers, kind="stable")
    distinct, firsts = np.unique(numbers[order], return_index=True)
    return zip(distinct.tolist(), np.split(order, firsts[1:]), strict=False)


def read_rows(array: "zarr.Array[Any]", start: int, stop: int, *, fill: bool = False) -> npt.NDArray[Any]:
    """Return rows [start, stop), read through Zarr.

    Parameters
    ----------
    array : zarr.Array
    start, stop : int
        Rows, within the array.
    fill : bool, default=False
        Accept the fill value for a missing chunk.

    Returns
    -------
    ndarray of shape (stop - start, ...)

    Raises
    ------
    ChunkError
        A chunk is missing, or cannot be decoded.
    """
    try:
        block = np.asarray(array[start:stop])
    except (MemoryError, StoreError):  # an object store that fails says nothing of the chunk
        raise
    except Exception as error:  # each codec and each store raises its own exceptions
        raise _damaged(array, start, stop, error) from error
    if not fill:
        _refuse_missing(array, start, block)
    return block


def rows_or_fill(array: "zarr.Array[Any]", start: int, stop: int) -> npt.NDArray[Any]:
    """Return rows [start, stop) of a 1-D array, with its fill value for missing chunks.

    Local files are read directly where their codecs allow it, else through Zarr.

    Parameters
    ----------
    array : zarr.Array of shape (N,)
    start, stop : int
        Rows, within the array.

    Raises
    ------
    ChunkError
        A chunk cannot be decoded.
    """
    files = ChunkFiles.of(array, fill=True)
    if files is None:
        return read_rows(array, start, stop, fill=True)
    height = array.chunks[0]
    first, last = start // height, -(-stop // height)
    held: npt.NDArray[Any] = np.empty((last - first, height), dtype=array.dtype)
    for row, chunk in zip(held, range(first, last), strict=True):
        for _ in files.reading(chunk, row.view(np.uint8)):
            pass
    return held.reshape(-1)[start - first * height : stop - first * height]


def take_rows(array: "zarr.Array[Any]", rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the entries of a 1-D array in the order of `rows`; each chunk is read once.

    Parameters
    ----------
    array : zarr.Array of shape (N,)
    rows : ndarray of int64, shape (n,)
        Rows, in any order; may repeat.

    Returns
    -------
    ndarray of shape (n,)

    Raises
    ------
    ChunkError
        A chunk is missing, or cannot be decoded.
    """
    taken: npt.NDArray[Any] = np.empty(len(rows), dtype=array.dtype)
    height = array.chunks[0]
    for chunk, positions in grouped(rows // height):
        first = chunk * height
        block = read_rows(array, first, min(first + height, array.shape[0]))
        taken[positions] = block[rows[positions] - first]
    return taken


def missing_chunks(array: "zarr.Array[Any]") -> tuple[int, int]:
    """Return the number of missing stored objects (shards, or chunks without shards), and of expected ones.

    Lists names and reads no data. The cost grows with the objects that exist, not with the expected ones: the shape of
    an array may promise a billion chunks.

    Returns
    -------
    missing, expected : int
    """
    stored = array.shards or array.chunks
    grid = [-(-length // step) for length, step in zip(array.shape, stored, strict=True)]
    expected = math.prod(grid)
    return expected - wait_for(_count_chunks(array, grid)), expected


async def _count_chunks(array: "zarr.Array[Any]", grid: list[int]) -> int:
    # The key of the first chunk has a zero for each axis: "c/0/0", or "0.0".
    key = chunk_key(array, [0] * len(grid))
    pattern = re.compile(re.escape(key).replace("0", "(0|[1-9][0-9]{0,18})"))
    prefix = f"{array.path}/" if array.path else ""
    count = 0
    async for name in array.store.list_prefix(prefix):
        found = pattern.fullmatch(name.removeprefix(prefix))
        count += found is not None and all(int(at) < length for at, length in zip(found.groups(), grid, strict=True))
    return count


def _stored_objects(array: "zarr.Array[Any]", start: int, stop: int) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Yield key and extent of every chunk (shard, where there are shards) that overlaps rows [start, stop)."""
    stored = array.shards or array.chunks
    grid = [range(start // stored[0], -(-stop // stored[0]))]
    grid += [range(-(-length // step)) for length, step in zip(array.shape[1:], stored[1:], strict=True)]
    for place in itertools.product(*grid):
        extent = tuple(
            slice(index * step, min((index + 1) * step, length))
            for index, step, length in zip(place, stored, array.shape, strict=True)
        )
        yield chunk_key(array, place), extent


def _damaged(array: "zarr.Array[Any]", start: int, stop: int, error: Exception) -> ChunkError:
    # Zarr's exception does not name the chunk that failed: read them one by one.
    for key, (rows, *rest) in _stored_objects(array, start, stop):
        asked = slice(max(rows.start, start), min(rows.stop, stop))
        try:
            array[(asked, *rest)]
        except StoreError:
            raise
        except Exception as cause:
            return ChunkError(f"{_named(array, key, rows)} cannot be read: {cause}; {REMEDY}")
    return ChunkError(
        f"{array.store_path}: rows {start} to {stop - 1} failed to read once and then succeeded: {error}; "
        "the storage is unreliable, run again"
    )


def _refuse_missing(array: "zarr.Array[Any]", start: int, block: npt.NDArray[Any]) -> None:
    # A missing chunk is all fill value, so its first element is. Only then is the store asked, a request each.
    fill = array.fill_value
    for key, extent in _stored_objects(array, start, start + len(block)):
        rows = extent[0]
        corner = block[(max(rows.start, start) - start, *(part.start for part in extent[1:]))]
        filled = corner == fill or (corner != corner and fill != fill)
        if filled and not wait_for(array.store.exists(f"{array.path}/{key}".lstrip("/"))):
            raise ChunkError(f"{_named(array, key, rows)} is missing; {REMEDY}")


def _named(array: "zarr.Array[Any]", key: str, rows: slice) -> str:
    return f"{array.store_path}: chunk {key} (rows {rows.start} to {rows.stop - 1})"


class _Damage(Exception):
    """A defect of a file; the message describes it."""


class _Chunks:
    """Chunks that span whole records, uncompressed or compressed by Blosc or Zstandard: their keys and decoding."""

    def __init__(
        self, array: "zarr.Array[Any]", codecs: list[str], *, fill: bool, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._array = array
        self._piece_bytes = piece_bytes
        self._tail_bytes = CHECKSUM_BYTES if "crc32c" in codecs else 0
        self._decompress = next((_DECOMPRESS[name] for name in codecs if name in _DECOMPRESS), None)
        self._may_fill = fill
        self._file_rows = (array.shards or array.chunks)[0]
        self._per_file = self._file_rows // array.chunks[0]
        self._index_bytes = 16 * self._per_file + CHECKSUM_BYTES

    def _key(self, number: int) -> str:
        """Return the key of a stored file (a shard, where there are shards) below the array."""
        return chunk_key(self._array, [number, *[0] * (len(self._array.shape) - 1)])

    def _name(self, number: int) -> str:
        """Return the key of a stored file in the store."""
        return f"{self._array.path}/{self._key(number)}".lstrip("/")

    @property
    def _chunk_bytes(self) -> int:
        return math.prod(self._array.chunks) * self._array.dtype.itemsize

    @property
    def written_plain(self) -> bool:
        """Whether a stored file is a chunk as it lies in memory, and its checksum."""
        return not self._array.shards and self._decompress is None

    def room(self) -> npt.NDArray[np.uint8]:
        """Return room for a chunk and its checksum, as `write` takes it."""
        return np.empty(self._chunk_bytes + self._tail_bytes, dtype=np.uint8)

    def records(self, room: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the records of a chunk as a view of its room."""
        return room[: self._chunk_bytes].view(self._array.dtype).reshape(self._array.chunks)

    def write(self, chunk: int, rows: int, room: npt.NDArray[np.uint8]) -> None:
        """Write the first rows of a room as a chunk, the rest filled up, without a copy.

        Raises
        ------
        OSError
            The file cannot be written; or, as a StoreError, the object.
        """
        self.records(room)[rows:] = self._array.fill_value
        if self._tail_bytes:
            data = room[: self._chunk_bytes]
            data.flags.writeable = False  # google_crc32c accepts only read-only buffers
            crc = google_crc32c.value(data)
            room[self._chunk_bytes :] = np.frombuffer(crc.to_bytes(CHECKSUM_BYTES, "little"), dtype=np.uint8)
        self._put(chunk, room)

    def _put(self, chunk: int, room: npt.NDArray[np.uint8]) -> None:
        """Put bytes in the place of a stored file."""
        raise NotImplementedError

    def _cannot_be_read(self, number: int, error: Exception) -> ChunkError:
        return ChunkError(f"{self._named(number)} cannot be read: {error}; {REMEDY}")

    def _fill(self, number: int, target: npt.NDArray[np.uint8], *, whole: bool) -> None:
        """Fill `target` with the fill value: the chunk is not stored, or the whole file of this number."""
        if whole and not self._may_fill:
            raise ChunkError(f"{self._named(number)} is missing; {REMEDY}")
        target.view(self._array.dtype)[:] = self._array.fill_value

    def _named(self, number: int) -> str:
        rows = slice(number * self._file_rows, min((number + 1) * self._file_rows, self._array.shape[0]))
        return _named(self._array, self._key(number), rows)

    def _most_bytes(self, chunk_bytes: int) -> int:
        """Return the most bytes that a stored chunk of this size may have."""
        return 2 * chunk_bytes + _OVERHEAD_BYTES if self._decompress is not None else chunk_bytes + self._tail_bytes

    def _located(self, stored: bytes, inner: int) -> tuple[int, int] | None:
        """Return offset and length of a chunk by the index of its shard; None where the shard does not hold it."""
        if len(stored) < self._index_bytes:
            raise _Damage(f"it must have at least the {self._index_bytes} bytes of a shard's index, got {len(stored)}")
        index = _without_checksum(stored, "the index of the shard")
        offset, length = np.frombuffer(index, dtype="<u8", count=2, offset=16 * inner).tolist()
        return None if offset == length == ABSENT else (int(offset), int(length))

    def _decoded(self, file: "BufferedReader | _Stored", length: int, target: npt.NDArray[np.uint8]) -> Iterator[int]:
        """Fill `target` from a file, whose rest is a chunk of `length` bytes; -1 where it ends with the file."""
        if self._decompress is not None:
            most = self._most_bytes(len(target))
            stored = file.read(most + 1 if length < 0 else min(length, most + 1))
            if len(stored) > most:
                raise _Damage(
                    f"its compressed chunk must have at most {most} bytes for {len(target)} bytes of data, got more"
                )
            self._decompress(_without_checksum(stored, "it") if self._tail_bytes else stored, target)
        else:
            yield from self._copied(file, target)
            if length < 0 and file.read(1):
                raise _Damage(f"it must have {len(target) + self._tail_bytes} bytes, got more")

    def _copied(self, file: "BufferedReader | _Stored", target: npt.NDArray[np.uint8]) -> Iterator[int]:
        readonly = target.view()
        readonly.flags.writeable = False  # google_crc32c accepts only read-only buffers
        crc = 0
        for first in range(0, len(target), self._piece_bytes):
            piece = slice(first, min(first + self._piece_bytes, len(target)))
            got = file.readinto(target[piece].data)
            if got != piece.stop - first:
                raise _Damage(f"it must have {len(target)} bytes, got {first + got}")
            if self._tail_bytes:
                crc = google_crc32c.extend(crc, readonly[piece])
            if piece.stop < len(target):
                yield piece.stop
        if self._tail_bytes and file.read(CHECKSUM_BYTES) != crc.to_bytes(CHECKSUM_BYTES, "little"):
            raise _Damage("it does not match its checksum")


class ChunkFiles(_Chunks):
    """The files of a local array whose chunks span whole records, uncompressed or compressed by Blosc or Zstandard."""

    def __init__(
        self, array: "zarr.Array[Any]", directory: Path, codecs: list[str], *, fill: bool, piece_bytes: int
    ) -> None:
        super().__init__(array, codecs, fill=fill, piece_bytes=piece_bytes)
        self._directory = directory

    @classmethod
    def of(cls, array: "zarr.Array[Any]", *, fill: bool, piece_bytes: int = PIECE_BYTES) -> "ChunkFiles | None":
        """Return the files of `array`, or None where it must be read through Zarr.

        Parameters
        ----------
        array : zarr.Array
        fill : bool
            Fill missing chunks with the array's fill value instead of raising an error.
        piece_bytes : int
            Of an uncompressed chunk, read at a time.
        """
        store = array.store
        codecs = _whole_records(array)
        if not isinstance(store, LocalStore) or codecs is None:
            return None
        return cls(array, Path(store.root) / array.path, codecs, fill=fill, piece_bytes=piece_bytes)

    def reading(self, chunk: int, target: npt.NDArray[np.uint8]) -> Iterator[int]:
        """Fill `target` with the bytes of one chunk, piece by piece.

        Parameters
        ----------
        chunk : int
            Number of the (inner) chunk.
        target : ndarray of uint8
            As long as a whole chunk.

        Yields
        ------
        int
            Number of bytes filled so far. Nothing is verified before the last one: the checksum stands at the end.

        Raises
        ------
        ChunkError
            The file is missing, too short or too long, or a checksum is wrong.
        """
        number, inner = divmod(chunk, self._per_file)
        try:
            with (self._directory / self._key(number)).open("rb") as file:
                yield from self._pieces(number, file, inner, target)
        except FileNotFoundError:
            self._fill(number, target, whole=True)
        except (_Damage, OSError) as error:
            raise self._cannot_be_read(number, error) from error
        yield len(target)

    def _put(self, chunk: int, room: npt.NDArray[np.uint8]) -> None:
        # Zarr's way to this call copies a chunk twice.
        wait_for(self._array.store.set(self._name(chunk), get_buffer_class().from_array_like(room)))

    def _pieces(self, number: int, file: BufferedReader, inner: int, target: npt.NDArray[np.uint8]) -> Iterator[int]:
        if not self._array.shards:
            yield from self._decoded(file, -1, target)
            return
        end = file.seek(0, SEEK_END)
        file.seek(max(end - self._index_bytes, 0))
        found = self._located(file.read(self._index_bytes), inner)
        if found is None:
            self._fill(number, target, whole=False)
        else:
            file.seek(found[0])
            yield from self._decoded(file, found[1], target)


class ChunkObjects(_Chunks):
    """The objects of an array in an object store whose chunks `ChunkFiles` could read from files.

    One request a chunk. Those of a shard that lie beside each other and are asked for together take one, up to 32 MiB,
    and the index of the shard is read once.
    """

    def __init__(self, array: "zarr.Array[Any]", objects: Objects, codecs: list[str], *, fill: bool) -> None:
        super().__init__(array, codecs, fill=fill)
        self._objects = objects
        self._indexes: dict[int, asyncio.Task[bytes | None]] = {}

    @classmethod
    def of(cls, array: "zarr.Array[Any]", *, fill: bool) -> "ChunkObjects | None":
        """Return the objects of `array`, or None where it must be read through Zarr."""
        store, codecs = array.store, _whole_records(array)
        if not isinstance(store, ZarrObjects) or codecs is None:
            return None
        return cls(array, store.objects, codecs, fill=fill)

    async def fetched(self, chunks: Iterable[int]) -> "list[Stored]":
        """Fetch the stored bytes of chunks; None for one that is not stored.

        Raises
        ------
        StoreError
            The store gives no answer, or refuses.
        ChunkError
            The index of a shard is damaged.
        """
        if not self._array.shards:
            found = await self._objects.get_all(map(self._name, chunks), self._most_bytes(self._chunk_bytes))
            return [None if each is None else memoryview(each) for each in found]
        of_shard: dict[int, list[int]] = {}
        for chunk in chunks:
            of_shard.setdefault(chunk // self._per_file, []).append(chunk % self._per_file)
        parts = await asyncio.gather(*(self._of_shard(number, inner) for number, inner in of_shard.items()))
        return [stored for part in parts for stored in part]

    def _put(self, chunk: int, room: npt.NDArray[np.uint8]) -> None:
        store = self._array.store
        assert isinstance(store, ZarrObjects)  # `of`
        store.refuse_writing()
        wait(self._objects.put(self._name(chunk), room))

    def prepare(self, shard: int) -> None:
        """Begin to fetch the index of a shard, which `fetched` would ask for first."""
        begun(self._index(shard))

    async def _of_shard(self, number: int, inner: list[int]) -> "list[Stored]":
        index = await self._index(number)
        if index is None:
            return [None] * len(inner)
        try:
            places = [self._located(index, each) for each in inner]
        except _Damage as error:
            raise self._cannot_be_read(number, error) from error
        most = self._most_bytes(self._chunk_bytes) + 1
        # A length beyond what a chunk can have is damage, which its decoding finds in the bytes up to there.
        cut = [(position, at[0], at[0] + min(at[1], most)) for position, at in enumerate(places) if at is not None]
        found: list[Stored] = [None] * len(inner)

        async def fetch(run: list[tuple[int, int, int]]) -> None:
            start, stop = run[0][1], run[-1][2]
            data = await self._objects.get(self._name(number), start, stop) if stop > start else b""
            stored = memoryview(b"" if data is None else data)
            for position, first, last in run:
                found[position] = stored[first - start : last - start]

        await asyncio.gather(*map(fetch, _runs(cut)))
        return found

    async def _index(self, number: int) -> bytes | None:
        if number not in self._indexes:
            while len(self._indexes) >= _INDEXES:
                del self._indexes[next(iter(self._indexes))]
            asked = self._objects.get(self._name(number), -self._index_bytes)
            self._indexes[number] = asyncio.ensure_future(_as_bytes(asked))
        task = self._indexes[number]
        try:
            return await asyncio.shield(task)
        except BaseException:
            if self._indexes.get(number) is task:  # asked again, should it be wanted again
                del self._indexes[number]
            raise

    def reading(self, chunk: int, stored: "Stored", target: npt.NDArray[np.uint8]) -> Iterator[int]:
        """Fill `target` with one chunk out of its stored bytes; see `ChunkFiles.reading`."""
        number, sharded = chunk // self._per_file, bool(self._array.shards)
        try:
            if stored is None:
                self._fill(number, target, whole=not sharded or self._is_missing(number))
            else:
                yield from self._decoded(_Stored(stored), len(stored) if sharded else -1, target)
        except _Damage as error:
            raise self._cannot_be_read(number, error) from error
        yield len(target)

    def pieces(self, stored: "list[Stored]") -> npt.NDArray[np.uint8] | None:
        """Return the bytes of a single chunk in place, where they need no decoding; None where they do."""
        [chunk, *more] = stored
        if more or chunk is None or self._decompress is not None:
            return None
        if len(chunk) != self._chunk_bytes + self._tail_bytes:
            return None
        found = np.frombuffer(chunk, dtype=np.uint8, count=self._chunk_bytes)
        return found if found.ctypes.data % max(self._array.dtype.itemsize, 16) == 0 else None

    def checking(self, chunk: int, stored: "Stored") -> Iterator[int]:
        """Compare a chunk in place with its checksum, piece by piece; yield the number of bytes so far."""
        assert stored is not None  # `pieces`
        crc, data = 0, np.frombuffer(stored, dtype=np.uint8)  # google_crc32c takes no memoryview
        for first in range(0, self._chunk_bytes, self._piece_bytes):
            last = min(first + self._piece_bytes, self._chunk_bytes)
            if self._tail_bytes:
                crc = google_crc32c.extend(crc, data[first:last])
            if last < self._chunk_bytes:
                yield last
        if self._tail_bytes and bytes(stored[self._chunk_bytes :]) != crc.to_bytes(CHECKSUM_BYTES, "little"):
            raise self._cannot_be_read(chunk // self._per_file, _Damage("it does not match its checksum"))
        yield self._chunk_bytes

    def _is_missing(self, number: int) -> bool:
        task = self._indexes.get(number)
        return task is not None and task.done() and task.result() is None


def _runs(places: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group (position, start, stop) that lie beside each other, up to 32 MiB.

    Examples
    --------
    >>> _runs([(0, 0, 10), (1, 10, 20), (2, 30, 40)])
    [[(0, 0, 10), (1, 10, 20)], [(2, 30, 40)]]
    """
    runs: list[list[tuple[int, int, int]]] = []
    for place in sorted(places, key=lambda place: place[1:]):
        if runs and runs[-1][-1][2] == place[1] and place[2] - runs[-1][0][1] <= _RUN_BYTES:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


async def _as_bytes(asked: Awaitable[Any]) -> bytes | None:
    found = await asked
    return None if found is None else bytes(found)


class _Stored:
    """Stored bytes, read like a file."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int) -> bytes:
        found = bytes(self._data[self._at : self._at + size])
        self._at += len(found)
        return found

    def readinto(self, target: memoryview) -> int:
        count = min(len(target), len(self._data) - self._at)
        target[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


def _without_checksum(stored: bytes, what: str) -> bytes:
    data, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    if google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise _Damage(f"{what} does not match its checksum")
    return data


def _from_blosc(data: bytes, target: npt.NDArray[np.uint8]) -> None:
    # Blosc trusts the two lengths in its header: it would read past the end of a truncated chunk, and leave the end of
    # the buffer unwritten for a short one.
    length, stored = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
    if stored != len(data) or len(data) < _BLOSC_HEADER_BYTES:
        raise _Damage(f"it must have {stored} bytes by its header, got {len(data)}")
    if length != len(target):
        raise _Damage(f"it must decompress to {len(target)} bytes, got {length}")
    try:
        blosc.decompress(data, target)
    except (RuntimeError, ValueError) as error:
        raise _Damage(f"it cannot be decompressed ({error})") from error


def _from_zstd(data: bytes, target: npt.NDArray[np.uint8]) -> None:
    import pyarrow as pa  # a third of what Zarr takes to import; few pools are compressed this way

    # Arrow's decoder allocates only the expected length: with others, 12 kB may decompress to 400 MB.
    try:
        whole = pa.decompress(data, decompressed_size=len(target), codec="zstd")
    except (OSError, ValueError) as error:
        raise _Damage(f"it must decompress to {len(target)} bytes ({error})") from error
    target[:] = np.frombuffer(whole, dtype=np.uint8)


_DECOMPRESS = {"blosc": _from_blosc, "zstd": _from_zstd}


def _whole_records(array: "zarr.Array[Any]") -> list[str] | None:
    """Return the names of a chunk's codecs where chunks span whole records; None where Zarr must read them."""
    whole = array.chunks[1:] == array.shape[1:] == (array.shards or array.chunks)[1:]
    return _known_codecs(array) if whole else None


def _known_codecs(array: "zarr.Array[Any]") -> list[str] | None:
    """Return the names of a chunk's codecs; None for any that `ChunkFiles` does not read."""
    if array.metadata.zarr_format != 3 or array.dtype.kind in "OT" or array.dtype != array.dtype.newbyteorder("<"):
        return None
    codecs: list[dict[str, Any]] = [dict(codec.to_dict()) for codec in array.metadata.codecs]
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        if shard["index_location"] != "end" or _names(shard["index_codecs"], 8) != ["bytes", "crc32c"]:
            return None
        codecs = list(shard["codecs"])
    names = _names(codecs, array.dtype.itemsize)
    compressed = [name for name in names[1:2] if name in _DECOMPRESS]
    return names if names in (["bytes", *compressed], ["bytes", *compressed, "crc32c"]) else None


def _names(codecs: Iterable[Mapping[str, Any]], item_bytes: int) -> list[str]:
    return [
        "bytes, big-endian"
        if codec["name"] == "bytes" and item_bytes > 1 and codec["configuration"]["endian"] != "little"
        else str(codec["name"])
        for codec in codecs
    ]
