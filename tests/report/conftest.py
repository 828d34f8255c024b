"""Write results and a report on them, for several files."""

from pathlib import Path

import pytest
from support.report_results import MATCH, save_nothing, write_results

from diffclip_openclip.report.command import report


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_results(root)
    return root


@pytest.fixture(scope="session")
def output(results, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    lines = report(results, folder, match=MATCH)
    assert lines == [f"{folder / 'index.html'}: 9 tables, 5 figures"]
    return folder


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Let reports have empty figures, which take no time."""
    monkeypatch.setattr("diffclip_openclip.report.command.save_figures", save_nothing)
