"""Display fields and record ids: convert a user's values to one of a few kinds that are stored.

Between source and store the values of a field are an Arrow array, in which a gap is null. :mod:`dal.pool.stored`
defines the stored values.
"""

import functools
import sys
import uuid
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dal.errors import SourceError
from dal.pool.stored import NO_BOOLEAN, NO_INTEGER, TEXT, field_path
from dal.texts import flaw

NAMED = 5
WHOLE = {2: 2**11, 4: 2**24}
"""Largest whole number up to which a float of so many bytes is exact, by bytes; for float64 it is 2**53."""
CHECKED_IDS = 2**16

Values = Any
"""A sequence, or an array of NumPy, pandas or Arrow."""

ARROW_TYPES: Mapping[str, "pa.DataType"] = {
    "text": pa.large_string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_WORDS = {"true": True, "1": True, "false": False, "0": False}


def kind_of(values: "pa.Array") -> str | None:
    """Return the kind of values that `as_field` returned; None where all are gaps."""
    return next((kind for kind, stored in ARROW_TYPES.items() if values.type == stored), None)


def as_field(name: str, values: Values, row: int, height: int) -> "pa.Array":
    """Convert the values of a display field to Arrow, of one of the kinds or all null.

    Parameters
    ----------
    name : str
        Name of the field; it becomes a path in the store.
    values : sequence
        One value a record.
    row : int
        Row of the first record.
    height : int
        Number of records.

    Returns
    -------
    pyarrow.Array of length `height`

    Raises
    ------
    SourceError
        The values cannot be stored as a field; the message begins with the field's name.
    """
    field_path(name)
    refuse_no_sequence(values, f"the display field {name!r}")
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise SourceError(
            f"the display field {name!r} must have one value a record, got shape {shape}; pass one column"
        )
    if len(values) != height:
        raise SourceError(
            f"{name!r} must have {height} values, one for each record from row {row} on, got {len(values)}"
        )
    try:
        array = _one_kind(_arrow(values))
    except UnicodeError as error:
        raise SourceError(f"{name!r} must hold valid Unicode, from row {row} on: {error}; correct the text") from error
    except (pa.ArrowException, TypeError) as error:
        raise SourceError(
            f"{name!r} must hold values that can be shown, from row {row} on: {error}; store text"
        ) from error
    if array.type == pa.int64() and pc.any(pc.equal(array, NO_INTEGER)).as_py():
        raise SourceError(f"{name!r} must not hold {NO_INTEGER}, which marks a gap; store the field as text")
    return array


def refuse_no_sequence(values: Values, what: str) -> None:
    """Raise an error for values without an order and for a single value.

    Parameters
    ----------
    values : object
        Values from a user.
    what : str
        Name of the values, for the message.

    Raises
    ------
    SourceError
        `values` is a text, a set, a mapping or has no length.
    """
    if isinstance(values, str | bytes | Set | Mapping) or not hasattr(values, "__len__"):
        raise SourceError(
            f"{what}: must be a list or an array with one value a record, got {type(values).__name__}; pass a list"
        )


def _arrow(values: Values) -> "pa.Array":
    """Convert values to Arrow unchanged; missing values become null."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(np.asarray(values.data), mask=np.ma.getmaskarray(values))
    if is_pandas(values, "Series", "Index"):
        values = values.array
    if is_pandas(values, "api.extensions.ExtensionArray") and values.dtype.type is not np.object_:
        return of_pandas(values)
    if isinstance(values, np.ndarray) and values.dtype.kind == "m":
        return _of_durations(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufM" and values.dtype != np.longdouble:
        return pa.array(values.astype(values.dtype.newbyteorder("="), copy=False))
    return _of_objects(list(values.tolist() if isinstance(values, np.ndarray) else values))


def of_pandas(values: Any) -> "pa.Array":  # noqa: ANN401 - a Series or an array of pandas
    """Convert values of a pandas type, not objects, to Arrow; types that Arrow would show differently become text.

    Parameters
    ----------
    values : pandas.Series or pandas.api.extensions.ExtensionArray

    Returns
    -------
    pyarrow.Array
    """
    if is_pandas(values.dtype, "SparseDtype"):
        return _arrow(np.asarray(values))
    if is_pandas(values.dtype, "PeriodDtype", "IntervalDtype") or values.dtype.kind == "m":
        return as_texts(values.tolist())
    array = pa.array(values, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def is_pandas(value: object, *names: str) -> bool:
    """Return whether a value is of one of these types of pandas, named as below it, without importing pandas.

    Where pandas was not imported, no value is.
    """
    pandas: Any = sys.modules.get("pandas")
    if pandas is None:
        return False
    return isinstance(value, tuple(functools.reduce(getattr, name.split("."), pandas) for name in names))


def _of_durations(values: npt.NDArray[Any]) -> "pa.Array":
    return pa.array(list(map(duration_text, values.astype("timedelta64[ns]").tolist())), pa.large_string())


def duration_text(nanoseconds: int | None) -> str | None:
    """Return a duration as pandas writes it; None for a gap.

    Examples
    --------
    >>> duration_text(90_000_000_000), duration_text(-1_500)
    ('0 days 00:01:30', '-1 days +23:59:59.999998500')
    """
    if nanoseconds is None or nanoseconds == np.iinfo(np.int64).min:
        return None
    seconds, rest = divmod(nanoseconds, 10**9)
    days, seconds = divmod(seconds, 86_400)
    fraction = "" if not rest else f".{rest // 1000:06d}" if rest % 1000 == 0 else f".{rest:09d}"
    minutes = seconds // 60
    return f"{days} days {'+' * (days < 0)}{minutes // 60:02d}:{minutes % 60:02d}:{seconds % 60:02d}{fraction}"


def as_texts(values: list[Any]) -> "pa.Array":
    """Convert values of any kind to text as Python writes them; missing values become null.

    Examples
    --------
    >>> as_texts([1, None, "a"]).to_pylist()
    ['1', None, 'a']
    """
    return pa.array([None if is_gap(value) else worded(value) for value in values], pa.large_string())


def _of_objects(values: list[Any]) -> "pa.Array":
    plain = [None if is_gap(value) else value.item() if isinstance(value, np.generic) else value for value in values]
    kinds = set(map(type, plain)) - {type(None)}
    if kinds == {bool}:
        return pa.array(plain, pa.bool_())
    if kinds == {int}:
        try:
            return pa.array(plain, pa.int64())
        except OverflowError:
            pass
    if kinds and kinds <= {int, float}:
        return pa.array(plain, pa.float64())
    return as_texts(plain)


def worded(value: object) -> str:
    """Return a value as text; bytes are decoded as UTF-8."""
    return value.decode() if isinstance(value, bytes) else str(value)


def is_gap(value: object) -> bool:
    """Check whether a value is missing: None, NaN, NA or NaT."""
    # pandas' markers are recognised by the names of their types: pandas takes a second to import.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def _one_kind(array: "pa.Array") -> "pa.Array":
    """Cast to the type of one of the kinds; text where no other kind keeps the values."""
    array = plain(array)
    types, kind = pa.types, array.type
    if types.is_null(kind) or types.is_boolean(kind):
        return array
    if types.is_floating(kind):
        return array.cast(pa.float64())
    if types.is_integer(kind) and kind != pa.uint64():
        return array.cast(pa.int64())
    if types.is_duration(kind):  # as text, Arrow writes only the number of units
        return _of_durations(array.to_numpy(zero_copy_only=False))
    return array.cast(pa.large_string())


def as_kind(array: "pa.Array", kind: str, name: str, row: int) -> "pa.Array":
    """Cast values that `as_field` returned to the kind that the field has in the pool.

    Parameters
    ----------
    array : pyarrow.Array
        Values.
    kind : str
        One of `dal.pool.stored.KINDS`.
    name : str
        Name of the field.
    row : int
        Row of the first value.

    Raises
    ------
    SourceError
        The cast would change values; the message names their rows.
    """
    target = ARROW_TYPES[kind]
    if array.type == target:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), target)
    if kind == "text":
        # As Python and the CSV files of pandas write them: True, not Arrow's true.
        return as_texts(array.to_pylist()) if pa.types.is_boolean(array.type) else array.cast(target)
    found = [_parsed(value, kind) for value in array.to_pylist()]
    strange = [at for at, value in enumerate(found) if value is ...]
    if strange:
        values = array.to_pylist()
        named = ", ".join(f"{row + at} ({values[at]!r})" for at in strange[:NAMED])
        raise SourceError(
            f"the display field {name!r} must hold {kind}s, got others in rows {named}; give the field one type in all "
            "records, such as text, which takes any"
        )
    return pa.array(found, target)


def _parsed(value: object, kind: str) -> Any:  # noqa: ANN401 - a value of the kind, None for a gap, else ...
    """Parse a value as one of another kind; return ... where that would lose something."""
    if is_gap(value) or value == "":
        return None
    if kind == "boolean":
        return _WORDS.get(value.lower(), ...) if isinstance(value, str) else ...
    if isinstance(value, bool):
        return ...
    try:
        number = float(value)  # type: ignore[arg-type]
        if kind == "number":
            return number
        whole = int(value) if isinstance(value, str) and value.lstrip("+-").isdecimal() else int(number)
    except (ValueError, OverflowError):
        return ...
    exact = isinstance(value, str) or abs(number) <= 2**53
    return whole if exact and whole == number and NO_INTEGER < whole < 2**63 else ...


def to_store(array: "pa.Array", name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert values of one of the kinds to their stored type.

    Parameters
    ----------
    array : pyarrow.Array
        Values.
    name : str
        Name of the field.
    dtype : numpy.dtype
        Type of the array in the store. Older pools store booleans as bool, without room for gaps.

    Raises
    ------
    SourceError
        A boolean has gaps, and the pool has no room for them.
    """
    kind = kind_of(array)
    assert kind is not None  # `as_kind` has cast it
    if kind == "text":
        return np.array(array.fill_null("").to_pylist(), dtype=TEXT)
    if kind == "number":
        return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)
    if dtype == np.bool_ and array.null_count:
        raise SourceError(f"{name!r} must have no gaps in this pool, which an older dal built; fill them")
    filled = array.cast(pa.int8()) if kind == "boolean" else array
    values = filled.fill_null(NO_BOOLEAN if kind == "boolean" else NO_INTEGER)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=dtype)


# ---- Arrow's types


def plain_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the type of the values without dictionary, run-length encoding or extension; a UUID is text."""
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return pa.string()
        if kind.extension_name.startswith("pandas."):  # periods, which are stored as integers, and intervals
            return kind
        return pa.bool_() if kind.extension_name == "arrow.bool8" else plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    return kind


def plain(array: "pa.Array") -> "pa.Array":
    """Convert an array to the type that `plain_type` returns."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return pa.array([None if each is None else str(each) for each in array.to_pylist()], pa.string())
        if kind.extension_name.startswith("pandas."):
            return array
        storage = array.storage
        return storage.cast(pa.bool_()) if kind.extension_name == "arrow.bool8" else plain(storage)
    if pa.types.is_dictionary(kind):
        values = plain(array.dictionary)
        if is_text(values.type):  # Arrow takes no rows of string views, which Polars writes
            values = values.cast(pa.large_string())
        return values.take(array.indices)
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    return array


def is_text(kind: "pa.DataType") -> bool:
    """Check whether a type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


# ---- ids


def as_ids(ids: Values, row: int, height: int) -> npt.NDArray[np.object_]:
    """Convert record ids to text unchanged; a whole number loses its ".0".

    Parameters
    ----------
    ids : sequence
        Text, integers or UUIDs; floats where all are whole, as pandas makes of integers.
    row : int
        Row of the first record.
    height : int
        Number of records.

    Returns
    -------
    ndarray of str objects, shape (height,)

    Raises
    ------
    SourceError
        Values cannot be ids; the message names their rows.

    Examples
    --------
    >>> as_ids([7.0, "a"], 0, 2).tolist()
    ['7', 'a']
    """
    refuse_no_sequence(ids, "ids")
    if len(ids) != height:
        raise SourceError(f"`ids` must have {height} values, one for each record from row {row} on, got {len(ids)}")
    width = getattr(getattr(ids, "dtype", None), "itemsize", 8)
    values = _listed(ids)
    if set(map(type, values)) != {str}:
        values = [_id(value, WHOLE.get(width, 2**53)) for value in values]
    for first in range(0, height, CHECKED_IDS):
        part = values[first : first + CHECKED_IDS]
        if any(type(value) is not str or not value for value in part) or flaw("".join(part)):
            strange = [at for at, value in enumerate(part) if type(value) is not str or not value]
            strange = strange or [at for at, value in enumerate(part) if flaw(value)]
            named = ", ".join(f"{row + first + at} ({part[at]!r})" for at in strange[:NAMED])
            raise SourceError(f"`ids` must be texts or integers, got none in rows {named}; give every record an id")
    texts: npt.NDArray[np.object_] = np.fromiter(values, dtype=object, count=height)
    return texts


def _listed(ids: Values) -> list[Any]:
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        return list(ids.to_pylist())
    if isinstance(ids, np.ma.MaskedArray):
        return list(np.where(np.ma.getmaskarray(ids), None, ids.data.astype(object)).tolist())
    return list(ids.tolist()) if hasattr(ids, "tolist") else list(ids)


def _id(value: Any, most: int) -> Any:  # noqa: ANN401 - text, or what cannot be an id
    if isinstance(value, bool):
        return value
    if isinstance(value, int | np.integer | uuid.UUID | np.str_):
        return str(value)
    if isinstance(value, float | np.floating) and abs(float(value)) <= most and float(value).is_integer():
        return str(int(value))
    return value
