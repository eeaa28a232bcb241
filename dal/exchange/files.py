"""Files of answers: export a batch, have any program fill it in, import it.

`dal.exchange.formats` knows how each format is written. This module decides, for all of them, what a line means.
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
from dal._distribution import needs
from dal._files import replacing
from dal.campaign import RETRACTED, SKIPPED, Answer, AnswerFile, Answers, Asked, CampaignStore, Conflict, Imported
from dal.campaign.answers import complaint
from dal.choices import FORMATS
from dal.classes import MISSING, UNLABELLED, Classes, listed
from dal.errors import CampaignError, LabelError
from dal.exchange.formats import Csv, Format, Item, JsonLines, Known, Line, Parquet, Prodigy, Rejected, Sheet, bytes_of
from dal.exchange.label_studio import LabelStudio
from dal.pool.stored import picture_kind
from dal.texts import composed, folded, name_flaw, shown_name, unguarded, whole

LISTED = 1000
"""Number of lines that a report lists; further ones are only counted, so that a wrong file cannot fill memory."""

AT_ONCE = 4096
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
"""Texts that programs write where no annotator is named; a person may be called Nan."""

_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z")
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Records(Protocol):
    """The part of a pool that this package needs; `dal.pool.Pool` has it."""

    record_shape: tuple[int, ...]
    encoding: str
    has_pictures: bool

    @property
    def n_rows(self) -> int:
        """Number of records."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the display fields."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """Kind of each display field, where it is known."""

    def rows_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the rows of record ids, -1 where unknown."""

    def record_ids(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the record ids of rows, in the order asked."""

    def display(self, rows: npt.NDArray[np.int64]) -> dict[str, list[object]]:
        """Return the display fields of rows, in the order asked."""

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the features of rows, in the order asked."""

    def pictures(self, rows: npt.NDArray[np.int64]) -> list[bytes | None]:
        """Return the small pictures of rows, where there are such beside the features."""

    def refreshed(self) -> "Records":
        """Return the pool as it is now, with the records that were appended since it was opened."""


@dataclass(frozen=True)
class ImportReport:
    """Counts of the lines of an imported file, by outcome.

    Attributes
    ----------
    new, changed, same : int
        Lines imported: a first answer, a different answer, or the answer that exists already.
    pending : int
        Lines without a label or a status.
    superseded : int
        Lines whose annotator answered the same record later, by the times in the file.
    volunteered : int
        Of the lines imported, those whose record no batch had asked for.
    rejected : tuple of Rejected
        Lines that cannot be read or contradict each other, the first thousand, by line.
    rejections : int
        Number of all rejected lines.
    conflicts : tuple of Rejected
        Lines kept out because their annotator answered differently elsewhere since the export, the first thousand.
    kept_out : int
        Number of all conflicts.
    seen : bool
        Whether the file had been imported before: it is not read again, and `same` counts the lines imported then.
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
"""The place for custom formats."""


def format_of(path: Path, name: str | Format | None, classes: tuple[str, ...]) -> Format:
    """Return the format of a file, by its name or by the suffix of the file.

    Parameters
    ----------
    path : Path
    name : str or Format, optional
        One of `FORMATS`, the name of a custom format, or a format.
    classes : tuple of str
        Classes of the campaign, which some formats need.

    Raises
    ------
    LabelError
        There is no such format, or the suffix does not name one.
    """
    if name is not None and not isinstance(name, str):
        return _own(name, plugins.label_of(name, SLOT))
    if name is None and path.suffix.lower() not in _SUFFIXES:
        if path.suffix.lower() in _PACKED:
            raise LabelError(f"{path} must be unpacked, got {path.suffix}; unpack it first")
        if path.suffix.lower() in _WORKBOOKS:
            raise LabelError(f"{path} must be a text file, got a workbook; save it as 'CSV UTF-8'")
        raise LabelError(
            f"{path} must have the suffix of a format; name one of {', '.join(FORMATS)} with --format (file_format=)"
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
    """Return a custom format, from its class or an object of it."""
    try:
        own: Format = found() if isinstance(found, type) else found
    except Exception as error:  # anybody's code
        raise LabelError(f"`file_format` must be made without arguments, got {name}; {error}.") from error
    if missing := [each for each in ("lines", "write", "place", "own", "pictures") if not hasattr(own, each)]:
        raise LabelError(
            f"`file_format` must have the members of dal.exchange.formats.Format, got {name}, which lacks"
            f" {', '.join(missing)}; subclass it."
        )
    return own


def _format_name(file_format: str | Format) -> str:
    return file_format if isinstance(file_format, str) else plugins.text_of(file_format, SLOT)


# -- out -------------------------------------------------------------------------------------------------------------


def write_batch(
    campaign: CampaignStore,
    pool: Records,
    number: int,
    path: str | Path,
    *,
    file_format: str | Format | None = None,
    at_once: int = AT_ONCE,
) -> int:
    """Write a round's batch as a file of answers, in the order of asking.

    A record has a filled-in line for each annotator who has answered it, or else one empty line. Label Studio gets only
    the records that still lack answers. An existing file at `path` is replaced only if nothing can be lost: it is
    unchanged since its export, or was imported since.

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
        by the suffix of `path`.
    at_once : int, default=4096
        Records that are in memory at a time.

    Returns
    -------
    int
        Number of lines written, without the header.

    Raises
    ------
    CampaignError
        The file cannot be written, or holds answers that were not imported.
    LabelError
        The format is unknown.
    """
    path = Path(path)
    sheet = sheet_of(campaign, pool, number)
    written = format_of(path, file_format, sheet.classes)
    _refuse_unread(campaign, path)
    upto = campaign.answers.last_id()
    latest = campaign.answers.latest(upto, asked_in=number)
    pictures = written.pictures and is_picture(pool)
    batch, waiting = campaign.rounds.batch(number), campaign.rounds.waiting_rows(number)
    blocks = items(pool, sheet, batch, latest, waiting=waiting, pictures=pictures, at_once=at_once)
    with replacing(path) as file:
        digesting = _Digesting(file)
        lines = written.write(digesting, sheet, blocks)
        # Before the rename: an exported file without its export on record would look like an edited one.
        campaign.answers.record_export(number, _name_of(path), digesting.digest.hexdigest(), upto)
    return lines


def sheet_of(campaign: CampaignStore, pool: Records, number: int) -> Sheet:
    """Return what a file holds of a batch besides its records."""
    return Sheet(
        batch=f"{campaign.id}-r{number:03d}",
        round=number,
        classes=campaign.settings.classes,
        fields=pool.fields,
        overlap=campaign.settings.labelling.overlap,
        kinds=pool.kinds,
    )


def items(
    pool: Records,
    sheet: Sheet,
    batch: Iterable[Asked],
    latest: Answers,
    *,
    waiting: npt.NDArray[np.int64],
    pictures: bool,
    at_once: int = AT_ONCE,
) -> Iterator[list[Item]]:
    """Return the records of a batch with what a file shows of them, in blocks, because display fields can be long.

    Parameters
    ----------
    pool : Records
    sheet : Sheet
    batch : iterable of Asked
    latest : Answers
        The latest answer of each annotator to each record.
    waiting : ndarray of int64
        Rows of the records that lack answers.
    pictures : bool
        Whether to draw the features.
    at_once : int, default=4096
        Records of a block.

    Raises
    ------
    NotInstalled
        `pictures` is true, and Pillow is missing.
    """
    if pictures:
        with needs("images", "a file with pictures"):
            import PIL.Image  # noqa: F401 - refuse before anything is written
    return _items(pool, sheet, batch, latest, set(waiting.tolist()), pictures=pictures, at_once=at_once)


def _items(
    pool: Records,
    sheet: Sheet,
    batch: Iterable[Asked],
    latest: Answers,
    waiting: set[int],
    *,
    pictures: bool,
    at_once: int,
) -> Iterator[list[Item]]:
    known = _known(latest, sheet.classes)
    records = iter(batch)
    while block := list(islice(records, at_once)):
        rows = np.array([record.row for record in block], dtype=np.int64)
        shown = pool.display(rows)
        drawn = _pictures(pool, rows) if pictures else [None] * len(block)
        yield [
            Item(
                record,
                {name: shown[name][at] for name in sheet.fields},
                picture,
                tuple(known.get(record.row, ())),
                record.row not in waiting,
            )
            for at, (record, picture) in enumerate(zip(block, drawn, strict=True))
        ]


def is_picture(pool: Records) -> bool:
    """Check whether there are pictures to show: features (h, w, c) of bytes with 1, 3 or 4 channels, or others."""
    return pool.has_pictures or _of_pictures(pool)


def _of_pictures(pool: Records) -> bool:
    return pool.encoding == "uint8" and len(pool.record_shape) == 3 and pool.record_shape[2] in _MODES


def _pictures(pool: Records, rows: npt.NDArray[np.int64]) -> Iterator[str | None]:
    """Yield the pictures of rows as data URIs, so that a labelling tool needs no access to the pool."""
    if not _of_pictures(pool):
        for kept in pool.pictures(rows):
            yield f"data:{picture_kind(kept)};base64,{base64.b64encode(kept).decode()}" if kept else None
        return
    from PIL import Image

    height, width, channels = pool.record_shape
    step = max(1, (16 << 20) // (4 * height * width * channels))
    for start in range(0, len(rows), step):
        pixels = pool.take(rows[start : start + step]).astype(np.uint8)
        for picture in pixels.reshape(-1, *((height, width) if channels == 1 else pool.record_shape)):
            png = io.BytesIO()
            Image.fromarray(picture, _MODES[channels]).save(png, "PNG")
            yield "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _refuse_unread(campaign: CampaignStore, path: Path) -> None:
    if path.exists() and not campaign.answers.file_known(digest_of(path)):
        raise CampaignError(
            f"{path} must not hold answers that were not imported, got changed or refused lines; import it first, or "
            "export to another file"
        )


def _known(latest: Answers, classes: tuple[str, ...]) -> dict[int, list[Known]]:
    """Return the label, status and annotator of each answer, by row."""
    known: dict[int, list[Known]] = {}
    for row, annotator, code in zip(latest.rows.tolist(), latest.annotators, latest.labels.tolist(), strict=True):
        label, status = ("", "skipped") if code == SKIPPED else (classes[code], "submitted")
        known.setdefault(row, []).append(Known(label, status, annotator))
    return known


class _Digesting(io.RawIOBase):
    """A file that passes bytes on and computes their digest on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


# -- in --------------------------------------------------------------------------------------------------------------


def read_answers(
    path: str | Path,
    campaign: CampaignStore,
    pool: Records,
    annotator: str,
    *,
    conflicts: Literal["keep out", "take"] = "keep out",
    file_format: str | Format | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import a file of answers, in one transaction, with memory that does not grow with the file.

    A line with a label is an answer. A line with the status ``skipped`` and no label is a skipped record. A line with
    neither is pending. A file that was imported before for this annotator changes nothing.

    Parameters
    ----------
    path : str or Path
    campaign : Campaign
    pool : Records
        The campaign's pool.
    annotator : str
        Name for the lines that do not name an annotator.
    conflicts : {"keep out", "take"}
        What to do with lines whose annotator answered differently, elsewhere, since the batch was exported.
    file_format : str or Format, optional
        One of `FORMATS`, ``module:object``, an installed plug-in of the group ``dal.formats``, or an object. Default:
        by the suffix of `path`.
    progress : callable, optional
        Called with the number of answers read so far, every few thousand.

    Returns
    -------
    ImportReport

    Raises
    ------
    LabelError
        The file as a whole cannot be read; nothing was imported.
    """
    path = Path(path)
    if wrong := name_flaw(annotator):
        raise LabelError(f"`annotator` must be the name of a person, for lines that do not name one; this {wrong}")
    written = format_of(path, file_format, campaign.settings.classes)
    # The format is part of the digest: a file read once in a wrong format can be imported again in the right one.
    digest = digest_of(path) if file_format is None else f"{digest_of(path)} {_format_name(file_format)}"
    file = AnswerFile(_name_of(path), digest, shown_name(annotator), take_conflicts=conflicts == "take")
    known = campaign.answers.seen(digest, file.annotator)
    if known is not None and file.changes_nothing(known):
        return ImportReport(0, 0, known.new + known.changed + known.same, 0, 0, seen=True)
    reading = Reading(path, written, campaign.settings.classes, pool, file.annotator, campaign.answers.knows)
    imported = campaign.answers.import_file(reading.answers(progress), file, rejected=lambda: reading.rejections)
    return reading.report(imported)


def read_gold(
    path: str | Path, campaign: CampaignStore, pool: Records, *, file_format: str | Format | None = None
) -> int:
    """Add the labelled lines of a file as gold records, all of them or none; lines without a label are skipped.

    Parameters
    ----------
    path : str or Path
    campaign : Campaign
    pool : Records
        The campaign's pool.
    file_format : str or Format, optional
        One of `FORMATS`, ``module:object``, an installed plug-in of the group ``dal.formats``, or an object. Default:
        by the suffix of `path`.

    Returns
    -------
    int
        Number of new gold records.

    Raises
    ------
    LabelError
        The file cannot be read, or a line cannot be a gold record: an unknown record or class, a skipped record, one
        that was asked or answered before.
    """
    path = Path(path)
    written = format_of(path, file_format, campaign.settings.classes)
    reading = Reading(path, written, campaign.settings.classes, pool, "gold")
    known = []
    for answer in reading.answers():
        if answer.label is None:
            raise LabelError(f"a gold record must have a label, got {answer.record_id} skipped; label or remove it")
        known.append((answer.row, answer.record_id, answer.label))
    if reading.rejected:
        first = reading.rejected[0]
        raise LabelError(f"{first.place}: {first.record_id}: {first.reason}; no gold record was added")
    return campaign.answers.add_gold(known, n_rows=reading.pool.n_rows)


class Reading:
    """One pass over a file that yields its answers and counts the other lines.

    Parameters
    ----------
    path : Path
    written : Format
        Format of the file.
    classes : tuple of str
        Classes of the campaign.
    pool : Records
    annotator : str
        Name for the lines that do not name one.
    is_known : callable, optional
        Returns whether the campaign knows a person of this name.
    """

    def __init__(
        self,
        path: Path,
        written: Format,
        classes: tuple[str, ...],
        pool: Records,
        annotator: str,
        is_known: Callable[[str], bool] = lambda _: False,
    ) -> None:
        # The file may name records that were appended after this process opened the pool.
        self.path, self.format, self.pool, self.annotator = path, written, pool.refreshed(), annotator
        self._is_known = is_known
        self.classes = Classes(classes)
        self.fit = self.pending = self.rejections = 0
        self.rejected: list[Rejected] = []

    def answers(self, progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        """Yield the answers of the valid lines."""
        lines = self._lines()
        while block := list(islice(lines, AT_ONCE)):
            record_ids, rows = self._found([line.record_id for line in block])
            for line, record_id, row in zip(block, record_ids, rows, strict=True):
                if answer := self._answer(line, record_id, row):
                    self.fit += 1
                    yield answer
            if progress is not None and len(block) == AT_ONCE:
                progress(self.fit)

    def report(self, imported: Imported) -> ImportReport:
        """Return what happened to the lines, once the campaign has imported the answers."""
        counts = imported.counts
        torn = [
            Rejected(
                each.line,
                self.format.place(each.line),
                each.record_id,
                f"{each.annotator!r} answers this record differently between "
                f"{self.format.place(each.first_line)} and {self.format.place(each.last_line)}; leave one answer, "
                "none was "
                "imported",
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
            answered = line._replace(
                label="" if self._is_blank(line.label) else line.label, status="" if status in MISSING else status
            )
            if not answered.record_id:
                self._reject(answered, "no record_id")
            elif self._is_answer(answered):
                yield answered

    def _is_blank(self, label: str) -> bool:
        """Check whether a label is missing: empty, or a text for missing values that is no class."""
        try:
            return self._code(label) == UNLABELLED
        except LabelError:
            return False

    def _code(self, label: str) -> int:
        """Return the code of a class; an apostrophe may belong to the name, or be a guard from CSV."""
        own = self.format.own(label)
        try:
            return self.classes.find(own)
        except LabelError:
            other = label if own != label else unguarded(label)
            if other == own:
                raise
            return self.classes.find(other)

    def _annotator(self, written: str) -> str:
        """Return who gave an answer; an unknown name may be a program's rewriting of another name, or of none."""
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
        """Check that a line is an answer; count a pending one, and reject one that contradicts itself."""
        match bool(line.label), line.status:
            case False, "" | "pending":
                self.pending += 1
            case (True, "" | "submitted") | (False, "skipped"):
                return True
            case True, "skipped" | "pending":
                self._reject(line, f"both the label {line.label!r} and the status {line.status!r}; leave one")
            case False, "submitted":
                self._reject(line, "the status 'submitted' without a label; add one, or clear the status")
            case _:
                self._reject(line, f"the status must be 'submitted', 'skipped' or empty, got {line.status!r}")
        return False

    def _found(self, texts: list[str]) -> tuple[list[str], list[int]]:
        """Return record ids with their rows; look each up as written, then as other programs may have rewritten it."""
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
            self._reject(line, "the pool has no such record; has a spreadsheet changed the id, such as 007 into 7?")
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
            return ""  # the line is not listed, and comparing with many class names is slow
        names = self.classes.names
        close = difflib.get_close_matches(label.lower(), [name.lower() for name in names], n=1)
        alike = [name for name in names if [name.lower()] == close]
        if "may be" in reason:
            return reason
        hint = f"; is it {alike[0]!r}?" if alike else ""
        if any(label in (f'"{name}"', f"'{name}'") for name in names):
            hint = "; leave out the quotes"
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
            RETRACTED: "retracted",
        }
        return Rejected(
            conflict.line,
            self.format.place(conflict.line),
            conflict.record_id,
            f"{names[conflict.label]} here, but {names[conflict.label_elsewhere]} by {conflict.annotator!r} from "
            f"{conflict.source_elsewhere} at {conflict.answered_at}, after the file was exported; kept out",
        )


def _readings(own: str, text: str) -> list[str]:
    """Return the record ids that a text may stand for, the likeliest first.

    Examples
    --------
    >>> _readings("192.0", "192.0"), _readings("=1", "'=1")
    (['192.0', '192'], ['=1', "'=1"])
    """
    likely = [own, text, text.strip(), composed(text), unicodedata.normalize("NFD", text)]
    # A CSV file may have been converted to another format, guards included.
    likely += [whole(text), unguarded(text)]
    return list(dict.fromkeys(each for each in likely if each))


def _name_of(path: Path) -> str:
    """Return a file's name as a database can store it: bytes that are no UTF-8 are escaped."""
    return path.name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    for block in bytes_of(path):
        digest.update(block)
    return digest.hexdigest()
