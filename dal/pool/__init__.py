"""Pools: the records to choose from, as chunked Zarr arrays that are read in place."""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.pool.sizes import Sizes
    from dal.pool.sources import Block
    from dal.pool.store import Pool, Reader
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.pool.sizes": ("Sizes",),
            "dal.pool.sources": ("Block",),
            "dal.pool.store": ("Pool", "Reader"),
        },
    )

__all__ = ["Pool", "Reader", "Block", "Sizes"]
