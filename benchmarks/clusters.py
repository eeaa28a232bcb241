"""Clusters of every kind, many times in a row: whether each run ends without an error, and with the right batches.

A kind is a selection of tests. Those of `tests/` are part of the suite; the campaigns of `benchmarks/campaigns.py` take
longer and use packages that the suite does without. A run that skips something is counted as not run.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 560

_STARTING = "tests/test_starting.py::test_"
_CAMPAIGNS = "benchmarks/campaigns.py::test_"
KINDS: Mapping[str, list[str]] = {
    "no worker at first": ["tests/test_adaptive.py"],
    "several workers in a process": [f"{_CAMPAIGNS}workers_share_a_process"],
    "processes with threads": [f"{_CAMPAIGNS}workers_have_processes_and_threads"],
    "workers that die": [
        f"{_STARTING}another_worker_is_asked_when_the_asked_one_leaves",
        f"{_STARTING}another_worker_is_asked_when_the_asked_one_hangs",
        f"{_CAMPAIGNS}workers_die_again_and_again",
    ],
    "workers that import": [
        f"{_STARTING}workers_that_still_import_are_waited_for_and_those_that_cannot_are_refused",
        f"{_STARTING}a_worker_that_preloads_has_imported_before_it_takes_part",
    ],
    "busy": [
        f"{_STARTING}threads_that_are_busy_with_other_work_are_waited_for_and_said",
        "tests/test_together.py",
        f"{_CAMPAIGNS}others_use_the_cluster",
    ],
    "other versions": ["tests/test_versions.py"],
    "a scheduler that dies": [
        f"{_STARTING}a_scheduler_that_is_lost_leaves_no_traceback",
        f"{_CAMPAIGNS}the_scheduler_dies",
    ],
    "TLS": ["tests/test_tls.py"],
    "SSH": ["tests/test_ssh.py", f"{_CAMPAIGNS}dask_starts_the_hosts"],
    "several hosts": ["tests/test_hosts.py"],
    "SLURM": ["tests/test_slurm.py"],
    "dask-jobqueue": [f"{_CAMPAIGNS}dask_submits_the_jobs"],
    "object store": [f"{_CAMPAIGNS}a_store_fails_now_and_then"],
}


class Run(NamedTuple):
    """One run of a kind."""

    kind: str
    outcome: str
    """``clean``, ``failed``, or the reason why something of it was skipped."""
    seconds: float
    log: str


def ran(kind: str, folder: Path) -> Run:
    """Run a kind once, with its log in a folder."""
    stem = folder / f"{kind.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    report, log = stem.with_suffix(".xml"), stem.with_suffix(".log")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *KINDS[kind]]
    began = time.monotonic()
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    seconds = time.monotonic() - began
    if status:
        return Run(kind, "failed", seconds, log.name)
    skipped = [str(each.get("message")) for each in ET.parse(report).iter("skipped")]
    return Run(kind, "; ".join(skipped) or "clean", seconds, log.name)


def table(runs: Iterable[Run]) -> Table:
    """Lay runs out for reading."""
    drawn = Table("kind", "clean", "failed", "not run", "seconds, median", "longest", title="clusters, times in a row")
    of_kind: dict[str, list[Run]] = {}
    for each in runs:
        of_kind.setdefault(each.kind, []).append(each)
    for kind, found in of_kind.items():
        counts = [sum(each.outcome == outcome for each in found) for outcome in ("clean", "failed")]
        seconds = [each.seconds for each in found]
        times = f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}"
        drawn.add_row(kind, *map(str, counts), str(len(found) - sum(counts)), *times)
    return drawn


@click.command("clusters")
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Runs of each kind.")
@click.option(
    "--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="Repeat for several; default: all."
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results/clusters"),
    show_default=True,
    help="Folder for a log of each run and for runs.jsonl, to which runs are appended. All runs in it are shown.",
)
def command(repeats: int, kinds: tuple[str, ...], results: Path) -> None:
    """Campaigns on clusters of every kind, times in a row: each run must end without an error."""
    results.mkdir(parents=True, exist_ok=True)
    console, kept = Console(), results / "runs.jsonl"
    for kind in kinds or KINDS:
        for number in range(1, repeats + 1):
            run = ran(kind, results.resolve())
            console.print(f"{kind}, {number} of {repeats}: {run.outcome}, {run.seconds:.0f} s, {run.log}")
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run._asdict()) + "\n")
    runs = [Run(**json.loads(line)) for line in kept.read_text(encoding="utf-8").splitlines()]
    console.print(table(runs))
    if any(each.outcome == "failed" for each in runs):
        raise click.ClickException(f"a run failed: its log is in {results}")
