"""Object stores: what is fetched, how often it is tried, and what is said; nothing of a secret is kept."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import fsspec.config
import numpy as np
import pyarrow as pa
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec
from zarr.core.buffer import default_buffer_prototype

from benchmarks.machine import peak_bytes
from benchmarks.object_server import Server, running
from dal import Campaign
from dal.campaign import Storage
from dal.errors import (
    CampaignError,
    ChunkError,
    InputError,
    PoolError,
    PoolIncomplete,
    PoolNotFound,
    SettingsError,
    StoreError,
)
from dal.learners.learner import Learner
from dal.learners.models import Model
from dal.loop.campaign import Batch
from dal.places import for_zarr, names_at, place_of
from dal.pool import Pool
from dal.pool.ids import hash_ids, sorted_entries
from dal.pool.sizes import Sizes
from dal.pool.sources import Block
from dal.pool.store import ATTRIBUTE, description
from dal.scan import scan
from dal.selection.strategy import Strategy
from dal.stores.lease import NAME
from dal.stores.objects import Objects, begun, wait
from dal.stores.settings import Address, client_of
from dal.stores.zarr_store import Found, ZarrObjects
from tests.clusters import own_cluster

SECRET = "hunter2-hunter2-hunter2"
ROWS, DIM = 3_000, 16
X = np.random.default_rng(0).standard_normal((ROWS, DIM), dtype=np.float32)
CODES = (X[:, 0] > 0).astype(np.int64)


@pytest.fixture(scope="module")
def _server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A store in which nothing goes wrong yet; ``s3://`` URLs lead there."""
    for name, value in {**_server.environment(), "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    # The other store of the session, whose variables last, sets it: nothing would be tried again.
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    _server.fail()
    _server.reset()
    return _server


LAYOUTS: dict[str, dict[str, object]] = {
    "chunks": {"compressors": [Crc32cCodec()]},
    "plain": {"compressors": None},
    "blosc": {"compressors": [BloscCodec(cname="lz4")]},
    "shards": {"shards": (800, DIM), "compressors": [Crc32cCodec()]},
    "gzip": {"compressors": [GzipCodec()]},
    "columns": {"chunks": (100, 8), "compressors": None},
}


def written(url: str, layout: str, values: np.ndarray = X, **options: object) -> Pool:
    """Write a plain array of 30 chunks to a store, and open it as a pool."""
    how = {"shape": values.shape, "chunks": (100, DIM), "dtype": values.dtype, **LAYOUTS[layout], **options}
    array = zarr.create_array(for_zarr(place_of(url)), overwrite=True, **how)
    array[:] = values
    return Pool.open(url)


@pytest.fixture(scope="module")
def model() -> Model:
    return Learner.named("logistic", ["no", "yes"]).fit(X[:200], CODES[:200])


MARGIN = Strategy.named("margin")


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pool_in_a_store_holds_the_same_records(server: Server, layout: str, model: Model, tmp_path: Path) -> None:
    pool = written(f"s3://bucket/{layout}", layout)
    np.testing.assert_array_equal(pool.read(0, ROWS), X)
    np.testing.assert_array_equal(pool.read(450, 1_250), X[450:1_250])
    rows = np.random.default_rng(1).permutation(ROWS)[:200]
    np.testing.assert_array_equal(pool.take(rows), X[rows])
    found = scan(pool, model, MARGIN, 5)
    here = scan(Pool.build(X, tmp_path / "pool.zarr"), model, MARGIN, 5)
    np.testing.assert_array_equal(found.candidates.rows, here.candidates.rows)
    np.testing.assert_array_equal(found.candidates.scores, here.candidates.scores)
    scores = np.sort(1 - np.abs(np.diff(model.predict_proba(X)))[:, 0])[::-1]
    np.testing.assert_allclose(np.sort(found.candidates.scores)[::-1], scores[: len(found.candidates)], atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "chunks", "most"),
    [("chunks", 30, 30), ("plain", 30, 30), ("blosc", 30, 30), ("shards", 30, 4 + 4), ("gzip", 30, 30)],
)
def test_a_pass_asks_once_for_each_chunk(server: Server, layout: str, chunks: int, most: int, model: Model) -> None:
    pool = written(f"s3://bucket/{layout}", layout)
    server.reset()
    scan(pool, model, Strategy.named("margin"), 5, with_features=False)
    counts = server.counts()
    assert 0 < counts["GET"] <= most <= chunks
    assert counts["HEAD"] == counts["GET list"] == 0
    server.reset()
    pool.take(np.arange(0, ROWS, 100))
    assert server.counts()["GET"] <= 30 + 4


def test_chunks_are_asked_for_ahead(server: Server) -> None:
    pool = written("s3://bucket/ahead", "plain", chunks=(100, DIM))
    server.fail(latency=0.2)
    server.reset()
    reader = pool.reader()
    reader.expect(0, ROWS)
    reader.read(0, 100)
    assert server.peak() >= 16


def test_requests_keep_within_the_open_files_and_a_cancelled_one_gives_its_place_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (8, 8))
    monkeypatch.setattr("dal.stores.objects._gates", {})
    objects, names = Objects("s3://bucket/gate"), [str(number) for number in range(20)]
    for name in names:
        wait(objects.put(name, name.encode()))
    server.fail(stalled=1, methods="GET")
    server.reset()
    asked = begun(objects.get_all(names, 8))
    while server.counts()["stalled"] < 6:
        assert not asked.done()
    assert asked.cancel()
    server.fail(latency=0.01)
    server.reset()
    found = wait(objects.get_all([*names, "none"], 8))
    assert [each and bytes(each) for each in found] == [*(name.encode() for name in names), None]
    assert 1 < server.peak() <= 6


def test_a_reader_keeps_within_its_budget(server: Server) -> None:
    large = np.ones((20, 2**20), dtype=np.float32)  # a chunk is 16 MiB
    place = place_of("s3://bucket/large")
    zarr.create_array(for_zarr(place), shape=large.shape, chunks=(4, 2**20), dtype="f4", compressors=None)[:] = large
    pool = Pool.open("s3://bucket/large")
    server.reset()
    server.fail(latency=0.1)
    reader = pool.reader(pool.read_ahead(budget=48 * 2**20))
    reader.expect(0, 20)
    reader.read(0, 1)
    assert 2 <= server.peak() <= 3
    assert server.counts()["GET"] <= 4
    np.testing.assert_array_equal(reader.read(19, 20), large[:1])


def test_a_web_server_gives_pools_to_read(server: Server, model: Model) -> None:
    Pool.build(X, "s3://bucket/web pool.zarr", ids=[f"r{row}" for row in range(ROWS)], display={"n": list(range(ROWS))})
    url = f"{server.address}/bucket/web%20pool.zarr"
    pool = Pool.open(url)
    np.testing.assert_array_equal(pool.read(0, ROWS), X)
    assert pool.record_ids([7, 2]) == ["r7", "r2"]
    assert pool.rows_of(["r5", "none"]).tolist() == [5, -1]
    assert pool.display([3]) == {"n": [3]}
    assert len(scan(pool, model, MARGIN, 5).candidates) >= 5
    plain = written("s3://bucket/web-plain", "plain")
    np.testing.assert_array_equal(Pool.open(f"{server.address}/bucket/web-plain").read(0, ROWS), plain.read(0, ROWS))
    with pytest.raises(StoreError, match="cannot be written"):
        Pool.build(X, f"{server.address}/bucket/new.zarr")
    with pytest.raises(PoolNotFound):
        Pool.open(f"{server.address}/bucket/none.zarr")


def test_what_is_missing_is_an_error_that_names_it(server: Server) -> None:
    pool = Pool.build(X, "s3://bucket/holes.zarr")
    [chunk] = [name for name in wait(_names(pool.path)) if name.startswith("features/c/")]
    wait(Objects(pool.path).delete([chunk]))
    with pytest.raises(ChunkError, match=rf"s3://bucket/holes\.zarr.*{chunk.removeprefix('features/')}.*missing"):
        pool.read(0, 1)
    with pytest.raises(PoolNotFound, match=r"s3://bucket/none\.zarr"):
        Pool.open("s3://bucket/none.zarr")


async def _names(url: str) -> list[str]:
    return [name async for name in Objects(url).below("")]


@pytest.mark.parametrize("layout", ["chunks", "plain", "blosc", "shards"])
def test_an_object_of_another_length_is_a_damaged_chunk(server: Server, layout: str) -> None:
    pool = written(f"s3://bucket/short-{layout}", layout)
    server.fail(short=1, only="/c/")
    with pytest.raises(ChunkError, match="cannot be read"):
        pool.read(0, ROWS)


def test_an_empty_object_is_a_damaged_chunk(server: Server) -> None:
    pool = written("s3://bucket/empty", "chunks")
    wait(Objects(pool.path).put("c/0/0", b""))
    with pytest.raises(ChunkError, match="c/0/0"):
        pool.read(0, 1)


# -- what is transient is tried again ----------------------------------------------------------------------------------

FAULTS = [*({"refused": 1, "status": status} for status in (408, 429, 500, 502, 503, 504)), {"cut": 1}]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_what_is_transient_is_tried_again(server: Server, fault: dict[str, float]) -> None:
    pool = written("s3://bucket/transient", "chunks")
    server.fail(**fault, most=3)
    np.testing.assert_array_equal(pool.read(0, ROWS), X)
    server.fail(**fault, most=3, methods="PUT")
    wait(Objects("s3://bucket").put("one", b"data"))
    assert bytes(wait(Objects("s3://bucket").get("one")) or b"") == b"data"
    assert server.counts()["refused"] + server.counts()["cut"] >= 3


def test_a_refusal_that_is_cut_is_asked_for_again(server: Server) -> None:
    server.fail(cut=1, most=1)
    assert wait(Objects("s3://bucket").get("none")) is None
    server.fail(cut=1, most=1)
    with pytest.raises(PoolNotFound):
        Pool.open("s3://bucket/none.zarr")


def test_a_server_that_says_nothing_is_asked_again(server: Server) -> None:
    objects = Objects("s3://bucket", read_seconds=0.3)
    wait(objects.put("quiet", b"data"))
    server.fail(stalled=1, most=1)
    assert bytes(wait(objects.get("quiet")) or b"") == b"data"
    assert server.counts()["stalled"] == 1


@pytest.mark.parametrize(
    ("fault", "named", "transient"),
    [
        ({"refused": 1, "status": 403}, "AWS_ACCESS_KEY_ID", False),
        ({"refused": 1, "status": 401}, "AWS_ACCESS_KEY_ID", False),
        ({"refused": 1, "status": 400}, "region", False),
        ({"refused": 1, "status": 503}, "503", True),
        ({"cut": 1}, "run again", True),
    ],
    ids=str,
)
def test_what_lasts_is_an_error_in_words(
    server: Server, fault: dict[str, float], named: str, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    pool = written("s3://bucket/lasting", "chunks")
    server.fail(**fault, only="/c/")
    with pytest.raises(StoreError, match=rf"s3://bucket/lasting/c/\d+/0 cannot be read: .*{named}") as raised:
        pool.read(0, ROWS)
    assert raised.value.transient is transient
    assert SECRET not in str(raised.value)
    assert "Debug" not in str(raised.value)
    assert raised.value.__cause__ is None
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.transient) == (str(raised.value), transient)


def test_a_store_that_is_down_is_an_error_in_words(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for attempt in (lambda: Pool.open("s3://bucket/pool.zarr"), lambda: Pool.build(X, "s3://bucket/pool.zarr")):
        with pytest.raises(StoreError, match=r"s3://bucket/pool\.zarr/\S* cannot be read: .*connect.*run again"):
            attempt()


@pytest.mark.parametrize("fault", [{"refused": 1, "status": 503}, {"cut": 1}], ids=str)
def test_a_cluster_scores_a_span_again_when_the_store_is_back(
    server: Server, fault: dict[str, float], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    pool = written("s3://bucket/again", "chunks")
    expected = scan(pool, model, MARGIN, 5).candidates
    with own_cluster(1, processes=False, protocol="tcp") as (_, client):
        scan(pool, model, MARGIN, 5, client=client)
        server.fail(**fault, only="/c/", most=2)
        seen: list[int] = []
        found = scan(pool, model, MARGIN, 5, client=client, progress=lambda state: seen.append(state.failed))
        np.testing.assert_array_equal(found.candidates.rows, expected.rows)
        assert seen[-1] > 0
        server.fail(**fault, only="/c/")
        with pytest.raises(StoreError, match="s3://bucket/again/c/"):
            scan(pool, model, MARGIN, 5, client=client)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_pool_is_built_and_grown_under_faults(server: Server) -> None:
    server.fail(refused=0.1, cut=0.0)
    ids = [f"r{row}" for row in range(ROWS)]
    pool = Pool.build(X[:2_000], "s3://bucket/built.zarr", ids=ids[:2_000]).append(X[2_000:], ids=ids[2_000:])
    np.testing.assert_array_equal(pool.read(0, ROWS), X)
    assert pool.rows_of(["r2999", "r0"]).tolist() == [2_999, 0]
    assert server.counts()["refused"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_are_written_as_on_this_machine(server: Server, dtype: str, tmp_path: Path) -> None:
    values = np.repeat(X[:1_100], 256, axis=1)  # in float32 a chunk and a part of one
    url = f"s3://bucket/there-{dtype}.zarr"
    here = Pool.build(values[:1_030], tmp_path / "here.zarr", dtype=dtype).append(values[1_030:])
    there = Pool.build(values[:1_030], url, dtype=dtype).append(values[1_030:])
    np.testing.assert_array_equal(there.read(0, 1_100), here.read(0, 1_100))
    root = tmp_path / "here.zarr"
    files = {path.relative_to(root): path for path in (root / "features/c").rglob("0") if path.is_file()}
    assert len(files) == -(-1_100 // here.chunk_rows)
    for name, file in files.items():
        assert bytes(wait(Objects(url).get(str(name))) or b"") == file.read_bytes()


BUILDER = """
import sys, numpy as np
from dal.pool import Pool
Pool.build(np.load(sys.argv[1], mmap_mode="r"), sys.argv[2], ids=[f"r{row}" for row in range(int(sys.argv[3]))])
"""


@pytest.mark.slow
@pytest.mark.parametrize("append", [False, True])
def test_a_build_that_is_killed_goes_on(server: Server, tmp_path: Path, append: bool) -> None:
    large = np.random.default_rng(2).standard_normal((9 * 2**12, 2**8), dtype=np.float32)  # three chunks
    np.save(tmp_path / "X.npy", large)
    place = f"s3://bucket/killed-{append}.zarr"
    ids = [f"r{row}" for row in range(len(large))]
    pool = Pool.build(large[:100] + 1, place, ids=[f"old{row}" for row in range(100)]) if append else None
    code = BUILDER.replace("Pool.build(", "Pool.open(sys.argv[2]).append(").replace("sys.argv[2], ids", "ids")
    server.fail(latency=0.2, only="")
    server.reset()
    command = [sys.executable, "-c", code if append else BUILDER, str(tmp_path / "X.npy"), place, str(len(large))]
    with subprocess.Popen(command) as process:
        while not server.counts()["PUT chunk"] and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    server.fail()
    if pool is not None:
        np.testing.assert_array_equal(Pool.open(place).read(0, 100), large[:100] + 1)
        assert Pool.open(place).n_rows == 100
        found = pool.append(large, ids=ids)
    else:
        with pytest.raises((PoolIncomplete, PoolNotFound)):
            Pool.open(place)
        found = Pool.build(np.load(tmp_path / "X.npy", mmap_mode="r"), place, ids=ids)
    first = found.n_rows - len(large)
    np.testing.assert_array_equal(found.read(first, found.n_rows), large)
    assert found.rows_of([ids[0], ids[-1]]).tolist() == [first, found.n_rows - 1]


def test_a_build_that_is_killed_while_its_index_is_written_goes_on(server: Server) -> None:
    ids, where = [f"r{row}" for row in range(ROWS)], "s3://bucket/index.zarr"
    Pool.build(X, where, ids=ids)
    group = zarr.open_group(for_zarr(place_of(where)), mode="r+")
    group.attrs[ATTRIBUTE] = {**description(group), "complete": False}
    with pytest.raises(PoolIncomplete):
        Pool.open(where)
    pool = Pool.build(X, where, ids=ids)
    assert pool.rows_of(["r2999", "r0"]).tolist() == [2_999, 0]
    np.testing.assert_array_equal(pool.read(0, ROWS), X)


def test_metadata_are_asked_for_and_written_once(server: Server) -> None:
    ids, where = [f"r{row}" for row in range(ROWS)], "s3://bucket/once.zarr"
    server.reset()
    Pool.build(X, where, ids=ids, display={"n": list(range(ROWS))})
    asked = Counter(line for line in server.log() if line.endswith("zarr.json"))
    root = f"{where.removeprefix('s3:/')}/zarr.json"
    assert asked.pop(f"PUT {root}") == 3
    assert {line: times for line, times in asked.items() if times > 1} == {}
    server.reset()
    pool = Pool.open(where)
    assert sum(server.counts()[method] for method in ("GET", "HEAD")) == 2
    server.reset()
    assert pool.refreshed() is pool
    assert sum(server.counts()[method] for method in ("GET", "HEAD")) == 1


@pytest.mark.slow
def test_small_units_are_written_and_ids_read_many_at_a_time(server: Server, tmp_path: Path) -> None:
    sizes = Sizes(chunk_bytes=64 * 4 * DIM, field_rows=16)
    ids, where = [f"r{row}" for row in range(ROWS)], "s3://bucket/many.zarr"
    server.fail(latency=0.3)
    server.reset()
    pool = Pool.build(X[:1_900], where, ids=ids[:1_900], sizes=sizes)  # 30 units and 119 of ids
    assert server.peak() >= 64
    assert server.counts()["GET chunk"] == 119
    pool = pool.append(X[1_900:], ids=ids[1_900:], sizes=sizes)
    array = zarr.open_group(for_zarr(place_of(where)), mode="r")["ids"]
    assert isinstance(array, zarr.Array)
    server.reset()
    found = np.concatenate(list(sorted_entries(array, tmp_path, 1_000, ahead=20)))
    assert server.peak() >= 64
    server.fail()
    hashes = hash_ids(np.array(ids, dtype=object))
    assert found["row"].tolist() == np.argsort(hashes).tolist()
    assert found["hash"].tolist() == np.sort(hashes).tolist()
    np.testing.assert_array_equal(pool.read(0, ROWS), X)
    assert pool.rows_of(ids[::-7]).tolist() == list(range(ROWS))[::-7]


@pytest.mark.slow
def test_a_build_and_an_append_wait_for_few_delays_of_the_network(server: Server) -> None:
    ids, where = [f"r{row}" for row in range(ROWS)], "s3://bucket/delays.zarr"
    Pool.build(X[:10], "s3://bucket/imports.zarr", ids=ids[:10]).append(X[10:20], ids=ids[10:20])
    server.fail(latency=0.25)
    server.reset()
    # Lock and metadata, mark, chunks, the ids again, their index, completion and lock.
    pool = Pool.build(X[:2_000], where, ids=ids[:2_000])
    assert server.counts()["alone"] <= 6
    server.reset()
    # Lock and metadata, the unit that is begun, chunks, the ids again, their index, completion and lock.
    pool = pool.append(X[2_000:], ids=ids[2_000:])
    assert server.counts()["alone"] <= 6
    np.testing.assert_array_equal(pool.read(0, ROWS), X)


def test_a_pool_that_another_process_began_meanwhile_stays_as_it_is(server: Server) -> None:
    objects = Objects("s3://bucket/meanwhile.zarr")

    def blocks() -> Iterator[Block]:
        wait(objects.put("zarr.json", b"another's"))
        yield Block(X[:10])

    with pytest.raises(PoolError, match="begun by another process"):
        Pool.build(blocks(), objects.text)
    assert wait(_names(objects.text)) == ["zarr.json"]
    assert bytes(wait(objects.get("zarr.json")) or b"") == b"another's"


def test_a_pool_that_another_process_wrote_meanwhile_is_not_marked_as_complete(server: Server) -> None:
    objects = Objects("s3://bucket/written-meanwhile.zarr")

    def write(done: int, total: int | None) -> None:
        wait(objects.put("zarr.json", b"another's"))

    with pytest.raises(StoreError, match="another process"):
        Pool.build(X[:10], objects.text, progress=write)
    assert bytes(wait(objects.get("zarr.json")) or b"") == b"another's"
    assert NAME not in names_at(place_of(objects.text))


def test_an_append_leaves_rows_that_came_before_its_lock(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    where = "s3://bucket/before-lock.zarr"
    pool, asking = Pool.build(X[:100], where), ZarrObjects.asking

    def slow(store: ZarrObjects, *nodes: str) -> Future[Found]:
        asked = asking(store, *nodes)
        asked.result()
        monkeypatch.setattr(ZarrObjects, "asking", asking)
        Pool.open(where).append(X[100:300])
        return asked

    monkeypatch.setattr(ZarrObjects, "asking", slow)
    with pytest.raises(PoolError, match="another process"):
        pool.append(X[500:600])
    np.testing.assert_array_equal(Pool.open(where).read(0, 300), X[:300])
    np.testing.assert_array_equal(pool.refreshed().append(X[300:310]).read(0, 310), X[:310])


def test_a_mark_whose_answer_is_lost_is_none_of_another(server: Server) -> None:
    where = "s3://bucket/lost-mark.zarr"
    root = f"{where.removeprefix('s3:/')}/zarr.json"
    pool = Pool.build(X[:10], where, progress=lambda *_: server.fail(cut=1, most=1, methods="PUT", only=root))
    assert server.counts()["cut"] == 1
    np.testing.assert_array_equal(Pool.open(where).read(0, 10), X[:10])
    server.fail(cut=1, most=1, methods="PUT", only=root)
    np.testing.assert_array_equal(pool.append(X[10:20]).read(0, 20), X[:20])


@pytest.mark.parametrize("refused", ["features/zarr.json", "ids_index/row/zarr.json"])
def test_a_pool_is_not_finished_before_its_metadata_are_there(server: Server, refused: str) -> None:
    where = f"s3://bucket/behind-{refused[:3]}.zarr"
    server.fail(refused=1, status=403, only=refused, methods="PUT")
    with pytest.raises(StoreError, match=refused):
        Pool.build(X[:10], where, ids=list(range(10)))
    assert not description(zarr.open_group(for_zarr(place_of(where)), mode="r"))["complete"]
    assert NAME not in names_at(place_of(where))
    server.fail()
    assert Pool.build(X[:10], where, ids=list(range(10))).rows_of(["9"]).tolist() == [9]


def _set(store: ZarrObjects, key: str, data: bytes) -> None:
    wait(store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def test_an_interrupted_build_waits_for_the_metadata_under_way(server: Server) -> None:
    store = ZarrObjects(Objects("s3://bucket/interrupted.zarr"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with store.remembering("a"):
            server.fail(latency=0.4)
            _set(store, "a/zarr.json", b"new")
            signal.setitimer(signal.ITIMER_REAL, 0.1)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            write()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    server.fail()
    assert bytes(wait(store.objects.get("a/zarr.json")) or b"") == b"new"


def test_metadata_that_had_to_wait_are_not_written_after_a_takeover(server: Server) -> None:
    store = ZarrObjects(Objects("s3://bucket/taken-over.zarr"))
    wait(store.objects.put("zarr.json", b"old"))
    lost: list[str] = []

    def check() -> None:
        if lost:
            raise StoreError("taken over")

    def write() -> None:
        with store.writing_if(check), store.remembering(""):
            first: Future[None] = Future()
            store._shared.behind["a/zarr.json"] = first
            _set(store, "zarr.json", b"new")
            lost.append("by another process")
            first.set_result(None)

    with pytest.raises(StoreError, match="taken over"):
        write()
    assert bytes(wait(store.objects.get("zarr.json")) or b"") == b"old"


def test_a_note_that_cannot_be_deleted_fails_no_build(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delete = Objects.delete

    async def refuse(objects: Objects, names: Iterable[str]) -> None:
        if names == ["dal.encoding"]:
            raise StoreError("dal.encoding cannot be deleted")
        await delete(objects, names)

    class Lengths:
        id = "lengths"

        def encode(self, batch: Sequence[str]) -> np.ndarray:
            return np.array([[len(text)] for text in batch], np.float32)

    monkeypatch.setattr(Objects, "delete", refuse)
    source = pa.table({"text": ["a", "bcd"]})
    pool = Pool.build(source, "s3://bucket/left.zarr", text="text", encoder=Lengths())
    assert pool.read(0, 2).ravel().tolist() == [1, 3]
    assert "dal.encoding was left" in caplog.text


@pytest.mark.slow
def test_chunks_are_written_several_at_a_time(server: Server) -> None:
    large = np.ones((6, 2**20, 4), dtype=np.float32).reshape(-1, 256)  # six chunks of 16 MiB
    server.fail(latency=0.2)
    server.reset()
    Pool.build(large, "s3://bucket/several.zarr")
    assert 3 <= server.peak() <= 9
    assert server.counts()["PUT chunk"] == 6


@pytest.mark.slow
def test_large_objects_are_uploaded_in_parts(server: Server) -> None:
    data = np.random.default_rng(0).integers(0, 256, 65 * 2**20, dtype=np.uint8)
    server.fail(refused=1, status=503, methods="PUT", most=2)
    wait(Objects("s3://bucket").put("large", data))
    assert server.counts()["PUT"] == 5 + 2
    found = wait(Objects("s3://bucket").get("large"))
    assert found is not None
    np.testing.assert_array_equal(np.frombuffer(found, dtype=np.uint8), data)


def test_names_are_listed_by_pages_and_deleted_by_their_exact_names(server: Server) -> None:
    objects = Objects("s3://bucket/many")
    server.hold({f"/bucket/many/{name}/{number}": __file__ for name in ("a*", "ab") for number in range(1_200)})
    assert len(wait(_names("s3://bucket/many"))) == 2_400
    assert names_at(place_of("s3://bucket/many")) == ["a*", "ab"]
    wait(objects.delete(["a*/0", "a*/gone"]))
    left = wait(_names("s3://bucket/many"))
    assert len(left) == 2_399
    assert "a*/0" not in left
    assert wait(objects.get("none")) is None


# -- credentials and addresses -----------------------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, text: str = "s3://bucket/x") -> dict[str, object]:
    """What the store of a URL is opened with."""
    return dict(client_of(Address.of(text)).config)  # type: ignore[union-attr]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine without any credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(fsspec.config, "conf", {})
    return monkeypatch


def test_credentials_of_fsspec_serve(server: Server, bare: pytest.MonkeyPatch) -> None:
    inner = {"endpoint_url": server.address, "region_name": "eu-north-1"}
    for given in ({"client_kwargs": inner}, {"endpoint_url": server.address, "use_ssl": False}):
        bare.setattr(fsspec.config, "conf", {"s3": {"key": "a", "secret": SECRET, **given}})
        wait(Objects("s3://bucket").put("fsspec", b"data"))
    bare.setattr(fsspec.config, "conf", {"s3": {"anon": True, "endpoint_url": server.address}})
    assert wait(Objects("s3://bucket").get("fsspec")) is not None


def test_credentials_of_a_profile_serve(server: Server, bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(f"[mine]\naws_access_key_id = a\naws_secret_access_key = {SECRET}\n")
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-north-1\nendpoint_url = {server.address}\n")
    bare.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    bare.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    bare.setenv("AWS_PROFILE", "mine")
    wait(Objects("s3://bucket").put("profile", b"data"))
    assert asked(bare)["region"] == "eu-north-1"
    bare.setenv("AWS_PROFILE", "yours")
    with pytest.raises(SettingsError, match="yours"):
        Objects("s3://bucket")


def test_options_that_are_not_known_are_named_and_their_values_not(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(fsspec.config, "conf", {"s3": {"key": "a", "strange_secret": SECRET}})
    with pytest.raises(SettingsError, match="strange_secret") as raised:
        Objects("s3://bucket")
    assert SECRET not in str(raised.value)


def test_missing_credentials_are_said(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="AWS_PROFILE"):
        Objects("s3://bucket")


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ImportError, match=r"dal-learn\[remote\]"):
        Objects("s3://another-bucket")


def test_google_and_azure_are_opened_with_what_their_tools_take(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    user = {"type": "authorized_user", "client_id": "a", "client_secret": SECRET, "refresh_token": "b"}
    key.write_text(json.dumps(user))
    bare.setattr(fsspec.config, "conf", {"gcs": {"token": str(key), "project": "mine"}})
    assert asked(bare, "gs://bucket/x")["application_credentials"] == str(key)
    key.write_text("{}")
    with pytest.raises(SettingsError, match="gs://another"):
        Objects("gs://another/x")
    bare.setattr(fsspec.config, "conf", {"gs": {"token": "anon"}})
    assert asked(bare, "gcs://bucket/x")["skip_signature"] in (True, "true")
    text = "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"
    bare.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    assert asked(bare, "az://box/x")["account_name"] == "mine"
    bare.delenv("AZURE_STORAGE_CONNECTION_STRING")
    bare.setattr(fsspec.config, "conf", {"az": {"account_name": "other", "sas_token": "?sig=x"}})
    assert asked(bare, "abfs://box/x")["account_name"] == "other"


def test_google_is_read_by_its_emulator_s_address(server: Server, bare: pytest.MonkeyPatch) -> None:
    server.hold({"/bucket/folder/name": __file__})
    bare.setenv("STORAGE_EMULATOR_HOST", server.address)
    assert bytes(wait(Objects("gs://bucket/folder").get("name")) or b"") == Path(__file__).read_bytes()
    assert wait(_names("gs://bucket/folder")) == ["name"]


@pytest.mark.parametrize(
    "url", [f"s3://key:{SECRET}@bucket/pool", f"https://me:{SECRET}@example.org/pool", f"az://a:{SECRET}@b/c"]
)
def test_a_url_with_credentials_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="credentials") as raised:
        place_of(url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "https://example.org/a.zarr?token=x"])
def test_a_url_that_no_store_could_have_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        place_of(url)


def test_no_secret_travels_with_a_pool(server: Server, bare: pytest.MonkeyPatch) -> None:
    options = {"key": "a", "secret": SECRET, "endpoint_url": server.address}
    bare.setattr(fsspec.config, "conf", {"s3": options})
    pool = written("s3://bucket/travels", "plain")
    assert SECRET.encode() not in pickle.dumps(pool)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pool)).read(0, 10), X[:10])


def test_no_secret_is_kept_by_a_campaign(
    server: Server,
    bare: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two rounds over a cluster, a store that fails, and then every file, object, log and error is searched."""
    inner = {"endpoint_url": server.address, "aws_session_token": f"{SECRET}-token"}
    bare.setattr(fsspec.config, "conf", {"s3": {"key": "a", "secret": SECRET, "client_kwargs": inner}})
    bare.setenv("AZURE_STORAGE_ACCOUNT_KEY", f"{SECRET}-azure")
    caplog.set_level(logging.DEBUG)
    pool = Pool.build(X, "s3://bucket/secret-pool.zarr", ids=[f"r{row}" for row in range(ROWS)])
    storage = Storage(store="s3://bucket/secret-store")
    campaign = Campaign.create(
        tmp_path / "campaign", pool, ("no", "yes"), batch_size=20, random_state=1, storage=storage
    )
    with own_cluster(1, processes=False, protocol="tcp") as (_, client):
        for _ in range(2):
            batch = campaign.next_batch(client=client)
            assert isinstance(batch, Batch)
            campaign.label(batch, CODES[batch.rows])
        logs = repr([client.get_scheduler_logs(), client.get_worker_logs(), client.get_events()])
    bare.setenv("AWS_MAX_ATTEMPTS", "1")
    server.fail(refused=1, status=403)
    with pytest.raises(CampaignError, match="secret-store") as raised:
        campaign.next_batch()
    server.fail()
    assert any("models/" in name for name in wait(_names(campaign.objects.place)))
    own = [name for name in wait(_names("s3://bucket")) if name.startswith("secret-")]
    stored = [bytes(wait(Objects("s3://bucket").get(name)) or b"") for name in own]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    said = [*capfd.readouterr(), caplog.text, logs, "".join(traceback.format_exception(raised.value))]
    assert min(len(files), len(stored)) > 5
    for text in (*stored, *files, *(text.encode() for text in said)):
        assert SECRET.encode() not in text


@pytest.mark.slow
def test_a_worker_stays_within_the_memory_that_was_predicted(server: Server, tmp_path: Path) -> None:
    """A pool of chunks of 16 MiB, on a worker whose memory leaves room for a part of what would be fetched ahead."""
    server.fail(latency=0.02)
    large = np.random.default_rng(3).standard_normal((2**19, 2**8), dtype=np.float32)  # 32 chunks
    pool = Pool.build(large, "s3://bucket/memory.zarr")
    model = Learner.named("logistic", ["no", "yes"]).fit(large[:500], (large[:500, 0] > 0).astype(np.int64))
    limit = 1200 * 2**20
    # A fork server of this session has the environment of its start, in which s3:// may lead elsewhere.
    with own_cluster(1, memory_limit=limit, env=dict(os.environ)) as (_, client):
        before = client.submit(peak_bytes).result()
        scan(pool, model, MARGIN, 100, client=client)
        peak = client.submit(peak_bytes, pure=False).result()
    assert before < peak < 0.7 * limit
