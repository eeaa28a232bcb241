r"""Files of answers: a batch goes out as CSV, is filled in with any program, and comes back.

The columns are ``record_id, label, status, annotator``, then the pool's display fields. Files are UTF-8 with a byte
order mark, because Excel reads UTF-8 only where it sees one and would save record ids with accents as other ids.

A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line end is a formula to a spreadsheet, and records are
anybody's data: it could send the sheet away or start a program. Such texts are written with an apostrophe before them,
which spreadsheets show and keep as text. In the four columns that are read back, the apostrophe is taken off again,
and a text that has one of its own gets another, so that every record id comes back exactly as it is in the pool::

    =1+2  ->  '=1+2        '=1+2  ->  ''=1+2        '90s  ->  '90s        007  ->  007
"""

import codecs
import csv
import difflib
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dal.campaign import RETRACTED, SKIPPED, Answer, AnswerFile, Answers, Asked, Campaign, Conflict, Imported
from dal.campaign.disk import replacing
from dal.errors import CampaignError, LabelError

COLUMNS = ("record_id", "label", "status", "annotator")
LISTED = 1000
"""Lines that a report names; beyond it they are counted only, so that a wrong file cannot fill memory."""
CELL_CHARACTERS = 32_000
"""Excel breaks cells above 32,767 characters, and with them the rest of the line."""

_AT_ONCE = 4096
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Records(Protocol):
    """What is needed of a pool here; `dal.pool.Pool` has it."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the display fields."""

    def rows_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Look up rows, -1 where unknown."""

    def display(self, rows: npt.NDArray[np.int64]) -> dict[str, list[object]]:
        """Read the display fields of rows, in the order asked."""


class Rejected(NamedTuple):
    """A line that was not taken: where it begins in the file, its record, and why."""

    line: int
    record_id: str
    reason: str


@dataclass(frozen=True)
class ImportReport:
    """What became of each line of a file.

    Attributes
    ----------
    new, changed, same : int
        Lines taken: a first answer, another answer, or the answer that is there already.
    pending : int
        Lines without a label or a status.
    volunteered : int
        Of the lines taken, those whose record no batch had asked.
    rejected : tuple of Rejected
        Lines that cannot be understood or contradict each other, the first thousand, by line.
    rejections : int
        All of these.
    conflicts : tuple of Rejected
        Lines kept out because their annotator answered otherwise elsewhere since the export, the first thousand.
    kept_out : int
        All of these.
    seen : bool
        Whether the file had been imported before: nothing was added then, and `same` counts every line that is fit.
    """

    new: int
    changed: int
    same: int
    pending: int
    volunteered: int
    rejected: tuple[Rejected, ...] = ()
    rejections: int = 0
    conflicts: tuple[Rejected, ...] = ()
    kept_out: int = 0
    seen: bool = False


# -- out -------------------------------------------------------------------------------------------------------------


def write_batch(campaign: Campaign, pool: Records, number: int, path: str | Path) -> int:
    """Write a round's batch as a file of answers, in the order of asking.

    A record has a line for each annotator who has answered it, filled in, or else one empty line. A file at `path`
    is replaced only where nothing can be lost: it is as it was exported, or has been imported since.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    number : int
        The round.
    path : str or Path

    Returns
    -------
    int
        Lines written, without the header.

    Raises
    ------
    CampaignError
        If the file cannot be written, or holds answers that were not imported.
    """
    path = Path(path)
    _refuse_unread(campaign, path)
    upto = campaign.last_answer()
    known = _known(campaign.latest_answers(upto, asked_in=number), campaign.settings.classes)
    digest, lines = hashlib.sha256(), 0
    with replacing(path) as file:
        for block in _blocks(pool, campaign.batch(number), known):
            lines += len(block)
            encoded = _encoded(block)
            digest.update(encoded)
            file.write(encoded)
        # Before the rename: a file that is there without its export on record could not be told from an edited one.
        campaign.record_export(number, path.name, digest.hexdigest(), upto)
    return lines - 1


def _refuse_unread(campaign: Campaign, path: Path) -> None:
    if path.exists() and not campaign.file_known(_file_digest(path)):
        raise CampaignError(f"{path} holds changes that were not imported: import it first, or export to another file")


def _known(latest: Answers, classes: tuple[str, ...]) -> dict[int, list[tuple[str, str, str]]]:
    """Collect the label, status and annotator of each answer to a row."""
    known: dict[int, list[tuple[str, str, str]]] = {}
    for row, annotator, code in zip(latest.rows.tolist(), latest.annotators, latest.labels.tolist(), strict=True):
        answer = ("", "skipped") if code == SKIPPED else (classes[code], "submitted")
        known.setdefault(row, []).append((*answer, annotator))
    return known


def _blocks(
    pool: Records, batch: list[Asked], known: dict[int, list[tuple[str, str, str]]]
) -> Iterator[list[list[str]]]:
    """Give the lines of the file, the header first, some records at a time: display fields can be long."""
    names = [f"pool.{name}" if name in COLUMNS else name for name in pool.fields]
    yield [[*COLUMNS, *map(_guarded, names)]]
    records = iter(batch)
    while block := list(islice(records, _AT_ONCE)):
        shown = pool.display(np.array([record.row for record in block], dtype=np.int64))
        columns = [map(_cell, shown[name]) for name in pool.fields]
        cells = zip(*columns, strict=True) if columns else [()] * len(block)
        yield [
            [*map(_guarded, (record.record_id, *answer)), *display]
            for record, display in zip(block, cells, strict=True)
            for answer in known.get(record.row, [("", "", "")])
        ]


def _encoded(lines: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    mark = codecs.BOM_UTF8 if lines[0][:1] == ["record_id"] else b""
    return mark + text.getvalue().encode()


def _cell(value: object) -> str:
    """Write a display value; numbers need no guard, and -1 is to stay a number."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return _guarded(value if len(value) <= CELL_CHARACTERS else f"{value[:CELL_CHARACTERS]}…")


def _guarded(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run, and before what `_unguarded` would take off."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def _unguarded(text: str) -> str:
    """Undo `_guarded`; texts that it cannot have made stay as they are."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


# -- in --------------------------------------------------------------------------------------------------------------


def read_answers(
    path: str | Path,
    campaign: Campaign,
    pool: Records,
    annotator: str,
    *,
    conflicts: Literal["keep out", "take"] = "keep out",
) -> ImportReport:
    """Import a file of answers, in one transaction and in memory that does not grow with the file.

    A line with a label is an answer; with the status ``skipped`` and no label, a skipped record; with neither,
    pending. Columns are found by name, in any order; `status` and `annotator` may be missing, others are left alone.
    Commas, semicolons or tabs separate, as spreadsheets of different countries write them. A file imported before
    for this annotator changes nothing.

    Parameters
    ----------
    path : str or Path
    campaign : Campaign
    pool : Records
        The campaign's pool.
    annotator : str
        Who gave the answers on the lines that do not name an annotator.
    conflicts : {"keep out", "take"}
        What becomes of lines whose annotator answered otherwise, elsewhere, since the batch was exported.

    Returns
    -------
    ImportReport

    Raises
    ------
    LabelError
        If the file as a whole cannot be read; nothing was imported then.
    """
    path = Path(path)
    if not annotator.strip():
        raise LabelError("the name of an annotator was expected, for the lines that do not name one")
    digest = _checked_digest(path)
    file = AnswerFile(path.name, digest, annotator.strip(), take_conflicts=conflicts == "take")
    reading = _Reading(path, campaign.settings.classes, pool, file.annotator)
    return reading.report(campaign.import_answers(reading.answers(), file))


class _Line(NamedTuple):
    number: int
    record_id: str
    label: str
    status: str
    annotator: str


class _Reading:
    """One pass over a file: gives its answers, and keeps count of the lines that are none."""

    def __init__(self, path: Path, classes: tuple[str, ...], pool: Records, annotator: str) -> None:
        self.path, self.pool, self.annotator = path, pool, annotator
        self.classes = {name: code for code, name in enumerate(classes)}
        self.fit = self.pending = self.rejections = 0
        self.rejected: list[Rejected] = []

    def answers(self) -> Iterator[Answer]:
        lines = self._lines()
        while block := list(islice(lines, _AT_ONCE)):
            rows = self._rows_of([line.record_id for line in block])
            for line, row in zip(block, rows.tolist(), strict=True):
                if answer := self._answer(line, row):
                    self.fit += 1
                    yield answer

    def report(self, imported: Imported) -> ImportReport:
        counts = imported.counts
        torn = [
            Rejected(
                each.line,
                each.record_id,
                f"{each.annotator!r} gives different answers to this record between lines {each.first_line} and "
                f"{each.last_line}: leave one; none was taken",
            )
            for each in imported.contradictions
        ]
        return ImportReport(
            new=0 if imported.seen else counts.new,
            changed=0 if imported.seen else counts.changed,
            same=self.fit if imported.seen else counts.same,
            pending=self.pending,
            volunteered=counts.volunteered,
            rejected=tuple(sorted([*self.rejected, *torn])[:LISTED]),
            rejections=self.rejections + imported.contradictory,
            conflicts=tuple(self._conflict(each) for each in imported.conflicts),
            kept_out=0 if imported.seen else counts.conflicts,
            seen=imported.seen,
        )

    def _lines(self) -> Iterator[_Line]:
        rows = _rows(self.path)
        _, first = next(rows, (0, []))
        if not first:
            raise LabelError(f"{self.path} is empty: a header with record_id and label was expected")
        header = [name.strip().lower() for name in first]
        at, width = _positions(header, self.path), len(header)
        for number, cells in rows:
            # A line cut short has its last columns empty; spreadsheets leave those out.
            line = _Line(number, *(cells[at[name]] if at.get(name, width) < len(cells) else "" for name in COLUMNS))
            line = line._replace(label=line.label.strip(), status=line.status.strip().lower())
            if any(cells[width:]):
                self._reject(line, f"{len(cells)} cells where the header has {width}: is a separator not in quotes?")
            elif not line.record_id:
                self._reject(line, "no record_id")
            elif self._is_answer(line):
                yield line

    def _is_answer(self, line: _Line) -> bool:
        """Sort out what is pending or contradicts itself, before anything is looked up."""
        match bool(line.label), line.status:
            case False, "" | "pending":
                self.pending += 1
            case (True, "" | "submitted") | (False, "skipped"):
                return True
            case True, "skipped" | "pending":
                self._reject(line, f"both the label {line.label!r} and the status {line.status!r}: leave one")
            case False, "submitted":
                self._reject(line, "the status 'submitted' and no label: give one, or clear the status")
            case _:
                self._reject(line, f"the status {line.status!r}: 'submitted', 'skipped' or nothing was expected")
        return False

    def _rows_of(self, texts: list[str]) -> npt.NDArray[np.int64]:
        """Look record ids up; in a file that was not written here, an apostrophe may be the id's own."""
        rows = self.pool.rows_of([_unguarded(text) for text in texts])
        own = [at for at, text in enumerate(texts) if rows[at] < 0 and _unguarded(text) != text]
        if own:
            rows = rows.copy()
            rows[own] = self.pool.rows_of([texts[at] for at in own])
        return rows

    def _answer(self, line: _Line, row: int) -> Answer | None:
        if row < 0:
            self._reject(line, "the pool has no such record: has a spreadsheet changed the id, such as 007 into 7?")
            return None
        annotator = _unguarded(line.annotator.strip()) or self.annotator
        if not line.label:
            return Answer(row, _unguarded(line.record_id), annotator, "skipped", line=line.number)
        code = self.classes.get(_unguarded(line.label), self.classes.get(line.label))
        if code is None:
            self._reject(line, self._unknown(line.label))
            return None
        return Answer(row, _unguarded(line.record_id), annotator, "submitted", code, line=line.number)

    def _unknown(self, label: str) -> str:
        if len(self.rejected) >= LISTED:
            return ""  # not listed any more, and looking for alike names among many classes takes long
        close = difflib.get_close_matches(label.lower(), [name.lower() for name in self.classes], n=1)
        alike = [name for name in self.classes if [name.lower()] == close]
        names = list(self.classes)
        classes = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        hint = f"; is it {alike[0]!r}?" if alike else ""
        return f"{label!r} is no class of this campaign, which has {classes}{hint}"

    def _reject(self, line: _Line, reason: str) -> None:
        self.rejections += 1
        if len(self.rejected) < LISTED:
            self.rejected.append(Rejected(line.number, _unguarded(line.record_id), reason))

    def _conflict(self, conflict: Conflict) -> Rejected:
        names = {code: repr(name) for name, code in self.classes.items()} | {
            SKIPPED: "skipped",
            RETRACTED: "taken back",
        }
        return Rejected(
            conflict.line,
            conflict.record_id,
            f"{names[conflict.label]} here, and {names[conflict.label_elsewhere]} by {conflict.annotator!r} from "
            f"{conflict.source_elsewhere} at {conflict.answered_at}, after the file was exported: kept out",
        )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Give the cells of each line that has any, the header's first, and the number of the line they begin in."""
    with path.open(encoding="utf-8-sig", newline="") as text:
        delimiter = _delimiter(text.readline(1 << 16))
        text.seek(0)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        begins = 1
        try:
            for cells in reader:
                if any(cells):
                    yield begins, cells
                begins = reader.line_num + 1
        except csv.Error as error:
            raise LabelError(
                f"{path}, line {begins}: {error}. Is a quotation mark missing there or left open?"
            ) from error


def _delimiter(header: str) -> str:
    """Find what separates the columns: spreadsheets write semicolons where the comma is the decimal sign."""
    for delimiter in ",;\t":
        names = next(csv.reader([header], delimiter=delimiter), [])
        if {"record_id", "label"} <= {name.strip().lower() for name in names}:
            return delimiter
    return ","


def _positions(header: list[str], path: Path) -> dict[str, int]:
    for name in COLUMNS:
        if header.count(name) > 1:
            raise LabelError(f"{path} has the column {name!r} more than once: rename or remove the others")
    if missing := [name for name in ("record_id", "label") if name not in header]:
        found = ", ".join(header[:10]) or "none"
        raise LabelError(f"{path} lacks the column {' and '.join(missing)}; its columns are {found}")
    return {name: header.index(name) for name in COLUMNS if name in header}


def _checked_digest(path: Path) -> str:
    """Refuse what is no UTF-8 text, before work begins, on the way to the file's digest."""
    decoder, digest, line = codecs.getincrementaldecoder("utf-8")(), hashlib.sha256(), 1
    try:
        for block in _bytes_of(path):
            digest.update(block)
            line += decoder.decode(block).count("\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise LabelError(f"{path} is not UTF-8, in line {line}: save it as 'CSV UTF-8'") from error
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _bytes_of(path):
        digest.update(block)
    return digest.hexdigest()


def _bytes_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}. Check the path") from error
