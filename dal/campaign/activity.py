"""The people at work and their pace, as a campaign's page shows them."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import Row, distinct, func, select

from dal.campaign import answers as ledger
from dal.campaign.leases import holds
from dal.campaign.people import by_people
from dal.campaign.schema import answers, leases
from dal.campaign.store import CampaignStore


@dataclass(frozen=True)
class Work:
    """The work of one annotator.

    Attributes
    ----------
    name : str
    answers, skipped : int
        Records with a standing answer, and those of them that were skipped.
    median_seconds : float or None
        For one answer, over the last 1,000 that tell; None where none does.
    hasty : int
        Of those, answers in less than half a second.
    last_at : datetime
        When the newest answer came, UTC.
    """

    name: str
    answers: int
    skipped: int
    median_seconds: float | None
    hasty: int
    last_at: datetime


class Activity:
    """Reads what annotators do, and did lately.

    Parameters
    ----------
    campaign : Campaign
    """

    TIMED = 1000
    HASTY_SECONDS = 0.5

    def __init__(self, campaign: CampaignStore) -> None:
        self._database = campaign.database

    def active(self) -> int:
        """Count the people who hold records now."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            holders = select(func.count(distinct(leases.c.annotator))).where(holds(now))
            return connection.scalar(holders) or 0

    def work(self) -> list[Work]:
        """Return the work of each person, by name."""
        standing = ledger.standing(by_people(answers.c.annotator)).subquery()
        counts = select(
            standing.c.annotator,
            func.count(),
            func.count().filter(standing.c.status == "skipped"),
            func.max(standing.c.received_at),
        ).group_by(standing.c.annotator)
        newest = answers.c.id.desc()
        timed = (
            select(answers.c.annotator, answers.c.lead_time).where(answers.c.lead_time.is_not(None)).order_by(newest)
        )
        seconds: dict[str, list[float]] = defaultdict(list)
        with self._database.reading() as connection:
            found = connection.execute(counts.order_by(standing.c.annotator)).all()
            for name, lead_time in connection.execute(timed.limit(self.TIMED * max(1, len(found)))):
                seconds[name].append(lead_time)
        return [
            Work(
                name=name,
                answers=given,
                skipped=skipped,
                median_seconds=median(seconds[name]) if seconds[name] else None,
                hasty=sum(each < self.HASTY_SECONDS for each in seconds[name]),
                last_at=datetime.fromisoformat(last_at),
            )
            for name, given, skipped, last_at in found
        ]

    def lately(self, span: timedelta) -> int:
        """Count the answers of people within the last `span`."""
        with self._database.reading() as connection:
            since = (self._database.now(connection) - span).isoformat()
            given = answers.c.received_at >= since, answers.c.status != "retracted", by_people(answers.c.annotator)
            return connection.scalar(select(func.count()).where(*given)) or 0

    def arrivals(self) -> list[datetime]:
        """Read when the answers of people came, the first one first; UTC."""
        given = select(answers.c.received_at).where(by_people(answers.c.annotator)).order_by(answers.c.id)
        with self._database.reading() as connection:
            found = connection.scalars(given)
            return [datetime.fromisoformat(at) for at in found]

    def standing(self, upto: int, after: int = 0, limit: int = 1000) -> list[Row[Any]]:
        """Read the next answers that counted when `upto` was the newest id, in the order in which they came.

        Each block is a transaction of its own, opened and ended by one call: a reader that goes away between two of
        them, or goes on in another thread, leaves nothing open.
        """
        query = ledger.standing(answers.c.id > after, upto=upto).order_by(answers.c.id).limit(limit)
        query = query.add_columns((~by_people(answers.c.annotator)).label("machine"))
        with self._database.reading() as connection:
            return list(connection.execute(query))
