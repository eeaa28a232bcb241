"""The choice of learner: compared on the labels of real campaigns, and switched between their rounds."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier
from sqlalchemy import text

from dal import Campaign, Labelling, Measuring, Pool
from dal.campaign.choice import Candidate, Choice, Comparison
from dal.campaign.features import Features
from dal.campaign.view import View
from dal.cli import main
from dal.cli.terminal import quoted
from dal.compute.workers import OnDemand
from dal.errors import ClusterLost, DalError, InputError, LearnerError, LearnerSwitched, SettingsError
from dal.evidence.comparison import compare
from dal.evidence.ruler import Estimate
from dal.evidence.votes import Labels
from dal.explorer.report import view_of_campaign
from dal.learners.learner import Learner
from dal.learners.models import finite
from dal.loop import learners as loop_learners
from dal.loop.batch import Batch
from dal.loop.coordinator import Coordinator
from dal.loop.learners import Known, compared, judge, predicted
from dal.loop.savings import saved
from dal.selection.order import row_hash
from tests.clusters import own_cluster

CLASSES = ("in", "out")
TREE = "sklearn.tree:DecisionTreeClassifier"
NAIVE = "sklearn.naive_bayes:GaussianNB"
PLAIN = "sklearn.linear_model:LogisticRegression"


def crossed(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw records whose class no line separates, and a tree does with ease."""
    X = np.random.default_rng(seed).uniform(-1, 1, (n, 2)).astype(np.float32)
    return X, ((X[:, 0] > 0) != (X[:, 1] > 0)).astype(np.int64)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    X, _ = crossed(3_000)
    X[7] = np.nan
    return Pool.build(X, tmp_path_factory.mktemp("choice") / "pool.zarr")


def made(pool: Pool, folder: Path, labels: int, **options: object) -> Campaign:
    campaign = Campaign.create(folder, pool, CLASSES, **{"estimator": PLAIN, "batch_size": 10, **options})
    rows = np.random.default_rng(1).permutation(np.arange(10, 3_000))[:labels]
    campaign.label([str(row) for row in rows], crossed(3_000)[1][rows], annotator="ann")
    return campaign


def test_a_learner_that_is_better_is_named_with_its_interval_and_costs(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 200)
    found = campaign.compare_learners([TREE, GaussianNB()])
    assert [each.name for each in found.candidates] == [PLAIN, TREE, "GaussianNB()"]
    plain, tree, naive = found.candidates
    assert (plain.verdict, tree.verdict) == ("in use", "better")
    assert naive.verdict != "better"
    assert 0.2 < tree.difference_low < tree.difference < tree.difference_high
    assert tree.accuracy.text == "not enough evidence: 0 of 200 labels are of records drawn at random, 20 are needed"
    assert tree.fit_seconds > 0
    assert tree.pass_seconds > 0
    assert found.best is tree
    assert "has overtaken" in found.text
    assert any("ann" in note for note in found.notes)
    assert Comparison.of_json(found.as_json()) == found


def test_an_accuracy_is_told_by_what_was_drawn_at_random(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of labels that were asked, a bound; of the strategy random, the accuracy that it has always been."""
    seen = list[NDArray[np.bool_]]()
    monkeypatch.setattr("dal.loop.learners.compare", lambda *given: (seen.append(given[3]), compare(*given))[1])
    asked, random = (
        Campaign.create(tmp_path / name, pool, CLASSES, strategy=name, estimator=TREE, batch_size=40)
        for name in ("margin", "random")
    )
    X, y = crossed(20_000, seed=5)
    for campaign in (asked, random):
        played(campaign, 3)
        found = campaign.compare_learners([PLAIN])
        tree = found.candidates[0]
        model = Learner(DecisionTreeClassifier(random_state=0), CLASSES).fit(*labelled(campaign, pool))
        assert tree.accuracy.low <= (model.predict_proba(X).argmax(axis=1) == y).mean() <= tree.accuracy.high
        mine = campaign.answers.labels().rows
        explored = np.isin(mine, campaign.rounds.explored_rows())
        assert np.array_equal(seen[-1], explored | (campaign is random))
        assert tree.accuracy.n == seen[-1].sum() >= 20
        assert (tree.accuracy.value is None) == (campaign is asked)
        told = f"at least {tree.accuracy.low:.3f}" if campaign is asked else f"{tree.accuracy.value:.3f} ("
        assert found.tables()[0][1][0][1].startswith(told)


def test_a_comparison_of_an_older_version_tells_no_accuracy(pool: Pool, tmp_path: Path) -> None:
    found = made(pool, tmp_path / "c", 60).compare_learners([NAIVE])
    values = json.loads(found.as_json())
    for each in values["candidates"]:
        each |= {"accuracy": 0.9, "low": 0.8, "high": 0.95}
    older = Comparison.of_json(json.dumps(values))
    assert [each.accuracy.value for each in older.candidates] == [None, None]
    assert [each.difference for each in older.candidates] == [each.difference for each in found.candidates]
    assert older.tables()[0][1][0][1] == "compare again"
    # Where none of the records drawn at random is predicted right, the table says as the note does.
    nothing = Estimate(None, 0.0, 1.0, 20, "")
    wrong = replace(found, candidates=tuple(replace(each, accuracy=nothing) for each in found.candidates))
    assert wrong.tables()[0][1][0][1] == "not enough evidence"


def labelled(campaign: Campaign, pool: Pool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    known = campaign.answers.labels()
    return pool.take(known.rows), known.codes


def test_few_labels_are_too_early_and_nothing_is_fitted(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "c", 39)
    monkeypatch.setattr("dal.loop.learners.held_out", None)
    found = campaign.compare_learners([TREE])
    assert found.candidates == ()
    assert "39 different labelled records" in found.too_early
    empty = Campaign.create(tmp_path / "empty", pool, CLASSES, estimator=PLAIN, batch_size=10)
    assert "0 different labelled records" in empty.compare_learners([TREE]).too_early


def test_equal_learners_have_not_overtaken(pool: Pool, tmp_path: Path) -> None:
    found = made(pool, tmp_path / "c", 60).compare_learners([LogisticRegression()])
    assert found.best is None
    assert found.candidates[1].difference == 0
    assert found.candidates[1].verdict == "too early to tell"
    assert "stays" in found.text


def test_a_grid_is_searched_in_each_fit(pool: Pool, tmp_path: Path) -> None:
    """A depth chosen on all labels would judge itself by records that chose it."""
    searched = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 6]}, cv=3)
    found = made(pool, tmp_path / "c", 120).compare_learners([searched])
    assert found.candidates[1].name == "GridSearchCV()"
    assert found.candidates[1].verdict == "better"


def test_learners_that_cannot_be_used_are_refused_before_any_fit(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "c", 100)
    monkeypatch.setattr("dal.loop.learners.held_out", None)
    with pytest.raises(LearnerError, match="nothing_here"):
        campaign.compare_learners(["nothing_here"])
    with pytest.raises(LearnerError, match="classifier"):
        campaign.compare_learners(["sklearn.linear_model:Ridge"])


def test_features_of_labelled_records_are_read_once(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "c", 100)
    known = set(campaign.answers.labels().rows.tolist())
    read: list[int] = []
    take = Pool.take

    def counted(self: Pool, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if set(np.asarray(rows).tolist()) == known:
            read.extend(rows)
        return take(self, rows)

    monkeypatch.setattr(Pool, "take", counted)
    campaign.compare_learners([TREE, GaussianNB()])
    assert len(read) == len(known)


def test_labels_without_features_are_left_out_with_a_note(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 60)
    campaign.label(["7"], ["in"], annotator="bob")
    found = campaign.compare_learners([GaussianNB()])
    assert found.labels == 60
    assert any(note.startswith("1 label") for note in found.notes)
    assert not any("All answers" in note for note in found.notes)


@pytest.mark.slow
def test_workers_fit_the_same(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 80)
    here = campaign.compare_learners([GaussianNB()])
    with own_cluster(1) as (_, client):
        there = campaign.compare_learners([GaussianNB()], client=client)
    for one, other in zip(here.candidates, there.candidates, strict=True):
        for name in ("accuracy", "difference", "difference_low", "brier", "calibration", "verdict"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9)


def test_doubtful_labels_are_learned_from_and_judged_by_their_probabilities() -> None:
    X, y = crossed(300)
    doubted = np.where(np.arange(300) % 3 == 0, 0.7, 1.0)
    truth = np.stack([1 - doubted, doubted], axis=1)
    truth[y == 0] = truth[y == 0][:, ::-1]
    learners = {"tree": Learner(DecisionTreeClassifier(random_state=0), CLASSES)}
    sure = judge(learners, Known(X, Labels(np.arange(300), y)), X[:200])
    unsure = judge(learners, Known(X, Labels(np.arange(300), y, truth)), X[:200])
    assert sure.judged[0].correct.mean() == pytest.approx(0.97, abs=0.04)
    assert unsure.judged[0].correct.mean() == pytest.approx(0.97 - 0.1, abs=0.05)
    assert set(np.unique(unsure.judged[0].correct.round(6))) == {0, 0.3, 0.7, 1}


def test_a_record_that_overflows_the_learner_has_no_class() -> None:
    proba = finite(np.array([[0.2, 0.8], [np.nan, 1.0], [np.inf, 0.0], [0.6, 0.4]], np.float32))
    assert proba == pytest.approx(np.array([[0.2, 0.8], [0, 0], [0, 0], [0.6, 0.4]]))
    classes, margins = predicted(proba)
    assert classes.tolist() == [1, 2, 2, 0]
    assert margins == pytest.approx([0.6, 0, 0, 0.2])


def test_the_order_of_labels_changes_nothing() -> None:
    X, y = crossed(90)
    order = np.random.default_rng(2).permutation(90)
    learners = {name: Learner.named(name, CLASSES) for name in (PLAIN, "sklearn.naive_bayes:GaussianNB")}
    one, other = (judge(learners, Known(X[rows], Labels(rows, y[rows])), X[:50]) for rows in (np.arange(90), order))
    assert np.array_equal(one.folds[:, order], other.folds)
    drawn = np.arange(90) < 40
    results = [
        compare(each.judged, each.folds, each.weights, drawn[rows])[1]
        for each, rows in ((one, np.arange(90)), (other, order))
    ]
    assert results[0].accuracy.low == pytest.approx(results[1].accuracy.low) != 0
    one, other = (replace(each, accuracy=results[0].accuracy) for each in results)
    assert vars(one) == pytest.approx(vars(other), abs=1e-6)


def test_weights_undo_the_choice_of_hard_records() -> None:
    """Of records near the border alone, a learner looks bad; weighted to the pool, nearly as good as it is there."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 3)).astype(np.float32)
    y = (X[:, 0] + 0.5 * rng.standard_normal(20_000) > 0).astype(np.int64)
    near = rng.random(20_000) < np.where(np.abs(X[:, 0]) < 0.4, 0.06, 0.006)
    rows = np.flatnonzero(near)
    learners = {name: Learner.named(name, CLASSES) for name in (PLAIN, "sklearn.naive_bayes:GaussianNB")}
    known, everything = Known(X[rows], Labels(rows, y[rows])), np.ones(len(rows), dtype=bool)
    model = learners[PLAIN].fit(X[rows], y[rows])
    true = float((model.predict_proba(X).argmax(axis=1) == y).mean())
    tried = judge(learners, known, X[:1000])
    plain, weighted = (
        compare(tried.judged, tried.folds, weights, everything)[0].accuracy
        for weights in (np.ones_like(tried.weights), tried.weights)
    )
    assert plain.value is not None
    assert plain.value < true - 0.05
    assert weighted.value == pytest.approx(true, abs=0.03)
    # Those drawn at random are of one class: few, and they still tell what it is at least.
    one_class = np.isin(np.arange(len(rows)), rng.permutation(np.flatnonzero(y[rows] == 1))[:25])
    told = compared(learners, known, X[:1000], len(X), one_class).candidates[0].accuracy
    assert told.value is None
    assert 0.3 < told.low < true


def test_votes_with_weights_are_compared(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 80, labelling=Labelling(vote="dawid_skene"))
    assert campaign.compare_learners([TREE]).candidates[1].verdict == "better"
    with pytest.raises(LearnerError, match="sample_weight"):
        campaign.compare_learners(["sklearn.neighbors:KNeighborsClassifier"])


def test_the_command_draws_a_table_and_changes_nothing(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 120)
    ran = CliRunner().invoke(main, ["learner", "compare", str(tmp_path / "c"), "--learner", TREE, "--workers", "0"])
    assert ran.exit_code == 0, ran.output
    assert f"{TREE} has overtaken {PLAIN}" in ran.output
    assert "120 labelled records are weighted to the pool" in ran.output
    assert campaign.rounds.last is None
    few = made(pool, tmp_path / "few", 5)
    ran = CliRunner().invoke(main, ["learner", "compare", str(few.directory), "--learner", TREE, "--workers", "0"])
    assert ran.exit_code == 0
    assert "Too early to tell" in ran.output


def test_a_comparison_that_is_open_says_so() -> None:
    def candidate(name: str, verdict: str) -> Candidate:
        accuracy = Estimate(0.9, 0.8, 0.95, 50, "")
        return Candidate(name, accuracy, 0.0, -0.1, 0.1, 0.1, 0.1, verdict, 1.0, 1.0)  # type: ignore[arg-type]

    use = candidate("a", "in use")
    assert "whether b would" in Comparison("a", 50, (use, candidate("b", "too early to tell"))).text
    assert "no other one is better" in Comparison("a", 50, (use, candidate("b", "worse"))).text


class Picky(GaussianNB):
    """Refuses all labels that lack one record, so that one fold of each repeat cannot be fitted."""

    refused: ClassVar[NDArray[np.float32]]

    def fit(self, X: NDArray[np.float32], y: NDArray[np.int64], sample_weight: object = None) -> "Picky":
        if len(X) > 40 and not (self.refused == X).all(axis=1).any():
            raise ValueError("without it I fit nothing")
        super().fit(X, y, sample_weight)
        return self


def test_a_learner_that_fails_on_a_part_is_left_out_and_the_others_are_compared(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "c", 80)
    monkeypatch.setattr(Picky, "refused", labelled(campaign, pool)[0][3], raising=False)
    monkeypatch.setattr("dal.loop.learners.check_learner", lambda *_, **__: None)
    found = campaign.compare_learners([Picky(), NAIVE])
    alone = campaign.compare_learners([NAIVE])
    assert [each.name for each in found.candidates] == [PLAIN, NAIVE]
    assert found.candidates[1].difference == pytest.approx(alone.candidates[1].difference)
    assert any("Picky" in note and "I fit nothing" in note for note in found.notes)
    assert Choice(campaign).newest() == alone


def test_a_learner_in_use_that_fails_on_a_part_is_not_tried_again_at_once(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "c", 80)
    X, y = labelled(campaign, pool)
    monkeypatch.setattr(Picky, "refused", X[3], raising=False)
    monkeypatch.setattr("dal.loop.learners.learner_of", lambda *_: Learner.of(Picky(), CLASSES))
    found = campaign.compare_learners([GaussianNB()])
    assert found.candidates == ()
    assert "the learner in use cannot be judged" in found.text
    assert "I fit nothing" in found.text
    assert Choice(campaign).last_answer() == campaign.answers.last_id() == len(y)


def test_of_many_labels_a_part_is_drawn_by_row_before_features_are_read(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.MOST_LABELS", 60)
    campaign, read = made(pool, tmp_path / "c", 200), list[NDArray[np.int64]]()
    take = Features.take
    monkeypatch.setattr(Features, "take", lambda self, rows: (read.append(rows), take(self, rows))[1])
    found = campaign.compare_learners([NAIVE])
    known = campaign.answers.labels().rows
    assert found.labels == 60
    assert any("200 labels, 60" in note for note in found.notes)
    hashes = row_hash(known, campaign.settings.random_state, 0)
    assert set(read[0].tolist()) == {row for _, row in sorted(zip(hashes.tolist(), known.tolist(), strict=True))[:60]}
    assert read[0].tolist() == sorted(read[0].tolist())


def test_learners_that_take_no_gaps_are_left_out_where_most_records_have_one(tmp_path: Path) -> None:
    X, y = crossed(400)
    X = np.hstack([X, np.full((400, 1), np.nan, np.float32)])
    campaign = Campaign.create(
        tmp_path / "c", Pool.build(X, tmp_path / "p.zarr"), CLASSES, estimator="hgb", batch_size=10
    )
    campaign.label([str(row) for row in range(100, 180)], y[100:180], annotator="ann")
    found = campaign.compare_learners([NAIVE, "sklearn.ensemble:HistGradientBoostingClassifier"])
    assert [each.name for each in found.candidates] == ["hgb", "sklearn.ensemble:HistGradientBoostingClassifier"]
    assert found.labels == 80
    assert any(NAIVE in note and "lack a feature" in note for note in found.notes)


# -- switching ---------------------------------------------------------------------------------------------------------


def played(campaign: Campaign, rounds: int) -> list[list[int]]:
    """Play rounds, and return their batches."""
    y, batches = crossed(3_000)[1], []
    for _ in range(rounds):
        batch = campaign.next_batch()
        assert isinstance(batch, Batch)
        batches.append(batch.rows.tolist())
        campaign.label(batch, y[batch.rows])
    return batches


def test_a_switch_holds_from_the_next_round_on(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 60)
    played(campaign, 1)
    open_batch = campaign.rounds.batch(1)
    switched = campaign.switch_learner(NAIVE, "it is faster", person="ann")
    assert (switched.learner, switched.before, switched.since, switched.labels) == (NAIVE, PLAIN, 1, 70)
    assert campaign.rounds.batch(1) == open_batch
    assert campaign.model.kind == "LogisticRegression"
    assert campaign.fit().kind == "GaussianNB"
    played(campaign, 1)
    assert campaign.model.kind == "GaussianNB"
    assert [each.learner for each in campaign.rounds.all()] == [PLAIN, NAIVE]
    again = Campaign.open(campaign.directory)
    assert again.learner == NAIVE
    assert again.settings.estimator == PLAIN
    now = again.status()
    assert now.learner.startswith(NAIVE)
    assert now.switched == switched.text
    assert "ann" in now.switched
    assert "it is faster" in now.switched


def test_a_round_that_was_frozen_keeps_its_learner_when_it_is_resumed(pool: Pool, tmp_path: Path) -> None:
    """The switch comes between two processes: the second one ends the round that the first one has begun."""
    kept, switched = (made(pool, tmp_path / name, 60) for name in ("kept", "switched"))
    for campaign in (kept, switched):
        Coordinator(campaign).freeze()
    switched.switch_learner(NAIVE, "another one")
    batches = [played(Campaign.open(campaign.directory), 1) for campaign in (kept, switched)]
    assert batches[0] == batches[1]
    assert switched.model.kind == "LogisticRegression"
    assert played(kept, 1) != played(switched, 1)
    assert switched.model.kind == "GaussianNB"


def test_a_coordinator_that_is_at_work_hears_of_a_switch(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 60)
    at_work = Campaign.open(campaign.directory)
    played(at_work, 1)
    campaign.switch_learner(NAIVE, "another one")
    played(at_work, 1)
    assert at_work.model.kind == "GaussianNB"


def test_an_estimator_of_ones_own_is_saved_and_switched_to_again(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 60, estimator=LogisticRegression())
    assert campaign.learner == "saved"
    name = campaign.switch_learner(DecisionTreeClassifier(max_depth=3, random_state=0), "it is better").learner
    played(campaign, 1)
    assert Campaign.open(campaign.directory).model.estimator.get_params()["max_depth"] == 3
    campaign.switch_learner("saved", "back to the first one")
    played(campaign, 1)
    assert campaign.model.kind == "LogisticRegression"
    assert [each.learner for each in campaign.rounds.all()] == [name, "saved"]


def test_a_learner_that_starts_warm_starts_from_its_own_models_alone(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, parents = made(pool, tmp_path / "c", 60), []
    fit = Learner.fit

    def noted(self: Learner, *given: object, parent: object = None, **named: object) -> object:
        parents.append(None if parent is None else parent.kind)  # type: ignore[attr-defined]
        return fit(self, *given, **named)

    monkeypatch.setattr(Learner, "fit", noted)
    monkeypatch.setattr(Learner, "starts_warm", True)
    played(campaign, 2)
    campaign.switch_learner(NAIVE, "another one")
    played(campaign, 2)
    assert parents == [None, "LogisticRegression", None, "GaussianNB"]


def test_a_switch_needs_a_reason_another_learner_and_one_that_can_be_used(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 150)
    with pytest.raises(InputError, match="reason"):
        campaign.switch_learner(TREE)
    with pytest.raises(InputError, match="in use"):
        campaign.switch_learner(PLAIN, "again")
    with pytest.raises(LearnerError, match="classifier"):
        campaign.switch_learner("sklearn.linear_model:Ridge", "no classifier")
    with pytest.raises(InputError, match="stored"):
        campaign.switch_learner(TREE, "half a \ud800")
    assert campaign.learner == PLAIN
    found = campaign.compare_learners([TREE, NAIVE])
    with pytest.raises(InputError, match="reason"):
        campaign.switch_learner(NAIVE)
    assert found.best is not None
    assert campaign.switch_learner(TREE).reason.startswith(found.best.text)
    assert Choice(campaign).warning() == ""


def test_status_next_and_report_warn_and_tell_of_a_switch(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "my c", 150)

    def ran(*words: str) -> str:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        return result.output

    place = str(campaign.directory)
    ran("learner", "compare", place, "--learner", TREE, "--workers", "0")
    warning = f"{TREE} has overtaken {PLAIN}"
    assert warning in ran("next", place, "--workers", "0")
    assert warning in ran("status", place)
    assert f"dal learner switch {quoted(campaign.directory)} {TREE}" in campaign.status().overtaken
    assert f"from {PLAIN} to {TREE} after round 1" in ran("learner", "switch", place, TREE, "--person", "eve")
    told = ran("status", place)
    assert warning not in told
    assert "eve switched the learner" in told
    [table] = [each for each in view_of_campaign(campaign, None)["tables"] if each["title"].startswith("Switches")]
    assert table["rows"][0][:5] == ["1", "150", PLAIN, TREE, "eve"]


def of_version_9(campaign: Campaign) -> Campaign:
    """Return the campaign as version 9 kept it, and this one has opened it."""
    with campaign.database.writing() as connection:
        for statement in (
            "DROP TABLE again",
            "ALTER TABLE rounds DROP COLUMN learner",
            "DROP TABLE switches",
            "DROP TABLE comparisons",
            "UPDATE campaign SET schema_version = 9",
        ):
            connection.execute(text(statement))
    return Campaign.open(campaign.directory)


def test_an_older_campaign_is_switched(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", 60)
    played(campaign, 1)
    opened = of_version_9(campaign)
    assert opened.rounds.get(1).learner is None
    opened.switch_learner(NAIVE, "another one")
    played(opened, 1)
    assert opened.model.kind == "GaussianNB"


def test_a_round_that_an_older_version_froze_keeps_its_learner_after_a_switch(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two switches, so that neither the learner in use nor the newest one before it is the round's."""
    kept, switched = (made(pool, tmp_path / name, 60) for name in ("kept", "switched"))
    for campaign in (kept, switched):
        played(campaign, 1)
        campaign.rounds.close(campaign.rounds.current)
        Coordinator(campaign).freeze()
    opened = of_version_9(switched)
    opened.switch_learner(TREE, "another one")
    opened.switch_learner(NAIVE, "a third one")
    assert [opened.learner_in(each) for each in opened.rounds.all()] == [PLAIN, PLAIN]
    # The file is edited: that is dead since the switch, and changes no round of before.
    opened.settings = replace(opened.settings, estimator=TREE)
    assert opened.learner_in(opened.rounds.get(2)) == PLAIN
    parents, fit = [], Learner.fit

    def noted(self: Learner, *given: object, parent: object = None, **named: object) -> object:
        parents.append(None if parent is None else parent.kind)  # type: ignore[attr-defined]
        return fit(self, *given, **named)

    monkeypatch.setattr(Learner, "fit", noted)
    monkeypatch.setattr(Learner, "starts_warm", True)
    assert played(opened, 1) == played(kept, 1)
    assert (opened.rounds.get(2).notes or {})["learner"]["name"] == PLAIN
    played(opened, 1)
    assert opened.model.kind == "GaussianNB"
    assert parents == ["LogisticRegression", "LogisticRegression", None]


def test_a_switch_while_a_round_is_frozen_holds_for_that_round(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, switches = made(pool, tmp_path / "c", 60), [NAIVE, TREE]
    at_work = Campaign.open(campaign.directory)

    def switching(*_: object) -> None:
        if switches:
            campaign.switch_learner(switches.pop(0), "another one")

    monkeypatch.setattr("dal.loop.coordinator.check_weights", switching)
    Coordinator(at_work).freeze()
    [frozen] = at_work.rounds.all()
    assert frozen.learner == TREE
    assert [each.since for each in Choice(campaign).switches()] == [0, 0]


def test_of_two_people_who_switch_at_once_one_is_refused(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, other = made(pool, tmp_path / "c", 60), Campaign.open(tmp_path / "c")
    check = loop_learners.check_learner

    def meanwhile(*given: object, **named: object) -> None:
        monkeypatch.setattr(loop_learners, "check_learner", check)
        other.switch_learner(TREE, "another one", person="eve")
        check(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_learners, "check_learner", meanwhile)
    with pytest.raises(LearnerSwitched, match=TREE):
        campaign.switch_learner(NAIVE, "a third one", person="ann")
    assert [each.person for each in Choice(campaign).switches()] == ["eve"]


def test_an_object_needs_a_reason_and_is_not_saved_without_one(pool: Pool, tmp_path: Path) -> None:
    """Of two trees one may be better; comparisons name both by their kind."""
    campaign = made(pool, tmp_path / "c", 150)
    found = campaign.compare_learners([DecisionTreeClassifier(random_state=0)])
    assert found.best is not None
    assert found.best.name == "DecisionTreeClassifier()"
    files = sorted(campaign.directory.rglob("*.skops"))
    with pytest.raises(InputError, match="object"):
        campaign.switch_learner(DecisionTreeClassifier(max_depth=1, random_state=0))
    with pytest.raises(InputError, match="stored"):
        campaign.switch_learner(DecisionTreeClassifier(random_state=0), "half a \ud800")
    assert sorted(campaign.directory.rglob("*.skops")) == files
    assert "with a reason" in Choice(campaign).warning()


def test_an_estimator_that_is_edited_after_a_switch_is_said_to_be_dead(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = made(pool, tmp_path / "c", 60)
    campaign.switch_learner(NAIVE, "another one")
    Coordinator(campaign).freeze()
    assert "estimator" not in caplog.text
    file = campaign.directory / "campaign.toml"
    file.write_text(file.read_text().replace(PLAIN, TREE))
    edited = Campaign.open(campaign.directory)
    edited.rounds.withdraw(edited.rounds.get(1))
    Coordinator(edited).freeze()
    assert f"{TREE} now, which is not used" in caplog.text
    assert edited.rounds.get(1).learner == NAIVE


def test_criteria_accuracy_and_labels_saved_begin_again_with_a_switch(pool: Pool, tmp_path: Path) -> None:
    """The first learner has a plateau, and is switched for that: the second one is judged by rounds of its own."""
    stop = ("plateau=0.9,rounds=1,answers=1", "target_score=0.01,rounds=1", "max_rounds=9")
    campaign = made(pool, tmp_path / "c", 60, explore=0.5, stop=stop[2])
    played(campaign, 3)
    opened = Campaign.open(campaign.directory)
    opened.rounds.close(opened.rounds.current)
    opened.settings = replace(opened.settings, stop=stop)
    assert [each.stop for each in opened.status().verdicts] == [True, True, False]
    assert opened.status().accuracy.n == 15

    campaign.switch_learner(TREE, "another one")
    judged = opened.status()
    assert [each.value for each in judged.verdicts] == [None, None, 3], "rounds are counted through"
    assert judged.accuracy.n == 0
    assert View(opened).rounds_of_now() == set()
    played(campaign, 1)
    campaign.rounds.close(campaign.rounds.current)
    judged = opened.status()
    assert [each.value is None for each in judged.verdicts] == [True, False, False], "a plateau takes two rounds of it"
    assert judged.accuracy.n == 5
    [*before, newest] = View(opened).history(every_model=True)
    assert [each.explore_asked for each in (*before, newest)] == [5] * 4
    assert judged.accuracy.value == newest.explore_correct / 5
    counts: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dal.loop.savings.labels_saved", lambda *given, **_: counts.append(given[2]))
        saved(opened)
    assert counts == [(newest.explore_correct, 5)]

    campaign.switch_learner(PLAIN, "back again")
    assert [each.value for each in opened.status().verdicts] == [None, None, 4], "nor by its rounds of before"


# -- advice ------------------------------------------------------------------------------------------------------------


def kept(campaign: Campaign) -> list[int]:
    with campaign.database.reading() as connection:
        return list(connection.scalars(text("SELECT last_answer FROM comparisons ORDER BY number")))


def test_learners_are_compared_again_as_labels_grow(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.PRESETS", {TREE: None, NAIVE: None})
    campaign = made(pool, tmp_path / "c", 100, batch_size=20, measuring=Measuring(advise_every=50))
    played(campaign, 7)
    # Batches are open at 100, 120, ... labels; an answer has one id.
    assert kept(campaign) == [100, 160, 220]
    assert f"{TREE} has overtaken" in campaign.status().overtaken
    twin = made(pool, tmp_path / "twin", 100, batch_size=20)
    played(twin, 7)
    assert kept(twin) == []
    assert [each.row for each in twin.rounds.batch(7)] == [each.row for each in campaign.rounds.batch(7)]


@pytest.mark.parametrize("error", [LearnerError, SettingsError, ClusterLost])
def test_a_comparison_that_fails_ends_no_round(
    pool: Pool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[DalError],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error("no fit")

    monkeypatch.setattr("dal.loop.coordinator.compare_learners", fails)
    campaign = made(pool, tmp_path / "c", 100, measuring=Measuring(advise_every=50))
    assert len(played(campaign, 1)[0]) == 10
    assert "no fit" in caplog.text


def test_a_batch_is_handed_out_before_learners_are_compared(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.PRESETS", {TREE: None})
    campaign = made(pool, tmp_path / "c", 100, measuring=Measuring(advise_every=50))
    seen, ended = list[tuple[int, int, list[int]]](), Event()

    def handed(batch: Batch) -> None:
        seen.append((batch.number, len(campaign.rounds.batch(batch.number)), kept(campaign)))

    given = campaign.next_batch(on_batch=handed)
    assert isinstance(given, Batch)
    assert seen == [(1, 10, [])]
    assert kept(campaign) == [100]
    campaign.next_batch(on_batch=handed)  # the same one, which is not compared for again
    assert seen[1:] == [(1, 10, [100])]
    rows = np.arange(2_000, 2_060)
    campaign.label([str(row) for row in rows], crossed(3_000)[1][rows], annotator="ann")
    campaign.label(given, crossed(3_000)[1][given.rows])
    last = campaign.answers.last_id()

    def running(batch: Batch) -> None:
        handed(batch)
        ended.set()

    campaign.run(on_batch=running, ended=ended)
    assert seen[2:] == [(2, 10, [100])]
    assert kept(campaign) == [100, last]


def test_the_command_tells_the_batch_and_then_the_advice(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.PRESETS", {TREE: None})
    campaign = made(pool, tmp_path / "c", 150, measuring=Measuring(advise_every=50))
    ran = CliRunner().invoke(main, ["next", str(campaign.directory), "--workers", "0"])
    assert ran.exit_code == 0, ran.output
    places = [ran.output.index(each) for each in ("Round 1: 10 records", "Learners are compared", "has overtaken")]
    assert places == sorted(places)
    assert (campaign.directory / "batch-0001.csv").exists()


def test_gaps_in_a_holdout_leave_presets_out_and_end_no_round(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.PRESETS", {NAIVE: None})
    X, y = crossed(60, seed=9)
    X[5, 1] = np.nan
    np.savez(tmp_path / "holdout.npz", X=X, y=np.array(CLASSES)[y])
    campaign = made(
        pool,
        tmp_path / "c",
        60,
        estimator="hgb",
        measuring=Measuring(holdout=str(tmp_path / "holdout.npz"), advise_every=50),
    )
    assert len(played(campaign, 1)[0]) == 10
    assert len(kept(campaign)) == 1
    newest = Choice(campaign).newest()
    assert newest is not None
    assert any(NAIVE in note and "holdout" in note for note in newest.notes)


def test_advice_uses_workers_that_are_there_and_starts_none(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.PRESETS", {NAIVE: None})
    monkeypatch.setattr("dal.loop.learners._SECONDS_OF_FIT", 1e6)
    campaign, told = made(pool, tmp_path / "c", 60, measuring=Measuring(advise_every=50)), list[str]()
    with OnDemand(told.append, n_cores=2) as workers:
        campaign.next_batch(client=workers)
        assert workers.client is None
        assert len(kept(campaign)) == 1
        few = made(pool, tmp_path / "few", 20)
        before = len(told)
        assert few.compare_learners(client=workers).too_early
        assert len(told) == before


def test_a_preset_that_cannot_be_used_is_left_out_with_its_reason(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dal.loop.learners.PRESETS", {NAIVE: None, "sklearn.linear_model:Ridge": None})
    found = made(pool, tmp_path / "c", 60).compare_learners()
    assert [each.name for each in found.candidates] == [PLAIN, NAIVE]
    assert any("Ridge is left out" in note for note in found.notes)
