"""Run commands in the image of cluster/containers/ as a container engine does, where there is none."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import pytest

from tests.conftest import missing_service
from tests.recipes import ROOT

Done = subprocess.CompletedProcess[str]
STORE = Path(os.environ.get("DAL_IMAGE_STORE", ROOT / "build" / "image"))
NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]


def needed(*programs: str) -> None:
    """Skip a test, or fail it, for want of programs; skip it where the kernel forbids its namespaces."""
    for program in programs:
        if shutil.which(program) is None:
            missing_service(program)
    tried = "mount -t tmpfs tmpfs /mnt; mount --bind / /mnt; ip link set lo up; chroot / true"
    probe = [*NAMESPACES, "--net", "sh", "-euc", tried]
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the kernel, or this machine's own container, forbids namespaces: {done.stderr.strip()}")


@dataclass(frozen=True)
class Image:
    """The image as a folder, and how it wants to be run."""

    root: Path
    config: Mapping[str, object]

    @cached_property
    def environment(self) -> dict[str, str]:
        return dict(each.split("=", 1) for each in self.config["Env"])

    @property
    def health(self) -> list[str]:
        return list(self.config["Healthcheck"]["Test"][1:])


def built() -> Image:
    """The image that cluster/containers/build-without-registry has built."""
    if (STORE / "forbidden").exists():  # .ci/image leaves it
        pytest.skip(f"this machine forbids to build the image: {(STORE / 'forbidden').read_text().strip()}")
    if not (STORE / "config.json").exists():
        missing_service(f"the image in {STORE} (make image)")
    return Image(STORE / "root", json.loads((STORE / "config.json").read_text())["Docker"]["config"])


@dataclass(frozen=True)
class Machine:
    """Containers that share a network of their own, in which every name in `names` is this machine."""

    image: Image
    pid: int
    hosts: Path
    volumes: Mapping[str, Path] = field(default_factory=dict)

    def inside(self, words: Sequence[str]) -> list[str]:
        """A command of this machine's system, in the network of the containers."""
        return ["nsenter", "--target", str(self.pid), "--net", "--", *words]

    def command(self, words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """A command in a container: not root, no capabilities, nothing to write but /tmp and volumes."""
        root = shlex.quote(str(self.image.root))
        uid, gid = str(self.image.config["User"]).split(":")
        values = [f"{name}={value}" for name, value in (self.image.environment | environment).items()]
        steps = [
            f"mount --bind {root} {root}",
            # What is mounted upon is made while the root can be written to.
            f"touch {root}/etc/hosts",
            *(f"mkdir -p {root}{inside}" for inside in self.volumes),
            f"mount -o remount,bind,ro {root}",
            f"mount --bind {shlex.quote(str(self.hosts))} {root}/etc/hosts",
            *(f"mount --bind {shlex.quote(str(outside))} {root}{inside}" for inside, outside in self.volumes.items()),
            f"mount -t tmpfs tmpfs {root}/tmp",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"cd {root}",
            f"exec setpriv --no-new-privs chroot --userspec={uid}:{gid} --groups={gid} {root}"
            f" env --chdir={self.image.config['WorkingDir']} -i {shlex.join(values)} {shlex.join(words)}",
        ]
        return self.inside([*NAMESPACES, "bash", "-euc", "\n".join(steps)])

    def run(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Done:
        """Run a command in a container to its end."""
        command = self.command(words, environment or {})
        return subprocess.run(command, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)

    @contextlib.contextmanager
    def running(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[psutil.Process]:
        """Run a command in a container for as long as the context lives."""
        with running(self.command(words, environment), log) as process:
            yield process


@contextlib.contextmanager
def running(words: Sequence[str], log: Path) -> Iterator[psutil.Process]:
    """Run a command of this machine; at the end kill it and all that it has started."""
    with (
        log.open("wb") as output,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as command,
    ):
        try:
            yield psutil.Process(command.pid)
        finally:
            # One that takes another user's rights outlives unshare: the kernel forgets --kill-child then.
            with contextlib.suppress(psutil.NoSuchProcess):
                for each in psutil.Process(command.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
            command.kill()


@contextlib.contextmanager
def machine(image: Image, folder: Path, names: Sequence[str], volumes: Mapping[str, Path]) -> Iterator[Machine]:
    """Make a network of its own for containers."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 {' '.join(['localhost', *names])}\n")
    for volume in volumes.values():
        volume.mkdir(exist_ok=True)
        uid, gid = map(int, str(image.config["User"]).split(":"))
        os.chown(volume, uid, gid)
    # exec: the process whose network is entered is the one that is ended
    words = ["unshare", "--net", "sh", "-euc", "ip link set lo up; echo up; exec sleep infinity"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as network:
        try:
            assert network.stdout is not None
            assert network.stdout.readline() == "up\n"
            yield Machine(image, network.pid, hosts, volumes)
        finally:
            network.kill()
