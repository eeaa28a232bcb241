"""A folder of pictures as the source of a pool."""

import base64
import hashlib
import io
import logging
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from dal.errors import SourceError
from dal.pool.encoded import Kind, Raw, Unreadable
from dal.pool.sizes import SIZES, Sizes
from dal.pool.sources import Block, Identity, file_identity
from dal.pool.stored import picture_kind

BACKGROUND = "white"
_FILES_AT_ONCE = 64
_SHOWN_BYTES = 16 * 2**10
_SHOWN_SIZE = (256, 256)
_NOT_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats that Pillow recognises but cannot read as pixels, or only with another program."""
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
_FAULTS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
"""Errors of Pillow for a file that holds no whole picture, or one of an unreasonable size."""
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
    sizes : Sizes, optional
        Of the blocks.

    Raises
    ------
    SourceError
        The folder holds no pictures, or a picture cannot be read or does not match the others.
    """

    single = False

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int] | None,
        background: str | None = None,
        mode: str | None = None,
        sizes: Sizes = SIZES,
    ) -> None:
        self._folder, self._size, self._sizes = folder, size, sizes
        self._background = _colour(BACKGROUND if background is None else background)
        self._seen: Counter[str] = Counter()
        self._names = _pictures_in(folder)
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
        return {
            **_identity(self._folder, self._names),
            "size": None if self._size is None else list(self._size),
            "background": self._background,
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
        step = self._sizes.rows_of_block(height * width * channels)
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
        drawn, is_transparent = _drawn(picture, self._background)
        if is_transparent:
            remark = f"are transparent in places; drawn on {self._background} (--background chooses another colour)"
            self._seen[remark] += 1
        return drawn

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
        except _FAULTS as error:
            raise SourceError(f"{path} cannot be read as a picture: {error}; repair or remove it") from error
        if picture.mode not in (*_GREY, *_COLOUR):
            raise SourceError(f"{path} must have 8 bits a channel, got pixels of kind {picture.mode!r}; convert it")
        return picture


class PictureFiles:
    """The pictures in a folder and its subfolders, in the order of their paths, as they are in their files.

    A record's id is its path below the folder, with slashes.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    SourceError
        The folder holds no pictures.
    """

    kind: Kind = "pictures"
    single = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = _pictures_in(folder)
        self.n_rows: int | None = len(self._names)

    @property
    def identity(self) -> Identity | None:
        """The folder, and the name, size and modification time of each picture."""
        return _identity(self._folder, self._names)

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Note that the records are pictures."""
        return {"images": True}

    def raw(self, start: int) -> Iterator[Raw]:
        """Read the files from number `start` on, some at a time; they are decoded where they are encoded."""
        for at in range(start, len(self._names), _FILES_AT_ONCE):
            names = self._names[at : at + _FILES_AT_ONCE]
            yield Raw([self._read(name) for name in names], names)

    def _read(self, name: str) -> bytes | Unreadable:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            return Unreadable(f"it cannot be read: {error.strerror}")


class PictureShards:
    """The pictures in tar files, as webdataset writes them, in the order of the files and of their members.

    A record's id is the name of its member, which must not repeat. Members of other kinds are left out. The headers are
    read once, so that pictures are read from any number on; the contents are not.

    Parameters
    ----------
    files : sequence of Path
        Tar files, not compressed as a whole.

    Raises
    ------
    SourceError
        A file is no tar file, or there are no pictures in them, or a name repeats.
    """

    kind: Kind = "pictures"
    single = False

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, endings = list(files), _endings()
        self._members: list[tuple[int, int, int, str]] = []
        others: list[str] = []
        for number, path in enumerate(self._files):
            for offset, size, name in _members(path):
                if name.lower().endswith(endings):
                    self._members.append((number, offset, size, name))
                else:
                    others.append(name)
        names = Counter(name for *_, name in self._members)
        where = f"{self._files[0]}{f' and {len(self._files) - 1} more' if len(self._files) > 1 else ''}"
        if not names:
            raise SourceError(f"{where} must hold pictures, got {_left_out(others) or 'no members'}")
        name, count = names.most_common(1)[0]
        if count > 1:
            raise SourceError(f"{where}: names of pictures must not repeat, got {name!r} {count} times")
        if others:
            _log.warning("%s: members that are no pictures are left out: %s", where, _left_out(others))
        self.n_rows: int | None = len(self._members)

    @property
    def identity(self) -> Identity | None:
        """The files, with their sizes and modification times."""
        return {"kind": "shards of pictures", "files": [file_identity(path) for path in self._files]}

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Note that the records are pictures."""
        return {"images": True}

    def raw(self, start: int) -> Iterator[Raw]:
        """Read the pictures from number `start` on, some at a time."""
        opened: tuple[int, BinaryIO] | None = None
        try:
            for at in range(start, len(self._members), _FILES_AT_ONCE):
                records: list[bytes | Unreadable] = []
                part = self._members[at : at + _FILES_AT_ONCE]
                for number, offset, size, _ in part:
                    if opened is None or opened[0] != number:
                        if opened is not None:
                            opened[1].close()
                        opened = (number, self._files[number].open("rb"))
                    opened[1].seek(offset)
                    data = opened[1].read(size)
                    records.append(data if len(data) == size else Unreadable("its file ends within it"))
                yield Raw(records, [name for *_, name in part])
        finally:
            if opened is not None:
                opened[1].close()


def _members(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield offset, size and name of each file in a tar file; of one that is cut off, those before its end."""
    try:
        archive: Any  # its list of members is not in the published types
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # they are kept otherwise, and are much larger than what is kept here
                if member.isreg():
                    yield member.offset_data, member.size, member.name
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{path} cannot be read as a tar file: {error}; repair or remove it") from error


def shards_in(source: Path) -> list[Path]:
    """Return the tar files that a source consists of: itself, or those of a folder; none where it has none."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".tar" else []
    return sorted(path for path in source.iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith("."))


def picture_of(record: bytes | npt.NDArray[np.uint8]) -> Image.Image | Unreadable:
    """Decode a picture to red, green and blue, upright, on white where it is transparent.

    Parameters
    ----------
    record : bytes or ndarray of uint8, shape (h, w, c)
        The contents of a file; or the pixels, in 1, 3 or 4 channels.

    Returns
    -------
    Image or Unreadable
        Why it cannot be decoded, where it cannot.
    """
    if isinstance(record, np.ndarray):
        return _drawn(Image.fromarray(record[:, :, 0] if record.shape[2] == 1 else record), BACKGROUND)[0].convert(
            "RGB"
        )
    try:
        with Image.open(io.BytesIO(record)) as file:
            if file.width * file.height > (Image.MAX_IMAGE_PIXELS or file.width * file.height):
                return Unreadable(f"it has {file.width * file.height:,} pixels")
            picture = ImageOps.exif_transpose(file)
            picture.load()
            if picture.mode not in (*_GREY, *_COLOUR):
                return Unreadable(f"it has pixels of kind {picture.mode!r}, not 8 bits a channel")
            return _drawn(picture, BACKGROUND)[0].convert("RGB")
    except UnidentifiedImageError:  # its message is about a buffer
        return Unreadable("it is no picture of a known format")
    except _FAULTS as error:
        return Unreadable(f"it cannot be read as a picture: {error}")


def shown_of(record: bytes | npt.NDArray[np.uint8], picture: Image.Image) -> str:
    """Return a small picture for people, as base64: the file itself where it is small, else a JPEG of its own.

    Parameters
    ----------
    record : bytes or ndarray of uint8
    picture : Image
        The record decoded.
    """
    if isinstance(record, bytes) and len(record) <= _SHOWN_BYTES and picture_kind(record) is not None:
        return base64.b64encode(record).decode()
    small = picture.copy()
    small.thumbnail(_SHOWN_SIZE)
    buffer = io.BytesIO()
    # Where there are few pixels, a lossless file is small, and people see each of them.
    small.save(buffer, "PNG" if small.width * small.height <= 64 * 64 else "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _drawn(picture: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """Draw a picture on a background if it has transparent pixels, and return whether it has."""
    if not picture.has_transparency_data:
        return picture, False
    drawn = picture.convert("RGBA")
    if drawn.getchannel("A").getextrema()[0] == 255:
        return drawn, False
    canvas = Image.new("RGBA", drawn.size, background)
    canvas.alpha_composite(drawn)
    return canvas, True


def _pictures_in(folder: Path) -> list[str]:
    """Return the paths of the pictures below a folder; warn of other files, and refuse a folder without pictures."""
    endings, files = _endings(), sorted(_names(folder))
    names = [name for name in files if name.lower().endswith(endings)]
    left_out = _left_out([name for name in files if not name.lower().endswith(endings)])
    if not names:
        raise SourceError(
            f"{folder} must hold pictures, such as .png, .jpg or .webp files, got {left_out or 'none'}; choose "
            "another folder"
        )
    if left_out:
        _log.warning("%s: files that are no pictures, or of an unsupported kind, are left out: %s", folder, left_out)
    return names


def _identity(folder: Path, names: list[str]) -> Identity:
    digest = hashlib.sha256()
    for name in names:
        status = (folder / name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    path = str(folder.absolute())
    return {"kind": "pictures", "path": path, "pictures": len(names), "digest": digest.hexdigest()}


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
