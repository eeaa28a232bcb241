"""What can go wrong while a scan runs, really done: no hang, no lost work, the same result."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest
import zarr
from distributed import Client
from threadpoolctl import threadpool_limits

from dal.compute import waits
from dal.compute.client import connect
from dal.compute.local import local_cluster
from dal.compute.waits import InFlight
from dal.errors import ClusterError, LearnerError, SpanError
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import Journal, Limits, Progress, Scan, scan
from dal.scan import cluster as engine
from dal.scan.plan import in_flight
from dal.scan.worker.spans import BEGUN
from dal.selection.strategy import Strategy
from tests import broken_learners
from tests.broken_learners import (
    Halts,
    KillsItsWorker,
    Raises,
    ReturnsNaN,
    ReturnsTooManyColumns,
    Steady,
    WantsOneThread,
)
from tests.clusters import own_cluster
from tests.recipes import free_port, until

N, TILE = 40_000, 1024
POISONED_ROW = 23_456


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pool]:
    folder = tmp_path_factory.mktemp("pools")
    X = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
    poisoned = X.copy()
    poisoned[POISONED_ROW, 0] = broken_learners.POISON
    found = {}
    for name, records in {"clean": X, "poisoned": poisoned}.items():
        array = zarr.create_array(folder / f"{name}.zarr", shape=X.shape, chunks=(TILE, 3), dtype="float32")
        array[:] = records
        found[name] = Pool.open(folder / f"{name}.zarr")
    return found


def model(estimator: Steady) -> Model:
    X = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    return Learner(estimator, ["no", "yes"], trusted=broken_learners.NAMES).fit(X, np.arange(20) % 2)


def run(pool: Pool, fitted: Model, **options: object) -> Scan:
    limits = options.pop("limits", Limits(tile_rows=TILE, span_bytes=1))  # many small spans
    return scan(pool, fitted, Strategy.named("margin"), 50, random_state=3, limits=limits, **options)


def assert_same(a: Scan, b: Scan) -> None:
    assert a.candidates.rows.tolist() == b.candidates.rows.tolist()
    assert a.candidates.scores.tolist() == b.candidates.scores.tolist()
    assert a.summary.tally.rows == b.summary.tally.rows
    assert a.summary.tally.histogram.counts.tolist() == b.summary.tally.histogram.counts.tolist()


@contextmanager
def at_progress(when: float, what: object) -> Iterator[object]:
    """Give a progress callback that does something once, when so much of the pool is done."""
    done: list[bool] = []

    def told(progress: Progress) -> None:
        if progress.rows_done >= when * N and not done:
            done.append(True)
            what()  # type: ignore[operator]

    yield told
    assert done


# -- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_killed_again_and_again_cost_only_their_spans(pools: dict[str, Pool]) -> None:
    expected = run(pools["clean"], model(Steady()))
    with local_cluster(2) as client:
        stop = threading.Event()
        killed: list[int] = []

        def kill_every_second() -> None:
            while not stop.wait(1.0) and len(killed) < 3:
                victims = [pid for pid in client.run(os.getpid, on_error="return").values() if isinstance(pid, int)]
                if victims:
                    killed.append(victims[0])
                    os.kill(victims[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_every_second)
        killer.start()
        try:
            found = run(pools["clean"], model(Steady(seconds=0.15)), client=client)
        finally:
            stop.set()
            killer.join()
    assert killed
    assert_same(found, expected)
    assert found.summary.rows_again <= 3 * TILE * len(killed)  # what it was at, and what it had not sent yet


@pytest.mark.slow
def test_the_rows_of_the_span_that_a_worker_died_at_are_counted(pools: dict[str, Pool], tmp_path: Path) -> None:
    log, done = tmp_path / "log", [0]
    log.touch()

    def lines(word: str) -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith(word)]

    def told(progress: Progress) -> None:
        done[0] = progress.rows_done

    with local_cluster(1) as client:

        def kill() -> None:
            until(lambda: lines("halted"))
            # Every span before has been fetched, and the scheduler knows that this one was begun.
            until(lambda: -(-done[0] // TILE) == len(lines(f"scored {TILE}")))
            until(lambda: len(client.get_events(BEGUN)) == 1 + len(lines(f"scored {TILE}")))
            os.kill(int(lines("halted")[0].split()[1]), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = run(pools["poisoned"], model(Halts(str(log))), client=client, progress=told)
        killer.join()
    assert len(lines("halted")) == 1
    assert found.summary.rows_again == TILE
    assert_same(found, run(pools["poisoned"], model(Halts(str(log)))))


@pytest.mark.slow
def test_a_cluster_that_goes_from_none_to_many_to_none_costs_little(pools: dict[str, Pool]) -> None:
    shrunk: list[int] = []
    said: list[str] = []
    with own_cluster(0) as (cluster, client):

        def resize(progress: Progress) -> None:
            if "the cluster has none" in progress.waiting:
                if cluster.scheduler_info["workers"]:
                    return
                said.append(progress.waiting)
                cluster.scale(2)
            elif len(shrunk) < 2 and progress.rows_done >= (0.3, 0.6)[len(shrunk)] * N:
                shrunk.append(progress.rows_done)
                cluster.scale(0)

        cluster.scale(2)
        found = run(pools["clean"], model(Steady(seconds=0.02)), client=client, progress=resize)
    assert len(shrunk) == 2
    assert said
    assert_same(found, run(pools["clean"], model(Steady())))
    assert found.summary.rows_again <= len(shrunk) * in_flight(2) * TILE  # at most what was in flight, each time


def test_a_result_whose_worker_left_before_it_was_fetched_comes_from_another_one() -> None:
    said: list[str] = []
    with own_cluster(1, processes=False, protocol="tcp") as (cluster, client):

        def say(reason: str) -> None:
            if not said:
                cluster.scale(1)
            said.append(reason)

        with InFlight(client, say=say) as flight:
            flight.submit(abs, [-1, -2])
            until(lambda: {future.status for future in flight.pending} == {"finished"})
            cluster.scale(0)
            until(lambda: {future.status for future in flight.pending} == {"lost"})
            assert flight.ended() == []
            outcomes = []
            while flight.pending:
                outcomes += flight.ended()
    assert sorted(outcomes) == [(-2, 2), (-1, 1)]
    assert "the cluster has none" in said[0]


@pytest.mark.slow
def test_results_that_a_worker_died_with_are_asked_for_again(
    pools: dict[str, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(pools["clean"], model(Steady()))
    asked: list[int] = []
    sent: list[int] = []
    gathered, gather = waits.gathered, Client.gather

    async def killing_whom_it_asks(client: Client, futures: list[object], patience: float) -> list[object]:
        asked.append(len(futures))
        if len(asked) == 2:
            holders = await client.scheduler.who_has(keys=[futures[0].key])  # type: ignore[attr-defined]
            told = await client.run(os.getpid, workers=list(holders[futures[0].key]))  # type: ignore[attr-defined]
            for pid in told.values():
                os.kill(pid, signal.SIGKILL)
        return await gathered(client, futures, patience)

    monkeypatch.setattr(waits, "gathered", killing_whom_it_asks)

    def counted(client: Client, futures: list[object], **options: object) -> object:
        sent.append(len(futures))
        return gather(client, futures, **options)

    monkeypatch.setattr(Client, "gather", counted)
    with dask.config.set({"dal.fetch-timeout": 0.2}), local_cluster(2) as client:
        found = run(pools["clean"], model(Steady(seconds=0.02)), client=client)
    assert len(sent) > len(asked) > 2
    assert_same(found, expected)


@pytest.mark.slow
def test_features_that_a_worker_died_with_are_read_from_the_pool(
    pools: dict[str, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(pools["clean"], model(Steady()), with_features=True)
    features, take = engine._Cluster.features, engine._Cluster._take
    read: list[int] = []

    def of_the_dead(cluster: engine._Cluster, rows: np.ndarray) -> np.ndarray:
        keeper, own = cluster._by_keeper(rows)[0]
        assert len(own)
        os.kill(cluster.client.run(os.getpid, workers=[keeper])[keeper], signal.SIGKILL)
        return features(cluster, rows)

    def counted(cluster: engine._Cluster, rows: np.ndarray) -> np.ndarray:
        read.append(len(rows))
        return take(cluster, rows)

    monkeypatch.setattr(engine._Cluster, "features", of_the_dead)
    monkeypatch.setattr(engine._Cluster, "_take", counted)
    with local_cluster(2) as client:
        found = run(pools["clean"], model(Steady()), client=client, with_features=True)
    assert 0 < read[0] <= len(expected.candidates)
    assert_same(found, expected)
    np.testing.assert_array_equal(found.candidates.embeddings, expected.candidates.embeddings)
    np.testing.assert_array_equal(found.candidates.embeddings, pools["clean"].take(found.candidates.rows))


@pytest.mark.slow
def test_a_cluster_that_loses_all_workers_ends_in_an_error_and_the_next_goes_on(
    pools: dict[str, Pool], tmp_path: Path
) -> None:
    fitted = model(Steady(seconds=0.02))
    with (
        dask.config.set({"dal.no-workers-timeout": 2}),
        own_cluster(1) as (cluster, client),
        at_progress(0.3, lambda: cluster.scale(0)) as told,
        pytest.raises(ClusterError, match=r"no worker for 2 s.*goes on from there"),
    ):
        run(pools["clean"], fitted, client=client, journal=Journal(tmp_path / "j"), progress=told)
    resumed = run(pools["clean"], fitted, journal=Journal(tmp_path / "j"))
    assert resumed.summary.spans_resumed * TILE >= 0.3 * N
    assert_same(resumed, run(pools["clean"], fitted))


@pytest.mark.slow
def test_a_cluster_may_grow_and_shrink(pools: dict[str, Pool]) -> None:
    sizes: list[int] = []
    with (
        own_cluster(1, threads=2) as (cluster, client),
    ):

        def resize(progress: Progress) -> None:
            sizes.append(len(client.nthreads()))
            if len(sizes) == 5:
                cluster.scale(3)
            if len(sizes) == 25:
                cluster.scale(1)

        found = run(pools["clean"], model(Steady(seconds=0.05)), client=client, progress=resize)
    assert_same(found, run(pools["clean"], model(Steady())))


def test_a_worker_that_cannot_hold_the_scan_is_refused_with_the_numbers(pools: dict[str, Pool]) -> None:
    with (
        own_cluster(1, threads=16, memory_limit="600MiB", processes=False, protocol="tcp") as (_, client),
        pytest.raises(ClusterError, match=r"has 600 MiB for 16 threads; this scan takes about .* MiB.*base 350"),
    ):
        run(pools["clean"], model(Steady()), client=client)


# -- the scheduler ----------------------------------------------------------------------------------------------------


@contextmanager
def hand_started_cluster() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rsplit(":", 1)[1]
    here = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port]
    there = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    scheduler = subprocess.Popen([*here, "--no-dashboard"], **quiet, env=environment)
    worker = subprocess.Popen([*there, "--no-dashboard", "--no-nanny"], **quiet, env=environment)
    try:
        yield address, scheduler
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(20)


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_in_an_error_and_the_next_goes_on(
    pools: dict[str, Pool], tmp_path: Path
) -> None:
    fitted = model(Steady(seconds=0.05))
    started = time.monotonic()
    with (
        hand_started_cluster() as (address, scheduler),
        connect(address, timeout=60) as client,
        at_progress(0.2, scheduler.kill) as told,
        pytest.raises(ClusterError, match="run again"),
    ):
        run(pools["clean"], fitted, client=client, journal=Journal(tmp_path / "j"), progress=told)
    assert time.monotonic() - started < 90
    resumed = run(pools["clean"], fitted, journal=Journal(tmp_path / "j"))
    assert resumed.summary.spans_resumed * TILE >= 0.2 * N
    assert_same(resumed, run(pools["clean"], fitted))


# -- learners and spans -----------------------------------------------------------------------------------------------


def test_rows_that_a_learner_refuses_are_named(pools: dict[str, Pool], cluster: Client) -> None:
    first = POISONED_ROW // TILE * TILE
    for client in (None, cluster):
        with pytest.raises(LearnerError, match=f"Rows {first:,} to {first + TILE - 1:,} of .*cannot digest"):
            run(pools["poisoned"], model(Raises()), client=client)


@pytest.mark.parametrize("tiles", [1, 16])
def test_rows_that_always_fail_are_left_out_on_request(pools: dict[str, Pool], cluster: Client, tiles: int) -> None:
    # In longer spans as well, as a fast cluster is sent them: no more rows are left out for that.
    limits = Limits(tile_rows=TILE, span_bytes=tiles * TILE * 12)
    found = run(pools["poisoned"], model(Raises()), client=cluster, skip_failed=True, limits=limits)
    first = POISONED_ROW // TILE * TILE
    assert found.summary.skipped == ((first, first + TILE),)
    assert f"{TILE:,} rows were skipped" in repr(found)
    everywhere = run(pools["clean"], model(Steady()), limits=limits)
    outside = [r for r in everywhere.candidates.rows.tolist() if not first <= r < first + TILE]
    assert set(outside) <= set(found.candidates.rows.tolist())
    assert found.summary.tally.rows == N - TILE


@pytest.mark.slow
def test_a_span_that_kills_its_worker_is_named(pools: dict[str, Pool]) -> None:
    with local_cluster(2) as client:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        with pytest.raises(SpanError, match=r"failed 3 times.*KilledWorker"):
            run(pools["poisoned"], model(KillsItsWorker()), client=client)


def test_predictions_of_another_shape_are_refused(pools: dict[str, Pool], cluster: Client) -> None:
    for client in (None, cluster):
        with pytest.raises(LearnerError, match=r"columns|shape"):
            run(pools["clean"], model(ReturnsTooManyColumns()), client=client)


def test_records_of_which_a_model_says_nothing_are_counted_and_not_asked(
    pools: dict[str, Pool], cluster: Client
) -> None:
    pool = pools["clean"]
    for client in (None, cluster):
        found = run(pool, model(ReturnsNaN()), client=client)
        assert found.candidates.rows.tolist() == []
        assert found.summary.tally.invalid == pool.n_rows
        assert found.summary.tally.invalid_rows.tolist() == list(range(len(found.summary.tally.invalid_rows)))


def test_the_result_is_the_same_with_two_threads_a_worker_and_three_of_linear_algebra(
    pools: dict[str, Pool],
) -> None:
    expected = run(pools["clean"], model(Steady()))
    fitted = model(WantsOneThread(seconds=0.005))
    with threadpool_limits(3), own_cluster(2, threads=2, processes=False, protocol="tcp") as (_, client):
        found = run(pools["clean"], fitted, client=client)
    assert_same(found, expected)


def test_a_pool_that_one_host_cannot_read_is_refused_before_work_starts(tmp_path: Path, cluster: Client) -> None:
    pool = Pool.build(np.eye(4), tmp_path / "pool.zarr")
    (tmp_path / "pool.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(ClusterError, match="cannot read the pool"):
        scan(pool, None, Strategy.named("random"), 2, client=cluster)
