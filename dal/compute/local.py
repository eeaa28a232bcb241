"""The cluster of this machine's cores."""

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import dask
import dask.config
import dask.system
from distributed import Client, LocalCluster

from dal.compute import insides
from dal.errors import SettingsError

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

_START = {"distributed": {"worker": {"multiprocessing-method": "forkserver"}}} if sys.platform == "linux" else {}
"""How worker processes of this machine start: forked off one that has imported what they need."""

_PRELOADED = (
    "distributed.nanny",
    "distributed.worker",
    "distributed.http.worker.prometheus",
    "sklearn.linear_model",
    "dal.learners.models",
    "dal.scan.worker.spans",
)
"""What the fork server imports, once for all workers: what every scan needs, and nothing else."""

# A nanny also fixes the seed of string hashes, the same for all workers, and marks its process as their parent.
_NANNY_WRITES = (*_WORKER_ENVIRONMENT, "PYTHONHASHSEED", "__DASK_PARENT_PID")


@contextmanager
def silent() -> Iterator[None]:
    """Keep Dask from printing a traceback for every lost connection: dal's own errors name what was lost."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


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
        raise SettingsError(f"`workers` must be at least 1, got {workers}")
    # The settings hold for as long as the cluster does: some are read only when a worker has died.
    settings = _with_settings(dask.config.config)
    with (
        silent(),
        _environment_kept(),
        dask.config.set(settings),
        _fork_server(),
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
        worker_dashboard_address=None,  # with one, every worker imports Bokeh for its pages
        silence_logs=logging.CRITICAL,
        preload=_QUIET_ENDING,
        env=dict(os.environ),  # a fork server has the environment of its start: credentials may have been set since
    )


@contextmanager
def _fork_server() -> Iterator[None]:
    """Name what the fork server imports, unless the user's configuration starts workers in another way.

    It starts with the first worker, with the environment that nannies give to workers, and lives as long as this
    process: later clusters start at once.
    """
    if dask.config.get("distributed.worker.multiprocessing-method") == "forkserver":
        insides.keep_preload()
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
    yield


def _with_settings(config: dict[str, object]) -> dict[str, object]:
    """Lay `SETTINGS` over Dask's defaults, and under what the user has configured."""
    merged = deepcopy(config)
    defaults = dask.config.merge(*dask.config.defaults)
    for settings in (SETTINGS, _START):
        dask.config.update(merged, settings, priority="new-defaults", defaults=defaults)
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
