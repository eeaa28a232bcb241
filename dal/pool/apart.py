"""A process apart from this one, which works on one thing after another and may die of it.

It is a new interpreter: a copy of a process with threads, as of BLAS or torch, may hang. The script of this process is
not imported there, unlike by `multiprocessing`: a build that is run again needs no guard of its main module.
"""

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

_BEGIN = """
import sys
from multiprocessing.connection import Connection
parent = Connection(int(sys.argv[1]))
sys.path[:] = parent.recv()
from dal.pool.apart import serve
serve(parent)
"""
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class Died(Exception):
    """The process has ended in the middle of its work."""


class Apart:
    """A process that works until `close`.

    Parameters
    ----------
    work : callable
        A function of a module. It is called there with the arguments and an iterator over what `send` is given, and
        yields the answers in the same order.
    *arguments : object
        They travel there by pickle.
    """

    def __init__(self, work: Callable[..., Iterator[Any]], *arguments: object) -> None:
        self._peer, there = Pipe()
        with there:
            command = [sys.executable, "-c", _BEGIN, str(there.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()])
        self.send(sys.path)
        self.send((work, arguments))

    def send(self, value: object) -> None:
        """Send something to be worked on. At most two may wait for their answers: else both sides wait to send."""
        with suppress(*_GONE):  # `receive` says so
            self._peer.send(value)

    def receive(self) -> Any:  # noqa: ANN401 - as `work` yields
        """Return the next answer, or raise the error with which the work has ended.

        Raises
        ------
        Died
            The process is gone.
        """
        try:
            error, answer = self._peer.recv()
        except (EOFError, OSError) as gone:  # a plain OSError where its last message is cut
            raise Died from gone
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the process."""
        self._peer.close()
        self._process.kill()
        self._process.wait()


def serve(parent: Connection) -> None:
    """Run the work of another process in this one, until that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key that interrupts the other one, which then ends this

    def received() -> Iterator[Any]:
        with suppress(*_GONE):
            while True:
                yield parent.recv()

    with suppress(*_GONE):
        work, arguments = parent.recv()
        try:
            for answer in work(*arguments, received()):
                parent.send((None, answer))
        except _GONE:
            raise
        except Exception as error:  # anybody's code
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # anybody's class
                error = RuntimeError(f"{type(error).__name__}: {error}")
            parent.send((error, None))
