"""The results of ``diffclip evaluate`` on the whole suite, and the report of them."""

import json
import shutil

import pytest
from support.evaluation_data import LIMIT, arguments, metrics_of, result_files

from diffclip_cli.main import main
from diffclip_openclip.data.catalog import DATA_SETS
from diffclip_openclip.evaluation.outcomes import OUTCOMES
from diffclip_openclip.evaluation.results import FIELDS, headline, read, read_outcomes
from diffclip_openclip.report.comparison import our_entries
from diffclip_openclip.report.evaluated_models import read_models
from diffclip_openclip.report.paper import load_paper


def test_every_task_has_its_result(results):
    entries = metrics_of(results)
    expected = sum(2 if task == "zeroshot_classification" else 1 for d in DATA_SETS if d.paper for task in d.tasks)
    assert len(entries) == expected == 32
    for entry in entries.values():
        assert entry.keys() <= FIELDS.keys()
        assert entry["label"] == "DiffCLIP-nano a-run epoch_2"
        assert entry.keys() >= {
            "dataset",
            "model",
            "pretrained",
            "task",
            "metrics",
            "language",
            "versions",
            "images",
        }
        assert ("seed" in entry) == (entry["task"] in ("linear_probe", "few_shot"))
        assert len(entry["checkpoint_sha256"]) == len(entry["dataset_sha256"]) == 64
        values = [v for v in entry["metrics"].values() if isinstance(v, float)]
        assert values or entry["task"] == "mmvp"
    for path in result_files(results):
        outcomes, task = read_outcomes(path), path.parent.name
        assert {name: array.dtype for name, array in outcomes.items()} == OUTCOMES[task], path
        if task == "linear_probe":
            assert outcomes["correct"].mean() == pytest.approx(json.loads(path.read_text())["metrics"]["acc1"])
    probes = [entry["metrics"] for entry in entries.values() if entry["task"] == "linear_probe"]
    assert all(0 < metrics["accuracy"] <= 1 for metrics in probes)


def test_the_line_of_a_result_has_the_papers_figures():
    recalls = {f"{kind}_retrieval_recall@{k}": k / 10 for k in (1, 5, 10) for kind in ("image", "text")}
    content = {"label": "a", "task": "zeroshot_retrieval", "dataset": "flickr8k", "metrics": recalls}
    content |= {"images": {"test": 1000}, "captions": {"test": 1000}}
    shown = "a: zeroshot_retrieval on flickr8k: image_retrieval_recall@5 50.0 %, text_retrieval_recall@5 50.0 %"
    short = "; warning: not of the published size (test 1,000 captions instead of 5,000)"
    assert headline(content) == shown + short
    probe = {"label": "a", "task": "linear_probe", "dataset": "x", "images": {}}
    probe["metrics"] = {"accuracy": 0.5, "acc1": 0.5, "mean_per_class_recall": 0.25, "best_C": 1.0, "weight_norm": 0.0}
    probe["metrics"] |= {"predicted_classes": 1}
    assert headline(probe).endswith("; warning: W is 0, so that every image is predicted to be of one class")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('{"accuracy": [0.5]}', r"metrics must be numbers or null; accuracy is \[0.5\]"),
        ('{"accuracy": 1' + "0" * 400 + "}", "pets.json is no JSON: 1000000000... has 401 digits"),
        ('{"patterns": {"a": {}}}', "metrics must be numbers or null; patterns is "),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_metrics_that_are_none(results, tmp_path, metrics, message):
    source = next(path for path in result_files(results) if path.stem == "pets")
    (tmp_path / source.parent.name).mkdir()
    copy = tmp_path / source.parent.name / "pets.json"
    text = json.dumps(json.loads(source.read_text()) | {"metrics": None})
    copy.write_text(text.replace('"metrics": null', f'"metrics": {metrics}'))
    with pytest.raises(ValueError, match=message):
        read(copy)


def test_the_report_of_it_has_every_cell(results, tmp_path):
    assert main(["report", str(results), "--output", str(tmp_path / "REPORT")]) == 0
    for table in ("table1", "table2", "zero_shot", "mmvp", "recall"):
        lines = (tmp_path / "REPORT" / "tables" / f"{table}.md").read_text().splitlines()
        ours = [line for line in lines if "| DiffCLIP-nano a-run epoch_2 |" in line]
        assert ours, table
        assert not any("–" in line for line in ours)
    assert "a-run" in (tmp_path / "REPORT" / "index.html").read_text()


def test_bfloat16_and_another_seed_are_other_results(results, some, spec, tmp_path, capsys):
    copy = shutil.copytree(results, tmp_path / "RESULTS")
    before = {path: path.read_bytes() for path in result_files(copy)}
    assert main(["evaluate", *arguments(spec, some, copy), "--seed", "1"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    new = {path.relative_to(path.parents[1]).as_posix() for path in result_files(copy) if path not in before}
    assert new == {f"{task}/{name}_seed1.json" for task in ("linear_probe", "few_shot") for name in ("dtd", "pets")}
    command_line = [*arguments(spec, some, copy), "--precision", "amp_bf16"]
    assert main(["evaluate", *command_line, "--dataset", "flickr8k", "--dataset", "imagenet-r"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    other = {path.stem: json.loads(path.read_text()) for path in copy.glob("*/*/*_amp_bf16.json")}
    assert sorted(other) == ["flickr8k_amp_bf16", "imagenet-r_openai-80_amp_bf16", "imagenet-r_paper-7_amp_bf16"]
    assert {entry["precision"] for entry in other.values()} == {"amp_bf16"}
    assert all("seed" not in entry for entry in other.values())
    assert main(["report", str(copy), "--output", str(tmp_path / "REPORT")]) == 0
    table = (tmp_path / "REPORT" / "tables" / "table1.md").read_text()
    assert "| DiffCLIP-nano a-run epoch_2 (fp32, seed 0) |" in table
    assert "| DiffCLIP-nano a-run epoch_2 (fp32, seed 1) |" in table
    table = (tmp_path / "REPORT" / "tables" / "table2.md").read_text()
    assert "| DiffCLIP-nano a-run epoch_2 (amp_bf16) |" in table


def test_results_say_how_much_of_the_data_there_was(results, some, spec, tmp_path, capsys):
    entries = {entry["task"] + entry["dataset"]: entry for entry in metrics_of(results).values()}
    assert entries["few_shotdtd"]["images"].keys() == {"train", "val", "test"}
    assert entries["linear_probepets"]["images"].keys() == {"train", "test"}
    assert entries["zeroshot_retrievalflickr8k"]["images"] == {"test": 8 * LIMIT}
    assert entries["mmvpmmvp"]["images"] == {"test": 72}
    assert main(["evaluate", *arguments(spec, some, results), "--task", "mmvp"]) == 0
    (line,) = filter(None, capsys.readouterr().out.splitlines())
    assert line.endswith("; warning: not of the published size (test 72 images instead of 270)")
    assert main(["report", str(results), "--output", str(tmp_path / "REPORT")]) == 0
    assert "not of the published size: caltech101, " in capsys.readouterr().out


def test_a_converted_model_has_its_family_in_the_report(directory, suite, tmp_path):
    shutil.copytree(suite / "mmvp", tmp_path / "data" / "mmvp")
    command_line = arguments(f"local-dir:{directory}/", tmp_path / "data", tmp_path / "RESULTS")
    assert main(["evaluate", *command_line]) == 0
    (path,) = result_files(tmp_path / "RESULTS")
    assert path.parts[-3].startswith("DYNAMIC-")
    (entry,) = our_entries(read_models(tmp_path / "RESULTS"), load_paper())
    assert (entry.name, entry.family) == ("DYNAMIC", "DiffCLIP*")
