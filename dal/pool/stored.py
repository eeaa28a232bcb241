"""Display fields in the store: the kinds there are, their types, and the paths they have.

A field has one kind in the whole pool, even where blocks have gaps, and keeps it when the pool grows. A gap is "" among
texts, NaN among numbers, `NO_INTEGER` among integers and `NO_BOOLEAN` among booleans, which are stored as int8 to have
room for it. Reading a pool needs this module alone; :mod:`dal.pool.fields` converts a user's values, by Arrow.
"""

import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import SourceError
from dal.texts import flaw

KINDS = ("text", "integer", "number", "boolean")
TEXT = np.dtypes.StringDType()
NO_INTEGER = np.iinfo(np.int64).min
NO_BOOLEAN = -1
MAX_NAME_BYTES = 200
"""Longest name of an array; file systems take 255 bytes, and Zarr adds to the names of files while it writes."""
PICTURE = "~picture"
"""Name of the field that holds a small picture of each record, as base64 of a JPEG or PNG file: for people."""
_PLAIN_NAME = re.compile(r"(?![.~]|__)[^/\\]+", re.DOTALL)


def stored_type(kind: str) -> np.dtype[Any]:
    """Return the NumPy type in which a kind is stored.

    Examples
    --------
    >>> stored_type("boolean")
    dtype('int8')
    """
    types: dict[str, np.dtype[Any]] = {
        "text": TEXT,
        "integer": np.dtype(np.int64),
        "number": np.dtype(np.float64),
        "boolean": np.dtype(np.int8),
    }
    return types[kind]


def field_path(name: object) -> str:
    """Return the path in a pool of a display field's array: its name, or a digest where no store could use the name.

    Parameters
    ----------
    name : str
        Name of the field.

    Raises
    ------
    SourceError
        The name is empty or no valid text.

    Examples
    --------
    >>> field_path("title"), field_path("a/b")[:8]
    ('fields/title', 'fields/~')
    """
    if not isinstance(name, str) or not name or flaw(name):
        raise SourceError(f"the name of a display field must be a text, got {name!r}; rename it")
    if _PLAIN_NAME.fullmatch(name) and name != "zarr.json" and len(name.encode()) <= MAX_NAME_BYTES:
        return f"fields/{name}"
    return f"fields/~{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def picture_kind(data: bytes) -> str | None:
    """Return the media type of a small picture in a pool, by its first bytes; None where it is none.

    >>> picture_kind(bytes([0xFF, 0xD8, 0xFF, 0xE0]))
    'image/jpeg'
    """
    kinds = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
    return next((kind for start, kind in kinds.items() if data.startswith(start)), None)


def from_store(values: npt.NDArray[Any], kind: str | None) -> list[object]:
    """Convert stored values to Python values; gaps among integers and booleans become None.

    Parameters
    ----------
    values : ndarray
        As stored.
    kind : str or None
        Kind of the field; None in older pools, which do not name kinds and have no such gaps.
    """
    found = values.tolist()
    if kind == "integer":
        return [None if value == NO_INTEGER else value for value in found]
    if kind == "boolean" and values.dtype != np.bool_:
        return [None if value == NO_BOOLEAN else bool(value) for value in found]
    return list(found)
