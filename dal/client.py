"""Clients of Dask clusters: those that people bring, and the cluster of this machine's cores."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import dask
import dask.config
import dask.system
from distributed import Client, Future, KilledWorker, LocalCluster, Security
from distributed.comm.core import connect as connect_comm
from distributed.deploy.cluster import Cluster
from threadpoolctl import threadpool_limits

from dal.errors import ClusterError, SettingsError

Item = TypeVar("Item")
Result = TypeVar("Result")

_IN_FLIGHT = 4
"""Items a thread that are sent at a time."""
_STALL_SECONDS = 600.0

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
        If the cluster is lost, or gives no result for ten minutes.
    """
    pending: deque[Future[Result]] = deque()
    try:
        window = max(_IN_FLIGHT * sum(client.nthreads().values()), _IN_FLIGHT)
        for item in items:
            pending.append(client.submit(_on_one_thread, function, item, pure=False))
            if len(pending) >= window:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except OSError as error:
        raise ClusterError(f"the cluster is gone ({error}): bring it up and run again") from error
    finally:
        if pending and client.status == "running":
            client.cancel(list(pending))


def _on_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    # The last bits of a matrix product depend on the number of threads.
    with threadpool_limits(limits=1):
        return function(item)


def _result(future: "Future[Result]") -> Result:
    try:
        result: Result = future.result(timeout=_STALL_SECONDS)
    except (TimeoutError, CancelledError, KilledWorker) as error:
        raise ClusterError(
            f"the cluster did not give a result ({type(error).__name__}: {error}): look at its workers and run again"
        ) from error
    return result


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
