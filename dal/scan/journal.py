"""Finished spans on disk, so that a coordinator that dies costs only the spans that were running."""

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from dal.errors import ScanError
from dal.scan.kernel import SpanResult, Tally
from dal.scan.plan import Interval
from dal.selection import Candidates

WITH_FEATURES, WITHOUT_FEATURES = ".full.npz", ".bare.npz"

_log = logging.getLogger(__name__)


class Journal:
    """The finished spans of one pass, one file each.

    Parameters
    ----------
    directory : path
        The journal's own; it holds at most one pass.

    Notes
    -----
    Files are written beside and renamed, so a file is whole or absent. They lie in a folder named by the digest of
    everything that defines the pass: opened under another digest, the journal starts over.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def open(self, digest: str) -> None:
        """Begin or go on with the pass of this digest; spans of any other are deleted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for other in self.directory.iterdir():
            if other.name != digest and other.is_dir():
                shutil.rmtree(other)
        self.folder = self.directory / digest
        self.folder.mkdir(exist_ok=True)

    def results(self) -> Iterator[SpanResult]:
        """Give the finished spans one by one, in the order of their rows.

        A file that a power cut left torn is deleted: its span is scored again.
        """
        for path in sorted(self.folder.glob("*.npz")):
            try:
                yield decode(path.read_bytes())
            except (EOFError, ValueError, KeyError, BadZipFile) as error:
                _log.warning("The journal's file %s is torn (%s): its rows are scored again.", path, error)
                path.unlink()

    def add(self, result: SpanResult) -> None:
        """Record a finished span."""
        with_features = result.candidates is None or bool(result.candidates.embeddings.shape[1])
        kind = WITH_FEATURES if with_features else WITHOUT_FEATURES
        path = self.folder / f"{result.interval.start:015d}-{result.interval.stop:015d}{kind}"
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(encode(result))
            os.replace(partial, path)  # noqa: PTH105 - says that it is atomic
        except OSError as error:
            raise ScanError(
                f"{path} cannot be written: {error.strerror}. Free space or ask for access, and run again: the spans"
                " that are written are not scored again."
            ) from error

    def has_features(self) -> bool:
        """Say whether all finished spans brought features along; they did not where a cluster was too large for it."""
        return next(self.folder.glob(f"*{WITHOUT_FEATURES}"), None) is None

    def clear(self) -> None:
        """Delete everything, when the pass's result is safe elsewhere."""
        shutil.rmtree(self.directory, ignore_errors=True)


def encode(result: SpanResult) -> bytes:
    """Write a span's result as bytes."""
    tally = result.tally
    numbers = {
        "interval": list(result.interval),
        "seconds": result.seconds,
        "rows": tally.rows,
        "invalid": tally.invalid,
        "confidence": tally.confidence,
        "bytes_read": tally.bytes_read,
        "mass": tally.mass,
    }
    arrays = {
        "invalid_rows": tally.invalid_rows,
        "histogram": tally.histogram,
        "predicted_classes": tally.predicted,
        "numbers": np.frombuffer(json.dumps(numbers).encode(), dtype=np.uint8),
    }
    if result.candidates is not None:
        arrays |= candidate_arrays(result.candidates)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def decode(data: bytes) -> SpanResult:
    """Read what :func:`encode` wrote."""
    with np.load(io.BytesIO(data)) as arrays:
        numbers = json.loads(arrays["numbers"].tobytes())
        tally = Tally(
            numbers["rows"],
            numbers["invalid"],
            arrays["invalid_rows"],
            arrays["histogram"],
            arrays["predicted_classes"],
            numbers["confidence"],
            numbers["bytes_read"],
            numbers["mass"],
        )
        candidates = candidates_from(arrays) if "rows" in arrays else None
    return SpanResult(Interval(*numbers["interval"]), candidates, tally, numbers["seconds"])


def candidate_arrays(candidates: Candidates) -> dict[str, np.ndarray]:
    """Give the candidates as named arrays, for a file."""
    arrays: dict[str, np.ndarray] = {
        "rows": candidates.rows,
        "scores": candidates.scores,
        "cells": candidates.cells,
        "predicted": candidates.predicted,
        "embeddings": candidates.embeddings,
    }
    return arrays if candidates.proba is None else {**arrays, "proba": candidates.proba}


def candidates_from(arrays: "np.lib.npyio.NpzFile") -> Candidates:
    """Read what :func:`candidate_arrays` gave."""
    return Candidates(
        arrays["rows"],
        arrays["scores"],
        arrays["cells"],
        arrays["predicted"],
        arrays["embeddings"],
        arrays.get("proba", None),
    )
