"""Pools in an object store: rows a second at several delays of a request, and under faults, against a plain loop.

The store is a server on loopback (`benchmarks.object_server`) that holds the objects in memory and answers after a
delay. All passes find the same records by the same function, ``score_span``, in one process of one thread:

dal
    ``dal.scan.scan``.
loop
    16 concurrent ranged GETs by obstore, in the order of the rows, compared with no checksum: what one writes.

``dal_workers`` is ``dal.scan.scan`` on a local cluster of two workers. The processor is shared with the server, so a
pass without delay shows what the machine can do, and the others are read as shares of it. Passes alternate, and the
figures are medians; shares are medians of the shares of each turn. ``CPU`` is the processor time of this process for a
chunk, without the server and the workers.

A pool of chunks of 16 MiB, one of the same chunks in shards, and one of chunks of 64 kB are read. Each repeats its
first quarter, so that a pass is long beside the one delay with which it begins, and the records fit into memory. The
loop reads only the first quarter of the small chunks: 16 at a time, at 200 ms, they are 80 a second.
``build`` writes a quarter of the records as a pool (``dal``), with an id for each (``dal_ids``), and appends all but
a chunk of them to a pool of that chunk (``dal_append``), against 16 concurrent PUTs of the bytes of the chunks alone.
Faults: a twentieth of all requests is refused by 503, and as many bodies are cut in their middle.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import obstore
import zarr
from obstore.store import S3Store
from rich import box
from rich.console import Console
from rich.table import Table
from zarr.codecs import Crc32cCodec

from benchmarks import machine, synthetic
from benchmarks.object_server import Server, running
from benchmarks.synthetic import NO_ROWS
from dal.compute.local import local_cluster
from dal.learners.models import Model
from dal.pool import Pool
from dal.scan import plan, scan
from dal.scan.merge import no_thresholds
from dal.scan.worker.kernel import Order, score_span
from dal.selection.candidates import Capacity
from dal.selection.strategy import Strategy

GETS = 16
CANDIDATES = 1_000
DELAYS = (0.0, 0.02, 0.1, 0.2)
CHUNKS = {"chunks": 16 * 2**20, "shards": 16 * 2**20, "small": 64 * 2**10}
PER_SHARD = 8
SMALL_CHUNKS = 4096
REPEATED = 4
BUILD = "build"
FAULTS = {"refused": 0.05, "cut": 0.05}
FAULTY_DELAY = 0.02

Floats32 = npt.NDArray[np.float32]


class PlainReader:
    """Reads a pool as a plain loop does: ranged GETs, sixteen at a time, in the order of the rows."""

    def __init__(self, pool: Pool, chunk_bytes: int, sharded: bool) -> None:
        self._store = S3Store("bucket", client_options={"allow_http": True})
        self._prefix = pool.path.removeprefix("s3://bucket/")
        self._rows, self._features = pool.chunk_rows, pool.n_features
        self._bytes, self._sharded = chunk_bytes, sharded
        self._threads = ThreadPoolExecutor(GETS)
        chunks = iter(range(-(-pool.n_rows // pool.chunk_rows)))
        self._waiting = (self._threads.submit(self._get, number) for number in chunks)
        self._asked: deque[Future[Any]] = deque(itertools.islice(self._waiting, GETS))
        self._held: Floats32 = np.empty((0, pool.n_features), dtype=np.float32)
        self._start = 0

    def _get(self, number: int) -> Any:  # noqa: ANN401
        shard, inner = divmod(number, PER_SHARD) if self._sharded else (number, 0)
        start = inner * (self._bytes + 4)
        return obstore.get_range(self._store, f"{self._prefix}/c/{shard}/0", start=start, length=self._bytes)

    def expect(self, start: int, stop: int) -> None: ...

    def forget(self, start: int, stop: int) -> None:  # noqa: ARG002 - the end of the only span
        self._threads.shutdown()

    def finish(self) -> None: ...

    def read(self, start: int, stop: int) -> Floats32:
        parts: list[Floats32] = []
        while start < stop:
            if start >= self._start + len(self._held):
                self._start += len(self._held)
                data = self._asked.popleft().result()
                self._asked.extend(itertools.islice(self._waiting, 1))
                self._held = np.frombuffer(data, dtype=np.float32).reshape(-1, self._features)
            part = self._held[start - self._start : stop - self._start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read_in_blocks(self, start: int, stop: int, height: int, visit: Callable[[int, Floats32], None]) -> Floats32:
        records = self.read(start, stop)
        for first in range(0, len(records), height):
            visit(first, records[first : first + height])
        return records


class Passed(NamedTuple):
    """A pass that was measured; its figures are of a chunk, but for the most requests at a time."""

    rows: npt.NDArray[np.int64]
    seconds: float
    cpu: float
    requests: float
    peak: int


class Pass(NamedTuple):
    """A pass over the first chunks of a pool, and the rows that it finds."""

    name: str
    chunks: int
    run: Callable[[], npt.NDArray[np.int64]]
    prepare: Callable[[], object] = lambda: None


def held(server: Server, source: Pool, layout: str, directory: Path) -> Pool:
    """Write records as a plain array of this layout, and let the server hold its files, each under several names."""
    chunk_bytes = CHUNKS[layout]
    height, width = chunk_bytes // (4 * source.n_features), source.n_features
    n_rows = source.n_rows // (height * PER_SHARD) * height * PER_SHARD
    if layout == "small":
        n_rows = min(n_rows, SMALL_CHUNKS * height)
    path = directory / f"{layout}.zarr"
    array = zarr.create_array(
        path,
        shape=(n_rows, width),
        chunks=(height, width),
        shards=(PER_SHARD * height, width) if layout == "shards" else None,
        dtype="float32",
        compressors=[Crc32cCodec()],
    )
    for start in range(0, n_rows, 2**17):
        array[start : min(start + 2**17, n_rows)] = source.read(start, min(start + 2**17, n_rows))
    stored = list((path / "c").glob("*/0"))
    array.resize((REPEATED * n_rows, width))
    files = {f"/bucket/{layout}.zarr/zarr.json": str(path / "zarr.json")}
    for repeat, file in itertools.product(range(REPEATED), stored):
        number = int(file.parent.name) + repeat * len(stored)
        files[f"/bucket/{layout}.zarr/c/{number}/0"] = str(file)
    server.hold(files)
    return Pool.open(f"s3://bucket/{layout}.zarr")


def loop(pool: Pool, model: Model, layout: str) -> npt.NDArray[np.int64]:
    capacity = Capacity(CANDIDATES, 0, 0)
    tile = plan.tile_rows(pool.n_features, model.tile_rows)
    order = Order("margin", capacity, tile, seed=0, round=0, codebook=None, carry=False)
    reader: Any = PlainReader(pool, CHUNKS[layout], layout == "shards")
    span = plan.Interval(0, pool.n_rows)
    found = score_span(pool, model, order, span, NO_ROWS, no_thresholds(capacity), reader=reader).candidates
    assert found is not None
    return found.rows


def build_passes(records: Floats32) -> list[Pass]:
    """Return the ways to write records into the store; what was written before is deleted first."""
    url, height = "s3://bucket/built.zarr", CHUNKS["chunks"] // (4 * records.shape[1])
    store = S3Store("bucket", client_options={"allow_http": True})
    ids = np.arange(10**9, 10**9 + len(records))

    def dal() -> npt.NDArray[np.int64]:
        return np.arange(Pool.build(records, url).n_rows)

    def dal_ids() -> npt.NDArray[np.int64]:
        return np.arange(Pool.build(records, url, ids=ids).n_rows)

    def dal_append() -> npt.NDArray[np.int64]:
        return np.arange(height, Pool.open(url).append(records[height:]).n_rows)

    def plain() -> npt.NDArray[np.int64]:
        def put(start: int) -> None:
            obstore.put(store, f"built.zarr/c/{start}", records[start : start + height].tobytes(), use_multipart=False)

        with ThreadPoolExecutor(GETS) as threads:
            deque(threads.map(put, range(0, len(records), height)), 0)
        return np.arange(len(records))

    chunks = -(-len(records) // height)
    return [
        Pass("dal", chunks, dal),
        Pass("loop", chunks, plain),
        Pass("dal_append", chunks - 1, dal_append, lambda: Pool.build(records[:height], url)),
        Pass("dal_ids", chunks, dal_ids),
    ]


def measured(server: Server, each: Pass) -> Passed:
    server.drop("/bucket/built.zarr")
    each.prepare()
    server.reset()
    started, computed = time.perf_counter(), time.process_time()
    rows = each.run()
    seconds, cpu = time.perf_counter() - started, time.process_time() - computed
    counts = server.counts()
    requests = (counts["GET"] + counts["PUT"]) / each.chunks
    return Passed(np.sort(rows), seconds / each.chunks, cpu / each.chunks, requests, server.peak())


def turns(
    server: Server, passes: list[Pass], repeats: int, conditions: dict[str, dict[str, float]]
) -> Iterator[tuple[str, str, Passed]]:
    """Run every pass under every condition, in turns; the first turn does not count."""
    expected: dict[int, npt.NDArray[np.int64]] = {}
    for turn in range(repeats + 1):
        for condition, faults in conditions.items():
            if turn == 0 and condition != next(iter(conditions)):
                continue
            for each in passes:
                server.fail(**faults)
                found = measured(server, each)
                np.testing.assert_array_equal(found.rows, expected.setdefault(each.chunks, found.rows))
                if turn:
                    yield each.name, condition, found
    server.fail()


@click.command(name="remote")
@click.option("--rows", default=16_777_216, show_default=True, help="Records of the pools of chunks of 16 MiB.")
@click.option("--dim", default=128, show_default=True, help="Features of a record.")
@click.option("--repeats", default=2, show_default=True, help="Turns of all passes.")
@click.option("--layout", "layouts", multiple=True, type=click.Choice([*CHUNKS, BUILD]), help="Default: all.")
@click.option("--workers/--no-workers", default=True, help="Also on a local cluster of two workers.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file of the figures.")
def command(rows: int, dim: int, repeats: int, layouts: tuple[str, ...], workers: bool, output: Path | None) -> None:
    """Measure passes over pools in an object store, at several delays and under faults."""
    strategy = Strategy.named("margin")
    conditions: dict[str, dict[str, float]] = {f"{1000 * delay:.0f} ms": {"latency": delay} for delay in DELAYS}
    conditions["faults"] = {"latency": FAULTY_DELAY, **FAULTS}
    results: list[dict[str, object]] = []
    with ExitStack() as open_:
        directory = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        server = open_.enter_context(running())
        open_.enter_context(machine.environment(dict(server.environment())))
        source = synthetic.pool_of(directory, rows // REPEATED, dim)
        model = synthetic.model_of(source, "logistic")
        client = open_.enter_context(local_cluster(2)) if workers else None
        for layout in layouts or (*CHUNKS, BUILD):
            if layout == BUILD:
                passes = build_passes(source.read(0, source.n_rows))
                results += told(layout, source.chunk_rows, turns(server, passes, repeats, conditions))
                continue
            pool = held(server, source, layout, directory)

            def dal(pool: Pool = pool, client: Any = None) -> npt.NDArray[np.int64]:  # noqa: ANN401
                return scan(pool, model, strategy, CANDIDATES, client=client).candidates.rows

            few = pool.head(pool.n_rows // REPEATED) if layout == "small" else pool
            passes = [
                Pass("dal", pool.n_rows // pool.chunk_rows, dal),
                Pass("loop", few.n_rows // few.chunk_rows, lambda few=few, layout=layout: loop(few, model, layout)),
            ]
            if client is not None:
                passes.append(Pass("dal_workers", passes[0].chunks, lambda dal=dal: dal(client=client)))
            results += told(layout, pool.chunk_rows, turns(server, passes, repeats, conditions))
    facts = machine.facts() | {"load": os.getloadavg()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    show(results)
    if output is not None:
        output.write_text(json.dumps({"machine": facts, "results": results}, indent=1), encoding="utf-8")


def told(layout: str, chunk_rows: int, turned: Iterator[tuple[str, str, Passed]]) -> list[dict[str, object]]:
    """Return a row of the table for each pass and condition."""
    found: dict[tuple[str, str], list[Passed]] = {}
    for name, condition, passed in turned:
        found.setdefault((name, condition), []).append(passed)
    rows: list[dict[str, object]] = []
    for (name, condition), passes in found.items():
        other = found["loop", condition]
        calm = found[name, "20 ms" if condition == "faults" else "0 ms"]
        rows.append(
            {
                "layout": layout,
                "condition": condition,
                "name": name,
                "rows_per_second": chunk_rows / statistics.median(each.seconds for each in passes),
                "of_loop": statistics.median(b.seconds / a.seconds for a, b in zip(passes, other, strict=True)),
                "of_calm": statistics.median(b.seconds / a.seconds for a, b in zip(passes, calm, strict=True)),
                "cpu_ms": 1000 * statistics.median(each.cpu for each in passes),
                "cpu_of_loop": statistics.median(a.cpu / b.cpu for a, b in zip(passes, other, strict=True)),
                "requests_per_chunk": statistics.median(each.requests for each in passes),
                "peak": max(each.peak for each in passes),
            }
        )
    return rows


def show(results: list[dict[str, object]]) -> None:
    table = Table(box=box.MARKDOWN)
    headings = (
        "layout",
        "condition",
        "pass",
        "rows/s",
        "/ loop",
        "/ calm",
        "CPU ms",
        "/ loop",
        "requests",
        "at a time",
    )
    for heading in headings:
        table.add_column(heading)
    for each in results:
        cpu = ["", ""] if each["name"] == "dal_workers" else [f"{each['cpu_ms']:.2f}", f"{each['cpu_of_loop']:.2f}"]
        table.add_row(
            str(each["layout"]), str(each["condition"]), str(each["name"]), f"{each['rows_per_second']:,.0f}",
            f"{each['of_loop']:.2f}", f"{each['of_calm']:.2f}", *cpu, f"{each['requests_per_chunk']:.2f}",
            str(each["peak"]),
        )  # fmt: skip
    Console(width=120).print(table)
