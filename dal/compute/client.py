"""The client that work runs on: none, one that was passed in, one of an address or a cluster.

Without a cluster nothing of Dask is imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dal.errors import ClusterError, ClusterLost, SettingsError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

    Connectable = Client | Cluster | str | None
    """What `client=` takes: None, a Client, a Cluster, or the address of a scheduler."""


@contextmanager
def connect(client: Connectable, *, workers: int | None = None, timeout: float = 10.0) -> Iterator[Client | None]:
    """Return the client to work on as a context; close at its end what was opened for it, nothing else.

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
        return
    from distributed import Client

    if client is None:
        from dal.compute.local import local_cluster

        with local_cluster(workers) as opened:
            yield opened
    elif isinstance(client, Client):
        yield _usable(client)
    else:
        with _opened(client, timeout) as opened:
            yield opened


def _usable(client: Client) -> Client:
    if client.asynchronous:
        raise SettingsError("`client` must be a synchronous Client, got one made with asynchronous=True")
    if client.status != "running":
        raise ClusterLost(
            f"`client` must be connected, got {client!r}; connect it again, or pass its scheduler's address"
        )
    return client


def _opened(target: Cluster | str, timeout: float) -> Client:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

    from dal.compute.insides import look_for_scheduler_quietly

    if isinstance(target, str):
        _knock(target, timeout)
    elif not isinstance(target, Cluster):
        raise SettingsError(f"`client` must be None, a Client, a Cluster or an address, got {type(target).__name__}")
    elif target.asynchronous:
        raise SettingsError("`client` must be a synchronous Cluster, got one made with asynchronous=True")
    try:
        client = Client(target, timeout=timeout, set_as_default=False)
    except OSError as error:
        raise ClusterLost(f"the scheduler of {target} has gone ({error}): bring it up and run again") from error
    look_for_scheduler_quietly(client)
    return client


def _knock(address: str, timeout: float) -> None:
    """Refuse an address where nobody answers.

    A Client that failed to connect cannot be closed: it prints a traceback when the interpreter exits. So a bare
    connection goes first, in a thread of its own, because the caller may be inside an event loop (a notebook is).
    """
    from distributed import Security
    from distributed.comm.core import connect as connect_comm
    from distributed.core import send_recv

    from dal.compute.tls import refusal

    async def shake_hands() -> str:
        security = Security().get_connection_args("client")
        comm = await connect_comm(address, timeout=timeout, **security)
        try:
            return str((await send_recv(comm, op="identity"))["type"])
        finally:
            comm.abort()

    async def in_time() -> str:
        return await asyncio.wait_for(shake_hands(), timeout + 1)  # another program may listen, and say nothing

    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            kind = thread.submit(asyncio.run, in_time()).result()
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        if why := refusal(address, timeout):
            raise ClusterError(f"TLS keeps this process from {address}: {why}") from error
        if not isinstance(error, OSError):
            raise ClusterError(
                f"`client` must be an address such as tcp://10.0.0.5:8786, or tls:// with distributed.comm.tls"
                f" configured, got {address!r} ({error})"
            ) from error
        if isinstance(error, TimeoutError):
            raise ClusterLost(
                f"a program listens at {address} and does not answer as a scheduler: check the port, or look at the"
                " scheduler's log"
            ) from error
        raise ClusterLost(
            f"nobody answers at {address} ({error}): start a scheduler there (cluster/README.md), or check the address"
        ) from error
    if kind != "Scheduler":
        raise ClusterError(f"`client` must be the address of a scheduler, got {address!r}, that of a {kind.lower()}")
