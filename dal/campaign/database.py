"""How the campaign's SQLite database is reached, and what its errors mean."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from dal.errors import CampaignError

BUSY_SECONDS = 30.0
"""How long a write waits for another process's; a single one takes milliseconds, a large import some seconds."""

_IN_USE = "Another process has been writing for too long: wait for it or end it, then run again"
_NO_ACCESS = "Get write access to the file and its directory, which even reading takes"
_REMEDIES = {
    "SQLITE_BUSY": _IN_USE,
    "SQLITE_LOCKED": _IN_USE,
    "SQLITE_FULL": "The disk is full: free space and run again; nothing was changed",
    "SQLITE_READONLY": _NO_ACCESS,
    "SQLITE_CANTOPEN": _NO_ACCESS,
    "SQLITE_PERM": _NO_ACCESS,
    "SQLITE_AUTH": _NO_ACCESS,
    "SQLITE_CORRUPT": "The file is damaged: restore it from a copy",
    "SQLITE_NOTADB": "The file is damaged, or something else: restore it from a copy",
    "SQLITE_ERROR": "The file is damaged, or something else: restore it from a copy",
    "SQLITE_IOERR": "The disk failed to read or write: look at it, then run again",
}


class Database:
    """One transaction after another, each over a connection of its own, with errors that say what to do.

    Safe to use from several threads and after a fork, because nothing is kept between two transactions.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self.engine = engine
        self.path = path

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Give a connection whose transactions the caller begins and ends."""
        with explained(self.path), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a transaction that sees the database as it was when it began."""
        with explained(self.path), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a transaction during which nobody else writes."""
        with self.connected() as connection, immediate(connection):
            yield connection

    def now(self, connection: Connection) -> datetime:  # noqa: ARG002 - a server would be asked over it
        """Give the database's time, in UTC; SQLite has no clock but this machine's."""
        return datetime.now(UTC)


def open_engine(path: Path, mode: str = "rw") -> Engine:
    """Connect anew for every transaction: nothing to close, nothing shared between threads or after a fork."""
    # In WAL mode the default of `synchronous`, NORMAL, may lose the last commits in a power cut.
    pragmas = ["synchronous = FULL", "foreign_keys = ON"]
    if mode == "rwc":
        pragmas.append("journal_mode = WAL")  # stays with the file

    def connect() -> sqlite3.Connection:
        # isolation_level None hands BEGIN to us: Python's own would be deferred, and a deferred transaction that
        # turns to writing fails at once when another one has written since, whatever the busy timeout.
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


@contextmanager
def immediate(connection: Connection) -> Iterator[None]:
    """Write: what is read first, inside, cannot change before it is acted upon."""
    with connection.execution_options(immediate=True).begin():
        yield


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the database's errors into one that names the file and says what to do; our own mistakes pass."""
    try:
        yield
    except DBAPIError as error:
        code: str = getattr(error.orig, "sqlite_errorname", "")
        remedy = next((text for name, text in _REMEDIES.items() if code.startswith(name)), None)
        if remedy is None:
            raise
        raise CampaignError(f"{path}: {error.orig}. {remedy}") from error
