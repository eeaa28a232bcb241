"""Pools: the records to choose from, as chunked Zarr arrays that are read in place."""

from dal.pool.build import append_pool, build_pool
from dal.pool.sources import Block
from dal.pool.store import Pool, Reader

__all__ = ["Pool", "Reader", "Block", "append_pool", "build_pool"]
