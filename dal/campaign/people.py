"""The people of a campaign: each is one person, however the name is spelt, and is shown as it was spelt first."""

from sqlalchemy import Column, ColumnElement, Connection, exists, func, insert, select, update

from dal.campaign.schema import machines, people, staged
from dal.texts import folded, shown_name


def known_name(connection: Connection, name: str) -> str | None:
    """Return the name that the campaign knows a person by, or None where it knows nobody of this name."""
    known: str | None = connection.scalar(select(people.c.name).where(people.c.key == folded(name)))
    return known


def spelling(connection: Connection, name: str) -> str:
    """Return the name that the campaign knows a person by; where it knows nobody, the name as it is shown."""
    known = known_name(connection, name)
    return shown_name(name) if known is None else known


def is_enrolled(connection: Connection, name: str) -> bool:
    """Return whether the campaign knows a person of this name."""
    return known_name(connection, name) is not None


def by_people(annotator: Column[str]) -> ColumnElement[bool]:
    """Return the condition that an annotator is a person, not a machine."""
    return annotator.not_in(select(machines.c.name))


def is_machine(connection: Connection, name: str) -> bool:
    """Return whether an annotator, under the name that the campaign knows it by, is a machine."""
    return bool(connection.scalar(select(exists().where(machines.c.name == name))))


def enrolled(connection: Connection, name: str) -> str:
    """Return the name that the campaign knows a person by; the first spelling is kept for all that follow.

    Takes a transaction that writes.
    """
    known = known_name(connection, name)
    if known is None:
        known = shown_name(name)
        connection.execute(insert(people).values(key=folded(name), name=known))
    return known


def enrol_staged(connection: Connection) -> None:
    """Replace the annotators of the staged answers by the names that the campaign knows them by."""
    spelt = select(staged.c.annotator).group_by(staged.c.annotator).order_by(func.min(staged.c.seq))
    for name in connection.scalars(spelt).all():
        known = enrolled(connection, name)
        if known != name:
            connection.execute(update(staged).where(staged.c.annotator == name).values(annotator=known))
