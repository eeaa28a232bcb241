"""The people who may answer, and those who may manage: tokens, of which only a hash is kept."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Row, delete, insert, select, update

from dal.campaign.people import enrolled, is_machine, spelling
from dal.campaign.schema import annotators, sessions
from dal.campaign.store import CampaignStore
from dal.errors import InputError
from dal.texts import name_flaw

Role = Literal["annotator", "manager"]

SESSION = timedelta(hours=12)
"""How long a browser that asks for nothing stays logged in."""

LONGEST_SESSION = timedelta(days=7)
"""After so long a browser forgets its session, however busy it was."""

_RENEWED = timedelta(minutes=30)
"""A session is written down again when so much of it has passed: not with every request."""


@dataclass(frozen=True)
class Account:
    """Somebody who has, or had, a token."""

    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None


class Annotators:
    """The people of a campaign who reach it over the network."""

    def __init__(self, campaign: CampaignStore) -> None:
        self._database = campaign.database

    def add(self, name: str, role: Role = "annotator", *, show: Callable[[str], None] = lambda _: None) -> str:
        """Let somebody in.

        Parameters
        ----------
        name : str
        role : {"annotator", "manager"}
        show : callable, optional
            Given the token before it is valid: a process that is killed leaves no valid token that nobody has seen.

        Returns
        -------
        str
            Their token. It is returned this once: the database holds its hash only.

        Raises
        ------
        InputError
            If the name has a token already, or cannot be one.
        """
        if wrong := name_flaw(name):
            raise InputError(f"`name` must be the name of a person, got one that {wrong}")
        if role not in get_args(Role):
            raise InputError(f"`role` must be annotator or manager, got {role!r}")
        token = secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            name = enrolled(connection, name)
            if is_machine(connection, name):
                raise InputError(f"`name` must be a person's, got {name!r}, which is a machine's; choose another name")
            active = select(annotators.c.name).where(annotators.c.name == name, annotators.c.revoked_at.is_(None))
            if connection.scalar(active) is not None:
                raise InputError(f"{name!r} has a token already: revoke it before giving another one")
            now = self._database.now(connection).isoformat()
            connection.execute(insert(annotators).values(token_hash=_hash(token), name=name, role=role, created_at=now))
            show(token)
        return token

    def revoke(self, name: str) -> None:
        """Make somebody's token worthless; their answers stay.

        Raises
        ------
        InputError
            If the name has no token.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection).isoformat()
            name = spelling(connection, name)
            active = update(annotators).where(annotators.c.name == name, annotators.c.revoked_at.is_(None))
            if connection.execute(active.values(revoked_at=now)).rowcount == 0:
                raise InputError(f"{name!r} has no token that could be revoked")

    def verify(self, token: str) -> Account | None:
        """Return the account that a token belongs to; None if it is nobody's, or was revoked."""
        with self._database.reading() as connection:
            found = connection.execute(
                select(annotators).where(annotators.c.token_hash == _hash(token), annotators.c.revoked_at.is_(None))
            ).one_or_none()
        return None if found is None else _account(found)

    def begin_session(self, token: str) -> tuple[Account, str] | None:
        """Log a browser in: whose token this is, and the secret of a session that lasts `SESSION` from its last use."""
        account = self.verify(token)
        if account is None:
            return None
        secret = secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            now = self._database.now(connection)
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now.timestamp()))
            until = (now + SESSION).timestamp()
            connection.execute(
                insert(sessions).values(session_hash=_hash(secret), token_hash=_hash(token), expires_at=until)
            )
        return account, secret

    def in_session(self, secret: str) -> Account | None:
        """Return the account of a session and renew it; None where the session or its token has ended."""
        own = sessions.c.session_hash == _hash(secret)
        query = select(annotators, sessions.c.expires_at).join(sessions).where(own, annotators.c.revoked_at.is_(None))
        with self._database.reading() as connection:
            now = self._database.now(connection)
            found = connection.execute(query).one_or_none()
        if found is None or found.expires_at <= now.timestamp():
            return None
        if found.expires_at < (now + SESSION - _RENEWED).timestamp():
            with self._database.writing() as connection:
                connection.execute(update(sessions).where(own).values(expires_at=(now + SESSION).timestamp()))
        return _account(found)

    def end_session(self, secret: str) -> None:
        """Log a browser out; the token goes on to let its owner in."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.session_hash == _hash(secret)))

    def all(self) -> list[Account]:
        """List everybody who has or had a token, by name, then by time."""
        with self._database.reading() as connection:
            query = select(annotators).order_by(annotators.c.name, annotators.c.created_at)
            return [_account(row) for row in connection.execute(query)]


def _hash(token: str) -> str:
    # Tokens are 256 random bits: there is nothing to guess, so a plain hash does.
    return hashlib.sha256(token.encode()).hexdigest()


def _account(row: Row[Any]) -> Account:
    revoked = None if row.revoked_at is None else datetime.fromisoformat(row.revoked_at)
    return Account(row.name, row.role, datetime.fromisoformat(row.created_at), revoked)
