"""``diffclip evaluate`` on data sets that the paper does not have."""

import json
import shutil
from pathlib import Path

import pytest
from support.common import EMOJI, read_tar, run_host, script
from support.evaluation_data import arguments, result_files

from diffclip_cli.main import main
from diffclip_openclip.data.catalog import ZERO_SHOT

"""Data sets that the paper does not have."""


@pytest.fixture
def data(suite, tmp_path) -> Path:
    """Folders: mine (train, test, its own templates), plain (test), captions; and one of the paper's."""
    root = tmp_path / "data"
    shutil.copytree(suite / "pets", root / "mine")
    (root / "mine" / "zeroshot_classification_templates.txt").write_text("an emoji of {c}\na {c}\n")
    shutil.copytree(suite / "imagenet-r", root / "plain")
    (root / "plain" / "zeroshot_classification_templates.txt").unlink()
    shutil.copytree(suite / "flickr8k", root / "captions")
    shutil.copytree(suite / "mmvp", root / "mmvp")
    return root


def _run(spec, data, output, *options) -> dict[str, dict]:
    assert main(["evaluate", *arguments(spec, data, output), *options]) == 0
    return {path.relative_to(path.parents[1]).as_posix(): json.loads(path.read_text()) for path in result_files(output)}


def test_by_the_tasks_that_their_layout_allows(spec, loaded, data, checkpoint, tmp_path):
    named = [f"--dataset={name}" for name in ("mine", "plain", "captions", "mmvp")]
    found = _run(spec, data, tmp_path / "RESULTS", *named)
    assert sorted(found) == [
        "few_shot/mine.json",
        "linear_probe/mine.json",
        "mmvp/mmvp.json",
        "zeroshot_classification/mine_own.json",
        "zeroshot_classification/plain_openai-80.json",
        "zeroshot_retrieval/captions.json",
    ]
    assert found["linear_probe/mine.json"]["images"].keys() == {"train", "test"}
    # clip_benchmark on the same folder, whose own templates it takes
    plain = shutil.copy(checkpoint, tmp_path / "plain.pt")
    ours = _run(f"DiffCLIP-nano,{plain}", data, tmp_path / "BARE", "--dataset", "mine", "--task", ZERO_SHOT)
    command = [script("clip_benchmark"), "eval", "--model", "DiffCLIP-nano", "--pretrained", str(plain)]
    command += ["--dataset", "wds/mine", "--dataset_root", str(data / "mine"), "--output", "theirs.json"]
    run_host([*command, "--task", ZERO_SHOT, "--no_amp", "--num_workers", "1"], tmp_path)
    theirs = json.loads((tmp_path / "theirs.json").read_text())["metrics"]
    assert list(ours) == ["zeroshot_classification/mine_own.json"]
    assert ours["zeroshot_classification/mine_own.json"]["metrics"] == pytest.approx(theirs)


def test_other_templates_are_other_data(spec, data, tmp_path):
    options = ("--dataset", "mine", "--task", ZERO_SHOT)
    (first,) = _run(spec, data, tmp_path / "RESULTS", *options).values()
    (data / "mine" / "zeroshot_classification_templates.txt").write_text("no {c}\n")
    (second,) = _run(spec, data, tmp_path / "RESULTS", *options).values()
    assert first["dataset_sha256"] != second["dataset_sha256"]


def test_folders_that_diffclip_data_made(spec, tmp_path):
    for split in ("train", "test"):
        for index, (name, data) in enumerate(read_tar(EMOJI / "eval" / "retrieval" / "test" / "0.tar", 120)[::2]):
            path = tmp_path / "source" / split / "abcde"[index % 5] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        source = str(tmp_path / "source" / split)
        target = ["--split", split, "--data", str(tmp_path / "D")]
        assert main(["data", "folder", "my-images", "--source", source, *target]) == 0
    found = _run(spec, tmp_path / "D", tmp_path / "RESULTS", "--dataset", "my-images")
    assert len(found) == 3
    probe = found["linear_probe/my-images.json"]
    assert probe["images"] == {"train": 60, "test": 60}
    assert 0 < probe["metrics"]["accuracy"] <= 1


def test_the_rest_of_data_and_of_tasks_is_left_alone(spec, data, tmp_path, capsys):
    found = _run(spec, data, tmp_path / "RESULTS")
    assert list(found) == ["mmvp/mmvp.json"]
    assert "missing: pets" in capsys.readouterr().out
    found = _run(spec, data, tmp_path / "RESULTS", "--dataset", "mine", "--dataset", "dtd", "--task", "few_shot")
    assert sorted(found) == ["few_shot/mine.json", "mmvp/mmvp.json"]
    out = capsys.readouterr().out
    assert "missing: dtd, splits train, val, test, for few_shot" in out
    assert "imagenet" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "nothing"], "has no data set 'nothing' with a split test"),
        (["--dataset", "../data/mine"], "'../data/mine' is no name of a data set"),
        (["--dataset", "dtd"], "has none of the data sets and tasks that are named"),
        (["--dataset", "mine", "--task", "mmvp"], "has none of the data sets and tasks that are named"),
        (["--dataset", "bare"], "has no classnames.txt, no split train, and no captions"),
        (["--dataset", "braces"], "'a {x} {c}' must have {c} for the class, and no other braces"),
    ],
)
def test_what_cannot_be_evaluated(spec, data, options, message, tmp_path, capsys):
    for name in ("bare", "braces"):
        shutil.copytree(data / "plain", data / name)
    (data / "bare" / "classnames.txt").unlink()
    (data / "braces" / "zeroshot_classification_templates.txt").write_text("a {x} {c}\n")
    assert main(["evaluate", *arguments(spec, data, tmp_path / "RESULTS"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not result_files(tmp_path / "RESULTS")


def test_zero_shot_on_a_probe_set_takes_its_own_templates(spec, suite, tmp_path):
    shutil.copytree(suite / "pets", tmp_path / "data" / "pets")
    (tmp_path / "data" / "pets" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\n")
    found = _run(spec, tmp_path / "data", tmp_path / "RESULTS", "--task", ZERO_SHOT)
    assert list(found) == ["zeroshot_classification/pets_own.json"]
    assert found["zeroshot_classification/pets_own.json"]["run"] == "a-run"
    assert found["zeroshot_classification/pets_own.json"]["epoch"] == 2
