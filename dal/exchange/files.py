"""Files of answers: a batch goes out, is filled in with any program, and comes back.

How the formats are written stands in `dal.exchange.formats`; what a line means stands here, once for all of them.
"""

import base64
import difflib
import hashlib
import io
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dal import plugins
from dal.campaign import RETRACTED, SKIPPED, Answer, AnswerFile, Answers, Asked, Campaign, Conflict, Imported
from dal.campaign.answers import complaint
from dal.campaign.disk import replacing
from dal.choices import FORMATS
from dal.classes import MISSING, UNLABELLED, Classes, listed
from dal.errors import CampaignError, LabelError
from dal.exchange.formats import Csv, Format, Item, JsonLines, Known, Line, Parquet, Prodigy, Rejected, Sheet, bytes_of
from dal.exchange.label_studio import LabelStudio
from dal.texts import composed, folded, name_flaw, shown_name, unguarded, whole

LISTED = 1000
"""Lines that a report names; beyond it they are counted only, so that a wrong file cannot fill memory."""

_AT_ONCE = 4096
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "label-studio",
}
_NO_NAMES = frozenset({"nan", "NaN", "<NA>", "None", "null", "NULL"})
"""What programs write where no annotator is named; a person may be called Nan."""

_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z")
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Records(Protocol):
    """What is needed of a pool here; `dal.pool.Pool` has it."""

    record_shape: tuple[int, ...]
    encoding: str

    @property
    def n_rows(self) -> int:
        """How many records there are."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the display fields."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kind of each display field, where that is known."""

    def rows_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Look up rows, -1 where unknown."""

    def display(self, rows: npt.NDArray[np.int64]) -> dict[str, list[object]]:
        """Read the display fields of rows, in the order asked."""

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Read the features of rows, in the order asked."""

    def refreshed(self) -> "Records":
        """Give the pool as it is now, with the records that were appended since it was opened."""


@dataclass(frozen=True)
class ImportReport:
    """What became of each line of a file.

    Attributes
    ----------
    new, changed, same : int
        Lines taken: a first answer, another answer, or the answer that is there already.
    pending : int
        Lines without a label or a status.
    superseded : int
        Lines whose annotator gave the record another answer later, by the times that the file tells.
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
        Whether the file had been imported before: it was not read again then, and `same` counts what it had given.
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
    superseded: int = 0


SLOT = plugins.Slot("file_format", "dal.formats", FORMATS, LabelError)
"""Where formats of one's own are found."""


def format_of(path: Path, name: str | Format | None, classes: tuple[str, ...]) -> Format:
    """Return the format of a file, by its name or by the file's ending.

    Raises
    ------
    LabelError
        If there is no such format, or the ending says nothing.
    """
    if name is not None and not isinstance(name, str):
        return _own(name, plugins.label_of(name, SLOT))
    if name is None and path.suffix.lower() not in _SUFFIXES:
        if path.suffix.lower() in _PACKED:
            raise LabelError(f"{path} is packed: unpack it first")
        if path.suffix.lower() in _WORKBOOKS:
            raise LabelError(f"{path} is a workbook: save it as 'CSV UTF-8'")
        raise LabelError(
            f"{path}: the ending says no format; name one of {', '.join(FORMATS)} with --format (file_format=)"
        )
    match name or _SUFFIXES[path.suffix.lower()]:
        case "csv":
            return Csv("\t" if path.suffix.lower() == ".tsv" else ",")
        case "jsonl":
            return JsonLines()
        case "parquet":
            return Parquet()
        case "prodigy":
            return Prodigy(classes)
        case "label-studio":
            return Csv() if path.suffix.lower() in (".csv", ".tsv") else LabelStudio()
        case other:
            return _own(plugins.find(other, SLOT), other)


def _own(found: Any, name: str) -> Format:  # noqa: ANN401 - anybody's object
    """Return a format of one's own, from its class or an object of it."""
    try:
        own: Format = found() if isinstance(found, type) else found
    except Exception as error:  # anybody's code
        raise LabelError(f"`file_format` must be made without arguments, got {name}; {error}.") from error
    if missing := [each for each in ("lines", "write", "place", "own") if not hasattr(own, each)]:
        raise LabelError(
            f"`file_format` must have the methods of dal.exchange.formats.Format, got {name}, which lacks"
            f" {', '.join(missing)}; subclass it."
        )
    return own


def _format_name(file_format: str | Format) -> str:
    return file_format if isinstance(file_format, str) else plugins.text_of(file_format, SLOT)


# -- out -------------------------------------------------------------------------------------------------------------


def write_batch(
    campaign: Campaign, pool: Records, number: int, path: str | Path, *, file_format: str | Format | None = None
) -> int:
    """Write a round's batch as a file of answers, in the order of asking.

    A record has a line for each annotator who has answered it, filled in, or else one empty line; Label Studio gets
    the records that still lack answers. A file at `path` is replaced only where nothing can be lost: it is as it was
    exported, or has been imported since.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    number : int
        The round.
    path : str or Path
    file_format : str or Format, optional
        One of `FORMATS`, ``module:object``, an installed plug-in of the group ``dal.formats``, or an object. Default:
        by the ending of `path`.

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
    sheet = sheet_of(campaign, pool, number)
    written = format_of(path, file_format, sheet.classes)
    _refuse_unread(campaign, path)
    upto = campaign.last_answer()
    blocks = items(pool, sheet, campaign.batch(number), campaign.latest_answers(upto, asked_in=number))
    with replacing(path) as file:
        digesting = _Digesting(file)
        lines = written.write(digesting, sheet, blocks)
        # Before the rename: a file that is there without its export on record could not be told from an edited one.
        campaign.record_export(number, _name_of(path), digesting.digest.hexdigest(), upto)
    return lines


def sheet_of(campaign: Campaign, pool: Records, number: int) -> Sheet:
    """Collect what a file says of a batch beside its records."""
    return Sheet(
        batch=f"{campaign.id}-r{number:03d}",
        round=number,
        classes=campaign.settings.classes,
        fields=pool.fields,
        overlap=campaign.settings.overlap,
        kinds=pool.kinds,
    )


def items(pool: Records, sheet: Sheet, batch: Iterable[Asked], latest: Answers) -> Iterator[list[Item]]:
    """Give the records of a batch with what a file shows of them, some at a time: display fields can be long."""
    known = _known(latest, sheet.classes)
    records = iter(batch)
    while block := list(islice(records, _AT_ONCE)):
        rows = np.array([record.row for record in block], dtype=np.int64)
        shown = pool.display(rows)
        pictures = _pictures(pool, rows) if is_picture(pool) else [None] * len(block)
        yield [
            Item(record, {name: shown[name][at] for name in sheet.fields}, picture, tuple(known.get(record.row, ())))
            for at, (record, picture) in enumerate(zip(block, pictures, strict=True))
        ]


def is_picture(pool: Records) -> bool:
    """Say whether the features are pictures that can be shown: (h, w, c) of bytes, with 1, 3 or 4 channels."""
    return pool.encoding == "uint8" and len(pool.record_shape) == 3 and pool.record_shape[2] in _MODES


def _pictures(pool: Records, rows: npt.NDArray[np.int64]) -> Iterator[str]:
    """Give the features of rows as data URIs: so a labelling tool needs no way to the pool."""
    from PIL import Image

    height, width, channels = pool.record_shape
    step = max(1, (16 << 20) // (4 * height * width * channels))
    for start in range(0, len(rows), step):
        pixels = pool.take(rows[start : start + step]).astype(np.uint8)
        for picture in pixels.reshape(-1, *((height, width) if channels == 1 else pool.record_shape)):
            png = io.BytesIO()
            Image.fromarray(picture, _MODES[channels]).save(png, "PNG")
            yield "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _refuse_unread(campaign: Campaign, path: Path) -> None:
    if path.exists() and not campaign.file_known(digest_of(path)):
        raise CampaignError(
            f"{path} holds changes that were not imported, or lines that were refused: import it first, or export to "
            "another file"
        )


def _known(latest: Answers, classes: tuple[str, ...]) -> dict[int, list[Known]]:
    """Collect the label, status and annotator of each answer to a row."""
    known: dict[int, list[Known]] = {}
    for row, annotator, code in zip(latest.rows.tolist(), latest.annotators, latest.labels.tolist(), strict=True):
        label, status = ("", "skipped") if code == SKIPPED else (classes[code], "submitted")
        known.setdefault(row, []).append(Known(label, status, annotator))
    return known


class _Digesting(io.RawIOBase):
    """Passes bytes on to a file, and takes their digest on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - whatever has the bytes of a buffer
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


# -- in --------------------------------------------------------------------------------------------------------------


def read_answers(
    path: str | Path,
    campaign: Campaign,
    pool: Records,
    annotator: str,
    *,
    conflicts: Literal["keep out", "take"] = "keep out",
    file_format: str | Format | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import a file of answers, in one transaction and in memory that does not grow with the file.

    A line with a label is an answer; with the status ``skipped`` and no label, a skipped record; with neither,
    pending. A file imported before for this annotator changes nothing.

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
    file_format : str or Format, optional
        One of `FORMATS`, ``module:object``, an installed plug-in of the group ``dal.formats``, or an object. Default:
        by the ending of `path`.
    progress : callable, optional
        Told of the answers read so far, every few thousand.

    Returns
    -------
    ImportReport

    Raises
    ------
    LabelError
        If the file as a whole cannot be read; nothing was imported then.
    """
    path = Path(path)
    if wrong := name_flaw(annotator):
        raise LabelError(f"`annotator` must be the name of a person, for the lines that do not name one; this {wrong}")
    written = format_of(path, file_format, campaign.settings.classes)
    # Read as another format, a file is another one: whoever forgot to name it must be able to say it now.
    digest = digest_of(path) if file_format is None else f"{digest_of(path)} {_format_name(file_format)}"
    file = AnswerFile(_name_of(path), digest, shown_name(annotator), take_conflicts=conflicts == "take")
    known = campaign.import_seen(digest, file.annotator)
    if known is not None and file.changes_nothing(known):
        return ImportReport(0, 0, known.new + known.changed + known.same, 0, 0, seen=True)
    reading = Reading(path, written, campaign.settings.classes, pool, file.annotator, campaign.knows)
    imported = campaign.import_answers(reading.answers(progress), file, rejected=lambda: reading.rejections)
    return reading.report(imported)


def read_gold(path: str | Path, campaign: Campaign, pool: Records, *, file_format: str | Format | None = None) -> int:
    """Take the labelled lines of a file as gold records, all of them or none; lines without a label are left alone.

    Parameters
    ----------
    path : str or Path
    campaign : Campaign
    pool : Records
        The campaign's pool.
    file_format : str or Format, optional
        One of `FORMATS`, ``module:object``, an installed plug-in of the group ``dal.formats``, or an object. Default:
        by the ending of `path`.

    Returns
    -------
    int
        Gold records that were not there before.

    Raises
    ------
    LabelError
        If the file cannot be read, or a line cannot be a gold record: an unknown record or class, a skipped one, one
        that was asked or answered before.
    """
    path = Path(path)
    written = format_of(path, file_format, campaign.settings.classes)
    reading = Reading(path, written, campaign.settings.classes, pool, "gold")
    known = []
    for answer in reading.answers():
        if answer.label is None:
            raise LabelError(f"{answer.record_id} is skipped here: a gold record needs its label")
        known.append((answer.row, answer.record_id, answer.label))
    if reading.rejected:
        first = reading.rejected[0]
        raise LabelError(f"{first.place}: {first.record_id}: {first.reason}; no gold record was taken")
    return campaign.add_gold(known, n_rows=reading.pool.n_rows)


class Reading:
    """One pass over a file: gives its answers, and keeps count of the lines that are none."""

    def __init__(
        self,
        path: Path,
        written: Format,
        classes: tuple[str, ...],
        pool: Records,
        annotator: str,
        is_known: Callable[[str], bool] = lambda _: False,
    ) -> None:
        # The records that a file tells of may have been appended since this process opened the pool.
        self.path, self.format, self.pool, self.annotator = path, written, pool.refreshed(), annotator
        self._is_known = is_known
        self.classes = Classes(classes)
        self.fit = self.pending = self.rejections = 0
        self.rejected: list[Rejected] = []

    def answers(self, progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        """Give the answers of the lines that are fit."""
        lines = self._lines()
        while block := list(islice(lines, _AT_ONCE)):
            record_ids, rows = self._found([line.record_id for line in block])
            for line, record_id, row in zip(block, record_ids, rows, strict=True):
                if answer := self._answer(line, record_id, row):
                    self.fit += 1
                    yield answer
            if progress is not None and len(block) == _AT_ONCE:
                progress(self.fit)

    def report(self, imported: Imported) -> ImportReport:
        """Say what became of the lines, once the campaign has taken the answers."""
        counts = imported.counts
        torn = [
            Rejected(
                each.line,
                self.format.place(each.line),
                each.record_id,
                f"{each.annotator!r} gives different answers to this record between "
                f"{self.format.place(each.first_line)} and {self.format.place(each.last_line)}: leave one; none was "
                "taken",
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
            superseded=imported.superseded,
        )

    def _lines(self) -> Iterator[Line]:
        for line in self.format.lines(self.path):
            if isinstance(line, Rejected):
                self._count(line)
                continue
            status = folded(line.status)
            said = line._replace(
                label="" if self._is_blank(line.label) else line.label, status="" if status in MISSING else status
            )
            if not said.record_id:
                self._reject(said, "no record_id")
            elif self._is_answer(said):
                yield said

    def _is_blank(self, label: str) -> bool:
        """Say whether a label is none: empty, or what another program writes for that, and no class's name."""
        try:
            return self._code(label) == UNLABELLED
        except LabelError:
            return False

    def _code(self, label: str) -> int:
        """Find a class; a guard may be the name's own, and may have come from CSV into another format."""
        own = self.format.own(label)
        try:
            return self.classes.find(own)
        except LabelError:
            other = label if own != label else unguarded(label)
            if other == own:
                raise
            return self.classes.find(other)

    def _annotator(self, written: str) -> str:
        """Find who gave an answer: a name that nobody has may be what a program made of another, or of no name."""
        name = self.format.own(written)
        if name.strip() in _NO_NAMES and not self._is_known(name):
            return self.annotator
        plain, bare = whole(name), unguarded(name)
        if plain != name and not self._is_known(name):
            name = plain
        elif bare != name and self._is_known(bare) and not self._is_known(name):
            name = bare
        return shown_name(name) or self.annotator

    def _is_answer(self, line: Line) -> bool:
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

    def _found(self, texts: list[str]) -> tuple[list[str], list[int]]:
        """Look record ids up, as they are written first, then as other programs may have rewritten them."""
        ids, rows = [self.format.own(text) for text in texts], np.full(len(texts), -1, dtype=np.int64)
        readings = [_readings(own, text) for own, text in zip(ids, texts, strict=True)]
        for turn in range(max(map(len, readings))):
            left = [at for at, known in enumerate(readings) if rows[at] < 0 and turn < len(known)]
            if not left:
                break
            rows[left] = self.pool.rows_of([readings[at][turn] for at in left])
            for at in left:
                if rows[at] >= 0:
                    ids[at] = readings[at][turn]
        return ids, rows.tolist()

    def _answer(self, line: Line, record_id: str, row: int) -> Answer | None:
        if row < 0:
            self._reject(line, "the pool has no such record: has a spreadsheet changed the id, such as 007 into 7?")
            return None
        annotator = self._annotator(line.annotator)
        if wrong := name_flaw(annotator):
            self._reject(line, f"the annotator's name {wrong}")
            return None
        code = None
        if line.label:
            try:
                code = self._code(line.label)
            except LabelError as error:
                self._reject(line, self._unknown(line.label, str(error)))
                return None
        answer = Answer(
            row,
            record_id,
            annotator,
            "submitted" if line.label else "skipped",
            code,
            line.answered_at,
            line.number,
            lead_time=line.lead_time,
            skip_reason=line.skip_reason,
            suggestion_shown=line.suggestion_shown,
        )
        if wrong := complaint(answer, len(self.classes.names)):
            self._reject(line, f"the answer {wrong}")
            return None
        return answer

    def _unknown(self, label: str, reason: str) -> str:
        if len(self.rejected) >= LISTED:
            return ""  # not listed any more, and looking for alike names among many classes takes long
        names = self.classes.names
        close = difflib.get_close_matches(label.lower(), [name.lower() for name in names], n=1)
        alike = [name for name in names if [name.lower()] == close]
        if "may be" in reason:
            return reason
        hint = f"; is it {alike[0]!r}?" if alike else ""
        return f"{label!r} is no class of this campaign, which has {listed(names)}{hint}"

    def _reject(self, line: Line, reason: str) -> None:
        self._count(Rejected(line.number, self.format.place(line.number), self.format.own(line.record_id), reason))

    def _count(self, rejected: Rejected) -> None:
        self.rejections += 1
        if len(self.rejected) < LISTED:
            self.rejected.append(rejected)

    def _conflict(self, conflict: Conflict) -> Rejected:
        names = {code: repr(name) for code, name in enumerate(self.classes.names)} | {
            SKIPPED: "skipped",
            RETRACTED: "taken back",
        }
        return Rejected(
            conflict.line,
            self.format.place(conflict.line),
            conflict.record_id,
            f"{names[conflict.label]} here, and {names[conflict.label_elsewhere]} by {conflict.annotator!r} from "
            f"{conflict.source_elsewhere} at {conflict.answered_at}, after the file was exported: kept out",
        )


def _readings(own: str, text: str) -> list[str]:
    """List the record ids that a text may stand for, the likeliest first.

    Examples
    --------
    >>> _readings("192.0", "192.0"), _readings("=1", "'=1")
    (['192.0', '192'], ['=1', "'=1"])
    """
    likely = [own, text, text.strip(), composed(text), unicodedata.normalize("NFD", text)]
    # A file that was written as CSV may have become another one, guards and all.
    likely += [whole(text), unguarded(text)]
    return list(dict.fromkeys(each for each in likely if each))


def _name_of(path: Path) -> str:
    """Give a file's name as a database can keep it: bytes that are no UTF-8 are escaped."""
    return path.name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def digest_of(path: Path) -> str:
    """Take the SHA-256 of a file."""
    digest = hashlib.sha256()
    for block in bytes_of(path):
        digest.update(block)
    return digest.hexdigest()
