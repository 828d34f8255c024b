"""Tables hold the right numbers, differences and notes, as Markdown and CSV."""

import csv
from pathlib import Path

from support.report_results import CLIP, DIFF

from diffclip_openclip.report.tables import signed


def table(output: Path, name: str, block: str | None = None) -> dict[tuple[str, str], list[str]]:
    """Return the cells of a Markdown table by source and model, of one block where there are several."""
    found: dict[tuple[str, str], list[str]] = {}
    at = None
    for line in (output / "tables" / f"{name}.md").read_text().splitlines():
        if line.startswith("|"):
            source, model, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            if source.startswith("**"):
                at = source.strip("*")
            elif at == block:
                found[source, model] = rest
    return found


def notes(output: Path, name: str) -> list[str]:
    return [line[2:] for line in (output / "tables" / f"{name}.md").read_text().splitlines() if line.startswith("- ")]


def test_differences_to_the_baseline_and_to_the_paper(output):
    rows = table(output, "table1", "Few-shot")
    assert rows["ours", CLIP] == [f"{10 * place}.0" for place in range(1, 10)] + ["50.0"]
    assert rows["ours", DIFF] == [f"{10 * place + 1}.2 (+1.2)" for place in range(1, 10)] + ["51.2 (+1.2)"]
    paper = [97.6, 82.2, 88.2, 97.3, 96.8, 55.2, 80.3, 83.3, 87.5, 85.4]
    ours = [10 * place + 1.23 for place in range(1, 10)] + [51.23]
    assert rows["ours − paper", "CC12M DiffCLIP"] == [f"{a - b:+.1f}" for a, b in zip(ours, paper, strict=True)]
    assert rows["paper, CC12M", "DiffCLIP"][-1] == "85.4 (+0.1)"


def test_differences_are_taken_before_rounding_and_means_of_complete_rows_only(output):
    rows = table(output, "table1", "Linear probing")
    assert rows["ours", CLIP] == ["50.0"] * 10
    assert rows["ours", DIFF] == ["50.6 (+0.5)", "–", *["50.6 (+0.5)"] * 7, "–"]
    assert f"– for {DIFF} (Linear probing): no result of DTD; not all results that are in the mean: Avg." in notes(
        output, "table1"
    )
    assert f"In parentheses, {DIFF}: difference to {CLIP}." in notes(output, "table1")


def test_retrieval_and_imagenet_with_seven_templates(output):
    rows = table(output, "table2")
    assert rows["ours", CLIP] == ["25.0", "35.0", "45.0", "35.0", "25.0", "35.0", "45.0", "35.0", "30.0"]
    plain, better = (
        [f"{value} (+0.0)" for value in ("25.0", "35.0", "45.0", "35.0")],
        ["30.0", "40.0", "50.0", "40.0", "35.0"],
    )
    assert rows["ours", DIFF] == [*plain, *(f"{value} (+5.0)" for value in better)]
    assert rows["ours − paper", "CC12M DiffCLIP"][-1] == "+1.2"
    at_ten = table(output, "recall", "Recall@10")
    assert list(at_ten) == [("ours", CLIP), ("ours", DIFF)]
    assert at_ten["ours", CLIP] == ["30.0", "40.0", "50.0", "40.0"] * 2
    assert table(output, "recall", "Recall@1")["ours", CLIP][:2] == ["21.0", "31.0"]


def test_both_sets_of_templates(output):
    seven = table(output, "zero_shot", "The paper's 7 templates")
    assert seven["ours", CLIP] == ["30.0", "20.0", "10.0", "40.0", "60.0", "32.0", "32.5"]
    assert seven["paper, CC12M", "CLIP"] == ["31.8", "27.5", "7.2", "42.5", "21.2", "26.0", "≈24.6"]
    eighty = table(output, "zero_shot", "OpenAI's 80 templates")
    assert list(eighty) == [("ours", CLIP), ("ours", DIFF)]
    assert eighty["ours", DIFF][0] == "45.0 (+5.0)"


def test_six_tasks(output):
    rows = table(output, "tasks")
    assert rows["ours", CLIP] == ["50.0", "50.0", "35.0", "35.0", "30.0", "32.0"]
    assert rows["ours", DIFF][0] == "–"
    assert rows["ours − paper", "CC12M DiffCLIP"] == ["–", "-34.2", "-20.3", "-30.1", "+1.2", "+8.9"]


def test_mmvp_and_pope(output):
    assert table(output, "mmvp")["ours", CLIP] == ["20.0"] * 3 + ["100.0"] + ["20.0"] * 3 + [
        "100.0", "20.0", "20.0", "37.8",
    ]  # fmt: skip
    popular = table(output, "table3", "Popular")
    assert popular["ours", DIFF] == ["80.00", "50.00", "75.00"]
    assert popular["ours − paper", "CC12M DiffCLIP"] == ["+29.73", "-0.13", "-24.47"]
    assert table(output, "pope", "Random")["ours", DIFF] == ["60.00", "87.50"]
    assert f"Without results here: {CLIP}." in notes(output, "pope")


def test_csv(output):
    with (output / "tables" / "table1.csv").open() as file:
        rows = {(row["block"], row["model"]): row for row in csv.DictReader(file) if row["source"] == "ours"}
    row = rows["Linear probing", DIFF]
    assert (row["baseline"], row["paper_row"], row["DTD"], row["Avg."]) == (CLIP, "CC12M DiffCLIP", "", "")
    assert [row[f"Pets{of}"] for of in ("", " - baseline", " - paper")] == ["50.56", "0.52", "-32.44"]


def test_signs():
    assert [signed(value, 1) for value in (0.04, -0.04, 0.0, -0.06, 1.25)] == ["+0.0", "+0.0", "+0.0", "-0.1", "+1.2"]
