"""Machines: annotators that are programs, with their price and their cap, and the records that wait for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists, func, insert, or_, select, update

from dal.campaign import answers as ledger
from dal.campaign import schema
from dal.campaign.answer_log import Standing
from dal.campaign.people import enrolled, is_machine, spelling
from dal.campaign.schema import Answer, Asked, answers, asked, machines, rounds
from dal.campaign.store import CampaignStore
from dal.errors import InputError, LabelError
from dal.evidence.machines import Judged, drawn_to_check, estimate
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
    trusted : bool
        Whether its next answers may count alone.
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
    trusted: bool
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
            given = connection.scalar(select(func.count()).where(answers.c.annotator == name)) or 0
        return None if cap is None else max(0, cap - given)

    def waiting(self, name: str) -> list[Asked]:
        """Read the records of the open batch that wait for answers, and that a machine has not answered, by rank.

        The reserve is not among them: it is there for people who would have nothing to do.
        """
        columns = [asked.c[each] for each in ("row", "record_id", "rank", "score", "predicted", "explore")]
        with self._database.reading() as connection:
            own = exists().where(answers.c.row == asked.c.row, answers.c.annotator == spelling(connection, name))
            few = ledger.answers_given(asked.c.row) < self._labelling.overlap
            opened = asked.c.round.in_(select(rounds.c.number).where(rounds.c.status == "open"))
            query = select(*columns).where(opened, ~asked.c.reserve, few, ~own.correlate(asked))
            return [Asked(*found) for found in connection.execute(query.order_by(asked.c.rank))]

    def add(self, name: str, given: Sequence[tuple[Asked, int | None]], *, trusted: bool) -> int:
        """Add a machine's answers, class codes or None for skipped records; return how many count alone.

        An answer counts alone where the machine is trusted, the model that chose the batch predicted the same class,
        nobody has answered otherwise, and the record is neither in the explore share nor drawn to be checked. A record
        that the machine has answered is left as it is.

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
            others = connection.execute(
                ledger.standing(answers.c.row.in_(rows), answers.c.status == "submitted").with_only_columns(
                    answers.c.row, answers.c.label
                )
            )
            said: dict[int, set[int]] = {}
            for row, label in others:
                said.setdefault(row, set()).add(label)
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
                lines.append(
                    {
                        **ledger.as_columns(answer, received),
                        "status": answer.status,
                        "label": code,
                        "round": place.round,
                        "source": SOURCE,
                        "late": place.status != "open",
                        "alone": trusted and backed and agreed and not checked,
                    }
                )
            if lines:
                connection.execute(insert(answers), lines)
        return sum(bool(line["alone"]) for line in lines)

    def is_trusted(self, name: str) -> bool:
        """Return whether a machine's next answers may count alone, by what people have checked so far."""
        with self._database.reading() as connection:
            name = spelling(connection, name)
        judged = self._campaign.answers.standing().machines.get(name)
        return judged is not None and self._trusts(judged)

    def _trusts(self, judged: Judged) -> bool:
        return judged.backed.value is not None and judged.backed.low >= self._labelling.machine_accuracy

    def work(self) -> list[MachineWork]:
        """Return the work of each machine, by name."""
        with self._database.snapshot():
            standing = self._campaign.answers.standing()
            with self._database.reading() as connection:
                query = select(machines, func.count(answers.c.id)).outerjoin(
                    answers, answers.c.annotator == machines.c.name
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
        trusted = judged is not None and self._trusts(judged)
        text = f"machine {machine.name}: {n_answers:,} answers, {skipped:,} of them skipped, {alone:,} without a person"
        text += "" if cost is None else f"; cost {cost:,.2f}"
        text += "" if left is None else f"; {left:,} left of its cap of {machine.cap:,}"
        text += f"; right by people's labels: {accuracy.text}"
        if backed.value is not None:
            text += f"; where the model says the same: {backed.text}"
        least = self._labelling.machine_accuracy
        follows = (
            "its answers that the model backs count, but for those drawn to be checked"
            if trusted
            else f"people answer every record, until the lower end of the last is {least:g}"
            if backed.value is not None
            else "people answer every record"
        )
        return MachineWork(
            machine.name, n_answers, skipped, alone, cost, left, accuracy, backed, trusted, f"{text}; {follows}"
        )


_UNKNOWN = estimate(0.0, 0, 0)


def _of_a_person(name: str) -> ColumnElement[bool]:
    """Return the condition that a name has answers or a token, where it is no machine's."""
    answered = exists().where(answers.c.annotator == name)
    return or_(answered, exists().where(schema.annotators.c.name == name))
