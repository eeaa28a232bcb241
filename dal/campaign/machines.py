"""Machines: annotators that are programs, with their price and their cap, and the records that wait for them."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select, update

from dal.campaign import answers as ledger
from dal.campaign import schema
from dal.campaign.answer_log import Standing
from dal.campaign.leases import held
from dal.campaign.people import by_people, enrolled, is_machine, spelling
from dal.campaign.schema import Answer, Asked, answers, asked, machines, rounds
from dal.campaign.store import CampaignStore
from dal.classes import listed, spelled
from dal.errors import InputError, LabelError
from dal.evidence.machines import LEAST, drawn_to_check, estimate
from dal.evidence.ruler import Estimate
from dal.texts import name_flaw

SOURCE = "machine"
"""Where the answers of machines come from."""


@dataclass(frozen=True)
class Machine:
    """A machine as it is known to a campaign; `cost` is of one answer, `cap` counts answers."""

    name: str
    cost: float | None
    cap: int | None


@dataclass(frozen=True)
class MachineWork:
    """The work of one machine.

    Attributes
    ----------
    name : str
    answers, skipped, alone : int
        Its answers, and those of them that are skipped, and that count without a person's.
    cost : float or None
        Of all its answers; None where the price of one is unknown.
    left : int or None
        Answers that its cap leaves; None without a cap.
    accuracy, backed : Estimate
        See :class:`dal.evidence.machines.Judged`.
    trusted : tuple of str
        The classes that its next answers may settle records with.
    text : str
        The same in a line.
    """

    name: str
    answers: int
    skipped: int
    alone: int
    cost: float | None
    left: int | None
    accuracy: Estimate
    backed: Estimate
    trusted: tuple[str, ...]
    text: str


class Machines:
    """The machines of a campaign.

    Parameters
    ----------
    campaign : CampaignStore
    """

    def __init__(self, campaign: CampaignStore) -> None:
        self._campaign = campaign
        self._database = campaign.database
        self._labelling = campaign.settings.labelling

    def enrol(self, name: str, *, cost: float | None = None, cap: int | None = None) -> Machine:
        """Make a name that of a machine, or change its price or cap; None leaves them.

        Raises
        ------
        InputError
            If the name is a person's, or no name, or price or cap cannot be one.
        """
        if wrong := name_flaw(name):
            raise InputError(f"`name` must be the name of a machine, got one that {wrong}")
        if cost is not None and not (math.isfinite(cost) and cost >= 0):
            raise InputError(f"`cost` must be a price of 0 or more, got {cost}")
        if cap is not None and not 0 <= cap < 2**63:
            raise InputError(f"`cap` must be a number of answers from 0 on, got {cap}")
        given = {key: value for key, value in (("cost", cost), ("cap", cap)) if value is not None}
        with self._database.writing() as connection:
            known = enrolled(connection, name)
            if is_machine(connection, known):
                if given:
                    connection.execute(update(machines).where(machines.c.name == known).values(**given))
            elif connection.scalar(select(_of_a_person(known))):
                raise InputError(f"`name` must be a machine's, got {known!r}, which is a person's; choose another name")
            else:
                connection.execute(insert(machines).values(name=known, **given))
            found = connection.execute(select(machines).where(machines.c.name == known)).one()
        return Machine(found.name, found.cost, found.cap)

    def left(self, name: str) -> int | None:
        """Return how many more answers the cap of a machine leaves; None without a cap."""
        with self._database.reading() as connection:
            name = spelling(connection, name)
            cap = connection.scalar(select(machines.c.cap).where(machines.c.name == name))
            given = connection.scalar(select(func.count()).where(answers.c.annotator == name, _bought)) or 0
        return None if cap is None else max(0, cap - given)

    def waiting(self, name: str) -> list[Asked]:
        """Read the records of the open batch that wait for answers, and that a machine has not answered, by rank.

        Records that somebody looks at are left out. So is the reserve: it is there for people who would have nothing to
        do.
        """
        columns = [asked.c[each] for each in ("row", "record_id", "rank", "score", "predicted", "explore")]
        with self._database.reading() as connection:
            own = exists().where(answers.c.row == asked.c.row, answers.c.annotator == spelling(connection, name))
            free = self._free(self._database.now(connection))
            opened = asked.c.round.in_(select(rounds.c.number).where(rounds.c.status == "open"))
            query = select(*columns).where(opened, ~asked.c.reserve, free, ~own.correlate(asked))
            return [Asked(*found) for found in connection.execute(query.order_by(asked.c.rank))]

    def _free(self, now: datetime) -> ColumnElement[bool]:
        """Return the condition that an asked record lacks answers, and that nobody looks at it."""
        few = ledger.answers_given(asked.c.row) < self._labelling.overlap
        return and_(few, ~held(asked.c.row, now))

    def add(self, name: str, given: Sequence[tuple[Asked, int | None]], *, trusted: Collection[int]) -> int:
        """Add a machine's answers, class codes or None for skipped records; return how many count alone.

        An answer counts alone where its class is among the trusted ones, the model that chose the batch predicted the
        same class, and the record is neither in the explore share nor drawn to be checked. It must also still wait:
        the round is open, answers lack, nobody looks at the record, has skipped it or has answered otherwise. A record
        that the machine has answered is left as it is.

        Parameters
        ----------
        name : str
        given : sequence of (Asked, int or None)
        trusted : collection of int
            As `trusted_answers` returns them.

        Raises
        ------
        LabelError
            If a class code is none of the campaign's; nothing was added then.
        """
        settings = self._campaign.settings
        rows = [record.row for record, _ in given]
        drawn = drawn_to_check(rows, self._labelling.machine_check, settings.random_state)
        wanted = select(asked.c.row, asked.c.round, rounds.c.status).join(rounds).where(asked.c.row.in_(rows))
        with self._database.writing() as connection:
            received = self._database.stamp(connection)
            name = spelling(connection, name)
            own = select(answers.c.row).where(answers.c.row.in_(rows), answers.c.annotator == name)
            answered = set(connection.scalars(own))
            # A machine that skips knows nothing of the record; a person who skips it has looked.
            heard = or_(answers.c.status == "submitted", by_people(answers.c.annotator))
            standing = ledger.standing(answers.c.row.in_(rows), heard)
            others = connection.execute(standing.with_only_columns(answers.c.row, answers.c.label))
            said: dict[int, set[int | None]] = {}
            for row, label in others:
                said.setdefault(row, set()).add(label)
            free = self._free(self._database.now(connection))
            waits = set(connection.scalars(select(asked.c.row).where(asked.c.row.in_(rows), free)))
            places = {each.row: each for each in connection.execute(wanted)}
            lines = []
            for (record, code), checked in zip(given, drawn.tolist(), strict=True):
                if record.row in answered:
                    continue
                answered.add(record.row)
                answer = Answer(record.row, record.record_id, name, "skipped" if code is None else "submitted", code)
                if wrong := ledger.complaint(answer, len(settings.classes)):
                    raise LabelError(f"the answer to record {record.record_id!r} by {name!r} {wrong}")
                backed = code is not None and code == record.predicted and not record.explore
                agreed = said.get(record.row, set()) <= {code}
                place = places[record.row]
                late = place.status != "open"
                settles = code in trusted and backed and agreed and not checked
                lines.append(
                    {
                        **ledger.as_columns(answer, received),
                        "status": answer.status,
                        "label": code,
                        "round": place.round,
                        "source": SOURCE,
                        "late": late,
                        "alone": settles and not late and record.row in waits,
                    }
                )
            if lines:
                connection.execute(insert(answers), lines)
        return sum(bool(line["alone"]) for line in lines)

    def trusted_answers(self, name: str) -> frozenset[int]:
        """Return the class codes that a machine may answer alone, by what people have checked so far."""
        with self._database.reading() as connection:
            name = spelling(connection, name)
        judged = self._campaign.answers.standing().machines.get(name)
        return frozenset() if judged is None else judged.trusted

    def work(self) -> list[MachineWork]:
        """Return the work of each machine, by name."""
        with self._database.snapshot():
            standing = self._campaign.answers.standing()
            with self._database.reading() as connection:
                query = select(machines, func.count(answers.c.id)).outerjoin(
                    answers, and_(answers.c.annotator == machines.c.name, _bought)
                )
                grouped = query.group_by(machines.c.name, machines.c.cost, machines.c.cap).order_by(machines.c.name)
                known = connection.execute(grouped).all()
        return [self._work(standing, Machine(*each[:3]), each[3]) for each in known]

    def _work(self, standing: Standing, machine: Machine, given: int) -> MachineWork:
        found, judged = standing.of_machines.get(machine.name), standing.machines.get(machine.name)
        n_answers, skipped, alone = 0, 0, 0
        if found is not None:
            n_answers, skipped, alone = len(found.rows), int((found.codes < 0).sum()), int(found.alone.sum())
        cost = None if machine.cost is None else machine.cost * given
        left = None if machine.cap is None else max(0, machine.cap - given)
        accuracy, backed = (_UNKNOWN, _UNKNOWN) if judged is None else (judged.accuracy, judged.backed)
        least, classes = self._labelling.machine_accuracy, self._campaign.settings.classes
        trusted = () if judged is None else tuple(classes[code] for code in sorted(judged.trusted))
        text = f"machine {machine.name}: {n_answers:,} answers, {skipped:,} of them skipped, {alone:,} without a person"
        text += "" if cost is None else f"; cost {cost:,.2f}"
        text += "" if left is None else f"; {left:,} left of its cap of {machine.cap:,}"
        text += "" if accuracy.value is None else f"; its share of right answers is {accuracy.text}"
        if backed.value is not None:
            text += f"; where the model says the same, the share is {backed.text}"
        if judged is not None:
            for true, said, share in judged.confusions():
                text += f"; it answers {spelled(classes[said])} for {share:.0%} of the records that people call"
                text += f" {spelled(classes[true])}"
        if trusted:
            which = "" if len(trusted) == len(classes) else f" {listed(trusted)}"
            follows = f"its answers{which} settle records where the model says the same, but for those to be checked"
        elif backed.value is not None and backed.low >= least:
            follows = (
                f"people answer every record, until {LEAST} checks of one answer show it right in {least:g} of them"
            )
        else:
            follows = "people answer every record, until their checks show with 95 % certainty that it is right in"
            follows += f" {least:g} of the answers that the model shares"
        return MachineWork(
            machine.name, n_answers, skipped, alone, cost, left, accuracy, backed, trusted, f"{text}; {follows}"
        )


_bought = answers.c.source == SOURCE
"""Chooses what a machine was asked for: lines that are imported under its name cost nothing."""

_UNKNOWN = estimate(0.0, 0, 0)


def _of_a_person(name: str) -> ColumnElement[bool]:
    """Return the condition that a name has answers or a token, where it is no machine's."""
    answered = exists().where(answers.c.annotator == name)
    return or_(answered, exists().where(schema.annotators.c.name == name))
