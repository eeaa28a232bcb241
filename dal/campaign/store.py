"""A campaign: settings, rounds and answers in one SQL database, and the files that are committed by their digest."""

from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Row, exists, select, update

from dal.campaign import schema
from dal.campaign.answer_log import AnswerLog
from dal.campaign.database import BUSY_SECONDS, Database
from dal.campaign.directory import LEARNER, coordinator_lock, lay_out, open_directory, write_settings
from dal.campaign.objects import objects_of
from dal.campaign.rounds import Rounds, switched_to
from dal.campaign.settings import Settings
from dal.errors import CampaignError, DalError, SettingsError


class CampaignStore:
    """The durable state of one labelling effort.

    Every change of state is one transaction, so a process that is killed leaves the state before or after it.
    Nothing is overwritten: answers, rounds and models stay. Made by `make` or `open`; safe to use from several
    threads; holds no connection between calls, so there is nothing to close.

    Attributes
    ----------
    directory : Path
    settings : Settings
        As campaign.toml says now; what a round used is frozen with the round.
    id : str
        Random; the database and campaign.toml both hold it.
    pool_fingerprint : str
        Of the campaign's pool.
    n_rows : int
        Of the pool that the campaign was made for, then.
    created_at : datetime
        UTC.
    database : Database
        Where all of it is kept.
    objects : Objects
        Models and the files of rounds: in the directory, or in the store that the settings name.
    answers : AnswerLog
    rounds : Rounds
    """

    def __init__(self, directory: Path, settings: Settings, row: Row[Any], database: Database) -> None:
        self.directory = directory
        self.settings = settings
        self.id: str = row.id
        self.pool_fingerprint: str = row.pool_fingerprint
        self.n_rows: int = row.n_rows
        self.created_at = datetime.fromisoformat(row.created_at)
        self.database = database
        self.objects = objects_of(directory, settings.storage.store, self.id)
        self.answers = AnswerLog(settings, self.n_rows, database)
        self.rounds = Rounds(directory, settings, self.pool_fingerprint, database, self.objects, self.answers)

    # -- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def make(
        cls,
        directory: str | Path,
        settings: Settings,
        *,
        pool_fingerprint: str,
        n_rows: int,
        learner: bytes | None = None,
    ) -> Self:
        """Make a campaign in a directory that is empty or does not exist.

        The database appears last: what was interrupted before is no campaign, and is made again. Where this very
        campaign was made and nothing has happened in it yet, it is opened: so the call can be repeated after a kill.

        Raises
        ------
        CampaignError
            If the directory, or the database on a server, holds anything else, a campaign included, or cannot be
            written.
        CampaignLocked
            If another process is making a campaign there.
        """
        if n_rows < 1:
            raise SettingsError(f"`n_rows` must be at least 1, got {n_rows}; add records to the pool first")
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
    def open(cls, directory: str | Path, *, busy_seconds: float = BUSY_SECONDS) -> Self:
        """Open the campaign in a directory.

        Parameters
        ----------
        directory : str or Path
        busy_seconds : float, default=30
            To wait for another process that writes to the database; then an error says so.

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
        return cls(directory, *open_directory(directory, busy_seconds=busy_seconds))

    def move(self, pool: str, fingerprint: str) -> Self:
        """Let the campaign go on with another pool that holds the same records in the same rows.

        Repeated after a kill, it does what is left. Returned is the campaign on that pool; objects that were opened
        before stay with the other one.

        Raises
        ------
        CampaignError
            If a round is being computed.
        CampaignLocked
            If a coordinator is at work.
        """
        with self.lock():
            last = self.rounds.last
            if last is not None and last.status not in ("open", "closed"):
                raise CampaignError(f"round {last.number} is {last.status}: run dal next first, then move the campaign")
            write_settings(self.directory, self.id, replace(self.settings, pool=pool))
            with self.database.writing() as connection:
                connection.execute(update(schema.campaign).values(pool_fingerprint=fingerprint))
        return type(self).open(self.directory)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of this campaign's one coordinator, as long as the context lasts.

        The lock is the system's own (`flock`), or an advisory one of the database server: it ends with its process,
        and no stale one is ever left.

        Raises
        ------
        CampaignLocked
            On entering, if someone holds it; the message names the process.
        """
        return coordinator_lock(self.directory, self.database)

    @property
    def learner(self) -> str:
        """The learner in use: the one that the campaign was last switched to, else the settings' `estimator`."""
        with self.database.reading() as connection:
            return switched_to(connection) or self.settings.estimator

    @property
    def first_learner(self) -> str:
        """The learner before the first switch: the settings' `estimator`, as it was then."""
        switches = schema.switches
        with self.database.reading() as connection:
            first = select(switches.c.before).order_by(switches.c.number).limit(1)
            return connection.scalar(first) or self.settings.estimator

    def learner_in(self, round: schema.Round) -> str:
        """Return the name of the learner that a round is fitted with.

        Rounds of older versions keep none. They were frozen before the first switch, and so keep the learner of then.
        """
        return round.learner or self.first_learner

    def load_learner(self, file: str = LEARNER) -> bytes:
        """Read a learner that was given as an object: when the campaign was made, or in a switch."""
        data = self.objects.find(file)
        if data is None:
            place = f"{self.objects.place}/{file}"
            raise CampaignError(f"the campaign's learner was saved as {place}, which is gone: restore it")
        return data
