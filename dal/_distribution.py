"""The distribution: its name on the package index, where `dal` is somebody else's, and its version."""

from collections.abc import Iterator
from contextlib import contextmanager

from dal.errors import NotInstalled

NAME = "dal-learn"
__version__ = "0.1.0"


def install_line(*extras: str) -> str:
    """Return the command that installs this distribution with extras.

    >>> install_line("remote", "postgres")
    "pip install 'dal-learn[remote,postgres]'"
    """
    return f"pip install '{NAME}[{','.join(extras)}]'"


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Name the extra to install where an import in this context finds a package missing.

    Parameters
    ----------
    extra : str
        Name of the extra.
    what : str
        What needs it, as the error says it.

    Raises
    ------
    NotInstalled
        A package of others was not found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "dal"):
            raise
        raise NotInstalled(f"{what} needs {package}, which is not installed; {install_line(extra)}") from error
