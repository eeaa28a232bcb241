"""Ask again or ask new: second opinions on labelled records beside new ones, on one scale."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dal
from dal.campaign import Answer, CampaignStore, Given, Labelling, Queue, Round, Settings, Storage
from dal.campaign.seconds import doubted, second_opinions
from dal.campaign.view import View, status
from dal.errors import SettingsError
from dal.evidence.again import asked_again, sureness
from dal.evidence.votes import dawid_skene
from dal.pool import Pool
from tests import databases
from tests.batches import batch_of

FIRST_ROW = 100
SHARES = st.lists(st.integers(0, 20).map(lambda each: each / 20), max_size=12)


# -- the scale ---------------------------------------------------------------------------------------------------------


@given(SHARES, SHARES, st.integers(0, 8))
def test_the_least_sure_label_takes_the_place_of_the_surest_new_record(
    labelled: list[float], new: list[float], most: int
) -> None:
    again, dropped = asked_again(np.array(labelled), np.array(new), most)
    old, young = (
        sorted(enumerate(labelled), key=lambda each: each[1]),
        sorted(enumerate(new), key=lambda each: -each[1]),
    )
    expected = []
    for (at, low), (other, high) in zip(old[:most], young, strict=False):
        if low >= min(high, 0.5):
            break
        expected.append((at, other))
    assert list(zip(again.tolist(), dropped.tolist(), strict=True)) == expected


def test_sureness_is_that_of_a_plain_sum() -> None:
    rng = np.random.default_rng(0)
    said = {(int(row), f"p{who}"): int(rng.integers(0, 3)) for row in rng.integers(70, 100, 40) for who in (0, 1)}
    rows, who = [row for row, _ in said], [name for _, name in said]
    found = sureness(rows, who, list(said.values()), n_classes=3, seed=0)
    model = dawid_skene(rows, who, list(said.values()), n_classes=3, seed=0)
    place = {name: at for at, name in enumerate(model.annotators)}
    shares, posterior = [1 / 3] * 3, {}
    for _ in range(200):
        for row in sorted(set(rows)):
            joint = [
                share * np.prod([model.confusion[place[n]][c][code] for (r, n), code in said.items() if r == row])
                for c, share in enumerate(shares)
            ]
            posterior[row] = [each / sum(joint) for each in joint]
        shares = [(sum(each[c] for each in posterior.values()) + 1 / 3) / (len(posterior) + 1) for c in range(3)]
    assert found.rows.tolist() == sorted(posterior)
    expected = [posterior[row][code] for row, code in zip(sorted(posterior), model.labels.codes.tolist(), strict=True)]
    np.testing.assert_allclose(found.right, expected, atol=1e-4)


# -- the queue ---------------------------------------------------------------------------------------------------------

CHOSEN = Settings("pool.zarr", ("cat", "dog"), estimator="logistic", strategy="margin", batch_size=6)
FROZEN = {"pool_fingerprint": "f", "n_rows": 2_000, "k": 6, "explore": 0.0, "seed": 0, "strategy": "margin"}


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignStore:
    """Six records that ann and bob have labelled, three each, and a second batch that asks again about two of hers."""
    chosen = replace(CHOSEN, labelling=Labelling(again=0.5), storage=Storage(database=databases.fresh()))
    made = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint="f", n_rows=2_000)
    first = made.rounds.freeze(**FROZEN)
    rows = list(range(FIRST_ROW, FIRST_ROW + 6))
    made.rounds.open(first, batch_of(rows))
    for name, own in (("ann", rows[:3]), ("bob", rows[3:])):
        made.answers.add([Answer(row, f"id{row}", name, "submitted", row % 2) for row in own], source="x")
    made.rounds.close(made.rounds.get(1))
    second = made.rounds.freeze(**FROZEN)
    made.rounds.open(second, batch_of(range(200, 204)), [(FIRST_ROW, 2), (FIRST_ROW + 1, 2)])
    return made


def served(campaign: CampaignStore, name: str, n: int = 20) -> list[int]:
    return [each.row for each in Queue(campaign).lease(name, n)]


def gave(campaign: CampaignStore, name: str, row: int, code: int = 0) -> bool:
    (outcome,) = Queue(campaign).answer(name, [Given(f"{name} {row}", row, "submitted", code)])
    assert outcome.result == "new"
    return outcome.late


@pytest.mark.usefixtures("backend")
def test_others_are_asked_first_and_once(campaign: CampaignStore) -> None:
    assert set(served(campaign, "ann")) == {200, 201, 202, 203}, "nobody is asked twice about a record"
    Queue(campaign).release("ann", [200, 201, 202, 203])
    (held,) = served(campaign, "bob", 1)
    assert held in (FIRST_ROW, FIRST_ROW + 1)
    assert FIRST_ROW + FIRST_ROW + 1 - held == served(campaign, "eve", 1)[0], "bob holds the place of the other one"
    assert not gave(campaign, "bob", held, code=1)
    assert second_opinions(campaign) == "round 2 asks another person about 2 labelled records; 1 have answered"
    assert held not in served(campaign, "joe"), "it has the answers that were asked for"
    assert sorted(campaign.answers.latest().annotators) == ["ann"] * 3 + ["bob"] * 4
    assert status(campaign).again.startswith("round 2 asks another person")


@pytest.mark.usefixtures("backend")
def test_nobody_waits_for_second_opinions(campaign: CampaignStore) -> None:
    for row in range(200, 204):
        gave(campaign, "ann", row)
    assert View(campaign).position().pending == 0
    assert (progress := Queue(campaign).progress("bob")).answered == progress.batch == 4
    campaign.rounds.close(campaign.rounds.get(2))
    assert set(served(campaign, "bob")) == {FIRST_ROW, FIRST_ROW + 1}, "the next batch is being prepared"
    assert not gave(campaign, "bob", FIRST_ROW), "in time for the round that is frozen next"
    campaign.rounds.open(campaign.rounds.freeze(**FROZEN), batch_of([300]))
    assert served(campaign, "eve") == [300], "the round that asked is over"


def test_a_lease_of_a_second_opinion_is_renewed_and_undone(campaign: CampaignStore) -> None:
    queue = Queue(campaign)
    (row,) = served(campaign, "bob", 1)
    assert queue.renew("bob", [row]) == [row]
    gave(campaign, "bob", row)
    assert queue.undo("bob", f"bob {row}", "undone").result == "changed"
    assert served(campaign, "bob", 1) == [row]


def frozen_after(campaign: CampaignStore) -> Round:
    if campaign.rounds.last is not None and campaign.rounds.last.status == "open":
        campaign.rounds.close(campaign.rounds.last)
    return campaign.rounds.freeze(**FROZEN)


def test_only_what_somebody_at_work_may_answer_is_asked_again(campaign: CampaignStore) -> None:
    campaign.answers.add([Answer(FIRST_ROW, f"id{FIRST_ROW}", "bob", "skipped")], source="x")
    gave(campaign, "ann", 200)
    gave(campaign, "ann", FIRST_ROW + 3)
    campaign.answers.add([Answer(900, "id900", "ann", "submitted", 0)], source="imported, asked by nobody")
    current = frozen_after(campaign)
    known = doubted(campaign, current)
    expected = {FIRST_ROW + 1: 1, FIRST_ROW + 2: 1, FIRST_ROW + 4: 1, FIRST_ROW + 5: 1, 200: 1}
    assert dict(zip(known.rows.tolist(), known.given.tolist(), strict=True)) == expected
    gave(campaign, "eve", FIRST_ROW + 1)
    after = doubted(campaign, current)
    assert (after.rows.tolist(), after.right.tolist()) == (known.rows.tolist(), known.right.tolist()), (
        "as of the freeze"
    )


def test_one_person_alone_is_not_asked_again(campaign: CampaignStore) -> None:
    for row in range(200, 204):
        gave(campaign, "ann", row)
    current = frozen_after(campaign)
    assert not len(doubted(campaign, current).rows), "bob has not answered since the round before was frozen"


def test_second_opinions_and_shares_of_classes_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="`again` must be 0"):
        replace(CHOSEN, labelling=Labelling(again=0.5), balance=("uniform",))


# -- a whole campaign --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_team_that_errs_gets_second_opinions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(600) < 0.2).astype(np.int64)
    X = rng.standard_normal((600, 4)).astype(np.float32)
    X[:, 0] += 1.5 * truth
    pool = Pool.build(X, tmp_path / "pool.zarr")
    campaign = dal.Campaign.create(
        tmp_path / "c",
        pool,
        ["no", "yes"],
        estimator="logistic",
        strategy="margin",
        batch_size=20,
        labelling=Labelling(again=0.5, vote="dawid_skene"),
        stop=["max_labels=60"],
    )
    said: dict[int, list[str]] = defaultdict(list)
    queue, asked_twice, number = Queue(campaign), 0, 0
    while isinstance(batch := campaign.next_batch(), dal.Batch):
        assert batch.number == number + 1
        number = batch.number
        while View(campaign).position().pending:
            for name in ("ann", "bob", "eve"):
                for each in queue.lease(name, 4):
                    assert name not in said[each.row]
                    said[each.row].append(name)
                    asked_twice += len(said[each.row]) > 1
                    code = int(truth[each.row]) if rng.random() < 0.75 else 1 - int(truth[each.row])
                    queue.answer(name, [Given(f"{name} {each.row}", each.row, "submitted", code)])
    assert asked_twice >= 1
    assert len(campaign.answers.labels().rows) == 60, "second opinions are no labels of the budget"
