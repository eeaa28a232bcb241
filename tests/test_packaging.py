"""What is handed out: its name, its version, and what an installed copy holds."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from PIL import Image

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
    assert {"numpy", "zarr", "obstore", "psycopg"} <= {each.partition("==")[0] for each in constraints}
    with pytest.raises(ValueError, match="numpy<3"):
        list(lowest({**PROJECT, "dependencies": ["numpy<3"]}))


def closure(needs: list[str]) -> set[str]:
    """Return the distributions that a plain install consists of, of those that are installed here."""
    found: set[tuple[str, str]] = set()
    left = [Requirement(need) for need in needs]
    while left:
        need = left.pop()
        for extra in ("", *need.extras):
            if (need.name, extra) in found:
                continue
            found.add((need.name, extra))
            more = map(Requirement, distribution(need.name).requires or ())
            left += [each for each in more if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {re.sub(r"[-_.]+", "-", name).lower() for name, _ in found}


PLAIN = closure(PROJECT["dependencies"])
OF_EXTRAS = ("web", "figures", "pool/pictures.py", "learners/_torch.py")
"""Parts of dal that import packages of an extra; their importers name it where one is missing."""


def imported_at_once(path: Path) -> Iterator[str]:
    """Yield the packages that a module imports when it is imported."""
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        for node in ast.iter_child_nodes(left.pop()):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).partition(".")[0]
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                left += node.orelse
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                left.append(node)


def test_a_plain_install_has_whatever_is_imported_at_once() -> None:
    assert not PLAIN & {"numba", "pandas", "pillow", "dask-ml", "bokeh", "fastapi"}
    homes = packages_distributions()
    for path in sorted((ROOT / "dal").rglob("*.py")):
        if path.relative_to(ROOT / "dal").as_posix().startswith(OF_EXTRAS):
            continue
        for name in set(imported_at_once(path)) - sys.stdlib_module_names - {"dal"}:
            assert PLAIN & {re.sub(r"[-_.]+", "-", home).lower() for home in homes[name]}, f"{path} imports {name}"


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
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":  # it has an environment of its own
            raise
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
    run("dal", "init", "campaign", "pool.zarr", "--classes", "ham,spam", "--batch-size", 10)
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


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what a plain install consists of, and nothing else; its packages are links."""
    place = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, capture_output=True)
    [own] = place.glob("lib/python*/site-packages")
    for name in PLAIN:
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (own / top).exists():
                (own / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    return place


CAMPAIGN = """
import csv, json, sys
from pathlib import Path
from click.testing import CliRunner
from dal.cli import main

def run(*words):
    result = CliRunner().invoke(main, words)
    print(json.dumps([words[0], result.exit_code, result.output]))
    return result.output

run("pool", "build", "mails.csv", "pool.zarr", "--ids", "id", "--features", "a,b,c", "--display", "subject")
run("pool", "info", "pool.zarr")
for learner in ("logistic", "forest"):
    settings = ["--classes", "ham,spam", "--batch-size", "20", "--estimator", learner, "--random-state", "3"]
    run("init", learner, "pool.zarr", *settings)
    for number in (1, 2, 3):
        run("next", learner, "--workers", "0")
        batch = Path(learner, f"batch-{number:04d}.csv")
        with batch.open(newline="") as file:
            lines = list(csv.DictReader(file))
        for line in lines:
            line["label"] = line["subject"].split()[0]
        with batch.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        run("label", "import", learner, str(batch))
    run("status", learner)
    run("label", "export", learner, f"{learner}.csv", "--labels")
for words in json.loads(sys.argv[1]):
    run(*words)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_plain_install_plays_a_campaign_and_chooses_the_same_batches(plain: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2_000, 3))
    lines = [f"m{at},{a:.6f},{b:.6f},{c:.6f},{'spam' if a + b > 0 else 'ham'} {at}" for at, (a, b, c) in enumerate(X)]
    (tmp_path / "folder").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "folder" / "one.png")
    refused = [("serve", "forest"), ("pool", "build", "../folder", "pictures.zarr")]
    said = {}
    for name, python in (("plain", plain / "bin" / "python"), ("all", Path(sys.executable))):
        place = tmp_path / name
        place.mkdir()
        (place / "mails.csv").write_text("\n".join(["id,a,b,c,subject", *lines]))
        where = {"PYTHONPATH": str(ROOT)} if name == "all" else {}
        ends = json.dumps(refused if name == "plain" else [])
        done = in_it(python.parent.parent, place, "python", "-W", "error", "-c", CAMPAIGN, ends, **where)
        said[name] = [each for each in map(json.loads, done.splitlines()) if each[1] != 0]
    assert said["all"] == []
    for (command, status, message), extra in zip(said["plain"], ("web", "images"), strict=True):
        assert (command, status) == ({"web": "serve", "images": "pool"}[extra], 1)
        assert install_line(extra) in message
    for learner in ("logistic", "forest"):
        for number in (1, 2, 3):
            batch = f"{learner}/batch-{number:04d}.csv"
            assert (tmp_path / "plain" / batch).read_text() == (tmp_path / "all" / batch).read_text()
        with (tmp_path / "plain" / f"{learner}.csv").open(newline="") as file:
            labels = list(csv.DictReader(file))
        assert len(labels) == 60
        assert all(line["label"] == line["subject"].split()[0] for line in labels)
