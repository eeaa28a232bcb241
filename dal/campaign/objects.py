"""The files that a campaign keeps beside its database, each written whole: in its directory or in an object store."""

import hashlib
from contextlib import suppress
from pathlib import Path

from dal._distribution import install_line
from dal._files import replacing
from dal.errors import CampaignError, InputError, NotInstalled, SettingsError, StoreError
from dal.places import Place, Url, place_of

_REMEDY = (
    "Is the store there, is it reachable, and do the credentials (of the environment, as for a pool on it) allow"
    " reading and writing? Then run again; nothing is half done"
)


class Objects:
    """A campaign's objects by name: models, candidates, codebooks, features of what was asked.

    What is committed is committed by its digest, which is a part of the object's name: so a second coordinator that has
    not heard yet that it lost its lock may write, and changes nothing.

    Parameters
    ----------
    folder : Path
        The campaign's directory, or a directory that takes the place of a store.

    Attributes
    ----------
    place : str
        For messages.
    cells : Path or Url
        Where the cells of the pool's rows are kept: workers on every machine can write to a URL.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = str(folder)
        self.cells: Place = folder / "cells.zarr"

    def check(self) -> None:
        """Prove that the store can be written and read, before work is begun whose result would go there.

        Raises
        ------
        CampaignError
            If it cannot; the message says why.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write an object; it is there as a whole when this returns.

        Raises
        ------
        CampaignError
            If it cannot be written.
        """
        path = self.folder / name
        with suppress(OSError):  # what is wrong with the folder is said when the file is written
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)

    def read(self, name: str, digest: str) -> bytes:
        """Read an object that was committed by its SHA-256.

        Raises
        ------
        CampaignError
            If it is gone, cannot be read, or is another one.
        """
        return _checked(f"{self.place}/{name}", self.find(name), digest)

    def find(self, name: str) -> bytes | None:
        """Read an object, None where there is none.

        Raises
        ------
        CampaignError
            If it is there and cannot be read.
        """
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CampaignError(f"{path} cannot be read: {error.strerror}. Restore it from a copy") from error


class RemoteObjects(Objects):
    """Objects in a store that is reached by URL; the directory holds copies, so that each is fetched once a machine.

    Parameters
    ----------
    folder : Path
        The campaign's directory.
    url : Url
        Of a prefix that is this campaign's alone.
    """

    def __init__(self, folder: Path, url: Url) -> None:
        super().__init__(folder)
        self.place = str(url)
        self.cells = url / "cells.zarr"
        self._far = _far_objects(url)

    def check(self) -> None:
        """Write an object and read it again; it stays, because the right to delete is not needed for anything else."""
        self._put("writable", b"dal")
        if self._get("writable") != b"dal":
            raise CampaignError(f"{self.place} does not give back what was written to it. {_REMEDY}")

    def write(self, name: str, data: bytes) -> None:
        """Write an object, first to the store."""
        self._put(name, data)
        super().write(name, data)

    def read(self, name: str, digest: str) -> bytes:
        """Read an object that was committed by its SHA-256, from the copy if there is a sound one."""
        # A copy that is not what it should be costs fetching it again.
        with suppress(CampaignError):
            return _checked(name, super().find(name), digest)
        data = _checked(f"{self.place}/{name}", self._get(name), digest)
        super().write(name, data)
        return data

    def find(self, name: str) -> bytes | None:
        """Read an object, None where there is none, from the copy if there is one."""
        data = super().find(name)
        if data is None and (data := self._get(name)) is not None:
            super().write(name, data)
        return data

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._far.put(name, data)
        except Exception as error:  # each kind of store has errors of its own
            raise self._failed("written", name, error) from error

    def _get(self, name: str) -> bytes | None:
        try:
            return self._far.get(name)
        except Exception as error:
            raise self._failed("read", name, error) from error

    def _failed(self, act: str, name: str, error: Exception) -> CampaignError:
        if isinstance(error, StoreError):
            return CampaignError(f"{error}; nothing is half done")
        return CampaignError(f"{self.place}/{name} cannot be {act}: {error}. {_REMEDY}")


class _OfStore:
    """Objects of a store that dal opens itself."""

    def __init__(self, url: Url) -> None:
        from dal.stores.objects import Objects  # a local campaign does without

        self._objects = Objects(url.text)

    def put(self, name: str, data: bytes) -> None:
        from dal.stores.objects import wait

        wait(self._objects.put(name, data))

    def get(self, name: str) -> bytes | None:
        from dal.stores.objects import wait

        found = wait(self._objects.get(name))
        return None if found is None else bytes(found)


class _OfFsspec:
    """Objects of any other store that fsspec knows."""

    def __init__(self, url: Url) -> None:
        import fsspec

        self._store, self._prefix = fsspec.core.url_to_fs(url.text)

    def put(self, name: str, data: bytes) -> None:
        self._store.pipe_file(f"{self._prefix}/{name}", data)

    def get(self, name: str) -> bytes | None:
        try:
            data: bytes = self._store.cat_file(f"{self._prefix}/{name}")
        except FileNotFoundError:
            return None
        return data


def _far_objects(url: Url) -> _OfStore | _OfFsspec:
    try:
        return _OfStore(url) if url.is_object_store else _OfFsspec(url)
    except NotInstalled as error:
        raise CampaignError(f"{url}: {error}") from error
    except ImportError as error:
        raise CampaignError(f"{url}: this store needs more packages: {error}; {install_line('remote')}") from error
    except InputError:
        raise
    except ValueError as error:
        raise SettingsError(f"`store` must be a URL such as s3://bucket/folder, got {url.text!r}: {error}") from error


def objects_of(directory: Path, store: str, identity: str) -> Objects:
    """Return the place of a campaign's objects: its directory, or its own prefix below the URL that the settings name.

    Raises
    ------
    SettingsError
        If the URL is of no known kind.
    CampaignError
        If the packages for this kind of store are missing.
    """
    if not store:
        return Objects(directory)
    place = place_of(store) / identity
    return Objects(place) if isinstance(place, Path) else RemoteObjects(directory, place)


def _checked(where: str, data: bytes | None, digest: str) -> bytes:
    if data is None:
        raise CampaignError(f"{where} cannot be read: it is gone. Restore it from a copy")
    if digest_of(data) != digest:
        raise CampaignError(f"{where} is damaged: its digest should be {digest} and is {digest_of(data)}. Restore it")
    return data


def digest_of(data: bytes) -> str:
    """Return the SHA-256 that an object is committed by."""
    return hashlib.sha256(data).hexdigest()
