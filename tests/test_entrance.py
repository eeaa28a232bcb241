"""The entrance: commands are found without what they work with, and completion and help know every one."""

import ast
import logging
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import dal
from dal import choices
from dal.cli import main
from dal.cli.cluster import workers_chosen
from dal.errors import NotInstalled
from dal.learners.presets import PRESETS
from dal.selection.strategy import STRATEGIES

PACKAGE = Path(dal.__file__).parent


def commands() -> list[str]:
    return main.list_commands(click.Context(main))


@pytest.mark.parametrize("name", commands())
def test_every_command_is_where_the_table_says(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str()


def test_the_names_that_help_lists_are_those_that_mean_something() -> None:
    assert choices.STRATEGIES == STRATEGIES
    assert tuple(PRESETS) == choices.PRESETS


HEAVY = {
    *("numpy", "scipy", "pandas", "pyarrow", "sklearn", "skops", "joblib", "numba", "dask", "distributed", "dask_ml"),
    *("zarr", "sqlalchemy", "fsspec", "bokeh", "fastapi", "uvicorn", "pydantic", "PIL", "rich"),
}
RUN = f"""
import sys
from dal.cli import main
if __name__ == "__main__":
    try:
        main(prog_name="dal")
    finally:
        print("imported:", *sorted({HEAVY!r} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a pool and a campaign on it that has a batch."""
    directory = tmp_path_factory.mktemp("entrance")
    X = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    dal.Pool.build(X, directory / "pool.zarr")
    dal.Campaign.create(directory / "campaign", directory / "pool.zarr", ["ham", "spam"], batch_size=5).next_batch()
    return directory


@pytest.mark.parametrize(
    ("command", "may"),
    [
        ("--help", set[str]()),
        ("label --help", set[str]()),
        ("pool info pool.zarr", {"numpy", "zarr", "fsspec"}),
        ("status campaign", {"numpy", "sqlalchemy"}),
        ("pause campaign", {"numpy", "sqlalchemy"}),
        ("label export campaign batch.csv", {"numpy", "sqlalchemy", "zarr", "fsspec", "pyarrow"}),
    ],
)
def test_a_command_imports_what_it_uses(command: str, may: set[str], started: Path) -> None:
    words = [sys.executable, "-c", RUN, *command.split()]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(words, cwd=started, env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()[-1].split()[1:]) <= may


def test_completion_offers_commands_and_choices_and_imports_nothing_heavy() -> None:
    for words, offered in (("dal label im", "import"), ("dal init c p --vote ", "dawid_skene")):
        environment = {
            "PYTHONPATH": str(PACKAGE.parent),
            "_DAL_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUN], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert f"plain,{offered}" in done.stdout.splitlines()
        assert done.stdout.splitlines()[-1] == "imported:"


def of_the_process() -> dict[str, object]:
    root = logging.getLogger()
    return {
        "handlers": root.handlers[:],
        "levels": (root.level, logging.getLogger("distributed").level),
        "signals": [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)],
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "directory": Path.cwd(),
        "path": sys.path[:],
    }


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("pool", "build", "X.npy", "pool.zarr"), 0),
        (("init", "c", "pool.zarr", "--classes", "ham,spam", "--estimator", "mine:missing"), 1),
        (("status", "nowhere"), 1),
        (("status", "--no-such-option"), 2),
    ],
)
def test_a_command_leaves_the_process_as_it_was(
    command: tuple[str, ...], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("X.npy", np.arange(40, dtype=np.float32).reshape(10, 4))
    before = of_the_process()
    for _ in range(2):
        assert CliRunner().invoke(main, [*command, *(["--overwrite"] if status == 0 else [])]).exit_code == status
    assert of_the_process() == before


def test_what_is_logged_is_shown_during_a_command_and_kept_from_no_one_after_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @click.command()
    def logging_() -> None:
        logging.getLogger("dal").warning("a bucket of frogs")
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "get_command", lambda *_: logging_)
    shown = CliRunner().invoke(main, ["logging"])
    assert shown.exit_code == 130
    assert "a bucket of frogs" in shown.output
    assert caplog.text == ""
    logging.getLogger("dal").warning("a pond of frogs")
    assert "a pond of frogs" in caplog.text


def test_dask_logs_nothing_while_a_command_uses_a_cluster() -> None:
    log = logging.getLogger("distributed")
    before = log.level
    with workers_chosen(None, 1) as chosen:
        assert chosen.client is not None
        assert log.getEffectiveLevel() == logging.CRITICAL
    assert log.level == before


LAZY = [path for path in sorted(PACKAGE.rglob("__init__.py")) if "names_of(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_what_a_package_imports_when_asked_is_what_type_checkers_see(path: Path) -> None:
    package = import_module(".".join(["dal", *path.parent.relative_to(PACKAGE).parts]))
    branch = next(node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
    }
    call = branch.orelse[0]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    assert eval(ast.unparse(call.value.args[1])) == seen
    offered = {name for names in seen.values() for name in names}
    assert offered <= set(package.__all__)
    submodules = {each.stem for each in path.parent.glob("*.py")} | {each.name for each in path.parent.iterdir()}
    assert not offered & submodules, "importing the submodule would put it in the name's place"
    for home, names in seen.items():
        for name in names:
            assert getattr(package, name) is getattr(import_module(str(home)), name)


def test_a_name_that_a_package_does_not_offer_is_named() -> None:
    with pytest.raises(AttributeError, match="Scanner"):
        _ = dal.Scanner  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("package", "name", "missing"), [("figures", "THEMES", "bokeh"), ("web", "make_server", "uvicorn")]
)
def test_a_package_that_is_not_installed_is_named_with_the_line_that_installs_it(
    package: str, name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Importing it again puts another module into the package: the first one goes back, for the tests that follow.
    monkeypatch.setattr(dal, package, import_module(f"dal.{package}"))
    for module in [each for each in sys.modules if each.split(".")[0] == missing or each.startswith(f"dal.{package}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(NotInstalled, match=rf"{missing}.*\[web\]"):
        getattr(import_module(f"dal.{package}"), name)
