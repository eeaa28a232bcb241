"""Work shared out among the workers of a cluster."""

import queue
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from distributed import Client, Future, get_worker

from dal._threads import one_thread
from dal.compute.plugins import Brought, bring, brought
from dal.compute.waits import next_moved, result_of, wait_for_worker
from dal.errors import ClusterError

Item = TypeVar("Item")
Result = TypeVar("Result")
Shared = TypeVar("Shared")
Beat = Callable[[], None]

_IN_FLIGHT = 4
"""Items a thread that are sent at a time."""


def map_on(client: Client, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Give ``function(item)`` for each item, in their order, each computed on one thread of a cluster's workers.

    A few items a thread are in flight at a time, so that neither side ever holds all of them; a worker that dies has
    its items done by others.

    Parameters
    ----------
    client
    function
        Pure, and known to the workers by its module.
    items
        May be a generator; it is read as far as work is sent.

    Raises
    ------
    ClusterError
        If the cluster is lost, has no worker for a minute, or gives no result for ten minutes.
    """
    wait_for_worker(client)
    moved: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
    pending: deque[Future[Result]] = deque()
    try:
        window = max(_IN_FLIGHT * sum(client.nthreads().values()), _IN_FLIGHT)
        for item in items:
            pending.append(client.submit(_on_one_thread, function, item, pure=False))
            pending[-1].add_done_callback(moved.put)
            if len(pending) >= window:
                yield _first_result(client, pending, moved)
        while pending:
            yield _first_result(client, pending, moved)
    except OSError as error:
        raise ClusterError(f"the cluster is gone ({error}): bring it up and run again") from error
    finally:
        if pending and client.status == "running":
            client.cancel(list(pending))


def _first_result(
    client: Client, pending: "deque[Future[Result]]", moved: "queue.SimpleQueue[Future[Result] | None]"
) -> Result:
    while not pending[0].done():
        next_moved(client, moved)
    return result_of(pending.popleft())


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    with one_thread:
        return function(item)


def each_on(
    client: Client, function: Callable[[Shared, Item, Beat], Result], items: Iterable[Item], shared: Shared
) -> Iterator[tuple[Item, Result]]:
    """Give each item with ``function(shared, item, beat)``, as they end: for few items that take long.

    What is shared reaches every worker once, also those that join later, and is lost with none of them. A worker that
    dies has its items begun again by others.

    Parameters
    ----------
    client
    function
        Known to the workers by its module. It calls ``beat()`` whenever it has come further, so that work that takes
        hours is told from work that stands still.
    items
        Hashable.
    shared

    Raises
    ------
    ClusterError
        If the cluster is lost, has no worker for a minute, or for ten minutes nothing ends and no beat comes; or if an
        item ended every worker that was at it. What `function` raises is raised as it is.
    """
    wait_for_worker(client)
    token = secrets.token_hex(8)
    moved: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
    pending: dict[Future[Result], Item] = {}
    ended: Future[Result] | None = None
    try:
        bring(client, Brought(token, partial(_itself, shared)))
        client.subscribe_topic(token, lambda _: moved.put(None))
        for item in items:
            future = client.submit(_with_shared, token, function, item, pure=False, retries=2)
            pending[future] = item
            future.add_done_callback(moved.put)
        while pending:
            ended = next_moved(client, moved)
            if ended is not None:
                yield pending.pop(ended), result_of(ended)
    except OSError as error:
        if ended is not None and ended.status == "error":
            raise  # the function's own
        raise ClusterError(f"the cluster is gone ({error}): bring it up and run again") from error
    finally:
        if client.status == "running":
            # A cluster that dies meanwhile needs no cleaning, and must not hide what went wrong.
            with suppress(OSError):
                client.cancel(list(pending), force=True)
                client.unsubscribe_topic(token)
                client.unregister_worker_plugin(token)


def _itself(value: object) -> object:
    return value


def _with_shared(token: str, function: Callable[[Any, Item, Beat], Result], item: Item) -> Result:
    worker = get_worker()
    return function(brought(token), item, lambda: worker.log_event(token, None))
