"""The samples of shards: the images that clip_benchmark gives, and what is no sample."""

import tracemalloc

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from support.common import write_tar
from support.images import dots, encoded

from diffclip_openclip.data.layout import Shard, locate
from diffclip_openclip.data.shards import batches, read_shard
from diffclip_openclip.explain.images import read_image

PNG = encoded(dots(1)[0], "PNG")


def _read(path, *fields, samples=None):
    return list(read_shard(Shard(str(path), samples), fields or ("cls",), np.asarray))


def _batches(paths, workers=0):
    shards = [Shard(str(path)) for path in paths]

    def as_tensor(image):
        return torch.from_numpy(np.asarray(image).copy())

    return list(batches(shards, ["cls"], as_tensor, batch_size=2, workers=workers, pin_memory=False))


def _samples(count, **fields):
    """Write nothing; return the files of samples with an image and ``fields``."""
    fields = fields or {"cls": b"0"}
    return [(f"s{index}.{end}", data) for index in range(count) for end, data in ({"png": PNG} | fields).items()]


def test_images_are_clip_benchmarks_and_the_ones_that_attend_shows(tmp_path):
    """But for greys of 16 bits, which Pillow's own conversion clips."""
    rng = np.random.default_rng(0)
    greys = Image.fromarray(np.array([[0, 257 * 100, 257 * 200, 65535]], dtype=np.uint16))
    pictures = [greys] + [
        Image.fromarray(rng.integers(0, 256, (5, 4, channels), dtype=np.uint8).squeeze()) for channels in (4, 2, 3, 1)
    ]
    files = []
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
        files += [(f"{index}.png", (tmp_path / f"{index}.png").read_bytes()), (f"{index}.cls", b"0")]
    write_tar(tmp_path / "one" / "test" / "0.tar", files)
    (tmp_path / "one" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "one" / "classnames.txt").write_text("a\n")
    (tmp_path / "one" / "zeroshot_classification_templates.txt").write_text("{c}\n")
    ours = [image.tolist() for image, _ in _read(tmp_path / "one" / "test" / "0.tar")]
    theirs = build_dataset("wds/one", str(tmp_path / "one"), lambda image: image, "test")
    assert ours[1:] == [np.asarray(image).tolist() for image, _ in theirs][1:]
    assert ours[0] == [[[grey] * 3 for grey in (0, 100, 200, 255)]]
    assert ours == [np.asarray(read_image(tmp_path / f"{index}.png")).tolist() for index in range(5)]


def test_a_shard_that_is_cut_or_damaged_names_its_last_good_sample(tmp_path):
    write_tar(whole := tmp_path / "0.tar", _samples(20))
    data = whole.read_bytes()
    assert len(_read(whole)) == 20
    at_sample, in_header = 4 * 4 * 512, 4 * 4 * 512 + 100  # a sample is two headers and two blocks of content
    damaged = data[:at_sample] + b"\xff" * 400 + data[at_sample + 400 :]
    for index, bad in enumerate((data[:at_sample], data[:in_header], damaged), start=1):
        (tmp_path / f"{index}.tar").write_bytes(bad)
        message = rf"shard .*/{index}\.tar cannot be read: it is cut short or damaged after the sample s2: "
        with pytest.raises(ValueError, match=message):
            _read(tmp_path / f"{index}.tar")
        with pytest.raises(ValueError, match=message):
            _batches([whole, tmp_path / f"{index}.tar"])


def test_a_shard_has_the_samples_that_were_written(tmp_path):
    write_tar(tmp_path / "0.tar", _samples(3))
    assert len(_read(tmp_path / "0.tar", samples=3)) == 3
    with pytest.raises(ValueError, match=r"0\.tar cannot be read: it has 3 samples instead of 4"):
        _read(tmp_path / "0.tar", samples=4)
    write_tar(tmp_path / "1.tar", [])
    with pytest.raises(ValueError, match=r"1\.tar cannot be read: it has 0 samples instead of one at least"):
        _read(tmp_path / "1.tar")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cls": b"-1"}, r"its \.cls holds '-1'; it must be the class's number, 0 to 999,999"),
        ({"cls": b"10000000"}, r"its \.cls holds '10000000'; it must"),
        ({"cls": b"7" * 100_000}, r"its \.cls holds '77777777777777777777'\.\.\.; it must"),
        ({"cls": b"7" * 2_000_000}, r"\.cls claims 2,000,000 bytes; at most"),
        ({"cls": b"cat"}, "holds 'cat'"),
        ({"cls": b""}, "holds ''"),
        ({"txt": b" \n"}, r"its \.txt is empty; it must hold a caption a line"),
        ({"json": b"[" * 100_000}, r"ValueError its \.json is no JSON that is read here: it is nested too deeply"),
        ({"cls": b"0", "png": PNG[:40]}, "Error"),
        ({"cls": b"0", "png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "none of the formats JPEG, PNG"),
        ({}, r"lacks an image \(webp, png, jpg, jpeg\) or \.cls"),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path, fields, message):
    field = next((key for key in fields if key != "png"), "cls")
    bad = [(f"s1.{end}", data) for end, data in ({"png": PNG} | fields).items()]
    write_tar(tmp_path / "0.tar", [*_samples(1, **{field: b"0"}), *bad])
    with pytest.raises(ValueError, match=rf"0\.tar cannot be read: .*\bs1\b.*{message}"):
        _read(tmp_path / "0.tar", field)


def test_labels_as_others_write_them(tmp_path):
    write_tar(tmp_path / "0.tar", [*_samples(1, cls=b"12\n"), ("t.jpg", PNG), ("t.CLS", b" 007 ")])
    assert [label for _, label in _read(tmp_path / "0.tar")] == [12, 7]


def test_a_file_that_is_not_wanted_is_not_held_in_memory(tmp_path):
    write_tar(tmp_path / "0.tar", _samples(2, cls=b"0", npy=bytes(30_000_000)))
    tracemalloc.start()
    assert len(_read(tmp_path / "0.tar")) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["pipe:touch made; cat", "a::pipe:touch made", "{0..1}", "a'b\"c", "100%d"])
def test_names_are_paths_and_nothing_else(tmp_path, monkeypatch, name):
    """webdataset's opener would run the first two in a shell, and read several shards for the third."""
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / name / "0.tar", _samples(1, cls=b"3"))
    for other in ("0", "1"):
        write_tar(tmp_path / other / "0.tar", _samples(2))
    assert [label for _, label in _read(f"{name}/0.tar")] == [3]
    (tmp_path / name).rename(tmp_path / "test")
    (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "test").rename(tmp_path / "root" / name / "test")
    (tmp_path / "root" / name / "test" / "nshards.txt").write_text("1")
    (shard,) = locate(name, ["test"], ["root"]).shards("test")
    assert [label for _, label in _read(shard)] == [3]
    assert not (tmp_path / "made").exists()
