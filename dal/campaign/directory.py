"""A campaign's directory: how it is laid out, distinguished from others, and opened, wherever its database lies."""

import codecs
import json
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, inspect, select

from dal._files import is_part, reason_of, replacing, sync_directory
from dal.campaign import migrations, schema
from dal.campaign.database import BUSY_SECONDS, Database, open_file, open_server
from dal.campaign.objects import objects_of
from dal.campaign.settings import Settings, tables_of
from dal.errors import CampaignError, CampaignLocked, CampaignMismatch, CampaignNotFound, SettingsError
from dal.locks import locked
from dal.texts import composed

LOCK = "campaign.lock"
"""Tells others which process holds the directory."""
DATABASE, TOML, LEARNER = "campaign.db", "campaign.toml", "learner.skops"
PART = f"{DATABASE}.part"
_BESIDE = ("", "-journal", "-wal", "-shm")
"""Ends of the names of the files that SQLite keeps of a database."""
FOLDERS = ("models", "rounds", "journal")


def lay_out(directory: Path, settings: Settings, *, pool_fingerprint: str, n_rows: int, learner: bytes | None) -> None:
    """Make a campaign in a directory; its database comes last, and without one there is no campaign.

    Raises
    ------
    CampaignError
        If the directory or the database on a server holds anything else, or cannot be written.
    CampaignLocked
        If another process is making a campaign there.
    """
    with _writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(directory)
        with exclusive(directory):
            _refuse_foreign(directory)
            _fill(directory, settings, learner, {"pool_fingerprint": pool_fingerprint, "n_rows": n_rows})


def open_directory(directory: Path, *, busy_seconds: float = BUSY_SECONDS) -> tuple[Settings, Row[Any], Database]:
    """Open the campaign in a directory: what was chosen, its line in the database, and the database.

    One that an older version made is brought up to date, while no coordinator of that version is at work.
    """
    database = _database_of(directory, busy_seconds)
    with database.reading() as connection:
        version = _version(connection, database.place)
        row = connection.execute(select(schema.campaign)).one() if version == schema.VERSION else None
    if row is None:
        with coordinator_lock(directory, database), database.writing() as connection:
            migrations.migrate(connection, _version(connection, database.place))
            row = connection.execute(select(schema.campaign)).one()
    return _read_settings(directory / TOML, row), row, database


def write_settings(directory: Path, identity: str, settings: Settings) -> None:
    """Write other settings of a campaign; comments that people wrote into the file are lost."""
    with replacing(directory / TOML) as file:
        file.write(_toml(identity, settings).encode())


def coordinator_lock(directory: Path, database: Database) -> AbstractContextManager[None]:
    """Return the lock that one coordinator holds: it is where the database is, because all coordinators share that."""
    return database.lock() if database.is_server else exclusive(directory)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a campaign's directory; see `dal.locks.locked`.

    Raises
    ------
    CampaignLocked
        If it is held, by this process or another one; the message names its pid.
    CampaignError
        If it cannot be locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory, directory / LOCK))
        except BlockingIOError as error:
            raise CampaignLocked(
                f"{directory} is in use by process {error.strerror}: wait for it, or end it"
            ) from error
        except OSError as error:
            raise CampaignError(
                f"{directory} cannot be locked: {reason_of(error)}. A coordinator needs write access to the directory"
            ) from error
        yield


# -- making ------------------------------------------------------------------------------------------------------------


@contextmanager
def _writable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CampaignError(
            f"no campaign can be made in {directory}: {reason_of(error)}. Choose another place otherwise"
        ) from error


def _refuse_foreign(directory: Path) -> None:
    """Refuse a directory with anything in it but what an interrupted `lay_out` may have left."""
    names = {entry.name for entry in directory.iterdir()}
    if DATABASE in names or _made_on_server(directory):
        raise CampaignError(f"{directory} holds a campaign already: open it, or choose another directory")
    own = {TOML, LEARNER, LOCK, *(PART + end for end in _BESIDE), *FOLDERS}
    filled = {name for name in names & set(FOLDERS) if any((directory / name).iterdir())}
    own |= set(filter(is_part, names))
    if foreign := sorted(names - own | filled):
        raise CampaignError(f"{directory} must be empty, got {', '.join(foreign[:5])} in it; choose another directory")


def _made_on_server(directory: Path) -> bool:
    """Return whether the database that a campaign.toml names was made, too: it is made last."""
    url = _url_in(directory / TOML)
    if not url:
        return False
    with open_server(url).reading() as connection:
        return _is_made(connection)


def _fill(directory: Path, settings: Settings, learner: bytes | None, made_for: dict[str, Any]) -> None:
    identity = secrets.token_hex(8)
    for folder in FOLDERS:
        (directory / folder).mkdir(exist_ok=True)
    objects = objects_of(directory, settings.storage.store, identity)
    objects.check()
    if learner is not None:
        objects.write(LEARNER, learner)
    row = {"schema_version": schema.VERSION, "id": identity, "classes": json.dumps(settings.classes), **made_for}
    toml = _toml(identity, settings).encode()
    if settings.storage.database:
        database = open_server(settings.storage.database)
        with database.writing() as connection:
            # Before campaign.toml is replaced: a second campaign must not take the first one's database.
            if _is_made(connection):
                raise CampaignError(f"{database.place} holds a campaign already: name another database, or schema")
            with replacing(directory / TOML) as file:
                file.write(toml)
            _make_tables(database, connection, row)
        return
    part = directory / PART
    database = open_file(part, mode="rwc")
    with replacing(directory / TOML) as file:
        file.write(toml)
    for end in _BESIDE:
        part.with_name(PART + end).unlink(missing_ok=True)
    with database.reading() as connection:
        _make_tables(database, connection, row)
    if part.with_name(f"{PART}-wal").exists():
        # Renamed without it, the database would lack what is in there.
        raise CampaignError(f"{part} cannot be finished, as on a full disk. Free space, then run again")
    part.replace(directory / DATABASE)
    sync_directory(directory)


def _make_tables(database: Database, connection: Connection, row: dict[str, Any]) -> None:
    schema.metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(schema.campaign).values(created_at=database.now(connection).isoformat(), **row))


def _toml(identity: str, settings: Settings) -> str:
    return (
        "# What was chosen for this campaign. Edit it between rounds; `id` and `classes` are fixed for ever.\n"
        f'id = "{identity}"\n\n{settings.to_toml()}'
    )


# -- opening -----------------------------------------------------------------------------------------------------------


def _database_of(directory: Path, busy_seconds: float) -> Database:
    if url := _url_in(directory / TOML):
        return open_server(url, busy_seconds=busy_seconds)
    path = directory / DATABASE
    if not path.is_file():
        if (directory / TOML).exists():  # where the database is may be what cannot be read
            _settings_from(_toml_in(directory / TOML)[1], directory / TOML)
        raise CampaignNotFound(
            f"{directory} holds no campaign: there is no {DATABASE}. Check the path, or make a campaign there first"
        )
    return open_file(path, busy_seconds=busy_seconds)


def _url_in(toml: Path) -> str:
    """Find the URL of the database; other faults of the settings are reported when those are read."""
    try:
        url = tables_of(_text_of(toml))["storage"].get("database")
    except (CampaignError, ValueError):
        return ""
    return url if isinstance(url, str) else ""


def _is_made(connection: Connection) -> bool:
    return inspect(connection).has_table(schema.campaign.name)


def _version(connection: Connection, place: str) -> int:
    version: int | None = None
    if _is_made(connection):
        version = connection.scalar(select(schema.campaign.c.schema_version))
    if version is None:
        raise CampaignError(f"{place} holds no campaign: restore it from a copy")
    if version > schema.VERSION:
        raise CampaignMismatch(
            f"{place} has schema version {version}, and this dal knows up to {schema.VERSION}: install a newer dal"
        )
    if version < schema.VERSION and version not in migrations.STEPS:
        raise CampaignMismatch(
            f"{place} has schema version {version}, and this dal reads {schema.VERSION}: finish it with an older dal"
        )
    return version


def _read_settings(path: Path, row: Row[Any]) -> Settings:
    identity, text = _toml_in(path)
    if identity != row.id:
        raise CampaignMismatch(
            f"{path} is of campaign {identity}, and its database of {row.id}: put back the right one"
        )
    settings = _settings_from(text, path)
    fixed = [composed(name) for name in json.loads(row.classes)]
    if list(settings.classes) != fixed:
        raise CampaignMismatch(
            f"{path} lists the classes {list(settings.classes)}, and the answers were given for {fixed}: put these back"
        )
    return settings


def _toml_in(path: Path) -> tuple[object, str]:
    """Read campaign.toml: the campaign's id, and the text."""
    text = _text_of(path)
    try:
        return tomllib.loads(text).get("id"), text
    except ValueError as error:
        quotes = sorted(set(text) & set("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"))
        hint = f'. It holds the quotes {" ".join(quotes)}: TOML takes " only' if quotes else ""
        raise SettingsError(f"{path} is no valid TOML: {error}{hint}") from error


def _text_of(path: Path) -> str:
    """Read a text file that people edit: a byte order mark, which some editors write, is none of the text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CampaignError(f"{path} cannot be read: {error.strerror}. Restore it from a copy") from error
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or data.count(0) > len(data) // 3:
        raise SettingsError(f"{path} must be a text in UTF-8, got UTF-16: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path} must be a text in UTF-8, got something else at byte {error.start}: save it as UTF-8"
        ) from error


def _settings_from(text: str, path: Path) -> Settings:
    try:
        return Settings.from_toml(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
