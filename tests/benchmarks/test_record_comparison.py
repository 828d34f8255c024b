"""A comparison of emoji models is recorded with all that its page and its figure show."""

import json
import sys

import comparison_records
import pytest
import record_comparison
from comparison_figure import draw
from comparison_records import MAIN_SCORE, read_records
from comparison_tables import page_part
from matplotlib.figure import Figure
from model_groups import ARMS, Comparison
from record_comparison import collect
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
    found = collect(output, "1234567")
    assert found["seeds"] == [4, 5, 6]
    first, second = found["comparisons"]
    assert [*first["models"], *second["models"]] == [arm.title for arm in ARMS.values()]
    assert first["scores"][MAIN_SCORE]["DiffCLIP*"] == [8.25, 9.0, 8.0]
    assert first["curves"]["CLIP, gated"] == {"2": [3.0, 4.0, 3.0], "4": [5.0, 6.0, 5.0]}
    assert second["seconds"] == {"CLIP, continued": [62] * 3, "V2, warm-started": [62] * 3}
    (output / "runs" / "seed4-gated" / "seconds.json").write_text("[null, 60]")  # an attempt was killed
    (output / "runs" / "seed5" / "done").write_text('["baseline", "v2"]')
    found = collect(output, "1234567")
    assert found["seeds"] == [4, 6]
    assert found["comparisons"][0]["seconds"]["CLIP, gated"] == [None, 62]
    some = collect(output, "1234567", ["baseline", "v2"])
    assert some["seeds"] == [4, 5, 6]
    assert list(some["comparisons"][0]["models"]) == ["CLIP", "V2"]


def test_the_page_has_the_reports_words_of_each_number_of_epochs(output):
    record = collect(output, "1234567")
    record["comparisons"][1]["seconds"]["CLIP, continued"][0] = None
    some = collect(output, "7654321", ["baseline", "v2"]) | {"epochs": 2}
    said = page_part([record, some])
    assert "### 4 epochs\n\nTrained: 4 epochs, 4 more when continued; 3 seeds; commit 1234567; " in said
    assert "; a run took 1.0 minutes, 1.0 when continued (medians)." in said
    budget = "--continued-epochs 4 --points 2 --seeds 4 5 6"
    assert f"compare.py --epochs 4 {budget} --output OUTPUT\n" in said
    assert f"compare.py --epochs 2 {budget} --arms baseline v2 --output OUTPUT\n" in said
    assert "| unseen-vendor: zero-shot top-1 | 4.3 ±0.6 | 5.3 ±0.6 (+1.0 ns) |" in said
    assert "differences to CLIP, continued are beyond noise" in said
    assert "### 2 epochs\n\nTrained: 2 epochs; 3 seeds; commit 7654321; a run took 1.0 minutes (medians)." in said
    assert said.count("- Difference: to CLIP or CLIP, continued, by Student's test") == 1


def test_the_figure_has_curves_of_each_number_of_epochs(output, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    record = collect(output, "1234567")
    some = collect(output, "1234567", ["baseline", "continued", "warm-v2"]) | {"epochs": 2}
    for records in ([record, some], [some]):
        draw(records, tmp_path / "figure.png")
    (both, alone), titles = drawn, [arm.title for arm in ARMS.values()]
    short, long, right = both.axes
    assert (short.get_title(), long.get_title()) == ("trained for 2 epochs", "trained for 4 epochs")
    assert [len(axis.lines) for axis in (short, long)] == [3, 9]
    gated, continued = (long.lines[titles.index(title)] for title in ("CLIP, gated", "CLIP, continued"))
    assert list(gated.get_xdata()) == [2, 4]
    assert list(gated.get_ydata()) == pytest.approx([10 / 3, 16 / 3])
    assert list(continued.get_xdata()) == [6, 8]  # behind the four epochs that it goes on from
    assert [label.get_text() for label in right.get_yticklabels()] == titles
    assert [label.get_text() for label in alone.axes[-1].get_yticklabels()] == [titles[0], *titles[-2:]]
    assert [line.get_color() for line in alone.axes[0].lines] == [line.get_color() for line in short.lines]


def test_the_command_records_each_number_of_epochs_by_itself(output, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison_records, "RESULTS", tmp_path)
    monkeypatch.setattr(record_comparison, "FIGURE", tmp_path / "figure.png")
    record = collect(output, "1234567")
    (tmp_path / "emoji-comparison-12.json").write_text(json.dumps(record | {"epochs": 12}))
    arguments = ["record_comparison.py", str(output), "--commit", "7654321", "--arms", "baseline", "v2"]
    monkeypatch.setattr(sys, "argv", arguments)
    record_comparison.main()
    longer, shorter = read_records()
    assert (longer["epochs"], shorter["epochs"]) == (12, 4)
    assert (shorter["commit"], list(shorter["comparisons"][0]["models"])) == ("7654321", ["CLIP", "V2"])
    assert (tmp_path / "figure.png").is_file()
    monkeypatch.setattr(sys, "argv", [*arguments[:4], "--arms", *ARMS])
    with pytest.raises(SystemExit):
        record_comparison.main()
    assert "emoji-comparison-4.json" in capsys.readouterr().err
    assert read_records()[1] == shorter
    monkeypatch.setattr(sys, "argv", [*arguments[:4], "--overwrite"])
    record_comparison.main()
    assert read_records()[1]["comparisons"] == record["comparisons"]


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
    monkeypatch.setattr(sys, "argv", ["record_comparison.py", *arguments, "--commit", "1234567"])
    with pytest.raises(SystemExit):
        record_comparison.main()
    assert said in capsys.readouterr().err


def test_a_comparison_with_flags_of_its_own_is_not_recorded(output):
    settings = output / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"flags": ["--lr", "1"]}))
    with pytest.raises(ValueError, match="OUT was trained with --lr 1; only"):
        collect(output, "1234567")
