"""Records that people want more of: marked on the pages, and searched for by the next round that is frozen."""

from sqlalchemy import delete, func, insert, select

from dal.campaign.schema import examples
from dal.campaign.store import CampaignStore


class Examples:
    """The marked records of a campaign. The batch that is searched for with them takes their marks away."""

    def __init__(self, campaign: CampaignStore) -> None:
        self._database = campaign.database

    def mark(self, row: int, record_id: str, person: str) -> None:
        """Mark a record; a second mark changes nothing."""
        with self._database.writing() as connection:
            if connection.scalar(select(examples.c.row).where(examples.c.row == row)) is None:
                at = self._database.stamp(connection)
                connection.execute(insert(examples).values(row=row, record_id=record_id, person=person, at=at))

    def unmark(self, row: int) -> None:
        """Take the mark of a record away, if there is one."""
        with self._database.writing() as connection:
            connection.execute(delete(examples).where(examples.c.row == row))

    def rows(self, most: int | None = None) -> list[int]:
        """Read the marked rows, those marked first ahead."""
        with self._database.reading() as connection:
            return list(connection.scalars(select(examples.c.row).order_by(examples.c.at, examples.c.row).limit(most)))

    def count(self) -> int:
        """Count the marked records."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.count()).select_from(examples)) or 0
