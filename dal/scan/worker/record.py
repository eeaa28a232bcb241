"""The result of a span as bytes: on the way from a worker, and in the journal."""

import json
import os
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np

from dal.scan.plan import Interval
from dal.scan.worker.histogram import Histogram
from dal.scan.worker.kernel import SpanResult, Tally
from dal.selection.candidates import candidate_arrays, candidates_from

_HEAD = struct.Struct("<QI")
"""Of a record: the length of what follows, and its CRC-32."""


def encode(result: SpanResult) -> bytes:
    """Write a span's result as a record: a head, a line of JSON, then its arrays.

    A worker does so, and the coordinator puts the record into its journal as it came: it is the one process that the
    others may wait for.
    """
    tally = result.tally
    arrays = {
        "invalid_rows": tally.invalid_rows,
        "histogram": tally.histogram.counts,
        "predicted_classes": tally.predicted,
    }
    if result.candidates is not None:
        arrays |= candidate_arrays(result.candidates)
    # The widest first, from a multiple of eight bytes on: each lies where processors read it at once.
    narrow = [(name, _narrowest(array)) for name, array in arrays.items()]
    narrow.sort(key=lambda named: -named[1].itemsize)
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
        "arrays": [(name, array.dtype.str, array.shape) for name, array in narrow],
    }
    line = json.dumps(told).encode()
    # No copies but the last one: with the embeddings of a network this is hundreds of megabytes.
    parts: list[Any] = [line, b" " * (-(_HEAD.size + len(line) + 1) % 8) + b"\n"]
    parts += [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, array in narrow]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([_HEAD.pack(sum(map(len, parts)), checksum), *parts])


def _narrowest(array: np.ndarray) -> np.ndarray:
    """Return integers in two or four bytes where they fit: a candidate takes half of its bytes then."""
    if array.dtype != np.int64 or not array.size:
        return array
    low, high = int(np.min(array)), int(np.max(array))
    kinds = (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return array.astype(next(kinds, np.int64), copy=False)


def decode(record: bytes) -> SpanResult:
    """Read what :func:`encode` wrote; arrays of other types than integers are views of it."""
    start = record.index(b"\n", _HEAD.size) + 1
    told = json.loads(record[_HEAD.size : start])
    arrays = {}
    for name, dtype, shape in told["arrays"]:
        array = np.ndarray(shape, dtype, record, start)
        start += array.nbytes
        arrays[name] = array.astype(np.int64) if array.dtype.kind == "i" else array
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
    return SpanResult(Interval(*told["interval"]), candidates, tally, told["seconds"], told["repeated"], record)


def next_record(file: BinaryIO) -> bytes | None:
    """Read the next record of a file; None where none follows that is whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack(head)
    here = file.tell()
    if length > file.seek(0, os.SEEK_END) - here:  # a torn head may tell of more bytes than there is memory
        return None
    file.seek(here)
    data = file.read(length)
    # Zeros, as a power cut leaves them, would pass for a record of no bytes.
    return head + data if length and len(data) == length and zlib.crc32(data) == checksum else None
