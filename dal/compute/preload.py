"""Import what a scan needs before a worker takes part: ``dask worker --preload dal.compute.preload``.

Without it the first task, or the first thing that a worker is sent, imports it in the worker's event loop, which then
answers nobody for seconds, on a busy machine for tens of seconds.
"""

import importlib
import threading

MODULES = ("sklearn.linear_model", "dal.learners.models", "dal.scan.worker.spans")
"""What every scan needs, and nothing else."""


def dask_setup(_: object) -> None:
    """Import all of it; Dask calls this when a scheduler or worker starts."""
    for name in MODULES:
        importlib.import_module(name)


class _Imports(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="dal-imports", daemon=True)
        self.trouble = ""

    def run(self) -> None:
        try:
            dask_setup(None)
        except Exception as error:  # any error of any package: the person at the coordinator has to read it
            self.trouble = f"{type(error).__name__}: {error}"


_lock = threading.Lock()
_imports: list[_Imports] = []


def imported() -> bool | str:
    """Begin the imports in a thread of their own; return whether they are done, or what went wrong.

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
        if imports.is_alive():
            imports.join(0.05)  # where all is imported already, the first call says so
        if imports.is_alive():
            return False
        if imports.trouble:
            _imports.clear()
        return imports.trouble or True
