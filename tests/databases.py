"""Where the campaigns of a test keep their databases: in files, or on a real PostgreSQL server of the tests' own."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

USER = "dal"

fresh: Callable[[], str] = str
"""Gives the setting `database` of a new campaign. The fixture `backend` sets it; without it, SQLite."""

sqlite_only = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
"""For the tests of a file with the fixture `backend` that are about files."""


def programs() -> Path | None:
    """The newest server that the system has; Debian keeps them out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).resolve().parent


@contextmanager
def running() -> Iterator[str]:
    """Start a server without TCP and give the directory of its socket; it ends with the context."""
    # Not pytest's own folder: its parents let nobody else through, and the server does not run as root. Nor a TMPDIR:
    # the path of a socket is short, and has no blank or comma.
    home = Path(tempfile.mkdtemp(prefix="dal-postgres-", dir="/tmp"))
    data = home / "data"
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(home, owner.pw_uid, owner.pw_gid)
    try:
        control("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        start(home)
        yield str(home)
    finally:
        stop(home)
        shutil.rmtree(home)


def start(home: str | Path, addresses: str = "", within: Sequence[str] = ()) -> None:
    """Start the server in a directory, without TCP unless it is given addresses, by a command that takes another."""
    # Safe from a kill, not from a power cut: what is not synced is what takes the time.
    settings = f"-c listen_addresses={addresses} -c unix_socket_directories={home} -c fsync=off -c max_connections=200"
    control("pg_ctl", "-D", f"{home}/data", "-w", "-o", settings, "-l", f"{home}/log", "start", within=within)


def stop(home: str | Path) -> None:
    """End the server in a directory, as a crash does; what was committed is there when it starts again."""
    control("pg_ctl", "-D", f"{home}/data", "-w", "-m", "immediate", "stop")


def control(program: str, *arguments: object, within: Sequence[str] = ()) -> None:
    folder = programs()
    assert folder is not None
    as_owner: Sequence[str] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    command = [*within, *(as_owner if os.geteuid() == 0 else ()), str(folder / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/tmp")
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def fresh_schema(home: str) -> str:
    """Make a place for one campaign, and give its URL."""
    name = f"campaign_{secrets.token_hex(6)}"
    run_sql(home, f"CREATE SCHEMA {name}")
    options = quote(f"-c search_path={name}")
    return f"postgresql://{USER}@/postgres?host={quote(home, safe='')}&options={options}"


def run_sql(home: str, statement: str) -> None:
    with psycopg.connect(host=home, user=USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(statement)
