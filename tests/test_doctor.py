"""The doctor: findings from facts by hand, and facts from a real cluster with seeded faults."""

import ast
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Nanny, Scheduler, SpecCluster, Worker

import dal
from dal.cli import main
from dal.compute.local import SETTINGS
from dal.doctor import process
from dal.doctor.examine import examine
from dal.doctor.facts import Certificate, Facts, Home, Machine, Process
from dal.doctor.findings import findings, together
from dal.scan.plan import WorkerBytes
from tests import databases

MIB = 2**20
NEED = WorkerBytes(base=350 * MIB, model=0, holding=0, reading=48 * MIB, scoring=0, keeping=2 * MIB)
VARIABLES = {key: str(value) for key, value in SETTINGS["distributed"]["nanny"]["pre-spawn-environ"].items()}
GOOD = {
    "distributed.scheduler.allowed-failures": 20,
    "distributed.scheduler.no-workers-timeout": "5m",
    "distributed.scheduler.worker-ttl": "15 minutes",
    "distributed.comm.retry.count": 3,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.pause": 0.8,
    "distributed.worker.memory.terminate": 0.95,
}
VERSIONS = {"python": "3.13.0", "dal": "0.1.0", "numpy": "2.5.5", "scikit-learn": "1.9.1"}


def sound() -> Facts:
    """Two hosts of two workers each, as the recipe starts them."""
    local = ("127.0.0.1", 8787)
    this = Process("this process", host="here", environment={}, versions=VERSIONS)
    leader = Process("scheduler", "tls://10.0.0.1:8786", "10.0.0.1", dashboard=8787, listening=(local,))
    workers = [
        Process("worker", f"tls://{host}:{port}", host, memory_limit=2048 * MIB, dashboard=port + 1, listening=(local,))
        for host in ("10.0.0.2", "10.0.0.3")
        for port in (4000, 5000)
    ]
    others = [replace(each, environment=VARIABLES, settings=GOOD, versions=VERSIONS) for each in (leader, *workers)]
    machines = [
        Machine(host, 8192 * MIB, 4, ("openblas Haswell",), 0.3, 0.4, 2**40, chunk_bytes=16 * MIB, chunk_seconds=0.1)
        for host in ("here", "10.0.0.2", "10.0.0.3")
    ]
    home = Home(directory="/campaign", free=2**40, needed=2**20, pool="/pool.zarr", store="/campaign")
    return Facts((this, *others), tuple(machines), home, NEED, "tls://10.0.0.1:8786")


def serious(facts: Facts) -> list[tuple[str, str, str]]:
    return [(each.severity, each.host, each.what) for each in findings(facts, SETTINGS) if each.severity != "fact"]


def test_a_sound_cluster_has_nothing_to_change() -> None:
    assert serious(sound()) == []
    facts = [each for each in findings(sound(), SETTINGS) if each.severity == "fact"]
    assert [each.host for each in facts if "chunk" in each.what] == ["here", "10.0.0.2", "10.0.0.3"]
    assert any("4 workers, 4 threads, 2 hosts" in each.what for each in facts)


def test_a_sound_machine_alone_has_nothing_to_change() -> None:
    facts = sound()
    assert serious(replace(facts, processes=facts.processes[:1], machines=facts.machines[:1], scheduler="")) == []


def worker(**changed: object) -> Callable[[Facts], Facts]:
    """Change the first worker of 10.0.0.2."""

    def change(facts: Facts) -> Facts:
        processes = list(facts.processes)
        processes[2] = replace(processes[2], **changed)
        return replace(facts, processes=tuple(processes))

    return change


def leader(**changed: object) -> Callable[[Facts], Facts]:
    def change(facts: Facts) -> Facts:
        here, scheduler, *workers = facts.processes
        return replace(facts, processes=(here, replace(scheduler, **changed), *workers))

    return change


def machine(**changed: object) -> Callable[[Facts], Facts]:
    def change(facts: Facts) -> Facts:
        here, first, *others = facts.machines
        return replace(facts, machines=(here, replace(first, **changed), *others))

    return change


def home(**changed: object) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, home=replace(facts.home, **changed))


def by(address: str) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, scheduler=address)


def certified(days: float) -> Callable[[Facts], Facts]:
    """Add a certificate that expires in some days."""
    shown = Certificate("10.0.0.2", "a worker's certificate", datetime(2027, 1, 31, tzinfo=UTC), days * 86_400)
    return lambda facts: replace(facts, certificates=(shown,))


def alone(environment: dict[str, str], memory: int) -> Callable[[Facts], Facts]:
    return lambda facts: replace(
        facts,
        processes=(replace(facts.processes[0], environment=environment),),
        machines=(replace(facts.machines[0], memory=memory),),
        scheduler="",
    )


@pytest.mark.parametrize(
    ("seeded", "severity", "host", "named"),
    [
        (lambda facts: replace(facts, no_cluster="nobody answers"), "fault", "tls://10.0.0.1:8786", "nobody"),
        (
            lambda facts: replace(facts, processes=facts.processes[:2], machines=facts.machines[:1]),
            "fault",
            "tls://10.0.0.1:8786",
            "no worker",
        ),
        (worker(silent="TimeoutError"), "fault", "10.0.0.2", "TimeoutError"),
        (worker(versions=VERSIONS | {"scikit-learn": "1.8.0"}), "fault", "10.0.0.2", "scikit-learn 1.8.0"),
        (worker(versions=VERSIONS | {"dal": None}), "fault", "10.0.0.2", "no dal"),
        (leader(versions=VERSIONS | {"dask": "2025.1.0"}), "fault", "10.0.0.1", "dask 2025.1.0"),
        (worker(memory_limit=300 * MIB), "fault", "10.0.0.2", "300 MiB"),
        (worker(memory_limit=450 * MIB), "advice", "10.0.0.2", "pause"),
        (worker(memory_limit=0), "advice", "10.0.0.2", "no memory limit"),
        (machine(memory=700 * MIB), "fault", "10.0.0.2", "the machine has 700"),
        (machine(memory=3072 * MIB), "advice", "10.0.0.2", "4,096 MiB"),
        (home(candidates=9000 * MIB), "fault", "here", "9,000 MiB in the coordinator"),
        (worker(threads=4), "advice", "10.0.0.2", "4 threads"),
        (worker(has_nanny=False), "advice", "10.0.0.2", "nanny"),
        (worker(environment=VARIABLES | {"OMP_NUM_THREADS": "16"}), "advice", "10.0.0.2", "OMP_NUM_THREADS is 16"),
        (
            worker(environment=VARIABLES | {"MALLOC_TRIM_THRESHOLD_": "65536"}),
            "advice",
            "10.0.0.2",
            "MALLOC_TRIM_THRESHOLD_ is 65536",
        ),
        (
            worker(environment={**VARIABLES, "MALLOC_MMAP_THRESHOLD_": None}),
            "advice",
            "10.0.0.2",
            "MALLOC_MMAP_THRESHOLD_ is not set",
        ),
        (leader(settings={"distributed.scheduler.allowed-failures": 3}), "advice", "10.0.0.1", "allowed-failures is 3"),
        (
            leader(settings={"distributed.scheduler.no-workers-timeout": None}),
            "advice",
            "10.0.0.1",
            "no-workers-timeout is None",
        ),
        (leader(settings={"distributed.scheduler.worker-ttl": "5 minutes"}), "advice", "10.0.0.1", "worker-ttl"),
        (leader(files=119), "advice", "10.0.0.1", "119 files open"),
        (worker(settings=GOOD | {"distributed.comm.retry.count": 0}), "advice", "10.0.0.2", "retry.count is 0"),
        (worker(settings=GOOD | {"distributed.worker.profile.enabled": True}), "advice", "10.0.0.2", "profile"),
        (worker(settings=GOOD | {"distributed.worker.memory.terminate": False}), "advice", "10.0.0.2", "terminate"),
        (leader(listening=(("0.0.0.0", 8787),)), "advice", "10.0.0.1", "0.0.0.0 port 8787"),
        (worker(listening=(("::", 4001),)), "advice", "10.0.0.2", ":: port 4001"),
        (by("tcp://10.0.0.1:8786"), "advice", "tcp://10.0.0.1:8786", "not encrypted"),
        (by("tcp://8.8.8.8:8786"), "fault", "tcp://8.8.8.8:8786", "not encrypted"),
        (certified(29), "advice", "10.0.0.2", "expires on 2027-01-31"),
        (certified(-0.1), "fault", "10.0.0.2", "expired on 2027-01-31"),
        (machine(kernels=("openblas SkylakeX",)), "advice", "10.0.0.2", "SkylakeX"),
        (machine(clock_off=-40.0), "advice", "10.0.0.2", "40 s behind"),
        (machine(clock_off=3600.0), "fault", "10.0.0.2", "3,600 s ahead of"),
        (machine(pool_trouble="PoolNotFound: there is none"), "fault", "10.0.0.2", "PoolNotFound"),
        (machine(store_trouble="PermissionError: no"), "advice", "10.0.0.2", "PermissionError"),
        (machine(chunk_seconds=1.0), "advice", "10.0.0.2", "10 times"),
        (machine(unseen="no thread was free"), "advice", "10.0.0.2", "no thread"),
        (machine(free=10 * MIB), "advice", "10.0.0.2", "10 MiB free"),
        (home(troubles={"store": "s3://... cannot be written"}), "fault", "here", "s3://"),
        (home(filesystem="nfs4"), "fault", "here", "nfs4"),
        (home(database_host="db", database_encrypted=False), "advice", "here", "db is not encrypted"),
        (home(database_host="db", database_clock_off=-9.0), "advice", "here", "-9 s"),
        (home(free=2**30, needed=2**31), "fault", "here", "1,024 MiB free"),
        (home(free=2**30), "advice", "here", "1,024 MiB free"),
        (alone({"OPENBLAS_NUM_THREADS": "8"}, 8192 * MIB), "advice", "here", "OPENBLAS_NUM_THREADS is 8"),
        (alone({}, 1024 * MIB), "advice", "here", "1,600 MiB"),
    ],
)
def test_each_seeded_fault_is_named_alone(
    seeded: Callable[[Facts], Facts], severity: str, host: str, named: str
) -> None:
    found = serious(seeded(sound()))
    first = {(each[0], each[1]) for each in found if named in each[2]}
    assert first == {(severity, host)}
    # Kernels are compared: both kinds are named, and nothing else is.
    assert all(named in each[2] or "linear algebra" in each[2] for each in found), found


@pytest.mark.parametrize(
    "harmless",
    [
        worker(environment={key: VARIABLES[key] for key in VARIABLES if not key.startswith("MALLOC")}),
        worker(settings={}),
        machine(clock_off=30.0, clock_within=29.0),
        leader(listening=(("0.0.0.0", 8786), ("127.0.0.1", 8787))),
        by("tcp://127.0.0.1:8786"),
        certified(31),
        home(filesystem="nfs4", database_host="db"),
    ],
)
def test_what_does_no_harm_is_not_named(harmless: Callable[[Facts], Facts]) -> None:
    assert serious(harmless(sound())) == []


def test_hosts_with_the_same_finding_are_named_together() -> None:
    facts = sound()
    open_doors = [replace(each, listening=(("0.0.0.0", each.dashboard),)) for each in facts.processes[1:4]]
    found = together(findings(replace(facts, processes=(*facts.processes[:1], *open_doors)), SETTINGS))
    assert [hosts for (_, what, _), hosts in found.items() if "port 4001" in what] == [["10.0.0.2"]]
    doubled = [*findings(facts, SETTINGS), *findings(facts, SETTINGS)]
    assert together(doubled) == together(findings(facts, SETTINGS))


def test_what_is_sent_to_other_processes_needs_no_dal() -> None:
    tree = ast.parse(Path(process.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imports if "dal" in ast.unparse(node).split()[1].split(".")]
    top = {ast.unparse(node).split()[1] for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert top == {"__future__", "os", "time", "typing"}


def test_a_store_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    assert process.write_trouble(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    assert "FileNotFoundError" in (process.write_trouble(str(tmp_path / "missing")) or "")


# -- a real cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A campaign under a name that another process finds elsewhere: a path by way of the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    stored = zarr.create_array("pool.zarr", shape=(60_000, 6), chunks=(8192, 6), dtype="float32")
    stored[:] = rng.standard_normal((60_000, 6)).astype("float32")
    dal.Campaign.create("campaign", "/proc/self/cwd/pool.zarr", ["ham", "spam"], batch_size=20)
    return "/proc/self/cwd/campaign"


def doctor(*words: str) -> tuple[int, dict[str, list[str]]]:
    """Run the command; return its exit status, and what it says by severity."""
    result = CliRunner().invoke(main, ["doctor", *words], catch_exceptions=False)
    said: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        said.setdefault(line.split(" ")[0], []).append(line)
    return result.exit_code, said


@pytest.fixture
def troubled(campaign: str) -> Iterator[str]:
    """A cluster of four hosts with a dozen faults; the address of its scheduler."""
    own = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    low = {"nthreads": 2, "memory_limit": 300 * MIB, "env": {"OMP_NUM_THREADS": "8"}}
    old = "import sklearn; sklearn.__version__ = '1.0'"
    workers = {
        "old": {"cls": Nanny, "options": {"host": "127.0.0.1", "preload": old, **low, **own}},
        "bare": {
            "cls": Nanny,
            "options": {"host": "127.0.0.2", "preload": "import sys; sys.modules['dal'] = None", **own}
            | {"nthreads": 1, "memory_limit": 0},
        },
        "apart": {
            "cls": Nanny,
            "options": {"host": "127.0.0.3", "preload": "import os; os.chdir('/')", **own}
            | {"nthreads": 1, "memory_limit": 2048 * MIB},
        },
        "unwatched": {
            "cls": Worker,
            "options": {"host": "127.0.0.4", "nthreads": 1, "memory_limit": 2048 * MIB, "dashboard_address": None},
        },
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    # Dask's own defaults, which a local cluster of this process may have changed.
    settings = {
        "distributed.scheduler.allowed-failures": 3,
        "distributed.scheduler.no-workers-timeout": None,
        "distributed.comm.retry.count": 0,
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 65536,
    }
    with (
        dask.config.set(settings),
        SpecCluster(scheduler=scheduler, workers=workers, silence_logs=logging.CRITICAL) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.mark.slow
def test_the_doctor_names_the_faults_of_a_real_cluster(campaign: str, troubled: str) -> None:
    status, said = doctor(campaign, "--scheduler", troubled)
    assert status == 1
    seeded = {
        "fault": [
            ("127.0.0.1", "scikit-learn 1.0"),
            ("127.0.0.1", "300 MiB for 2 threads"),
            ("127.0.0.2", "no dal"),
            ("127.0.0.3", "cannot read the pool /proc/self/cwd/pool.zarr"),
        ],
        "advice": [
            ("127.0.0.1", "allowed-failures is 3"),
            ("127.0.0.1", "no-workers-timeout is None"),
            ("127.0.0.1", "retry.count is 0"),
            ("127.0.0.1", "has 2 threads"),
            ("127.0.0.1", "OMP_NUM_THREADS is 8"),
            ("127.0.0.2", "MALLOC_TRIM_THRESHOLD_ is 65536"),
            ("127.0.0.2", "no memory limit"),
            ("127.0.0.3", "cannot write to /proc/self/cwd/campaign"),
            ("127.0.0.4", "nanny"),
        ],
    }
    for severity, faults in seeded.items():
        for host, named in faults:
            assert [line for line in said[severity] if host in line and named in line], (host, named, said)
    assert [line for line in said["fact"] if "127.0.0.4" in line and "reads a chunk" in line]
    assert not [line for line in (*said["fault"], *said["advice"]) if "127.0.0.4" in line and "pool" in line]
    assert len(said["fault"]) == 4, said["fault"]


def test_the_doctor_of_this_machine_alone(campaign: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("campaign").rglob("*") if path.is_file()}
    status, said = doctor(campaign)
    assert status == 0
    assert "fault" not in said
    assert [line for line in said["fact"] if "reads a chunk" in line]
    assert before == {path: path.stat().st_mtime_ns for path in Path("campaign").rglob("*") if path.is_file()}
    zarr.create_array("pool.zarr", shape=(10, 6), dtype="float32", overwrite=True)
    status, said = doctor(campaign)
    assert status == 1
    assert [line for line in said["fault"] if "pool" in line]


def test_the_doctor_of_a_pool(campaign: str) -> None:
    status, said = doctor("--pool", "pool.zarr")
    assert status == 0
    assert [line for line in said["fact"] if "MiB with one thread" in line]
    status, said = doctor("--pool", "missing.zarr")
    assert status == 1
    assert [line for line in said["fault"] if "missing.zarr" in line]
    status, said = doctor(campaign, "--pool", "pool.zarr")
    assert status == 2


def test_the_doctor_of_a_database_on_a_server_and_of_a_store(campaign: str, tmp_path: Path, backend: str) -> None:
    storage = dal.Storage(database=databases.fresh(), store=(tmp_path / "far" / "store").as_uri())
    made = dal.Campaign.create("other", "pool.zarr", ["ham", "spam"], storage=storage)
    facts = examine(made.directory)
    assert facts.home.troubles == {}
    assert facts.home.store == str(tmp_path / "far" / "store" / made.id)
    assert bool(facts.home.database_host) == (backend == "postgresql")
    assert facts.home.database_encrypted  # by a socket of this machine
    assert abs(facts.home.database_clock_off) < 60
    (tmp_path / "far").write_text("a file in its place")
    assert set(examine(made.directory).home.troubles) == {"store"}


def test_the_doctor_of_no_cluster(campaign: str) -> None:
    status, said = doctor(campaign, "--scheduler", "nonsense://127.0.0.1:1")
    assert status == 1
    assert [line for line in said["fault"] if "nonsense" in line]
    assert [line for line in said["fact"] if "reads a chunk" in line]
