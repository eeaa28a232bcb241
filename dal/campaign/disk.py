"""Files that are either whole or not there, the lock that dies with its process, and what kind of disk it is."""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dal.errors import CampaignError, CampaignLocked, DalError
from dal.locks import locked

LOCK = "campaign.lock"
"""Tells others which process holds the directory."""

_FREE = "Free space on that disk"
_ACCESS = "Get write access"
_ADVICE = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "Let this process write larger files (ulimit -f)",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EROFS: _ACCESS,
    errno.EIO: "The disk failed: look at it",
    errno.EMFILE: "Let this process open more files (ulimit -n)",
    errno.ENFILE: "The system has too many files open: end what you do not need",
}

DISK_ERRORS = frozenset(_ADVICE)
"""Error numbers that are about the disk or the system, and not about what was passed."""

MOUNTS = Path("/proc/self/mountinfo")
NETWORKED = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)
"""File systems, by Linux's names, that other machines may write to at the same time."""


def network_filesystem(path: Path) -> str | None:
    """Return the network file system that a path lies on; None for a local disk, and where the system shows none."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return None
    place = path.resolve()
    found: tuple[Path, str] | None = None
    for line in filter(None, lines):
        before, after = line.split(" - ", 1)
        point = Path(re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), before.split(" ")[4]))
        # The last of several at one place is the one on top.
        if place.is_relative_to(point) and (found is None or point.is_relative_to(found[0])):
            found = point, after.split()[0]
    return found[1] if found is not None and found[1] in NETWORKED else None


_PART = re.compile(r"\.dal-[0-9a-f]{16}\.part")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside `path`, and put it in its place once it is safely on disk.

    What a process that was killed has left of such files in the directory is deleted.

    Raises
    ------
    CampaignError
        If the file cannot be written; what was at `path` before is untouched.
    """
    if path.exists() and not path.is_file():
        # Renamed over, a device or a pipe would be gone.
        raise CampaignError(f"{path} must be a file or not there yet, got something else: choose another name")
    part = None
    try:
        _sweep(path.parent)
        part, file = _begun(path.parent)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)  # while it is locked
        sync_directory(path.parent)
    except OSError as error:
        if isinstance(error, DalError):  # a pool or a campaign that the writer found missing
            raise
        raise CampaignError(f"{path} cannot be written: {told(error)}") from error
    finally:
        if part is not None:
            with suppress(OSError):  # where there is no access, there is nothing left behind either
                part.unlink(missing_ok=True)


def _begun(directory: Path) -> tuple[Path, BinaryIO]:
    """Make a file that is not whole yet, and lock it until it is closed.

    It has a name of its own: `labels.csv.part` may be a file of the user's, and another process may write the same
    file.
    """
    while True:
        part = directory / f".dal-{secrets.token_hex(8)}.part"
        file = part.open("xb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # somebody has swept it before it was locked


def is_part(name: str) -> bool:
    """Return whether a name is one that `replacing` gives to a file that is not whole yet."""
    return _PART.fullmatch(name) is not None


def _sweep(directory: Path) -> None:
    """Delete the unfinished files of killed processes from a directory; a file that is being written is locked."""
    if network_filesystem(directory) is not None:  # locks of other machines may not be seen here
        return
    with suppress(OSError):
        for part in [path for path in directory.iterdir() if is_part(path.name)]:
            if part.is_symlink() or not part.is_file():  # none of dal's
                continue
            with suppress(OSError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


def told(error: OSError) -> str:
    """Return what failed, and what to do about it."""
    return f"{error.strerror or error}. {_ADVICE.get(error.errno or 0, 'Mend that')}, then run again"


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` outlive a power cut: a file's own fsync does not cover its name."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a campaign's directory; see `dal.locks.locked`.

    Raises
    ------
    CampaignLocked
        If it is held, by this process or another one; the message names its pid.
    CampaignError
        If it cannot be locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory, directory / LOCK))
        except BlockingIOError as error:
            raise CampaignLocked(
                f"{directory} is in use by process {error.strerror}: wait for it, or end it"
            ) from error
        except OSError as error:
            raise CampaignError(
                f"{directory} cannot be locked: {told(error)}. A coordinator needs write access to the directory"
            ) from error
        yield
