"""Make a cluster ready before anything is sent to it: workers of the versions of this process, with imports done."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

from distributed import Client, Future

from dal.compute import insides, preload, versions
from dal.compute.asking import answers_of, ask, ask_scheduler, told_of_losses, workers_of
from dal.compute.versions import OF_SCHEDULER, Difference, Versions
from dal.compute.waits import PRIORITY, Patience
from dal.errors import ClusterError, ClusterLost

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Called with the reason of a wait, about once a second while it lasts."""

ANSWER_SECONDS = 60.0
_SCHEDULER = "scheduler"
_TICK_SECONDS = 0.5
_IMPORT_SECONDS = 10.0
"""Of each call that waits for the imports of a worker."""

AWAKE_SECONDS = 0.5
_AWAKE_WORKERS = 50
"""More would burden the scheduler of a large cluster. One that adapts from no worker begins with a few."""

_COMPARED: "WeakKeyDictionary[Client, dict[str, tuple[str, ...]]]" = WeakKeyDictionary()
"""What was noted of each process that was compared, by address."""
_IMPORTED: "WeakKeyDictionary[Client, set[str]]" = WeakKeyDictionary()
"""Addresses of workers that have imported what a scan needs."""


def ready(
    client: Client,
    seconds: float = ANSWER_SECONDS,
    say: Say = lambda _: None,
    *,
    awake_seconds: float = AWAKE_SECONDS,
) -> tuple[str, ...]:
    """Wait for a worker that can work for this process.

    The versions are compared before anything else travels, by built-in types: the workers may have no `dal`. Then each
    worker imports what a scan needs, in a thread. Each process is asked once.

    Parameters
    ----------
    client
    seconds
        In which a worker must answer; imports may take longer.
    say
        Called with the reason of the wait.
    awake_seconds
        See `awake`.

    Returns
    -------
    tuple of str
        Differences of versions that may change last bits; they are logged as well.

    Raises
    ------
    ClusterError
        If no worker comes or answers, a version differs that decides, or a worker cannot import what it needs. The
        message names what to install where.
    """
    with awake(client, awake_seconds):
        while True:
            wait_for_worker(client, say)
            notes = _compare(client, seconds)
            if _import(client, seconds, say):
                return notes


@contextmanager
def awake(client: Client, seconds: float = AWAKE_SECONDS) -> Iterator[None]:
    """Keep workers at tasks of no work, as a context, while they are asked beside their tasks.

    A cluster that adapts to its load ends a worker that has no task, after three seconds by default. Workers that take
    longer to import would be ended and started again without end. The first begin after `seconds`; each takes as long.
    """
    held: list[Future[None]] = []

    async def hold() -> None:
        while True:
            await asyncio.sleep(seconds)  # most clusters are ready before
            workers = list(await client.nthreads())[:_AWAKE_WORKERS]
            # What did not get a thread is forgotten here.
            held[:] = [
                client.submit(time.sleep, seconds, workers=[each], pure=False, priority=PRIORITY) for each in workers
            ]

    if client.status != "running":
        yield
        return
    holding = insides.begun(client, hold())  # it ends with an error where the cluster is lost, which others tell
    try:
        yield
    finally:
        holding.cancel()
        held.clear()


def wait_for_worker(client: Client, say: Say = lambda _: None) -> None:
    """Wait until a cluster has a worker, and ask for one where it has none.

    A cluster that adapts to its load starts nothing for a client that only waits: a task has to wait with it.

    Raises
    ------
    ClusterError
        If none comes within a minute, or the cluster is gone.
    """
    patience = Patience.configured()
    asking = None
    began = time.monotonic()
    try:
        with told_of_losses():
            while not client.nthreads():
                left = patience.no_workers + began - time.monotonic()
                if left <= 0:
                    raise ClusterLost(_without_workers(patience))
                asking = asking or client.submit(_nothing, pure=False)
                say("waiting for a worker: the cluster has none")
                with suppress(TimeoutError):
                    client.wait_for_workers(1, timeout=min(left, _TICK_SECONDS))
    finally:
        if asking is not None and client.status == "running":
            asking.release()


def _nothing() -> None:
    pass


def _without_workers(patience: Patience) -> str:
    return (
        f"The cluster has had no worker for {patience.no_workers:.0f} s: start workers, and run again. Where a queue or"
        " an autoscaler takes longer to start them, keep one, as with cluster.adapt(minimum=1), or set"
        " dal.no-workers-timeout in Dask's configuration. Workers that end as they come say why in their logs."
    )


def _compare(client: Client, seconds: float) -> tuple[str, ...]:
    compared = _COMPARED.setdefault(client, {})
    hosts = {address: worker.host for address, worker in workers_of(client).items()}
    unknown = [address for address in hosts if address not in compared]
    if unknown or _SCHEDULER not in compared:
        here = versions.found()
        refused = []
        if _SCHEDULER not in compared:
            found = versions.differences(here, found_on_scheduler(client, seconds), OF_SCHEDULER)
            where = client.scheduler_info(n_workers=0)["address"]
            refused = [f"The scheduler at {where} has {e}: {e.remedy}" for e in found if e.refused]
        of_workers = found_on_workers(client, unknown, seconds)
        unlike = {address: versions.differences(here, found) for address, found in of_workers.items()}
        refused += _said({address: [e for e in found if e.refused] for address, found in unlike.items()}, hosts)
        if refused:
            raise ClusterError(f"{'. '.join(refused)}.")
        for note in _said(unlike, hosts):
            _log.warning("%s, or last bits of scores may depend on the worker that computes them.", note)
        compared[_SCHEDULER] = ()
        compared.update({each: tuple(_said({each: unlike[each]}, hosts)) for each in unlike})
    return tuple(dict.fromkeys(note for address in hosts for note in compared.get(address, ())))


def found_on_workers(client: Client, addresses: Sequence[str], seconds: float = ANSWER_SECONDS) -> dict[str, Versions]:
    """Ask workers for their versions. A worker that does not answer in time has no entry.

    Raises
    ------
    ClusterError
        If the scheduler does not answer.
    """
    answers = ask(client, *versions.elsewhere("found"), workers=addresses, seconds=seconds)
    return {address: answer for address, answer in answers.items() if isinstance(answer, dict)}


def found_on_scheduler(client: Client, seconds: float = ANSWER_SECONDS) -> Versions:
    """Ask the scheduler for its versions.

    Raises
    ------
    ClusterError
        If it does not answer in time.
    """
    return ask_scheduler(client, *versions.elsewhere("found"), seconds=seconds)


def _said(unlike: dict[str, list[Difference]], hosts: dict[str, str]) -> list[str]:
    """Return a sentence for each difference, with the hosts on which workers have it."""
    where: dict[Difference, list[str]] = {}
    for address, found in unlike.items():
        for each in found:
            where.setdefault(each, []).append(hosts[address])
    return [
        f"{_counted(len(found))} on {_few(sorted(set(found)))} {'has' if len(found) == 1 else 'have'} {each}:"
        f" {each.remedy}"
        for each, found in where.items()
    ]


def _counted(workers: int) -> str:
    return "A worker" if workers == 1 else f"{workers:,} workers"


def _few(hosts: Sequence[str], most: int = 5) -> str:
    return ", ".join(hosts[:most]) + (f" and {len(hosts) - most:,} other hosts" if len(hosts) > most else "")


def _import(client: Client, seconds: float, say: Say) -> bool:
    """Let each worker import what a scan needs; return False where all workers left meanwhile."""
    imported = _IMPORTED.setdefault(client, set())
    stall = Patience.configured().stall
    # A worker logs each call: one that is asked says only after a while that it is still at it.
    patience = min(seconds / 2, _IMPORT_SECONDS)
    began = heard = time.monotonic()
    while True:
        workers = workers_of(client)
        at_it = workers.keys() - imported
        if not at_it or not workers:
            return bool(workers)
        for answers in answers_of(client, preload.imported, patience, workers=list(at_it), seconds=2 * patience):
            for address, answer in answers.items():
                heard = time.monotonic()
                if answer is True:
                    imported.add(address)
                    at_it.remove(address)
                elif answer is not False:
                    raise ClusterError(
                        f"The worker at {address} cannot run dal ({answer}): it needs the same dependencies of dal as"
                        " this process."
                    )
            if not at_it:
                break
            say(f"waiting for {len(at_it):,} of {len(workers):,} workers: still importing")
        now = time.monotonic()
        if not at_it or (now - began > seconds and len(at_it) < len(workers)):
            return True  # a worker that hangs, or takes long, joins when it is ready
        if now - heard > seconds or now - began > stall:
            raise ClusterLost(
                f"No worker of {client} answered within {seconds:.0f} s: look at their logs, and run again."
            )
        time.sleep(_TICK_SECONDS)  # the scheduler may not know yet that a worker has left
