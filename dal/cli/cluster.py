"""The workers of a command: a cluster that is there, one of this machine's cores, or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

    from dal.progress import Show
    from dal.scan import Progress


@contextmanager
def cluster(scheduler: str | None, *, start: bool) -> Iterator[Client | None]:
    """Connect to the cluster at an address, or start one of this machine's cores, or do without."""
    if scheduler is not None:
        from dal.compute.client import connect

        with _quiet(), connect(scheduler) as client:
            yield client
    elif start:
        from dal.compute.local import local_cluster

        with _quiet(), local_cluster() as client:
            yield client
    else:
        yield None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from printing a traceback for every lost connection: the errors of dal tell of the cluster.

    Importing Dask sets its level, so this is done after the import.
    """
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def rows_shown(show: Show) -> Callable[[Progress], None]:
    """Return a function that shows the progress of a scan."""
    return lambda progress: show(progress.rows_done, progress.rows_total, str(progress))
