"""The one wait for tasks on a cluster that may die: every wait has an end."""

import asyncio
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import dask.config
from dask.utils import parse_timedelta
from distributed import Client, Future, KilledWorker

from dal.choices import GPU
from dal.compute import insides
from dal.compute.asking import ask_scheduler, gpus_of
from dal.errors import ClusterError, ClusterLost

Item = TypeVar("Item")
Result = TypeVar("Result")
Fetched = TypeVar("Fetched")

_TICK_SECONDS = 1.0
"""Between two looks at the cluster while nothing ends."""
PRIORITY = -10
"""Below Dask's default of 0: a task that a person on the same cluster waits for goes before what waits for a thread."""
_LOOK_SECONDS = 5.0
"""Between two looks at what the workers are doing."""
_AT_A_TIME = 100
"""Results that are fetched together: a thousand would keep threads that are free waiting for the next task, and take
longer than the patience for them, so that all would be asked for again."""
_STALL_FACTOR = 20
"""A task may take this many times as long as the longest so far before it counts as stalled."""


@dataclass(frozen=True)
class Patience:
    """The time that a wait lasts before it ends in an error, in seconds.

    Dask's configuration has the values: ``dal.no-workers-timeout``, ``dal.stall-timeout``, ``dal.fetch-timeout``.

    Attributes
    ----------
    no_workers : float
        Without a single worker.
    stall : float
        Without a task that ends, or a sign of life from one.
    fetch : float
        For results, before they are asked for again.
    """

    no_workers: float = 60.0
    stall: float = 600.0
    fetch: float = 4.0

    @classmethod
    def configured(cls) -> "Patience":
        """Return the patience of Dask's configuration.

        Examples
        --------
        >>> with dask.config.set({"dal.stall-timeout": "2 minutes"}):
        ...     Patience.configured()
        Patience(no_workers=60.0, stall=120.0, fetch=4.0)
        """
        return cls(
            _seconds("no-workers-timeout", cls.no_workers),
            _seconds("stall-timeout", cls.stall),
            _seconds("fetch-timeout", cls.fetch),
        )


def _seconds(name: str, default: float) -> float:
    return float(parse_timedelta(dask.config.get(f"dal.{name}", default)))


async def gathered(client: Client, futures: Sequence["Future[Result]"], patience: float = 4.0) -> list[Result]:
    """Fetch results; ask again for those that are slow, with twice the patience.

    A worker may die between finishing a task and sending its result. The scheduler then tries its address for minutes,
    although it has long had the work done again by another worker. A new request goes to the live one. The patience
    grows because results may be large and a network slow.
    """
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


class InFlight(Generic[Item, Result]):
    """Tasks in flight on a cluster, and one wait for them that every loss of the cluster ends.

    Used as a context: what is still in flight at its end is cancelled, for others may use the cluster.

    Parameters
    ----------
    client
    remedy
        What to do when the cluster is lost; the end of the error's message.
    say
        Called with the reason of a wait that lasts.
    on_gpus
        Whether tasks go to workers alone that declare GPUs, one a GPU at a time.

    Attributes
    ----------
    pending : dict of Future to Item
    """

    def __init__(
        self,
        client: Client,
        remedy: str = "bring it up and run again",
        say: Callable[[str], None] = lambda _: None,
        *,
        on_gpus: bool = False,
    ) -> None:
        self.client = client
        self._on_gpus = on_gpus
        self.patience = Patience.configured()
        self.pending: dict[Future[Result], Item] = {}
        self._remedy = remedy
        self._say = say
        self._moved: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
        self._lost: set[Future[Result]] = set()
        """Tasks whose worker left with the result before it was fetched: the scheduler has them done again."""

    def __enter__(self) -> "InFlight[Item, Result]":
        return self

    def __exit__(self, *exception: object) -> None:
        # A cluster that dies meanwhile needs no cleaning, and must not hide the error that ended the work.
        with suppress(OSError):
            if self.pending and self.client.status == "running":
                self.client.cancel(list(self.pending), force=True)

    def submit(self, function: Callable[[Item], Result], items: Sequence[Item], **options: Any) -> None:  # noqa: ANN401 - Dask's own
        """Send tasks, together: one message, at a fraction of the cost of one each."""
        if self._on_gpus:
            options["resources"] = {GPU: 1}
        try:
            futures = self.client.map(function, items, pure=False, priority=PRIORITY, **options)
        except OSError as error:
            raise self.lost(f"is gone ({error})") from error
        for future, item in zip(futures, items, strict=True):
            self.pending[future] = item
            future.add_done_callback(self._moved.put)

    def beat(self) -> None:
        """Count as a sign of life: a task has come further."""
        self._moved.put(None)

    def ended(self, longest: float = 0.0) -> list[tuple[Item, Result | BaseException]]:
        """Wait until tasks end; return each item with its result or its exception.

        The list is empty where a worker left with the results of all that had ended.

        Parameters
        ----------
        longest
            Seconds that the longest task so far took; the next may take twenty times as long.

        Raises
        ------
        ClusterError
            If the cluster is lost, has no worker or makes no progress for too long.
        """
        futures = self._next_done(max(self.patience.stall, _STALL_FACTOR * longest))
        # Looked at once: a worker may leave between two looks.
        states = {future: future.status for future in futures}
        if "cancelled" in states.values():
            raise self.lost("has lost its scheduler")
        self._lost.update(future for future, state in states.items() if state == "lost")
        ended = [future for future in futures if future not in self._lost]
        outcomes = self._outcomes(ended, [future for future in ended if states[future] == "finished"])
        return [(self.pending.pop(future), outcome) for future, outcome in zip(ended, outcomes, strict=True)]

    def _next_done(self, stall: float) -> "list[Future[Result]]":
        waited_from = alive = looked = time.monotonic()
        while True:
            # Dask calls back once for each task, so lost tasks are checked here.
            if back := [future for future in self._lost if future.status != "lost"]:
                self._lost.difference_update(back)
                return back
            try:
                moved = [self._moved.get(timeout=_TICK_SECONDS), *self._drained(_AT_A_TIME - 1)]
            except queue.Empty:
                before, alive = alive, self._last_alive(alive)
                now = time.monotonic()
                if alive > before and (now - looked > _LOOK_SECONDS or now - waited_from > stall):
                    looked = now
                    if self._waits_for_others():
                        # Their tasks may take hours, and say nothing of the cluster's health.
                        waited_from = now
                        self._say("waiting for a thread: all are busy with other work")
                if now - waited_from > stall:
                    raise self.lost(f"has made no progress for {now - waited_from:.0f} s") from None
            else:
                done = [future for future in moved if future is not None]
                if done:
                    return done
                waited_from = time.monotonic()

    def _last_alive(self, before: float) -> float:
        """Return the time at which the cluster had a worker: now, or the time before, and then say so.

        Raises
        ------
        ClusterLost
            If that is too long ago.
        """
        now = time.monotonic()
        if self.nthreads():
            return now
        if now - before > self.patience.no_workers:
            raise self.lost(f"has had no worker for {self.patience.no_workers:.0f} s")
        self._say("waiting for a worker: the cluster has none")
        return before

    def _waits_for_others(self) -> bool:
        """Return whether threads are at tasks of others, and none is at one of these."""
        # One question to the scheduler: one to each of a thousand workers would keep it busy for seconds.
        try:
            keys = set(ask_scheduler(self.client, insides.executing, seconds=_LOOK_SECONDS))
        except ClusterLost:  # or too busy to answer: other waits notice one that is lost
            return False
        return bool(keys) and not keys & {future.key for future in self.pending}

    def _drained(self, most: int) -> "list[Future[Result] | None]":
        drained: list[Future[Result] | None] = []
        while len(drained) < most and not self._moved.empty():
            drained.append(self._moved.get())
        return drained

    def _outcomes(
        self, futures: "list[Future[Result]]", finished: "list[Future[Result]]"
    ) -> list[Result | BaseException]:
        """Fetch results together, which costs one round trip a worker; errors stand in the place of their results."""
        try:
            results = dict(zip(finished, self.fetch(finished), strict=True))
        except ClusterError:
            raise
        except Exception:  # a worker died with its result, and the task failed when it was done again
            results = {}
        return [results[future] if future in results else self._one(future) for future in futures]

    def _one(self, future: "Future[Result]") -> Result | BaseException:
        try:
            result: Result = future.result(timeout=self.patience.stall)
        except Exception as error:  # the task's own, whatever it is
            return error
        return result

    def fetch(self, futures: Sequence["Future[Fetched]"]) -> list[Fetched]:
        """Fetch the results of tasks, and raise what one of them raised.

        Raises
        ------
        ClusterError
            If they do not come in time.
        """
        starts = range(0, len(futures), _AT_A_TIME)
        return [result for start in starts for result in self._fetched(futures[start : start + _AT_A_TIME])]

    def _fetched(self, futures: Sequence["Future[Fetched]"]) -> list[Fetched]:
        # The last worker may leave with results: they come once another one has done the work again.
        asked = insides.begun(self.client, gathered(self.client, futures, self.patience.fetch))
        began = alive = time.monotonic()
        try:
            while not wait([asked], timeout=_TICK_SECONDS).done:
                alive = self._last_alive(alive)
                if time.monotonic() - began > self.patience.stall:
                    raise self.lost(f"has not sent its results for {self.patience.stall:.0f} s")
            return asked.result()
        except CancelledError as error:
            raise self.lost("has lost its scheduler") from error
        finally:
            asked.cancel()

    def nthreads(self) -> dict[str, int]:
        """Return the threads of each worker, by address; where tasks go to GPUs, the GPUs of each that has some.

        Raises
        ------
        ClusterError
            If the cluster is gone.
        """
        if self.client.status != "running":
            raise self.lost("is gone")
        if self._on_gpus:
            return gpus_of(self.client)
        try:
            return dict(self.client.nthreads())
        except OSError as error:
            raise self.lost(f"does not answer ({error})") from error

    def threads(self) -> int:
        """Count the threads of all workers now, at least one: a cluster that adapts may have no worker just now."""
        return max(1, sum(self.nthreads().values()))

    def lost(self, what: str) -> ClusterLost:
        """Return the error for a cluster that is lost."""
        return ClusterLost(f"The cluster {what}: {self._remedy}.")


def value_of(outcome: Result | BaseException) -> Result:
    """Return a result; raise an exception that stands in its place.

    Raises
    ------
    ClusterError
        If the task ended every worker that was at it, or was lost.
    """
    if isinstance(outcome, TimeoutError | CancelledError | KilledWorker):
        raise ClusterError(
            f"The cluster did not give a result ({type(outcome).__name__}: {outcome}): look at its workers and run"
            " again."
        ) from outcome
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
