"""Append-only answers in set-based SQL: stage, keep out, compare, append.

Nothing here opens or ends a transaction; the caller does. The answers of an import wait in a temporary table,
so memory is bounded by one batch of inserts for any file.
"""

from array import array
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    Subquery,
    and_,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    union,
)

from dal.campaign.leases import held
from dal.campaign.people import by_people
from dal.campaign.schema import (
    RETRACTED,
    SKIPPED,
    Answer,
    AnswerFile,
    Answers,
    Conflict,
    Contradiction,
    Event,
    ImportCounts,
    answers,
    asked,
    exports,
    gold,
    imports,
    rounds,
    staged,
)
from dal.errors import LabelError
from dal.evidence.machines import MachineAnswers
from dal.texts import as_seconds, brief, flaw, name_flaw, time_flaw

ALL_PLACES = 2**20
"""More annotators than answer one record."""

LISTED = 1000
"""Lines that a report names; beyond it they are counted only, so that a wrong file cannot fill memory."""

_STAGED_AT_ONCE = 4096
_READ_AT_ONCE = 16384
_SUGGESTED = ("suggested", "suggested_score", "suggested_by")
_TOLD = ("answered_at", "received_at", "shown_at", "lead_time", "skip_reason", "suggestion_shown")


def stage(connection: Connection, given: Iterable[Answer], n_classes: int, n_rows: int, received: str) -> None:
    """Check answers and put them into the connection's temporary table, in the order in which they come.

    Raises
    ------
    LabelError
        At the first answer that cannot be one.
    """
    staged.create(connection)
    checked = (_staged_row(seq, answer, received, n_classes, n_rows) for seq, answer in enumerate(given))
    while block := list(islice(checked, _STAGED_AT_ONCE)):
        connection.execute(insert(staged), block)


def append(connection: Connection, source: str) -> ImportCounts:
    """Append the staged answers that differ from their annotator's one before, and count them all."""
    compared = _compared()
    before, value = compared.c.before, compared.c.value
    tally = connection.execute(
        select(
            func.count().filter(before.is_(None)),
            func.count().filter(before != value),
            func.count().filter(before == value),
            func.count().filter(compared.c.round.is_(None)),
        ).select_from(compared)
    ).one()
    counts = ImportCounts(*tally)
    if counts.new or counts.changed:
        names = ["row", "record_id", "annotator", "status", "label", "round", "source", *_TOLD]
        connection.execute(insert(answers).from_select(names, _differing(compared, source)))
    return counts


def keep_latest(connection: Connection) -> int:
    """Unstage what its annotator answered otherwise later, by the times that the file tells; count the lines.

    Lines without a time of their own were all given when the file was received, so none of them is later.
    """
    first, last = connection.execute(select(func.min(staged.c.answered_at), func.max(staged.c.answered_at))).one()
    if first == last:
        return 0
    who = (staged.c.row, staged.c.annotator)
    latest = select(*who, func.max(staged.c.answered_at)).group_by(*who)
    return connection.execute(delete(staged).where(tuple_(*who, staged.c.answered_at).not_in(latest))).rowcount


def keep_unanswered(connection: Connection) -> int:
    """Unstage what its annotator has answered otherwise, or taken back; count the lines.

    A file that was imported before is older than what came since, and must not undo it.
    """
    value = case((answers.c.status == "retracted", RETRACTED), else_=func.coalesce(answers.c.label, SKIPPED))
    stored = select(value).where(answers.c.id == _latest_id()).correlate(staged).scalar_subquery()
    return connection.execute(delete(staged).where(stored.is_not(None), stored != staged.c.value)).rowcount


def keep_out_contradictions(connection: Connection) -> tuple[tuple[Contradiction, ...], int]:
    """Unstage the lines that give one record several answers by one annotator: a file has no order to decide by."""
    who = (staged.c.row, staged.c.annotator)
    torn = (
        select(*who, func.min(staged.c.line).label("first"), func.max(staged.c.line).label("last"))
        .group_by(*who)
        .having(func.min(staged.c.value) != func.max(staged.c.value))
        .subquery()
    )
    lines = select(staged.c.line, staged.c.record_id, staged.c.annotator, torn.c.first, torn.c.last).join(
        torn, (staged.c.row == torn.c.row) & (staged.c.annotator == torn.c.annotator)
    )
    total = _count(connection, lines)
    if not total:
        return (), 0
    listed = tuple(Contradiction(*line) for line in connection.execute(lines.order_by(staged.c.line).limit(LISTED)))
    connection.execute(delete(staged).where(tuple_(*who).in_(select(torn.c.row, torn.c.annotator))))
    return listed, total


def keep_out_conflicts(connection: Connection, file: AnswerFile) -> tuple[tuple[Conflict, ...], int]:
    """Unstage the lines whose annotator answered otherwise, elsewhere, since the file was exported."""
    clashes = _clashes(file)
    total = _count(connection, clashes)
    if not total:
        return (), 0
    found = connection.execute(clashes.order_by(staged.c.line).limit(LISTED))
    listed = tuple(Conflict(*line[1:]) for line in found)
    connection.execute(delete(staged).where(staged.c.seq.in_(select(clashes.subquery().c.seq))))
    return listed, total


def latest(
    connection: Connection,
    upto: int | None = None,
    asked_in: int | None = None,
    *,
    to_gold: bool = False,
    read_at_once: int = _READ_AT_ONCE,
) -> Answers:
    """Read the latest answer of each person to each record, of those up to an id and to one batch's records.

    An answer that was taken back is none. Answers to gold records judge annotators, and nobody learns from them: they
    are read by themselves, or not at all. Of one batch, the answers of machines are read as well that count alone: its
    other records wait for people, who are not to see the answer of a machine.
    """
    is_gold = answers.c.row.in_(select(gold.c.row))
    wanted = is_gold if to_gold else ~is_gold
    last = select(func.max(answers.c.id).label("id")).where(wanted).group_by(answers.c.row, answers.c.annotator)
    if upto is not None:
        last = last.where(answers.c.id <= upto)
    if asked_in is not None:
        last = last.join(asked, asked.c.row == answers.c.row).where(asked.c.round == asked_in)
    ids = last.subquery()
    whose = by_people(answers.c.annotator) if asked_in is None else or_(by_people(answers.c.annotator), answers.c.alone)
    query = (
        select(answers.c.row, func.coalesce(answers.c.label, SKIPPED), answers.c.id, answers.c.annotator)
        .join(ids, answers.c.id == ids.c.id)
        .where(answers.c.status != "retracted", whose)
        .order_by(answers.c.row, answers.c.annotator)
        .execution_options(yield_per=read_at_once)
    )
    # Arrays that grow where they are, and each name once: rows of Python objects take ten times the memory.
    numbers = array("q"), array("q"), array("q")
    annotators: list[str] = []
    names: dict[str, str] = {}
    for found in connection.execute(query).partitions():
        *block, who = zip(*found, strict=True)
        for column, values in zip(numbers, block, strict=True):
            column.extend(values)
        annotators += [names.setdefault(name, name) for name in who]
    columns = [np.frombuffer(column, np.int64) for column in numbers]
    for each in columns:
        each.setflags(write=False)
    return Answers(columns[0], annotators, columns[1], columns[2])


def of_machines(connection: Connection, upto: int) -> dict[str, MachineAnswers]:
    """Read the latest answer of each machine to each record, of those up to an id; by name, in the order of coming."""
    last = select(func.max(answers.c.id)).where(~by_people(answers.c.annotator), answers.c.id <= upto)
    known = last.group_by(answers.c.row, answers.c.annotator)
    backed = and_(asked.c.predicted == answers.c.label, ~asked.c.explore)
    query = (
        select(
            answers.c.annotator,
            answers.c.row,
            func.coalesce(answers.c.label, SKIPPED),
            func.coalesce(backed, false()),
            answers.c.alone,
        )
        .outerjoin(asked, asked.c.row == answers.c.row)
        .where(answers.c.id.in_(known), answers.c.status != "retracted", answers.c.row.not_in(select(gold.c.row)))
        .order_by(answers.c.annotator, answers.c.id)
    )
    found = {}
    for name, lines in groupby(connection.execute(query), key=itemgetter(0)):
        columns = np.array([tuple(line)[1:] for line in lines], np.int64).reshape(-1, 4).T
        found[name] = MachineAnswers(columns[0], columns[1], columns[2].astype(bool), columns[3].astype(bool))
    return found


def excluded_now(connection: Connection, now: datetime) -> npt.NDArray[np.int64]:
    """Read the rows asked, answered by people, or gold, ascending.

    A record of a reserve is asked once somebody answers it. Until then the next batch may have it, unless somebody
    holds it now.
    """
    return _excluded(connection, select(asked.c.row).where(~asked.c.reserve | held(asked.c.row, now)))


def excluded_at(connection: Connection, round: int, upto: int) -> npt.NDArray[np.int64]:
    """Read the rows asked before a round, answered by people up to an id, or gold before the round, ascending.

    Who holds a record of a reserve passes, so it does not count: the same rows come out whenever this is read.
    """
    asked_rows = select(asked.c.row).where(~asked.c.reserve, asked.c.round < round)
    return _excluded(connection, asked_rows, answers.c.id <= upto, gold.c.since < round)


def _excluded(
    connection: Connection,
    asked_rows: Select[Any],
    answered: ColumnElement[bool] | None = None,
    known: ColumnElement[bool] | None = None,
) -> npt.NDArray[np.int64]:
    # Of a record that only a machine has labelled, unasked, people may know more.
    answered_rows, gold_rows = select(answers.c.row).where(by_people(answers.c.annotator)), select(gold.c.row)
    if answered is not None and known is not None:
        answered_rows, gold_rows = answered_rows.where(answered), gold_rows.where(known)
    # Streamed: a list of a million Python numbers takes ten times the memory of the array.
    rows = union(asked_rows, answered_rows, gold_rows).execution_options(yield_per=_READ_AT_ONCE)
    return np.sort(_integers(connection.scalars(rows)))


def log(connection: Connection, after: int, limit: int) -> list[Event]:
    """Read the answers that came after an id, with what the model had suggested."""
    query = _events().where(answers.c.id > after).order_by(answers.c.id).limit(limit)
    return [_event(dict(row._mapping)) for row in connection.execute(query)]


def log_of(connection: Connection, first: int, last: int, upto: int) -> list[Event]:
    """Read the answers up to an id to the records of rows `first` to `last`, by row and in the order of coming."""
    query = _events().where(answers.c.row.between(first, last), answers.c.id <= upto)
    found = connection.execute(query.order_by(answers.c.row, answers.c.id))
    return [_event(dict(row._mapping)) for row in found]


def answered_rows(connection: Connection, upto: int) -> npt.NDArray[np.int64]:
    """Read the rows that have answers up to an id, gold ones left out, ascending."""
    query = select(answers.c.row).where(answers.c.id <= upto, answers.c.row.not_in(select(gold.c.row))).distinct()
    return np.sort(_integers(connection.scalars(query).all()))


def _events() -> Select[Any]:
    own: list[ColumnElement[Any]] = [answers.c[field.name] for field in fields(Event) if field.name in answers.c]
    own.append((~by_people(answers.c.annotator)).label("machine"))
    suggested = asked.c.predicted, asked.c.confidence, case((asked.c.predicted.is_not(None), rounds.c.model))
    return select(*own, *(column.label(name) for column, name in zip(suggested, _SUGGESTED, strict=True))).select_from(
        answers.outerjoin(asked, asked.c.row == answers.c.row).outerjoin(rounds, rounds.c.number == asked.c.round)
    )


def _event(values: dict[str, Any]) -> Event:
    for name in ("answered_at", "received_at", "shown_at"):
        values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
    return Event(**values)


def standing(*conditions: ColumnElement[bool], upto: int | None = None) -> Select[Any]:
    """Select the answers that count: each annotator's latest to each record, unless it was taken back.

    `upto` tells the id of the last answer that is taken into account: the log is only ever added to, so this is what
    counted when that answer was the newest.
    """
    later = answers.alias("later")
    again: tuple[ColumnElement[bool], ...]
    again = later.c.row == answers.c.row, later.c.annotator == answers.c.annotator, later.c.id > answers.c.id
    if upto is not None:
        conditions = (*conditions, answers.c.id <= upto)
        again = (*again, later.c.id <= upto)
    return select(answers).where(answers.c.status != "retracted", ~exists().where(*again), *conditions)


def answers_given(row: Column[int]) -> ScalarSelect[int]:
    """Count the people whose answer to a record counts, skips included.

    A machine's answer that counts alone is worth as many as any overlap asks for, and its other ones none.
    """
    counted = standing(answers.c.row == row).with_only_columns(func.coalesce(func.sum(_places()), 0))
    return counted.correlate(row.table).scalar_subquery()


def _places() -> ColumnElement[int]:
    return case((answers.c.alone, ALL_PLACES), (by_people(answers.c.annotator), 1), else_=0)


def last_id(connection: Connection) -> int:
    """Return the id of the last answer, 0 where there is none."""
    return connection.scalar(select(func.coalesce(func.max(answers.c.id), 0))) or 0


def seen(connection: Connection, digest: str, annotator: str) -> ImportCounts | None:
    """Return the counts of the last import of this file for this annotator, None if there was none."""
    names = ("new", "changed", "same", "volunteered", "conflicts", "rejected")
    found = connection.execute(
        select(*(imports.c[name] for name in names))
        .where(imports.c.digest == digest, imports.c.annotator == annotator)
        .order_by(imports.c.id.desc())
        .limit(1)
    ).one_or_none()
    return None if found is None else ImportCounts(*found)


def _staged_row(seq: int, answer: Answer, received: str, n_classes: int, n_rows: int) -> dict[str, Any]:
    outside = None if 0 <= answer.row < n_rows else f"is for row {answer.row}; the pool's rows are 0 to {n_rows - 1}"
    if wrong := outside or complaint(answer, n_classes):
        raise LabelError(f"the answer to record {answer.record_id!r} by {answer.annotator!r} {wrong}")
    return {
        "seq": seq,
        "line": answer.line,
        "value": SKIPPED if answer.label is None else int(answer.label),
        **as_columns(answer, received),
    }


def as_columns(answer: Answer, received: str) -> dict[str, Any]:
    """Return what the log and the stage keep of an answer alike, by column."""
    return {
        "row": int(answer.row),
        "record_id": answer.record_id,
        "annotator": answer.annotator,
        "answered_at": _utc(answer.answered_at) or received,
        "received_at": received,
        "shown_at": _utc(answer.shown_at),
        "lead_time": as_seconds(answer.lead_time),
        "skip_reason": answer.skip_reason,
        "suggestion_shown": answer.suggestion_shown,
    }


def _utc(moment: datetime | None) -> str | None:
    """Return a moment as UTC, ISO 8601."""
    return None if moment is None else moment.astimezone(UTC).isoformat()


def complaint(answer: Answer, n_classes: int) -> str | None:
    """Return why an answer cannot be kept; None if it can.

    Both databases keep every answer that passes, so that none fails the others of its transaction.
    """
    if wrong := name_flaw(answer.annotator):
        return f"needs an annotator's name; this one {wrong}"
    if answer.status not in ("submitted", "skipped"):
        return f"has the status {answer.status!r}, and must have 'submitted' or 'skipped'"
    if (answer.label is None) != (answer.status == "skipped"):
        return f"has the label {answer.label!r}, and the status {answer.status!r}"
    code: object = answer.label
    if code is not None and not isinstance(code, int | np.integer):
        return f"has the class code {code!r}, which is no whole number"
    if answer.label is not None and not 0 <= answer.label < n_classes:
        return f"has the class code {answer.label}; the codes are 0 to {n_classes - 1}"
    if answer.skip_reason is not None and answer.status != "skipped":
        return f"has the reason {answer.skip_reason!r} for a skip, and the status {answer.status!r}"
    if answer.skip_reason is not None and (wrong := flaw(answer.skip_reason)):
        return f"has a reason for a skip that {wrong}"
    if wrong := flaw(answer.record_id):
        return f"has a record id that {wrong}"
    if answer.lead_time is not None and as_seconds(answer.lead_time) is None:
        return f"took {brief(answer.lead_time)} seconds, and must have taken 0 or more"
    for name, moment in (("answered", answer.answered_at), ("shown", answer.shown_at)):
        if moment is not None and (wrong := time_flaw(moment)):
            return f"was {name} at {moment.isoformat()}, which {wrong}"
    return None


def _compared() -> Subquery:
    """Join each staged answer with its annotator's one before: earlier in the stage, else the latest stored."""
    who = (staged.c.row, staged.c.annotator)
    earlier = func.lag(staged.c.value).over(partition_by=who, order_by=staged.c.seq)
    stored = (
        select(func.coalesce(answers.c.label, SKIPPED))
        .where(answers.c.id == _latest_id(), answers.c.status != "retracted")
        .correlate(staged)
        .scalar_subquery()
    )
    return (
        select(staged, func.coalesce(earlier, stored).label("before"), asked.c.round)
        .select_from(staged.outerjoin(asked, asked.c.row == staged.c.row))
        .subquery()
    )


def _latest_id() -> ScalarSelect[int]:
    held = answers.alias("held_ids")
    return (
        select(func.max(held.c.id))
        .where(held.c.row == staged.c.row, held.c.annotator == staged.c.annotator)
        .correlate(staged)
        .scalar_subquery()
    )


def _differing(compared: Subquery, source: str) -> Select[Any]:
    skipped = compared.c.value == SKIPPED
    return (
        select(
            compared.c.row,
            compared.c.record_id,
            compared.c.annotator,
            case((skipped, "skipped"), else_="submitted"),
            case((skipped, None), else_=compared.c.value),
            compared.c.round,
            literal(source),
            *(compared.c[name] for name in _TOLD),
        )
        .where(compared.c.before.is_(None) | (compared.c.before != compared.c.value))
        .order_by(compared.c.seq)
    )


def _clashes(file: AnswerFile) -> Select[Any]:
    value = case((answers.c.status == "retracted", RETRACTED), else_=func.coalesce(answers.c.label, SKIPPED))
    return (
        select(
            staged.c.seq,
            staged.c.line,
            staged.c.record_id,
            staged.c.annotator,
            staged.c.value,
            value,
            answers.c.source,
            answers.c.answered_at,
        )
        .join(asked, asked.c.row == staged.c.row)
        .join(answers, answers.c.id == _latest_id())
        .where(answers.c.id > _exported(file), answers.c.source != file.source, value != staged.c.value)
    )


def _exported(file: AnswerFile) -> Any:  # noqa: ANN401 - an SQL expression
    """Find what was known when the file was exported; a renamed file counts as its batch's latest export."""
    known = select(func.max(exports.c.last_answer)).where(exports.c.round == asked.c.round).correlate(asked)
    named = known.where(exports.c.name == file.name)
    return func.coalesce(named.scalar_subquery(), known.scalar_subquery())


def _count(connection: Connection, query: Select[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(query.subquery())) or 0


def _integers(values: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)
