"""Clients of Dask clusters: those that people bring, and the cluster of this machine's cores."""

import asyncio
import logging
import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar, cast

import dask
import dask.config
import dask.system
from distributed import Client, Future, KilledWorker, LocalCluster, Security, Worker, WorkerPlugin, get_worker
from distributed.comm.core import connect as connect_comm
from distributed.deploy.cluster import Cluster

from dal._threads import one_thread
from dal.errors import ClusterError, SettingsError

Item = TypeVar("Item")
Result = TypeVar("Result")
Shared = TypeVar("Shared")
Beat = Callable[[], None]

_IN_FLIGHT = 4
"""Items a thread that are sent at a time."""
_STALL_SECONDS = 600.0
_FIRST_PATIENCE_SECONDS = 4.0
NO_WORKERS_SECONDS = 60.0
_TICK_SECONDS = 1.0
_ATTEMPTS = 3

_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    "MALLOC_TRIM_THRESHOLD_": 134217728,
    "MALLOC_MMAP_THRESHOLD_": 33554432,
    "MALLOC_ARENA_MAX": 2,
}

SETTINGS: Mapping[str, object] = {
    "distributed": {
        "nanny": {"pre-spawn-environ": _WORKER_ENVIRONMENT},
        "deploy": {"lost-worker-timeout": "300s"},
        "scheduler": {"allowed-failures": 10, "no-workers-timeout": "10m", "worker-ttl": "10 minutes"},
        "comm": {"retry": {"count": 3}},
        "worker": {"profile": {"enabled": False}, "memory": {"monitor-interval": "1s"}},
        "admin": {"tick": {"interval": "1s"}, "system-monitor": {"interval": "5s"}},
    }
}
"""Dask configuration that dal needs. The reason of each value stands beside it in ``cluster/distributed.yaml``."""

# A nanny also fixes the seed of string hashes, the same for all workers, and marks its process as their parent.
_NANNY_WRITES = (*_WORKER_ENVIRONMENT, "PYTHONHASHSEED", "__DASK_PARENT_PID")


@contextmanager
def connect(
    client: Client | Cluster | str | None, *, workers: int | None = None, timeout: float = 10.0
) -> Iterator[Client | None]:
    """Give the client that a scan runs on, and close what was opened for it, nothing else.

    Parameters
    ----------
    client
        None: no cluster, work is done in this process; with `workers`, a local cluster of that many processes.
        An address such as ``"tcp://10.0.0.5:8786"``: a client of that scheduler, closed at the end.
        A Cluster: a client of it, closed at the end; the cluster is left running.
        A Client: itself, never closed.
    workers
        Processes of the local cluster; only without a `client`.
    timeout
        Seconds in which the scheduler at an address must answer.

    Raises
    ------
    ClusterError
        If nobody answers at the address, or the client is closed.
    SettingsError
        If `workers` comes with a cluster that has its own, or the client or cluster is an asynchronous one.
    """
    if client is not None and workers is not None:
        raise SettingsError(
            f"workers={workers} sizes a local cluster, {client!r} has workers of its own: pass one of the two"
        )
    if client is None and workers is None:
        yield None
    elif client is None:
        with local_cluster(workers) as opened:
            yield opened
    elif isinstance(client, Client):
        yield _usable(client)
    else:
        with _opened(client, timeout) as opened:
            yield opened


def _usable(client: Client) -> Client:
    if client.asynchronous:
        raise SettingsError("expected a synchronous Client, got one made with asynchronous=True")
    if client.status != "running":
        raise ClusterError(
            f"expected a connected Client, got {client!r}: connect it again, or pass its scheduler's address"
        )
    return client


def _opened(target: Cluster | str, timeout: float) -> Client:
    if isinstance(target, str):
        _knock(target, timeout)
    elif not isinstance(target, Cluster):
        raise SettingsError(f"expected None, a Client, a Cluster or a scheduler's address, got {type(target).__name__}")
    elif target.asynchronous:
        raise SettingsError("expected a synchronous Cluster, got one made with asynchronous=True")
    return Client(target, timeout=timeout, set_as_default=False)


def _knock(address: str, timeout: float) -> None:
    """Refuse an address where nobody answers.

    A Client that failed to connect cannot be closed: it prints a traceback when the interpreter exits. So a bare
    connection goes first, in a thread of its own, because the caller may be inside an event loop (a notebook is).
    """

    async def shake_hands() -> None:
        security = Security().get_connection_args("client")
        comm = await connect_comm(address, timeout=timeout, **security)
        await comm.close()

    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, shake_hands()).result()
    except OSError as error:
        raise ClusterError(
            f"nobody answers at {address} ({error}): start a scheduler there (cluster/README.md), or check the address"
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"expected a scheduler's address such as tcp://10.0.0.5:8786, or tls:// with distributed.comm.tls "
            f"configured, got {address!r} ({error})"
        ) from error


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
        _next_moved(client, moved)
    return _result(pending.popleft())


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    with one_thread:
        return function(item)


def _result(future: "Future[Result]") -> Result:
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
            ended = _next_moved(client, moved)
            if ended is not None:
                yield pending.pop(ended), _result(ended)
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


class Brought(WorkerPlugin):
    """Makes something in every worker process, once, and keeps it while a worker of the process has the plugin.

    Workers may share a process, as those of a cluster without processes do: the first that leaves takes nothing away
    from the others.

    Parameters
    ----------
    name
    make
        Called on the worker.
    """

    def __init__(self, name: str, make: Callable[[], object]) -> None:
        self.name = name
        self.make = make

    def setup(self, worker: Worker) -> None:
        """Make it, unless another worker of this process has."""
        with _holding:
            if self.name not in _HELD:
                _HELD[self.name] = (self.make(), set())
            _HELD[self.name][1].add(worker.id)

    def teardown(self, worker: Worker) -> None:
        """Let it go with the last worker."""
        with _holding:
            _, holders = _HELD.get(self.name, (None, set()))
            holders.discard(worker.id)
            if not holders:
                _HELD.pop(self.name, None)


_HELD: dict[str, tuple[object, set[object]]] = {}
"""What was made, by name, with the workers of this process that hold it."""
_holding = threading.Lock()


def brought(name: str) -> Any:  # noqa: ANN401 - whatever was made
    """Give what :class:`Brought` has made in this worker process."""
    return _HELD[name][0]


def _itself(value: object) -> object:
    return value


def bring(client: Client, plugin: WorkerPlugin) -> None:
    """Set a plugin up on every worker, also on those that join later.

    Raises
    ------
    OSError
        If the cluster cannot be told.
    """
    for attempt in range(_ATTEMPTS):
        # A worker that dies while it is told breaks the whole call; it is safe to tell the others twice.
        try:
            client.register_plugin(plugin)
        except OSError:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return


def _with_shared(token: str, function: Callable[[Any, Item, Beat], Result], item: Item) -> Result:
    worker = get_worker()
    return function(brought(token), item, lambda: worker.log_event(token, None))


def _next_moved(client: Client, moved: "queue.SimpleQueue[Future[Result] | None]") -> "Future[Result] | None":
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


@contextmanager
def local_cluster(workers: int | None = None) -> Iterator[Client]:
    """Start worker processes on this machine, one thread each, that nobody outside of it can reach.

    A script that calls this needs ``if __name__ == "__main__":`` around its work, because worker processes import it.
    What the user's own Dask configuration or environment says goes before `SETTINGS`. Nothing is logged: what goes
    wrong in a task comes back as its exception.

    Parameters
    ----------
    workers
        Number of processes; by default one a core that this process may use.

    Raises
    ------
    SettingsError
        If `workers` is less than one.
    """
    count = dask.system.CPU_COUNT if workers is None else workers
    if count < 1:
        raise SettingsError(f"expected at least one worker, got workers={workers}")
    # The settings hold for as long as the cluster does: some are read only when a worker has died.
    settings = _with_settings(dask.config.config)
    with (
        _environment_kept(),
        dask.config.set(settings),
        _loopback_cluster(count) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


# Ctrl-C in a terminal reaches the workers too. They are ended by this process; interrupted, each prints a traceback. So
# does a heartbeat that meets a worker in its closing, through Tornado's own logger.
_QUIET_ENDING = (
    "import logging, signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "logging.getLogger('tornado.application').setLevel(logging.CRITICAL)"
)


def _loopback_cluster(workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",  # by default each worker's pages are open to the network
        silence_logs=logging.CRITICAL,
        preload=_QUIET_ENDING,
    )


def _with_settings(config: dict[str, object]) -> dict[str, object]:
    """Lay `SETTINGS` over Dask's defaults, and under what the user has configured."""
    merged = deepcopy(config)
    defaults = dask.config.merge(*dask.config.defaults)
    dask.config.update(merged, SETTINGS, priority="new-defaults", defaults=defaults)
    return {"distributed": merged["distributed"]}


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what nannies write into this process's environment for the workers that they spawn.

    Left there, it would reach every later child of this process, and win over the settings of the next cluster.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in _NANNY_WRITES:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
