"""Files on a local disk: written whole or not at all, and NumPy archives that are checked as they are read."""

import errno
import fcntl
import io
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dal.errors import CampaignError, DalError, SettingsError

Arrays = dict[str, npt.NDArray[Any]]

# -- whole files -------------------------------------------------------------------------------------------------------

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
        raise CampaignError(f"{path} cannot be written: {reason_of(error)}") from error
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


def reason_of(error: OSError) -> str:
    """Return what failed, and what to do about it."""
    return f"{error.strerror or error}. {_ADVICE.get(error.errno or 0, 'Mend that')}, then run again"


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` outlive a power cut: a file's own fsync does not cover its name."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- NumPy archives that dal writes ------------------------------------------------------------------------------------


def as_npz(**arrays: npt.ArrayLike) -> bytes:
    """Return arrays as the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def write_npz(path: Path, arrays: Mapping[str, npt.ArrayLike], *, compressed: bool = False) -> None:
    """Write arrays to an .npz file, whole or not at all.

    Raises
    ------
    CampaignError
        If the file cannot be written; see :func:`replacing`.
    """
    with replacing(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)


def read_npz(source: Path | bytes, name: str = "") -> Arrays:
    """Read all arrays of an .npz file that dal wrote.

    Parameters
    ----------
    source : Path or bytes
        The file, or its bytes.
    name : str, optional
        Of the file, for messages; the path, where there is one.

    Raises
    ------
    OSError
        The file is not there, or cannot be read.
    CampaignError
        The file is torn, as by a power cut.
    """
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            return dict(stored)
    except OSError:
        raise
    except Exception as error:  # parsing or unpacking a damaged file may raise anything
        raise CampaignError(f"{name or source!s} is torn ({error}); restore it from a copy") from error


# -- NumPy files of the user -------------------------------------------------------------------------------------------

_WRITTEN = "write one with numpy.savez(path, X=features, y=labels)"
_AS_TEXTS = (
    "turn labels that are Python objects into texts with pandas.Series(labels).fillna('').astype(str).to_numpy(str):"
    " missing ones are then empty, and an empty text is no class"
)


def read_labelled(path: str | Path, n_features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Read the features and the labels of an .npz file with the arrays ``X`` and ``y``, one record a row of both.

    Parameters
    ----------
    path : str or Path
    n_features : int
        Number of features of the pool.

    Returns
    -------
    X : ndarray of float32, shape (n, n_features)
    y : ndarray of shape (n,)

    Raises
    ------
    SettingsError
        The file is no such file, or does not match the pool; the message begins with the path.
    """
    stored = _loaded(Path(path), ("X", "y"))
    X, y = stored["X"], stored["y"]
    if X.dtype.kind not in "biuf":
        raise SettingsError(f"{path}: X must hold numbers, got {X.dtype}; {_WRITTEN}")
    shape = X.shape
    if X.ndim > 2 and X.size:
        X = X.reshape(len(X), -1)
    if X.ndim != 2 or X.shape != (*y.shape, n_features) or not len(X):
        raise SettingsError(
            f"{path}: X must be (n, {n_features}) and y (n,), got X {shape} and y {y.shape}; {_WRITTEN}"
        )
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and infinity is refused later
        return X.astype(np.float32), y


def read_labels(path: Path) -> npt.NDArray[Any]:
    """Read the array of an .npy file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    ndarray

    Raises
    ------
    SettingsError
        The file is no such file; the message begins with the path.
    """
    return _loaded(path, ())[""]


def _loaded(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an .npz file, or the unnamed one of an .npy file."""
    form = "an .npz file with X and y" if names else "an .npy file of labels"
    todo = _WRITTEN if names else "write one with numpy.save(path, labels)"
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                if names:
                    raise SettingsError(f"{path} must be {form}, got a single array; {todo}")
                return {"": found}
            if missing := [name for name in names or ("",) if name not in found.files]:
                lacks = f" without {' and '.join(missing)}" if names else ""
                raise SettingsError(
                    f"{path} must be {form}, got an .npz file of {', '.join(found.files) or 'nothing'}{lacks}; {todo}"
                )
            return {name: np.asarray(found[name]) for name in names}  # members that are no arrays come as bytes
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror or error}); it must be {form}") from error
    except Exception as error:  # parsing or unpacking a damaged file may raise anything
        raise SettingsError(f"{path} cannot be read as {form} ({_reason(error)}); {todo}") from error


def _reason(error: Exception) -> str:
    """Return why NumPy cannot read a file, without its advice to unpickle, which would run code from the file."""
    text = str(error)
    if text.startswith("Object arrays"):
        return f"it holds Python objects; {_AS_TEXTS}"
    return "it is none" if "pickle" in text else f"damaged: {text}"
