"""One query by margin: ``dal`` beside modAL, scikit-activeml and small-text, each in a new process.

All contenders get the same fitted logistic regression, the same records and one BLAS thread, and choose the records of
smallest margin. The peers get the records as an array that lies in memory already; loading it is not measured.
``dal`` opens a pool on disk, in this process and without a cluster, and reads every record in the measured time.

Peers are no dependency of ``dal``: install them beside it to measure them. A contender that is missing is left out.
"""

import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks import machine, synthetic
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import scan
from dal.selection.strategy import Strategy

MODULES = {"dal": "dal", "modAL": "modAL", "scikit-activeml": "skactiveml", "small-text": "small_text"}

Ask = Callable[[], npt.NDArray[np.int64]]


class Query(NamedTuple):
    """One query.

    Attributes
    ----------
    cpu : float
        Seconds of CPU time.
    wall : float
        Seconds.
    grown : int
        Bytes by which the process grew at its peak, above the records that it held before.
    rows : list of int
        The chosen records, sorted.
    """

    cpu: float
    wall: float
    grown: int
    rows: list[int]


def query(name: str, folder: Path, k: int) -> Query:
    """Run one query in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return executor.submit(queried, name, folder, k).result()


def queried(name: str, folder: Path, k: int) -> Query:
    """Run one query in this process."""
    ask = _dal(folder, k) if name == "dal" else PEERS[name](folder, _fitted(folder), k)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets the peak back to the memory held now
    before, cpu, wall = machine.peak_bytes(), time.process_time(), time.perf_counter()
    with threadpool_limits(1):
        rows = ask()
    return Query(
        time.process_time() - cpu,
        time.perf_counter() - wall,
        machine.peak_bytes() - before,
        sorted(int(row) for row in rows),
    )


def _fitted(folder: Path) -> LogisticRegression:
    with np.load(folder / "labelled.npz") as labelled, threadpool_limits(1):
        return LogisticRegression(max_iter=1000).fit(labelled["X"], labelled["y"])


def _dal(folder: Path, k: int) -> Ask:
    (path,) = folder.glob("*.zarr")
    pool, model = Pool.open(path), Model.loads((folder / "model.skops").read_bytes())
    return lambda: scan(pool, model, Strategy.named("margin"), k).candidates.rows


def _modal(folder: Path, fitted: LogisticRegression, k: int) -> Ask:
    from modAL.models import ActiveLearner
    from modAL.uncertainty import margin_sampling

    learner, X = ActiveLearner(fitted, query_strategy=margin_sampling), np.load(folder / "X.npy")
    return lambda: learner.query(X, n_instances=k)[0]


def _skactiveml(folder: Path, fitted: LogisticRegression, k: int) -> Ask:
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.pool import UncertaintySampling

    classes = list(range(synthetic.CLASSES))
    with np.load(folder / "labelled.npz") as labelled:
        classifier = SklearnClassifier(fitted, classes=classes).fit(labelled["X"], labelled["y"])
    X = np.load(folder / "X.npy")
    y = np.full(len(X), np.nan)
    strategy = UncertaintySampling(method="margin_sampling", random_state=0)
    return lambda: strategy.query(X=X, y=y, clf=classifier, fit_clf=False, batch_size=k)


def _small_text(folder: Path, fitted: LogisticRegression, k: int) -> Ask:
    from small_text import BreakingTies, SklearnClassifier, SklearnDataset

    X = np.load(folder / "X.npy")
    dataset = SklearnDataset(X, np.full(len(X), -1))
    classifier = SklearnClassifier(fitted, synthetic.CLASSES)
    none: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    return lambda: BreakingTies().query(classifier, dataset, np.arange(len(X)), none, none, n=k)


PEERS = {"modAL": _modal, "scikit-activeml": _skactiveml, "small-text": _small_text}


@click.command("peers")
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--dim", default=32, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=100, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def command(rows: int, dim: int, batch: int, repeats: int, json_path: Path | None) -> None:
    """Compare one query of a batch by margin with other libraries for active learning."""
    names = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
    with tempfile.TemporaryDirectory(prefix="dal-peers-") as temporary:
        folder = Path(temporary)
        pool = synthetic.pool_of(folder, rows, dim)
        np.save(folder / "X.npy", pool.read(0, rows))
        fitted = synthetic.fitted_rows(pool)
        np.savez(folder / "labelled.npz", X=pool.take(fitted), y=synthetic.labels(fitted))
        (folder / "model.skops").write_bytes(synthetic.model_of(pool, "logistic").dumps())
        found = {name: [query(name, folder, batch) for _ in range(repeats)] for name in names}
    table = Table(title=f"{rows:,} records of {dim} features, batch of {batch:,}; medians of {repeats}")
    for title in ("", "CPU s", "wall s", "memory grown, MiB", "records held, MiB", "rows as dal's"):
        table.add_column(title, justify="right")
    reported = {}
    for name, queries in found.items():
        cpu, wall, grown = (float(np.median([each[i] for each in queries])) for i in range(3))
        same = len(set(queries[0].rows) & set(found["dal"][0].rows))
        held = 0 if name == "dal" else 4 * rows * dim
        reported[name] = {"cpu": cpu, "wall": wall, "grown": grown, "held": held, "same": same}
        table.add_row(name, f"{cpu:.2f}", f"{wall:.2f}", f"{grown / 2**20:.0f}", f"{held / 2**20:.0f}", str(same))
    Console().print(table, machine.facts(), f"load {machine.load():.1f}")
    if json_path:
        json_path.write_text(json.dumps({"machine": machine.facts(), "peers": reported}, indent=1), encoding="utf-8")
