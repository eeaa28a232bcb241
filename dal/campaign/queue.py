"""The queue that annotators work from: leases, answers, undo; one transaction a call.

A record of the open batch is served until `Settings.overlap` annotators have answered it; a skip is an answer here, or
a record that nobody can tell would hold the round for ever. An annotator who is served a record holds a lease on it, so
that nobody else is given their place; a lease ends after `LEASE` unless it is renewed. An answer that comes later is
kept, and marked as late. Nobody is served a record that they have answered, unless they took the answer back.

Each annotator gets the records in an order of their own, by hash: two people who work side by side then meet different
records first, and what the ranking does to people (the hardest first) is spread evenly. The reserve follows in its
ranking. Gold records, whose answers are known, come in between, as often as `Settings.gold` says and at places that a
hash decides; nothing that is given out tells them from others.

Beside its batch, the newest round may ask another person about records that have labels (`Labelling.again`). They come
first, and nobody waits for them: one person alone has answered them all.

A round may close before all of its batch is answered (`Labelling.close_at`). Its rest is served on: while the next
batch is prepared, and then before that batch.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
from sqlalchemy import Connection, Row, Subquery, and_, case, delete, exists, func, insert, or_, select

from dal.campaign import answers as ledger
from dal.campaign.leases import LEASE, holds
from dal.campaign.people import enrolled, is_machine, spelling
from dal.campaign.rests import resting_rounds
from dal.campaign.schema import Answer, again, answers, asked, gold, leases, rounds
from dal.campaign.store import CampaignStore
from dal.errors import LabelError
from dal.selection.order import row_hash, uniform
from dal.texts import brief, flaw, name_flaw

_ORDER, _GOLD_ORDER, _GOLD_PLACES = 1, 2, 3


@dataclass(frozen=True)
class Leased:
    """A record that an annotator is to answer; nobody else is given their place until `expires_at`.

    Attributes
    ----------
    row, record_id
        The record.
    round, rank : int
        Whose batch it is, and its place there.
    expires_at : datetime
        UTC.
    suggestion : (int, float) or None
        Class code and its probability, by the model that chose the batch.
    reserve : bool
        Whether it is beyond the batch, which has run out.
    """

    row: int
    record_id: str
    round: int
    rank: int
    expires_at: datetime
    suggestion: tuple[int, float | None] | None
    reserve: bool


@dataclass(frozen=True)
class Given:
    """An answer as a client sends it; `event_id` is the client's own, and tells an answer sent again from a new one."""

    event_id: str
    row: int
    status: Literal["submitted", "skipped"]
    label: int | None = None
    skip_reason: str | None = None
    lead_time: float | None = None
    shown_at: datetime | None = None
    answered_at: datetime | None = None
    suggestion_shown: bool | None = None

    def of(self, record_id: str, annotator: str) -> Answer:
        """Return the answer that this is, once the record and the annotator are known."""
        shared = {name: value for name, value in vars(self).items() if name != "event_id"}
        return Answer(record_id=record_id, annotator=annotator, **shared)


@dataclass(frozen=True)
class Outcome:
    """The outcome of an answer.

    Attributes
    ----------
    event_id : str
    result : {"new", "changed", "same", "repeated", "refused"}
        ``same`` as this annotator's answer before; ``repeated``: this very event was there already, and nothing was
        done; ``refused``: see `reason`.
    late : bool
        It came after the lease had ended, or its round was closed and its record not served on. It is kept, and counts
        from the next round on.
    reason : str
        Why it was refused; else empty.
    """

    event_id: str
    result: Literal["new", "changed", "same", "repeated", "refused"]
    late: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Past:
    """An answer that counts, as its annotator gave it; `event_id` is None where it came in a file."""

    event_id: str | None
    row: int
    record_id: str
    status: Literal["submitted", "skipped"]
    label: int | None
    skip_reason: str | None
    answered_at: datetime
    lead_time: float | None


@dataclass(frozen=True)
class Progress:
    """The progress of the batch; a record is answered when as many annotators as the overlap asks for have answered it.

    Attributes
    ----------
    round : int
        The newest round whose batch was opened; 0 before the first.
    open : bool
        Whether it still waits for answers.
    batch, answered : int
        Records of the batch, and those that the team has answered.
    given : int
        Answers that count towards the overlap: `batch` times the overlap when all are answered.
    upto : int
        The id of the newest answer that was taken into account.
    mine : int
        Records of the batch that this annotator has answered.
    left : int
        Records of the batch that this annotator can be served now, or holds.
    held : int
        Records that this annotator would be served if nobody else held them.
    reserve : int
        Records of the reserve that this annotator can be served.
    """

    round: int
    open: bool
    batch: int
    answered: int
    given: int
    upto: int
    mine: int
    left: int
    held: int
    reserve: int


@dataclass(frozen=True)
class OwnShare:
    """The work of one annotator since the newest batch was opened.

    Attributes
    ----------
    batch : int
        Records of the batch that they have answered.
    beyond : int
        Records that they answered beyond it: of its reserve, of rounds before, and gold ones.
    """

    batch: int
    beyond: int


class _Newest(NamedTuple):
    """The newest round whose batch was opened; number 0 before the first."""

    number: int
    open: bool
    opened_at: str = ""


class _Target(NamedTuple):
    """The record that an answer is for; `round` is None where it is a gold one."""

    record_id: str
    round: int | None
    open: bool


class Queue:
    """The queue of a campaign's open batch, its reserve, and the rest of the batch before.

    Safe to use from many threads and processes.

    Parameters
    ----------
    campaign : Campaign
    source : str, default="pages"
        Where answers say that they come from.
    """

    def __init__(self, campaign: CampaignStore, *, source: str = "pages") -> None:
        self._database = campaign.database
        self._settings = campaign.settings
        self._source = source

    def lease(self, annotator: str, n: int) -> list[Leased]:
        """Serve up to `n` records: those that the annotator holds, with their leases renewed, then new ones."""
        with self._writing(annotator) as (connection, annotator, now):
            newest = self._newest(connection)
            held, free = self._servable(connection, annotator, newest, now)
            held_gold, free_gold = self._servable_gold(connection, annotator, now)
            mine = self._as_served(connection, annotator, held + held_gold)[:n]
            served = self._served(connection, annotator, now)
            new = self._mixed(annotator, free, free_gold, served, n - len(mine))
            self._hold(connection, annotator, mine + new, now)
            return self._leased(connection, annotator, newest, mine + new, free[:1], now)

    def renew(self, annotator: str, rows: Sequence[int]) -> list[int]:
        """Hold records for another `LEASE`, and give those that are still held.

        One whose lease has ended is held again, if nobody has taken its place since.
        """
        with self._writing(annotator) as (connection, annotator, now):
            had = leases.c.annotator == annotator, leases.c.row.in_(list(rows))
            known = set(connection.scalars(select(leases.c.row).where(*had)))
            slots = self._slots(annotator, now, self._newest(connection))
            batch = select(slots.c.row).where(slots.c.row.in_(known), self._is_free(slots))
            records = select(gold.c.row).where(gold.c.row.in_(known))
            kept = set(connection.scalars(batch)) | set(connection.scalars(records))
            self._hold(connection, annotator, self._as_served(connection, annotator, kept), now)
            return [row for row in rows if row in kept]

    def release(self, annotator: str, rows: Sequence[int]) -> None:
        """Release records, for others to be served."""
        with self._writing(annotator) as (connection, annotator, _):
            connection.execute(delete(leases).where(leases.c.annotator == annotator, leases.c.row.in_(list(rows))))

    def answer(self, annotator: str, given: Sequence[Given]) -> list[Outcome]:
        """Add answers, and say of each what became of it; one that is refused does not hold up the others."""
        return self.answer_together([(annotator, given)])[0]

    def answer_together(self, given: Sequence[tuple[str, Sequence[Given]]]) -> list[list[Outcome]]:
        """Add the answers of several annotators in one transaction, as `answer` does those of one."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            return [self._answered(connection, name, theirs, now) for name, theirs in given]

    def undo(self, annotator: str, event_id: str, new_event_id: str) -> Outcome:
        """Take an answer back: the record counts as not answered by this annotator, who holds it again.

        Parameters
        ----------
        annotator : str
        event_id : str
            The annotator's latest answer to the record.
        new_event_id : str
            Of the undoing itself.
        """
        with self._writing(annotator) as (connection, annotator, now):
            if (seen := _event(connection, new_event_id)) is not None:
                again = seen.annotator == annotator and seen.status == "retracted"
                return Outcome(new_event_id, "repeated", seen.late) if again else _refused(new_event_id, _TAKEN)
            if not new_event_id:
                return _refused(new_event_id, _NO_EVENT_ID)
            mine = ledger.standing(answers.c.event_id == event_id, answers.c.annotator == annotator)
            found = connection.execute(mine).one_or_none()
            if found is None:
                return _refused(new_event_id, f"{event_id!r} is not your latest answer to a record")
            target = self._target(connection, found.row, annotator)
            late = target is None or not target.open
            undone = Answer(found.row, found.record_id, annotator, "skipped")
            self._append(connection, undone, new_event_id, now, status="retracted", round=found.round, late=late)
            if not late:
                self._hold(connection, annotator, [found.row], now)
            return Outcome(new_event_id, "changed", late)

    def history(self, annotator: str, n: int) -> list[Past]:
        """Read the annotator's last `n` answers that count, the newest first; one a record."""
        with self._database.reading() as connection:
            mine = ledger.standing(answers.c.annotator == spelling(connection, annotator))
            return [
                Past(
                    event_id=each.event_id,
                    row=each.row,
                    record_id=each.record_id,
                    status=each.status,
                    label=each.label,
                    skip_reason=each.skip_reason,
                    answered_at=datetime.fromisoformat(each.answered_at),
                    lead_time=each.lead_time,
                )
                for each in connection.execute(mine.order_by(answers.c.id.desc()).limit(n))
            ]

    def progress(self, annotator: str) -> Progress:
        """Count how far the batch is."""
        with self._database.reading() as connection:
            newest, annotator = self._newest(connection), spelling(connection, annotator)
            slots = self._slots(annotator, self._database.now(connection), newest, of_newest=True)
            batch, free = ~slots.c.reserve, self._is_free(slots)
            overlap = self._settings.labelling.overlap
            complete = slots.c.given >= overlap
            enough = case((complete, overlap), else_=slots.c.given)
            upto = ledger.last_id(connection)
            counts = connection.execute(
                select(
                    func.count().filter(batch),
                    func.count().filter(batch, complete),
                    func.coalesce(func.sum(enough).filter(batch), 0),
                    func.count().filter(batch, slots.c.answered),
                    func.count().filter(batch, free),
                    func.count().filter(batch, ~complete, ~slots.c.answered, ~free),
                    func.count().filter(slots.c.reserve, free),
                ).select_from(slots)
            ).one()
        batch_size, answered, given, mine, left, held, reserve = counts
        return Progress(newest.number, newest.open, batch_size, answered, int(given), upto, mine, left, held, reserve)

    def own_share(self, annotator: str, upto: int | None = None) -> OwnShare:
        """Count what this annotator has done for the newest batch, as of the answer with the id `upto`.

        A gold record belongs to the batch that was the newest when it was first answered: what is counted rises by one
        with each answer, to a record of any kind.
        """
        before = answers.alias("before")
        first = select(func.min(before.c.received_at)).where(
            before.c.row == answers.c.row, before.c.annotator == answers.c.annotator
        )
        with self._database.reading() as connection:
            newest, annotator = self._newest(connection), spelling(connection, annotator)
            own = ledger.standing(answers.c.annotator == annotator, upto=upto).with_only_columns(func.count())
            # The answer itself is looked at before those of a person to its record, which takes longer.
            answered_since = answers.c.received_at >= newest.opened_at
            since = and_(answered_since, first.correlate(answers).scalar_subquery() >= newest.opened_at)
            of_rounds = own.join(asked, asked.c.row == answers.c.row)
            asked_now = of_rounds.where(asked.c.round == newest.number)
            rest = of_rounds.where(asked.c.round != newest.number, since)
            known = own.join(gold, gold.c.row == answers.c.row).where(since)
            batch, *beyond = (
                connection.scalar(query) or 0
                for query in (asked_now.where(~asked.c.reserve), asked_now.where(asked.c.reserve), rest, known)
            )
        return OwnShare(batch, sum(beyond))

    def was_served(self, annotator: str, row: int) -> bool:
        """Return whether this annotator holds a record, or has answered it."""
        with self._database.reading() as connection:
            annotator = spelling(connection, annotator)
            return any(
                connection.scalar(select(exists().where(table.c.row == row, table.c.annotator == annotator)))
                for table in (leases, answers)
            )

    # -- serving -----------------------------------------------------------------------------------------------------

    def _slots(self, annotator: str, now: datetime, newest: _Newest, *, of_newest: bool = False) -> Subquery:
        """Join the asked records with their answers and leases, of this annotator and of others."""
        others = select(func.count()).where(leases.c.row == asked.c.row, leases.c.annotator != annotator, holds(now))
        held = exists().where(leases.c.row == asked.c.row, leases.c.annotator == annotator, holds(now))
        own = ledger.standing(answers.c.row == asked.c.row, answers.c.annotator == annotator)
        places = select(again.c.places).where(again.c.row == asked.c.row, again.c.round == newest.number)
        query = select(
            asked.c.row,
            asked.c.rank,
            asked.c.round,
            asked.c.reserve,
            ledger.answers_given(asked.c.row).label("given"),
            others.correlate(asked).scalar_subquery().label("others"),
            own.with_only_columns(answers.c.id).correlate(asked).exists().label("answered"),
            held.correlate(asked).label("held"),
            places.correlate(asked).scalar_subquery().label("again"),
        )
        return (query.where(asked.c.round == newest.number) if of_newest else query).subquery()

    def _is_free(self, slots: Subquery) -> Any:  # noqa: ANN401 - an SQL expression
        places = func.coalesce(slots.c.again, self._settings.labelling.overlap)
        return and_(~slots.c.answered, slots.c.given + slots.c.others < places)

    def _servable(
        self, connection: Connection, annotator: str, newest: _Newest, now: datetime
    ) -> tuple[list[int], list[int]]:
        """Find the rows that the annotator holds, and those that could be next, in the annotator's order."""
        slots = self._slots(annotator, now, newest)
        resting = resting_rounds(connection, self._settings.labelling)
        served = or_(slots.c.round == newest.number, and_(slots.c.round.in_(resting), ~slots.c.reserve))
        served = or_(served, slots.c.again.is_not(None), slots.c.held)
        columns = slots.c.row, slots.c.rank, slots.c.round, slots.c.reserve, slots.c.held, slots.c.again
        found = connection.execute(select(*columns).where(served, self._is_free(slots))).all()
        second = self._ordered(
            annotator, [each.row for each in found if each.again is not None and not each.held], _ORDER
        )
        batch = [each for each in found if each.again is None and not each.reserve and not each.held]
        # The round after the next one is to learn from the rest of a round before.
        rest = self._ordered(annotator, [each.row for each in batch if each.round != newest.number], _ORDER)
        chosen = self._ordered(annotator, [each.row for each in batch if each.round == newest.number], _ORDER)
        reserve = sorted(
            (each.rank, each.row) for each in found if each.again is None and each.reserve and not each.held
        )
        return [each.row for each in found if each.held], second + rest + chosen + [row for _, row in reserve]

    def _servable_gold(self, connection: Connection, annotator: str, now: datetime) -> tuple[list[int], list[int]]:
        own = ledger.standing(answers.c.row == gold.c.row, answers.c.annotator == annotator)
        answered = own.with_only_columns(answers.c.id).correlate(gold).exists()
        held = exists().where(leases.c.row == gold.c.row, leases.c.annotator == annotator, holds(now))
        found = connection.execute(select(gold.c.row, held.label("held")).where(~answered)).all()
        free = self._ordered(annotator, [each.row for each in found if not each.held], _GOLD_ORDER)
        return [each.row for each in found if each.held], free

    def _served(self, connection: Connection, annotator: str, now: datetime) -> int:
        """Count what this annotator was served so far: it says where gold records come."""
        answered = select(func.count(answers.c.row.distinct())).where(answers.c.annotator == annotator)
        held = select(func.count()).select_from(leases).where(leases.c.annotator == annotator, holds(now))
        return (connection.scalar(answered) or 0) + (connection.scalar(held) or 0)

    def _mixed(self, annotator: str, free: list[int], free_gold: list[int], served: int, n: int) -> list[int]:
        """Take the next `n` records, gold ones in between; none where there is no other record to hide them among."""
        places = np.arange(served, served + max(n, 0))
        is_gold = uniform(places, self._seed(annotator), _GOLD_PLACES) < self._settings.labelling.gold
        records, known, chosen = iter(free), iter(free_gold), []
        left = len(free)
        for place in is_gold.tolist():
            if not left:
                break
            row = next(known, None) if place else None
            if row is None:
                row = next(records)
                left -= 1
            chosen.append(row)
        return chosen

    def _as_served(self, connection: Connection, annotator: str, rows: Iterable[int]) -> list[int]:
        """Sort rows that the annotator holds, or held, into the order in which they were served."""
        own = leases.c.annotator == annotator, leases.c.row.in_(list(rows))
        return list(connection.scalars(select(leases.c.row).where(*own).order_by(leases.c.expires_at, leases.c.row)))

    def _hold(self, connection: Connection, annotator: str, rows: Sequence[int], now: datetime) -> None:
        if rows:
            until = (now + LEASE).timestamp()
            connection.execute(delete(leases).where(leases.c.annotator == annotator, leases.c.row.in_(rows)))
            # A millisecond apart, which keeps the order in which they are served: asked again, all come as before. Any
            # order that is made from rows would move gold records, and nothing else. None outlasts a lease.
            ends = [until - 0.001 * place for place in reversed(range(len(rows)))]
            connection.execute(
                insert(leases),
                [{"row": row, "annotator": annotator, "expires_at": end} for row, end in zip(rows, ends, strict=True)],
            )

    def _leased(
        self, connection: Connection, annotator: str, newest: _Newest, rows: list[int], after: list[int], now: datetime
    ) -> list[Leased]:
        """Describe the rows that are served; those `after` them come next."""
        wanted = select(asked).where(asked.c.row.in_([*rows, *after]))
        found = {each.row: each for each in connection.execute(wanted)}
        known = {each.row: each for each in connection.execute(select(gold).where(gold.c.row.in_(rows)))}
        until = now + LEASE
        served = []
        # A gold record is of the round of the one beside it. Beside the rest of a cold start, which has no suggestions,
        # one of the newest round would be the only one with a suggestion.
        beside = next((found[row].round for row in [*rows, *after] if row in found), newest.number)
        for row in rows:
            if (record := found.get(row)) is not None:
                suggestion = None if record.predicted is None else (record.predicted, record.confidence)
                place = (record.round, record.rank, until, suggestion, record.reserve)
                beside = record.round
            else:
                record = known[row]
                of_round = select(func.count()).select_from(asked).where(asked.c.round == beside)
                size = connection.scalar(of_round) or 1
                rank = int(row_hash(np.array([row]), self._seed(annotator), _GOLD_ORDER)[0]) % size
                place = (beside, rank, until, None, False)
            served.append(Leased(row, record.record_id, *place))
        return served

    # -- answering ---------------------------------------------------------------------------------------------------

    def _answered(self, connection: Connection, annotator: str, given: Sequence[Given], now: datetime) -> list[Outcome]:
        if wrong := name_flaw(annotator):
            return [
                _refused(each.event_id, f"`annotator` must be a name that people can write, got one that {wrong}")
                for each in given
            ]
        known = enrolled(connection, annotator)
        if is_machine(connection, known):
            return [_refused(each.event_id, _not_a_person(known)) for each in given]
        return [self._answer(connection, known, each, now) for each in given]

    def _answer(self, connection: Connection, annotator: str, given: Given, now: datetime) -> Outcome:
        if not given.event_id or len(given.event_id) > _EVENT_ID_CHARACTERS or flaw(given.event_id):
            return _refused(given.event_id, _NO_EVENT_ID)
        if not 0 <= given.row < 2**63:
            return _refused(given.event_id, f"row {brief(given.row)} was never served")
        if (seen := _event(connection, given.event_id)) is not None:
            again = (seen.annotator, seen.row) == (annotator, given.row) and seen.status != "retracted"
            return Outcome(given.event_id, "repeated", seen.late) if again else _refused(given.event_id, _TAKEN)
        target = self._target(connection, given.row, annotator)
        if target is None:
            return _refused(given.event_id, f"row {given.row} was never served")
        answer = given.of(target.record_id, annotator)
        if complaint := ledger.complaint(answer, len(self._settings.classes)):
            return _refused(given.event_id, f"the answer {complaint}")
        mine = answers.c.row == given.row, answers.c.annotator == annotator
        before = connection.execute(ledger.standing(*mine)).one_or_none()
        holding = select(func.count()).where(leases.c.row == given.row, leases.c.annotator == annotator, holds(now))
        late = not target.open or (before is None and not connection.scalar(holding))
        label = None if given.label is None else int(given.label)
        self._append(
            connection, answer, given.event_id, now, status=given.status, label=label, round=target.round, late=late
        )
        connection.execute(delete(leases).where(leases.c.row == given.row, leases.c.annotator == annotator))
        if before is None:
            return Outcome(given.event_id, "new", late)
        same = (before.status, before.label) == (given.status, given.label)
        return Outcome(given.event_id, "same" if same else "changed", late)

    def _append(self, connection: Connection, answer: Answer, event_id: str, now: datetime, **values: object) -> None:
        """Append to the log; `values` are the columns that an import derives from its stage."""
        columns = ledger.as_columns(answer, now.astimezone(UTC).isoformat())
        connection.execute(insert(answers).values(event_id=event_id, source=self._source, **columns, **values))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _newest(self, connection: Connection) -> _Newest:
        opened = select(rounds.c.number, rounds.c.status, rounds.c.opened_at).where(rounds.c.opened_at.is_not(None))
        found = connection.execute(opened.order_by(rounds.c.number.desc()).limit(1)).one_or_none()
        return (
            _Newest(0, open=False) if found is None else _Newest(found.number, found.status == "open", found.opened_at)
        )

    def _rests(self, connection: Connection, number: int) -> bool:
        """Return whether the rest of a round is served; it takes a look at each record of two batches."""
        return number in resting_rounds(connection, self._settings.labelling)

    def _is_asked_again(self, connection: Connection, row: int) -> bool:
        number = self._newest(connection).number
        return bool(connection.scalar(select(exists().where(again.c.row == row, again.c.round == number))))

    def _target(self, connection: Connection, row: int, annotator: str) -> _Target | None:
        batch = select(asked.c.record_id, asked.c.round, rounds.c.status, asked.c.reserve).join(rounds)
        found = connection.execute(batch.where(asked.c.row == row)).one_or_none()
        if found is not None:
            # The reserve is there for when the batch is closed, and the rest of a round is served on.
            in_time = (
                found.status == "open"
                or found.reserve
                or self._is_asked_again(connection, row)
                or self._rests(connection, found.round)
            )
            return _Target(found.record_id, found.round, in_time)
        newest = self._newest(connection)
        record_id = connection.scalar(select(gold.c.record_id).where(gold.c.row == row))
        # Before the first batch nothing was served, and whatever were taken then would be known for gold.
        if record_id is None or not newest.number:
            return None
        # Late when a record of the batch in which it was answered would be, or lateness would tell the two apart.
        mine = select(func.min(answers.c.received_at)).where(answers.c.row == row, answers.c.annotator == annotator)
        first = connection.scalar(mine)
        in_time = (first is None or first >= newest.opened_at) and (
            newest.open or self._rests(connection, newest.number)
        )
        return _Target(record_id, None, in_time)

    @contextmanager
    def _writing(self, annotator: str) -> Iterator[tuple[Connection, str, datetime]]:
        """Yield a connection in a transaction, the name that the campaign knows the annotator by, and the time."""
        if wrong := name_flaw(annotator):
            raise LabelError(f"`annotator` must be the name of a person, got one that {wrong}")
        with self._database.writing() as connection:
            known = enrolled(connection, annotator)
            if is_machine(connection, known):
                raise LabelError(_not_a_person(known))
            yield connection, known, self._database.now(connection)

    def _seed(self, annotator: str) -> int:
        return int.from_bytes(hashlib.sha256(annotator.encode()).digest()[:8]) ^ self._settings.random_state

    def _ordered(self, annotator: str, rows: list[int], purpose: int) -> list[int]:
        """Sort rows into an order of the annotator's own."""
        known = np.array(rows, dtype=np.int64)
        # Rows that the database gives in another order must not come out in another one.
        known.sort()
        order: list[int] = known[np.argsort(row_hash(known, self._seed(annotator), purpose), kind="stable")].tolist()
        return order


_EVENT_ID_CHARACTERS = 200  # databases index it
_NO_EVENT_ID = f"the event id must have 1 to {_EVENT_ID_CHARACTERS} characters"
_TAKEN = "this event id belongs to something else"


def _not_a_person(name: str) -> str:
    return f"`annotator` must be the name of a person, got {name!r}, which is a machine's; take another name"


def _refused(event_id: str, reason: str) -> Outcome:
    return Outcome(event_id, "refused", reason=reason)


def _event(connection: Connection, event_id: str) -> Row[Any] | None:
    return connection.execute(select(answers).where(answers.c.event_id == event_id)).one_or_none()
