"""examples/attention.ipynb comes with the quick start's results, and runs in a fresh clone."""

import json
import re

import pytest
from support.common import REPOSITORY
from support.notebook import executed, pictures, printed

NOTEBOOK = REPOSITORY / "examples" / "attention.ipynb"


def test_notebook_comes_with_results_of_the_quick_start():
    content = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(content)
    texts = [output["text"] for cell in notebook["cells"] for output in cell.get("outputs", ()) if "text" in output]
    assert "the quick start's models\n" in ["".join(text) for text in texts]
    assert pictures(notebook) == 6
    assert not any(output.get("name") == "stderr" for cell in notebook["cells"] for output in cell.get("outputs", ()))
    assert not re.search(r"/(home|tmp|root|Users)/", content)


@pytest.mark.slow
def test_notebook_runs_in_a_fresh_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = executed(NOTEBOOK, tmp_path)
    assert "models that know twelve emoji" in printed(notebook)
    assert "tower  layer   lambda" in printed(notebook)
    assert pictures(notebook) == 6
