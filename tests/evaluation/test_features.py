"""Features for linear probe and few-shot: the backbone's, extracted once and in order."""

import shutil
from functools import partial

import open_clip
import pytest
import torch
from safetensors import SafetensorError
from support.common import read_tar, write_tar
from support.evaluation_data import LIMIT, extract, paper_subject

from diffclip_openclip.data.shards import Batch
from diffclip_openclip.evaluation import features
from diffclip_openclip.evaluation.evaluator import Compute
from diffclip_openclip.evaluation.features import BACKBONE, backbone, compute_features


def test_backbones_end_before_the_projection(loaded):
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad(), backbone(loaded.model) as encode:
        features = encode(images, Batch(0, images, ("a", "b"), ((0,), (1,))))["features"]
        assert features.shape == (2, 128)
        torch.testing.assert_close(loaded.model.visual.head(features), loaded.model.encode_image(images))


def test_openais_tower_and_its_projection_stays():
    model = open_clip.create_model("ViT-B-32").eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = model.encode_image(images)
        with backbone(model) as encode:
            features = encode(images, Batch(0, images, ("a",), ((0,),)))["features"]
        assert features.shape == (1, 768)
        assert torch.equal(model.encode_image(images), before)
        torch.testing.assert_close(features @ model.visual.proj, before)


def test_a_shard_is_extracted_once_and_workers_change_nothing(loaded, suite, tmp_path):
    subject = partial(paper_subject, loaded, "cifar100", suite)
    first = extract(subject(tmp_path, Compute(workers=0, batch_size=7)), "train")
    assert len(first.labels) == 11 * LIMIT
    kept = sorted((tmp_path / "features").rglob("*.safetensors"))
    assert len(kept) == 2  # of train and test
    states = [path.stat().st_mtime_ns for path in kept]
    again = extract(subject(tmp_path, Compute(workers=2)), "train")
    assert [path.stat().st_mtime_ns for path in kept] == states
    assert torch.equal(again.features, first.features)
    other = extract(subject(tmp_path / "other", Compute(workers=2)), "train")
    torch.testing.assert_close(other.features, first.features, atol=1e-5, rtol=1e-5)
    assert torch.equal(other.labels, first.labels)


def test_samples_in_several_shards_keep_their_order(loaded, suite, tmp_path):
    files = read_tar(suite / "pets" / "test" / "0.tar", 1000)
    for part in range(3):
        write_tar(tmp_path / "pets" / "test" / f"{part}.tar", files[part * 20 : part * 20 + 20 if part < 2 else None])
    (tmp_path / "pets" / "test" / "nshards.txt").write_text("3")
    shutil.copytree(suite / "pets" / "train", tmp_path / "pets" / "train")
    whole = extract(paper_subject(loaded, "pets", suite, tmp_path / "a", Compute(workers=0)), "test")
    parts = extract(paper_subject(loaded, "pets", tmp_path, tmp_path / "b", Compute(workers=2)), "test")
    assert torch.equal(parts.labels, whole.labels)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_named_and_nothing_of_it_kept(loaded, suite, tmp_path, workers):
    shutil.copytree(suite / "pets", tmp_path / "pets")
    shard = tmp_path / "pets" / "test" / "0.tar"
    files = read_tar(shard, 1000)
    write_tar(shard, [(name, data[:100] if name.endswith("5.webp") else data) for name, data in files])
    subject = partial(paper_subject, loaded, "pets", tmp_path)
    with pytest.raises(ValueError, match=r"pets/test/0\.tar cannot be read"):
        extract(subject(tmp_path / "memory", Compute(workers=workers)), "test")
    assert len(list((tmp_path / "memory").rglob("*.safetensors"))) == 1  # of train, which comes first
    write_tar(shard, [(name, data) for name, data in files if not name.endswith("3.cls")])
    with pytest.raises(ValueError, match=r"lacks an image .* or \.cls"):
        extract(subject(tmp_path / "memory", Compute(workers=workers)), "test")


def test_a_damaged_file_is_named_and_computed_again(loaded, suite, tmp_path, capsys):
    subject = paper_subject(loaded, "pets", suite, tmp_path, Compute(workers=0))
    first = extract(subject, "test")
    for path, damage in zip(sorted((tmp_path / "features").rglob("*.safetensors")), (0, 1000), strict=True):
        path.write_bytes(path.read_bytes()[:damage])
    again = extract(subject, "test")
    assert torch.equal(again.features, first.features)
    assert capsys.readouterr().out.count("is damaged") == 2


def test_another_shard_in_a_shards_place_is_counted_where_its_features_are_known(loaded, suite, tmp_path):
    """A copy that went wrong: the features of the smaller shard are in the cache already, by its content."""
    shutil.copytree(suite / "pets", tmp_path / "pets")
    folder, memory = tmp_path / "pets" / "test", tmp_path / "memory"
    files = read_tar(folder / "0.tar", 1000)
    write_tar(folder / "0.tar", files[:20])
    write_tar(folder / "1.tar", files[20:30])  # two files a sample
    (folder / "nshards.txt").write_text("2")
    (folder / "nsamples.txt").write_text("10\n5\n")
    compute = Compute(workers=0)
    assert len(extract(paper_subject(loaded, "pets", tmp_path, memory, compute), "test").labels) == 15
    shutil.copy(folder / "1.tar", folder / "0.tar")
    with pytest.raises(ValueError, match=r"test/0\.tar cannot be read: it has 5 samples instead of 10"):
        extract(paper_subject(loaded, "pets", tmp_path, memory, compute), "test")


def test_a_full_disk_names_the_file(loaded, suite, tmp_path, monkeypatch):
    def fail(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(features, "save_file", fail)
    with pytest.raises(OSError, match=r"features/\w+/\w+\.safetensors cannot be written: .* No space left on device"):
        extract(paper_subject(loaded, "pets", suite, tmp_path, Compute(workers=0)), "test")


def test_processes_compute_shards_in_turns(loaded, suite, tmp_path):
    """Each computes its own, and all together those of one process."""
    files = read_tar(suite / "pets" / "test" / "0.tar", 1000)
    for split in ("train", "test"):
        for part in range(3):
            write_tar(tmp_path / "pets" / split / f"{part}.tar", files[part * 20 : part * 20 + 20])
        (tmp_path / "pets" / split / "nshards.txt").write_text("3")
    subject = partial(paper_subject, loaded, "pets", tmp_path)
    alone = compute_features(subject(tmp_path / "a", Compute(workers=0)), BACKBONE)
    for rank in range(2):
        shared = compute_features(subject(tmp_path / "b", Compute(workers=0)), BACKBONE, rank, 2)
        assert sum(file.is_file() for file in shared["test"]) == (2, 3)[rank]
    for one, other in zip(alone["test"], shared["test"], strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_bfloat16_gives_nearly_the_same_features(loaded, suite, tmp_path):
    subject = partial(paper_subject, loaded, "pets", suite)
    exact, rounded = (
        extract(subject(tmp_path, Compute(workers=0, precision=precision)), "test").features
        for precision in ("fp32", "amp_bf16")
    )
    assert not torch.equal(exact, rounded)
    assert ((exact - rounded).norm() / exact.norm()).item() < 0.02  # bfloat16 has 8 bits
