"""Collect facts of a process and of its machine, without dal.

The text of this module is sent to schedulers and workers, and run there by `call`: a worker may lack dal, or have
another version of it or of Python. So nothing of dal is imported here, others are imported in the functions, and
results are built-in types.
"""

from __future__ import annotations

import os
import time
from typing import Any


def facts(variables: list[str], settings: list[str], folder: str) -> dict[str, Any]:
    """Return what is known at once of this process and its machine.

    Parameters
    ----------
    variables : list of str
        Names of environment variables to read.
    settings : list of str
        Keys of Dask's configuration to read.
    folder : str
        Whose disk is looked at; empty for the working directory.
    """
    import dask.config
    import dask.system

    return {
        "environment": {name: os.environ.get(name) for name in variables},
        "settings": {key: dask.config.get(key, None) for key in settings},
        "listening": _listening(),
        "files": _files(),
        "memory": _memory(),
        "free": _free(folder or os.getcwd()),  # noqa: PTH109 - a text, as the folder
        "cores": int(dask.system.CPU_COUNT),
    }


def clock() -> float:
    """Return the time of this machine."""
    return time.time()


def linear_algebra() -> list[str]:
    """Return the libraries of NumPy and SciPy for linear algebra, with their kernels."""
    import numpy as np  # noqa: F401 - loads its library
    import scipy.linalg  # noqa: F401 - the same
    from threadpoolctl import threadpool_info

    # Without OpenMP, which is there once somebody has imported scikit-learn.
    found = [each for each in threadpool_info() if each["user_api"] == "blas"]
    return sorted({f"{each['internal_api']} {each.get('architecture', '')}".strip() for each in found})


def machine(folder: str) -> dict[str, Any]:
    """Return what takes a moment to find out: imports, and writing to a folder.

    Parameters
    ----------
    folder : str
        Below which a file is written; empty where none need be.
    """
    return {"kernels": linear_algebra(), "store_trouble": write_trouble(folder) if folder else None}


def write_trouble(folder: str) -> str | None:
    """Write a small file in a folder, read and delete it; return what went wrong.

    A file that is left over is swept by the next command that writes there.
    """
    import secrets

    path = os.path.join(folder, f".dal-{secrets.token_hex(8)}.part")  # noqa: PTH118 - texts, not the paths of dal
    try:
        with open(path, "xb") as file:  # noqa: PTH123
            file.write(b"dal")
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                found = file.read()
        finally:
            os.remove(path)  # noqa: PTH107
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None if found == b"dal" else "what was written does not come back"


def _free(folder: str) -> int | None:
    """Return the free space of the disk that a folder is on; None where there is no such folder."""
    import shutil

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _listening() -> list[tuple[str, int]]:
    """Return the addresses and ports that this process listens on."""
    try:
        import psutil

        process = psutil.Process()
        connections = getattr(process, "net_connections", None) or process.connections
        return [(each.laddr.ip, each.laddr.port) for each in connections(kind="inet") if each.status == "LISTEN"]
    except Exception:  # a system that shows none: nothing is known
        return []


def _files() -> int:
    """Return the most files and connections that this process may have open; 0 where there is no limit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _memory() -> int:
    """Return the memory that this machine, or its container, has."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)
