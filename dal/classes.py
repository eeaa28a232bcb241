"""Classes that labels name: by their names, never by their positions.

A label comes as a text, an integer, a float where pandas had a gap to fill, a boolean; in an array, a table or a file.
It names the class that is spelt like it. If there is none, it names the class that is the same number or truth value in
another spelling, because programs rewrite those: ``1`` as ``1.0``, ``true`` as ``TRUE``, ``01`` as ``1``. None, NaN and
the like, and an empty text, are no label. Nor are the texts that programs write for them, such as ``nan``, unless a
class has that name.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import LabelError
from dal.texts import brief, composed, flaw

Codes = npt.NDArray[np.int64]

UNLABELLED = -1
"""Code of a record without a label."""

MISSING = frozenset({"nan", "<na>", "none", "null", "nat", "na", "n/a", "#n/a"})
"""Texts that programs write for missing values, in lower case."""

_NUMBER = re.compile(r"([+-]?)0*(\d*)(?:\.(\d*?)0*)?", re.ASCII)
_TRUTHS = ("false", "true")
_WHOLE = 2.0**53  # from here on a float may stand for several whole numbers
_LISTED = 5
_DIGITS = 80  # longer numbers are written with an exponent


class Classes:
    """The classes of a campaign, found by the values that name them.

    Parameters
    ----------
    names : sequence of str
        In the order of their codes.

    Examples
    --------
    >>> known = Classes(["1", "0"])
    >>> [known.find(value) for value in (0, "0", 1.0, "1.0", True, None, "", float("nan"))]
    [1, 1, 0, 0, 0, -1, -1, -1]
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(composed(name) for name in names)
        self._exact = {name: code for code, name in enumerate(self.names)}
        self._alike: dict[str, list[int]] = {}
        for code, name in enumerate(self.names):
            if (plain := _plain(name)) is not None:
                self._alike.setdefault(plain, []).append(code)

    @property
    def are_values(self) -> bool:
        """Whether the name of any class is a number or a truth value."""
        return bool(self._alike)

    def find(self, value: object) -> int:
        """Return the code of the class that a value names; `UNLABELLED` where it is no label.

        Parameters
        ----------
        value : object
            A label.

        Raises
        ------
        LabelError
            The value names no class, or several; the message begins with the value.
        """
        if is_missing(value):
            return UNLABELLED
        text = text_of(value)
        if text is None or flaw(text):
            raise LabelError(f"{brief(value)} is no name of a class")
        code = self._exact.get(text, self._exact.get(text.strip()))
        if code is not None:
            return code
        alike = self._like(text.strip())
        if len(alike) > 1:
            either = " or ".join(repr(self.names[each]) for each in alike)
            raise LabelError(f"{text!r} may be {either}; write the name of the class")
        if alike:
            return alike[0]
        if isinstance(value, str | bytes) and text.strip().lower() in MISSING:
            return UNLABELLED
        raise LabelError(f"{text!r} is no class of {listed(self.names)}")

    def _like(self, text: str) -> list[int]:
        """Return the codes of the classes that are the same number or truth value; as in NumPy, True is 1."""
        plain = _plain(text) or ""
        found = self._alike.get(plain, [])
        if not found and plain in _TRUTHS:
            found = self._alike.get(str(_TRUTHS.index(plain)), [])
        return found


def is_missing(value: object) -> bool:
    """Check whether a value is missing: None, NaN, NaT, pandas.NA, a masked one, a blank text."""
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, str | bytes):
        return not value.strip()
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    # pandas' markers are recognised by the names of their types: pandas takes a second to import.
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError, ArithmeticError):  # a signalling NaN of decimal cannot be compared
        return isinstance(value, Decimal)


def text_of(value: object) -> str | None:
    """Return a value as the text that names a class; None where it cannot name one.

    Examples
    --------
    >>> [text_of(value) for value in (7, 7.0, -1.5, True, np.int8(3), np.float32(0.1), b"cat", [1])]
    ['7', '7', '-1.5', 'True', '3', '0.1', 'cat', None]
    """
    if isinstance(value, str):
        return composed(str(value))  # a plain str: NumPy's shows as np.str_ in messages
    if isinstance(value, bytes):
        try:
            return composed(value.decode())
        except UnicodeDecodeError:
            return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value)) if abs(int(value)).bit_length() <= 256 else None
    if isinstance(value, float | np.floating):
        return str(int(value)) if _is_whole(value) else str(value)
    if isinstance(value, Decimal):  # databases and Parquet files return it for numbers of fixed length
        text = format(value, "f") if value.is_finite() and abs(value.adjusted()) < _DIGITS else str(value)
        return _plain(text) or text
    return None


def class_flaw(name: str) -> str | None:
    r"""Return why a text cannot be the name of a class; None if it can.

    Examples
    --------
    >>> class_flaw("a, b"), class_flaw("a\tb")
    (None, 'holds a control character or a line end, which no page can show')
    """
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in "\ufffe\uffff" for each in name):
        return "holds a control character or a line end, which no page can show"
    return None


def alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names that are the same number or truth value in two spellings; None if there are none.

    Examples
    --------
    >>> alike(["2", "1", "1.0"]), alike(["a", "A"])
    (('1', '1.0'), None)
    """
    for found in Classes(names)._alike.values():
        if len(found) > 1:
            return names[found[0]], names[found[1]]
    return None


def spelled(name: str, *, counted: bool = False) -> str:
    r"""Return a class for a line of names that commas separate.

    It stands in quotes, its own ones doubled, where it holds a comma or a quote or a blank at an end, or a control
    character, which is escaped.

    Parameters
    ----------
    name : str
    counted : bool, default=False
        Whether a colon and a count follow: a name that holds a colon is then in quotes as well.

    Examples
    --------
    >>> [spelled(name) for name in ("pop", "rock, hard", 'a "b" c', "18:00", "a\nb")]
    ['pop', '"rock, hard"', '"a ""b"" c"', '18:00', '"a\\nb"']
    >>> spelled("18:00", counted=True)
    '"18:00"'
    """
    # Names of a campaign hold no control characters; those of arrays and of imported files may.
    shown = "".join(each.encode("unicode_escape").decode() if class_flaw(each) else each for each in name)
    separate = {",", '"', ":"} if counted else {",", '"'}
    if shown == name.strip() and not separate & set(name):
        return name
    doubled = shown.replace('"', '""')
    return f'"{doubled}"'


def listed(names: Sequence[str], most: int | None = 10) -> str:
    """Return classes separated by commas, for a message: the first ones of many, or all where `most` is None.

    Examples
    --------
    >>> listed(["rock, hard", "pop", "jazz"], most=2)
    '"rock, hard", pop and 1 more'
    """
    most = len(names) if most is None else most
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(spelled(name) for name in names[:most]) + more


def codes_of(values: object, names: Sequence[str], *, what: str, gaps: bool = False, codes: bool = False) -> Codes:
    """Return the class code of each label.

    Parameters
    ----------
    values : array-like of shape (n,)
        A NumPy array of any kind, also masked, a pandas Series or Categorical, a list.
    names : sequence of str
        The classes, in the order of their codes.
    what : str
        Name of `values` in messages.
    gaps : bool, default=False
        Whether records may be unlabelled; they get `UNLABELLED`.
    codes : bool, default=False
        Whether whole numbers and booleans are codes, provided that no class has such a name. If one has, they are
        names: that depends on the classes, never on the labels that happen to occur.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    LabelError
        A label names no class, or has two readings; the message gives both.

    Examples
    --------
    >>> codes_of([0, 1, 1], ["1", "0"], what="y").tolist()
    [1, 0, 0]
    >>> codes_of([0, 1, 1], ["ham", "spam"], what="y", codes=True).tolist()
    [0, 1, 1]
    """
    distinct, places = _distinct(values, what)
    known = Classes(names)
    numbers = [value for value in distinct if _is_whole(value)]
    if codes and not known.are_values and len(numbers) == sum(not is_missing(value) for value in distinct):
        found = [_position(value, known, what) for value in distinct]
    else:
        found = [_named(value, known, what, numbers) for value in distinct]
    if not gaps and UNLABELLED in found:
        count = int((np.array(found, np.int64)[places] == UNLABELLED).sum())
        raise LabelError(f"`{what}` must hold a class for each record, got {count:,} without one; leave those out")
    return np.array(found, dtype=np.int64)[places]


def distinct_names(values: object, *, what: str) -> tuple[tuple[str, ...], Codes]:
    """Return the classes that labels name, sorted as numbers where all are, and the code of each label.

    Unlabelled records get `UNLABELLED`.

    Parameters
    ----------
    values : array-like of shape (n,)
    what : str
        Name of `values` in messages.

    Returns
    -------
    names : tuple of str
    codes : ndarray of int64, shape (n,)

    Raises
    ------
    LabelError
        A label cannot name a class.

    Examples
    --------
    >>> classes, codes = distinct_names([10, 9, None, 10], what="y")
    >>> classes, codes.tolist()
    (('9', '10'), [1, 0, -1, 1])
    """
    distinct, places = _distinct(values, what)
    texts = [None if is_missing(value) else text_of(value) for value in distinct]
    for value, text in zip(distinct, texts, strict=True):
        if (text is None and not is_missing(value)) or (text is not None and flaw(text)):
            raise LabelError(f"`{what}` must hold names of classes or whole numbers, got {brief(value)}")
    names = {text.strip() for text in texts if text is not None}
    numeric = all(_plain(name) not in (None, *_TRUTHS) for name in names)
    ordered = tuple(sorted(names, key=lambda name: (float(name), name)) if numeric else sorted(names))
    code = {name: at for at, name in enumerate(ordered)}
    found = [UNLABELLED if text is None else code[text.strip()] for text in texts]
    return ordered, np.array(found, dtype=np.int64)[places]


def names_of(classes: Sequence[object]) -> tuple[str, ...]:
    """Return classes as their names; those of ``classes_`` of scikit-learn or of ``numpy.unique`` may be numbers.

    Parameters
    ----------
    classes : sequence

    Raises
    ------
    LabelError
        A value cannot name a class, or `classes` has no order, or is one text.
    """
    if isinstance(classes, str | bytes):
        raise LabelError(f"`classes` must be a sequence of names, got the text {classes!r}; split it")
    # The order is that of the codes: a set has none, and a mapping may hold other codes.
    if isinstance(classes, Set | Mapping) or not hasattr(classes, "__len__"):
        raise LabelError(
            f"`classes` must be a sequence of names, got a {type(classes).__name__}; give a list, in order"
        )
    names = [None if is_missing(each) else text_of(each) for each in classes]
    for each, name in zip(classes, names, strict=True):
        if name is None:
            raise LabelError(f"`classes` must hold names, got {brief(each)}")
    return tuple(name for name in names if name is not None)


def _plain(text: str) -> str | None:
    """Return the one spelling that all spellings of a number or truth value share; None for other texts.

    Examples
    --------
    >>> [_plain(text) for text in ("01", "1.0", "+1", "-0", "1.50", "TRUE", "ham", "1e5", ".")]
    ['1', '1', '1', '0', '1.5', 'true', None, None, None]
    """
    if text.lower() in _TRUTHS:
        return text.lower()
    match = _NUMBER.fullmatch(text)
    if match is None or not any(character.isdigit() for character in text):
        return None
    sign, whole, part = match[1], match[2] or "0", match[3] or ""
    number = f"{whole}.{part}" if part else whole
    return f"-{number}" if sign == "-" and number != "0" else number


def _is_whole(value: object) -> bool:
    if isinstance(value, float | np.floating):
        number = float(value)
        return math.isfinite(number) and number.is_integer() and abs(number) < _WHOLE
    return isinstance(value, int | np.integer | np.bool_)


def _position(value: Any, known: Classes, what: str) -> int:  # noqa: ANN401 - a number or a gap
    if is_missing(value):
        return UNLABELLED
    code = int(value)
    if not 0 <= code < len(known.names):
        raise LabelError(
            f"`{what}` must hold names of classes, or their codes 0 to {len(known.names) - 1}, got {brief(code)}; the "
            f"classes are {listed(known.names)}"
        )
    return code


def _named(value: object, known: Classes, what: str, numbers: Sequence[Any]) -> int:
    try:
        return known.find(value)
    except LabelError as error:
        message = f"`{what}` must hold names of classes: {error}"
        if _is_whole(value) and numbers and all(0 <= int(each) < len(known.names) for each in numbers):
            pairs = ", ".join(f"{int(each)} = {known.names[int(each)]}" for each in sorted(numbers)[:_LISTED])
            message += f". Read as positions they would be {pairs}; if that is meant, pass the names, "
            message += f"numpy.array({list(known.names)[:_LISTED]})[{what}]"
        raise LabelError(message) from error


def _distinct(values: object, what: str) -> tuple[list[Any], Codes]:
    """Return the distinct labels, and the position among them of each label."""
    array = _as_array(values)
    if array.ndim != 1:
        raise LabelError(f"`{what}` must be one-dimensional, one label for each record, got the shape {array.shape}")
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    plain = np.asarray(array.data if isinstance(array, np.ma.MaskedArray) else array)
    if plain.dtype.kind in "biufUS" and mask is None:
        found, places = np.unique(plain, return_inverse=True)
        return list(found), places.reshape(-1).astype(np.int64)
    at: dict[tuple[type, object], int] = {}
    different: list[Any] = []
    places = np.empty(len(plain), dtype=np.int64)
    for place, value in enumerate(plain.tolist() if plain.dtype.kind != "O" else plain):
        missing = is_missing(value) or (mask is not None and bool(mask[place]))
        key: tuple[type, object] = (type(None), None) if missing else (type(value), _hashable(value))
        if key not in at:
            at[key] = len(different)
            different.append(None if missing else value)
        places[place] = at[key]
    return different, places


def _as_array(values: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - any container of labels
    if isinstance(values, np.ndarray):
        return values
    # NumPy would cast a list of numbers and None, or of texts and NaN, to one kind: astype(str) leaves 'nan'.
    array: npt.NDArray[Any]
    if isinstance(values, Mapping | str | bytes) or not hasattr(values, "__len__"):
        return np.asarray(values, dtype=object)
    if hasattr(values, "dtype") and hasattr(values, "__array__"):
        return np.asarray(values, dtype=object if getattr(values.dtype, "kind", "O") not in "biuf" else None)
    array = np.empty(len(values), dtype=object)
    try:
        array[:] = values
    except ValueError:
        return np.asarray(values, dtype=object)
    return array


def _hashable(value: object) -> object:
    try:
        hash(value)
    except TypeError:
        return repr(value)[:200]
    return value
