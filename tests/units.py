"""Do what systemd does with a unit of the recipes, where there is no systemd: start its command again whenever it ends.

Run as ``python -m tests.units dal-worker.service``; SIGTERM ends it and its command.
"""

import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path


def read(unit: Path) -> tuple[list[str], dict[str, str], float]:
    """Return the command of a unit, its environment, and the seconds between two starts."""
    # the comments and the repeated keys of systemd, and names whose case matters
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#", ";"))
    parser.optionxform = str
    parser.read(unit, encoding="utf-8")
    service = parser["Service"]
    assert service["Restart"] == "always"
    home = str(Path.home())
    lines = Path(service["EnvironmentFile"].replace("%h", home)).read_text(encoding="utf-8").splitlines()
    given = [*shlex.split(service["Environment"].replace("%h", home)), *lines]
    environment = dict(each.split("=", 1) for each in given if each)
    command = re.sub(r"\$\{(\w+)\}", lambda name: environment[name[1]], service["ExecStart"].replace("%h", home))
    return shlex.split(command), environment, float(service["RestartSec"])


def keep(unit: Path) -> None:
    """Keep the command of a unit running until SIGTERM."""
    command, environment, pause = read(unit)
    running: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()

    def end(*_: object) -> None:
        ended.set()
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    while not ended.is_set():
        running[:] = [subprocess.Popen(command, env=os.environ | environment)]
        if ended.is_set():
            running[0].terminate()
        running[0].wait()
        ended.wait(pause)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
