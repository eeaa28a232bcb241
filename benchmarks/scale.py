"""What the coordinator costs on pools and clusters larger than any at hand, by simulation in virtual time.

The pass is the real one: ``dal.scan.run.Run`` cuts the pool, tells thresholds and merges, and the cluster's engine
decides what is sent when. Only the cluster is not there. A stand-in gives each span to the next thread that is free,
lets it take its rows / rate of virtual seconds, and returns what a worker would: candidates at full size (1e5 with as
many again over cells), drawn from the distribution that is left above the thresholds the span was told when it was
sent. So survivors decline as they would; nothing is read or scored. Cells differ in how uncertain their rows are, so
that what the cells keep and what the whole keeps are not the same. The coordinator's own seconds pass on the virtual
clock, too: threads that wait for it stand idle.

``overhead`` is the CPU time of the coordinator over the length of the pass. Counted is all that ``dal`` does there:
cutting spans, making tasks, unpacking what workers send, merging it, raising thresholds, and the journal, really
written, to a temporary folder. It is more than what delays the pass, because most of it is spent while every thread
has work. It leaves out

- what Dask takes in client and scheduler to carry a task out and its result back: ``dask_ms_per_task``, measured with
  2,000 tasks that only return candidates, sent and fetched by the engine's own code, on a local cluster whose scheduler
  shares the coordinator's process, and multiplied out in ``dask_seconds``. On a cluster the scheduler is a process of
  its own, and both work while the workers do: a pass is held up only where one of them would take longer than it;
- the network;
- the features of the candidates, gathered once at the end;
- threads of different pace, and workers that die.

``pass_seconds`` over ``ideal_seconds`` is what all of it costs: waiting for the coordinator, rows that are scored twice
for the sake of first thresholds, and threads that end before the last one.
"""

import heapq
import json
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple, cast

import click
import numpy as np
import numpy.typing as npt
from distributed import Client
from rich.console import Console
from rich.table import Table

from benchmarks import machine, synthetic
from dal.compute.local import local_cluster
from dal.pool import Pool
from dal.scan import Journal, Waves, cluster, plan
from dal.scan.merge import Best, Thresholds, no_thresholds
from dal.scan.plan import Interval
from dal.scan.run import Run
from dal.scan.worker.histogram import BINS, Histogram
from dal.scan.worker.kernel import Order, SpanResult, Tally, Task
from dal.scan.worker.record import decode, encode
from dal.scan.worker.spans import Job, Sent
from dal.selection.candidates import Candidates, Capacity
from dal.selection.order import row_hash
from dal.selection.strategy import Strategy

BATCH = 10_000
"""Its shortlist is 1e5 rows in the default strategy."""
SEED = 0
STUBS, CANDIDATES_OF_STUB, IN_FLIGHT_OF_STUBS = 2_000, 1_000, 320
CELLS_OF_STUB = Capacity(1, 256, 1)
PROBE_PACE = 0.1
"""Spans differ in their pace by so much, up or down."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VirtualPool:
    """The size and shape of a pool, without records."""

    n_rows: int
    n_features: int
    write_rows: int = 32_768
    chunk_rows: int = 32_768
    path: str = "virtual"
    fingerprint: str = "virtual"
    is_remote: bool = False

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def unit_rows(self) -> int:
        return self.chunk_rows


class Flight(NamedTuple):
    """A task on a thread."""

    task: Task
    seconds: float


class VirtualCluster:
    """Stands in for ``dal.scan.cluster``'s own, with threads in virtual time.

    Parameters
    ----------
    workers : int
        Of one thread each.
    rate : float
        Rows per second of a thread.
    order : Order
    """

    def __init__(self, workers: int, rate: float, order: Order) -> None:
        self.rate = rate
        self.source = Source(order)
        self.pending: dict[int, Flight] = {}
        self.tasks = 0
        self.now = 0.0
        self.coordinator_seconds = 0.0
        self._free = [0.0] * workers
        self._flights: list[tuple[float, int]] = []
        self._left_at = time.thread_time()

    def threads(self) -> int:
        return len(self._free)

    def submit(self, tasks: Sequence[Task]) -> None:
        self._enter()
        for task in tasks:
            self.tasks += 1
            interval = task.interval
            seconds = (interval.stop - interval.start) / (self.rate * self._pace(interval))
            end = max(heapq.heappop(self._free), self.now) + seconds
            heapq.heappush(self._free, end)
            heapq.heappush(self._flights, (end, self.tasks))
            self.pending[self.tasks] = Flight(task, seconds)
        self._leave()

    def _pace(self, interval: Interval) -> float:
        drawn = int(row_hash(np.array([interval.start]), SEED, 5)[0]) / 2**64
        return 1 + PROBE_PACE * (2 * drawn - 1)

    def ended(self, longest_span: float) -> list[tuple[Task, SpanResult | BaseException]]:  # noqa: ARG002
        """Wait for a task to end, and give it with all that ended while the coordinator was busy."""
        self._enter()
        self.now = max(self.now, self._flights[0][0])
        ended: list[tuple[Task, bytes]] = []
        while self._flights and self._flights[0][0] <= self.now:
            flight = self.pending.pop(heapq.heappop(self._flights)[1])
            sent = Sent("virtual", encode(self.source.result(flight)))
            ended.append((flight.task, pickle.dumps(sent, protocol=5)))
        self._leave()
        return [(task, decode(pickle.loads(sent).record)) for task, sent in ended]

    def _enter(self) -> None:
        spent = time.thread_time() - self._left_at
        self.coordinator_seconds += spent
        self.now += spent

    def _leave(self) -> None:
        self._left_at = time.thread_time()


class Source:
    """Draws what a worker would return of a span."""

    def __init__(self, order: Order) -> None:
        self.order = order
        cells = max(order.capacity.cells, 1)
        # A cell's scores are u ** power for uniform u: from certain cells (10) to uncertain ones (1 / 2).
        self.power = np.geomspace(0.5, 10.0, cells)

    def result(self, flight: Flight) -> SpanResult:
        interval, capacity = flight.task.interval, flight.task.sounded or self.order.capacity
        rows = interval.stop - interval.start
        best = Best(capacity, self.order.seed, self.order.round)
        best.add(self._survivors(interval, flight.task.thresholds))
        return SpanResult(interval, best.result(), self._tally(rows), flight.seconds)

    def _survivors(self, interval: Interval, told: Thresholds) -> Candidates:
        random = np.random.default_rng([SEED, interval.start])
        rows, cells = interval.stop - interval.start, len(self.power)
        floors = np.full(cells, told.overall) if told.cells is None else np.minimum(told.cells, told.overall)
        lowest = np.where(floors > 0, np.maximum(floors, 0) ** (1 / self.power), 0.0)
        # Of the rows, each cell has its share, of which those above its floor survive.
        counts = random.binomial(random.multinomial(rows, np.full(cells, 1 / cells)), 1 - lowest)
        cell = np.repeat(np.arange(cells), counts)
        total = len(cell)
        drawn = lowest[cell] + (1 - lowest[cell]) * random.random(total)
        chosen = interval.start + random.choice(rows, total, replace=False, shuffle=False).astype(np.int64)
        scores = drawn ** self.power[cell]
        nothing = np.empty((total, 0), dtype=np.float32)
        return Candidates(chosen, scores, cell, chosen % synthetic.CLASSES, nothing)

    def _tally(self, rows: int) -> Tally:
        histogram = Histogram(np.full(BINS, rows // BINS))
        return Tally(rows, 0, synthetic.NO_ROWS, histogram, np.empty(0, dtype=np.int64), rows, 0, 0)


# -- measuring --------------------------------------------------------------------------------------------------------


def simulate(
    pool: VirtualPool, capacity: Capacity, workers: int, rate: float, waves: Waves | None
) -> dict[str, object]:
    """Let the real engine carry a pass through, and say what it took."""
    order = Order("margin", capacity, plan.tile_rows(pool.n_features), SEED, 0, None, carry=False)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        state = Run(cast("Pool", pool), None, order, synthetic.NO_ROWS, None, journal, None, waves=waves)
        threads = VirtualCluster(workers, rate, order)
        cluster._Engine(state, cast("cluster._Cluster", threads), skip_failed=False).run()
        found = state.result(lambda rows: np.empty((len(rows), 0), dtype=np.float32))
        threads._enter()
    return {
        "rows": pool.n_rows,
        "scored": found.summary.tally.rows,
        "workers": workers,
        "rate": rate,
        "tasks": threads.tasks,
        "candidates": len(found.candidates),
        "overhead": threads.coordinator_seconds / threads.now,
        "coordinator_seconds": threads.coordinator_seconds,
        "pass_seconds": threads.now,
        "ideal_seconds": found.summary.tally.rows / rate / workers,
        "bytes_up": found.summary.bytes_up,
        "peak_mb": machine.peak_bytes() / 2**20,
    }


def capacity_of(n_rows: int) -> Capacity:
    """Say what the default strategy keeps for a batch of 10,000."""
    return Strategy().capacity(BATCH, n_rows)


def dask_ms_per_task(client: Client) -> float:
    """Measure what client and scheduler, both in this process, take to carry a task out and its candidates back."""
    threads = cluster._Cluster(client, cast("Job", None))
    threads.task = _sent_back
    left = [Task(Interval(row, row + 1), synthetic.NO_ROWS, no_thresholds(CELLS_OF_STUB), None) for row in range(STUBS)]
    started = time.process_time()
    while left or threads.pending:
        count = IN_FLIGHT_OF_STUBS - len(threads.pending)
        if sent := left[:count]:
            threads.submit(sent)
            left = left[count:]
        threads.ended(0.0)
    return 1e3 * (time.process_time() - started) / STUBS


def _sent_back(task: Task) -> Sent:
    numbers = np.arange(CANDIDATES_OF_STUB, dtype=np.int64)
    nothing = np.empty((len(numbers), 0), dtype=np.float32)
    found = Candidates(numbers, numbers.astype(np.float64), numbers, numbers, nothing)
    return Sent("", encode(SpanResult(task.interval, found, Tally.zero(10), 0.0)))


def table(results: Sequence[Mapping]) -> Table:
    """Lay results out for reading."""
    drawn = Table(title="the coordinator, simulated")
    headings = (
        "rows",
        "scored",
        "workers",
        "tasks",
        "pass s",
        "ideal s",
        "coordinator s",
        "overhead",
        "sent MiB",
        "peak MiB",
    )
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for result in results:
        drawn.add_row(
            f"{result['rows']:.0e}",
            f"{result['scored']:.1e}",
            str(result["workers"]),
            f"{result['tasks']:,}",
            f"{result['pass_seconds']:.1f}",
            f"{result['ideal_seconds']:.1f}",
            f"{result['coordinator_seconds']:.2f}",
            f"{result['overhead']:.1%}",
            f"{result['bytes_up'] / 2**20:,.0f}",
            f"{result['peak_mb']:.0f}",
        )
    return drawn


# -- the picture ------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 260, 60, 40
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_LOWEST, _HIGHEST = 0.001, 1.0


def picture(results: Sequence[Mapping]) -> str:
    """Draw overhead over rows, both on a log scale, a line for each number of workers, as SVG."""
    rows = sorted({result["rows"] for result in results})
    span = np.log10(rows[-1] / rows[0]) or 1.0

    def x(value: float) -> float:
        return float(_LEFT + (_WIDTH - _LEFT - 90) * np.log10(value / rows[0]) / span)

    def y(overhead: float) -> float:
        share = np.log10(np.clip(overhead, _LOWEST, _HIGHEST) / _LOWEST) / np.log10(_HIGHEST / _LOWEST)
        return float(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 30) * share)

    def text(left: float, top: float, said: str, anchor: str = "middle", colour: str = "#333") -> str:
        return f'<text x="{left:.0f}" y="{top:.0f}" text-anchor="{anchor}" fill="{colour}">{said}</text>'

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" {style}/>'

    right = x(rows[-1])
    drawn = [text(_LEFT, 16, "coordinator CPU / length of the pass", "start")]
    for level in (0.001, 0.01, 0.1, 1.0):
        drawn += [
            line(_LEFT, y(level), right, y(level), 'stroke="#ddd"'),
            text(50, y(level) + 4, f"{level:.3g}", "end"),
        ]
    drawn += [line(_LEFT, y(0.05), right, y(0.05), 'stroke="#999" stroke-dasharray="4 3"')]
    drawn += [text(50, y(0.05) + 4, "goal .05", "end")]
    drawn += [text(x(value), _HEIGHT - 22, f"{value:.0e}".replace("e+0", "e").replace("e+", "e")) for value in rows]
    drawn += [text((_LEFT + right) / 2, _HEIGHT - 5, "rows of the pool")]
    for colour, workers in zip(_COLOURS, sorted({result["workers"] for result in results}), strict=False):
        points = sorted((r["rows"], r["overhead"]) for r in results if r["workers"] == workers)
        path = " ".join(f"{x(row):.1f},{y(overhead):.1f}" for row, overhead in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x(row):.1f}" cy="{y(o):.1f}" r="3" fill="{colour}"/>' for row, o in points]
        drawn.append(text(right + 8, y(points[-1][1]) + 4, f"{workers} threads", "start", colour))
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    font = 'font-family="sans-serif" font-size="12"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{background}{"".join(drawn)}</svg>\n'


# -- the command ------------------------------------------------------------------------------------------------------


def measured(rows: int, dim: int, workers: int, rate: float, waves: Waves | None) -> dict[str, object]:
    """Simulate one pass in a process of its own, whose peak memory is then that of this pass."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        told = executor.submit(simulate, VirtualPool(rows, dim), capacity_of(rows), workers, rate, waves).result()
    return {"capacity": capacity_of(rows)._asdict(), "dim": dim, **told}


@click.command("scale")
@click.option(
    "--rows", type=float, multiple=True, default=(1e9,), show_default=True, help="May be given several times."
)
@click.option(
    "--workers", type=click.IntRange(min=1), multiple=True, default=(64,), show_default=True, help="The same."
)
@click.option("--rate", type=float, default=1e6, show_default=True, help="Rows per second of a worker's one thread.")
@click.option("--dim", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--waves", is_flag=True, help="Score the pool by waves, to a floor of 0.9.")
@click.option("--dask/--no-dask", default=True, show_default=True, help="Measure what Dask takes a task, too.")
@click.option(
    "--picture", "svg_path", type=click.Path(path_type=Path, dir_okay=False), help="Draw the curve here, SVG."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
def command(
    rows: tuple[float, ...],
    workers: tuple[int, ...],
    rate: float,
    dim: int,
    waves: bool,
    dask: bool,
    svg_path: Path | None,
    json_path: Path | None,
) -> None:
    """Coordinator's share of a pass over a pool that is not there, on workers that are not there."""
    terms = Waves(0.9) if waves else None
    results = [measured(int(n_rows), dim, threads, rate, terms) for n_rows, threads in product(rows, workers)]
    if dask:
        with local_cluster(1) as client:
            dask_ms_per_task(client)  # the first tasks of a cluster take longer
            milliseconds = dask_ms_per_task(client)
        for result in results:
            result["dask_ms_per_task"] = milliseconds
            result["dask_seconds"] = milliseconds * cast("int", result["tasks"]) / 1e3
    told = results[0] if len(results) == 1 else {"curve": results}
    if json_path is not None:
        json_path.write_text(json.dumps({**told, "machine": machine.facts()}, indent=2) + "\n", encoding="utf-8")
    if svg_path is not None:
        svg_path.write_text(picture(results), encoding="utf-8")
    console = Console()
    console.print(table(results))
    if dask:
        console.print(f"Dask's client and scheduler: {milliseconds:.2f} ms CPU a task")
