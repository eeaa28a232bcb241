"""The distribution: its name on the package index, where `dal` is somebody else's, and its version."""

NAME = "dal-learn"
__version__ = "0.1.0"


def install_line(*extras: str) -> str:
    """Return the command that installs this distribution with extras.

    >>> install_line("remote", "postgres")
    "pip install 'dal-learn[remote,postgres]'"
    """
    return f"pip install '{NAME}[{','.join(extras)}]'"
