"""What a figure depends on beside the code: the machine, its load and the versions installed."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import dask.system

PACKAGES = ("dal", "dask", "distributed", "dask-ml", "numpy", "scikit-learn", "scipy", "zarr")

CORES: int = dask.system.CPU_COUNT
"""Cores that this process may use; as many as a local cluster has workers."""


def facts() -> dict[str, object]:
    """Describe this machine."""
    return {
        "cores": CORES,
        "cpu": _cpu_model(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def load() -> float:
    """Processes that wanted a core in the last minute, on average."""
    return os.getloadavg()[0]


def peak_bytes() -> int:
    """Give the most memory that this process has held at once; Linux alone tells it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@contextmanager
def environment(changes: dict[str, object]) -> Iterator[None]:
    """Set environment variables, for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in changes.items()})
    try:
        yield
    finally:
        for name in changes:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:  # run from a checkout that is not installed
        return "not installed"
