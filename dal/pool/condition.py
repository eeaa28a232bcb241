"""Conditions on the columns of a pool, in the words of SQL: ``lang = 'de' AND length > 100``.

They are evaluated by SQLite, which Python brings along: its grammar is known, and gaps are NULL. An expression may read
the columns and call functions of their values alone. So the time, the process and the records beside a record have no
say in whether it meets the condition.
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import InputError
from dal.pool.store import Pool, listed

FUNCTIONS = frozenset(
    (
        *("abs", "coalesce", "glob", "ifnull", "instr", "length", "like", "lower", "ltrim", "max", "min", "nullif"),
        *("replace", "round", "rtrim", "substr", "trim", "typeof", "upper"),
    )
)
"""Functions that a condition may call."""
RECORD_ID = "record_id"
_TYPES: Mapping[str | None, str] = {"text": "TEXT", "integer": "INTEGER", "number": "REAL", "boolean": "INTEGER"}
_BLOCK_ROWS = 4096
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--|/\*|;|.""", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A condition on the columns of a pool: its display fields, record ids, and named features.

    Made by `on`.

    Attributes
    ----------
    text : str
        An expression of SQL.
    columns : tuple of str
        The columns that it reads.
    """

    text: str
    columns: tuple[str, ...]

    @classmethod
    def on(cls, text: str, pool: Pool) -> "Condition":
        """Return a condition on a pool.

        Parameters
        ----------
        text : str
            An expression of SQLite. Names with blanks are written in double quotes, texts in single ones.
        pool : Pool

        Raises
        ------
        InputError
            If it is no expression, names no column or one that is not there, or asks for more than values of columns.
        """
        names = _columns(pool)
        same = [name for name, times in Counter(name.casefold() for name in names).items() if times > 1]
        there = f"; the columns are {listed(names)}" if names else "; the pool has no columns"
        for token in _TOKEN.findall(text):
            if token in ("--", "/*", ";"):
                raise InputError(f"`where` must be one expression without comments, got {text!r}; leave them out")
            if token.startswith('"') and token[1:-1].replace('""', '"').casefold() not in {n.casefold() for n in names}:
                raise InputError(
                    f"`where` must name columns in double quotes and texts in single ones, got {token}{there}"
                )
        # SQLite takes names that differ by case for one.
        if twice := [name for name in names if name.casefold() in same and name.casefold() in text.casefold()]:
            raise InputError(
                f"`where` must name columns that differ by more than case, got {', '.join(twice)}; rename one in the"
                " pool"
            )
        # No other column can be read, and a table of thousands could not be made.
        possible = tuple(name for name in names if name.casefold() in text.casefold())
        read: dict[str, None] = {}
        selects = 0

        def allow(action: int, first: str | None, second: str | None, *_: object) -> int:
            nonlocal selects
            if action == sqlite3.SQLITE_SELECT:
                selects += 1
                return sqlite3.SQLITE_OK if selects == 1 else sqlite3.SQLITE_DENY
            if action == sqlite3.SQLITE_READ and first == _TABLE and second in ("", *possible):
                read[second or ""] = None
                return sqlite3.SQLITE_OK
            if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            return sqlite3.SQLITE_DENY

        with closing(sqlite3.connect(":memory:")) as connection:
            try:
                _create(connection, possible, pool)
                connection.set_authorizer(allow)
                # As a value, it cannot be followed by a clause; as a condition, it cannot be an aggregate.
                for statement in (
                    f"SELECT ({text}\n) IS TRUE FROM {_TABLE}",
                    f"SELECT 1 FROM {_TABLE} WHERE ({text}\n)",
                ):
                    selects = 0
                    connection.execute(statement)
            except (sqlite3.Error, ValueError) as error:
                raise InputError(
                    f"`where` must be an expression of SQL on columns, got {text!r}: {error}{there}"
                ) from error
        columns = tuple(name for name in possible if name in read)
        if not columns:
            raise InputError(f"`where` must be an expression that reads a column, got {text!r}{there}")
        return cls(text, columns)

    def met_by(self, pool: Pool, rows: npt.NDArray[np.int64], X: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Mark the records that meet the condition; those of which it is not known, for a gap, do not.

        Parameters
        ----------
        pool : Pool
        rows : ndarray of int64, shape (n,)
            Ascending.
        X : ndarray of float32, shape (n, d)
            Their features.

        Raises
        ------
        InputError
            If a value cannot be computed, such as the sum of two texts that are too large.
        ChunkError
            If a chunk of a column is missing or damaged.
        """
        met = np.zeros(len(rows), dtype=np.bool_)
        # The chunks of columns are of so many rows; one of each is in memory at a time.
        stops = np.flatnonzero(np.diff(rows // _BLOCK_ROWS)) + 1
        for positions in np.split(np.arange(len(rows)), stops):
            if len(positions):
                met[positions] = self._met(pool, rows[positions], X[positions])
        return met

    def _met(self, pool: Pool, rows: npt.NDArray[np.int64], X: npt.NDArray[np.float32]) -> list[bool]:
        values = [_values(pool, name, rows, X) for name in self.columns]
        marks = ", ".join("?" * (len(values) + 1))
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            try:
                _create(connection, self.columns, pool)
                connection.execute("BEGIN")
                connection.executemany(
                    f"INSERT INTO {_TABLE} VALUES ({marks})", zip(range(len(rows)), *values, strict=True)
                )
                found = connection.execute(f"SELECT ({self.text}\n) IS TRUE FROM {_TABLE} ORDER BY {_POSITION}")
                return [bool(met) for (met,) in found]
            except (sqlite3.Error, OverflowError, ValueError) as error:
                raise InputError(
                    f"`where` must have a value for each record, got {self.text!r} for rows {rows[0]:,} to"
                    f" {rows[-1]:,}: {error}; guard it, such as by CASE or coalesce"
                ) from error


_TABLE, _POSITION = "records", '"~position"'


def _columns(pool: Pool) -> tuple[str, ...]:
    """Return the names of the columns of a pool that a condition may read."""
    features = pool.feature_names if len(pool.feature_names) == pool.n_features else ()
    return tuple(dict.fromkeys((*pool.fields, RECORD_ID, *features)))


def _create(connection: sqlite3.Connection, columns: tuple[str, ...], pool: Pool) -> None:
    """Create a table of columns, behind one that numbers the records."""
    quoted = ['"{}" {}'.format(name.replace('"', '""'), _type(name, pool)) for name in columns]
    connection.execute(f"CREATE TABLE {_TABLE} ({', '.join([f'{_POSITION} INTEGER PRIMARY KEY', *quoted])})")


def _type(name: str, pool: Pool) -> str:
    if name in pool.fields:
        return _TYPES.get(pool.kinds.get(name), "")
    return "TEXT" if name == RECORD_ID else "REAL"


def _values(pool: Pool, name: str, rows: npt.NDArray[np.int64], X: npt.NDArray[np.float32]) -> list[Any]:
    """Read a column; SQLite takes NaN for NULL."""
    if name in pool.fields:
        return pool.display(rows, [name])[name]
    if name == RECORD_ID:
        return pool.record_ids(rows)
    found: list[Any] = X[:, pool.feature_names.index(name)].tolist()
    return found
