"""Clusters that adapt to their load, and have no worker when dal comes: asking brings one."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from dal import Campaign
from dal.compute import plugins, preload, ready, work
from dal.compute.work import map_on
from dal.errors import ClusterError
from dal.learners.learner import Learner
from dal.loop.campaign import Batch
from dal.map import map_of
from dal.pool import Pool
from dal.replay import TestSet, compare, compare_side_by_side
from dal.scan import Limits, scan
from dal.scan.plan import LIMITS
from dal.selection.strategy import Strategy
from tests.clusters import own_cluster

CLASSES = ("a", "b")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    X = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32)
    return Pool.build(X, tmp_path_factory.mktemp("adaptive") / "pool.zarr")


@pytest.fixture(scope="module")
def adaptive() -> Iterator[tuple[LocalCluster, Client]]:
    """Its workers are threads of this process, which start at once."""
    with own_cluster(0, processes=False, protocol="tcp") as (cluster, client):
        yield cluster, client


@pytest.fixture
def asleep(adaptive: tuple[LocalCluster, Client]) -> Client:
    cluster, client = adaptive
    fall_asleep(cluster, client)
    return client


def fall_asleep(cluster: LocalCluster, client: Client, **options: object) -> None:
    cluster.adapt(minimum=0, maximum=0, interval="50ms", wait_count=3)
    deadline = time.monotonic() + 60
    while client.nthreads():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polls the scheduler
    cluster.adapt(minimum=0, maximum=2, **{"interval": "50ms", "wait_count": 10_000, **options})


def scanned(pool: Pool, client: Client | None, limits: Limits = LIMITS) -> object:
    model = Learner.named("logistic", CLASSES).fit(pool.read(0, 60), np.arange(60) % 2)
    found = scan(pool, model, Strategy.named("margin"), 30, client=client, limits=limits).candidates
    return found.rows.tolist(), found.scores.tolist()


def mapped(pool: Pool, client: Client | None) -> object:
    return map_of(pool, None, 1, client=client).density.tolist()


def replayed(pool: Pool, client: Client | None) -> object:
    y = (pool.read(0, 4000)[:, 0] > 0).astype(np.int64)
    test, settings = TestSet(pool.read(0, 100), y[:100]), {"random_state": (1,), "batch_size": 10, "rounds": 2}
    if client is None:
        found = compare(pool, y, test, CLASSES, ("margin",), **settings)
    else:
        found = compare_side_by_side(pool, y, test, CLASSES, ("margin",), client=client, **settings)
    return [rows.tolist() for rows in found.replays[0].batches]


def doubled(item: int) -> int:
    return 2 * item


def computed(_: Pool, client: Client | None) -> object:
    return list(map(doubled, range(9)) if client is None else map_on(client, doubled, range(9)))


@pytest.mark.parametrize("door", [scanned, mapped, replayed, computed])
def test_a_cluster_of_no_workers_is_woken(
    door: Callable[[Pool, Client | None], object], pool: Pool, asleep: Client
) -> None:
    assert not asleep.nthreads()
    assert door(pool, asleep) == door(pool, None)
    assert asleep.nthreads()


def test_a_cluster_that_falls_asleep_before_the_first_span_is_woken_again(
    pool: Pool, adaptive: tuple[LocalCluster, Client], asleep: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring, slept = work.bring, []

    def brought_to_nobody(client: Client, plugin: object) -> None:
        bring(client, plugin)
        slept.append(len(client.nthreads()))
        fall_asleep(*adaptive)

    monkeypatch.setattr(work, "bring", brought_to_nobody)
    assert scanned(pool, asleep) == scanned(pool, None)
    assert slept == [1]


def test_a_worker_that_imports_for_longer_than_an_idle_one_lives_is_kept(
    adaptive: tuple[LocalCluster, Client], asleep: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(_: float) -> bool:
        await asyncio.sleep(1.5)
        return True

    seen: set[str] = set()

    def look(_: str) -> None:
        seen.update(asleep.nthreads())
        assert len(seen) < 2

    monkeypatch.setattr(preload, "imported", slowly)
    adaptive[0].adapt(minimum=0, maximum=2, interval="50ms", wait_count=10)
    ready.ready(asleep, say=look, awake_seconds=0.1)
    assert seen == set(asleep.nthreads())
    assert seen


def test_a_worker_that_leaves_takes_nothing_from_others_of_its_process(
    pool: Pool, adaptive: tuple[LocalCluster, Client]
) -> None:
    limits = Limits(tile_rows=64, span_bytes=1)
    cluster, client = adaptive
    cluster.adapt(minimum=2, maximum=2, interval="50ms")
    client.wait_for_workers(2, timeout=60)
    cluster.adapt(minimum=1, maximum=2, interval="600s")  # nobody comes in place of the one that leaves
    model = Learner.named("logistic", CLASSES).fit(pool.read(0, 60), np.arange(60) % 2)
    left: list[str] = []

    def one_leaves(_: object) -> None:
        if not left:
            left.append(next(iter(client.nthreads())))
            client.retire_workers(left)

    strategy = Strategy.named("margin")
    found = scan(pool, model, strategy, 30, client=client, progress=one_leaves, limits=limits).candidates
    assert len(left) == 1
    assert (found.rows.tolist(), found.scores.tolist()) == scanned(pool, None, limits)
    assert not plugins._HELD


@pytest.mark.parametrize("door", [scanned, mapped, replayed, computed])
def test_a_cluster_that_stays_empty_says_what_to_do(
    door: Callable[[Pool, Client | None], object],
    pool: Pool,
    adaptive: tuple[LocalCluster, Client],
    asleep: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adaptive[0].adapt(minimum=0, maximum=0, interval="50ms", wait_count=3)
    with (
        dask.config.set({"dal.no-workers-timeout": 0.3}),
        pytest.raises(ClusterError, match=r"no worker for 0 s.*adapt\(minimum=1\)"),
    ):
        door(pool, asleep)


def test_work_that_lost_its_workers_ends_in_an_error(
    adaptive: tuple[LocalCluster, Client], asleep: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = map_on(asleep, waits_for_ever, [1])
    adaptive[0].adapt(minimum=0, maximum=0, interval="50ms", wait_count=3)
    with dask.config.set({"dal.no-workers-timeout": 1}), pytest.raises(ClusterError, match="no worker for 1 s"):
        next(results)


def waits_for_ever(item: int) -> int:
    time.sleep(60)
    return item


@pytest.mark.slow
def test_a_campaign_on_workers_that_come_and_go_asks_the_same(pool: Pool, tmp_path: Path) -> None:
    y = (pool.read(0, 4000)[:, 0] > 0).astype(np.int64)

    def batches(name: str, client: Client | None, before_each: Callable[[], None]) -> list[list[int]]:
        campaign = Campaign.create(tmp_path / name, pool, CLASSES, batch_size=20, random_state=3)
        asked = []
        for _ in range(3):
            before_each()
            batch = campaign.next_batch(client=client)
            assert isinstance(batch, Batch)
            campaign.label(batch, y[batch.rows])
            asked.append(batch.rows.tolist())
        return asked

    with own_cluster(0) as (cluster, client):
        there = batches("there", client, lambda: fall_asleep(cluster, client, interval="200ms"))
    assert there == batches("here", None, lambda: None)
