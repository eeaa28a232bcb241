"""How long somebody who looks at a record keeps their place, and whether they still have it."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_

from dal.campaign.schema import leases

LEASE = timedelta(minutes=10)

_SLACK = timedelta(minutes=1)
"""Clocks are set back by less than this every day; a lease that ends later than it could was given by a wrong clock."""


def holds(now: datetime) -> ColumnElement[bool]:
    """Say whether a lease holds; one that ends too late was given before the clock was set back, and never would."""
    return and_(leases.c.expires_at > now.timestamp(), leases.c.expires_at <= (now + LEASE + _SLACK).timestamp())
