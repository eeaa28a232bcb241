"""A process that ends, or whose disk fails, at the n-th operation on files below a folder.

The process is forked from the test's own, with everything imported, so a point costs a few hundredths of a second.
Operations are seen by an audit hook: opening to write (or to read), making and removing folders, renaming, linking and
removing files. What lies between two of them is lost or kept with the second one.

A pass is interrupted in this process, by the function that is told its progress.
"""

import errno
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = 9
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")


class Interrupted(Exception):
    """Raised in the midst of a pass, as if its process had been killed."""


def interrupted_after(count: int, seen: list[Any] | None = None) -> Callable[[Any], None]:
    """Return a function to tell the progress of a pass, which interrupts it at its `count`-th call."""
    calls = [] if seen is None else seen

    def told(progress: object) -> None:
        calls.append(progress)
        if len(calls) == count:
            raise Interrupted

    return told


@dataclass(frozen=True)
class Ended:
    """How a process ended: at which point, with which error."""

    killed: bool
    operations: int
    error: str | None
    """Names of the error's classes, and what it says; None where there was no error."""


def points(count: int, sampled: int) -> list[int]:
    """Choose the points that a test looks at, spread over all; with DAL_TEST_EVERY_POINT in the environment, all."""
    if os.environ.get("DAL_TEST_EVERY_POINT") or count <= sampled:
        return list(range(count))
    return [round(at * (count - 1) / (sampled - 1)) for at in range(sampled)]


def run(
    task: Callable[[], object], folder: Path, at: int | None = None, fault: str = "kill", *, reads: bool = False
) -> Ended:
    """Run a task in a forked process, and end it or fail it at an operation on files.

    Parameters
    ----------
    task
        What to run.
    folder
        Operations below it are counted.
    at
        Number of the operation, from 0; None to count only.
    fault
        "kill", or the name of an error number that the operation fails with.
    reads
        Whether opening to read counts, too.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking a process that has threads: zarr starts its anew
        child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(task, str(folder), at, fault, writing, reads=reads)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == KILLED:
        return Ended(killed=True, operations=at or 0, error=None)
    found = json.loads(told)
    return Ended(killed=False, operations=found["operations"], error=found["error"])


def _in_child(task: Callable[[], object], folder: str, at: int | None, fault: str, pipe: int, *, reads: bool) -> None:
    lock, count = threading.Lock(), 0

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal count
        path = given[0] if given else None
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not path.startswith(folder) or not (event in _CHANGES or (event == "open" and (reads or _writes(given)))):
            return
        with lock:
            number, count = count, count + 1
        if number == at:
            if fault == "kill":
                os._exit(KILLED)
            code = getattr(errno, fault)
            raise OSError(code, os.strerror(code), path)

    error = None
    try:
        sys.addaudithook(watch)
        task()
    except BaseException as raised:
        error = f"{' '.join(each.__name__ for each in type(raised).__mro__)}: {raised}"
    finally:
        os.write(pipe, json.dumps({"operations": count, "error": error}).encode())
        os._exit(0)


def _writes(given: tuple[object, ...]) -> bool:
    mode, flags = given[1], given[2]
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
