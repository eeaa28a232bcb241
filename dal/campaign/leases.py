"""Leases: the time for which somebody who looks at a record keeps their place, and the test that they still have it."""

from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, and_, exists

from dal.campaign.schema import leases

LEASE = timedelta(minutes=10)

_SLACK = timedelta(minutes=1)
"""Clocks are set back by less than this every day; a lease that ends later than it could was given by a wrong clock."""


def holds(now: datetime) -> ColumnElement[bool]:
    """Return the condition that a lease holds.

    A lease that ends too late was given before the clock was set back; it would hold its record for hours.
    """
    return and_(leases.c.expires_at > now.timestamp(), leases.c.expires_at <= (now + LEASE + _SLACK).timestamp())


def held(row: Column[int], now: datetime) -> ColumnElement[bool]:
    """Return the condition that somebody holds the record of a row: every question of this kind is asked here."""
    return exists().where(leases.c.row == row, holds(now))
