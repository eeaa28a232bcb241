"""Campaigns of three rounds on clusters that give no peace, for `python -m benchmarks clusters`.

Each is a test: it must ask what its twin in one process asks.
"""

import getpass
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import dask
import pytest
from distributed import Client

import dal
from benchmarks import object_server
from dal.compute.client import connect
from dal.compute.local import SETTINGS, local_cluster
from tests import slurm
from tests.clusters import dask_scheduler, dask_worker, own_cluster
from tests.recipes import ROOT, flat, free_port
from tests.test_ssh import Hosts, hosts
from tests.twins import ROUNDS, Twins

__all__ = ["hosts"]  # a fixture

pytestmark = pytest.mark.timeout(500)
TILES = 16


@pytest.fixture
def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Twins:
    made = Twins(tmp_path, TILES)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def play(twins: Twins, client: Client | object) -> None:
    """Play all rounds on a cluster."""
    for number in range(1, ROUNDS + 1):
        twins.campaign.next_batch(client=client)
        assert twins.answer(number) == twins.batches[number - 1]


@contextmanager
def again_and_again(disturb: Callable[[], object], seconds: float) -> Iterator[None]:
    """Do something again and again while a campaign is played."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            disturb()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def kill_one(client: Client) -> None:
    """Kill a worker of a cluster."""
    with suppress(OSError):  # it has just ended
        pids = [pid for pid in client.run(os.getpid, on_error="return").values() if isinstance(pid, int)]
        if pids:
            os.kill(random.choice(pids), signal.SIGKILL)


def test_workers_share_a_process(twins: Twins) -> None:
    sizes = itertools.cycle((2, 3))
    with (
        own_cluster(3, threads=2, processes=False, protocol="tcp") as (cluster, client),
        again_and_again(lambda: cluster.scale(next(sizes)), 2.0),
    ):
        play(twins, client)


def test_workers_have_processes_and_threads(twins: Twins) -> None:
    with (
        # Dask's own give up on a worker that is down for 15 s.
        dask.config.set(flat(SETTINGS)),
        own_cluster(2, threads=2) as (_, client),
        connect(client.scheduler.address) as other,
        again_and_again(partial(kill_one, other), 8.0),
    ):
        play(twins, client)


def test_workers_die_again_and_again(twins: Twins) -> None:
    running: list[tuple[ExitStack, subprocess.Popen[bytes]]] = []

    def start(address: str) -> None:
        stack = ExitStack()
        running.append((stack, stack.enter_context(dask_worker(address, preload="dal.compute.preload"))))

    def replace(address: str, client: Client) -> None:
        stack, process = running.pop(random.randrange(len(running)))
        process.kill()
        stack.close()
        start(address)
        # On a busy machine a worker takes longer to start than the next has to live: in the end there would be none.
        client.wait_for_workers(len(running), timeout=120)

    with dask_scheduler(preload="dal.compute.preload") as address, connect(address, timeout=60) as client:
        try:
            for _ in range(4):
                start(address)
            with again_and_again(partial(replace, address, client), 4.0):
                play(twins, client)
        finally:
            for stack, _ in running:
                stack.close()


def test_others_use_the_cluster(tmp_path: Path) -> None:
    both = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        both.append(Twins(tmp_path / name, TILES))
        both[-1].hurry()
    with local_cluster(2) as client, connect(client.scheduler.address) as user:
        theirs = [user.submit(time.sleep, 1.0, pure=False) for _ in range(20)]
        with ThreadPoolExecutor(2) as threads:
            for each in [threads.submit(play, twins, client.scheduler.address) for twins in both]:
                each.result()
        assert user.gather(theirs) == [None] * 20


def test_the_scheduler_dies(twins: Twins, tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"

    def next_batch(log: str) -> "subprocess.Popen[bytes]":
        with (tmp_path / log).open("wb") as output:
            command = [sys.executable, "-m", "dal", "next", str(twins.campaign.directory), "--scheduler", address]
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    @contextmanager
    def cluster() -> Iterator[int]:
        """Run a cluster on the same port; gives the scheduler's process."""
        with dask_scheduler(port=port), dask_worker(address), dask_worker(address):
            with connect(address, timeout=60) as client:
                client.wait_for_workers(2, timeout=60)
                scheduler = client.run_on_scheduler(os.getpid)
            yield scheduler

    for number in range(1, ROUNDS + 1):
        if number > 1:  # the first scan is over too soon
            with cluster() as scheduler, next_batch("lost.log") as lost:
                twins.wait_for_span()
                os.kill(scheduler, signal.SIGKILL)
                assert lost.wait(timeout=90) == 75
            said = (tmp_path / "lost.log").read_text()
            assert "run again" in said
            assert "Traceback" not in said
        twins.hurry()
        with cluster(), next_batch("again.log") as again:
            assert again.wait(timeout=120) == 0, (tmp_path / "again.log").read_text()
        twins.slow_down()
        assert twins.answer(number) == twins.batches[number - 1]


def test_a_store_fails_now_and_then(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    twins.hurry()
    with object_server.running() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        here = dal.Pool.open(twins.folder / "pool.zarr")
        pool = dal.Pool.build(here.read(0, here.n_rows), "s3://bucket/pool.zarr")
        there = [
            dal.Campaign.create(
                twins.folder / name, place, ["a", "b"], batch_size=20, random_state=5, stop=[f"max_rounds={ROUNDS}"]
            )
            for name, place in (("local", here), ("remote", pool))
        ]
        server.fail(refused=0.05, cut=0.05)
        with local_cluster(2) as client:
            for number in range(1, ROUNDS + 1):
                asked = []
                for campaign, where in zip(there, (None, client), strict=True):
                    batch = campaign.next_batch(client=where)
                    campaign.label(batch, twins.y[batch.rows])
                    asked.append(batch.rows.tolist())
                assert asked[0] == asked[1], number


def test_dask_starts_the_hosts(twins: Twins, hosts: Hosts) -> None:
    pytest.importorskip("asyncssh")
    from distributed import SSHCluster

    twins.hurry()
    options = {
        "port": hosts.ssh_port,
        "username": getpass.getuser(),
        "client_keys": [str(hosts.folder / "id")],
        "known_hosts": None,
    }
    with SSHCluster(
        ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        connect_options=options,
        remote_python=sys.executable,
        scheduler_options={"host": "127.0.0.1", "port": hosts.port, "dashboard_address": "127.0.0.1:0"},
        worker_options={"n_workers": 1, "nthreads": 1},
    ) as cluster:
        play(twins, cluster)


def test_dask_submits_the_jobs(twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    from dask_jobqueue import SLURMCluster

    if missing := slurm.missing():
        pytest.skip(f"SLURM ({', '.join(missing)}) is not there")
    if os.geteuid():
        pytest.skip("this SLURM has to be started by root")
    twins.hurry()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    with slurm.running() as queue:
        for name, value in queue.environment.items():
            monkeypatch.setenv(name, value)
        with SLURMCluster(
            cores=2,
            processes=2,
            memory="4GB",
            walltime="00:10:00",
            log_directory=str(tmp_path),
            scheduler_options={"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
            worker_extra_args=["--host", "127.0.0.1"],
            job_script_prologue=[f"export DASK_CONFIG={ROOT}/cluster/distributed.yaml"],
        ) as cluster:
            # The task that asks for workers asks for one. The other worker of a job of two that is still starting is
            # surplus, and Dask ends the job after `wait_count` looks.
            cluster.adapt(minimum_jobs=0, maximum_jobs=2, interval="1s", wait_count=60)
            play(twins, cluster)
