"""The recipe for SSH, run as it is written: three addresses of this machine stand for hosts, with a server each."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from dal.compute.client import connect
from tests.conftest import missing_service
from tests.recipes import ROOT, block_with, free_port, until
from tests.twins import Twins

RECIPE = "cluster/ssh"
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
UNITS = sorted((ROOT / RECIPE).glob("*.service"))


def program(name: str) -> str:
    """The path of a program of OpenSSH or systemd."""
    found = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if found is None:
        missing_service(name)
    return str(found)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


class Hosts:
    """Hosts with a home each, and a folder of programs in which `ssh` finds them.

    Attributes
    ----------
    port
        Of the scheduler.
    ssh_port
    """

    def __init__(self, folder: Path, port: int, ssh_port: int) -> None:
        self.folder = folder
        self.port = port
        self.ssh_port = ssh_port
        self.address = f"tcp://{HOSTS[0]}:{port}"
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {
            "PATH": path,
            "SCHEDULER_HOST": HOSTS[0],
            "SCHEDULER_PORT": str(port),
            "WORKER_HOSTS": " ".join(HOSTS[1:]),
            "WORKERS": "1",
        }

    @contextmanager
    def begun(self, text: str, log: str, **environment: str) -> Iterator[psutil.Process]:
        """Run a block of the recipe, and leave it running; end its connections at the end."""
        with (self.folder / log).open("wb") as output:
            shell = subprocess.Popen(
                ["bash", "-euc", f"{block_with(RECIPE, text)}\nwait"],
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = psutil.Process(shell.pid)
        try:
            yield process
        finally:
            for each in [*process.children(recursive=True), process]:
                each.kill()
            shell.wait()

    def done(self, text: str) -> None:
        """Run a block of the recipe to its end."""
        subprocess.run(["bash", "-euc", block_with(RECIPE, text)], env=self.environment, check=True, timeout=60)

    def read(self, log: str) -> str:
        return (self.folder / log).read_text(errors="replace")

    def is_free(self) -> bool:
        """Whether no scheduler listens."""
        with socket.socket() as probe:
            return probe.connect_ex((HOSTS[0], self.port)) != 0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    sshd, ssh, keygen = (program(name) for name in ("sshd", "ssh", "ssh-keygen"))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server of root separates its privileges
    port = free_port()
    (tmp_path / "bin").mkdir()
    for key in ("id", "host"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    script(
        tmp_path / "bin" / "ssh",
        f"exec {ssh} -F none -p {port} -i {tmp_path / 'id'} -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR"
        f' -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -l {getpass.getuser()} "$@"',
    )
    # In their place: units run, by what does as systemd does.
    script(tmp_path / "bin" / "loginctl", "")
    script(
        tmp_path / "bin" / "systemctl",
        f'cd {ROOT}; setsid {sys.executable} -m tests.units "$HOME/.config/systemd/user/$4.service"'
        f' > "$HOME/$4.log" 2>&1 < /dev/null & echo $! > "$HOME/$4.pid"',
    )
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with ExitStack() as running:
        for host in HOSTS:
            home = tmp_path / host
            (home / "dal").mkdir(parents=True)
            (home / "dal" / "cluster").symlink_to(ROOT / "cluster")
            (home / "dal" / ".venv" / "bin").mkdir(parents=True)
            script(home / "dal" / ".venv" / "bin" / "dask", f'exec {sys.executable} -m dask "$@"')
            settings = [
                f"ListenAddress {host}:{port}",
                f"HostKey {tmp_path / 'host'}",
                f"AuthorizedKeysFile {tmp_path / 'id.pub'}",
                "StrictModes no",
                "UsePAM no",
                "PidFile none",
                f"SetEnv HOME={home} PATH={tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']} PYTHONPATH={found}",
            ]
            (home / "sshd_config").write_text("\n".join(settings) + "\n")
            with (home / "sshd.log").open("wb") as log:
                server = subprocess.Popen([sshd, "-D", "-e", "-f", str(home / "sshd_config")], stderr=log)
            running.callback(server.wait)
            running.callback(server.terminate)
            until(lambda log=home / "sshd.log": "listening" in log.read_text())
        yield Hosts(tmp_path, free_port(), port)
        for pid in tmp_path.glob("*/*.pid"):
            os.kill(int(pid.read_text()), signal.SIGTERM)


def wait_for_two(address: str) -> None:
    """Wait for two workers, on a scheduler that may just be starting."""
    with connect(address, timeout=30) as client:
        client.wait_for_workers(2, timeout=60)


def asked(twins: Twins, number: int, address: str) -> list[int]:
    twins.campaign.next_batch(client=address)
    return twins.answer(number)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_campaign_by_ssh(hosts: Hosts, tmp_path: Path) -> None:
    twins = Twins(tmp_path, tiles=6)
    twins.hurry()
    # For an afternoon.
    with hosts.begun("ssh -tt", "afternoon.log"):
        wait_for_two(hosts.address)
        assert asked(twins, 1, hosts.address) == twins.batches[0]
    until(hosts.is_free)  # all of it ends with its connections
    # A connection that is gone without a word leaves the scheduler behind.
    with hosts.begun("ssh -tt", "before.log", WORKER_HOSTS="") as shell:
        until(lambda: not hosts.is_free())
        for each in shell.children():
            each.suspend()
        with hosts.begun("ssh -tt", "again.log", WORKER_HOSTS=""):
            until(lambda: "Address already in use" in hosts.read("again.log"))
        assert not hosts.is_free()
        hosts.done("pkill")
        until(hosts.is_free)
    # For good.
    hosts.done("systemctl")
    wait_for_two(hosts.address)
    assert asked(twins, 2, hosts.address) == twins.batches[1]
    with connect(hosts.address) as client:
        scheduler = client.run_on_scheduler(os.getpid)
    os.kill(scheduler, signal.SIGKILL)
    until(lambda: psutil.pid_exists(scheduler) is False)
    wait_for_two(hosts.address)
    assert asked(twins, 3, hosts.address) == twins.batches[2]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_units(unit: Path, tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    (tmp_path / "dal" / ".venv" / "bin").mkdir(parents=True)
    script(tmp_path / "dal" / ".venv" / "bin" / "dask", "")
    checked = subprocess.run(
        [analyze, "--user", "verify", str(unit)],
        env=os.environ | {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
