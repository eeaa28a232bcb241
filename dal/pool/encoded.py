"""Raw records, texts or pictures, as the source of a pool, through an encoder.

Records are encoded in groups that begin at fixed rows. A text's features depend in their last bits on the texts beside
it, by the padding of their batch: the same groups give the same bits, whichever row a build is resumed from. While a
group is encoded, the next one is read and decoded. On a cluster, groups are tasks, and come back in order.
"""

import hashlib
import logging
import os
import pickle
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dal.errors import ClusterError, ClusterLost, DalError, SourceError
from dal.pool.fields import NAMED, Values, as_field, as_kind
from dal.pool.sources import MAX_FEATURES, Block, Identity, Source
from dal.pool.stored import PICTURE
from dal.pool.tables import Rows

Kind = Literal["texts", "pictures"]
BATCH_SIZE = 32
"""Records of a batch where an encoder does not name its own `batch_size`."""
GROUP_ROWS: Mapping[Kind, int] = {"texts": 1024, "pictures": 64}
"""Records of a group, rounded to whole batches: texts are sorted by length in it, pictures are decoded in memory."""
MAX_NAMED = 100
"""Records that a pool names of those which could not be encoded; all are counted."""
_DECODERS = min(8, os.cpu_count() or 1)
PATIENCE_SECONDS = 600.0
"""In which a cluster must return the group that was sent first."""
_IN_FLIGHT = 2
"""Groups on their way for each thread of a cluster."""

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

    Raises
    ------
    SourceError
        The encoder has no `encode` or no `id`.
    """

    def __init__(self, records: RawSource, encoder: Any, client: Any = None) -> None:  # noqa: ANN401 - anybody's
        refuse_encoder(encoder)
        if client is not None and not callable(getattr(client, "scatter", None)):
            raise SourceError(f"`client` must be a Client of Dask, got {type(client).__name__}; connect one")
        self._records, self._encoder, self._client = records, encoder, client
        self.n_rows: int | None = records.n_rows
        self.single = records.single
        batch = batch_size_of(encoder)
        self._group_rows = batch * max(1, GROUP_ROWS[records.kind] // batch)
        self._missing_before_start = 0
        self._named: list[tuple[int, str, str]] = []
        self._more: list[int] = []

    @property
    def identity(self) -> Identity | None:
        """The identity of the records, the id of the encoder and its batch size, which moves last bits."""
        known = self._records.identity
        if known is None:
            return None
        return {**known, "encoder": self._encoder.id, "batch_size": batch_size_of(self._encoder)}

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
        begin = row = start - start % self._group_rows
        width: int | None = None
        for group, encoded in self._encoded(_groups(self._records.raw(begin), self._group_rows)):
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
        kind = self._records.kind
        # One group is decoded while another one is encoded; no more are held.
        with ThreadPoolExecutor(1, "dal-decode") as ahead:

            def following() -> tuple[list[Raw], _Prepared] | None:
                group = next(groups, None)
                return None if group is None else (group, _prepared(self._encoder, kind, _records_of(group)))

            waiting = ahead.submit(following)
            while (found := waiting.result()) is not None:
                waiting = ahead.submit(following)
                group, prepared = found
                yield group, _features(self._encoder, prepared)

    def _on_workers(self, groups: Iterator[list[Raw]]) -> Iterator[tuple[list[Raw], "Group"]]:
        client = self._client
        # Sent once, and from worker to worker after that; a task names it.
        [shipped] = client.scatter([Shipped.of(self._encoder)], broadcast=True, hash=False)
        most = max(1, sum(client.nthreads().values())) * _IN_FLIGHT
        running: deque[tuple[list[Raw], Any]] = deque()
        try:
            for group in groups:
                if len(running) >= most:
                    yield self._taken(running)
                records = _records_of(group)
                running.append((group, client.submit(encode_group, shipped, self._records.kind, records, pure=False)))
            while running:
                yield self._taken(running)
        finally:
            client.cancel([future for _, future in running])

    def _taken(self, running: "deque[tuple[list[Raw], Any]]") -> tuple[list[Raw], "Group"]:
        """Wait for the group that was sent first; turn the loss of its workers into an error."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker
        from distributed.comm.core import CommClosedError

        group, future = running.popleft()
        try:
            return group, future.result(timeout=PATIENCE_SECONDS)
        except KilledWorker as error:
            raise ClusterError(
                f"{len(_records_of(group))} records were encoded by workers that died, one after another: {error}; "
                "look at their memory, then run again: it goes on"
            ) from error
        except (CancelledError, CommClosedError, TimeoutError) as error:
            raise ClusterLost(
                f"no worker has encoded {len(_records_of(group))} records ({type(error).__name__}: {error}); bring the "
                "cluster up, then run again: it goes on"
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
    size = getattr(encoder, "batch_size", BATCH_SIZE)
    if type(size) is not int or size < 1:
        raise SourceError(f"`batch_size` of the encoder must be a whole number from 1 on, got {size!r}")


def batch_size_of(encoder: Any) -> int:  # noqa: ANN401 - anybody's
    """Return the number of records that an encoder takes at a time."""
    return int(getattr(encoder, "batch_size", BATCH_SIZE))


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


def _features(encoder: Any, group: _Prepared) -> Group:  # noqa: ANN401
    """Encode a group batch by batch; records without finite features have NaN and a cause."""
    size, causes = batch_size_of(encoder), dict(group.causes)
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
    made_up = "text" if kind == "texts" else np.full((32, 32, 3), 128, np.uint8)
    return int(_features(encoder, _prepared(encoder, kind, [made_up])).features.shape[1])


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
                f"`encoder` must be picklable to travel to workers, got {encoder.id}: {error}; name its module, or "
                "encode in this process"
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


def encode_group(shipped: Shipped, kind: Kind, records: Sequence[Any]) -> Group:
    """Encode a group of records on a worker; the threads of a process decode together and encode one by one."""
    encoder, lock = _held(shipped)
    prepared = _prepared(encoder, kind, records)
    with lock:
        return _features(encoder, prepared)
