"""Give open_clip's unchanged trainer images and captions of any kind, and spoiled shards."""

import math
import random
import re
from io import BytesIO
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from support.common import EMOJI, read_tar, write_tar
from support.images import encoded
from support.training import (
    EPOCHS,
    Training,
    checkpoint_path,
    load_checkpoint,
    losses_in,
    on_shards,
    steps_of,
    training_arguments,
)

MODES = {"L": "PNG", "P": "PNG", "1": "PNG", "LA": "PNG", "RGBA": "PNG", "CMYK": "JPEG"}
LONG = "a mug " * 1700  # 10,200 characters


def _pair(name: str, image: bytes, kind: str, caption: bytes) -> list[tuple[str, bytes]]:
    return [(f"{name}.{kind.lower()}", image), (f"{name}.txt", caption)]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    (data,) = (data for name, data in read_tar(EMOJI / "train" / "noto.tar", 2) if name.endswith(".webp"))
    return Image.open(BytesIO(data)).convert("RGB")


@pytest.fixture(scope="module")
def unusual(picture, tmp_path_factory) -> Path:
    """Write 9 pairs that can be used: every mode, an empty and a long caption, a single pixel."""
    files = []
    for mode, kind in MODES.items():
        files += _pair(f"mode{mode}", encoded(picture.convert(mode), kind), kind, f"mode {mode}".encode())
    files += _pair("empty", encoded(picture, "PNG"), "png", b"")
    files += _pair("long", encoded(picture, "PNG"), "png", LONG.encode())
    files += _pair("pixel", encoded(Image.new("RGB", (1, 1)), "PNG"), "png", b"one pixel")
    path = tmp_path_factory.mktemp("unusual") / "unusual.tar"
    write_tar(path, files)
    return path


@pytest.fixture(scope="module")
def broken(picture, tmp_path_factory) -> Path:
    """Write 6 samples that cannot be used, and a pair that can."""
    png, jpeg = encoded(picture, "PNG"), encoded(picture, "JPEG")
    files = _pair("cut", png[: len(png) // 2], "png", b"cut") + _pair("cutjpeg", jpeg[:500], "jpg", b"cut")
    files += _pair("nothing", b"", "png", b"no image data") + _pair("latin", png, "png", b"\xff\xfe")
    files += [("imageless.txt", b"no image"), ("captionless.png", png), *_pair("good", png, "png", b"the good one")]
    path = tmp_path_factory.mktemp("broken") / "broken.tar"
    write_tar(path, files)
    return path


def _samples(shards: str, count: int, batches: int = 1) -> tuple[torch.Tensor, list[str]]:
    """Return ``batches`` batches of ``count`` images and texts, as the trainer would be given them."""
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    arguments = ["--model", "DiffCLIP-nano", *on_shards(shards, count * batches), "--batch-size", str(count)]
    args = parse_args([*arguments, "--workers", "0"])
    args.world_size = 1
    _, preprocess, _ = open_clip.create_model_and_transforms("DiffCLIP-nano", load_weights=False)
    tokenizer = open_clip.get_tokenizer("DiffCLIP-nano")
    loader = get_wds_dataset(args, preprocess, is_train=True, tokenizer=tokenizer).dataloader
    images, tokens = (torch.cat(column) for column in zip(*loader, strict=True))
    return images, [tokenizer.decode(row.tolist()).replace("!", "").strip() for row in tokens]


START, END = "<start_of_text>", "<end_of_text>"


def test_images_of_any_mode_and_captions_of_any_length_are_used(unusual):
    images, texts = _samples(str(unusual), 9)
    assert images.shape == (9, 3, 48, 48)
    assert images.isfinite().all()
    expected = {f"{START}mode {mode} {END}".lower() for mode in MODES}
    expected |= {f"{START}{END}", f"{START}one pixel {END}", f"{START}{'a mug ' * 7}{END}"}  # 16 tokens
    assert set(texts) == expected


def test_samples_that_cannot_be_read_are_left_out(broken, caplog):
    caplog.set_level("WARNING")
    images, texts = _samples(str(broken), 1, batches=3)  # three rounds, so two whole ones at least
    assert texts == [f"{START}the good one {END}"] * 3
    assert images.isfinite().all()
    kinds = ["image file is truncated", "UnidentifiedImageError", "UnicodeDecodeError"]
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    for kind in kinds:
        assert any("Handling webdataset error" in line and kind in line for line in said), kind
    # neither the shard nor the sample: open_clip hands no more to its handler
    assert not any("broken.tar" in line for line in said)


@pytest.mark.xfail(strict=True, reason="webdataset 0.2.86 seeds its shuffle with process id and time, not --seed")
def test_one_seed_gives_the_same_order_of_samples(train_shard):
    assert _samples(str(train_shard), 16)[1] == _samples(str(train_shard), 16)[1]


@pytest.mark.xfail(strict=True, reason="Pillow clips 16-bit greys to 255 where open_clip and clip_benchmark want RGB")
def test_sixteen_bits_keep_their_greys(picture, tmp_path):
    wide = picture.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
    for name, image in (("wide", wide), ("narrow", picture.convert("L"))):
        write_tar(tmp_path / f"{name}.tar", _pair("a", encoded(image, "PNG"), "png", b"grey"))
    wide, narrow = (_samples(str(tmp_path / f"{name}.tar"), 1)[0].flatten(1) for name in ("wide", "narrow"))
    torch.testing.assert_close(wide.std(), narrow.std(), rtol=0.2, atol=0.0)


@pytest.fixture(scope="module")
def spoiled(unusual, broken, train_shard, tmp_path_factory) -> tuple[Path, str]:
    """Train on shards that are whole, cut, damaged, empty, missing, or vanish meanwhile; return folder and log."""
    folder = tmp_path_factory.mktemp("spoiled")
    whole = train_shard.read_bytes()
    contents = {
        "whole": whole,
        "vanishing": whole,
        "cut": whole[: len(whole) // 2 + 100],
        "noise": random.Random(0).randbytes(20_000),
        "zero": b"",
        "unusual": unusual.read_bytes(),
        "broken": broken.read_bytes(),
    }
    for name, content in contents.items():
        (folder / f"{name}.tar").write_bytes(content)
    shards = f"{folder}/{{{','.join(contents)},missing}}.tar"
    with Training(folder, training_arguments(*on_shards(shards, 32))) as run:
        run.until("Train Epoch: 0 [ 8/32")
        (folder / "vanishing.tar").unlink()
        assert run.ended() == 0, run.log[-6000:]
        return folder, run.log


def test_training_goes_on_over_spoiled_shards(spoiled):
    folder, log = spoiled
    losses = losses_in(log)
    assert len(losses) == EPOCHS * 4
    # webdataset shuffles by process and time, so a batch may hold one caption several times and lose more than chance
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert sum(losses) / len(losses) < 4
    last = load_checkpoint(checkpoint_path(folder, f"epoch_{EPOCHS}"))
    assert steps_of(last) == {EPOCHS * 4}
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_spoiled_shards_are_named_in_the_log(spoiled):
    folder, log = spoiled
    for name, reason in {
        "cut": "unexpected end of data",
        "noise": "invalid header",
        "zero": "empty file",
        "missing": "No such file or directory",
        "vanishing": "No such file or directory",
    }.items():
        lines = [line for line in log.splitlines() if "Handling webdataset error" in line and reason in line]
        assert any(f"{folder}/{name}.tar" in line for line in lines), name
    assert not re.search("(whole|unusual)\\.tar'", log.partition("Start epoch 0")[2])


def test_without_one_readable_shard_it_names_them_and_never_begins(tmp_path):
    """Training does not end either: open_clip's loader goes round the shards until it has a batch."""
    (tmp_path / "noise.tar").write_bytes(random.Random(0).randbytes(20_000))
    with Training(tmp_path, training_arguments(*on_shards(f"{tmp_path}/{{noise,missing}}.tar", 32))) as run:
        run.until(f"No such file or directory', '{tmp_path}/missing.tar'", times=3)
        run.until(f"'{tmp_path}/noise.tar'", times=3)
        run.kill()
        assert "Train Epoch" not in run.log
