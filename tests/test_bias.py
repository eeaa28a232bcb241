"""The bias of a labelled set: what was asked beside the pool, known probabilities, weights to train and to judge by."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from dal import Campaign, Measuring, Pool
from dal.campaign.features import Features
from dal.campaign.view import View
from dal.cli import main
from dal.evidence.bias import Share, distance, of_classes, of_regions, represented
from dal.evidence.comparison import HEAVIEST
from dal.evidence.ruler import Estimate, effective_number, wilson
from dal.exchange import read_answers, write_labels
from dal.loop.bias import REGIONS, Biases, by_regions
from dal.loop.learners import sample_of_pool
from dal.selection.codebook import Codebook
from dal.selection.explore import uniform_rows

CLASSES = ("in", "out", "rare")
PLAIN = "sklearn.linear_model:LogisticRegression"
N = 2_000


def drawn(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[0.6, 0.35, 0.05])
    return (rng.standard_normal((n, 3)) + 2.0 * np.eye(3)[y]).astype(np.float32), y


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    X, _ = drawn(N)
    X[7] = np.nan
    return Pool.build(X, tmp_path_factory.mktemp("bias") / "pool.zarr")


def made(pool: Pool, folder: Path, **options: object) -> Campaign:
    return Campaign.create(folder, pool, CLASSES, **{"estimator": PLAIN, "batch_size": 20, **options})


def imported(campaign: Campaign, rows: NDArray[np.int64]) -> Campaign:
    campaign.label([str(row) for row in rows], [CLASSES[code] for code in drawn(N)[1][rows]], annotator="ann")
    return campaign


def played(campaign: Campaign, rounds: int) -> Campaign:
    y = drawn(N)[1]
    for batch in islice(campaign.batches(), rounds):
        campaign.label(batch, [CLASSES[code] for code in y[batch.rows]], annotator="ann")
    return campaign


# -- seen --------------------------------------------------------------------------------------------------------------


def test_classes_stand_beside_those_of_the_explore_answers() -> None:
    found = of_classes(CLASSES, [10, 30, 40], [60, 38, 2])
    assert [each.standing for each in found] == ["under", "as the pool", "over"]
    assert [each.share for each in found] == [0.125, 0.375, 0.5]
    assert (found[2].pool.low, found[2].pool.high) == wilson(2, 100)
    assert found[2].factor == pytest.approx(25)
    assert represented(found).startswith("over-represented: rare (50.0% of the labels, 2.0%")
    assert "under-represented: in" in represented(found)
    unknown = of_classes(CLASSES, [10, 30, 40], [0, 0, 0])
    assert {each.standing for each in unknown} == {"unknown"}
    assert unknown[0].factor is None
    assert represented(unknown) == ""
    assert "unknown" in unknown[0].text
    assert of_classes(CLASSES, [0, 0, 0], [5, 5, 5])[0].share == 0


def test_of_many_classes_three_are_named() -> None:
    names = [f"class {number}" for number in range(9)]
    text = represented(of_classes(names, [1] * 8 + [50], [100] * 8 + [1]))
    assert text.count("class") == 1 + 3
    assert text.endswith("and 5 more")
    assert represented(of_classes(["rock, hard", "pop"], [30, 30], [190, 10])).endswith(
        'ted: "rock, hard" (50.0% of the labels, 95.0% (91.0% to 97.3%) of the pool)'
    )


@given(
    st.lists(st.tuples(st.integers(3, 9), st.integers(0, 2)), max_size=40),
    st.lists(st.integers(4, 11), min_size=1, max_size=40),
)
def test_regions_are_counted_as_a_dictionary_counts_them(labels: list[tuple[int, int]], sample: list[int]) -> None:
    mine, codes = (np.array([each[at] for each in labels], dtype=np.int64) for at in (0, 1))
    found = of_regions(mine, codes, np.array(sample), CLASSES)
    there, of_pool = Counter(region for region, _ in labels), Counter(sample)
    names = sorted(set(there) | set(of_pool), key=lambda region: (-of_pool[region], region))
    slow = {}
    for number, region in enumerate(names, 1):
        classes = Counter(code for each, code in labels if each == region)
        most = min(classes, key=lambda code: (-classes[code], code)) if classes else None
        what = "no label" if most is None else f"mostly {CLASSES[most]}"
        slow[f"{number}, {what}"] = there[region], of_pool[region] / len(sample)
    assert {each.name: (each.labels, each.pool.value) for each in found} == slow
    gaps = [each.share - each.pool.value for each in found if each.pool.value is not None]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(each.share for each in found) == pytest.approx(1.0 if labels else 0.0)
    apart = distance(found)
    if not labels:
        assert apart is None
    else:
        assert apart is not None
        assert 0 <= apart[0] <= 1
        assert apart[0] == pytest.approx(sum(gap for gap in gaps if gap > 0))


def test_the_distance_by_chance_is_that_of_random_samples() -> None:
    """Of labels that were drawn as the sample was, in a division of twelve regions."""
    rng = np.random.default_rng(4)
    pool, found, told = rng.dirichlet(np.full(12, 2.0)), [], []
    for _ in range(300):
        labels, sample = rng.choice(12, 150, p=pool), rng.choice(12, 1_000, p=pool)
        apart = distance(of_regions(labels, labels % 3, sample, CLASSES))
        assert apart is not None
        found.append(apart[0])
        told.append(apart[1])
    assert np.mean(found) == pytest.approx(np.mean(told), rel=0.05)


def test_a_share_that_is_unknown_leaves_the_distance_unknown() -> None:
    assert distance([Share("a", 3, 1.0, Estimate(None, 0, 1, 0, ""))]) is None
    assert effective_number(np.empty(0)) == 0
    assert effective_number(np.array([4.0, 1, 1])) == pytest.approx(2)


def test_a_campaign_tells_how_its_labels_differ_from_its_pool(pool: Pool, tmp_path: Path) -> None:
    campaign = played(made(pool, tmp_path / "c", explore=0.25), 3)
    imported(campaign, np.setdiff1d(np.arange(40, 60), campaign.answers.labels().rows)[:10])
    found, known = campaign.bias(), campaign.answers.labels()
    assert found.labels == len(known.rows) == 70
    assert (found.drawn, found.chosen, found.unasked) == (30, 30, 10)
    counts = np.bincount(known.codes, minlength=3).tolist()
    assert [each.labels for each in found.classes] == counts
    assert found.classes[0].pool.n == 30
    assert sum(each.labels for each in found.regions) == 70
    # By hand: the nearest centre of each record, of labels and of the sample.
    view = View(campaign)
    X = pool.take(np.arange(N))
    sample = X[np.flatnonzero(np.isfinite(X).all(axis=1))]
    whole = Biases(view)
    divided = whole._of_pool()
    assert divided is not None
    codebook = divided._codebook
    place = (X - codebook.mean) / codebook.scale / np.sqrt(3) @ codebook.axes
    nearest = ((place[:, None] - codebook.centers) ** 2).sum(axis=2).argmin(axis=1)
    mine, pools = Counter(nearest[known.rows].tolist()), Counter(divided.sample.tolist())
    assert len(codebook.centers) == REGIONS
    assert sorted(each.labels for each in found.regions) == sorted(mine[region] for region in range(REGIONS))
    assert sorted(each.pool.n * (each.pool.value or 0) for each in found.regions) == pytest.approx(
        sorted(pools[region] for region in range(REGIONS))
    )
    assert len(sample) == N - 1
    assert any("30 were drawn at random" in line and "10 came unasked" in line for line in found.lines)
    # What was found before is remembered, and the answer is the same.
    assert whole.now() == whole.now() == found


def test_campaigns_without_labels_or_with_odd_ones(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c")
    assert campaign.bias().lines == ()
    assert campaign.bias().regions == ()
    imported(campaign, np.array([7]))  # its features are missing
    found = campaign.bias()
    assert (found.labels, found.unasked) == (1, 1)
    assert sum(each.labels for each in found.regions) == 0
    assert found.apart is None


def test_records_that_were_appended_are_part_of_the_pool(tmp_path: Path) -> None:
    X, _ = drawn(N)
    pool = Pool.build(X, tmp_path / "p.zarr")
    campaign = made(pool, tmp_path / "c", strategy="random", measuring=Measuring(stop_set=300))
    imported(campaign, np.arange(100, 150))
    biases = Biases(View(campaign))
    before = biases.now()
    pool.append(X + 30)
    batch = campaign.next_batch()  # from here on the campaign knows of them
    rows = batch.rows[batch.rows >= N][:2]  # type: ignore[union-attr]
    campaign.label([str(row) for row in rows], ["in", "rare"], annotator="ann")
    after = biases.now()
    assert before.regions[0].pool.n == 300
    assert after.labels == 52
    assert sum(each.labels for each in after.regions) == 52
    far = [each for each in after.regions if each.labels <= 2]
    assert sum(each.pool.value or 0 for each in far) == pytest.approx(0.5, abs=0.06)
    assert after.apart is not None
    assert after.apart[0] > 0.4


# -- probabilities ----------------------------------------------------------------------------------------------------


def test_the_probability_of_a_draw_is_that_of_its_round(tmp_path: Path) -> None:
    """Slowly: the rows that the round could draw, one by one, and its draws among them."""
    X, y = drawn(N)
    X[[3, 1_500]] = np.inf
    pool = Pool.build(X, tmp_path / "p.zarr")
    campaign = made(pool, tmp_path / "c", explore=0.3, measuring=Measuring(stop_set=100))
    imported(campaign, np.arange(50, 60))
    for number in range(3):
        batch = campaign.next_batch()
        campaign.label(batch, [CLASSES[code] for code in np.resize(y, 3 * N)[batch.rows]], annotator="ann")  # type: ignore[union-attr]
        if number == 1:
            pool.append(X[:500])
    found, held = View(campaign).propensities(), set(View(campaign).stop_rows(100).tolist())
    asked, slow = set(range(50, 60)), {}
    for each in campaign.rounds.all():
        invalid = {3, 1_500} if each.n_rows == N else {3, 1_500, N + 3}
        left = [row for row in range(each.n_rows) if row not in asked | held | invalid]
        rows = {record.row: record.explore for record in campaign.rounds.batch(each.number)}
        slow |= {row: sum(rows.values()) / len(left) for row, explored in rows.items() if explored}
        asked |= set(rows)
    assert campaign.rounds.get(3).n_rows == N + 500
    assert len(slow) == 18
    assert found == pytest.approx(slow)


def test_draws_by_known_probabilities_find_the_mean_of_the_pool() -> None:
    """Horvitz and Thompson: each drawn record stands for as many as its probability says."""
    y, found = drawn(N)[1] == 2, []
    for seed in range(200):
        rows = np.array(list(islice(uniform_rows(N, np.arange(100), seed, 1), 60)))
        found.append(float((y[rows] / (60 / (N - 100))).sum()))
    assert np.mean(found) == pytest.approx(y[100:].sum(), rel=0.1)


# -- corrected ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(20, 80))
def test_training_weights_give_regions_the_shares_that_they_have_in_the_pool(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((400, 2)).astype(np.float32)
    X = (0.5 + rng.standard_normal((n, 2))).astype(np.float32)
    weights = by_regions(X, sample, 3)
    codebook = Codebook.fit(sample, REGIONS, 3)
    mine, theirs = codebook.assign(X), codebook.assign(sample)
    assert weights.sum() == pytest.approx(1)
    assert weights.max() <= 1.01 * HEAVIEST * weights.mean()
    if weights.max() < 0.99 * HEAVIEST * weights.mean():  # none was cut
        shares = np.bincount(theirs, minlength=REGIONS) / len(theirs)
        shares[np.bincount(mine, minlength=REGIONS) == 0] = 0
        given_ = np.bincount(mine, weights=weights, minlength=REGIONS)
        assert given_ == pytest.approx(shares / shares.sum())


def test_weights_are_those_that_learners_are_compared_by(pool: Pool, tmp_path: Path) -> None:
    campaign = imported(made(pool, tmp_path / "c"), np.arange(300, 420))
    campaign.label(["7"], ["in"], annotator="ann")
    progress: list[tuple[int, int]] = []
    found = campaign.weights(progress=lambda *done: progress.append(done))
    assert found.rows.tolist() == campaign.answers.labels().rows.tolist()
    assert np.flatnonzero(np.isnan(found.weights)).tolist() == [0]
    assert np.flatnonzero(np.isnan(found.training)).tolist() == [0]
    assert np.isnan(found.propensities).all()  # nobody drew them
    for each in (found.weights, found.training):
        assert np.nanmean(each) == pytest.approx(1)
    compared = campaign.compare_learners([PLAIN, "sklearn.naive_bayes:GaussianNB"])
    plain, weighted = found.corrected
    assert (plain.name, weighted.name) == (PLAIN, f"{PLAIN}, weighted")
    assert plain.brier == pytest.approx(compared.candidates[0].brier)
    assert plain.accuracy == compared.candidates[0].accuracy
    assert weighted.difference_low <= weighted.difference <= weighted.difference_high
    assert progress[0] == (1, 30)
    assert progress[-1] == (30, 30)
    text = " ".join(found.lines)
    assert "120 weighted labels" in text
    assert "1 labels have no weight" in text
    assert campaign.rounds.last is None


def test_few_labels_are_too_early_to_weigh(pool: Pool, tmp_path: Path) -> None:
    campaign = imported(made(pool, tmp_path / "c"), np.arange(300, 330))
    found = campaign.weights()
    assert np.isnan(found.weights).all()
    assert "Too early" in found.lines[0]
    assert write_labels(campaign, pool, tmp_path / "x.csv", weights=(found.rows, found.weights, found.training)) == 30
    assert pd.read_csv(tmp_path / "x.csv")["weight"].isna().all()
    assert len(made(pool, tmp_path / "none").weights().rows) == 0


def test_a_learner_without_weights_is_weighed_and_not_trained(pool: Pool, tmp_path: Path) -> None:
    campaign = imported(made(pool, tmp_path / "c", estimator=KNeighborsClassifier()), np.arange(300, 380))
    found = campaign.weights()
    assert np.nanmean(found.weights) == pytest.approx(1)
    assert found.corrected == ()
    assert any("takes no weights" in line for line in found.lines)


def test_of_many_labels_all_have_a_weight(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = imported(made(pool, tmp_path / "c"), np.arange(300, 600))
    whole = campaign.weights()
    monkeypatch.setattr("dal.loop.learners.MOST_LABELS", 150)
    found = campaign.weights()
    assert np.isfinite(found.weights).all()
    assert found.weights.mean() == pytest.approx(1)
    # The others are predicted by a model that has not seen them either, so that they are weighed much alike.
    assert np.corrcoef(found.weights, whole.weights)[0, 1] > 0.5
    assert np.array_equal(found.training, whole.training)
    assert sum(each.labels for each in campaign.bias().regions) == 150


@pytest.mark.slow
def test_weights_undo_the_choice_of_hard_records(pool: Pool, tmp_path: Path) -> None:
    """Of a campaign that asks by margin, records that the model is sure of are rare, and weigh more."""
    campaign = played(made(pool, tmp_path / "c", strategy="margin", explore=0.0), 6)
    found = campaign.weights()
    X = pool.take(found.rows)
    model = campaign.fit()
    proba = np.sort(model.predict_proba(X), axis=1)
    margin, weights = proba[:, -1] - proba[:, -2], found.weights
    rest = np.setdiff1d(np.arange(N), [*found.rows.tolist(), 7])
    of_pool = np.sort(model.predict_proba(pool.take(rest)), axis=1)
    wanted = float((of_pool[:, -1] - of_pool[:, -2]).mean())
    plain, raked = float(margin.mean()), float((weights * margin).sum() / weights.sum())
    assert plain < wanted - 0.1
    assert abs(raked - wanted) < 0.5 * abs(plain - wanted)


# -- out and in --------------------------------------------------------------------------------------------------------


def test_exported_labels_carry_probabilities_and_weights_and_come_back_unchanged(pool: Pool, tmp_path: Path) -> None:
    campaign = played(made(pool, tmp_path / "c", explore=0.25), 3)
    imported(campaign, np.setdiff1d(np.arange(40, 60), campaign.answers.labels().rows)[:5])
    unlabelled = next(str(row) for row in range(60, 80) if row not in campaign.answers.labels().rows)
    campaign.label([unlabelled], [None], annotator="ann")
    target = str(tmp_path / "labels.csv")
    ran = CliRunner().invoke(
        main, ["label", "export", str(campaign.directory), target, "--labels", "--weights", "--workers", "0"]
    )
    assert ran.exit_code == 0, ran.output
    assert "65 weighted labels are worth" in " ".join(ran.output.split())
    frame = pd.read_csv(target, dtype={"record_id": str})
    known = View(campaign).propensities()
    drawn_ = frame[frame["chosen_by"] == "explore"]
    assert drawn_["propensity"].tolist() == pytest.approx([known[row] for row in drawn_["row"]])
    assert len(drawn_) == 30, "all of the first batch, a quarter of the others"
    assert frame[frame["chosen_by"] != "explore"]["propensity"].isna().all()
    found = campaign.weights()
    labelled = frame[frame["label"].notna()]
    assert labelled["row"].tolist() == found.rows.tolist()
    assert labelled["weight"].tolist() == pytest.approx(found.weights.tolist())
    assert labelled["training_weight"].tolist() == pytest.approx(found.training.tolist())
    assert frame[frame["label"].isna()]["weight"].isna().all()
    # Its four columns are those of a file of answers; the others are left alone.
    before = campaign.answers.last_id()
    report = read_answers(target, campaign, pool, "ann")
    assert (report.new, report.changed, report.same) == (0, 0, 65)
    assert campaign.answers.last_id() == before
    plain = tmp_path / "plain.jsonl"
    assert write_labels(campaign, pool, plain) == 65
    lines = [json.loads(line) for line in plain.read_text().splitlines()]
    assert {each["weight"] for each in lines} == {each["training_weight"] for each in lines} == {None}
    assert sum(each["propensity"] is not None for each in lines) == 30


def test_weights_belong_to_the_labelled_set(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c")
    campaign.next_batch()
    ran = CliRunner().invoke(main, ["label", "export", str(campaign.directory), str(tmp_path / "x.csv"), "--weights"])
    assert ran.exit_code == 2
    assert "--weights" in ran.output


def test_the_status_names_the_classes_that_are_over_represented(pool: Pool, tmp_path: Path) -> None:
    campaign = played(made(pool, tmp_path / "c", explore=0.5), 2)
    rare = np.flatnonzero(drawn(N)[1] == 2)
    imported(campaign, np.setdiff1d(rare, campaign.answers.labels().rows)[:60])
    ran = CliRunner().invoke(main, ["status", str(campaign.directory)])
    assert ran.exit_code == 0, ran.output
    assert "over-represented: rare (" in ran.output
    assert campaign.status().bias in " ".join(ran.output.split())


def test_the_sample_of_the_pool_is_the_stop_set_until_the_pool_grows(tmp_path: Path) -> None:
    X, _ = drawn(N)
    pool = Pool.build(X, tmp_path / "p.zarr")
    campaign = made(pool, tmp_path / "c", measuring=Measuring(stop_set=300))
    view = View(campaign)
    sample = sample_of_pool(view, Features(view))
    assert np.array_equal(sample, X[view.stop_rows(300)])
    pool.append(X + 30)
    view.grown_pool()
    grown = sample_of_pool(view, Features(view))
    assert len(grown) == 1_000
    assert (grown[:, 0] > 15).mean() == pytest.approx(0.5, abs=0.06)
