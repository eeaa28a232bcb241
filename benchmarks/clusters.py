"""Clusters of every kind, many times in a row: whether each run ends without an error, and with the right batches.

A kind is a selection of tests. Those of `tests/` are part of the suite; the campaigns of `benchmarks/campaigns.py` take
longer and use packages that the suite does without. A run that skips something is counted as not run.

Kinds run side by side: each has its own ports, folders and network namespaces. A kind never runs beside itself.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
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
    """``clean``, ``failed``, or the reason why something of it was not run."""
    seconds: float
    log: str
    commit: str
    load: float
    """Of the machine in the last minute of the run: processes that wanted a core, those of others as well."""


def checked_out() -> str:
    """Return the commit that is checked out.

    Raises
    ------
    ClickException
        If files differ from it: no run after the next change would belong to the same row.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"{ROOT} must be a checkout of git: {done.stderr.strip()}")
        return done.stdout.strip()

    if changed := git("status", "--porcelain"):
        raise click.ClickException(f"a row is of one commit: commit or put away\n{changed}")
    return git("rev-parse", "HEAD")


def in_a_row(runs: Sequence[Run], kind: str, commit: str) -> int:
    """Count the clean runs of a kind since the last that was not clean, or was of other code."""
    of_kind = (each for each in reversed(runs) if each.kind == kind)
    return sum(1 for _ in takewhile(lambda each: (each.outcome, each.commit) == ("clean", commit), of_kind))


def ran(kind: str, folder: Path, commit: str) -> Run:
    """Run a kind once, with its log in a folder."""
    stem = folder / f"{kind.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    report, log = stem.with_suffix(".xml"), stem.with_suffix(".log")
    # The suite's own limits are for tests that have the machine for themselves.
    limits = [f"--timeout={LIMIT_SECONDS}", "-o", f"faulthandler_timeout={LIMIT_SECONDS}"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *limits, f"--junitxml={report}"]
    began = time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen([*command, *KINDS[kind]], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it ends its clusters
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
    seconds = time.monotonic() - began
    outcome = "failed"
    if not process.returncode:
        skipped = [str(each.get("message")) for each in ET.parse(report).iter("skipped")]
        outcome = "; ".join(skipped) or "clean"
    return Run(kind, outcome, seconds, log.name, commit, round(os.getloadavg()[0], 1))


class Record:
    """All runs of a folder, in the order in which they ended; it is added to until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False
        self._file = folder / "runs.jsonl"
        self._lock = threading.Lock()
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        self.runs = [Run(**json.loads(line)) for line in lines]

    def add(self, run: Run) -> None:
        """Append a run."""
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            self.runs.append(run)
            file.write(json.dumps(run._asdict()) + "\n")


def play(kind: str, repeats: int, record: Record, console: Console) -> None:
    """Run a kind until `repeats` clean runs stand in a row, or until a run is not clean."""
    commit, outcome = checked_out(), "clean"
    while outcome == "clean" and (number := in_a_row(record.runs, kind, commit)) < repeats:
        run = ran(kind, record.folder, commit)
        if record.closed:
            return  # it was interrupted
        if checked_out() != commit:
            raise click.ClickException("another commit was checked out meanwhile: call again")
        record.add(run)
        outcome = run.outcome
        console.print(f"{kind}, {number + 1} of {repeats}: {outcome}, {run.seconds:.0f} s, load {run.load}, {run.log}")


def table(runs: Sequence[Run], commit: str) -> Table:
    """Lay the runs of a commit out for reading."""
    drawn = Table("kind", "in a row", "failed", "not run", "seconds, median", "longest", "load, median")
    drawn.title = f"clusters at {commit[:12]}"
    for kind in KINDS:
        found = [each for each in runs if (each.kind, each.commit) == (kind, commit)]
        if found:
            failed, clean = (sum(each.outcome == outcome for each in found) for outcome in ("failed", "clean"))
            seconds, load = [each.seconds for each in found], statistics.median(each.load for each in found)
            counts = map(str, (in_a_row(runs, kind, commit), failed, len(found) - failed - clean))
            drawn.add_row(kind, *counts, f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}", f"{load:.1f}")
    return drawn


@click.command("clusters")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Clean runs in a row of each kind."
)
@click.option(
    "--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="Repeat for several; default: all."
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Kinds that run at a time.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=Path("benchmarks/results/clusters"),
    show_default=True,
    help="Folder for a log of each run and for runs.jsonl, to which runs are appended: a later call with the same"
    " commit goes on with the rows that are there.",
)
def command(repeats: int, kinds: tuple[str, ...], jobs: int, results: Path) -> None:
    """Campaigns on clusters of every kind, times in a row: each run must end without an error.

    A row is of one commit, without changed files. The first run of a kind that is not clean ends its row; the next call
    begins another.
    """
    results.mkdir(parents=True, exist_ok=True)
    console, record, commit = Console(), Record(results), checked_out()
    wanted = dict.fromkeys(kinds or KINDS)
    lanes = ThreadPoolExecutor(jobs)
    try:
        for played in [lanes.submit(play, kind, repeats, record, console) for kind in wanted]:
            played.result()
    finally:
        record.closed = True
        lanes.shutdown(cancel_futures=True)
        console.print(table(record.runs, commit))
    if short := [kind for kind in wanted if in_a_row(record.runs, kind, commit) < repeats]:
        raise click.ClickException(
            f"fewer than {repeats} clean runs in a row: {', '.join(short)}; logs are in {results}"
        )
