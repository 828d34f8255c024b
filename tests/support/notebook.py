"""Run notebooks of examples/ as a user does, and read what their cells gave."""

from pathlib import Path

import pytest
from support.common import EMOJI


def printed(notebook) -> str:
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")


def pictures(notebook) -> int:
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


def executed(path: Path, place: Path):
    """Run a notebook in a folder of ``place`` with the emoji beside it, and return it; skip without the dev extra."""
    nbformat = pytest.importorskip("nbformat", reason="the dev extra")
    nbclient = pytest.importorskip("nbclient", reason="the dev extra")
    pytest.importorskip("ipykernel", reason="the dev extra")
    folder = place / "examples"
    folder.mkdir()
    (folder / "emoji").symlink_to(EMOJI.parent)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook
