"""Texts from outside: equality, what can be stored, and guarding against spreadsheet formulas.

A spreadsheet runs a text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line end as a formula. Records are
anybody's data: a formula could send the sheet away or start a program. Such texts are written with an apostrophe before
them, which spreadsheets show as text. Reading removes the apostrophe, and a text that begins with its own gets a second
one, so that every text comes back exactly::

    =1+2  ->  '=1+2        '=1+2  ->  ''=1+2        '90s  ->  '90s        007  ->  007
"""

import json
import math
import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache

NAME_CHARACTERS = 200
"""Longest name of a person; databases index names."""

EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""Bounds of stored times: nearer the ends of the calendar, a time zone leads out of it."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NAME_BYTES = 1000
_REMEMBERED = 1000  # names; a file of millions of lines has a few people
_BLANKS = re.compile(r"\s+")
_POINT_ZERO = re.compile(r"(-?\d{1,17})\.0+", re.ASCII)
# Unicode's Default_Ignorable_Code_Point beyond the category Cf: fillers and variation selectors, which are invisible.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_JOINERS = "\u200c\u200d"  # zero-width, but Persian and Indic names are misspelt without them


def composed(text: str) -> str:
    r"""Return a text in Unicode's composed form, in which a letter and its accent are one character.

    Examples
    --------
    >>> composed("cafe\u0301") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text)


def flaw(text: str) -> str | None:
    r"""Return why a text cannot be stored; None if it can.

    PostgreSQL stores no NUL. Half of a surrogate pair is no character, and no encoding has it.

    Examples
    --------
    >>> flaw("a"), flaw("a\0")
    (None, 'holds a NUL character')
    """
    if "\x00" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return None


# -- people ------------------------------------------------------------------------------------------------------------


@lru_cache(_REMEMBERED)
def shown_name(name: str) -> str:
    r"""Return a person's name for display: composed, without invisible characters, one blank between words.

    Examples
    --------
    >>> shown_name("\ufeff Jose\u0301\u00a0 Maria\u200b\t")
    'José Maria'
    """
    seen = "".join(character for character in composed(name) if not _is_unseen(character) or character in _JOINERS)
    return _BLANKS.sub(" ", seen).strip(f" {_JOINERS}")


@lru_cache(_REMEMBERED)
def folded(name: str) -> str:
    r"""Return the common form of all spellings of a person's or column's name: case, form and blanks do not matter.

    Examples
    --------
    >>> folded(" ANN\u200b  Lee") == folded("Ann Lee") == folded("ａｎｎ\u00a0lee")
    True
    """
    text = unicodedata.normalize("NFD", name)
    for _ in range(2):  # folding may produce text to normalise, and normalising text to fold
        text = unicodedata.normalize("NFKC", text.casefold())
    return _BLANKS.sub(" ", "".join(character for character in text if not _is_unseen(character))).strip()


@lru_cache(_REMEMBERED)
def name_flaw(name: str) -> str | None:
    """Return why a text cannot be a person's name; None if it can."""
    if (wrong := flaw(name)) is not None:
        return wrong
    key = folded(name)
    if not key or not shown_name(name):
        return "is blank"
    if len(name) > NAME_CHARACTERS or len(key.encode()) > _NAME_BYTES:
        return f"has {len(name):,} characters, more than {NAME_CHARACTERS}"
    return None


def _is_unseen(character: str) -> bool:
    if character.isspace():
        return False
    return unicodedata.category(character) in ("Cf", "Cc") or _UNSEEN.match(character) is not None


# -- spreadsheets ------------------------------------------------------------------------------------------------------


def guarded(text: str) -> str:
    """Prefix an apostrophe to a text that a spreadsheet would run, or that `unguarded` would shorten.

    Examples
    --------
    >>> guarded("=1+2"), guarded("'=1+2"), guarded("'90s")
    ("'=1+2", "''=1+2", "'90s")
    """
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def unguarded(text: str) -> str:
    """Undo `guarded`; texts that it cannot have made stay unchanged."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def whole(text: str) -> str:
    """Return a whole number without the fraction that a program added; other texts stay unchanged.

    pandas writes all numbers of a column with a gap as fractions.

    Examples
    --------
    >>> whole("192.0"), whole(" 7.00 "), whole("1.5"), whole("v2.0")
    ('192', '7', '1.5', 'v2.0')
    """
    found = _POINT_ZERO.fullmatch(text.strip())
    return found[1] if found else text


# -- JSON and numbers --------------------------------------------------------------------------------------------------


def parsed(text: bytes | str) -> object:
    """Parse JSON.

    Parameters
    ----------
    text : bytes or str

    Raises
    ------
    ValueError
        The text is not JSON; the message begins with a verb, such as "is not UTF-8". Covers JSON nested deeper than
        Python recurses, and numbers longer than it reads.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from error
    except ValueError as error:
        raise ValueError("is JSON with a number of too many digits") from error
    except RecursionError as error:
        raise ValueError("is JSON nested too deeply") from error


def brief(value: object, length: int = 40) -> str:
    """Return the beginning of a value as JSON, for a message; the value may be nested to any depth."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    text = text.encode(errors="replace").decode()
    return text if len(text) <= length else f"{text[:length]}…"


def as_time(value: object) -> datetime | None:
    """Parse a time: seconds since 1970, or ISO 8601 with a time zone; return None for anything else."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value if value.tzinfo else None
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        return None
    return found if found is not None and found.tzinfo else None


def time_flaw(moment: datetime) -> str | None:
    """Return why a time cannot be stored; None if it can."""
    if moment.tzinfo is None:
        return "names no time zone"
    try:
        inside = EARLIEST <= moment < LATEST
    except OverflowError:  # its time zone leads out of the calendar
        inside = False
    return None if inside else f"is not between {EARLIEST.year} and {LATEST.year}"


def as_seconds(value: object) -> float | None:
    """Parse a number of seconds, 0 or more; return None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    try:
        return float(value)
    except OverflowError:
        return None
