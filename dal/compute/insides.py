"""The only use of distributed's private API, with what happens where a version of it has changed."""

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from distributed import Client, Scheduler, utils

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def keep_preload() -> None:
    """Keep distributed from choosing what the fork server imports.

    Its own choice is made once a process, imports pandas here for that, and leaves out what scans need. Without this,
    workers start more slowly and work as well.
    """
    if hasattr(utils, "_forkserver_preload_set"):
        utils._forkserver_preload_set = True
    else:
        _log.warning("this version of distributed chooses what its fork server imports: workers start more slowly")


def look_for_scheduler_quietly(client: Client) -> None:
    """Let a client be closed while it looks for the scheduler that it lost.

    Dask logs how its search was cut off, with a traceback: it would stand before the error that says what to do.
    Nothing else changes without this.
    """
    search = getattr(Client._reconnect, "__wrapped__", None)
    if search is not None:
        client.__dict__["_reconnect"] = partial(search, client)
    else:
        _log.warning("this version of distributed logs a traceback where a scheduler is lost: ignore it")


def executing(dask_scheduler: Scheduler) -> list[str]:
    """Return the keys of the tasks that threads of any worker are at, by its last heartbeat; run on the scheduler.

    Dask's argument has the name.
    """
    try:
        at_work = [(worker, task) for worker in dask_scheduler.workers.values() for task in worker.executing]
        return [str(task.key) for worker, task in at_work if task.processing_on is worker]  # it may have ended since
    except AttributeError:
        return []


def in_loop(client: Client) -> bool:
    """Return whether this thread is that of a client's event loop."""
    try:
        return asyncio.get_running_loop() is client.loop.asyncio_loop  # type: ignore[union-attr]
    except RuntimeError:  # this thread has none
        return False


def begun(client: Client, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
    """Begin work in the event loop of a client, and do not wait for it."""
    return asyncio.run_coroutine_threadsafe(work, client.loop.asyncio_loop)  # type: ignore[union-attr]
