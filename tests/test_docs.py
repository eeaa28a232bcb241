"""README and guides: every block runs as it is written, every command and link that they name is there.

Doctests (``>>>``) run as such, see ``testpaths`` in pyproject.toml; the notebooks run in ``test_notebooks.py``.
"""

import csv
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import dal
from benchmarks.__main__ import main as benchmarks
from dal.campaign import CampaignStore
from dal.cli import main
from tests.conftest import missing_service

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/**/*.md")])

READ_ONLY = {
    "dal serve": "serves until it is ended; tests/test_web*.py",
    "dal run": "goes on until a criterion ends it; tests/test_standing.py. Here one round is played in its place",
    "dal label push": "needs a server; tests/test_label_studio.py",
    "dal label pull": "needs a server; tests/test_label_studio.py",
    "--scheduler": "needs the reader's own cluster; tests/test_cluster.py",
    "--database": "needs the reader's own server; tests/test_database.py",
}
"""Commands that are parsed, options and all, but not run here, each with its reason."""

ELSEWHERE = {
    "pip install": "installs; tests/test_packaging.py",
    "make": "installs, and runs this test",
}
"""Commands that are not looked at here."""

BLOCKS_ELSEWHERE = {
    ("cluster/README.md", "bash"): "tests/test_cluster.py runs them",
    ("cluster/README.md", "python"): "tests/test_cluster.py runs it",
    ("cluster/tls/README.md", "bash"): "tests/test_tls.py runs them",
    ("cluster/tls/README.md", "conf"): "tests/test_tls.py runs it",
    ("cluster/tls/README.md", "ini"): "tests/test_tls.py runs it",
    ("cluster/tls/README.md", "yaml"): "tests/test_tls.py runs it",
    ("cluster/containers/README.md", "bash"): "needs Docker; tests/test_containers.py runs all that does not",
    ("cluster/kubernetes/README.md", "bash"): "needs a cluster; tests/test_kubernetes.py runs all that does not",
    ("cluster/slurm/README.md", "bash"): "tests/test_slurm.py runs it",
    ("cluster/slurm/README.md", "python"): "needs dask-jobqueue, on which nothing here depends",
    ("cluster/ssh/README.md", "bash"): "tests/test_ssh.py runs them",
    ("cluster/ssh/README.md", "python"): "needs asyncssh, on which nothing here depends",
    ("docs/encoding.md", "bash"): "needs torch and models; tests/test_encoders_torch.py runs them",
    ("docs/labelling.md", "nginx"): "tests/test_web_faults.py runs it",
    ("docs/networks.md", "bash"): "needs torch; tests/test_deep.py runs them",
    ("docs/operations.md", "shell"): "tests/test_backup.py runs them",
    ("docs/operations.md", "yaml"): "tests/test_metrics.py reads them",
}

SHORTENED = {"dal compare": ["--seeds", "1", "--rounds", "1"]}
"""What is added to a command so that it ends in a second; the last of two options counts."""


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def starts(words: Sequence[str], pattern: str) -> bool:
    return " ".join(words).startswith(pattern) or (pattern.startswith("--") and pattern in words)


# -- the blocks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a client the same batch is chosen by the serial pass, and nothing has to be started."""

    @contextmanager
    def no_cluster(workers: int | None = None) -> Iterator[None]:
        yield None

    monkeypatch.setattr("dal.compute.local.local_cluster", no_cluster)


@pytest.fixture(scope="module")
def mails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of docs/own-data.md, its pool, and its classes."""
    folder = tmp_path_factory.mktemp("mails")
    (block,) = (each.text for each in blocks(ROOT / "docs" / "own-data.md") if each.text.startswith("# mails.py"))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        (folder / "mails.py").write_text(block)
        runpy.run_path("mails.py", run_name="__main__")
        ok("pool", "build", "mails.parquet", "pool.zarr", "--ids", "message_id", "--display", "subject,sender")
    table = pd.read_parquet(folder / "mails.parquet")
    np.save(folder / "y.npy", np.where(table["subject"] == "You won", "spam", "ham"))
    return folder


@pytest.fixture
def scene(request: pytest.FixtureRequest, mails: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that a page takes as given."""
    given = {"README.md": ["mails.parquet"], "docs/own-data.md": []}.get(request.param, ["pool.zarr", "y.npy"])
    for name in given:
        copy = shutil.copytree if (mails / name).is_dir() else shutil.copy
        copy(mails / name, tmp_path / name)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    # A page calls it python, as it is called in an environment that is active.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "of the reader's account")
    if request.param in {"docs/exchange.md", "docs/explorer.md"}:
        ok("init", "campaign", "pool.zarr", "--classes", "ham,spam", "--batch-size", "20")
    if request.param == "docs/explorer.md":
        play_a_round()
    return tmp_path


def ok(*words: str) -> str:
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, f"dal {shlex.join(words)}\n{result.output}"
    return result.output


def play_a_round() -> None:
    ok("next", "campaign")
    fill_in(Path("campaign/batch-0001.csv"))
    ok("label", "import", "campaign", "campaign/batch-0001.csv")
    ok("next", "campaign")


def fill_in(batch: Path) -> None:
    """Answer as somebody does who knows the classes."""
    classes = CampaignStore.open(Path("campaign")).settings.classes
    with batch.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = classes[row["subject"] == "You won"]
    with batch.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def run(words: list[str]) -> None:
    if any(starts(words, pattern) for pattern in ELSEWHERE):
        return
    program, *rest = words
    if program == "dal":
        if words[1:3] == ["label", "import"]:
            fill_in(Path(words[4]))
        if any(starts(words, pattern) for pattern in READ_ONLY):
            parse(main, rest)
            if words[1] == "run":
                play_a_round()
            return
        more = [option for pattern, options in SHORTENED.items() if starts(words, pattern) for option in options]
        assert ok(*rest, *more)
    elif program == "python" and rest[0].endswith(".py"):
        runpy.run_path(rest[0], run_name="__main__")
    else:
        assert program in {"python", "cp", "mkdir"}, f"{program}: run it here, or say in ELSEWHERE why not"
        command = re.sub("^python ", f"{shlex.quote(sys.executable)} ", " ".join(map(quoted, words)))
        subprocess.run(["bash", "-euc", command], check=True)


def quoted(word: str) -> str:
    return word if "*" in word else shlex.quote(word)


def parse(command: click.Command, words: list[str]) -> None:
    """Check a command's words as click does before it runs it."""
    words = list(words)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name}"
        command = found
    with command.make_context(command.name, words):
        pass


RUNNABLE = [page for page in PAGES if any(block.language in {"sh", "python"} for block in blocks(page))]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("page", "scene"),
    [(page, name_of(page)) for page in RUNNABLE if (name_of(page), "bash") not in BLOCKS_ELSEWHERE],
    indirect=["scene"],
    ids=[name_of(page) for page in RUNNABLE if (name_of(page), "bash") not in BLOCKS_ELSEWHERE],
)
def test_the_blocks_of_a_page_run(page: Path, scene: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and ">>>" not in block.text:
            named = re.match(r"# (\w+\.py)\n", block.text)
            assert named, "a block of Python is a doctest, or a file that its first line names"
            (scene / named[1]).write_text(block.text)
        elif block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    run(words)
    if name_of(page) == "docs/operations.md":  # its backup is a campaign
        assert "labels" in ok("status", "backup")


def test_every_block_has_somebody_who_runs_it() -> None:
    known = {"sh", "python"}
    left = {(name_of(page), block.language) for page in PAGES for block in blocks(page) if block.language not in known}
    assert left <= set(BLOCKS_ELSEWHERE)


# -- commands and links in the text ----------------------------------------------------------------------------------


def named_commands(page: Path) -> Iterator[tuple[click.Command, str]]:
    for program, command in (("dal", main), ("python -m benchmarks", benchmarks)):
        for text in re.findall(rf"(?<!`)`{program} ([^`]+)`", re.sub(r"\s+", " ", prose(page))):
            yield command, text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_in_the_text_exist(page: Path) -> None:
    for command, text in named_commands(page):
        words = shlex.split(text)
        while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, text
            command = found
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if re.match("--?[a-z]", word)} <= options | {"--help"}, text


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_guide_is_named_in_the_readme_or_an_index() -> None:
    named = (ROOT / "README.md").read_text() + (ROOT / "docs" / "decisions" / "README.md").read_text()
    assert [name_of(page) for page in ROOT.glob("docs/**/*.md") if page.name not in named] == []


# -- the reference ---------------------------------------------------------------------------------------------------

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|exc|obj):`~?([\w.]+)`")


def resolves(name: str, home: str) -> bool:
    """Whether a docstring's reference is a name of its module, of a class there, or a dotted name from the top."""
    module = import_module(home)
    owners = [module, *(each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == home)]
    if any(reached(owner, name.split(".")) for owner in owners):
        return True
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with suppress(ImportError):
            return reached(import_module(".".join(parts[:length])), parts[length:])
    return False


def reached(owner: object, parts: Sequence[str]) -> bool:
    for part in parts:
        if part in getattr(owner, "__annotations__", {}):
            return True
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def test_references_in_docstrings_lead_somewhere() -> None:
    stale = []
    for path in sorted((ROOT / "dal").rglob("*.py")):
        home = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        stale += [(home, name) for name in ROLE.findall(path.read_text()) if not resolves(name, home)]
    assert stale == []


@pytest.mark.slow
def test_the_reference_is_built_without_warnings(tmp_path: Path) -> None:
    if find_spec("pdoc") is None:
        missing_service("pdoc")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", str(ROOT / "docs" / "api.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    page = (tmp_path / "dal.html").read_text()
    assert [name for name in dal.__all__ if f'id="{name}"' not in page and f"{name}.html" not in page] == []
    left = {path.name: ROLE.findall(path.read_text()) for path in tmp_path.rglob("*.html")}
    assert {name: roles for name, roles in left.items() if roles} == {}
