"""Campaigns that score their pool by waves: the real loop, killed, grown, asked for full passes."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import dal
from dal.campaign.view import scored, status
from dal.errors import CampaignError, SettingsError
from dal.loop import waves as terms
from dal.loop.campaign import Campaign
from dal.loop.coordinator import Coordinator
from dal.pool import Pool
from dal.scan import Progress
from tests.forked import Process

TILE, TILES, FULL = 16_384, 56, 4
N = TILE * TILES - 77


def classes_of(X: np.ndarray) -> np.ndarray:
    return (X[:, 0] + 0.3 * X[:, 1] ** 2 > 0.4).astype(np.int64)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((N, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def pool(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.build(records, tmp_path_factory.mktemp("waves") / "pool.zarr")


def made(pool: Pool, directory: Path, scanning: dal.Scanning, **settings: object) -> Campaign:
    return Campaign.create(directory, pool, ["no", "yes"], batch_size=20, random_state=5, scanning=scanning, **settings)


WAVES = dal.Scanning(scan="waves", floor=0.999, full_every=FULL)


def played(campaign: Campaign, rounds: int, X: np.ndarray, **options: object) -> list[list[int]]:
    """Answer batch after batch; return their rows."""
    batches = []
    for _ in range(rounds):
        batch = campaign.next_batch(**options)
        assert isinstance(batch, dal.Batch)
        campaign.label(batch, classes_of(X[batch.rows]))
        batches.append(batch.rows.tolist())
    return batches


def reaches(campaign: Campaign) -> list[dict | None]:
    return [(each.summary or {})["reach"] for each in campaign.rounds.all()]


@pytest.fixture(scope="module")
def undisturbed(
    pool: Pool, records: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Campaign, list[list[int]]]:
    campaign = made(pool, tmp_path_factory.mktemp("undisturbed") / "campaign", WAVES)
    return campaign, played(campaign, 6, records)


def test_rounds_go_on_where_the_last_wave_ended(undisturbed: tuple[Campaign, list[list[int]]]) -> None:
    campaign, _ = undisturbed
    found = reaches(campaign)
    # The first round has no model; every fourth scores the whole pool.
    assert [reach is None for reach in found] == [True, False, False, False, True, False]
    by_waves = [reach for reach in found if reach is not None]
    assert all(reach["reached"] >= 0.999 for reach in by_waves)
    assert all(32 <= reach["blocks"] < TILES for reach in by_waves)
    frozen = [each.waves for each in campaign.rounds.all() if each.waves]
    assert [each["after"] for each in frozen] == [None, *(reach["after"] for reach in by_waves[:-1])]
    assert [each["carries"] for each in frozen] == [None, 2, 3, 5]
    assert by_waves[0]["carried"] == 0  # of a cold start, which scores nothing
    assert all(reach["carried"] > 100 for reach in by_waves[1:])
    full, waves = campaign.rounds.get(5).summary, campaign.rounds.get(4).summary
    assert full is not None
    assert waves is not None
    assert full["rows"] == N
    assert full["last"] > waves["last"] > 0.99
    told = scored(campaign.rounds.all())
    share = f"{by_waves[-1]['blocks'] / TILES:.1%}"
    assert told.startswith(f"round 6 scored {share} of the pool in {by_waves[-1]['waves']} wave")
    assert f"its best 200 records score {campaign.rounds.get(6).summary['last']:.3f} or more" in told
    assert f"({full['last']:.3f} in round 5, which scored all), and are within the best " in told
    assert status(campaign).scored == told
    newest = campaign.rounds.get(6)
    assert newest.summary is not None
    copied = {**newest.summary, "reach": {**newest.summary["reach"], "bound": None, "copied": True}}
    told = scored([replace(newest, summary=copied)])
    assert "or more, and some of them have copies, so that the share of the pool" in told
    assert "within the best" not in told


@pytest.mark.slow
def test_workers_ask_the_same(
    pool: Pool, records: np.ndarray, undisturbed: tuple[Campaign, list[list[int]]], cluster: Client, tmp_path: Path
) -> None:
    campaign = made(pool, tmp_path / "campaign", WAVES)
    assert played(campaign, 4, records, client=cluster) == undisturbed[1][:4]
    assert reaches(campaign) == reaches(undisturbed[0])[:4]


def next_until(directory: Path, spans: int) -> None:
    """Score this many spans in a process of its own, and be killed; or end with a batch."""

    def killed(progress: Progress) -> None:
        seen.append(progress.rows_done)
        if len(seen) == spans:
            os.kill(os.getpid(), signal.SIGKILL)

    seen: list[int] = []
    Campaign.open(directory).next_batch(progress=killed)


@pytest.mark.slow
@pytest.mark.timeout(400)  # some sixty processes
def test_killed_twenty_times_in_mid_wave_it_asks_the_same(
    pool: Pool, records: np.ndarray, undisturbed: tuple[Campaign, list[list[int]]], tmp_path: Path
) -> None:
    campaign, kills = made(pool, tmp_path / "campaign", WAVES), 0
    batches: list[list[int]] = []
    while len(batches) < 6:
        # By one span more each time: each run scores what the one before has not kept.
        process = Process(target=next_until, args=(campaign.directory, 1 + kills % 2))
        process.start()
        process.join(100)
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.exitcode == 0
        batches += played(Campaign.open(campaign.directory), 1, records)
    assert kills >= 20
    assert batches == undisturbed[1]
    assert reaches(campaign) == reaches(undisturbed[0])


@pytest.mark.slow
def test_a_full_pass_can_be_asked_for(
    pool: Pool, records: np.ndarray, undisturbed: tuple[Campaign, list[list[int]]], tmp_path: Path
) -> None:
    campaign = made(pool, tmp_path / "campaign", WAVES)
    assert played(campaign, 2, records) == undisturbed[1][:2]
    played(campaign, 1, records, full=True)
    played(campaign, 1, records)
    assert [reach is None for reach in reaches(campaign)] == [True, False, True, False]


@pytest.mark.slow
def test_a_floor_that_nothing_reaches_ends_as_a_full_pass_and_says_so(
    pool: Pool, records: np.ndarray, tmp_path: Path
) -> None:
    whole = made(pool, tmp_path / "whole", dal.Scanning(scan="full"))
    waves = made(pool, tmp_path / "waves", dal.Scanning(scan="waves", floor=1.0))
    assert played(waves, 2, records) == played(whole, 2, records)
    assert status(waves).scored.endswith("; no more of the pool reaches the floor 1")
    assert status(whole).scored == ""


def test_a_full_pass_that_comes_too_late_is_said(
    pool: Pool, records: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = made(pool, tmp_path / "campaign", WAVES)
    played(campaign, 1, records)
    campaign.next_batch()
    campaign.next_batch(full=True)
    assert "Round 2 was begun by waves before this call, and keeps its batch" in caplog.text


@pytest.mark.slow
def test_where_the_candidates_of_the_round_before_are_lost_the_whole_pool_is_scored(
    pool: Pool, records: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = made(pool, tmp_path / "campaign", WAVES)
    played(campaign, 2, records)
    for path in (campaign.directory / "rounds").glob("0002-candidates-*.npz"):
        path.unlink()
    played(campaign, 1, records)
    assert "This round scores the whole pool instead" in caplog.text
    assert [reach is None for reach in reaches(campaign)] == [True, False, True]
    # Lost once it is frozen, it takes the round back, and the next call goes on.
    with campaign.lock():
        campaign.rounds.close(campaign.rounds.get(3))
        Coordinator(campaign).freeze()
    for path in (campaign.directory / "rounds").glob("0003-candidates-*.npz"):
        path.unlink()
    with pytest.raises(CampaignError, match="candidates"):
        campaign.next_batch()
    played(campaign, 1, records)
    assert [reach is None for reach in reaches(campaign)] == [True, False, True, True]


@pytest.mark.slow
def test_rounds_without_a_model_are_no_full_passes(pool: Pool, records: np.ndarray, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "campaign", WAVES)
    played(campaign, 2, records)
    played(campaign, 1, records, coverage=True)
    played(campaign, 3, records)
    rounds = campaign.rounds.all()
    # Three rounds by waves after the first one, whatever came between; the fourth scores the whole pool.
    assert [each.waves is None for each in rounds] == [True, False, True, False, False, True]
    assert [each.waves["carries"] for each in rounds if each.waves] == [None, 2, 4]


@pytest.mark.slow
def test_appended_records_are_in_later_waves(pool: Pool, records: np.ndarray, tmp_path: Path) -> None:
    place = tmp_path / "pool.zarr"
    half = TILE * 34 + 5
    Pool.build(records[:half], place)
    campaign = made(Pool.open(place), tmp_path / "campaign", WAVES)
    before = played(campaign, 2, records)
    Pool.open(place).append(records[half:])
    after = played(Campaign.open(campaign.directory), 2, records)
    found = [reach for reach in reaches(campaign) if reach]
    assert [reach["n_blocks"] for reach in found] == [35, TILES, TILES]
    assert max(map(max, before)) < half
    assert max(map(max, after)) >= half


def test_by_default_waves_wait_for_a_pool_whose_pass_takes_longer_than_people(
    pool: Pool, records: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "campaign", dal.Scanning())
    played(campaign, 2, records)
    assert reaches(campaign) == [None, None]
    # A batch of 20 is answered in a thousandth of the time.
    monkeypatch.setattr(terms, "SECONDS_A_RECORD", 0.001)
    played(campaign, 1, records)
    assert reaches(campaign)[-1] is not None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "coverage"])
def test_strategies_that_rank_by_hash_score_the_whole_pool(
    strategy: str, pool: Pool, records: np.ndarray, tmp_path: Path
) -> None:
    campaign = made(pool, tmp_path / "campaign", WAVES, strategy=strategy)
    played(campaign, 2, records)
    assert reaches(campaign) == [None, None]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"scan": "some"}, "`scan` must be auto or full or waves, got 'some'"),
        ({"floor": 0}, "`floor` must be a share above 0 and at most 1, got 0"),
        ({"floor": float("nan")}, "`floor` must be a share above 0 and at most 1, got nan"),
        ({"full_every": 0}, "`full_every` must be an integer of 1 or more, got 0"),
    ],
)
def test_terms_that_mean_nothing_are_refused(wrong: dict[str, object], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        dal.Scanning(**wrong)
