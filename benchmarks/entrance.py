"""What it costs to enter: CPU time of short commands, as ratios to importing the libraries that each works with.

Each command runs in a process of its own, in turn with its reference, so that a machine that grows busier slows both.
CPU time is user and system time of the process and of the processes it waited for.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine

ROWS, FEATURES, BATCH = 5574, 64, 50
DAL = [sys.executable, "-m", "dal"]


class Bar(NamedTuple):
    """A command, and what it may cost: `ratio` times the reference and `seconds` on top."""

    command: Sequence[str]
    imports: str
    ratio: float
    seconds: float = 0.0


BARS = {
    "help": Bar(["--help"], "click", 3),
    "status": Bar(["status", "campaign"], "numpy, sqlalchemy", 1.5),
    "pool info": Bar(["pool", "info", "pool.zarr"], "zarr", 1.5),
    "next": Bar(["next", "campaign", "--workers", "0"], "sklearn.linear_model, zarr, sqlalchemy, skops.io", 1.5, 1.0),
}


def cpu_seconds(command: Sequence[str], directory: Path) -> float:
    """Return the CPU time of a command that runs in a directory, its children's included."""
    # Installed libraries are compiled; so must be what is measured against them, after the first run.
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, cwd=directory, env=compiled, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    shown = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}: {shown}")
    return usage.ru_utime + usage.ru_stime


def lay_out(directory: Path) -> None:
    """Make a pool, and a campaign on it that has labels of one round and waits for its second."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, ROWS)
    X = (rng.standard_normal((2, FEATURES))[codes] + rng.standard_normal((ROWS, FEATURES))).astype(np.float32)
    np.save(directory / "X.npy", X)
    made = directory / "made"
    for words in (
        ["pool", "build", "X.npy", "pool.zarr"],
        ["init", made, "pool.zarr", "--classes", "ham,spam", "--batch-size", BATCH],
        ["next", made, "--workers", "0"],
    ):
        cpu_seconds([*DAL, *map(str, words)], directory)
    sheet = made / "batch-0001.csv"
    header, *lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    columns = header.split(",")
    filled = []
    for line in lines:
        cells = line.split(",")
        cells[columns.index("label")] = ["ham", "spam"][codes[int(cells[columns.index("record_id")])]]
        filled.append(",".join(cells))
    sheet.write_text("\n".join([header, *filled]) + "\n", encoding="utf-8")
    cpu_seconds([*DAL, "label", "import", str(made), str(sheet), "--annotator", "ann"], directory)


def measure(directory: Path, runs: int) -> dict[str, dict[str, float]]:
    """Return the median CPU seconds of each command and of its reference, which take turns."""
    lay_out(directory)
    spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in BARS}
    for _ in range(runs):
        for name, bar in BARS.items():
            shutil.rmtree(directory / "campaign", ignore_errors=True)
            shutil.copytree(directory / "made", directory / "campaign")
            spent[name][0].append(cpu_seconds([*DAL, *bar.command], directory))
            spent[name][1].append(cpu_seconds([sys.executable, "-c", f"import {bar.imports}"], directory))
    return {
        name: {
            "seconds": median(dal),
            "reference": median(reference),
            "may": BARS[name].ratio * median(reference) + BARS[name].seconds,
        }
        for name, (dal, reference) in spent.items()
    }


@click.command("entrance")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs of each command.")
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result to a file.")
def command(runs: int, output: Path | None) -> None:
    """Measure the CPU time of short commands against importing the libraries they work with."""
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), runs)
    drawn = Table("command", "CPU s", "reference", "CPU s", "ratio", "may be", title="the entrance")
    for name, each in found.items():
        bar = BARS[name]
        more = f" + {bar.seconds:g} s" if bar.seconds else ""
        drawn.add_row(
            f"dal {name}",
            f"{each['seconds']:.2f}",
            f"import {bar.imports}",
            f"{each['reference']:.2f}",
            f"{each['seconds'] / each['reference']:.2f}",
            f"{bar.ratio:g}{more}: {'kept' if each['seconds'] <= each['may'] else 'EXCEEDED'}",
        )
    Console().print(drawn)
    if output is not None:
        output.write_text(json.dumps({"machine": machine.facts(), **found}, indent=2), encoding="utf-8")
