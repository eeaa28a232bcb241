"""The workers of a command: a cluster that is there, processes of this machine, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dal.cli.terminal import say
from dal.errors import SettingsError

if TYPE_CHECKING:
    from dal.compute.workers import Workers
    from dal.progress import Show
    from dal.scan import Progress


@contextmanager
def workers_chosen(scheduler: str | None, workers: int | None) -> Iterator[Workers]:
    """Return where a command works, as a context: what its options say, else workers where they pay.

    Parameters
    ----------
    scheduler
        Address of a Dask scheduler.
    workers
        Processes of this machine; 0 is this process.
    """
    from dal.compute.client import connect
    from dal.compute.workers import OnDemand, Workers

    if scheduler is not None and workers is not None:
        raise SettingsError("`--workers` counts processes of this machine, and `--scheduler` names others: give one")
    if scheduler is None and workers is None:
        with OnDemand(say) as on_demand:
            yield on_demand
        return
    if scheduler is None and not workers:
        yield Workers()
        return
    from dal.compute.local import silent

    with silent(), connect(scheduler, workers=workers) as client:
        yield Workers(client)


def rows_shown(show: Show) -> Callable[[Progress], None]:
    """Return a function that shows the progress of a scan."""
    return lambda progress: show(progress.rows_done, progress.rows_total, str(progress))
