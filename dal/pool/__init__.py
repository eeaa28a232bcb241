"""Pools: the records to choose from, as chunked Zarr arrays that are read in place."""

from dal.pool.build import build_pool
from dal.pool.sources import Block
from dal.pool.store import Pool, Reader

__all__ = ["Pool", "Reader", "Block", "build_pool"]
