"""Write results and a report on them, for several files."""

from pathlib import Path

import pytest
from support.report_results import MATCH, write_results

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
    assert lines == [
        "In no table, as the paper does not have them: emoji.",
        f"{folder / 'index.html'}: 8 tables, 4 figures",
    ]
    return folder
