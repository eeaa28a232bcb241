"""Examine a host: whether it can read the pool and use the cells, and by which linear algebra it computes."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import zarr
from threadpoolctl import threadpool_info

from dal.plugins import Carried
from dal.pool import Pool
from dal.scan.worker.kernel import Cells

Result = TypeVar("Result")


@dataclass(frozen=True)
class Host:
    """The findings of one worker about its host; trouble is None if there is none."""

    pool_trouble: str | None
    cells_trouble: str | None
    kernels: tuple[str, ...]


def examine(pool: Pool, cells: Cells | None) -> Host:
    """Try to read the pool and to use the cells."""
    info = threadpool_info()
    return Host(
        _trouble(lambda: pool.read(0, 1)),
        None if cells is None else _trouble(lambda: _reach(cells)),
        tuple(sorted({f"{lib['internal_api']} {lib.get('architecture', '')}".strip() for lib in info})),
    )


_CHUNK_BYTES = 64 * 2**20
"""At most read by `read_chunk`: a chunk of somebody else's array may have any size."""


def read_chunk(pool: Pool) -> tuple[int, float]:
    """Read any chunk of the pool; return its bytes, and the seconds that it took.

    Each call takes another one, so that few find theirs in a cache that another host has filled.
    """
    record = pool.n_features * pool.dtype.itemsize
    rows = max(1, min(pool.chunk_rows, _CHUNK_BYTES // record))
    start = secrets.randbelow(pool.n_rows) // rows * rows
    stop = min(start + rows, pool.n_rows)
    pool.read(0, 1)  # connections are opened, and modules imported, by the first read
    began = time.perf_counter()
    pool.read(start, stop)
    return (stop - start) * record, time.perf_counter() - began


def score_trouble(score: Carried) -> str | None:
    """Try to import a score of a user's own."""
    return _trouble(lambda: score.part)


def _reach(cells: Cells) -> "zarr.Array[Any]":
    # Opening an array proves nothing of write access.
    return cells.array.update_attributes({}) if cells.write else cells.array


def tried(function: Callable[..., Result], *arguments: object) -> "Result | str":
    """Return the result of a function, or the text of its error: that of a store may look like one of the cluster."""
    try:
        return function(*arguments)
    except Exception as error:  # any error: the person at the coordinator has to read it
        return _said(error)


def _trouble(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:  # any error: the person at the coordinator has to read it
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
