"""What is handed out: its name, its version, and what an installed copy holds."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from click.testing import CliRunner

import dal
from dal._distribution import NAME, __version__, install_line
from dal.cli import main
from tests.lowest import lowest

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


def test_every_dependency_has_a_lower_bound_that_can_be_tested() -> None:
    constraints = list(lowest(PROJECT))
    assert constraints == sorted(constraints)
    assert {"numpy", "zarr", "s3fs", "psycopg"} <= {each.partition("==")[0] for each in constraints}
    with pytest.raises(ValueError, match="numpy<3"):
        list(lowest({**PROJECT, "dependencies": ["numpy<3"]}))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def built(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    [made] = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as the index would make it: out of the source distribution."""
    place = tmp_path_factory.mktemp("built")
    sdist = built(ROOT, place / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return built(place / sdist.name.removesuffix(".tar.gz"), place / "wheel", "wheel")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which the wheel is installed; its dependencies are those of the tests' own."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, capture_output=True)
    python = place / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    # The path alone: an editable install of dal that lies there is in a file that Python reads in its own folder only.
    [own] = place.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return place


def in_it(environment: Path, place: Path, *command: object, **variables: str) -> str:
    """Run a command of the environment, of which only it knows."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    run = [str(environment / "bin" / str(command[0])), *map(str, command[1:])]
    done = subprocess.run(run, cwd=place, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    held = contents(wheel)
    tracked = {path for path in (ROOT / "dal").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    about = f"dal_learn-{__version__}.dist-info"
    assert {name for name in held if not name.startswith(about)} == {str(each.relative_to(ROOT)) for each in tracked}
    assert held["dal/web/static/label.js"] == (ROOT / "dal/web/static/label.js").read_bytes()
    assert f"{about}/licenses/LICENSE" in held
    assert held == contents(built(ROOT, tmp_path / "direct", "wheel"))


ALL = """
import importlib, pkgutil, pathlib, sys, dal
assert pathlib.Path(dal.__file__).is_relative_to(sys.prefix), dal.__file__
assert pathlib.Path(dal.__file__).with_name("py.typed").exists()
modules = [each.name for each in pkgutil.walk_packages(dal.__path__, "dal.")]
for name in modules:
    importlib.import_module(name)
print(*modules)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_installed_copy_works(environment: Path, tmp_path: Path) -> None:
    run = partial(in_it, environment, tmp_path)
    assert {"dal.cli", "dal.web.app", "dal.scan.driver"} <= set(run("python", "-W", "error", "-c", ALL).split())
    for command in (("dal",), ("python", "-m", "dal")):
        assert __version__ in run(*command, "--version").split()
    assert "_DAL_COMPLETE" in run("dal", _DAL_COMPLETE="bash_source")
    np.save(tmp_path / "X.npy", np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32))
    run("dal", "pool", "build", "X.npy", "pool.zarr")
    assert "300" in run("dal", "pool", "info", "pool.zarr")
    run("dal", "init", "campaign", "pool.zarr", "--classes", "ham,spam", "--batch", 10)
    serve = [environment / "bin" / "dal", "serve", "campaign", "--port", "0"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(serve, cwd=tmp_path, env=kept, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            assert httpx.get(f"{url}api/state", timeout=30).json()["phase"] == "waiting"
            for path in (ROOT / "dal" / "web" / "static").glob("*.[jcs][sv]*"):
                assert httpx.get(f"{url}static/{path.name}", timeout=30).content == path.read_bytes()
        finally:
            server.terminate()
