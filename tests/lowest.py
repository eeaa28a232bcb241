"""Print constraints that hold all dependencies at their lower bounds: ``python lowest.py pyproject.toml``."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

_BOUNDED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?>=(?P<lowest>[0-9.]+)$")


def lowest(project: dict[str, object], without: tuple[str, ...] = ("test", "test-torch", "notebooks")) -> Iterator[str]:
    """Give a constraint for each dependency of a user.

    Parameters
    ----------
    project
        The table ``[project]`` of ``pyproject.toml``.
    without
        Extras that are tools of the tests: these are installed in their newest versions.

    Raises
    ------
    ValueError
        If a dependency has no lower bound, or more than that.
    """
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    needs = [*project["dependencies"], *(need for extra in extras if extra not in without for need in extras[extra])]  # type: ignore[misc]
    for need in sorted(set(needs)):
        if need.startswith(f"{project['name']}["):
            continue
        if (bounded := _BOUNDED.match(need)) is None:
            raise ValueError(
                f"a dependency must read name>=version, got {need!r}; give it a lower bound in pyproject.toml"
            )
        yield f"{bounded['name']}=={bounded['lowest']}"


if __name__ == "__main__":
    print("\n".join(lowest(tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"])))
