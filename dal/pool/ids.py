"""Record ids: their hash, and the sorted index that finds duplicates and rows in bounded memory.

The index is three arrays: `hash`, the 64-bit hashes of all ids in ascending order; `row`, the row of each; and
`fence`, the first hash of every chunk of `hash`. A look-up searches `fence` and reads only the chunks that can match.
Two ids may share a hash, so every match is compared with the id itself.
"""

import contextlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from dal._distribution import install_line
from dal.errors import ChunkError, PoolError, SourceError
from dal.pool.chunks import grouped, read_rows, take_rows
from dal.selection.order import splitmix64

ENTRY = np.dtype([("hash", "<u8"), ("row", "<i8")])
MAX_BUCKETS = 256
"""Files open at a time."""
_READ_ROWS, _READ_CHUNKS = 2**15, 8
"""Of a read: Zarr asks a store for up to ten chunks together."""
NAMED = 5
COMPARED = 10_000
"""Ids with equal hashes that are read at a time."""

Index = tuple["zarr.Array[Any]", "zarr.Array[Any]", "zarr.Array[Any]"]
Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]


HASH = "splitmix64/1"
"""Name and version of the hash of new indexes. A pool stores it: another hash needs another name."""
HASH_OF_OLD = "pandas"
"""The hash of indexes that store no name."""
_HASH_BLOCK = 2**15


def hash_ids(record_ids: npt.NDArray[np.object_], how: str = HASH) -> npt.NDArray[np.uint64]:
    """Return the 64-bit hash of each id, the same on every machine and in every version.

    Parameters
    ----------
    record_ids : ndarray of str objects, shape (n,)
    how : str
        Name of the hash, a key of `HASHES`.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Examples
    --------
    >>> hash_ids(np.array(["007", ""], dtype=object)).tolist()
    [16568435594678004626, 16294208416658607535]
    """
    return HASHES[how](record_ids)


def _splitmix64(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.uint64]:
    hashes = np.empty(len(texts), dtype=np.uint64)
    for first in range(0, len(texts), _HASH_BLOCK):
        part = slice(first, first + _HASH_BLOCK)
        hashes[part] = _splitmix64_of_block(texts[part])
    return hashes


def _splitmix64_of_block(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.uint64]:
    """Mix the number of UTF-8 bytes of each text, then its bytes, eight at a time, little-endian, zeros at the end."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    left = np.fromiter(map(len, encoded), np.int64, len(encoded))
    data = b"".join([*encoded, bytes(8)])
    # The eight bytes that begin at each byte of the data.
    words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    start = np.cumsum(left) - left
    hashes = splitmix64(left.astype(np.uint64))
    at = np.flatnonzero(left)
    while len(at):
        bits = np.uint64(8) * np.minimum(left[at], 8).astype(np.uint64)
        own = np.uint64(2**64 - 1) >> (np.uint64(64) - bits)
        hashes[at] = splitmix64(hashes[at] ^ (words[start[at]].astype(np.uint64) & own))
        left[at] -= 8
        start[at] += 8
        at = at[left[at] > 0]
    return hashes


def _pandas(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.uint64]:
    try:
        from pandas.util import hash_array  # takes a second, and only old pools need it
    except ImportError as error:
        raise PoolError(
            "pandas must be installed, because an older dal indexed the ids of this pool by its hash; "
            f"{install_line('pandas')}, or build the pool again, or append to it, and no pandas is needed"
        ) from error
    return np.asarray(hash_array(texts, categorize=False), dtype=np.uint64)


HASHES: Mapping[str, Callable[[npt.NDArray[np.object_]], npt.NDArray[np.uint64]]] = {
    HASH: _splitmix64,
    HASH_OF_OLD: _pandas,
}


def find_rows(
    record_ids: Sequence[str], ids: "zarr.Array[Any]", index: Index, how: str = HASH
) -> npt.NDArray[np.int64]:
    """Return the rows of `record_ids`, -1 where the pool has no such record.

    Parameters
    ----------
    record_ids : sequence of str
        Ids to look up; may repeat.
    ids : zarr.Array of shape (N,)
        The pool's ids, by row.
    index : tuple of zarr.Array
        The arrays `hash`, `row` and `fence`.
    how : str
        Name of the index's hash; see `hash_ids`.

    Returns
    -------
    ndarray of int64, shape (len(record_ids),)
    """
    wanted = np.fromiter(record_ids, dtype=object, count=len(record_ids))
    found = np.full(len(wanted), -1, dtype=np.int64)
    positions, rows = _candidates(hash_ids(wanted, how), index)
    same = take_rows(ids, rows).astype(object) == wanted[positions]
    found[positions[same]] = rows[same]
    return found


def _candidates(hashes: npt.NDArray[np.uint64], index: Index) -> Pairs:
    """Return every pair (position, row) in which the id of the row has the hash at the position."""
    fence = read_rows(index[2], 0, index[2].shape[0])
    first = np.maximum(np.searchsorted(fence, hashes, side="left") - 1, 0)
    last = np.maximum(np.searchsorted(fence, hashes, side="right") - 1, 0)
    pairs: list[Pairs] = [(np.empty(0, dtype=np.intp), np.empty(0, dtype=np.int64))]
    # Equal hashes may cross the end of a chunk, so a hash has a first and a last chunk; nearly always they are the
    # same.
    for step in range(int((last - first).max(initial=-1)) + 1):
        asked = np.flatnonzero(first + step <= last)
        for chunk, members in grouped(first[asked] + step):
            positions = asked[members]
            matched, rows = _in_chunk(hashes[positions], chunk, index)
            pairs.append((positions[matched], rows))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def _in_chunk(hashes: npt.NDArray[np.uint64], chunk: int, index: Index) -> Pairs:
    height, entries = index[0].chunks[0], index[0].shape[0]
    start, stop = chunk * height, min((chunk + 1) * height, entries)
    block = read_rows(index[0], start, stop)
    first = np.searchsorted(block, hashes, side="left")
    counts = np.searchsorted(block, hashes, side="right") - first
    matched = np.repeat(np.arange(len(hashes)), counts)
    if not len(matched):
        return matched, np.empty(0, dtype=np.int64)
    nth = np.arange(len(matched)) - np.repeat(np.cumsum(counts) - counts, counts)
    return matched, read_rows(index[1], start, stop)[np.repeat(first, counts) + nth]


def sorted_entries(
    ids: "zarr.Array[Any]", folder: Path, bucket_entries: int, ahead: int = 0, *, compared: int = COMPARED
) -> Iterator[npt.NDArray[np.void]]:
    """Yield all (hash, row) entries of the ids in ascending order, bucket by bucket.

    Parameters
    ----------
    ids : zarr.Array of shape (N,)
        The ids of all rows.
    folder : Path
        An empty folder for the buckets, 16 bytes a row. Each file is removed after its bucket was yielded.
    bucket_entries : int
        Entries to sort in memory at a time, of 16 bytes each; more, where there are too many for 256 buckets.
    ahead : int, default=0
        Reads, of up to about 32,768 ids each, that are begun before they are needed: over a network.
    compared : int, default=10_000
        Ids with equal hashes to read at a time.

    Yields
    ------
    ndarray of `ENTRY`
        One bucket, sorted by hash, then row.

    Raises
    ------
    SourceError
        An id repeats.
    """
    n_buckets = min(MAX_BUCKETS, 1 << max(0, (ids.shape[0] - 1) // bucket_entries).bit_length())
    paths = [folder / f"bucket-{number:03d}" for number in range(n_buckets)]
    _scatter(ids, paths, ahead)
    for path in paths:
        entries = _in_order(np.fromfile(path, dtype=ENTRY))
        refuse_repeats(entries, lambda rows: take_rows(ids, rows).tolist(), compared)
        yield entries
        path.unlink()


def is_bucket(path: Path) -> bool:
    """Check whether a file is named like one that `sorted_entries` writes."""
    return re.fullmatch(r"bucket-\d{3}", path.name) is not None and path.is_file() and not path.is_symlink()


def _scatter(ids: "zarr.Array[Any]", paths: list[Path], ahead: int) -> None:
    """Write the entry of every row to the bucket that the top bits of its hash select."""
    bits = len(paths).bit_length() - 1
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for start, texts in _read(ids, ahead):
            if (texts == "").any():
                raise ChunkError(
                    f"{ids.store_path}: `ids` from row {start} on are empty, their chunk was lost; "
                    "build with overwrite=True (--overwrite)"
                )
            entries = _entries(texts, start)
            # In two steps: with one bucket a single shift would be by 64 bits, which is undefined.
            buckets = (entries["hash"] >> np.uint64(1)) >> np.uint64(63 - bits)
            for bucket, positions in grouped(buckets.astype(np.int64)):
                files[bucket].write(entries[positions].tobytes())


def _read(ids: "zarr.Array[Any]", ahead: int) -> Iterator[tuple[int, npt.NDArray[np.object_]]]:
    """Yield all ids in order, some rows at a time, and the first row of each part."""
    unit, n_rows = (ids.shards or ids.chunks)[0], ids.shape[0]
    height = min(_READ_CHUNKS, max(1, _READ_ROWS // unit)) * unit

    def read(start: int) -> npt.NDArray[Any]:
        return read_rows(ids, start, min(start + height, n_rows))

    if not ahead:
        for start in range(0, n_rows, height):
            yield start, read(start).astype(object)
        return
    asked: deque[tuple[int, Future[npt.NDArray[Any]]]] = deque()
    with ThreadPoolExecutor(ahead, "dal-ids") as threads:
        try:
            for start in range(0, n_rows, height):
                if len(asked) == ahead:
                    first, found = asked.popleft()
                    yield first, found.result().astype(object)
                asked.append((start, threads.submit(read, start)))
            for first, found in asked:
                yield first, found.result().astype(object)
        finally:
            threads.shutdown(cancel_futures=True)


def _entries(texts: npt.NDArray[np.object_], start: int) -> npt.NDArray[np.void]:
    entries = np.empty(len(texts), dtype=ENTRY)
    entries["hash"] = hash_ids(texts)
    entries["row"] = np.arange(start, start + len(texts))
    return entries


def _in_order(entries: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    return entries[np.lexsort((entries["row"], entries["hash"]))]


def refuse_repeated(record_ids: npt.NDArray[np.object_]) -> None:
    """Refuse ids in memory that repeat.

    Raises
    ------
    SourceError
        Names up to five ids and their rows.
    """
    refuse_repeats(_in_order(_entries(record_ids, 0)), lambda rows: record_ids[rows].tolist())


def refuse_repeats(
    entries: npt.NDArray[np.void], texts_of: Callable[[npt.NDArray[np.int64]], list[str]], compared: int = COMPARED
) -> None:
    """Raise an error if any id repeats.

    Parameters
    ----------
    entries : ndarray of `ENTRY`
        Entries in ascending order.
    texts_of : callable
        Returns the ids of some rows; called only for rows whose hashes are equal.
    compared : int, default=10_000
        Rows that it is called for at a time.

    Raises
    ------
    SourceError
        The message names up to five ids and their rows.
    """
    equal = np.flatnonzero(entries["hash"][1:] == entries["hash"][:-1])
    suspects = entries["row"][np.union1d(equal, equal + 1)]
    repeats: dict[str, list[int]] = {}
    for first in range(0, len(suspects), compared):
        rows = suspects[first : first + compared]
        for row, text in zip(rows.tolist(), texts_of(rows), strict=True):
            repeats.setdefault(text, []).append(row)
        repeated = {text: rows for text, rows in repeats.items() if len(rows) > 1}
        if repeated:
            raise SourceError(_repeats_message(repeated))


def _repeats_message(repeated: dict[str, list[int]]) -> str:
    first = sorted(repeated.items(), key=lambda item: min(item[1]))[:NAMED]
    named = "; ".join(f"{text!r} in rows {', '.join(map(str, sorted(rows)[:NAMED]))}" for text, rows in first)
    return f"`ids` must be unique, got repeats: {named}; remove the repeated records, or choose another id"
