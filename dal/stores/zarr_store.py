"""The view that Zarr takes of the objects below a URL."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from dal.stores.objects import Objects


class ZarrObjects(Store):
    """Objects below a URL, as a store of Zarr; pickled by the URL alone.

    Parameters
    ----------
    objects : Objects
    read_only : bool, default=False
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, objects: Objects, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.objects = objects

    def with_read_only(self, read_only: bool = False) -> "ZarrObjects":
        """Return this store for reading, or for writing as well."""
        return ZarrObjects(self.objects, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, ZarrObjects) and other.objects.text == self.objects.text
        return same and other.read_only == self.read_only  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.objects.text

    def __repr__(self) -> str:
        return f"ZarrObjects({self.objects.text!r})"

    async def get(self, key: str, prototype: Any, byte_range: ByteRequest | None = None) -> Any:  # noqa: ANN401
        """Return an object, or bytes of it, in one request; None where there is no such object."""
        start, stop = _bounds(byte_range)
        found = await self.objects.get(key, start, stop)
        return None if found is None else prototype.buffer.from_bytes(found)

    async def get_partial_values(
        self,
        prototype: Any,  # noqa: ANN401
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Any]:
        """Return several objects, or bytes of them, at the same time."""
        return list(await asyncio.gather(*(self.get(key, prototype, ranged) for key, ranged in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Check whether there is such an object."""
        return await self.objects.size(key) is not None

    async def set(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Write an object."""
        self._check_writable()
        await self.objects.put(key, value.as_numpy_array())

    async def set_if_not_exists(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Write an object unless it is there."""
        self._check_writable()
        await self.objects.put(key, value.as_numpy_array(), if_absent=True)

    async def delete(self, key: str) -> None:
        """Delete an object."""
        self._check_writable()
        await self.objects.delete([key])

    async def list(self) -> AsyncIterator[str]:
        """Yield all names."""
        async for name in self.objects.below(""):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names that begin so."""
        async for name in self.objects.below(prefix.rpartition("/")[0]):
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a folder."""
        for name in await self.objects.names(prefix.strip("/")):
            yield name


def _bounds(wanted: ByteRequest | None) -> tuple[int | None, int | None]:
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, wanted.end
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, None
    if isinstance(wanted, SuffixByteRequest):
        return -wanted.suffix, None
    return None, None
