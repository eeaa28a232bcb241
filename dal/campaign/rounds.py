"""The rounds of a campaign: each step is one transaction, and nothing of a round is overwritten."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, delete, exists, func, insert, or_, select, update

from dal.campaign import answers as ledger
from dal.campaign import schema
from dal.campaign.answer_log import AnswerLog
from dal.campaign.database import Database
from dal.campaign.leases import held
from dal.campaign.objects import Objects, digest_of
from dal.campaign.rests import resting_rounds, waits
from dal.campaign.schema import Asked, Round, Search, asked, rounds
from dal.campaign.settings import Settings
from dal.errors import CampaignError, CampaignMismatch, InputError, LearnerSwitched

_FEW = 500
"""Rows that a query names; of more, all asked ones are read."""


class Rounds:
    """The rounds of a campaign and their batches.

    A round's file, its model or its candidates, is written first, then committed by its digest.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        pool_fingerprint: str,
        database: Database,
        objects: Objects,
        answers: AnswerLog,
    ) -> None:
        self._place = directory
        self._settings = settings
        self._pool_fingerprint = pool_fingerprint
        self._database = database
        self._objects = objects
        self._answers = answers

    def freeze(
        self,
        *,
        pool_fingerprint: str,
        n_rows: int,
        k: int,
        explore: float,
        seed: int,
        strategy: str,
        stop_set: int = 0,
        search: Search | None = None,
        waves: Mapping[str, object] | None = None,
        balance: Sequence[float] | None = None,
        learner: str | None = None,
        useless: Sequence[int] = (),
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
        search : Search, optional
            What the round looks for.
        waves : mapping, optional
            The terms of a pass by waves, as JSON can hold them; None where the whole pool is scored.
        balance : sequence of float, optional
            The share of all labels that each class is to have, by class code.
        learner : str, optional
            Name of the learner, as the caller has read it.
        useless : sequence of int, default=()
            Rows whose marks go at once, because none of them can be searched for.

        Raises
        ------
        CampaignMismatch
            If the pool is another one, or has shrunk.
        CampaignError
            If the round before is not closed.
        LearnerSwitched
            If the learner was switched to another one than `learner` meanwhile.
        """
        self._check_pool(pool_fingerprint, n_rows)
        with self._database.writing() as connection:
            before = _last_round(connection)
            if before is not None and before.status != "closed":
                raise CampaignError(f"round {before.number} is {before.status}: close it before the next one begins")
            if (switched := switched_to(connection)) not in (None, learner):
                raise LearnerSwitched(f"the learner was switched to {switched} meanwhile: freeze the round again")
            upto = ledger.last_id(connection)
            labels = self._answers.standing_at(connection, upto).labelled_rows.size
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
                    search=None if search is None else search.as_json(),
                    waves=None if waves is None else _json(waves),
                    balance=None if balance is None else json.dumps(list(balance)),
                    learner=learner,
                    last_answer=upto,
                    labels=labels,
                    excluded=excluded.size,
                    excluded_digest=digest_of(excluded.astype("<i8").tobytes()),
                    parent_model=_last_model(connection, pool_fingerprint),
                    frozen_at=self._database.stamp(connection),
                )
            )
            _unmark(connection, useless)
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
        self._objects.write(_model_name(digest), data)
        with self._database.writing() as connection:
            values = {
                "model": digest,
                "trained_on": trained_on,
                "notes": _json(notes or {}),
                "fitted_at": self._database.stamp(connection),
            }
            _advance(connection, round.number, ("frozen",), "fitted", values)
        return digest

    def load_model(self, digest: str) -> bytes:
        """Read a model, and check that it is the one that was saved."""
        return self._objects.read(_model_name(digest), digest)

    def save_scan(self, round: Round, candidates: bytes, summary: Mapping[str, object]) -> None:
        """Keep the scan's candidates and summary; a cold start has no model and scans a frozen round."""
        self._require(round, "frozen", "fitted")
        digest = digest_of(candidates)
        self._objects.write(_candidates_name(round.number, digest), candidates)
        with self._database.writing() as connection:
            values = {
                "candidates": digest,
                "summary": _json(summary),
                "scanned_at": self._database.stamp(connection),
            }
            _advance(connection, round.number, ("frozen", "fitted"), "scanned", values)

    def load_scan(self, round: Round) -> bytes:
        """Read the candidates of a round, and check that they are the ones that were saved."""
        digest = self.get(round.number).candidates
        if digest is None:
            raise CampaignError(f"round {round.number} has no scan yet")
        return self._objects.read(_candidates_name(round.number, digest), digest)

    def open(self, round: Round, batch: Sequence[Asked], again: Sequence[tuple[int, int]] = ()) -> None:
        """Open the batch for labelling, in one transaction.

        Records of earlier reserves that nobody has answered or looks at go back to the pool. The marks that the round
        searched for are used up.

        Parameters
        ----------
        round : Round
            Scanned; or frozen or fitted, where the batch needs no scan.
        batch : sequence of Asked
            In the order in which to ask, by rank from 0; may be fewer than the round's k. The reserve, if any, comes
            last.
        again : sequence of (row, places), default=()
            Asked records about which another person is asked, until as many as `places` have answered.

        Raises
        ------
        InputError
            If a record repeats or is outside the pool, the ranks are not the order, or a score is NaN.
        CampaignError
            If a record has been asked before or is gold, or the round is not at this step.
        """
        _check_batch(batch, round.n_rows)
        with self._database.writing() as connection:
            _release_reserve(connection, self._database.now(connection))
            _refuse_asked(connection, {each.row for each in batch})
            _advance(
                connection,
                round.number,
                ("frozen", "fitted", "scanned"),
                "open",
                {"opened_at": self._database.stamp(connection)},
            )
            # Not when it was frozen: a round may be withdrawn, and the next one searches for them.
            _unmark(connection, round.search.marked if round.search else ())
            if batch:
                connection.execute(insert(asked), [_values(round.number, each) for each in batch])
            if again:
                others = [{"row": row, "round": round.number, "places": places} for row, places in again]
                connection.execute(insert(schema.again), others)

    def withdraw_reserve(self) -> npt.NDArray[np.int64]:
        """Release into the pool the records of the reserve that nobody has answered or holds.

        Done before a batch is chosen, it lets the batch have these records, and nobody be served one meanwhile.

        Returns
        -------
        ndarray of int64
            The rows that are not to be asked, as of this moment, ascending. A record of the reserve that somebody holds
            is among them even if the lease ends before the batch is open: its holder may still renew it.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            _release_reserve(connection, now)
            return ledger.excluded_now(connection, now)

    def in_hand(self) -> npt.NDArray[np.int64]:
        """Read the rows of asked records that somebody holds now: an answer to each may come."""
        with self._database.reading() as connection:
            rows = connection.scalars(
                select(asked.c.row).where(held(asked.c.row, self._database.now(connection)))
            ).all()
            return np.sort(np.array(rows, dtype=np.int64))

    def close(self, round: Round) -> None:
        """End a round; records of its batch that nobody has answered stay asked, and can still be answered.

        Where they are the rest of the batch, the queue serves them on, see :mod:`dal.campaign.rests`. Answers to them
        count from the next freeze on.
        """
        with self._database.writing() as connection:
            _advance(connection, round.number, ("open",), "closed", {"closed_at": self._database.stamp(connection)})

    def withdraw(self, round: Round) -> None:
        """Take back a round that has no batch yet, because what it froze cannot be learned from or scored with."""
        early = ("frozen", "fitted")
        with self._database.writing() as connection:
            gone = connection.execute(delete(rounds).where(rounds.c.number == round.number, rounds.c.status.in_(early)))
            if gone.rowcount != 1:
                raise _wrong_step(round.number, None, early)

    def get(self, number: int) -> Round:
        """Read one round."""
        with self._database.reading() as connection:
            row = connection.execute(select(rounds).where(rounds.c.number == number)).one_or_none()
        if row is None:
            raise CampaignError(f"{self._place} has no round {number}")
        return _round(row)

    def all(self) -> list[Round]:
        """Read all rounds, the first one first."""
        with self._database.reading() as connection:
            return [_round(row) for row in connection.execute(select(rounds).order_by(rounds.c.number))]

    @property
    def last(self) -> Round | None:
        """The newest round, None where there is none."""
        with self._database.reading() as connection:
            return _last_round(connection)

    @property
    def current(self) -> Round | None:
        """The round that is not closed, None where there is none."""
        last = self.last
        return None if last is None or last.status == "closed" else last

    def batch(self, number: int) -> list[Asked]:
        """Read the records of a round's batch, in the order of asking; its reserve is none of it."""
        columns = [asked.c[field.name] for field in fields(Asked)]
        query = select(*columns).where(asked.c.round == number, ~asked.c.reserve).order_by(asked.c.rank)
        with self._database.reading() as connection:
            return [Asked(*row) for row in connection.execute(query)]

    def batch_size(self, number: int) -> int:
        """Count the records of a round's batch."""
        query = select(func.count()).select_from(asked).where(asked.c.round == number, ~asked.c.reserve)
        with self._database.reading() as connection:
            return connection.scalar(query) or 0

    def batch_sizes(self) -> dict[int, int]:
        """Count the records of each round's batch, by round."""
        query = select(asked.c.round, func.count()).where(~asked.c.reserve).group_by(asked.c.round)
        with self._database.reading() as connection:
            return dict([tuple(row) for row in connection.execute(query)])

    def pending(self, number: int) -> int:
        """Count the records of a round's batch that fewer annotators have answered than the settings' overlap."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.count()).where(waits(number, self._settings.labelling))) or 0

    def waiting_rows(self, number: int) -> npt.NDArray[np.int64]:
        """Read the rows that `pending` counts, ascending."""
        with self._database.reading() as connection:
            return self._waiting(connection, number)

    def rest_rows(self) -> dict[int, npt.NDArray[np.int64]]:
        """Read the rows that lack answers and are still served, of closed rounds that have some, the newest first."""
        with self._database.reading() as connection:
            resting = resting_rounds(connection, self._settings.labelling)
            found = {each: self._waiting(connection, each) for each in resting}
        return {number: rows for number, rows in found.items() if len(rows)}

    def _waiting(self, connection: Connection, number: int) -> npt.NDArray[np.int64]:
        rows = connection.scalars(select(asked.c.row).where(waits(number, self._settings.labelling))).all()
        return np.sort(np.array(rows, dtype=np.int64))

    def begun(self, number: int) -> bool:
        """Return whether anybody has answered a record of a round's batch, or holds one now."""
        with self._database.reading() as connection:
            answered = exists().where(schema.answers.c.round == number)
            looked_at = exists().where(asked.c.round == number, held(asked.c.row, self._database.now(connection)))
            return bool(connection.scalar(select(or_(answered, looked_at))))

    def asked_rows(self) -> npt.NDArray[np.int64]:
        """Read the rows that were ever asked, ascending."""
        with self._database.reading() as connection:
            return np.sort(np.array(connection.scalars(select(asked.c.row)).all(), dtype=np.int64))

    def rounds_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Read the round that asked each of some rows, reserves with them; 0 of rows that none has asked."""
        query = select(asked.c.row, asked.c.round)
        if len(rows) <= _FEW:
            query = query.where(asked.c.row.in_(rows.tolist()))
        with self._database.reading() as connection:
            found = np.array([tuple(row) for row in connection.execute(query)], dtype=np.int64).reshape(-1, 2)
        found = found[np.argsort(found[:, 0])]
        at = np.minimum(np.searchsorted(found[:, 0], rows), max(len(found) - 1, 0))
        return np.where(found[at, 0] == rows, found[at, 1], 0) if len(found) else np.zeros(len(rows), np.int64)

    def excluded_rows(self, round: Round | None = None) -> npt.NDArray[np.int64]:
        """Read the rows that are not to be asked, ascending: asked ones, those answered unasked, and gold ones.

        Parameters
        ----------
        round : Round, optional
            Give them as they were when this round was frozen, which is what a scan resumed later must use.
        """
        with self._database.reading() as connection:
            if round is not None:
                return ledger.excluded_at(connection, round.number, round.last_answer)
            return ledger.excluded_now(connection, self._database.now(connection))

    def newest_model(self, pool_fingerprint: str) -> str | None:
        """Read the digest of the newest model of a pool's features; None where there is none."""
        with self._database.reading() as connection:
            return _last_model(connection, pool_fingerprint)

    def explored_rows(self, pool: str | None = None) -> npt.NDArray[np.int64]:
        """Read the rows that were drawn uniformly, ascending; where a fingerprint is given, in rounds on that pool."""
        query = select(asked.c.row).where(asked.c.explore, ~asked.c.reserve)
        if pool is not None:
            query = query.where(asked.c.round.in_(select(rounds.c.number).where(rounds.c.pool_fingerprint == pool)))
        with self._database.reading() as connection:
            drawn = connection.scalars(query).all()
        return np.sort(np.array(drawn, dtype=np.int64))

    def drawn_in(self) -> dict[int, int]:
        """Read, by row, the round that drew each explore record."""
        query = select(asked.c.row, asked.c.round).where(asked.c.explore, ~asked.c.reserve)
        with self._database.reading() as connection:
            return dict([tuple(row) for row in connection.execute(query)])

    def explore_predictions(self) -> dict[int, tuple[int, int]]:
        """Read, by row, the round that drew each explore record, and the class code that its model predicted."""
        query = select(asked.c.row, asked.c.round, asked.c.predicted)
        with self._database.reading() as connection:
            found = connection.execute(query.where(asked.c.explore, asked.c.predicted.is_not(None)))
            return {row: (number, code) for row, number, code in found}

    def _check_pool(self, fingerprint: str, n_rows: int) -> None:
        if fingerprint != self._pool_fingerprint:
            raise CampaignMismatch(
                f"{self._place} belongs to the pool with fingerprint {self._pool_fingerprint}, and this one has "
                f"{fingerprint}. Use the pool that the campaign was made for, or make a new campaign"
            )
        with self._database.reading() as connection:
            known = self._answers.rows_known(connection)
        if n_rows < known:
            raise CampaignMismatch(
                f"the pool had {known} rows and has {n_rows} now: rows never leave a pool; restore it"
            )

    def _require(self, round: Round, *allowed: str) -> None:
        """Refuse a step that comes too early or too late, before it writes a file."""
        status = self.get(round.number).status
        if status not in allowed:
            raise _wrong_step(round.number, status, allowed)


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


def switched_to(connection: Connection) -> str | None:
    """Read the learner that the campaign was last switched to, inside the caller's transaction; None without a switch.

    A switch and a freeze each read it in the transaction that writes: a switch holds from the next round on, and a
    round that is being frozen meanwhile is that one.
    """
    switches = schema.switches
    return connection.scalar(select(switches.c.learner).order_by(switches.c.number.desc()).limit(1))


def _last_model(connection: Connection, pool: str) -> str | None:
    """Read the digest of the newest model of this pool's features; those of another pool mean other things."""
    known = rounds.c.model.is_not(None) & (rounds.c.pool_fingerprint == pool)
    return connection.scalar(select(rounds.c.model).where(known).order_by(rounds.c.number.desc()).limit(1))


def _round(row: Row[Any]) -> Round:
    values = dict(row._mapping)
    for name in ("notes", "summary", "waves"):
        values[name] = None if values[name] is None else json.loads(values[name])
    values["search"] = None if values["search"] is None else Search.of_json(values["search"])
    values["balance"] = None if values["balance"] is None else tuple(json.loads(values["balance"]))
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


def _unmark(connection: Connection, rows: Sequence[int]) -> None:
    if rows:
        connection.execute(delete(schema.examples).where(schema.examples.c.row.in_(rows)))


def _release_reserve(connection: Connection, now: datetime) -> None:
    """Let the unused reserve of earlier rounds be chosen again: it was asked of nobody."""
    used = exists().where(schema.answers.c.row == asked.c.row)
    connection.execute(delete(asked).where(asked.c.reserve, ~used, ~held(asked.c.row, now)))


def _values(number: int, record: Asked) -> dict[str, object]:
    """Return a record of a batch as the database takes it; NumPy's scalars become plain ones."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in vars(record).items()}
    return {"round": number, **plain}


def _json(value: Mapping[str, object]) -> str:
    """Write JSON; NumPy's numbers and arrays, which scans and fits are full of, become plain ones."""
    return json.dumps(dict(value), default=lambda given: given.tolist())
