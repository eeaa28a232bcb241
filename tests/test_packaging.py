"""What is handed out: its name, its version, and what an installed copy holds."""

import tomllib
from pathlib import Path

from click.testing import CliRunner

import dal
from dal._distribution import NAME, __version__, install_line
from dal.cli import main

ROOT = Path(dal.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_name_and_the_version_are_written_down_once() -> None:
    assert PROJECT["name"] == NAME
    assert PROJECT["dynamic"] == ["version"]
    assert dal.__version__ == __version__
    shown = CliRunner().invoke(main, ["--version"])
    assert shown.exit_code == 0
    assert __version__ in shown.output.split()


def test_an_extra_refers_to_this_distribution_and_is_installed_by_its_name() -> None:
    own = [need for needs in PROJECT["optional-dependencies"].values() for need in needs if need.startswith("dal")]
    assert all(need.startswith(f"{NAME}[") for need in own)
    assert install_line("postgres") == "pip install 'dal-learn[postgres]'"
