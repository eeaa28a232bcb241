"""Replays: the real loop with a known oracle."""

from pathlib import Path

import numpy as np
import pytest

from dal.errors import SettingsError
from dal.pool import Pool, build_pool
from dal.simulation import Comparison, Replay, TestSet, compare, saved_labels, simulate

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray, TestSet]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 3000)
    X = (2.5 * np.eye(3, 4)[y] + rng.standard_normal((3000, 4))).astype(np.float32)
    pool = build_pool(X[:2000], tmp_path_factory.mktemp("pool") / "pool.zarr")
    return pool, y[:2000], TestSet(X[2000:], y[2000:])


def test_a_replay_asks_in_rounds_and_measures_on_records_outside_the_pool(
    world: tuple[Pool, np.ndarray, TestSet],
) -> None:
    pool, y, test = world
    seen: list[int] = []
    replay = simulate(pool, y, test, CLASSES, batch=15, rounds=4, seed=3, on_round=lambda r: seen.append(r.labels[-1]))
    assert replay.labels == (15, 30, 45, 60)
    assert seen == [15, 30, 45, 60]
    assert len(np.unique(np.concatenate(replay.batches))) == 60
    assert replay.accuracy[-1] > 0.75
    again = simulate(pool, lambda rows: y[rows], test, CLASSES, batch=15, rounds=4, seed=3)
    assert [b.tolist() for b in again.batches] == [b.tolist() for b in replay.batches]
    assert again.accuracy == replay.accuracy


def test_a_replay_ends_where_the_pool_does(tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]) -> None:
    rng = np.random.default_rng(1)
    pool = build_pool(rng.standard_normal((40, 4)), tmp_path / "pool.zarr")
    replay = simulate(pool, np.arange(40) % 3, world[2], CLASSES, strategy="margin", batch=30, rounds=9)
    assert replay.labels == (30, 40)


def test_a_rare_class_does_not_end_a_replay(tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]) -> None:
    rng = np.random.default_rng(2)
    y = (rng.random(2000) < 0.01).astype(int)
    X = rng.standard_normal((2000, 4)).astype(np.float32)
    pool = build_pool(X, tmp_path / "pool.zarr")
    replay = simulate(pool, y, TestSet(X, y), ("no", "yes"), batch=5, rounds=6)
    assert replay.labels == (5, 10, 15, 20, 25, 30)


def test_random_sampling_stays_random_where_all_labels_are_of_one_class(
    tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]
) -> None:
    X = np.random.default_rng(2).standard_normal((2000, 4)).astype(np.float32)
    pool = build_pool(X, tmp_path / "pool.zarr")
    replays = [
        simulate(pool, y, TestSet(X, y), ("no", "yes"), strategy="random", batch=5, rounds=4)
        for y in (np.zeros(2000, int), np.arange(2000) % 2)
    ]
    assert [b.tolist() for b in replays[0].batches] == [b.tolist() for b in replays[1].batches]


def test_a_comparison_pairs_strategies_by_seed(world: tuple[Pool, np.ndarray, TestSet]) -> None:
    pool, y, test = world
    comparison = compare(pool, y, test, CLASSES, ("margin", "random"), seeds=(1, 2), batch=10, rounds=2)
    assert comparison.strategies == ["margin", "random"]
    assert [replay.seed for replay in comparison.of("random")] == [1, 2]
    first, second = (replay.accuracy for replay in comparison.of("margin"))
    assert comparison.mean("margin").accuracy == pytest.approx(tuple(np.mean([first, second], axis=0)))


def test_saved_labels_by_hand() -> None:
    random = Replay("random", 0, (10, 20, 30, 40), (0.5, 0.6, 0.7, 0.8), ())
    better = Replay("default", 0, (10, 20, 30, 40), (0.6, 0.75, 0.85, 0.9), ())
    saved = saved_labels(Comparison((better, random)), "default")
    assert saved is not None
    assert saved["labels"] == pytest.approx(25)
    assert saved["labels_against"] == pytest.approx(40)
    assert saved["share"] == pytest.approx(0.375)
    assert saved_labels(Comparison((random, better)), "random", against="default") is None


def test_an_oracle_of_the_wrong_length_is_refused(world: tuple[Pool, np.ndarray, TestSet]) -> None:
    with pytest.raises(SettingsError, match=r"each of the 2,000 rows, got shape \(3,\)"):
        simulate(world[0], [0, 1, 2], world[2], CLASSES)
