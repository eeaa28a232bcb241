"""Several at work on one cluster: two campaigns and a user's own tasks, of which nothing is touched."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import Client

import dal
from dal.compute.client import connect
from dal.learners.learner import Learner
from dal.pool import Pool
from dal.scan import Limits, Progress, scan
from dal.selection.strategy import Strategy
from tests import broken_learners
from tests.broken_learners import Gated, Steady
from tests.clusters import own_cluster

TILE = 64
MANY_SPANS = Limits(tile_rows=TILE, span_bytes=1)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    X = np.random.default_rng(0).standard_normal((2_000, 3)).astype(np.float32)
    stored = zarr.create_array(tmp_path / "pool.zarr", shape=X.shape, chunks=(TILE, 3), dtype="float32")
    stored[:] = X
    return Pool.open(tmp_path / "pool.zarr")


def best(pool: Pool, estimator: Steady, score: str, client: Client | None, **options: object) -> list[int]:
    model = Learner(estimator, ["no", "yes"], trusted=broken_learners.NAMES).fit(pool.read(0, 20), np.arange(20) % 2)
    found = scan(pool, model, Strategy.named(score), 30, client=client, limits=MANY_SPANS, **options)
    return found.candidates.rows.tolist()


def until_there(path: Path) -> str:
    while not path.exists():
        time.sleep(0.01)
    return "done"


def spans_there(client: Client) -> set[str]:
    def keys(dask_scheduler: object) -> set[str]:
        return {str(key) for key in dask_scheduler.tasks if str(key).startswith("dal-score")}

    return set(client.run_on_scheduler(keys))


def test_two_scans_and_a_users_work_do_not_touch_each_other(tmp_path: Path, pool: Pool, cluster: Client) -> None:
    address, go = cluster.scheduler.address, tmp_path / "go"
    alone = {score: best(pool, Steady(), score, None) for score in ("margin", "entropy")}
    before = spans_there(cluster)

    def there(score: str) -> list[int]:
        with connect(address) as client:
            return best(pool, Steady(seconds=0.002), score, client)

    def interrupted(progress: Progress) -> None:
        if progress.rows_done:
            raise KeyboardInterrupt

    with connect(address) as user, ThreadPoolExecutor(2) as threads:
        held = user.map(np.full, range(5), range(5), pure=False)
        running = user.submit(until_there, go, pure=False)  # takes one of the two threads
        waiting = [user.submit(len, running, pure=False) for _ in range(3)]
        try:
            scans = [threads.submit(there, score) for score in alone]
            with connect(address) as third, pytest.raises(KeyboardInterrupt):
                best(pool, Steady(seconds=0.002), "ratio", third, progress=interrupted)
            assert [each.result() for each in scans] == list(alone.values())
            assert {each.status for each in (running, *waiting)} == {"pending"}
        finally:
            go.touch()
        assert user.gather(waiting) == [4] * 3
        assert [value.tolist() for value in user.gather(held)] == [[n] * n for n in range(5)]
    while spans_there(cluster) - before:
        time.sleep(0.01)  # until the scheduler has heard that the clients are closed


def test_a_users_task_goes_before_spans_that_wait(tmp_path: Path, pool: Pool) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    with own_cluster(1, processes=False, protocol="tcp") as (cluster, client), connect(cluster) as user:
        scanning = threading.Thread(target=best, args=(pool, Gated(str(log), str(gate)), "margin", client))
        scanning.start()
        try:
            while log.read_text().count("span") < Gated.FREE:
                time.sleep(0.01)  # until a span is at work that waits, and others wait behind it
            mine = user.submit(written, log, pure=False)
            while mine.key not in cluster.workers[0].state.tasks:
                time.sleep(0.01)
            [running] = [str(task.key) for task in cluster.workers[0].state.executing]
        finally:
            gate.touch()
            scanning.join()
        mine.result()
    order = log.read_text().split()
    start, stop = map(int, running.split("-")[-2:])
    assert order.index("user") < Gated.FREE + -(
        -(stop - start) // TILE
    )  # after the span that was at work, of some tiles
    assert order.count("span") == -(-2_000 // TILE)


def written(log: Path) -> None:
    with log.open("a") as file:
        file.write("user\n")


@pytest.mark.slow
def test_two_campaigns_on_one_cluster_ask_the_same_as_alone(tmp_path: Path, pool: Pool, cluster: Client) -> None:
    y = (pool.read(0, 2_000)[:, 0] > 0).astype(np.int64)

    def rounds(name: str, seed: int, address: str | None) -> list[list[int]]:
        campaign = dal.Campaign.create(tmp_path / name, pool, classes=["a", "b"], batch_size=20, random_state=seed)
        asked = []
        for batch in campaign.batches(client=address):
            campaign.label(batch, [("a", "b")[y[row]] for row in batch.rows])
            asked.append(batch.rows.tolist())
            if len(asked) == 3:
                return asked
        return asked

    alone = [rounds(f"alone-{seed}", seed, None) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        there = [threads.submit(rounds, f"there-{seed}", seed, cluster.scheduler.address) for seed in (1, 2)]
        assert [each.result() for each in there] == alone
