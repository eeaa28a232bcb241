"""The cluster recipe, run as it is written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

import dal
from dal.compute.client import connect
from dal.compute.local import SETTINGS
from dal.exchange import write_batch
from tests.recipes import ROOT, block_with, flat, free_port, listening, running

WORKER_ENVIRONMENT = SETTINGS["distributed"]["nanny"]["pre-spawn-environ"]


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


@pytest.mark.slow
def test_the_recipe_gives_a_working_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # inside of the test, so that it travels by value: the scheduler cannot import this file
    def allowed_failures(dask_scheduler: object) -> int:
        return dask_scheduler.allowed_failures

    for name in WORKER_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)  # where one is set, it wins, as the README says
    port, dashboard = free_port(), free_port()
    # dal need not be installed to be tested: scheduler and workers find it here.
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"SCHEDULER_PORT": str(port), "DASHBOARD_PORT": str(dashboard), "WORKERS": "2", "PYTHONPATH": found}
    with (
        running(block_with("cluster", "dask scheduler"), environment, tmp_path / "scheduler.log") as scheduler,
        running(block_with("cluster", "dask worker"), environment, tmp_path / "workers.log") as workers,
        connect(f"tcp://127.0.0.1:{port}", timeout=30) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        assert client.submit(pow, 2, 10).result(timeout=30) == 1024
        assert list(client.nthreads().values()) == [1, 1]
        for name, value in WORKER_ENVIRONMENT.items():
            assert list(client.run(os.getenv, name).values()) == [str(value), str(value)]
        exec(block_with("cluster", "client.run(os.getenv").replace("8786", str(port)), {})
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
    campaign.label([each.record_id for each in asked], y[rows])


@pytest.mark.slow
def test_a_campaign_on_the_recipe_asks_the_same_as_one_in_process(tmp_path: Path) -> None:
    # inside of the test, so that it travels by value
    def has_scanned() -> bool:
        return bool(sys.modules["dal.scan.worker.spans"]._LAST_MODEL)  # imported before the worker takes part

    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 60_000)
    X = rng.normal(np.eye(6)[y] * 1.5, 1.0).astype(np.float32)
    # Chunks far below those of a pool that dal builds: four spans for two workers, and rows enough for cells.
    stored = zarr.create_array(tmp_path / "pool.zarr", shape=X.shape, chunks=(8192, 6), dtype=X.dtype)
    stored[:] = X
    pool = dal.Pool.open(tmp_path / "pool.zarr")
    here, there = (
        dal.Campaign.create(tmp_path / name, pool, ["a", "b", "c"], batch_size=20, random_state=5)
        for name in ("here", "there")
    )
    port, dashboard = free_port(), free_port()
    # dal need not be installed to be tested: its workers find it here.
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"SCHEDULER_PORT": str(port), "DASHBOARD_PORT": str(dashboard), "WORKERS": "2", "PYTHONPATH": found}
    address = f"tcp://127.0.0.1:{port}"
    with (
        running(block_with("cluster", "dask scheduler"), environment, tmp_path / "scheduler.log"),
        running(block_with("cluster", "dask worker"), environment, tmp_path / "workers.log"),
        connect(address, timeout=30) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        assert list(client.run(has_scanned).values()) == [False, False]
        for number in (1, 2):
            run_next(there.directory, address, environment)
            assert isinstance(here.next_batch(), dal.Batch)
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
