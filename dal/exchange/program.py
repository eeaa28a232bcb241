"""A program that answers: lines to its standard input, lines from its standard output, and bounds on everything."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from dal.errors import ProgramError, SettingsError

LINE_BYTES = 2**16
"""Longest line that a program may write."""

_AT_ONCE = 2**16
_LAST_WORDS = 1000


class Program:
    """One run of a program.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; no shell is between.
    seconds : float
        Until it must have ended.
    """

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        if not hasattr(os, "pidfd_open"):
            raise SettingsError("`command` must run where its end can be awaited: use Linux 5.3 or newer")
        self._command, self._seconds = list(command), seconds
        self._said = b""
        self._line = b""

    def replies(self, given: bytes) -> Generator[list[bytes]]:
        """Run the program on some lines, and yield the lines that it writes, as they come and without their ends.

        Input and output are served at the same time, so a program may answer each line at once, or read all of them
        first, or none. It is killed, with the processes that it has started, where the caller stops listening. The time
        that the caller takes for the lines is not the program's.

        Parameters
        ----------
        given : bytes
            For its standard input, which is then closed.

        Raises
        ------
        ProgramError
            If it takes too long, writes too long a line, or ends with another status than 0.
        SettingsError
            If it cannot be started.
        """
        deadline = time.monotonic() + self._seconds
        with self._started() as process, selectors.DefaultSelector() as watched:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            ended = os.pidfd_open(process.pid)
            watched.register(ended, selectors.EVENT_READ)
            watched.register(process.stdin, selectors.EVENT_WRITE)
            for pipe in (process.stdout, process.stderr):
                watched.register(pipe, selectors.EVENT_READ)
            try:
                left, running = memoryview(given), True
                # A process that the program left behind may hold its output open for ever: its own end is the end.
                while running:
                    ready = watched.select(max(0.0, deadline - time.monotonic()))
                    has_ended = any(key.fileobj == ended for key, _ in ready)
                    if not has_ended and time.monotonic() > deadline:
                        raise self.error(f"must end within {self._seconds:g} s, and ran on; allow it more time")
                    for key, _ in ready:
                        if key.fileobj is process.stdin:
                            left = _written(process.stdin, left)
                            if not left:
                                watched.unregister(process.stdin)
                                _closed(process.stdin)
                        elif key.fileobj is process.stdout:
                            lines = self._lines(_read(process.stdout, watched))
                            if lines:
                                before = time.monotonic()
                                yield lines
                                deadline += time.monotonic() - before
                        elif key.fileobj is process.stderr:
                            self._heard(_read(process.stderr, watched))
                        else:
                            running = False
                while data := _rest(process.stdout):
                    yield self._lines(data)
                self._heard(_rest(process.stderr))
            finally:
                os.close(ended)
            if (status := process.wait()) != 0:
                by = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
                raise self.error(f"must end with status 0, and {by}; look at its last words")
            if self._line:
                yield [self._line]

    def error(self, text: str) -> ProgramError:
        """Return an error about the program, which ends with the end of what it wrote to its standard error."""
        words = self._said.decode(errors="replace").strip()
        last = f". It wrote: {words}" if words else ""
        return ProgramError(f"`{self._command[0]}` {text}{last}")

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                self._command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise SettingsError(
                f"`command` must name a program that can be run, got {self._command[0]!r}: {error.strerror}"
            ) from error
        try:
            for each in (process.stdin, process.stdout, process.stderr):
                assert each is not None
                os.set_blocking(each.fileno(), False)
            yield process
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for each in (process.stdin, process.stdout, process.stderr):
                assert each is not None
                _closed(each)

    def _lines(self, data: bytes) -> list[bytes]:
        *lines, self._line = (self._line + data).split(b"\n")
        if max(map(len, (*lines, self._line))) > LINE_BYTES:
            raise self.error(f"must write lines of at most {LINE_BYTES:,} bytes, and wrote a longer one; shorten it")
        return lines

    def _heard(self, data: bytes) -> None:
        self._said = (self._said + data)[-_LAST_WORDS:]


def _written(pipe: IO[bytes], left: memoryview) -> memoryview:
    """Write as much as fits; nothing is left where the program no longer listens, which it may."""
    try:
        return left[os.write(pipe.fileno(), left[:_AT_ONCE]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _read(pipe: IO[bytes], watched: selectors.BaseSelector) -> bytes:
    data = _rest(pipe)
    if not data:
        watched.unregister(pipe)
    return data


def _rest(pipe: IO[bytes]) -> bytes:
    try:
        return os.read(pipe.fileno(), _AT_ONCE)
    except BlockingIOError:
        return b""


def _closed(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):
        pipe.close()
