"""The place of a round's work: this process, the cluster that was chosen, or workers where they pay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dal._threads import cores
from dal.compute.client import connect

if TYPE_CHECKING:
    from distributed import Client

    from dal.compute.client import Connectable

START_SECONDS = 2.0
"""What a local cluster takes to start and to end: workers that save less are not worth it."""


class Choice(NamedTuple):
    """The place of work, and the reason for it.

    Attributes
    ----------
    workers : int
        Processes; 0 is this process.
    reason : str
    """

    workers: int
    reason: str


def chosen_workers(records: int, seconds: float, n_cores: int, start_seconds: float = START_SECONDS) -> Choice:
    """Choose how many worker processes score a pool, where the user chose nothing.

    Workers pay when they save more than their start takes.

    Parameters
    ----------
    records : int
    seconds : float
        The estimate for one process, see :func:`dal.scan.plan.seconds_alone`.
    n_cores : int
        Cores that this process may use.
    start_seconds : float
        What it takes to start that many workers.

    Examples
    --------
    >>> chosen_workers(5_574, seconds=0.02, n_cores=8)
    Choice(workers=0, reason='5,574 records take about 0.1 s: scored in this process')
    >>> chosen_workers(50_000, seconds=20.0, n_cores=8)
    Choice(workers=8, reason='50,000 records take about 20.0 s in one process: scored by 8 worker processes')
    >>> chosen_workers(50_000, seconds=3.0, n_cores=2).workers, chosen_workers(50_000, seconds=5.0, n_cores=2).workers
    (0, 2)
    >>> chosen_workers(10**9, seconds=900.0, n_cores=1).workers
    0
    """
    took = f"{records:,} records take about {max(seconds, 0.1):,.1f} s"
    if seconds <= start_seconds:
        return Choice(0, f"{took}: scored in this process")
    if seconds * (1 - 1 / n_cores) <= start_seconds:
        return Choice(0, f"{took}, and there are {n_cores} cores: scored in this process")
    return Choice(n_cores, f"{took} in one process: scored by {n_cores} worker processes")


class Workers:
    """The place of work: a client, or this process.

    Attributes
    ----------
    client : Client or None
        What is there now.
    """

    def __init__(self, client: Client | None = None) -> None:
        self.client = client

    def client_for(self, records: int, seconds: float) -> Client | None:  # noqa: ARG002 - what decides where there is a choice
        """Return the client for a scan of `records` that takes one process `seconds`; None for this process."""
        return self.client


class OnDemand(Workers):
    """Workers of this machine that start with the first scan that they pay for, and stay.

    Used as a context. A pool that grows may get workers in a later round.

    Parameters
    ----------
    report : callable
        Called with the reason of each choice.
    n_cores : int, optional
        By default those that this process may use.
    """

    def __init__(self, report: Callable[[str], None], n_cores: int | None = None) -> None:
        super().__init__()
        self._report = report
        self._n_cores = n_cores
        self._open = ExitStack()

    def __enter__(self) -> OnDemand:
        return self

    def __exit__(self, *exception: object) -> None:
        self.client = None
        self._open.close()

    def client_for(self, records: int, seconds: float) -> Client | None:
        """Return the local cluster's client where workers pay, and start it first; None for this process."""
        if self.client is None:
            n_cores = self._n_cores or (cores() if seconds > START_SECONDS else 1)
            choice = chosen_workers(records, seconds, n_cores)
            self._report(f"{choice.reason}.")
            if choice.workers:
                self.client = self._open.enter_context(connect(None, workers=choice.workers))
        return self.client


@contextmanager
def workers_of(client: Connectable | Workers) -> Iterator[Workers]:
    """Return where to work as a context: what `client=` of a function says, resolved by :func:`connect`."""
    if isinstance(client, Workers):
        yield client
        return
    with connect(client) as opened:
        yield Workers(opened)
