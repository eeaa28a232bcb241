"""Where data lies: a local path or a URL, told apart once, at the door; and deleting there what dal wrote, only.

A text is read as a URL by some libraries and as a path by others: Zarr takes ``thesis#2`` for ``thesis``. So a text is
looked at here alone, and what it names is carried as a type. The text of a place, `str`, names the same place again.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import fsspec

from dal.errors import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAINED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://.*)?", re.DOTALL)
_LOCAL_SCHEMES = ("file", "local")
# Names that Zarr gives to files: metadata, chunks, and what it writes beside them before it renames it.
_WRITTEN_BY_ZARR = re.compile(
    r"(?:.*/)?(?:zarr(?:\.json|\.[0-9a-f]{32}\.partial)|c(?:/\d+)*(?:\.[0-9a-f]{32}\.partial)?)",
    re.DOTALL,  # display fields may have line ends in their names
)

_DELETIONS = 16
"""Requests at a time to an object store."""


@dataclass(frozen=True)
class Url:
    """The URL of a store that is reached through fsspec, such as ``s3://bucket/folder``; made by `place_of`."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}{name}" if self.text.endswith("/") else f"{self.text}/{name}")


Place = Path | Url


def place_of(said: "str | os.PathLike[str] | Url", beside: Path = Path()) -> Place:
    """Return the place that a user names: an absolute path, or a URL.

    A text is a URL where it begins with ``scheme://``, or chains stores by ``::``, and fsspec knows the scheme. Every
    other text is a local path, whatever signs are in it, and so is a ``file://`` URL, without its percent-encoding.

    Parameters
    ----------
    said : str, path or Url
    beside : Path, default=Path()
        Folder that a relative path begins at; by default the one where the process stands.

    Raises
    ------
    InputError
        The text is empty, holds a NUL, or is a URL of an unknown kind.

    Examples
    --------
    >>> place_of("/data/thesis#2").as_posix(), place_of("file:///data/100%25").as_posix()
    ('/data/thesis#2', '/data/100%')
    >>> place_of("s3://bucket/a#b/")
    Url(text='s3://bucket/a#b')
    """
    if isinstance(said, Url):
        return said
    text = os.fspath(said) if isinstance(said, os.PathLike) else said
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"a path or a URL was expected, got {text!r}")
    if isinstance(said, os.PathLike):
        return (beside / text).absolute()
    if _SCHEME.match(text.strip()) and text != text.lstrip():
        raise InputError(f"a path or a URL was expected, got {text!r}; remove the blanks before it")
    found = _SCHEME.match(text)
    if found is not None and (scheme := found[1].lower()) in _LOCAL_SCHEMES:
        return _local_of(text, text[found.end() :])
    if found is None and not _is_chain(text):
        return (beside / text).absolute()
    if found is not None:
        if scheme not in _known():
            raise InputError(
                f"a URL of a store that fsspec knows was expected, such as s3://bucket/folder, got {text!r}; a local"
                f" path that begins so is written ./{text}"
            )
        text = scheme + text[len(scheme) :]
    if "::" in text:
        if not all(_is_link(part) for part in text.split("::")):
            raise InputError(f"URLs of stores were expected between the signs '::', got {text!r}")
        return Url(text)
    return Url(text[: len(f"{scheme}://")] + text[len(f"{scheme}://") :].rstrip("/"))


def for_zarr(place: Place) -> Path | str:
    """Return a place as Zarr's functions take it: they parse a text as a URL, and a path not at all."""
    return place if isinstance(place, Path) else place.text


def _known() -> set[str]:
    return {*fsspec.available_protocols(), *fsspec.registry}


def _is_link(part: str) -> bool:
    found = _CHAINED.fullmatch(part)
    return found is not None and found[1].lower() in _known()


def _is_chain(text: str) -> bool:
    """Say whether a text without a scheme of its own chains stores, as ``simplecache::s3://bucket`` does."""
    parts = text.split("::")
    return len(parts) > 1 and all(map(_is_link, parts)) and any(map(_SCHEME.match, parts))


def _local_of(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise InputError(
            f"a file:// URL names an absolute path, such as file:///data/pool.zarr, got {text!r}; write a relative path"
            " without file://"
        )
    named = os.fsdecode(unquote_to_bytes(os.fsencode(f"/{path}")))
    if "\0" in named:
        raise InputError(f"a path or a URL was expected, got {text!r}")
    return Path(named)


def names_at(place: Place) -> list[str]:
    """Name the files and folders directly below a place; none where there is no such folder."""
    try:
        if isinstance(place, Path):
            return sorted(path.name for path in place.iterdir())
        store, root = fsspec.core.url_to_fs(place.text)
        store.invalidate_cache()
        return sorted({path.rstrip("/").rpartition("/")[2] for path in store.ls(root, detail=False)})
    except FileNotFoundError:
        return []


# -- deleting ----------------------------------------------------------------------------------------------------------


class NotOurs(Exception):
    """Something lies where dal would delete that dal did not write; nothing was deleted."""


@dataclass(frozen=True)
class Nodes:
    """Arrays of a Zarr group that dal made, looked through: what is to be deleted is known before the first deletion.

    Only `found` makes it. What others put there meanwhile stays.
    """

    place: Place
    files: tuple[str, ...]
    folders: tuple[str, ...]

    @classmethod
    def found(cls, place: Place, names: Iterable[str]) -> "Nodes":
        """List what is stored of the arrays and groups of these names below a place.

        Parameters
        ----------
        place
            Of a group or array that carries dal's mark: the caller has read it.
        names
            Of what is directly below it; names that are not there are passed over.

        Raises
        ------
        NotOurs
            There is a symbolic link, or a file that Zarr would not have written; the message names it.
        """
        files: list[str] = []
        folders: list[str] = []
        for name in names:
            for path, is_folder in _below(place, name):
                if is_folder:
                    folders.append(path)
                elif _WRITTEN_BY_ZARR.fullmatch(path):
                    files.append(path)
                else:
                    raise NotOurs(f"{place / path} was not written by dal; move it to another place")
        return cls(place, tuple(files), tuple(folders))

    def delete(self) -> None:
        """Delete what was found."""
        if isinstance(self.place, Path):
            for path in self.files:
                (self.place / path).unlink(missing_ok=True)
            for path in self.folders:
                _remove_empty(self.place / path)
        elif self.files:
            store, root = fsspec.core.url_to_fs(self.place.text)
            # Not `rm`: it takes signs such as * and [ in a path for a pattern, and deletes all that match.
            # The metadata goes last, because it carries the mark: a deletion that is interrupted can be done again.
            marks = [path for path in self.files if path.endswith("zarr.json")]
            with ThreadPoolExecutor(_DELETIONS) as threads:
                for paths in (sorted({*self.files} - {*marks}), marks):
                    deque(threads.map(store.rm_file, [f"{root}/{path}" for path in paths]), 0)
            store.invalidate_cache()


def _below(place: Place, name: str) -> Iterator[tuple[str, bool]]:
    """Give the paths below the place of a node's files and folders, the deepest first, and whether each is a folder."""
    if isinstance(place, Path):
        try:
            mode = (place / name).lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise NotOurs(f"{place / name} is a symbolic link; remove it, or name another place")
        if stat.S_ISDIR(mode):
            for entry in sorted((place / name).iterdir()):
                yield from _below(place, f"{name}/{entry.name}")
        yield name, stat.S_ISDIR(mode)
        return
    store, root = fsspec.core.url_to_fs(place.text)
    store.invalidate_cache()
    for path in store.find(f"{root}/{name}"):
        yield path.removeprefix(f"{root}/"), False


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        if folder.exists() and not any(folder.iterdir()):
            raise
