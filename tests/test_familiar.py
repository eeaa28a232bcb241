"""Records asked once: near-duplicates of those asked before are left out of the candidates, exactly."""

import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dal import Batch, Campaign
from dal._files import read_npz
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import Journal, Limits, Progress, Scan, sample_codebook, scan
from dal.selection.batch import familiar
from dal.selection.codebook import Codebook
from dal.selection.distances import DUPLICATE_DISTANCE, Neighbourhood
from dal.selection.explore import uniform_rows
from dal.selection.familiar import Familiar
from dal.selection.order import key_order
from dal.selection.strategy import Strategy
from tests.faults import Interrupted, interrupted_after

N, D, SPOT = 5_003, 20, 2_100
LIMITS = Limits(tile_rows=512)
WIDE = Strategy(shortlist=40)  # so many candidates that there are no cells


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 30), st.integers(1, 40), st.integers(0, 10**6))
def test_a_neighbourhood_is_that_of_brute_force(d: int, n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few values, so that points are equal, near, or just so far.
    values = np.round(rng.uniform(-1, 1, 4), 1).astype(np.float32)
    points, others = rng.choice(values, (n, d)), rng.choice(values, (m, d))
    others[: min(n, m) // 2] = points[: min(n, m) // 2]
    others[:, 0] += rng.choice([0, 0.125], m)
    apart = np.sqrt(((others[:, None].astype(float) - points[None].astype(float)) ** 2).sum(axis=2))
    radius = 0.125 if not n else float(rng.choice([0.125, float(np.median(apart))]))
    expected = (apart <= radius).any(axis=1)
    # By another order of additions a distance may come out on the other side of itself.
    doubtful = (np.abs(apart - radius) < 1e-12).any(axis=1) & (radius != 0.125)
    found = Neighbourhood(points, radius)(others)
    assert found[~doubtful].tolist() == expected[~doubtful].tolist()


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    """Two classes, a spot of many near-copies between them, and a few copies elsewhere."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((N, D))
    X[:, 0] += np.where(np.arange(N) % 2, 2, -2)
    X[SPOT:3_500] = 0.0
    X[SPOT:3_500] += 0.01 * rng.standard_normal((3_500 - SPOT, D))
    X[3_500:3_600] = X[7] + 0.01 * rng.standard_normal((100, D))
    X[3, 1], X[4_444] = np.inf, np.nan
    return X.astype(np.float32)


@pytest.fixture(scope="module")
def pool(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.build(records, tmp_path_factory.mktemp("pool") / "pool.zarr")


@pytest.fixture(scope="module")
def model(records: np.ndarray) -> Model:
    rows = np.setdiff1d(np.arange(5, 405), [])
    return Learner(LogisticRegression(), ["even", "odd"]).fit(records[rows], rows % 2)


ASKED = np.array([5, 7, 40, 41, 300, 1_000, 2_500, 4_000])


def near_by_brute_force(X: np.ndarray, space: Codebook) -> np.ndarray:
    sound = np.isfinite(X).all(axis=1)
    placed = (X.astype(np.float64) - space.mean) / space.scale / np.sqrt(D)
    asked = placed[ASKED]
    between = np.linalg.norm(asked[:, None] - asked[None], axis=2)
    np.fill_diagonal(between, np.inf)
    radius = DUPLICATE_DISTANCE * np.median(between.min(axis=1))
    near = np.zeros(len(X), dtype=bool)
    for point in asked:
        near[sound] |= np.linalg.norm(placed[sound] - point, axis=1) <= radius
    return near


def known(records: np.ndarray, space: Codebook) -> Familiar:
    found = familiar(WIDE, space, lambda: records[ASKED], directions=False, inner=False, random_state=3, round=2)
    assert found is not None
    return found


def test_a_scan_keeps_the_best_that_are_not_familiar_in_any_layout(
    pool: Pool, records: np.ndarray, model: Model, tmp_path: Path, cluster: Client
) -> None:
    space = sample_codebook(pool, 0, 3)
    near = near_by_brute_force(records, space)
    assert near[SPOT:3_500].all()
    assert near[3_500:3_600].all()
    assert 1_500 < near.sum() < 1_600

    def found(pool: Pool, k: int = 15, **options: object) -> Scan:
        return scan(pool, model, WIDE, k, ASKED, random_state=3, round=2, **{"limits": LIMITS, **options})

    # Scores of all rows, from a pass that keeps everything.
    every = found(pool, k=N).candidates
    order = every.rows[key_order(every.scores, every.rows, 3, 2)]
    expected = sorted(order[~near[order]][: 15 * 40].tolist())
    assert near[order[: 15 * 40]].mean() > 0.9, "without this the candidates are of one spot"
    which = known(records, space)
    here = found(pool, familiar=which, journal=Journal(tmp_path / "journal"))
    assert here.candidates.rows.tolist() == expected
    array = zarr.create_array(tmp_path / "odd.zarr", shape=records.shape, chunks=(777, D), dtype="float32")
    array[:] = records
    odd = Pool.open(tmp_path / "odd.zarr")
    for other in (
        found(odd, familiar=which, limits=Limits(512, span_bytes=1)),
        found(pool, familiar=which, client=cluster),
        found(pool, familiar=which, journal=Journal(tmp_path / "journal")),
    ):
        assert other.candidates.rows.tolist() == expected
        np.testing.assert_array_equal(other.candidates.scores, here.candidates.scores)
    assert other.summary.spans_resumed == other.summary.spans > 0
    # All are counted, and another set of asked records is another pass.
    assert here.summary.tally.rows == N
    fewer = replace(which, near=replace(which.near, points=which.near.points[:-1]))
    resumed = found(pool, familiar=fewer, journal=Journal(tmp_path / "journal")).summary.spans_resumed
    assert resumed == 0


def test_where_all_are_familiar_they_are_asked_again(pool: Pool, records: np.ndarray, model: Model) -> None:
    space = sample_codebook(pool, 0, 3)
    everything = Familiar(space, directions=False, near=Neighbourhood(space.embed(records[ASKED]), 1e9))
    plain = scan(pool, model, WIDE, 15, ASKED, limits=LIMITS)
    again = scan(pool, model, WIDE, 15, ASKED, limits=LIMITS, familiar=everything)
    assert again.candidates.rows.tolist() == plain.candidates.rows.tolist()


def test_killed_in_the_second_pass_it_goes_on_there(
    pool: Pool, records: np.ndarray, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "journals").mkdir()
    space = sample_codebook(pool, 0, 3)
    everything = Familiar(space, directions=False, near=Neighbourhood(space.embed(records[ASKED]), 1e9))
    limits = Limits(tile_rows=512, span_bytes=1)
    odd = zarr.create_array(tmp_path / "odd.zarr", shape=records.shape, chunks=(777, D), dtype="float32")
    odd[:] = records
    pool = Pool.open(tmp_path / "odd.zarr")
    options = {"limits": limits, "familiar": everything, "journal": Journal(tmp_path / "journals" / "journal")}
    plain = scan(pool, model, WIDE, 15, ASKED, limits=limits)
    spans = plain.summary.spans
    assert spans > 4

    with pytest.raises(Interrupted):
        scan(pool, model, WIDE, 15, ASKED, progress=interrupted_after(2 * spans - 2), **options)
    found = scan(pool, model, WIDE, 15, ASKED, **options)
    assert found.summary.spans_resumed == spans - 2
    assert found.candidates.rows.tolist() == plain.candidates.rows.tolist()
    # Another round is not taken for one whose first pass has found nothing.
    told: list[Progress] = []
    scan(pool, model, WIDE, 15, ASKED, round=1, progress=told.append, **options)
    assert len(told) == 2 * spans
    options["journal"].clear()
    assert not list((tmp_path / "journals").iterdir())


def test_what_travels_to_workers_leaves_search_trees_out(records: np.ndarray, pool: Pool) -> None:
    near = Neighbourhood(np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32), 0.5)
    before = len(pickle.dumps(near))
    expected = near(records[:50, :1].repeat(40, axis=1))
    assert len(pickle.dumps(near)) == before
    assert pickle.loads(pickle.dumps(near))(records[:50, :1].repeat(40, axis=1)).tolist() == expected.tolist()


def test_of_many_asked_records_a_part_is_looked_at(records: np.ndarray, pool: Pool) -> None:
    space = sample_codebook(pool, 0, 3)
    some = Familiar.to(records[4_000:4_400], space, directions=False, seed=3, round=2, most_numbers=100 * D + 3)
    every = Familiar.to(records[4_000:4_400], space, directions=False, seed=3, round=2)
    assert some is not None
    assert every is not None
    assert len(every.near.points) == 400
    assert len(some.near.points) == 100
    assert some.near.distance == every.near.distance
    assert set(map(bytes, some.near.points)) < set(map(bytes, every.near.points))


def test_where_no_distance_tells_nothing_is_familiar(records: np.ndarray, pool: Pool) -> None:
    space = sample_codebook(pool, 0, 3)
    told = {"directions": False, "inner": False, "random_state": 3, "round": 2}
    assert familiar(WIDE, None, lambda: records[ASKED], **told) is None
    for asked in (records[:0], records[[5]], records[[5, 5]], records[[5, 3]]):
        assert familiar(WIDE, space, lambda asked=asked: asked, **told) is None
    for name in ("margin", "random", "power", "coverage", "bait"):
        assert familiar(Strategy.named(name), space, pytest.fail, **told) is None
    assert familiar(WIDE, space, pytest.fail, **{**told, "inner": True}) is None


# -- in a campaign ----------------------------------------------------------------------------------------------------


def batches(campaign: Campaign, count: int, **options: object) -> list[Batch]:
    found = []
    for _ in range(count):
        batch = campaign.next_batch(**options)
        assert isinstance(batch, Batch)
        campaign.label(batch, ["odd" if row % 2 else "even" for row in batch.rows])
        found.append(batch)
    return found


def test_a_spot_of_copies_is_asked_once_over_rounds(pool: Pool, tmp_path: Path) -> None:
    """The labels of the spot contradict each other, so that it stays the most doubtful part of the pool for ever."""
    campaign = Campaign.create(
        tmp_path / "c", pool, ["even", "odd"], batch_size=12, random_state=5, explore=0.25, strategy="default"
    )
    asked = batches(campaign, 5)
    assert [len(batch.rows) for batch in asked] == [12] * 5
    before = np.empty(0, np.int64)
    of_spot = []
    for batch in asked:
        by = {each.row: each.chosen_by for each in campaign.rounds.batch(batch.number)}
        explored = [row for row in by if by[row] == "explore"]
        # The explore share is drawn as always, copies or not.
        current = campaign.rounds.get(batch.number)
        draws = uniform_rows(N, np.sort(before), current.seed, batch.number)
        assert set(explored) == set(islice((row for row in draws if row not in (3, 4_444)), len(explored)))
        of_spot += [row for row in by if by[row] == "strategy" and SPOT <= row < 3_500]
        listed = read_npz(campaign.rounds.load_scan(current), "candidates.npz")["rows"]
        in_spot = ((before >= SPOT) & (before < 3_500)).any()
        if len(before) and current.model is not None:
            assert ((listed >= SPOT) & (listed < 3_500)).any() != in_spot, "once asked, it leaves the list to others"
        before = np.append(before, batch.rows)
    assert len(of_spot) <= 1


def test_a_search_looks_behind_the_copies_of_asked_records(records: np.ndarray, tmp_path: Path) -> None:
    X, noise = records.copy(), 1e-4 * np.random.default_rng(2).standard_normal((1_500, D))
    X[SPOT:3_500], X[3_500:3_600] = X[SPOT] + noise[:1_400], X[7] + noise[1_400:]
    pool = Pool.build(X, tmp_path / "pool.zarr")
    campaign = Campaign.create(
        tmp_path / "c", pool, ["even", "odd"], batch_size=12, random_state=5, explore=0.0, strategy="default"
    )
    batches(campaign, 1)
    campaign.label([str(SPOT)], ["even"])
    # The nearest 2,000 of this example are 1,400 copies, and those of the next one are 100.
    (found,) = batches(campaign, 1, like=[str(SPOT), "7"])
    assert len(found.rows) == 12
    assert not [row for row in found.rows if SPOT <= row < 3_500]
    assert len([row for row in found.rows if row == 7 or 3_500 <= row < 3_600]) <= 1


def test_a_search_finds_a_class_that_is_narrow_in_a_large_pool(records: np.ndarray, tmp_path: Path) -> None:
    X = records.copy()
    X[SPOT:3_500] = 5.0 + 0.05 * np.random.default_rng(2).standard_normal((3_500 - SPOT, D))
    campaign = Campaign.create(
        tmp_path / "c", Pool.build(X, tmp_path / "pool.zarr"), ["even", "odd"], batch_size=12, explore=0.0
    )
    batches(campaign, 1)
    campaign.label([str(SPOT)], ["even"])
    for found in batches(campaign, 2, like=[str(SPOT)]):
        assert [row for row in found.rows if SPOT <= row < 3_500] == found.rows.tolist()
