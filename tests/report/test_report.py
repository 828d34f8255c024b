"""``diffclip report`` on results whose values are written by hand."""

import base64
import csv
import itertools
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from support.common import plain_environment

from diffclip_openclip.data.catalog import DATA_SETS, MMVP_PATTERNS
from diffclip_openclip.report.bars import draw_bars
from diffclip_openclip.report.command import report
from diffclip_openclip.report.entries import Entry, our_entries, paper_entries
from diffclip_openclip.report.figures import make_figures
from diffclip_openclip.report.layouts import Column
from diffclip_openclip.report.models import read_models
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.report.radar import draw_radar
from diffclip_openclip.report.remarks import remarks
from diffclip_openclip.report.render import signed
from diffclip_openclip.report.scores import Score
from diffclip_openclip.report.styles import STYLES, styles_of

CLIP, DIFF = "CLIP-nano-baseline run", "DiffCLIP-nano run"
PROBED = [data_set.name for data_set in DATA_SETS if "linear_probe" in data_set.tasks]
OOD = ["imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch"]
MATCH = [f"{CLIP}=CC12M/CLIP", f"{DIFF}=CC12M/DiffCLIP"]


def put(root: Path, label: str, task: str, dataset: str, metrics: dict, folder: str | None = None, **fields) -> Path:
    """A result file as `diffclip evaluate` writes it."""
    path = root / (folder or label.replace(" ", "_")) / task / f"{dataset}_{fields.get('templates', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "model": label.split()[0], "pretrained": "logs/run/epoch_1.pt", "task": task}
    content |= {"metrics": metrics, "images": {}, "label": label, "architecture": label.split()[0]}
    content |= {"checkpoint_sha256": f"{label[0]}1" * 32, "dataset_sha256": "da7a"}
    content |= {
        "versions": {"torch": "2.15.0", "timm": None},
        "seed": 3,
        "device": "NVIDIA <H200>",
        "precision": "fp32",
    }
    content |= {"seconds": 1.2, "date": "2026-11-22T10:00:00+00:00", "language": "en"}
    path.write_text(json.dumps(content | fields))
    return path


def retrieval(image: float, text: float) -> dict:
    pairs = itertools.product((1, 5, 10), (("image", image), ("text", text)))
    return {f"{kind}_retrieval_recall@{k}": value + k / 100 for k, (kind, value) in pairs}


def pope(accuracy: float) -> dict:
    return {"accuracy": accuracy, "precision": 0.5, "recall": 0.75, "f1": 0.6, "yes_ratio": 0.875}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for place, name in enumerate(PROBED):
        put(root, CLIP, "few_shot", name, {"accuracy": (place + 1) / 10, "std": 0.1, "ci95": 0.01})
        put(root, DIFF, "few_shot", name, {"accuracy": (place + 1) / 10 + 0.0123, "std": 0.1, "ci95": 0.01})
        # 50.0 and 50.6, whose difference is 0.5 before rounding
        put(root, CLIP, "linear_probe", name, {"accuracy": 0.5004, "acc1": 0, "mean_per_class_recall": 0, "best_C": 1})
        if name != "dtd":
            put(root, DIFF, "linear_probe", name, {"accuracy": 0.5056})
    for label, up in ((CLIP, 0.0), (DIFF, 0.05)):
        for name, value in zip(OOD, (0.3, 0.2, 0.1, 0.4, 0.6), strict=True):
            put(root, label, "zeroshot_classification", name, {"acc1": value + up, "acc5": None}, templates="paper-7")
            put(root, label, "zeroshot_classification", name, {"acc1": value + up + 0.1}, templates="openai-80")
        for name, value in (("flickr30k", 0.2), ("flickr8k", 0.3), ("mscoco_captions", 0.4)):
            put(root, label, "zeroshot_retrieval", name, retrieval(value, value + up))
        patterns = {name: 1.0 if name in ("Quantity and Count", "Texts") else 3 / 15 for name in MMVP_PATTERNS}
        put(root, label, "mmvp", "mmvp", {"patterns": patterns, "mean_7": 0.2, "mean_9": 17 / 45})
    for category in ("random", "popular", "adversarial"):  # of answers, so each file has a hash of its own
        put(root, DIFF, "pope", f"pope_{category}", pope(0.8), folder=category, checkpoint_sha256=category)
    put(root, DIFF, "zeroshot_classification", "emoji", {"acc1": 0.5}, templates="openai-80")
    for other in ("cache/features/x.json", "notes/readme.json", "cache/linear_probe/x.npz"):
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_text("no result")
    return root


@pytest.fixture(scope="module")
def output(results, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    lines = report(results, folder, match=MATCH)
    assert lines == [
        "In no table, as the paper does not have them: emoji.",
        f"{folder / 'index.html'}: 8 tables, 4 figures",
    ]
    return folder


def table(output: Path, name: str, block: str | None = None) -> dict[tuple[str, str], list[str]]:
    """Cells of a Markdown table by source and model, of one block where there are several."""
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


def test_without_match_and_with_another_baseline(results):
    models, rows = read_models(results), load_paper()
    plain = our_entries(models, rows)
    assert [(entry.name, entry.family, entry.paper) for entry in plain] == [
        (CLIP, "CLIP", None),
        (DIFF, "DiffCLIP", None),
    ]
    assert plain[1].baseline.name == CLIP
    turned = our_entries(models, rows, baseline=DIFF)
    assert [(entry.name, entry.baseline and entry.baseline.name) for entry in turned] == [(DIFF, None), (CLIP, DIFF)]
    assert turned[1].difference("zero_shot_7/imagenet1k") == pytest.approx(-5.0)


def test_no_baseline_is_guessed_among_several(tmp_path):
    for label in ("CLIP-nano-baseline a", "CLIP-nano-baseline b", "DiffCLIP-nano-vision a", "DiffCLIP-V2-nano a"):
        put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.5}, checkpoint_sha256=label)
    put(tmp_path, "ViT-B-16 openai", "few_shot", "dtd", {"accuracy": 0.5}, checkpoint_sha256=None)
    models = read_models(tmp_path)
    assert all(entry.baseline is None for entry in our_entries(models, load_paper()))
    one = [model for model in models if model.name != "CLIP-nano-baseline b"]
    entries = {entry.name: entry for entry in our_entries(one, load_paper())}
    families = {name: (entry.family, entry.baseline and entry.baseline.name) for name, entry in entries.items()}
    assert families == {
        "CLIP-nano-baseline a": ("CLIP", None),
        "DiffCLIP-nano-vision a": ("DiffCLIP†", "CLIP-nano-baseline a"),
        "DiffCLIP-V2-nano a": ("other", "CLIP-nano-baseline a"),
        "ViT-B-16 openai": ("other", None),
    }


def test_families_follow_the_architecture_and_not_the_name(tmp_path):
    for label, architecture in {
        "OUT": "DiffCLIP-B-16-dynamic",
        "DiffCLIP-B-16-dynamic-cc12m": "DiffCLIP-B-16-vision",
        "plain": "CLIP-B-16-baseline",
        "DiffCLIP-B-16": None,
    }.items():
        fields = {"model": f"local-dir:{label}", "architecture": architecture, "checkpoint_sha256": label}
        put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.5}, **fields)
    entries = our_entries(read_models(tmp_path), load_paper())
    assert {entry.name: (entry.family, entry.baseline and entry.baseline.name) for entry in entries} == {
        "OUT": ("DiffCLIP*", "plain"),
        "DiffCLIP-B-16-dynamic-cc12m": ("DiffCLIP†", "plain"),
        "plain": ("CLIP", None),
        "DiffCLIP-B-16": ("other", None),
    }


def test_seeds_and_precisions_are_rows_of_their_own(tmp_path):
    """With what does not depend on the seed; each with the baseline of its own setting."""
    for label in (CLIP, DIFF):
        for at, (precision, seed) in enumerate((("fp32", 0), ("fp32", 1), ("amp", 0))):
            fields = {"precision": precision, "seed": seed, "folder": f"{label}{at}"}
            put(tmp_path, label, "few_shot", "dtd", {"accuracy": at / 10}, **fields)
        for at, precision in enumerate(("fp32", "amp")):
            fields = {"precision": precision, "seed": None, "folder": f"{label}{at}"}
            put(tmp_path, label, "zeroshot_retrieval", "flickr8k", retrieval(at / 2, 0.0), **fields)
    put(tmp_path, DIFF, "pope", "pope_random", pope(0.5), checkpoint_sha256="answers")
    models = read_models(tmp_path)
    found = {
        model.name: [round(model.scores[key].value) for key in ("few_shot/dtd", "image_retrieval@1/flickr8k")]
        for model in models
    }
    settings = {"amp, seed 0": [20, 51], "fp32, seed 0": [0, 1], "fp32, seed 1": [10, 1]}
    assert found == {f"{name} ({setting})": scores for name in (CLIP, DIFF) for setting, scores in settings.items()}
    for entry in our_entries(models, load_paper()):
        assert entry.baseline is None or entry.baseline.name == entry.name.replace(DIFF, CLIP)
        assert (entry.baseline is None) == entry.name.startswith(CLIP)
    assert all("pope_random/accuracy" in model.scores for model in models if model.name.startswith(DIFF))


def test_one_setting_is_not_in_the_name(tmp_path):
    put(tmp_path, DIFF, "few_shot", "dtd", {"accuracy": 0.5}, precision="amp", seed=1)
    put(tmp_path, DIFF, "zeroshot_retrieval", "flickr8k", retrieval(0.5, 0.5), precision="amp", seed=None)
    put(tmp_path, CLIP, "few_shot", "dtd", {"accuracy": 0.5})
    models = read_models(tmp_path)
    assert [model.name for model in models] == [CLIP, DIFF]
    assert our_entries(models, load_paper())[1].baseline.name == CLIP


def test_recall_among_too_few_is_left_out(tmp_path):
    metrics = retrieval(0.5, 0.5) | {"image_retrieval_recall@10": None, "text_retrieval_recall@10": None}
    put(tmp_path, "run", "zeroshot_retrieval", "flickr8k", metrics)
    (model,) = read_models(tmp_path)
    assert set(model.scores) == {f"{kind}_retrieval@{k}/flickr8k" for kind in ("image", "text") for k in (1, 5)}
    del metrics["image_retrieval_recall@10"]
    put(tmp_path, "run", "zeroshot_retrieval", "flickr8k", metrics)
    with pytest.raises(ValueError, match="metrics lacks image_retrieval_recall@10"):
        read_models(tmp_path)


def test_data_of_another_size_than_the_published_are_named(tmp_path):
    put(tmp_path, CLIP, "few_shot", "dtd", {"accuracy": 0.5}, images={"train": 1880, "val": 1880, "test": 1880})
    put(tmp_path, DIFF, "few_shot", "dtd", {"accuracy": 0.5}, images={"train": 1880, "val": 1880, "test": 99})
    put(tmp_path, DIFF, "few_shot", "my-own", {"accuracy": 0.5}, images={"test": 5})
    models = read_models(tmp_path)
    assert remarks(models, our_entries(models, load_paper()))[-1] == (
        "Not to be compared with others' numbers, as the data are not of the published size: "
        "dtd, test 99 images instead of 1,880."
    )
    assert not any("published size" in line for line in remarks(models[:1], our_entries(models[:1], load_paper())))


def test_remarks(tmp_path):
    put(tmp_path, CLIP, "few_shot", "dtd", {"accuracy": 0.5})
    put(tmp_path, DIFF, "few_shot", "dtd", {"accuracy": 0.5}, dataset_sha256="another")
    put(tmp_path, "other", "few_shot", "pets", {"accuracy": 0.5})
    models = read_models(tmp_path)
    assert remarks(models, our_entries(models, load_paper())) == [
        "Compared with no baseline: other. --baseline MODEL names one for all.",
        "Not all models saw the same data of dtd: see the hashes at the end.",
    ]
    assert remarks(models[1:], our_entries(models[1:], load_paper(), baseline="other")) == []


def test_models_that_share_a_label_are_told_apart(tmp_path):
    for folder, sha256 in (("a", "a" * 64), ("b", "b" * 64)):
        put(tmp_path, "run", "few_shot", "dtd", {"accuracy": 0.5}, folder=folder, checkpoint_sha256=sha256)
    put(tmp_path, "run", "pope", "pope_random", pope(0.5), folder="c", checkpoint_sha256="answers")
    assert [model.name for model in read_models(tmp_path)] == [
        "run @ aaaaaaaa",
        "run @ bbbbbbbb",
        "run @ no checkpoint",
    ]


def test_a_mean_needs_every_pattern(tmp_path):
    patterns = {name: 0.2 for name in MMVP_PATTERNS if name != "Texts"}
    put(tmp_path, "run", "mmvp", "mmvp", {"patterns": patterns, "mean_7": 0.2, "mean_9": None})
    (model,) = read_models(tmp_path)
    assert model.scores["mmvp/mean_7"].value == pytest.approx(20)
    assert not {"mmvp/mean_9", "mmvp/Texts"} & model.scores.keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"templates": "openai-7"}, r"x\.json: templates is 'openai-7', not one of paper-7, openai-80"),
        ({"metrics": {"acc5": 0.5}}, r"x\.json: metrics lacks acc1"),
        ({"metrics": {"acc1": 13.6}}, r"x\.json: acc1 is 13\.6, which is no fraction between 0 and 1"),
        ({"metrics": {"acc1": float("nan")}}, r"x\.json: acc1 is nan, which is no fraction"),
        ({"metrics": {"acc1": "0.5"}}, r"x\.json: acc1 is '0\.5', which is no fraction"),
        ({"metrics": {"acc1": True}}, r"x\.json: acc1 is True, which is no fraction"),
        ({"metrics": [0.5]}, r"x\.json: metrics must be an object, not \[0\.5\]"),
        ({"label": None}, r"x\.json: label must be a string, not None"),
        ({"checkpoint_sha256": 3}, r"x\.json: checkpoint_sha256 must be a string or null, not 3"),
        ({"architecture": 3}, r"x\.json: architecture must be a string or null, not 3"),
        ({"seed": "0"}, r"x\.json: seed must be a whole number or null, not '0'"),
        ({"precision": None}, r"x\.json: precision must be a string, not None"),
        ({"images": {"test": None}}, r"x\.json: images must be numbers of images by split, not \{'test': None\}"),
        ("images", r"x\.json is no result of `diffclip evaluate`: it lacks images"),
        ({"task": "mmvp"}, r"x\.json lies in the folder of task zeroshot_classification, and says .* 'mmvp'"),
        ("date", r"x\.json is no result of `diffclip evaluate`: it lacks date"),
        ("templates", r"x\.json is no result of `diffclip evaluate`: it lacks templates"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, change, expected):
    path = put(tmp_path, "run", "zeroshot_classification", "imagenet1k", {"acc1": 0.5}, templates="paper-7")
    content = json.loads(path.read_text())
    if isinstance(change, str):
        del content[change]
    else:
        content |= change
    path.unlink()
    path.with_name("x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=expected):
        read_models(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"dataset": ', r"x\.json is no JSON"),
        (b"\xff\xfe", r"x\.json is no JSON"),
        ("[1]", r"x\.json is no result: its content is a list"),
    ],
)
def test_broken_files_are_named(tmp_path, text, expected):
    path = tmp_path / "run" / "few_shot" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=expected):
        read_models(tmp_path)


def test_results_that_are_there_twice(tmp_path):
    for folder in ("a", "b"):
        put(tmp_path, "run", "few_shot", "dtd", {"accuracy": 0.5}, folder=folder)
    with pytest.raises(ValueError, match=r"a/few_shot/dtd_\.json and b/few_shot/dtd_\.json are results of the same"):
        read_models(tmp_path)


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_models(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no results; they are expected as MODEL/TASK/NAME\.json"):
        read_models(tmp_path)
    put(tmp_path, "run", "few_shot", "emoji", {"accuracy": 0.5})
    with pytest.raises(ValueError, match="holds results of emoji only, none of which the paper has"):
        read_models(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"match": ["run"]}, "is not of the form MODEL=ROW"),
        ({"match": ["run=CC12M/DiffCLIP"]}, f"--match: there are no results of 'run'; .* {CLIP}, {DIFF}"),
        ({"match": [f"{DIFF}=CC12M/CLOP"]}, "the paper has no row 'CC12M/CLOP'; its rows are CC3M/CLIP"),
        ({"match": [f"{DIFF}=CC12M/CLIP", f"{DIFF}=CC3M/CLIP"]}, "twice: CC12M/CLIP and CC3M/CLIP"),
        ({"baseline": "run"}, "--baseline: there are no results of 'run'"),
        ({"paper_only": True}, "--paper-only shows no results"),
    ],
)
def test_wrong_options_leave_nothing(results, tmp_path, options, expected):
    with pytest.raises(ValueError, match=expected):
        report(results, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_neither_results_nor_the_paper_alone(tmp_path):
    with pytest.raises(ValueError, match="or --paper-only"):
        report(None, tmp_path / "out")


def test_an_old_report_stays_unless_it_is_to_be_replaced(results, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("old")
    with pytest.raises(FileExistsError, match="--overwrite"):
        report(results, tmp_path / "out")

    def fail(*_):
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


class Page(HTMLParser):
    """Open elements, identifiers, addresses, and cells by the class of their row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.addresses, self.cells, self.tags = [], [], [], {}, set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append((tag, attrs.get("class")))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[name] for name in ("src", "href", "srcset", "data", "action") if name in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if len(self.open) > 1 and self.open[-1][0] in ("td", "th"):
            self.cells.setdefault(self.open[-2][1], []).append(data)


def test_the_page_loads_nothing(output):
    text = (output / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) == 8 + 4 + 1
    images = [address for address in page.addresses if address.startswith("data:image/svg+xml;base64,")]
    assert len(images) == 4
    assert {address for address in page.addresses if address not in images} == {f"#{name}" for name in page.ids}
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert "url(" not in text
    assert "@import" not in text
    for image in images:
        svg = ElementTree.fromstring(base64.b64decode(image.partition(",")[2]))
        links = [value for node in svg.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert links
        assert all(link.startswith("#") for link in links)


def test_the_page_has_the_tables_and_their_provenance(output):
    text = (output / "index.html").read_text()
    page = Page(text)
    assert page.cells["ours"].count("51.2 (+1.2)") == 3  # Table 1's CIFAR10 and its mean, and the six tasks
    assert "+1.2" in page.cells["minus"]
    assert f'title="{DIFF.replace(" ", "_")}/few_shot/dtd_.json"' in text
    assert 'title="Table 1, Few-Shot, CC12M DiffCLIP"' in text
    for fact in ("NVIDIA &lt;H200&gt;", "D1" * 32, "torch 2.15.0, timm –", "2026-11-22T10:00:00+00:00", "paper-7"):
        assert fact in text
    assert "emoji_openai-80.json (in no table: not among the paper&#x27;s data sets)" in text


def test_labels_are_escaped(tmp_path):
    put(tmp_path / "in", "a|b <i> $x$ *", "few_shot", "dtd", {"accuracy": 0.5}, folder="a")
    report(tmp_path / "in", tmp_path / "out")
    assert "a|b &lt;i&gt; $x$ *" in (tmp_path / "out" / "index.html").read_text()
    assert r"| a\|b \<i> $x$ \* |" in (tmp_path / "out" / "tables" / "table1.md").read_text()


def test_figures_show_something_and_are_the_same_each_time(results, output, tmp_path):
    report(results, tmp_path / "again", match=MATCH)
    for number in (1, 3, 4, 5):
        pixels = imread(output / "figures" / f"figure{number}.png")
        assert pixels.shape[1] >= 1000
        assert pixels.std() > 0.1
        for suffix in ("png", "svg"):
            name = f"figures/figure{number}.{suffix}"
            assert (output / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (output / "index.html").read_bytes() == (tmp_path / "again" / "index.html").read_bytes()


def panels(results: Path, match: list[str]) -> dict[str, list[tuple[str, list[str]]]]:
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows, match))
    return {f.name: [(panel.title, [e.name for e in panel.entries]) for panel in f.panels] for f in figures}


def test_ours_stand_in_the_figures_of_their_pretraining(results):
    pair, four = ["CLIP", "DiffCLIP"], ["CLIP", "DiffCLIP", "DiffCLIP*", "DiffCLIP†"]
    ours = ("Ours", [CLIP, DIFF])
    ood = [("The paper, CC3M (own scale)", pair), ("The paper, CC12M", pair), ours]
    cc3m, radar = ("The paper, CC3M", pair), [("The paper, CC12M", pair), ("Ours (own scale)", ours[1])]
    assert panels(results, []) == {
        "figure1": [cc3m, ours],
        "figure3": ood,
        "figure4": radar,
        "figure5": [("The paper, CC12M", four), ours],
    }
    # DiffCLIP goes with its baseline
    assert panels(results, MATCH[:1])["figure1"] == [cc3m]
    assert panels(results, MATCH[:1])["figure5"][1] == ours


def test_what_is_not_drawn_is_said(results):
    rows = load_paper()
    figures = make_figures(paper_entries(rows), our_entries(read_models(results), rows))
    assert figures[3].notes[1] == (
        "Not drawn, as not known: Linear probing, Few-shot, Image retrieval of CC12M DiffCLIP*; "
        f"Linear probing of {DIFF}."
    )


def entry(name: str, family: str, *values: float | None, baseline: Entry | None = None, derived: bool = False) -> Entry:
    scores = {str(place): Score(value, "", derived) for place, value in enumerate(values) if value is not None}
    return Entry(name, family, scores, baseline=baseline)


def test_bars_are_as_high_as_their_values():
    base = entry("base", "CLIP", 10, 20)
    other = entry("other", "DiffCLIP*", None, 15.25, baseline=base, derived=True)
    axis = Figure().add_subplot()
    draw_bars(axis, "title", [Column("a", "0"), Column("b", "1")], [base, other], 20)
    fills = [(round(bar.get_x() + 0.45, 6), bar.get_height()) for bar in axis.patches[::2]]
    assert fills == [(0, 10), (3, 20), (4, 15.25)]
    assert [text.get_text() for text in axis.texts] == ["10.0", "20.0", "-4.8\n≈15.2"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["base", "other"]
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylim()[1] > 20


def test_radar_goes_through_its_values():
    axis = Figure().add_subplot(projection="polar")
    draw_radar(axis, [Column(str(place), str(place)) for place in range(3)], [entry("a", "CLIP", 10, 20, 60)], 70)
    (line,) = axis.lines
    assert list(line.get_ydata()) == [10, 20, 60, 10]
    assert axis.get_legend().get_texts()[0].get_text() == "a (average 30.0 %)"


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: what protanopes, deuteranopes and tritanopes see
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_series_differ_in_lightness(kind):
    """CIE L* at least 10 apart, so also in grey print; and in hatch and marker."""

    def lightness(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        seen = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in BLINDNESS[kind]]
        return 116 * (0.2126 * seen[0] + 0.7152 * seen[1] + 0.0722 * seen[2]) ** (1 / 3) - 16

    levels = sorted(lightness(style.color) for style in STYLES.values())
    assert min(high - low for low, high in itertools.pairwise(levels)) > 10
    for part in ("hatch", "marker"):
        assert len({getattr(style, part) for style in STYLES.values()}) == len(STYLES)


def test_series_of_one_family_differ_in_hatch_and_marker():
    styles = styles_of([entry(str(place), "DiffCLIP", 1) for place in range(6)])
    assert len({style.color for style in styles}) == 1
    assert len({(style.hatch, style.marker) for style in styles}) == 6


def test_signs():
    assert [signed(value, 1) for value in (0.04, -0.04, 0.0, -0.06, 1.25)] == ["+0.0", "+0.0", "+0.0", "-0.1", "+1.2"]


def test_without_matplotlib(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from diffclip_openclip.report.command import report\n"
        "report(None, Path('out'), paper_only=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=plain_environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ImportError: diffclip report needs matplotlib" in done.stderr
    assert "pip install 'diffclip-openclip[plot]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
