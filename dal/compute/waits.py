"""Waiting for a cluster that may die: every wait has an end."""

import asyncio
import queue
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TypeVar, cast

from distributed import Client, Future, KilledWorker

from dal.errors import ClusterError

Result = TypeVar("Result")

_STALL_SECONDS = 600.0
_FIRST_PATIENCE_SECONDS = 4.0
NO_WORKERS_SECONDS = 60.0
_TICK_SECONDS = 1.0


def wait_for_worker(client: Client) -> None:
    """Wait until a cluster has a worker, and ask for one where it has none.

    A cluster that adapts to its load starts nothing for a client that only waits: a task has to wait with it.

    Raises
    ------
    ClusterError
        If none comes within a minute, or the cluster is gone.
    """
    asking = None
    try:
        if not client.nthreads():
            asking = client.submit(_nothing, pure=False)
            client.wait_for_workers(1, timeout=NO_WORKERS_SECONDS)
    except TimeoutError as error:
        raise _without_workers() from error
    except OSError as error:
        raise ClusterError(f"the cluster is gone ({error}): bring it up and run again") from error
    finally:
        if asking is not None and client.status == "running":
            asking.release()


def _nothing() -> None:
    pass


def _without_workers() -> ClusterError:
    return ClusterError(
        f"the cluster has had no worker for {NO_WORKERS_SECONDS:.0f} s: start workers, and run again. Where a queue or"
        " an autoscaler takes longer to start them, keep one, as with cluster.adapt(minimum=1)"
    )


def result_of(future: "Future[Result]") -> Result:
    """Return the result of a finished task; raise what the task raised, or ClusterError where it is lost."""
    client = future.client
    try:
        [result] = client.sync(gathered, client, [future], callback_timeout=_STALL_SECONDS)
    except (TimeoutError, CancelledError, KilledWorker) as error:
        raise ClusterError(
            f"the cluster did not give a result ({type(error).__name__}: {error}): look at its workers and run again"
        ) from error
    return cast("Result", result)


async def gathered(client: Client, futures: Sequence["Future[Result]"]) -> list[Result]:
    """Fetch results; those that are long in coming are asked for again, with twice the patience.

    A worker may die between saying that it has finished and being asked for what it found. The scheduler then knocks at
    its address for minutes, while it has long seen that worker leave and had the work done again by another: who asks
    again is sent there. Results that are large and a slow network are what the patience is for.
    """
    patience = _FIRST_PATIENCE_SECONDS
    while True:
        asked = asyncio.ensure_future(client.gather(futures, asynchronous=True))
        try:
            await asyncio.wait({asked}, timeout=patience)
            if asked.done():
                results: list[Result] = asked.result()
                return results
        finally:
            asked.cancel()
        patience *= 2


def next_moved(client: Client, moved: "queue.SimpleQueue[Future[Result] | None]") -> "Future[Result] | None":
    """Wait until an item ends, or, with None, one has come further."""
    waited_from = alive = time.monotonic()
    while True:
        try:
            return moved.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            now = time.monotonic()
            if client.status != "running":
                raise ClusterError("the cluster is gone: bring it up and run again") from None
            alive = now if client.nthreads() else alive
            if now - alive > NO_WORKERS_SECONDS:
                raise _without_workers() from None
            if now - waited_from > _STALL_SECONDS:
                raise ClusterError(
                    f"nothing has come further on the cluster for {_STALL_SECONDS:.0f} s: look at its workers and run"
                    " again"
                ) from None
