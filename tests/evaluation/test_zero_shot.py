"""Zero-shot classification: clip_benchmark's numbers on the same data."""

import json
import shutil

import pytest
from support.common import run_host, script
from support.evaluation_data import LIMIT, paper_subject

from diffclip_openclip.evaluation import zero_shot
from diffclip_openclip.weights.loading import load_model


def test_zero_shot_is_clip_benchmarks(loaded, suite, checkpoint, tmp_path):
    """The same numbers as its command, which takes a data set's own templates."""
    root = shutil.copytree(suite / "imagenet-r", tmp_path / "imagenet-r")
    plain = shutil.copy(checkpoint, tmp_path / "plain.pt")  # clip_benchmark does not read params.txt
    model = load_model(f"DiffCLIP-nano,{plain}")
    measured = list(zero_shot.run(paper_subject(model, "imagenet-r", tmp_path, tmp_path / "memory")))
    ours = dict(zip(zero_shot.TEMPLATE_SETS, (metrics for metrics, _ in measured), strict=True))
    count = LIMIT * len((root / "classnames.txt").read_text().splitlines())
    assert [images for _, images in measured] == [{"test": count}] * 2
    for name, templates in zero_shot.TEMPLATE_SETS.items():
        (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
        command = [script("clip_benchmark"), "eval", "--model", "DiffCLIP-nano", "--pretrained", str(plain)]
        command += ["--dataset", "wds/imagenet-r", "--dataset_root", str(root), "--output", f"{name}.json"]
        command += ["--task", "zeroshot_classification", "--no_amp", "--num_workers", "1"]
        run_host(command, tmp_path)
        assert json.loads((tmp_path / f"{name}.json").read_text())["metrics"] == pytest.approx(ours[name])
    assert {name: len(templates) for name, templates in zero_shot.TEMPLATE_SETS.items()} == {
        "openai-80": 80,
        "paper-7": 7,
    }


def test_a_label_beyond_the_class_names(loaded, suite, tmp_path):
    shutil.copytree(suite / "imagenet-r", tmp_path / "imagenet-r")
    (tmp_path / "imagenet-r" / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"its classnames\.txt 2 lines"):
        list(zero_shot.run(paper_subject(loaded, "imagenet-r", tmp_path, tmp_path)))
