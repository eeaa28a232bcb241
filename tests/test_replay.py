"""Replays: the real loop with a known oracle."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline

from dal import Campaign
from dal.errors import LabelError, SettingsError
from dal.learners.learner import Learner
from dal.pool import Pool
from dal.replay import NO_CLASS, Comparison, Replay, TestSet, compare, saved_labels, simulate, view_of

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray, TestSet]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 3000)
    X = (2.5 * np.eye(3, 4)[y] + rng.standard_normal((3000, 4))).astype(np.float32)
    pool = Pool.build(X[:2000], tmp_path_factory.mktemp("pool") / "pool.zarr")
    return pool, y[:2000], TestSet(X[2000:], y[2000:])


def test_a_replay_asks_in_rounds_and_measures_on_records_outside_the_pool(
    world: tuple[Pool, np.ndarray, TestSet],
) -> None:
    pool, y, test = world
    seen: list[int] = []
    replay = simulate(
        pool, y, test, CLASSES, batch_size=15, rounds=4, random_state=3, on_round=lambda r: seen.append(r.labels[-1])
    )
    assert replay.labels == (15, 30, 45, 60)
    assert seen == [15, 30, 45, 60]
    assert len(np.unique(np.concatenate(replay.batches))) == 60
    assert replay.accuracy[-1] > 0.75
    again = simulate(pool, lambda rows: y[rows], test, CLASSES, batch_size=15, rounds=4, random_state=3)
    assert [b.tolist() for b in again.batches] == [b.tolist() for b in replay.batches]
    assert again.accuracy == replay.accuracy


def test_a_replay_ends_where_the_pool_does(tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]) -> None:
    rng = np.random.default_rng(1)
    pool = Pool.build(rng.standard_normal((40, 4)), tmp_path / "pool.zarr")
    replay = simulate(pool, np.arange(40) % 3, world[2], CLASSES, strategy="margin", batch_size=30, rounds=9)
    assert replay.labels == (30, 40)


@pytest.mark.parametrize(
    "kind", [int, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (str, float, bool, object))]
)
@pytest.mark.slow
def test_numbers_are_names_and_never_positions(
    tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet], kind: type
) -> None:
    pool, y, test = world
    told, tested = (y == 1).astype(int), (test.y == 1).astype(int)
    if kind is str:
        told, tested = told.astype(str), tested.astype(str)
    else:
        told, tested = told.astype(kind), tested.astype(kind)
    curves = []
    for classes in (["0", "1"], ["1", "0"]):
        for oracle in (told, lambda rows: told[rows]):
            place = tmp_path / f"{classes[0]}-{len(curves)}"
            replay = simulate(pool, oracle, TestSet(test.X, tested), classes, batch_size=15, rounds=3, directory=place)
            latest = Campaign.open(place).answers.latest()
            assert [classes[code] for code in latest.labels.tolist()] == [str(int(y[row] == 1)) for row in latest.rows]
            curves.append(replay.accuracy)
    assert curves[0] == curves[1]
    assert curves[2] == curves[3]
    assert min(curve[-1] for curve in curves) > 0.8


def test_a_number_that_may_be_a_name_or_a_position_is_refused(world: tuple[Pool, np.ndarray, TestSet]) -> None:
    pool, y, test = world
    for oracle in (y, lambda rows: y[rows]):
        with pytest.raises(LabelError, match=r"'0' is no class of 1, 2, 3.*positions they would be 0 = 1"):
            simulate(pool, oracle, TestSet(test.X, test.y + 1), ["1", "2", "3"], batch_size=15, rounds=1)
    with pytest.raises(LabelError, match=r"`test.y`"):
        simulate(pool, y + 1, test, ["1", "2", "3"], batch_size=15, rounds=1)


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, ""], ids=repr)
def test_records_that_the_oracle_has_no_class_for_are_not_asked(
    world: tuple[Pool, np.ndarray, TestSet], gap: object
) -> None:
    pool, y, test = world
    told = np.array(CLASSES, dtype=object)[y]
    told[::2] = gap
    replay = simulate(pool, told, test, CLASSES, batch_size=15, rounds=3)
    assert (np.concatenate(replay.batches) % 2 == 1).all()
    with pytest.raises(LabelError, match="without one"):
        simulate(pool, lambda rows: told[rows], test, CLASSES, batch_size=15, rounds=1)


def test_the_labels_of_a_batch_are_names_or_codes_and_gaps_are_skipped(
    tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]
) -> None:
    campaign = Campaign.create(tmp_path / "c", world[0], np.unique([0, 1, 2])[::-1], batch_size=6)
    assert campaign.settings.classes == ("2", "1", "0")
    batch = campaign.next_batch()
    campaign.label(batch, [0, 1, "2", 2.0, None, np.nan])
    latest = campaign.answers.latest()
    names = [*campaign.settings.classes, "skipped"]
    said = {row: names[code] for row, code in zip(latest.rows.tolist(), latest.labels, strict=True)}
    expected = dict(zip(batch.rows.tolist(), ["0", "1", "2", "2", "skipped", "skipped"], strict=True))
    assert said == expected
    assert campaign.rounds.pending(1) == 0
    with pytest.raises(LabelError, match="no class"):
        campaign.label(batch.record_ids[4:], ["1", "eggs"])
    latest = campaign.answers.latest()
    assert {row: names[code] for row, code in zip(latest.rows.tolist(), latest.labels, strict=True)} == expected


def test_a_rare_class_does_not_end_a_replay(tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]) -> None:
    rng = np.random.default_rng(2)
    y = (rng.random(2000) < 0.01).astype(int)
    X = rng.standard_normal((2000, 4)).astype(np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    replay = simulate(pool, y, TestSet(X, y), ("no", "yes"), batch_size=5, rounds=6)
    assert replay.labels == (5, 10, 15, 20, 25, 30)


def test_random_sampling_stays_random_where_all_labels_are_of_one_class(
    tmp_path: Path, world: tuple[Pool, np.ndarray, TestSet]
) -> None:
    X = np.random.default_rng(2).standard_normal((2000, 4)).astype(np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    replays = [
        simulate(pool, y, TestSet(X, y), ("no", "yes"), strategy="random", batch_size=5, rounds=4)
        for y in (np.zeros(2000, int), np.arange(2000) % 2)
    ]
    assert [b.tolist() for b in replays[0].batches] == [b.tolist() for b in replays[1].batches]


def test_a_comparison_pairs_strategies_by_seed(world: tuple[Pool, np.ndarray, TestSet]) -> None:
    pool, y, test = world
    comparison = compare(pool, y, test, CLASSES, ("margin", "random"), random_state=(1, 2), batch_size=10, rounds=2)
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


def test_test_records_that_the_learner_cannot_be_given_are_refused_at_once(
    world: tuple[Pool, np.ndarray, TestSet], tmp_path: Path
) -> None:
    pool, y, test = world
    X = test.X.copy()
    X[3, 0] = np.nan
    with pytest.raises(SettingsError, match=r"test\.X.* 1 with features"):
        simulate(pool, y, TestSet(X, test.y), CLASSES, batch_size=15, rounds=1, directory=tmp_path / "c")
    with pytest.raises(SettingsError, match=r"test\.X.*shape"):
        simulate(pool, y, TestSet(X[:, :1], test.y), CLASSES, batch_size=15, rounds=1, directory=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    imputed = make_pipeline(SimpleImputer(), LogisticRegression())
    replay = simulate(pool, y, TestSet(X, test.y), CLASSES, estimator=imputed, batch_size=15, rounds=2)
    assert replay.accuracy[-1] > 0.5


def test_an_oracle_of_the_wrong_length_is_refused(world: tuple[Pool, np.ndarray, TestSet]) -> None:
    with pytest.raises(SettingsError, match=r"each of the 2,000 rows, got shape \(3,\)"):
        simulate(world[0], [0, 1, 2], world[2], CLASSES)


def test_a_view_of_a_record_that_the_model_says_nothing_of_is_empty(world: tuple[Pool, np.ndarray, TestSet]) -> None:
    test = world[2]
    model = Learner(GaussianNB(), CLASSES).fit(test.X, test.y)
    watched = test.X[:4].copy()
    watched[1], watched[2] = 1e30, np.inf
    assert (view_of(model, watched) == [NO_CLASS, 0]).all(axis=1).tolist() == [False, True, True, False]
