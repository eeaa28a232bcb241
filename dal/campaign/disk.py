"""Files that are either whole or not there, the lock that dies with its process, and what kind of disk it is."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dal.errors import CampaignError, CampaignLocked, DalError

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
    """Say which network file system a path lies on; None for a local disk, and where the system does not tell."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = path.resolve()
    found: tuple[Path, str] | None = None
    for line in lines:
        before, after = line.split(" - ", 1)
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # The last of several at one place is the one on top.
        if place.is_relative_to(point) and (found is None or point.is_relative_to(found[0])):
            found = point, after.split()[0]
    return found[1] if found is not None and found[1] in NETWORKED else None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside `path`, and put it in its place once it is safely on disk.

    Raises
    ------
    CampaignError
        If the file cannot be written; what was at `path` before is untouched.
    """
    # A name of its own: `labels.csv.part` may be a file of the user's.
    part = path.with_name(f".dal-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
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
