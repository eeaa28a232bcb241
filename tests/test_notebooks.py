"""The guided tours run from the first cell to the last, and are stored without what they showed somebody once."""

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_TORCH = {"03-texts-and-pictures"}
"""Notebooks that need torch and models that packages carry."""


class OwnKernel(AsyncKernelManager):
    """Of the kernels that this machine may know, the one of the interpreter that runs the test."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def names(path: Path) -> str:
    return path.stem


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [pytest.param(each, marks=[pytest.mark.torch] * (each.stem in OF_TORCH)) for each in NOTEBOOKS], ids=names
)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem in OF_TORCH:
        pytest.importorskip("torch", reason="make test-torch runs it")
    # dal need not be installed; and files that a notebook makes beside itself would show up in tmp_path.
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", found)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_manager_class=OwnKernel, timeout=100).execute(cwd=str(tmp_path))
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert [each.name for each in tmp_path.iterdir() if each.name != "ipython"] == []
