"""Ask workers beside their tasks: in their event loops, so threads that are busy with other work do not matter."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from distributed import Client
from distributed.comm.core import CommClosedError

from dal.choices import GPU
from dal.compute import insides
from dal.errors import ClusterLost

Result = TypeVar("Result")
Answers = dict[str, Any]

_GROUPS = 32
"""Calls at a time. A call returns when the slowest of its workers has answered: one that hangs hides only its group."""
_TICK_SECONDS = 0.5


class WorkerInfo(NamedTuple):
    """A worker, as its cluster's scheduler knows it.

    Attributes
    ----------
    host : str
    threads : int
    memory_limit : int
        In bytes; 0 where there is none.
    gpus : int
        That it declares as a resource.
    """

    host: str
    threads: int
    memory_limit: int
    gpus: int = 0


def workers_of(client: Client) -> dict[str, WorkerInfo]:
    """Return the workers of a cluster by address.

    Raises
    ------
    ClusterLost
        If the scheduler does not answer.
    """
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
    except OSError as error:
        raise _gone(error) from error
    return {
        address: WorkerInfo(
            str(worker["host"]),
            int(worker["nthreads"]),
            int(worker["memory_limit"] or 0),
            int(worker.get("resources", {}).get(GPU, 0)),
        )
        for address, worker in workers.items()
    }


def gpus_of(client: Client) -> dict[str, int]:
    """Return the number of GPUs of each worker that declares some, by address."""
    return {address: worker.gpus for address, worker in workers_of(client).items() if worker.gpus}


def ask(
    client: Client, function: Callable[..., Any], *arguments: object, workers: Sequence[str], seconds: float
) -> Answers:
    """Call a function in the event loops of workers; return the answers that come in time, by address.

    Parameters
    ----------
    client
    function
        It returns at once, or is a coroutine function. One that takes a while is called in a thread by
        ``ask(client, asyncio.to_thread, function, ...)``, also on a worker without `dal`.
    arguments
    workers
        Addresses.
    seconds
        For all answers.

    Returns
    -------
    dict
        What each worker returned or raised. A worker that left, or hangs, has no entry; one whose function raised an
        error of connections has none either.

    Raises
    ------
    ClusterLost
        If the scheduler does not answer.
    """
    return {
        address: answer
        for answers in answers_of(client, function, *arguments, workers=workers, seconds=seconds)
        for address, answer in answers.items()
    }


def answers_of(
    client: Client, function: Callable[..., Any], *arguments: object, workers: Sequence[str], seconds: float
) -> Iterator[Answers]:
    """Return the answers that :func:`ask` returns as they come, about twice a second, with none where none has come.

    Raises
    ------
    ClusterLost
        If the scheduler does not answer.
    """
    begun = _begun(client, partial(client.run, function, *arguments), workers)
    until = time.monotonic() + seconds
    try:
        while begun and (left := until - time.monotonic()) > 0:
            ended, waiting = wait(begun, timeout=min(left, _TICK_SECONDS))
            begun = list(waiting)
            yield {address: answer for address, answer in _answers(ended).items() if not _has_left(answer)}
    finally:
        for call in begun:
            call.cancel()


def ask_scheduler(client: Client, function: Callable[..., Result], *arguments: object, seconds: float) -> Result:
    """Call a function in the event loop of the scheduler.

    Raises
    ------
    ClusterLost
        If it does not answer in time.
    """

    async def asked() -> Any:  # noqa: ANN401 - the function's own
        return await asyncio.wait_for(client.run_on_scheduler(function, *arguments), seconds)

    try:
        answer: Result = client.sync(asked)
    except OSError as error:  # a TimeoutError as well
        raise _gone(error) from error
    return answer


def ask_hosts(
    client: Client,
    function: Callable[..., Any],
    *arguments: object,
    seconds: float,
    again: float = 10.0,
    known: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Answers:
    """Call a function in a thread of one worker of each host, beside its tasks.

    Another worker of the host is asked where the first one leaves, or has not answered for a while.

    Parameters
    ----------
    client
    function
        Known to the workers by its module.
    arguments
    seconds
        For all answers.
    again
        Seconds until another worker of a host is asked as well.
    known
        Hosts that need not be asked.
    say
        Called with the reason of the wait, now and then.

    Returns
    -------
    dict
        What a worker of each host returned or raised, by its address. A host of which no worker answers has no entry.

    Raises
    ------
    ClusterLost
        If the scheduler does not answer.
    """
    call = partial(client.run, asyncio.to_thread, function, *arguments)
    answers: Answers = {}
    done, hosts = set(known), dict[str, str]()
    begun: list[Future[Answers]] = []
    latest: dict[str, tuple[str, float]] = {}
    workers, looked = dict[str, WorkerInfo](), 0.0
    until = time.monotonic() + seconds
    try:
        while True:
            now = time.monotonic()
            # The list of a large cluster takes as long as many answers, which come one by one.
            if not begun or now - looked > _TICK_SECONDS:
                workers, looked = workers_of(client), now
            left = {worker.host for worker in workers.values()} - done
            if not left or now > until:
                return answers
            for host, (address, asked_at) in list(latest.items()):
                if address not in workers or now - asked_at > again:
                    del latest[host]
            for address, worker in workers.items():
                if worker.host in left and worker.host not in latest and address not in hosts:
                    latest[worker.host] = (address, now)
            fresh = [address for address, asked_at in latest.values() if asked_at == now]
            hosts.update({address: workers[address].host for address in fresh})
            begun += _begun(client, call, fresh)
            if not begun:
                time.sleep(_TICK_SECONDS)  # until the scheduler knows that they left, or others come
            ended, _ = wait(begun, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
            begun = [each for each in begun if each not in ended]
            for address, answer in _answers(ended).items():
                if not _has_left(answer):
                    answers[address] = answer
                    done.add(hosts[address])
                elif latest.get(hosts[address], ("", 0.0))[0] == address:
                    del latest[hosts[address]]
            say(f"waiting for an answer of {len(left):,} of {len(left | done):,} hosts")
    finally:
        for each in begun:
            each.cancel()


@contextmanager
def told_of_losses() -> Iterator[None]:
    """Raise ``ClusterLost`` where a call of the client finds that the cluster is gone, as a context."""
    try:
        yield
    except OSError as error:
        raise ClusterLost(f"The cluster is gone ({error}): bring it up and run again.") from error


def _begun(
    client: Client, call: Callable[..., Coroutine[Any, Any, Answers]], addresses: Sequence[str]
) -> list["Future[Answers]"]:
    async def run(group: Sequence[str]) -> Answers:
        return await call(workers=group, on_error="return")

    groups = [list(addresses[start::_GROUPS]) for start in range(min(_GROUPS, len(addresses)))]
    return [insides.begun(client, run(group)) for group in groups]


def _answers(calls: Iterable["Future[Answers]"]) -> Answers:
    try:
        return {address: answer for call in calls for address, answer in call.result().items()}
    except OSError as error:
        raise _gone(error) from error


def _has_left(answer: object) -> bool:
    """Return whether the scheduler could not reach a worker; the function's own error is an answer."""
    return isinstance(answer, CommClosedError | ConnectionError | TimeoutError) or type(answer) is OSError


def _gone(error: OSError) -> ClusterLost:
    return ClusterLost(f"The scheduler does not answer ({error}): bring the cluster up and run again.")
