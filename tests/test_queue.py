"""The queue: who is served what, for how long, and what becomes of the answers."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from dal.campaign import Account, Annotators, CampaignStore, Given, Labelling, Leased, Queue, Settings, Storage
from dal.campaign.activity import Activity
from dal.campaign.control import Control
from dal.campaign.schema import annotators as accounts
from dal.campaign.view import rest_text
from dal.errors import CampaignError, InputError, LabelError
from tests import databases
from tests.batches import batch_of

pytestmark = pytest.mark.usefixtures("backend")

CHOSEN = Settings(
    "pool.zarr", ("cat", "dog", "owl"), estimator="logistic", strategy="margin", batch_size=4, random_state=11
)
ROWS = [907, 23, 511, 40, 300, 88]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


def made(
    directory: Path,
    *,
    overlap: int = 1,
    gold: float = 0.0,
    close_at: float = 1.0,
    rows: Sequence[int] = ROWS,
    reserve: int = 0,
) -> CampaignStore:
    labelling = Labelling(overlap=overlap, gold=gold, close_at=close_at)
    chosen = replace(CHOSEN, labelling=labelling, storage=Storage(database=databases.fresh()))
    campaign = CampaignStore.make(directory, chosen, pool_fingerprint="f00d", n_rows=1000)
    opened(campaign, rows, reserve)
    return campaign


def opened(campaign: CampaignStore, rows: Sequence[int], reserve: int = 0) -> None:
    current = campaign.rounds.freeze(
        pool_fingerprint="f00d", n_rows=1000, k=len(rows), explore=0.0, seed=11, strategy="margin"
    )
    batch = batch_of(
        rows,
        scores=[1.0 - rank / 100 for rank in range(len(rows))],
        predicted=[row % 3 for row in rows],
        confidence=[0.25 + rank / 8 for rank in range(len(rows))],
        reserve=reserve,
    )
    campaign.rounds.open(current, batch)


def says(event: str, row: int, label: int | None = 0, **more: object) -> Given:
    return Given(event, row, "skipped" if label is None else "submitted", label, **more)


def rows_of(leased: Sequence[Leased]) -> list[int]:
    return [each.row for each in leased]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignStore:
    return made(tmp_path / "c")


@pytest.fixture
def queue(campaign: CampaignStore, clock: Clock) -> Queue:
    campaign.database.clock = clock
    return Queue(campaign)


# -- serving -----------------------------------------------------------------------------------------------------------


def test_what_is_served_says_what_people_are_shown(queue: Queue, clock: Clock) -> None:
    served = {each.row: each for each in queue.lease("ann", 6)}
    assert sorted(served) == sorted(ROWS)
    assert served[511] == Leased(511, "id511", 1, 2, clock.now + timedelta(minutes=10), (1, 0.5), reserve=False)


def test_nobody_is_served_what_another_holds_or_has_answered(queue: Queue) -> None:
    ann, bob = rows_of(queue.lease("ann", 2)), rows_of(queue.lease("bob", 3))
    assert not set(ann) & set(bob)
    queue.answer("ann", [says("e1", ann[0]), says("e2", ann[1], None)])
    rest = rows_of(queue.lease("cat", 9))
    assert sorted(ann + bob + rest) == sorted(ROWS)
    assert queue.lease("dan", 9) == []


def test_a_page_that_is_opened_again_gets_what_it_held(queue: Queue) -> None:
    first = rows_of(queue.lease("ann", 3))
    queue.answer("ann", [says("e1", first[0])])
    again = rows_of(queue.lease("ann", 3))
    assert set(again[:2]) == set(first[1:])
    assert again[2] not in first


def test_each_annotator_has_an_order_of_their_own_and_keeps_it(tmp_path: Path) -> None:
    rows = list(range(100, 140))
    queue = Queue(made(tmp_path / "c", overlap=9, rows=rows))
    orders = {name: rows_of(queue.lease(name, 40)) for name in ("ann", "bob", "cat")}
    assert all(sorted(order) == rows for order in orders.values())
    assert orders["ann"] != orders["bob"] != orders["cat"] != rows
    queue.release("ann", rows)
    assert rows_of(queue.lease("ann", 40)) == orders["ann"]


def test_overlap_serves_a_record_to_so_many_people(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", overlap=2)
    queue = Queue(campaign)
    for number, name in enumerate(("ann", "bob")):
        assert sorted(rows_of(queue.lease(name, 9))) == sorted(ROWS)
        assert queue.lease("cat" * (number + 1), 0) == []
    assert queue.lease("cat", 9) == []
    queue.answer("ann", [says(f"a{row}", row) for row in ROWS])
    assert campaign.rounds.pending(1) == 6
    queue.answer("bob", [says("b23", 23, None)])
    assert campaign.rounds.pending(1) == 5
    queue.release("bob", [907])
    assert rows_of(queue.lease("cat", 9)) == [907]


def test_a_lease_ends_and_a_late_answer_is_kept(queue: Queue, campaign: CampaignStore, clock: Clock) -> None:
    queue.lease("ann", 6)
    clock.move(minutes=9.9)
    assert queue.lease("bob", 6) == []
    clock.move(minutes=0.2)
    assert sorted(rows_of(queue.lease("bob", 6))) == sorted(ROWS)
    (late,) = queue.answer("ann", [says("a1", 23, 2)])
    (on_time,) = queue.answer("bob", [says("b1", 23, 1)])
    assert (late.result, late.late) == ("new", True)
    assert (on_time.result, on_time.late) == ("new", False)
    latest = campaign.answers.latest()
    assert [*zip(latest.annotators, latest.labels.tolist(), strict=True)] == [("ann", 2), ("bob", 1)]


def test_renewing_holds_what_nobody_else_has_taken(queue: Queue, clock: Clock) -> None:
    queue.lease("ann", 6)
    clock.move(minutes=6)
    assert queue.renew("ann", ROWS) == ROWS
    clock.move(minutes=6)
    assert queue.lease("bob", 6) == []
    clock.move(minutes=6)
    taken = rows_of(queue.lease("bob", 2))
    assert queue.renew("ann", [*ROWS, 999]) == [row for row in ROWS if row not in taken]
    assert queue.renew("cat", ROWS) == [], "only what was leased is renewed"


def test_a_clock_that_is_set_back_holds_nothing_for_ever(queue: Queue, clock: Clock) -> None:
    queue.lease("ann", 6)
    clock.move(days=-1)
    taken = rows_of(queue.lease("bob", 2))
    assert len(taken) == 2
    assert sorted([*queue.renew("ann", ROWS), *taken]) == sorted(ROWS)
    clock.move(days=400)
    assert sorted(rows_of(queue.lease("cat", 6))) == sorted(ROWS)
    assert [each.late for each in queue.answer("bob", [says(f"b{row}", row) for row in taken])] == [True, True]


@pytest.mark.parametrize(("moved", "held"), [({"minutes": 9}, True), ({"minutes": 11}, False), ({"days": -1}, False)])
def test_all_agree_on_who_holds_a_record(moved: dict[str, float], held: bool, tmp_path: Path, clock: Clock) -> None:
    campaign = made(tmp_path / "c", rows=[23, 40, 88], reserve=2)
    campaign.database.clock = clock
    queue = Queue(campaign)
    assert rows_of(queue.lease("ann", 3)) == [23, 40, 88]
    clock.move(**moved)
    taken = [] if held else [23, 40, 88]
    assert Activity(campaign).active() == (1 if held else 0)
    assert campaign.rounds.in_hand().tolist() == ([23, 40, 88] if held else [])
    assert campaign.rounds.excluded_rows().tolist() == ([23, 40, 88] if held else [23])
    assert rows_of(queue.lease("bob", 3)) == taken
    queue.release("bob", taken)
    assert campaign.rounds.withdraw_reserve().tolist() == ([23, 40, 88] if held else [23])
    assert campaign.rounds.asked_rows().tolist() == ([23, 40, 88] if held else [23])


def test_a_small_correction_of_the_clock_ends_no_lease(queue: Queue, clock: Clock) -> None:
    queue.lease("ann", 6)
    clock.move(seconds=-30)
    assert queue.lease("bob", 6) == []


def test_before_the_first_batch_there_is_nothing(tmp_path: Path) -> None:
    campaign = CampaignStore.make(
        tmp_path / "c",
        replace(CHOSEN, storage=Storage(database=databases.fresh())),
        pool_fingerprint="f00d",
        n_rows=1000,
    )
    queue = Queue(campaign)
    assert queue.lease("ann", 5) == []
    assert vars(queue.progress("ann")) == dict.fromkeys(
        ("answered", "batch", "given", "held", "left", "mine", "reserve", "round", "upto"), 0
    ) | {"open": False}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_sent_again_is_told_from_a_changed_one(queue: Queue, campaign: CampaignStore) -> None:
    queue.lease("ann", 6)
    sent = says("e1", 23, 1)
    kinds = [
        queue.answer("ann", [given])[0].result
        for given in (sent, sent, says("e2", 23, 1), says("e3", 23, 2), sent, says("e2", 23, 1))
    ]
    assert kinds == ["new", "repeated", "same", "changed", "repeated", "repeated"]
    assert campaign.answers.latest().labels.tolist() == [2], "an event that is sent again must not undo a newer one"


def test_one_refused_answer_does_not_hold_up_the_others(queue: Queue, campaign: CampaignStore) -> None:
    queue.lease("ann", 6)
    queue.answer("ann", [says("mine", 907)])
    refused = {
        "row": says("e1", 5),
        "code": says("e2", 23, 3),
        "label": Given("e3", 23, "skipped", 1),
        "seconds": says("e4", 23, 1, lead_time=float("nan")),
        "reason": says("e5", 23, 1, skip_reason="unclear"),
        "event id": says("", 23, 1),
        "belongs": says("mine", 23, 1),
        "zone": says("e6", 23, 1, shown_at=datetime(2026, 1, 1)),
    }
    outcomes = queue.answer("ann", [*refused.values(), says("good", 23, 1)])
    for word, outcome in zip(refused, outcomes[:-1], strict=True):
        assert outcome.result == "refused"
        assert word in outcome.reason
    assert outcomes[-1].result == "new"
    assert campaign.answers.latest().rows.tolist() == [23, 907]


def test_everything_about_an_answer_is_kept(queue: Queue, campaign: CampaignStore, clock: Clock) -> None:
    queue.lease("ann", 6)
    began = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
    told = {"lead_time": 2.5, "shown_at": began, "answered_at": began + timedelta(seconds=3)}
    queue.answer("ann", [says("e1", 23, None, skip_reason="cannot tell", suggestion_shown=True, **told)])
    (past,) = queue.history("ann", 5)
    assert (past.event_id, past.row, past.record_id, past.status) == ("e1", 23, "id23", "skipped")
    assert (past.skip_reason, past.lead_time, past.answered_at) == ("cannot tell", 2.5, told["answered_at"])
    (logged,) = campaign.answers.log()
    assert (logged.shown_at, logged.received_at) == (began, clock.now)
    assert (logged.suggested, logged.suggested_score, logged.suggested_by) == (2, 0.375, None)
    assert (logged.suggestion_shown, logged.source, logged.late) == (True, "pages", False)


def test_undo_gives_the_record_back(queue: Queue, campaign: CampaignStore) -> None:
    queue.lease("ann", 2)
    queue.answer("ann", [says("e1", 23, 1), says("e2", 23, 2), says("e3", 40, 1)])
    assert queue.undo("ann", "e1", "u0").result == "refused", "another answer came since"
    assert queue.undo("bob", "e2", "u0").result == "refused", "it is ann's"
    assert queue.undo("ann", "e2", "u1").result == "changed"
    assert queue.undo("ann", "e2", "u1").result == "repeated"
    assert queue.undo("ann", "e2", "u2").result == "refused", "it is undone"
    assert queue.answer("ann", [says("u1", 23)])[0].result == "refused"
    assert queue.undo("ann", "e3", "e1").result == "refused"
    assert campaign.answers.latest().rows.tolist() == [40]
    assert [past.row for past in queue.history("ann", 5)] == [40]
    assert campaign.rounds.pending(1) == 5
    assert 23 not in rows_of(queue.lease("bob", 9)), "whoever takes an answer back holds the record"
    (again,) = queue.answer("ann", [says("e4", 23, 0)])
    assert (again.result, again.late) == ("new", False)
    assert [past.event_id for past in queue.history("ann", 5)] == ["e4", "e3"]
    assert campaign.rounds.excluded_rows().tolist() == sorted(ROWS)


def test_a_file_may_bring_back_what_was_taken_back(queue: Queue, campaign: CampaignStore) -> None:
    from dal.campaign import Answer, AnswerFile

    queue.lease("ann", 6)
    queue.answer("ann", [says("e1", 23, 1)])
    campaign.answers.record_export(1, "b.csv", "d0", campaign.answers.last_id())
    queue.undo("ann", "e1", "u1")
    line = Answer(23, "id23", "ann", "submitted", 1, line=2)
    kept_out = campaign.answers.import_file([line], AnswerFile("b.csv", "d1", "ann"))
    assert (kept_out.counts.conflicts, kept_out.conflicts[0].label_elsewhere) == (1, -2)
    taken = campaign.answers.import_file([line], AnswerFile("b.csv", "d1", "ann", take_conflicts=True))
    assert taken.counts.new == 1
    assert campaign.answers.latest().labels.tolist() == [1]


def test_answers_to_a_closed_batch_are_late_and_count_in_the_next_round(queue: Queue, campaign: CampaignStore) -> None:
    queue.lease("ann", 2)
    queue.answer("ann", [says("e1", 23, 1)])
    campaign.rounds.close(campaign.rounds.get(1))
    assert sorted(rows_of(queue.lease("ann", 6))) == sorted(set(ROWS) - {23}), "until the next batch is there"
    queue.release("ann", ROWS)
    outcomes = queue.answer("ann", [says("e2", 40, 1), says("e3", 23, 2)])
    assert [(each.result, each.late) for each in outcomes] == [("new", True), ("changed", True)]
    assert queue.undo("ann", "e2", "u1").late
    opened(campaign, [1, 2])
    assert campaign.rounds.get(2).labels == 1
    assert sorted(rows_of(queue.lease("ann", 5))) == [1, 2]


# -- the rest of a batch -----------------------------------------------------------------------------------------------


def closed_with(campaign: CampaignStore, answers: int) -> tuple[Queue, list[int]]:
    """Close the first batch when some of it is answered, and give its other rows."""
    queue = Queue(campaign)
    mine = rows_of(queue.lease("ann", len(ROWS)))
    queue.answer("ann", [says(f"a{row}", row) for row in mine[:answers]])
    queue.release("ann", ROWS)
    campaign.rounds.close(campaign.rounds.get(1))
    return queue, sorted(mine[answers:])


def test_the_rest_of_a_batch_is_served_before_the_next_one(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", close_at=0.5)
    queue, rest = closed_with(campaign, 3)
    assert {number: rows.tolist() for number, rows in campaign.rounds.rest_rows().items()} == {1: rest}
    assert rest_text(campaign) == "3 records of round 1 still lack answers"
    first, *others = rows_of(queue.lease("bob", 9))
    assert sorted([first, *others]) == rest
    (outcome,) = queue.answer("bob", [says("b1", first)])
    assert not outcome.late
    queue.release("bob", others)

    opened(campaign, [1, 2], reserve=1)
    assert campaign.rounds.get(2).labels == 4, "all answers up to the freeze"
    served = queue.lease("bob", 9)
    assert [(each.row, each.round, each.reserve) for each in served[2:]] == [(1, 2, False), (2, 2, True)]
    assert sorted(rows_of(served[:2])) == sorted(others)
    assert [each.round for each in served[:2]] == [1, 1]
    assert rest_text(campaign) == "before round 2, people are served 2 records of round 1"
    before = queue.own_share("bob")
    (outcome,) = queue.answer("bob", [says("b2", served[0].row)])
    assert not outcome.late
    after = queue.own_share("bob")
    assert (after.batch, after.beyond - before.beyond) == (0, 1), "each answer raises what a person sees by one"
    assert queue.progress("bob").answered == 0, "of the second batch"

    # The round after that one serves no rest of the first any more, except what somebody holds.
    queue.answer("bob", [says("b3", 1)])
    queue.release("bob", [served[1].row, 2])
    campaign.rounds.close(campaign.rounds.get(2))
    opened(campaign, [3])
    assert rows_of(queue.lease("bob", 9)) == [3]
    assert campaign.rounds.rest_rows() == {}
    assert rest_text(campaign) == ""


def test_a_batch_that_was_closed_with_fewer_answers_has_no_rest(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", close_at=0.5)
    held = rows_of(Queue(campaign).lease("cat", 1))
    queue, rest = closed_with(campaign, 2)
    assert campaign.rounds.rest_rows() == {}
    opened(campaign, [1, 2])
    # What cat held when it was closed comes in after the freeze: half is answered now, and still nothing is served.
    (outcome,) = queue.answer("cat", [says("c1", held[0])])
    assert outcome.late
    assert campaign.rounds.pending(1) == 3
    assert sorted(rows_of(queue.lease("bob", 9))) == [1, 2]
    assert len(rest) == 3
    assert campaign.rounds.rest_rows() == {}


@pytest.mark.parametrize("frozen", [False, True])
def test_an_answer_that_is_taken_back_leaves_the_rest_of_its_round(tmp_path: Path, frozen: bool) -> None:
    campaign = made(tmp_path / "c", close_at=0.5)
    queue, rest = closed_with(campaign, 3)
    last = queue.history("ann", 1)[0]
    if frozen:
        opened(campaign, [1, 2])
    assert not queue.undo("ann", str(last.event_id), "u1").late
    if not frozen:
        opened(campaign, [1, 2])
    assert campaign.rounds.rest_rows()[1].tolist() == sorted([*rest, last.row])
    queue.release("ann", ROWS)
    assert sorted(rows_of(queue.lease("bob", 9))[:4]) == sorted([*rest, last.row])


def test_in_a_pause_nobody_is_said_to_be_served_the_rest(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", close_at=0.5)
    closed_with(campaign, 3)
    opened(campaign, [1, 2])
    assert rest_text(campaign) == "before round 2, people are served 3 records of round 1"
    Control(campaign).tell("pause", "boss")
    assert rest_text(campaign) == "3 records of round 1 still lack answers"


def test_a_campaign_that_waits_for_all_answers_has_no_rest(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c")
    queue, _ = closed_with(campaign, 5)
    opened(campaign, [1, 2])
    assert sorted(rows_of(queue.lease("bob", 9))) == [1, 2]


def test_the_rest_waits_for_as_many_people_as_the_overlap(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", overlap=2, close_at=0.5)
    queue = Queue(campaign)
    for who in ("ann", "bob"):
        queue.lease(who, 9)
        queue.answer(who, [says(f"{who}{row}", row) for row in ROWS[:3]])
    queue.answer("ann", [says("ann4", ROWS[3])])
    for who in ("ann", "bob"):
        queue.release(who, ROWS)
    campaign.rounds.close(campaign.rounds.get(1))
    opened(campaign, [1, 2])
    assert campaign.rounds.rest_rows()[1].tolist() == sorted(ROWS[3:])
    assert sorted(rows_of(queue.lease("ann", 2))) == sorted(ROWS[4:])
    assert sorted(rows_of(queue.lease("bob", 3))) == sorted(ROWS[3:])
    # An answer that is taken back makes its record wait again.
    queue.answer("bob", [says("b3", ROWS[3])])
    assert ROWS[3] not in campaign.rounds.rest_rows()[1]
    assert not queue.undo("bob", "b3", "u3").late
    assert ROWS[3] in campaign.rounds.rest_rows()[1]


@pytest.mark.parametrize("closed", [False, True])
def test_gold_is_as_late_as_the_rest_of_its_batch(closed: bool, tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", gold=0.5, close_at=0.5)
    queue, rest = closed_with(campaign, 3)
    campaign.answers.add_gold([(600, "id600", 1)])
    assert 600 in rows_of(queue.lease("bob", 9))
    if closed:
        opened(campaign, [1, 2])
    outcomes = queue.answer("bob", [says("b1", 600), says("b2", rest[0])])
    assert [each.late for each in outcomes] == [False, False]


def test_names_are_names(queue: Queue) -> None:
    for name in ("", " \u200b", "a\x00"):
        with pytest.raises(LabelError, match="name of a person"):
            queue.lease(name, 1)


# -- the reserve -------------------------------------------------------------------------------------------------------


def test_the_reserve_is_served_in_its_order_when_the_batch_runs_out(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", reserve=3)
    queue = Queue(campaign)
    assert [record.row for record in campaign.rounds.batch(1)] == ROWS[:3]
    served = queue.lease("ann", 5)
    assert sorted(rows_of(served[:3])) == sorted(ROWS[:3])
    assert [(each.row, each.reserve) for each in served[3:]] == [(ROWS[3], True), (ROWS[4], True)]
    assert queue.progress("bob").reserve == 1
    queue.answer("ann", [says(f"e{row}", row) for row in ROWS[:4]])
    assert campaign.rounds.pending(1) == 0
    campaign.rounds.close(campaign.rounds.get(1))
    assert rows_of(queue.lease("bob", 5)) == [ROWS[5]], "served while the next round is computed"
    (outcome,) = queue.answer("bob", [says("b", ROWS[5])])
    assert not outcome.late
    queue.release("ann", ROWS)
    opened(campaign, [1, 2, ROWS[4]])
    assert [record.row for record in campaign.rounds.batch(2)] == [1, 2, ROWS[4]], (
        "what nobody used goes back to the pool"
    )
    assert campaign.rounds.asked_rows().tolist() == sorted({*ROWS, 1, 2})


def test_a_reserve_record_that_somebody_looks_at_stays(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", reserve=1)
    queue = Queue(campaign)
    queue.answer("ann", [says(f"e{row}", row) for row in ROWS[:5]])
    assert rows_of(queue.lease("ann", 5)) == ROWS[5:]
    campaign.rounds.close(campaign.rounds.get(1))
    opened(campaign, [1])
    assert rows_of(queue.lease("ann", 5)) == [ROWS[5], 1] or rows_of(queue.lease("ann", 5)) == [1, ROWS[5]]
    (outcome,) = queue.answer("ann", [says("late?", ROWS[5])])
    assert not outcome.late


def test_a_wrong_clock_keeps_no_reserve_record_for_ever(tmp_path: Path, clock: Clock) -> None:
    campaign = made(tmp_path / "c", reserve=1)
    campaign.database.clock = clock
    queue = Queue(campaign)
    clock.move(days=300)
    queue.answer("ann", [says(f"e{row}", row) for row in ROWS[:5]])
    assert rows_of(queue.lease("ann", 5)) == ROWS[5:]
    clock.move(days=-300)
    campaign.rounds.close(campaign.rounds.get(1))
    opened(campaign, [1])
    assert ROWS[5] not in campaign.rounds.asked_rows().tolist()


# -- gold --------------------------------------------------------------------------------------------------------------


def test_gold_records_are_mixed_in_and_never_learned_from(tmp_path: Path) -> None:
    rows = list(range(100, 300))
    campaign = made(tmp_path / "c", overlap=2, gold=0.2, rows=rows)
    known = {row: row % 3 for row in range(500, 600)}
    assert campaign.answers.add_gold((row, f"id{row}", label) for row, label in known.items()) == 100
    assert campaign.answers.gold() == known
    queue = Queue(campaign)
    served = {name: rows_of(queue.lease(name, 100)) for name in ("ann", "bob")}
    shares = [np.isin(each, list(known)) for each in served.values()]
    assert all(10 <= share.sum() <= 30 for share in shares)
    assert (shares[0] != shares[1]).any()
    gold = [row for row in served["ann"] if row in known]
    outcomes = queue.answer("ann", [says(f"e{row}", row, 1) for row in gold])
    assert all((each.result, each.late) == ("new", False) for each in outcomes)
    assert campaign.answers.latest().rows.size == 0
    assert campaign.rounds.pending(1) == 200
    assert queue.progress("ann").mine == 0
    assert set(known) <= set(campaign.rounds.excluded_rows().tolist())
    rest = [row for _ in range(5) for row in self_served(queue, "ann", 30)]
    assert max(Counter(gold + [row for row in rest if row in known]).values()) == 1, "nobody gets one twice"


def self_served(queue: Queue, annotator: str, n: int = 5) -> list[int]:
    rows = rows_of(queue.lease(annotator, n))
    queue.answer(annotator, [says(f"{annotator}{row}", row) for row in rows])
    return rows


def test_gold_ends_with_the_batch(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", gold=0.9)
    campaign.answers.add_gold([(row, f"id{row}", 1) for row in range(600, 700)])
    queue = Queue(campaign)
    while served := self_served(queue, "ann"):
        assert len(served) <= 5
    assert campaign.rounds.pending(1) == 0
    assert queue.lease("ann", 5) == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ((23, "id23", 1), "asked or answered"),
        ((1000, "x", 1), "rows are 0 to 999"),
        ((5, "x", 3), "codes are 0 to 2"),
        ((7, "id7", 2), "had 1 before"),
    ],
)
def test_what_cannot_be_gold(campaign: CampaignStore, record: tuple[int, str, int], message: str) -> None:
    campaign.answers.add_gold([(7, "id7", 1)])
    with pytest.raises(LabelError, match=message):
        campaign.answers.add_gold([(8, "id8", 0), record])
    assert campaign.answers.gold() == {7: 1}
    assert campaign.answers.add_gold([(7, "id7", 1)]) == 0
    campaign.rounds.close(campaign.rounds.get(1))
    with pytest.raises(CampaignError, match=r"row 7 .*gold"):
        opened(campaign, [7])


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_counts(tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", overlap=2, rows=[*ROWS, 600], reserve=1)
    queue = Queue(campaign)
    for name in ("ann", "bob", "cat"):
        queue.lease(name, 3)
    ann, bob = rows_of(queue.lease("ann", 3)), rows_of(queue.lease("bob", 3))
    queue.answer("ann", [says(f"a{row}", row) for row in ann])
    queue.answer("bob", [says(f"b{row}", row) for row in bob])
    counted = Counter(ann + bob)
    cats = rows_of(queue.lease("cat", 0) or queue.lease("cat", 3))
    holders = Counter(ann + bob + cats)
    for name, rows in (("ann", ann), ("bob", bob), ("cat", []), ("dan", [])):
        others = holders - Counter(cats if name == "cat" else [])
        seen = queue.progress(name)
        assert (seen.round, seen.open, seen.batch) == (1, True, 6)
        assert seen.answered == sum(1 for row in ROWS if counted[row] >= 2)
        assert seen.mine == queue.own_share(name).batch == len(rows)
        assert seen.given == sum(min(counted[row], 2) for row in ROWS)
        left = [row for row in ROWS if row not in rows and others[row] < 2]
        assert seen.left == len(left)
        assert seen.held == sum(1 for row in ROWS if row not in rows and row not in left and counted[row] < 2)
        assert seen.reserve == 1
    before = queue.progress("dan")
    campaign.rounds.close(campaign.rounds.get(1))
    closed = queue.progress("dan")
    assert not closed.open
    # What nobody has answered is served on until the next batch is there.
    assert (closed.left, closed.held, closed.reserve) == (before.left, before.held, 1)


# -- many at once ------------------------------------------------------------------------------------------------------


def test_answers_of_several_people_in_one_transaction_are_those_of_each(queue: Queue, campaign: CampaignStore) -> None:
    ann, bob = rows_of(queue.lease("ann", 2)), rows_of(queue.lease("bob", 2))
    together = [
        ("ann", [says("a0", ann[0]), says("a1", 999)]),
        ("bob", [says("b0", bob[0])]),
        ("ann", [says("a0", ann[0])]),
    ]
    outcomes = [[each.result for each in theirs] for theirs in queue.answer_together(together)]
    assert outcomes == [["new", "refused"], ["new"], ["repeated"]]
    assert sorted(campaign.answers.latest().rows.tolist()) == sorted([ann[0], bob[0]])
    outcomes = queue.answer_together([("", [says("x", bob[1])]), ("ann", [says("a2", ann[1])])])
    assert [[each.result for each in theirs] for theirs in outcomes] == [["refused"], ["new"]]
    assert [queue.own_share(name).batch for name in ("ann", "bob")] == [2, 1]


EAST = timezone(timedelta(hours=14))
IMPOSSIBLE = {
    "year 1": {"answered_at": datetime(1, 1, 1, tzinfo=EAST)},
    "year 9999": {"shown_at": datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12)))},
    "no zone": {"answered_at": datetime(2026, 1, 1)},
    "NUL": {"label": None, "skip_reason": "a\x00b"},
    "surrogate": {"label": None, "skip_reason": "\ud83d"},
    "NaN seconds": {"lead_time": float("nan")},
    "too many seconds": {"lead_time": 10**400},
    "far row": {"row": 2**70},
    "far class": {"label": 2**70},
    "float class": {"label": 1.0},
    "NUL event": {"event": "a\x00b"},
    "long event": {"event": "x" * 5000},
}


@pytest.mark.parametrize("wrong", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_answer_is_refused_and_those_of_the_same_commit_are_taken(
    queue: Queue, campaign: CampaignStore, wrong: dict[str, Any]
) -> None:
    impossible = says(**({"event": "bad", "row": 300} | wrong))
    together = [("ann", [says("a", 907), impossible]), ("bob", [says("b", 23, np.int64(2))])]
    outcomes = queue.answer_together(together)
    assert [[each.result for each in theirs] for theirs in outcomes] == [["new", "refused"], ["new"]]
    latest = campaign.answers.latest()
    assert dict(zip(latest.rows.tolist(), latest.labels.tolist(), strict=True)) == {907: 0, 23: 2}


def test_many_people_at_once_answer_every_record_once(tmp_path: Path) -> None:
    rows = list(range(200, 260))
    campaign = made(tmp_path / "c", rows=rows)
    served: list[int] = []

    def work(name: str) -> None:
        queue = Queue(CampaignStore.open(campaign.directory))
        while mine := rows_of(queue.lease(name, 3)):
            served.extend(mine)
            outcomes = queue.answer(name, [says(f"{name}-{row}", row) for row in mine])
            assert {each.result for each in outcomes} == {"new"}

    people = [threading.Thread(target=work, args=(f"annotator {number}",)) for number in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert sorted(served) == rows
    assert campaign.answers.latest().rows.tolist() == rows


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_lets_in_until_it_is_revoked(campaign: CampaignStore) -> None:
    people = Annotators(campaign)
    ann, boss = people.add("ann"), people.add("boss", "manager")
    assert len(ann) >= 43
    assert ann != boss
    found = people.verify(ann)
    assert isinstance(found, Account)
    assert (found.name, found.role, found.revoked_at) == ("ann", "annotator", None)
    assert people.verify(boss).role == "manager"
    assert people.verify(ann[:-1]) is None
    with pytest.raises(InputError, match="has a token already"):
        people.add("ann")
    people.revoke("ann")
    assert people.verify(ann) is None
    with pytest.raises(InputError, match="no token"):
        people.revoke("ann")
    again = people.add("ann")
    assert people.verify(again).name == "ann"
    assert people.verify(ann) is None
    assert [(each.name, each.revoked_at is None) for each in people.all()] == [
        ("ann", False),
        ("ann", True),
        ("boss", True),
    ]
    with campaign.database.reading() as connection:
        stored = "".join(str(row) for row in connection.execute(select(accounts)))
    assert ann not in stored
    assert boss not in stored


def test_people_need_names_and_roles(campaign: CampaignStore) -> None:
    for name in (" ", "\ufeff", "x" * 201, "a\x00"):
        with pytest.raises(InputError, match="name of a person"):
            Annotators(campaign).add(name)
    with pytest.raises(InputError, match="annotator or manager"):
        Annotators(campaign).add("ann", "boss")
