"""Builds and appends that are killed, or whose disk fails, at any operation on files: run again, they give the same."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dal.errors import DalError
from dal.pool import Block, Pool, Sizes
from tests import faults

N, D = 45, 3
X = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
SMALL = Sizes(chunk_bytes=16 * D * 4, field_rows=16, index_rows=16, bucket_entries=30, block_bytes=12 * D * 4)
build_small = partial(Pool.build, sizes=SMALL)
SAMPLED, SAMPLED_SLOWLY = 4, 10
"""Points that the fast tests and the slow ones look at; see `faults.points`."""


@pytest.fixture(autouse=True)
def same_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dal.pool.build.secrets.token_hex", lambda _: "0123456789abcdef")


def told(first: int, last: int) -> dict[str, Any]:
    rows = range(first, last)
    display = {"n": [None if row % 7 == 0 else row for row in rows], "text": [f"text {row}" for row in rows]}
    return {"ids": [f"k{row * 37 % 101}" for row in rows], "display": display}


def build(path: Path) -> None:
    build_small(X, path, **told(0, N), dtype="int8")


def build_of_unknown_length(path: Path) -> None:
    # Blocks cannot be gone on with, so what is there is replaced.
    build_small((Block(X[at : at + 12]) for at in range(0, N, 12)), path, overwrite=True)


def overwrite(path: Path) -> None:
    build_small(X[:30] + 1, path, ids=[f"other {row}" for row in range(30)], overwrite=True)


def append(path: Path) -> None:
    Pool.open(path).append(X[40:], **told(40, N), sizes=SMALL)


def nothing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.mkdir()


def shorter(path: Path) -> None:
    build_small(X[:40], path, **told(0, 40))


def grown(path: Path) -> None:
    build_small(X[:30], path, **told(0, 30))
    Pool.open(path).append(X[30:40], **told(30, 40), sizes=SMALL)


SCENES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "build": (nothing, build),
    "build in an empty folder": (empty, build),
    "build of unknown length": (nothing, build_of_unknown_length),
    "overwrite": (shorter, overwrite),
    "append": (shorter, append),
    "append again": (grown, append),
}


def at_few_and_many_points(*few: str) -> pytest.MarkDecorator:
    """Run a test at many points of every scene, slowly, and at a few points of some scenes."""
    fast = [pytest.param(scene, SAMPLED, id=f"{scene}, few points") for scene in few]
    slow = [pytest.param(scene, SAMPLED_SLOWLY, id=scene, marks=pytest.mark.slow) for scene in SCENES]
    return pytest.mark.parametrize(("scene", "sampled"), fast + slow)


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder, without the time and place of the source; locks are left."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.is_dir():
            found[str(path.relative_to(folder))] = b"folder"
    return found


def finished(path: Path, task: Callable[[Path], None]) -> bool:
    try:
        return Pool.open(path).n_rows == (N if task is build else 30)
    except DalError:
        return False


@at_few_and_many_points("build", "append again")
def test_killed_at_any_operation_and_run_again(scene: str, sampled: int, tmp_path: Path) -> None:
    before, task = SCENES[scene]
    (tmp_path / "quiet").mkdir()
    before(quiet := tmp_path / "quiet" / "pool.zarr")
    ended = faults.run(lambda: task(quiet), tmp_path / "quiet")
    assert ended.error is None
    expected = contents(quiet.parent)
    for at in faults.points(ended.operations, sampled):
        (folder := tmp_path / str(at)).mkdir()
        before(path := folder / "pool.zarr")
        old = Pool.open(path) if before in (shorter, grown) else None
        killed = faults.run(lambda path=path: task(path), folder, at)  # type: ignore[misc]
        if not killed.killed:  # threads of Zarr's may make a folder once or twice
            assert at >= ended.operations - 3
            assert contents(folder) == expected
            continue
        if task is append and old is not None:
            now = Pool.open(path)
            assert now.n_rows in (40, N), at
            np.testing.assert_array_equal(old.read(0, 40), X[:40])
            np.testing.assert_array_equal(now.read(0, now.n_rows), X[: now.n_rows])
            assert now.record_ids(range(now.n_rows)) == told(0, now.n_rows)["ids"]
            assert now.rows_of(now.record_ids(range(40))).tolist() == list(range(40))
            if now.n_rows == N:
                continue
        task(path)
        assert contents(folder) == expected, at


@at_few_and_many_points("append")
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_at_any_operation_is_told_and_run_again(
    scene: str, fault: str, sampled: int, tmp_path: Path
) -> None:
    before, task = SCENES[scene]
    (quiet := tmp_path / "quiet").mkdir()
    before(quiet / "pool.zarr")
    reads = fault == "EIO"
    ended = faults.run(lambda: task(quiet / "pool.zarr"), quiet, reads=reads)
    expected = contents(quiet)
    for at in faults.points(ended.operations, sampled):
        (folder := tmp_path / str(at)).mkdir()
        before(path := folder / "pool.zarr")
        failed = faults.run(lambda path=path: task(path), folder, at, fault, reads=reads)  # type: ignore[misc]
        if failed.error is None:  # what is tidied up behind a finished pool may stay
            assert Pool.open(path).n_rows > 0
            continue
        if task in (build, overwrite) and finished(path, task):  # it failed as the pool was opened in the end
            assert contents(folder) == expected, at
            continue
        assert "PoolError" in failed.error, (at, failed.error)
        assert DalError.__name__ in failed.error
        assert ("no space left" if fault == "ENOSPC" else "input/output error") in failed.error.lower(), (
            at,
            failed.error,
        )
        if task is append and Pool.open(path).n_rows == N:
            continue
        task(path)
        assert contents(folder) == expected, at
