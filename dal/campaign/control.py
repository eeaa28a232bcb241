"""Managers' commands to a campaign: each with its person and time, the latest one in force."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import func, insert, select

from dal.campaign.rounds import close_open_round
from dal.campaign.schema import actions
from dal.campaign.store import CampaignStore
from dal.errors import InputError

Act = Literal["pause", "resume", "close", "stop"]


@dataclass(frozen=True)
class Action:
    """One person's command to the campaign.

    Attributes
    ----------
    act : {"pause", "resume", "close", "stop"}
    person : str
    at : datetime
        UTC.
    """

    act: Act
    person: str
    at: datetime


class Control:
    """Pauses, stops and resumes a campaign, and closes its open round early.

    While a campaign is paused or stopped nobody is served a record; answers to records in hand are still taken. A
    paused one goes on computing; a stopped one begins no further round. ``resume`` ends both.
    """

    def __init__(self, campaign: CampaignStore) -> None:
        self._database = campaign.database

    def tell(self, act: Act, person: str) -> None:
        """Carry an action out, and remember who wanted it.

        Raises
        ------
        InputError
            If there is no such action, or a round is to be closed and none is open.
        """
        if act not in get_args(Act):
            raise InputError(f"`act` must be one of {', '.join(get_args(Act))}, got {act!r}")
        # One transaction: killed between two, a campaign that was stopped would go on with the next round.
        with self._database.writing() as connection:
            at = self._database.now(connection).isoformat()
            closed = act in ("close", "stop") and close_open_round(connection, at)
            if act == "close" and not closed:
                raise InputError("no round is open: there is nothing to close")
            number = 1 + (connection.scalar(select(func.max(actions.c.number))) or 0)
            connection.execute(insert(actions).values(number=number, act=act, person=person, at=at))

    def history(self) -> list[Action]:
        """List all actions, the first one first."""
        with self._database.reading() as connection:
            found = connection.execute(select(actions).order_by(actions.c.number))
            return [Action(each.act, each.person, datetime.fromisoformat(each.at)) for each in found]

    @property
    def in_force(self) -> Action | None:
        """The pause or stop that holds now."""
        with self._database.reading() as connection:
            lasting = select(actions).where(actions.c.act != "close").order_by(actions.c.number.desc()).limit(1)
            last = connection.execute(lasting).one_or_none()
        return (
            None
            if last is None or last.act == "resume"
            else Action(last.act, last.person, datetime.fromisoformat(last.at))
        )
