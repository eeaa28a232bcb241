"""The loop on real campaigns: the same batch whatever happens, and nobody asked twice."""

import logging
import os
import shutil
import signal
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVR

from dal import Campaign
from dal.campaign import Answer, Given, Labelling, Measuring, Queue
from dal.campaign.doubts import doubtful
from dal.campaign.examples import Examples
from dal.campaign.parts import pool_of
from dal.campaign.rounds import Rounds
from dal.campaign.view import STOP_SET, status
from dal.cli import main
from dal.errors import CampaignError, CampaignMismatch, LabelError, LearnerError, PoolNotFound, SettingsError
from dal.evidence.votes import dawid_skene
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.trust import Trust, trust_in
from dal.loop.actions import Fit, Open, Select, Stop, Wait
from dal.loop.actions import Scan as ScanAction
from dal.loop.campaign import Batch, Stopped
from dal.loop.coordinator import Coordinator
from dal.loop.state import next_step
from dal.pool import Pool
from dal.scan import sample_codebook, scan
from dal.selection.batch import choose
from dal.selection.explore import explore_count, interleaved, share_in_doubt, uniform_rows
from dal.selection.strategy import Strategy
from tests import toy_learners
from tests.forked import Process

CLASSES = ("red", "green", "blue")
N, D = 6_000, 6


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, N)
    X = (2.0 * rng.standard_normal((3, D))[codes] + rng.standard_normal((N, D))).astype(np.float32)
    X[[3, 999]] = np.nan
    ids = [f"record {row}" for row in range(N)]
    return Pool.build(X, tmp_path_factory.mktemp("pool") / "pool.zarr", ids=ids), codes


def made(truth: tuple[Pool, np.ndarray], directory: Path, **options: object) -> Campaign:
    return Campaign.create(directory, truth[0], CLASSES, **{"batch_size": 30, "random_state": 7, **options})


def answered(campaign: Campaign, truth: tuple[Pool, np.ndarray], batch: Batch, upto: int | None = None) -> None:
    rows = batch.rows[:upto]
    campaign.label(batch.record_ids[:upto], truth[1][rows])


def asked(campaign: Campaign, **options: object) -> Batch:
    given = campaign.next_batch(**options)
    assert isinstance(given, Batch)
    return given


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_a_campaign_learns_and_asks_nobody_twice(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    seen: list[int] = []
    for number in range(1, 5):
        batch = asked(campaign)
        assert batch.number == number
        assert batch.fresh
        assert len(batch.rows) == 30
        assert batch.record_ids == [f"record {row}" for row in batch.rows]
        seen += batch.rows.tolist()
        answered(campaign, truth, batch)
    assert len(set(seen)) == len(seen) == 120
    assert not set(seen) & {3, 999}
    now = status(campaign)
    assert (now.round, now.status, now.asked, now.labels, now.pending) == (4, "open", 120, 120, 0)
    assert sum(now.per_class.values()) == 120
    # Twenty of the first batch, 5 % of the other 90, fractions carried forward, drawn uniformly and judged by the model
    # before it learned from them.
    explored = [a for n in range(1, 5) for a in campaign.rounds.batch(n) if a.explore]
    assert len(explored) == 24
    assert all(a.predicted is not None for a in campaign.rounds.batch(4) if a.explore)
    # What people are shown is the probability, by the model that chose the batch, of what it predicted.
    model = Model.loads(campaign.rounds.load_model(campaign.rounds.get(4).model))
    proba = model.predict_proba(truth[0].take(batch.rows))
    assert [a.predicted for a in campaign.rounds.batch(4)] == proba.argmax(axis=1).tolist()
    assert [a.confidence for a in campaign.rounds.batch(4)] == pytest.approx(proba.max(axis=1).tolist())
    assert {a.confidence for a in campaign.rounds.batch(1)} == {None}
    model_rounds = campaign.rounds.all()[1:]
    assert all(each.model is not None for each in model_rounds)
    assert campaign.rounds.all()[0].model is None
    assert [each.trained_on for each in model_rounds] == [30, 60, 90]


def test_while_a_batch_is_open_nothing_changes(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    first = asked(campaign)
    answered(campaign, truth, first, upto=10)
    again = asked(campaign)
    assert not again.fresh
    assert again.pending == 20
    assert again.rows.tolist() == first.rows.tolist()
    assert next_step(campaign) == Wait(20)
    assert len(campaign.rounds.all()) == 1


def test_closing_goes_on_with_the_answers_there_are(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    first = asked(campaign)
    answered(campaign, truth, first, upto=12)
    second = asked(campaign, close=True)
    assert second.number == 2
    assert not set(second.rows.tolist()) & set(first.rows.tolist())
    assert campaign.rounds.get(2).trained_on == 12


@pytest.mark.parametrize("was", ["answered", "closed", "frozen"])
def test_closing_never_closes_the_batch_that_it_opens(was: str, truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    """Run again after a kill, `dal next --close` finds the round closed, or the next one begun."""
    campaign = made(truth, tmp_path / "c")
    answered(campaign, truth, asked(campaign))
    if was != "answered":
        campaign.rounds.close(campaign.rounds.get(1))
    if was == "frozen":
        Coordinator(campaign).freeze()
    assert asked(campaign, close=True).number == 2
    assert [each.status for each in campaign.rounds.all()] == ["closed", "open"]


def test_same_seed_same_batches_and_another_seed_others(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    def batches(name: str, seed: int) -> list[list[int]]:
        campaign = made(truth, tmp_path / name, random_state=seed)
        rows = []
        for _ in range(3):
            batch = asked(campaign)
            rows.append(batch.rows.tolist())
            answered(campaign, truth, batch)
        return rows

    first = batches("a", 7)
    assert batches("b", 7) == first
    assert batches("c", 8) != first


@pytest.mark.parametrize(
    "strategy",
    [
        "default",
        "random",
        "badge",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("margin", "coverage", "bald")),
    ],
)
def test_a_cluster_gives_the_same_batches_as_this_process(
    strategy: str, truth: tuple[Pool, np.ndarray], tmp_path: Path, cluster: Client
) -> None:
    alone = made(truth, tmp_path / "alone", strategy=strategy)
    together = made(truth, tmp_path / "together", strategy=strategy)
    for _ in range(2):
        one, other = asked(alone), asked(together, client=cluster)
        assert one.rows.tolist() == other.rows.tolist()
        answered(alone, truth, one)
        answered(together, truth, other)


def test_cells_are_stored_by_one_scan_and_read_by_the_next(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    # 6,000 rows: 20 rows a candidate, and two cells of 16 candidates, from a batch of 4 on.
    campaign = made(truth, tmp_path / "c", batch_size=20)
    for _ in range(3):
        answered(campaign, truth, asked(campaign))
    written = zarr.open_array(campaign.directory / "cells.zarr", mode="r")
    assert written.attrs["codebook"]
    assert (written[:] < 64).all()
    fresh = made(truth, tmp_path / "d", batch_size=20)
    for number in range(1, 4):
        batch = asked(fresh)
        assert batch.rows.tolist() == [a.row for a in campaign.rounds.batch(number)]
        answered(fresh, truth, batch)
        shutil.rmtree(fresh.directory / "cells.zarr", ignore_errors=True)


def test_an_estimator_object_is_saved_with_the_campaign(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    made(truth, tmp_path / "c", estimator=LogisticRegression(C=0.37, max_iter=500))
    campaign = Campaign.open(tmp_path / "c")
    answered(campaign, truth, asked(campaign))
    asked(campaign)
    (tmp_path / "c" / "learner.skops").unlink()
    answered(campaign, truth, asked(campaign))
    with pytest.raises(CampaignError, match=r"learner\.skops, which is gone"):
        campaign.next_batch()


def test_the_budget_ends_the_campaign_and_cuts_the_last_batch(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c", stop=["max_labels=70"])
    sizes = []
    while isinstance(given := campaign.next_batch(), Batch):
        sizes.append(len(given.rows))
        answered(campaign, truth, given)
    assert sizes == [30, 30, 10]
    assert isinstance(given, Stopped)
    assert given.verdicts[0].criterion == "max_labels"
    assert isinstance(next_step(campaign), Stop)


def test_the_last_batch_of_a_pool_is_short_and_says_so(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(2)
    small = Pool.build(rng.standard_normal((50, 4)), tmp_path / "small.zarr")
    campaign = Campaign.create(
        tmp_path / "c", small, ["a", "b"], batch_size=40, strategy="margin", stop=["pool_exhausted"]
    )
    first = asked(campaign)
    campaign.label(first, first.rows % 2)
    with caplog.at_level(logging.WARNING, "dal"):
        second = asked(campaign)
    assert len(second.rows) == 10
    assert sorted([*first.rows, *second.rows]) == list(range(50))
    assert "Only 10 records were never asked" in caplog.text
    campaign.label(second, second.rows % 2)
    assert isinstance(campaign.next_batch(), Stopped)


def test_volunteered_records_are_learned_from_and_not_asked(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    rows = np.arange(2000, 2400)
    campaign.label([f"record {row}" for row in rows], truth[1][rows])
    # A record with NaN can be volunteered, too; it cannot be learned from.
    campaign.label(["record 999"], np.array([1]))
    batch = asked(campaign)
    assert not set(batch.rows.tolist()) & set(rows.tolist())
    assert campaign.rounds.get(1).notes["invalid_labeled"] == 1
    assert campaign.rounds.get(1).trained_on == 400


def taken_by(door: str, campaign: Campaign, cluster: Client) -> str:
    """Take the second batch by one of the doors there are; give what a command printed."""
    match door:
        case "next_batch":
            asked(campaign)
        case "cluster":
            asked(campaign, client=cluster)
        case "batches":
            next(iter(campaign.batches()))
        case "run":
            ended = Event()
            campaign.run(on_batch=lambda _: ended.set(), ended=ended)
        case "dal next":
            done = CliRunner().invoke(main, ["next", str(campaign.directory), "--workers", "0"])
            assert done.exit_code == 0, done.output
            return " ".join(done.output.split())
        case "after a kill":
            campaign.rounds.close(campaign.rounds.get(1))
            Coordinator(campaign).freeze()
            # A label of another class that comes now is the next round's.
            campaign.label([campaign.rounds.batch(1)[0].record_id], ["green"])
            asked(campaign)
        case "--coverage":
            asked(campaign, coverage=True)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["default", "margin"])
def test_labels_of_one_class_are_followed_by_a_batch_that_covers_the_pool(
    strategy: str, truth: tuple[Pool, np.ndarray], tmp_path: Path, cluster: Client, caplog: pytest.LogCaptureFixture
) -> None:
    batches = {}
    # The command comes last: it sets up what its process logs, and takes that from `caplog`.
    for door in ("--coverage", "next_batch", "cluster", "batches", "run", "after a kill", "dal next"):
        campaign = made(truth, tmp_path / door, strategy=strategy, batch_size=30)
        assert status(campaign).one_class == ""
        campaign.label(asked(campaign), np.zeros(30, int))
        assert "'red'" in status(campaign).one_class
        caplog.clear()
        told = taken_by(door, campaign, cluster) + caplog.text
        batches[door] = [each.row for each in campaign.rounds.batch(2)]
        assert campaign.rounds.get(2).model is None
        assert ("All 30 labels are 'red'" in told) == (door != "--coverage")
        # The pages serve it as every batch.
        assert {each.row for each in Queue(campaign).lease("ann", 30)} == set(batches[door])
    for door, rows in batches.items():
        assert rows == batches["--coverage"], door
    # The first record of another class ends it.
    campaign.label(campaign.next_batch(), [*["red"] * 29, "blue"])
    assert status(campaign).one_class == ""
    asked(campaign)
    assert campaign.rounds.get(3).trained_on == 60


def test_skipped_records_close_the_round_and_are_no_class(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    first = asked(campaign)
    answered(campaign, truth, first, upto=20)
    skips = (
        Answer(row=int(row), record_id=f"record {row}", annotator="ann", status="skipped") for row in first.rows[20:]
    )
    campaign.answers.add(skips, source="test")
    second = asked(campaign)
    assert second.number == 2
    assert campaign.rounds.get(2).trained_on == 20


# -- several annotators ------------------------------------------------------------------------------------------------


def said(campaign: Campaign, batch: Batch, codes: np.ndarray, annotator: str) -> None:
    """Have one annotator answer a whole batch."""
    campaign.answers.add(
        (
            Answer(int(row), record_id, annotator, "submitted", int(code))
            for row, record_id, code in zip(batch.rows, batch.record_ids, codes, strict=True)
        ),
        source="test",
    )


def test_annotators_who_err_are_weighed(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(overlap=3, vote="dawid_skene", gold=0.1))
    first = asked(campaign)
    codes = truth[1][first.rows]
    wrong = (codes + 1) % 3
    said(campaign, first, codes, "ann")
    assert asked(campaign).pending == 30
    said(campaign, first, np.where(np.arange(30) % 6 != 1, codes, wrong), "bob")
    said(campaign, first, np.where(np.arange(30) % 2, codes, wrong), "dice")
    asked(campaign)
    latest = campaign.answers.latest(campaign.rounds.get(2).last_answer)
    found = dawid_skene(latest.rows, latest.annotators, latest.labels, n_classes=3, seed=7).labels
    assert found.codes.tolist() == truth[1][found.rows].tolist()
    positions, targets, weights = found.weighted()
    assert len(positions) > 30
    expected = Learner.named("logistic", CLASSES, random_state=7).fit(
        truth[0].take(found.rows)[positions], targets, weights
    )
    X = truth[0].take(np.arange(500, 600))
    model = Model.loads(campaign.rounds.load_model(campaign.rounds.get(2).model))
    assert model.predict_proba(X).tolist() == expected.predict_proba(X).tolist()
    assert campaign.rounds.get(2).trained_on == 30

    now = status(campaign)
    assert now.agreement.records == 30
    assert (now.agreement.pairs[-1].first, now.agreement.pairs[-1].second) == ("ann", "bob")
    assert now.agreement.pairs[-1].agreement == pytest.approx(25 / 30)
    proposed = doubtful(campaign, 5)
    assert len(proposed) == 5
    assert [each.worth for each in proposed] == sorted((each.worth for each in proposed), reverse=True)
    assert len(set(proposed[0].answers.values())) > 1
    for each in proposed:
        assert each.record_id == f"record {each.row}"
        assert each.answers["ann"] == CLASSES[truth[1][each.row]]

    campaign.answers.add_gold([(row, f"record {row}", int(truth[1][row])) for row in (5000, 5001, 5002)])
    queue = Queue(campaign)
    while (served := queue.lease("eve", 5)) and not status(campaign).gold:
        given = [Given(f"e{each.row}", each.row, "submitted", int(truth[1][each.row])) for each in served]
        queue.answer("eve", given)
    ((name, (right, of)),) = status(campaign).gold.items()
    assert name == "eve"
    assert right == of > 0


def test_a_learner_that_takes_no_weights_cannot_have_a_weighing_vote(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    trusted = ["sklearn.metrics._dist_metrics.EuclideanDistance64", "sklearn.neighbors._kd_tree.KDTree"]
    options = {"estimator": KNeighborsClassifier(3), "trusted": trusted}
    with pytest.raises(LearnerError, match=r"sample_weight.*majority"):
        made(truth, tmp_path / "c", labelling=Labelling(vote="dawid_skene"), **options)
    assert not (tmp_path / "c").exists()
    made(truth, tmp_path / "c", **options)
    toml = tmp_path / "c" / "campaign.toml"
    toml.write_text(toml.read_text().replace('vote = "majority"', 'vote = "dawid_skene"'))
    with pytest.raises(LearnerError, match="sample_weight"):
        Campaign.open(tmp_path / "c").next_batch()
    assert Campaign.open(tmp_path / "c").rounds.all() == []


# -- refused before anything is written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"batch_size": N + 1}, SettingsError, "at most the pool's 6,000 records, got 6,001"),
        ({"batch_size": 0}, SettingsError, "batch"),
        ({"strategy": "marginal"}, SettingsError, "default, coverage"),
        ({"stop": ["max_label=3"]}, SettingsError, "max_labels"),
        ({"estimator": "logistics"}, LearnerError, "logistic"),
        ({"estimator": SVR()}, LearnerError, "classifier"),
        ({"explore": 1.5}, SettingsError, "explore"),
        ({"estimator": "forest", "strategy": "expected_gradient_length"}, LearnerError, "linear softmax layer"),
        ({"labelling": partial(Labelling, overlap=0)}, SettingsError, "overlap"),
        ({"labelling": partial(Labelling, gold=1.0)}, SettingsError, "gold"),
        ({"labelling": partial(Labelling, vote="loudest")}, SettingsError, "majority or dawid_skene"),
    ],
)
def test_bad_settings_leave_no_campaign(
    wrong: dict, error: type[Exception], says: str, truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        made(
            truth,
            tmp_path / "c",
            **{name: each() if isinstance(each, partial) else each for name, each in wrong.items()},
        )
    assert not (tmp_path / "c").exists()


def test_bad_classes_and_pools_leave_no_campaign(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises((SettingsError, LabelError), match="two"):
        Campaign.create(tmp_path / "c", truth[0], ["only"], batch_size=5)
    with pytest.raises(PoolNotFound):
        Campaign.create(tmp_path / "c", tmp_path / "nothing.zarr", CLASSES)
    assert not (tmp_path / "c").exists()


def test_a_directory_that_is_another_campaigns_is_refused(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    # The same one again, before anything happened in it, is a call that was killed at its end and is repeated.
    assert made(truth, tmp_path / "c").id == campaign.id
    with pytest.raises(CampaignError, match="holds a campaign already"):
        made(truth, tmp_path / "c", random_state=8)
    asked(campaign)
    with pytest.raises(CampaignError, match="holds a campaign already"):
        made(truth, tmp_path / "c", random_state=8)


def test_another_pool_in_the_old_place_is_refused(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((40, 3))
    Pool.build(X, tmp_path / "pool.zarr")
    campaign = Campaign.create(tmp_path / "c", tmp_path / "pool.zarr", CLASSES, batch_size=4)
    Pool.build(X, tmp_path / "pool.zarr", overwrite=True)
    with pytest.raises(CampaignMismatch, match="made for another pool"):
        pool_of(campaign)
    with pytest.raises(CampaignMismatch):
        campaign.next_batch()
    assert campaign.rounds.all() == []


# -- killed -----------------------------------------------------------------------------------------------------------


def killed_next_batch(directory: str, method: str, when: str) -> None:
    """Run in a process of its own: the next batch, with SIGKILL before or after one durable step."""
    real = getattr(Rounds, method)

    def stabbed(self: Rounds, *arguments: object, **options: object) -> object:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(Rounds, method, stabbed)
    Campaign.open(directory).next_batch()


STEPS = ["freeze", "save_model", "save_scan", "open"]


@pytest.fixture(scope="module")
def undisturbed(truth: tuple[Pool, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A campaign whose first batch is answered, and the same one with its second batch open."""
    folder = tmp_path_factory.mktemp("undisturbed")
    campaign = made(truth, folder / "answered")
    answered(campaign, truth, asked(campaign))
    asked(Campaign.open(shutil.copytree(folder / "answered", folder / "open")))
    return folder / "answered", folder / "open"


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", STEPS)
def test_killed_at_any_step_the_batch_is_the_same(
    method: str, when: str, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    campaign = Campaign.open(shutil.copytree(undisturbed[0], tmp_path / "c"))
    expected = Campaign.open(undisturbed[1]).rounds.batch(2)

    process = Process(target=killed_next_batch, args=(str(tmp_path / "c"), method, when))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL

    step = next_step(campaign)
    reached = STEPS.index(method) + (when == "after")
    kinds = [Open, Fit, ScanAction, Select, Wait]
    # Before anything of round 2 is durable, round 1 is still to be closed or just closed.
    assert isinstance(step, kinds[reached])
    batch = asked(campaign)
    assert batch.rows.tolist() == [a.row for a in expected]
    assert [(a.score, a.predicted, a.explore) for a in campaign.rounds.batch(2)] == [
        (a.score, a.predicted, a.explore) for a in expected
    ]
    if method != "freeze" and not (method == "save_model" and when == "before"):
        # What was committed is loaded, never fitted again: the digest is the one that the dead process wrote.
        assert len(list((tmp_path / "c" / "models").glob("*.skops"))) == 1


def test_answers_that_come_after_the_freeze_belong_to_the_next_round(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "c")
    answered(campaign, truth, asked(campaign))
    process = Process(target=killed_next_batch, args=(str(tmp_path / "c"), "freeze", "after"))
    process.start()
    process.join(60)
    rows = np.array([4000, 4001])
    campaign.label(["record 4000", "record 4001"], truth[1][rows])
    batch = asked(campaign)
    assert campaign.rounds.get(2).trained_on == 30
    assert not set(batch.rows.tolist()) & {4000, 4001}
    answered(campaign, truth, batch)
    asked(campaign)
    assert campaign.rounds.get(3).trained_on == 62


def test_killed_while_the_rest_of_a_batch_is_answered_the_batch_is_the_same(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(close_at=0.8))
    first = asked(campaign)
    answered(campaign, truth, first, 24)
    shutil.copytree(tmp_path / "c", tmp_path / "undisturbed")
    expected = asked(Campaign.open(tmp_path / "undisturbed"))

    queue, rest = Queue(campaign), set(first.rows[24:].tolist())
    served: list[int] = []

    def answer(count: int) -> None:
        rows = [each.row for each in queue.lease("ann", count)]
        given = queue.answer("ann", [Given(f"ann {row}", row, "submitted", int(truth[1][row])) for row in rows])
        assert [(each.result, each.late) for each in given] == [("new", False)] * count
        served.extend(rows)

    for method in STEPS[:3]:
        process = Process(target=killed_next_batch, args=(str(tmp_path / "c"), method, "after"))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        answer(1)
    second = asked(campaign)
    assert second.rows.tolist() == expected.rows.tolist()
    assert campaign.rounds.get(2).trained_on == 24
    answer(3)
    assert set(served) == rest, "before the records of the second batch"
    answered(campaign, truth, second, 24)
    third = asked(campaign)
    assert campaign.rounds.get(3).trained_on == 54
    rows = [*first.rows.tolist(), *second.rows.tolist(), *third.rows.tolist()]
    assert len(set(rows)) == len(rows)


# -- what people do to campaign.toml, and what a round can come to ----------------------------------------------------


def edit(campaign: Campaign, old: str, new: str) -> Campaign:
    path = campaign.directory / "campaign.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return Campaign.open(campaign.directory)


def test_a_mistyped_strategy_freezes_no_round(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    broken = edit(campaign, '"default"', '"defalt"')
    with pytest.raises(SettingsError, match="defalt"):
        broken.next_batch()
    assert broken.rounds.all() == []
    assert asked(edit(broken, '"defalt"', '"default"')).number == 1


def test_labels_that_a_learner_refuses_do_not_block_the_campaign(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    calibrated = CalibratedClassifierCV(LogisticRegression(), cv=5)
    trusted = ["sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"]
    campaign = made(truth, tmp_path / "c", estimator=calibrated, trusted=trusted, batch_size=4)
    answered(campaign, truth, asked(campaign))
    marks, row = Examples(campaign), int(campaign.rounds.asked_rows()[0])
    marks.mark(row, f"record {row}", "ann")
    with pytest.raises(LearnerError, match=r"could not be fitted on 4 labels.*dal next --coverage"):
        campaign.next_batch()
    rows = np.arange(100, 160)
    campaign.label([f"record {row}" for row in rows], truth[1][rows])
    assert asked(campaign).number == 2
    assert campaign.rounds.get(2).trained_on == 64
    # The round that was taken back has used no mark up.
    assert campaign.rounds.get(2).search.rows == (row,)
    assert marks.count() == 0


def test_a_pool_whose_rest_is_invalid_ends_the_campaign(tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((30, 3))
    X[20:] = np.nan
    pool = Pool.build(X, tmp_path / "pool.zarr")
    campaign = Campaign.create(tmp_path / "c", pool, ["a", "b"], batch_size=12)
    sizes = []
    while isinstance(given := campaign.next_batch(), Batch):
        sizes.append(len(given.rows))
        campaign.label(given, given.rows % 2)
    assert sizes == [12, 8]
    assert (
        "every row of the pool was asked or cannot be: 10 hold infinite values, or missing ones"
        in given.verdicts[0].reason
    )


def test_stored_cells_that_were_lost_are_computed_again(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    batches = []
    for name in ("kept", "lost", "torn"):
        campaign = made(truth, tmp_path / name, batch_size=20)
        answered(campaign, truth, asked(campaign))
        answered(campaign, truth, asked(campaign))
        if name == "lost":
            shutil.rmtree(campaign.directory / "cells.zarr")
        if name == "torn":
            shutil.rmtree(campaign.directory / "cells.zarr" / "c")
        batches.append(asked(campaign).rows.tolist())
    assert batches[0] == batches[1] == batches[2]


def test_features_of_asked_records_are_not_read_from_the_pool_again(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    real = Pool.take

    def counted(self: Pool, rows: np.ndarray) -> np.ndarray:
        taken.extend(np.asarray(rows).tolist())
        return real(self, rows)

    campaign = made(truth, tmp_path / "c")
    answered(campaign, truth, asked(campaign))
    answered(campaign, truth, asked(campaign))
    monkeypatch.setattr(Pool, "take", counted)
    third = asked(campaign)
    explored = [a.row for a in campaign.rounds.batch(3) if a.explore]
    assert taken == explored
    assert len(third.rows) == 30


def test_a_model_that_fits_and_cannot_predict_does_not_block_the_campaign(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    trusted = ["sklearn.metrics._dist_metrics.EuclideanDistance64", "sklearn.neighbors._kd_tree.KDTree"]
    campaign = made(truth, tmp_path / "c", estimator=KNeighborsClassifier(20), trusted=trusted, batch_size=8)
    answered(campaign, truth, asked(campaign))
    with pytest.raises(LearnerError, match="n_neighbors"):
        campaign.next_batch()
    rows = np.arange(100, 160)
    campaign.label([f"record {row}" for row in rows], truth[1][rows])
    assert asked(campaign).number == 2


def test_files_that_a_power_cut_tore_are_made_again(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    batches = []
    for name in ("whole", "torn"):
        campaign = made(truth, tmp_path / name, batch_size=20)
        answered(campaign, truth, asked(campaign))
        answered(campaign, truth, asked(campaign))
        if name == "torn":
            (codebook,) = campaign.directory.glob("codebook-*.npz")
            kept = sorted(campaign.directory.glob("features/*"))
            assert len(kept) == 2
            for path in (codebook, campaign.directory / "rounds/0001-features.npz", *kept):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            cells = campaign.directory / "cells.zarr/zarr.json"
            cells.write_bytes(cells.read_bytes()[: cells.stat().st_size // 2])
        batches.append(asked(campaign).rows.tolist())
    assert batches[0] == batches[1]


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "rare", "learner"),
    [
        ("default", False, "logistic"),
        ("coverage", False, "logistic"),
        ("margin", True, "logistic"),
        ("default", False, "tests.toy_learners:Embedding"),
        *(
            pytest.param(each, rare, learner, marks=pytest.mark.slow)
            for rare, learner, strategies in (
                (False, "logistic", ("margin", "power", "cluster_margin", "badge", "class_coverage")),
                (True, "logistic", ("default", "random")),
                (False, "tests.toy_learners:Embedding", ("cluster_margin", "badge", "class_coverage")),
            )
            for each in strategies
        ),
    ],
)
def test_scan_and_choose_with_a_campaigns_settings_give_its_batches(
    strategy: str, rare: bool, learner: str, tmp_path: Path
) -> None:
    """With all that a campaign adds: the explore share, the stop set, a stratified shortlist, a cold start.

    A rare class is found by the third batch: the second one is chosen by coverage, but at random where all are.
    """
    rng = np.random.default_rng(3)
    X = rng.standard_normal((12_000, 5)).astype(np.float32)
    X[50] = np.nan
    codes = (X[:, 0] + 0.3 * rng.standard_normal(12_000) > 0).astype(int)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    k, seed, stop_set, names = 40, 11, 120, ("no", "yes")
    campaign = Campaign.create(
        tmp_path / "c",
        pool,
        names,
        estimator=learner,
        trusted=toy_learners.NAMES,
        strategy=strategy,
        batch_size=k,
        random_state=seed,
        explore=0.1,
        measuring=Measuring(stop_set=stop_set),
    )
    kept_apart = list(islice(uniform_rows(len(X), np.empty(0, np.int64), seed, STOP_SET), stop_set))
    asked = np.empty(0, np.int64)
    due, explored, random = 0.0, 0, np.empty(0, np.int64)
    codebook = sample_codebook(pool, Strategy.named(strategy).n_cells(k, len(X)), seed)
    for number in (1, 2, 3):
        wanted = Strategy.named(strategy)
        model, trust = None, Trust()
        known = np.sort(asked)
        if rare and number == 2:
            assert set(codes[known]) == {0}
            wanted = Strategy.named("random" if strategy == "random" else "coverage")
        elif number > 1 and strategy not in ("coverage", "random"):
            known_learner = Learner.named(learner, names, random_state=seed, trusted=toy_learners.NAMES)
            model = known_learner.fit(pool.take(known), codes[known])
            drawn = np.isin(known, random)
            trust = trust_in(known_learner, pool.take(known), codes[known], None, drawn, model, known)
            assert trust.weight == 1 or rare, "where nothing is wrong, all labels count"
            model = known_learner.fit(pool.take(known), codes[known], trust.weights(drawn))
        else:
            wanted = wanted.cold()
        excluded = np.union1d(asked, kept_apart)
        at = {"random_state": seed, "round": number}
        found = scan(pool, model, wanted, k, excluded, codebook=codebook, with_features=True, **at).candidates
        draws = (row for row in uniform_rows(len(X), excluded, seed, number) if row != 50)
        share = 0.5 if number == 1 else share_in_doubt(0.1, trust.weight, trust.beaten)
        drawn = list(islice(draws, explore_count(share, due, explored, k)))
        due, explored, random = due + share * k, explored + len(drawn), np.append(random, drawn).astype(np.int64)
        taken = np.append(asked, drawn).astype(np.int64)
        embeds = model is not None and model.embedding_width > 0
        predicted = model.predict_proba(pool.take(drawn)).argmax(axis=1) if model is not None and drawn else drawn
        rows = choose(
            found,
            wanted,
            k - len(drawn),
            capacity=wanted.capacity(k, len(X), len(codebook.centers)),
            codebook=codebook,
            asked=pool.take(taken),
            excluded=taken,
            asked_inner=model.predict_embedded(pool.take(taken))[1] if model is not None and embeds else None,
            asked_codes=np.append(codes[asked], predicted),
            **at,
        )
        batch = campaign.next_batch()
        assert isinstance(batch, Batch)
        assert batch.rows.tolist() == interleaved(rows.tolist(), drawn)
        if rare and number == 1:
            codes[batch.rows] = 0
        campaign.label(batch, codes[batch.rows])
        asked = np.append(asked, batch.rows)
        assert ("6 numbers" in campaign.status().compared) == embeds
    assert explored == int(due)
    assert explored == 28 or rare
