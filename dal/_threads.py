"""One thread for linear algebra: the last bits of a product depend on how many threads share it.

Fits, codebooks, scores and the choice of a batch run below `one_thread`, so that a laptop of two cores and a worker of
sixty-four compute the same bits.
"""

import os
import sys
import threading
from contextlib import ContextDecorator
from typing import Any

from threadpoolctl import ThreadpoolController


class _OneThread(ContextDecorator):
    """Limit BLAS and OpenMP to one thread; re-entrant, and safe where several threads of a process enter.

    OpenMP and MKL have a number for each thread; each restores its own. OpenBLAS has one for the process: of two
    threads that each limited it for themselves, the first to finish would give the other all cores in the middle of a
    product. So the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._modules = 0
        self._of_process: list[tuple[Any, int]] = []
        self._of_thread = threading.local()

    def __enter__(self) -> None:
        own = self._of_thread.__dict__
        with self._lock:
            found = self._modules != len(sys.modules)
            if found:
                # Finding the libraries takes milliseconds, as much as a few tiles; only an import brings new ones.
                self._modules, self._libraries = len(sys.modules), ThreadpoolController().lib_controllers
            if found or not self._inside:
                self._of_process += _limited(filter(_is_of_process, self._libraries))
            self._inside += 1
            libraries = self._libraries
        if found or not own.get("depth"):
            limited = _limited(library for library in libraries if not _is_of_process(library))
            own["before"] = own.get("before", []) + limited
        own["depth"] = own.get("depth", 0) + 1

    def __exit__(self, *exception: object) -> None:
        own = self._of_thread.__dict__
        own["depth"] -= 1
        if not own["depth"]:
            _restore(own["before"])
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _restore(self._of_process)


def _is_of_process(library: Any) -> bool:  # noqa: ANN401 - a controller of threadpoolctl
    if library.internal_api == "openblas":
        return bool(library.threading_layer != "openmp")
    return library.internal_api in ("blis", "flexiblas")


def _limited(libraries: Any) -> list[tuple[Any, int]]:  # noqa: ANN401
    before = [(library, library.num_threads) for library in libraries]
    for library, _ in before:
        _set(library, 1)
    return before


def _restore(before: list[tuple[Any, int]]) -> None:
    # The last first: what was limited twice, because an import came between, has its first number in the first entry.
    while before:
        _set(*before.pop())


def _set(library: Any, count: int) -> None:  # noqa: ANN401
    # Since threadpoolctl 3.8 OpenBLAS obeys the first thread alone that limits it, and leaves the others unheard.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


one_thread = _OneThread()
"""A context and a decorator below which linear algebra runs on one thread."""


def cores() -> int:
    """Count the cores that this process may use, by its affinity and the CPU quota of its container."""
    import dask.system  # a tenth of a second that few need

    return int(dask.system.CPU_COUNT)


def allowed_threads() -> int:
    """Return how many threads of this process may compute: `cores`, at most ``OMP_NUM_THREADS``, 1 in dal's workers."""
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is of nested levels
    return min(cores(), int(limit)) if limit.isdigit() and int(limit) else cores()
