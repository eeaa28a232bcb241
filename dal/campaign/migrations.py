"""The steps that turn the database of an older version into one of this version.

A step is written in SQL as it was when its version was new, and never in terms of `dal.campaign.schema`, which moves
on. Version 1 knew SQLite only, so its step is in SQLite's words. What SQL cannot say is a function.
"""

from collections.abc import Callable

from sqlalchemy import Connection, text

from dal.texts import folded, shown_name

_TO_2 = (
    "ALTER TABLE rounds ADD COLUMN stop_set INTEGER DEFAULT 0 NOT NULL",
    "ALTER TABLE rounds ADD COLUMN fitted_at TEXT",
    "ALTER TABLE rounds ADD COLUMN scanned_at TEXT",
    "ALTER TABLE asked ADD COLUMN confidence FLOAT",
    "ALTER TABLE asked ADD COLUMN reserve BOOLEAN DEFAULT 0 NOT NULL",
    # SQLite cannot change a CHECK, so the table of answers is made anew.
    "DROP INDEX answers_by_annotator",
    "ALTER TABLE answers RENAME TO answers_of_version_1",
    """
    CREATE TABLE answers (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        "row" BIGINT NOT NULL,
        record_id TEXT NOT NULL,
        annotator TEXT NOT NULL,
        status TEXT NOT NULL,
        label INTEGER,
        round INTEGER,
        source TEXT NOT NULL,
        answered_at TEXT NOT NULL,
        received_at TEXT NOT NULL,
        shown_at TEXT,
        lead_time FLOAT,
        skip_reason TEXT,
        suggestion_shown BOOLEAN,
        late BOOLEAN DEFAULT 0 NOT NULL,
        event_id TEXT,
        CHECK ((status = 'submitted' and label is not null)
            or (status in ('skipped', 'retracted') and label is null)),
        FOREIGN KEY(round) REFERENCES rounds (number),
        UNIQUE (event_id)
    )
    """,
    """
    INSERT INTO answers
        (id, "row", record_id, annotator, status, label, round, source, answered_at, received_at)
    SELECT id, "row", record_id, annotator, status, label, round, source, answered_at, answered_at
    FROM answers_of_version_1 ORDER BY id
    """,
    "DROP TABLE answers_of_version_1",
    'CREATE INDEX answers_by_annotator ON answers ("row", annotator, id)',
    """
    CREATE TABLE leases (
        "row" BIGINT NOT NULL,
        annotator TEXT NOT NULL,
        expires_at DOUBLE NOT NULL,
        PRIMARY KEY ("row", annotator)
    )
    """,
    "CREATE INDEX leases_by_annotator ON leases (annotator)",
    """
    CREATE TABLE gold (
        "row" BIGINT NOT NULL,
        record_id TEXT NOT NULL,
        label INTEGER NOT NULL,
        since INTEGER NOT NULL,
        added_at TEXT NOT NULL,
        PRIMARY KEY ("row")
    )
    """,
    """
    CREATE TABLE annotators (
        token_hash TEXT NOT NULL,
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        created_at TEXT NOT NULL,
        revoked_at TEXT,
        PRIMARY KEY (token_hash),
        CHECK (role in ('annotator', 'manager'))
    )
    """,
    "UPDATE campaign SET schema_version = 2",
)

_TO_3 = (
    """
    CREATE TABLE actions (
        number INTEGER NOT NULL PRIMARY KEY,
        act TEXT NOT NULL,
        person TEXT NOT NULL,
        at TEXT NOT NULL,
        CHECK (act in ('pause', 'resume', 'close', 'stop'))
    )
    """,
    "UPDATE campaign SET schema_version = 3",
)


def _one_name_a_person(connection: Connection) -> None:
    """Replace all spellings of a person's name by the first one: that of its first answer, else of its first token.

    Leases go: two spellings may hold the same record, and losing a lease costs nobody an answer.
    """
    names = connection.scalars(text("SELECT annotator FROM answers GROUP BY annotator ORDER BY MIN(id)")).all()
    tokens = connection.scalars(text("SELECT name FROM annotators ORDER BY created_at, name")).all()
    first: dict[str, str] = {}
    for name in (*names, *tokens):
        # A name of which nothing is left, all invisible, stays as it is.
        first.setdefault(folded(name) or name, shown_name(name) or name)
    for key, name in first.items():
        connection.execute(text("INSERT INTO people (key, name) VALUES (:key, :name)"), {"key": key, "name": name})
    for table, column, spelt in (("answers", "annotator", set(names)), ("annotators", "name", set(tokens))):
        for name in sorted(spelt):
            known = first[folded(name) or name]
            if known != name:
                change = text(f"UPDATE {table} SET {column} = :known WHERE {column} = :name")
                connection.execute(change, {"known": known, "name": name})
    for name in connection.scalars(text("SELECT DISTINCT annotator FROM imports")).all():
        change = text("UPDATE imports SET annotator = :key WHERE annotator = :name")
        connection.execute(change, {"key": folded(name) or name, "name": name})


_TO_4: tuple[str | Callable[[Connection], None], ...] = (
    "ALTER TABLE imports ADD COLUMN rejected BIGINT DEFAULT 0 NOT NULL",
    "CREATE TABLE people (key TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (key))",
    "DELETE FROM leases",
    _one_name_a_person,
    "UPDATE campaign SET schema_version = 4",
)

_TO_5 = (
    """
    CREATE TABLE sessions (
        session_hash TEXT NOT NULL,
        token_hash TEXT NOT NULL,
        expires_at FLOAT NOT NULL,
        PRIMARY KEY (session_hash),
        FOREIGN KEY(token_hash) REFERENCES annotators (token_hash)
    )
    """,
    "UPDATE campaign SET schema_version = 5",
)

_TO_6 = (
    "ALTER TABLE rounds ADD COLUMN search TEXT",
    "ALTER TABLE asked ADD COLUMN found_by TEXT",
    """
    CREATE TABLE examples (
        "row" BIGINT NOT NULL,
        record_id TEXT NOT NULL,
        person TEXT NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY ("row")
    )
    """,
    "UPDATE campaign SET schema_version = 6",
)

_TO_7 = (
    "ALTER TABLE rounds ADD COLUMN waves TEXT",
    "UPDATE campaign SET schema_version = 7",
)
_TO_8 = (
    "ALTER TABLE rounds ADD COLUMN balance TEXT",
    "UPDATE campaign SET schema_version = 8",
)


def _machines(connection: Connection) -> None:
    """Let programs be annotators; PostgreSQL compares their names to those of answers only in the same order."""
    server = connection.dialect.name == "postgresql"
    name, price, no = ('TEXT COLLATE "C"', "DOUBLE PRECISION", "false") if server else ("TEXT", "DOUBLE", "0")
    connection.exec_driver_sql(f"ALTER TABLE answers ADD COLUMN alone BOOLEAN DEFAULT {no} NOT NULL")
    connection.exec_driver_sql(
        f"CREATE TABLE machines (name {name} NOT NULL, cost {price}, cap BIGINT, PRIMARY KEY (name))"
    )


_TO_9: tuple[str | Callable[[Connection], None], ...] = (
    _machines,
    "UPDATE campaign SET schema_version = 9",
)

_TO_10 = (
    "ALTER TABLE rounds ADD COLUMN learner TEXT",
    """
    CREATE TABLE switches (
        number INTEGER NOT NULL PRIMARY KEY,
        learner TEXT NOT NULL,
        before TEXT NOT NULL,
        since INTEGER NOT NULL,
        labels BIGINT NOT NULL,
        person TEXT NOT NULL,
        reason TEXT NOT NULL,
        at TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE comparisons (
        number INTEGER NOT NULL PRIMARY KEY,
        last_answer BIGINT NOT NULL,
        result TEXT NOT NULL,
        at TEXT NOT NULL
    )
    """,
    "UPDATE campaign SET schema_version = 10",
)

_TO_11 = (
    """
    CREATE TABLE again (
        row BIGINT NOT NULL REFERENCES asked (row),
        round INTEGER NOT NULL REFERENCES rounds (number),
        places INTEGER NOT NULL,
        PRIMARY KEY (row, round)
    )
    """,
    "UPDATE campaign SET schema_version = 11",
)

STEPS: dict[int, tuple[str | Callable[[Connection], None], ...]] = {
    1: _TO_2,
    2: _TO_3,
    3: _TO_4,
    4: _TO_5,
    5: _TO_6,
    6: _TO_7,
    7: _TO_8,
    8: _TO_9,
    9: _TO_10,
    10: _TO_11,
}
"""For each older version that is still read, what leads to the next one: statements, and functions between them."""


def migrate(connection: Connection, version: int) -> None:
    """Migrate the database from `version` to the newest one, inside the caller's transaction."""
    while version in STEPS:
        for statement in STEPS[version]:
            if isinstance(statement, str):
                connection.exec_driver_sql(statement)
            else:
                statement(connection)
        version += 1
