"""Check the quick-start notebook: what it comes with is the README's, and it runs in a fresh clone."""

import json
import re

import pytest
from support.common import REPOSITORY
from support.notebook import executed, pictures, printed

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def _percentages(text: str) -> list[str]:
    return re.findall(r"top-\d +([\d.]+)%", text)


def test_notebook_comes_with_the_quick_starts_results():
    content = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(content)
    assert "the quick start's model\n" in printed(notebook)
    assert pictures(notebook) == 2
    assert not re.search(r'"stderr"|/(home|tmp|root|Users)/', content)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    scores = dict(re.findall(r"^\| (unseen vendor, .+ \| top-\d) \|.+\| ([\d.]+) % \|$", readme, re.M))
    wanted = [
        "unseen vendor, 1,412 labels | top-1",
        "unseen vendor, 1,412 labels | top-5",
        "unseen vendor, 8 groups | top-1",
    ]
    assert _percentages(printed(notebook))[:3] == [scores[line] for line in wanted]


def test_notebook_links_lead_somewhere():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", text)
    assert links
    assert all((NOTEBOOK.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_notebook_runs_in_a_fresh_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = executed(NOTEBOOK, tmp_path)
    assert "a model of a dozen steps:\nTrain Epoch: 0" in printed(notebook)
    assert len(_percentages(printed(notebook))) == 4
    assert pictures(notebook) == 2
