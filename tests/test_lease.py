"""Leases on a folder of an object store: one writer at a time, on whichever machine, and none that is dead."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event

import numpy as np
import pytest
import zarr

from benchmarks.object_server import Server, running
from dal.errors import PoolError, PoolIncomplete, PoolNotFound, StoreError
from dal.places import for_zarr, names_at, place_of
from dal.pool import Pool
from dal.stores import lease
from dal.stores.lease import NAME, Held, Lease
from dal.stores.objects import Objects, wait
from tests import forked

X = np.random.default_rng(0).standard_normal((300, 4), dtype=np.float32)
FOREIGN = {"host": "elsewhere", "machine": "another", "process": 7, "token": "another", "beat": 1}


@pytest.fixture(scope="module")
def _server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in _server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    _server.fail()
    _server.reset()
    return _server


def _write(environment: dict[str, str], act: Callable[..., Pool], where: str, begun: Event, go_on: Event) -> None:
    os.environ.update(environment)

    def pause(done: int, total: int | None) -> None:
        begun.set()
        go_on.wait()

    act(where, pause)


def _build(where: str, progress: Callable[[int, int | None], None]) -> Pool:
    return Pool.build(X[:200], where, ids=[f"r{row}" for row in range(200)], progress=progress)


def _append(where: str, progress: Callable[[int, int | None], None]) -> Pool:
    return Pool.open(where).append(X[200:], ids=[f"r{row}" for row in range(200, 300)], progress=progress)


@contextmanager
def writing(server: Server, act: Callable[..., Pool], where: str) -> Iterator[tuple[forked.Process, Event]]:
    """Run a builder in a process that pauses when it has taken in all records; give it and what lets it go on."""
    begun, go_on = get_context("forkserver").Event(), get_context("forkserver").Event()
    process = forked.Process(target=_write, args=(server.environment(), act, where, begun, go_on))
    process.start()
    try:
        assert begun.wait(60)
        yield process, go_on
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("second", [_build, _append], ids=["build", "append"])
def test_a_second_builder_is_refused_and_the_first_goes_on(server: Server, second: Callable[..., Pool]) -> None:
    where = f"s3://bucket/two-{second.__name__}.zarr"
    if second is _append:
        _build(where, lambda *_: None)
    with writing(server, second, where) as (process, go_on):
        with pytest.raises(PoolError, match=rf"process {process.pid} on .* is writing to {where}"):
            second(where, lambda *_: None)
        with pytest.raises(PoolError, match="is writing"):
            Pool.build(X[:10], where, overwrite=True)
        if second is _append:
            assert Pool.open(where).n_rows == 200
        else:
            with pytest.raises((PoolIncomplete, PoolNotFound)):
                Pool.open(where)
        go_on.set()
        process.join(60)
        assert process.exitcode == 0
    pool = Pool.open(where)
    np.testing.assert_array_equal(pool.read(0, pool.n_rows), X[: 300 if second is _append else 200])
    assert NAME not in names_at(place_of(where))


@pytest.mark.parametrize("act", [_build, _append], ids=["build", "append"])
def test_the_lock_of_a_builder_that_was_killed_holds_nobody_up(server: Server, act: Callable[..., Pool]) -> None:
    where = f"s3://bucket/killed-{act.__name__}.zarr"
    if act is _append:
        _build(where, lambda *_: None)
    with writing(server, act, where) as (process, _):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert NAME in names_at(place_of(where))
    pool = act(where, lambda *_: None)
    np.testing.assert_array_equal(pool.read(0, pool.n_rows), X[: 300 if act is _append else 200])
    assert pool.rows_of(["r0", f"r{pool.n_rows - 1}"]).tolist() == [0, pool.n_rows - 1]
    assert NAME not in names_at(place_of(where))


def test_a_lock_of_another_machine_is_taken_over_when_it_does_not_change(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    objects = Objects("s3://bucket/silent")
    wait(objects.put(NAME, json.dumps(FOREIGN).encode()))
    with caplog.at_level(logging.WARNING):
        held = Lease(objects, seconds=0.3, beat=0.1)
    assert "process 7 on elsewhere" in caplog.text
    held.check()
    held.close()
    assert wait(objects.get(NAME)) is None
    assert server.counts()["DELETE"] + server.counts()["POST"] == 1


def test_a_lock_of_another_machine_that_changes_refuses(server: Server) -> None:
    objects = Objects("s3://bucket/alive")
    wait(objects.put(NAME, json.dumps(FOREIGN).encode()))
    ended = threading.Event()

    def renew() -> None:
        beat = 1
        while not ended.wait(0.02):
            beat += 1
            wait(objects.put(NAME, json.dumps({**FOREIGN, "beat": beat}).encode()))

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(Held, match="process 7 on elsewhere"):
            Lease(objects, seconds=60, beat=0.1)
    finally:
        ended.set()
        renewing.join()


def test_of_several_that_take_a_lock_over_one_gets_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_machine", lambda: "")  # as on several machines
    objects = Objects("s3://bucket/several")
    wait(objects.put(NAME, json.dumps(FOREIGN).encode()))
    found: list[Lease | Held] = []

    def take() -> None:
        try:
            found.append(Lease(objects, seconds=0.6, beat=0.05))
        except Held as error:
            found.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [holder] = [each for each in found if isinstance(each, Lease)]
    holder.close()
    assert len(found) == 4


def test_who_was_taken_for_dead_writes_no_more(server: Server) -> None:
    store = for_zarr(place_of("s3://bucket/paused"))
    held = Lease(store.objects, seconds=60, beat=0.05)
    with store.writing_if(held.check):
        group = zarr.create_group(store)
        wait(store.objects.put(NAME, json.dumps(FOREIGN).encode()))

        def write_on() -> None:
            while True:
                group.attrs["written"] = True

        with pytest.raises(StoreError, match="process 7 on elsewhere"):
            write_on()
    before = wait(store.objects.get("zarr.json"))
    with store.writing_if(held.check), pytest.raises(StoreError, match="taken over"):
        group.attrs["written"] = False
    assert wait(store.objects.get("zarr.json")) == before
    held.close()
    assert json.loads(bytes(wait(store.objects.get(NAME)))) == FOREIGN


def test_a_renewal_whose_answer_is_lost_is_none_of_another(server: Server) -> None:
    objects = Objects("s3://bucket/lost")
    server.fail(cut=1, most=1, methods="PUT")
    held = Lease(objects, beat=0.0)
    server.fail(cut=1, most=1, methods="PUT")
    held.check()
    held.check()
    held.close()
    assert wait(objects.get(NAME)) is None


def test_a_store_without_conditional_writes_is_written_with_a_warning(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server.fail(refused=1, status=501, only=NAME)
    with caplog.at_level(logging.WARNING):
        pool = Pool.build(X, "s3://bucket/plain.zarr")
    assert "conditional" in caplog.text
    np.testing.assert_array_equal(pool.read(0, 300), X)


def test_what_is_no_lock_of_dal_is_watched_all_the_same(server: Server) -> None:
    objects = Objects("s3://bucket/strange")
    wait(objects.put(NAME, b"\xff not JSON"))
    held = Lease(objects, seconds=0.2, beat=0.1)
    held.close()
    assert wait(objects.get(NAME)) is None
