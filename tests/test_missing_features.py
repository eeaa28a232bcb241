"""Records with missing (NaN) features, from the pool to the labels: asked and learned from where the learner can."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dal import Campaign
from dal.campaign import Measuring
from dal.campaign.view import status
from dal.cli import main
from dal.errors import LearnerError, SettingsError
from dal.learners.learner import Learner
from dal.loop.savings import saved
from dal.map import fit_projection
from dal.pool import Pool
from dal.replay import TestSet, simulate, view_of
from dal.selection.candidates import usable
from dal.selection.codebook import Codebook

CLASSES = ("ham", "spam")


def holed(n: int = 900, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, n)
    X = (rng.standard_normal((n, 4)) + 3 * codes[:, None]).astype(np.float32)
    rows = np.flatnonzero(rng.random(n) < share)
    X[rows, rng.integers(0, 4, len(rows))] = np.nan
    X[7] = np.inf
    return X, codes


@pytest.fixture
def pool(tmp_path: Path) -> tuple[Pool, np.ndarray, np.ndarray]:
    X, codes = holed()
    return Pool.build(X, tmp_path / "pool.zarr"), X, codes


def label(campaign: object, rows: np.ndarray, codes: np.ndarray) -> None:
    campaign.label([str(row) for row in rows], codes[rows])


@pytest.mark.parametrize(
    "strategy",
    ["default", pytest.param("margin", marks=pytest.mark.slow), pytest.param("random", marks=pytest.mark.slow)],
)
def test_a_learner_that_takes_them_is_given_them_in_every_step(
    strategy: str, pool: tuple[Pool, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    opened, X, codes = pool
    missing = np.isnan(X).any(axis=1)
    apart = usable(X, missing=True)
    np.savez(tmp_path / "apart.npz", X=X[apart], y=np.array(CLASSES)[codes[apart]])
    how = {
        "strategy": strategy,
        "batch_size": 40,
        "explore": 0.25,
        "measuring": Measuring(stop_set=100, holdout=tmp_path / "apart.npz"),
    }
    with pytest.raises(SettingsError, match="holdout"):
        Campaign.create(tmp_path / "c", opened, CLASSES, **how)
    campaign = Campaign.create(tmp_path / "c", opened, CLASSES, estimator="hgb", **how)
    asked: list[int] = []
    for number in (1, 2, 3):
        batch = campaign.next_batch()
        assert len(batch.rows) == 40
        assert missing[batch.rows].sum() > 4
        drawn = [each.row for each in campaign.rounds.batch(number) if each.explore]
        assert missing[drawn].any()
        label(campaign, batch.rows, codes)
        asked += batch.rows.tolist()
        if number > 1:
            told = campaign.rounds.get(number)
            assert (told.trained_on, told.notes["invalid_labeled"]) == (40 * (number - 1), 0)
            assert told.summary["invalid_rows"] == [7]
            assert told.notes["measured"]["holdout_asked"] == 899
            assert told.notes["measured"]["holdout_correct"] > 800
            assert "uncertainty" in told.notes["measured"]
    assert 7 not in asked
    assert status(campaign).left_out == ""
    assert saved(campaign).n == sum(int(40 * each.explore_share) for each in campaign.rounds.all()) >= 40


def test_for_other_learners_people_are_told_what_was_left_out(
    pool: tuple[Pool, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    opened, X, codes = pool
    missing = np.flatnonzero(np.isnan(X).any(axis=1))
    whole = np.flatnonzero(np.isfinite(X).all(axis=1))
    campaign = Campaign.create(
        tmp_path / "c", opened, CLASSES, batch_size=20, measuring=Measuring(stop_set=0), explore=0.5
    )
    label(campaign, np.r_[whole[:30], missing[:9], 7], codes)
    batch = campaign.next_batch()
    assert np.isfinite(X[batch.rows]).all()
    assert campaign.rounds.get(1).trained_on == 30
    told = status(campaign)
    assert told.labels == 40
    assert told.left_out.startswith("round 1 was trained on 30 labels; 10 were left out")
    shown = CliRunner().invoke(main, ["status", str(tmp_path / "c")])
    assert "trained on 30 labels; 10 were left out" in " ".join(shown.output.split())


def test_labels_of_one_class_left_over_are_refused_in_words(
    pool: tuple[Pool, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    opened, X, codes = pool
    missing = np.isnan(X).any(axis=1)
    campaign = Campaign.create(tmp_path / "c", opened, CLASSES, batch_size=20, measuring=Measuring(stop_set=0))
    label(
        campaign,
        np.r_[
            np.flatnonzero(missing & (codes == 1))[:10], np.flatnonzero(np.isfinite(X).all(axis=1) & (codes == 0))[:4]
        ],
        codes,
    )
    with pytest.raises(LearnerError, match="10 of 14 are left out"):
        campaign.next_batch()
    assert campaign.rounds.all() == []


def test_a_pool_in_which_every_record_lacks_something_is_labelled(tmp_path: Path) -> None:
    X, codes = holed(400, share=1.0)
    test = TestSet(*(each[:100] for each in holed(400, share=0.0)))
    test.X[7] = 0
    replay = simulate(
        Pool.build(X, tmp_path / "p.zarr"), codes, test, CLASSES, estimator="hgb", batch_size=30, rounds=3
    )
    assert replay.labels == (30, 60, 90)
    assert replay.accuracy[-1] > 0.9
    assert np.isfinite(replay.scores[-1]).all()


def test_missing_features_stand_at_their_mean() -> None:
    X = holed()[0]
    filled = np.where(np.isnan(X), np.nanmean(np.where(np.isinf(X), np.nan, X), axis=0), X)[usable(X, missing=True)]
    codebook = Codebook.fit(X, 8, 0)
    sound = X[usable(X, missing=True)]
    np.testing.assert_allclose(codebook.mean, np.nanmean(sound, axis=0), rtol=1e-5)
    np.testing.assert_allclose(codebook.scale, np.nanstd(sound, axis=0), rtol=1e-5)
    np.testing.assert_allclose(codebook.embed(sound), codebook.embed(filled.astype(np.float32)), atol=1e-6)
    np.testing.assert_array_equal(codebook.assign(sound), codebook.assign(filled.astype(np.float32)))


def test_a_pool_of_gaps_alone_is_refused_in_words_of_the_pool() -> None:
    with pytest.raises(SettingsError, match=r"the pool .*in 5 records.*build the pool again"):
        Codebook.fit(np.full((5, 3), np.nan, np.float32), 2, 0)


def test_building_says_which_column_has_the_gaps(tmp_path: Path) -> None:
    table = tmp_path / "holes.csv"
    table.write_text("id,x,y\n" + "".join(f"r{row},{row or ''},\n" for row in range(4)))
    said = CliRunner().invoke(main, ["pool", "build", str(table), str(tmp_path / "p.zarr"), "--ids", "id"]).output
    assert (
        "4 of the 4 records that were looked at hold missing features, the most in y (4): a learner that takes no"
        in said
    )
    table.write_text("id,x,y\n" + "".join(f"s{row},{row or ''},{'inf' if row > 1 else 1}\n" for row in range(4)))
    said = CliRunner().invoke(main, ["pool", "append", str(table), str(tmp_path / "p.zarr")]).output
    assert "1 of the 4 records that were looked at hold missing features, the most in x (1): a learner" in said
    assert "2 of the 4 records that were looked at hold infinite features, the most in y (2): no learner asks" in said


@pytest.mark.parametrize("width", [2, 4])
def test_the_map_places_them_at_their_mean(width: int, tmp_path: Path) -> None:
    X = holed()[0][:, :width] + np.float32(5)
    X[3] = np.nan
    projection, extent = fit_projection(Pool.build(X, tmp_path / "p.zarr"), seed=0)
    assert np.isfinite(extent).all()
    mean = np.nanmean(X[usable(X, missing=True)], axis=0)
    places = projection.place(X)
    assert np.flatnonzero(np.isnan(places).any(axis=1)).tolist() == [3, 7]
    sound = np.delete(np.arange(len(X)), [3, 7])
    filled = np.where(np.isnan(X), mean, X).astype(np.float32)
    np.testing.assert_allclose(places[sound], projection.place(filled)[sound], atol=1e-4)


def test_a_view_of_records_that_a_model_does_not_take_is_empty() -> None:
    X, codes = holed()
    whole = np.isfinite(X).all(axis=1)
    model = Learner.named("logistic", CLASSES).fit(X[whole], codes[whole])
    view = view_of(model, X)
    assert (view[~whole] == [255, 0]).all()
    assert (view[whole, 0] == model.predict_proba(X[whole]).argmax(axis=1)).all()
    boosted = view_of(Learner.named("hgb", CLASSES).fit(X[whole], codes[whole]), X)
    assert np.flatnonzero(boosted[:, 0] == 255).tolist() == [7]
