"""Finished spans on disk, so that a coordinator that dies costs only the spans that were running."""

import json
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dal.errors import ScanError
from dal.scan.plan import Interval
from dal.scan.worker.histogram import Histogram
from dal.scan.worker.kernel import SpanResult, Tally
from dal.selection.candidates import Candidates

_SECOND = "-again-"
"""Between the names of a journal and of a pass, in the name of the journal of the pass that follows it."""
FILE_NAME, FEATURES = "spans", "embeddings"
_OPTIONAL = ("proba", "classes", "inner", "content")
_HEAD = struct.Struct("<QI")
"""Before each record: the length of what follows, and its CRC-32."""

_DIGEST = re.compile("[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class Journal:
    """The finished spans of one pass, one after the other in one file.

    Parameters
    ----------
    directory : path
        The journal's own; it holds at most one pass.

    Notes
    -----
    The file lies in a folder named by the digest of everything that defines the pass: opened under another digest, the
    journal starts over. A span is appended by one write, which a process that is killed has done or not done; what a
    power cut leaves behind the last whole record is cut off. A file for each span would cost ten times as much, and in
    a pass of a few seconds on hundreds of workers that is felt.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def of_second_pass(self, digest: str) -> "Journal":
        """Return the journal of a pass that follows where this one's, named by the digest, has found nothing."""
        return Journal(self.directory.with_name(f"{self.directory.name}{_SECOND}{digest[:16]}"))

    @property
    def is_begun(self) -> bool:
        """Whether it holds a pass."""
        return self.directory.is_dir() and any(self.directory.iterdir())

    def open(self, digest: str) -> None:
        """Begin or go on with the pass of this digest; spans of any other are deleted."""
        folder = self.directory / digest
        self.path = folder / FILE_NAME
        with self._failure_told():
            self.directory.mkdir(parents=True, exist_ok=True)
            for other in self.directory.iterdir():
                if other.name != digest:
                    _remove_pass(other)
            folder.mkdir(exist_ok=True)

    def results(self) -> Iterator[SpanResult]:
        """Iterate over the finished spans, in the order in which they ended."""
        return map(decode, self._records())

    def _records(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self._failure_told(), self.path.open("rb+") as file:
            whole = 0
            while (data := _record(file)) is not None:
                whole = file.tell()
                yield data
            if file.seek(0, 2) > whole:
                _log.warning("The journal %s is torn at byte %d: what follows is scored again.", self.path, whole)
                file.truncate(whole)

    def add(self, result: SpanResult) -> None:
        """Record a finished span."""
        data = encode(result)
        record = _HEAD.pack(len(data), zlib.crc32(data)) + data
        with self._failure_told(), self.path.open("ab", buffering=0) as file:
            # A disk that becomes full takes a part of it, and that is no error yet.
            while record:
                record = record[file.write(record) :]

    @contextmanager
    def _failure_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ScanError(
                f"{self.path} cannot be read or written: {error.strerror}; free space, get access or mend the disk, and"
                " run again: the spans that are written are not scored again."
            ) from error

    def clear(self) -> None:
        """Delete the passes, when the result is safe elsewhere; what else lies in the directory stays."""
        for second in self.directory.parent.glob(f"{self.directory.name}{_SECOND}*"):
            Journal(second).clear()
        with suppress(OSError):
            for folder in self.directory.iterdir():
                _remove_pass(folder)
            self.directory.rmdir()


def _remove_pass(folder: Path) -> None:
    """Delete the folder of a pass; nothing else, and none that holds more than a journal writes."""
    if not _DIGEST.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
        return
    own = list(folder.iterdir())
    if all(path.name == FILE_NAME and path.is_file() and not path.is_symlink() for path in own):
        for path in own:
            path.unlink()
        folder.rmdir()


def _record(file: BinaryIO) -> bytes | None:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack(head)
    data = file.read(length)
    # Zeros, as a power cut leaves them, would pass for a record of no bytes.
    return data if length and len(data) == length and zlib.crc32(data) == checksum else None


def encode(result: SpanResult) -> bytes:
    """Write a span's result as bytes: a line of JSON, then its arrays."""
    tally = result.tally
    arrays = {
        "invalid_rows": tally.invalid_rows,
        "histogram": tally.histogram.counts,
        "predicted_classes": tally.predicted,
    }
    if result.candidates is not None:
        arrays |= candidate_arrays(result.candidates)
    told = {
        "interval": list(result.interval),
        "seconds": result.seconds,
        "rows": tally.rows,
        "invalid": tally.invalid,
        "confidence": tally.confidence,
        "bytes_read": tally.bytes_read,
        "mass": tally.mass,
        "repeated": result.repeated,
        "bins": [tally.histogram.exponent, tally.histogram.first],
        "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()],
    }
    return b"".join([json.dumps(told).encode(), b"\n", *(np.ascontiguousarray(a).tobytes() for a in arrays.values())])


def decode(data: bytes) -> SpanResult:
    """Read what :func:`encode` wrote."""
    start = data.index(b"\n") + 1
    told = json.loads(data[:start])
    arrays = {}
    for name, dtype, shape in told["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype, count, start).reshape(shape)
        start += arrays[name].nbytes
    tally = Tally(
        told["rows"],
        told["invalid"],
        arrays["invalid_rows"],
        Histogram(arrays["histogram"], *told["bins"]),
        arrays["predicted_classes"],
        told["confidence"],
        told["bytes_read"],
        told["mass"],
    )
    candidates = candidates_from(arrays) if "rows" in arrays else None
    return SpanResult(Interval(*told["interval"]), candidates, tally, told["seconds"], told["repeated"])


def candidate_arrays(candidates: Candidates) -> dict[str, np.ndarray]:
    """Return the candidates as named arrays, for a file."""
    arrays: dict[str, np.ndarray] = {
        "rows": candidates.rows,
        "scores": candidates.scores,
        "cells": candidates.cells,
        "predicted": candidates.predicted,
        FEATURES: candidates.embeddings,
    }
    seen = {name: getattr(candidates, name) for name in _OPTIONAL}
    return arrays | {name: array for name, array in seen.items() if array is not None}


def candidates_from(arrays: Mapping[str, np.ndarray]) -> Candidates:
    """Read what :func:`candidate_arrays` returned."""
    return Candidates(
        arrays["rows"],
        arrays["scores"],
        arrays["cells"],
        arrays["predicted"],
        arrays[FEATURES],
        **{name: arrays.get(name) for name in _OPTIONAL},
    )
