"""The recipes in cluster/: blocks of their READMEs, run as they are written."""

import inspect
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def block_with(folder: str, text: str) -> str:
    """The one code block with this text in the README of a folder."""
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```\w+\n(.*?)```", readme, re.DOTALL) if text in block]
    return str(block)


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """The values of nested sections, by dotted names."""
    return {
        key: value
        for name, below in tree.items()
        for key, value in (
            flat(below, f"{prefix}{name}.") if isinstance(below, dict) else {f"{prefix}{name}": below}
        ).items()
    }


def free_port() -> int:
    """Find a port for a server that starts later.

    One that the system would give may be given again until then, to a connection or to another server. It gives those
    from 32,768 on Linux, and from 49,152 elsewhere.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {inspect.getsource(condition).strip()}"
        time.sleep(0.1)  # polls what cannot tell us


@contextmanager
def running(block: str, environment: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    """Run a block of shell, and end the command that it runs, as `kill` does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        # exec: the process that is ended is the command's own, not a shell around it
        command = subprocess.Popen(
            ["bash", "-euc", re.sub("^(dal|dask) ", r"exec \1 ", block, flags=re.MULTILINE)],
            cwd=ROOT,
            env=os.environ | environment | {"PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process = psutil.Process(command.pid)
    try:
        yield process
    finally:
        family = process.children(recursive=True) if process.is_running() else []
        command.terminate()
        _, alive = psutil.wait_procs([process, *family], timeout=20)
        for left in alive:
            left.kill()
        command.wait()
    assert not alive


def listening(process: psutil.Process) -> set[str]:
    return {
        connection.laddr.ip
        for member in [process, *process.children(recursive=True)]
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
