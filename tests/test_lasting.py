"""A campaign that lasts: random events against a plain model, coordinators killed at every commit, many at once."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, event, select

from dal import Campaign
from dal.campaign import Annotators, Answer, AnswerFile, Given, Labelling, Queue, Settings, Storage, schema
from dal.campaign.control import Control
from dal.campaign.database import Database
from dal.campaign.leases import LEASE
from dal.errors import CampaignLocked, InputError
from dal.loop.campaign import Batch
from dal.pool import Pool
from tests import databases, pools
from tests.batches import batch_of
from tests.forked import Process

CHOSEN = Settings(
    "pool.zarr", ("cat", "dog", "owl"), estimator="logistic", strategy="margin", batch_size=4, random_state=11
)
PEOPLE = ("ann", "bob", "cat")
ROWS = range(993, 1000)
SKIPPED = None
Label = int | None

people, labels, rows = st.sampled_from(PEOPLE), st.sampled_from([0, 1, SKIPPED]), st.sampled_from(ROWS)

# A failing run is some dozen events long, and each takes transactions: shrinking it would take longer than reading it.
CALM = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}


class Crash(Exception):
    """The process is gone, as far as the database can tell."""


class Lasting(RuleBasedStateMachine):
    """Drives a campaign, and a model of it that is a few dictionaries."""

    def __init__(self, empty: Callable[[int], Campaign]) -> None:
        super().__init__()
        self.empty = empty
        self.now = datetime(2026, 1, 2, tzinfo=UTC)
        self.log: list[tuple[int, str, str, Label]] = []  # row, annotator, status, label
        self.by_event: dict[tuple[int, str], str | None] = {}  # the event of the latest answer
        self.leases: dict[tuple[int, str], datetime] = {}
        self.batch: list[int] = []
        self.reserve: dict[int, int] = {}  # and the round that it was chosen for
        self.asked: set[int] = set()
        self.open = False
        self.rounds = 0
        self.last_event = 0
        self.turn = 0

    @initialize(overlap=st.integers(1, 2), reserve=st.integers(0, 1), who=people)
    def begin(self, overlap: int, reserve: int, who: str) -> None:
        self.overlap = overlap
        self.take_up(self.empty(overlap))
        self.open_batch([997, 993, 995], reserve)
        self.somebody_asks_for_records(who, 2)

    def take_up(self, campaign: Campaign) -> None:
        """Work on it as a process does that has just begun."""
        self.campaign, self.queue = campaign, Queue(campaign)
        campaign.database.clock = lambda: self.now

    # -- the model ---------------------------------------------------------------------------------------------------

    def latest(self) -> dict[tuple[int, str], tuple[str, Label]]:
        last = {(row, who): (status, label) for row, who, status, label in self.log}
        return {key: said for key, said in last.items() if said[0] != "retracted"}

    def given(self, row: int) -> int:
        return sum(key[0] == row for key in self.latest())

    def live(self, row: int, who: str) -> bool:
        until = self.leases.get((row, who))
        return until is not None and self.now < until <= self.now + LEASE + timedelta(minutes=1)

    def free(self, row: int, who: str) -> bool:
        others = sum(self.live(row, other) for other in PEOPLE if other != who)
        return (row, who) not in self.latest() and self.given(row) + others < self.overlap

    def fresh_event(self) -> str:
        self.last_event += 1
        return f"event {self.last_event}"

    # -- what happens ------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.open)
    @rule(drawn=st.lists(rows, min_size=1, max_size=4, unique=True), reserve=st.integers(0, 1))
    def a_batch_opens(self, drawn: list[int], reserve: int) -> None:
        self.open_batch(drawn, reserve)

    def open_batch(self, drawn: list[int], reserve: int) -> None:
        used = {row for row, *_ in self.log}
        kept = {row for row in self.reserve if row in used or any(self.live(row, who) for who in PEOPLE)}
        freed = set(self.reserve) - kept
        batch = [row for row in drawn if row not in (self.asked | used) - freed]
        if not batch:
            return
        current = self.campaign.rounds.freeze(
            pool_fingerprint="f00d", n_rows=1000, k=4, explore=0.0, seed=1, strategy="margin"
        )
        assert current.last_answer == self.campaign.answers.last_id()
        # A record of a reserve that nobody has answered was asked of nobody yet.
        assert current.excluded == len((self.asked - set(self.reserve)) | used)
        reserve = min(reserve, len(batch) - 1)
        self.campaign.rounds.open(current, batch_of(batch, reserve=reserve))
        self.asked = (self.asked - freed) | set(batch)
        cut = len(batch) - reserve
        self.batch, self.reserve, self.open = batch[:cut], {row: self.reserve[row] for row in kept}, True
        self.rounds += 1
        self.reserve |= dict.fromkeys(batch[cut:], self.rounds)

    @precondition(lambda self: self.open)
    @rule()
    def the_round_closes(self) -> None:
        self.campaign.rounds.close(self.campaign.rounds.get(self.rounds))
        self.open = False

    @rule(who=people, n=st.integers(1, 5))
    def somebody_asks_for_records(self, who: str, n: int) -> None:
        served = [each.row for each in self.queue.lease(who, n)]
        mine = [row for row in self.asked if self.live(row, who) and self.free(row, who)]
        newest = [row for row, number in self.reserve.items() if number == self.rounds]
        # A closed batch is served on until the next one is there.
        new = [row for row in (*self.batch, *newest) if row not in mine and self.free(row, who)]
        assert len(served) == len(set(served)) == min(n, len(mine) + len(new))
        assert set(served[: len(mine)]) <= set(mine)
        assert set(served[len(mine) :]) <= set(new)
        self.leases |= {(row, who): self.now + LEASE for row in served}

    @rule(who=people, chosen=st.lists(rows, unique=True))
    def somebody_goes_on(self, who: str, chosen: list[int]) -> None:
        kept = [row for row in chosen if (row, who) in self.leases and self.free(row, who)]
        assert self.queue.renew(who, chosen) == kept
        self.leases |= {(row, who): self.now + LEASE for row in kept}

    @rule(who=people, chosen=st.lists(rows, unique=True))
    def somebody_gives_records_back(self, who: str, chosen: list[int]) -> None:
        self.queue.release(who, chosen)
        for row in chosen:
            self.leases.pop((row, who), None)

    @rule(who=people, row=rows, label=labels)
    def somebody_answers(self, who: str, row: int, label: Label) -> None:
        status = "submitted" if label is not SKIPPED else "skipped"
        sent = Given(self.fresh_event(), row, status, label)
        (outcome,) = self.queue.answer(who, [sent])
        if row not in self.asked:
            assert outcome.result == "refused"
            return
        before = self.latest().get((row, who))
        kind = "new" if before is None else "same" if before == (status, label) else "changed"
        closed = row not in self.reserve and not (self.open and row in self.batch)
        assert (outcome.result, outcome.late) == (kind, closed or (before is None and not self.live(row, who)))
        self.append(row, who, status, label, sent.event_id)
        (again,) = self.queue.answer(who, [sent])
        assert (again.result, again.late) == ("repeated", outcome.late)

    @rule(who=people, row=rows)
    def somebody_takes_an_answer_back(self, who: str, row: int) -> None:
        if (row, who) not in self.latest() or (sent := self.by_event[row, who]) is None:
            assert self.queue.undo(who, "nothing", self.fresh_event()).result == "refused"
            return
        undone = self.fresh_event()
        outcome = self.queue.undo(who, sent, undone)
        assert outcome.result == "changed"
        assert self.queue.undo(who, sent, undone).result == "repeated"
        self.append(row, who, "retracted", None, undone)
        if not outcome.late:
            self.leases[row, who] = self.now + LEASE

    @rule(who=people, chosen=st.dictionaries(rows, labels, max_size=3))
    def a_file_is_imported(self, who: str, chosen: dict[int, Label]) -> None:
        answers = [
            Answer(row, f"id{row}", who, "skipped" if label is None else "submitted", label)
            for row, label in chosen.items()
        ]
        before = self.latest()
        self.campaign.answers.add(answers, source="file")
        for answer in answers:
            if before.get((answer.row, who)) != (answer.status, answer.label):
                self.append(answer.row, who, answer.status, answer.label, None, leased=True)

    def append(self, row: int, who: str, status: str, label: Label, sent: str | None, *, leased: bool = False) -> None:
        self.log.append((row, who, status, label))
        self.by_event[row, who] = sent
        if not leased:
            self.leases.pop((row, who), None)

    @rule(minutes=st.sampled_from([0.5, 4, 11, 60 * 24, -60 * 24]))
    def time_goes_by_or_a_clock_jumps(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(who=people, what=st.sampled_from(["lease", "import", "answer"]))
    def the_process_dies_before_it_commits(self, who: str, what: str) -> None:
        engine = self.campaign.database.engine

        def die(*_: object) -> None:
            raise Crash

        event.listen(engine, "commit", die)
        try:
            with pytest.raises(Crash):
                self.attempt(who, what)
        finally:
            event.remove(engine, "commit", die)
        self.take_up(Campaign.open(self.campaign.directory))

    def attempt(self, who: str, what: str) -> None:
        match what:
            case "lease":
                self.queue.lease(who, 3)
            case "import":
                self.campaign.answers.add([Answer(995, "id995", who, "submitted", 1)], source="file")
            case "answer":
                self.queue.answer(who, [Given(self.fresh_event(), 995, "submitted", 2)])

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_and_nothing_made_up(self) -> None:
        if not hasattr(self, "campaign"):
            return
        log = list(self.campaign.answers.log())
        assert [(each.row, each.annotator, each.status, each.label) for each in log] == self.log
        assert all(before.id < after.id for before, after in pairwise(log))
        found = self.campaign.answers.latest()
        said = zip(found.rows.tolist(), found.annotators, found.labels.tolist(), strict=True)
        assert {(row, who): None if label < 0 else label for row, who, label in said} == {
            key: label for key, (_, label) in self.latest().items()
        }
        assert set(self.campaign.rounds.asked_rows().tolist()) == self.asked
        if self.rounds:
            assert [asked.row for asked in self.campaign.rounds.batch(self.rounds)] == self.batch

    @invariant()
    def everybody_is_told_how_far_the_batch_is(self) -> None:
        if not self.rounds:
            return
        assert self.campaign.rounds.pending(self.rounds) == sum(self.given(row) < self.overlap for row in self.batch)
        self.turn += 1
        who = PEOPLE[self.turn % len(PEOPLE)]
        told = self.queue.progress(who)
        assert (told.round, told.open, told.batch) == (self.rounds, self.open, len(self.batch))
        assert told.answered == sum(self.given(row) >= self.overlap for row in self.batch)
        assert told.mine == sum((row, who) in self.latest() for row in self.batch)
        left = [row for row in self.batch if self.free(row, who)]
        assert told.left == len(left)


@pytest.fixture
def empty(backend: str, tmp_path: Path) -> Callable[[int], Campaign]:
    """Gives empty campaigns: copies, which are quicker made than new ones, or new schemas."""

    def create(overlap: int) -> Campaign:
        place = Path(tempfile.mkdtemp(dir=tmp_path)) / "c"
        if backend == "postgresql":
            return made(place, overlap)
        if not (tmp_path / str(overlap)).exists():
            made(tmp_path / str(overlap), overlap)
        return Campaign.open(shutil.copytree(tmp_path / str(overlap), place))

    return create


def made(place: Path, overlap: int) -> Campaign:
    chosen = replace(CHOSEN, labelling=Labelling(overlap=overlap), storage=Storage(database=databases.fresh()))
    return Campaign.make(place, chosen, pool_fingerprint="f00d", n_rows=1000)


@databases.sqlite_only
def test_whatever_happens_nothing_is_lost(empty: Callable[[int], Campaign]) -> None:
    run_state_machine_as_test(lambda: Lasting(empty), settings=settings(max_examples=8, stateful_step_count=20, **CALM))


@pytest.mark.slow
def test_whatever_happens_for_long_nothing_is_lost(backend: str, empty: Callable[[int], Campaign]) -> None:
    run_state_machine_as_test(
        lambda: Lasting(empty), settings=settings(max_examples=12, stateful_step_count=40, **CALM)
    )


# -- one transaction for each change ---------------------------------------------------------------------------------


def everything(campaign: Campaign) -> dict[str, list[tuple[object, ...]]]:
    """Read what is committed, table by table."""
    with campaign.database.reading() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in schema.metadata.sorted_tables
        }


@contextmanager
def states_of(campaign: Campaign) -> Iterator[list[dict[str, list[tuple[object, ...]]]]]:
    """Collect the states that a kill could leave: what is committed at the beginning, between, and at the end."""
    states, engine = [everything(campaign)], campaign.database.engine
    looking = False

    def look(_: Connection | None = None) -> None:
        nonlocal looking
        if not looking:
            looking = True
            if (now := everything(campaign)) != states[-1]:
                states.append(now)
            looking = False

    event.listen(engine, "commit", look)
    try:
        yield states
    finally:
        event.remove(engine, "commit", look)
    look()


CHANGES: dict[str, Callable[[Campaign], object]] = {
    "pause": lambda campaign: Control(campaign).tell("pause", "boss"),
    "resume": lambda campaign: Control(campaign).tell("resume", "boss"),
    "close": lambda campaign: Control(campaign).tell("close", "boss"),
    "stop": lambda campaign: Control(campaign).tell("stop", "boss"),
    "annotator add": lambda campaign: Annotators(campaign).add("dora"),
    "annotator revoke": lambda campaign: Annotators(campaign).revoke("boss"),
    "gold": lambda campaign: campaign.answers.add_gold([(7, "id7", 1), (8, "id8", 0)]),
    "export": lambda campaign: campaign.answers.record_export(1, "batch-0001.csv", "f00", 0),
    "import": lambda campaign: campaign.answers.import_file(
        [Answer(row, f"id{row}", "ann", "submitted", 1, line=row) for row in (101, 102)],
        AnswerFile("batch-0001.csv", "digest", "ann"),
    ),
    "add": lambda campaign: campaign.answers.add(
        [Answer(row, f"id{row}", "ann", "submitted", 1) for row in (101, 102)], source="web", source_digest="whole"
    ),
    "lease": lambda campaign: Queue(campaign).lease("ann", 3),
    "answer": lambda campaign: Queue(campaign).answer(
        "ann", [Given(f"event {row}", row, "submitted", 2) for row in (101, 102)]
    ),
    "undo": lambda campaign: Queue(campaign).undo("bob", "first", "second"),
    "close round": lambda campaign: campaign.rounds.close(campaign.rounds.get(1)),
    "withdraw reserve": lambda campaign: campaign.rounds.withdraw_reserve(),
}
TABLES = {"stop": {"rounds", "actions"}, "close": {"rounds", "actions"}, "import": {"answers", "imports"}}
TABLES["add"] = TABLES["import"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_leaves_a_change_whole_or_undone(change: str, tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", 2)
    current = campaign.rounds.freeze(pool_fingerprint="f00d", n_rows=1000, k=4, explore=0.0, seed=1, strategy="margin")
    campaign.rounds.open(current, batch_of(range(100, 104), "abcd", reserve=1))
    Annotators(campaign).add("boss", "manager")
    Queue(campaign).answer("bob", [Given("first", 100, "submitted", 1)])
    with states_of(campaign) as states:
        CHANGES[change](campaign)
    assert len(states) == 2, "a kill between two transactions would leave half of it"
    before, after = states
    differing = {name for name in before if before[name] != after[name]}
    assert differing >= TABLES.get(change, set())
    assert differing


def test_a_campaign_that_was_stopped_is_closed_and_begins_no_round(backend: str, tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", 1)
    for number, act in ((1, "close"), (2, "stop")):
        current = campaign.rounds.freeze(
            pool_fingerprint="f00d", n_rows=1000, k=1, explore=0.0, seed=1, strategy="margin"
        )
        with pytest.raises(InputError, match="no round is open"):
            Control(campaign).tell("close", "boss")
        campaign.rounds.open(current, batch_of([number]))
        Control(campaign).tell(act, "boss")
        closed = campaign.rounds.get(number)
        assert closed.status == "closed"
        assert closed.closed_at == Control(campaign).history()[-1].at.isoformat()
    assert [each.act for each in Control(campaign).history()] == ["close", "stop"]
    assert Control(campaign).in_force.act == "stop"


# -- a coordinator that is killed at every commit of a round -----------------------------------------------------------

CLASSES = ("red", "green", "blue")
COMMITS = ("close", "freeze", "model", "scan", "reserve", "batch")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    return pools.three_classes(tmp_path_factory.mktemp("pool") / "pool.zarr")


def first_round(place: Path, pool: tuple[Pool, np.ndarray], store: str = "") -> Campaign:
    """Make a campaign whose first batch was answered by two people from the queue."""
    campaign = Campaign.create(
        place,
        pool[0],
        CLASSES,
        batch_size=12,
        random_state=7,
        labelling=Labelling(overlap=2, vote="dawid_skene"),
        storage=Storage(database=databases.fresh(), store=store),
    )
    campaign.next_batch()
    queue = Queue(campaign)
    for who in ("ann", "bob"):
        served = queue.lease(who, 12)
        queue.answer(
            who, [Given(f"{who} {each.row}", each.row, "submitted", int(pool[1][each.row])) for each in served]
        )
    return campaign


@contextmanager
def deadly_commits(fatal: int, when: str) -> Iterator[list[int]]:
    """Count the writing transactions, and be killed just before, or just after, one of them is committed."""
    real, count = Database.writing, []

    @contextmanager
    def writing(self: Database) -> Iterator[Connection]:
        with real(self) as connection:
            yield connection
            count.append(len(count))
            if count[-1] == fatal and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        if count[-1] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Database, "writing", writing)
        yield count


def all_but_settings(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name != "campaign.toml"]


def killed_next_batch(directory: Path, fatal: int, when: str, environment: dict[str, str]) -> None:
    # Whoever first used the server that forks has given it the environment of that moment: without this store, perhaps.
    os.environ.update(environment)
    with deadly_commits(fatal, when):
        Campaign.open(directory).next_batch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "elsewhere"),
    [("sqlite", False), ("postgresql", False), ("postgresql", True)],
    indirect=["backend"],
    ids=["sqlite", "postgresql", "postgresql-and-s3-on-another-machine"],
)
def test_a_coordinator_killed_at_every_commit_goes_on_with_the_same_batch(
    request: pytest.FixtureRequest, backend: str, elsewhere: bool, pool: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    store = request.getfixturevalue("s3") if elsewhere else ""
    undisturbed = first_round(tmp_path / "undisturbed", pool)
    with deadly_commits(-1, "never") as commits:
        expected = undisturbed.next_batch()
    assert isinstance(expected, Batch)
    assert len(commits) == len(COMMITS), "a round has another commit: it belongs in COMMITS"
    for fatal, name in enumerate(COMMITS):
        for when in ("before", "after"):
            if elsewhere and name not in ("model", "scan", "batch"):
                continue  # nothing lies in the store that a machine could miss
            campaign = first_round(tmp_path / f"{name}-{when}", pool, store)
            process = Process(target=killed_next_batch, args=(campaign.directory, fatal, when, dict(os.environ)))
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
            if elsewhere:
                shutil.copytree(campaign.directory, there := tmp_path / f"{name}-{when}-there", ignore=all_but_settings)
                shutil.rmtree(campaign.directory)
                campaign = Campaign.open(there)
            # Meanwhile people go on: somebody confirms an answer.
            first = campaign.rounds.batch(1)[0].row
            (outcome,) = Queue(campaign).answer("ann", [Given("again", first, "submitted", int(pool[1][first]))])
            assert outcome.result == "same"
            log = list(campaign.answers.log())
            batch = campaign.next_batch()
            assert isinstance(batch, Batch)
            assert (batch.number, batch.rows.tolist()) == (2, expected.rows.tolist())
            assert campaign.rounds.batch(2) == undisturbed.rounds.batch(2)
            if COMMITS.index(name) + (when == "after") > COMMITS.index("model"):
                # What was committed is loaded, and never fitted again.
                files, place = fsspec.core.url_to_fs(campaign.objects.place)
                assert len(files.ls(f"{place}/models")) == 1
            assert list(campaign.answers.log()) == log
            assert len(log) == 25
            assert not set(batch.rows.tolist()) & {asked.row for asked in campaign.rounds.batch(1)}
            assert [each.status for each in campaign.rounds.all()] == ["closed", "open"]


@pytest.mark.slow
def test_of_two_coordinators_one_goes_on(backend: str, pool: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = first_round(tmp_path / "c", pool)
    results: list[object] = []

    def coordinate() -> None:
        try:
            results.append(Campaign.open(campaign.directory).next_batch())
        except CampaignLocked as error:
            results.append(error)

    with campaign.lock():
        coordinate()
    assert isinstance(results.pop(), CampaignLocked)
    both = [threading.Thread(target=coordinate) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    batches = [result for result in results if isinstance(result, Batch)]
    assert batches
    assert len({tuple(batch.rows.tolist()) for batch in batches}) == 1
    assert sum(batch.fresh for batch in batches) == 1
    assert [each.number for each in campaign.rounds.all()] == [1, 2]


# -- fifty at once -----------------------------------------------------------------------------------------------------


def work(directory: Path, names: list[str]) -> None:
    """Answer as several people, each in a thread, until nothing is left."""
    people = [threading.Thread(target=work_alone, args=(directory, name)) for name in names]
    for person in people:
        person.start()
    for person in people:
        person.join()


def work_alone(directory: Path, name: str) -> None:
    campaign = Campaign.open(directory)
    queue = Queue(campaign)
    while served := queue.lease(name, 2):
        given = [Given(f"{name} {each.row}", each.row, "submitted", each.row % 3) for each in served]
        assert {each.result for each in queue.answer(name, given)} == {"new"}
        campaign.answers.add([Answer(served[0].row + 500, "x", name, "submitted", 1)], source="file")


@pytest.mark.slow
def test_fifty_writers_at_once_lose_nothing_and_meet_nowhere(backend: str, tmp_path: Path) -> None:
    campaign = made(tmp_path / "c", 2)
    current = campaign.rounds.freeze(
        pool_fingerprint="f00d", n_rows=1000, k=100, explore=0.0, seed=1, strategy="margin"
    )
    batch = list(range(100, 200))
    campaign.rounds.open(current, batch_of(batch))
    names = [f"annotator {number}" for number in range(50)]
    offices = [Process(target=work, args=(campaign.directory, names[at::5])) for at in range(5)]
    for office in offices:
        office.start()
    for office in offices:
        office.join(100)
        assert office.exitcode == 0
    log = list(campaign.answers.log())
    asked = [each for each in log if each.round == 1]
    assert sorted(each.row for each in asked) == sorted(batch * 2)
    assert len({(each.row, each.annotator) for each in asked}) == 200
    assert not any(each.late for each in asked)
    assert campaign.rounds.pending(1) == 0
    assert len({each.annotator for each in log}) > 10
