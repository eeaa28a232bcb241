"""A campaign: rounds and answers in one SQL database, and the files that are committed by their digest."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    Connection,
    Row,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from dal.campaign import answers as ledger
from dal.campaign import schema
from dal.campaign.database import Database, immediate
from dal.campaign.directory import LEARNER, coordinator_lock, lay_out, open_directory
from dal.campaign.leases import held
from dal.campaign.objects import digest_of, objects_of
from dal.campaign.people import enrol_staged, is_enrolled, spelling
from dal.campaign.schema import Answer, AnswerFile, Answers, Asked, Event, ImportCounts, Imported, Round, asked, rounds
from dal.campaign.settings import Settings
from dal.errors import CampaignError, CampaignMismatch, DalError, InputError, LabelError, SettingsError
from dal.evidence.agreement import Agreement, agreement
from dal.evidence.votes import Labels, label
from dal.texts import folded

_READ_AT_ONCE = 4096
_ANY_ROW = 2**63 - 1


class Campaign:
    """The durable state of one labelling effort.

    Every change of state is one transaction, so a process that is killed leaves the state before or after it.
    Nothing is overwritten: answers, rounds and models stay. Made by `create` or `open`; safe to use from several
    threads; holds no connection between calls, so there is nothing to close.

    Attributes
    ----------
    directory : Path
    settings : Settings
        As campaign.toml says now; what a round used is frozen with the round.
    id : str
        Random; the database and campaign.toml both hold it.
    pool_fingerprint : str
        Of the pool that the campaign was made for.
    n_rows : int
        Of that pool, then.
    created_at : datetime
        UTC.
    database : Database
        Where all of it is kept.
    objects : Objects
        Models and the files of rounds: in the directory, or in the store that the settings name.
    """

    def __init__(self, directory: Path, settings: Settings, row: Row[Any], database: Database) -> None:
        self.directory = directory
        self.settings = settings
        self.id: str = row.id
        self.pool_fingerprint: str = row.pool_fingerprint
        self.n_rows: int = row.n_rows
        self.created_at = datetime.fromisoformat(row.created_at)
        self.database = database
        self._standing: dict[int, Standing] = {}
        self.objects = objects_of(directory, settings.store, self.id)

    # -- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: str | Path,
        settings: Settings,
        *,
        pool_fingerprint: str,
        n_rows: int,
        learner: bytes | None = None,
    ) -> Self:
        """Make a campaign in a directory that is empty or does not exist.

        The database appears last: what was interrupted before is no campaign, and is made anew. Where this very
        campaign was made and nothing has happened in it yet, it is opened: so the call can be repeated after a kill.

        Raises
        ------
        SettingsError
            If the settings are no settings.
        CampaignError
            If the directory, or the database on a server, holds anything else, a campaign included, or cannot be
            written.
        CampaignLocked
            If another process is making a campaign there.
        """
        settings.check()
        if n_rows < 1:
            raise SettingsError(f"a pool with at least one row was expected, {n_rows} rows came")
        directory = Path(directory).absolute()
        try:
            made = cls.open(directory)
        except DalError:  # nothing is there, or something that is refused below
            pass
        else:
            asked_for = settings, pool_fingerprint, n_rows
            if (made.settings, made.pool_fingerprint, made.n_rows) == asked_for and made._is_untouched(learner):
                return made
        lay_out(directory, settings, pool_fingerprint=pool_fingerprint, n_rows=n_rows, learner=learner)
        return cls.open(directory)

    def _is_untouched(self, learner: bytes | None) -> bool:
        with self.database.reading() as connection:
            tables = [table for table in schema.metadata.sorted_tables if table is not schema.campaign]
            used = any(connection.scalar(select(exists(select(table)))) for table in tables)
        return not used and self.objects.find(LEARNER) == learner

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Open the campaign in a directory.

        Raises
        ------
        CampaignNotFound
            If there is none.
        CampaignMismatch
            If another version of dal wrote it, or campaign.toml is another campaign's or has other classes.
        CampaignError
            If its files are damaged or cannot be reached.
        SettingsError
            If campaign.toml was edited into something unusable.
        """
        directory = Path(directory).absolute()
        return cls(directory, *open_directory(directory))

    def lock(self) -> AbstractContextManager[None]:
        """Be the one coordinator of this campaign, as long as the context lasts.

        The lock is the system's own (`flock`), or an advisory one of the database server: it ends with its process,
        and no stale one is ever left.

        Raises
        ------
        CampaignLocked
            On entering, if someone holds it; the message names the process.
        """
        return coordinator_lock(self.directory, self.database)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def freeze_round(
        self,
        *,
        pool_fingerprint: str,
        n_rows: int,
        k: int,
        explore: float,
        seed: int,
        strategy: str,
        stop_set: int = 0,
    ) -> Round:
        """Begin a round: fix, in one transaction, everything that it will be computed from.

        Parameters
        ----------
        pool_fingerprint, n_rows
            Of the pool as it is now; it may have grown.
        k : int
            Records to ask.
        explore : float
            Share of them to be drawn uniformly.
        seed : int
        strategy : str
        stop_set : int, default=0
            Rows held back from asking.

        Raises
        ------
        CampaignMismatch
            If the pool is another one, or has shrunk.
        CampaignError
            If the round before is not closed.
        """
        self._check_pool(pool_fingerprint, n_rows)
        with self.database.writing() as connection:
            before = _last_round(connection)
            if before is not None and before.status != "closed":
                raise CampaignError(f"round {before.number} is {before.status}: close it before the next one begins")
            upto = ledger.last_id(connection)
            known = self._standing_at(connection, upto).answers
            number = 1 if before is None else before.number + 1
            excluded = ledger.excluded_at(connection, number, upto)
            connection.execute(
                insert(rounds).values(
                    number=number,
                    status="frozen",
                    pool_fingerprint=pool_fingerprint,
                    n_rows=n_rows,
                    k=k,
                    explore=explore,
                    seed=seed,
                    strategy=strategy,
                    stop_set=stop_set,
                    last_answer=upto,
                    labels=np.unique(known.rows[known.labels >= 0]).size,
                    excluded=excluded.size,
                    excluded_digest=digest_of(excluded.astype("<i8").tobytes()),
                    parent_model=_last_model(connection),
                    frozen_at=self._now(connection),
                )
            )
            return _round(connection.execute(select(rounds).where(rounds.c.number == number)).one())

    def save_model(
        self,
        round: Round,
        data: bytes,
        *,
        trained_on: int,
        notes: Mapping[str, object] | None = None,
    ) -> str:
        """Keep the round's fitted model: the file first, then the commit by its digest.

        Parameters
        ----------
        round : Round
            A frozen one.
        data : bytes
            The model, as its learner saves it.
        trained_on : int
            Labels that it was fitted to.
        notes : mapping, optional
            Anything JSON can hold, such as the warnings of the fit.

        Returns
        -------
        str
            SHA-256 of `data`, for `load_model`.
        """
        digest = digest_of(data)
        self._require(round, "frozen")
        self.objects.write(_model_name(digest), data)
        with self.database.writing() as connection:
            values = {
                "model": digest,
                "trained_on": trained_on,
                "notes": _json(notes or {}),
                "fitted_at": self._now(connection),
            }
            _advance(connection, round.number, ("frozen",), "fitted", values)
        return digest

    def load_learner(self) -> bytes:
        """Read the learner that was given as an object when the campaign was made."""
        data = self.objects.find(LEARNER)
        if data is None:
            place = f"{self.objects.place}/{LEARNER}"
            raise CampaignError(f"the campaign's learner was saved as {place}, which is gone: restore it")
        return data

    def load_model(self, digest: str) -> bytes:
        """Read a model, and check that it is the one that was saved."""
        return self.objects.read(_model_name(digest), digest)

    def save_scan(self, round: Round, candidates: bytes, summary: Mapping[str, object]) -> None:
        """Keep the scan's candidates and summary; a cold start has no model and scans a frozen round."""
        self._require(round, "frozen", "fitted")
        digest = digest_of(candidates)
        self.objects.write(_candidates_name(round.number, digest), candidates)
        with self.database.writing() as connection:
            values = {
                "candidates": digest,
                "summary": _json(summary),
                "scanned_at": self._now(connection),
            }
            _advance(connection, round.number, ("frozen", "fitted"), "scanned", values)

    def load_scan(self, round: Round) -> bytes:
        """Read the candidates of a round, and check that they are the ones that were saved."""
        digest = self.round(round.number).candidates
        if digest is None:
            raise CampaignError(f"round {round.number} has no scan yet")
        return self.objects.read(_candidates_name(round.number, digest), digest)

    def open_batch(self, round: Round, batch: Sequence[Asked]) -> None:
        """Open the batch for labelling, in one transaction.

        Records of earlier reserves that nobody has answered or looks at go back to the pool.

        Parameters
        ----------
        round : Round
            Scanned; or frozen or fitted, where the batch needs no scan.
        batch : sequence of Asked
            In the order in which to ask, by rank from 0; may be fewer than the round's k. The reserve, if any, comes
            last.

        Raises
        ------
        InputError
            If a record repeats or is outside the pool, the ranks are not the order, or a score is NaN.
        CampaignError
            If a record has been asked before or is gold, or the round is not at this step.
        """
        _check_batch(batch, round.n_rows)
        with self.database.writing() as connection:
            _release_reserve(connection, self.database.now(connection))
            _refuse_asked(connection, {each.row for each in batch})
            _advance(
                connection, round.number, ("frozen", "fitted", "scanned"), "open", {"opened_at": self._now(connection)}
            )
            if batch:
                connection.execute(insert(asked), [_values(round.number, each) for each in batch])

    def withdraw_reserve(self) -> npt.NDArray[np.int64]:
        """Give back to the pool the records of the reserve that nobody has answered or holds.

        Done before a batch is chosen, it lets the batch have these records, and nobody be served one meanwhile.

        Returns
        -------
        ndarray of int64
            The rows that are not to be asked, as of this moment, ascending. A record of the reserve that somebody holds
            is among them even if the lease ends before the batch is open: its holder may still renew it.
        """
        with self.database.writing() as connection:
            now = self.database.now(connection)
            _release_reserve(connection, now)
            return ledger.excluded_now(connection, now)

    def in_hand(self) -> npt.NDArray[np.int64]:
        """Read the rows of asked records that somebody holds now: an answer to each may come."""
        with self.database.reading() as connection:
            rows = connection.scalars(select(asked.c.row).where(held(asked.c.row, self.database.now(connection)))).all()
            return np.sort(np.array(rows, dtype=np.int64))

    def close_round(self, round: Round) -> None:
        """End a round; records of its batch that nobody has answered stay asked, and can still be answered.

        Until the next batch is open the queue goes on to serve them: such answers count from the next round on.
        """
        with self.database.writing() as connection:
            _advance(connection, round.number, ("open",), "closed", {"closed_at": self._now(connection)})

    def withdraw_round(self, round: Round) -> None:
        """Take back a round that has no batch yet, because what it froze cannot be learned from or scored with."""
        early = ("frozen", "fitted")
        with self.database.writing() as connection:
            gone = connection.execute(delete(rounds).where(rounds.c.number == round.number, rounds.c.status.in_(early)))
            if gone.rowcount != 1:
                raise _wrong_step(round.number, None, early)

    def round(self, number: int) -> Round:
        """Read one round."""
        with self.database.reading() as connection:
            row = connection.execute(select(rounds).where(rounds.c.number == number)).one_or_none()
        if row is None:
            raise CampaignError(f"{self.directory} has no round {number}")
        return _round(row)

    def rounds(self) -> list[Round]:
        """Read all rounds, the first one first."""
        with self.database.reading() as connection:
            return [_round(row) for row in connection.execute(select(rounds).order_by(rounds.c.number))]

    @property
    def last_round(self) -> Round | None:
        """The newest round, None where there is none."""
        with self.database.reading() as connection:
            return _last_round(connection)

    @property
    def current_round(self) -> Round | None:
        """The round that is not closed, None where there is none."""
        last = self.last_round
        return None if last is None or last.status == "closed" else last

    def batch(self, number: int) -> list[Asked]:
        """Read the records of a round's batch, in the order of asking; its reserve is none of it."""
        columns = [asked.c[field.name] for field in fields(Asked)]
        query = select(*columns).where(asked.c.round == number, ~asked.c.reserve).order_by(asked.c.rank)
        with self.database.reading() as connection:
            return [Asked(*row) for row in connection.execute(query)]

    def batch_size(self, number: int) -> int:
        """Count the records of a round's batch."""
        query = select(func.count()).select_from(asked).where(asked.c.round == number, ~asked.c.reserve)
        with self.database.reading() as connection:
            return connection.scalar(query) or 0

    def batch_sizes(self) -> dict[int, int]:
        """Count the records of each round's batch, by round."""
        query = select(asked.c.round, func.count()).where(~asked.c.reserve).group_by(asked.c.round)
        with self.database.reading() as connection:
            return dict([tuple(row) for row in connection.execute(query)])

    def pending(self, number: int) -> int:
        """Count the records of a round's batch that fewer annotators have answered than the settings' overlap.

        A skip counts as an answer here: a record that nobody can tell does not hold the round for ever.
        """
        given = ledger.answers_given(asked.c.row)
        query = select(func.count()).select_from(asked)
        with self.database.reading() as connection:
            still = query.where(asked.c.round == number, ~asked.c.reserve, given < self.settings.overlap)
            return connection.scalar(still) or 0

    def begun(self, number: int) -> bool:
        """Return whether anybody has answered a record of a round's batch, or holds one now."""
        with self.database.reading() as connection:
            answered = exists().where(schema.answers.c.round == number)
            looked_at = exists().where(asked.c.round == number, held(asked.c.row, self.database.now(connection)))
            return bool(connection.scalar(select(or_(answered, looked_at))))

    def asked_rows(self) -> npt.NDArray[np.int64]:
        """Read the rows that were ever asked, ascending."""
        with self.database.reading() as connection:
            return np.sort(np.array(connection.scalars(select(asked.c.row)).all(), dtype=np.int64))

    def excluded_rows(self, round: Round | None = None) -> npt.NDArray[np.int64]:
        """Read the rows that are not to be asked, ascending: asked ones, those answered unasked, and gold ones.

        Parameters
        ----------
        round : Round, optional
            Give them as they were when this round was frozen, which is what a scan resumed later must use.
        """
        with self.database.reading() as connection:
            if round is not None:
                return ledger.excluded_at(connection, round.number, round.last_answer)
            return ledger.excluded_now(connection, self.database.now(connection))

    def explored_rows(self) -> npt.NDArray[np.int64]:
        """Read the rows that were drawn uniformly, in any round, ascending."""
        with self.database.reading() as connection:
            drawn = connection.scalars(select(asked.c.row).where(asked.c.explore, ~asked.c.reserve)).all()
        return np.sort(np.array(drawn, dtype=np.int64))

    def explore_predictions(self) -> dict[int, tuple[int, int]]:
        """Read, by row, the round that drew each explore record, and the class code that its model predicted."""
        query = select(asked.c.row, asked.c.round, asked.c.predicted)
        with self.database.reading() as connection:
            found = connection.execute(query.where(asked.c.explore, asked.c.predicted.is_not(None)))
            return {row: (number, code) for row, number, code in found}

    # -- answers -----------------------------------------------------------------------------------------------------

    def add_answers(self, answers: Iterable[Answer], *, source: str, source_digest: str | None = None) -> ImportCounts:
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
                _record_import(connection, source_digest, "", source, counts, self._now(connection))
            return counts

    def import_answers(
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
            _record_import(connection, file.digest, who, file.source, counts, self._now(connection))
            return Imported(counts, conflicts, torn, contradictory, superseded=superseded)

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
        with self.database.writing() as connection:
            n_classes, n_rows = len(self.settings.classes), max(self._rows_known(connection), n_rows or 0)
            used = set(ledger.excluded_now(connection, self.database.now(connection)).tolist())
            known = _gold(connection)
            last = _last_round(connection)
            fixed = {"since": 0 if last is None else last.number, "added_at": self._now(connection)}
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
        with self.database.reading() as connection:
            return _gold(connection)

    def gold_answers(self) -> Answers:
        """Read the latest answer of each annotator to each gold record."""
        with self.database.reading() as connection:
            return ledger.latest(connection, to_gold=True)

    def import_seen(self, digest: str, annotator: str = "") -> ImportCounts | None:
        """Give what the last import of this digest came to, None if there was none."""
        with self.database.reading() as connection:
            return ledger.seen(connection, digest, folded(annotator))

    def knows(self, annotator: str) -> bool:
        """Say whether anybody of this name has answered or may, however the name is spelt."""
        with self.database.reading() as connection:
            return is_enrolled(connection, annotator)

    def spelling(self, annotator: str) -> str:
        """Return a person's name as the campaign shows it: as it was spelt first."""
        with self.database.reading() as connection:
            return spelling(connection, annotator)

    def latest_answers(self, upto: int | None = None, *, asked_in: int | None = None) -> Answers:
        """Read the latest answer of each annotator to each record.

        Parameters
        ----------
        upto : int, optional
            Only answers up to this id, such as a round's `last_answer`.
        asked_in : int, optional
            Only answers to the records of this round's batch.
        """
        with self.database.reading() as connection:
            if asked_in is not None:
                return ledger.latest(connection, upto, asked_in)
            return self._standing_at(connection, upto).answers

    def answer_log(self, after: int = 0) -> Iterator[Event]:
        """Read every answer that came after an id, in the order in which they came, taken back or not."""
        while True:
            with self.database.reading() as connection:
                block = ledger.log(connection, after, _READ_AT_ONCE)
            if not block:
                return
            yield from block
            after = block[-1].id

    def answers_by_record(self, upto: int) -> Iterator[tuple[list[Event], tuple[int, Asked] | None]]:
        """Read the answers up to an id record by record, in the order of rows; gold records are left out.

        Yields
        ------
        events : list of Event
            All answers to the record in the order in which they came, taken back or not.
        asking : tuple of (int, Asked), or None
            The round that asked it, and how; None where nobody did.
        """
        with self.database.reading() as connection:
            answered = ledger.answered_rows(connection, upto)
        columns = [asked.c[field.name] for field in fields(Asked)]
        for rows in np.array_split(answered, range(_READ_AT_ONCE, answered.size, _READ_AT_ONCE)):
            if not rows.size:
                return
            first, last = int(rows[0]), int(rows[-1])
            with self.database.reading() as connection:
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
        with self.database.reading() as connection:
            return self._standing_at(connection, upto)

    def _standing_at(self, connection: Connection, upto: int | None = None) -> "Standing":
        """Read the answers that count at an id, once: they never change, as the log is only appended to."""
        last = ledger.last_id(connection)
        upto = last if upto is None else min(upto, last)
        found = self._standing.get(upto)
        if found is None:
            found = Standing(ledger.latest(connection, upto), self.settings)
            # What a round froze, and what stands now.
            self._standing = dict([*self._standing.items(), (upto, found)][-2:])
        return found

    def last_answer(self) -> int:
        """Give the id of the last answer, 0 where there is none."""
        with self.database.reading() as connection:
            return ledger.last_id(connection)

    # -- files that went out -----------------------------------------------------------------------------------------

    def record_export(self, number: int, name: str, digest: str, last_answer: int) -> None:
        """Remember that a round's batch went out as a file that holds the answers up to `last_answer`."""
        with self.database.writing() as connection:
            connection.execute(
                insert(schema.exports).values(
                    round=number, name=name, digest=digest, last_answer=last_answer, exported_at=self._now(connection)
                )
            )

    def file_known(self, digest: str) -> bool:
        """Say whether a file of this digest was exported, or imported whole, so that nothing is lost with it."""
        found = or_(
            exists().where(schema.exports.c.digest == digest),
            exists().where(schema.imports.c.digest.startswith(digest), schema.imports.c.rejected == 0),
        )
        with self.database.reading() as connection:
            return bool(connection.scalar(select(found)))

    # -- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _staged(self, answers: Iterable[Answer], n_rows: int | None = None) -> Iterator[Connection]:
        """Give a connection that has the answers staged, and no lock yet."""
        with self.database.connected() as connection:
            with connection.begin():
                n_rows = n_rows or self._rows_known(connection)
                ledger.stage(connection, answers, len(self.settings.classes), n_rows, self._now(connection))
            yield connection

    def _now(self, connection: Connection) -> str:
        return self.database.now(connection).isoformat()

    def _rows_known(self, connection: Connection) -> int:
        """Count the rows that the pool had at the last freeze, or that an answer or a gold record proves it to have."""
        frozen = connection.scalar(select(func.max(rounds.c.n_rows))) or 0
        tables = (schema.answers, schema.gold)
        last = max(connection.scalar(select(func.max(table.c.row))) or 0 for table in tables)
        return max(self.n_rows, frozen, last + 1)

    def _check_pool(self, fingerprint: str, n_rows: int) -> None:
        if fingerprint != self.pool_fingerprint:
            raise CampaignMismatch(
                f"{self.directory} belongs to the pool with fingerprint {self.pool_fingerprint}, and this one has "
                f"{fingerprint}. Use the pool that the campaign was made for, or make a new campaign"
            )
        with self.database.reading() as connection:
            known = self._rows_known(connection)
        if n_rows < known:
            raise CampaignMismatch(
                f"the pool had {known} rows and has {n_rows} now: rows never leave a pool; restore it"
            )

    def _require(self, round: Round, *allowed: str) -> None:
        """Refuse a step that comes too early or too late, before it writes a file."""
        status = self.round(round.number).status
        if status not in allowed:
            raise _wrong_step(round.number, status, allowed)


@dataclass
class Standing:
    """The answers that count at some moment; labels and agreement are computed once, when they are first needed."""

    answers: Answers
    settings: Settings

    @cached_property
    def agreement(self) -> Agreement:
        """How far the annotators agree; takes a bootstrap."""
        given = self.answers
        return agreement(given.rows, given.annotators, given.labels, seed=self.settings.seed)

    @cached_property
    def labels(self) -> Labels:
        """The label of each record by the campaign's vote."""
        given, chosen = self.answers, self.settings
        columns = given.rows, given.annotators, given.labels
        return label(*columns, vote=chosen.vote, n_classes=len(chosen.classes), seed=chosen.seed)


# -- the objects -------------------------------------------------------------------------------------------------------


def _model_name(digest: str) -> str:
    return f"models/{digest}.skops"


def _candidates_name(number: int, digest: str) -> str:
    return f"rounds/{number:04d}-candidates-{digest[:16]}.npz"


# -- the database ----------------------------------------------------------------------------------------------------


def _advance(
    connection: Connection, number: int, allowed: tuple[str, ...], status: str, values: Mapping[str, object]
) -> None:
    change = update(rounds).where(rounds.c.number == number, rounds.c.status.in_(allowed))
    if connection.execute(change.values(status=status, **values)).rowcount != 1:
        found = connection.scalar(select(rounds.c.status).where(rounds.c.number == number))
        raise _wrong_step(number, found, allowed)


def close_open_round(connection: Connection, at: str) -> bool:
    """Close the round whose batch is open, inside the caller's transaction, and return whether there was one."""
    change = update(rounds).where(rounds.c.status == "open").values(status="closed", closed_at=at)
    return connection.execute(change).rowcount == 1


def _wrong_step(number: int, status: str | None, allowed: tuple[str, ...]) -> CampaignError:
    return CampaignError(
        f"round {number} is {status or 'not there'}, and this step takes one that is {' or '.join(allowed)}: "
        "read the campaign's current round and go on from there"
    )


def _last_round(connection: Connection) -> Round | None:
    row = connection.execute(select(rounds).order_by(rounds.c.number.desc()).limit(1)).one_or_none()
    return None if row is None else _round(row)


def _last_model(connection: Connection) -> str | None:
    query = select(rounds.c.model).where(rounds.c.model.is_not(None)).order_by(rounds.c.number.desc()).limit(1)
    return connection.scalar(query)


def _round(row: Row[Any]) -> Round:
    values = dict(row._mapping)
    for name in ("notes", "summary"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Round(**values)


def _check_batch(batch: Sequence[Asked], n_rows: int) -> None:
    if outside := [each.row for each in batch if not 0 <= each.row < n_rows]:
        raise InputError(f"`batch` must hold rows from 0 to {n_rows - 1}, got {outside[:5]}")
    if repeated := [row for row, times in Counter(each.row for each in batch).items() if times > 1]:
        raise InputError(f"`batch` must hold each row once, got {repeated[:5]} more than once")
    if [each.rank for each in batch] != list(range(len(batch))):
        raise InputError(f"`batch` must be in the order of its ranks from 0, got {[each.rank for each in batch][:5]}")
    if nan := [each.record_id for each in batch if each.score is not None and each.score != each.score]:
        raise InputError(f"`batch` must have scores that are not NaN, got NaN for the records {nan[:5]}")


def _refuse_asked(connection: Connection, wanted: set[int]) -> None:
    for row, record_id, number in connection.execute(select(asked.c.row, asked.c.record_id, asked.c.round)):
        if row in wanted:
            raise CampaignError(f"row {row} (record {record_id!r}) was asked in round {number}: nobody is asked twice")
    for row, record_id in connection.execute(select(schema.gold.c.row, schema.gold.c.record_id)):
        if row in wanted:
            raise CampaignError(f"row {row} (record {record_id!r}) is a gold record, whose label is known")


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


def _release_reserve(connection: Connection, now: datetime) -> None:
    """Let the unused reserve of earlier rounds be chosen again: it was asked of nobody."""
    used = exists().where(schema.answers.c.row == asked.c.row)
    connection.execute(delete(asked).where(asked.c.reserve, ~used, ~held(asked.c.row, now)))


def _values(number: int, record: Asked) -> dict[str, object]:
    """Return a record of a batch as the database takes it; NumPy's scalars become plain ones."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in vars(record).items()}
    return {"round": number, **plain}


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


def _json(value: Mapping[str, object]) -> str:
    """Write JSON; NumPy's numbers and arrays, which scans and fits are full of, become plain ones."""
    return json.dumps(dict(value), default=lambda given: given.tolist())
