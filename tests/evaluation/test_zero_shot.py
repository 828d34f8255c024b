"""Zero-shot classification: clip_benchmark's numbers on the same data."""

import itertools
import json
import shutil

import pytest
from support.common import read_tar, run_host, script, write_tar
from support.evaluation_data import LIMIT, locate_paper, measure, paper_subject

from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.evaluation import zero_shot
from diffclip_openclip.evaluation.evaluator import Compute
from diffclip_openclip.weights.loading import load_model


def test_zero_shot_is_clip_benchmarks(loaded, suite, checkpoint, tmp_path):
    """The same numbers as its command, which takes a data set's own templates."""
    root = shutil.copytree(suite / "imagenet-r", tmp_path / "imagenet-r")
    plain = shutil.copy(checkpoint, tmp_path / "plain.pt")  # clip_benchmark does not read params.txt
    model = load_model(f"DiffCLIP-nano,{plain}")
    measured = measure(zero_shot, paper_subject(model, "imagenet-r", tmp_path, tmp_path / "memory"))
    ours = dict(zip(zero_shot.TEMPLATE_SETS, (each.metrics for each in measured), strict=True))
    count = LIMIT * len((root / "classnames.txt").read_text().splitlines())
    assert [each.images for each in measured] == [{"test": count}] * 2
    for metrics, _, outcomes, _ in measured:
        assert outcomes["label"].tolist() == [label for _, label in _samples(tmp_path)]
        assert outcomes["correct1"].mean() == pytest.approx(metrics["acc1"])
        assert outcomes["correct5"].mean() == pytest.approx(metrics["acc5"])
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


def _samples(root):
    """The test samples in the order of the shards."""
    for shard in locate_paper("imagenet-r", root).shards("test"):
        yield from read_shard(shard, ("cls",), lambda image: image)


def test_the_order_of_outcomes_does_not_depend_on_the_workers(loaded, suite, tmp_path):
    """Of three shards, whose batches come in turns."""
    files = read_tar(suite / "imagenet-r" / "test" / "0.tar", 1000)
    cuts = [0, 2 * LIMIT, 8 * LIMIT, len(files)]
    for part, (first, last) in enumerate(itertools.pairwise(cuts)):
        write_tar(tmp_path / "imagenet-r" / "test" / f"{part}.tar", files[first:last])
    (tmp_path / "imagenet-r" / "test" / "nshards.txt").write_text("3")
    shutil.copy(suite / "imagenet-r" / "classnames.txt", tmp_path / "imagenet-r")
    of_workers = [
        measure(
            zero_shot,
            paper_subject(loaded, "imagenet-r", tmp_path, tmp_path / str(n), Compute(workers=n, batch_size=7)),
        )
        for n in (0, 2)
    ]
    for alone, shared in zip(*of_workers, strict=True):
        assert alone.metrics == shared.metrics
        assert {k: v.tolist() for k, v in alone.outcomes.items()} == {k: v.tolist() for k, v in shared.outcomes.items()}


def test_a_label_beyond_the_class_names(loaded, suite, tmp_path):
    shutil.copytree(suite / "imagenet-r", tmp_path / "imagenet-r")
    (tmp_path / "imagenet-r" / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"the sample \w+ is of class 7, and its classnames\.txt has 2 lines"):
        measure(zero_shot, paper_subject(loaded, "imagenet-r", tmp_path, tmp_path))
