"""The objects of a store below a URL: read, write, list, delete; each failure is an error that names store and object.

What is transient (503, 429 and the like, connections that are refused or cut, servers that say nothing) is tried again
by obstore, with back-off and jitter; a body that was cut goes on where it ended. What reaches the caller has been tried
as often as it was worth.
"""

import asyncio
import os
import random
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dal.errors import StoreError
from dal.stores.settings import Address, client_of, secrets_of_environment

if TYPE_CHECKING:
    from obstore import Bytes

Result = TypeVar("Result")

Version = dict[str, str | None]
"""The state of an object, by its tag or number, as the stores give them."""

REQUESTS = 1536
"""At a time, of a process, at most: at 200 ms a request, 7,500 small chunks a second, more than a core decodes."""
_PART_BYTES = 16 * 2**20
_WHOLE_BYTES = 64 * 2**20
"""Larger objects are uploaded in parts; smaller ones in one request, which costs a fifth of that."""
_DELETIONS = 32


# -- the loop on which requests are waited for -------------------------------------------------------------------------


class _Loop(NamedTuple):
    loop: asyncio.AbstractEventLoop
    process: int


_running: list[_Loop] = []
_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process, in a thread of its own: a thread that computes goes on while it waits."""
    with _starting:
        if not _running or _running[0].process != os.getpid():
            _running[:] = [_Loop(asyncio.new_event_loop(), os.getpid())]
            threading.Thread(target=_running[0].loop.run_forever, name="dal-store", daemon=True).start()
        return _running[0].loop


def begun(requests: Coroutine[Any, Any, Result]) -> "Future[Result]":
    """Begin requests, and return the future of what they give."""
    return asyncio.run_coroutine_threadsafe(requests, _loop())


def wait(requests: Coroutine[Any, Any, Result]) -> Result:
    """Wait for requests."""
    future = begun(requests)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


# -- objects -----------------------------------------------------------------------------------------------------------


class Unconditional(Exception):
    """The store cannot write on a condition."""


class Objects:
    """The objects below a URL.

    Parameters
    ----------
    text : str
        A URL that `dal.stores.settings.is_object_store` knows.
    read_seconds : float, default=30.0
        Until a server that sends nothing is given up, and asked again.
    """

    def __init__(self, text: str, read_seconds: float = 30.0) -> None:
        self.text = text
        self._address = Address.of(text)
        self._client = client_of(self._address, read_seconds)
        self._read_seconds = read_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        # The address alone: another process has credentials of its own.
        return (type(self), (self.text, self._read_seconds))

    @property
    def read_only(self) -> bool:
        """Whether objects cannot be written: those of web servers."""
        return self._address.kind == "http"

    def _key(self, name: str) -> str:
        return f"{self._address.prefix}/{name}".strip("/")

    async def get(
        self,
        name: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        most: int | None = None,
        failed: BaseException | None = None,
    ) -> "Bytes | None":
        """Return an object, or bytes of it; None where there is no such object.

        Parameters
        ----------
        name : str
            Below the URL.
        start, stop : int, optional
            A range of bytes. A negative start counts from the end, and stop is left out.
        most : int, optional
            Refuse an object of more bytes, before they are read.
        failed : BaseException, optional
            The failure of a first try.

        Raises
        ------
        StoreError
            The store gives no answer, or refuses.
        """
        import obstore

        options: Any = {}
        if start is not None:
            options["range"] = {"suffix": -start} if start < 0 else {"offset": start}
        span = self._span(start, stop, most)

        async def ask() -> "Bytes":
            async with _at_a_time():
                if span is not None:
                    return await obstore.get_range_async(self._client, self._key(name), start=span[0], end=span[1])
                answer = await obstore.get_async(self._client, self._key(name), options=options)
                if most is not None and start is None and answer.meta["size"] > most:
                    return await obstore.get_range_async(self._client, self._key(name), start=0, end=most + 1)
                return await answer.bytes_async()

        try:
            return await self._twice(ask, failed)
        except FileNotFoundError:
            return None
        except Exception as error:
            if start is None and span is not None and "status code: 416" in str(error):  # an empty object has no range
                return await self.get(name)
            if start is not None and start < 0 and type(error).__name__ == "NotSupportedError":  # Azure knows no suffix
                size = await self.size(name)
                return None if size is None else await self.get(name, max(size + start, 0), size)
            raise self._failed("read", name, error) from None

    async def get_all(self, names: Iterable[str], most: int) -> "list[Bytes | None]":
        """Return whole objects, as `get` does; together they cost less than one after another.

        Parameters
        ----------
        names : iterable of str
            Below the URL.
        most : int
            Refuse an object of more bytes, before they are read.
        """
        import obstore

        wanted, span = list(names), self._span(None, None, most)
        if span is None:
            return list(await asyncio.gather(*(self.get(name, most=most) for name in wanted)))
        gate, asked = _at_a_time(), []
        try:
            # No task and no coroutine for each: small chunks cost more of Python than of the network.
            for name in wanted:
                await gate.acquire()
                future: Any = obstore.get_range_async(self._client, self._key(name), start=span[0], end=span[1])
                future.add_done_callback(lambda _: gate.release())
                asked.append(future)
            found = await asyncio.gather(*asked, return_exceptions=True)
        except BaseException:
            for future in asked:
                future.cancel()
            raise
        return [
            await self.get(name, most=most, failed=each) if isinstance(each, BaseException) else each
            for name, each in zip(wanted, found, strict=True)
        ]

    def _span(self, start: int | None, stop: int | None, most: int | None) -> tuple[int, int] | None:
        """Return the range that stands for these bytes; None where the store has to tell the size."""
        # A range comes in one step, at half of the CPU time of headers and a body; but some web servers know none.
        if start is not None and start >= 0 and stop is not None:
            return start, stop
        return (0, most + 1) if start is None and most is not None and self._address.kind != "http" else None

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None where there is none."""
        import obstore

        try:
            return int((await self._twice(lambda: obstore.head_async(self._client, self._key(name))))["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed("read", name, error) from None

    async def put(self, name: str, data: Any, *, if_absent: bool = False) -> None:  # noqa: ANN401 - a buffer
        """Write an object; it is there as a whole, or not at all.

        Parameters
        ----------
        name : str
        data : buffer
        if_absent : bool, default=False
            Leave an object that is there as it is.
        """
        import obstore

        self._refuse_writing(name)
        large = memoryview(data).nbytes > _WHOLE_BYTES

        async def send() -> None:
            async with _at_a_time():
                await obstore.put_async(
                    self._client,
                    self._key(name),
                    data,
                    mode="create" if if_absent else "overwrite",
                    use_multipart=large,
                    chunk_size=_PART_BYTES,
                )

        try:
            await self._twice(send)
        except Exception as error:
            if if_absent and type(error).__name__ == "AlreadyExistsError":
                return
            raise self._failed("written", name, error) from None

    async def versioned(self, name: str) -> "tuple[bytes, Version] | None":
        """Return an object with its version; None where there is no such object."""
        import obstore

        async def ask() -> tuple[bytes, Version]:
            answer = await obstore.get_async(self._client, self._key(name))
            return bytes(await answer.bytes_async()), _version(answer.meta)

        try:
            return await self._twice(ask)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed("read", name, error) from None

    async def put_if(self, name: str, data: bytes, version: "Version | None") -> "Version | None":
        """Write a small object if it has this version, or if there is none; return the new version, None if not so.

        Where the answer to a write that succeeded is lost, the write is tried again, and finds its own object.

        Parameters
        ----------
        name : str
        data : bytes
        version : Version or None
            None writes an object that is not there yet.

        Raises
        ------
        Unconditional
            The store knows no such writes.
        """
        import obstore

        self._refuse_writing(name)
        mode: Any = "create" if version is None else {key: each for key, each in version.items() if each is not None}

        async def send() -> Any:  # noqa: ANN401 - obstore's own type
            return await obstore.put_async(self._client, self._key(name), data, mode=mode, use_multipart=False)

        try:
            return _version(await self._twice(send))
        except Exception as error:
            kinds = ("AlreadyExistsError", "PreconditionError", "NotFoundError")
            if type(error).__name__ in kinds or isinstance(error, FileNotFoundError):
                return None
            if type(error).__name__ in ("NotImplementedError", "NotSupportedError") or "status code: 501" in str(error):
                raise Unconditional(self.text) from None
            raise self._failed("written", name, error) from None

    async def create(self, name: str, data: bytes) -> "Version | None":
        """Write a small object unless there is another; return its version, None if another is there.

        The version is empty where the store knows no conditions.
        """
        try:
            return await self.replace(name, data, None)
        except Unconditional:
            if await self.get(name) is not None:
                return None
            await self.put(name, data)
            return {}

    async def replace(self, name: str, data: bytes, version: "Version | None") -> "Version | None":
        """Write an object as `put_if` does, and know its own where the answer to a write that succeeded was lost."""
        now = await self.put_if(name, data, version)
        if now is not None:
            return now
        found = await self.versioned(name)
        return found[1] if found is not None and found[0] == data else None

    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects by their exact names, several at a time; those that are gone are no error."""
        import obstore

        several = asyncio.Semaphore(_DELETIONS)

        async def delete(keys: list[str]) -> None:
            try:
                async with several:
                    await obstore.delete_async(self._client, keys)
            except FileNotFoundError:
                pass
            except Exception as error:
                raise self._failed("deleted", keys[0].removeprefix(f"{self._address.prefix}/"), error) from None

        wanted = list(names)
        for name in wanted[:1]:
            self._refuse_writing(name)
        # S3 takes a thousand in one request, and does not mind those that are gone.
        step = 1000 if self._address.kind == "s3" else 1
        keys = [self._key(name) for name in wanted]
        await asyncio.gather(*(delete(keys[start : start + step]) for start in range(0, len(keys), step)))

    async def below(self, folder: str) -> AsyncIterator[str]:
        """Yield the names of all objects below a folder; the folder "" is the URL itself."""
        import obstore

        self._refuse_listing(folder)
        # With the sign at its end: a store takes a prefix for a beginning of names.
        prefix, root = self._key(folder), f"{self._address.prefix}/" if self._address.prefix else ""
        try:
            async for page in obstore.list(self._client, f"{prefix}/" if prefix else ""):
                for entry in page:
                    yield entry["path"].removeprefix(root)
        except Exception as error:
            raise self._failed("listed", folder, error) from None

    async def names(self, folder: str = "") -> list[str]:
        """Return the names of objects and folders directly below a folder."""
        import obstore

        self._refuse_listing(folder)
        prefix = self._key(folder)
        try:
            found = await obstore.list_with_delimiter_async(self._client, f"{prefix}/" if prefix else "")
        except Exception as error:
            raise self._failed("listed", folder, error) from None
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths} - {""})

    async def _twice(self, request: Callable[[], Awaitable[Result]], failed: BaseException | None = None) -> Result:
        """Try a request again that obstore did not try again although it may succeed: a refusal cut in its body."""
        try:
            if failed is not None:
                raise failed
            return await request()
        except Exception as error:
            again = (self._client.retry_config or {}).get("max_retries", 0) > 0  # type: ignore[union-attr]
            if not again or not _reason(error)[2] or re.search(r"after \d+ retries", str(error)):
                raise
        await asyncio.sleep(random.uniform(0.025, 0.1))
        return await request()

    def _refuse_writing(self, name: str) -> None:
        if self.read_only:
            raise StoreError(
                f"{self.text}/{name} cannot be written: http(s) is for reading; name a store such as s3://"
            )

    def _refuse_listing(self, folder: str) -> None:
        if self.read_only:
            raise StoreError(f"{self.text}/{folder} cannot be listed: a web server tells no names; open by full paths")

    def _failed(self, act: str, name: str, error: Exception) -> StoreError:
        where = f"{self.text}/{name}" if name else self.text
        reason, remedy, transient = _reason(error)
        return StoreError(f"{where} cannot be {act}: {_without_secrets(reason)}; {remedy}", transient=transient)


_CREDENTIALS = (
    "give credentials that allow it by the environment, such as AWS_ACCESS_KEY_ID or AWS_PROFILE, on every machine,"
    " then run again"
)
_LATER = "bring the store up or mend the network, then run again"
_STATUS = re.compile(r"status code: (\d{3})")


def _reason(error: Exception) -> tuple[str, str, bool]:
    """Return why a request failed, what to do about it, and whether the same may succeed later."""
    text, _, details = str(error).partition("\n\nDebug source")
    text = re.sub(r"<\?xml[^>]*>|<(?:RequestId|HostId|Resource)>[^<]*</\w+>", "", text)
    text = " ".join(re.sub(r"<[^<>]*>", " ", text).split())
    kind = type(error).__name__
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return f"the store refuses ({text})", _CREDENTIALS, False
    if "169.254.169.254" in text or "metadata.google" in text or "oken request" in text:
        return "no credentials were found", _CREDENTIALS, False
    if isinstance(error, FileNotFoundError):
        return f"it is not there ({text})", "check the name of the bucket, then run again", False
    if "Received redirect" in text or "PermanentRedirect" in text:
        return (
            f"the bucket is in another region ({text})",
            "set AWS_DEFAULT_REGION to the bucket's region, then run again",
            False,
        )
    if kind in ("InvalidPathError", "ValueError", "NotSupportedError", "PreconditionError", "AlreadyExistsError"):
        return text, "choose another name, then run again", False
    if "kind: Connect" in details:
        return f"cannot connect ({text})", _LATER, True
    status = _STATUS.search(text)
    if status is not None and status[1][0] == "4" and status[1] not in ("408", "429"):
        return text, "check address, region and credentials, then run again", False
    return text, _LATER, True


def _version(told: Any) -> "Version":  # noqa: ANN401 - of obstore's own types
    return {"e_tag": told.get("e_tag"), "version": told.get("version")}


def _without_secrets(text: str) -> str:
    text = re.sub(r"(\w+://[^\s?]*)\?\S*", r"\1", text)  # signatures stand behind the sign
    for secret in secrets_of_environment():
        text = text.replace(secret, "***")
    return text


_gates: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


def _at_a_time() -> asyncio.Semaphore:
    """Return the gate through which this many requests of a loop pass at a time, in the order in which they came."""
    loop = asyncio.get_running_loop()
    gate = _gates.get(loop)
    if gate is None:
        for ended in [other for other in _gates if other.is_closed()]:
            del _gates[ended]
        gate = _gates[loop] = asyncio.Semaphore(_requests())
    return gate


def _requests() -> int:
    """Return how many requests may be on their way: each takes a connection, which is an open file of the process."""
    try:
        import resource
    except ImportError:  # Windows counts connections apart
        return REQUESTS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return REQUESTS if files == resource.RLIM_INFINITY else max(1, min(REQUESTS, files * 3 // 4))
