"""Hosts of one network, for tests: network namespaces that a bridge joins, whose links can be cut and mended."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.slurm import PATH


def installed() -> bool:
    """Whether the system has the program for them."""
    return shutil.which("ip", path=PATH) is not None


def why_not() -> str | None:
    """Return the reason why this machine can have no such hosts."""
    name = f"dal-try-{secrets.token_hex(3)}"
    done = _ip("netns", "add", name)
    if done.returncode == 0:
        # not every kernel that knows namespaces has these two devices
        done = _ip("-n", name, "link", "add", "try0", "type", "bridge")
        done = (
            done if done.returncode else _ip("-n", name, "link", "add", "try1", "type", "veth", "peer", "name", "try2")
        )
        _ip("netns", "del", name)
    return f"the kernel or the container forbids it ({done.stderr.strip()})" if done.returncode else None


class Host:
    """A host: what runs on it sees its own loopback and the network, nothing else.

    Attributes
    ----------
    address
    """

    def __init__(self, switch: str, number: int) -> None:
        self.address = f"10.77.0.{number}"
        self.name = f"{switch}-{number}"
        self._switch = switch
        self._port = f"p{number}"
        ip("netns", "add", self.name)
        ip("link", "add", "eth0", "netns", self.name, "type", "veth", "peer", "name", self._port, "netns", switch)
        ip("-n", switch, "link", "set", self._port, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        self.mend()

    def command(self, *words: str) -> list[str]:
        """Give the command line that runs a command on this host."""
        return [str(shutil.which("ip", path=PATH)), "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Lose all packets from and to this host, without a word to anybody: as behind a switch that fails."""
        ip("-n", self._switch, "link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Let packets through again."""
        ip("-n", self._switch, "link", "set", self._port, "master", "bridge")

    def narrow(self, rate: str) -> None:
        """Limit what this host sends, where the kernel knows how."""
        limit = ["tbf", "rate", rate, "burst", "32kb", "latency", "400ms"]
        _run("tc", "-n", self.name, "qdisc", "add", "dev", "eth0", "root", *limit)


@contextmanager
def joined(count: int) -> Iterator[list[Host]]:
    """Give hosts of one network."""
    switch = f"dal-{secrets.token_hex(3)}"
    with ExitStack() as made:
        ip("netns", "add", switch)
        made.callback(ip, "netns", "del", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        hosts = []
        for number in range(1, count + 1):
            made.callback(_ip, "netns", "del", f"{switch}-{number}")
            hosts.append(Host(switch, number))
        yield hosts


def ip(*words: str) -> None:
    """Run a command of iproute2."""
    done = _ip(*words)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _ip(*words: str) -> "subprocess.CompletedProcess[str]":
    return _run("ip", *words)


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
