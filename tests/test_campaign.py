import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Never

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, update

from dal.campaign import (
    Answer,
    AnswerFile,
    Answers,
    CampaignStore,
    ImportCounts,
    Round,
    Search,
    Settings,
    Storage,
    answers,
    migrations,
    schema,
)
from dal.campaign.directory import exclusive
from dal.campaign.examples import Examples
from dal.campaign.view import View
from dal.classes import class_flaw
from dal.errors import (
    CampaignError,
    CampaignLocked,
    CampaignMismatch,
    CampaignNotFound,
    InputError,
    LabelError,
    SettingsError,
)
from dal.evidence.votes import majority
from dal.texts import composed
from tests import databases
from tests.batches import batch_of
from tests.databases import sqlite_only

ROOT = Path(__file__).parent.parent
CHOSEN = Settings(
    "pool.zarr", ("cat", "dog", "owl"), estimator="logistic", strategy="margin", batch_size=4, random_state=11
)
BATCH = [907, 23, 511, 40]


pytestmark = pytest.mark.usefixtures("backend")


def create(directory: Path, chosen: Settings = CHOSEN) -> CampaignStore:
    chosen = replace(chosen, storage=Storage(database=databases.fresh()))
    return CampaignStore.make(directory, chosen, pool_fingerprint="f00d", n_rows=1000)


def freeze(campaign: CampaignStore, **changed: object) -> Round:
    frozen = {"pool_fingerprint": "f00d", "n_rows": 1000, "k": 4, "explore": 0.25, "seed": 11, "strategy": "margin"}
    return campaign.rounds.freeze(**frozen | changed)


def open_batch(campaign: CampaignStore, batch_round: Round, rows: Sequence[int] = BATCH, **changed: object) -> None:
    n = len(rows)
    columns = {
        "scores": [float(n - rank) for rank in range(n)],
        "predicted": [0] * n,
        "explore": [rank == n - 1 for rank in range(n)],
    }
    campaign.rounds.open(batch_round, batch_of(rows, **columns | changed))


def says(row: int, label: int | None, annotator: str = "ann", **more: object) -> Answer:
    return Answer(row, f"id{row}", annotator, "skipped" if label is None else "submitted", label, **more)


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignStore:
    return create(tmp_path / "campaign")


# -- killed anywhere -------------------------------------------------------------------------------------------------

STEPS = ("create", "freeze", "fit", "scan", "open", "answer", "close")


def next_step(directory: Path) -> str | None:
    try:
        campaign = CampaignStore.open(directory)
    except CampaignNotFound:
        return "create"
    rounds = campaign.rounds.all()
    match rounds[0].status if rounds else None:
        case None:
            return "freeze"
        case "frozen":
            return "fit"
        case "fitted":
            return "scan"
        case "scanned":
            return "open"
        case "open":
            return "answer" if campaign.rounds.pending(1) else "close"
    return None


def take(step: str, directory: Path) -> None:
    if step == "create":
        create(directory)
        return
    campaign = CampaignStore.open(directory)
    current = campaign.rounds.current
    match step:
        case "freeze":
            freeze(campaign)
        case "fit":
            campaign.rounds.save_model(current, b"a model", trained_on=0, notes={"warnings": ()})
        case "scan":
            campaign.rounds.save_scan(current, b"candidates", {"rows": np.int64(1000)})
        case "open":
            open_batch(campaign, current)
        case "answer":
            campaign.answers.add([says(row, row % 3) for row in BATCH], source="web")
        case "close":
            campaign.rounds.close(current)


def run_and_die(directory: Path, fatal: str, before_commit: bool) -> None:
    """Take the steps until one is fatal, and be killed just before its commit or just after it."""
    armed = []

    @event.listens_for(Engine, "commit")
    def commit(connection: Connection) -> None:
        writes = connection.get_execution_options().get("immediate") or fatal == "create"
        if before_commit and armed and writes:
            os.kill(os.getpid(), signal.SIGKILL)

    while step := next_step(directory):
        if step == fatal:
            armed.append(step)
        take(step, directory)
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def die_everywhere(base: Path) -> None:
    """Have a process killed at every point. They are forked from one that has imported everything, to save time."""
    for step in STEPS:
        for moment in ("before", "after"):
            child = os.fork()
            if child == 0:
                run_and_die(base / f"{step}-{moment}", step, moment == "before")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
                sys.exit(f"{step}-{moment} was to be killed and was not: {status}")


@pytest.fixture(scope="module")
def graveyard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("graveyard")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    subprocess.run([sys.executable, __file__, str(base)], check=True, env=environment, timeout=110)
    return base


def everything(directory: Path) -> dict[str, object]:
    campaign = CampaignStore.open(directory)
    (only,) = campaign.rounds.all()
    latest = campaign.answers.latest()
    return {
        "frozen": (only.status, only.n_rows, only.k, only.last_answer, only.excluded_digest, only.parent_model),
        "model": campaign.rounds.load_model(only.model),
        "scan": (campaign.rounds.load_scan(only), only.summary),
        "batch": campaign.rounds.batch(1),
        "answers": (latest.rows.tolist(), latest.labels.tolist(), latest.ids.tolist()),
        "files": sorted(path.name for path in directory.rglob("*") if path.suffix not in (".db-wal", ".db-shm")),
    }


@sqlite_only
@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_anywhere_goes_on_as_if_nothing_had_happened(
    graveyard: Path, tmp_path: Path, step: str, moment: str
) -> None:
    directory = tmp_path / "harmed"
    if (graveyard / f"{step}-{moment}").exists():
        shutil.copytree(graveyard / f"{step}-{moment}", directory)
    assert next_step(directory) == (step if moment == "before" else (*STEPS, None)[STEPS.index(step) + 1])
    for each in (directory, tmp_path / "unharmed"):
        while remaining := next_step(each):
            take(remaining, each)
    assert everything(directory) == everything(tmp_path / "unharmed")


@sqlite_only
def test_a_model_killed_before_its_commit_is_on_disk_and_not_in_the_round(graveyard: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(graveyard / "fit-before", tmp_path / "copy")
    name = hashlib.sha256(b"a model").hexdigest()
    assert (directory / "models" / f"{name}.skops").read_bytes() == b"a model"
    (only,) = CampaignStore.open(directory).rounds.all()
    assert (only.status, only.model) == ("frozen", None)


# -- the lock --------------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_lock_and_gets_it_when_that_is_killed(campaign: CampaignStore) -> None:
    hold = """if True:
        import sys
        from dal.campaign import CampaignStore
        with CampaignStore.open(sys.argv[1]).lock():
            print(flush=True)
            input()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(campaign.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(CampaignLocked, match=rf"process {holder.pid}\b"), campaign.lock():
            pass
        assert campaign.answers.add([says(3, 1)], source="web").new == 1, "answers need no lock"
        holder.kill()
    soon = time.monotonic() + 30
    while True:  # a server takes some milliseconds to notice
        with suppress(CampaignLocked) if time.monotonic() < soon else nullcontext(), campaign.lock():
            break


def test_the_lock_is_refused_within_one_process_and_freed_by_an_error(campaign: CampaignStore) -> Never:
    with pytest.raises(ZeroDivisionError), campaign.lock():  # noqa: PT012 - what is held while it is raised
        with pytest.raises(CampaignLocked, match=rf"process {os.getpid()}\b"), campaign.lock():
            pass
        raise ZeroDivisionError
    with campaign.lock():
        pass


# -- making and opening ----------------------------------------------------------------------------------------------


def test_opens_as_it_was_created(tmp_path: Path) -> None:
    chosen = Settings(
        'a "quoted" \\ path/пул.zarr',
        ("-1", "+1", "naïve 🐱", "two  blanks", "=1+2"),
        estimator="module:object",
        strategy="margin",
        batch_size=7,
        random_state=2**62,
        stop=("max_labels=50", "max_hours=1.5"),
        explore=1e-05,
        trusted=("a.B",),
    )
    made = create(tmp_path / "deep" / "er", chosen)
    opened = CampaignStore.open(tmp_path / "deep" / "er")
    assert opened.settings == made.settings == replace(chosen, storage=Storage(database=made.settings.storage.database))
    assert (opened.id, opened.pool_fingerprint, opened.n_rows) == (made.id, "f00d", 1000)
    assert opened.created_at.tzinfo is not None
    assert opened.rounds.all() == []
    assert opened.rounds.current is None


def test_creates_in_an_empty_directory_without_replacing_it(tmp_path: Path) -> None:
    inode = tmp_path.stat().st_ino
    create(tmp_path)
    assert tmp_path.stat().st_ino == inode, "a shell that stands in the directory must not be left in a deleted one"


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CampaignError, match=r"thesis\.tex"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_campaign_is_not_created_over(campaign: CampaignStore) -> None:
    campaign.answers.add([says(3, 1)], source="web")
    with pytest.raises(CampaignError, match="holds a campaign already"):
        create(campaign.directory)
    assert CampaignStore.open(campaign.directory).answers.latest().rows.tolist() == [3]


@sqlite_only
def test_a_lost_database_is_not_created_over_while_its_models_are_there(campaign: CampaignStore) -> None:
    campaign.rounds.save_model(freeze(campaign), b"precious", trained_on=0)
    (campaign.directory / "campaign.db").unlink()
    with pytest.raises(CampaignError, match="models"):
        create(campaign.directory)


@sqlite_only
@pytest.mark.parametrize("place", ["nowhere", "."])
def test_says_where_there_is_no_campaign(tmp_path: Path, place: str) -> None:
    with pytest.raises(CampaignNotFound, match=r"there is no campaign\.db"):
        CampaignStore.open(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


def layout(path: Path) -> dict[str, object]:
    """Everything about a database's tables but the words they were made with."""
    connection = sqlite3.connect(path)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    described = {}
    for name in names:
        columns = [row[1:] for row in connection.execute(f"PRAGMA table_info({name})")]
        indexes = connection.execute(f"PRAGMA index_list({name})").fetchall()
        keys = [connection.execute(f"PRAGMA index_info({index[1]})").fetchall() for index in indexes]
        unique = sorted(zip([index[2:4] for index in indexes], keys, strict=True))
        references = connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()
        described[name] = sorted(columns), unique, references
    connection.close()
    return described


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A campaign that version 1 of the schema wrote, with a closed round and an open one."""
    directory = tmp_path / "old"
    toml = create(directory).directory / "campaign.toml"
    written = (Path(__file__).parent / "data" / "campaign-v1.sql").read_text()
    (directory / "campaign.db").unlink()
    with sqlite3.connect(directory / "campaign.db") as connection:
        connection.executescript(written)
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    lines = [line for line in toml.read_text().splitlines() if not line.startswith(("overlap", "gold"))]
    toml.write_text("\n".join('id = "97cfd465d2476e53"' if line.startswith("id = ") else line for line in lines))
    return directory


@sqlite_only
def test_a_campaign_of_version_1_is_migrated_and_goes_on(version_1: Path, campaign: CampaignStore) -> None:
    old = CampaignStore.open(version_1)
    assert layout(version_1 / "campaign.db") == layout(campaign.directory / "campaign.db")
    latest = old.answers.latest()
    assert [
        *zip(latest.rows.tolist(), latest.annotators, latest.labels.tolist(), latest.ids.tolist(), strict=True)
    ] == [
        (5, "ann", 1, 6),
        (23, "ann", 2, 2),
        (40, "bob", -1, 4),
        (511, "ann", 1, 3),
        (777, "ann", 1, 5),
        (907, "ann", 1, 1),
    ]
    connection = sqlite3.connect(version_1 / "campaign.db")
    assert connection.execute(
        "SELECT count(*) FROM answers WHERE received_at = answered_at AND NOT late"
    ).fetchone() == (6,)
    connection.close()
    assert [record.row for record in old.rounds.batch(2)] == [5, 6, 7]
    assert old.rounds.pending(2) == 2
    assert (old.settings.labelling.overlap, old.settings.labelling.gold) == (1, 0.0)
    old.answers.add([says(6, None), says(7, 2)], source="web")
    assert old.answers.last_id() == 8
    old.rounds.close(old.rounds.get(2))
    frozen = freeze(CampaignStore.open(version_1))
    assert (frozen.number, frozen.last_answer, frozen.labels) == (3, 8, 6)


@sqlite_only
def test_a_migration_that_is_killed_leaves_the_old_version(version_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout(version_1 / "campaign.db")
    steps = (*migrations.STEPS[1][:-1], "SELECT no_such_column FROM answers")
    with monkeypatch.context() as broken:
        broken.setitem(migrations.STEPS, 1, steps)
        with pytest.raises(CampaignError, match="no such column"):
            CampaignStore.open(version_1)
    assert layout(version_1 / "campaign.db") == before
    assert CampaignStore.open(version_1).rounds.pending(2) == 2


@sqlite_only
def test_a_migration_waits_for_the_coordinator_of_the_old_version(version_1: Path) -> None:
    with exclusive(version_1), pytest.raises(CampaignLocked, match=f"process {os.getpid()}"):
        CampaignStore.open(version_1)
    assert CampaignStore.open(version_1).rounds.pending(2) == 2


@pytest.mark.parametrize(("version", "advice"), [(99, "newer dal"), (0, "older dal")])
def test_another_schema_version_is_refused(campaign: CampaignStore, version: int, advice: str) -> None:
    with campaign.database.writing() as connection:
        connection.execute(update(schema.campaign).values(schema_version=version))
    with pytest.raises(CampaignMismatch, match=f"version {version}.*{advice}"):
        CampaignStore.open(campaign.directory)


@sqlite_only
def test_the_toml_of_another_campaign_is_refused(campaign: CampaignStore, tmp_path: Path) -> None:
    other = create(tmp_path / "other")
    shutil.copy(other.directory / "campaign.toml", campaign.directory)
    with pytest.raises(CampaignMismatch, match=f"{other.id}.*{campaign.id}"):
        CampaignStore.open(campaign.directory)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('["cat", "dog", "owl"]', '["dog", "cat", "owl"]', CampaignMismatch, "answers were given for"),
        ("batch_size = 4", "batch_size = 0", SettingsError, "`batch_size` must be an integer of 1 or more"),
        ("batch_size = 4", "batch_size = ", SettingsError, "no valid TOML"),
        ("batch_size = 4", "bitch = 4", SettingsError, "bitch.*batch_size"),
        ("batch_size = 4", "", SettingsError, "lack batch_size"),
        ("[settings]", "[sittings]", SettingsError, "table \\[settings\\]"),
    ],
)
def test_an_edited_toml_is_used_where_it_can_be(
    campaign: CampaignStore, old: str, new: str, error: type[Exception], message: str
) -> None:
    toml = campaign.directory / "campaign.toml"
    original = toml.read_text()
    toml.write_text(original.replace("explore = 0.05", "explore = 0.5"))
    assert CampaignStore.open(campaign.directory).settings.explore == 0.5
    toml.write_text(original.replace(old, new))
    with pytest.raises(error, match=message):
        CampaignStore.open(campaign.directory)


@sqlite_only
def test_a_lost_toml_is_said(campaign: CampaignStore) -> None:
    (campaign.directory / "campaign.toml").unlink()
    with pytest.raises(CampaignError, match=r"campaign\.toml cannot be read"):
        CampaignStore.open(campaign.directory)


@sqlite_only
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("cat",)}, "at least two"),
        ({"classes": ("cat", "cat")}, "classes.*cat"),
        ({"classes": ("cat", " dog")}, "surrounding blanks"),
        ({"classes": ("cat", "")}, "classes"),
        ({"classes": ["cat", "dog"]}, "several texts"),
        ({"classes": ("cat", 3)}, "classes"),
        ({"classes": ("cat", "\ud800")}, "surrogate"),
        ({"classes": ("cat", "d\nog")}, "control character"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"random_state": -1}, "random_state"),
        ({"random_state": 2**63}, "random_state"),
        ({"explore": 1.5}, "explore"),
        ({"explore": 1.0}, "less than 1"),
        ({"explore": float("nan")}, "explore"),
        ({"pool": ""}, "pool"),
        ({"estimator": "  "}, "estimator"),
    ],
)
def test_unusable_settings_are_refused_before_anything_is_written(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    values = {"pool": "p", "classes": ("a", "b"), "estimator": "l", "strategy": "s", "batch_size": 1} | changed
    with pytest.raises(SettingsError, match=message):
        create(tmp_path / "campaign", Settings(**values))
    assert not (tmp_path / "campaign").exists()


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(str.strip)
texts = texts.filter(bool)
names = texts.filter(lambda text: class_flaw(text) is None)


@sqlite_only
@settings(max_examples=100, deadline=None)
@given(
    texts.filter(lambda path: "://" not in path),
    st.lists(names, min_size=2, unique_by=composed),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**63 - 1),
)
def test_settings_come_back_from_toml(pool: str, classes: list[str], explore: float, seed: int) -> None:
    chosen = Settings(pool, tuple(classes), "logistic", "margin", 3, random_state=seed, explore=explore)
    assert Settings.from_toml(chosen.to_toml()) == chosen


# -- a disk that does not play along ---------------------------------------------------------------------------------


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory, and no right to write where write access is taken away: root, which CI often is, may anything."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    me = os.geteuid()
    if me == 0:
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
    yield directory
    os.seteuid(me)
    for path in (directory, *directory.iterdir()):
        path.chmod(0o777)
    shutil.rmtree(directory)


@sqlite_only
def test_a_read_only_directory_is_said(unprivileged: Path) -> None:
    campaign = create(unprivileged / "campaign")
    campaign.answers.add([says(5, 2)], source="web")
    for path in (campaign.directory / "models", campaign.directory):
        path.chmod(0o555)
    (campaign.directory / "campaign.db").chmod(0o444)
    place = str(campaign.directory)
    with pytest.raises(CampaignError, match=f"{place}.*write access"):
        campaign.answers.add([says(3, 1)], source="web")
    opened = CampaignStore.open(campaign.directory)
    assert opened.answers.latest().rows.tolist() == [5], "reading takes no write access"
    with pytest.raises(CampaignError, match=f"{place}.*write access"):
        opened.answers.add([says(3, 1)], source="web")
    campaign.directory.joinpath("campaign.lock").chmod(0o444)
    with pytest.raises(CampaignError, match="write access"), campaign.lock():
        pass


@sqlite_only
def test_a_campaign_cannot_be_created_in_a_read_only_directory(unprivileged: Path) -> None:
    unprivileged.chmod(0o555)
    with pytest.raises(CampaignError, match="Choose another place"):
        create(unprivileged / "campaign")


@sqlite_only
def test_a_campaign_cannot_be_created_at_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CampaignError, match="Choose another place"):
        create(tmp_path / "file")


@sqlite_only
def test_a_model_that_cannot_be_written_leaves_the_round_as_it_was(campaign: CampaignStore) -> None:
    current = freeze(campaign)
    shutil.rmtree(campaign.directory / "models")
    (campaign.directory / "models").write_text("in the way")
    with pytest.raises(CampaignError, match="cannot be written"):
        campaign.rounds.save_model(current, b"a model", trained_on=0)
    assert campaign.rounds.current == current


@sqlite_only
@pytest.mark.parametrize("damage", [b"", b"this is not a database, it is a letter" * 200])
def test_a_damaged_database_is_said(campaign: CampaignStore, damage: bytes) -> None:
    (campaign.directory / "campaign.db").write_bytes(damage)
    with pytest.raises(CampaignError, match=r"campaign\.db.*restore it from a copy"):
        CampaignStore.open(campaign.directory)


@sqlite_only
def test_damage_in_the_middle_is_said_where_it_is_met(campaign: CampaignStore) -> None:
    campaign.answers.add([says(row, row % 3) for row in range(900)], source="web")
    file = campaign.directory / "campaign.db"
    content = bytearray(file.read_bytes())
    content[3 * 4096 :] = b"\xa5" * (len(content) - 3 * 4096)
    file.write_bytes(content)
    with pytest.raises(CampaignError, match=r"campaign\.db.*damaged"):
        CampaignStore.open(campaign.directory).answers.latest()


@sqlite_only
def test_a_full_disk_is_said_and_nothing_is_changed(campaign: CampaignStore) -> None:
    campaign.answers.add([says(1, 1)], source="web")

    def full(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size at least

    event.listen(campaign.database.engine, "connect", full)
    with pytest.raises(CampaignError, match="disk is full"):
        campaign.answers.add([says(row, 1) for row in range(900)], source="web")
    event.remove(campaign.database.engine, "connect", full)
    assert campaign.answers.latest().rows.tolist() == [1]


def test_a_writer_that_never_ends_is_said(campaign: CampaignStore) -> None:
    impatient = CampaignStore.open(campaign.directory, busy_seconds=0.05)
    with campaign.database.writing():
        with pytest.raises(CampaignError, match="writing for too long"):
            impatient.answers.add([says(1, 1)], source="web")
        assert impatient.rounds.all() == [], "reading goes on"
    assert impatient.answers.add([says(1, 1)], source="web").new == 1


@sqlite_only
@pytest.mark.parametrize("what", ["model", "scan"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_file_is_not_loaded(campaign: CampaignStore, what: str, damage: object) -> None:
    current = freeze(campaign)
    digest = campaign.rounds.save_model(current, b"a model", trained_on=0)
    campaign.rounds.save_scan(current, b"candidates", {})
    pattern = "models/*.skops" if what == "model" else "rounds/0001-candidates-*.npz"
    (path,) = campaign.directory.glob(pattern)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CampaignError, match=f"{path.name}.*Restore"):
        campaign.rounds.load_model(digest) if what == "model" else campaign.rounds.load_scan(current)


# -- rounds ----------------------------------------------------------------------------------------------------------


def complete_round(
    campaign: CampaignStore, rows: Sequence[int], answers: Sequence[Answer] = (), **columns: object
) -> None:
    current = freeze(campaign)
    campaign.rounds.save_model(current, f"model {current.number}".encode(), trained_on=current.labels)
    campaign.rounds.save_scan(current, b"candidates", {"rows": 1000})
    open_batch(campaign, current, rows, **columns)
    campaign.answers.add(answers, source="web")
    campaign.rounds.close(current)


def test_a_round_freezes_what_it_is_computed_from(campaign: CampaignStore) -> None:
    complete_round(campaign, BATCH, [says(row, row % 3) for row in BATCH[:3]])
    campaign.answers.add([says(777, None), says(778, 2), says(778, 1, "bob")], source="web")
    frozen = freeze(campaign, n_rows=1200, k=9, explore=0.5, seed=3, strategy="entropy")
    excluded = np.array([23, 40, 511, 777, 778, 907], "<i8")
    assert (frozen.number, frozen.status) == (2, "frozen")
    assert (frozen.n_rows, frozen.k, frozen.explore, frozen.seed, frozen.strategy) == (1200, 9, 0.5, 3, "entropy")
    assert (frozen.last_answer, frozen.labels, frozen.excluded) == (6, 4, 6)
    assert frozen.excluded_digest == hashlib.sha256(excluded.tobytes()).hexdigest()
    assert frozen.parent_model == hashlib.sha256(b"model 1").hexdigest()
    assert campaign.rounds.current == frozen == campaign.rounds.all()[1] == campaign.rounds.get(2)


def test_a_batch_uses_up_the_marks_that_its_round_was_frozen_with(campaign: CampaignStore) -> None:
    marks = Examples(campaign)
    for row in (7, 5, 7, 9, 9, 4):
        marks.mark(row, f"id{row}", "ann")
    marks.unmark(9)
    assert (set(marks.rows()), marks.count()) == ({4, 5, 7}, 3)
    search = Search(rows=(5,), examples=((0.1, -2.0),), where="a = 'b'", share=0.3, marked=(5,))
    frozen = freeze(campaign, search=search, useless=[4])
    assert campaign.rounds.get(1).search == search
    # A round that is withdrawn keeps the marks.
    campaign.rounds.withdraw(frozen)
    assert set(marks.rows()) == {5, 7}
    frozen = freeze(campaign, search=search)
    marks.mark(6, "id6", "ann")
    open_batch(campaign, frozen, [7, 8])
    assert set(marks.rows()) == {6, 7}


def test_what_comes_after_the_freeze_belongs_to_the_next_round(campaign: CampaignStore) -> None:
    complete_round(campaign, BATCH, [says(23, 1)])
    frozen = freeze(campaign)
    campaign.answers.add([says(23, 2), says(600, 1)], source="web")
    open_batch(campaign, frozen, [5, 6])
    upto = campaign.answers.latest(frozen.last_answer)
    assert (upto.rows.tolist(), upto.labels.tolist()) == ([23], [1])
    now = campaign.answers.latest()
    assert (now.rows.tolist(), now.labels.tolist()) == ([23, 600], [2, 1])
    assert campaign.rounds.excluded_rows(frozen).tolist() == [23, 40, 511, 907]
    assert campaign.rounds.excluded_rows().tolist() == [5, 6, 23, 40, 511, 600, 907]
    assert campaign.rounds.asked_rows().tolist() == [5, 6, 23, 40, 511, 907]


def test_a_batch_comes_back_in_the_order_of_asking(campaign: CampaignStore) -> None:
    current = freeze(campaign)
    open_batch(
        campaign,
        current,
        np.array(BATCH),
        scores=np.array([0.5, np.inf, -np.inf, 1e-300]),
        predicted=[2, None, np.int64(0), 1],
        explore=np.array([False, True, False, False]),
    )
    batch = campaign.rounds.batch(1)
    assert [record.row for record in batch] == BATCH
    assert [record.record_id for record in batch] == ["id907", "id23", "id511", "id40"]
    assert [record.rank for record in batch] == [0, 1, 2, 3]
    assert [record.score for record in batch] == [0.5, np.inf, -np.inf, 1e-300]
    assert [record.predicted for record in batch] == [2, None, 0, 1]
    assert [record.explore for record in batch] == [False, True, False, False]


def test_pending_counts_what_nobody_has_answered(campaign: CampaignStore) -> None:
    open_batch(campaign, freeze(campaign))
    assert campaign.rounds.pending(1) == 4
    campaign.answers.add([says(23, None), says(40, 1), says(40, 1, "bob"), says(999, 1)], source="web")
    assert campaign.rounds.pending(1) == 2


def test_a_record_is_not_asked_twice(campaign: CampaignStore) -> None:
    complete_round(campaign, BATCH)
    current = freeze(campaign)
    with pytest.raises(CampaignError, match=r"row 511 \(record 'id511'\) was asked in round 1"):
        open_batch(campaign, current, [5, 511])
    assert campaign.rounds.current == current
    assert campaign.rounds.asked_rows().tolist() == sorted(BATCH)


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([1, 2, 1], {}, r"each row once, got \[1\]"),
        ([1000], {}, r"rows from 0 to 999, got \[1000\]"),
        ([-1], {}, r"rows from 0 to 999, got \[-1\]"),
        ([1, 2], {"scores": [0.5, float("nan")]}, r"NaN for the records \['id2'\]"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    campaign: CampaignStore, rows: object, changed: dict[str, object], message: str
) -> None:
    current = freeze(campaign)
    with pytest.raises(InputError, match=message):
        open_batch(campaign, current, rows, **changed)
    assert campaign.rounds.current == current


def test_a_batch_out_of_its_order_is_refused(campaign: CampaignStore) -> None:
    current = freeze(campaign)
    with pytest.raises(InputError, match=r"ranks from 0, got \[1, 0\]"):
        campaign.rounds.open(current, batch_of([1, 2])[::-1])
    assert campaign.rounds.current == current


def test_steps_out_of_order_are_refused_and_write_nothing(campaign: CampaignStore) -> None:
    current = freeze(campaign)
    with pytest.raises(CampaignError, match="round 1 is frozen, and this step takes one that is open"):
        campaign.rounds.close(current)
    with pytest.raises(CampaignError, match="round 1 is frozen: close it"):
        freeze(campaign)
    with pytest.raises(CampaignError, match="no scan yet"):
        campaign.rounds.load_scan(current)
    campaign.rounds.save_model(current, b"a model", trained_on=0)
    with pytest.raises(CampaignError, match="round 1 is fitted, and this step takes one that is frozen"):
        campaign.rounds.save_model(current, b"another", trained_on=0)
    assert len(list((campaign.directory / "models").iterdir())) == 1, "a model is never refitted"
    open_batch(campaign, current)
    with pytest.raises(CampaignError, match="round 1 is open"):
        campaign.rounds.save_scan(current, b"late", {})
    with pytest.raises(CampaignError, match="round 1 is open"):
        open_batch(campaign, current, [5])
    with pytest.raises(CampaignError, match="has no round 7"):
        campaign.rounds.get(7)
    assert [record.row for record in campaign.rounds.batch(1)] == BATCH


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"pool_fingerprint": "beef"}, "f00d.*beef"), ({"n_rows": 999}, "had 1000 rows and has 999")],
)
def test_another_pool_is_refused(campaign: CampaignStore, changed: dict[str, object], message: str) -> None:
    with pytest.raises(CampaignMismatch, match=message):
        freeze(campaign, **changed)
    assert campaign.rounds.all() == []


def test_history_scores_the_explore_share_by_the_model_that_chose_it(campaign: CampaignStore) -> None:
    complete_round(
        campaign,
        BATCH,
        [says(907, 0), says(23, 1), says(511, None), says(40, 2), says(23, 2, "bob"), says(23, 2, "cat")],
        predicted=[0, 2, 1, None],
        explore=[True, True, True, True],
    )
    complete_round(campaign, [5, 6], [says(5, 1), says(6, 1)], predicted=[0, 1], explore=[True, False])
    open_batch(campaign, freeze(campaign), [8])
    first, second = View(campaign).history()
    # 907 right, 23 right by majority, 511 skipped, 40 without a prediction; then 5 wrong, and 6 is no explore record.
    assert (first.number, first.labels, first.explore_correct, first.explore_asked) == (1, 0, 2, 2)
    assert (second.number, second.labels, second.explore_correct, second.explore_asked) == (2, 3, 0, 1)
    assert (first.never_asked, second.never_asked) == (996, 994)
    assert 0 <= first.hours <= second.hours < 1


def test_a_ruler_without_any_explore_record_is_empty(campaign: CampaignStore) -> None:
    complete_round(campaign, BATCH, [says(907, 0)], explore=[False] * 4)
    (only,) = View(campaign).history()
    assert (only.explore_correct, only.explore_asked) == (0, 0)


# -- answers ---------------------------------------------------------------------------------------------------------


def stored(campaign: CampaignStore) -> list[tuple[object, ...]]:
    return [
        (each.row, each.annotator, each.status, each.label, each.round, each.source) for each in campaign.answers.log()
    ]


def test_a_changed_label_is_appended_and_the_old_one_kept(campaign: CampaignStore) -> None:
    open_batch(campaign, freeze(campaign))
    assert campaign.answers.add([says(23, 1), says(77, 0)], source="web") == ImportCounts(new=2, volunteered=1)
    assert campaign.answers.add([says(23, 1), says(77, None)], source="api") == ImportCounts(
        changed=1, same=1, volunteered=1
    )
    assert stored(campaign) == [
        (23, "ann", "submitted", 1, 1, "web"),
        (77, "ann", "submitted", 0, None, "web"),
        (77, "ann", "skipped", None, None, "api"),
    ]


def test_a_whole_of_the_same_digest_changes_nothing(campaign: CampaignStore) -> None:
    first = campaign.answers.add([says(23, 1)], source="job", source_digest="d1")
    campaign.answers.add([says(23, 2)], source="web")
    again = campaign.answers.add([says(23, 1)], source="job", source_digest="d1")
    assert (first, again) == (ImportCounts(new=1, volunteered=1), ImportCounts())
    assert campaign.answers.latest().labels.tolist() == [2], "an old import must not undo a newer answer"
    assert campaign.answers.seen("d1") == first
    assert campaign.answers.seen("d2") is None


answer_lists = st.lists(
    st.lists(
        st.tuples(st.integers(990, 993), st.sampled_from(["ann", "bob"]), st.sampled_from([None, 0, 1, 2])),
        max_size=8,
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], CampaignStore]:
    """Copies of an empty campaign, which are quicker made than new ones."""
    base = tmp_path_factory.mktemp("fresh")
    create(base / "original")

    def copy() -> CampaignStore:
        directory = Path(tempfile.mkdtemp(dir=base)) / "copy"
        return CampaignStore.open(shutil.copytree(base / "original", directory))

    return copy


@sqlite_only
@settings(max_examples=40, deadline=None)
@given(answer_lists)
def test_latest_answers_equal_a_dictionary_whatever_is_added(
    fresh: Callable[[], CampaignStore], blocks: list[list[tuple[int, str, int | None]]]
) -> None:
    campaign, model, log = fresh(), {}, []
    for block in blocks:
        counts = {"new": 0, "changed": 0, "same": 0}
        for row, annotator, label in block:
            key = (row, annotator)
            kind = "new" if key not in model else "same" if model[key] == label else "changed"
            counts[kind] += 1
            if kind != "same":
                log.append((row, annotator, label))
            model[key] = label
        added = campaign.answers.add((says(row, label, who) for row, who, label in block), source="web")
        assert added == ImportCounts(**counts, volunteered=len(block))
    latest = campaign.answers.latest()
    found = zip(latest.rows.tolist(), latest.annotators, latest.labels.tolist(), strict=True)
    assert [(row, who, None if label < 0 else label) for row, who, label in found] == [
        (*key, label) for key, label in sorted(model.items())
    ]
    assert [(row, who, label) for row, who, _, label, _, _ in stored(campaign)] == log
    assert all(latest.ids <= campaign.answers.last_id())


def test_what_stood_at_an_answer_is_read_once_and_what_came_since_is_seen(
    campaign: CampaignStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int | None] = []
    real = answers.latest

    def latest(connection: Connection, upto: int | None = None, *rest: object, **more: object) -> Answers:
        reads.append(upto)
        return real(connection, upto, *rest, **more)

    monkeypatch.setattr(answers, "latest", latest)
    elsewhere = CampaignStore.open(campaign.directory)
    steps = [[says(9, 1), says(9, 1, "bob")], [says(9, 2, "cat"), says(8, None)], [says(9, 2)], [says(9, 2, "bob")]]
    for block in steps:
        elsewhere.answers.add(block, source="web")
        reads.clear()
        for upto in (None, None, 2, None, 2):
            kept, found = campaign.answers.labels(upto), CampaignStore.open(campaign.directory).answers.labels(upto)
            assert (kept.rows.tolist(), kept.codes.tolist()) == (found.rows.tolist(), found.codes.tolist())
        assert campaign.answers.labels(2).codes.tolist() == [1]
        assert 1 <= len(reads) - 5 <= 2, "the other five were opened anew each"
    assert campaign.answers.labels().codes.tolist() == [2]
    with pytest.raises(ValueError, match="read-only"):
        campaign.answers.latest().labels[0] = 0


def test_answers_are_read_into_arrays_and_not_into_objects(campaign: CampaignStore) -> None:
    n = 20_000
    given = (says(row % 900, row % 3, f"annotator {row // 900}") for row in range(n))
    campaign.answers.add(given, source="web")
    campaign.rounds.all()  # what SQLAlchemy keeps
    with campaign.database.reading() as connection:
        tracemalloc.start()
        latest = answers.latest(connection, read_at_once=1000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert latest.rows.tolist() == sorted(row % 900 for row in range(n))
    # Three columns, twice while they are put together, and a reference to each name; a Python row takes 250 bytes more.
    assert peak < 80 * n + 1_000_000


def test_latest_answers_give_labels_by_majority(campaign: CampaignStore) -> None:
    campaign.answers.add([says(9, 1), says(9, 1, "bob"), says(9, 2, "cat"), says(8, None)], source="web")
    latest = campaign.answers.latest()
    rows, labels = majority(latest.rows, latest.labels, seed=campaign.settings.random_state)
    assert (rows.tolist(), labels.tolist()) == ([9], [1])


def test_latest_answers_of_one_batch(campaign: CampaignStore) -> None:
    open_batch(campaign, freeze(campaign))
    campaign.answers.add([says(23, 1), says(77, 0), says(907, 2)], source="web")
    assert campaign.answers.latest(asked_in=1).rows.tolist() == [23, 907]
    assert campaign.answers.latest(upto=2, asked_in=1).rows.tolist() == [23]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(1000, "x", "ann", "submitted", 0), "row 1000; the pool's rows are 0 to 999"),
        (Answer(-1, "x", "ann", "submitted", 0), "row -1"),
        (Answer(1, "x", "", "submitted", 0), "annotator's name"),
        (Answer(1, "x", " \u200b", "submitted", 0), "is blank"),
        (Answer(1, "x", "a\x00", "submitted", 0), "NUL"),
        (Answer(1, "x", "ann", "submitted", 0, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))), "1900"),
        (Answer(1, "x", "ann", "skipped", skip_reason="\ud83d"), "surrogate"),
        (Answer(1, "x", "ann", "submitted", 1.0), "no whole number"),  # type: ignore[arg-type]
        (Answer(1, "x", "ann", "submitted", 3), "codes are 0 to 2"),
        (Answer(1, "x", "ann", "submitted", -1), "codes are 0 to 2"),
        (Answer(1, "x", "ann", "submitted"), "label None"),
        (Answer(1, "x", "ann", "skipped", 1), "label 1, and the status 'skipped'"),
        (Answer(1, "x", "ann", "unsure"), "status 'unsure'"),
        (Answer(1, "x", "ann", "skipped", answered_at=datetime(2024, 1, 1)), "time zone"),
    ],
)
def test_one_impossible_answer_keeps_all_of_them_out(campaign: CampaignStore, answer: Answer, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        campaign.answers.add([says(5, 1), answer], source="web")
    assert stored(campaign) == []


def test_a_source_that_breaks_off_adds_nothing(campaign: CampaignStore) -> None:
    def broken() -> Iterator[Answer]:
        yield says(5, 1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        campaign.answers.add(broken(), source="web")
    assert stored(campaign) == []


def test_an_answer_keeps_its_own_time(campaign: CampaignStore) -> None:
    campaign.answers.add([says(5, 1, answered_at=datetime(2024, 5, 6, 7, 8, tzinfo=UTC))], source="web")
    (only,) = campaign.answers.log()
    assert only.answered_at == datetime(2024, 5, 6, 7, 8, tzinfo=UTC)
    assert only.received_at > only.answered_at


def test_people_who_answer_at_once_lose_nothing(campaign: CampaignStore) -> None:
    def answer(annotator: str) -> None:
        for row in range(100, 120):
            campaign.answers.add([says(row, 1, annotator)], source="web")

    people = [threading.Thread(target=answer, args=(name,)) for name in ("ann", "bob", "cat")]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert len(stored(campaign)) == 60
    assert campaign.answers.latest().rows.tolist() == sorted([*range(100, 120)] * 3)


def test_a_long_file_is_read_before_the_campaign_is_locked(campaign: CampaignStore) -> None:
    def answers() -> Iterator[Answer]:
        yield says(5, 1, line=2)
        assert campaign.answers.add([says(6, 1, "bob")], source="web").new == 1
        yield says(7, 1, line=3)

    assert campaign.answers.import_file(answers(), AnswerFile("a.csv", "d", "ann")).counts.new == 2
    assert campaign.answers.latest().rows.tolist() == [5, 6, 7]


if __name__ == "__main__":
    die_everywhere(Path(sys.argv[1]))
