"""Build the API reference from the docstrings: ``python -W error docs/api.py FOLDER``, or ``make docs``."""

import sys
import types
from importlib.util import find_spec
from pathlib import Path

NEEDS_TORCH = "dal.learners._torch"
MODULES = [
    "dal",
    "dal.campaign",
    "dal.encoders",
    "dal.errors",
    "dal.evidence",
    "dal.exchange",
    "dal.explorer",
    "dal.figures",
    "dal.learners",
    f"!{NEEDS_TORCH}",  # private
    "dal.map",
    "dal.places",
    "dal.pool",
    "dal.replay",
    "dal.scan",
    "dal.scores",
    "dal.selection",
]
"""The rooms of the library.

The command line and the pages have their help and their guides.
"""


def build(folder: Path) -> None:
    """Write the reference into a folder."""
    import pdoc  # of the extra `docs`; the tests collect this file also where it is missing

    if find_spec("torch") is None:  # annotations name classes of this module
        stub = types.ModuleType(NEEDS_TORCH)
        stub.__dict__["__getattr__"] = lambda _: object
        sys.modules[NEEDS_TORCH] = stub
    pdoc.render.configure(docformat="numpy", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    print(f"Open {sys.argv[1]}/index.html in a browser.")  # noqa: T201
