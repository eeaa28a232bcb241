"""Measure the cost of a pass beside the scoring, on a large cluster: for coordinator, Dask's client and scheduler.

The passes are real ones, of spans that take next to no time: `dal.scan.scan`, a real scheduler in a separate process,
real workers. *Processes* are workers of one process each, as on a cluster. *Simulated* workers are the same servers,
each with its own connections, but a hundred to a process, with one thread for the tasks of all: scheduler and
coordinator meet the same as on a cluster of that size. Eight workers share an address of the loopback network, and
count as a host.

Two passes differ in the number of their tasks alone. The difference of their costs is the price of a task; the rest of
the shorter one is that of a worker, which every pass pays again. *Coordinator* is the CPU time of the thread that calls
`scan`, *client* that of all other threads of its process, *scheduler* that of the scheduler's process, both less what
they take when nothing goes on: heartbeats of a thousand workers, which come by the clock, would otherwise decide on a
slow machine. *First* is the cost of a client's first pass above that of the second:
versions are compared, workers import, hosts are proved. Messages are counted by their receivers: the scheduler, the
workers and the client; heartbeats are left out.
"""

import asyncio
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import click
import dask
import numpy as np
import psutil
import zarr
from distributed import Client, Scheduler, Worker
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from benchmarks import machine
from dal.compute import local
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import Limits, Scan, scan
from dal.selection.strategy import Strategy

TILE, FEATURES, KEPT = 64, 4, 1_000
LIMITS = Limits(tile_rows=TILE, span_bytes=1)
"""By which every tile is a span."""
WORKERS_A_HOST, WORKERS_A_PROCESS = 8, 100
SHORT, LONG = 1, 4
"""Spans a worker."""
IDLE_SECONDS = 10.0
START_SECONDS = 300.0
_BEAT = "heartbeat_worker"
_CLOCKS = ("monitor", "tick", "ticks", "shift_counters", "find-missing")
"""Callbacks by which a worker looks at itself: those of a thousand workers take more than a core, and tell nobody."""


# -- a cluster that counts ---------------------------------------------------------------------------------------------


class Counting(dict[str, Any]):
    """Handlers of messages by their operation, which count their calls."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        super().__init__(handlers)
        self.counts: Counter[str] = Counter()

    def __getitem__(self, operation: str) -> Any:  # noqa: ANN401 - a handler
        self.counts[operation] += 1
        return super().__getitem__(operation)


def counted(server: Scheduler | Worker) -> None:
    """Let a server count the messages that come in, from zero."""
    server.handlers, server.stream_handlers = Counting(server.handlers), Counting(server.stream_handlers)


def counted_scheduler(dask_scheduler: Scheduler) -> None:
    """Let a scheduler count; run on it, as Dask's argument has the name."""
    counted(dask_scheduler)


def counted_worker(dask_worker: Worker) -> None:
    """Let a worker count; run on it, as Dask's argument has the name."""
    counted(dask_worker)


def _taken(server: Scheduler | Worker) -> Counter[str]:
    counts: Counter[str] = server.handlers.counts + server.stream_handlers.counts  # type: ignore[attr-defined]
    counted(server)
    return counts


def _taken_from_scheduler(dask_scheduler: Scheduler) -> Counter[str]:
    return _taken(dask_scheduler)


def _taken_from_worker(dask_worker: Worker) -> Counter[str]:
    return _taken(dask_worker)


class Messages(NamedTuple):
    """The messages to the scheduler, to all workers and to the client, by operation; those by the clock apart."""

    scheduler: Counter[str]
    workers: Counter[str]
    client: Counter[str]
    clock: Counter[str]

    @classmethod
    def count(cls, client: Client) -> None:
        """Let all processes count from zero."""
        client.run(counted_worker)
        client.run_on_scheduler(counted_scheduler)
        client._stream_handlers = Counting(client._stream_handlers)

    @classmethod
    def taken(cls, client: Client) -> "Messages":
        """Return the messages since all processes began to count, and count from zero again."""
        of_workers = client.run(_taken_from_worker)
        scheduler = client.run_on_scheduler(_taken_from_scheduler)
        workers: Counter[str] = sum(of_workers.values(), Counter())
        of_client, client._stream_handlers = client._stream_handlers.counts, Counting(client._stream_handlers)
        # these questions themselves
        workers["run"] -= len(of_workers)
        scheduler -= Counter(["broadcast", "run_function"])
        clock = Counter({each: scheduler.pop(each, 0) for each in (_BEAT, "heartbeat-client", "keep-alive")})
        return cls(scheduler, workers, of_client, clock)

    @property
    def total(self) -> int:
        """All messages, but for those by the clock."""
        return sum(sum(each.values()) for each in self[:3])


def hosts_of(workers: int) -> list[str]:
    """Return the address of each worker's host."""
    return [f"127.0.{1 + host // 250}.{1 + host % 250}" for host in (n // WORKERS_A_HOST for n in range(workers))]


def _lead(told: Connection) -> None:
    async def led() -> None:
        scheduler = await Scheduler(host="127.0.0.1", dashboard=False, dashboard_address="127.0.0.1:0")
        told.send(scheduler.address)
        await scheduler.finished()

    asyncio.run(led())


def _work(address: str, hosts: Sequence[str], folder: str) -> None:
    own: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, "dashboard": False}

    if len(hosts) > 1:
        # A hundred threads that wait for one interpreter wake by the clock, and keep two cores busy with that alone.
        own["executor"] = ThreadPoolExecutor(1)

    async def worked() -> None:
        workers = [Worker(address, host=host, dashboard_address=f"{host}:0", **own) for host in hosts]
        for worker, name in product(workers, _CLOCKS if len(hosts) > 1 else ()):
            worker.periodic_callbacks.pop(name, None)
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(worked())


class Rest(NamedTuple):
    """Shares of a core that a client and a scheduler take when nothing goes on; the scheduler's seconds a heartbeat."""

    client: float
    scheduler: float
    beat: float


class Cluster(NamedTuple):
    """A client, and the processes of its scheduler and workers."""

    client: Client
    scheduler: psutil.Process
    workers: list[psutil.Process]

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds of this process and of the scheduler."""
        return _cpu(psutil.Process()), _cpu(self.scheduler)

    def rest(self) -> Rest:
        """Measure the cost of doing nothing."""
        Messages.count(self.client)
        before, started = self.cpu(), time.perf_counter()
        time.sleep(IDLE_SECONDS)
        seconds = time.perf_counter() - started
        own, led = (after - earlier for after, earlier in zip(self.cpu(), before, strict=True))
        return Rest(own / seconds, led / seconds, led / max(Messages.taken(self.client).clock[_BEAT], 1))


@contextmanager
def running(workers: int, a_process: int) -> Iterator[Cluster]:
    """Run a scheduler in a process, and workers in others; end them with the context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*local._PRELOADED, "benchmarks.large"])
    with (
        tempfile.TemporaryDirectory() as folder,
        local.silent(),
        dask.config.set(local._with_settings(dask.config.config)),
        # A scheduler that shares its core with a thousand workers may not read for a minute: no peer is to give it up.
        dask.config.set({f"distributed.comm.timeouts.{name}": f"{START_SECONDS:.0f}s" for name in ("tcp", "connect")}),
        ExitStack() as open_,
    ):

        def begun(target: Any, *arguments: object) -> psutil.Process:  # noqa: ANN401 - a function
            process = context.Process(target=_configured, args=(dask.config.config, target, *arguments), daemon=True)
            process.start()
            open_.callback(_ended, process)
            return psutil.Process(process.pid)

        heard, told = context.Pipe()
        scheduler = begun(_lead, told)
        address, hosts = heard.recv(), hosts_of(workers)
        groups = [hosts[start : start + a_process] for start in range(0, workers, a_process)]
        # A folder for each process: every worker that comes looks through those of the others there.
        processes = [begun(_work, address, group, f"{folder}/{number}") for number, group in enumerate(groups)]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=START_SECONDS)
            yield Cluster(client, scheduler, processes)


def _configured(config: dict[str, object], target: Any, *arguments: object) -> None:  # noqa: ANN401 - a function
    with local.silent(), dask.config.set(config):
        target(*arguments)


def _ended(process: BaseProcess) -> None:
    process.terminate()
    process.join()


# -- passes ------------------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """CPU seconds, seconds, and messages: those of a pass, or a difference of two."""

    coordinator: float
    client: float
    scheduler: float
    wall: float
    messages: float

    def __sub__(self, other: "Spent") -> "Spent":  # type: ignore[override]
        return Spent(*(a - b for a, b in zip(self, other, strict=True)))

    def __truediv__(self, number: float) -> "Spent":
        return Spent(*(each / number for each in self))

    def __mul__(self, number: float) -> "Spent":  # type: ignore[override]
        return Spent(*(each * number for each in self))


def pool_of(folder: Path, spans: int) -> Pool:
    """Write a pool of a number of spans, a chunk each; by hand, as Zarr takes ten times as long for small chunks."""
    X = np.random.default_rng(spans).standard_normal((spans * TILE, FEATURES)).astype(np.float32)
    path = folder / f"pool-{spans}.zarr"
    zarr.create_array(path, shape=X.shape, chunks=(TILE, FEATURES), dtype="float32", compressors=None)
    for span, records in enumerate(X.reshape(spans, TILE, FEATURES)):
        chunk = path / "c" / str(span)
        chunk.mkdir(parents=True)
        (chunk / "0").write_bytes(records.tobytes())
    return Pool.open(path)


def model() -> Model:
    """Return a model that takes no time."""
    X = np.random.default_rng(0).standard_normal((40, FEATURES)).astype(np.float32)
    return Learner(LogisticRegression(), ["no", "yes"]).fit(X, (X[:, 0] > 0).astype(int))


def passed(pool: Pool, fitted: Model, client: Client | None, limits: Limits = LIMITS) -> Scan:
    """Score the pool once, and bring the features of the candidates along."""
    return scan(pool, fitted, Strategy.named("margin"), KEPT, client=client, limits=limits, with_features=True)


def measured(cluster: Cluster, rest: Rest, pool: Pool, fitted: Model, expected: Scan) -> tuple[Spent, Messages]:
    """Score the pool once; return the cost of that beside the cost of doing nothing.

    Raises
    ------
    click.ClickException
        If other rows are kept than in this process alone.
    """
    Messages.count(cluster.client)
    started, before, thread = time.perf_counter(), cluster.cpu(), time.thread_time()
    found = passed(pool, fitted, cluster.client)
    thread, wall = time.thread_time() - thread, time.perf_counter() - started
    own, led = (after - earlier for after, earlier in zip(cluster.cpu(), before, strict=True))
    messages = Messages.taken(cluster.client)
    if found.candidates.rows.tolist() != expected.candidates.rows.tolist():
        raise click.ClickException("a pass kept other rows")
    client = own - thread - rest.client * wall
    # Not by the time: workers on a busy machine send fewer.
    scheduler = led - rest.beat * messages.clock[_BEAT]
    return Spent(thread, client, scheduler, wall, messages.total), messages


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measure(kind: str, workers: int, folder: Path) -> dict[str, Any]:
    """Run passes of `SHORT` and of `LONG` spans a worker; return the cost of a task and of a worker."""
    fitted, pools = model(), [pool_of(folder, spans * workers) for spans in (SHORT, LONG)]
    alone = [passed(pool, fitted, None, Limits(tile_rows=TILE)) for pool in pools]
    with running(workers, WORKERS_A_PROCESS if kind == "simulated" else 1) as cluster:
        rest = cluster.rest()
        first, again, longer = (measured(cluster, rest, pools[each], fitted, alone[each]) for each in (0, 0, 1))
        memory = [each.memory_full_info() for each in cluster.workers]
        scheduler, files = cluster.scheduler.memory_info().rss, cluster.scheduler.num_fds()
    task = (longer[0] - again[0]) / ((LONG - SHORT) * workers)
    worker = (again[0] - task * (SHORT * workers)) / workers
    told: dict[str, Any] = {
        "kind": kind,
        "workers": workers,
        "tasks": LONG * workers,
        "passes": [spent._asdict() for spent, _ in (first, again, longer)],
        "first": (first[0] - again[0])._asdict(),
        "task": task._asdict(),
        "worker": worker._asdict(),
        "idle": rest._asdict(),
        "files": files,
        "mb": {
            "scheduler": scheduler / 2**20,
            "client": psutil.Process().memory_info().rss / 2**20,
            "worker": sum(each.pss for each in memory) / workers / 2**20,
        },
        "messages": {
            f"{where}: {operation}": count / (LONG * workers)
            for where, counts in longer[1]._asdict().items()
            for operation, count in counts.most_common()
            if count >= workers
        },
    }
    return told


# -- the command -------------------------------------------------------------------------------------------------------


def table(told: dict[str, Any]) -> Table:
    """Lay a result out for reading."""
    drawn = Table(title=f"beside the scoring: {told['workers']:,} {told['kind']}, load {machine.load():.1f}")
    for heading in ("of", "coordinator", "client", "scheduler", "messages", "wall"):
        drawn.add_column(heading, justify="right")
    rows = (
        (f"a task (of {told['tasks']:,}), ms", told["task"], 1e3),
        ("a worker, each pass, ms", told["worker"], 1e3),
        ("the first pass more, s", told["first"], 1.0),
    )
    for of, spent, factor in rows:
        seconds = [f"{factor * spent[name]:.2f}" for name in ("coordinator", "client", "scheduler")]
        drawn.add_row(of, *seconds, f"{spent['messages']:,.1f}", f"{factor * spent['wall']:.2f}")
    idle, held = told["idle"], told["mb"]
    drawn.add_row("idle, share of a core", "", f"{idle['client']:.1%}", f"{idle['scheduler']:.1%}", "", "")
    sizes = [f"{held[name]:.0f}" for name in ("client", "scheduler")]
    drawn.add_row(f"memory, MiB ({held['worker']:.1f} a worker)", "", *sizes, "", "")
    drawn.add_row("open files", "", "", f"{told['files']:,}", "", "")
    return drawn


@click.command("large")
@click.option(
    "--simulated",
    type=click.IntRange(min=0),
    multiple=True,
    default=(1_000,),
    show_default=True,
    help="Workers that share processes; 0 leaves them out. May be given several times.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=0),
    multiple=True,
    default=(64,),
    show_default=True,
    help="Workers of a process each, 64 in about 3 GB; 0 leaves them out. May be given several times.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
def command(simulated: tuple[int, ...], processes: tuple[int, ...], json_path: Path | None) -> None:
    """Measure coordinator, client and scheduler on clusters of many workers: CPU time a task, and a worker and pass."""
    wanted = [("processes", count) for count in processes] + [("simulated", count) for count in simulated]
    results: list[dict[str, Any]] = []
    for kind, workers in filter(itemgetter(1), wanted):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(kind, workers, Path(folder)))
        Console().print(table(results[-1]))  # the next may take minutes
        if json_path is not None:
            told = {"clusters": results, "machine": machine.facts()}
            json_path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
