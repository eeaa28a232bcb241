"""The answers of a campaign: an append-only log, what counts of it, gold records, and the files that came and went."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby

import numpy as np
from sqlalchemy import Connection, exists, func, insert, or_, select

from dal.campaign import answers as ledger
from dal.campaign import schema
from dal.campaign.database import Database, immediate
from dal.campaign.people import enrol_staged, is_enrolled, spelling
from dal.campaign.schema import Answer, AnswerFile, Answers, Asked, Event, ImportCounts, Imported, asked, rounds
from dal.campaign.settings import Settings
from dal.errors import LabelError
from dal.evidence.agreement import Agreement, agreement
from dal.evidence.machines import Judged, MachineAnswers, judge, with_machines
from dal.evidence.votes import Labels, label
from dal.selection.order import Rows
from dal.texts import folded

_ANY_ROW = 2**63 - 1
READ_AT_ONCE = 4096
"""Answers that are read in one transaction."""


@dataclass
class Standing:
    """The answers that count at some moment; labels and agreement are computed once, when they are first needed.

    `answers` are those of people; machines are kept apart, so that nothing takes them for people.
    """

    answers: Answers
    of_machines: dict[str, MachineAnswers]
    settings: Settings

    @cached_property
    def agreement(self) -> Agreement:
        """The agreement of people; it takes a bootstrap."""
        given = self.answers
        return agreement(given.rows, given.annotators, given.labels, seed=self.settings.random_state)

    @cached_property
    def labels(self) -> Labels:
        """The label of each record by the campaign's vote; where no person gave one, by a machine that counts alone."""
        judged = self.machines
        return with_machines(self.by_people, [(given, judged[name]) for name, given in self.of_machines.items()])

    @property
    def labelled_rows(self) -> Rows:
        """The rows that `labels` holds, ascending; without the vote, which may take long."""
        by_people = self.answers.rows[self.answers.labels >= 0]
        settled = [given.rows[given.settling] for given in self.of_machines.values()]
        return np.unique(np.concatenate([by_people, *settled]))

    @cached_property
    def machines(self) -> dict[str, Judged]:
        """The judgement of each machine by the labels of people."""
        n_classes, least = len(self.settings.classes), self.settings.labelling.machine_accuracy
        return {name: judge(given, self.by_people, n_classes, least) for name, given in self.of_machines.items()}

    @cached_property
    def by_people(self) -> Labels:
        """The label of each record by the vote of people alone."""
        given, chosen = self.answers, self.settings
        columns = given.rows, given.annotators, given.labels
        return label(*columns, vote=chosen.labelling.vote, n_classes=len(chosen.classes), seed=chosen.random_state)


class AnswerLog:
    """The answers of a campaign; only ever added to."""

    def __init__(self, settings: Settings, n_rows: int, database: Database) -> None:
        self._settings = settings
        self._n_rows = n_rows
        self._database = database
        self._standing: dict[int, Standing] = {}

    def add(self, answers: Iterable[Answer], *, source: str, source_digest: str | None = None) -> ImportCounts:
        """Add answers in the order in which they were given, in one transaction.

        An answer equal to its annotator's latest one for the record changes nothing; a different one is appended,
        and the old one stays.

        Parameters
        ----------
        answers : iterable of Answer
            Read once; memory does not grow with it.
        source : str
            Where they come from, such as ``"web"``.
        source_digest : str, optional
            Says that these answers are one whole; a second whole of the same digest changes nothing.

        Raises
        ------
        LabelError
            At an answer that cannot be one; none was added then.
        """
        with self._staged(answers) as connection, immediate(connection):
            if source_digest is not None and ledger.seen(connection, source_digest, "") is not None:
                return ImportCounts()
            enrol_staged(connection)
            counts = ledger.append(connection, source)
            if source_digest is not None:
                _record_import(connection, source_digest, "", source, counts, self._database.stamp(connection))
            return counts

    def import_file(
        self,
        answers: Iterable[Answer],
        file: AnswerFile,
        *,
        rejected: Callable[[], int] = int,
    ) -> Imported:
        """Add the answers of a file, in one transaction, and keep out what is in doubt.

        Of several answers of one annotator to one record, the one given last counts, where the file tells times. Kept
        out are lines that contradict each other, and, unless `file` says to take them, conflicts: lines that
        differ from what their annotator answered elsewhere since the file was exported. A file seen before
        changes nothing, except that conflicts kept out then may be taken now, and lines refused then that are fit now,
        as those of records that the pool has got since.

        Parameters
        ----------
        answers : iterable of Answer
            With their lines, and rows that were looked up in the pool, which may have grown since the last round froze.
            Read once; memory does not grow with it.
        file : AnswerFile
            The file that they come from.
        rejected : callable, optional
            Asked, once all answers were read, how many lines of the file are none.
        """
        who = folded(file.annotator)
        with self._staged(answers, _ANY_ROW) as connection, immediate(connection):
            before = ledger.seen(connection, file.digest, who)
            if before is not None and file.changes_nothing(before):
                return Imported(before, seen=True)
            enrol_staged(connection)
            superseded = ledger.keep_latest(connection)
            torn, contradictory = ledger.keep_out_contradictions(connection)
            if before is not None and not file.takes_conflicts_of(before):
                superseded += ledger.keep_unanswered(connection)
            conflicts, kept_out = ((), 0) if file.take_conflicts else ledger.keep_out_conflicts(connection, file)
            counts = ledger.append(connection, file.source)
            counts = replace(counts, conflicts=kept_out, rejected=rejected() + contradictory)
            _record_import(connection, file.digest, who, file.source, counts, self._database.stamp(connection))
            return Imported(counts, conflicts, torn, contradictory, superseded=superseded)

    def latest(self, upto: int | None = None, *, asked_in: int | None = None) -> Answers:
        """Read the latest answer of each person to each record.

        Parameters
        ----------
        upto : int, optional
            Only answers up to this id, such as a round's `last_answer`.
        asked_in : int, optional
            Only answers to the records of this round's batch; those of machines that count alone as well.
        """
        with self._database.reading() as connection:
            if asked_in is not None:
                return ledger.latest(connection, upto, asked_in)
            return self.standing_at(connection, upto).answers

    def log(self, after: int = 0, *, read_at_once: int = READ_AT_ONCE) -> Iterator[Event]:
        """Read every answer that came after an id, in the order in which they came, taken back or not."""
        while True:
            with self._database.reading() as connection:
                block = ledger.log(connection, after, read_at_once)
            if not block:
                return
            yield from block
            after = block[-1].id

    def by_record(
        self, upto: int, *, read_at_once: int = READ_AT_ONCE
    ) -> Iterator[tuple[list[Event], tuple[int, Asked] | None]]:
        """Read the answers up to an id record by record, in the order of rows; gold records are left out.

        Yields
        ------
        events : list of Event
            All answers to the record in the order in which they came, taken back or not.
        asking : tuple of (int, Asked), or None
            The round that asked it, and how; None where nobody did.
        """
        with self._database.reading() as connection:
            answered = ledger.answered_rows(connection, upto)
        columns = [asked.c[field.name] for field in fields(Asked)]
        for rows in np.array_split(answered, range(read_at_once, answered.size, read_at_once)):
            if not rows.size:
                return
            first, last = int(rows[0]), int(rows[-1])
            with self._database.reading() as connection:
                events = ledger.log_of(connection, first, last, upto)
                query = select(asked.c.round, *columns).where(asked.c.row.between(first, last))
                askings = {row.row: (row.round, Asked(*row[1:])) for row in connection.execute(query)}
            known = set(rows.tolist())
            for row, given in groupby(events, key=lambda event: event.row):
                if row in known:
                    yield list(given), askings.get(row)

    def labels(self, upto: int | None = None) -> Labels:
        """Return the label of every labelled record by the campaign's vote, from the answers up to an id."""
        return self.standing(upto).labels

    def standing(self, upto: int | None = None) -> "Standing":
        """Return the answers that count, of those up to an id, with everything that is derived from them."""
        with self._database.reading() as connection:
            return self.standing_at(connection, upto)

    def last_id(self) -> int:
        """Return the id of the last answer, 0 where there is none."""
        with self._database.reading() as connection:
            return ledger.last_id(connection)

    def add_gold(self, records: Iterable[tuple[int, str, int]], *, n_rows: int | None = None) -> int:
        """Add records whose label is known, to be mixed into the queue; they are never asked nor learned from.

        A record that was asked or answered cannot become one: rounds that learned from it would not come out again.
        One that is there already is left as it is, if its label is the same.

        Parameters
        ----------
        records : iterable of (row, record_id, label)
            The label is a class code.
        n_rows : int, optional
            Rows of the pool that the records were looked up in: it may have grown since the last round froze.

        Returns
        -------
        int
            Records that were added.

        Raises
        ------
        LabelError
            At a record that cannot be one; none was added then.
        """
        with self._database.writing() as connection:
            n_classes, n_rows = len(self._settings.classes), max(self.rows_known(connection), n_rows or 0)
            used = set(ledger.excluded_now(connection, self._database.now(connection)).tolist())
            known = _gold(connection)
            newest = connection.scalar(select(func.max(rounds.c.number))) or 0
            fixed = {"since": newest, "added_at": self._database.stamp(connection)}
            new = []
            for row, record_id, label in records:
                if known.get(row) == label:
                    continue
                if complaint := _gold_complaint(row, label, n_classes, n_rows, used, known):
                    raise LabelError(f"the gold record {record_id!r} {complaint}")
                known[row] = label
                new.append({"row": row, "record_id": record_id, "label": label, **fixed})
            if new:
                connection.execute(insert(schema.gold), new)
            return len(new)

    def gold(self) -> dict[int, int]:
        """Read the rows of the gold records, with their class codes."""
        with self._database.reading() as connection:
            return _gold(connection)

    def to_gold(self) -> Answers:
        """Read the latest answer of each annotator to each gold record."""
        with self._database.reading() as connection:
            return ledger.latest(connection, to_gold=True)

    def seen(self, digest: str, annotator: str = "") -> ImportCounts | None:
        """Return the counts of the last import of this digest, None if there was none."""
        with self._database.reading() as connection:
            return ledger.seen(connection, digest, folded(annotator))

    def file_known(self, digest: str) -> bool:
        """Return whether a file of this digest was exported, or imported whole, so that nothing is lost with it."""
        found = or_(
            exists().where(schema.exports.c.digest == digest),
            exists().where(schema.imports.c.digest.startswith(digest), schema.imports.c.rejected == 0),
        )
        with self._database.reading() as connection:
            return bool(connection.scalar(select(found)))

    def record_export(self, number: int, name: str, digest: str, last_answer: int) -> None:
        """Record that a round's batch went out as a file that holds the answers up to `last_answer`."""
        with self._database.writing() as connection:
            connection.execute(
                insert(schema.exports).values(
                    round=number,
                    name=name,
                    digest=digest,
                    last_answer=last_answer,
                    exported_at=self._database.stamp(connection),
                )
            )

    def knows(self, annotator: str) -> bool:
        """Return whether anybody of this name has answered or may, however the name is spelt."""
        with self._database.reading() as connection:
            return is_enrolled(connection, annotator)

    def spelling(self, annotator: str) -> str:
        """Return a person's name as the campaign shows it: as it was spelt first."""
        with self._database.reading() as connection:
            return spelling(connection, annotator)

    def standing_at(self, connection: Connection, upto: int | None = None) -> "Standing":
        """Read the answers that count at an id, once: they never change, as the log is only appended to."""
        last = ledger.last_id(connection)
        upto = last if upto is None else min(upto, last)
        found = self._standing.get(upto)
        if found is None:
            found = Standing(ledger.latest(connection, upto), ledger.of_machines(connection, upto), self._settings)
            # What a round froze, and what stands now.
            self._standing = dict([*self._standing.items(), (upto, found)][-2:])
        return found

    @contextmanager
    def _staged(self, answers: Iterable[Answer], n_rows: int | None = None) -> Iterator[Connection]:
        """Yield a connection that has the answers staged, and no lock yet."""
        with self._database.connected() as connection:
            with connection.begin():
                n_rows = n_rows or self.rows_known(connection)
                ledger.stage(connection, answers, len(self._settings.classes), n_rows, self._database.stamp(connection))
            yield connection

    def rows_known(self, connection: Connection) -> int:
        """Count the rows that the pool had at the last freeze, or that an answer or a gold record proves it to have."""
        frozen = connection.scalar(select(func.max(rounds.c.n_rows))) or 0
        tables = (schema.answers, schema.gold)
        last = max(connection.scalar(select(func.max(table.c.row))) or 0 for table in tables)
        return max(self._n_rows, frozen, last + 1)


def _gold(connection: Connection) -> dict[int, int]:
    return dict([tuple(row) for row in connection.execute(select(schema.gold.c.row, schema.gold.c.label))])


def _gold_complaint(
    row: int, label: int, n_classes: int, n_rows: int, used: set[int], known: Mapping[int, int]
) -> str | None:
    if not 0 <= row < n_rows:
        return f"is for row {row}; the pool's rows are 0 to {n_rows - 1}"
    if not 0 <= label < n_classes:
        return f"has the class code {label}; the codes are 0 to {n_classes - 1}"
    if row in known:
        return f"has the class code {label}, and had {known[row]} before"
    if row in used:
        return "was asked or answered before: take one that was not"
    return None


def _record_import(
    connection: Connection, digest: str, annotator: str, source: str, counts: ImportCounts, at: str
) -> None:
    connection.execute(
        insert(schema.imports).values(
            digest=digest,
            annotator=annotator,
            source=source,
            imported_at=at,
            new=counts.new,
            changed=counts.changed,
            same=counts.same,
            volunteered=counts.volunteered,
            conflicts=counts.conflicts,
            rejected=counts.rejected,
        )
    )
