"""Things that every worker process of a cluster has, also those that join later."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distributed import Client, Worker, WorkerPlugin

from dal.compute import insides, versions

_ATTEMPTS = 3


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

    def __reduce__(self) -> tuple[object, ...]:
        # A pickle is read from its start: a worker compares its versions before it loads what is brought, also one
        # that joins later, of which the coordinator knows nothing.
        kind = type(self)
        function, *call = versions.elsewhere("received", versions.found(), kind.__module__, kind.__qualname__)
        return function, tuple(call), self.__dict__

    def setup(self, worker: Worker) -> None:
        """Make it, unless another worker of this process has."""
        versions.loaded(self)
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

    def transition(self, key: object, start: str, finish: str, **_: object) -> None:  # noqa: ARG002 - Dask's names
        """Pass each change of a task of this worker on to the object made, where it has a method for that."""
        held = _HELD.get(self.name)
        moved = getattr(held[0], "moved", None) if held is not None else None
        if moved is not None:
            moved(key, finish)


_HELD: dict[str, tuple[object, set[object]]] = {}
"""What was made, by name, with the workers of this process that hold it."""
_holding = threading.Lock()


def brought(name: str) -> Any:  # noqa: ANN401 - whatever was made
    """Return the object that :class:`Brought` has made in this worker process."""
    return _HELD[name][0]


def bring(client: Client, plugin: WorkerPlugin) -> None:
    """Set a plugin up on every worker, also on those that join later.

    Raises
    ------
    OSError
        If the cluster cannot be reached.
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


def take_back(client: Client, name: str, seconds: float = 5.0) -> None:
    """Take a plugin from every worker that has it.

    A cluster behind a broken link does not answer, and Dask asks it for minutes: after some seconds it is left alone.
    """

    async def taken() -> None:
        # A cluster that dies meanwhile needs no cleaning, and must not hide the error that ended the work. A worker
        # that has joined or died at the wrong moment has no plugin of this name.
        with suppress(OSError, KeyError):
            await asyncio.wait_for(client.unregister_worker_plugin(name), seconds)

    if client.status == "running":
        begun = insides.begun(client, taken())
        # The garbage collector ends a context that was dropped, in any thread: that of the client's loop must go on.
        if not insides.in_loop(client):
            with suppress(TimeoutError):  # a loop that has ended meanwhile gives nothing
                begun.result(seconds + 1)
