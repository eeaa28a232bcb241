"""Examine a host: whether it can read the pool and use the cells, and by which linear algebra it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zarr
from threadpoolctl import threadpool_info

from dal.plugins import Carried
from dal.pool import Pool
from dal.scan.worker.kernel import Cells


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


def score_trouble(score: Carried) -> str | None:
    """Try to import a score of a user's own."""
    return _trouble(lambda: score.part)


def _reach(cells: Cells) -> "zarr.Array[Any]":
    # Opening an array proves nothing of write access.
    return cells.array.update_attributes({}) if cells.write else cells.array


def _trouble(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:  # any error: the person at the coordinator has to read it
        return f"{type(error).__name__}: {error}"
    return None
