"""Formats of files of answers: what turns bytes into lines, and records into bytes.

A format knows how a file is written, and nothing of what its lines mean to a campaign: that is decided in one place,
`dal.exchange.files`, for all of them.

CSV files are UTF-8 with a byte order mark, because Excel reads UTF-8 only where it sees one and would save record ids
with accents as other ids. What a spreadsheet would run as a formula is guarded, see `dal.texts`.
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
"""Excel breaks cells above 32,767 characters, and with them the rest of the line."""

# A cell may hold a document, but a quotation mark that was left open must not fill memory with the rest of a file.
_CELL_MOST = 1 << 26
_KEYS_MOST = 200  # of an object, beyond which it was not written by hand
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
# Columns by which a table that Label Studio exported is known.
_TIMES: tuple[str, ...] = ("created_at", "updated_at", "lead_time")
_LABEL_STUDIO = ("annotation_id", "annotator", "lead_time")


class Line(NamedTuple):
    """What a file says of one record, as it is written there."""

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
    """A line that was not taken: its number, where that is in the file, its record, and why."""

    line: int
    place: str
    record_id: str
    reason: str


class Known(NamedTuple):
    """An answer that is there already, as a file shows it."""

    label: str
    status: str
    annotator: str


class Item(NamedTuple):
    """A record on its way out.

    `shown` are its display fields, `image` is a data URI where the pool holds pictures.
    """

    asked: Asked
    shown: Mapping[str, object]
    image: str | None
    known: tuple[Known, ...]


@dataclass(frozen=True)
class Sheet:
    """What a file says of the batch beside its records."""

    batch: str
    round: int
    classes: tuple[str, ...]
    fields: tuple[str, ...]
    overlap: int
    """Annotators that are to answer each record."""
    kinds: Mapping[str, str] = one_of_dataclass(default_factory=dict)
    """Of the display fields, where the pool knows them: a block may hold nothing but gaps."""


class Format(Protocol):
    r"""A way to write files of answers: how a file is written, and nothing of what its lines mean to a campaign.

    A format of one's own subclasses this one, and takes from it what it has no need to change.

    See Also
    --------
    dal.testing.FormatContract : the tests to subclass for a format of one's own.

    Examples
    --------
    >>> class Tabbed(Format):
    ...     def lines(self, path):
    ...         for number, text in enumerate(path.read_text().splitlines(), start=1):
    ...             yield Line(number, *text.split("\t"))
    ...
    ...     def write(self, file, sheet, blocks):
    ...         items = [item for block in blocks for item in block]
    ...         said = [(item.asked.record_id, *each) for item in items for each in item.known or [Known("", "", "")]]
    ...         file.write("".join("\t".join(line) + "\n" for line in said).encode())
    ...         return len(said)
    >>> Tabbed().place(3)
    'line 3'
    """

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Read the lines of a file.

        Parameters
        ----------
        path : Path

        Yields
        ------
        Line or Rejected
            In the order of the file; a line that cannot be read is rejected, and the others are given.

        Raises
        ------
        LabelError
            If the file as a whole is not of this format.
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
        """Return where in the file a line is, for messages."""
        return f"line {number}"

    def own(self, text: str) -> str:
        """Undo what writing did to a text, where a file may hold it undone as well."""
        return text


# -- CSV ---------------------------------------------------------------------------------------------------------------


class Csv:
    """Comma, semicolon or tab separated values, as spreadsheets of different countries write them.

    Parameters
    ----------
    delimiter : str, default=","
        What separates the columns that are written; reading finds it out.
    """

    def __init__(self, delimiter: str = ",") -> None:
        self._delimiter = delimiter

    def place(self, number: int) -> str:
        """Name the place of a line."""
        return f"line {number}"

    def own(self, text: str) -> str:
        """Take off the apostrophe that hides a formula."""
        return unguarded(text)

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Read the lines; columns are found by name, in any order, and others are left alone."""
        rows = _rows(path, _encoding(path))
        _, header = next(rows, (0, []))
        if not header:
            raise LabelError(f"{path} is empty: a header with record_id and label was expected")
        at, width = _positions(header, path), len(header)
        more = {name: header.index(name) for name in _TIMES if name in header}
        exported = all(name in header for name in _LABEL_STUDIO)
        for number, cells in rows:
            # A line cut short has its last columns empty; spreadsheets leave those out.
            said = [cells[at[name]] if name in at and at[name] < len(cells) else "" for name in COLUMNS]
            if any(cells[width:]):
                reason = f"{len(cells)} cells where the header has {width}: is a separator not in quotes?"
                yield Rejected(number, self.place(number), unguarded(said[0]), reason)
            elif exported:
                told = {name: cells[column] for name, column in more.items() if column < len(cells)}
                yield _from_label_studio(number, said, told)
            else:
                record_id, label, status, annotator = said
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
    """Write lines of guarded cells."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(lines)
    return text.getvalue().encode()


def csv_cell(value: object) -> str:
    """Write a value for a spreadsheet; numbers need no guard, and -1 is to stay a number."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return guarded(value if len(value) <= CELL_CHARACTERS else f"{value[:CELL_CHARACTERS]}…")


def columns_for(fields: Sequence[str], own: Sequence[str] = COLUMNS) -> dict[str, str]:
    """Name display fields in a file, so that none is taken for one of its own columns, in whatever letters.

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


def _from_label_studio(number: int, said: Sequence[str], told: Mapping[str, str]) -> Line | Rejected:
    """Read a line of a table that Label Studio exported: it knows its annotators by number."""
    record_id, label, _, annotator = said
    if label.startswith("{"):  # several were chosen, or a choice of another page
        try:
            chosen = chosen_in(parsed(label))
        except ValueError:
            chosen = [label]
        if len(chosen) != 1:
            return Rejected(number, f"line {number}", record_id, f"{len(chosen)} classes chosen, and one was expected")
        label = as_text(chosen[0]) or ""
    who = user(known) if (known := whole(annotator).strip()).isdecimal() else annotator
    given = as_time(told.get("updated_at")) or as_time(told.get("created_at"))
    try:
        seconds = as_seconds(float(told.get("lead_time") or "nan"))
    except ValueError:
        seconds = None
    return Line(number, record_id, label.strip(), "", who, given, seconds)


def user(number: object) -> str:
    """Name an annotator of Label Studio's that is known by number."""
    return f"user {number}"


def chosen_in(value: object) -> list[object]:
    """Collect what was chosen: Label Studio writes a text, a list of them, or either as `choices` of an object."""
    if isinstance(value, dict):
        value = value.get("choices")
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [value]


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Give the cells of each line that has any, the header's first, and the number of the line they begin in."""
    with path.open(encoding=encoding, newline="") as text:
        begins, delimiter = 1, ","
        while line := text.readline(1 << 16):
            if found := re.fullmatch(r"\"?sep=(.)\"?\s*", line, re.IGNORECASE):  # Excel's own, and no line of the table
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
                f"{path}, line {begins}: {error}. Is a quotation mark missing there or left open?"
            ) from error


def _delimiter(header: str) -> str:
    """Find what separates the columns: spreadsheets write semicolons where the comma is the decimal sign."""
    for delimiter in ",;\t|":
        names = next(csv.reader([header], delimiter=delimiter), [])
        if {"record_id", "label"} <= {folded(name) for name in names}:
            return delimiter
    return ","


def _positions(header: Sequence[str], path: Path) -> dict[str, int]:
    """Find the columns: by their exact names first, so that a column of the user's own called Label is another one."""
    at: dict[str, int] = {}
    for name in COLUMNS:
        alike = [place for place, written in enumerate(header) if folded(written) == name]
        exact = [place for place in alike if header[place] == name]
        found = exact or alike
        if len(found) > 1:
            raise LabelError(f"{path} has the column {name!r} more than once: rename or remove the others")
        if found:
            at[name] = found[0]
    if missing := [name for name in ("record_id", "label") if name not in at]:
        named = ", ".join(header[:10]) or "none"
        raise LabelError(f"{path} lacks the column {' and '.join(missing)}; its columns are {named}")
    return at


def _encoding(path: Path) -> str:
    """Find how a text is encoded: UTF-8, or UTF-16 as Excel's "Unicode Text" and PowerShell write it.

    Raises
    ------
    LabelError
        If it is neither; the message names the line.
    """
    _, encoding = _begins(path)
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    try:
        for block in bytes_of(path):
            line += decoder.decode(block).count("\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        named = encoding.upper().removesuffix("-SIG")
        raise LabelError(f"{path} is not {named}, in line {line}: save it as 'CSV UTF-8'") from error
    return encoding


def opening(path: Path) -> bytes:
    """Give the first sign of a JSON file.

    Raises
    ------
    LabelError
        If the file is packed, or in UTF-16.
    """
    first, encoding = _begins(path)
    if encoding == "utf-16":
        raise LabelError(f"{path} is UTF-16: save it as UTF-8")
    return first.lstrip()[:1]


def _begins(path: Path) -> tuple[bytes, str]:
    """Give the first bytes of a text file after its mark, and the encoding that the mark tells.

    Raises
    ------
    LabelError
        If they are those of a packed file, which is no text.
    """
    first = next(bytes_of(path), b"")[:16]
    for mark, kind in _PACKED.items():
        if first.startswith(mark):
            raise LabelError(f"{path} is {kind}, whatever its name says: unpack it, or save it as text")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return first[2:], "utf-16"
    return first.removeprefix(codecs.BOM_UTF8), "utf-8-sig"


def bytes_of(path: Path) -> Iterator[bytes]:
    """Read a file in blocks."""
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}. Check the path") from error


# -- JSON lines --------------------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """Why one object of a file is no line."""

    def __init__(self, record_id: str, reason: str) -> None:
        super().__init__(reason)
        self.record_id, self.reason = record_id, reason


class JsonLines:
    """One JSON object a line, with the names of the columns as keys."""

    _telling: tuple[str, ...] = ("label", "status", "answer")
    """Keys by which an object may say something: a file without any has called them otherwise."""

    def place(self, number: int) -> str:
        """Name the place of a line."""
        return f"line {number}"

    def own(self, text: str) -> str:
        """Give the text: nothing was done to it."""
        return text

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Read the objects; other keys are left alone."""
        if opening(path) == b"[":
            raise LabelError(f"{path} is a JSON list, and one object a line was expected: name it .json")
        read = telling = False
        for number, text in enumerate(_lines_of(path), start=1):
            if not text.strip():
                continue
            try:
                said = _by_column(_parsed(text))
                read, telling = True, telling or any(key in said for key in self._telling)
                yield self._line(number, said)
            except _Unfit as unfit:
                yield Rejected(number, self.place(number), unfit.record_id, unfit.reason)
        if read and not telling:
            raise LabelError(f"{path} lacks the key label: no object has it")

    def _line(self, number: int, said: dict[str, Any]) -> Line:
        record_id = as_text(said.get("record_id"))
        if said.get("answer") in _ANSWERS and "status" not in said:  # where a rejected class stands as `label`, too
            raise _Unfit(record_id or "", "is a task of Prodigy's: name the format, prodigy")
        if record_id is None:
            raise _Unfit("", "no record_id, as a text or a whole number")
        label = as_label(said.get("label"))
        if label is None:
            raise _Unfit(record_id, f"label is {brief(said['label'])}, and a text was expected")
        status, annotator = (_optional_text(said, name, record_id) for name in COLUMNS[2:])
        return Line(
            number,
            record_id,
            label,
            status,
            annotator,
            as_time(said.get("answered_at")),
            as_seconds(said.get("lead_time")),
            as_text(said.get("skip_reason")) if status == "skipped" else None,
        )

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write an object for each answer, or one without a label."""
        lines = 0
        for block in blocks:
            for item in block:
                for said in self._said(sheet, item):
                    file.write(json.dumps(said, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                    lines += 1
        return lines

    def _said(self, sheet: Sheet, item: Item) -> Iterator[dict[str, object]]:
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
        raise LabelError(f"{path} cannot be read: {error.strerror}. Check the path") from error


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        said = parsed(text)
    except ValueError as error:
        raise _Unfit("", str(error)) from error
    if not isinstance(said, dict):
        raise _Unfit("", "is no JSON object")
    return said


def _by_column(said: dict[str, Any]) -> dict[str, Any]:
    """Name the columns of an object as they are called, as `_positions` does: exact names count first."""
    missing = [name for name in COLUMNS if name not in said]
    if not missing or len(said) > _KEYS_MOST:
        return said
    spelt = {folded(key): key for key in reversed(said)}
    return said | {name: said[spelt[name]] for name in missing if name in spelt}


def _optional_text(said: dict[str, Any], name: str, record_id: str) -> str:
    value = said.get(name)
    text = "" if is_missing(value) else as_text(value)
    if text is None:
        raise _Unfit(record_id, f"{name} is {brief(value)}, and a text was expected")
    return text


def as_text(value: object) -> str | None:
    """Give a text, or a whole number as text; None for anything else, and for what cannot be kept as a text.

    Where a column had gaps, other programs made 192.0 of 192: it is given so, and whoever knows the ids tells.
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
    """Give a label as text, also one that is a truth value or a number; None for what can be none."""
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value != int(value):
        return str(value)
    return as_text(value)


def as_json(value: object) -> object:
    """Give a display value as JSON can hold it: NaN and infinity are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- Prodigy -----------------------------------------------------------------------------------------------------------


class Prodigy(JsonLines):
    """Prodigy's tasks, one JSON object a line, for its interface ``choice``; those of its binary ones are read as well.

    An accepted choice is a label, and ``ignore`` a skipped record. Nothing chosen is no label. Where the task asked
    one class yes or no, ``reject`` is the other class if there are two, and no label if there are more.
    """

    _telling = ("answer", "options", "text")

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = Classes(classes)

    def _line(self, number: int, said: dict[str, Any]) -> Line:
        meta = said.get("meta")
        record_id = as_text((meta if isinstance(meta, dict) else {}).get("record_id", said.get("record_id")))
        if record_id is None:
            raise _Unfit("", "no record_id, in `meta` or beside it, as a text or a whole number")
        annotator = said.get("_annotator_id") or said.get("_session_id") or ""
        if (name := as_text(annotator)) is None:
            raise _Unfit(record_id, "_annotator_id is no text")
        answer = said.get("answer")
        if answer is None:
            return Line(number, record_id)
        if answer == "ignore":
            return Line(number, record_id, "", "skipped", name, as_time(said.get("_timestamp")))
        label = self._label(said, record_id, answer)
        return Line(number, record_id, label, "submitted", name, as_time(said.get("_timestamp")))

    def _label(self, said: dict[str, Any], record_id: str, answer: object) -> str:
        chosen = said.get("accept")
        match answer, chosen:
            case "accept", [one]:
                label = as_label(one)
            case "accept", []:
                raise _Unfit(record_id, "accepted with nothing chosen, which is no label")
            case "accept", [*several]:
                raise _Unfit(record_id, f"{len(several)} classes chosen, and one was expected")
            case "accept", None:
                label = as_label(said.get("label"))
            case "reject", None if "label" in said and "options" not in said:
                label = self._other(record_id, said["label"])
            case "reject", _:
                raise _Unfit(record_id, "rejected, which says of no class that it is the right one")
            case _:
                raise _Unfit(record_id, f"the answer {_quoted(answer)}: accept, reject or ignore was expected")
        if not label:
            raise _Unfit(record_id, "accepted, and no class is named in `accept` or `label`")
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

    def _said(self, sheet: Sheet, item: Item) -> Iterator[dict[str, object]]:
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
            said = {"answer": "ignore", "accept": []} if not answer.label else {"answer": "accept"}
            yield task | {"accept": [answer.label]} | said | {"_annotator_id": answer.annotator}


def _quoted(value: object) -> str:
    return repr(value) if isinstance(value, str) else brief(value)


# -- Parquet -----------------------------------------------------------------------------------------------------------


class Parquet:
    """A Parquet file with the four columns."""

    def place(self, number: int) -> str:
        """Name the place of a line."""
        return f"table row {number}"

    def own(self, text: str) -> str:
        """Give the text: nothing was done to it."""
        return text

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Read the rows of the table, the first of which is row 1; other columns are left alone."""
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
            for said in zip(*(values.get(name, empty) for name in COLUMNS), strict=True):
                number += 1
                yield self._line(number, dict(zip(COLUMNS, said, strict=True)))

    def _line(self, number: int, said: dict[str, Any]) -> Line | Rejected:
        record_id, label = as_text(said["record_id"]), as_label(said["label"])
        if record_id is None and not is_missing(said["record_id"]):
            return Rejected(number, self.place(number), "", f"record_id is {brief(said['record_id'])}, which is no id")
        if label is None:
            return Rejected(number, self.place(number), record_id or "", f"label is {brief(said['label'])}")
        try:
            status, annotator = (_optional_text(said, name, record_id or "") for name in COLUMNS[2:])
        except _Unfit as unfit:
            return Rejected(number, self.place(number), unfit.record_id, unfit.reason)
        return Line(number, record_id or "", label, status, annotator)

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write the four columns and the display fields, a row group for each block."""
        lines, writer = 0, None
        names = [*COLUMNS, *columns_for(sheet.fields).values()]
        for block in _or_one_empty(blocks):
            said = [
                (item.asked.record_id, *(text or None for text in answer), *(item.shown[name] for name in sheet.fields))
                for item in block
                for answer in item.known or (Known("", "", ""),)
            ]
            columns = list(zip(*said, strict=True)) if said else [()] * len(names)
            if writer is None:
                shown = zip(sheet.fields, columns[len(COLUMNS) :], strict=True)
                kinds = [pa.string()] * len(COLUMNS) + [arrow_type(sheet.kinds.get(name), each) for name, each in shown]
                schema = pa.schema(list(zip(names, kinds, strict=True)))
                writer = pa.parquet.ParquetWriter(file, schema)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            lines += len(said)
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
    """Return the Arrow type of a display field: of its kind, else of some of its values."""
    if kind is not None:
        return pa.string() if kind == "text" else ARROW_TYPES[kind]
    found = pa.array(values).type
    return pa.string() if pa.types.is_null(found) else found


def _refuse_kind(name: str, kind: "pa.DataType", path: Path) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(value) or pa.types.is_temporal(value):
        raise LabelError(f"{path}: the column {name!r} holds {kind}; texts were expected, or whole numbers")
