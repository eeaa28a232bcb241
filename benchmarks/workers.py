"""What the workers of this machine take to start and to idle: forked, spawned, or threads of one process.

Each way runs in a process of its own, alternating, medians over the repeats. `ready` is the time until all workers have
answered a first task with what scans import; `CPU` is that of the process and all its children until then; `PSS` counts
pages that processes share in equal parts, `RSS` whole in each.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import click
import psutil
from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from dal.compute import local

WAYS = ("forkserver", "spawn", "threads")


def first_task() -> int:
    """Import what a scan's task does, and return the modules that are loaded."""
    import dal.scan.worker.spans  # noqa: F401 - as the first task of a scan does

    return len(sys.modules)


@contextmanager
def _cluster(way: str, workers: int) -> Iterator[Client]:
    if way == "threads":
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=workers,
                processes=False,
                host="127.0.0.1",
                protocol="tcp",
                dashboard_address="127.0.0.1:0",
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
    else:
        start = local._START if way == "forkserver" else {}
        with mock.patch.object(local, "_START", start), local.local_cluster(workers) as client:
            yield client


def _cpu(family: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in family]
    return sum(each.user + each.system for each in times)


def measure(way: str, workers: int) -> dict[str, float]:
    """Start workers, look at them, and end them, in this process."""
    own = psutil.Process()
    before, started = _cpu([own]), time.perf_counter()
    with _cluster(way, workers) as client:
        modules = client.run(first_task)
        ready = time.perf_counter() - started
        children = own.children(recursive=True)
        cpu = _cpu([own, *children]) - before
        memory = {process.pid: process.memory_full_info() for process in children}
        pids = set(client.run(_pid).values())
        pss = [memory[pid].pss for pid in pids if pid in memory]
        rss = [memory[pid].rss for pid in pids if pid in memory]
        total = sum(each.pss for each in memory.values())
        ending = time.perf_counter()
    return {
        "ready": ready,
        "cpu": cpu,
        "end": time.perf_counter() - ending,
        "pss": statistics.mean(pss) / 2**20 if pss else 0.0,
        "rss": statistics.mean(rss) / 2**20 if rss else 0.0,
        "children": total / 2**20,
        "modules": max(modules.values()),
    }


def _pid() -> int:
    return psutil.Process().pid


def measured(way: str, workers: int) -> dict[str, float]:
    """Measure a way in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.workers", way, str(workers)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


@click.command("workers")
@click.option("--workers", default=machine.CORES, show_default=True, help="Workers, or threads.")
@click.option("--repeats", default=3, show_default=True)
def command(workers: int, repeats: int) -> None:
    """Measure what workers take to start, and what an idle one holds."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            runs[way].append(measured(way, workers))
    table = Table(title=f"{workers} workers, load {machine.load():.1f}")
    names = ("ready", "cpu", "end", "pss", "rss", "children", "modules")
    for heading in ("way", "ready s", "CPU s", "end s", "PSS MiB", "RSS MiB", "children MiB", "modules"):
        table.add_column(heading, justify="right")
    for way, results in runs.items():
        medians = [statistics.median(each[name] for each in results) for name in names]
        table.add_row(way, *(f"{value:,.1f}" for value in medians))
    Console().print(table)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
