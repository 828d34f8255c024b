"""The paper's numbers are transcribed right, and shown by ``diffclip report --paper-only``."""

import csv
import re

import pytest
from support.report_results import save_nothing

from diffclip_openclip.data.catalog import MMVP_PAPER_PATTERNS
from diffclip_openclip.report.command import report
from diffclip_openclip.report.comparison import paper_entries
from diffclip_openclip.report.paper import find_row, load_paper

# lines of the paper's tables, as its text has them; a tab stands between cells
TABLE_1 = """\
CC3M	CLIP	72.5	58.7	61.0	85.8	54.1	35.7	83.5	63.4	59.1	63.8
CC3M	DiffCLIP	76.2 (+3.7)	60.2 (+1.5)	62.2 (+1.2)	86.6 (+0.8)	56.2 (+2.1)	34.6 (-1.1)	83.9 (+0.4)	63.7 (+0.3)	59.4 (+0.3)	64.8 (+1.0)
CC12M	CLIP	88.3	71.2	79.5	92.6	68.3	48.8	92.0	74.7	77.5	77.0
CC12M	DiffCLIP	89.5 (+1.2)	71.8 (+0.6)	83.0 (+3.5)	93.5 (+0.9)	69.4 (+1.1)	46.4 (-2.4)	90.7 (-1.3)	73.3 (-1.4)	77.7 (+0.2)	77.3 (+0.3)
CC3M	CLIP	90.4	72.9	69.6	92.5	91.8	44.6	63.4	72.8	67.0	73.9
CC3M	DiffCLIP	91.6 (+1.2)	73.2 (+0.3)	71.6 (+2.0)	92.9 (+0.4)	92.8 (+1.0)	45.4 (+0.8)	62.4 (-1.0)	73.5 (+0.7)	68.3 (+1.3)	74.6 (+0.7)
CC12M	CLIP	97.4	81.9	86.3	96.9	96.5	56.1	81.3	85.1	86.0	85.3
CC12M	DiffCLIP	97.6 (+0.2)	82.2 (+0.3)	88.2 (+1.9)	97.3 (+0.4)	96.8 (+0.3)	55.2 (-0.9)	80.3 (-1.0)	83.3 (-1.8)	87.5 (+1.5)	85.4 (+0.1)
"""  # noqa: E501  the paper's own lines

TABLE_2 = """\
CC3M	CLIP	31.8	35.4	19.4	28.9	43.4	46.2	25.4	38.3	13.6
CC3M	DiffCLIP	32.9 (+1.1)	36.5 (+1.1)	20.9 (+1.5)	30.1 (+1.2)	44.7 (+1.3)	47.8 (+1.6)	27.6 (+2.2)	40.1 (+1.8)	14.4 (+0.8)
CC12M	CLIP	62.5	62.1	41.3	55.3	76.8	77.7	53.8	69.4	31.8
CC12M	DiffCLIP	62.2 (-0.3)	61.5 (-0.6)	42.3 (+1.0)	55.3 (+0.0)	77.4 (+0.6)	77.4 (-0.3)	55.5 (+1.7)	70.1 (+0.7)	33.8 (+2.0)
"""  # noqa: E501  the paper's own lines

TABLE_3 = """\
Random	50.14	50.07	98.21	50.41 (+0.27)	50.21 (+0.14)	98.56 (+0.35)
Popular	50.27	50.13	99.33	50.27 (+0.00)	50.13 (+0.00)	99.47 (+0.14)
Adversarial	50.17	50.08	99.33	50.20 (+0.03)	50.10 (+0.02)	99.47 (+0.14)
"""


@pytest.fixture(scope="module")
def paper():
    return paper_entries(load_paper())


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffclip_openclip.report.command.save_figures", save_nothing)
        report(None, folder, paper_only=True)
    return folder


def cells(markdown: str) -> list[list[str]]:
    """Return the rows of a Markdown table without header, rule and the titles of blocks."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return [row for row in rows[2:] if not row[0].startswith("**")]


def printed(cell: str) -> str:
    """Return a cell as the paper prints it, without the interval and the mark that are ours."""
    return re.sub(r" ±[\d.]+| ns", "", cell)


@pytest.mark.parametrize(("name", "lines"), [("table1", TABLE_1), ("table2", TABLE_2)])
def test_tables_are_the_papers(output, name, lines):
    rows = cells((output / "tables" / f"{name}.md").read_text())
    assert [[row[0].removeprefix("paper, "), *map(printed, row[1:])] for row in rows] == [
        line.split("\t") for line in lines.splitlines()
    ]


def test_table_3_has_the_models_beside_each_other(output):
    text = (output / "tables" / "table3.md").read_text()
    head = [
        f"CC12M {model}: {metric}" for model in ("CLIP", "DiffCLIP") for metric in ("Accuracy", "Precision", "Recall")
    ]
    assert f"| Questions | {' | '.join(head)} |" in text
    assert [list(map(printed, row)) for row in cells(text)] == [line.split("\t") for line in TABLE_3.splitlines()]


def test_intervals_follow_from_the_size_of_the_test_sets(paper):
    """Compare with the normal approximation, which is near Wilson's where samples are many."""
    scores = paper["CC12M/CLIP"].scores
    for key, images in (
        ("zero_shot_7/imagenet1k", 50_000),
        ("linear_probe/pets", 3_669),
        ("pope_random/accuracy", 3_000),
    ):
        share = scores[key].value / 100
        assert scores[key].interval.half == pytest.approx(196 * (share * (1 - share) / images) ** 0.5, rel=0.01), key
    assert scores["few_shot/dtd"].interval is None  # its episodes' spread is not in the paper
    assert scores["few_shot/mean"].interval is None
    assert paper["CC12M/DiffCLIP*"].scores["zero_shot_7/imagenet1k"].interval.half == pytest.approx(0.42, abs=0.01)


def test_csv_has_the_same_numbers(output):
    with (output / "tables" / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["block"] for row in rows] == ["Linear probing"] * 4 + ["Few-shot"] * 4
    row = rows[3]
    assert (row["source"], row["pretraining"], row["model"], row["baseline"]) == (
        "paper",
        "CC12M",
        "DiffCLIP",
        "CC12M CLIP",
    )
    assert (row["Aircraft"], row["Aircraft - baseline"], row["Aircraft - paper"]) == ("46.4", "-2.4", "")


def test_every_number_has_a_source(paper):
    counts = {name: sum(not score.derived for score in entry.scores.values()) for name, entry in paper.items()}
    assert counts == {
        "CC3M/CLIP": 34,  # 20 of Table 1, 9 of Table 2, 5 of Figure 3
        "CC3M/DiffCLIP": 34,
        "CC12M/CLIP": 51,  # and 9 of Table 3, 8 of Figure 4
        "CC12M/DiffCLIP": 51,
        "CC12M/DiffCLIP*": 0,
        "CC12M/DiffCLIP†": 0,
    }
    for name, entry in paper.items():
        for key, score in entry.scores.items():
            place = r"(Table [123]|Figure [345]|section 4\.[56]).*" + re.escape(name.replace("/", " "))
            assert re.fullmatch(r"mean of 4 values" if key.endswith("without_imagenet") else place, score.source)


def test_figure_4_is_fifteenths(paper):
    for name, hits in (("CC12M/CLIP", [1, 1, 5, 1, 8, 2, 5]), ("CC12M/DiffCLIP", [1, 3, 4, 2, 10, 3, 6])):
        scores = paper[name].scores
        assert [scores[f"mmvp/{pattern}"].value * 0.15 for pattern in MMVP_PAPER_PATTERNS] == pytest.approx(hits)


def test_what_the_text_says_follows(paper):
    """Compare with sections 4.2 to 4.6, and with what stands above Figure 5's bars (page 8)."""
    cc3m, cc12m = paper["CC3M/DiffCLIP"], paper["CC12M/DiffCLIP"]
    dynamic, vision = paper["CC12M/DiffCLIP*"], paper["CC12M/DiffCLIP†"]
    assert [cc3m.difference(f"{key}/mean") for key in ("linear_probe", "few_shot", "image_retrieval@5")] == [
        1.0,
        0.7,
        1.2,
    ]
    assert cc12m.difference("zero_shot_7/mean") == pytest.approx(2.1)
    assert cc12m.difference("mmvp/mean_7") == pytest.approx(5.7)
    for key, difference in (
        ("zero_shot_7/imagenet1k", 0.8),
        ("text_retrieval@5/mean", 0.8),
        ("zero_shot_7/mean", -0.8),
    ):
        assert dynamic.scores[key].value - cc12m.scores[key].value == pytest.approx(difference)
    better = [key for key in vision.scores if vision.scores[key].value >= cc12m.scores[key].value]
    assert set(vision.scores) - set(better) == {"linear_probe/mean", "zero_shot_7/imagenet1k"}


def test_what_is_known_as_a_difference_only_is_marked(paper):
    dynamic = paper["CC12M/DiffCLIP*"].scores
    assert {key: score.difference for key, score in dynamic.items()} == {
        "text_retrieval@5/mean": 1.5,
        "zero_shot_7/imagenet1k": 2.8,
        "zero_shot_7/mean": 1.3,
        "linear_probe/mean": 0.0,
        "few_shot/mean": 0.2,
        "image_retrieval@5/mean": 0.1,
    }
    assert dynamic["few_shot/mean"].source.startswith("Figure 5, above the bars (page 8)")
    assert dynamic["zero_shot_7/imagenet1k"].value == pytest.approx(31.8 + 2.8)
    assert all(score.derived for name in ("*", "†") for score in paper[f"CC12M/DiffCLIP{name}"].scores.values())


def test_rows_are_found_by_their_name_in_this_package():
    rows = load_paper()
    assert find_row(rows, "CC12M/DiffCLIP-vision") is rows["CC12M/DiffCLIP†"]
    assert find_row(rows, "CC12M/DiffCLIP*") is find_row(rows, "CC12M/DiffCLIP-dynamic")
    with pytest.raises(ValueError, match=r"no row 'CC3M/DiffCLIP-vision'; its rows are CC3M/CLIP, "):
        find_row(rows, "CC3M/DiffCLIP-vision")


def test_the_paper_alone(output):
    assert {path.name for path in (output / "tables").glob("*.md")} == {
        f"{name}.md" for name in ("table1", "table2", "table3", "tasks", "zero_shot", "mmvp")
    }
    assert "2,910" in (output / "tables" / "table3.md").read_text()  # the note on Random
    page = (output / "index.html").read_text()
    assert "<title>DiffCLIP: the paper's results</title>" in page
    assert '<tr class="ours">' not in page
    row = next(row for row in cells((output / "tables" / "tasks.md").read_text()) if row[1] == r"DiffCLIP\*")
    assert list(map(printed, row[2:])) == [
        "≈77.0 (+0.0)",
        "≈85.5 (+0.2)",
        "≈55.4 (+0.1)",
        "≈70.9 (+1.5)",
        "≈34.6 (+2.8)",
        "≈27.3 (+1.3)",
    ]
    assert "preprint&#x27;s (arXiv 2503.06626). DiffCLIP appeared in TMLR, 08/2025" in page
