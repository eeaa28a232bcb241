"""Records for the labelling page: display fields as JSON, images as PNG."""

import io
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel

from dal.errors import DalError, InputError
from dal.pool import Pool

LONGEST_TEXT = 50_000
"""Longest text of a field, in characters; longer ones are cut."""

FEATURES_SHOWN = 32
"""Number of features to show of a record that has nothing else to show."""

_log = logging.getLogger(__name__)

_CACHED_RECORDS = 20_000
_CACHED_IMAGES = 2_000
_SAFE_INTEGER = 2**53  # beyond it JavaScript rounds

Value = str | bool | int | float | None
V = TypeVar("V")


class Field(BaseModel):
    """A display field of one record."""

    name: str
    value: Value


class Content(BaseModel):
    """The display content of a record; `error` says why part of it cannot be shown."""

    fields: list[Field]
    image: str | None = None
    error: str | None = None


class Records:
    """A cached reader of records for display: pages ask for the same few hundred again and again.

    Parameters
    ----------
    pool : Pool
        Records that are appended later can be read as well.
    """

    def __init__(self, pool: Pool) -> None:
        self._opened = pool
        self._contents: _Cache[Content] = _Cache(_CACHED_RECORDS)
        self._images: _Cache[bytes] = _Cache(_CACHED_IMAGES)
        # A record costs its whole chunk; one reader at a time bounds the memory for any number of pages.
        self._reading = threading.Lock()

    @contextmanager
    def _pool(self) -> Iterator[Pool]:
        """Yield the pool as it is now, to one reader at a time."""
        with self._reading:
            self._opened = self._opened.refreshed()
            yield self._opened

    def contents(self, rows: Sequence[int]) -> list[Content]:
        """Return the display content of records, in the order asked.

        A record that cannot be read has an error, and the others their content.

        Parameters
        ----------
        rows : sequence of int
        """
        found = {row: known for row in rows if (known := self._contents.get(row)) is not None}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            with self._pool() as pool:
                try:
                    read = dict(zip(missing, _read(pool, missing), strict=True))
                except DalError:
                    read = {row: _alone(pool, row) for row in missing}
            # Errors are not cached: the chunk may be restored.
            for row, content in read.items():
                if content.error is None:
                    self._contents.put(row, content)
            found |= read
        return [found[row] for row in rows]

    def record_ids(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of records, in the order asked."""
        with self._pool() as pool:
            return pool.record_ids(np.array(rows, dtype=np.int64))

    def features(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the features of records, in the order asked, as an array of shape (n, n_features)."""
        with self._pool() as pool:
            return pool.take(np.array(rows, dtype=np.int64))

    def image(self, row: int) -> bytes:
        """Return a record's image as PNG, or as the pool keeps it: :func:`dal.pool.stored.picture_kind` names its type.

        Parameters
        ----------
        row : int

        Raises
        ------
        InputError
            The pool has no images, or this one cannot be shown.
        PoolError
            The record cannot be read.
        """
        known = self._images.get(row)
        if known is None:
            with self._pool() as pool:
                known = _picture(pool, row)
            self._images.put(row, known)
        return known


def _picture(pool: Pool, row: int) -> bytes:
    if _of_images(pool):
        return as_png(pool.take([row]).reshape(pool.record_shape), whole=pool.dtype == np.uint8)
    if not pool.has_pictures:
        raise InputError("the pool must hold images, got other records")
    [kept] = pool.pictures([row])
    if kept is None:
        raise InputError("the record must have a picture, got one that could not be decoded")
    return kept


def _of_images(pool: Pool) -> bool:
    """Check whether the records themselves are images, of shape (h, w, c)."""
    return len(pool.record_shape) == 3


def _read(pool: Pool, rows: list[int]) -> list[Content]:
    columns = pool.display(rows)
    fields = [
        [Field(name=name, value=_plain(values[at])) for name, values in columns.items()] for at in range(len(rows))
    ]
    pictures = _of_images(pool) or pool.has_pictures
    if not columns and not pictures:
        fields = [_features(record) for record in pool.take(rows)]
    error = None
    if _of_images(pool) and pool.record_shape[2] not in (1, 3, 4):
        error = f"images must have 1, 3 or 4 channels, got {pool.record_shape[2]}."
    return [
        Content(fields=given, image=_address(pool, row) if pictures else None, error=error)
        for row, given in zip(rows, fields, strict=True)
    ]


def _address(pool: Pool, row: int) -> str:
    """Return the address of an image.

    It names the pool: browsers cache images, and another campaign may come to the same address.
    """
    return f"media/{row}/image?pool={pool.fingerprint[:16]}"


def _alone(pool: Pool, row: int) -> Content:
    try:
        return _read(pool, [row])[0]
    except DalError as error:
        _log.warning("row %d cannot be shown: %s", row, error)
        return Content(fields=[], error="it cannot be read from the pool just now.")


def as_png(pixels: npt.NDArray[np.float32], *, whole: bool) -> bytes:
    """Return an image of shape (h, w, c) as PNG.

    Parameters
    ----------
    pixels : ndarray of float32, shape (h, w, c)
        1 channel is grey, 3 are red, green and blue, 4 have opacity as well.
    whole : bool
        Whether the values are 0 to 255 and used unchanged. Otherwise values within 0 to 1 are scaled from that range,
        and others from the image's own lowest to highest value.

    Raises
    ------
    InputError
        The image has another number of channels, or values that are not finite.
    """
    channels = pixels.shape[2]
    if channels not in (1, 3, 4):
        raise InputError(f"an image must have 1, 3 or 4 channels, got {channels}")
    if not np.isfinite(pixels).all():
        raise InputError("an image must have finite values, got NaN or infinity")
    if whole:
        scaled = pixels
    else:
        low, high = min(0.0, float(np.min(pixels))), max(1.0, float(np.max(pixels)))
        if low < 0.0 or high > 1.0:
            low, high = float(np.min(pixels)), float(np.max(pixels))
        scaled = (pixels - low) * (255.0 / (high - low if high > low else 1.0))
    values = np.rint(scaled).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values[:, :, 0] if channels == 1 else values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _features(record: npt.NDArray[np.float32]) -> list[Field]:
    return [
        Field(name=f"feature {at}", value=_plain(value)) for at, value in enumerate(record[:FEATURES_SHOWN].tolist())
    ]


def _plain(value: object) -> Value:
    """Return a value that JSON can hold and JavaScript does not change."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= _SAFE_INTEGER else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({len(text):,} characters in all)"


class _Cache(Generic[V]):
    """A cache of the most recently used entries, safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[int, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> V | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: int, value: V) -> None:
        with self._lock:
            self._held[key] = value
            self._held.move_to_end(key)
            while len(self._held) > self._size:
                self._held.popitem(last=False)
