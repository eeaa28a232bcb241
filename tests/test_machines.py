"""Machines as annotators: programs that answer, how far they are trusted, and nothing that takes them for people."""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import select

import dal
from dal.campaign import Annotators, Answer, CampaignStore, Given, Labelling, Queue, Settings, Storage
from dal.campaign.activity import Activity
from dal.campaign.control import Control
from dal.campaign.machines import Machines, MachineWork
from dal.campaign.schema import answers as log
from dal.campaign.view import View, status
from dal.cli import main
from dal.errors import CampaignError, CampaignLocked, InputError, LabelError, ProgramError
from dal.evidence.machines import CHECKS, MachineAnswers, drawn_to_check, judge, with_machines
from dal.evidence.ruler import wilson
from dal.evidence.votes import Labels
from dal.exchange import ask_machine, write_batch, write_labels
from dal.exchange.program import Program
from dal.loop.batch import reserve_of
from dal.web.overview import Overviews, exported
from dal.web.records import Records
from dal.web.state import Standings
from tests import databases
from tests.batches import batch_of
from tests.test_exchange import InMemory

CLASSES = ("cat", "dog")
CHOSEN = Settings("pool.zarr", CLASSES, estimator="logistic", strategy="margin", batch_size=4)
POOL = InMemory([f"r{at}" for at in range(400)], text=[f"text {at}" for at in range(400)])
ROOT = Path(dal.__file__).parents[1]


def started(directory: Path, n: int = 20, **labelling: float) -> CampaignStore:
    """Make a campaign with an open batch of n records, whose model says class 1 of all; the last two are explored."""
    asked = Labelling(**{"machine_check": 0.25} | labelling)
    chosen = replace(CHOSEN, labelling=asked, storage=Storage(database=databases.fresh()))
    campaign = CampaignStore.make(directory, chosen, pool_fingerprint="f", n_rows=POOL.n_rows)
    opened(campaign, range(100, 100 + n))
    return campaign


def opened(campaign: CampaignStore, rows: range, predicted: int | None = 1) -> None:
    n = len(rows)
    frozen = {"pool_fingerprint": "f", "n_rows": POOL.n_rows, "k": n, "explore": 0.1, "seed": 0, "strategy": "margin"}
    ids = [POOL.ids[row] for row in rows]
    explore = [at >= n - 2 for at in range(n)]
    batch = batch_of(list(rows), ids, predicted=[predicted] * n, explore=explore)
    campaign.rounds.open(campaign.rounds.freeze(**frozen), batch)


@pytest.fixture
def campaign(tmp_path: Path, backend: str) -> CampaignStore:
    return started(tmp_path / "c")


def answered(campaign: CampaignStore, code: int | None = 1, *, trusted: bool = True, name: str = "llm") -> None:
    """Have a machine give one answer to all records that wait for it, trusted with each class or with none."""
    machines = Machines(campaign)
    machines.enrol(name)
    machines.add(name, [(each, code) for each in machines.waiting(name)], trusted=(0, 1) if trusted else ())


def alone_rows(campaign: CampaignStore) -> set[int]:
    with campaign.database.reading() as connection:
        return set(connection.scalars(select(log.c.row).where(log.c.alone)))


# -- how good a machine is ---------------------------------------------------------------------------------------------


def test_accuracy_is_over_all_answers_though_people_check_the_worst_ones() -> None:
    """Simulate machines whose disputed answers are all checked, and a tenth of the others; intervals hold the truth."""
    rng, inside, estimates, truths = np.random.default_rng(3), 0, [], []
    for _ in range(200):
        n = 600
        truth = rng.integers(0, 3, n)
        backed = rng.random(n) < 0.7
        right = rng.random(n) < np.where(backed, 0.95, 0.4)
        codes = np.where(right, truth, (truth + 1) % 3)
        rows = 50 + np.arange(n)
        checked = ~backed | (rng.random(n) < 0.1)
        found = judge(
            MachineAnswers(rows, codes, backed, np.zeros(n, bool)), Labels(rows[checked], truth[checked]), n_classes=3
        )
        assert found.accuracy.value is not None
        expected = 0.7 * 0.95 + 0.3 * 0.4
        inside += found.accuracy.low <= expected <= found.accuracy.high
        estimates.append(found.accuracy.value)
        truths.append(right[checked].mean())
    assert abs(np.mean(estimates) - expected) < 0.01
    assert np.mean(truths) < expected - 0.15, "a plain count would be biased"
    assert inside >= 184  # of 200 at 95 %, less three deviations


def test_a_judgement_is_that_of_plain_counts_where_everything_is_checked() -> None:
    rng = np.random.default_rng(1)
    rows, truth, codes = np.arange(300, 400), rng.integers(0, 2, 100), rng.integers(-1, 2, 100)
    backed = rng.random(100) < 0.5
    order = rng.permutation(100)
    given = MachineAnswers(rows[order], codes[order], backed[order], np.zeros(100, bool))
    found = judge(given, Labels(rows, truth), 2)
    labelled = codes >= 0
    assert found.checked == labelled.sum()
    assert found.accuracy.value == pytest.approx((truth == codes)[labelled].mean())
    for true in range(2):
        for said in range(2):
            plain = (2 if true == said else 1) + ((truth == true) & (codes == said)).sum()
            assert found.confusion[true, said] * (3 + ((truth == true) & labelled).sum()) == pytest.approx(plain)
            among = backed & labelled & (codes == said)
            means = (2 if true == said else 1) + (among & (truth == true)).sum()
            assert found.meaning[said, true] * (3 + among.sum()) == pytest.approx(means)


def test_the_newest_checks_decide_whether_a_machine_is_trusted() -> None:
    n = CHECKS + 500
    rows, truth, codes = np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64)
    truth[-50:] = 1
    found = judge(MachineAnswers(rows, codes, np.ones(n, bool), np.zeros(n, bool)), Labels(rows, truth), 2)
    assert (found.backed.low, found.backed.high) == wilson(CHECKS - 50, CHECKS)


def test_a_part_that_nobody_checked_leaves_the_accuracy_unknown() -> None:
    given = MachineAnswers(np.arange(4), np.zeros(4, np.int64), np.array([True, True, False, False]), np.zeros(4, bool))
    found = judge(given, Labels(np.array([2, 3]), np.array([0, 0])), 2)
    assert (found.accuracy.value, found.backed.value) == (None, None)
    assert judge(given, Labels(np.array([1, 2]), np.array([0, 1])), 2).accuracy.value == 0.5


@pytest.mark.parametrize("proba", [False, True])
def test_people_come_first_and_checks_say_what_an_answer_means(proba: bool) -> None:
    """Where people found a machine's dogs to be cats, its other dogs become cats as well."""
    rows = np.arange(10, 40)
    codes = np.where(rows < 30, 1, 0)
    truth = np.zeros(30, np.int64)
    checked = rows[::2]
    people = Labels(checked, truth[::2], np.tile([0.9, 0.1], (15, 1)) if proba else None)
    alone = MachineAnswers(rows, codes, np.ones(30, bool), np.ones(30, bool))
    found = with_machines(people, [(alone, judge(alone, people, 2))])
    assert found.rows.tolist() == rows.tolist()
    assert found.codes.tolist() == [0] * 30
    if proba:
        assert found.proba is not None
        assert found.proba.sum(axis=1) == pytest.approx(1)
        assert found.proba[1] == pytest.approx([11 / 13, 2 / 13])
    else:
        assert found.proba is None
    nothing = replace(alone, alone=np.zeros(30, bool))
    assert with_machines(people, [(nothing, judge(nothing, people, 2))]).rows.tolist() == checked.tolist()


@pytest.mark.parametrize(("n_checks", "wrong", "expected"), [(1, 1, 1), (9, 9, 1), (11, 6, 1), (12, 10, 0), (0, 0, 1)])
def test_an_answer_keeps_its_class_unless_most_of_ten_checks_say_another(
    n_checks: int, wrong: int, expected: int
) -> None:
    rows = np.arange(50, 90)
    codes = np.ones(40, np.int64)
    given = MachineAnswers(rows, codes, np.ones(40, bool), np.ones(40, bool))
    truth = np.where(np.arange(n_checks) < wrong, 0, 1)
    people = Labels(rows[:n_checks], truth, np.eye(2)[truth])
    found = with_machines(people, [(given, judge(given, people, 2))])
    assert found.codes[n_checks:].tolist() == [expected] * (40 - n_checks)
    assert found.codes[:n_checks].tolist() == truth.tolist()
    assert found.proba is not None
    assert (found.proba[np.arange(40), found.codes] >= found.proba.max(axis=1)).all()


def test_a_class_between_two_others_without_a_majority_keeps_the_answer() -> None:
    rows, codes = np.arange(7, 30), np.full(23, 2)
    given = MachineAnswers(rows, codes, np.ones(23, bool), np.ones(23, bool))
    people = Labels(rows[:12], np.array([0] * 6 + [1] * 5 + [2]))
    assert with_machines(people, [(given, judge(given, people, 3))]).codes[12:].tolist() == [2] * 11
    people = Labels(rows[:12], np.array([0] * 7 + [1] * 4 + [2]))
    assert with_machines(people, [(given, judge(given, people, 3))]).codes[12:].tolist() == [0] * 11


def test_a_rare_class_is_trusted_by_its_own_checks() -> None:
    """Of 95 to 5, a machine that always says the common class is right in 95 %, and its rare answers are unknown."""
    rng = np.random.default_rng(0)
    rows, truth = np.arange(30, 430), (rng.random(400) < 0.05).astype(np.int64)
    nothing = np.zeros(400, bool)

    def judged(codes: np.ndarray) -> frozenset[int]:
        return judge(MachineAnswers(rows, codes, ~nothing, nothing), Labels(rows, truth), 2).trusted

    assert judged(np.zeros(400, np.int64)) == {0}
    assert judged(truth) == {0, 1}
    few = truth.copy()
    few[np.flatnonzero(truth)[9:]] = 0
    assert judged(few) == {0}, "nine checks are too few"
    eager = truth.copy()
    eager[np.flatnonzero(truth == 0)[::20]] = 1
    assert judged(eager) == {0}, "half of its rare answers are wrong"


def test_the_records_to_check_are_drawn_whatever_the_answer_and_more_of_them_hold_the_fewer() -> None:
    rows = np.arange(10**9, 10**9 + 20_000)
    few, more = (drawn_to_check(rows, share, seed=5) for share in (0.1, 0.3))
    assert abs(few.mean() - 0.1) < 0.01
    assert (few <= more).all()
    assert (drawn_to_check(rows[7:], 0.1, 5) == few[7:]).all()
    assert drawn_to_check(rows, 1.0, 5).all()


# -- what a machine's answers do ---------------------------------------------------------------------------------------


def test_what_counts_alone(campaign: CampaignStore) -> None:
    campaign.answers.add([Answer(100, "r0", "ann", "skipped"), Answer(101, "r1", "ann", "submitted", 1)], source="x")
    answered(campaign)
    drawn = {row for row in range(100, 118) if drawn_to_check([row], 0.25, 0)[0]}
    assert 0 < len(drawn) < 18
    assert alone_rows(campaign) == set(range(102, 118)) - drawn, "but for people's, the explored, and the checked"
    waiting = campaign.rounds.waiting_rows(1).tolist()
    assert waiting == sorted((drawn | {118, 119}) - {100, 101})
    served = {each.row for each in Queue(campaign).lease("bob", 50)}
    assert served == set(waiting)
    assert Queue(campaign).progress("bob").answered == 20 - len(waiting)
    known = campaign.answers.labels()
    assert known.rows.tolist() == sorted({101} | alone_rows(campaign))


@pytest.mark.parametrize(("code", "trusted", "overlap"), [(0, True, 1), (None, True, 1), (1, False, 1), (1, False, 2)])
def test_what_does_not_count_alone_takes_nobodys_place(
    tmp_path: Path, backend: str, code: int | None, trusted: bool, overlap: int
) -> None:
    campaign = started(tmp_path / "c", overlap=overlap)
    answered(campaign, code, trusted=trusted)
    assert alone_rows(campaign) == set()
    assert campaign.rounds.pending(1) == 20
    assert len(Queue(campaign).lease("ann", 50)) == 20
    assert len(campaign.answers.labels().rows) == 0
    assert Machines(campaign).waiting("llm") == [], "it is not asked again"


def test_a_trusted_answer_is_enough_for_any_overlap_unless_somebody_said_otherwise(
    tmp_path: Path, backend: str
) -> None:
    campaign = started(tmp_path / "c", overlap=3)
    given = [Answer(row, f"r{row - 100}", "ann", "submitted", int(row % 2)) for row in range(100, 110)]
    campaign.answers.add(given, source="x")
    answered(campaign)
    drawn = drawn_to_check(np.arange(100, 118), 0.25, 0)
    expected = {row for row in range(100, 118) if not drawn[row - 100] and not (row < 110 and row % 2 == 0)}
    assert alone_rows(campaign) == expected
    assert set(campaign.rounds.waiting_rows(1).tolist()) == set(range(100, 120)) - expected


def test_only_answers_of_trusted_classes_count_alone(tmp_path: Path, backend: str) -> None:
    campaign = started(tmp_path / "c")
    machines = Machines(campaign)
    machines.enrol("llm")
    machines.add("llm", [(each, 1) for each in machines.waiting("llm")], trusted={0})
    assert alone_rows(campaign) == set()


def test_what_people_hold_or_skip_is_theirs(tmp_path: Path, backend: str) -> None:
    campaign = started(tmp_path / "c", overlap=3)
    machines = Machines(campaign)
    machines.enrol("llm")
    waiting = machines.waiting("llm")
    assert len(waiting) == 20
    held = {each.row for each in Queue(campaign).lease("bob", 5)}
    assert len(held) == 5
    assert {each.row for each in machines.waiting("llm")} == {each.row for each in waiting} - held
    skipped = {row for row in range(100, 112) if row not in held}
    campaign.answers.add([Answer(row, f"r{row - 100}", "ann", "skipped") for row in skipped], source="x")
    machines.add("llm", [(each, 1) for each in waiting], trusted={1})
    drawn = drawn_to_check(np.arange(100, 118), 0.25, 0)
    assert alone_rows(campaign) == {row for row in range(112, 118) if not drawn[row - 100]} - held


@pytest.mark.parametrize("change", ["closed", "answered"])
def test_what_changed_while_the_program_ran_needs_no_machine(tmp_path: Path, backend: str, change: str) -> None:
    campaign = started(tmp_path / "c")
    machines = Machines(campaign)
    machines.enrol("llm")
    waiting = machines.waiting("llm")
    if change == "closed":
        campaign.rounds.close(campaign.rounds.get(1))
    else:
        campaign.answers.add([Answer(each.row, each.record_id, "ann", "submitted", 1) for each in waiting], source="x")
    machines.add("llm", [(each, 1) for each in waiting], trusted={1})
    assert alone_rows(campaign) == set()


def test_a_round_freezes_all_labels_and_no_reserve_goes_beyond_the_budget(tmp_path: Path, backend: str) -> None:
    asked = Labelling(machine_check=0.25, reserve=2.0)
    storage = Storage(database=databases.fresh())
    chosen = replace(CHOSEN, labelling=asked, storage=storage, stop=("max_labels=30",))
    campaign = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint="f", n_rows=POOL.n_rows)
    opened(campaign, range(100, 120))
    campaign.answers.add([Answer(row, f"r{row - 100}", "ann", "submitted", 1) for row in (100, 119)], source="x")
    answered(campaign)
    answered(campaign, 0, name="other")
    campaign.rounds.close(campaign.rounds.get(1))
    opened(campaign, range(200, 204))
    frozen = campaign.rounds.get(2)
    settled = alone_rows(campaign)
    assert len(settled) > 2
    assert campaign.answers.labels(frozen.last_answer).rows.tolist() == sorted(settled | {100, 119})
    assert frozen.labels == len(settled) + 2
    assert reserve_of(View(campaign), frozen) == min(8, 30 - frozen.labels - 4)


def test_without_a_model_and_where_machines_differ_people_answer(tmp_path: Path, backend: str) -> None:
    campaign = started(tmp_path / "c")
    answered(campaign, 0, name="other")
    answered(campaign, 1)
    assert alone_rows(campaign) == set()
    campaign.rounds.close(campaign.rounds.get(1))
    opened(campaign, range(200, 220), predicted=None)
    answered(campaign)
    assert alone_rows(campaign) == set()


def test_a_machine_is_no_person_anywhere(campaign: CampaignStore, tmp_path: Path) -> None:
    answered(campaign)
    known = status(campaign)
    assert known.people == ()
    assert known.agreement.records == 0
    assert Activity(campaign).arrivals() == []
    assert not any(View(campaign).explored()), "explored records are judged by people's answers only"
    people = [Answer(row, f"r{row - 100}", "ann", "submitted", 0) for row in (118, 119)]
    campaign.answers.add(people, source="x")
    assert View(campaign).explored() == [2, 0]
    campaign.rounds.close(campaign.rounds.get(1))
    record = View(campaign).history()[-1]
    assert (record.explore_correct, record.explore_asked) == (0, 2), "the machine and the model were both wrong"
    assert [each.name for each in status(campaign).people] == ["ann"]
    assert campaign.answers.latest().annotators == ["ann", "ann"]


def test_a_batch_goes_to_people_without_what_the_machine_said_of_their_records(
    campaign: CampaignStore, tmp_path: Path
) -> None:
    answered(campaign)
    write_batch(campaign, POOL, 1, tmp_path / "batch.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "batch.jsonl").read_text().splitlines()]
    told = {line["record_id"] for line in lines if line["label"]}
    assert told == {f"r{row - 100}" for row in alone_rows(campaign)}
    write_labels(campaign, POOL, tmp_path / "labels.jsonl")
    for line in map(json.loads, (tmp_path / "labels.jsonl").read_text().splitlines()):
        [given] = line["answers"]
        assert (given["machine"], given["alone"]) == (True, line["label"] is not None)
        assert (line["label"] is not None) == (line["row"] in alone_rows(campaign))


def test_label_studio_gets_no_record_that_is_settled(tmp_path: Path, backend: str) -> None:
    """With an overlap of 2 a machine and a person, or a machine alone, may have answered enough, or may not."""
    campaign = started(tmp_path / "c", overlap=2)
    people = [Answer(row, f"r{row - 100}", "ann", "submitted", int(row % 2)) for row in range(100, 106)]
    campaign.answers.add([*people, Answer(101, "r1", "bo", "submitted", 1)], source="x")
    answered(campaign)
    waiting = campaign.rounds.waiting_rows(1).tolist()
    assert 0 < len(waiting) < 19
    assert write_batch(campaign, POOL, 1, tmp_path / "tasks.json") == len(waiting)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert sorted(task["data"]["record_id"] for task in tasks) == sorted(f"r{row - 100}" for row in waiting)


def test_exports_count_people_and_mark_machines(campaign: CampaignStore, tmp_path: Path) -> None:
    answered(campaign)
    campaign.answers.add([Answer(118, "r18", "ann", "submitted", 1), Answer(119, "r19", "ann", "skipped")], source="x")
    write_labels(campaign, POOL, tmp_path / "labels.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    by_row = {line["row"]: (line["votes"], line["annotators"]) for line in lines}
    assert by_row == {row: (1, ["ann"]) if row == 118 else (0, []) for row in range(100, 120)}
    downloaded = [json.loads(line) for line in b"".join(exported(campaign, "jsonl")).splitlines()]
    assert sorted((each["annotator"], each["machine"]) for each in downloaded) == [
        *[("ann", False)] * 2,
        *[("llm", True)] * 20,
    ]


def test_the_largest_confusions_are_told(campaign: CampaignStore) -> None:
    rows = np.arange(40, 100)
    truth = np.repeat([0, 1, 2], [30, 21, 9])
    codes = truth.copy()
    codes[:12], codes[30:36], codes[51:] = 1, 2, 0
    nothing = np.zeros(60, bool)
    judged = judge(MachineAnswers(rows, codes, ~nothing, nothing), Labels(rows, truth), 3)
    assert judged.by_class.tolist() == [30, 21, 9]
    found = [(true, said, round(share, 6)) for true, said, share in judged.confusions()]
    assert found == [(0, 1, round(12.5 / 33, 6)), (1, 2, round(6.5 / 24, 6))], "and nine records say too little"
    answered(campaign)
    people = [Answer(row, f"r{row - 100}", "ann", "submitted", row % 2) for row in range(100, 120)]
    campaign.answers.add(people, source="x")
    [work] = status(campaign).machines
    assert "it answers dog for 85% of the records that people call cat" in work.text


def test_records_that_a_file_of_a_machine_labels_unasked_can_still_be_asked(campaign: CampaignStore) -> None:
    Machines(campaign).enrol("llm")
    campaign.answers.add([Answer(300, "r200", "LLM", "submitted", 1)], source="x")
    assert 300 not in campaign.rounds.excluded_rows()
    assert len(campaign.answers.labels().rows) == 0
    assert campaign.rounds.pending(1) == 20


def test_a_round_counts_as_answered_where_machines_settled_it(tmp_path: Path, backend: str) -> None:
    campaign = started(tmp_path / "c", close_at=0.5)
    answered(campaign)
    assert campaign.rounds.pending(1) <= 10
    campaign.rounds.close(campaign.rounds.get(1))
    waiting = campaign.rounds.rest_rows()[1].tolist()
    assert waiting == sorted(set(range(100, 120)) - alone_rows(campaign))


def test_a_name_is_a_persons_or_a_machines(campaign: CampaignStore) -> None:
    campaign.answers.add([Answer(100, "r0", "Ann", "submitted", 1)], source="x")
    Annotators(campaign).add("Bob")
    machines = Machines(campaign)
    for taken in ("ann", "BOB"):
        with pytest.raises(InputError, match="which is a person's"):
            machines.enrol(taken)
    assert machines.enrol("Llm", cost=0.5).cost == 0.5
    assert machines.enrol(" LLM ", cap=7) == replace(machines.enrol("llm"), cap=7, cost=0.5)
    with pytest.raises(InputError, match="machine's"):
        Annotators(campaign).add("llm")
    with pytest.raises(LabelError, match="machine's"):
        Queue(campaign).lease("llm", 1)
    [refused] = Queue(campaign).answer("llm", [Given("e", 100, "submitted", 1)])
    assert refused.result == "refused"
    assert "machine's" in refused.reason


@pytest.mark.parametrize(
    "wrong", [{"cost": -1.0}, {"cost": float("nan")}, {"cost": float("inf")}, {"cap": -1}, {"cap": 2**63}]
)
def test_prices_and_caps_that_are_none(campaign: CampaignStore, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
        Machines(campaign).enrol("llm", **wrong)  # type: ignore[arg-type]
    assert Machines(campaign).work() == []


# -- programs ----------------------------------------------------------------------------------------------------------


def program(tmp_path: Path, text: str) -> list[str]:
    """Write a program that may use `records`, `say` and the rest below."""
    head = """
import json, os, sys, time
def say(record_id, label="dog", **more):
    print(json.dumps({"record_id": record_id, "label": label, **more}), flush=True)
def read():
    return [json.loads(line) for line in sys.stdin]
"""
    path = tmp_path / "program.py"
    path.write_text(head + text)
    return [sys.executable, str(path)]


ALL = "for record in read(): say(record['record_id'])"


def ids_of(campaign: CampaignStore, name: str = "llm") -> list[str]:
    with campaign.database.reading() as connection:
        return list(connection.scalars(select(log.c.record_id).where(log.c.annotator == name).order_by(log.c.id)))


@pytest.mark.parametrize(
    "text",
    [
        ALL,
        "for record in reversed(read()): say(record['record_id'])",
        "for line in iter(sys.stdin.readline, ''): say(json.loads(line)['record_id'], confidence=.5)",
        "sys.stdout.write('\\n'.join(json.dumps({'record_id': r['record_id'], 'label': 'dog'}) for r in read()))",
        "print('\\n \\n', flush=True)\nfor r in read(): print(); say(r['record_id'])",
        "sys.stderr.write('x' * 300_000 + '\\n')\n" + ALL,
    ],
    ids=["all", "reversed", "each", "no newline at the end", "blank lines", "loud"],
)
def test_a_program_answers_in_any_order_and_nobody_is_asked_twice(
    campaign: CampaignStore, tmp_path: Path, text: str
) -> None:
    seen: list[tuple[int, int]] = []
    command = program(tmp_path, text)
    found = ask_machine(campaign, POOL, "llm", command, at_once=7, progress=lambda *now: seen.append(now))
    assert (found.answers, found.skipped, found.alone, found.unasked) == (20, 0, 0, 0)
    assert sorted(ids_of(campaign)) == sorted(f"r{at}" for at in range(20))
    assert seen[-1] == (20, 20)
    assert ask_machine(campaign, POOL, "llm", command).answers == 0


def test_a_program_gets_what_people_see(campaign: CampaignStore, tmp_path: Path) -> None:
    text = f"records = read()\nopen({str(tmp_path / 'got')!r}, 'w').write(json.dumps(records))\n"
    ask_machine(
        campaign, POOL, "llm", program(tmp_path, text + "for record in records: say(record['record_id'], None)")
    )
    got = json.loads((tmp_path / "got").read_text())
    assert got[3] == {"record_id": "r3", "classes": ["cat", "dog"], "text": "text 3"}
    assert len(got) == 20
    assert status(campaign).machines[0].skipped == 20


ADVERSARIES = {
    "unknown id": ("for r in read()[:3]: say(r['record_id'])\nsay('r399')", "was not asked", 3),
    "no class": ("for r in read()[:3]: say(r['record_id'])\nsay('r5', 'wolf')", "wolf", 3),
    "no text": ("read()\nsay('r5', ['dog'])", "label", 0),
    "twice": ("for r in read()[:3]: say(r['record_id'])\nsay('r1')", "again", 3),
    "a million lines": ("rs = read()\nfor _ in range(1000000): say(rs[0]['record_id'])", "again", 1),
    "a line without end": ("say('r0')\nwhile True: sys.stdout.write('x' * 100000)", "longer one", 1),
    "no JSON": ("say('r0')\nprint('Sure! Here is', flush=True)", "is not JSON", 1),
    "no object": ("print('[1]', flush=True)", "is no JSON object", 0),
    "nested": ("print('[' * 30000, flush=True)", "JSON", 0),
    "no UTF-8": ("say('r0')\nsys.stdout.buffer.write(b'\\xff\\xfe\\n')", "is not UTF-8", 1),
    "dies": ("say('r0')\nsys.exit(3)", "status 3", 1),
    "killed": ("say('r0')\nos.kill(os.getpid(), 9)", "signal 9", 1),
    "raises": ("say('r0')\nraise SystemError('out of tokens')", "out of tokens", 1),
    "stops early": ("for r in read()[:19]: say(r['record_id'])", "left out 1 of 20", 19),
    "never reads": ("say('r0')\nsys.stdin.close()", "left out 19 of 20", 1),
    "says nothing": ("read()", "left out 20 of 20", 0),
    "is late": ("time.sleep(600)", "must end within", 0),
}


@pytest.mark.parametrize("who", ADVERSARIES)
def test_a_program_that_fails_is_refused_and_what_came_before_is_kept(tmp_path: Path, who: str) -> None:
    campaign = started(tmp_path / "c")
    text, fragment, kept = ADVERSARIES[who]
    seconds = 0.5 if who == "is late" else 60.0
    with pytest.raises(ProgramError, match=fragment):
        ask_machine(campaign, POOL, "llm", program(tmp_path, text), seconds=seconds)
    assert len(ids_of(campaign)) == kept
    assert ask_machine(campaign, POOL, "llm", program(tmp_path, ALL)).answers == 20 - kept
    assert sorted(ids_of(campaign)) == sorted(f"r{at}" for at in range(20))


def test_an_input_larger_than_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """Writing to a program that answers first, or never listens, must not wait for it."""
    pool = InMemory(POOL.ids[100:], text=["x" * 50_000] * 400)
    campaign = started(tmp_path / "c")
    deaf = program(tmp_path, "sys.stdin.close()\nfor at in range(20): say(f'r{at}')")
    assert ask_machine(campaign, pool, "llm", deaf).answers == 20


@pytest.mark.slow
def test_processes_that_a_program_leaves_behind_end_with_it(tmp_path: Path) -> None:
    """A process of its own that holds its output open neither holds up the answers nor outlives a kill."""
    campaign = started(tmp_path / "c")
    note = tmp_path / "pid"
    start = (
        "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
    )
    with pytest.raises(ProgramError, match="must end within"):
        ask_machine(campaign, POOL, "llm", program(tmp_path, start + "time.sleep(600)"), seconds=8.0)
    awaited(lambda: _is_gone(int(note.read_text())))
    assert ask_machine(campaign, POOL, "llm", program(tmp_path, start + ALL)).answers == 20
    os.kill(int(note.read_text()), signal.SIGKILL)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def awaited(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 50
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"command": []}, "command"),
        ({"command": ["no-such-program-here"]}, "command"),
        ({"at_once": 0}, "at_once"),
        ({"at_once": 10**6}, "at_once"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"name": " "}, "name"),
    ],
)
def test_bad_input_is_refused_before_the_program_runs(tmp_path: Path, wrong: dict[str, object], error: str) -> None:
    campaign = started(tmp_path / "c")
    ran = program(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{ALL}")
    how: dict[str, object] = {"name": "llm", "command": ran} | wrong
    with pytest.raises(InputError, match=f"`{error}`"):
        ask_machine(campaign, POOL, **how)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


def test_a_cap_and_a_price(campaign: CampaignStore, tmp_path: Path) -> None:
    command = program(tmp_path, ALL)
    found = ask_machine(campaign, POOL, "llm", command, cost=0.002, cap=5, at_once=2)
    assert (found.answers, found.unasked) == (5, 15)
    assert ids_of(campaign) == [f"r{at}" for at in range(5)]
    assert ask_machine(campaign, POOL, "llm", command).answers == 0, "the cap is kept"
    [work] = status(campaign).machines
    assert isinstance(work, MachineWork)
    assert (work.answers, work.cost, work.left) == (5, pytest.approx(0.01), 0)
    assert ask_machine(campaign, POOL, "llm", command, cap=6).answers == 1


def test_what_is_imported_under_its_name_costs_a_machine_nothing(campaign: CampaignStore, tmp_path: Path) -> None:
    command = program(tmp_path, ALL)
    ask_machine(campaign, POOL, "llm", command, cost=0.5, cap=8)
    campaign.answers.add([Answer(row, f"r{row - 100}", "llm", "skipped") for row in range(100, 108)], source="file:x")
    [work] = status(campaign).machines
    assert (work.cost, work.left, work.answers, work.skipped) == (4.0, 0, 8, 8)
    assert ask_machine(campaign, POOL, "llm", command, cap=10).answers == 2


def test_without_an_open_batch_there_is_nothing_to_ask(campaign: CampaignStore, tmp_path: Path) -> None:
    campaign.rounds.close(campaign.rounds.get(1))
    with pytest.raises(CampaignError, match="no batch is open; run dal next first"):
        ask_machine(campaign, POOL, "llm", program(tmp_path, ALL))


def during(campaign: CampaignStore, tmp_path: Path, change: Callable[[], object]) -> list[tuple[int, int]]:
    """Run a program five records at a time, and change something after the first ones."""
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        if done == 5 and not seen:
            change()
        if done % 5 == 0:
            seen.append((done, total))

    text = "for line in [json.dumps({'record_id': r['record_id'], 'label': 'dog'}) for r in read()]: print(line)"
    ask_machine(campaign, POOL, "llm", program(tmp_path, text), at_once=5, progress=progress)
    return seen


def test_a_long_run_heeds_a_pause(campaign: CampaignStore, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="boss has paused"):
        during(campaign, tmp_path, lambda: Control(campaign).tell("pause", "boss"))
    assert len(ids_of(campaign)) == 5


def test_a_long_run_heeds_the_end_of_its_round(campaign: CampaignStore, tmp_path: Path) -> None:
    def closed() -> None:
        campaign.rounds.close(campaign.rounds.get(1))
        opened(campaign, range(200, 220))

    assert during(campaign, tmp_path, closed) == [(5, 20)]


def test_a_long_run_heeds_what_people_answer_and_a_new_cap(campaign: CampaignStore, tmp_path: Path) -> None:
    def changed() -> None:
        given = [Answer(row, f"r{row - 100}", "ann", "submitted", 1) for row in range(105, 109)]
        campaign.answers.add(given, source="x")
        Machines(campaign).enrol("llm", cap=10)

    assert during(campaign, tmp_path, changed) == [(5, 20), (10, 10)]
    assert ids_of(campaign) == [f"r{at}" for at in (*range(5), *range(9, 14))]


def test_a_long_run_trusts_as_of_now(campaign: CampaignStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted: list[frozenset[int]] = [frozenset(), frozenset(), frozenset({1}), frozenset({1})]
    monkeypatch.setattr(Machines, "trusted_answers", lambda *_: trusted.pop(0))
    during(campaign, tmp_path, lambda: None)
    drawn = drawn_to_check(np.arange(110, 118), 0.25, 0)
    assert alone_rows(campaign) == {row for row in range(110, 118) if not drawn[row - 110]}


def test_time_that_the_listener_takes_is_not_the_programs() -> None:
    """The clock of the listener goes on by an hour with each line."""
    text = "import time\nfor at in range(3): print(at, flush=True); time.sleep(.2)"
    replies = Program([sys.executable, "-c", text], 60.0).replies(b"")
    clock, late = time.monotonic, 0.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dal.exchange.program.time.monotonic", lambda: clock() + late)
        lines = []
        for each in replies:
            lines += each
            late += 3600
    assert lines == [b"0", b"1", b"2"]


def test_a_program_that_ended_in_time_is_heard_though_the_look_is_late() -> None:
    """The clock goes on by an hour between the program's end and the look at the deadline."""
    clock, late = time.monotonic, 0.0

    class Sleepy(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            nonlocal late
            found = super().select(timeout)
            late = 3600 if any(isinstance(key.fileobj, int) for key, _ in found) else 0
            return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dal.exchange.program.selectors.DefaultSelector", Sleepy)
        patched.setattr("dal.exchange.program.time.monotonic", lambda: clock() + late)
        lines = list(Program([sys.executable, "-c", "print(7)"], 60.0).replies(b""))
    assert [line for block in lines for line in block if line] == [b"7"]


def test_where_the_end_of_a_program_cannot_be_awaited_it_is_not_run(
    campaign: CampaignStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(InputError, match="use Linux"):
        ask_machine(campaign, POOL, "llm", program(tmp_path, ALL))
    assert ids_of(campaign) == []


def test_a_paused_campaign_asks_no_machine(campaign: CampaignStore, tmp_path: Path) -> None:
    Control(campaign).tell("pause", "boss")
    with pytest.raises(CampaignError, match="boss has paused"):
        ask_machine(campaign, POOL, "llm", program(tmp_path, ALL))


def test_two_processes_do_not_pay_for_the_same_answers(tmp_path: Path) -> None:
    campaign = started(tmp_path / "c")
    gate = tmp_path / "gate"
    slow = program(tmp_path, f"while not os.path.exists({str(gate)!r}): time.sleep(.01)\n{ALL}")
    inside = threading.Thread(target=ask_machine, args=(campaign, POOL, "llm", slow))
    inside.start()
    try:
        folder = campaign.directory / "machines"
        awaited(lambda: any(folder.glob("*/lock")))
        with pytest.raises(CampaignLocked, match="wait for it"):
            ask_machine(CampaignStore.open(campaign.directory), POOL, "LLM", slow)
        (tmp_path / "other").mkdir()
        assert ask_machine(campaign, POOL, "rule", program(tmp_path / "other", ALL)).answers == 20
    finally:
        gate.touch()
        inside.join()
    assert len(ids_of(campaign)) == 20


# -- whole campaigns ---------------------------------------------------------------------------------------------------


def truth_of(n: int) -> np.ndarray:
    return np.arange(n) % 2


def real(directory: Path, n: int = 3000, **labelling: object) -> dal.Campaign:
    """Make a campaign on a real pool, whose classes overlap."""
    y = truth_of(n)
    X = np.random.default_rng(0).normal(y[:, None] * 1.5, 1.0, (n, 2)).astype(np.float32)
    ids = [f"r{row}" for row in range(n)]
    pool = dal.Pool.build(X, directory / "pool.zarr", ids=ids, display={"number": list(range(n))})
    return dal.Campaign.create(
        directory / "campaign",
        pool,
        list(CLASSES),
        batch_size=100,
        labelling=Labelling(**labelling),  # type: ignore[arg-type]
    )


def played(campaign: dal.Campaign, machine: Callable[[int, int | None], int | None], rounds: int) -> list[int]:
    """Have a machine answer first, then people all that waits for them; return the people's answers by round."""
    machines, by_people = Machines(campaign), []
    machines.enrol("llm")
    for _ in range(rounds):
        batch = campaign.next_batch()
        assert isinstance(batch, dal.loop.campaign.Batch)
        given = [(each, machine(each.row, each.predicted)) for each in machines.waiting("llm")]
        machines.add("llm", given, trusted=machines.trusted_answers("llm"))
        rows = campaign.rounds.waiting_rows(batch.number)
        campaign.label([f"r{row}" for row in rows.tolist()], truth_of(3000)[rows], annotator="ann")
        by_people.append(len(rows))
    return by_people


@pytest.mark.parametrize(
    "lie", [lambda row, _: 1 - row % 2, lambda _, predicted: predicted, lambda _, __: 0], ids=["wrong", "parrot", "one"]
)
def test_a_machine_that_is_wrong_always_or_says_what_the_model_says_hurts_no_label(
    tmp_path: Path, lie: Callable[[int, int | None], int | None]
) -> None:
    campaign = real(tmp_path)
    assert played(campaign, lie, rounds=4) == [100, 100, 100, 100]
    known = campaign.answers.labels()
    assert len(known.rows) == 400
    assert (known.codes == truth_of(3000)[known.rows]).all()
    [work] = campaign.status().machines
    assert (work.alone, work.trusted) == (0, ())
    assert "people answer every record" in work.text


@pytest.mark.parametrize("vote", ["majority", "dawid_skene"])
def test_a_good_machine_saves_answers_and_the_ruler_stays_with_people(tmp_path: Path, vote: str) -> None:
    campaign = real(tmp_path, vote=vote)
    by_people = played(campaign, lambda row, _: row % 2, rounds=5)
    assert by_people[:2] == [100, 100], "nothing is known of it yet"
    assert max(by_people[3:]) < 75
    campaign.next_batch()
    known = campaign.answers.labels()
    assert len(known.rows) == 500
    assert (known.codes == truth_of(3000)[known.rows]).all()
    explored = campaign.rounds.explored_rows()
    people = {row for row, name in zip(*_latest(campaign), strict=True) if name == "ann"}
    assert set(explored.tolist()) & set(known.rows.tolist()) <= people
    [work] = campaign.status().machines
    assert work.trusted == CLASSES
    assert work.accuracy.value == 1.0
    assert work.alone == 500 - sum(by_people)


def _latest(campaign: CampaignStore) -> tuple[list[int], list[str]]:
    latest = campaign.answers.latest()
    return latest.rows.tolist(), latest.annotators


def test_a_machine_that_becomes_bad_is_trusted_no_longer(tmp_path: Path) -> None:
    campaign = real(tmp_path, machine_check=0.5)
    played(campaign, lambda row, _: row % 2, rounds=3)
    assert Machines(campaign).trusted_answers("llm") == {0, 1}
    played(campaign, lambda _, predicted: predicted, rounds=3)
    assert not Machines(campaign).trusted_answers("llm")
    assert played(campaign, lambda _, predicted: predicted, rounds=1) == [100]


def test_rare_answers_do_not_ride_on_common_ones(tmp_path: Path, backend: str) -> None:
    """Of 95 to 5, a machine repeats a model that knows the common class, and is right in half of its rare answers."""
    chosen = replace(CHOSEN, storage=Storage(database=databases.fresh()))
    campaign = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint="f", n_rows=POOL.n_rows)
    truth, predicted = (np.arange(500) % 20 == 3).astype(int), (np.arange(500) % 10 == 3).astype(int)
    machines = Machines(campaign)
    machines.enrol("llm")
    for start in range(100, 500, 100):
        rows = list(range(start, start + 100))
        frozen = {
            "pool_fingerprint": "f",
            "n_rows": POOL.n_rows,
            "k": 100,
            "explore": 0,
            "seed": 0,
            "strategy": "margin",
        }
        asked = batch_of(rows, [POOL.ids[row] for row in rows], predicted=predicted[rows].tolist())
        campaign.rounds.open(campaign.rounds.freeze(**frozen), asked)
        trusted = machines.trusted_answers("llm")
        assert trusted == (set() if start < 200 else {0})
        machines.add("llm", [(each, each.predicted) for each in machines.waiting("llm")], trusted=trusted)
        waiting = campaign.rounds.waiting_rows(start // 100).tolist()
        given = [Answer(row, POOL.ids[row], "ann", "submitted", int(truth[row])) for row in waiting]
        campaign.answers.add(given, source="x")
        campaign.rounds.close(campaign.rounds.get(start // 100))
    assert len(alone_rows(campaign)) > 100
    known = campaign.answers.labels()
    assert known.rows.tolist() == list(range(100, 500))
    assert (known.codes == truth[100:]).all()
    [work] = status(campaign).machines
    assert work.trusted == ("cat",)
    assert work.accuracy.value == pytest.approx(0.95), "though people check each rare answer, and a tenth of the others"
    assert work.backed.value == 1.0


def test_a_verb_that_is_killed_goes_on_with_what_has_no_answer(tmp_path: Path) -> None:
    """Kill the verb while a program that has answered three of its five records is at the fourth."""
    campaign = real(tmp_path)
    campaign.next_batch()
    asked = tmp_path / "asked"
    text = f"""
parent = os.getppid()
for at, record in enumerate(read()):
    with open({str(asked)!r}, 'a') as file:
        file.write(record['record_id'] + ' ')
    while at == 3 and os.path.exists({str(tmp_path / "slow")!r}) and os.getppid() == parent:
        time.sleep(.01)
    say(record['record_id'])
"""
    (tmp_path / "slow").touch()
    words = [sys.executable, *program(tmp_path, text)[1:]]
    verb = [sys.executable, "-m", "dal", "machine", "answer", "campaign", "llm", "--at-once", "5", "--command"]
    command = [*verb, " ".join(words), "--cost", "0.002"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        awaited(lambda: len(ids_of(campaign)) == 3)
    finally:
        process.kill()
        process.wait()
    before = ids_of(campaign)
    (tmp_path / "slow").unlink()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "97 records answered" in done.stdout
    assert "100 records wait for people" in done.stdout
    assert len(set(ids_of(campaign))) == len(ids_of(campaign)) == 100
    assert ids_of(campaign)[:3] == before
    twice = [each for each in set(asked.read_text().split()) if asked.read_text().split().count(each) > 1]
    assert set(twice) & set(before) == set(), "only a record that was on its way is asked again"
    assert len(twice) <= 2


def test_the_command_says_what_happened(tmp_path: Path) -> None:
    campaign = real(tmp_path)
    campaign.next_batch()
    words = ["machine", "answer", str(campaign.directory), "llm", "--command", " ".join(program(tmp_path, ALL))]
    done = CliRunner().invoke(main, [*words, "--cap", "60"])
    assert done.exit_code == 0, done.output
    assert "60 records answered" in done.output
    assert "40 records were not asked" in done.output
    assert CliRunner().invoke(main, ["status", str(campaign.directory)]).output.count("machine llm: 60 answers") == 1
    page = Overviews(campaign, Records(dal.Pool.open(tmp_path / "pool.zarr"))).now(Standings(campaign).now())
    assert [text.partition(",")[0] for text in page.machines] == ["machine llm: 60 answers"]
    assert (page.people, page.per_hour) == ([], 0)
    failed = CliRunner().invoke(main, [*words[:-1], " ".join(program(tmp_path, "sys.exit('no key')")), "--cap", "70"])
    assert failed.exit_code == 1
    assert "no key" in failed.output
    for wrong in ("python 'x", ""):
        assert CliRunner().invoke(main, [*words[:-1], wrong]).exit_code in (1, 2)


# -- the example over HTTP ---------------------------------------------------------------------------------------------


class Endpoint(BaseHTTPRequestHandler):
    """Chooses a class by the number of a record, chats about each seventh, fails now and then, and hangs up once."""

    failed: ClassVar[set[int]] = set()
    dropped: ClassVar[set[int]] = set()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = int(asked["prompt"].rsplit("number: ", 1)[1].split()[0])
        if number % 2 and not self.dropped:
            self.dropped.add(number)
            self.close_connection = True  # without an answer
            return
        if number % 5 == 0 and number not in self.failed and len(self.failed) < 3:
            self.failed.add(number)
            self.send_error(503)
            return
        text = "I am not sure." if number % 7 == 0 else f" {CLASSES[number % 2].upper()}.\n"
        body = json.dumps({"text": text}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no line of a log."""


@pytest.mark.slow
def test_the_example_over_http_asks_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "labelling.md").read_text()
    [text] = [block.split("```")[0] for block in page.split("```python\n")[1:] if block.startswith("# endpoint.py")]
    (tmp_path / "endpoint.py").write_text(text)
    campaign = real(tmp_path)
    campaign.next_batch()
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("ENDPOINT", f"http://127.0.0.1:{server.server_port}/complete")
        try:
            found = ask_machine(
                campaign, dal.Pool.open(tmp_path / "pool.zarr"), "llm", [sys.executable, str(tmp_path / "endpoint.py")]
            )
        finally:
            server.shutdown()
            thread.join()
        assert len(Endpoint.failed) == 3
        assert len(Endpoint.dropped) == 1
        rows = [int(each.removeprefix("r")) for each in ids_of(campaign)]
        assert found.answers == 100
        assert found.skipped == sum(row % 7 == 0 for row in rows)
        with campaign.database.reading() as connection:
            said = {each.row: each.label for each in connection.execute(select(log.c.row, log.c.label))}
        assert all(said[row] == (None if row % 7 == 0 else row % 2) for row in rows)
