"""A lock on a directory that ends with its process and survives the deletion of files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(directory: Path, note: Path) -> Iterator[None]:
    """Hold a directory, against other processes and against a second caller in this one.

    The lock (`flock`) lies on the directory itself: it holds for every path to it, stays with a renamed directory, and
    survives the deletion of the note. The system frees it when the process ends, however it ends. The note is locked as
    well, for file systems that lock only files, as network ones do.

    Parameters
    ----------
    directory : Path
    note : Path
        A file that names the process that holds the directory.

    Raises
    ------
    BlockingIOError
        Another process holds it; `strerror` is its process id, or ``unknown``.
    OSError
        The directory cannot be read, the note cannot be written to, or neither can be locked.
    """
    with ExitStack() as stack:
        # Not truncated on opening: that would erase the holder's process id before the lock is tried.
        file = _opened(stack, note, os.O_RDWR | os.O_CREAT)
        folder = _opened(stack, directory, os.O_RDONLY | os.O_DIRECTORY)
        refused: OSError | None = None
        for descriptor in (folder, file):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(file, 32, 0).decode(errors="replace").strip()
                raise BlockingIOError(error.errno, holder or "unknown", str(directory)) from error
            except OSError as error:
                if refused is not None:
                    raise
                refused = error
        with suppress(OSError):  # on a full disk the lock holds all the same, and the note stays empty
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, descriptor)
    return descriptor
