"""Raw records, texts or pictures, as the source of a pool, through an encoder.

Records are encoded in groups that begin at fixed rows. A text's features depend in their last bits on the texts beside
it, by the padding of their batch: the same groups give the same bits, whichever row a build is resumed from. While a
group is encoded, the next one is read and decoded. On a cluster, groups are tasks, and come back in order. After a
process that encoded was killed, as by one of its records, the next one has them encoded in a process apart.
"""

import ctypes
import hashlib
import itertools
import logging
import os
import pickle
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import dask.config
import numpy as np
import numpy.typing as npt

from dal.choices import GPU
from dal.errors import ClusterError, ClusterLost, DalError, SourceError
from dal.pool.apart import Apart, Died
from dal.pool.fields import NAMED, Values, as_field, as_kind
from dal.pool.sizes import SIZES, Sizes
from dal.pool.sources import MAX_FEATURES, Block, Identity, Source
from dal.pool.stored import PICTURE
from dal.pool.tables import Rows

Kind = Literal["texts", "pictures"]
BATCH_SIZE = 32
"""Records of a batch, at most, where an encoder does not name its own `batch_size`."""
_ROOM_SHARE = 0.5
"""Share of the memory that is left in a process with its model, for a batch; records are decoded beside it."""
TEXTS_AT_ONCE = 4096
"""Texts of a block of a table: as objects of Python they take several times their memory."""
_TRIM_BYTES = 2**22
"""Of features between two times that free memory is given back."""
MAX_NAMED = 100
"""Records that a pool names of those which could not be encoded; all are counted."""
_DECODERS = min(8, os.cpu_count() or 1)
PATIENCE_SECONDS = 600.0
"""In which a cluster must return the group that was sent first."""
_IN_FLIGHT = 2
"""Groups on their way for each that a cluster encodes at a time."""
_GPU_SHARE = 0.5
"""Of a GPU that a group takes: one is decoded while another one is encoded."""
_LIGHT_BYTES = 2**20
"""Of a packed encoder that travels with each group."""
_LOOK_SECONDS = 0.5
"""Between two looks at whether a worker is still there."""

_log = logging.getLogger(__name__)
Floats32 = npt.NDArray[np.float32]
Causes = dict[int, str]
"""Why a record of a group has no features, by its position."""


@dataclass(frozen=True)
class Unreadable:
    """A record that its source cannot read.

    Attributes
    ----------
    cause : str
    """

    cause: str


@dataclass(frozen=True)
class Raw:
    """Some rows of a source of raw records.

    Attributes
    ----------
    records : sequence
        Texts or None, or pictures: the bytes of a file, an array (h, w, c) of uint8, or `Unreadable`.
    ids : sequence, optional
    fields : mapping of str to sequence
        As of a `Block`.
    """

    records: Sequence[Any]
    ids: Values | None = None
    fields: Mapping[str, Values] = field(default_factory=dict)

    def __getitem__(self, part: slice) -> "Raw":
        ids = None if self.ids is None else self.ids[part]
        return Raw(self.records[part], ids, {name: values[part] for name, values in self.fields.items()})


class RawSource(Protocol):
    """A stream of raw records."""

    kind: Kind
    n_rows: int | None
    single: bool

    @property
    def identity(self) -> Identity | None:
        """Values that identify the source; None where it cannot be identified."""

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Description of the source that the pool keeps."""

    def raw(self, start: int) -> Iterator[Raw]:
        """Yield the records from row `start` on."""


class RawTexts:
    """A column of a table as texts; it stays a display field.

    Parameters
    ----------
    table : Rows
        Yields blocks whose fields hold the texts.
    column : str
    """

    kind: Kind = "texts"

    def __init__(self, table: Rows, column: str) -> None:
        self._table, self._column = table, column
        self.n_rows: int | None = table.n_rows
        self.single = table.single
        if self.n_rows is None and not self.single:
            # A pass over a table takes seconds, its encoding hours: it pays to know how far that is.
            self.n_rows = sum(len(block.features) for block in table.blocks(0))

    @property
    def identity(self) -> Identity | None:
        """The table's identity and the column."""
        table = self._table.identity
        return None if table is None else {**table, "text": self._column}

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Names of the columns of ids and texts."""
        return {"ids": self._table.columns.ids, "text": self._column}

    def raw(self, start: int) -> Iterator[Raw]:
        """Yield the texts from row `start` on; None where there is none."""
        row = start
        for block in self._table.blocks(start):
            values = as_field(self._column, block.fields[self._column], row, len(block.features))
            texts: list[str | None] = as_kind(values, "text", self._column, row).to_pylist()
            yield Raw(texts, block.ids, block.fields)
            row += len(texts)


class RawArrays:
    """Records (h, w, c) of uint8 as pictures.

    Parameters
    ----------
    source : Source
        Arrays of NumPy, Zarr or Dask, or a file of one.
    """

    kind: Kind = "pictures"

    def __init__(self, source: Source) -> None:
        self._source = source
        self.n_rows: int | None = source.n_rows
        self.single = source.single

    @property
    def identity(self) -> Identity | None:
        """The identity of the arrays."""
        return self._source.identity

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Note that the records are pictures."""
        return {"images": True}

    def raw(self, start: int) -> Iterator[Raw]:
        """Yield the pictures from row `start` on."""
        row = start
        for block in self._source.blocks(start):
            pixels = block.features
            if pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or pixels.dtype != np.uint8:
                raise SourceError(
                    "`source` must hold pictures (N, h, w, c) of uint8 with 1, 3 or 4 channels to be encoded, got "
                    f"shape {pixels.shape} of {pixels.dtype} from row {row} on; convert it, or leave out the encoder"
                )
            yield Raw(list(pixels), block.ids, block.fields)
            row += len(pixels)


class Encoded:
    """A source whose features an encoder makes of raw records.

    Parameters
    ----------
    records : RawSource
    encoder : object
        See :class:`dal.encoders.Encoder`.
    client : distributed.Client, optional
        Workers that encode. Default: this process.
    sizes : Sizes, optional
        Of the groups.
    max_deadly : int, default=8
        Records that may end their workers before the build ends: more are the fault of the encoder, or of the machines.

    Raises
    ------
    SourceError
        The encoder has no `encode` or no `id`.
    """

    def __init__(
        self,
        records: RawSource,
        encoder: Any,  # noqa: ANN401 - anybody's
        client: Any = None,  # noqa: ANN401 - a Client of Dask
        sizes: Sizes = SIZES,
        *,
        max_deadly: int = 8,
    ) -> None:
        refuse_encoder(encoder)
        if client is not None and not callable(getattr(client, "scatter", None)):
            raise SourceError(f"`client` must be a Client of Dask, got {type(client).__name__}; connect one")
        self._records, self._encoder, self._client = records, encoder, client
        self.n_rows: int | None = records.n_rows
        self.single = records.single
        self._batch: int | None = getattr(encoder, "batch_size", None)
        self._group_rows = sizes.group_texts if records.kind == "texts" else sizes.group_pictures
        self._max_deadly = max_deadly
        self._missing_before_start = 0
        self._named: list[tuple[int, str, str]] = []
        self._more: list[int] = []
        self._shipped: Shipped | None = None
        self._held: Any = None
        self._on_gpus: bool | None = None  # decided by the workers that are there when the first task is sent
        self._deadly = 0
        self._child: Apart | None = None
        self.apart = False
        """Whether records are encoded in a process apart, which may die of one; for builds without workers."""

    @property
    def here(self) -> bool:
        """Whether this process encodes, and not workers."""
        return self._client is None

    @property
    def identity(self) -> Identity | None:
        """The identity of the records, the id of the encoder, and the rows of batch and group, which move last bits."""
        known = self._records.identity
        if known is None:
            return None
        batch = {"batch_size": self.batch_size, "group_rows": self._group_rows}
        return {**known, "encoder": self._encoder.id, **batch}

    @property
    def batch_size(self) -> int:
        """Records of a batch: the encoder's own, or as many as memory has room for, the same in all processes."""
        if self._batch is None:
            self._batch = self._fitting()
        return self._batch

    def keep_batch_size(self, source: Mapping[str, Any] | None) -> None:
        """Take the batch size of an interrupted build, where the encoder leaves it open: memory may have changed."""
        if self._batch is None and source is not None:
            self._batch = source.get("batch_size")

    def _fitting(self) -> int:
        """Choose a batch size by the memory of this process, or of the smallest worker."""
        if not hasattr(self._encoder, "fitting"):
            return BATCH_SIZE
        if self._client is None:
            from distributed.system import MEMORY_LIMIT

            return fitting(self._encoder, self._records.kind, MEMORY_LIMIT)
        with _losses("the smallest worker has not looked up its memory"):
            limits = {
                address: int(each["memory_limit"] or 0) or sys.maxsize for address, each in self._workers().items()
            }
            smallest = min(limits, key=lambda address: (limits[address], address))
            task = self._sent(
                fitting_on, self._records.kind, limits[smallest], workers=[smallest], allow_other_workers=True
            )
            found: int = task.result(timeout=PATIENCE_SECONDS)
        return found

    @property
    def made_from(self) -> Mapping[str, Any]:
        """The description of the records, and the id of the encoder."""
        return {**self._records.made_from, "encoder": self._encoder.id}

    def missing_before(self, row: int) -> dict[str, Any]:
        """Return the records before a row that have no features, as a pool keeps them: their number, some names."""
        named = [list(each) for each in self._named if each[0] < row]
        return {
            "count": self._missing_before_start + len(named) + sum(each < row for each in self._more),
            "named": named,
        }

    def resume(self, known: Mapping[str, Any]) -> None:
        """Take over what an interrupted build has found, as `missing_before` returned it."""
        self._named = [(int(row), str(name), str(cause)) for row, name, cause in known.get("named", ())]
        self._missing_before_start = int(known.get("count", 0)) - len(self._named)

    def blocks(self, start: int) -> Iterator[Block]:
        """Encode the records from row `start` on."""
        group_rows = self.batch_size * max(1, self._group_rows // self.batch_size)
        begin = row = start - start % group_rows
        width: int | None = None
        untrimmed = 0
        for group, encoded in self._encoded(_groups(self._records.raw(begin), group_rows)):
            features, causes = encoded.features, encoded.causes
            if not features.shape[1]:  # no record of the group could be encoded
                width = width or _width(self._encoder, self._records.kind)
                features = np.full((len(features), width), np.nan, np.float32)
            width = features.shape[1]
            at = 0
            for piece in group:
                for position in range(at, at + len(piece.records)):
                    if position in causes and row + position >= start:
                        self._note(row + position, piece, position - at, causes[position])
                skip = min(len(piece.records), max(0, start - row - at))
                kept = piece[skip:]
                if len(kept.records):
                    part = slice(at + skip, at + len(piece.records))
                    shown = {PICTURE: encoded.shown[part]} if self._records.kind == "pictures" else {}
                    yield Block(features[part], kept.ids, {**kept.fields, **shown})
                at += len(piece.records)
            row += at
            untrimmed += features.nbytes
            if untrimmed > _TRIM_BYTES:
                _trim()
                untrimmed = 0
        found = self.missing_before(row)
        if row > begin and found["count"] == row:
            raise SourceError(
                f"`source` must hold {self._records.kind} that can be encoded, got none in {row:,} records: "
                f"{self._named[0][1]}: {self._named[0][2]}"
            )
        if found["count"]:
            _log.warning("%s", missing_text(found))

    def _note(self, row: int, piece: Raw, position: int, cause: str) -> None:
        if len(self._named) < MAX_NAMED:
            name = f"row {row}" if piece.ids is None else str(_plain(piece.ids[position]))
            self._named.append((row, name, cause))
        else:
            self._more.append(row)

    def _encoded(self, groups: Iterator[list[Raw]]) -> Iterator[tuple[list[Raw], "Group"]]:
        if self._client is not None:
            yield from self._on_workers(groups)
            return
        if self.apart:
            yield from self._on_child(groups)
            return
        taken: deque[list[Raw]] = deque()

        def records() -> Iterator[list[Any]]:
            for group in groups:
                taken.append(group)
                yield _records_of(group)

        for encoded in encode_ahead(self._encoder, self._records.kind, self.batch_size, records()):
            yield taken.popleft(), encoded

    def _on_child(self, groups: Iterator[list[Raw]]) -> Iterator[tuple[list[Raw], "Group"]]:
        waiting: deque[list[Raw]] = deque()
        _log.warning("A process that encoded these records was killed: they are encoded in a process apart.")
        try:
            for group in itertools.chain(groups, (None,)):
                if group is not None:
                    waiting.append(group)
                    self._started().send(_records_of(group))
                while len(waiting) > (group is not None):
                    try:
                        yield waiting[0], self._started().receive()
                        waiting.popleft()
                    except Died:
                        self._end_child()
                        _log.warning("records have ended the process that encoded them: they are tried in parts")
                        for each in waiting:
                            yield each, self._rescued(_records_of(each))
                        waiting.clear()
        finally:
            self._end_child()

    def _started(self) -> Apart:
        if self._child is None:
            self._shipped = self._shipped or Shipped.of(self._encoder)
            self._child = Apart(encode_apart, self._shipped, self._records.kind, self.batch_size)
        return self._child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _on_workers(self, groups: Iterator[list[Raw]]) -> Iterator[tuple[list[Raw], "Group"]]:
        with _losses("no worker has been there to encode"):
            workers = self._workers().values()
        at_once = [
            min(each["nthreads"], int(each["resources"][GPU] / _GPU_SHARE)) if self._on_gpus else each["nthreads"]
            for each in workers
        ]
        most = max(1, sum(at_once)) * _IN_FLIGHT
        running: deque[tuple[list[Raw], Any]] = deque()
        try:
            for group in groups:
                if len(running) >= most:
                    yield self._taken(running)
                running.append((group, self._group_sent(_records_of(group))))
            while running:
                yield self._taken(running)
        finally:
            self._client.cancel([future for _, future in running])

    def _workers(self) -> dict[str, Any]:
        """Return the workers that encode, by address, as their scheduler describes them; wait for the first one.

        Those are the workers that declare GPUs, where the encoder uses one and some worker has declared it at first.
        """
        from distributed import KilledWorker

        until = time.monotonic() + PATIENCE_SECONDS
        while not (found := self._there()):
            # The scheduler keeps a task until a worker joins that may do it.
            joined = self._client.submit(_nothing, pure=False, resources={GPU: _GPU_SHARE} if self._on_gpus else None)
            try:
                joined.result(timeout=max(0.0, until - time.monotonic()))
            except KilledWorker:
                continue  # it has left again
            except TimeoutError:
                raise TimeoutError(f"no worker{' declares a GPU' if self._on_gpus else ' is there'} any more") from None
        return found

    def _there(self) -> dict[str, Any]:
        """Return the workers that encode, of those that are there now."""
        every = self._client.scheduler_info(n_workers=-1)["workers"]
        if self._on_gpus is None and every:
            wanted = bool(getattr(self._encoder, "wants_gpu", False))
            self._on_gpus = wanted and any(_gpus(each) for each in every.values())
        return {address: each for address, each in every.items() if not self._on_gpus or _gpus(each)}

    def _group_sent(self, records: list[Any], **where: Any) -> Any:  # noqa: ANN401 - a future
        """Send records to be encoded."""
        return self._sent(encode_group, self._records.kind, self.batch_size, records, **where)

    def _sent(self, function: Callable[..., Any], *what: object, **where: Any) -> Any:  # noqa: ANN401 - a future
        """Send a task, whose first argument is the encoder.

        A light one travels with each task: tasks go where there is time, not where the encoder is. A heavy one is the
        result of a task, which Dask does again where its worker dies. A scattered one would be lost.
        """
        if self._on_gpus:
            where["resources"] = {GPU: _GPU_SHARE}
        # Models and pictures are meant to travel: Dask would warn of each above 10 MB.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PiB"}):
            if self._shipped is None:
                self._shipped = Shipped.of(self._encoder)
            encoder: Any = self._shipped
            if len(self._shipped.packed) > _LIGHT_BYTES:
                if self._held is None or self._held.status in ("error", "cancelled", "lost"):
                    here = {"resources": where["resources"]} if self._on_gpus else {}
                    self._held = self._client.submit(_itself, self._shipped, pure=False, **here)
                encoder = self._held
            return self._client.submit(function, encoder, *what, pure=False, **where)

    def _taken(self, running: "deque[tuple[list[Raw], Any]]") -> tuple[list[Raw], "Group"]:
        """Wait for the group that was sent first; turn the loss of the cluster into an error."""
        from distributed import KilledWorker

        group, future = running.popleft()
        records = _records_of(group)
        with _losses(f"no worker has encoded {len(records)} records"):
            try:
                return group, future.result(timeout=PATIENCE_SECONDS)
            except KilledWorker:
                _log.warning(
                    "%d records have ended the workers that encoded them: they are tried in parts", len(records)
                )
            return group, self._rescued(records)

    def _rescued(self, records: list[Any]) -> "Group":
        """Encode records that have ended a process: in halves, down to the one that does so, which is left out."""
        if (found := self._tried(records)) is not None:
            return found
        if len(records) > 1:
            half = len(records) // 2
            return Group.joined(self._rescued(records[:half]), self._rescued(records[half:]))
        if (found := self._tried(records)) is not None:  # a process may die of something else
            return found
        self._deadly += 1
        whom = "process" if self._client is None else "workers"
        if self._deadly > self._max_deadly:
            raise ClusterError(
                f"more than {self._max_deadly} records have ended the {whom} that encoded them; look at the memory and "
                "at the logs there, then run again: it goes on"
            )
        return Group(np.empty((1, 0), np.float32), {0: f"it has ended the {whom} that encoded it"}, [None])

    def _tried(self, records: list[Any]) -> "Group | None":
        """Encode records in one process and in no other; return None where it dies meanwhile."""
        if self._client is not None:
            return self._tried_on_worker(records)
        try:
            self._started().send(records)
            found: Group = self._started().receive()
        except Died:
            self._end_child()
            return None
        return found

    def _tried_on_worker(self, records: list[Any]) -> "Group | None":
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        address = min(self._workers())
        future, begun = self._group_sent(records, workers=[address]), time.monotonic()
        try:
            while True:
                try:
                    found: Group = future.result(timeout=_LOOK_SECONDS)
                except TimeoutError:
                    if address not in self._client.nthreads():
                        return None
                    if time.monotonic() - begun > PATIENCE_SECONDS:
                        raise
                except (KilledWorker, CancelledError):
                    return None
                else:
                    return found
        finally:
            self._client.cancel([future])


def _gpus(worker: Mapping[str, Any]) -> float:
    """Return the number of GPUs that a worker declares."""
    return float(worker.get("resources", {}).get(GPU, 0))


@contextmanager
def _losses(what: str) -> Iterator[None]:
    """Turn the loss of a cluster into an error that says how far it came."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise ClusterError(f"{what}: {error}; look at the workers' memory, then run again") from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        raise ClusterLost(
            f"{what} ({type(error).__name__}: {error}); bring the cluster up, then run again: it goes on"
        ) from error


# ---- one group


def refuse_encoder(encoder: Any) -> None:  # noqa: ANN401 - anybody's
    """Raise an error for an object that is no encoder."""
    if isinstance(encoder, type) or not callable(getattr(encoder, "encode", None)):
        raise SourceError(
            f"`encoder` must have `encode`, from a batch of records to (n, d) float32, got {encoder!r}; use for "
            "example one of dal.encoders"
        )
    if not (isinstance(getattr(encoder, "id", None), str) and encoder.id):
        raise SourceError(
            f"`encoder` must have an `id`, a text that names its weights and preprocessing, got {encoder!r}; set it"
        )
    size = getattr(encoder, "batch_size", None)
    if size is not None and (type(size) is not int or size < 1):
        raise SourceError(f"`batch_size` of the encoder must be a whole number from 1 on or None, got {size!r}")


@dataclass(frozen=True)
class _Prepared:
    """The records of a group that can be encoded, and why the others cannot."""

    height: int
    positions: list[int]
    values: list[Any]
    causes: Causes
    shown: list[str | None]


@dataclass(frozen=True)
class Group:
    """The features of a group.

    Attributes
    ----------
    features : ndarray of float32, shape (n, d)
        NaN for records that could not be encoded; no columns where none could.
    causes : dict of int to str
        Why they could not, by position.
    shown : list of str or None
        Of pictures, a small one of each for people, as base64; None of texts.
    """

    features: Floats32
    causes: Causes
    shown: list[str | None]

    @classmethod
    def joined(cls, first: "Group", second: "Group") -> "Group":
        """Return the groups of two parts as one."""
        width = max(first.features.shape[1], second.features.shape[1])
        parts = []
        for each in (first, second):
            if each.features.shape[1] not in (0, width):
                raise SourceError(f"`encoder` must return {width} features like before, got {each.features.shape[1]}")
            parts.append(each.features if each.features.shape[1] else np.full((len(each.features), width), np.nan))
        height = len(first.features)
        causes = first.causes | {height + at: cause for at, cause in second.causes.items()}
        return cls(np.concatenate(parts, dtype=np.float32), causes, [*first.shown, *second.shown])


def _prepared(encoder: Any, kind: Kind, records: Sequence[Any]) -> _Prepared:  # noqa: ANN401
    """Decode the records of a group, and prepare them as the encoder asks."""
    prepare: Callable[[Any], Any] | None = getattr(encoder, "prepare", None)

    def one(value: Any) -> Any:  # noqa: ANN401 - what an encoder takes
        if isinstance(value, Unreadable) or prepare is None:
            return value
        try:
            return prepare(value)
        except Exception as error:  # anybody's code
            return Unreadable(f"it cannot be prepared: {type(error).__name__}: {error}")

    shown: list[str | None] = [None] * len(records)
    if kind == "pictures":
        from dal.pool.pictures import picture_of, shown_of

        def drawn(record: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - a file's bytes, or pixels
            picture = record if isinstance(record, Unreadable) else picture_of(record)
            small = None if isinstance(picture, Unreadable) else shown_of(record, picture)
            return one(picture), small

        with ThreadPoolExecutor(_DECODERS, "dal-decode") as threads:
            both = list(threads.map(drawn, records))
        found, shown = [value for value, _ in both], [small for _, small in both]
    else:
        found = [one(text if text and text.strip() else Unreadable("the text is empty")) for text in records]
    causes = {at: each.cause for at, each in enumerate(found) if isinstance(each, Unreadable)}
    # The longest first: a batch that does not fit into memory fails at the beginning.
    order = [at for at in range(len(found)) if at not in causes]
    if kind == "texts":
        order.sort(key=lambda at: -len(records[at]))
    return _Prepared(len(found), order, [found[at] for at in order], causes, shown)


def _features(encoder: Any, group: _Prepared, size: int) -> Group:  # noqa: ANN401
    """Encode a group in batches of a size; records without finite features have NaN and a cause."""
    causes = dict(group.causes)
    features = np.full((group.height, 0), np.nan, np.float32)
    for at in range(0, len(group.values), size):
        batch = group.values[at : at + size]
        found = _encode(encoder, batch)
        if not at:
            features = np.full((group.height, found.shape[1]), np.nan, np.float32)
        if found.shape[1] != features.shape[1]:
            raise SourceError(
                f"`encoder` must return {features.shape[1]} features like before, got {found.shape[1]}; {encoder.id}"
            )
        positions = np.array(group.positions[at : at + size])
        sound = np.isfinite(found).all(axis=1)
        features[positions[sound]] = found[sound]
        causes |= {int(position): "the encoder returns NaN or infinity" for position in positions[~sound]}
    return Group(features, causes, group.shown)


def encode_ahead(encoder: Any, kind: Kind, size: int, groups: Iterator[Sequence[Any]]) -> Iterator[Group]:  # noqa: ANN401
    """Encode groups of records one after another; one is decoded while another one is encoded, no more are held."""
    with ThreadPoolExecutor(1, "dal-decode") as ahead:

        def following() -> _Prepared | None:
            records = next(groups, None)
            return None if records is None else _prepared(encoder, kind, records)

        waiting = ahead.submit(following)
        while (prepared := waiting.result()) is not None:
            waiting = ahead.submit(following)
            yield _features(encoder, prepared, size)


def _encode(encoder: Any, batch: list[Any]) -> Floats32:  # noqa: ANN401
    try:
        found = np.asarray(encoder.encode(batch))
    except DalError:
        raise
    except Exception as error:  # anybody's code
        raise SourceError(f"`encoder` {encoder.id} fails: {type(error).__name__}: {error}") from error
    if found.ndim != 2 or len(found) != len(batch) or not found.shape[1] or found.dtype.kind not in "fiu":
        raise SourceError(
            f"`encoder` must return one row of numbers a record, got shape {found.shape} of {found.dtype} for "
            f"{len(batch)} records; {encoder.id}"
        )
    if found.shape[1] > MAX_FEATURES:
        raise SourceError(f"`encoder` must return at most {MAX_FEATURES:,} features, got {found.shape[1]:,}")
    with np.errstate(over="ignore"):
        return found.astype(np.float32, copy=False)


def _width(encoder: Any, kind: Kind) -> int:  # noqa: ANN401
    """Return the number of features, by a record made up."""
    return int(_features(encoder, _made_up(encoder, kind), 1).features.shape[1])


def _made_up(encoder: Any, kind: Kind) -> _Prepared:  # noqa: ANN401
    """Make up a record, and prepare it; a text is as long as any, because encoders cut long ones."""
    return _prepared(encoder, kind, ["text " * 2000 if kind == "texts" else np.full((32, 32, 3), 128, np.uint8)])


def fitting(encoder: Any, kind: Kind, limit: int) -> int:  # noqa: ANN401
    """Return the batch size for a process that may have `limit` bytes of memory: a power of two, at most 32.

    What the interpreter, its libraries and the model take is not predicted but looked up, once the model is loaded.

    Raises
    ------
    SourceError
        There is no room for one record.
    """
    import psutil

    prepared = _made_up(encoder, kind)
    if not prepared.values:  # its function for one record takes no record that is made up
        return BATCH_SIZE
    try:
        _features(encoder, prepared, 1)  # loads the model, and what its first prediction brings
    except SourceError:  # nor does it encode one: the records will tell
        return BATCH_SIZE
    held = psutil.Process().memory_info().rss
    room = int(_ROOM_SHARE * min(limit - held, psutil.virtual_memory().available))
    found = int(encoder.fitting(prepared.values[0], room))
    if found < 1:
        raise SourceError(
            f"`encoder` {encoder.id} must have memory for one record, got {max(0, room) / 2**20:,.0f} MiB beside the "
            f"{held / 2**20:,.0f} MiB of its process; give it more, or set `batch_size` to go on without this check"
        )
    return int(1 << (min(found, BATCH_SIZE).bit_length() - 1))


def _groups(pieces: Iterable[Raw], rows: int) -> Iterator[list[Raw]]:
    """Yield lists of pieces that have `rows` records together; the last one may have fewer."""
    group: list[Raw] = []
    held = 0
    for piece in pieces:
        at = 0
        while at < len(piece.records):
            part = piece[at : at + rows - held]
            group.append(part)
            held += len(part.records)
            at += len(part.records)
            if held == rows:
                yield group
                group, held = [], 0
    if group:
        yield group


def _records_of(group: list[Raw]) -> list[Any]:
    return [record for piece in group for record in piece.records]


def _trim() -> None:
    """Return free memory to the system.

    Chunks of 16 MiB come and go among batches and texts. The C library keeps the pieces between them, and grows by a
    fifth over 100,000 texts.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; others keep less
    if trim is not None:
        trim(0)


def _plain(value: object) -> object:
    """Return a value of Arrow as one of Python."""
    return value.as_py() if hasattr(value, "as_py") else value


def taken(records: RawSource, rows: npt.NDArray[np.int64]) -> list[Any]:
    """Return the raw records of some ascending rows, from one pass over their source; `Unreadable` where it ends."""
    found: dict[int, Any] = {}
    row = int(rows[0]) if len(rows) else 0
    for piece in records.raw(row) if len(rows) else ():
        low, high = np.searchsorted(rows, (row, row + len(piece.records)))
        for wanted in rows[low:high].tolist():
            record = piece.records[wanted - row]
            # Not a part of the block, which would be held with it.
            found[wanted] = record.copy() if isinstance(record, np.ndarray) else record
        row += len(piece.records)
        if high == len(rows):
            break
    return [found.get(wanted, Unreadable("the source ends before it")) for wanted in rows.tolist()]


def prepared(encoder: Any, kind: Kind, records: Sequence[Any]) -> tuple[npt.NDArray[np.int64], list[Any]]:  # noqa: ANN401
    """Return the positions of the records that can be encoded, and what an encoder gets of these."""
    group = _prepared(encoder, kind, records)
    return np.array(group.positions, dtype=np.int64), group.values


def joined(known: Mapping[str, Any], more: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return the records without features of a pool that others are appended to from a row on."""
    named = [*known.get("named", ()), *([row + at, name, cause] for at, name, cause in more["named"])]
    return {"count": known.get("count", 0) + more["count"], "named": named[:MAX_NAMED]}


def missing_text(found: Mapping[str, Any]) -> str:
    """Return a sentence about the records of a pool that could not be encoded.

    >>> missing_text({"count": 1, "named": [[7, "a.jpg", "it is truncated"]]})
    '1 record could not be encoded, is kept as missing and never asked: a.jpg (it is truncated)'
    """
    count, named = found["count"], found["named"][:NAMED]
    names = ", ".join(f"{name} ({cause})" for _, name, cause in named)
    rest = f" and {count - len(named):,} more" if count > len(named) else ""
    what = "record could not be encoded, is" if count == 1 else "records could not be encoded, are"
    return f"{count:,} {what} kept as missing and never asked: {names}{rest}"


# ---- on workers


@dataclass(frozen=True)
class Shipped:
    """An encoder as it travels to workers: its id, packed, and a digest by which a process knows what it unpacked."""

    id: str
    digest: str
    packed: bytes

    @classmethod
    def of(cls, encoder: Any) -> "Shipped":  # noqa: ANN401
        """Pack an encoder; raise an error where it cannot be."""
        import cloudpickle  # by value where no other process can import it, as in a notebook

        try:
            packed = cloudpickle.dumps(encoder)
        except Exception as error:  # anybody's object
            raise SourceError(
                f"`encoder` must be picklable to travel to other processes, got {encoder.id}: {error}; name its module"
            ) from error
        return cls(encoder.id, hashlib.sha256(packed).hexdigest(), packed)


_HELD: dict[str, tuple[Any, threading.Lock]] = {}
_holding = threading.Lock()


def _held(shipped: Shipped) -> tuple[Any, threading.Lock]:
    """Return this process's encoder and the lock on it; unpack it the first time."""
    with _holding:
        if shipped.digest not in _HELD:
            _HELD.clear()  # of an earlier build: a model may fill the memory
            encoder = pickle.loads(shipped.packed)
            if encoder.id != shipped.id:
                raise SourceError(
                    f"`encoder` must have the same weights on each worker, got {encoder.id} on {socket.gethostname()} "
                    f"for {shipped.id}; copy the model's files there"
                )
            _HELD[shipped.digest] = (encoder, threading.Lock())
        return _HELD[shipped.digest]


def _nothing() -> None:
    """Do nothing: a task that ends once there is a worker for it."""


def _itself(value: Shipped) -> Shipped:
    """Return an encoder that travels, as the result of a task."""
    return value


def encode_group(shipped: Shipped, kind: Kind, size: int, records: Sequence[Any]) -> Group:
    """Encode a group of records on a worker; the threads of a process decode together and encode one by one."""
    encoder, lock = _held(shipped)
    prepared = _prepared(encoder, kind, records)
    with lock:
        return _features(encoder, prepared, size)


def encode_apart(shipped: Shipped, kind: Kind, size: int, groups: Iterator[Sequence[Any]]) -> Iterator[Group]:
    """Encode groups of records in a process apart."""
    encoder, _ = _held(shipped)
    yield from encode_ahead(encoder, kind, size, groups)


def fitting_on(shipped: Shipped, kind: Kind, limit: int) -> int:
    """Return the batch size for a worker, see `fitting`."""
    encoder, lock = _held(shipped)
    with lock:
        return fitting(encoder, kind, limit)
