"""Remarks say what limits the comparison."""

import pytest
from support.report_results import CLIP, DIFF, put

from diffclip_openclip.report.comparison import our_entries
from diffclip_openclip.report.evaluated_models import group_runs, read_models
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.report.remarks import other_sizes, remarks


def test_data_of_another_size_than_the_published_are_named(tmp_path):
    put(tmp_path, CLIP, "few_shot", "dtd", {"accuracy": 0.5}, images={"train": 1880, "val": 1880, "test": 1880})
    put(tmp_path, DIFF, "few_shot", "dtd", {"accuracy": 0.5}, images={"train": 1880, "val": 1880, "test": 99})
    put(tmp_path, DIFF, "few_shot", "my-own", {"accuracy": 0.5}, images={"test": 5})
    models = read_models(tmp_path)
    assert remarks(models, our_entries(models, load_paper()))[-1] == (
        "Not to be compared with others' numbers, as the data are not of the published size: dtd. "
        "Their cells have the mark §, and the last table has the sizes."
    )
    assert other_sizes(models) == [("dtd", "test", "99 images", "1,880 images", (DIFF,))]
    assert [model.scores["few_shot/dtd"].is_other_size for model in models] == [False, True]
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


# training


def put_run(tmp_path, label: str, **params) -> None:
    """Write a result of a checkpoint, and its run's arguments as open_clip_train writes them."""
    checkpoint = tmp_path / label / "checkpoints" / "epoch_2.pt"
    checkpoint.parent.mkdir(parents=True)
    if params:
        text = "".join(f"{key}: {value}\n" for key, value in params.items())
        (tmp_path / label / "params.txt").write_text(text)
    put(tmp_path / "results", label, "few_shot", "dtd", {"accuracy": 0.5}, pretrained=str(checkpoint))


SAME = {
    "train_data": "a.tar",
    "train_num_samples": 1000,
    "epochs": 2,
    "batch_size": 64,
    "accum_freq": 4,
    "world_size": 1,
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"batch_size": 256, "accum_freq": 1, "lr": 0.1}, []),
        (
            {"train_data": "b.tar", "epochs": 3, "world_size": 2},
            [f"{DIFF} was not trained as {CLIP}: data b.tar and not a.tar; pairs seen 3,000 and not 2,000; "
             "epochs 3 and not 2; batch 512 and not 256."],
        ),
    ],
)  # fmt: skip
def test_other_training_than_the_baselines_is_said(tmp_path, changed, expected):
    put_run(tmp_path, CLIP, **SAME)
    put_run(tmp_path, DIFF, **SAME | changed)
    models = read_models(tmp_path / "results")
    assert remarks(models, our_entries(models, load_paper())) == expected


def test_training_that_is_known_of_one_alone(tmp_path):
    put_run(tmp_path, CLIP)
    put_run(tmp_path, DIFF, **SAME)
    models = read_models(tmp_path / "results")
    (line,) = remarks(models, our_entries(models, load_paper()))
    assert line == f"Whether {DIFF} was trained as {CLIP} is not known: no params.txt of {CLIP}."


def test_training_of_several_runs(tmp_path):
    for seed in (0, 1):
        put_run(tmp_path, f"CLIP-nano-baseline seed{seed}", **SAME)
        put_run(tmp_path, f"DiffCLIP-nano seed{seed}", **SAME | {"epochs": 2 + seed})
    models = group_runs(read_models(tmp_path / "results"), ["CLIP=CLIP*", "DiffCLIP=DiffCLIP*"])
    (line,) = remarks(models, our_entries(models, load_paper()))
    assert line == "DiffCLIP was not trained as CLIP: pairs seen 2,000, 3,000 and not 2,000; epochs 2, 3 and not 2."
