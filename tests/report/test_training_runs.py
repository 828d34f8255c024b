"""The table of several training runs: what is paired, what is corrected together, and what stands in it."""

import csv
import io

import pytest
from scipy.stats import ttest_ind, ttest_rel
from support.report_results import pope, put, save_nothing

from diffclip_openclip.report import command
from diffclip_openclip.report.comparison import our_entries
from diffclip_openclip.report.curves import checkpoints_of
from diffclip_openclip.report.evaluated_models import group_runs, read_models
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.report.table_formats import csv_text
from diffclip_openclip.report.training_runs import make_runs_table
from diffclip_openclip.report.uncertainty import holm

BASE, FIRST, SECOND = [0.10, 0.14, 0.12], [0.13, 0.16, 0.155], [0.12, 0.15, 0.125]
MODELS = {"CLIP-nano-baseline": BASE, "DiffCLIP-nano": FIRST, "DiffCLIP-nano-dynamic": SECOND}
GROUPS = [f"{name}={name} seed*" for name in MODELS]


def _write(root, seeds_of):
    for model, values in MODELS.items():
        for seed, value in zip(seeds_of(model), values, strict=True):
            fields = {"checkpoint_sha256": f"{model}{seed}"} | ({} if seed is None else {"training_seed": seed})
            put(root, f"{model} seed{value}", "few_shot", "dtd", {"accuracy": value}, **fields)


def _records(root):
    models = group_runs(read_models(root), GROUPS)
    text = csv_text(make_runs_table(our_entries(models, load_paper())))
    return {row["model"]: row for row in csv.DictReader(io.StringIO(text))}


def test_groups_of_the_same_seeds_are_compared_seed_by_seed(tmp_path):
    """In whichever order the seeds are read, and corrected for two comparisons."""
    _write(tmp_path, lambda model: (7, 8, 9))
    found = _records(tmp_path)
    ps = [ttest_rel(own, BASE).pvalue for own in (FIRST, SECOND)]
    for name, own, p, corrected in zip(list(MODELS)[1:], (FIRST, SECOND), ps, holm(ps), strict=True):
        row = found[name]
        assert (row["by seed"], row["baseline"], row["runs"], row["comparisons"]) == (
            "True",
            "CLIP-nano-baseline",
            "3",
            "2",
        )
        assert float(row["p"]) == pytest.approx(p, abs=5e-5)
        assert float(row["p Holm"]) == pytest.approx(corrected, abs=5e-5)
        interval = ttest_rel(own, BASE).confidence_interval()
        assert [float(row[f"difference {end}"]) for end in ("low", "high")] == pytest.approx(
            [100 * interval.low, 100 * interval.high], abs=1e-4
        )
        assert float(row["detectable"]) > 0
    assert found["CLIP-nano-baseline"]["p"] == ""


def test_results_that_do_not_say_the_seed_do_not_hide_it(tmp_path):
    """As those of POPE, which scores a language model's answers."""
    _write(tmp_path, lambda model: (7, 8, 9))
    for model, values in MODELS.items():
        for value in values:
            put(tmp_path, f"{model} seed{value}", "pope", "pope_random", pope(value))
    entries = our_entries(group_runs(read_models(tmp_path), GROUPS), load_paper())
    assert [set(entry.scores["few_shot/dtd"].seeds) for entry in entries] == [{7, 8, 9}] * 3


@pytest.mark.parametrize(
    "seeds_of",
    [
        pytest.param(lambda model: (None, None, None), id="unknown"),
        pytest.param(lambda model: (1, 2, 3) if model == "CLIP-nano-baseline" else (1, 2, 4), id="others"),
    ],
)
def test_groups_without_common_seeds_are_compared_by_welchs_test(seeds_of, tmp_path):
    _write(tmp_path, seeds_of)
    row = _records(tmp_path)["DiffCLIP-nano"]
    assert row["by seed"] == "False"
    assert float(row["p"]) == pytest.approx(ttest_ind(FIRST, BASE, equal_var=False).pvalue, abs=5e-5)


def test_a_group_has_one_curve(tmp_path):
    """The means of its runs, at the epochs that all of them have."""
    for seed, scores in enumerate([{2: 0.1, 4: 0.2, 6: 0.3}, {2: 0.3, 4: 0.6}]):
        for epoch, value in scores.items():
            fields = {
                "run": f"seed{seed}",
                "epoch": epoch,
                "training_seed": seed,
                "checkpoint_sha256": f"{seed}{epoch}",
            }
            label = f"DiffCLIP-nano seed{seed} epoch_{epoch}"
            put(
                tmp_path, label, "few_shot", "dtd", {"accuracy": value}, pretrained=f"{seed}/epoch_{epoch}.pt", **fields
            )
    models = read_models(tmp_path)
    curve = [(e.name, e.epoch, e.scores["few_shot/dtd"].value) for e in checkpoints_of(models, ["D=* seed*"])]
    assert curve == [("D epoch_2", 2, pytest.approx(20)), ("D epoch_4", 4, pytest.approx(40))]
    assert len(checkpoints_of(models)) == 5


def test_a_curve_has_no_epoch_that_a_run_of_its_group_lacks(tmp_path):
    """Which would be of fewer runs than its neighbours, and of other ones."""
    for seed, epochs in enumerate([(2, 4, 6), (2, 4, 6), (6,), (4, 6)]):
        for epoch in epochs:
            fields = {"run": f"seed{seed}", "epoch": epoch, "checkpoint_sha256": f"{seed}{epoch}"}
            label, place = f"DiffCLIP-nano seed{seed} epoch_{epoch}", f"{seed}/epoch_{epoch}.pt"
            put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.1}, pretrained=place, **fields)
    models = read_models(tmp_path)
    epochs_of = {
        seeds: [
            entry.epoch for entry in checkpoints_of(models, [f"D=* seed[{seeds}] *"]) if entry.name.startswith("D ")
        ]
        for seeds in ("01", "013", "012")
    }
    assert epochs_of == {"01": [2, 4, 6], "013": [4, 6], "012": []}


def test_the_report_has_the_table_where_there_are_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "save_figures", save_nothing)
    _write(tmp_path / "results", lambda model: (0, 1, 2))
    command.report(tmp_path / "results", tmp_path / "report", group=GROUPS)
    page = (tmp_path / "report" / "tables" / "training_runs.md").read_text()
    assert "Describable Textures" in page or "DTD" in page
    assert "corrected for the comparisons with the same baseline" in page
    command.report(tmp_path / "results", tmp_path / "single")
    assert not (tmp_path / "single" / "tables" / "training_runs.md").exists()
