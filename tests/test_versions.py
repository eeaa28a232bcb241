"""Versions are compared before anything else travels: real workers that have others are refused by name."""

import asyncio
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from dal.compute import versions
from dal.compute.asking import ask
from dal.compute.client import connect
from dal.compute.plugins import Brought, bring
from dal.compute.ready import found_on_scheduler, found_on_workers, ready
from dal.compute.versions import OF_SCHEDULER, SOURCE, differences, found
from dal.compute.work import map_on
from dal.errors import ClusterError
from dal.pool import Pool
from dal.scan import Progress, hosts, scan
from dal.selection.strategy import Strategy
from tests.clusters import dask_scheduler, dask_worker

PACKAGE = Path(versions.__file__).parents[1]


def refused(here: versions.Versions, there: versions.Versions) -> list[str]:
    return [each.name for each in differences(here, there) if each.refused]


@pytest.mark.parametrize(
    ("name", "version", "refuses"),
    [
        ("python", "3.13.99", False),
        ("python", "3.14.0", True),
        ("dal", "0.1.1", True),
        ("dal", None, True),
        (SOURCE, "0123456789ab", True),
        ("scikit-learn", "1.9.99", True),
        ("numpy", "2.5.99", False),
        ("numpy", "2.50.5", True),
        ("zarr", "3.99.0", True),
        ("distributed", "2026.9.0", True),
        ("distributed", "2026.8.9", False),
        ("scipy", "1.0.0", False),
        ("numba", None, False),
    ],
)
def test_what_decides_is_refused_and_what_may_change_a_bit_is_noted(name: str, version: str, refuses: bool) -> None:
    here = {"python": "3.13.0", "dal": "0.1.0", SOURCE: "x", "scikit-learn": "1.9.1", "numpy": "2.5.5", "zarr": "3.4.2"}
    here |= {"dask": "2026.8.0", "distributed": "2026.8.0", "scipy": "1.18.1", "numba": "0.68.1"}
    assert set(here) == set(found())
    [difference] = differences(here, here | {name: version})
    assert (difference.name, difference.refused) == (name, refuses)
    assert differences(here, here) == []
    assert bool(differences(here, here | {name: version}, OF_SCHEDULER)) == (name in OF_SCHEDULER)


def test_remedies_name_what_to_install_where() -> None:
    [of_dal] = differences({"dal": "0.2", SOURCE: "a"}, {"dal": "0.1", SOURCE: "b"})  # the modules go without saying
    assert of_dal.remedy == "install there: pip install 'dal-learn==0.2'"
    [of_package] = differences({"scikit-learn": "1.9.1"}, {"scikit-learn": None})
    assert of_package.remedy == "install there: pip install 'scikit-learn==1.9.1'"
    [of_python] = differences({"python": "3.13.1"}, {"python": "3.12.9"})
    assert "Python 3.13 " in of_python.remedy
    [not_here] = differences({"numba": None}, {"numba": "0.68.1"})
    assert not_here.remedy == "install it here: pip install 'numba==0.68.1'"


def test_versions_are_of_what_is_there() -> None:
    here = found()
    assert here["python"] == ".".join(map(str, sys.version_info[:3]))
    assert here["numpy"] == np.__version__
    assert all(here.values())


def test_the_digest_follows_the_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(place: Path) -> str:
        run = "import sys; print(eval(sys.argv[1], {'text': sys.stdin.read(), 'name': 'found', 'given': ()}))"
        text = Path(versions.__file__).read_text(encoding="utf-8")
        command = [sys.executable, "-c", run, versions._ELSEWHERE]
        told = subprocess.run(
            command, input=text, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(place)}, capture_output=True,
            text=True, check=True,
        ).stdout  # fmt: skip
        answer = eval(told)
        assert answer["dal"] == found()["dal"]
        return str(answer[SOURCE])

    shutil.copytree(PACKAGE, tmp_path / "copy" / "dal", ignore=shutil.ignore_patterns("__pycache__"))
    assert digest(PACKAGE.parent) == digest(tmp_path / "copy") == found()[SOURCE]
    with (tmp_path / "copy" / "dal" / "scores.py").open("a") as file:
        file.write("\n")
    assert digest(tmp_path / "copy") != found()[SOURCE]


# -- real processes ---------------------------------------------------------------------------------------------------

NO_DAL = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dal":
            raise ModuleNotFoundError("No module named 'dal'", name=name)
sys.meta_path.insert(0, Missing())
"""


def fake_distribution(folder: Path, name: str, version: str) -> dict[str, str]:
    """Make metadata that is found before the installed one; the environment that finds it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{PACKAGE.parent}"}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A scheduler, with workers of its own that each lack something; address of the scheduler, and of each worker."""
    folder = tmp_path_factory.mktemp("strangers")
    older = folder / "older"
    shutil.copytree(PACKAGE, older / "dal", ignore=shutil.ignore_patterns("__pycache__"))
    module = older / "dal" / "_distribution.py"
    module.write_text(module.read_text().replace('__version__ = "', '__version__ = "0.0.'))
    kinds: dict[str, tuple[dict[str, str], str]] = {
        "scikit-learn": (fake_distribution(folder / "a", "scikit-learn", "1.8.77"), ""),
        "scipy": (fake_distribution(folder / "b", "scipy", "1.0.77"), ""),
        "older": ({"PYTHONPATH": str(older)}, ""),
        "none": ({}, NO_DAL),
    }
    with ExitStack() as open_:
        address = open_.enter_context(dask_scheduler())
        for name, (environment, preload) in kinds.items():
            open_.enter_context(dask_worker(address, name=name, environment=environment, preload=preload))
        with connect(address, timeout=60) as client:
            client.wait_for_workers(len(kinds), timeout=60)
            workers = client.scheduler_info(n_workers=-1)["workers"]
            yield address, {str(worker["name"]): where for where, worker in workers.items()}


@contextmanager
def only(strangers: tuple[str, dict[str, str]], name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Give a client that sees one of the workers."""
    address, workers = strangers
    with connect(address, timeout=60) as client:
        everything = client.scheduler_info

        def seen(**options: object) -> dict[str, object]:
            info = everything(**options)
            known = {where: worker for where, worker in info["workers"].items() if where == workers[name]}
            return {**info, "workers": known}

        monkeypatch.setattr(client, "scheduler_info", seen)
        yield client


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool.build(np.eye(8, dtype=np.float32), tmp_path / "pool.zarr")


@pytest.mark.parametrize(
    ("worker", "says"),
    [
        ("scikit-learn", r"has scikit-learn 1\.8\.77.*pip install 'scikit-learn=="),
        ("older", r"has dal 0\.0\..*pip install 'dal-learn=="),
        ("none", "has no dal.*pip install 'dal-learn=="),
    ],
)
@pytest.mark.slow
def test_a_worker_of_other_versions_is_refused_before_anything_travels(
    strangers: tuple[str, dict[str, str]], worker: str, says: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only(strangers, worker, monkeypatch) as client:
        monkeypatch.setattr(client, "register_plugin", None)
        monkeypatch.setattr(client, "map", None)
        with pytest.raises(ClusterError, match=says):
            scan(pool, None, Strategy.named("random"), 2, client=client)
        with pytest.raises(ClusterError, match=says):
            list(map_on(client, abs, [-1]))


@pytest.mark.slow
def test_versions_that_may_change_a_bit_are_noted_once(
    strangers: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with only(strangers, "scipy", monkeypatch) as client:
        for _ in range(2):
            [note] = ready(client)
            assert "scipy 1.0.77" in note
        assert len([record for record in caplog.records if "scipy" in record.message]) == 1


@pytest.mark.slow
def test_each_process_says_its_versions_itself(strangers: tuple[str, dict[str, str]]) -> None:
    address, workers = strangers
    with connect(address, timeout=60) as client:
        answers = found_on_workers(client, list(workers.values()))
        assert found_on_scheduler(client) == found()
        assert set(answers) == set(workers.values())
        # A thread as well needs no `dal` there.
        call = versions.elsewhere("found")
        assert ask(client, asyncio.to_thread, *call, workers=list(answers), seconds=60.0) == answers
        assert answers[workers["none"]]["dal"] is None
        assert answers[workers["none"]]["numpy"] == np.__version__
        assert len({answer[SOURCE] for answer in answers.values()}) == 3


@pytest.mark.slow
def test_a_worker_that_was_not_asked_refuses_what_it_is_sent(
    strangers: tuple[str, dict[str, str]], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "ready", lambda *_: ())
    monkeypatch.setattr(hosts, "_ask_each_host", lambda *_: {})
    with connect(strangers[0], timeout=60) as client:
        with pytest.raises(ClusterError, match=r"cannot load what it is sent .*pip install"):
            scan(pool, None, Strategy.named("random"), 2, client=client)
        assert len(client.nthreads()) == len(strangers[1])
        left = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
        assert not [name for name in left if name.startswith("dal")]


@pytest.mark.slow
def test_a_scheduler_of_other_versions_is_refused(tmp_path: Path, pool: Pool) -> None:
    with (
        dask_scheduler(preload=NO_DAL) as address,
        dask_worker(address),
        connect(address, timeout=60) as client,
        pytest.raises(ClusterError, match=r"scheduler at .* has no dal.*pip install"),
    ):
        scan(pool, None, Strategy.named("random"), 2, client=client)


@pytest.mark.slow
@pytest.mark.parametrize("nanny", [False, True])
def test_a_worker_of_other_versions_that_joins_later_ends_and_says_why(tmp_path: Path, pool: Pool, nanny: bool) -> None:
    environment = fake_distribution(tmp_path, "scikit-learn", "1.8.77")
    log = tmp_path / "worker.log"
    joined = []

    def another_joins(progress: Progress) -> None:
        if not joined and not progress.waiting:
            with dask_worker(address, name="late", nanny=nanny, environment=environment, log=log) as process:
                joined.append(process.wait(60))

    with dask_scheduler() as address, dask_worker(address), connect(address, timeout=60) as client:
        found = scan(pool, None, Strategy.named("random"), 2, client=client, progress=another_joins)
        assert len(found.candidates) == 2
        assert len(client.nthreads()) == 1
    assert joined
    assert joined[0] != -signal.SIGTERM
    assert "scikit-learn 1.8.77" in log.read_text()


@pytest.mark.slow
def test_a_worker_that_joins_later_and_lacks_a_module_ends_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def made():\n    return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    log = tmp_path / "worker.log"
    with dask_scheduler() as address, connect(address, timeout=60) as client:
        bring(client, Brought("of-users", importlib.import_module("only_here").made))
        with dask_worker(address, nanny=True, log=log) as process:
            assert process.wait(60) == 1
        assert not client.nthreads()
        with dask_worker(address, nanny=True, environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}):
            client.wait_for_workers(1, timeout=60)
            [nanny] = client.run(lambda dask_worker: dask_worker.nanny).values()
            assert nanny.startswith("tcp://127.0.0.1")
    assert "No module named 'only_here'" in log.read_text()
