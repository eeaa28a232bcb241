"""Names that a package offers and imports when they are asked for (PEP 562)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from dal._distribution import needs


def names_of(package: str, homes: Mapping[str, Sequence[str]], extra: str = "") -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names lie in other modules, and list them in its ``dir``.

    No name may be that of a submodule: importing the submodule would put it in the name's place.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    homes : mapping from str to sequence of str
        The names that each module holds.
    extra : str
        The extra of the distribution that installs what the modules import, where a plain install does not.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    module = sys.modules[package]
    # An interpreter completes by this list.
    vars(module)["__dir__"] = lambda: sorted({*vars(module), *home_of})

    def import_name(name: str) -> Any:  # noqa: ANN401 - whatever has the name
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        with needs(extra, package) if extra else nullcontext():
            value = getattr(import_module(home_of[name]), name)
        setattr(module, name, value)
        return value

    return import_name
