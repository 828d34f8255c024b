"""The samples of shards: the images that clip_benchmark gives."""

import numpy as np
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from support.common import write_tar

from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.explain.images import read_image


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
    shard = str(tmp_path / "one" / "test" / "0.tar")
    ours = [np.asarray(image).tolist() for image, _ in read_shard(shard, ("cls",), lambda image: image)]
    theirs = build_dataset("wds/one", str(tmp_path / "one"), lambda image: image, "test")
    assert ours[1:] == [np.asarray(image).tolist() for image, _ in theirs][1:]
    assert ours[0] == [[[grey] * 3 for grey in (0, 100, 200, 255)]]
    assert ours == [np.asarray(read_image(tmp_path / f"{index}.png")).tolist() for index in range(5)]
