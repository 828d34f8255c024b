"""Benchmarks of several models group them by seed, draw the same images for all, and tell what their figures are of."""

import argparse
import json
import sys
from importlib.metadata import version

import pytest
import torch
from group_outputs import Curve, Panel, estimate_of, make_row, markdown, models_of, save_figure, write_results
from model_groups import (
    ARMS,
    Estimate,
    add_arguments,
    check_arguments,
    difference,
    group_specs,
    load_groups,
    over_seeds,
    over_seeds_or_images,
    read_images,
    run_specs,
)


def test_checkpoints_are_grouped_by_name_or_by_the_name_given(nano_checkpoints, tmp_path):
    plain, differential = nano_checkpoints["CLIP-nano-baseline"], nano_checkpoints["DiffCLIP-nano"]
    odd = tmp_path / "a=b.pt"  # a path may hold the sign
    odd.symlink_to(plain[0].partition(",")[2])
    assert group_specs([plain[0], differential[0], f"continued={plain[1]}", differential[1]]) == {
        "CLIP-nano-baseline": [plain[0]],
        "DiffCLIP-nano": differential,
        "continued": [plain[1]],
    }
    assert group_specs([f"CLIP-nano-baseline,{odd}"]) == {"CLIP-nano-baseline": [f"CLIP-nano-baseline,{odd}"]}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ValueError, match="there is no model to measure"):
        check_arguments(parser.parse_args(["--output", str(tmp_path / "out.json")]))


def test_runs_of_the_comparison_are_those_of_seeds_that_are_complete(tmp_path):
    settings = {"epochs": 12, "continued_epochs": 6, "points": 6, "flags": []}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    folders = [tmp_path / "runs" / f"seed{seed}-{name}" for seed in (0, 1, 10) for name in ARMS]
    for folder in folders:
        folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="has no seed that is trained in all of baseline, gated"):
        run_specs(tmp_path)
    for folder in folders:
        (folder / "done").touch()
    (tmp_path / "runs" / "seed1-v2" / "done").unlink()
    found = run_specs(tmp_path)
    assert next(iter(found)) == "CLIP"
    checkpoints = [f"{tmp_path}/runs/seed{seed}-diffclip/checkpoints/epoch_12.pt" for seed in (0, 10)]
    assert found["DiffCLIP"] == [f"DiffCLIP-nano,{path}" for path in checkpoints]
    assert found["V2, warm-started"][0].endswith("seed0-warm-v2/checkpoints/epoch_6.pt")


def test_the_interval_is_students():
    # t of 2 degrees of freedom: 4.303; the standard deviation of 1, 2, 3 is 1
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert over_seeds([0.5]) == Estimate(0.5, None, None, [0.5])


def test_differences_are_paired_by_seed():
    base = over_seeds([0.1, 0.5, 0.9])
    found = difference(over_seeds([0.2, 0.6, 1.0]), base)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference(over_seeds([0.2, 0.6]), base) is None
    assert difference(over_seeds([0.2]), over_seeds([0.1])) is None


def test_one_model_has_an_interval_over_images():
    hits = torch.arange(10) < 5
    # Wilson's of 5 of 10
    found = over_seeds_or_images([hits])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert over_seeds_or_images([hits, hits[:5]]) == over_seeds([0.5, 1.0])
    assert over_seeds_or_images([hits, hits[:0]]) is None


def test_images_are_drawn_alike_each_time(eval_root):
    everything = read_images(eval_root / "groups", 1000)
    assert len(everything.images) == len(everything.labels) == 32
    assert all(image.mode == "RGB" for image in everything.images)
    assert everything.templates
    drawn, again = (read_images(eval_root / "groups", 8, seed=3) for _ in range(2))
    content = [image.tobytes() for image in drawn.images]
    assert content == [image.tobytes() for image in again.images]
    places = [[image.tobytes() for image in everything.images].index(image) for image in content]
    assert places == sorted(set(places))
    assert drawn.labels == [everything.labels[place] for place in places]
    assert content != [image.tobytes() for image in read_images(eval_root / "groups", 8, seed=4).images]
    with pytest.raises(FileNotFoundError, match=r"has no test/nshards\.txt"):
        read_images(eval_root / "missing", 8)


def test_results_say_where_they_are_from(nano_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure.py", "--model", "a b"])
    specs = nano_checkpoints["DiffCLIP-nano"]
    groups = load_groups({"DiffCLIP-nano": specs[:1]})
    estimate = over_seeds([0.1, float("nan")])
    path = tmp_path / "out.json"
    row = make_row(estimate, difference(estimate, estimate), layer=3)
    write_results(path, {"rows": [row]}, groups=groups, device="cpu", overwrite=False)
    found = json.loads(path.read_text())
    assert found["command"] == "python measure.py --model 'a b'"
    assert found["models"] == {"DiffCLIP-nano": specs[:1]}
    assert found["commit"]
    assert found["machine"]["versions"]["torch"] == version("torch")
    assert found["rows"][0]["seeds"] == [0.1, None]  # JSON has no NaN
    assert str(estimate_of(found["rows"][0]).seeds) == "[0.1, nan]"
    with pytest.raises(FileExistsError):
        write_results(path, {}, groups=groups, device="cpu", overwrite=False)

    bounded, alone = Estimate(1.0, 0.5, 1.5, []), Estimate(2.0, None, None, [])
    line = Panel("sink", "layer", "ratio", [Curve("DiffCLIP-nano", [0, 1], [bounded, alone])] * 2, log=True)
    points = Panel("mIoU", "", "mIoU", [Curve("DiffCLIP-nano", [0, 1], [bounded, alone])], names=["VOC", "ADE20K"])
    save_figure([line, points, line], models_of(groups), tmp_path / "out.png", columns=2, overwrite=False)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_tables_are_markdown():
    assert markdown(["percent", "A"], [["x", "1.0"]]) == "| percent | A |\n| --- | ---: |\n| x | 1.0 |"
