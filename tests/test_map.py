"""The map of a pool: the same on a cluster as here, fixed, and every record counted once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from dal.errors import SettingsError
from dal.map import BINS, SAMPLE_POINTS, PoolMap, Projection, count_span, fit_projection, map_of
from dal.pool import Pool
from dal.scan.plan import Interval


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((50_000, 5)) * [9, 5, 1, 1, 1] + 2).astype(np.float32)
    X[40_000:40_007] = np.nan
    X[123, 2] = np.inf
    return Pool.build(X, tmp_path_factory.mktemp("pool") / "pool.zarr")


def slow_density(pool: Pool, made: PoolMap) -> tuple[np.ndarray, int]:
    X = pool.read(0, pool.n_rows)
    places = made.projection.place(X[np.isfinite(X).all(axis=1)]).astype(float)
    left, right, bottom, top = made.extent
    edges = np.linspace(bottom, top, BINS + 1), np.linspace(left, right, BINS + 1)
    counts, _, _ = np.histogram2d(places[:, 1], places[:, 0], bins=edges)
    return counts.astype(int), len(places) - int(counts.sum())


def test_every_valid_record_is_counted_once(pool: Pool) -> None:
    told: list[tuple[int, int]] = []
    made = map_of(pool, None, random_state=1, progress=lambda done, total: told.append((done, total)))
    counts, outside = slow_density(pool, made)
    assert made.density.sum() + made.outside == 50_000 - 8
    # numpy puts its edges a rounding error elsewhere: a record on an edge may be counted beside it
    assert np.abs(made.density - counts).sum() <= 10
    assert abs(made.outside - outside) <= 2
    assert 0 < made.outside < 200
    assert told[-1] == (50_000, 50_000)
    assert len(made.sample) == SAMPLE_POINTS == len(np.unique(made.sample))
    assert np.allclose(made.sample_places, made.projection.place(pool.take(made.sample)))


def test_the_map_is_the_same_on_a_cluster_and_another_day(pool: Pool, cluster: Client, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    here, there = map_of(pool, None, random_state=1), map_of(pool, path, random_state=1, client=cluster)
    for one in (there, PoolMap.load(path), map_of(pool, path, random_state=99)):
        assert one is not None
        assert np.array_equal(one.density, here.density)
        assert np.array_equal(one.sample_places, here.sample_places)
        assert one.extent == here.extent
        assert one.projection.axes == here.projection.axes


def test_the_axes_follow_the_variance_and_never_mirror(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    t, u = rng.standard_normal((2, 3000))
    X = np.stack([t, -t, t, u, u, rng.standard_normal(3000)], axis=1).astype(np.float32)
    projection, (left, right, bottom, top) = fit_projection(Pool.build(X, tmp_path / "pool.zarr"), seed=0)
    first, second = projection.components
    assert np.abs(first) == pytest.approx([3**-0.5] * 3 + [0] * 3, abs=0.05)
    assert np.abs(second) == pytest.approx([0] * 3 + [2**-0.5] * 2 + [0], abs=0.05)
    for axis in (first, second):
        assert axis[np.abs(axis).argmax()] > 0
    assert left < -4 < 4 < right
    assert bottom < -3 < 3 < top


def test_two_features_are_their_own_map(tmp_path: Path) -> None:
    X = np.random.default_rng(0).uniform(3, 5, (500, 2)).astype(np.float32)
    projection, extent = fit_projection(Pool.build(X, tmp_path / "pool.zarr"), seed=0)
    assert np.array_equal(projection.place(X), X)
    assert extent == pytest.approx((2.92, 5.08, 2.92, 5.08), abs=0.03)


@pytest.mark.parametrize("X", [np.ones((300, 3)), np.arange(300.0)[:, None]], ids=["constant", "one feature"])
def test_flat_pools_still_have_a_map(X: np.ndarray, tmp_path: Path) -> None:
    made = map_of(Pool.build(X.astype(np.float32), tmp_path / "pool.zarr"), None, random_state=0)
    assert made.density.sum() + made.outside == 300
    assert np.isfinite(made.extent).all()


def test_a_pool_without_a_finite_record_is_refused(tmp_path: Path) -> None:
    pool = Pool.build(np.full((10, 3), np.nan, np.float32), tmp_path / "pool.zarr")
    with pytest.raises(SettingsError, match="nothing to draw a map of"):
        map_of(pool, None, random_state=0)


def test_a_span_counts_by_hand(tmp_path: Path) -> None:
    X = np.array([[9, 9], [0.1, 0.1], [0.1, 0.9], [0.1, 0.9], [-1, 0], [1, 0.5]], dtype=np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    plain = Projection(
        np.zeros(2, np.float32),
        np.ones(2, np.float32),
        np.eye(2, dtype=np.float32),
        ("x", "y"),
        np.zeros(2, np.float32),
    )
    counts = count_span(Interval(1, 6), pool, plain, (0, 1, 0, 1), tile=4)
    column, low, high = int(0.1 * BINS), int(0.1 * BINS), int(np.float32(0.9) * BINS)
    assert counts[low * BINS + column] == 1
    assert counts[high * BINS + column] == 2
    assert counts[-1] == 2  # left of the map, and on its right edge, which is the next field's
    assert counts.sum() == 5


def test_a_grown_pool_keeps_its_projection(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    made = map_of(pool, path, random_state=1)
    replace(made, n_rows=40_000, density=made.density * 0).save(path)
    again = map_of(pool, path, random_state=2)
    assert np.array_equal(again.projection.components, made.projection.components)
    assert np.array_equal(again.density, made.density)


def test_a_torn_map_is_made_again(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    map_of(pool, path, random_state=1)
    path.write_bytes(path.read_bytes()[:1000])
    assert PoolMap.load(path) is None
    assert map_of(pool, path, random_state=1).n_rows == 50_000
