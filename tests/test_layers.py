"""The house: imports point down only, and the public names are pinned."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import dal
from dal.scan import Journal, sample_codebook

PACKAGE = Path(dal.__file__).parent

# From the bottom up. A module may import from any level below its own; within a level only where `SIDEWAYS` says so.
LEVELS = [
    {"errors", "_files", "_distribution", "_lazy", "_threads", "_weighing", "locks", "choices", "plugins"},
    {"scores", "selection", "evidence", "texts", "classes"},
    {"stores"},
    {"places"},
    {"pool", "encoders", "learners", "compute", "progress", "metrics"},
    {"campaign"},
    {"scan"},
    {"map"},
    {"figures"},
    {"loop", "exchange", "doctor"},
    {"replay", "testing"},
    {"explorer"},
    {"demo", "web"},
    {"cli"},
    {"__main__"},
]
# The pure level is one page of mathematics; it may refer to itself, without cycles.
SIDEWAYS = {
    ("_distribution", "errors"),
    ("_files", "errors"),
    ("_lazy", "_distribution"),
    ("plugins", "errors"),
    ("selection", "scores"),
    ("evidence", "selection"),
    ("evidence", "classes"),
    ("classes", "texts"),
}
PURE_MAY_IMPORT = {
    "ast", "collections", "dataclasses", "datetime", "decimal", "functools", "hashlib", "heapq", "itertools", "json",
    "math", "re", "statistics", "typing", "unicodedata",
    "numba", "numpy", "scipy", "sklearn", "dal",
}  # fmt: skip


def modules() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if top != "__init__":
            found.setdefault(top, []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """Everything a file imports, wherever in the file, as dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def inner(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("dal.")}


LEVEL_OF = {module: level for level, group in enumerate(LEVELS) for module in group}


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(LEVEL_OF)


@pytest.mark.parametrize("module", sorted(LEVEL_OF))
def test_imports_point_down(module: str) -> None:
    for path in modules()[module]:
        for other in inner(path) - {module}:
            if other not in LEVEL_OF:
                continue  # a name that dal/__init__ exports is caught below
            down = LEVEL_OF[other] < LEVEL_OF[module]
            assert down or (module, other) in SIDEWAYS, f"{path.name} imports dal.{other}, which is not below {module}"


@pytest.mark.parametrize("module", sorted(LEVEL_OF))
def test_no_module_imports_the_package_itself(module: str) -> None:
    for path in modules()[module]:
        for name in imported(path):
            parts = name.split(".")
            inside = parts[0] != "dal" or (len(parts) > 1 and parts[1] in LEVEL_OF)
            assert inside or name == "dal", f"{path.name} imports {name} through dal/__init__"
            assert not name.startswith("cluster"), f"{path.name} imports the recipes"


@pytest.mark.parametrize("module", sorted(LEVELS[1]))
def test_the_pure_modules_touch_no_clock_file_or_network(module: str) -> None:
    for path in modules()[module]:
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= PURE_MAY_IMPORT, f"{path.name} imports {roots - PURE_MAY_IMPORT}"


def test_the_loop_as_a_value_is_pure() -> None:
    assert {name for name in imported(PACKAGE / "loop" / "actions.py") if name.startswith("dal")} <= {
        "dal.evidence.stopping",
        "dal.evidence.stopping.Verdict",
        "dal.campaign.schema",
        "dal.campaign.schema.Step",
    }
    roots = {name.split(".")[0] for name in imported(PACKAGE / "loop" / "actions.py")}
    assert roots <= PURE_MAY_IMPORT


def test_what_runs_on_a_worker_knows_nothing_of_the_coordinator() -> None:
    """The scan's worker side imports the pure modules beside it alone."""
    for path in sorted((PACKAGE / "scan" / "worker").glob("*.py")):
        beside = {name.split(".")[2] for name in imported(path) if name.startswith("dal.scan.")}
        assert beside <= {"worker", "plan", "merge"}, f"{path.name} imports {beside}"


def test_private_names_of_zarr_and_scikit_learn_are_used_in_one_module_each() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    for private, place in {
        "zarr.core": "pool/_zarr.py",
        "encode_chunk_key": "pool/_zarr.py",
        "_predictors": "learners/_sklearn.py",
        "_baseline_prediction": "learners/_sklearn.py",
    }.items():
        assert {path for path, found in text.items() if private in found} == {PACKAGE / place}, private


def test_dask_ml_is_imported_in_one_place() -> None:
    users = {path.name for paths in modules().values() for path in paths if any("dask_ml" in n for n in imported(path))}
    assert users == {"learner.py"}


def test_the_public_names_are_pinned() -> None:
    assert sorted(dal.__all__) == [
        "Batch",
        "Campaign",
        "Labelling",
        "MaxLabels",
        "Measuring",
        "Pool",
        "Scanning",
        "Stopped",
        "Storage",
        "Strategy",
        "TestSet",
        "compare",
        "simulate",
    ]
    for name in dal.__all__:
        assert getattr(dal, name) is not None
    public = {name for name, value in vars(dal).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public - {"TYPE_CHECKING", "names_of"} == set(dal.__all__) - set(modules())


LAZY = sorted(path for path in PACKAGE.rglob("__init__.py") if "names_of(" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_names_that_are_imported_when_asked_for_are_those_that_type_checkers_see(path: Path) -> None:
    """A lazy name stands in three lists: the imports for type checkers, the mapping, and ``__all__``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (both,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: {alias.name for alias in node.names} for node in both.body if isinstance(node, ast.ImportFrom)}
    (mapping,) = (node for node in ast.walk(both) if isinstance(node, ast.Dict))
    assert {home: set(names) for home, names in ast.literal_eval(mapping).items()} == seen
    package = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
    everything = set().union(*seen.values())
    assert everything <= set(dir(package))
    assert everything <= set(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


def test_no_public_name_hides_a_module() -> None:
    """What a module holds is found below its name: a function of the name would hide it."""
    for name in set(modules()) & set(vars(dal)):
        assert inspect.ismodule(getattr(dal, name)), f"dal.{name} is no module"
    assert dal.scan.Journal is Journal
    assert dal.scan.sample_codebook is sample_codebook


@pytest.mark.parametrize("name", sorted(dal.__all__))
def test_every_public_name_is_documented(name: str) -> None:
    documentation = inspect.getdoc(getattr(dal, name))
    assert documentation
    assert documentation[0].isupper()
