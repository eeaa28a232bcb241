"""The access to the campaign's database, SQLite or PostgreSQL, and the meaning of its errors."""

import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dal._distribution import install_line
from dal._files import network_filesystem
from dal.errors import CampaignError, CampaignLocked, DatabaseError, LabelError, SettingsError

BUSY_SECONDS = 30.0
"""How long a write waits for another process's; a single one takes milliseconds, a large import some seconds."""

_IN_USE = "Another process has been writing for too long: wait for it or end it, then run again"
_NO_ACCESS = "Get write access to the file and its directory"
_MISSING = "The file is gone: restore it from a copy"
_FULL = "The disk is full: free space and run again; nothing was changed"
_DAMAGED = "The file is damaged, or something else: restore it from a copy"
_DISK = "The disk failed to read or write: look at it, then run again"
_AGAIN = "Run again; nothing was changed"
_GONE = (
    "Is the server running, and are address, database, user and password right (libpq reads ~/.pgpass and PGPASSWORD, "
    "too)? Then run again; nothing is half done"
)
_TLS = (
    "Is it what the server wants (pg_hba.conf)? Which certificates the URL names by sslmode, sslrootcert, sslcert and "
    "sslkey, and when they expire, is for you to check: see cluster/tls/README.md. Then run again; nothing is half done"
)
# By the beginning of SQLite's name of the error, or of PostgreSQL's SQLSTATE; the first one that fits.
_REMEDIES = {
    "SQLITE_BUSY": _IN_USE,
    "SQLITE_LOCKED": _IN_USE,
    "SQLITE_FULL": _FULL,
    "SQLITE_READONLY": _NO_ACCESS,
    "SQLITE_CANTOPEN": _NO_ACCESS,
    "SQLITE_PERM": _NO_ACCESS,
    "SQLITE_AUTH": _NO_ACCESS,
    "SQLITE_CORRUPT": "The file is damaged: restore it from a copy",
    "SQLITE_NOTADB": _DAMAGED,
    "SQLITE_ERROR": _DAMAGED,
    "SQLITE_IOERR_SHM": _FULL,  # the file of 32 kB that all who use the database share
    "SQLITE_IOERR": _DISK,
    "55P03": _IN_USE,
    "53100": _FULL,
    "53": "The server lacks something, such as memory or connections: see to it, then run again",
    "25006": "The server or the database is read-only: use the one that can be written to",
    "42501": "Ask for the right to create tables in this database and to write to them",
    "3F000": "The schema is not there: create it, or correct the search_path",
    "58": _DISK,
    "XX": "The database is damaged: restore it from a copy",
    "08": _GONE,
    "57P": _GONE,
    "server": _GONE,
}


class Database:
    """One transaction after another, each over a connection of its own, with errors that say what to do.

    Safe to use from several threads and after a fork, because nothing is kept between two transactions.

    Attributes
    ----------
    engine : Engine
    place : str
        The file, or the URL without its password, for messages.
    clock : callable or None
        Gives the time in place of the database's own.
    """

    def __init__(self, engine: Engine, place: str) -> None:
        self.engine = engine
        self.place = place
        self.clock: Callable[[], datetime] | None = None
        self._snapshot = threading.local()

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Yield a connection whose transactions the caller begins and ends."""
        with explained(self.place), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that sees the database as it was when it began.

        Inside a :meth:`snapshot` of this thread it is the snapshot's.
        """
        if (held := getattr(self._snapshot, "connection", None)) is not None:
            yield held
            return
        with self.connected() as connection:
            if self.is_server:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection
                _check_still(connection, self.place)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read everything inside, in this thread, over one connection and as it was at one moment."""
        with self.reading() as connection:
            outer = getattr(self._snapshot, "connection", None)
            self._snapshot.connection = connection
            try:
                yield
            finally:
                self._snapshot.connection = outer

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction during which nobody else writes."""
        with self.connected() as connection, immediate(connection):
            yield connection

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the coordinator's lock of a campaign on a server, over a connection of its own that it ends with.

        Raises
        ------
        CampaignLocked
            If somebody holds it; the message says who.
        """
        with self.connected() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            if not connection.scalar(select(func.pg_try_advisory_lock(*_COORDINATOR))):
                raise CampaignLocked(
                    f"{self.place} is in use by {_holder(connection)}: wait for it, or end it. A coordinator whose "
                    "machine was lost is forgotten within two minutes"
                )
            try:
                yield
            finally:
                # The server hears of a closed connection a moment later, and the next coordinator may come before it.
                with suppress(DBAPIError):  # a lock whose connection is lost has gone with it
                    connection.scalar(select(func.pg_advisory_unlock(*_COORDINATOR)))

    def now(self, connection: Connection) -> datetime:
        """Return the database's time, in UTC; SQLite has no clock but this machine's."""
        if self.clock is not None:
            return self.clock()
        if not self.is_server:
            return datetime.now(UTC)
        told: datetime = connection.scalars(select(func.clock_timestamp())).one()
        return told.astimezone(UTC)

    def stamp(self, connection: Connection) -> str:
        """Return the database's time as UTC, ISO 8601."""
        return self.now(connection).isoformat()

    @property
    def is_server(self) -> bool:
        """Whether it is reached by URL."""
        return self.engine.dialect.name == "postgresql"


# -- SQLite ------------------------------------------------------------------------------------------------------------


def open_file(path: Path, mode: str = "rw", *, busy_seconds: float = BUSY_SECONDS) -> Database:
    """Reach an SQLite file; the mode ``rwc`` makes one. It waits `busy_seconds` for another writer.

    Raises
    ------
    CampaignError
        If it lies on a network file system: SQLite's journal needs memory that all who write share, and its locks are
        not kept there; the file would be damaged sooner or later.
    """
    if (kind := network_filesystem(path.parent)) is not None:
        raise CampaignError(
            f"{path} is on a network file system ({kind}), where SQLite damages its files: move the campaign to a disk "
            "of this machine, or keep it in PostgreSQL (the setting `database`)"
        )
    # In WAL mode the default of `synchronous`, NORMAL, may lose the last commits in a power cut.
    pragmas = ["synchronous = FULL", "foreign_keys = ON"]
    if mode == "rwc":
        pragmas.append("journal_mode = WAL")  # stays with the file

    def connect() -> sqlite3.Connection:
        try:
            return _connected(path, f"mode={mode}", pragmas, busy_seconds)
        except sqlite3.OperationalError as error:
            if mode != "rw" or not error.sqlite_errorname.startswith(_UNSHARED):
                raise
            try:
                return _connected_alone(path, pragmas, busy_seconds)
            except (sqlite3.Error, OSError):  # the second where the file is gone
                raise error from None

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return Database(engine, str(path))


_UNSHARED = ("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_READONLY")
"""How opening fails where the file of shared memory beside the database cannot be made."""


def _connected(
    path: Path,
    how: str,
    pragmas: Sequence[str],
    busy_seconds: float,
    kind: type[sqlite3.Connection] = sqlite3.Connection,
) -> sqlite3.Connection:
    # isolation_level None hands BEGIN to us: Python's own would be deferred, and a deferred transaction that turns to
    # writing fails at once when another one has written since, whatever the busy timeout.
    connection = sqlite3.connect(
        f"{path.as_uri()}?{how}", uri=True, timeout=busy_seconds, isolation_level=None, factory=kind
    )
    try:
        for pragma in (*pragmas, "schema_version"):  # the last one looks into the file
            connection.execute(f"PRAGMA {pragma}").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _connected_alone(path: Path, pragmas: Sequence[str], busy_seconds: float) -> sqlite3.Connection:
    """Open a database without shared memory: on a full disk, and where nothing may be written.

    In the first case nobody else may have it open meanwhile. In the second one nothing keeps others away, so what is
    read is checked by `_check_still`.
    """
    with suppress(sqlite3.Error):  # first of all: the other settings look into the file, and into shared memory
        return _connected(path, "mode=rw", ["locking_mode = EXCLUSIVE", *pragmas], busy_seconds)
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise sqlite3.OperationalError("changes lie in the write-ahead log, and it takes write access to read them")
    seen = _looks(path)
    still = _connected(path, "mode=ro&immutable=1", pragmas, busy_seconds, _Still)
    assert isinstance(still, _Still)
    still.path, still.seen = path, seen
    return still


class _Still(sqlite3.Connection):
    """A connection without locks to a file that is taken not to change."""

    path: Path
    seen: tuple[int, ...]


def _looks(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_still(connection: Connection, place: str) -> None:
    raw: object = connection.connection.dbapi_connection
    if isinstance(raw, _Still) and _looks(raw.path) != raw.seen:
        raise CampaignError(f"{place} was changed while it was read: run again")


# -- PostgreSQL --------------------------------------------------------------------------------------------------------

# Advisory locks belong to a database, and a database may hold a campaign in each schema.
_WRITER = (func.hashtext(func.concat("dal ", func.current_schema())), 1)
_COORDINATOR = (func.hashtext(func.concat("dal ", func.current_schema())), 2)


def checked_url(url: str) -> URL:
    """Read a database's URL.

    Raises
    ------
    SettingsError
        If it is none of PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError("`database` must be a URL such as postgresql://user@host/name, got no URL") from error
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise SettingsError(
            f"`database` must be a URL such as postgresql://user@host/name, got one of {parsed.drivername}; leave the "
            "setting out to keep the campaign in an SQLite file in its directory"
        )
    return parsed.set(drivername="postgresql+psycopg")


def open_server(url: str, *, busy_seconds: float = BUSY_SECONDS) -> Database:
    """Reach a PostgreSQL database; its tables lie in the first schema of the connection's search path.

    It waits `busy_seconds` for another writer.

    Raises
    ------
    CampaignError
        If the driver is not installed.
    """
    parsed = checked_url(url)
    given = parsed.query.get("options", "")
    options = [
        *((given,) if isinstance(given, str) else given),
        f"-c lock_timeout={round(busy_seconds * 1000)}",
        # A machine that was switched off says no goodbye: its locks go when the server has asked in vain.
        "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=5",
    ]
    told = {"options": " ".join(options), "application_name": f"dal {socket.gethostname()} process {os.getpid()}"}
    try:
        engine = create_engine(parsed.difference_update_query(["options"]), connect_args=told, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise CampaignError(
            f"PostgreSQL is reached by psycopg, which is missing: {install_line('postgres')}"
        ) from error

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # One writer at a time, as in SQLite: the rules of a campaign span tables, and its writes are short. The lock
        # comes first, so that every later statement sees what the writer before has committed.
        if connection.get_execution_options().get("immediate", False):
            connection.execute(select(func.pg_advisory_xact_lock(*_WRITER)))

    return Database(engine, parsed.render_as_string(hide_password=True))


def _holder(connection: Connection) -> str:
    query = text(
        "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE locktype = 'advisory' AND granted AND objid = 2 AND objsubid = 2 "
        "AND classid = CAST(hashtext(concat('dal ', current_schema())) AS oid) "
        "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return connection.scalar(query) or "another coordinator"


# -- both --------------------------------------------------------------------------------------------------------------


@contextmanager
def immediate(connection: Connection) -> Iterator[None]:
    """Write: what is read first, inside, cannot change before it is acted upon."""
    with connection.execution_options(immediate=True).begin():
        yield


_MISTAKES = (IntegrityError, NotSupportedError, ProgrammingError)
"""Errors of the statement rather than of the database: the same again would fail again."""


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn the database's errors into one that names the place and says what to do; our own mistakes pass.

    Raises
    ------
    DatabaseError
        If the database cannot be read or written.
    LabelError
        If it can, and cannot hold a value.
    """
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseError(f"{place}: {error}. {_IN_USE}", _IN_USE) from error
    except DataError as error:
        raise LabelError(f"the database cannot hold a value: {str(error.orig).strip()}. Nothing was changed") from error
    except DBAPIError as error:
        code = _code(error.orig)
        remedy = next((text for name, text in _REMEDIES.items() if code.startswith(name)), None)
        if remedy is None:
            if isinstance(error, _MISTAKES):
                raise
            remedy = _AGAIN
        if code.startswith("SQLITE_CANTOPEN") and not Path(place).exists():
            remedy = _MISSING
        if remedy == _GONE and re.search("certificate|SSL|no encryption", str(error.orig)):
            remedy = _TLS
        raise DatabaseError(f"{place}: {str(error.orig).strip()}. {remedy}", remedy) from error


def _code(error: Any) -> str:  # noqa: ANN401 - of whatever driver
    """Return the name of SQLite's error or PostgreSQL's SQLSTATE; a server that is not reached has neither."""
    if (name := getattr(error, "sqlite_errorname", None)) is not None:
        return str(name)
    return str(getattr(error, "sqlstate", None) or "server")
