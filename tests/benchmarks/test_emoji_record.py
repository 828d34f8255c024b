"""A comparison of emoji models is recorded with all that its page and its figure show."""

import json
import sys

import emoji_record
import emoji_tables
import pytest
from emoji_figure import draw
from emoji_tables import MAIN_SCORE, page_part
from model_groups import ARMS, Comparison
from PIL import Image
from support.report_results import put


def _put_results(comparison, seeds) -> None:
    """Write what the processes of a comparison write: a score for each checkpoint, and how long training took."""
    for results, names in comparison.results().items():
        for seed in seeds:
            (comparison.output / "runs" / f"seed{seed}").mkdir(parents=True, exist_ok=True)
            (comparison.output / "runs" / f"seed{seed}" / "done").write_text(json.dumps(list(ARMS)))
            for place, name in enumerate(names):
                run = comparison.folder(seed, name)
                run.mkdir(parents=True)
                (run / "seconds.json").write_text("[60.4, 1.2]")
                for epoch in (2, 4):
                    label = f"{ARMS[name].model} {run.name} epoch_{epoch}"
                    metrics = {"acc1": (epoch + place + seed % 2 + (place == seed) / 4) / 100, "acc5": None}
                    fields = {"templates": "own", "training_seed": seed, "run": run.name, "epoch": epoch}
                    fields |= {"checkpoint_sha256": label, "pretrained": f"{run}/checkpoints/epoch_{epoch}.pt"}
                    put(results, label, "zeroshot_classification", "unseen-vendor", metrics, **fields)


@pytest.fixture
def output(tmp_path):
    """What compare.py made of three seeds."""
    comparison = Comparison(tmp_path / "OUT", 4, 4, 2, [])
    comparison.check_settings()
    _put_results(comparison, (4, 5, 6))
    return tmp_path / "OUT"


def test_the_record_has_the_seeds_that_are_complete(output):
    found = emoji_record.collect(output)
    assert found["seeds"] == [4, 5, 6]
    first, second = found["comparisons"]
    assert [*first["models"], *second["models"]] == [arm.title for arm in ARMS.values()]
    assert first["scores"][MAIN_SCORE]["DiffCLIP*"] == [8.25, 9.0, 8.0]
    assert first["curves"]["CLIP, gated"] == {"2": [3.0, 4.0, 3.0], "4": [5.0, 6.0, 5.0]}
    assert second["seconds"] == {"CLIP, continued": [62] * 3, "V2, warm-started": [62] * 3}
    (output / "runs" / "seed4-gated" / "seconds.json").write_text("[null, 60]")  # an attempt was killed
    (output / "runs" / "seed5" / "done").write_text('["baseline", "v2"]')
    found = emoji_record.collect(output)
    assert found["seeds"] == [4, 6]
    assert found["comparisons"][0]["seconds"]["CLIP, gated"] == [None, 62]
    some = emoji_record.collect(output, arms=["baseline", "v2"])
    assert some["seeds"] == [4, 5, 6]
    assert list(some["comparisons"][0]["models"]) == ["CLIP", "V2"]


def test_the_page_has_the_reports_words_of_each_number_of_epochs(output):
    record = emoji_record.collect(output)
    record["comparisons"][1]["seconds"]["CLIP, continued"][0] = None
    some = emoji_record.collect(output, arms=["baseline", "v2"]) | {"epochs": 2}
    said = page_part([record, some])
    assert "### 4 epochs\n\nTrained: 4 epochs, 4 when continued; 3 seeds; commit " in said
    assert "; a run took 1.0 minutes, 1.0 when continued (medians)." in said
    assert "| unseen-vendor: zero-shot top-1 | 4.3 ±0.6 | 5.3 ±0.6 (+1.0 ns) |" in said
    assert "a model is above CLIP so often: CLIP, gated in 3," in said
    assert "differences to CLIP, continued are beyond noise" in said
    assert "### 2 epochs\n\nTrained: 2 epochs; 3 seeds; commit " in said
    assert said.count("- Difference: to CLIP or CLIP, continued, by Student's test") == 1


def test_the_figure_has_curves_of_each_number_of_epochs(output, tmp_path):
    record = emoji_record.collect(output)
    some = emoji_record.collect(output, arms=["baseline", "continued", "warm-v2"]) | {"epochs": 2}
    for name, records in (("one", [record]), ("both", [record, some]), ("some", [some])):
        draw(records, tmp_path / f"{name}.png")
    one, both = (Image.open(tmp_path / f"{name}.png") for name in ("one", "both"))
    assert both.width > one.width > 1000
    assert both.height == one.height


def test_the_command_records_each_number_of_epochs_by_itself(output, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(emoji_record, "FIGURE", tmp_path / "figure.png")
    (tmp_path / "emoji-comparison-12.json").write_text(json.dumps(emoji_record.collect(output) | {"epochs": 12}))
    monkeypatch.setattr(
        sys, "argv", ["emoji_record.py", str(output), "--arms", "baseline", "v2", "--commit", "1234567"]
    )
    emoji_record.main()
    longer, shorter = emoji_tables.read_records()
    assert (longer["epochs"], shorter["epochs"]) == (12, 4)
    assert (shorter["commit"], list(shorter["comparisons"][0]["models"])) == ("1234567", ["CLIP", "V2"])
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["OUT", "--arms", "v2"], "the arms lack baseline, with which the others are compared"),
        (["OUT"], "complete in baseline, gated, half-heads, diffclip, dynamic, vision, v2, continued, warm-v2 are 1 s"),
        (["OTHER"], "OTHER has no settings.json; give what was compare.py's --output"),
    ],
)
def test_what_cannot_be_recorded_is_refused(arguments, said, output, tmp_path, monkeypatch, capsys):
    for seed in (4, 5):
        (output / "runs" / f"seed{seed}" / "done").write_text('["baseline", "v2"]')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["emoji_record.py", *arguments])
    with pytest.raises(SystemExit):
        emoji_record.main()
    assert said in capsys.readouterr().err
