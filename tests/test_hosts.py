"""Several hosts, links cut and mended in mid-scan: the batches of an undisturbed campaign, and no wait without end.

The cluster is that of the recipe for SSH: its units keep scheduler and workers running.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import hosts
from tests.conftest import missing_service
from tests.hosts import Host
from tests.recipes import ROOT, block_with, until
from tests.twins import Twins

PORT = 8786
BROKEN = "11s"
"""Without an answer, after which a connection counts as broken: the least that Dask takes, and by default 30 s."""


@pytest.fixture
def joined() -> Iterator[list[Host]]:
    if not hosts.installed():
        missing_service("iproute2")
    if reason := hosts.why_not():
        pytest.skip(f"no hosts of several networks: {reason}")
    with hosts.joined(4) as made:
        yield made


class Cluster:
    """The units of the recipe on their hosts, and commands of `dal` on the coordinator's."""

    def __init__(self, folder: Path, joined: list[Host], environment: dict[str, str]) -> None:
        self.folder = folder
        self.scheduler, self.worker, self.other, self.coordinator = joined
        found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._environment = os.environ | environment
        self._environment |= {"PYTHONPATH": found, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": BROKEN}

    @contextmanager
    def begun(self, host: Host, log: str, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a command of Python on a host; end it."""
        home = self.folder / host.address
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                host.command(sys.executable, *command),
                cwd=self.folder,
                env=self._environment | {"HOME": str(home)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)

    @contextmanager
    def kept(self, host: Host, unit: str, log: str) -> Iterator[None]:
        """Keep a unit of the recipe running on a host."""
        home = self.folder / host.address / "dal"
        (home / ".venv" / "bin").mkdir(parents=True)
        dask = home / ".venv" / "bin" / "dask"
        dask.write_text(f'#!/bin/bash\nexec {sys.executable} -m dask "$@"\n')
        dask.chmod(0o755)
        (home / "cluster").symlink_to(ROOT / "cluster")
        values = {"SCHEDULER_HOST": self.scheduler.address, "SCHEDULER_PORT": PORT, "HOST": host.address, "WORKERS": 1}
        (home / "cluster.env").write_text("\n".join(f"{name}={value}" for name, value in values.items()))
        with self.begun(host, log, "-m", "tests.units", str(ROOT / "cluster" / "ssh" / f"{unit}.service")):
            yield

    def next(self, log: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
        """Begin the next round on the coordinator's host."""
        address = f"tcp://{self.scheduler.address}:{PORT}"
        return self.begun(self.coordinator, log, "-m", "dal", "next", "campaign", "--scheduler", address)

    def carry_on(self, log: str, scheduler: str) -> None:
        """Do as the recipe says until the next batch is there."""
        values = {"SCHEDULER_HOST": scheduler, "SCHEDULER_PORT": str(PORT)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (self.folder / log).open("ab") as output:
            subprocess.run(
                self.coordinator.command("bash", "-uc", block_with("cluster/ssh", "until dal")),
                cwd=self.folder,
                env=self._environment | values | {"PATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
            )

    def read(self, log: str) -> str:
        return (self.folder / log).read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_links_that_are_cut_and_mended_change_no_batch(tmp_path: Path, joined: list[Host]) -> None:
    twins = Twins(tmp_path, tiles=64)
    there = Cluster(tmp_path, joined, twins.environment)
    worker = there.worker
    with (
        there.kept(there.scheduler, "dal-scheduler", "scheduler.log"),
        there.kept(worker, "dal-worker", "worker.log"),
        there.kept(there.other, "dal-worker", "other.log"),
    ):
        until(lambda: "Scheduler at" in there.read("scheduler.log"))
        there.carry_on("first.log", there.scheduler.address)
        assert twins.answer(1) == twins.batches[0]

        with there.next("second.log") as command:
            twins.wait_for_span()
            worker.cut()
            # Shorter than it takes to count as broken: nothing is lost.
            there.scheduler.cut()
            time.sleep(1)
            there.scheduler.mend()
            until(lambda: f"Remove worker addr: tcp://{worker.address}" in there.read("scheduler.log"))
            worker.mend()
            there.coordinator.cut()
            assert command.wait(timeout=60) == 75
        assert "finished spans are kept" in there.read("second.log")
        assert "Traceback" not in there.read("second.log")
        until(lambda: there.read("worker.log").count("Registered to") >= 2)  # the unit has started it again
        there.coordinator.mend()
        twins.hurry()
        # It goes on over a link that is slow.
        there.coordinator.narrow("2mbit")
        slow = ("-m", "tests.slow_link", str(PORT), there.scheduler.address, str(PORT), "0.1")
        with there.begun(there.coordinator, "link.log", *slow):
            until(lambda: "listens" in there.read("link.log"))
            there.carry_on("again.log", "127.0.0.1")
        assert twins.answer(2) == twins.batches[1]
        assert twins.campaign.rounds.get(2).summary["spans_resumed"] > 0
