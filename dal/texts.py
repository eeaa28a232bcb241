r"""Texts that come from outside: which are the same, which can be kept, and which a spreadsheet would run.

A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line end is a formula to a spreadsheet, and records are
anybody's data: it could send the sheet away or start a program. Such texts are written with an apostrophe before them,
which spreadsheets show and keep as text. Read back, the apostrophe is taken off again, and a text that has one of its
own gets another, so that every text comes back exactly as it was::

    =1+2  ->  '=1+2        '=1+2  ->  ''=1+2        '90s  ->  '90s        007  ->  007
"""

import json
import math
import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache

NAME_CHARACTERS = 200
"""Longest name of a person; databases index it."""

EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""Bounds of the times that are kept: near the ends of the calendar a time zone leads out of it."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NAME_BYTES = 1000
_REMEMBERED = 1000  # a file of millions of lines has a few people
_BLANKS = re.compile(r"\s+")
_POINT_ZERO = re.compile(r"(-?\d{1,17})\.0+", re.ASCII)
# Unicode's Default_Ignorable_Code_Point beyond the category Cf: fillers and variation selectors, which show nothing.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_JOINERS = "\u200c\u200d"  # zero-width, but Persian and Indic names are misspelt without them


def composed(text: str) -> str:
    r"""Return a text in Unicode's composed form: a letter and its accent may come as one character or as two.

    Examples
    --------
    >>> composed("cafe\u0301") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text)


def flaw(text: str) -> str | None:
    """Say why a text cannot be kept; None if it can.

    PostgreSQL keeps no NUL, and half of a surrogate pair is no character: no encoding has it.
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
    r"""Return a person's name as it is shown: composed, without what cannot be seen, one blank between words.

    Examples
    --------
    >>> shown_name("\ufeff Jose\u0301\u00a0 Maria\u200b\t")
    'José Maria'
    """
    seen = "".join(character for character in composed(name) if not _is_unseen(character) or character in _JOINERS)
    return _BLANKS.sub(" ", seen).strip(f" {_JOINERS}")


@lru_cache(_REMEMBERED)
def folded(name: str) -> str:
    r"""Return what all spellings of a name, a person's or a column's, share: neither case nor form nor blanks matter.

    Examples
    --------
    >>> folded(" ANN\u200b  Lee") == folded("Ann Lee") == folded("ａｎｎ\u00a0lee")
    True
    """
    text = unicodedata.normalize("NFD", name)
    for _ in range(2):  # folding may leave what is to be normalised, and normalising what is to be folded
        text = unicodedata.normalize("NFKC", text.casefold())
    return _BLANKS.sub(" ", "".join(character for character in text if not _is_unseen(character))).strip()


@lru_cache(_REMEMBERED)
def name_flaw(name: str) -> str | None:
    """Say why a text cannot be a person's name; None if it can."""
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
    """Put an apostrophe before what a spreadsheet would run, and before what `unguarded` would take off."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def unguarded(text: str) -> str:
    """Undo `guarded`; texts that it cannot have made stay as they are."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def whole(text: str) -> str:
    """Return a whole number as it was before a program wrote it as a fraction: others stay as they are.

    pandas makes fractions of all numbers of a column that has a gap.

    Examples
    --------
    >>> whole("192.0"), whole(" 7.00 "), whole("1.5"), whole("v2.0")
    ('192', '7', '1.5', 'v2.0')
    """
    found = _POINT_ZERO.fullmatch(text.strip())
    return found[1] if found else text


# -- JSON and numbers --------------------------------------------------------------------------------------------------


def parsed(text: bytes | str) -> object:
    """Read JSON.

    Raises
    ------
    ValueError
        Saying what the text is instead, whatever is wrong with it: JSON nested deeper than Python goes and numbers
        longer than it reads included.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}") from error
    except ValueError as error:
        raise ValueError("is JSON with a number of too many digits") from error
    except RecursionError as error:
        raise ValueError("is JSON nested too deeply") from error


def brief(value: object, length: int = 40) -> str:
    """Return the beginning of a value as JSON, for a message; it may be nested as deeply as JSON can."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    text = text.encode(errors="replace").decode()
    return text if len(text) <= length else f"{text[:length]}…"


def as_time(value: object) -> datetime | None:
    """Read a time: seconds since 1970, or ISO 8601 with a time zone; None for anything else."""
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
    """Say why a time cannot be kept; None if it can."""
    if moment.tzinfo is None:
        return "names no time zone"
    try:
        inside = EARLIEST <= moment < LATEST
    except OverflowError:  # its time zone leads out of the calendar
        inside = False
    return None if inside else f"is not between {EARLIEST.year} and {LATEST.year}"


def as_seconds(value: object) -> float | None:
    """Read a number of seconds, 0 or more; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    try:
        return float(value)
    except OverflowError:
        return None
