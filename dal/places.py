"""Places of data: a local path or a URL, decided once at the door; deleting there only what dal wrote.

Some libraries read a text as a URL and others as a path: Zarr takes ``thesis#2`` for ``thesis``. So a text is parsed
here alone, and its place is carried as a type. The text of a place, `str`, names the same place again.
"""

import asyncio
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from dal.errors import InputError
from dal.stores.settings import Address, is_object_store

if TYPE_CHECKING:
    from dal.stores.objects import Objects

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAINED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://.*)?", re.DOTALL)
_LOCAL_SCHEMES = ("file", "local")
# Names that Zarr gives to files: metadata, chunks, and the partial files that it renames when they are whole.
_WRITTEN_BY_ZARR = re.compile(
    r"(?:.*/)?(?:zarr(?:\.json|\.[0-9a-f]{32}\.partial)|c(?:/\d+)*(?:\.[0-9a-f]{32}\.partial)?)",
    re.DOTALL,  # display fields may have line ends in their names
)


@dataclass(frozen=True)
class Url:
    """The URL of a store, such as ``s3://bucket/folder``; made by `place_of`."""

    text: str

    @property
    def is_object_store(self) -> bool:
        """Whether `dal.stores` opens it; fsspec opens the others."""
        return is_object_store(self.text)

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}{name}" if self.text.endswith("/") else f"{self.text}/{name}")


Place = Path | Url


def place_of(path: "str | os.PathLike[str] | Url", beside: Path = Path()) -> Place:
    """Return the place that a user names: an absolute path, or a URL.

    A text is a URL if it begins with ``scheme://``, or chains stores by ``::``, and fsspec knows the scheme. Every
    other text is a local path, with any characters. A ``file://`` URL is a local path too, percent-encoded.

    Parameters
    ----------
    path : str, path or Url
    beside : Path, default=Path()
        Folder that a relative path starts from; by default the working directory.

    Returns
    -------
    Path or Url

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
    if isinstance(path, Url):
        return path
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"`path` must be a path or a URL, got {text!r}")
    if isinstance(path, os.PathLike):
        return (beside / text).absolute()
    if _SCHEME.match(text.strip()) and text != text.lstrip():
        raise InputError(f"`path` must be a path or a URL, got {text!r}; remove the blanks before it")
    found = _SCHEME.match(text)
    if found is not None and (scheme := found[1].lower()) in _LOCAL_SCHEMES:
        return _local_of(text, text[found.end() :])
    if found is None and not _is_chain(text):
        return (beside / text).absolute()
    if found is not None:
        if scheme not in _known():
            raise InputError(
                "`path` must be a URL of a store that fsspec knows, such as s3://bucket/folder, or a local path, got "
                f"{text!r}; write a local path that begins so as ./{text}"
            )
        text = scheme + text[len(scheme) :]
    if "::" in text:
        if not all(_is_link(part) for part in text.split("::")):
            raise InputError(f"`path` must have URLs of stores between the signs '::', got {text!r}")
        return Url(text)
    url = Url(text[: len(f"{scheme}://")] + text[len(f"{scheme}://") :].rstrip("/"))
    if url.is_object_store:
        Address.of(url.text)  # refuses what no store could be
    return url


def for_zarr(place: Place) -> Any:  # noqa: ANN401 - Zarr's own StoreLike
    """Return a place as Zarr's functions take it: they parse a text as a URL, and a path not at all."""
    if isinstance(place, Path):
        return place
    if not place.is_object_store:
        return place.text
    from dal.stores.objects import Objects  # places on this machine do without
    from dal.stores.zarr_store import ZarrObjects

    return ZarrObjects(Objects(place.text))


def _opened(url: Url) -> tuple[Any, str]:
    """Return the file system of a URL, and the path there."""
    import fsspec  # a tenth of a second, and local places do without

    store, root = fsspec.core.url_to_fs(url.text)
    return store, root


def _known() -> set[str]:
    import fsspec

    return {*fsspec.available_protocols(), *fsspec.registry}


def _is_link(part: str) -> bool:
    found = _CHAINED.fullmatch(part)
    return found is not None and found[1].lower() in _known()


def _is_chain(text: str) -> bool:
    """Check whether a text without a scheme chains stores, as ``simplecache::s3://bucket`` does."""
    parts = text.split("::")
    return len(parts) > 1 and all(map(_is_link, parts)) and any(map(_SCHEME.match, parts))


def _local_of(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise InputError(
            f"a file:// URL must name an absolute path, such as file:///data/pool.zarr, got {text!r}; write a "
            "relative path"
            " without file://"
        )
    named = os.fsdecode(unquote_to_bytes(os.fsencode(f"/{path}")))
    if "\0" in named:
        raise InputError(f"`path` must be a path or a URL, got {text!r}")
    return Path(named)


def names_at(place: Place) -> list[str]:
    """Return the names of the files and folders directly below a place; none if there is no such folder."""
    try:
        if isinstance(place, Path):
            return sorted(path.name for path in place.iterdir())
        if place.is_object_store:
            from dal.stores.objects import Objects, wait

            return wait(Objects(place.text).names())
        store, root = _opened(place)
        store.invalidate_cache()
        return sorted({path.rstrip("/").rpartition("/")[2] for path in store.ls(root, detail=False)})
    except FileNotFoundError:
        return []


# -- deleting ----------------------------------------------------------------------------------------------------------


class NotOurs(Exception):
    """Something that dal did not write lies where dal would delete; nothing was deleted."""


@dataclass(frozen=True)
class Nodes:
    """Arrays of a Zarr group that dal wrote, listed for deletion before anything is deleted.

    Made by `found` only. Files that others add later stay.
    """

    place: Place
    files: tuple[str, ...]
    folders: tuple[str, ...]

    @classmethod
    def found(cls, place: Place, names: Iterable[str]) -> "Nodes":
        """List the stored files of the arrays and groups with these names below a place.

        Parameters
        ----------
        place : Path or Url
            Place of a group or array that carries dal's mark; the caller has read it.
        names : iterable of str
            Names of nodes directly below it; missing ones are skipped.

        Raises
        ------
        NotOurs
            There is a symbolic link, or a file that Zarr would not have written; the message names it.
        """
        files: list[str] = []
        folders: list[str] = []
        for below in _each_below(place, list(names)):
            for path, is_folder in below:
                if is_folder:
                    folders.append(path)
                elif _WRITTEN_BY_ZARR.fullmatch(path):
                    files.append(path)
                else:
                    raise NotOurs(
                        f"{place / path} must be a file that dal wrote, got another; move it to another place"
                    )
        return cls(place, tuple(files), tuple(folders))

    def delete(self) -> None:
        """Delete the listed files and empty folders."""
        if isinstance(self.place, Path):
            for path in self.files:
                (self.place / path).unlink(missing_ok=True)
            for path in self.folders:
                _remove_empty(self.place / path)
        elif self.files:
            # The metadata carries dal's mark and goes last, so that an interrupted deletion can be repeated.
            marks = [path for path in self.files if path.endswith("zarr.json")]
            for paths in (sorted({*self.files} - {*marks}), marks):
                _delete(self.place, paths)


def _delete(url: Url, paths: list[str]) -> None:
    if url.is_object_store:
        from dal.stores.objects import Objects, wait

        wait(Objects(url.text).delete(paths))
        return
    # Not `rm`: it takes characters such as * and [ in a path as a pattern, and deletes all matches.
    store, root = _opened(url)
    for path in paths:
        store.rm_file(f"{root}/{path}")
    store.invalidate_cache()


def _each_below(place: Place, names: list[str]) -> Iterable[Iterable[tuple[str, bool]]]:
    """Return what `_below` yields for each name; an object store is asked for all of them at once."""
    if isinstance(place, Path) or not place.is_object_store:
        return (_below(place, name) for name in names)
    from dal.stores.objects import Objects, wait

    objects = Objects(place.text)

    async def ask() -> list[list[str]]:
        return await asyncio.gather(*(_all_below(objects, name) for name in names))

    return [[(path, False) for path in paths] for paths in wait(ask())]


def _below(place: Place, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the paths of a node's files and folders, deepest first, and whether each is a folder."""
    if isinstance(place, Path):
        try:
            mode = (place / name).lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise NotOurs(f"{place / name} must not be a symbolic link; remove it, or name another place")
        if stat.S_ISDIR(mode):
            for entry in sorted((place / name).iterdir()):
                yield from _below(place, f"{name}/{entry.name}")
        yield name, stat.S_ISDIR(mode)
        return
    store, root = _opened(place)
    store.invalidate_cache()
    for path in store.find(f"{root}/{name}"):
        yield path.removeprefix(f"{root}/"), False


async def _all_below(objects: "Objects", name: str) -> list[str]:
    """Return the object of this name, if there is one, and all below it."""

    async def below() -> list[str]:
        return [path async for path in objects.below(name)]

    size, paths = await asyncio.gather(objects.size(name), below())
    return paths if size is None else [name, *paths]


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        if folder.exists() and not any(folder.iterdir()):
            raise
