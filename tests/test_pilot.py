"""Pilot plans: laws that agree with a pilot, the curves behind them, and the labels, cost and days of a target."""

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.naive_bayes import GaussianNB

from dal import Campaign, Labelling, Pool
from dal.campaign.activity import Work
from dal.campaign.view import View
from dal.cli import main
from dal.compute.workers import Workers
from dal.errors import InputError
from dal.evidence.pilot import TIMES, Curve, Outlook, Seen, accuracy_now, band, forecast, outlook
from dal.evidence.ruler import FARTHEST
from dal.evidence.votes import Labels
from dal.figures import page_of
from dal.learners.learner import Learner
from dal.loop import pilot as loop_pilot
from dal.loop.learners import Known
from dal.loop.pilot import measured
from tests.clusters import own_cluster

PLAIN = "sklearn.naive_bayes:GaussianNB"
SIZES = np.array([24.0, 43.0, 76.0, 135.0, 240.0])


# -- laws --------------------------------------------------------------------------------------------------------------


def law(m: float, n: int, error: float, floor: float, exponent: float, shape: float) -> float:
    """The module's formula, as it is written there."""
    x = m / n
    grown = math.log(x) if shape == 0 else (x**shape - 1) / shape
    return 1 - min(1.0, error * (floor + (1 - floor) * math.exp(-exponent * grown)))


def single(error: float, floor: float, exponent: float, shape: float, share: float, start: int = 300) -> Outlook:
    return Outlook(300, start, *(np.array([each]) for each in (error, floor, exponent, shape, share)))


SHARES = st.floats(0.05, 0.95)
LAWS = st.tuples(
    st.floats(0.01, 0.6), SHARES, st.floats(0.05, 2.5), st.sampled_from((-0.5, 0.0, 0.25, 1.0)), st.floats(0.1, 2.0)
)


@given(LAWS, st.floats(20, 5_000))
def test_the_accuracy_is_that_of_the_formula(parameters: tuple[float, ...], m: float) -> None:
    expected = law(m, 300, *parameters[:4])
    assert single(*parameters).accuracy(np.array([m]))[0, 0] == pytest.approx(expected, abs=1e-9)


@given(LAWS, st.floats(0.001, 0.6), st.booleans())
def test_the_labels_needed_are_those_at_which_the_accuracy_is_reached(
    parameters: tuple[float, ...], target: float, default: bool
) -> None:
    found = single(*parameters, start=123)
    target = 1 - parameters[0] * (1.2 - target)
    needed = found.needed(target, default=default)
    # Beyond, the last bits of the error decide.
    if 10 < needed[0] < 1e6:
        assert found.accuracy(needed, default=default)[0, 0] == pytest.approx(target, abs=1e-6)
    elif needed[0] == math.inf:
        assert found.accuracy(np.array([1e9]), default=default)[0, 0] <= target + 1e-6


def test_the_default_takes_a_share_of_the_labels_beyond_the_start() -> None:
    found = single(0.2, 0.1, 0.5, 0.0, 0.5, start=300)
    by_random, by_default = (found.needed(0.85, default=each)[0] for each in (False, True))
    assert by_default == pytest.approx(300 + 0.5 * (by_random - 300))
    early = found.needed(0.5)[0]
    assert early < 300
    assert found.needed(0.5, default=True)[0] == early


def pilot(seed: int, n: int = 300, **parameters: float) -> Curve:
    """Draw records of different difficulty, judged by learners whose accuracy follows a law."""
    given = {"error": 0.2, "floor": 0.2, "exponent": 0.5, "shape": 0.0} | parameters
    ease = np.random.default_rng([seed, 5]).random(n)
    sizes = np.round(SIZES * n / 300)
    return Curve(sizes, np.stack([(ease < law(size, n, **given)).astype(float) for size in sizes]))


def truly(target: float, n: int = 300, **parameters: float) -> float:
    given = {"error": 0.2, "floor": 0.2, "exponent": 0.5, "shape": 0.0} | parameters
    m = np.arange(10, 40 * n)
    return float(m[np.argmax([law(each, n, **given) >= target for each in m])])


def test_many_labels_show_the_law_that_made_them() -> None:
    found = outlook(pilot(0, 40_000))
    now = accuracy_now(found)
    assert now.value == pytest.approx(0.8, abs=0.01)
    assert now.high - now.low < 0.03
    labels = forecast(found, law(2 * 40_000, 40_000, 0.2, 0.2, 0.5, 0.0))
    assert 50_000 < labels.low < 80_000 < labels.high


@pytest.mark.parametrize("n_pilots", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_intervals_hold_the_labels_that_a_target_takes(n_pilots: int) -> None:
    held, truth = [], {}
    for seed in range(n_pilots):
        parameters = {"floor": (0.0, 0.3, 0.6)[seed % 3], "shape": (0.0, 0.25)[seed % 2], "exponent": 0.6}
        target = law((2, 3)[seed % 2] * 300, 300, error=0.2, **parameters)
        key = tuple(parameters.values()), target
        truth.setdefault(key, truly(target, **parameters))
        found = forecast(outlook(pilot(seed, **parameters), seed=seed), target)
        held.append(found.low <= truth[key] <= found.high)
    assert np.mean(held) >= 0.93 if n_pilots > 20 else sum(held) >= 10


def test_no_curve_is_followed_farther_than_four_times_the_pilot() -> None:
    found = outlook(pilot(1))
    labels = forecast(found, 0.995)
    assert (labels.value, labels.high) == (None, math.inf)
    assert labels.low <= FARTHEST * 300
    assert "not enough evidence" in labels.text
    drawn = band(found)
    assert drawn.labels[0] == 38
    assert drawn.labels[-1] == FARTHEST * 300
    assert TIMES[-1] == FARTHEST
    low, middle, high = (np.array(each) for each in (drawn.low, drawn.accuracy, drawn.high))
    assert ((low <= middle) & (middle <= high)).all()
    assert (np.diff(middle) > 0).all()


def test_a_target_that_is_reached_takes_no_more_than_the_pilot() -> None:
    labels = forecast(outlook(pilot(2)), 0.6)
    assert labels.value is not None
    assert labels.high < 300
    assert forecast(outlook(pilot(2)), 0.6, default=True) == labels


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_flat_curve_promises_nothing(right: float) -> None:
    found = outlook(Curve(SIZES, np.full((5, 300), right)))
    assert accuracy_now(found).value == pytest.approx(right, abs=0.03)
    assert forecast(found, 0.9999 if right else 0.9).value is None


def test_a_campaign_that_shows_more_moves_the_share_of_the_default() -> None:
    before = outlook(pilot(3), start=300)
    good = outlook(pilot(3), start=300, seen=[Seen(450, 470, 500)])
    bad = outlook(pilot(3), start=300, seen=[Seen(900, 390, 500)])
    assert np.median(good.share) < np.median(before.share) < np.median(bad.share)
    # Of four answers nothing is learned.
    few = outlook(pilot(3), start=300, seen=[Seen(450, 3, 4)])
    assert np.median(few.share) == pytest.approx(np.median(before.share), rel=0.1)


def test_an_outlook_is_a_function_of_its_seed() -> None:
    first, again, other = (outlook(pilot(4), seed=seed).error for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("sizes", "rows"), [([20.0], 1), ([20.0, 10.0], 2), ([20.0, 20.0], 2), ([20.0, 40.0], 3)], ids=str
)
def test_a_curve_has_ascending_sizes(sizes: list[float], rows: int) -> None:
    with pytest.raises(InputError, match="curve"):
        outlook(Curve(np.array(sizes), np.ones((rows, 50))))


# -- curves ------------------------------------------------------------------------------------------------------------


def records(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw records of three classes that overlap."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n)
    X = rng.standard_normal((n, 6)) + 1.2 * np.eye(3, 6)[codes]
    return X.astype(np.float32), codes


def test_a_curve_is_that_of_plain_loops() -> None:
    X, codes = records(57)
    known = Known(X, Labels(np.arange(100, 157), codes))
    curve = measured(Learner(GaussianNB(), ("a", "b", "c")), known, seed=3)
    assert curve.sizes.tolist() == [4, 8, 14, 25, 45]
    right = np.zeros((5, 57))
    for repeat in range(4):
        order = np.random.default_rng([3, repeat]).permutation(57).tolist()
        for fold in range(5):
            out, others = order[fold::5], [each for at, each in enumerate(order) if at % 5 != fold]
            for index, size in enumerate(curve.sizes.astype(int)):
                learned = sorted(others[:size])
                predicted = np.full(len(out), codes[learned[0]])
                if len(set(codes[learned])) > 1:
                    predicted = GaussianNB().fit(X[learned], codes[learned]).predict(X[out])
                right[index, out] += (predicted == codes[out]) / 4
    np.testing.assert_allclose(curve.right, right)


def test_labels_that_are_not_sure_are_learned_and_judged_by_their_probabilities() -> None:
    X, codes = records(60)
    proba = np.full((60, 3), 0.1) + 0.7 * np.eye(3)[codes]
    sure, unsure = (
        measured(Learner(GaussianNB(), ("a", "b", "c")), Known(X, Labels(np.arange(60), codes, given)))
        for given in (None, proba)
    )
    assert set(np.round(unsure.right.ravel() * 4, 6)) <= {round(0.4 + 0.7 * each, 6) for each in range(5)}
    assert unsure.right.mean() < sure.right.mean()


@pytest.mark.slow
def test_a_cluster_measures_the_same_curve() -> None:
    X, codes = records(80)
    known, learner = Known(X, Labels(np.arange(80), codes)), Learner(GaussianNB(), ("a", "b", "c"))
    with own_cluster(2) as (_, client):
        there = measured(learner, known, workers=Workers(client))
    np.testing.assert_array_equal(there.right, measured(learner, known).right)


# -- campaigns ---------------------------------------------------------------------------------------------------------

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    X, _ = records(3_000)
    X[7] = np.nan
    return Pool.build(X, tmp_path_factory.mktemp("pilot") / "pool.zarr")


def answered(campaign: Campaign) -> list[int]:
    batch = campaign.next_batch()
    rows = [int(each) for each in batch.record_ids]
    campaign.label(batch, records(3_000)[1][rows], annotator="ann")
    return rows


def imported(campaign: Campaign, count: int, first: int = 0) -> list[int]:
    rows = np.random.default_rng(1).permutation(3_000)[first : first + count].tolist()
    campaign.label([str(row) for row in rows], records(3_000)[1][rows], annotator="bob")
    return rows


def made(pool: Pool, folder: Path, **options: object) -> Campaign:
    return Campaign.create(folder, pool, CLASSES, **{"estimator": PLAIN, "batch_size": 250, **options})


def test_random_rows_are_those_that_nobody_chose(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", batch_size=40, explore=0.25)
    told = imported(campaign, 30)
    asked = answered(campaign) + answered(campaign)
    explored = View(campaign).explored_labels()[0].tolist()
    assert 10 < len(explored) < 30
    assert View(campaign).random_rows().tolist() == explored
    assert View(campaign).random_rows(imported=True).tolist() == sorted({*explored, *told} - ({*asked} - {*explored}))
    campaign = made(pool, tmp_path / "r", batch_size=40, strategy="random")
    asked = answered(campaign)
    assert View(campaign).random_rows().tolist() == sorted(asked)


@pytest.mark.parametrize("strategy", ["coverage", "k_center", "stratified", "typiclust"])
def test_rows_that_a_strategy_without_scores_chose_are_not_random(pool: Pool, tmp_path: Path, strategy: str) -> None:
    campaign = made(pool, tmp_path / "c", batch_size=40, explore=0.0, strategy=strategy)
    answered(campaign)
    assert not len(View(campaign).random_rows())


def test_a_campaign_of_random_labels_is_planned(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", strategy="random", labelling=Labelling(overlap=2))
    rows = answered(campaign)
    campaign.label([str(row) for row in rows], records(3_000)[1][rows], annotator="eve")
    parts = []
    plan = campaign.plan(0.76, price=0.5, pace=100, progress=lambda done, of: parts.append((done, of)))
    assert (plan.pilot, plan.too_early, parts[-1]) == (250, "", (20, 20))
    assert plan.accuracy is not None
    assert plan.accuracy.low < 0.72 < plan.accuracy.high
    by_random, by_default = plan.ways
    assert (by_random.way, by_default.way, by_random.known) == ("random", "default", 250)
    for each in plan.ways:
        assert each.labels.low <= (each.labels.value or math.inf) <= each.labels.high
        assert each.to_come.low == max(0, each.labels.low - 250)
        assert each.cost is not None
        assert each.days is not None
        assert each.cost.low == pytest.approx(each.to_come.low * 0.5 * 2)
        assert each.days.high == pytest.approx(each.to_come.high / 100 * 2)
        assert each.hours is None
    assert any("nothing of this campaign" in note for note in plan.notes)
    assert not any("All answers" in note for note in plan.notes)
    plot = page_of(plan.figure(), "a plan")
    assert "expected accuracy on the pool" in plot
    assert campaign.plan(0.76).ways[0].labels == by_random.labels


def test_a_campaign_by_the_default_is_planned_by_its_explore_answers(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", batch_size=40, explore=0.5)
    imported(campaign, 205)
    for _ in range(3):
        answered(campaign)
    plan = campaign.plan(0.76, imported_at_random=True)
    random = View(campaign).random_rows(imported=True)
    assert plan.pilot == len(random) - (7 in random) > 250
    by_random, by_default = plan.ways
    assert by_random.known == len(random)
    assert by_default.known == len(View(campaign).labels().rows)
    assert by_default.known > by_random.known
    assert any("explore answers of this campaign" in note for note in plan.notes)
    assert any("other labels are left out" in note for note in plan.notes)


def test_a_campaign_without_a_pilot_is_told_what_it_lacks(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c")
    assert "0 of 0 labels" in campaign.plan(0.9).too_early
    imported(campaign, 230)
    plan = campaign.plan(0.9)
    assert "0 of 230 labels" in plan.too_early
    assert plan.ways == ()
    with pytest.raises(InputError, match="plan"):
        plan.figure()
    one = made(pool, tmp_path / "one")
    rows = np.flatnonzero(records(3_000)[1] == 1)[:230]
    one.label([str(row) for row in rows], np.ones(230, dtype=np.int64), annotator="ann")
    assert "two classes" in one.plan(0.9, imported_at_random=True).too_early


@pytest.mark.parametrize(
    "given",
    [
        *({"target": each} for each in (0, 1, 1.5, -0.1, math.nan, math.inf, "0.9", None, True)),
        *({"price": each} for each in (-0.01, math.nan, math.inf, "8 cents", True)),
        *({"pace": each} for each in (0, -1, math.nan, math.inf, "fast")),
    ],
    ids=str,
)
def test_what_is_no_such_number_is_refused(given: dict[str, object], pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c")
    with pytest.raises(InputError, match=next(iter(given))):
        campaign.plan(**{"target": 0.9, **given})  # type: ignore[arg-type]


def test_hours_of_work_are_those_of_the_answers_so_far() -> None:
    def work(answers: int, seconds: float | None) -> Work:
        return Work("ann", answers, 0, seconds, 0, None)  # type: ignore[arg-type]

    assert loop_pilot._seconds([work(30, 2.0), work(10, 6.0), work(5, None)]) == 3.0
    assert loop_pilot._seconds([work(5, None)]) is None


def test_the_command_shows_the_plan_and_draws_it(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c")
    imported(campaign, 230)
    page = tmp_path / "plan.html"
    words = ["plan", str(tmp_path / "c"), "--target", "0.76", "--imported-at-random", "--price", "0.1", "--pace", "50"]
    shown = CliRunner().invoke(main, [*words, "--workers", "0", "--picture", str(page)])
    assert shown.exit_code == 0, shown.output
    for word in ("labels to come", "cost", "days", "expected accuracy", "All answers are of bob"):
        assert word in shown.output
    assert "hours of work" not in shown.output
    assert "<html" in page.read_text("utf-8")
    early = CliRunner().invoke(main, ["plan", str(tmp_path / "c"), "--target", "0.76"])
    assert early.exit_code == 0
    assert "Too early for a plan: 0 of 230 labels" in early.output


@pytest.mark.parametrize("words", [["--target", "2"], ["--target", "x"], [], ["--target", ".9", "--picture", "a.png"]])
def test_the_command_refuses_bad_input(words: list[str], pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "c")
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "c"), *words])
    assert done.exit_code != 0
    assert ("picture" if "--picture" in words else "target") in done.output
