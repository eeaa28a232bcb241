"""The rest of a batch: records that a round did not wait for, and that the queue serves beside the next batch."""

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, true

from dal.campaign import answers as ledger
from dal.campaign.people import by_people
from dal.campaign.schema import answers, asked, rounds
from dal.campaign.settings import Labelling


def waits(number: int, labelling: Labelling) -> ColumnElement[bool]:
    """Return the condition that a record is of a round's batch and lacks answers.

    A skip counts as an answer here: a record that nobody can tell does not hold the round for ever.
    """
    return and_(_of_batch(number), ledger.answers_given(asked.c.row) < labelling.overlap)


def resting_rounds(connection: Connection, labelling: Labelling) -> list[int]:
    """Return the closed rounds whose rest is served: of the newest batch and the one before, the newest round first.

    A round rests if the share of its batch that is waited for was answered when the next round was frozen, or is now
    where none was. One that a manager has closed with fewer answers has no rest: its other records are not asked again.
    """
    if labelling.close_at == 1:
        return []
    newest = select(rounds.c.number, rounds.c.status).where(rounds.c.opened_at.is_not(None))
    found = connection.execute(newest.order_by(rounds.c.number.desc()).limit(2)).all()
    return [each.number for each in found if each.status == "closed" and _is_enough(connection, each.number, labelling)]


def _is_enough(connection: Connection, number: int, labelling: Labelling) -> bool:
    """Return whether enough of a batch was answered for its round to close, as of the freeze of the next one.

    An answer that was taken back counts: its undoing may come between the closing and the freeze, and must not take the
    whole rest with it.
    """
    upto = connection.scalar(select(rounds.c.last_answer).where(rounds.c.number == number + 1))
    then = answers.c.row == asked.c.row, true() if upto is None else answers.c.id <= upto
    people = select(func.count(answers.c.annotator.distinct())).where(*then, by_people(answers.c.annotator))
    few = people.correlate(asked).scalar_subquery() < labelling.overlap
    lacks = and_(few, ~exists().where(*then, answers.c.alone).correlate(asked))
    size = connection.scalar(select(func.count()).where(_of_batch(number))) or 0
    pending = connection.scalar(select(func.count()).where(_of_batch(number), lacks)) or 0
    return pending <= labelling.spare(size)


def _of_batch(number: int) -> ColumnElement[bool]:
    return and_(asked.c.round == number, ~asked.c.reserve)
