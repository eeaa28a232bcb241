"""The cluster recipe, run as it is written."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
import zarr

import dal
from dal.compute.client import connect
from dal.compute.local import SETTINGS
from dal.exchange import write_batch

ROOT = Path(__file__).parents[1]
WORKER_ENVIRONMENT = SETTINGS["distributed"]["nanny"]["pre-spawn-environ"]
README = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")


def block_with(text: str) -> str:
    """The one code block of the README with this command."""
    (block,) = [block for block in re.findall(r"```(?:bash|python)\n(.*?)```", README, re.DOTALL) if text in block]
    return block


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(block: str, environment: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    """Run a block of shell, and end the command that it runs, as `kill` does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        # exec: the process that is ended is Dask's own, not a shell around it
        command = subprocess.Popen(
            ["bash", "-euc", block.replace("\ndask ", "\nexec dask ")],
            cwd=ROOT,
            env=os.environ | environment | {"PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process = psutil.Process(command.pid)
    try:
        yield process
    finally:
        family = process.children(recursive=True)
        command.terminate()
        _, alive = psutil.wait_procs([process, *family], timeout=20)
        for left in alive:
            left.kill()
        command.wait()
    assert not alive


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    return {
        key: value
        for name, below in tree.items()
        for key, value in (
            flat(below, f"{prefix}{name}.") if isinstance(below, dict) else {f"{prefix}{name}": below}
        ).items()
    }


def test_the_file_holds_the_settings_of_local_clusters() -> None:
    written = yaml.safe_load((ROOT / "cluster" / "distributed.yaml").read_text(encoding="utf-8"))
    assert flat(written) == flat(dict(SETTINGS))


def test_every_setting_has_its_reason() -> None:
    lines = (ROOT / "cluster" / "distributed.yaml").read_text(encoding="utf-8").splitlines()
    explained = False
    for line in lines:
        if line.lstrip().startswith("#"):
            explained = True
        elif line.endswith(":"):
            explained = False  # a comment on a section is none on its first value
        else:
            assert explained, f"no reason for {line.strip()}"


def listening(process: psutil.Process) -> set[str]:
    return {
        connection.laddr.ip
        for member in [process, *process.children(recursive=True)]
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_the_recipe_gives_a_working_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # inside of the test, so that it travels by value: the scheduler cannot import this file
    def allowed_failures(dask_scheduler: object) -> int:
        return dask_scheduler.allowed_failures

    for name in WORKER_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)  # where one is set, it wins, as the README says
    port, dashboard = free_port(), free_port()
    environment = {"SCHEDULER_PORT": str(port), "DASHBOARD_PORT": str(dashboard), "WORKERS": "2"}
    with (
        running(block_with("dask scheduler"), environment, tmp_path / "scheduler.log") as scheduler,
        running(block_with("dask worker"), environment, tmp_path / "workers.log") as workers,
        connect(f"tcp://127.0.0.1:{port}", timeout=30) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        assert client.submit(pow, 2, 10).result(timeout=30) == 1024
        assert list(client.nthreads().values()) == [1, 1]
        for name, value in WORKER_ENVIRONMENT.items():
            assert list(client.run(os.getenv, name).values()) == [str(value), str(value)]
        exec(block_with("client.run(os.getenv").replace("8786", str(port)), {})
        assert "OMP_NUM_THREADS {'1'}" in capsys.readouterr().out
        assert client.run_on_scheduler(allowed_failures) == SETTINGS["distributed"]["scheduler"]["allowed-failures"]
        assert listening(scheduler) == {"127.0.0.1"}
        assert listening(workers) == {"127.0.0.1"}
        # Before they are ended: Dask logs a connection that closes while it is written to, traceback and all, as news.
        for log in ("scheduler.log", "workers.log"):
            text = (tmp_path / log).read_text()
            assert "Traceback" not in text, text
    for log in ("scheduler.log", "workers.log"):
        text = (tmp_path / log).read_text()
        assert " - ERROR - " not in text, text


def run_next(directory: Path, address: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dal", "next", str(directory), "--scheduler", address],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def answer(campaign: dal.Campaign, number: int, y: np.ndarray) -> None:
    asked = campaign.rounds.batch(number)
    rows = np.array([each.row for each in asked])
    dal.answer_batch(campaign, rows, [each.record_id for each in asked], y[rows])


@pytest.mark.slow
def test_a_campaign_on_the_recipe_asks_the_same_as_one_in_process(tmp_path: Path) -> None:
    # inside of the test, so that it travels by value
    def has_scanned() -> bool:
        return "dal.scan.worker.kernel" in sys.modules

    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 60_000)
    X = rng.normal(np.eye(6)[y] * 1.5, 1.0).astype(np.float32)
    # Chunks far below those of a pool that dal builds: four spans for two workers, and rows enough for cells.
    stored = zarr.create_array(tmp_path / "pool.zarr", shape=X.shape, chunks=(8192, 6), dtype=X.dtype)
    stored[:] = X
    pool = dal.Pool.open(tmp_path / "pool.zarr")
    here, there = (
        dal.create_campaign(tmp_path / name, pool, ["a", "b", "c"], batch=20, seed=5) for name in ("here", "there")
    )
    port, dashboard = free_port(), free_port()
    # dal need not be installed to be tested: its workers find it here.
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"SCHEDULER_PORT": str(port), "DASHBOARD_PORT": str(dashboard), "WORKERS": "2", "PYTHONPATH": found}
    address = f"tcp://127.0.0.1:{port}"
    with (
        running(block_with("dask scheduler"), environment, tmp_path / "scheduler.log"),
        running(block_with("dask worker"), environment, tmp_path / "workers.log"),
        connect(address, timeout=30) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        assert list(client.run(has_scanned).values()) == [False, False]
        for number in (1, 2):
            run_next(there.directory, address, environment)
            assert isinstance(dal.next_batch(here), dal.Batch)
            name = f"batch-{number:04d}.csv"
            write_batch(here, pool, number, here.directory / name)
            assert (there.directory / name).read_bytes() == (here.directory / name).read_bytes()
            for campaign in (here, there):
                answer(campaign, number, y)
        assert list(client.run(has_scanned).values()) == [True, True]
    cold, fitted = there.rounds.all()
    assert cold.model is None
    assert fitted.model is not None
    cells = [zarr.open_array(campaign.objects.cells, mode="r") for campaign in (here, there)]
    np.testing.assert_array_equal(cells[1][:], cells[0][:])
    assert cells[1].attrs["codebook"] == cells[0].attrs["codebook"]
