"""Files that are either whole or not there, and the lock that dies with its process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dal.errors import CampaignError, CampaignLocked, DalError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside `path`, and put it in its place once it is safely on disk.

    Raises
    ------
    CampaignError
        If the file cannot be written; what was at `path` before is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if isinstance(error, DalError):  # a pool or a campaign that the writer found missing
            raise
        raise CampaignError(
            f"{path} cannot be written: {error.strerror}. Free space or ask for access, then run again"
        ) from error
    finally:
        with suppress(OSError):  # where there is no access, there is nothing left behind either
            part.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` outlive a power cut: a file's own fsync does not cover its name."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; the system frees it when the process ends, however it ends.

    Raises
    ------
    CampaignLocked
        If it is held, by this process or another one; the message names its pid.
    CampaignError
        If the lock file cannot be opened.
    """
    try:
        # Not "w": that would wipe the holder's pid before the lock says whether there is a holder.
        file = path.open("a+")
    except OSError as error:
        raise CampaignError(
            f"{path} cannot be opened: {error.strerror}. Working on a campaign takes write access to its directory"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise CampaignLocked(
                f"{path.parent} is in use by process {file.read().strip() or 'unknown'}: wait for it, or end it"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
