import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from dal import Campaign
from dal.compute import plugins
from dal.compute.client import connect
from dal.compute.local import _PRELOADED, SETTINGS, local_cluster
from dal.compute.plugins import Brought, bring, take_back
from dal.compute.work import Beat, each_on, map_on
from dal.compute.workers import OnDemand, workers_of
from dal.errors import ClusterError, ClusterLost, SettingsError
from dal.map import map_of
from dal.pool import Pool
from dal.scan import scan
from dal.selection.batch import select
from dal.selection.candidates import Candidates
from dal.selection.strategy import Strategy
from tests.clusters import own_cluster

ROOT = Path(__file__).parents[1]
WORKER_ENVIRONMENT = SETTINGS["distributed"]["nanny"]["pre-spawn-environ"]


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and its children listen."""
    family = [process, *process.children(recursive=True)]
    return {
        connection.laddr.ip
        for member in family
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.fixture
def client(cluster: Client) -> Client:
    return cluster


def test_a_local_cluster_has_processes_of_one_thread(client: Client) -> None:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert [worker["nthreads"] for worker in workers] == [1, 1]
    pids = set(client.run(os.getpid).values())
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_local_cluster_listens_on_loopback_only(client: Client) -> None:
    assert len(psutil.Process().children(recursive=True)) >= 2
    assert listening(psutil.Process()) == {"127.0.0.1"}


def test_workers_have_the_environment_of_the_settings(client: Client) -> None:
    for name, value in WORKER_ENVIRONMENT.items():
        assert set(client.run(os.getenv, name).values()) == {os.environ.get(name, str(value))}


def test_the_scheduler_has_the_settings(client: Client) -> None:
    def limits(dask_scheduler: object) -> tuple[int, float, float]:
        return dask_scheduler.allowed_failures, dask_scheduler.no_workers_timeout, dask_scheduler.worker_ttl

    assert client.run_on_scheduler(limits) == (10, 600.0, 600.0)
    assert (
        dask.config.get("distributed.deploy.lost-worker-timeout") == "300s"
    )  # read in this process, when a worker dies


def test_workers_start_light_and_with_the_environment_of_now(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """A fork server that an earlier cluster has started serves the next one, with what the user has set since."""
    assert client.nthreads()
    monkeypatch.setenv("DAL_TEST_SET_SINCE", "yes")
    monkeypatch.chdir("/")
    with local_cluster(1) as other:
        assert other.submit(os.getenv, "DAL_TEST_SET_SINCE").result() == "yes"
        assert other.submit(os.getcwd).result() == "/"
        # A function of this module would bring what the module imports.
        loaded = set(other.submit(lambda: [name.partition(".")[0] for name in sys.modules]).result())
    assert "dal" in loaded
    assert not loaded & {"bokeh", "fastapi", "sqlalchemy", "dask_ml"}
    for module in _PRELOADED:
        import_module(module)


@pytest.mark.slow
def test_workers_end_with_a_killed_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANS, encoding="utf-8")
    command = [sys.executable, script]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert len(gone) == len(family)
    assert alive == []


ORPHANS = """
import time
from dal.compute.local import local_cluster

if __name__ == "__main__":
    with local_cluster(2) as client:
        client.wait_for_workers(2)
        print("ready", flush=True)
        time.sleep(600)
"""


def test_no_client_means_no_cluster() -> None:
    with connect(None) as client:
        assert client is None


def test_a_client_is_given_as_it_is_and_stays_open(client: Client) -> None:
    with connect(client) as same:
        assert same is client
    assert client.submit(abs, -3).result() == 3


def test_an_address_gives_a_client_of_its_own_that_is_closed(client: Client) -> None:
    with connect(client.scheduler.address) as opened:
        assert opened is not client
        assert opened.submit(abs, -4).result() == 4
    assert opened.status == "closed"
    assert client.submit(abs, -5).result() == 5


def test_a_cluster_gives_a_client_that_is_closed_and_is_left_running(client: Client) -> None:
    with connect(client.cluster) as opened:
        assert opened.submit(abs, -6).result() == 6
    assert opened.status == "closed"
    assert client.cluster.status.name == "running"


def test_no_client_becomes_the_default_of_the_users_program(client: Client) -> None:
    with connect(client.scheduler.address), pytest.raises(ValueError, match="No clients found"):
        Client.current(allow_global=True)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "tcp://nobody.invalid:8786"])
def test_an_address_where_nobody_answers_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=f"nobody answers at {address}.*README"), connect(address, timeout=0.3):
        pass


@pytest.mark.parametrize("address", ["", "somewhere", "tcp://host:port", "http://127.0.0.1:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="`client` must be an address"), connect(address, timeout=0.3):
        pass


def test_tls_without_certificates_is_refused() -> None:
    with pytest.raises(ClusterError, match="--tls-cert"), connect("tls://127.0.0.1:1", timeout=0.3):
        pass


def test_an_address_that_is_no_scheduler_is_refused(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterLost, match=f"{address} .*port"), connect(address, timeout=0.3):
            pass
    worker = next(iter(client.nthreads()))
    with pytest.raises(ClusterError, match=f"{worker}.*worker"), connect(worker):
        pass


def test_other_things_are_refused() -> None:
    with pytest.raises(SettingsError, match="address, got int"), connect(8786):
        pass


def test_workers_belong_to_a_local_cluster_only(client: Client) -> None:
    for target in (client, client.cluster, client.scheduler.address):
        with pytest.raises(SettingsError, match="workers=3 sizes a local cluster"), connect(target, workers=3):
            pass
    for start in (connect(None, workers=0), local_cluster(0), local_cluster(-1)):
        with pytest.raises(SettingsError, match="`workers` must be at least 1"), start:
            pass


def test_a_closed_client_is_refused(client: Client) -> None:
    with connect(client.scheduler.address) as gone:
        pass
    with pytest.raises(ClusterError, match="`client` must be connected"), connect(gone):
        pass


def test_asynchronous_ones_are_refused(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    for kind, target in ((Client, client), (LocalCluster, client.cluster)):
        monkeypatch.setattr(kind, "asynchronous", True)
        with pytest.raises(SettingsError, match="asynchronous=True"), connect(target):
            pass
        monkeypatch.undo()


def test_workers_start_with_the_first_work_that_they_pay_for_and_stay(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr("dal.compute.local.local_cluster", lambda n: started.append(n) or nullcontext(client))
    told: list[str] = []
    with OnDemand(told.append, n_cores=8) as workers:
        assert workers.client_for(1_000, seconds=0.1) is workers.client is None
        assert workers.client_for(50_000, seconds=60.0) is workers.client is client
        assert workers.client_for(1_000, seconds=0.1) is client
    assert workers.client is None
    assert started == [8]
    assert [reason.split()[0] for reason in told] == ["1,000", "50,000"]


def test_work_goes_where_a_client_cluster_or_address_says(client: Client) -> None:
    for target in (client, client.cluster, client.scheduler.address):
        with workers_of(target) as workers:
            assert workers.client_for(1, seconds=0.0).submit(abs, -3).result() == 3
            with workers_of(workers) as same:
                assert same is workers
    with workers_of(None) as workers:
        assert workers.client_for(10**9, seconds=1e9) is None


@pytest.mark.parametrize("door", ["scan", "map", "next"])
def test_every_door_takes_a_cluster_or_an_address(door: str, client: Client, tmp_path: Path) -> None:
    pool = Pool.build(np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32), tmp_path / "pool.zarr")

    def opened(target: object) -> list[int]:
        if door == "scan":
            return scan(pool, None, Strategy.named("random"), 20, client=target).candidates.rows.tolist()
        if door == "map":
            return map_of(pool, None, 0, client=target).density.ravel().tolist()
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return Campaign.create(place, pool, ("ham", "spam"), batch_size=9).next_batch(client=target).rows.tolist()

    alone = opened(None)
    for target in (client, client.cluster, client.scheduler.address):
        assert opened(target) == alone
    assert client.submit(abs, -7).result() == 7


SCRIPT = textwrap.dedent(
    """
    import os
    import time
    from concurrent.futures import Future
    import dask
    from dal.compute.client import connect

    def busy(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    def fail():
        raise ValueError("wrong")

    def allowed(dask_scheduler):
        return dask_scheduler.allowed_failures

    if __name__ == "__main__":
        before = dict(os.environ), dask.config.get("distributed")
        with connect(None, workers=1) as client:
            assert client.submit(fail).exception() is not None
            assert client.run(os.environ.get, "OMP_NUM_THREADS").popitem()[1] == "7"
            assert client.run_on_scheduler(allowed) == 77
            left = client.map(busy, [0.3, 0.3, 0.3])
            client.submit(abs, -1, priority=9).result()
        assert (dict(os.environ), dask.config.get("distributed")) == before
        print("done")
    """
)


@pytest.mark.slow
def test_a_cluster_leaves_without_noise_or_traces_and_respects_what_is_set(tmp_path: Path) -> None:
    """Work still under way, a task that failed; every warning an error; the user's own settings go first."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    own = {"OMP_NUM_THREADS": "7", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "77", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "error", script], env=os.environ | own, capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr, run.returncode) == ("done\n", "", 0)


# -- work shared out ----------------------------------------------------------------------


def squared(item: int) -> int:
    return item * item


def dies_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return marker


def refuses(item: int) -> int:
    raise ValueError(f"no {item}")


def test_results_come_in_order_and_only_a_few_items_are_taken_ahead(client: Client) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = map_on(client, squared, items())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) < 20
    assert list(results) == [item * item for item in range(3, 100)]
    assert list(map_on(client, squared, [])) == []
    with pytest.raises(ValueError, match="no 7"):
        list(map_on(client, refuses, [7]))


def test_what_a_dead_worker_had_is_done_by_others(tmp_path: Path, mortal_cluster: Client) -> None:
    marker = str(tmp_path / "died")
    assert list(map_on(mortal_cluster, dies_once, [marker])) == [marker]


def added(shared: int, item: int, beat: Beat) -> int:
    beat()
    return shared + item


def told_at(shared: str, item: int, beat: Beat) -> tuple[int, int]:
    """Take two seconds, with a beat in each quarter of one, and note on disk who is at work."""
    (Path(shared) / f"{item}-{os.getpid()}").touch()
    for _ in range(8):
        time.sleep(0.25)
        beat()
    return item, os.getpid()


def stands_still(shared: None, item: int, beat: Beat) -> None:
    time.sleep(60)


def cannot_read(shared: None, item: int, beat: Beat) -> None:
    raise FileNotFoundError(f"no {item}.zarr")


def test_items_come_as_they_end_with_what_is_shared(client: Client) -> None:
    assert dict(each_on(client, added, range(3, 9), 100)) == {item: 100 + item for item in range(3, 9)}
    assert list(each_on(client, added, [], 100)) == []
    with pytest.raises(FileNotFoundError, match=r"no 7\.zarr"):
        list(each_on(client, cannot_read, [7], None))
    assert client.run(lambda: len(plugins._HELD)) == dict.fromkeys(client.nthreads(), 0)


@pytest.mark.slow
def test_what_is_shared_outlives_every_worker_that_had_it(tmp_path: Path) -> None:
    with local_cluster(2) as client:
        first = set(client.run(os.getpid).values())
        killed: set[int] = set()
        found = {}
        for item, (same, pid) in each_on(client, told_at, range(6), str(tmp_path)):
            assert same == item
            found[item] = pid
            if len(killed) < 2:  # the two that were there at the beginning, one after the other, in mid-work
                victim = min(first - killed)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
        assert killed == first
        assert sorted(found) == list(range(6))
        assert set(found.values()) - first  # workers that came later have done some of it
        assert len(list(tmp_path.iterdir())) > 6  # what the dead were at was begun again


def holds(name: str) -> bool:
    return name in plugins._HELD


def test_what_is_dropped_in_the_loop_of_its_client_is_taken_back_as_well(client: Client) -> None:
    """As the garbage collector does it, which runs in any thread."""

    async def drop() -> None:
        take_back(client, "dropped")

    bring(client, Brought("dropped", list))
    assert set(client.run(holds, "dropped").values()) == {True}
    client.sync(drop)
    until = time.monotonic() + 60
    while any(client.run(holds, "dropped").values()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_work_that_stands_still_and_a_cluster_without_workers_end_in_an_error() -> None:
    with own_cluster(1) as (cluster, client):
        with dask.config.set({"dal.stall-timeout": "1 s"}), pytest.raises(ClusterError, match="no progress for 1 s"):
            list(each_on(client, stands_still, [1], None))
        cluster.scale(0)
        with (
            dask.config.set({"dal.no-workers-timeout": "1 s"}),
            pytest.raises(ClusterError, match="has had no worker for 1 s"),
        ):
            list(each_on(client, added, [1], 1))


def test_beats_keep_long_work_alive(client: Client, tmp_path: Path) -> None:
    with dask.config.set({"dal.stall-timeout": 1.2}):
        [(_, (item, _))] = each_on(client, told_at, [5], str(tmp_path))
    assert item == 5


def test_beats_of_several_calls_share_a_topic_and_reach_their_own(client: Client, tmp_path: Path) -> None:
    def topics() -> set[str]:
        return {topic for topic in client.get_events() if topic.startswith("dal")}

    list(each_on(client, added, range(2), 100))
    before = topics()
    long = each_on(client, told_at, [5, 6], str(tmp_path))
    with dask.config.set({"dal.stall-timeout": 1.2}):
        next(long)
        assert dict(each_on(client, added, range(3, 9), 100)) == {item: 100 + item for item in range(3, 9)}
        assert [item for item, _ in long] in ([5], [6])  # its beats are still heard
    assert before == topics() == {"dal-beat"} | (before - {"dal-beat"})


def test_a_large_batch_is_the_same_for_any_number_of_workers(client: Client) -> None:
    rng = np.random.default_rng(0)
    n = 8_400  # five leaves
    nothing = np.zeros(n, np.int64)
    points = rng.standard_normal((n, 6)).astype(np.float32)
    candidates = Candidates(np.arange(n) + 77, rng.random(n), nothing, nothing, points)
    labeled = rng.standard_normal((300, 6)).astype(np.float32)
    alone = select(candidates, Strategy(), 500, labeled, 3, 1).tolist()
    assert len(set(alone)) == 500
    with own_cluster(1, processes=False, protocol="tcp") as (_, smaller):
        for one in (client, smaller):
            together = select(candidates, Strategy(), 500, labeled, 3, 1, mapper=partial(map_on, one))
            assert together.tolist() == alone
