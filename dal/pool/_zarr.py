"""Zarr beyond its public interface, in one place; without it, the public way, with one warning.

Private are `zarr.core.sync` and the keys of chunks in `zarr.core.metadata`.
"""

import asyncio
import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import zarr

T = TypeVar("T")


@functools.cache
def _warn() -> None:
    warnings.warn(
        f"zarr {zarr.__version__} has moved what dal uses of it beside its public interface: dal goes on without",
        RuntimeWarning,
        stacklevel=4,
    )


@functools.cache
def _private_sync() -> Callable[[Coroutine[Any, Any, Any]], Any] | None:
    try:
        from zarr.core.sync import sync
    except ImportError:
        return None
    return sync


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of a store and return its result.

    On Zarr's own loop. Without that, on a loop of a thread of its own, which stores that are bound to Zarr's loop, such
    as object stores, may refuse.
    """
    if (sync := _private_sync()) is not None:
        result: T = sync(coroutine)
        return result
    _warn()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(coroutine))
        except BaseException as error:  # raised again by the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def chunk_key(array: "zarr.Array[Any]", place: Sequence[int]) -> str:
    """Return the key of a stored chunk (shard, where there are shards) below the array's path.

    As Zarr's formats define it, where the array has one of the two encodings that they name.

    Examples
    --------
    >>> chunk_key(zarr.create_array({}, shape=(4, 4), chunks=(2, 2), dtype="i4"), (1, 0))
    'c/1/0'
    """
    # For each chunk that is read: all of the metadata as a dict would take as long as scoring a small one.
    metadata: Any = array.metadata
    names = list(map(str, place))
    if metadata.zarr_format == 2:
        return str(metadata.dimension_separator).join(names) or "0"
    encoding = metadata.chunk_key_encoding.to_dict()
    configuration = encoding.get("configuration", {})
    if encoding["name"] == "default":
        return str(configuration.get("separator", "/")).join(["c", *names])
    if encoding["name"] == "v2":
        return str(configuration.get("separator", ".")).join(names) or "0"
    return str(array.metadata.encode_chunk_key(tuple(place)))


_WHOLE = {"write_empty_chunks": True}


def whole(array: Any) -> "zarr.Array[Any]":  # noqa: ANN401 - an array; its types know no `with_config` of all kinds
    """Return the array so that writing stores its chunks of fill values as well; see `storing_all_chunks`."""
    found: zarr.Array[Any] = array.with_config(_WHOLE) if hasattr(array, "with_config") else array
    return found


def storing_all_chunks() -> contextlib.AbstractContextManager[object]:
    """Store chunks of fill values in the context: of all arrays, where Zarr has no setting for a single one.

    Zarr leaves such chunks out, and a pool takes a missing chunk for a lost one.
    """
    if hasattr(zarr.Array, "with_config"):
        return contextlib.nullcontext()
    everywhere: contextlib.AbstractContextManager[object] = zarr.config.set({"array.write_empty_chunks": True})
    return everywhere
