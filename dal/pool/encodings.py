"""Stored types of features: float32, or a narrower type that takes fewer bytes to read; decoding to float32.

Types that NumPy lacks are stored in one that it has: bfloat16, the upper half of a float32, as uint16; int8 as whole
steps of one float32 scale for each feature. The pool's attributes name the encoding, so that a uint16 array of another
program stays one of integers.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import SourceError

NAMED = 5
STEPS = 127
"""The largest int8 used: with -128 the range would be lopsided."""
QUIET_NAN = np.uint32(0x40)
_ACROSS = 8192
"""Features that are multiplied by their scales as one row."""
_HALF_INF, _HALF_MINUS_INF = 0x7C00, 0xFC00
_SIGN_AND_HALF = np.int32(-(2**31) + (0x7FFF << 13))
"""Bits of a float32 that a half fills."""
_HALF_BIAS = np.float32(2.0**112)
_BEYOND_HALF = np.float32(2**16)
_SUBNORMAL = np.float32(2.0**-149)
_EXPONENT = np.int32(0x7F80_0000)
_largest = functools.partial(np.maximum.reduce, axis=None)  # `max` takes a detour through Python

Features = npt.NDArray[Any]
Floats32 = npt.NDArray[np.float32]
Encode = Callable[[Features, int], Features]
"""Convert features of any numeric type, the first of them at a given row, to the stored type."""
Decode = Callable[[npt.NDArray[Any], Floats32], None]
"""Convert stored values to float32, into an array of the same shape."""


def encoder(name: str | None, scale: Floats32 | None = None) -> Encode:
    """Return the function that converts features to their stored type.

    Parameters
    ----------
    name : str or None
        One of `dal.choices.ENCODINGS`. None keeps uint8 and converts everything else to float32.
    scale : ndarray of float32, shape (d,), optional
        For int8: the step of each feature, from `scale_of`.

    Returns
    -------
    Encode
        Raises `SourceError` for records that the type cannot hold; the message names their rows.

    Examples
    --------
    >>> encoder("float16")(np.array([[1.5, 1e6]]), 0).tolist()
    [[1.5, inf]]
    """
    if name is None:
        return _as_given
    if name == "int8":
        assert scale is not None  # computed by `scale_of`
        return lambda features, row: _to_int8(features, row, scale)
    return _ENCODERS[name]


def decoder(name: str, scale: Floats32 | None) -> Decode:
    """Return the function that converts stored values to float32.

    Parameters
    ----------
    name : str
        Name of the encoding.
    scale : ndarray of float32, shape (d,), optional
        The step of each feature, where the stored values are steps.
    """
    if scale is not None:
        across = np.tile(scale, max(1, _ACROSS // len(scale)))
        return lambda stored, target: _from_int8(stored, target, across)
    return _DECODERS.get(name, _cast)


def scale_of(blocks: Iterable[Features]) -> Floats32:
    """Return the int8 scale of each feature: a 127th of its largest magnitude, 1 where all are zero.

    Parameters
    ----------
    blocks : iterable of arrays of shape (n, ...)
        All records, in order.

    Returns
    -------
    ndarray of float32, shape (d,)

    Raises
    ------
    SourceError
        Records hold NaN or infinity, which int8 lacks; the message names their rows.
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
    return scale_of_largest(largest)


def scale_of_largest(largest: Floats32) -> Floats32:
    """Return the int8 scale of features by their largest magnitudes, see `scale_of`."""
    # A subnormal scale is too coarse for 127 steps to reach the maximum, and the largest scale times 127 would
    # overflow.
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
    # Add half a step less one, plus one where the last kept bit is set: ties go to even, the largest values go to inf.
    upper = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    # Truncating a NaN may leave the bits of inf: set the quiet bit.
    upper = np.where(np.isnan(floats), (bits >> np.uint32(16)) | QUIET_NAN, upper)
    return upper.astype(np.uint16)


def _to_int8(features: Features, row: int, scale: Floats32) -> Features:
    floats = _flat(_to_float32(features, row))
    steps = np.rint(floats / scale)
    beyond = ~(np.abs(steps) <= STEPS).all(axis=1)  # negated, so that NaN counts as beyond
    if beyond.any():
        _refuse_not_finite(floats, row)
        raise SourceError(
            f"`int8` values must stay within the range of the first pass, got others in rows {_rows(beyond, row)}: "
            "the source changed while it was read; build again"
        )
    return steps.astype(np.int8).reshape(features.shape)


def _to_uint8(features: Features, row: int) -> Features:
    if features.dtype in (np.uint8, np.bool_):
        return features.astype(np.uint8, copy=False)
    whole = (features >= 0) & (features <= 255) & (features == np.trunc(features))
    strange = ~_flat(whole).all(axis=1)
    if strange.any():
        raise SourceError(
            f"`uint8` features must be whole numbers from 0 to 255, got others in rows {_rows(strange, row)}; "
            "use float32, bfloat16 or int8"
        )
    return features.astype(np.uint8)


def _flat(features: Features) -> Features:
    return features.reshape(len(features), math.prod(features.shape[1:]))  # NumPy refuses -1 for zero rows


def _refuse_not_finite(floats: Floats32, row: int) -> None:
    strange = ~np.isfinite(floats).all(axis=1)
    if strange.any():
        raise SourceError(
            f"`int8` features must be finite, got NaN or infinity in rows {_rows(strange, row)}; use float32, "
            "bfloat16, "
            "or leave these records out"
        )


def _rows(which: npt.NDArray[np.bool_], row: int) -> str:
    found = np.flatnonzero(which)
    first = ", ".join(str(row + n) for n in found[:NAMED].tolist())
    return first if len(found) <= NAMED else f"{first} and {len(found) - NAMED} more"


def may_be_infinite(halves: npt.NDArray[np.float16]) -> bool:
    """Return whether any of native float16 values is infinite or NaN, in a small part of the time of `np.isinf`."""
    # As signed integers, all numbers are below +inf and its NaN; as unsigned ones, below -inf and its NaN.
    signed, unsigned = halves.view(np.int16), halves.view(np.uint16)
    return bool(_largest(signed, initial=0) >= _HALF_INF or _largest(unsigned, initial=0) >= _HALF_MINUS_INF)


# Two passes over a tile in the cache are faster than one through NumPy's buffers for mixed types, and need no temporary
# array.


def _cast(stored: npt.NDArray[Any], target: Floats32) -> None:
    # A float64 beyond float32 becomes inf, which the scan counts as invalid: a warning for each tile would only be
    # noise.
    with np.errstate(over="ignore"):
        target[...] = stored


def _from_bfloat16(stored: npt.NDArray[Any], target: Floats32) -> None:
    bits = target.view(np.uint32)
    bits[...] = stored
    bits <<= np.uint32(16)


def _from_float16(stored: npt.NDArray[Any], target: Floats32) -> None:
    """Convert as NumPy's cast does, bit for bit, in a fifth of its time: by operations on all values at once."""
    # A thread may flush subnormals to zero, as torch can be set to: then the product below would lose subnormal halves.
    if not stored.dtype.isnative or not _SUBNORMAL * _HALF_BIAS:
        target[...] = stored
        return
    halves, bits = stored.view(np.int16), target.view(np.int32)
    # Exponent and fraction go to their places in a float32. So does the sign, with copies that are cut off.
    bits[...] = halves
    bits <<= np.int32(13)
    bits &= _SIGN_AND_HALF
    # The exponent of a half counts from 2^-15, that of a float32 from 2^-127. The product is exact, also for subnormal
    # halves, which are subnormal float32 until then.
    target *= _HALF_BIAS
    if may_be_infinite(stored):
        np.bitwise_or(bits, _EXPONENT, out=bits, where=np.abs(target) >= _BEYOND_HALF)


def _from_int8(stored: npt.NDArray[Any], target: Floats32, across: Floats32) -> None:
    target[...] = stored
    width = target.shape[1]
    # A row of 16 products is over before it is fast: multiply many records as one row, where they lie in one piece.
    together = len(across) // width if target.flags.c_contiguous else 1
    whole = len(target) // together * together
    wide = target[:whole].reshape(-1, together * width)
    wide *= across[: together * width]
    target[whole:] *= across[:width]


_DECODERS: Mapping[str, Decode] = {"float16": _from_float16, "bfloat16": _from_bfloat16}
_ENCODERS: Mapping[str, Encode] = {
    "float32": _to_float32,
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
    "uint8": _to_uint8,
}
