"""Work shared out among the workers of a cluster."""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from distributed import Client, get_worker

from dal._threads import one_thread
from dal.compute.asking import told_of_losses
from dal.compute.plugins import Brought, bring, brought, take_back
from dal.compute.ready import ready
from dal.compute.waits import InFlight, value_of
from dal.errors import ClusterError, DalError

Item = TypeVar("Item")
Result = TypeVar("Result")
Shared = TypeVar("Shared")
Beat = Callable[[], None]

_IN_FLIGHT = 4
"""Items a thread that are sent at a time."""
_BEATS = "dal-beat"
"""The topic to which workers log that an item has come further, by the token of its call."""


def map_on(client: Client, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Return ``function(item)`` for each item, in their order, each computed on one thread of a cluster's workers.

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
    ready(client)
    flight: InFlight[tuple[int, Item], Result] = InFlight(client)
    task = cast("Callable[[tuple[int, Item]], Result]", partial(_on_one_thread, function))
    with flight:
        window = _IN_FLIGHT * flight.threads()
        outcomes: dict[int, Result | BaseException] = {}
        sent = given = 0
        for item in items:
            flight.submit(task, [(sent, item)])
            sent += 1
            if sent - given >= window:
                yield _outcome_of(given, outcomes, flight)
                given += 1
        while given < sent:
            yield _outcome_of(given, outcomes, flight)
            given += 1


def _outcome_of(
    number: int, outcomes: dict[int, Result | BaseException], flight: InFlight[tuple[int, Item], Result]
) -> Result:
    while number not in outcomes:
        outcomes.update((ended, outcome) for (ended, _), outcome in flight.ended())
    return value_of(outcomes.pop(number))


def _on_one_thread(function: Callable[[Item], Result], numbered: tuple[int, Item]) -> Result:
    with one_thread:
        return function(numbered[1])


def each_on(
    client: Client,
    function: Callable[[Shared, Item, Beat], Result],
    items: Iterable[Item],
    shared: Shared,
    *,
    on_gpus: bool = False,
) -> Iterator[tuple[Item, Result]]:
    """Return each item with ``function(shared, item, beat)``, as they end: for few items that take long.

    The shared value reaches every worker once, also those that join later, and is lost with none of them. A worker that
    dies has its items begun again by others.

    Parameters
    ----------
    client
    function
        Known to the workers by its module. It calls ``beat()`` whenever it has come further, so that work that takes
        hours is distinguished from work that stands still.
    items
    shared
    on_gpus
        Whether the items go to workers alone that declare GPUs.

    Raises
    ------
    ClusterError
        If the cluster is lost, has no worker for a minute, or for ten minutes nothing ends and no beat comes; or if an
        item ended every worker that was at it. What `function` raises is raised as it is.
    """
    ready(client)
    token = secrets.token_hex(8)
    flight: InFlight[Item, Result] = InFlight(client, on_gpus=on_gpus)
    task = cast("Callable[[Item], Result]", partial(_with_shared, token, function))
    with (
        held_by_workers(client, token, partial(_itself, shared)),
        flight,
        heard(client, _BEATS, lambda whose: flight.beat() if whose == token else None),
    ):
        flight.submit(task, list(items), retries=2)
        while flight.pending:
            for item, outcome in flight.ended():
                yield item, value_of(outcome)


_LISTENERS: "WeakKeyDictionary[Client, dict[str, list[Callable[[Any], object]]]]" = WeakKeyDictionary()
"""The functions that hear each topic: a client itself has one a topic, and forgets it for all."""
_listening = threading.RLock()  # the garbage collector ends a context that was dropped, in any thread


@contextmanager
def heard(client: Client, topic: str, call: Callable[[Any], object]) -> Iterator[None]:
    """Call a function with each message that workers log to a topic, as a context.

    Several contexts may hear one topic at a time. A scheduler keeps every topic that it has seen: a topic is a
    kind of message, and a message says whose it is.

    Raises
    ------
    ClusterError
        If the cluster cannot be reached.
    """
    with _listening:
        calls = _LISTENERS.setdefault(client, {}).setdefault(topic, [])
        calls.append(call)
    try:
        with _listening, told_of_losses():
            if calls == [call]:
                client.subscribe_topic(topic, partial(_spread, calls))
        yield
    finally:
        with _listening:
            calls.remove(call)
            if not calls and client.status == "running":
                with suppress(OSError, ValueError):  # a cluster that dies meanwhile forgets it as well
                    client.unsubscribe_topic(topic)


def _spread(calls: list[Callable[[Any], object]], event: tuple[float, Any]) -> None:
    for call in tuple(calls):
        call(event[1])


@contextmanager
def held_by_workers(client: Client, name: str, make: Callable[[], object]) -> Iterator[None]:
    """Let every worker process make something and hold it, also those that join later; see :func:`brought`.

    Raises
    ------
    ClusterError
        If the cluster cannot be reached, or a worker cannot load it.
    """
    try:
        with told_of_losses():
            _bring(client, Brought(name, make))
        yield
    finally:
        take_back(client, name)


def _bring(client: Client, plugin: Brought) -> None:
    try:
        bring(client, plugin)
    except (OSError, DalError):
        raise
    except Exception as error:  # a worker's own, often as the text of an exception that is unknown here
        raise ClusterError(f"A worker cannot load what it is sent ({error}): mend that and run again.") from error


def _itself(value: object) -> object:
    return value


def _with_shared(token: str, function: Callable[[Any, Item, Beat], Result], item: Item) -> Result:
    worker = get_worker()
    return function(brought(token), item, lambda: worker.log_event(_BEATS, token))
