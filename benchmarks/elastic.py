"""What it costs when workers come and go during a pass: undisturbed, with losses, and from none to many to none.

Workers are processes of this machine. The learner takes its time a row and leaves the cores free, so that many workers
fit on few cores. Every pass must keep the rows that the undisturbed one keeps.

- *lost*: a share of the workers is killed each minute, evenly spread, by SIGKILL; each is replaced as it dies.
- *from none*: all workers are ended when a third and two thirds of the rows are done, and come back when the pass says
  that it waits for one.
"""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import zarr
from distributed import Client
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator, ClassifierMixin

from benchmarks import machine
from dal.compute.local import local_cluster
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import Limits, Progress, Scan, scan
from dal.selection.strategy import Strategy

TILE = 512
SPAN_SECONDS = 3.0


class Paced(ClassifierMixin, BaseEstimator):
    """Scores by the first feature, at a fixed number of rows a second."""

    def __init__(self, rate: float = 2_000.0) -> None:
        self.rate = rate

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Paced":
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        time.sleep(len(X) / self.rate)
        p = 1 / (1 + np.exp(-X[:, 0].astype(np.float64)))
        return np.stack([1 - p, p], axis=1)


def passed(pool: Pool, model: Model, client: Client, progress: Callable[[Progress], None] | None = None) -> Scan:
    """Score the pool once."""
    limits = Limits(tile_rows=TILE, span_seconds=SPAN_SECONDS)
    return scan(pool, model, Strategy.named("margin"), 100, client=client, limits=limits, progress=progress)


def with_losses(pool: Pool, model: Model, client: Client, every: float) -> tuple[Scan, int]:
    """Score the pool while workers are killed; the scan, and how many were."""
    done, killed = threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        rng = np.random.default_rng(3)
        while not done.wait(every):
            told = client.run(os.getpid, on_error="return")
            pids = [pid for pid in told.values() if isinstance(pid, int)]
            if pids:
                os.kill(int(rng.choice(pids)), signal.SIGKILL)
                killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = passed(pool, model, client)
    finally:
        done.set()
        killer.join()
    return found, killed


def from_none(pool: Pool, model: Model, client: Client, workers: int) -> tuple[Scan, int]:
    """Score the pool while all workers leave, twice, and come back; the scan, and how many left."""
    at = [pool.n_rows // 3, 2 * pool.n_rows // 3]
    left = 0

    def resize(progress: Progress) -> None:
        nonlocal left
        if at and progress.rows_done >= at[0]:
            at.pop(0)
            left += workers
            client.cluster.scale(0)
        elif "has none" in progress.waiting:
            client.cluster.scale(workers)

    return passed(pool, model, client, resize), left


def table(results: list[dict[str, object]]) -> Table:
    """Lay results out for reading."""
    drawn = Table(title="workers that come and go")
    for heading in ("pass", "workers lost", "seconds", "rows scored again", "same rows kept"):
        drawn.add_column(heading, justify="right")
    for each in results:
        again = f"{each['again']:.1%}"
        drawn.add_row(str(each["pass"]), str(each["lost"]), f"{each['seconds']:.1f}", again, str(each["same"]))
    return drawn


@click.command("elastic")
@click.option("--workers", type=click.IntRange(min=2), default=6, show_default=True)
@click.option("--rate", type=float, default=2_000.0, show_default=True, help="Rows per second of a worker.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Of the undisturbed pass, about.")
@click.option("--lost", type=float, default=1 / 3, show_default="1/3", help="Share of the workers killed each minute.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
def command(workers: int, rate: float, seconds: float, lost: float, json_path: Path | None) -> None:
    """Rows scored again when workers die, and when all of them leave and come back."""
    rows = int(workers * rate * seconds)
    with tempfile.TemporaryDirectory() as folder, local_cluster(workers) as client:
        X = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
        stored = zarr.create_array(Path(folder) / "pool.zarr", shape=X.shape, chunks=(TILE, 4), dtype="float32")
        stored[:] = X
        pool = Pool.open(Path(folder) / "pool.zarr")
        learner = Learner(Paced(rate), ["no", "yes"], trusted=["benchmarks.elastic.Paced"])
        model = learner.fit(X[:40], np.arange(40) % 2)
        alone = passed(pool, model, client)
        passes = [("undisturbed", alone, 0)]
        passes.append(("lost", *with_losses(pool, model, client, 60 / (lost * workers))))
        client.wait_for_workers(workers, timeout=60)
        passes.append(("from none", *from_none(pool, model, client, workers)))
    results: list[dict[str, object]] = [
        {
            "pass": name,
            "lost": count,
            "seconds": found.summary.seconds,
            "again": found.summary.rows_again / rows,
            "same": found.candidates.rows.tolist() == alone.candidates.rows.tolist(),
        }
        for name, found, count in passes
    ]
    if json_path is not None:
        told = {"rows": rows, "workers": workers, "rate": rate, "passes": results, "machine": machine.facts()}
        json_path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    Console().print(table(results))
    if not all(each["same"] for each in results):
        raise click.ClickException("a pass kept other rows")
