"""The protocol of an encoder, and the digests by which a pool knows one again."""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy.typing as npt


class Encoder(Protocol):
    """An object that turns raw records into features.

    Four more attributes are used where an encoder has them. `prepare` takes one record and returns what `encode` gets
    of it; it runs in other threads, while the batch before is encoded. A record for which it raises an error is kept as
    missing. `batch_size` is the most records of a batch, by default 32. `fitting` takes a record, as `encode` gets it,
    and a number of bytes, and returns how many such records a batch may have in so much memory. Where `batch_size` is
    None, the largest power of two is taken that fits into the smallest process, at most 32. Where `wants_gpu` is true,
    workers that declare GPUs encode, and no others where there are some.

    To travel to workers, an encoder must be picklable. One that loads its model when it is first used travels light,
    and each process loads the model once.
    """

    id: str
    """Name and digest of weights and preprocessing: the pool keeps it, and refuses to append those of another one."""

    def encode(self, batch: Sequence[Any]) -> npt.NDArray[Any]:
        """Return the features of a batch, of shape (n, d), each row a function of its record alone.

        Parameters
        ----------
        batch : sequence
            Texts that are not empty; or pictures, as `PIL.Image.Image` in red, green and blue; or what `prepare`
            returned of each.
        """


def named_digest(name: str, *parts: bytes | str) -> str:
    """Return the id of an encoder: its name, and a digest of its parts.

    >>> named_digest("mean", b"weights", "upper case")
    'mean:fa3b85351883a555'
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return f"{name}:{digest.hexdigest()[:16]}"


def file_digest(path: Path) -> str:
    """Return a digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def function_digest(function: object) -> str:
    """Return a digest of a preprocessing function: its source where there is one, and what it holds.

    A lambda and a function of a script differ by their source as well. What a function calls is not followed.
    """
    if function is None:
        return ""
    try:
        source = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):  # built in, or typed in by hand
        source = ""
    held = "" if inspect.isroutine(function) else str(joblib.hash(function))
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return hashlib.sha256(f"{name}\0{source}\0{held}".encode()).hexdigest()
