"""Finished spans on disk, so that a coordinator that dies costs only the spans that were running."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dal.errors import ScanError
from dal.scan.worker.kernel import SpanResult
from dal.scan.worker.record import decode, encode, next_record

_SECOND = "-again-"
"""Between the names of a journal and of a pass, in the name of the journal of the pass that follows it."""
FILE_NAME = "spans"

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
            while (data := next_record(file)) is not None:
                whole = file.tell()
                yield data
            if file.seek(0, 2) > whole:
                _log.warning("The journal %s is torn at byte %d: what follows is scored again.", self.path, whole)
                file.truncate(whole)

    def add(self, result: SpanResult) -> None:
        """Record a finished span."""
        record = result.record or encode(result)
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
