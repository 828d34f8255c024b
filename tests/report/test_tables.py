"""Tables hold the right numbers, intervals, differences, marks and notes, as Markdown, CSV and LaTeX."""

import csv
import io
import re
from pathlib import Path

import pytest
from support.report_results import CLIP, DIFF, PROBED, put, put_runs, retrieval

from diffclip_openclip.data.catalog import SUGAR_CREPE_KINDS
from diffclip_openclip.report.comparison import our_entries, paper_entries
from diffclip_openclip.report.evaluated_models import group_runs, read_models
from diffclip_openclip.report.latex import escape
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.report.table_formats import csv_text, markdown
from diffclip_openclip.report.tables import Table, make_tables, signed


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
    # few-shot's ci95 is 1 point; of the nine's mean a ninth of the root of nine squares
    assert rows["ours", CLIP] == [f"{10 * place}.0 ±1.0" for place in range(1, 10)] + ["50.0 ±0.3"]
    assert rows["ours", DIFF] == [f"{10 * place + 1}.2 ±1.0 (+1.2 ns)" for place in range(1, 10)] + ["51.2 ±0.3 (+1.2)"]
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
    seven = table(output, "zero_shot", "7 templates")
    assert seven["ours", CLIP] == ["30.0", "20.0", "10.0", "40.0", "60.0", "32.0", "32.5"]
    paper = [cell.partition(" ±")[0] for cell in seven["paper, CC12M", "CLIP"]]
    assert paper == ["31.8", "27.5", "7.2", "42.5", "21.2", "26.0", "≈24.6"]
    eighty = table(output, "zero_shot", "OpenAI's 80 templates")
    assert list(eighty) == [
        ("ours", CLIP),
        ("ours − paper", "CC12M CLIP"),
        ("ours", DIFF),
        ("ours − paper", "CC12M DiffCLIP"),
    ]
    assert eighty["ours", DIFF][0] == "45.0 (+5.0)"
    # the paper names no templates: both sets are held against its one number
    assert seven["ours − paper", "CC12M DiffCLIP"][0] == "+1.2"
    assert eighty["ours − paper", "CC12M DiffCLIP"][0] == "+11.2"


def test_six_tasks(output):
    rows = table(output, "tasks")
    assert rows["ours", CLIP] == ["50.0", "50.0 ±0.3", "35.0", "35.0", "30.0", "32.0"]
    assert rows["ours", DIFF][0] == "–"
    assert rows["ours − paper", "CC12M DiffCLIP"] == ["–", "-34.2", "-20.3", "-30.1", "+1.2", "+8.9"]


def test_mmvp_and_pope(output):
    assert table(output, "mmvp")["ours", CLIP] == ["20.0"] * 3 + ["100.0"] + ["20.0"] * 3 + [
        "100.0", "20.0", "20.0", "37.8",
    ]  # fmt: skip
    lines = (output / "tables" / "table3.md").read_text().splitlines()
    head, popular = (
        next(line for line in lines if line.startswith(f"| {start}")) for start in ("Questions", "Popular")
    )
    cells = dict(zip(head.split(" | "), popular.split(" | "), strict=True))
    metrics = ("Accuracy", "Precision", "Recall")
    assert [cells[f"{DIFF}: {metric}"] for metric in metrics] == ["80.00", "50.00", "75.00"]
    assert [cells[f"{DIFF} − paper: {metric}"].rstrip(" |") for metric in metrics[:2]] == ["+29.73", "-0.13"]
    assert popular.endswith("| -24.47 |")
    assert cells["CC12M DiffCLIP: Recall"] == "99.47 ±0.39 (+0.14 ns)"
    assert "| Random | 60.00 | 87.50 |" in (output / "tables" / "pope.md").read_text()
    assert f"Without results here: {CLIP}." in notes(output, "pope")


def test_csv(output):
    with (output / "tables" / "table1.csv").open() as file:
        rows = {(row["block"], row["model"]): row for row in csv.DictReader(file) if row["source"] == "ours"}
    row = rows["Linear probing", DIFF]
    assert (row["baseline"], row["paper_row"], row["DTD"], row["Avg."]) == (CLIP, "CC12M DiffCLIP", "", "")
    assert [row[f"Pets{of}"] for of in ("", " - baseline", " - paper")] == ["50.56", "0.52", "-32.44"]
    row = rows["Few-shot", DIFF]
    assert row["± is"] == "half of the 95 % interval"
    assert [row[f"Pets{of}"] for of in (" ±", " - baseline", " - baseline ±", " - baseline p")] == [
        "1.0",
        "1.23",
        "1.4142",
        "0.0883",
    ]


def make(folder: Path, **options) -> dict[str, Table]:
    rows, models = load_paper(), group_runs(read_models(folder), options.pop("group", ()))
    found = make_tables(paper_entries(rows), our_entries(models, rows, **options), models)
    return {table.name: table for table in found}


def test_training_runs_are_shown_with_their_standard_deviation(tmp_path):
    put_runs(tmp_path, {CLIP: [0.10, 0.12, 0.14], DIFF: [0.11, 0.13, 0.15]})
    table1 = make(tmp_path, group=[f"CLIP={CLIP}*", f"DiffCLIP={DIFF}*"])["table1"]
    line = next(line for line in table1.lines if line.stubs == ("ours", "DiffCLIP"))
    assert line.cells[1].text == "13.0 ±2.0 (+1.0 ns)"
    assert "± of CLIP, DiffCLIP: the standard deviation of 3 training runs, whose mean is shown." in table1.notes


def test_data_of_another_size_are_marked_at_their_cells_and_in_a_table(tmp_path):
    put(tmp_path, DIFF, "few_shot", "dtd", {"accuracy": 0.5}, images={"train": 1880, "test": 99})
    put(tmp_path, DIFF, "few_shot", "pets", {"accuracy": 0.5}, images={"test": 3669})
    tables = make(tmp_path)
    line = next(line for line in tables["table1"].lines if line.kind == "ours")
    assert [cell.text for cell in line.cells[1:3]] == ["50.0 §", "50.0"]
    assert "§ the data are not of the published size: see the table of sizes." in tables["table1"].notes
    (line,) = tables["data_sizes"].lines
    assert (*line.stubs, *(cell.text for cell in line.cells)) == ("dtd", "test", "99 images", "1,880 images", DIFF)


def test_other_data_sets_stand_in_a_table_with_the_models_beside_each_other(tmp_path):
    for label, value in ((CLIP, 0.25), (DIFF, 0.5)):
        put(tmp_path, label, "zeroshot_classification", "emoji", {"acc1": value, "acc5": 2 * value}, templates="own")
        put(tmp_path, label, "zeroshot_retrieval", "captions", retrieval(value, value))
    table = make(tmp_path)["other"]
    assert (table.stubs, table.heads) == (("Data set",), (("", CLIP), ("", DIFF)))
    assert [(line.stubs[0], *(cell.text for cell in line.cells)) for line in table.lines] == [
        ("captions: image R@5", "30.0", "55.0 (+25.0)"),
        ("captions: text R@5", "30.0", "55.0 (+25.0)"),
        ("emoji: zero-shot top-1", "25.0", "50.0 (+25.0)"),
        ("emoji: zero-shot top-5", "50.0", "100.0 (+50.0)"),
    ]
    assert csv_text(table).splitlines()[3].startswith(f"captions: text R@5,ours,,{CLIP},")


def test_the_nine_data_sets_zero_shot(tmp_path):
    for name in PROBED:
        put(tmp_path, DIFF, "zeroshot_classification", name, {"acc1": 0.5, "acc5": 0.9}, templates="own")
    tables = make(tmp_path)
    assert set(tables) == {"tasks", "table1", "table2", "zero_shot", "mmvp", "table3", "zero_shot_probed"}
    line = next(line for line in tables["zero_shot_probed"].lines if line.kind == "ours")
    assert [cell.text for cell in line.cells] == ["50.0"] * 10


def test_one_of_the_nine_without_templates_of_its_own_is_not_left_out(tmp_path):
    put(tmp_path, DIFF, "zeroshot_classification", "dtd", {"acc1": 0.5, "acc5": 0.9}, templates="openai-80")
    table = make(tmp_path)["other"]
    assert [(line.stubs[0], line.cells[0].text) for line in table.lines] == [
        ("dtd: zero-shot top-1, 80 templates", "50.0")
    ]


# formats


def test_the_best_values_are_bold(output):
    lines = (output / "tables" / "table1.tex").read_text().splitlines()
    paper = [line for line in lines if line.startswith("paper, CC12M & DiffCLIP")]
    assert paper[0].count(r"\textbf") == 7  # of nine and their mean; CLIP is above on Aircraft and both CIFARs
    ours = [line for line in lines if line.startswith(f"ours & {DIFF}")]
    assert [line.count(r"\textbf") for line in ours] == [8, 10]


def test_latex_is_booktabs(output):
    for path in (output / "tables").glob("*.tex"):
        text = path.read_text()
        assert text.count("{") == text.count("}"), path
        rules = [text.index(rf"\{rule}rule") for rule in ("top", "mid", "bottom")]
        assert rules == sorted(rules)
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
        for line in text[rules[1] : rules[2]].splitlines()[1:]:
            assert r"\multicolumn" in line or r"\midrule" in line or line.count(" & ") == columns - 1
        assert not re.search(r"[≈≥±−†§]|(?<!\\)[%&#_](?![ ])", text.partition("tabular")[2].replace("%\n", ""))
    assert escape("a_b & 5 % #{x}~^\\|<†") == (
        r"a\_b \& 5 \% \#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textbar{}\textless{}\textdagger{}"
    )


@pytest.mark.parametrize("label", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_no_cell_of_a_csv_is_a_formula(tmp_path, label):
    put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.5}, folder="a")
    put(tmp_path, "b", "few_shot", "dtd", {"accuracy": 0.4}, folder="b", checkpoint_sha256="b")
    with io.StringIO(csv_text(make(tmp_path, baseline=label)["table1"])) as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{label}" in cells
    assert not [cell for cell in cells if cell[:1] in tuple("=+@\t") or (cell[:1] == "-" and not is_number(cell))]
    assert "-10.0" in cells  # a number stays one


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_a_label_makes_no_heading(tmp_path):
    put(tmp_path, "a\n# heading\n| b |", "few_shot", "dtd", {"accuracy": 0.5}, folder="a")
    text = markdown(make(tmp_path)["table1"])
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Table 1. Classification: linear probing and few-shot"
    ]
    assert r"| ours | a # heading \| b \| |" in text


def test_signs():
    assert [signed(value, 1) for value in (0.04, -0.04, 0.0, -0.06, 1.25)] == ["+0.0", "+0.0", "+0.0", "-0.1", "+1.2"]


def test_sugar_crepe_and_winoground_have_tables(tmp_path):
    for label, up in ((CLIP, 0.0), (DIFF, 0.05)):
        kinds = {kind: 0.5 + at / 100 + up for at, kind in enumerate(SUGAR_CREPE_KINDS)}
        put(tmp_path, label, "sugar_crepe", "sugar_crepe", {"kinds": kinds, "mean": 0.53 + up})
        scores = {f"{kind}_score": 0.25 + up for kind in ("text", "image", "group")}
        put(tmp_path, label, "winoground", "winoground", scores)
    tables = make(tmp_path)
    assert "other" not in tables
    (clip, diffclip) = tables["sugar_crepe"].lines
    assert [cell.text for cell in clip.cells] == ["50.0", "51.0", "52.0", "53.0", "54.0", "55.0", "56.0", "53.0"]
    assert diffclip.cells[-1].text == "58.0 (+5.0)"
    assert [cell.text for cell in tables["winoground"].lines[1].cells] == ["30.0 (+5.0)"] * 3
