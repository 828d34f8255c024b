"""What earlier versions wrote is read: results, cached features and classifiers, and data sets.

``data/written_before`` was written by the version of commit 063e4ef: results of each protocol by ``diffclip evaluate``
and ``diffclip pope`` on the emoji, data sets by ``diffclip data folder`` and ``diffclip data karpathy``, and the cache
of the stand-in for a model that is here, whose transform and hash no host's version changes.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.evaluation_data import extract

from diffclip_cli.main import main
from diffclip_openclip.data.catalog import FEW_SHOT, LINEAR_PROBE, SUGAR_CREPE, WINOGROUND, DataSet
from diffclip_openclip.data.layout import locate, shard_fingerprint
from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.evaluation import features, linear_probe, zero_shot
from diffclip_openclip.evaluation.evaluator import Compute, Subject
from diffclip_openclip.evaluation.results import (
    FIELDS,
    RESULT_TASKS,
    Identity,
    read,
    read_finished,
    read_outcomes,
    result_paths,
)

BEFORE = Path(__file__).parent / "data" / "written_before"
PATHS = result_paths(BEFORE / "RESULTS")


class FixedTransform:
    def __call__(self, image):
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255

    def __repr__(self):
        return "fixed transform"


@pytest.fixture
def subject(tmp_path, monkeypatch) -> Subject:
    """A model that cannot run, with a copy of the cache."""
    monkeypatch.setattr(features, "probe_transform", lambda loaded: FixedTransform())
    shutil.copytree(BEFORE / "RESULTS" / "cache", tmp_path / "cache")
    model = SimpleNamespace(visual=SimpleNamespace(trunk=None))
    loaded = SimpleNamespace(model=model, sha256="0123456789abcdef" * 4, preprocess_cfg={}, tokenizer=None)
    animals = DataSet("animals", "animals", (LINEAR_PROBE, FEW_SHOT), {"train": None, "test": None})
    location = locate("animals", ["train", "test"], [str(BEFORE / "DATA")])
    hashes = location.shard_hashes(tmp_path / "cache" / "fingerprints")
    return Subject(loaded, animals, location, hashes, Compute(workers=0), tmp_path / "cache")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_result_is_read_and_not_measured_again(path):
    content = read(path)
    assert content.keys() <= FIELDS.keys()
    depends = {key: content[key] for key in Identity.__dataclass_fields__ if key in content}
    identity = Identity(**depends)
    assert identity.path(BEFORE / "RESULTS") == path
    assert read_finished(identity, BEFORE / "RESULTS") == content
    assert read_outcomes(path) is None
    changed = Identity(**depends | {"dataset_sha256": "0" * 64})
    assert read_finished(changed, BEFORE / "RESULTS") is None


def test_there_is_a_result_of_every_task():
    later = {SUGAR_CREPE, WINOGROUND}  # which that version did not measure
    assert {path.parent.name for path in PATHS} == set(RESULT_TASKS) - later


def test_the_report_shows_them(tmp_path):
    assert main(["report", str(BEFORE / "RESULTS"), "--output", str(tmp_path / "REPORT")]) == 0
    tables = tmp_path / "REPORT" / "tables"
    probe = read(next(path for path in PATHS if path.parent.name == LINEAR_PROBE and path.stem == "pets"))
    assert f"{100 * probe['metrics']['accuracy']:.1f}" in (tables / "table1.md").read_text()
    assert "TinyLLaVA-DiffCLIP" in (tables / "table3.md").read_text()


def test_features_are_taken_from_the_cache(subject):
    """The model would fail, so that nothing is computed."""
    splits = linear_probe.read_splits(features.compute_features(subject, features.BACKBONE), subject.compute)
    assert splits.images == {"train": 6, "test": 6}
    kept = sorted((BEFORE / "RESULTS" / "cache" / "features").rglob("*.safetensors"))
    assert sorted((subject.cache_dir / "features").rglob("*.*")) == [
        subject.cache_dir / path.relative_to(BEFORE / "RESULTS" / "cache") for path in kept
    ]
    assert any(torch.equal(load_file(path)["features"], splits.test.features) for path in kept)
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_shard_that_is_missing_in_the_cache_is_extracted_alone(subject):
    """As after a kill: what is there is not computed again."""
    first = extract(subject, "test")
    (shard,) = subject.location.shards("test")
    content = shard_fingerprint(shard, subject.cache_dir / "fingerprints")
    (file,) = subject.cache_dir.rglob(f"{content}.safetensors")
    file.unlink()
    subject.loaded.model.visual.trunk = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    torch.testing.assert_close(extract(subject, "test").features, first.features)
    subject.loaded.model.visual.trunk = None
    extract(subject, "train")


def test_classifiers_are_taken_from_the_cache(subject, monkeypatch):
    monkeypatch.setattr(zero_shot, "embed_classes", None)
    assert zero_shot._classifier(subject, subject.location.class_names, ["a {c}"]).tolist() == [
        [0.0, 1.0, 2.0],
        [3.0, 4.0, 5.0],
    ]


def test_data_sets_are_read(tmp_path):
    location = locate("animals", ["train", "test"], [str(BEFORE / "DATA")])
    assert location.class_names == ["bird", "cat", "dog"]
    assert len(location.templates) == 80
    assert not location.has_captions
    for split in ("train", "test"):
        (shard,) = location.shards(split)
        samples = list(read_shard(shard, ("cls",), lambda image: image))
        assert [(image.size, label) for image, label in samples] == [((8, 8), label) for label in (0, 0, 1, 1, 2, 2)]
    # the hash by which results know their data
    fingerprint = "406c9cec7b7ecdc35e4cf47b43f6a952478544b1b74ab990e2609e2c480361bc"
    assert location.fingerprint(location.shard_hashes(tmp_path)) == fingerprint
    captioned = locate("flickr8k", ["test"], [str(BEFORE / "DATA")])
    assert captioned.has_captions
    captions = [text.splitlines() for _, text in read_shard(*captioned.shards("test"), ("txt",), lambda image: image)]
    assert captions == [[f"caption {index}", f"another {index}"] for index in range(3)]
