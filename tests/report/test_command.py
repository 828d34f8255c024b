"""``diffclip report`` refuses wrong options, and leaves whole reports or nothing."""

import shutil
import sys

import pytest
from support.report_results import CLIP, DIFF

from diffclip_openclip.report.command import report


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"match": ["run"]}, "is not of the form MODEL=ROW"),
        ({"match": ["run=CC12M/DiffCLIP"]}, f"--match: there are no results of 'run'; .* {CLIP}, {DIFF}"),
        ({"match": [f"{DIFF}=CC12M/CLOP"]}, "the paper has no row 'CC12M/CLOP'; its rows are CC3M/CLIP"),
        ({"match": [f"{DIFF}=CC12M/CLIP", f"{DIFF}=CC3M/CLIP"]}, "twice: CC12M/CLIP and CC3M/CLIP"),
        ({"baseline": "run"}, "--baseline: there are no results of 'run'"),
        ({"paper_only": True}, "--paper-only shows no results"),
        ({"group": ["DiffCLIP"]}, r"--group 'DiffCLIP' is not of the form NAME=PATTERN"),
        ({"group": ["D=Diff*"]}, f"--group 'D' has 1 models, and takes at least two; there are {CLIP}, {DIFF}"),
        ({"group": ["D=*", "C=CLIP*", "C=*"]}, f"{CLIP!r} is in two groups, 'D' and 'C'"),
    ],
)
def test_wrong_options_leave_nothing(results, tmp_path, options, expected):
    with pytest.raises(ValueError, match=expected):
        report(results, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_neither_results_nor_the_paper_alone(tmp_path):
    with pytest.raises(ValueError, match="or --paper-only"):
        report(None, tmp_path / "out")


def test_an_old_report_stays_unless_it_is_to_be_replaced(results, tmp_path, monkeypatch, undrawn):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("old")
    with pytest.raises(FileExistsError, match="--overwrite"):
        report(results, tmp_path / "out")

    def fail(**_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("diffclip_openclip.report.command.make_page", fail)
        with pytest.raises(OSError, match="disk full"):
            report(results, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "index.html"]
    assert (tmp_path / "out" / "index.html").read_text() == "old"
    report(results, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures", "index.html", "tables"]


def test_a_report_takes_the_place_of_nothing_else(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "RES")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"RES is not just a report: it has .+ in it"):
        report(copy, copy, overwrite=True)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("package", ["matplotlib", "scipy"])
def test_without_a_package(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"diffclip report needs {package} .* pip install 'diffclip-openclip\[plot\]'"
    ):
        report(None, tmp_path / "out", paper_only=True)
    assert list(tmp_path.iterdir()) == []
