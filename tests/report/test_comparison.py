"""Models find their baseline and their family, and remarks say what limits the comparison."""

import pytest
from support.report_results import CLIP, DIFF, put

from diffclip_openclip.report.comparison import our_entries, remarks
from diffclip_openclip.report.evaluated_models import read_models
from diffclip_openclip.report.paper import load_paper


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


# remarks


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
