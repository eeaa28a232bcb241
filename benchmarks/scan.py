"""Scan throughput: dal, on a cluster and without one, against four ways to find the same records without it.

All find the 10,000 rows of smallest margin in one pool, with one fitted estimator, in as many processes:

dal
    ``dal.scan.scan`` on a local cluster.
threads
    The same without a cluster: on threads of the calling process, as a pass of a few seconds runs where nobody asked
    for workers.
hand
    The same function that dal's workers run (reader, scoring, check for invalid rows, counting, accumulator), once a
    process, on an even share of the pool: the difference is what Dask and the coordinator cost.
plain
    What one writes with Zarr and scikit-learn: ``array[a:b]``, ``predict_proba``, ``argpartition``.
dask_ml
    ``ParallelPostFit`` and ``dask.array.argtopk``, on the cluster that dal uses.
numpy
    One process with as many BLAS threads, the pool already in its memory: it reads nothing while the time runs.

Every process is started before the time runs, with one BLAS thread (but numpy) and the memory settings of dal's
workers; the pool's files are read once more before each pass, so that all find them in the page cache. After a pass
that does not count, the contenders take turns, in another order each time. The hand and plain loops share the pool
evenly beforehand: on a machine that does other work as well, they wait for the slower half, and dal does not.

dal_first, dal_cells
    The default strategy, for a batch of a tenth as many records: it keeps the same 10,000 and those of 256 cells, with
    their features. The first scan of a campaign computes the cell of every row and writes it; later ones read it. Both
    are left out where the pool is too small for cells.

With ``--dtype`` the pool is a narrow one of the same records, and only dal and hand, which decode it, take part, beside
both on the float32 pool (dal_float32, hand_float32); the result says which share of the candidates that one gives.
With ``--layout`` it is a plain Zarr array of another layout, for dal, hand and plain. ``start_seconds`` is the median
time of a scan of a single chunk.
"""

import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import dask.array as da
import numpy as np
import numpy.typing as npt
import psutil
import zarr
from distributed import Client
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier

from benchmarks import machine, synthetic
from benchmarks.synthetic import NO_ROWS
from dal.compute.local import SETTINGS, local_cluster
from dal.learners.models import Model
from dal.places import for_zarr, place_of
from dal.pool import Pool
from dal.scan import Cells, plan, sample_codebook, scan
from dal.scan.merge import Best, no_thresholds
from dal.scan.worker.kernel import Order, score_span
from dal.selection.candidates import Candidates, Capacity
from dal.selection.codebook import Codebook
from dal.selection.order import best_by_key
from dal.selection.strategy import Strategy

CANDIDATES = 10_000
NUMPY_BLOCK_ROWS = 16_384
AGREEMENT = 0.999
DECODING = ("dal", "hand")
EXACT = "_float32"
"""Suffix of the contenders that scan the float32 pool, where the other pool is narrow."""
OPENING = ("dal", "threads", "hand", "plain")
CELLS = ("dal_first", "dal_cells")
SHORTLIST = 10
STARTS = 7
TIE = 1e-6

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]


class Found(NamedTuple):
    """What a pass found: rows, ascending, and their scores."""

    rows: Rows
    scores: Floats


Contender = Callable[[], Found]


@dataclass(frozen=True)
class Job:
    """What is to be done, small enough to send along with every pass."""

    pool_path: str
    model_path: str
    n_rows: int
    tile: int
    candidates: int
    cells_path: str = ""

    def pool(self) -> Pool:
        return _opened(self.pool_path)

    def model(self) -> Model:
        return _loaded(self.model_path)


# Each process opens pool and model once, in the pass that does not count.


@cache
def _opened(path: str) -> Pool:
    return Pool.open(path)


@cache
def _loaded(path: str) -> Model:
    return Model.loads(Path(path).read_bytes())


@cache
def _in_memory(path: str) -> npt.NDArray[np.float32]:
    pool = _opened(path)
    return pool.read(0, pool.n_rows)


# -- the contenders' work, in their processes -------------------------------------------------------------------------


def hand_part(job: Job, start: int, stop: int) -> Candidates | None:
    """Find the best of a part of the pool as a worker does, in one span."""
    order = Order("margin", Capacity(job.candidates, 0, 0), job.tile, seed=0, round=0, codebook=None, carry=False)
    told = no_thresholds(order.capacity)
    return score_span(job.pool(), job.model(), order, plan.Interval(start, stop), NO_ROWS, told).candidates


def plain_part(job: Job, start: int, stop: int) -> Found:
    """Find the best of a part of the pool with Zarr and scikit-learn, a whole chunk at a time."""
    array, estimator = _features(job), job.model().estimator
    height = array.chunks[0]
    scores = [
        margin_score(estimator.predict_proba(array[first : min(first + height, stop)]))
        for first in range(start, stop, height)
    ]
    found = top(np.concatenate(scores), job.candidates)
    return Found(start + found.rows, found.scores)


def numpy_pass(job: Job, threads: int) -> Found:
    """Find the best of the pool in memory."""
    X, estimator = _in_memory(job.pool_path), _on_threads(job.model().estimator, threads)
    scores = [
        margin_score(estimator.predict_proba(X[first : first + NUMPY_BLOCK_ROWS]))
        for first in range(0, job.n_rows, NUMPY_BLOCK_ROWS)
    ]
    return top(np.concatenate(scores), job.candidates)


def _on_threads(estimator: BaseEstimator, threads: int) -> BaseEstimator:
    # A forest has no BLAS to put the cores to work.
    return estimator.set_params(n_jobs=threads) if isinstance(estimator, RandomForestClassifier) else estimator


def margin_score(probabilities: Floats) -> Floats:
    """Score records by their margin, as one writes it in NumPy; higher = ask first."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return 1 - (two[:, 1] - two[:, 0])


def top(scores: Floats, count: int) -> Found:
    """Find the positions of the highest scores; among equals, any."""
    rows = np.sort(np.argpartition(scores, len(scores) - count)[len(scores) - count :])
    return Found(rows, scores[rows])


# -- the contenders ---------------------------------------------------------------------------------------------------


def dal_pass(job: Job, client: Client) -> Found:
    """Scan with dal."""
    found = scan(job.pool(), job.model(), Strategy.named("margin"), job.candidates, client=client).candidates
    return Found(found.rows, found.scores)


def threads_pass(job: Job, threads: int) -> Found:
    """Scan with dal in this process."""
    limits = plan.Limits(threads=threads)
    found = scan(job.pool(), job.model(), Strategy.named("margin"), job.candidates, limits=limits).candidates
    return Found(found.rows, found.scores)


def dal_cells_pass(job: Job, client: Client, codebook: Codebook, *, write: bool) -> Found:
    """Scan with dal's default strategy, and give as many of the best by score as the others do."""
    cells, k = Cells(place_of(job.cells_path), write), job.candidates // SHORTLIST
    strategy = Strategy(shortlist=SHORTLIST)
    found = scan(job.pool(), job.model(), strategy, k, codebook=codebook, cells=cells, client=client).candidates
    best = np.sort(best_by_key(found.scores, found.rows, job.candidates, 0, 0))
    return Found(found.rows[best], found.scores[best])


def start_seconds(directory: Path, model: Model, client: Client) -> float:
    """Give the median time of a scan of a pool of one chunk: what a pass takes however few rows there are."""
    pool = synthetic.pool_of(directory, synthetic.FITTED_ROWS, model.n_features)
    times = []
    for _ in range(STARTS):
        started_at = time.perf_counter()
        scan(pool, model, Strategy.named("margin"), 100, client=client)
        times.append(time.perf_counter() - started_at)
    return statistics.median(times)


def hand_pass(job: Job, processes: list[ProcessPoolExecutor]) -> Found:
    """Have each process do its part, and merge."""
    best = Best(Capacity(job.candidates, 0, 0), seed=0, round=0)
    for part in _in_parts(hand_part, job, processes):
        if (found := part.result()) is not None:
            best.add(found)
    merged = best.result()
    assert merged is not None
    return Found(merged.rows, merged.scores)


def plain_pass(job: Job, processes: list[ProcessPoolExecutor]) -> Found:
    """Have each process do its part, and merge."""
    parts = [part.result() for part in _in_parts(plain_part, job, processes)]
    rows, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    best = top(scores, job.candidates)
    return Found(rows[best.rows], best.scores)


def _in_parts(work: Callable, job: Job, processes: list[ProcessPoolExecutor]) -> list[Future]:
    unit = plan.unit_rows(job.tile, job.pool().write_rows)
    units = np.linspace(0, -(-job.n_rows // unit), len(processes) + 1).round().astype(int)
    edges = np.minimum(units * unit, job.n_rows).tolist()
    spans = zip(processes, itertools.pairwise(edges), strict=True)
    return [process.submit(work, job, start, stop) for process, (start, stop) in spans if start < stop]


def dask_ml_block_rows(n_rows: int, processes: int) -> int:
    """Give the blocks that suit dask-ml: long ones, but four a process; of 32,768 to 524,288, 262,144 did best."""
    return min(262_144, 1 << (-(-n_rows // (4 * processes)) - 1).bit_length())


def dask_ml_pass(job: Job, client: Client, block_rows: int) -> Found:
    """Score with dask-ml's wrapper, and take the best with Dask's own reduction."""
    from dask_ml.wrappers import ParallelPostFit  # takes seconds to import

    estimator = job.model().estimator
    # Told what comes out, so that it need not try the estimator each time.
    meta = np.empty((0, len(job.model().seen)), dtype=estimator.predict_proba(np.zeros((1, _dim(job)), "f4")).dtype)
    wrapped = ParallelPostFit(estimator, predict_proba_meta=meta)
    array = _features(job)
    X = da.from_array(array, chunks=(block_rows, _dim(job)), name=False)
    scores = wrapped.predict_proba(X).map_blocks(margin_score, drop_axis=1, dtype=meta.dtype)
    rows = da.argtopk(scores, job.candidates)
    rows = np.sort(client.compute(rows).result())
    return Found(rows, np.full(len(rows), np.nan))


def _features(job: Job) -> "zarr.Array":
    node = zarr.open(for_zarr(place_of(job.pool_path)), mode="r")
    return node["features"] if isinstance(node, zarr.Group) else node


def _dim(job: Job) -> int:
    return job.pool().n_features


@contextmanager
def started(job: Job, count: int) -> Iterator[tuple[Client, list[ProcessPoolExecutor], dict[str, Contender]]]:
    """Start every contender's processes, and end them afterwards; give dal's cluster and those of loops as well."""
    settings = SETTINGS["distributed"]["nanny"]["pre-spawn-environ"]
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(settings)) for _ in range(count)]
        threads = {name: count for name in settings if name.endswith("_NUM_THREADS")}
        in_memory = stack.enter_context(_process({**settings, **threads}))
        client = stack.enter_context(local_cluster(count))
        contenders = {
            "dal": lambda: dal_pass(job, client),
            "threads": lambda: threads_pass(job, count),
            "hand": lambda: hand_pass(job, processes),
            "plain": lambda: plain_pass(job, processes),
            "dask_ml": lambda: dask_ml_pass(job, client, dask_ml_block_rows(job.n_rows, count)),
            "numpy": lambda: in_memory.submit(numpy_pass, job, count).result(),
        }
        wanted = Strategy(shortlist=SHORTLIST).n_cells(job.candidates // SHORTLIST, job.n_rows)
        if wanted:
            codebook = sample_codebook(job.pool(), wanted, random_state=0)
            contenders["dal_first"] = lambda: dal_cells_pass(job, client, codebook, write=True)
            contenders["dal_cells"] = lambda: dal_cells_pass(job, client, codebook, write=False)
        yield client, processes, contenders


@contextmanager
def _process(settings: Mapping[str, object]) -> Iterator[ProcessPoolExecutor]:
    with machine.environment(settings):
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        executor.submit(machine.load).result()  # an executor starts its process with its first task
    with executor:
        yield executor


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(contenders: dict[str, Contender], repeats: int, *pool_paths: Path) -> dict[str, list[float]]:
    """Time the contenders in turn, the order rotated, and reversed every other time."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats):
        shift = repeat % len(names)
        order = names[shift:] + names[:shift]
        for name in order if repeat % 2 == 0 else reversed(order):
            for path in pool_paths:
                _into_page_cache(path)
            started_at = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started_at)
    return seconds


def _into_page_cache(directory: Path) -> None:
    buffer = memoryview(bytearray(2**20))
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def agreement(found: Mapping[str, Found], job: Job) -> dict[str, float]:
    """Say which share of the rows each contender has in common with dal's; refuse what is not the same answer.

    Where scores tie, as a forest's do, a reader may choose: a row that only one of two has found counts as common if
    its score is within 1e-6 of the lowest that dal has kept.

    Raises
    ------
    click.ClickException
        If dal, threads and hand differ at all, or two others in more than a thousandth of their rows.
    """
    ours = found["dal"]
    for name in ("hand", "threads"):
        same = found.get(name, ours)
        if not (np.array_equal(ours.rows, same.rows) and np.array_equal(ours.scores, same.scores)):
            raise click.ClickException(f"dal and {name} did not find the same rows and scores.")
    lowest = float(np.min(ours.scores))
    for one, other in itertools.combinations(found, 2):
        share = _in_common(found[one].rows, found[other].rows, lowest, job)
        if share < AGREEMENT:
            raise click.ClickException(f"{one} and {other} have {share:.2%} of their rows in common, expected 99.9 %.")
    return {name: _in_common(ours.rows, found[name].rows, lowest, job) for name in found if name != "dal"}


def _in_common(a: Rows, b: Rows, lowest: float, job: Job) -> float:
    if not len(np.unique(a)) == len(np.unique(b)) == job.candidates:
        return 0.0
    disputed = np.setxor1d(a, b)
    if not len(disputed):
        return 1.0
    probabilities = job.model().estimator.predict_proba(job.pool().take(disputed))
    apart = np.abs(margin_score(probabilities.astype(np.float64)) - lowest) > TIE
    return 1.0 - int(apart.sum()) / 2 / job.candidates


def report(rows: int, seconds: dict[str, list[float]]) -> dict[str, object]:
    """Boil the times down."""
    rates = {name: rows / statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": seconds,
        "rows_per_second": rates,
        "ratio": {name: rates["dal"] / rate for name, rate in rates.items() if name != "dal"},
        "of_hand": {name: rates[name] / rates["hand"] for name in ("dal", "threads", *CELLS) if name in rates},
    }


def table(result: Mapping) -> Table:
    """Lay a result out for reading."""
    size = f"{result['rows']:,} rows x {result['dim']}, {result['classes']} classes"
    title = f"{size}, {result['learner']}, {result['repeats']} repeats"
    drawn = Table(title=title, caption="dal / it: by medians, and the least and the most of one repeat")
    drawn.add_column("contender")
    for heading in ("median s", "M rows/s", "dal / it", "", "same rows as dal"):
        drawn.add_column(heading, justify="right")
    for name, times in result["seconds"].items():
        rate = f"{result['rows_per_second'][name] / 1e6:.2f}"
        compared = ["", "", ""]
        if name != "dal":
            each = [theirs / ours for theirs, ours in zip(times, result["seconds"]["dal"], strict=True)]
            spread = f"{min(each):.2f} - {max(each):.2f}"
            compared = [f"{result['ratio'][name]:.2f}", spread, f"{result['agreement'][name]:.3%}"]
        drawn.add_row(name, f"{statistics.median(times):.3f}", rate, *compared)
    return drawn


def agreement_with_float32(found: Found, exact: Found) -> float:
    """Return the share of what a narrow pool gave that the float32 pool of the same records gives, too."""
    return len(np.intersect1d(found.rows, exact.rows)) / len(found.rows)


def run(
    directory: Path,
    rows: int,
    dim: int,
    learner: str,
    repeats: int,
    processes: int,
    dtype: str = "float32",
    layout: str = "dal",
    classes: int = synthetic.CLASSES,
) -> dict[str, object]:
    """Measure everything once, on the pool of this size in `directory`."""
    exact = synthetic.pool_of(directory, rows, dim, classes)
    model = synthetic.model_of(exact, learner, classes)
    pool = exact if dtype == "float32" else synthetic.narrowed(exact, dtype)
    taking_part = None if pool is exact else DECODING
    if layout != "dal":
        pool, taking_part = synthetic.laid_out(exact, layout), OPENING
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        saved = Path(folder) / "model.skops"
        saved.write_bytes(model.dumps())
        tile = plan.tile_rows(dim, model.tile_rows)
        job = Job(pool.path, str(saved), rows, tile, min(CANDIDATES, rows), str(Path(folder) / "cells.zarr"))
        load_before = machine.load()
        with started(job, processes) as (client, by_hand, every):
            contenders = {name: every[name] for name in every if taking_part is None or name in taking_part}
            found = {name: contender() for name, contender in contenders.items()}
            shares = agreement(found, job)
            paths = [Path(pool.path)]
            if dtype != "float32":
                of_exact = replace(job, pool_path=exact.path)
                beside = {"dal": lambda: dal_pass(of_exact, client), "hand": lambda: hand_pass(of_exact, by_hand)}
                contenders |= {name + EXACT: beside[name] for name in DECODING}
                exactly = {name + EXACT: agreement_with_float32(found["dal"], beside[name]()) for name in DECODING}
                shares, paths = shares | exactly, [*paths, Path(exact.path)]
            seconds = measure(contenders, repeats, *paths)
            start = start_seconds(directory, model, client)
    return {
        "rows": rows,
        "dim": dim,
        "classes": classes,
        "dtype": dtype,
        "layout": layout,
        "start_seconds": start,
        "agreement_with_float32": shares.get("dal" + EXACT, 1.0),
        "learner": learner,
        "estimator": repr(model.estimator),
        "repeats": repeats,
        "processes": processes,
        "candidates": job.candidates,
        **report(rows, seconds),
        "agreement": shares,
        "block_rows": {
            "dal": tile,
            "hand": tile,
            "plain": pool.chunk_rows,
            "dask_ml": dask_ml_block_rows(rows, processes),
            "numpy": NUMPY_BLOCK_ROWS,
        },
        "machine": machine.facts(),
        "load": {"before": load_before, "after": machine.load()},
    }


@click.command("scan")
@click.option("--rows", type=click.IntRange(min=synthetic.FITTED_ROWS), default=2_000_000, show_default=True)
@click.option("--dim", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--classes", type=click.IntRange(min=2), default=synthetic.CLASSES, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=machine.CORES, help="Default: one a core.")
@click.option("--learner", type=click.Choice(list(synthetic.LEARNERS)), default="logistic", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="How the pool stores the records; but for float32, dal and hand alone, on that pool and the float32 one.",
)
@click.option(
    "--layout",
    type=click.Choice(["dal", *synthetic.LAYOUTS]),
    default="dal",
    show_default=True,
    help="How the pool is laid out, see benchmarks/synthetic.py; but for dal, dal, hand and plain alone, and float32.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the pool here, and use it again if it is there; default: a temporary folder, removed at the end.",
)
def command(
    rows: int,
    dim: int,
    classes: int,
    repeats: int,
    processes: int,
    learner: str,
    dtype: str,
    layout: str,
    json_path: Path | None,
    directory: Path | None,
) -> None:
    """Rows scored per second: dal, and four ways to do without it."""
    _refuse_too_much(rows, dim)
    if layout != "dal" and dtype != "float32":
        raise click.ClickException("A --layout other than dal holds float32: drop --dtype, or --layout.")
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        result = run(directory, rows, dim, learner, repeats, processes, dtype, layout, classes)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(table(result))
    if dtype != "float32":
        console.print(f"{dtype}: {result['agreement_with_float32']:.2%} of the candidates of a float32 pool")
    told = ", ".join(f"{name} {share:.2f}" for name, share in result["of_hand"].items())
    console.print(f"of the hand loop: {told}; a scan of one chunk takes {result['start_seconds']:.3f} s")
    cores, cpu = result["machine"]["cores"], result["machine"]["cpu"]
    console.print(
        f"{cores} cores, {cpu}; load {result['load']['before']:.1f} before, {result['load']['after']:.1f} after"
    )


def _refuse_too_much(rows: int, dim: int) -> None:
    needed, free = rows * dim * 4, psutil.virtual_memory().available
    if needed > 0.7 * free:
        raise click.ClickException(
            f"The numpy contender holds the pool in memory: {needed / 1e9:.1f} GB, of which {free / 1e9:.1f} GB are"
            " free. Take fewer --rows."
        )
