"""The script of the paper's models does all stages on nano models and small data, and says what it lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from support.checkpoints import save_as_published
from support.common import REPOSITORY, plain_environment, run_host, script
from support.discs import needs_skimage
from support.images import pictures, save
from support.segmentation_data import halves, write_ade20k, write_voc

SCRIPT = REPOSITORY / "benchmarks" / "paper_models.sh"
STAGES = ["models", "pictures", "score", "sinks", "attack", "voc", "ade20k"]


def _run(cwd, *stages, **variables):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = plain_environment(PATH=path, **variables)
    return subprocess.run(["bash", str(SCRIPT), *stages], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def data(tmp_path, eval_root):
    """The variables of a small run: checkpoints as the authors', and data in the formats of the real ones."""
    torch.manual_seed(0)
    for name, model in (("clip.pt", "CLIP-nano-baseline"), ("diffclip.pt", "DiffCLIP-nano")):
        save_as_published(open_clip.create_model(model), tmp_path / name)
    save(tmp_path / "photos" / "two words.jpg", pictures(1)[0])
    (tmp_path / "photos" / "two words.txt").write_text("a mug\na lamp")
    write_voc(tmp_path / "voc", {"a": halves(0, 20)})
    write_ade20k(tmp_path / "ade20k", {"ADE_val_00000001": halves(1, 3)})
    here = {"CLIP": "clip.pt", "DIFFCLIP": "diffclip.pt", "PHOTOS": "photos", "VOC": "voc", "ADE20K": "ade20k"}
    small = {"DEVICE": "cpu", "BATCH_SIZE": "8", "NUM_IMAGES": "4", "SCORE_IMAGES": "2", "OUT": "out"}
    return here | small | {"IMAGENET": str(eval_root / "groups")}


@needs_skimage
@pytest.mark.slow  # starts ten processes that import open_clip
def test_all_stages_and_the_next_run_repeats_none(data, tmp_path):
    done = _run(tmp_path, **data)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    written = {path.relative_to(out).as_posix() for path in out.glob("*.json")}
    assert written == {"score.json", "sinks.json", "attack.json", "voc.json", "ade20k.json"}
    assert Image.open(out / "pictures" / "two words.png").width > 100
    assert list(json.loads((out / "sinks.json").read_text())["models"]) == ["CLIP", "DiffCLIP"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    (out / "voc.png").unlink()  # as if stopped between the two files
    again = _run(tmp_path, **data)
    assert again.returncode == 0, again.stderr
    assert [line.split()[1].rpartition("/")[2] for line in again.stdout.splitlines() if line[:7] == "python3"] == [
        "segmentation.py"
    ]
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {"voc.json", "voc.png"}


def test_what_is_missing_is_told_before_anything_is_done(data, tmp_path):
    told = {
        "CLIP": "set CLIP: the authors' CLIP trained on CC12M",
        "PHOTOS": "set PHOTOS: a folder of pictures",
        "IMAGENET": "set IMAGENET: make it of ImageNet's validation images: diffclip data folder imagenet1k",
        "VOC": "set VOC: VOCdevkit/VOC2012 of http://",
        "ADE20K": "set ADE20K: the folder in http://",
    }
    for name, message in told.items():
        done = _run(tmp_path, **data | {name: ""})
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    assert not (tmp_path / "out").exists()
    done = _run(tmp_path, "voc", **data | {"VOC": "photos"})
    assert "VOC is photos, which has no ImageSets/Segmentation/val.txt" in done.stderr
    done = _run(tmp_path, "sinks", **data)
    assert "there are no models in out yet" in done.stderr
    done = _run(tmp_path, "sink", **data)
    assert f"there is no stage sink; there are: {' '.join(STAGES)}" in done.stderr


def test_figures_of_two_sources_are_not_mixed(data, tmp_path):
    (tmp_path / "out" / "CLIP").mkdir(parents=True)
    (tmp_path / "out" / "CLIP.source").write_text("other.pt\n")
    done = _run(tmp_path, "sinks", **data)
    assert (done.returncode, done.stdout) == (2, "")
    assert "out/CLIP was made of other.pt, not of clip.pt: set another OUT" in done.stderr
    done = _run(tmp_path, "sinks", **data | {"CLIP": "other.pt"})
    assert "there are no models in out yet" in done.stderr


def test_shellcheck():
    run_host([script("shellcheck"), str(SCRIPT)], REPOSITORY)
