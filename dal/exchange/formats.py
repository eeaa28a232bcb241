"""Formats of files of answers: from bytes to lines, and from records to bytes.

A format knows how a file is written, and nothing of what its lines mean to a campaign: `dal.exchange.files` decides
that for all formats.

CSV files are UTF-8 with a byte order mark. Without one Excel takes UTF-8 for another encoding, and saves record ids
with accents as other ids. Texts that a spreadsheet would run as formulas are guarded, see `dal.texts`.
"""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as one_of_dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet

from dal.campaign import Asked
from dal.classes import UNLABELLED, Classes, is_missing
from dal.errors import LabelError
from dal.pool.fields import ARROW_TYPES
from dal.texts import as_seconds, as_time, brief, flaw, folded, guarded, parsed, unguarded, whole

COLUMNS = ("record_id", "label", "status", "annotator")
CELL_CHARACTERS = 32_000
"""Longest cell: beyond 32,767 characters Excel breaks the cell and the rest of the line."""

# A cell may hold a document, but an unclosed quotation mark must not load the rest of the file into memory.
_CELL_MOST = 1 << 26
_KEYS_MOST = 200  # keys of an object; with more, none are looked up by similar spelling
csv.field_size_limit(max(csv.field_size_limit(), _CELL_MOST))

_PACKED = {
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by Zstandard",
    b"PAR1": "a Parquet file",
}
_ANSWERS = ("accept", "reject", "ignore")
# Columns that identify a table exported by Label Studio.
_TIMES: tuple[str, ...] = ("created_at", "updated_at", "lead_time")
_LABEL_STUDIO = ("annotation_id", "annotator", "lead_time")


class Line(NamedTuple):
    """One record of a file, as written there."""

    number: int
    record_id: str
    label: str = ""
    status: str = ""
    annotator: str = ""
    answered_at: datetime | None = None
    lead_time: float | None = None
    skip_reason: str | None = None
    suggestion_shown: bool | None = None


class Rejected(NamedTuple):
    """A rejected line: its number, its place in the file, its record, and the reason."""

    line: int
    place: str
    record_id: str
    reason: str


class Known(NamedTuple):
    """An existing answer, as a file shows it."""

    label: str
    status: str
    annotator: str


class Item(NamedTuple):
    """A record to be exported.

    `shown` are its display fields. `image` is a data URI where the pool holds pictures and the format uses them.
    `complete` is true where nobody need answer it any more.
    """

    asked: Asked
    shown: Mapping[str, object]
    image: str | None
    known: tuple[Known, ...]
    complete: bool = False


@dataclass(frozen=True)
class Sheet:
    """The content of a file besides the records of the batch."""

    batch: str
    round: int
    classes: tuple[str, ...]
    fields: tuple[str, ...]
    overlap: int
    """Annotators who are to answer each record."""
    kinds: Mapping[str, str] = one_of_dataclass(default_factory=dict)
    """Kinds of the display fields, where the pool knows them: a block may hold only gaps."""


class Format(Protocol):
    r"""A format of files of answers: how a file is written, and nothing of what its lines mean to a campaign.

    A custom format subclasses this one and inherits the methods that it need not change.

    Attributes
    ----------
    pictures : bool, default=False
        Whether `write` uses `Item.image`. Other formats get None there, and the pool's pictures are not read.

    See Also
    --------
    dal.testing.FormatContract : the tests to subclass for a custom format.

    Examples
    --------
    >>> class Tabbed(Format):
    ...     def lines(self, path):
    ...         for number, text in enumerate(path.read_text().splitlines(), start=1):
    ...             yield Line(number, *text.split("\t"))
    ...
    ...     def write(self, file, sheet, blocks):
    ...         items = [item for block in blocks for item in block]
    ...         rows = [(item.asked.record_id, *each) for item in items for each in item.known or [Known("", "", "")]]
    ...         file.write("".join("\t".join(line) + "\n" for line in rows).encode())
    ...         return len(rows)
    >>> Tabbed().place(3)
    'line 3'
    """

    pictures: bool = False

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Yield the lines of a file.

        Parameters
        ----------
        path : Path

        Yields
        ------
        Line or Rejected
            In the order of the file; an unreadable line comes as `Rejected`.

        Raises
        ------
        LabelError
            The file as a whole is not of this format.
        """
        raise NotImplementedError

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write a batch, and count the lines.

        Parameters
        ----------
        file : writable binary file
        sheet : Sheet
        blocks : iterable of list of Item
            The records, some at a time. A record has a line for each answer in `known`, or else one that is empty.

        Returns
        -------
        int
            Lines written, without a header.
        """
        raise NotImplementedError

    def place(self, number: int) -> str:
        """Return the place in the file of a line, for messages."""
        return f"line {number}"

    def own(self, text: str) -> str:
        """Return the user's own text, without the guard that writing may have added."""
        return text


# -- CSV ---------------------------------------------------------------------------------------------------------------


class Csv:
    """Comma, semicolon or tab separated values, as spreadsheets of different countries write them.

    Parameters
    ----------
    delimiter : str, default=","
        Separator for writing; reading detects it.
    """

    pictures = False

    def __init__(self, delimiter: str = ",") -> None:
        self._delimiter = delimiter

    def place(self, number: int) -> str:
        """Return the place of a line."""
        return f"line {number}"

    def own(self, text: str) -> str:
        """Remove the apostrophe that guards a formula."""
        return unguarded(text)

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Yield the lines; columns are found by name, in any order, and others are ignored."""
        rows = _rows(path, _encoding(path))
        _, header = next(rows, (0, []))
        if not header:
            raise LabelError(
                f"{path} must have a header with record_id and label, got an empty file; export the batch again"
            )
        at, width = _positions(header, path), len(header)
        more = {name: header.index(name) for name in _TIMES if name in header}
        exported = all(name in header for name in _LABEL_STUDIO)
        for number, cells in rows:
            # A line cut short has its last columns empty; spreadsheets leave those out.
            written = [cells[at[name]] if name in at and at[name] < len(cells) else "" for name in COLUMNS]
            if any(cells[width:]):
                reason = f"{len(cells)} cells where the header has {width}; put texts with separators into quotes"
                yield Rejected(number, self.place(number), unguarded(written[0]), reason)
            elif exported:
                times = {name: cells[column] for name, column in more.items() if column < len(cells)}
                yield _from_label_studio(number, written, times)
            else:
                record_id, label, status, annotator = written
                yield Line(number, record_id, label.strip(), status, annotator)

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write the four columns and the display fields."""
        names = columns_for(sheet.fields)
        file.write(codecs.BOM_UTF8 + csv_bytes([[*COLUMNS, *map(guarded, names.values())]], self._delimiter))
        lines = 0
        for block in blocks:
            cells = [
                [*map(guarded, (item.asked.record_id, *answer)), *(csv_cell(item.shown[name]) for name in names)]
                for item in block
                for answer in item.known or (Known("", "", ""),)
            ]
            lines += len(cells)
            file.write(csv_bytes(cells, self._delimiter))
        return lines


def csv_bytes(lines: Iterable[Sequence[str]], delimiter: str = ",") -> bytes:
    """Return lines of guarded cells as CSV."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(lines)
    return text.getvalue().encode()


def csv_cell(value: object) -> str:
    """Return a value as a spreadsheet cell; numbers are not guarded, so that -1 stays a number."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return guarded(value if len(value) <= CELL_CHARACTERS else f"{value[:CELL_CHARACTERS]}…")


def columns_for(fields: Sequence[str], own: Sequence[str] = COLUMNS) -> dict[str, str]:
    """Return the column name of each display field, distinct from the file's own columns in any spelling.

    Examples
    --------
    >>> columns_for(["text", "Label ", "pool.Label "])
    {'text': 'text', 'Label ': 'pool.Label ', 'pool.Label ': 'pool.pool.Label '}
    """
    reserved, names = {folded(name) for name in own}, dict[str, str]()
    for field in fields:
        name = field
        while folded(name) in reserved or name in names.values():
            name = f"pool.{name}"
        names[field] = name
    return names


def _from_label_studio(number: int, written: Sequence[str], times: Mapping[str, str]) -> Line | Rejected:
    """Read a line of a table that Label Studio exported, in which annotators are numbers."""
    record_id, label, _, annotator = written
    if label.startswith("{"):  # several were chosen, or a choice of another page
        try:
            chosen = chosen_in(parsed(label))
        except ValueError:
            chosen = [label]
        if len(chosen) != 1:
            return Rejected(number, f"line {number}", record_id, f"one class must be chosen, got {len(chosen)}")
        label = as_text(chosen[0]) or ""
    who = user(known) if (known := whole(annotator).strip()).isdecimal() else annotator
    given = as_time(times.get("updated_at")) or as_time(times.get("created_at"))
    try:
        seconds = as_seconds(float(times.get("lead_time") or "nan"))
    except ValueError:
        seconds = None
    return Line(number, record_id, label.strip(), "", who, given, seconds)


def user(number: object) -> str:
    """Return the name of a Label Studio user who is known only by number."""
    return f"user {number}"


def chosen_in(value: object) -> list[object]:
    """Return the chosen classes: Label Studio writes a text, a list of texts, or either as `choices` of an object."""
    if isinstance(value, dict):
        value = value.get("choices")
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [value]


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each non-empty line, the header first, with the number of the line that they begin in."""
    with path.open(encoding=encoding, newline="") as text:
        begins, delimiter = 1, ","
        while line := text.readline(1 << 16):
            if found := re.fullmatch(
                r"\"?sep=(.)\"?\s*", line, re.IGNORECASE
            ):  # Excel's own line, not part of the table
                begins, delimiter = begins + 1, found[1]
                break
            if line.strip("\r\n"):
                begins, delimiter = 1, _delimiter(line)
                text.seek(0)
                break
            begins += 1
        reader, before = csv.reader(text, delimiter=delimiter, strict=True), begins - 1
        try:
            for cells in reader:
                if any(cells):
                    yield begins, cells
                begins = before + reader.line_num + 1
        except csv.Error as error:
            raise LabelError(
                f"{path}, line {begins}: {error}; close quotation marks, and double those within a text"
            ) from error


def _delimiter(header: str) -> str:
    """Return the separator of the columns: spreadsheets write semicolons where the comma is the decimal sign."""
    for delimiter in ",;\t|":
        names = next(csv.reader([header], delimiter=delimiter), [])
        if {"record_id", "label"} <= {folded(name) for name in names}:
            return delimiter
    return ","


def _positions(header: Sequence[str], path: Path) -> dict[str, int]:
    """Return the position of each column, exact names first: a user's own column called Label stays another one."""
    at: dict[str, int] = {}
    for name in COLUMNS:
        alike = [place for place, written in enumerate(header) if folded(written) == name]
        exact = [place for place in alike if header[place] == name]
        found = exact or alike
        if len(found) > 1:
            raise LabelError(
                f"{path} must have the column {name!r} once, got {len(found)}; rename or remove the others"
            )
        if found:
            at[name] = found[0]
    if missing := [name for name in ("record_id", "label") if name not in at]:
        names = ", ".join(header[:10]) or "none"
        raise LabelError(f"{path} must have the column {' and '.join(missing)}, got the columns {names}; rename them")
    return at


def _encoding(path: Path) -> str:
    """Return the encoding of a text file: UTF-8, or UTF-16 as Excel's "Unicode Text" and PowerShell write it.

    Raises
    ------
    LabelError
        The file is in neither; the message names the line.
    """
    _, encoding = _begins(path)
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    try:
        for block in bytes_of(path):
            line += decoder.decode(block).count("\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        expected = encoding.upper().removesuffix("-SIG")
        raise LabelError(
            f"{path} must be {expected}, got other bytes in line {line}; save it as 'CSV UTF-8'"
        ) from error
    return encoding


def opening(path: Path) -> bytes:
    """Return the first character of a JSON file.

    Raises
    ------
    LabelError
        The file is packed, or in UTF-16.
    """
    first, encoding = _begins(path)
    if encoding == "utf-16":
        raise LabelError(f"{path} must be UTF-8, got UTF-16; save it as UTF-8")
    return first.lstrip()[:1]


def _begins(path: Path) -> tuple[bytes, str]:
    """Return the first bytes of a text file after its byte order mark, and the encoding by that mark.

    Raises
    ------
    LabelError
        The file is packed, and no text.
    """
    first = next(bytes_of(path), b"")[:16]
    for mark, kind in _PACKED.items():
        if first.startswith(mark):
            raise LabelError(f"{path} must be text, got {kind}; unpack it, or save it as text")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return first[2:], "utf-16"
    return first.removeprefix(codecs.BOM_UTF8), "utf-8-sig"


def bytes_of(path: Path) -> Iterator[bytes]:
    """Yield the blocks of a file."""
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}; check the path") from error


# -- JSON lines --------------------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """An object of a file that is no line, with the reason."""

    def __init__(self, record_id: str, reason: str) -> None:
        super().__init__(reason)
        self.record_id, self.reason = record_id, reason


class JsonLines:
    """One JSON object a line, with the names of the columns as keys."""

    pictures = False
    _answer_keys: tuple[str, ...] = ("label", "status", "answer")
    """Keys for answers: a file without any of them must have called them differently."""

    def place(self, number: int) -> str:
        """Return the place of a line."""
        return f"line {number}"

    def own(self, text: str) -> str:
        """Return the text unchanged: writing adds no guard."""
        return text

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Yield the objects as lines; other keys are ignored."""
        if opening(path) == b"[":
            raise LabelError(f"{path} must hold one object a line, got a JSON list; name it .json")
        read = answered = False
        for number, text in enumerate(_lines_of(path), start=1):
            if not text.strip():
                continue
            try:
                fields = _by_column(_parsed(text))
                read, answered = True, answered or any(key in fields for key in self._answer_keys)
                yield self._line(number, fields)
            except _Unfit as unfit:
                yield Rejected(number, self.place(number), unfit.record_id, unfit.reason)
        if read and not answered:
            raise LabelError(f"{path} must have the key label, got no object with it; rename the key")

    def _line(self, number: int, fields: dict[str, Any]) -> Line:
        record_id = as_text(fields.get("record_id"))
        # Prodigy keeps a rejected class in `label`, which must not be read as an answer.
        if fields.get("answer") in _ANSWERS and "status" not in fields:
            raise _Unfit(record_id or "", "is a task of Prodigy's; name the format, prodigy")
        if record_id is None:
            raise _Unfit("", "no record_id, as a text or a whole number")
        label = as_label(fields.get("label"))
        if label is None:
            raise _Unfit(record_id, f"label must be a text, got {brief(fields['label'])}")
        status, annotator = (_optional_text(fields, name, record_id) for name in COLUMNS[2:])
        return Line(
            number,
            record_id,
            label,
            status,
            annotator,
            as_time(fields.get("answered_at")),
            as_seconds(fields.get("lead_time")),
            as_text(fields.get("skip_reason")) if status == "skipped" else None,
        )

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write an object for each answer, or one without a label, and return their number."""
        lines = 0
        for block in blocks:
            for item in block:
                for fields in self._objects(sheet, item):
                    file.write(json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                    lines += 1
        return lines

    def _objects(self, sheet: Sheet, item: Item) -> Iterator[dict[str, object]]:
        shown = {name: as_json(item.shown[field]) for field, name in columns_for(sheet.fields).items()}
        for answer in item.known or (Known("", "", ""),):
            yield dict(zip(COLUMNS, (item.asked.record_id, *(text or None for text in answer)), strict=True)) | shown


def _lines_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            first = file.readline()
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from file
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}; check the path") from error


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        fields = parsed(text)
    except ValueError as error:
        raise _Unfit("", str(error)) from error
    if not isinstance(fields, dict):
        raise _Unfit("", "is not a JSON object")
    return fields


def _by_column(fields: dict[str, Any]) -> dict[str, Any]:
    """Add to an object the columns under their names, found by similar spelling as in `_positions`; exact names win."""
    missing = [name for name in COLUMNS if name not in fields]
    if not missing or len(fields) > _KEYS_MOST:
        return fields
    spelt = {folded(key): key for key in reversed(fields)}
    return fields | {name: fields[spelt[name]] for name in missing if name in spelt}


def _optional_text(fields: dict[str, Any], name: str, record_id: str) -> str:
    value = fields.get(name)
    text = "" if is_missing(value) else as_text(value)
    if text is None:
        raise _Unfit(record_id, f"{name} must be a text, got {brief(value)}")
    return text


def as_text(value: object) -> str | None:
    """Return a text, or a whole number as text; None for anything else, and for texts that cannot be stored.

    Programs make 192.0 of 192 in a column with gaps. It is returned as such; the caller knows the ids and decides.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        number = float(value)
        return f"{number:.1f}" if number.is_integer() and abs(number) < 2**53 else None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) and flaw(value) is None else None


def as_label(value: object) -> str | None:
    """Return a label as text, also a truth value or a number; None for values that cannot be labels."""
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value != int(value):
        return str(value)
    return as_text(value)


def as_json(value: object) -> object:
    """Return a display value as JSON can hold it: NaN and infinity become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- Prodigy -----------------------------------------------------------------------------------------------------------


class Prodigy(JsonLines):
    """Prodigy's tasks, one JSON object a line, for its interface ``choice``; those of its binary ones are read too.

    An accepted choice is a label, and ``ignore`` a skipped record. An accepted task without a choice is rejected. If
    the task asked about one class, ``reject`` means the other class of two, and is no label among more.
    """

    pictures = True
    _answer_keys = ("answer", "options", "text")

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = Classes(classes)

    def _line(self, number: int, fields: dict[str, Any]) -> Line:
        meta = fields.get("meta")
        record_id = as_text((meta if isinstance(meta, dict) else {}).get("record_id", fields.get("record_id")))
        if record_id is None:
            raise _Unfit("", "no record_id, in `meta` or beside it, as a text or a whole number")
        annotator = fields.get("_annotator_id") or fields.get("_session_id") or ""
        if (name := as_text(annotator)) is None:
            raise _Unfit(record_id, "_annotator_id must be a text")
        answer = fields.get("answer")
        if answer is None:
            return Line(number, record_id)
        if answer == "ignore":
            return Line(number, record_id, "", "skipped", name, as_time(fields.get("_timestamp")))
        label = self._label(fields, record_id, answer)
        return Line(number, record_id, label, "submitted", name, as_time(fields.get("_timestamp")))

    def _label(self, fields: dict[str, Any], record_id: str, answer: object) -> str:
        chosen = fields.get("accept")
        match answer, chosen:
            case "accept", [one]:
                label = as_label(one)
            case "accept", []:
                raise _Unfit(record_id, "one class must be chosen, got 0")
            case "accept", [*several]:
                raise _Unfit(record_id, f"one class must be chosen, got {len(several)}")
            case "accept", None:
                label = as_label(fields.get("label"))
            case "reject", None if "label" in fields and "options" not in fields:
                label = self._other(record_id, fields["label"])
            case "reject", _:
                raise _Unfit(record_id, "rejected, and so without a class; accept one, or ignore the task")
            case _:
                raise _Unfit(record_id, f"answer must be accept, reject or ignore, got {_quoted(answer)}")
        if not label:
            raise _Unfit(record_id, "accepted, but `accept` and `label` name no class")
        return label

    def _other(self, record_id: str, rejected: object) -> str:
        try:
            code = self.classes.find(rejected)
        except LabelError as error:
            raise _Unfit(record_id, f"{error}, and was rejected") from error
        names = self.classes.names
        if code == UNLABELLED or len(names) > 2:
            left = len(names) - (code != UNLABELLED)
            raise _Unfit(record_id, f"{_quoted(rejected)} was rejected, which leaves {left} classes and is no label")
        return names[1 - code]

    def _objects(self, sheet: Sheet, item: Item) -> Iterator[dict[str, object]]:
        own = {"record_id": item.asked.record_id, "batch": sheet.batch, "round": sheet.round}
        names = columns_for(sheet.fields, tuple(own))
        texts = [name for name in sheet.fields if isinstance(item.shown[name], str)]
        meta = {name: as_json(item.shown[field]) for field, name in names.items() if field not in texts[:1]} | own
        task = {
            **({"text": item.shown[texts[0]]} if texts else {"text": item.asked.record_id}),
            **({"image": item.image} if item.image else {}),
            "options": [{"id": name, "text": name} for name in sheet.classes],
            "meta": meta,
        }
        if not item.known:
            yield task
        for answer in item.known:
            verdict = {"answer": "ignore", "accept": []} if not answer.label else {"answer": "accept"}
            yield task | {"accept": [answer.label]} | verdict | {"_annotator_id": answer.annotator}


def _quoted(value: object) -> str:
    return repr(value) if isinstance(value, str) else brief(value)


# -- Parquet -----------------------------------------------------------------------------------------------------------


class Parquet:
    """A Parquet file with the four columns."""

    pictures = False

    def place(self, number: int) -> str:
        """Return the place of a line."""
        return f"table row {number}"

    def own(self, text: str) -> str:
        """Return the text unchanged: writing adds no guard."""
        return text

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Yield the rows of the table, counted from 1; other columns are ignored."""
        try:
            with pa.parquet.ParquetFile(path) as file:
                yield from self._lines(file, path)
        except (pa.ArrowException, OSError) as error:
            raise LabelError(f"{path} cannot be read as Parquet: {error}") from error

    def _lines(self, file: "pa.parquet.ParquetFile", path: Path) -> Iterator[Line | Rejected]:
        schema = file.schema_arrow
        at = {name: schema.names[place] for name, place in _positions(list(schema.names), path).items()}
        for name, column in at.items():
            _refuse_kind(name, schema.field(column).type, path)
        number = 0
        for batch in file.iter_batches(4096, columns=list(at.values())):
            values = {name: batch.column(column).to_pylist() for name, column in at.items()}
            empty = [None] * batch.num_rows
            for values_of_row in zip(*(values.get(name, empty) for name in COLUMNS), strict=True):
                number += 1
                yield self._line(number, dict(zip(COLUMNS, values_of_row, strict=True)))

    def _line(self, number: int, fields: dict[str, Any]) -> Line | Rejected:
        record_id, label = as_text(fields["record_id"]), as_label(fields["label"])
        if record_id is None and not is_missing(fields["record_id"]):
            return Rejected(
                number, self.place(number), "", f"record_id must be an id, got {brief(fields['record_id'])}"
            )
        if label is None:
            return Rejected(
                number, self.place(number), record_id or "", f"label must be a text, got {brief(fields['label'])}"
            )
        try:
            status, annotator = (_optional_text(fields, name, record_id or "") for name in COLUMNS[2:])
        except _Unfit as unfit:
            return Rejected(number, self.place(number), unfit.record_id, unfit.reason)
        return Line(number, record_id or "", label, status, annotator)

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write the four columns and the display fields, a row group for each block, and return the number of lines."""
        lines, writer = 0, None
        names = [*COLUMNS, *columns_for(sheet.fields).values()]
        for block in _or_one_empty(blocks):
            rows = [
                (item.asked.record_id, *(text or None for text in answer), *(item.shown[name] for name in sheet.fields))
                for item in block
                for answer in item.known or (Known("", "", ""),)
            ]
            columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
            if writer is None:
                shown = zip(sheet.fields, columns[len(COLUMNS) :], strict=True)
                kinds = [pa.string()] * len(COLUMNS) + [arrow_type(sheet.kinds.get(name), each) for name, each in shown]
                schema = pa.schema(list(zip(names, kinds, strict=True)))
                writer = pa.parquet.ParquetWriter(file, schema)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            lines += len(rows)
        assert writer is not None
        writer.close()
        return lines


def _or_one_empty(blocks: Iterable[list[Item]]) -> Iterator[list[Item]]:
    empty = True
    for block in blocks:
        empty = False
        yield block
    if empty:
        yield []


def arrow_type(kind: str | None, values: Iterable[object]) -> "pa.DataType":
    """Return the Arrow type of a display field: that of its kind, else that of some of its values."""
    if kind is not None:
        return pa.string() if kind == "text" else ARROW_TYPES[kind]
    found = pa.array(values).type
    return pa.string() if pa.types.is_null(found) else found


def _refuse_kind(name: str, kind: "pa.DataType", path: Path) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(value) or pa.types.is_temporal(value):
        raise LabelError(f"{path}: the column {name!r} must hold texts or whole numbers, got {kind}; convert it")
