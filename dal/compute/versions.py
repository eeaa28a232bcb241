"""Compare the versions that decide whether a process can work for another one, by built-in types alone.

The text of this module travels to processes that may have no `dal`, another one, or another Python, and runs there. So
it imports the standard library alone, and what it returns there is made of built-in types. The rules are here as well,
because a worker that joins later applies them to itself before it loads anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = "dal source"
"""The digest of the modules of `dal`: a checkout changes without its version."""

REFUSED: Mapping[str, int | None] = {
    # Functions travel by the name of their module, and some as bytecode.
    "python": 2,
    # What travels are instances of dal's classes, and its kernel decides the scores.
    "dal": None,
    SOURCE: None,
    # Fitted estimators are pickled, which scikit-learn supports within one version alone.
    "scikit-learn": None,
    # Scores are computed by it; a patch release mends, a minor one changes algorithms.
    "numpy": 2,
    # Opened arrays are pickled with private classes of it.
    "zarr": 2,
    # Messages have no version; a release is a year and a month.
    "dask": 2,
    "distributed": 2,
}
"""Differences that end the work before it starts, by the leading parts of a version that must be equal (None: all)."""

WARNED = ("scipy", "numba")
"""Differences that may change the last bits of a learner's scores; those of `REFUSED` beyond its parts as well."""

OF_SCHEDULER = ("python", "dal", SOURCE, "dask", "distributed")
"""A scheduler unpickles tasks, and computes nothing."""

_MODULES = {"scikit-learn": "sklearn"}
_DISTRIBUTION = "dal-learn"
_KEPT = "_dal_source"
_NANNIES = "_dal_nannies"

Versions = Mapping[str, "str | None"]
"""The versions of one process by name; None where a package is not installed."""


class Difference(NamedTuple):
    """A version that is not the same in two processes.

    Attributes
    ----------
    name : str
        Of the package, ``"python"``, or `SOURCE`.
    here, there : str or None
        None where it is not installed.
    refused : bool
        Whether the other process cannot work for this one; else last bits of scores may differ.
    """

    name: str
    here: str | None
    there: str | None
    refused: bool

    @property
    def remedy(self) -> str:
        """The step that mends it in the other place."""
        if self.name == "python":
            return f"use Python {_leading(self.here, REFUSED['python'])} there"
        if self.name == SOURCE:
            return "install the same build or checkout of dal there, and start it again"
        if self.here is None:
            return f"install it here: pip install '{self.name}=={self.there}'"
        name = _DISTRIBUTION if self.name == "dal" else self.name
        return f"install there: pip install '{name}=={self.here}'"

    def __str__(self) -> str:
        if self.name == SOURCE:
            return f"other modules of dal ({self.there}) than this process ({self.here})"
        return f"{_said(self.name, self.there)}, this process {_said(self.name, self.here)}"


def _said(name: str, version: str | None) -> str:
    return f"no {name}" if version is None else f"{name} {version}"


def found() -> dict[str, str | None]:
    """Return the versions of this process; it imports nothing that is not there yet.

    Examples
    --------
    >>> sorted(found())
    ['dal', 'dal source', 'dask', 'distributed', 'numba', 'numpy', 'python', 'scikit-learn', 'scipy', 'zarr']
    """
    version, digest = _of_dal()
    versions: dict[str, str | None] = {"python": platform.python_version(), "dal": version, SOURCE: digest}
    for name in (*REFUSED, *WARNED):
        if name not in versions:
            versions[name] = _of_package(name)
    return versions


def differences(here: Versions, there: Versions, names: Iterable[str] = (*REFUSED, *WARNED)) -> list[Difference]:
    """Return the versions that differ between two processes, refused ones first.

    Parameters
    ----------
    here, there : mapping of str to str
        See :func:`found`.
    names : iterable of str
        What is compared; `OF_SCHEDULER` for a scheduler.

    Examples
    --------
    >>> here = {"python": "3.13.2", "numpy": "2.5.5", "scikit-learn": "1.9.1", "numba": "0.68.1"}
    >>> there = {"python": "3.13.12", "numpy": "2.4.0", "scikit-learn": None, "numba": "0.68.0"}
    >>> for each in differences(here, there, here):
    ...     print(each.refused, each)
    True numpy 2.4.0, this process numpy 2.5.5
    True no scikit-learn, this process scikit-learn 1.9.1
    False python 3.13.12, this process python 3.13.2
    False numba 0.68.0, this process numba 0.68.1
    """
    unlike = []
    for name in names:
        a, b = here.get(name), there.get(name)
        # The modules say more than the version, and less in words.
        if a == b or (name == SOURCE and here.get("dal") != there.get("dal")):
            continue
        refused = name in REFUSED and _leading(a, REFUSED[name]) != _leading(b, REFUSED[name])
        unlike.append(Difference(name, a, b, refused))
    return sorted(unlike, key=lambda each: not each.refused)


def _leading(version: str | None, parts: int | None) -> str | None:
    return None if version is None else ".".join(version.split(".")[:parts])


def _of_package(name: str) -> str | None:
    # Another version may have been installed since this process has imported it.
    loaded = sys.modules.get(_MODULES.get(name, name))
    version = getattr(loaded, "__version__", None)
    if version is not None:
        return str(version)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _of_dal() -> tuple[str | None, str | None]:
    """Return the version of the modules of `dal`, and a digest of them.

    Both are kept from the first time on: an upgrade of the files changes nothing in a process that has imported them.
    """
    if not hasattr(sys, _KEPT):
        setattr(sys, _KEPT, _read_dal())
    version, digest = getattr(sys, _KEPT)
    return version, digest


def _read_dal() -> tuple[str | None, str | None]:
    try:
        spec = importlib.util.find_spec("dal")
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return None, None
    folder = Path(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256()
    version = "unknown"
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(text)}\n".encode() + text)
        if path.parent == folder and path.name == "_distribution.py":
            named = re.search(rb'^__version__ = "(.*)"', text, re.MULTILINE)
            version = named[1].decode() if named else version
    return version, digest.hexdigest()[:12]


# -- on another process -----------------------------------------------------------------------------------------------

_ELSEWHERE = "(scope := {'__name__': 'versions'}, exec(text, scope), scope[name](*given))[-1]"


def elsewhere(name: str, *given: object) -> tuple[Callable[..., Any], str, dict[str, object]]:
    """Return a call of a function of this module that runs in a process without this module.

    Parameters
    ----------
    name : str
    given : object
        Its arguments, of built-in types.

    Returns
    -------
    function, expression, variables
        Built-in: ``function(expression, variables)`` is the call.

    Examples
    --------
    >>> function, *arguments = elsewhere("found")
    >>> function(*arguments) == found()
    True
    """
    return eval, _ELSEWHERE, {"text": inspect.getsource(sys.modules[__name__]), "name": name, "given": given}


def received(here: Versions, module: str, name: str) -> object:
    """Return an empty instance of a class, in a process that can work for one of other versions.

    A worker that fails to start tells its nanny, which answers nobody until its worker has started: both would stand
    still, and the scheduler would send tasks to a worker that takes none. So workers of this process that are just
    starting forget their nannies, which hear of the end nevertheless, until :func:`loaded` gives them back.

    Raises
    ------
    ImportError
        If a version differs that decides.
    """
    nannies = _forgotten_nannies()
    refused = [each for each in differences(here, found()) if each.refused]
    if refused:
        said = "; ".join(f"{each}: {each.remedy}" for each in refused)
        raise ImportError(f"This process cannot work for the coordinator: it has {said}.")
    kind = getattr(importlib.import_module(module), name)
    instance = kind.__new__(kind)
    setattr(instance, _NANNIES, nannies)
    return instance


def loaded(instance: object) -> None:
    """Return their nannies to workers that are starting: an instance is there with all that came with it."""
    for worker, nanny in instance.__dict__.pop(_NANNIES, ()):
        worker.nanny = nanny


def _forgotten_nannies() -> list[tuple[Any, Any]]:
    from distributed import Worker

    forgotten = []
    for worker in list(Worker._instances):
        starting = getattr(worker, "_startup_lock", None)
        if worker.nanny and starting is not None and starting.locked():
            forgotten.append((worker, worker.nanny))
            worker.nanny = None
    return forgotten
