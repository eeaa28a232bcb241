"""A campaign that runs on while people answer: nobody is asked twice, nothing is lost, and nobody need wait."""

import subprocess
import sys
import threading
import uuid
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dal import Campaign
from dal.campaign import Asked, Given, Labelling, Queue
from dal.campaign.rounds import Round, Rounds
from dal.campaign.view import View, pauses, status
from dal.cli import main
from dal.errors import CampaignLocked
from dal.loop.actions import Close, Wait
from dal.loop.campaign import Batch, Stopped
from dal.loop.coordinator import Coordinator
from dal.loop.state import next_step
from dal.pool import Pool
from dal.web.state import Standings

CLASSES = ("red", "green", "blue")
N, D = 4_000, 5


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 3, N)
    X = (1.2 * rng.standard_normal((3, D))[codes] + rng.standard_normal((N, D))).astype(np.float32)
    return Pool.build(X, tmp_path_factory.mktemp("pool") / "pool.zarr"), codes


def made(truth: tuple[Pool, np.ndarray], directory: Path, **options: object) -> Campaign:
    return Campaign.create(directory, truth[0], CLASSES, **{"batch_size": 10, "random_state": 7, **options})


def says(queue: Queue, who: str, rows: list[int], codes: np.ndarray) -> list[str]:
    sent = [Given(uuid.uuid4().hex, row, "submitted", int(codes[row])) for row in rows]
    return [outcome.result for outcome in queue.answer(who, sent)]


def answered(campaign: Campaign, truth: tuple[Pool, np.ndarray], batch: Batch, count: int | None = None) -> None:
    rows = batch.rows[:count]
    campaign.label(batch.record_ids[:count], truth[1][rows])


def test_what_is_left_and_the_reserve_are_served_while_the_next_batch_is_prepared(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(close_at=0.8, reserve=0.5))
    queue = Queue(campaign)
    batch = campaign.next_batch()
    assert len(batch.rows) == 10
    answered(campaign, truth, batch, 7)
    assert next_step(campaign) == Wait(3)
    answered(campaign, truth, batch, 8)
    assert next_step(campaign) == Close()
    campaign.rounds.close(campaign.rounds.get(1))

    # Now the next round could be training: bob is served what is left of the batch, then the reserve in its order.
    served = queue.lease("bob", 9)
    assert sorted(each.row for each in served[:2]) == sorted(batch.rows[8:].tolist())
    assert [each.reserve for each in served] == [False, False, True, True, True, True, True]
    kept, held = [each.row for each in served[:4]], [each.row for each in served[4:6]]
    assert says(queue, "bob", kept, truth[1]) == ["new"] * 4
    queue.release("bob", [served[6].row])

    second = campaign.next_batch()
    assert second.number == 2
    assert campaign.rounds.get(2).trained_on == 12, "8 of the batch, what was left of it, and two of the reserve"
    assert not set(second.rows.tolist()) & {*batch.rows.tolist(), *kept, *held}
    assert served[6].row not in campaign.rounds.excluded_rows(), "what nobody used goes back to the pool"
    # Whoever still holds a record of the old reserve is not robbed of it, and the answer counts.
    assert says(queue, "bob", held, truth[1]) == ["new", "new"]
    assert set(held) <= set(campaign.answers.latest().rows.tolist())


def test_a_run_says_that_it_does_not_wait_for_the_rest(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(close_at=0.8))
    answered(campaign, truth, campaign.next_batch(), 8)
    ended, said = threading.Event(), []
    campaign.run(on_batch=lambda _: ended.set(), on_rest=said.append, ended=ended)
    assert said == ["round 2 is being made ready while people are served 2 records of round 1"]
    told = "before round 2, people are served 2 records of round 1"
    assert status(campaign).rest == told
    assert Standings(campaign).now().rest == told
    shown = CliRunner().invoke(main, ["status", str(campaign.directory)])
    assert told in shown.output


def test_a_criterion_ends_a_campaign_without_the_rest_of_its_last_batch(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(close_at=0.8), stop=["max_rounds=1"])
    answered(campaign, truth, campaign.next_batch(), 8)
    assert isinstance(campaign.next_batch(), Stopped)
    standing = Standings(campaign).now()
    assert (standing.phase, standing.rest) == ("stopped", "2 records of round 1 still lack answers")


def test_a_budget_has_room_for_the_rest_of_a_batch(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(close_at=0.8), stop=["max_labels=18"])
    answered(campaign, truth, campaign.next_batch(), 8)
    assert len(campaign.next_batch().rows) == 18 - 8 - 2


@pytest.mark.parametrize(
    ("close_at", "overlap"),
    [
        (0.8, 1),
        (0.9, 2),
        *(pytest.param(*rare, marks=pytest.mark.slow) for rare in [(0.5, 1), (0.9, 1), (0.5, 2), (0.8, 2)]),
    ],
)
def test_a_budget_is_used_up_and_not_exceeded(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, close_at: float, overlap: int
) -> None:
    labelling = Labelling(close_at=close_at, overlap=overlap, reserve=0.5)
    campaign = made(truth, tmp_path / "c", labelling=labelling, stop=["max_labels=30"])
    queue = Queue(campaign)
    while isinstance(batch := campaign.next_batch(), Batch):
        while View(campaign).waiting():
            for who in ("ann", "bob")[:overlap]:
                assert set(says(queue, who, [each.row for each in queue.lease(who, 1)], truth[1])) == {"new"}
    assert batch.verdicts[0].criterion == "max_labels"
    assert len(campaign.answers.labels().rows) == 30
    assert sum(campaign.rounds.batch_sizes().values()) == 30
    assert not queue.lease("ann", 9)


@pytest.mark.parametrize("skipped", [0, 2])
def test_a_batch_is_as_large_whenever_the_rest_before_it_is_skipped(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: int
) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(close_at=0.8), stop=["max_labels=18"])
    answered(campaign, truth, campaign.next_batch(), 8)
    queue, select = Queue(campaign), Coordinator._select

    def selected(coordinator: Coordinator, current: Round) -> None:
        rows = [each.row for each in queue.lease("ann", skipped)]
        queue.answer("ann", [Given(f"s{row}", row, "skipped") for row in rows])
        assert len(rows) == skipped
        select(coordinator, current)

    monkeypatch.setattr(Coordinator, "_select", selected)
    assert len(campaign.next_batch().rows) == 8


@pytest.mark.parametrize("strategy", ["margin", "default", "random"])
def test_a_reserve_changes_nothing_about_the_batch(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, strategy: str
) -> None:
    def batches(name: str, reserve: float) -> list[list[int]]:
        campaign = made(truth, tmp_path / name, strategy=strategy, labelling=Labelling(reserve=reserve), explore=0.2)
        given = []
        for _ in range(3):
            batch = campaign.next_batch()
            given.append(batch.rows.tolist())
            answered(campaign, truth, batch)
        return given

    assert batches("without", 0.0) == batches("with", 1.0)


def test_what_people_look_at_is_theirs_and_the_rest_of_a_reserve_is_the_next_batchs(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(truth, tmp_path / "c", strategy="margin", labelling=Labelling(reserve=10.0), explore=0.0)
    queue = Queue(campaign)
    for _ in range(8):  # until one model wants about what the last one wanted
        answered(campaign, truth, campaign.next_batch())
    spare = {each.row for each in queue.lease("ann", 200)}
    queue.release("ann", sorted(spare))
    assert len(spare) == 100
    mine = [each.row for each in queue.lease("ann", 30)]
    served: list[int] = []
    opened = Rounds.open

    def busy_team(self: Rounds, round: object, batch: list[Asked], again: list[tuple[int, int]]) -> None:
        # At the last moment before the batch opens somebody asks for records: none is served that the batch could hold.
        served.extend(each.row for each in queue.lease("eve", 200))
        opened(self, round, batch, again)

    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "open", busy_team)
        fresh = campaign.next_batch()
    assert served == []
    batch = set(fresh.rows.tolist())
    assert not batch & set(mine)
    assert batch & (spare - set(mine)), "the model wants some of them still"
    assert says(queue, "ann", mine, truth[1]) == ["new"] * 30


def test_the_last_batch_has_no_reserve_beyond_the_budget(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(reserve=1.0), stop=["max_labels=25"])
    queue = Queue(campaign)
    reserves = []
    for _ in range(3):
        batch = campaign.next_batch()
        answered(campaign, truth, batch)
        reserves.append(queue.progress("ann").reserve)
    assert reserves == [10, 5, 0]
    assert isinstance(campaign.next_batch(), Stopped)


def test_a_budget_holds_whatever_people_have_in_hand_when_the_last_batch_is_chosen(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(truth, tmp_path / "c", labelling=Labelling(reserve=1.0), stop=["max_labels=25"])
    queue = Queue(campaign)
    answered(campaign, truth, campaign.next_batch())
    # 10 are known. Ann has three of the reserve in hand, and answers one of them while the next batch is prepared; bob
    # has taken two and gives one back.
    hers, his = queue.lease("ann", 3), queue.lease("bob", 2)
    assert not {each.row for each in hers} & {each.row for each in his}
    queue.release("bob", [his[1].row])
    real = Rounds.save_scan

    def meanwhile(self: Rounds, *rest: object) -> None:
        real(self, *rest)
        assert says(queue, "ann", [hers[0].row], truth[1]) == ["new"]

    monkeypatch.setattr(Rounds, "save_scan", meanwhile)
    second = campaign.next_batch()
    monkeypatch.undo()
    assert len(second.rows) == 10
    assert queue.progress("eve").reserve == 25 - 11 - 3 - 10, "11 are known, 3 in hand, and 10 asked"
    answered(campaign, truth, second)
    third = campaign.next_batch()
    assert len(third.rows) == 25 - 21 - 3
    assert queue.progress("eve").reserve == 0
    answered(campaign, truth, third)
    assert says(queue, "ann", [each.row for each in hers[1:]], truth[1]) == ["new", "new"]
    assert says(queue, "bob", [his[0].row], truth[1]) == ["new"]
    assert isinstance(campaign.next_batch(), Stopped)
    assert len(campaign.answers.labels().rows) == 25


def test_the_time_of_each_step_is_kept(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c")
    for _ in range(2):
        answered(campaign, truth, campaign.next_batch())
    cold, learned = campaign.rounds.all()
    assert cold.fitted_at is None
    steps = [learned.frozen_at, learned.fitted_at, learned.scanned_at, learned.opened_at]
    assert steps == sorted(steps)
    assert len(set(steps)) == 4
    moments = [datetime.fromisoformat(each) for each in (cold.closed_at, *steps)]
    (pause,) = pauses(campaign.rounds.all())
    spent = (pause.idle, pause.train, pause.score, pause.select)
    assert spent == pytest.approx([(after - before).total_seconds() for before, after in pairwise(moments)])
    assert pause.round == 2


def test_waiting_ends_when_it_is_told_to_and_a_second_one_is_refused(
    truth: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "c")
    ended, open_now = threading.Event(), threading.Event()
    results: list[object] = []
    runner = threading.Thread(
        target=lambda: results.append(campaign.run(ended=ended, patience=60, on_batch=lambda _: open_now.set()))
    )
    runner.start()
    assert open_now.wait(60)
    with pytest.raises(CampaignLocked):
        Campaign.open(campaign.directory).run()
    ended.set()
    runner.join(60)
    assert results == [None]
    assert campaign.next_batch().fresh is False, "the batch is still open, and unchanged"


class Person(threading.Thread):
    """Somebody who answers what the queue gives, until there is nothing more to come."""

    def __init__(self, campaign: Campaign, name: str, codes: np.ndarray, over: threading.Event) -> None:
        super().__init__()
        self.queue, self.who, self.codes, self.over = Queue(campaign), name, codes, over
        self.rows: list[int] = []
        self.reserves = 0

    def run(self) -> None:
        while not self.over.is_set():
            served = self.queue.lease(self.who, 2)
            if not served:
                self.over.wait(0.02)
                continue
            assert says(self.queue, self.who, [served[0].row], self.codes) == ["new"]
            self.rows.append(served[0].row)
            self.reserves += served[0].reserve


@pytest.mark.slow
def test_a_team_works_through_a_campaign_that_runs_by_itself(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(
        truth, tmp_path / "c", batch_size=20, labelling=Labelling(close_at=0.8, reserve=1.0), stop=["max_rounds=4"]
    )
    over = threading.Event()
    team = [Person(campaign, name, truth[1], over) for name in ("ann", "bob", "cat")]
    for person in team:
        person.start()
    opened: list[int] = []
    try:
        stopped = campaign.run(on_batch=lambda batch: opened.append(batch.number), patience=0.02)
    finally:
        over.set()
        for person in team:
            person.join(60)
    assert [verdict.criterion for verdict in stopped.verdicts] == ["max_rounds"]
    assert opened == [1, 2, 3, 4]
    rows = [row for person in team for row in person.rows]
    assert len(set(rows)) == len(rows), "nobody is asked what somebody else has answered"
    batches = [asked.row for number in opened for asked in campaign.rounds.batch(number)]
    assert len(set(batches)) == len(batches) == 80
    assert sum(person.reserves for person in team) > 0, "people went on while a batch was prepared"
    assert set(campaign.answers.latest().rows.tolist()) == set(rows), "no answer is lost"
    for number in opened:
        answers = sum(asked.row in set(rows) for asked in campaign.rounds.batch(number))
        assert answers >= 16
        assert answers == 20 or number > 2, "the rest of a batch is served before the next one"


@pytest.mark.slow
def test_dal_run_goes_on_from_batch_to_batch_until_it_stops(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "c", batch_size=15, stop=["max_rounds=2"])
    running = subprocess.Popen(
        [sys.executable, "-m", "dal", "run", str(campaign.directory)], stdout=subprocess.PIPE, text=True
    )
    over = threading.Event()
    person = Person(campaign, "ann", truth[1], over)
    person.start()
    try:
        said, _ = running.communicate(timeout=90)
    finally:
        over.set()
        person.join(60)
        running.kill()
    assert running.returncode == 0
    assert "Round 1 is open: 15 records to label" in said
    assert "Round 2 is open: 15 records to label" in said
    assert "2 of 2 rounds are closed" in said
    assert len(person.rows) == 30
