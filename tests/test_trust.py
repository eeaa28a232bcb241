"""The trust in labels of chosen records: against a plain cross-validation, and in campaigns that need it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

import dal
from dal.campaign.view import View, trusted
from dal.evidence.folds import dealt, marks_of
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.learners.trust import FEWEST, FOLDS, MOST, WEIGHTS, Trust, trust_in
from dal.loop.coordinator import Coordinator
from dal.selection.explore import explore_count, first_share, share_in_doubt

CLASSES = ("ant", "bee", "cat")
LEARNER = Learner(LogisticRegression(), CLASSES)


def nested(n: int, seed: int, *, dim: int = 4, inner: float = 0.3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw two Gaussians of one mean, which no line divides; the narrow one is class 0."""
    rng = np.random.default_rng(seed)
    codes = (rng.random(n) >= inner).astype(np.int64)
    return (rng.standard_normal((n, dim)) * np.where(codes, 2.0, 1.0)[:, None]).astype(np.float32), codes


def apart(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw two classes that a line divides."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % 2)
    return rng.standard_normal((n, 3)).astype(np.float32) + 4 * codes[:, None].astype(np.float32), codes


def asked(
    seed: int, random: int = 30, chosen: int = 90
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Draw labels of nested classes: random ones, and chosen ones that are of the smaller class mostly."""
    X, codes = nested(3_000, seed)
    inner, outer = np.flatnonzero(codes[random:] == 0) + random, np.flatnonzero(codes[random:] == 1) + random
    rows = np.concatenate([np.arange(random), inner[: chosen * 4 // 5], outer[: chosen - chosen * 4 // 5]])
    return X[rows], codes[rows], np.arange(len(rows)) < random


def trust(
    X: NDArray[np.float32], codes: NDArray[np.int64], random: NDArray[np.bool_], learner: Learner = LEARNER
) -> Trust:
    return trust_in(learner, X, codes, None, random, learner.fit(X, codes), np.arange(len(X)))


def twin(X: NDArray[np.float32], codes: NDArray[np.int64], random: NDArray[np.bool_]) -> tuple[float, bool]:
    """Choose by plain loops, with scikit-learn alone."""
    folds = dealt(marks_of(X[random]), codes[random], FOLDS)
    results = []
    for weight in WEIGHTS:
        loss = wrong = 0.0
        for fold in range(FOLDS):
            held = np.flatnonzero(random)[folds == fold]
            rest = np.setdiff1d(np.arange(len(X)), held)
            model = LogisticRegression().fit(X[rest], codes[rest], sample_weight=np.where(random[rest], 1.0, weight))
            for row, code in zip(model.predict_proba(X[held]), codes[held], strict=True):
                row = np.maximum([*row, *[0.0] * (len(CLASSES) - len(row))], 1e-3)
                loss -= float(np.log(row[code] / row.sum()))
                wrong += float(row.argmax() != code)
        results.append((wrong, loss))
    largest = float(random.sum() - np.bincount(codes[random]).max())
    beaten = results[0][0] > largest
    if results[0][0] < largest:
        return 1.0, False
    first = []
    for at in (0, 1):
        best = min(each[at] for each in results)
        first.append(next(weight for weight, each in zip(WEIGHTS, results, strict=True) if each[at] <= best + 1e-9))
    return max(first), beaten


@pytest.mark.parametrize("seed", range(8))
def test_trust_is_that_of_a_plain_cross_validation_in_any_order(seed: int) -> None:
    X, codes, random = asked(seed)
    found = trust(X, codes, random)
    assert (found.weight, found.beaten) == twin(X, codes, random)
    assert (found.judged, found.reason) == (30, "")
    order = np.random.default_rng(seed).permutation(len(X))
    assert trust(X[order], codes[order], random[order]) == found


def test_labels_that_mislead_count_less_on_most_draws() -> None:
    found = [trust(*asked(seed)) for seed in range(8)]
    assert sum(each.beaten for each in found) >= 7
    assert sum(each.weight < 1 for each in found) >= 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(FEWEST, 60), st.integers(1, 60))
def test_trust_is_full_where_the_learner_is_better_than_naming_one_class(seed: int, random: int, chosen: int) -> None:
    X, codes = apart(random + chosen, seed)
    found = trust(X, codes, np.arange(random + chosen) < random)
    assert (found.weight, found.beaten, found.reason) == (1.0, False, "")


def test_trust_is_full_without_random_labels_to_judge_by() -> None:
    X, codes, random = asked(3)
    few = random & (np.cumsum(random) < FEWEST)
    assert trust(X, codes, few) == trust(X, codes, np.ones_like(random)) == Trust()


def test_equal_records_are_held_out_together() -> None:
    X, codes, random = asked(5, random=40, chosen=40)
    # Labels by lot, and a copy of each random record among the chosen: a learner that knows the copies knows all.
    codes = np.random.default_rng(0).permutation(np.arange(len(codes)) % 2)
    X[~random], codes[~random] = X[random], codes[random]
    nearest = Learner(KNeighborsClassifier(1), CLASSES)
    found = trust(X, codes, random, nearest)
    assert found.reason == "the learner takes no weights"
    folds, wrong = dealt(marks_of(X[random]), codes[random], FOLDS), 0
    for fold in range(FOLDS):
        X_random, known = X[random], codes[random]
        model = KNeighborsClassifier(1).fit(X_random[folds != fold], known[folds != fold])
        wrong += int((model.predict(X_random[folds == fold]) != known[folds == fold]).sum())
    assert found.beaten == (wrong > 40 - np.bincount(codes[random]).max())
    assert found.beaten


def test_of_many_labels_a_part_stands_for_all() -> None:
    X, codes, random = asked(1, random=MOST + 50, chosen=2 * MOST)
    found = trust(X, codes, random)
    assert found.judged == MOST
    assert found.beaten


@pytest.mark.parametrize("at", [3, 70])
@pytest.mark.parametrize("far", [1e20, 3e38])
def test_a_record_far_from_all_others_ends_no_round(at: int, far: float) -> None:
    X, codes, random = asked(3)
    X[at] = far
    learner = Learner(GaussianNB(), ["inner", "outer"])
    assert not np.isfinite(learner.fit(X, codes).predict_proba(X)).all()
    found = trust(X, codes, random, learner)
    assert found.judged == random.sum()
    assert found.beaten, "a model that says nothing is wrong"


def test_few_records_are_not_many_for_having_several_labels() -> None:
    X, codes, random = asked(4, random=FEWEST - 1)
    records = np.repeat(np.arange(len(X)), 2)
    model, halves = LEARNER.fit(X, codes), np.full(2 * len(X), 0.5)
    doubled = np.repeat(X, 2, axis=0), np.repeat(codes, 2), halves, np.repeat(random, 2)
    assert trust_in(LEARNER, *doubled, model, records) == Trust()


def test_a_skilled_learner_without_weights_is_not_told_of_any() -> None:
    X, _, random = asked(5)
    codes = (X[:, 0] > 0).astype(np.int64)
    found = trust(X, codes, random, Learner(KNeighborsClassifier(3), ["left", "right"]))
    assert (found.weight, found.reason, found.judged) == (1.0, "", random.sum())


def test_weights_of_doubtful_labels_are_kept() -> None:
    X, codes, random = asked(2)
    given = np.random.default_rng(0).random(len(X))
    model, halves = LEARNER.fit(X, codes), np.full(2 * len(X), 0.5)
    doubled = np.repeat(X, 2, axis=0), np.repeat(codes, 2), halves, np.repeat(random, 2)
    twice = trust_in(LEARNER, *doubled, model, np.repeat(np.arange(len(X)), 2))
    assert twice == trust(X, codes, random), "a record counts once, however many labels it may have"
    weights = Trust(0.25).weights(random, given)
    assert weights is not None
    np.testing.assert_allclose(weights, np.where(random, given, given / 4))


def test_a_learner_that_a_part_of_the_labels_cannot_be_given_is_trusted() -> None:
    from sklearn.calibration import CalibratedClassifierCV

    X, codes, random = asked(4, random=8, chosen=3)
    codes[:] = np.arange(len(codes)) < 6
    learner = Learner(CalibratedClassifierCV(LogisticRegression(), cv=5), CLASSES)
    found = trust(X, codes, random, learner)
    assert found.weight == 1
    assert "cannot be fitted" in found.reason


# -- in a campaign ----------------------------------------------------------------------------------------------------


def campaign_of(place: Path, seed: int = 3, **options: object) -> tuple[dal.Campaign, NDArray[np.int64]]:
    X, codes = nested(600, seed)
    pool = dal.Pool.build(X, place / "pool.zarr")
    known = {"batch_size": 30, "random_state": seed, "explore": 0.1, "strategy": "margin", **options}
    return dal.Campaign.create(place / "c", pool, ["in", "out"], **known), codes


def labelled(campaign: dal.Campaign, codes: NDArray[np.int64]) -> list[int]:
    batch = campaign.next_batch()
    assert isinstance(batch, dal.Batch)
    campaign.label(batch, codes[batch.rows])
    return batch.rows.tolist()


def test_a_campaign_draws_more_at_random_and_weighs_the_others_less(tmp_path: Path) -> None:
    campaign, codes = campaign_of(tmp_path)
    due, explored, in_doubt = 0.0, np.empty(0, np.int64), 0
    for number in range(1, 6):
        labelled(campaign, codes)
        each = campaign.rounds.get(number)
        drawn = [record.row for record in campaign.rounds.batch(number) if record.explore]
        assert len(drawn) == explore_count(each.explore_share, due, len(explored), 30)
        if number == 1:
            assert each.explore == each.explore_share == first_share(0.1, 30) == 20 / 30
            assert len(drawn) == 20
        else:
            told = each.notes["trust"]
            assert each.explore == 0.1
            assert told["explore"] == share_in_doubt(0.1, told["weight"], told["beaten"]) == each.explore_share
            # The model is that of the weights that its notes tell.
            known = campaign.answers.labels(each.last_answer)
            X, random = View(campaign).pool.take(known.rows), np.isin(known.rows, explored)
            learner = Learner.named("logistic", ["in", "out"], random_state=3)
            kept = Model.loads(campaign.rounds.load_model(each.model)).predict_proba(X)
            weighted = learner.fit(X, known.codes, Trust(told["weight"]).weights(random)).predict_proba(X)
            np.testing.assert_array_equal(weighted, kept)
            line = campaign.status().trusted
            assert line == trusted(each)
            assert (f"count 1/{1 / told['weight']:.0f}: " in line) == (told["weight"] < 1)
            assert (f"{told['explore']:.0%} of the batch is drawn at random" in line) == (told["explore"] > 0.1)
            in_doubt += told["weight"] < 1
        due, explored = due + each.explore_share * 30, np.append(explored, drawn)
    assert in_doubt
    assert len(explored) == int(due + 1e-9)


def test_a_campaign_without_an_explore_share_trusts_all(tmp_path: Path) -> None:
    campaign, codes = campaign_of(tmp_path, explore=0)
    labelled(campaign, codes)
    labelled(campaign, codes)
    assert not len(campaign.rounds.explored_rows())
    assert campaign.rounds.get(2).notes["trust"]["weight"] == 1
    assert campaign.status().trusted == ""


@pytest.mark.parametrize(
    "step", ["_scan", pytest.param("_fit", marks=pytest.mark.slow), pytest.param("_select", marks=pytest.mark.slow)]
)
def test_a_round_in_doubt_that_ends_anywhere_gives_the_same_batch(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, codes = campaign_of(tmp_path / "one")
    whole = [labelled(campaign, codes) for _ in range(4)]
    again, _ = campaign_of(tmp_path / "two")
    real, batches = getattr(Coordinator, step), []

    def ends(self: Coordinator, *given: object, **named: object) -> None:
        if step == "_fit":
            real(self, *given, **named)
        raise KeyboardInterrupt

    for number in range(1, 5):
        if number > 1:
            with monkeypatch.context() as broken:
                broken.setattr(Coordinator, step, ends)
                with pytest.raises(KeyboardInterrupt):
                    again.next_batch()
            # A label that comes now belongs to the next round: neither weights nor shares of this one follow it.
            if number == 4:
                again.label([str(599)], [int(codes[599])])
        again = dal.Campaign.open(again.directory)
        batches.append(labelled(again, codes))
    assert batches == whole
    notes = [[each.rounds.get(n).notes["trust"] for n in (2, 3, 4)] for each in (campaign, again)]
    assert notes[0] == notes[1]
    assert any(each["explore"] > 0.1 for each in notes[0])
