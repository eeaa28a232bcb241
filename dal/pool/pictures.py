"""A folder of pictures as a source of a pool."""

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps

from dal.errors import SourceError
from dal.pool.sources import BLOCK_BYTES, MAX_BLOCK_ROWS, Block, Identity

BACKGROUND = "white"
_NOT_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats that Pillow knows and cannot read as pixels, or not without another program."""
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
_log = logging.getLogger(__name__)
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


class Pictures:
    """The pictures in a folder and the folders below it, in the order of their paths, as (height, width, channels).

    A record's id is its path below the folder, with slashes. Pictures are turned as their cameras say. All are grey if
    the first one is, else red, green and blue. Of an animation, the first picture is taken.

    Parameters
    ----------
    folder : Path
    size : tuple of int, optional
        Height and width that all are resized to. Default: that of the first one, and others are refused.
    background : str, optional
        The colour below transparent pixels. Default: white.
    mode : {"L", "RGB"}, optional
        Whether all are grey or in colour, where the pool says so already.
    """

    single = False

    def __init__(
        self, folder: Path, size: tuple[int, int] | None, background: str | None = None, mode: str | None = None
    ) -> None:
        self._folder, self._size = folder, size
        self._background = _colour(BACKGROUND if background is None else background)
        self._seen: Counter[str] = Counter()
        endings = _endings()
        files = sorted(_names(folder))
        self._names = [name for name in files if name.lower().endswith(endings)]
        left_out = _left_out([name for name in files if not name.lower().endswith(endings)])
        if not self._names:
            raise SourceError(
                f"{folder} holds no pictures; files such as .png, .jpg or .webp were expected, got {left_out or 'none'}"
            )
        if left_out:
            _log.warning(
                "%s: files that are no pictures, or of a kind that is not read, are left out: %s", folder, left_out
            )
        self.n_rows: int | None = len(self._names)
        first = self._open(self._names[0])
        self._mode = mode or ("L" if first.mode in _GREY else "RGB")
        if size is None:
            self._size_of_all = (first.height, first.width)
        else:
            self._size_of_all = size

    @property
    def identity(self) -> Identity | None:
        """The folder, and the name, size and time of each picture."""
        digest = hashlib.sha256()
        for name in self._names:
            told = (self._folder / name).stat()
            digest.update(f"{name}\0{told.st_size}\0{told.st_mtime_ns}\0".encode())
        return {
            "kind": "pictures",
            "path": str(self._folder.absolute()),
            "size": None if self._size is None else list(self._size),
            "background": self._background,
            "pictures": len(self._names),
            "digest": digest.hexdigest(),
        }

    @property
    def told(self) -> Mapping[str, Any]:
        """How the pictures are made alike; what is appended is made so, too."""
        size = None if self._size is None else list(self._size)
        return {"size": size, "background": self._background, "mode": self._mode}

    def blocks(self, start: int) -> Iterator[Block]:
        """Decode the pictures from number `start` on."""
        self._seen.clear()
        height, width = self._size_of_all
        channels = 1 if self._mode == "L" else 3
        step = min(MAX_BLOCK_ROWS, max(1, BLOCK_BYTES // (height * width * channels)))
        for at in range(start, len(self._names), step):
            names = self._names[at : at + step]
            pixels = np.empty((len(names), height, width, channels), np.uint8)
            for row, name in enumerate(names):
                pixels[row] = self._pixels(name).reshape(height, width, channels)
            yield Block(pixels, names)
        for told, count in self._seen.items():
            _log.warning("%s: %s of %s pictures %s", self._folder, f"{count:,}", f"{len(self._names):,}", told)

    def _pixels(self, name: str) -> npt.NDArray[Any]:
        picture = self._open(name)
        height, width = self._size_of_all
        if self._size is None and (picture.height, picture.width) != self._size_of_all:
            raise SourceError(
                f"{self._folder / name} is {picture.height} x {picture.width}, and {self._names[0]} is {height} x "
                f"{width} (height x width): pass size=(height, width) (--size) to resize all of them"
            )
        if self._mode == "L" and picture.mode not in _GREY:
            raise SourceError(
                f"{self._folder / name} is in colour, and {self._names[0]} is grey: make them alike, or let one in "
                "colour come first"
            )
        shown = self._composed(picture).convert(self._mode)
        if self._size is not None and (shown.height, shown.width) != self._size:
            shown = shown.resize((width, height), Image.Resampling.BILINEAR)  # of all pixels below, so nothing flickers
        return np.asarray(shown)

    def _composed(self, picture: Image.Image) -> Image.Image:
        """Draw a picture on the background, where it is transparent anywhere."""
        if not picture.has_transparency_data:
            return picture
        drawn = picture.convert("RGBA")
        if drawn.getchannel("A").getextrema()[0] == 255:
            return drawn
        self._seen[f"are transparent in places; drawn on {self._background} (--background chooses another colour)"] += 1
        canvas = Image.new("RGBA", drawn.size, self._background)
        canvas.alpha_composite(drawn)
        return canvas

    def _open(self, name: str) -> Image.Image:
        path = self._folder / name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as file:
                    if file.format != "MPO" and getattr(file, "is_animated", False):
                        self._seen["hold several pictures, of which the first is taken"] += 1
                    picture = ImageOps.exif_transpose(file)
                    picture.load()
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise SourceError(f"{path} cannot be read as a picture: {error}; repair it or take it out") from error
        if picture.mode not in (*_GREY, *_COLOUR):
            raise SourceError(f"{path} has pixels of kind {picture.mode!r}; 8 bits a channel were expected: convert it")
        return picture


def _names(folder: Path) -> Iterator[str]:
    """Find the files, hidden ones left out."""
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower() not in _CLUTTER:
                below = (Path(parent) / name).relative_to(folder).as_posix()
                try:
                    below.encode()
                except UnicodeEncodeError as error:
                    raise SourceError(f"{folder} holds a file whose name is no UTF-8: {below!r}; rename it") from error
                yield below


def _endings() -> tuple[str, ...]:
    """Return the endings of the pictures that this Pillow reads; which those are depends on how it was built."""
    known = Image.registered_extensions()
    return tuple(ending for ending, kind in known.items() if kind in Image.OPEN and kind not in _NOT_PICTURES)


def _left_out(names: list[str]) -> str:
    """Count files by their endings, and name one of each."""
    by_ending: dict[str, list[str]] = {}
    for name in names:
        by_ending.setdefault(Path(name).suffix.lower() or "without ending", []).append(name)
    return ", ".join(f"{len(each):,} {ending} (such as {each[0]})" for ending, each in sorted(by_ending.items()))


def _colour(name: str) -> str:
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError) as error:
        raise SourceError(f"background is a colour, such as white or #336699; got {name!r}") from error
    return f"#{red:02x}{green:02x}{blue:02x}"


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be read: {error.strerror}") from error


def size_of(values: Sequence[int] | None) -> tuple[int, int] | None:
    """Check a height and a width.

    Raises
    ------
    SourceError
        They are none.
    """
    if values is None:
        return None
    if len(values) != 2 or not all(isinstance(each, int) and 0 < each <= 1 << 14 for each in values):
        raise SourceError(f"size is (height, width), whole numbers from 1 to 16384; got {tuple(values)}")
    return values[0], values[1]
