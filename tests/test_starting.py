"""How a cluster is begun with: workers that leave, are busy, still import, or cannot work, in real processes."""

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client

from dal.compute.asking import ask, ask_hosts, workers_of
from dal.compute.client import connect
from dal.compute.ready import ready
from dal.compute.work import map_on
from dal.errors import ClusterError
from dal.learners.learner import Learner
from dal.pool import Pool
from dal.scan import Limits, Progress, sample_codebook, scan, stored_cells
from dal.selection.strategy import Strategy
from tests.clusters import dask_scheduler, dask_worker

RANDOM = Strategy.named("random")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool.build(np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32), tmp_path / "pool.zarr")


def rows(pool: Pool, client: Client | None, **options: object) -> list[int]:
    return scan(pool, None, RANDOM, 20, client=client, **options).candidates.rows.tolist()


def current_thread_name() -> str:
    return threading.current_thread().name


def until_there(path: Path) -> str:
    while not path.exists():
        time.sleep(0.02)
    return path.read_text()


@pytest.fixture
def two(mortal_cluster: Client) -> tuple[Client, dict[str, int]]:
    """Two workers of one host that can work: the client, and the process of each by its address."""
    ready(mortal_cluster)
    pids = mortal_cluster.run(os.getpid)
    return mortal_cluster, {address: pids[address] for address in workers_of(mortal_cluster)}


def test_another_worker_is_asked_when_the_asked_one_leaves(two: tuple[Client, dict[str, int]]) -> None:
    client, workers = two
    [first, second] = workers
    os.kill(workers[first], signal.SIGSTOP)  # it hangs, and is not gone
    said: list[str] = []

    def killed(waiting: str) -> None:
        if not said:
            os.kill(workers[first], signal.SIGKILL)  # one that is stopped, too
        said.append(waiting)

    assert ask_hosts(client, os.getpid, seconds=60.0, again=1000.0, say=killed) == {second: workers[second]}
    assert "1 hosts" in said[0]


def test_another_worker_is_asked_when_the_asked_one_hangs(pool: Pool, two: tuple[Client, dict[str, int]]) -> None:
    client, workers = two
    [first, second] = workers
    os.kill(workers[first], signal.SIGSTOP)
    assert ask_hosts(client, os.getpid, seconds=60.0, again=0.1) == {second: workers[second]}
    assert ask_hosts(client, os.getpid, seconds=0.1, known=["127.0.0.1"]) == {}
    assert ask(client, os.getpid, workers=[first], seconds=0.1) == {}
    os.kill(workers[first], signal.SIGCONT)
    assert ask_hosts(client, abs, -3, seconds=60.0).popitem()[1] == 3
    assert rows(pool, client) == rows(pool, None)


def test_threads_that_are_busy_with_other_work_are_waited_for_and_said(
    tmp_path: Path, pool: Pool, cluster: Client
) -> None:
    go = tmp_path / "go"
    said: list[str] = []

    def wake(progress: Progress) -> None:
        if "busy" in progress.waiting and not said:
            said.append(progress.waiting)
            go.write_text("done")

    with connect(cluster.scheduler.address) as user, dask.config.set({"dal.stall-timeout": 1.0}):
        theirs = [user.submit(until_there, go, pure=False) for _ in range(6)]
        while sum(map(len, user.processing().values())) < 2:
            time.sleep(0.02)  # polls the scheduler
        # What is asked beside the tasks is answered meanwhile.
        asked = ask(cluster, asyncio.to_thread, current_thread_name, workers=list(workers_of(cluster)), seconds=60.0)
        assert asked.keys() == workers_of(cluster).keys()
        assert not any("Dask-" in name or name == "MainThread" for name in asked.values())
        assert rows(pool, cluster, progress=wake) == rows(pool, None)
        assert "other work" in said[0]
        assert user.gather(theirs) == ["done"] * 6


SLOW_IMPORT = """
import sys, time
from pathlib import Path
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "dal.scan.worker.spans":
            while not Path({go!r}).exists():
                time.sleep(0.02)
            if Path({go!r}).read_text():
                raise ModuleNotFoundError("No module named 'numcodecs'")
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.slow
def test_workers_that_still_import_are_waited_for_and_those_that_cannot_are_refused(tmp_path: Path, pool: Pool) -> None:
    go = tmp_path / "go"
    go.write_text("broken")
    said: list[str] = []

    def wake(progress: Progress) -> None:
        said.append(progress.waiting)
        if sum("importing" in waiting for waiting in said) == 14:
            go.write_text("")

    log = tmp_path / "log"
    with (
        dask_scheduler() as address,
        dask_worker(address, preload=SLOW_IMPORT.format(go=str(go)), log=log),
        connect(address, timeout=60) as client,
    ):
        for door in (lambda: rows(pool, client), lambda: list(map_on(client, abs, [-1]))):
            with pytest.raises(ClusterError, match="numcodecs"):
                door()
        go.unlink()
        # The event loop is free meanwhile, and the imports take longer than a worker may take to answer.
        assert rows(pool, client, progress=wake, limits=Limits(probe_seconds=6.0)) == rows(pool, None)
    assert not said[-1]
    assert (
        3 <= log.read_text().count("'imported'") <= 8
    )  # a worker logs each call, and none stands for each of the waits


@pytest.mark.slow
def test_a_worker_that_preloads_has_imported_before_it_takes_part() -> None:
    with (
        dask_scheduler(preload="dal.compute.preload") as address,
        dask_worker(address, preload="dal.compute.preload"),
        connect(address, timeout=60) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        [loaded] = client.run(eval, "sorted(__import__('sys').modules)").values()
        assert "dal.scan.worker.spans" in loaded
        assert "dal.scan.worker.spans" in client.run_on_scheduler(eval, "sorted(__import__('sys').modules)")


LACKS = """
import sys
def refuse(event, given):
    if event == "open" and str(given[0]).startswith({pool!r}):
        raise FileNotFoundError(2, "No such file or directory", given[0])
    if event in ("open", "os.mkdir") and str(given[0]).startswith({cells!r}) and (
        event == "os.mkdir" or set(str(given[1])) & set("wax+") or (isinstance(given[2], int) and given[2] & 3)
    ):
        raise PermissionError(13, "Permission denied", given[0])
sys.addaudithook(refuse)
"""


@pytest.mark.slow
def test_a_host_that_lacks_the_pool_is_named_and_one_that_cannot_write_is_noted(tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((1_000, 3)).astype(np.float32)
    pool, elsewhere = (Pool.build(X, tmp_path / f"{name}.zarr") for name in ("pool", "elsewhere"))
    model = Learner.named("logistic", ["a", "b"]).fit(X[:60], np.arange(60) % 2)
    codebook, spread = sample_codebook(pool, 4, random_state=0), Strategy.named("default")
    assert spread.capacity(4, pool.n_rows, 4).cells
    lacks = LACKS.format(pool=str(tmp_path / "elsewhere.zarr"), cells=str(tmp_path / "cells.zarr"))
    with (
        dask_scheduler() as address,
        dask_worker(address),
        dask_worker(address, host="127.0.0.2", preload=lacks),
        connect(address, timeout=60) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        with pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.2:.*elsewhere\.zarr"):
            rows(elsewhere, client)
        cells = stored_cells(tmp_path / "cells.zarr", pool.n_rows, codebook)
        found = scan(pool, model, spread, 4, client=client, codebook=codebook, cells=cells)
        [note] = found.summary.notes
        assert "127.0.0.2" in note
        assert "cells.zarr" in note
        assert not found.summary.wrote_cells
        alone = scan(pool, model, spread, 4, codebook=codebook)
        assert found.candidates.rows.tolist() == alone.candidates.rows.tolist()


@pytest.mark.slow
def test_a_scheduler_that_is_lost_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    tracebacks: list[object] = []
    monkeypatch.setattr(logging.Logger, "exception", lambda _, *given, **__: tracebacks.append(given))
    with dask_scheduler() as address, connect(address, timeout=60) as client:
        os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)
        while client.status == "running":
            time.sleep(0.02)  # polls the client, which looks for the scheduler from now on
        assert client.status == "connecting"
    assert tracebacks == []
