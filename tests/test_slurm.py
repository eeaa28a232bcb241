"""The recipe for SLURM, run as it is written, on a SLURM of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import slurm
from tests.certificates import made
from tests.conftest import missing_service
from tests.recipes import ROOT, block_with, until
from tests.twins import Twins

JOBS = 4
"""A scheduler, two of workers, a coordinator."""


@pytest.fixture
def queue() -> Iterator[slurm.Slurm]:
    if missing := slurm.missing():
        missing_service(f"SLURM ({', '.join(missing)})")
    if os.geteuid():
        pytest.skip("this SLURM has to be started by root")
    with slurm.running() as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_walltimes_that_end_in_the_midst_of_a_scan_change_no_batch(tmp_path: Path, queue: slurm.Slurm) -> None:
    # A round goes by waves, of which the first takes longer than SLURM takes to end and restart all jobs.
    twins = Twins(tmp_path, tiles=192)
    (tmp_path / "cluster").symlink_to(ROOT / "cluster")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{queue.environment['PATH']}",
        # dal need not be installed to be tested: its workers find it here.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "WORKER_JOBS": "2",
        "WORKER_CORES": "1",
        "CERTIFICATES": str(made(tmp_path / "certificates")),
    }
    submitted = subprocess.run(
        ["bash", "-euc", block_with("cluster/slurm", "DEFAULT_SCHEME") + block_with("cluster/slurm", "sbatch")],
        cwd=tmp_path,
        env=os.environ | queue.environment | twins.environment | environment,
        capture_output=True,
        text=True,
    )
    assert submitted.returncode == 0, submitted.stderr
    log = tmp_path / "dal-coordinator.log"
    try:
        twins.wait_for(1, "open")
        assert twins.answer(1) == twins.batches[0]
        twins.wait_for(2, "fitted")
        twins.wait_for_span()
        assert [restarts for restarts, _ in queue.jobs().values()] == [0] * JOBS
        queue.end_soon()
        restarted = set()

        def all_restarted() -> bool:
            for job in {job for job, (restarts, _) in queue.jobs().items() if restarts} - restarted:
                queue.limit(job, 60)
                restarted.add(job)
            return len(restarted) == JOBS

        until(all_restarted)
        twins.hurry()
        for number in (2, 3):
            twins.wait_for(number, "open")
            assert twins.answer(number) == twins.batches[number - 1]
        queue.wait_until_empty(seconds=60)
    except BaseException:
        for each in sorted(tmp_path.glob("dal-*.log")):
            print(f"{each.name}:\n{each.read_text()}")  # shown by pytest with the failure
        raise
    assert "Stopped" in log.read_text()
    for role in ("scheduler", "workers-1", "workers-2", "coordinator"):
        told = (tmp_path / f"dal-{role}.log").read_text()
        assert "tcp://" not in told
        assert "tls://" in told or role == "coordinator", role
    assert twins.campaign.rounds.get(2).summary["spans_resumed"] > 0
