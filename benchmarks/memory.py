"""Peak memory of a pass: a worker's does not grow with the pool, and stays below what dal predicts.

``dal.scan.scan`` finds the 10,000 rows of smallest margin in a small and in a large pool. Each pass runs on a local
cluster of its own, below a process of its own, so that every high-water mark (``VmHWM`` of ``/proc/self/status``, thus
on Linux only) is that of this pass. It counts what a process maps from files, such as the code of its libraries.

The pools are 32 features wide unless told otherwise: 20 million rows are then 2.6 GB on disk, instead of 10 GB at 128.
What a worker holds is fixed in bytes, not in rows, so the width changes little.
"""

import json
import multiprocessing
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks import machine, synthetic
from dal.compute.local import local_cluster
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import plan, scan
from dal.scan.hosts import predicted
from dal.scan.run import Run
from dal.scan.worker.kernel import Order
from dal.selection.strategy import Strategy

CANDIDATES = 10_000
STRATEGY = Strategy.named("margin")


class Peaks(NamedTuple):
    """Bytes of one pass.

    Attributes
    ----------
    worker : int
        The most that any worker's process has held.
    predicted : int
        What ``dal`` says that a worker takes.
    coordinator : int
        By how much the peak of the coordinator's process grew in the pass; Dask's scheduler lives in it as well.
    bytes_up : int
        Of candidates that workers sent.
    seconds : float
    """

    worker: int
    predicted: int
    coordinator: int
    bytes_up: int
    seconds: float


def peaks_of(pool: Pool, model: Model, processes: int) -> Peaks:
    """Scan once, below a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return executor.submit(_scanned, pool.path, model.dumps(), processes).result()


def _scanned(pool_path: str, model_bytes: bytes, processes: int) -> Peaks:
    pool, model = Pool.open(pool_path), Model.loads(model_bytes)
    with local_cluster(processes) as client:
        before = machine.peak_bytes()
        summary = scan(pool, model, STRATEGY, CANDIDATES, client=client).summary
        coordinator = machine.peak_bytes() - before
        worker = max(client.run(machine.peak_bytes).values())
    return Peaks(worker, predicted_bytes(pool, model), coordinator, summary.bytes_up, summary.seconds)


def predicted_bytes(pool: Pool, model: Model) -> int:
    """Say what ``dal`` predicts for a worker of one thread."""
    capacity = STRATEGY.capacity(CANDIDATES, pool.n_rows)
    order = Order(STRATEGY.score, capacity, plan.tile_rows(pool.n_features, model.tile_rows), 0, 0, None, carry=False)
    run = Run(pool, model, order, synthetic.NO_ROWS, None, None, None)
    return predicted(run).for_threads(1)


def report(peaks: Mapping[str, Peaks]) -> dict[str, object]:
    """Boil the peaks of the small and the large pool down."""

    def mib(attribute: str) -> dict[str, float]:
        return {size: getattr(peak, attribute) / 2**20 for size, peak in peaks.items()}

    return {
        "worker_peak_ratio": peaks["large"].worker / peaks["small"].worker,
        "worker_peak_mb": mib("worker"),
        "predicted_mb": mib("predicted"),
        "coordinator_peak_mb": mib("coordinator"),
        "bytes_up": {size: peak.bytes_up for size, peak in peaks.items()},
        "seconds": {size: peak.seconds for size, peak in peaks.items()},
    }


def table(result: Mapping) -> Table:
    """Lay a result out for reading."""
    drawn = Table(title=f"{result['dim']} features, {result['learner']}, {result['processes']} workers; MiB")
    headings = ("rows", "worker", "predicted", "coordinator, growth", "candidates sent", "seconds")
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for size, rows in result["rows"].items():
        memory = [f"{result[key][size]:.0f}" for key in ("worker_peak_mb", "predicted_mb", "coordinator_peak_mb")]
        drawn.add_row(f"{rows:,}", *memory, f"{result['bytes_up'][size] / 2**20:.1f}", f"{result['seconds'][size]:.1f}")
    return drawn


def run(directory: Path, rows: Mapping[str, int], dim: int, learner: str, processes: int) -> dict[str, object]:
    """Measure both pools once."""
    peaks = {}
    for size, n_rows in rows.items():
        pool = synthetic.pool_of(directory, n_rows, dim)
        peaks[size] = peaks_of(pool, synthetic.model_of(pool, learner), processes)
    return {
        "rows": dict(rows),
        "dim": dim,
        "learner": learner,
        "processes": processes,
        "candidates": CANDIDATES,
        **report(peaks),
        "machine": machine.facts(),
    }


@click.command("memory")
@click.option("--rows-small", type=click.IntRange(min=synthetic.FITTED_ROWS), default=1_000_000, show_default=True)
@click.option("--rows-large", type=click.IntRange(min=synthetic.FITTED_ROWS), default=20_000_000, show_default=True)
@click.option("--dim", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=machine.CORES, help="Default: one a core.")
@click.option("--learner", type=click.Choice(list(synthetic.LEARNERS)), default="logistic", show_default=True)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the pools here, and use them again if they are there; default: a temporary folder, removed at the end.",
)
def command(
    rows_small: int,
    rows_large: int,
    dim: int,
    processes: int,
    learner: str,
    json_path: Path | None,
    directory: Path | None,
) -> None:
    """Peak memory of workers and coordinator: a small pool and a large one."""
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        result = run(directory, {"small": rows_small, "large": rows_large}, dim, learner, processes)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(table(result))
    console.print(f"large / small: {result['worker_peak_ratio']:.3f}")
