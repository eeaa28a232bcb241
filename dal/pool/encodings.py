"""How features are stored: as float32 or, to read fewer bytes, as one of the narrower types; and read back as float32.

What NumPy has no type for is stored in one that it has: bfloat16, the upper half of a float32, as uint16; int8 as whole
steps of one float32 scale for each feature. The pool's attributes name the encoding, so a uint16 array that dal did not
write stays one of integers.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import SourceError

NAMED = 5
STEPS = 127
"""The largest int8 that is used: -128 would make the range lopsided."""
QUIET_NAN = np.uint32(0x40)

Features = npt.NDArray[Any]
Floats32 = npt.NDArray[np.float32]
Encode = Callable[[Features, int], Features]
"""From features of any type of number, and the row of the first, to what is stored."""
Decode = Callable[[npt.NDArray[Any], Floats32], None]
"""From what is stored to float32, into an array of the same shape."""


def encoder(name: str | None, scale: Floats32 | None = None) -> Encode:
    """Return what turns features into what is stored.

    Parameters
    ----------
    name
        One of `dal.choices.ENCODINGS`, or None: uint8 stays uint8, all else becomes float32.
    scale : array of shape (d,), optional
        For int8.

    Returns
    -------
    Encode
        Raises `SourceError` for records that cannot be stored so; the rows are named.
    """
    if name is None:
        return _as_given
    if name == "int8":
        assert scale is not None  # found by `scale_of`
        return lambda features, row: _to_int8(features, row, scale)
    return _ENCODERS[name]


def decoder(name: str, scale: Floats32 | None) -> Decode:
    """Return what turns what is stored into float32.

    Parameters
    ----------
    name
        Of the encoding.
    scale : array of shape (d,), optional
        Where the stored values are steps of it.
    """
    if scale is not None:
        return lambda stored, target: _from_int8(stored, target, scale)
    return _from_bfloat16 if name == "bfloat16" else _cast


def scale_of(blocks: Iterable[Features]) -> Floats32:
    """Return the int8 scale of each feature: a 127th of its largest magnitude, 1 where all are zero.

    Parameters
    ----------
    blocks : iterable of arrays of shape (n, ...)
        All records, in order.

    Raises
    ------
    SourceError
        Records are NaN or infinite, which int8 does not have; the rows are named.
    """
    largest: Floats32 = np.zeros(1, dtype=np.float32)
    row = 0
    for block in blocks:
        features = _flat(_to_float32(block, row))
        of_block = np.abs(features).max(axis=0)
        if not np.isfinite(of_block).all():
            _refuse_not_finite(features, row)
        largest = np.maximum(largest, of_block)
        row += len(block)
    # In float32, subnormal scales are too coarse for 127 steps of them to reach, and the largest would overflow.
    most = np.nextafter(np.float32(np.finfo(np.float32).max / STEPS), np.float32(0))
    scale = np.clip(largest / np.float32(STEPS), np.finfo(np.float32).tiny, most)
    return np.where(largest > 0, scale, np.float32(1))


def _as_given(features: Features, row: int) -> Features:
    return features if features.dtype == np.uint8 else _to_float32(features, row)


def _to_float32(features: Features, row: int) -> Floats32:  # noqa: ARG001
    with np.errstate(over="ignore"):  # beyond float32 is inf, and inf is counted as invalid later
        return features.astype(np.float32, copy=False)


def _to_float16(features: Features, row: int) -> Features:
    with np.errstate(over="ignore"):
        return _to_float32(features, row).astype(np.float16)


def _to_bfloat16(features: Features, row: int) -> Features:
    floats = _to_float32(features, row)
    bits = floats.view(np.uint32)
    # Half a step less one, and one more where the last kept bit is set: ties go to even, and the largest go to inf.
    upper = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    # Of a NaN only the upper half is kept, which might be that of inf.
    upper = np.where(np.isnan(floats), (bits >> np.uint32(16)) | QUIET_NAN, upper)
    return upper.astype(np.uint16)


def _to_int8(features: Features, row: int, scale: Floats32) -> Features:
    floats = _flat(_to_float32(features, row))
    steps = np.rint(floats / scale)
    beyond = ~(np.abs(steps) <= STEPS).all(axis=1)  # of NaN, too
    if beyond.any():
        _refuse_not_finite(floats, row)
        raise SourceError(
            f"rows {_rows(beyond, row)} hold values beyond the largest that were found before; the source changed "
            "while it was read"
        )
    return steps.astype(np.int8).reshape(features.shape)


def _to_uint8(features: Features, row: int) -> Features:
    if features.dtype in (np.uint8, np.bool_):
        return features.astype(np.uint8, copy=False)
    whole = (features >= 0) & (features <= 255) & (features == np.trunc(features))
    strange = ~_flat(whole).all(axis=1)
    if strange.any():
        raise SourceError(
            f"uint8 stores whole numbers from 0 to 255, and rows {_rows(strange, row)} hold others; take float32, "
            "bfloat16 or int8"
        )
    return features.astype(np.uint8)


def _flat(features: Features) -> Features:
    return features.reshape(len(features), math.prod(features.shape[1:]))  # -1 is refused where there are no rows


def _refuse_not_finite(floats: Floats32, row: int) -> None:
    strange = ~np.isfinite(floats).all(axis=1)
    if strange.any():
        raise SourceError(
            f"int8 has neither NaN nor infinity, and rows {_rows(strange, row)} hold them; take float32 or bfloat16, "
            "or leave these records out"
        )


def _rows(which: npt.NDArray[np.bool_], row: int) -> str:
    found = np.flatnonzero(which)
    told = ", ".join(str(row + n) for n in found[:NAMED].tolist())
    return told if len(found) <= NAMED else f"{told} and {len(found) - NAMED} after them"


# Two passes over a tile in the cache are faster than one through NumPy's buffers for mixed types, and neither takes a
# temporary array.


def _cast(stored: npt.NDArray[Any], target: Floats32) -> None:
    # A float64 beyond float32 becomes inf, which the scan counts as invalid: no warning for each tile.
    with np.errstate(over="ignore"):
        target[...] = stored


def _from_bfloat16(stored: npt.NDArray[Any], target: Floats32) -> None:
    bits = target.view(np.uint32)
    bits[...] = stored
    bits <<= np.uint32(16)


def _from_int8(stored: npt.NDArray[Any], target: Floats32, scale: Floats32) -> None:
    target[...] = stored
    target *= scale


_ENCODERS: Mapping[str, Encode] = {
    "float32": _to_float32,
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
    "uint8": _to_uint8,
}
