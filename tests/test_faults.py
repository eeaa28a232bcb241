"""Faults of the system: full and read-only disks, kills, locks that are deleted, files that editors have changed."""

import dataclasses
import errno
import multiprocessing.connection
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection

from dal import Campaign, web
from dal._files import replacing
from dal.campaign import Annotators, Answer, Queue, Settings, answer_log, database
from dal.campaign.control import Control
from dal.cli import main
from dal.errors import CampaignError, CampaignLocked, SettingsError
from dal.exchange import write_batch
from dal.loop.campaign import Batch
from dal.pool import Pool
from tests import faults, pools
from tests.forked import Process

CHOSEN = Settings(
    "pool.zarr", ("cat", "dog", "owl"), estimator="logistic", strategy="margin", batch_size=4, random_state=11
)
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    return pools.three_classes(tmp_path_factory.mktemp("pool") / "pool.zarr")


def created(directory: Path) -> Campaign:
    return Campaign.make(directory, CHOSEN, pool_fingerprint="f00d", n_rows=1000)


def says(row: int, label: int) -> Answer:
    return Answer(row, f"id{row}", "ann", "submitted", label)


def dal(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


# -- the lock ----------------------------------------------------------------------------------------------------------


def hold(directory: Path, ready: "multiprocessing.connection.Connection") -> None:
    try:
        with Campaign.open(directory).lock():
            ready.send("held")
            ready.recv()
    except CampaignLocked as error:
        ready.send(str(error))


@contextmanager
def holder(directory: Path) -> Iterator[tuple[str, int]]:
    """Try to hold a campaign's lock in another process; what it says, and its process id."""
    here, there = multiprocessing.Pipe()
    process = Process(target=hold, args=(directory, there))
    process.start()
    try:
        yield here.recv(), process.pid or 0
    finally:
        process.kill()
        process.join()


def delete(directory: Path) -> Path:
    (directory / "campaign.lock").unlink()
    return directory


def replace(directory: Path) -> Path:
    (directory / "new").write_text("")
    (directory / "new").replace(directory / "campaign.lock")
    return directory


def rename(directory: Path) -> Path:
    return directory.rename(directory.with_name("renamed"))


def link(directory: Path) -> Path:
    directory.with_name("link").symlink_to(directory)
    return directory.with_name("link")


@pytest.mark.parametrize("disturbed", [delete, replace, rename, link])
def test_a_lock_that_is_held_keeps_others_out_whatever_happens_to_its_file(
    disturbed: Callable[[Path], Path], tmp_path: Path
) -> None:
    directory = created(tmp_path / "c").directory
    with holder(directory) as (said, pid):
        assert said == "held"
        elsewhere = disturbed(directory)
        with holder(elsewhere) as (second, _):
            assert "in use by process" in second
        known = disturbed in (rename, link)
        with pytest.raises(CampaignLocked, match=str(pid) if known else "unknown"), Campaign.open(elsewhere).lock():
            pass
    with Campaign.open(elsewhere).lock():
        pass


def test_a_copy_of_a_campaign_is_another_one(tmp_path: Path) -> None:
    directory = created(tmp_path / "c").directory
    with holder(directory):
        copy = Campaign.open(shutil.copytree(directory, tmp_path / "copy"))
        with copy.lock():
            assert copy.answers.add([says(1, 1)], source="web").new == 1
    assert Campaign.open(directory).answers.last_id() == 0


# -- files that people edit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edited",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").replace(" = ", "\t=\t").encode(),
    ],
    ids=["byte order mark", "Windows lines", "both, with tabs"],
)
def test_what_an_editor_makes_of_the_settings_is_read(edited: Callable[[str], bytes], tmp_path: Path) -> None:
    campaign = created(tmp_path / "c")
    path = campaign.directory / "campaign.toml"
    path.write_bytes(edited(path.read_text().replace("batch_size = 4", "batch_size = 5")))
    opened = Campaign.open(campaign.directory)
    assert opened.id == campaign.id
    assert opened.settings.batch_size == 5
    assert opened.settings.classes == CHOSEN.classes


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        (lambda text: text.encode("utf-16"), "UTF-16"),
        (lambda text: text.encode("utf-16-le"), "UTF-16"),
        (lambda text: text.replace("cat", "c\u00e4t").encode("latin-1"), "UTF-8"),
        (lambda text: text.replace("cat", "c\0t").encode(), "TOML"),
        (lambda text: text.replace('"margin"', "\u201cmargin\u201d").encode(), "\u201c \u201d"),
        (lambda text: text.replace("batch_size = 4", "batch_size = ").encode(), r"at line \d"),
        (lambda text: text.replace("batch_size = 4", "bach = 4").encode(), "bach"),
        (lambda text: text.replace("batch_size = 4", "batch_size = 4\nbatch_size = 5").encode(), "TOML"),
        (lambda _: b"", "campaign None"),
    ],
)
def test_settings_that_cannot_be_read_are_said_with_their_file(
    edited: Callable[[str], bytes], said: str, tmp_path: Path
) -> None:
    path = created(tmp_path / "c").directory / "campaign.toml"
    path.write_bytes(edited(path.read_text()))
    with pytest.raises((SettingsError, CampaignError), match=rf"(?s)campaign\.toml.*({said})"):
        Campaign.open(tmp_path / "c")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of a campaign's settings, and its text."""
    path = created(tmp_path_factory.mktemp("described") / "c").directory / "campaign.toml"
    return path, path.read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?m)^(\w+) =", CHOSEN.to_toml())) - {"classes"}))
@pytest.mark.parametrize("value", ["[[1]]", "{ a = 1 }", "1979-05-27", "nan", "true", '["a", 1]', "-1"])
def test_a_setting_of_another_type_is_refused_by_its_name(name: str, value: str, described: tuple[Path, str]) -> None:
    path, text = described
    lines = text.splitlines()
    path.write_text("\n".join(f"{name} = {value}" if line.startswith(f"{name} =") else line for line in lines))
    with pytest.raises(SettingsError, match=rf"campaign\.toml: `{name}`"):
        Campaign.open(path.parent)


def test_a_directory_in_the_place_of_the_settings_is_said(tmp_path: Path) -> None:
    path = created(tmp_path / "c").directory / "campaign.toml"
    path.unlink()
    path.mkdir()
    with pytest.raises(CampaignError, match=r"campaign\.toml cannot be read"):
        Campaign.open(tmp_path / "c")


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, which tests fill."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler


def test_a_full_disk_takes_no_reading_with_it_even_of_what_a_killed_process_left(disk: Path, tmp_path: Path) -> None:
    directory = created(disk / "c").directory
    other = sqlite3.connect(directory / "campaign.db")
    other.execute("SELECT * FROM answers").fetchall()
    Campaign.open(directory).answers.add([says(7, 2)], source="web")
    shutil.copytree(directory, tmp_path / "killed")  # the answer is in the log alone, as nobody has closed the database
    other.close()
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "killed", directory)
    (directory / "campaign.db-shm").unlink()
    assert (directory / "campaign.db-wal").stat().st_size
    filler = fill(disk)
    assert Campaign.open(directory).answers.latest().rows.tolist() == [7]
    with pytest.raises(CampaignError, match="disk is full"):
        Campaign.open(directory).answers.add([says(row, 1) for row in range(900)], source="web")
    filler.unlink()
    Campaign.open(directory).answers.add([says(8, 2)], source="web")
    assert Campaign.open(directory).answers.latest().rows.tolist() == [7, 8]


@pytest.mark.slow
def test_a_full_disk_is_said_by_every_command_that_writes_and_halves_nothing(
    disk: Path, pool: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = Campaign.create(disk / "c", pool[0], CLASSES, batch_size=10, random_state=7)
    campaign.answers.add([says(1, 1), says(2, 0)], source="web")
    answers = tmp_path / "answers.csv"
    answers.write_text("record_id,label\n" + "".join(f"{row},red\n" for row in range(500, 600)))
    filler = fill(disk)
    for command in (
        ("status", disk / "c"),
        ("annotator", "list", disk / "c"),
        ("label", "relabel", disk / "c"),
        ("label", "export", disk / "c", tmp_path / "labels.parquet", "--labels"),
    ):
        told = dal(*command)
        assert told.exit_code == 0, told.output
    before = everything_in(disk)
    for command in (
        ("next", disk / "c"),
        ("pause", disk / "c"),
        ("stop", disk / "c"),
        ("annotator", "add", disk / "c", "bob"),
        ("label", "import", disk / "c", answers),
        ("label", "gold", disk / "c", answers),
        ("label", "export", disk / "c", disk / "labels.parquet", "--labels"),
        ("map", disk / "c"),
        ("init", disk / "c2", pool[0].path, "--classes", "a,b"),
    ):
        told = dal(*command)
        assert told.exit_code == 1, (command, told.output)
        assert isinstance(told.exception, SystemExit), command
        assert "is full" in told.output or "No space left" in told.output, (command, told.output)
    shutil.rmtree(disk / "c2")
    assert everything_in(disk) - before <= {"c/campaign.lock"}, "no half of a file is left"
    filler.unlink()
    told = dal("label", "import", disk / "c", answers)
    assert "100 new" in told.output
    assert Campaign.open(disk / "c").answers.gold() == {}


def everything_in(disk: Path) -> set[str]:
    names = {path.relative_to(disk).as_posix() for path in disk.rglob("*")}
    return names - {"c/campaign.db-wal", "c/campaign.db-shm"}


# -- files that are written by two, or over something else -------------------------------------------------------------


def test_a_file_that_two_write_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"the first one")
        second.write(b"second")
        second.flush()
        first.flush()
    assert path.read_bytes() == b"the first one"
    with pytest.raises(ZeroDivisionError), replacing(path) as file:  # noqa: PT012 - what is written by then
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"the first one"
    assert [each.name for each in tmp_path.iterdir()] == ["out.csv"]


def test_a_pipe_is_not_renamed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CampaignError, match="pipe must be a file"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


# -- killed, and run again ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command came to: exit status (negative by a signal), output, and the changes of files that it made."""

    status: int
    output: str
    changes: int


RUN = Campaign.run


def run_to_a_batch(campaign: Campaign, *, on_batch: Callable[[Batch], None], **given: object) -> object:
    ended = threading.Event()

    def opened(batch: Batch) -> None:
        on_batch(batch)
        ended.set()

    return RUN(campaign, on_batch=opened, ended=ended, **given)  # type: ignore[arg-type]


def run(
    command: Sequence[str], fatal: int, fault: str, directory: Path, told: "multiprocessing.connection.Connection"
) -> None:
    """Run a command, and fail it at the n-th change of a file below a directory, or of the database."""
    seen = 0

    def changed(*, by_system: bool = True) -> None:
        nonlocal seen
        seen += 1
        if seen - 1 == fatal:
            if fault.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, fault))
            elif by_system:
                raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)), str(directory))

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(str(directory)):
            changed()

    real = database.immediate

    @contextmanager
    def deadly(connection: Connection) -> Iterator[None]:
        with real(connection):
            yield
            changed(by_system=False)
        changed(by_system=False)

    database.immediate = answer_log.immediate = deadly  # type: ignore[attr-defined]
    Campaign.run = run_to_a_batch  # type: ignore[method-assign]
    sys.addaudithook(audit)
    result = dal(*command)
    if not (result.exception is None or isinstance(result.exception, SystemExit)):
        result.output_bytes, result.exit_code = repr(result.exception).encode(), -1
    told.send(Ran(result.exit_code, result.output, seen))


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def ran(command: Sequence[object], directory: Path, fatal: int = -1, fault: str = "SIGKILL") -> Ran:
    """Run a command in another process."""
    here, there = multiprocessing.Pipe()
    process = Process(target=run, args=(tuple(map(str, command)), fatal, fault, directory, there))
    process.start()
    there.close()
    try:
        told: Ran = here.recv()
    except EOFError:
        told = Ran(-signal.SIGKILL, "", fatal)
    process.join()
    return told


def outcome(directory: Path) -> dict[str, object]:
    campaign = Campaign.open(directory)
    return {
        "rounds": [(each.number, each.status, campaign.rounds.batch(each.number)) for each in campaign.rounds.all()],
        "answers": [(each.row, each.annotator, each.label) for each in campaign.answers.log()],
        "gold": campaign.answers.gold(),
        "acts": {each.act for each in Control(campaign).history()},
        "people": [each.name for each in Annotators(campaign).all()],
    }


@pytest.fixture(scope="module")
def stages(pool: tuple[Pool, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Campaigns as they stand before the commands that are killed."""
    place = tmp_path_factory.mktemp("stages")
    (place / "nothing").mkdir()
    for stage in ("made", "open", "answered"):
        campaign = Campaign.create(place / stage / "c", pool[0], CLASSES, batch_size=5, random_state=7)
        if stage != "made":
            batch = campaign.next_batch()
            assert isinstance(batch, Batch)
            write_batch(campaign, pool[0], 1, place / stage / "c" / "batch-0001.csv")
        if stage == "answered":
            campaign.label(batch, pool[1][batch.rows], annotator="ann")
    for name, rows in (("gold", range(900, 910)), ("answers", range(10))):
        lines = "".join(f"{row},{CLASSES[pool[1][row]]}\n" for row in rows)
        (place / f"{name}.csv").write_text(f"record_id,label\n{lines}")
    return place


COMMANDS = {
    "init": (
        "nothing",
        ("init", "c", "POOL", "--classes", "red,green,blue", "--batch-size", "10", "--random-state", "7"),
    ),
    "next": ("made", ("next", "c")),
    "run": ("answered", ("run", "c")),
    "next after answers": ("answered", ("next", "c")),
    "next --close": ("answered", ("next", "c", "--close")),
    "import": ("open", ("label", "import", "c", "answers.csv", "--annotator", "ann")),
    "export": ("answered", ("label", "export", "c", "c/out.csv")),
    "labels": ("answered", ("label", "export", "c", "c/out.parquet", "--labels")),
    "gold": ("made", ("label", "gold", "c", "gold.csv")),
    "pause": ("open", ("pause", "c")),
    "stop": ("open", ("stop", "c")),
    "status": ("answered", ("status", "c")),
    "report": ("answered", ("report", "c", "-o", "c/report.html")),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """A command at a stage of a campaign, and what it comes to when nothing disturbs it."""

    before: Path
    place: Path
    words: tuple[object, ...]

    @property
    def directory(self) -> Path:
        return self.place / "c"

    def begin(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.before, self.place)

    def run(self, fatal: int = -1, fault: str = "SIGKILL") -> Ran:
        return ran(self.words, self.place, fatal, fault)

    def disturbed(self, fault: str, points: int) -> Iterator[tuple[Ran, set[str]]]:
        """Run the command with a fault at every point, or at a sample, and again without: it comes to the same.

        Gives how the disturbed run ended, and the files in the campaign's directory that are there only after both.
        """
        self.begin()
        undisturbed = self.run()
        assert undisturbed.status == 0
        expected, files = outcome(self.directory), {path.name for path in self.directory.iterdir()}
        assert undisturbed.changes or "status" in self.words
        for fatal in faults.points(undisturbed.changes, points):
            self.begin()
            ended = self.run(fatal, fault)
            assert self.run().status == 0, fatal
            assert outcome(self.directory) == expected, fatal
            yield ended, {path.name for path in self.directory.iterdir()} - files


@pytest.fixture
def scene(stages: Path, pool: tuple[Pool, np.ndarray], tmp_path: Path) -> Callable[[str], Scene]:
    place = tmp_path / "place"
    named = {"c": place / "c", "POOL": pool[0].place} | {
        f"{each}.csv": stages / f"{each}.csv" for each in ("gold", "answers")
    }

    def of(command: str) -> Scene:
        stage, words = COMMANDS[command]
        found = (named.get(word, place / word if word.startswith("c/") else word) for word in words)
        return Scene(stages / stage, place, tuple(found))

    return of


def few_and_many(*few: tuple[str, int], many: Iterable[str] = COMMANDS) -> pytest.MarkDecorator:
    slow = [pytest.param(command, 9, marks=pytest.mark.slow) for command in many]
    return pytest.mark.parametrize(("command", "points"), [*few, *slow])


@few_and_many(("stop", 2))
def test_a_command_that_is_killed_anywhere_is_run_again(
    command: str, points: int, scene: Callable[[str], Scene]
) -> None:
    killed = scene(command)
    for ended, left in killed.disturbed("SIGKILL", points):
        assert ended.status == -signal.SIGKILL, ended
        assert left <= {"campaign.db-wal", "campaign.db-shm"}, ended
        assert not list(killed.directory.rglob(".dal-*")), ended


@few_and_many(("next after answers", 2), many=("next", "next after answers"))
@pytest.mark.parametrize("fault", ["ENOSPC", pytest.param("EIO", marks=pytest.mark.slow)])
def test_a_disk_that_fails_a_command_anywhere_is_told_in_a_line(
    command: str, points: int, fault: str, scene: Callable[[str], Scene]
) -> None:
    for failed, _ in scene(command).disturbed(fault, points):
        assert failed.status in (0, 1), failed
        if failed.status:
            assert os.strerror(getattr(errno, fault)) in failed.output, failed


@few_and_many(("import", 2), many=("init", "next", "next after answers"))
@pytest.mark.parametrize(("ending", "status"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_a_command_that_is_told_to_end_says_so_and_is_run_again(
    command: str, points: int, ending: str, status: int, scene: Callable[[str], Scene]
) -> None:
    for ended, _ in scene(command).disturbed(ending, points):
        assert (ended.status, ended.output.count("Interrupted")) == (status, 1), ended


@pytest.mark.parametrize(("ending", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_pool_build_that_is_told_to_end_says_so_and_goes_on(ending: str, status: int, tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", np.arange(40, dtype=np.float32).reshape(10, 4))
    words = ("pool", "build", tmp_path / "X.npy", tmp_path / "pools" / "pool.zarr")
    ended = ran(words, tmp_path / "pools", 4, ending)
    assert (ended.status, ended.output.count("Interrupted")) == (status, 1), ended
    assert ran(words, tmp_path / "pools").status == 0
    assert Pool.open(tmp_path / "pools" / "pool.zarr").read(0, 10)[9].tolist() == [36, 37, 38, 39]


def served(directory: Path, ending: signal.Signals, told: "multiprocessing.connection.Connection") -> None:
    """Serve a campaign, and be told to end as soon as a page was fetched."""
    make, pages = web.make_server, []

    def made(*given: object) -> object:
        server = make(*given)  # type: ignore[arg-type]

        def visit() -> None:
            with urllib.request.urlopen(server.url) as page:  # it listens already, and answers once it runs
                pages.append(page.status)
            os.kill(os.getpid(), ending)

        threading.Thread(target=visit).start()
        return server

    web.make_server = made  # type: ignore[assignment]
    result = dal("serve", directory, "--port", 0, "--user", "ann")
    told.send((pages, result.exit_code, result.output))


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_server_that_is_told_to_end_ends_in_order(
    ending: signal.Signals, status: int, stages: Path, tmp_path: Path
) -> None:
    shutil.copytree(stages / "open" / "c", tmp_path / "c")
    here, there = multiprocessing.Pipe()
    process = Process(target=served, args=(tmp_path / "c", ending, there))
    process.start()
    there.close()
    pages, code, output = here.recv()
    process.join()
    assert (pages, code, output.count("Interrupted")) == ([200], status, 1), output
    assert not (tmp_path / "c" / "campaign.db-wal").exists(), "the last one to use the database tidies up"


def carry_on(directory: Path, told: "multiprocessing.connection.Connection") -> None:
    opened = Campaign.run

    def telling(*given: object, on_batch: Callable[[Batch], None], **more: object) -> object:
        def tell(batch: Batch) -> None:
            on_batch(batch)
            told.send(batch)

        return opened(*given, on_batch=tell, **more)  # type: ignore[arg-type]

    Campaign.run = telling  # type: ignore[method-assign]
    told.send(dal("run", directory).exit_code)


@pytest.mark.slow
def test_a_run_that_waits_sees_what_others_append_and_ends_when_it_is_told(
    stages: Path, pool: tuple[Pool, np.ndarray], tmp_path: Path
) -> None:
    shutil.copytree(pool[0].place, tmp_path / "pool.zarr")
    toml = shutil.copytree(stages / "made" / "c", tmp_path / "c") / "campaign.toml"
    toml.write_text(toml.read_text().replace(pool[0].path, "../pool.zarr"))
    campaign = Campaign.open(tmp_path / "c")
    here, there = multiprocessing.Pipe()
    process = Process(target=carry_on, args=(tmp_path / "c", there))
    process.start()
    there.close()
    try:
        first = here.recv()
        with pytest.raises(CampaignLocked, match=str(process.pid)):
            campaign.next_batch()
        far = np.full((4, 4), 50, dtype=np.float32)
        Pool.open(tmp_path / "pool.zarr").append(far)
        (tmp_path / "new.csv").write_text("record_id,label\n2001,green\n")
        assert "1 new" in dal("label", "import", tmp_path / "c", tmp_path / "new.csv", "--annotator", "ann").output
        campaign.label(first, pool[1][first.rows], annotator="ann")
        assert here.recv().number == 2
        assert [each.n_rows for each in campaign.rounds.all()] == [2_000, 2_004]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        assert here.recv() == 143
    finally:
        process.kill()
        process.join()
    assert campaign.next_batch().number == 2  # type: ignore[union-attr]


def test_a_campaign_that_is_moved_with_its_pool_finds_it_from_anywhere(
    stages: Path, pool: tuple[Pool, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    shutil.copytree(pool[0].place, tmp_path / "first" / "pool.zarr")
    toml = shutil.copytree(stages / "answered" / "c", tmp_path / "first" / "c") / "campaign.toml"
    toml.write_text(toml.read_text().replace(pool[0].path, "../pool.zarr"))
    (tmp_path / "first").rename(tmp_path / "second")
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    for place, there in (("second", tmp_path), ("third", tmp_path / "third" / "c")):
        monkeypatch.chdir(there)
        batch = Campaign.open(tmp_path / place / "c").next_batch()
        assert isinstance(batch, Batch)
        assert batch.number == 2
    assert Campaign.open(tmp_path / "second" / "c").rounds.batch(2) == Campaign.open(
        tmp_path / "third" / "c"
    ).rounds.batch(2)


def test_what_was_killed_while_it_wrote_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    left = tmp_path / f".dal-{'0' * 16}.part"
    left.write_text("half")
    others = [tmp_path / f".dal-{'0' * 15}.part", tmp_path / ".dal-notes.part", tmp_path / f".dal-{'1' * 16}.part"]
    for other in others[:2]:
        other.write_text("of somebody else")
    others[2].symlink_to(others[0])
    with replacing(tmp_path / "long") as long:
        long.write(b"long")
        assert not left.exists()
        with replacing(tmp_path / "short") as short:
            short.write(b"short")
    assert {path.name for path in tmp_path.iterdir()} == {"long", "short", *(other.name for other in others)}
    assert (tmp_path / "long").read_bytes() == b"long"


def test_what_nobody_has_begun_is_not_closed(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = Campaign.open(shutil.copytree(stages / "open" / "c", tmp_path / "c"))
    told = dal("next", campaign.directory, "--close")
    assert (told.exit_code, [each.status for each in campaign.rounds.all()]) == (0, ["open"])
    assert "dal close" in told.output
    Queue(campaign).lease("ann", 1)
    assert campaign.rounds.begun(1)


def test_the_link_of_an_annotator_is_shown_before_it_is_valid(stages: Path, tmp_path: Path) -> None:
    campaign = Campaign.open(shutil.copytree(stages / "open" / "c", tmp_path / "c"))

    def killed(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Annotators(campaign).add("bob", show=killed)
    assert Annotators(campaign).all() == []
    shown: list[str] = []
    assert Annotators(campaign).add("bob", show=shown.append) == shown[0]
    told = dal("annotator", "add", campaign.directory, "cat")
    account = Annotators(campaign).verify(told.output.split("#")[1].strip())
    assert account is not None
    assert account.name == "cat"


def test_a_campaign_in_which_something_has_happened_is_not_made_again(tmp_path: Path) -> None:
    made = created(tmp_path / "c")
    assert created(tmp_path / "c").id == made.id
    with pytest.raises(CampaignError, match="holds a campaign already"):
        Campaign.make(tmp_path / "c", CHOSEN, pool_fingerprint="beef", n_rows=1000)
    with pytest.raises(CampaignError, match="holds a campaign already"):
        Campaign.make(
            tmp_path / "c", dataclasses.replace(CHOSEN, random_state=12), pool_fingerprint="f00d", n_rows=1000
        )
    Annotators(made).add("ann")
    with pytest.raises(CampaignError, match="holds a campaign already"):
        created(tmp_path / "c")
