"""A lock on a directory: it ends with its process, and deleting a file does not undo it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(directory: Path, note: Path) -> Iterator[None]:
    """Hold a directory, against other processes and against a second caller in this one.

    The lock (`flock`) lies on the directory itself: it holds for every path that leads there, stays with a directory
    that is renamed, and does not end when somebody deletes the note. The system frees it when the process ends,
    however it ends. The note is locked as well, for file systems that lock files only, as network ones do.

    Parameters
    ----------
    directory : Path
    note : Path
        A file that tells others which process holds the directory.

    Raises
    ------
    BlockingIOError
        If it is held; `strerror` is the process id of the holder, or ``unknown``.
    OSError
        If the directory cannot be read, the note cannot be written to, or neither can be locked.
    """
    with ExitStack() as stack:
        # Not truncated on opening: that would wipe the holder's process id before it is known whether there is one.
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
        with suppress(OSError):  # on a full disk the lock holds all the same, and is not explained
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, descriptor)
    return descriptor
