"""A campaign that moves to another pool of the same records, as after a fine-tuning of its encoder."""

from pathlib import Path

import numpy as np
import pytest

import dal
from dal import Campaign, Pool
from dal.campaign import CampaignStore, Measuring, store
from dal.campaign.features import Features
from dal.campaign.view import View
from dal.errors import CampaignError, CampaignLocked, CampaignMismatch
from dal.loop.savings import saved

N, K = 700, 40
NAMES = ("no", "yes")


@pytest.fixture
def pools(tmp_path: Path) -> tuple[Pool, Pool, np.ndarray]:
    """The same records by poor features and by better ones, of another width."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 2, N)
    ids = [f"r{row}" for row in range(N)]
    poor = rng.standard_normal((N, 4)) + 0.4 * codes[:, None]
    better = rng.standard_normal((N, 6)) + 2.0 * codes[:, None]
    made = [
        Pool.build(X.astype(np.float32), tmp_path / f"{name}.zarr", ids=ids)
        for name, X in (("poor", poor), ("better", better))
    ]
    return made[0], made[1], codes


def played(campaign: Campaign, codes: np.ndarray, rounds: int) -> list[list[int]]:
    asked = []
    for _ in range(rounds):
        batch = campaign.next_batch()
        assert isinstance(batch, dal.Batch)
        campaign.label(batch, codes[batch.rows])
        asked.append(batch.rows.tolist())
    return asked


def made(pool: Pool, folder: Path) -> Campaign:
    return Campaign.create(
        folder / "campaign",
        pool,
        NAMES,
        batch_size=K,
        explore=0.25,
        stop="max_rounds=9",
        measuring=Measuring(stop_set=60),
    )


def test_a_moved_campaign_goes_on_with_the_new_features_and_its_ruler_begins_again(
    pools: tuple[Pool, Pool, np.ndarray], tmp_path: Path
) -> None:
    poor, better, codes = pools
    campaign = made(poor, tmp_path)
    asked = played(campaign, codes, 3)
    before = campaign.status()
    assert before.accuracy.value is not None
    assert before.before == ""
    known = list(campaign.answers.log()), View(campaign).labels().rows.tolist()
    campaign.move(better.path, better.fingerprint)

    campaign = Campaign.open(campaign.directory)
    now = campaign.status()
    # Round 3 is open still: it was chosen from the pool before, so its explore answers are of that ruler.
    assert now.accuracy.value is None
    assert before.accuracy.text in now.before
    assert better.path in now.before
    assert (now.labels, now.asked) == (before.labels, before.asked)
    assert (list(campaign.answers.log()), View(campaign).labels().rows.tolist()) == known
    with pytest.raises(CampaignError, match="model"):
        campaign.model.predict_proba(better.read(0, 1))

    asked += played(campaign, codes, 2)
    flat = [row for rows in asked for row in rows]
    assert len(set(flat)) == len(flat) == 5 * K, "nobody is asked twice"
    rounds = campaign.rounds.all()
    assert [each.pool_fingerprint for each in rounds] == [poor.fingerprint] * 3 + [better.fingerprint] * 2
    assert rounds[3].parent_model is None
    assert rounds[4].parent_model == rounds[3].model
    measured = [(each.notes or {}).get("measured", {}) for each in rounds]
    assert "kappa" not in measured[3], "two models of two kinds of features are not compared"
    assert "kappa" in measured[4]
    assert campaign.model.n_features == 6
    assert (campaign.model.predict_proba(better.read(0, 500)).argmax(axis=1) == codes[:500]).mean() > 0.95
    rows = np.array(flat)
    np.testing.assert_array_equal(Features(View(campaign)).take(rows), better.take(rows))

    view = View(campaign)
    assert [bool(each.explore_asked) for each in view.history()] == [False] * 3 + [True]
    assert [bool(each.explore_asked) for each in view.history(every_model=True)] == [False, *[True] * 3], "a cold start"
    assert [each.number for each in view.history()] == [1, 2, 3, 4]
    ended = campaign.status()
    assert ended.accuracy.n == 10, "of one closed round on this pool"
    assert len(view.explored_labels()[0]) == 60, "half of the first batch, a quarter of the others"
    assert len(view.explored_labels(here=True)[0]) == 20
    assert saved(campaign).value is None
    assert [each.value for each in ended.verdicts] == [4], "rounds are counted through"


def test_a_move_is_refused_while_a_round_is_computed_or_a_coordinator_is_at_work(
    pools: tuple[Pool, Pool, np.ndarray], tmp_path: Path
) -> None:
    poor, better, codes = pools
    campaign = made(poor, tmp_path)
    played(campaign, codes, 1)
    with campaign.lock(), pytest.raises(CampaignLocked):
        CampaignStore.open(campaign.directory).move(better.path, better.fingerprint)
    campaign.rounds.close(campaign.rounds.all()[0])
    campaign.rounds.freeze(
        pool_fingerprint=poor.fingerprint, n_rows=N, k=K, explore=0.25, seed=0, strategy="default", stop_set=60
    )
    with pytest.raises(CampaignError, match="frozen"):
        campaign.move(better.path, better.fingerprint)
    assert CampaignStore.open(campaign.directory).settings.pool == poor.path


def test_a_move_that_was_killed_between_its_steps_is_finished_by_another(
    pools: tuple[Pool, Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor, better, codes = pools
    campaign = made(poor, tmp_path)
    asked = played(campaign, codes, 2)
    (campaign.directory / "finetune.json").write_text("{}")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            campaign.move(better.path, better.fingerprint)
    half = Campaign.open(campaign.directory)
    with pytest.raises(CampaignMismatch, match="dal finetune"):
        half.next_batch()
    half.move(better.path, better.fingerprint)
    asked += played(Campaign.open(campaign.directory), codes, 1)
    assert len({row for rows in asked for row in rows}) == 3 * K
