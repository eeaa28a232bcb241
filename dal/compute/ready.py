"""Make a cluster ready before anything is sent to it: it has a worker, and its versions are those of this process."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client

from dal.compute import versions
from dal.compute.versions import OF_SCHEDULER, Difference, Versions
from dal.compute.waits import wait_for_worker
from dal.errors import ClusterError, ClusterLost

_log = logging.getLogger(__name__)

_GROUPS = 32
_ANSWER_SECONDS = 30.0
"""An event loop that is blocked for longer than this, by an import for example, is asked again by the next call."""

_COMPARED: "WeakKeyDictionary[Client, dict[str, tuple[str, ...]]]" = WeakKeyDictionary()
"""What was noted of each process that was compared, by address."""


def ready(client: Client, seconds: float = _ANSWER_SECONDS) -> tuple[str, ...]:
    """Wait for a worker, and refuse a cluster of versions that cannot work for this process.

    The versions are compared before anything else travels, by built-in types: the workers may have no `dal`. Each
    process is asked once.

    Returns
    -------
    tuple of str
        Differences that may change last bits; they are logged as well.

    Raises
    ------
    ClusterError
        If no worker comes, or a version differs that decides; the message names what to install where.
    """
    wait_for_worker(client)
    compared = _COMPARED.setdefault(client, {})
    workers = {address: str(worker["host"]) for address, worker in _workers(client).items()}
    unknown = [address for address in workers if address not in compared]
    scheduler = "" if client.scheduler is None else str(client.scheduler.address)
    if unknown or scheduler not in compared:
        here = versions.found()
        of_scheduler, of_workers = found_on(client, unknown, scheduler=scheduler not in compared, seconds=seconds)
        unlike = {address: versions.differences(here, found) for address, found in of_workers.items()}
        refused = _said({a: [each for each in found if each.refused] for a, found in unlike.items()}, workers)
        if of_scheduler is not None:
            found = versions.differences(here, of_scheduler, OF_SCHEDULER)
            refused = [f"The scheduler at {scheduler} has {e}: {e.remedy}" for e in found if e.refused] + refused
            compared[scheduler] = ()
        if refused:
            compared.pop(scheduler, None)
            raise ClusterError(f"{'. '.join(refused)}.")
        for note in _said(unlike, workers):
            _log.warning("%s, or last bits of scores may depend on the worker that computes them.", note)
        compared.update({address: tuple(_said({address: unlike[address]}, workers)) for address in unlike})
    return tuple(dict.fromkeys(note for address in workers for note in compared.get(address, ())))


def _workers(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return found


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


def found_on(
    client: Client, addresses: Sequence[str], *, scheduler: bool = True, seconds: float = _ANSWER_SECONDS
) -> tuple[Versions | None, dict[str, Versions]]:
    """Ask the scheduler and workers for their versions.

    They answer in their event loops, so threads that are busy do not matter.

    Parameters
    ----------
    client
    addresses
        Of workers.
    scheduler
        Whether the scheduler is asked as well.
    seconds
        For all answers; a process that takes longer gives none.

    Returns
    -------
    scheduler : mapping or None
    workers : dict
        By address.

    Raises
    ------
    ClusterError
        If the scheduler does not answer.
    """
    call = versions.elsewhere("found")

    async def asked() -> tuple[Versions | None, dict[str, Versions]]:
        # A call returns when the slowest of its workers has answered: one that hangs hides only those of its group.
        groups = [list(addresses[start::_GROUPS]) for start in range(min(_GROUPS, len(addresses)))]
        runs = [asyncio.ensure_future(client.run(*call, workers=group, on_error="ignore")) for group in groups]
        of_scheduler = asyncio.ensure_future(client.run_on_scheduler(*call)) if scheduler else None
        try:
            if runs:
                await asyncio.wait(runs, timeout=seconds)
            answered = [run.result() for run in runs if run.done()]
            found = {address: versions for answer in answered for address, versions in answer.items()}
            return (await asyncio.wait_for(of_scheduler, seconds) if of_scheduler else None), found
        finally:
            for run in (*runs, *([of_scheduler] if of_scheduler else [])):
                run.cancel()

    try:
        answers: tuple[Versions | None, dict[str, Versions]] = client.sync(asked)
    except OSError as error:  # a TimeoutError as well
        raise ClusterLost(f"The scheduler of {client} does not answer ({error}): look at its log.") from error
    return answers
