"""Notebooks run from a clean kernel, and what is saved in them is what they really show."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_saved_outputs_are_current(path, monkeypatch):
    """Would catch an API that a notebook lags behind, and outputs of another version."""
    monkeypatch.delenv("MPLBACKEND")  # the kernel's own shows pictures
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)  # the saved numbers are those of users' programs
    notebook = nbformat.read(path, as_version=4)
    saved = [outputs_of(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert any(saved)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute()
    assert saved == [outputs_of(cell) for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(cell):
    """The text of a cell's outputs; of a picture only that there is one.

    Progress, on standard error, is never the same twice.
    """
    return [
        (output.output_type, "picture" if "image/png" in data else data.get("text/plain"))
        for output in cell.outputs
        if output.get("name") != "stderr"
        for data in [output.get("data", {"text/plain": output.get("text")})]
    ]
