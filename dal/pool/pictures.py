"""A folder of pictures as the source of a pool."""

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
"""Formats that Pillow recognises but cannot read as pixels, or only with another program."""
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
_log = logging.getLogger(__name__)
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


class Pictures:
    """The pictures in a folder and its subfolders, in the order of their paths, as (height, width, channels).

    A record's id is its path below the folder, with slashes. Pictures are rotated by their EXIF orientation. All are
    grey if the first one is, else red, green and blue. Only the first frame of an animation is read.

    Parameters
    ----------
    folder : Path
        Folder to search.
    size : tuple of int, optional
        Height and width in pixels that all pictures are resized to. Default: that of the first one; others are refused.
    background : str, optional
        Colour behind transparent pixels. Default: white.
    mode : {"L", "RGB"}, optional
        Whether all are grey or in colour, where the pool has fixed it already.

    Raises
    ------
    SourceError
        The folder holds no pictures, or a picture cannot be read or does not match the others.
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
                f"{folder} must hold pictures, such as .png, .jpg or .webp files, got {left_out or 'none'}; choose "
                "another folder"
            )
        if left_out:
            _log.warning(
                "%s: files that are no pictures, or of an unsupported kind, are left out: %s", folder, left_out
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
        """The folder, and the name, size and modification time of each picture."""
        digest = hashlib.sha256()
        for name in self._names:
            status = (self._folder / name).stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return {
            "kind": "pictures",
            "path": str(self._folder.absolute()),
            "size": None if self._size is None else list(self._size),
            "background": self._background,
            "pictures": len(self._names),
            "digest": digest.hexdigest(),
        }

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Size, background and mode of the pictures; appended ones are converted by the same values."""
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
        for remark, count in self._seen.items():
            _log.warning("%s: %s of %s pictures %s", self._folder, f"{count:,}", f"{len(self._names):,}", remark)

    def _pixels(self, name: str) -> npt.NDArray[Any]:
        picture = self._open(name)
        height, width = self._size_of_all
        if self._size is None and (picture.height, picture.width) != self._size_of_all:
            raise SourceError(
                f"{self._folder / name} must be {height} x {width} (height x width) like {self._names[0]}, got "
                f"{picture.height} x {picture.width}; pass size=(height, width) (--size) to resize all of them"
            )
        if self._mode == "L" and picture.mode not in _GREY:
            raise SourceError(
                f"{self._folder / name} must be grey like {self._names[0]}, got colour; convert it, or sort a picture "
                "in "
                "colour first"
            )
        shown = self._composed(picture).convert(self._mode)
        if self._size is not None and (shown.height, shown.width) != self._size:
            shown = shown.resize(
                (width, height), Image.Resampling.BILINEAR
            )  # Pillow averages all source pixels: no aliasing
        return np.asarray(shown)

    def _composed(self, picture: Image.Image) -> Image.Image:
        """Draw a picture on the background if it has transparent pixels."""
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
            raise SourceError(f"{path} cannot be read as a picture: {error}; repair or remove it") from error
        if picture.mode not in (*_GREY, *_COLOUR):
            raise SourceError(f"{path} must have 8 bits a channel, got pixels of kind {picture.mode!r}; convert it")
        return picture


def _names(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, except hidden ones."""
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower() not in _CLUTTER:
                below = (Path(parent) / name).relative_to(folder).as_posix()
                try:
                    below.encode()
                except UnicodeEncodeError as error:
                    raise SourceError(f"file names must be UTF-8, got {below!r} in {folder}; rename it") from error
                yield below


def _endings() -> tuple[str, ...]:
    """Return the suffixes of the pictures that this Pillow reads; they depend on how it was built."""
    known = Image.registered_extensions()
    return tuple(ending for ending, kind in known.items() if kind in Image.OPEN and kind not in _NOT_PICTURES)


def _left_out(names: list[str]) -> str:
    """Return the number of files by suffix, each with an example."""
    by_ending: dict[str, list[str]] = {}
    for name in names:
        by_ending.setdefault(Path(name).suffix.lower() or "without ending", []).append(name)
    return ", ".join(f"{len(each):,} {ending} (such as {each[0]})" for ending, each in sorted(by_ending.items()))


def _colour(name: str) -> str:
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError) as error:
        raise SourceError(f"`background` must be a colour, such as white or #336699, got {name!r}") from error
    return f"#{red:02x}{green:02x}{blue:02x}"


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be read: {error.strerror}") from error


def size_of(values: Sequence[int] | None) -> tuple[int, int] | None:
    """Check a height and a width.

    Parameters
    ----------
    values : sequence of int, optional
        Height and width in pixels.

    Returns
    -------
    tuple of int or None

    Raises
    ------
    SourceError
        `values` is not a pair of whole numbers from 1 to 16,384.
    """
    if values is None:
        return None
    if len(values) != 2 or not all(isinstance(each, int) and 0 < each <= 1 << 14 for each in values):
        raise SourceError(f"`size` must be (height, width), whole numbers from 1 to 16384, got {tuple(values)}")
    return values[0], values[1]
