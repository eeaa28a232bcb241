"""Packed values of other programs: apply what their attributes say by the CF conventions, or refuse them.

Programs that follow these conventions, such as xarray, store ``(value - add_offset) / scale_factor`` and name the
values that stand for a gap. A model trained on the stored numbers would be wrong without any visible sign. Zarr's own
fill value is not a CF gap: it fills chunks that were never written.
"""

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import PoolError

_BOUNDS = ("valid_min", "valid_max", "valid_range")


@dataclass(frozen=True)
class Packing:
    """The conversion of stored values to the intended ones.

    Attributes
    ----------
    scale, offset : float
        The intended value is ``stored * scale + offset``.
    gaps : tuple of float
        Stored values that mean a gap, read as NaN.
    low, high : float
        Stored values outside of these bounds mean a gap as well.
    """

    scale: float = 1.0
    offset: float = 0.0
    gaps: tuple[float, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(cls, where: object, dtype: np.dtype[Any], attributes: Mapping[str, Any]) -> "Packing | None":
        """Read the attributes of an array; return None where its values are used as stored.

        Parameters
        ----------
        where : Place
            The array, for messages.
        dtype : numpy.dtype
            Type of the stored values.
        attributes : mapping of str to object
            The array's attributes.

        Raises
        ------
        PoolError
            An attribute has a meaning that is not supported here; the message names it.

        Examples
        --------
        >>> Packing.of("a", np.dtype("int16"), {"scale_factor": 0.5, "_FillValue": -1})
        Packing(scale=0.5, offset=0.0, gaps=(-1.0,), low=-inf, high=inf)
        """
        given = {
            name: _numbers(where, name, attributes[name], dtype)
            for name in ("scale_factor", "add_offset", "_FillValue", "missing_value", *_BOUNDS)
            if name in attributes
        }
        if str(attributes.get("_Unsigned", "false")).lower() == "true" and dtype.kind == "i":
            raise _refused(where, "_Unsigned", attributes["_Unsigned"])
        for name, lengths in {
            "scale_factor": 1,
            "add_offset": 1,
            "valid_min": 1,
            "valid_max": 1,
            "valid_range": 2,
        }.items():
            if len(given.get(name, [0.0] * lengths)) != lengths:
                raise _refused(where, name, attributes[name])
        scale, offset = given.get("scale_factor", [1.0])[0], given.get("add_offset", [0.0])[0]
        if not (np.isfinite(scale) and scale and np.isfinite(offset)):
            raise _refused(where, "scale_factor and add_offset", (scale, offset))
        low, high = given.get("valid_range", [-np.inf, np.inf])
        low, high = max(low, *given.get("valid_min", [low])), min(high, *given.get("valid_max", [high]))
        if (scale, offset) != (1.0, 0.0) and any(name in given for name in _BOUNDS):
            # Programs differ: some bound the stored values, others the unpacked ones.
            raise _refused(where, ", ".join(name for name in _BOUNDS if name in given), "bounds of packed values")
        gaps = tuple(
            sorted(
                {gap for name in ("_FillValue", "missing_value") for gap in given.get(name, []) if not np.isnan(gap)}
            )
        )
        found = cls(scale, offset, gaps, low, high)
        return None if found == cls() else found

    def unpack(self, stored: npt.NDArray[Any], target: npt.NDArray[np.float32]) -> None:
        """Write the intended values into an array of the same shape, rounded once from float64.

        Parameters
        ----------
        stored : ndarray
        target : ndarray of float32, of the shape of `stored`
            Overwritten.
        """
        with np.errstate(over="ignore"):  # beyond float32 is inf, which the scan counts as invalid
            target[...] = stored.astype(np.float64) * self.scale + self.offset
        for gap in self.gaps:
            target[stored == np.asarray(gap).astype(stored.dtype)] = np.nan
        if self.low > -np.inf or self.high < np.inf:
            target[~((stored >= self.low) & (stored <= self.high))] = np.nan

    def __str__(self) -> str:
        parts = []
        if (self.scale, self.offset) != (1.0, 0.0):
            parts.append(f"unpacked by scale_factor {self.scale:g} and add_offset {self.offset:g}")
        if self.gaps:
            parts.append(f"{', '.join(f'{gap:g}' for gap in self.gaps)} as NaN")
        if self.low > -np.inf or self.high < np.inf:
            parts.append(f"values outside of {self.low:g} to {self.high:g} as NaN")
        return "; ".join(parts)


def _numbers(where: object, name: str, value: Any, dtype: np.dtype[Any]) -> list[float]:  # noqa: ANN401 - out of JSON
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [_number(where, name, each, dtype) for each in values]


def _number(where: object, name: str, value: Any, dtype: np.dtype[Any]) -> float:  # noqa: ANN401
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(where, name, value)
    if name in ("_FillValue", "missing_value") and dtype.kind in "iu" and np.isfinite(value):
        limits = np.iinfo(dtype)
        if value != int(value) or not limits.min <= value <= limits.max or abs(value) > 2**53:
            raise _refused(where, name, value)
    return float(value)


def _from_text(text: str) -> float | str:
    """Parse a number that JSON cannot hold: its name, or the base64 of a double's bytes, as xarray writes it."""
    named = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
    if text in named:
        return named[text]
    try:
        found: float = struct.unpack("<d", base64.b64decode(text, validate=True))[0]
    except (binascii.Error, struct.error, ValueError):
        return text
    return found


def _refused(where: object, name: str, value: object) -> PoolError:
    return PoolError(
        f"{where}: the attribute {name} must be one that dal applies, got {value!r}; unpack the values first, such as"
        " with xarray, and build a pool of them, or remove the attribute if the values are meant as stored"
    )
