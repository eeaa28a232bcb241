"""Dialects of separated values: encoding, separator, header. Ambiguous files are refused."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dal.errors import SourceError

ENDINGS = {".csv": None, ".tsv": "\t", ".tab": "\t"}
"""Suffixes, and the separator that each promises; it is used where it splits the header."""
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
SAMPLE_BYTES = 2**20
COMPARED_RECORDS = 100
SEPARATORS = (",", ";", "\t", "|")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BLANK_LINES = re.compile(r"\ufeff?(?:[ \t]*(?:\r\n|\n|\r))*")
_SEP_LINE = re.compile(r'"?sep=(.)"?[ ]*(?:\r\n|\n|\r)', re.IGNORECASE)
DECIMAL_COMMA = r"^\s*[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+\s*$"


def ending_of(path: Path) -> str:
    """Return the suffix that names the format, in lower case and without that of a compression.

    Examples
    --------
    >>> ending_of(Path("data.CSV.gz"))
    '.csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@dataclass(frozen=True)
class Dialect:
    """The encoding, separator and columns of one file.

    Attributes
    ----------
    path : Path
    encoding : str
        "utf-8", "utf-16" or "utf-32".
    separator : str
    names : tuple of str
        One for each column, from the header, or f0, f1, ... without one. Unnamed columns are called as pandas calls
        them.
    unnamed : tuple of str
        Columns without a name in the header.
    """

    path: Path
    encoding: str
    separator: str
    names: tuple[str, ...]
    unnamed: tuple[str, ...]
    skipped: int
    """Bytes before the first record, counted in UTF-8."""

    def ends_in_quotes(self) -> bool:
        """Check whether the file ends with a quote that closes a field."""
        kept = b""
        with self.open() as stream:
            while read := stream.read(SAMPLE_BYTES):
                kept = (kept + read)[-SAMPLE_BYTES:]
        tail = kept.rstrip(b"\r\n")
        return (len(tail) - len(tail.rstrip(b'"'))) % 2 == 1  # a doubled quote stands for one within the field

    def open(self) -> "pa.NativeFile":
        """Open the file at its first record, as UTF-8 without compression."""
        stream = _opened(self.path)
        if self.encoding != "utf-8":
            stream = pa.transcoding_input_stream(stream, self.encoding, "utf-8")
        left = self.skipped
        while left and (read := stream.read(left)):
            left -= len(read)
        return stream


def dialect_of(path: Path, *, header: bool | None, wanted: Sequence[str]) -> Dialect:
    """Detect how a file is written.

    Parameters
    ----------
    path : Path
    header : bool or None
        Whether the first line names the columns. None: it does, and is refused where it holds numbers.
    wanted : sequence of str
        Column names that the caller asks for; a first line that holds them all is a header.

    Raises
    ------
    SourceError
        The dialect is ambiguous or not supported; the message says what to do.
    """
    with _opened(path) as stream:
        sample = stream.read(SAMPLE_BYTES)
    encoding = next((name for mark, name in _BOMS if sample.startswith(mark)), "utf-8")
    text = _decoded(path, sample, encoding)
    blank = _BLANK_LINES.match(text)
    start = blank.end() if blank else 0
    if marked := _SEP_LINE.match(text, start):
        separator, start = marked.group(1), marked.end()
        if not separator.isascii() or separator == '"':
            raise SourceError(
                f"{path}: the separator in the line sep= must be an ASCII character other than a quote, got "
                f"{separator!r}"
            )
    else:
        promised = ENDINGS.get(ending_of(path))
        cuts = promised is not None and len((_record(text, start, promised) or ([], 0))[0]) > 1
        separator = promised if promised is not None and cuts else _separator(path, text, start)
    found = _record(text, start, separator)
    if found is None or not any(found[0]):
        raise SourceError(f"{path}: the first line must name the columns, got nothing; add a header")
    fields, end = found
    if header is None and not (wanted and set(wanted) <= set(fields)):
        numbers = [name for name in fields if _is_number(name)]
        if numbers:
            raise SourceError(
                f"{path}: the first line must hold names, got the numbers {', '.join(numbers[:5])}; if it is a record, "
                "pass header=False (--no-header); if these are the names of the columns, header=True (--header)"
            )
    if header is False:
        skipped, names = start, tuple(f"f{at}" for at in range(len(fields)))
        unnamed: tuple[str, ...] = ()
    else:
        skipped = end
        names = tuple(name or _free(f"Unnamed: {at}", fields) for at, name in enumerate(fields))
        unnamed = tuple(name for name, given in zip(names, fields, strict=True) if not given)
    # The transcoder has removed a byte order mark of UTF-16; in UTF-8 it is the first character.
    return Dialect(path, encoding, separator, names, unnamed, len(text[:skipped].encode()))


def _free(name: str, taken: list[str]) -> str:
    return _free(f"{name}_", taken) if name in taken else name


def _opened(path: Path) -> "pa.NativeFile":
    return pa.input_stream(str(path), compression=COMPRESSED.get(path.suffix.lower()))


def _decoded(path: Path, sample: bytes, encoding: str) -> str:
    if encoding == "utf-8" and b"\0" in sample[:4096]:
        raise SourceError(
            f"{path} must be UTF-8, got zero bytes, as in UTF-16 without a byte order mark; save it as UTF-8"
        )
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError as error:
        raise SourceError(not_utf8(path, sample[: error.start].count(b"\n") + 1)) from error


def not_utf8(path: Path, line: int | None = None) -> str:
    """Return the message for a file in another encoding, with what to do."""
    where = "" if line is None else f" in line {line}"
    return (
        f"{path} must be UTF-8, got other bytes{where}; save it as UTF-8, for example with "
        "`iconv -f WINDOWS-1252 -t UTF-8` if that is its encoding"
    )


def _separator(path: Path, text: str, start: int) -> str:
    """Return the separator that splits all of the first records into equally many fields."""
    cutting = [each for each in SEPARATORS if len((_record(text, start, each) or ([], 0))[0]) > 1]
    if len(cutting) < 2:
        return cutting[0] if cutting else ","
    even = [each for each in cutting if _is_even(text, start, each)]
    if len(even) > 1:
        raise SourceError(
            f"{path} must have one possible separator, got {' or '.join(_NAMES[each] for each in even)}; name it in an "
            "extra first line, such as sep=;"
        )
    return even[0] if even else cutting[0]


def _is_even(text: str, start: int, separator: str) -> bool:
    widths, at = set(), start
    for _ in range(COMPARED_RECORDS):
        found = _record(text, at, separator)
        if found is None or found[1] >= len(text):  # the end of the sample may cut the last record
            widths |= {len(found[0])} if found and len(text) < SAMPLE_BYTES // 8 and any(found[0]) else set()
            break
        if any(found[0]):
            widths.add(len(found[0]))
        at = found[1]
    return len(widths) == 1


def _record(text: str, start: int, separator: str) -> tuple[list[str], int] | None:
    """Split one record into its fields, and return where the next one begins; None where a quote is not closed."""
    ends = re.compile(f"[{re.escape(separator)}\r\n]")
    fields: list[str] = []
    at = start
    while True:
        value = ""
        if text.startswith('"', at):
            closed = re.compile(r'"((?:[^"]|"")*)"').match(text, at)
            if closed is None:
                return None
            value, at = closed.group(1).replace('""', '"'), closed.end()
        end = ends.search(text, at)
        stop = end.start() if end else len(text)
        fields.append(value + text[at:stop])
        if end is None or text[stop] != separator:
            return fields, stop + (2 if text.startswith("\r\n", stop) else 1 if end else 0)
        at = stop + 1


def _is_number(text: str) -> bool:
    if "_" in text:  # float() accepts 2020_01
        return False
    if text.strip().lower() in ("true", "false"):
        return True
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
