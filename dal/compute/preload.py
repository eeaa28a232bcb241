"""Import what a scan needs before a worker takes part: ``dask worker --preload dal.compute.preload``.

Without it the first task, or the first thing that a worker is sent, imports it in the worker's event loop, which then
answers nobody for seconds, on a busy machine for tens of seconds.
"""

import asyncio
import importlib
import threading
from concurrent.futures import Future

MODULES = ("sklearn.linear_model", "dal.learners.models", "dal.scan.worker.spans")
"""What every scan needs, and nothing else."""


def dask_setup(_: object) -> None:
    """Import all of it; Dask calls this when a scheduler or worker starts."""
    for name in MODULES:
        importlib.import_module(name)


class _Imports(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="dal-imports", daemon=True)
        self.trouble: Future[str] = Future()

    def run(self) -> None:
        try:
            dask_setup(None)
        except Exception as error:  # any error of any package: the person at the coordinator has to read it
            self.trouble.set_result(f"{type(error).__name__}: {error}")
        else:
            self.trouble.set_result("")


_lock = threading.Lock()
_imports: list[_Imports] = []


async def imported(seconds: float) -> bool | str:
    """Begin the imports in a thread; return whether they are done in time, or their error.

    Parameters
    ----------
    seconds : float
        Time to wait for them.

    Returns
    -------
    bool or str
        The text of an error; the next call tries again.
    """
    with _lock:
        if not _imports:
            _imports.append(_Imports())
            _imports[0].start()
        imports = _imports[0]
    ended, _ = await asyncio.wait({asyncio.wrap_future(imports.trouble)}, timeout=seconds)
    if not ended:
        return False
    trouble = imports.trouble.result()
    with _lock:
        if trouble and imports in _imports:
            _imports.remove(imports)
    return trouble or True
