"""Where a campaign stands: what is measured on the stop set, the holdout and the explore share."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bokeh.models import ColumnDataSource
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score
from sqlalchemy import event, update
from sqlalchemy.pool import Pool as Connections

from dal import Campaign
from dal.campaign import Answer, CampaignStore, Labelling, Measuring, answer_log
from dal.campaign.parts import learner_of
from dal.campaign.schema import rounds
from dal.campaign.view import View, status
from dal.cli import main
from dal.errors import SettingsError
from dal.evidence.ruler import wilson
from dal.evidence.votes import dawid_skene, majority
from dal.explorer.report import view_of_campaign
from dal.explorer.run import run_of_campaign
from dal.learners.models import Model
from dal.loop.coordinator import Coordinator
from dal.loop.savings import saved
from dal.loop.state import next_step
from dal.map import map_of
from dal.pool import Pool
from dal.web.overview import PACE, Overviews, time_left
from dal.web.records import Records
from dal.web.state import Standings

CLASSES = ("red", "green", "blue")
N, D, FIRST = 3_000, 6, 40


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, N)
    X = (1.2 * rng.standard_normal((3, D))[codes] + rng.standard_normal((N, D))).astype(np.float32)
    X[:FIRST] = np.nan
    return Pool.build(X, tmp_path_factory.mktemp("pool") / "pool.zarr"), codes


def played(truth: tuple[Pool, np.ndarray], directory: Path, rounds: int, **options: object) -> Campaign:
    campaign = Campaign.create(directory, truth[0], CLASSES, **{"batch_size": 40, "random_state": 7, **options})
    for _ in range(rounds):
        batch = campaign.next_batch()
        campaign.label(batch, truth[1][batch.rows])
    return campaign


def test_the_stop_set_is_never_asked_and_models_are_compared_on_it(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    pool, _ = truth
    campaign = played(truth, tmp_path / "c", 5, measuring=Measuring(stop_set=300))
    with np.load(campaign.directory / "stop-set.npz") as kept:
        held = kept["rows"]
        np.testing.assert_array_equal(kept["features"], pool.take(held))
    assert len(np.unique(held)) == 300
    # Drawn evenly: of 300 rows in ten equal parts of the pool, each part has 30, give or take four deviations.
    assert np.abs(np.bincount(held // 300, minlength=10) - 30).max() <= 21
    asked = np.concatenate([[each.row for each in campaign.rounds.batch(number)] for number in range(1, 6)])
    assert len(asked) == 200
    assert not np.isin(asked, held).any()
    # 40 rows in 3,000 are NaN: some of those held back, too, and no model judges them.
    X = pool.take(held)
    X = X[np.isfinite(X).all(axis=1)]
    assert len(X) < 300
    models = [None, *(Model.loads(campaign.rounds.load_model(each.model)) for each in campaign.rounds.all()[1:])]
    history = View(campaign).history()
    assert [record.kappa for record in history[:2]] == [None, None], "two models are there from the third round on"
    for record in history[1:]:
        proba = models[record.number - 1].predict_proba(X)
        entropy = -(proba * np.log(np.maximum(proba, 1e-300))).sum(axis=1) / math.log(3)
        assert record.uncertainty == pytest.approx(entropy.mean(), abs=1e-6)
        if record.number > 2:
            now, then = proba.argmax(axis=1), models[record.number - 2].predict_proba(X).argmax(axis=1)
            assert record.changed == pytest.approx((now != then).mean())
            assert record.kappa == pytest.approx(cohen_kappa_score(now, then))
            assert record.kappa < 1
    said = {each.criterion: each for each in status(campaign).advice}
    assert said["overall_uncertainty"].value == history[-1].uncertainty
    assert said["classification_change"].value == history[-1].changed
    assert not said["stabilizing_predictions"].stop


def test_every_reader_counts_labels_by_the_campaigns_vote(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    """Ann is right, bob and cat guess: Dawid and Skene's model sides with her where a majority would not."""
    pool, codes = truth
    rng = np.random.default_rng(5)
    campaign = Campaign.create(
        tmp_path / "c",
        pool,
        CLASSES,
        batch_size=80,
        random_state=7,
        explore=0.5,
        labelling=Labelling(overlap=3, vote="dawid_skene"),
    )
    for _ in range(2):
        batch = campaign.next_batch()
        guessed = [np.where(rng.random(80) < 0.5, codes[batch.rows], rng.integers(0, 3, 80)) for _ in range(2)]
        for who, given in zip(("ann", "bob", "cat"), (codes[batch.rows], *guessed), strict=True):
            campaign.label(batch, given, annotator=who)
    answers = campaign.answers.latest()
    by_majority = majority(answers.rows, answers.labels, seed=7)[1]
    voted = dawid_skene(answers.rows, answers.annotators, answers.labels, n_classes=3, seed=7).labels
    codes = codes.copy()
    codes[voted.rows] = voted.codes
    assert (voted.codes != by_majority).sum() > 5
    rows = np.sort(np.concatenate([[each.row for each in campaign.rounds.batch(number)] for number in (1, 2)]))
    drawn = np.array([each.row for number in (1, 2) for each in campaign.rounds.batch(number) if each.explore])
    per_class = dict(zip(CLASSES, np.bincount(codes[rows], minlength=3).tolist(), strict=True))
    shares = np.bincount(codes[drawn], minlength=3) / len(drawn)
    told = status(campaign)
    assert told.per_class == per_class
    assert [told.shares[name].value for name in CLASSES] == pytest.approx(shares.tolist())

    run = run_of_campaign(campaign, None)
    np.testing.assert_array_equal(run.rows, rows)
    np.testing.assert_array_equal(run.codes, codes[rows])
    assert view_of_campaign(campaign, None)["shares"] == pytest.approx(shares.tolist())

    map_of(pool, campaign.directory / "map.npz", 0)
    page = Overviews(campaign, Records(pool))
    assert {each.name: each.labels for each in page.now(Standings(campaign).now()).classes} == per_class
    (balance,) = page._balance()
    (source, *_) = [each.data for each in balance.select({"type": ColumnDataSource}) if "pool" in each.data]
    newest = codes[[each.row for each in campaign.rounds.batch(2)]]
    assert (source["labels"], source["new"]) == (list(per_class.values()), np.bincount(newest, minlength=3).tolist())
    assert source["pool"] == pytest.approx(shares.tolist())
    (points,) = page._map()
    sources = [each.data for each in points.select({"type": ColumnDataSource}) if "record" in each.data]
    said = {record: label for data in sources for record, label in zip(data["record"], data["label"], strict=True)}
    assert said == {str(row): CLASSES[codes[row]] for row in rows}


def test_the_time_left_is_that_of_the_batch_and_of_the_rest_before_it(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    pool, codes = truth
    campaign = played(truth, tmp_path / "c", 0, labelling=Labelling(close_at=0.8))
    first = campaign.next_batch()
    campaign.label(first.record_ids[:32], codes[first.rows[:32]])
    second = campaign.next_batch()
    campaign.label(second.record_ids[:10], codes[second.rows[:10]])
    page = Overviews(campaign, Records(pool)).now(Standings(campaign).now())
    assert (page.left_low, page.left_high) == time_left(30 + 8, 42, PACE)
    assert page.standing.pending == 30


def test_labels_of_one_class_are_told_by_page_and_command_until_there_is_another(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    pool = truth[0]
    for strategy, told in (("default", True), ("random", False)):
        campaign = Campaign.create(tmp_path / strategy, pool, CLASSES, batch_size=10, strategy=strategy)
        first = campaign.next_batch()
        campaign.label(first, [CLASSES[1]] * 10)
        page = Overviews(campaign, Records(pool)).now(Standings(campaign).now())
        printed = " ".join(CliRunner().invoke(main, ["status", str(campaign.directory)]).output.split())
        assert bool(status(campaign).one_class) == told
        assert [each for each in page.warnings if CLASSES[1] in each] == [status(campaign).one_class] * told
        assert (f"All 10 labels are '{CLASSES[1]}'" in printed) == told
        toml = campaign.directory / "campaign.toml"
        toml.write_text(toml.read_text().replace(f'"{strategy}"', '"not_installed:here"'))
        assert status(Campaign.open(campaign.directory)).one_class == ""
        campaign.label(first.record_ids[:1], [CLASSES[0]])
        assert status(campaign).one_class == ""


def test_a_model_that_one_class_beats_is_told_by_page_and_command(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    """The chosen records have other classes than the explore share, as where one class surrounds the other."""
    pool, codes = truth
    campaign = Campaign.create(tmp_path / "c", pool, CLASSES, batch_size=40, explore=0.5, random_state=3)
    first = campaign.next_batch()
    campaign.label(first, codes[first.rows])
    assert status(campaign).unskilled == ""
    batch = campaign.next_batch()
    explored = {each.row: each.predicted for each in campaign.rounds.batch(2) if each.explore}
    campaign.label(batch, [CLASSES[1 - (row in explored)] for row in batch.rows.tolist()])
    right = sum(code == 0 for code in explored.values())
    assert right < len(explored) == 20
    text = status(campaign).unskilled
    assert (
        f"Of the newest 20 explore answers the model predicted {right} rightly, and {CLASSES[0]!r} for all would"
        in text
    )
    assert "have been right 20 times" in text
    page = Overviews(campaign, Records(pool)).now(Standings(campaign).now())
    assert text in page.warnings
    printed = " ".join(CliRunner().invoke(main, ["status", str(campaign.directory)]).output.split())
    assert text in printed
    campaign.label(batch, codes[batch.rows])
    assert status(campaign).unskilled == ""


def test_an_edit_of_the_stop_set_does_not_change_a_round_that_is_frozen(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    def second_batch(name: str, edited: bool) -> list[int]:
        campaign = played(truth, tmp_path / name, 1, measuring=Measuring(stop_set=300))
        campaign.rounds.close(campaign.rounds.get(1))
        Coordinator(campaign).freeze()
        if edited:
            toml = campaign.directory / "campaign.toml"
            toml.write_text(toml.read_text().replace("stop_set = 300", "stop_set = 0"))
            campaign = Campaign.open(campaign.directory)
            assert campaign.settings.measuring.stop_set == 0
        return campaign.next_batch().rows.tolist()

    assert second_batch("a", edited=True) == second_batch("b", edited=False)


def test_large_pools_hold_one_in_a_hundred_back_and_small_ones_none(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    from dal.loop.campaign import _stop_set_of

    assert [_stop_set_of(n) for n in (3_000, 9_999, 10_000, 70_000, 10**9)] == [0, 0, 100, 700, 1000]
    assert Campaign.create(tmp_path / "c", truth[0], CLASSES).settings.measuring.stop_set == 0
    with pytest.raises(SettingsError, match="at most half of the pool's 3,000"):
        Campaign.create(tmp_path / "d", truth[0], CLASSES, measuring=Measuring(stop_set=1501))
    assert not (tmp_path / "d").exists()


def test_a_pool_is_exhausted_when_all_but_the_stop_set_was_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pool = Pool.build(rng.standard_normal((100, 3)).astype(np.float32), tmp_path / "pool.zarr")
    codes = np.arange(100) % 3
    campaign = Campaign.create(
        tmp_path / "c", pool, CLASSES, batch_size=30, measuring=Measuring(stop_set=20), strategy="random"
    )
    sizes = []
    for _ in range(3):
        batch = campaign.next_batch()
        sizes.append(len(batch.rows))
        campaign.label(batch, codes[batch.rows])
    assert sizes == [30, 30, 20]
    stopped = campaign.next_batch()
    assert [each.criterion for each in stopped.verdicts] == ["pool_exhausted"]
    assert View(campaign).history()[-1].never_asked == 0


def test_a_holdout_is_what_accuracy_is_measured_on(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    pool, codes = truth
    apart = np.arange(N - 500, N)
    X = pool.take(apart)
    np.savez(tmp_path / "holdout.npz", X=X, y=np.array(CLASSES)[codes[apart]])
    campaign = played(truth, tmp_path / "c", 3, measuring=Measuring(holdout=tmp_path / "holdout.npz"))
    campaign.next_batch()  # closes the third round
    right = int(
        (
            Model.loads(campaign.rounds.load_model(campaign.rounds.get(3).model)).predict_proba(X).argmax(axis=1)
            == codes[apart]
        ).sum()
    )
    now = status(campaign)
    assert (now.accuracy.value, now.accuracy.n) == (right / 500, 500)
    assert (now.accuracy.low, now.accuracy.high) == wilson(right, 500)


@pytest.mark.parametrize("kind", ["int64", "float32", "str", "bool"])
def test_a_holdout_of_numbers_names_classes_and_no_positions(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, kind: str
) -> None:
    from dal.loop.measure import read_holdout

    numbers = np.array([0, 1, 1, 0, 1])
    np.savez(tmp_path / "holdout.npz", X=np.zeros((5, D)), y=numbers.astype(kind))
    for classes, codes in ((["1", "0"], [1, 0, 0, 1, 0]), (["0", "1"], [0, 1, 1, 0, 1])):
        place = tmp_path / "-".join(classes)
        campaign = Campaign.create(place, truth[0], classes, measuring=Measuring(holdout=tmp_path / "holdout.npz"))
        read = read_holdout(campaign.settings, D)
        assert read is not None
        assert read[1].tolist() == codes


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"X": np.zeros((4, D))}, "without y"),
        ({"X": np.zeros((4, D + 1)), "y": np.zeros(4, int)}, r"got X \(4, 7\) and y \(4,\)"),
        ({"X": np.zeros((4, D)), "y": np.zeros(3, int)}, r"and y \(3,\)"),
        ({"X": np.zeros((0, D)), "y": np.zeros(0, int)}, r"got X \(0, 6\)"),
        ({"X": np.zeros((2, D)), "y": np.array(["red", "Green"])}, "'Green'"),
        ({"X": np.zeros((2, D)), "y": np.array([0, 1])}, "positions they would be 0 = red, 1 = "),
        ({"X": np.zeros((2, D)), "y": np.array(["red", "nan"])}, "got 1 without one"),
        ({"X": np.zeros((2, D)), "y": np.array(["red", ""])}, "got 1 without one"),
        ({"X": np.zeros((2, D)), "y": np.array(["red", None], object)}, r"fillna\(''\)"),
        ({"X": np.full((1, D), np.nan), "y": np.array(["red"])}, "NaN"),
    ],
)
def test_a_holdout_that_is_none_is_refused_before_anything_is_made(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, stored: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "holdout.npz", **stored)
    with pytest.raises(SettingsError, match=said):
        Campaign.create(tmp_path / "c", truth[0], CLASSES, measuring=Measuring(holdout=tmp_path / "holdout.npz"))
    with pytest.raises(SettingsError, match=r"none\.npz cannot be read"):
        Campaign.create(tmp_path / "c", truth[0], CLASSES, measuring=Measuring(holdout=tmp_path / "none.npz"))
    assert not (tmp_path / "c").exists()


def test_class_shares_are_of_explore_answers_alone(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = played(truth, tmp_path / "c", 3, explore=0.5)
    drawn = [each.row for number in (1, 2, 3) for each in campaign.rounds.batch(number) if each.explore]
    assert len(drawn) == 60
    counts = np.bincount(truth[1][drawn], minlength=3)
    shares = status(campaign).shares
    assert [shares[name].value for name in CLASSES] == pytest.approx((counts / 60).tolist())
    assert [(shares[name].low, shares[name].high) for name in CLASSES] == [wilson(int(c), 60) for c in counts]


def test_the_penalty_that_the_learner_chose_is_told_where_the_learner_is_named(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    rng, codes = np.random.default_rng(8), truth[1]
    X = rng.standard_normal((N, 80), dtype=np.float32)
    X[:, :3] += 0.3 * np.eye(3, dtype=np.float32)[codes]
    noisy = Pool.build(X, tmp_path / "noisy.zarr"), codes
    campaign = played(noisy, tmp_path / "c", 1, estimator="logistic", batch_size=400)
    assert status(campaign).learner == "logistic"  # nothing is fitted yet
    campaign.next_batch()
    model, now = Model.loads(campaign.rounds.load_model(campaign.rounds.get(2).model)), status(campaign)
    assert now.learner == f"logistic, {model.chosen}"
    assert now.learner.endswith(" instead of 1, by cross-validation on 400 labels")
    shown = " ".join(CliRunner().invoke(main, ["status", str(tmp_path / "c")]).output.split())
    assert f"learner: {now.learner}" in shown
    page = Overviews(campaign, Records(noisy[0])).now(Standings(campaign).now())
    assert page.learner == now.learner
    settings = [table for table in view_of_campaign(campaign, None)["tables"] if table["title"] == "Settings"]
    assert ["estimator", now.learner] in settings[0]["rows"]
    # The learner is another one since; a round of an older version has no such note; other learners choose nothing.
    changed = CampaignStore.open(tmp_path / "c")
    changed.settings = replace(changed.settings, estimator="forest")
    assert status(changed).learner == "forest"
    with campaign.database.writing() as connection:
        connection.execute(update(rounds).values(notes=json.dumps({"warnings": []})))
    assert status(CampaignStore.open(tmp_path / "c")).learner == "logistic"
    other = played(truth, tmp_path / "other", 1, estimator="head")
    other.next_batch()
    assert status(other).learner == "head"


@pytest.mark.slow
def test_labels_saved_are_told_when_the_explore_share_allows_it(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    few = played(truth, tmp_path / "few", 2)
    assert saved(few).text == "not enough evidence: 22 explore answers, 200 are needed"
    many = played(truth, tmp_path / "many", 3, batch_size=160, explore=0.5)
    estimate = saved(many)
    assert estimate.n == 240
    # The halves are drawn by seed: told twice, it is the same.
    assert estimate.value is None or -480 <= estimate.low <= estimate.value <= estimate.high
    assert estimate == saved(many)


def test_the_criteria_tell_after_which_round_they_would_have_stopped(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = played(
        truth, tmp_path / "c", 6, measuring=Measuring(stop_set=300), stop=["max_labels=100000"], batch_size=60
    )
    campaign.next_batch()
    now = status(campaign)
    history = View(campaign).history()
    assert len(history) == 6
    kappas = {record.number: record.kappa for record in history}
    for criterion in (*now.verdicts, *now.advice):
        number = now.first_stops.get(criterion.criterion)
        if criterion.criterion == "stabilizing_predictions":
            means = {n: np.mean([kappas[n - 2], kappas[n - 1], kappas[n]]) for n in (5,)}
            assert number == next((n for n, mean in means.items() if mean >= 0.99), None)
        if criterion.criterion == "max_labels":
            assert number is None


def test_a_poll_computes_nothing_again_until_an_answer_comes(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = played(truth, tmp_path / "c", 1, labelling=Labelling(overlap=2))
    batch = campaign.rounds.batch(1)
    computed = []
    real = answer_log.agreement
    monkeypatch.setattr(answer_log, "agreement", lambda *given, **how: computed.append(1) or real(*given, **how))
    assert status(campaign).agreement.records == status(campaign).agreement.records == 0
    assert len(computed) == 1, "the bootstrap is kept with the answers that it is of"
    campaign.label([batch[0].record_id], [truth[1][batch[0].row]], annotator="bob")
    assert status(campaign).agreement.records == status(campaign).agreement.records == 1
    assert len(computed) == 2


def test_a_status_is_read_over_a_few_connections_and_keeps_none(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    made = played(truth, tmp_path / "c", rounds=2)
    opened, closed = [], []
    listeners = [("connect", lambda *_: opened.append(1)), ("close", lambda *_: closed.append(1))]
    for name, listener in listeners:
        event.listen(Connections, name, listener)
    try:
        campaign = CampaignStore.open(made.directory)
        assert len(opened) == 1
        status(campaign)
        assert len(opened) == 2, "one snapshot for all that is read"
        saved(campaign)
        assert len(opened) == 3
        next_step(campaign)
        assert len(opened) == 4
        assert len(closed) == 4
    finally:
        for name, listener in listeners:
            event.remove(Connections, name, listener)


def test_a_snapshot_sees_one_moment_and_ends(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = played(truth, tmp_path / "c", rounds=1)
    before = campaign.answers.last_id()
    with campaign.database.snapshot():
        assert campaign.answers.last_id() == before
        answer = Answer(7, "7", "late", "submitted", 0)
        with ThreadPoolExecutor(1) as other:
            other.submit(campaign.answers.add, [answer], source="test").result()
            assert other.submit(campaign.answers.last_id).result() == before + 1
        assert campaign.answers.last_id() == before
    assert campaign.answers.last_id() == before + 1


def test_measurements_of_a_newer_version_are_left_aside(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = played(truth, tmp_path / "c", 3, measuring=Measuring(stop_set=100))
    before = View(campaign).history()
    with campaign.database.writing() as connection:
        for each in campaign.rounds.all():
            notes = each.notes or {}
            notes = notes | {"measured": notes.get("measured", {}) | {"brier": 0.1}, "since": "0.9"}
            connection.execute(update(rounds).where(rounds.c.number == each.number).values(notes=json.dumps(notes)))
    assert View(campaign).history() == before
    assert any(record.uncertainty is not None for record in before)


def test_the_learner_of_a_campaign_is_the_one_the_ruler_fits(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = played(truth, tmp_path / "c", 1, estimator="forest")
    assert type(learner_of(campaign).estimator).__name__ == "RandomForestClassifier"
