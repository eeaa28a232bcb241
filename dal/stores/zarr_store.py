"""The view that Zarr takes of the objects below a URL."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as all_of
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from dal.errors import StoreError
from dal.stores.objects import Objects, Unconditional, Version, begun

_NODE = "zarr.json"
_NODES_OF_OLD = (".zarray", ".zgroup", ".zattrs", ".zmetadata")


Found = dict[str, Any]
"""Metadata by key: bytes, the root's with their version; None where there is none, or the error with which a store
refused to say."""


class BegunMeanwhile(Exception):
    """A root that was not there when it was looked for is there now."""


class _Shared:
    """The state that a store shares with its views for reading."""

    def __init__(self) -> None:
        self.metadata: dict[str, bytes | None] | None = None
        self.behind: dict[str, Future[None]] = {}
        self.root: Version = {}
        """Of the root's metadata that are known; empty where it is not, or the store knows no conditions."""
        self.may_write: Callable[[], None] = lambda: None


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

    def __init__(self, objects: Objects, *, read_only: bool = False, shared: _Shared | None = None) -> None:
        super().__init__(read_only=read_only)
        self.objects = objects
        self._shared = shared or _Shared()

    def with_read_only(self, read_only: bool = False) -> "ZarrObjects":
        """Return this store for reading, or for writing as well."""
        return ZarrObjects(self.objects, read_only=read_only, shared=self._shared)

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(ZarrObjects, read_only=self.read_only), (self.objects,))

    @contextmanager
    def remembering(self, *nodes: str) -> Iterator[None]:
        """Ask for the metadata of each node once in the context, and write it behind, only where it changes.

        Zarr asks for the same small files again and again, one after another, and each is a delay of the network. For
        a context in which nobody else writes them, or in which one moment is wanted.

        A write of metadata is begun, and waited for by the next write of the root's, which tells readers of the rest;
        by `settle`; and by the end of the context. The first metadata of a root is written at once, unless there are
        some by then. Those of a root that was asked for are written over the known ones alone: where another process
        has written meanwhile, it is an error.

        Parameters
        ----------
        nodes : str
            Paths of groups and arrays that are asked for at once, at the beginning.
        """
        self._shared.metadata, self._shared.root = {}, {}
        try:
            self.remember(*nodes)
            yield
            self.settle()
        finally:
            with suppress(Exception):  # the error that ended the context is the one to tell
                self.settle()
            self._shared.metadata = None

    def remember(self, *nodes: str) -> None:
        """Ask for the metadata of these nodes together; again, where it is known."""
        self.know(self.asking(*nodes))

    def asking(self, *nodes: str, old: bool = False) -> "Future[Found]":
        """Begin to ask for the metadata of these nodes, for `know`; if `old`, for a root's of Zarr's format 2 too."""
        names = [f"{node}/{_NODE}".lstrip("/") for node in nodes] + list(_NODES_OF_OLD) * old

        async def ask() -> Found:
            asked = [self.objects.versioned(name) if name == _NODE else self.objects.get(name) for name in names]
            return dict(zip(names, await asyncio.gather(*asked, return_exceptions=True), strict=True))

        return begun(ask())

    def know(self, asked: "Future[Found]") -> None:
        """Keep the metadata that were asked for."""
        for name, each in asked.result().items():
            if name == _NODE and isinstance(each, tuple):
                each, self._shared.root = each
            if not isinstance(each, BaseException):
                self._note(name, each)
            # A store may refuse to say of an object that is not there; where it is needed, it is asked again.
            elif not isinstance(each, StoreError) or each.transient:
                raise each

    def know_deleted(self, *nodes: str) -> None:
        """Keep in mind that nothing is there under these nodes: this process has found or left it so."""
        for node in nodes:
            self._note(f"{node}/{_NODE}", None)

    def settle(self, *, root: bool = True) -> None:
        """Wait for the writes of metadata that were begun, but for the root's if not `root`; raise the first error."""
        begun_before = {key: each for key, each in self._shared.behind.items() if root or key != _NODE}
        all_of(list(begun_before.values()))  # interrupted here, the end of the context waits for them again
        for key in begun_before:
            del self._shared.behind[key]
        failed = [error for each in begun_before.values() if (error := each.exception()) is not None]
        if failed:
            raise failed[0]

    @property
    def knows_root(self) -> bool:
        """Whether the root's metadata are written over the known ones alone."""
        return any(self._shared.root.values())

    def unchanged(self) -> "Future[bool]":
        """Begin to ask whether the root's metadata are still those that are known."""
        known = self._known(_NODE)

        async def ask() -> bool:
            found = await self.objects.versioned(_NODE)
            return known is not None and found is not None and known[0] == found[0]

        return begun(ask())

    async def _put_root(self, data: bytes) -> None:
        """Write the root's metadata over the known ones."""
        if self.knows_root:
            with suppress(Unconditional):
                now = await self.objects.replace(_NODE, data, self._shared.root)
                if now is None:
                    raise StoreError(
                        f"{self.objects.text}/{_NODE} was written by another process meanwhile; nothing more is"
                        " written, see which of the two is to go on"
                    )
                self._shared.root = now
                return
        self._shared.root = {}
        await self.objects.put(_NODE, data)

    def _write_behind(self, key: str, write: Callable[[], Awaitable[None]]) -> None:
        behind = self._shared.behind
        # The root's tell of the rest; others follow their own earlier ones alone.
        before = [each for name, each in behind.items() if key in (name, _NODE)]

        async def in_turn() -> None:
            for each in before:
                await asyncio.wrap_future(each)
            if before:  # it took its time: another process may write by now; its answer may need this loop
                await asyncio.to_thread(self.refuse_writing)
            await write()

        behind[key] = begun(in_turn())

    @contextmanager
    def writing_if(self, may_write: Callable[[], None]) -> Iterator[None]:
        """Call this before each write and deletion in the context; it raises an error where no more may be written."""
        before, self._shared.may_write = self._shared.may_write, may_write
        try:
            yield
        finally:
            self._shared.may_write = before

    def refuse_writing(self) -> None:
        """Raise an error where this process may not write."""
        self._check_writable()
        self._shared.may_write()

    def _known(self, key: str) -> "tuple[bytes | None] | None":
        """Return the metadata under a key, in a tuple, where it is known."""
        held = self._shared.metadata
        if held is None:
            return None
        if key in held:
            return (held[key],)
        folder, slash, name = key.rpartition("/")
        if name in _NODES_OF_OLD and held.get(f"{folder}{slash}{_NODE}") is not None:
            return (None,)  # no node is of two formats
        return None

    def _note(self, key: str, data: Any) -> None:  # noqa: ANN401 - a buffer, or None
        held = self._shared.metadata
        if held is not None and key.rpartition("/")[2] in (_NODE, *_NODES_OF_OLD):
            held[key] = None if data is None else bytes(data)

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
        known = self._known(key) if byte_range is None else None
        if known is not None:
            return None if known[0] is None else prototype.buffer.from_bytes(known[0])
        found = await self.objects.get(key, start, stop)
        if byte_range is None:
            if key == _NODE:
                self._shared.root = {}
            self._note(key, found)
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
        known = self._known(key)
        return known[0] is not None if known is not None else await self.objects.size(key) is not None

    async def set(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Write an object."""
        self.refuse_writing()
        data, known = value.as_numpy_array(), self._known(key)
        if known is None:
            await self.objects.put(key, data)
            self._note(key, data)
        elif known[0] == bytes(data):
            return
        elif key == _NODE and known[0] is None:
            version = await self.objects.create(key, bytes(data))
            if version is None:
                raise BegunMeanwhile(self.objects.text)
            self._shared.root = version
            self._note(key, data)
        elif key == _NODE:
            self._note(key, data)
            self._write_behind(key, lambda: self._put_root(bytes(data)))
        else:
            self._note(key, data)
            self._write_behind(key, lambda: self.objects.put(key, data))

    async def set_if_not_exists(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Write an object unless it is there."""
        self.refuse_writing()
        data, known = value.as_numpy_array(), self._known(key)
        if known is None:
            await self.objects.put(key, data, if_absent=True)
        elif known[0] is None:
            self._note(key, data)
            self._write_behind(key, lambda: self.objects.put(key, data, if_absent=True))

    async def delete(self, key: str) -> None:
        """Delete an object."""
        self.refuse_writing()
        if key in self._shared.behind:
            await asyncio.wrap_future(self._shared.behind[key])
        await self.objects.delete([key])
        if key == _NODE:
            self._shared.root = {}
        self._note(key, None)

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
