"""Kept features: a file of records that only grows, each with a check, so that none is read from the pool twice.

Beside it stands a file of marks: of each record its row, and a hash of row and features. A record whose hash is another
one counts as not kept. So nothing needs to be on disk before anything else: a kill or a power cut costs the records
that were being written, and two processes that write at once, on a disk without locks, cost theirs.
"""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dal._files import reason_of
from dal.errors import CampaignError
from dal.selection.once import content_hash
from dal.selection.order import row_hash

Rows = npt.NDArray[np.int64]
Places = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)

_MARK = np.dtype([("row", "<i8"), ("check", "<u8")])
_AT_ONCE_BYTES = 8 * 2**20
"""Of features that are read at a time."""


class KeptFeatures:
    """Features of records in two files that only grow; several processes may read and add at once.

    Parameters
    ----------
    folder : Path
        May not be there yet.
    name : str
        Of the files, without their suffixes.
    n_features : int
    """

    def __init__(self, folder: Path, name: str, n_features: int) -> None:
        self._folder, self._width = folder, n_features
        self._marks_path, self._path = folder / f"{name}.rows", folder / f"{name}.features"
        self._marks = np.empty(0, _MARK)
        self._order, self._known = np.empty(0, np.int64), np.empty(0, np.int64)
        self._warned = False

    @property
    def at_once(self) -> int:
        """Records that are read at a time."""
        return max(1, _AT_ONCE_BYTES // self._bytes)

    @property
    def _bytes(self) -> int:
        return 4 * self._width

    def find(self, rows: Rows) -> Places:
        """Find the places of rows; -1 of those that were not kept. A row that was kept twice has its later place."""
        self._refresh()
        places = np.full(len(rows), -1, dtype=np.int64)
        if len(self._known):
            nearest = np.searchsorted(self._known, rows, side="right") - 1
            mine = (nearest >= 0) & (self._known[nearest] == rows)
            places[mine] = self._order[nearest[mine]]
        return places

    def read(self, places: Places, into: Floats32) -> npt.NDArray[np.bool_]:
        """Read the records at some places into an array (n, d), in the order of the file; return which are sound."""
        sound = np.zeros(len(places), dtype=bool)
        if not len(places):  # nor need there be a file
            return sound
        order = np.argsort(places, kind="stable")
        with self._path.open("rb", buffering=0) as file:
            for start in range(0, len(order), self.at_once):
                part = order[start : start + self.at_once]
                X, marks = _read(file.fileno(), places[part], self._width), self._marks[places[part]]
                into[part] = X
                sound[part] = _checks(marks["row"], X) == marks["check"]
        return sound

    def pick(self, places: Places) -> Floats32:
        """Read the records at some places, which `read` has found sound before.

        Raises
        ------
        CampaignError
            If they are not any more: the next run reads them from the pool.
        """
        X = np.empty((len(places), self._width), np.float32)
        if not len(places):
            return X
        try:
            sound = np.max(places) < len(self._marks) and self.read(places, X).all()
        except OSError as error:
            raise CampaignError(f"{self._path} cannot be read: {reason_of(error)}") from error
        if not sound:
            raise CampaignError(f"{self._path} was changed while a round used it; run again")
        return X

    def add(self, rows: Rows, X: Floats32) -> bool:
        """Keep records, and return whether they are; where they cannot be written, warn once and go on."""
        if not len(rows):
            return True
        records = np.ascontiguousarray(X, dtype="<f4")
        marks = np.empty(len(rows), _MARK)
        marks["row"], marks["check"] = rows, _checks(rows, records)
        try:
            self._folder.mkdir(exist_ok=True)
            with self._marks_path.open("ab", buffering=0) as ends, self._path.open("ab", buffering=0) as file:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(ends, fcntl.LOCK_EX)
                # A kill may have left a part of a record, or records without marks.
                whole = self._whole(ends.fileno(), file.fileno())
                os.truncate(ends.fileno(), whole * _MARK.itemsize)
                os.truncate(file.fileno(), whole * self._bytes)
                _write(file.fileno(), records.tobytes())
                _write(ends.fileno(), marks.tobytes())
        except OSError as error:
            if not self._warned:
                _log.warning(
                    "Features of %d records are not kept, and are read again when they are needed: %s",
                    len(rows),
                    reason_of(error),
                )
            self._warned = True
            return False
        return True

    def _whole(self, marks: int, features: int) -> int:
        return min(os.fstat(marks).st_size // _MARK.itemsize, os.fstat(features).st_size // self._bytes)

    def _refresh(self) -> None:
        """Read the marks that were added since."""
        with suppress(FileNotFoundError), self._marks_path.open("rb") as ends, self._path.open("rb") as file:
            whole = self._whole(ends.fileno(), file.fileno())
            if whole != len(self._marks):
                self._marks = np.fromfile(ends, _MARK, whole)
                # Of equal rows the last one comes last.
                self._order = np.argsort(self._marks["row"], kind="stable")
                self._known = self._marks["row"][self._order]
            return
        self._marks, self._order, self._known = self._marks[:0], self._order[:0], self._known[:0]


class Records:
    """Features of records, in an order of their own, of which a part is read when it is indexed.

    Parameters
    ----------
    kept : KeptFeatures
    places : ndarray of int64, shape (n,)
        Of sound records.

    Attributes
    ----------
    shape : tuple of int
    """

    def __init__(self, kept: KeptFeatures, places: Places) -> None:
        self._kept, self._places = kept, places
        self.shape = len(places), kept._width

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, positions: "slice | npt.NDArray[np.generic]") -> Floats32:
        """Read the records at these positions, (n, d)."""
        return self._kept.pick(self._places[positions])

    def part(self, positions: npt.NDArray[np.int64]) -> "Records":
        """Return the records at these positions without reading them."""
        return Records(self._kept, self._places[positions])


def _read(file: int, places: Places, width: int) -> Floats32:
    """Read the records at ascending places: neighbours by one call."""
    X = np.empty((len(places), width), dtype="<f4")
    if not X.size:
        return X
    view, each = memoryview(X).cast("B"), 4 * width
    starts = np.flatnonzero(np.append(True, np.diff(places) != 1))
    ends = np.append(starts[1:], len(places))
    for start, end, at in zip(starts.tolist(), ends.tolist(), places[starts].tolist(), strict=True):
        done, wanted = 0, (end - start) * each
        while done < wanted:
            got = os.preadv(file, [view[start * each + done : end * each]], at * each + done)
            if not got:
                raise CampaignError("the file of kept features was cut off while it was read; run again")
            done += got
    return X


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _checks(rows: Rows, X: Floats32) -> npt.NDArray[np.uint64]:
    return content_hash(X) ^ row_hash(rows, 0, 0)
