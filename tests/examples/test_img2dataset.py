"""img2dataset's shards of a web full of dead links and odd images, read by open_clip's trainer.

A server on this machine stands for the web, and the recipes' own ``data`` stage fetches from it. What the recipes say
of img2dataset 1.47.0 is checked here: what it takes, what it leaves out, and that the trainer reads what it counts.
"""

import contextlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import open_clip
import pytest
import torch
from open_clip_train.data import get_wds_dataset
from PIL import Image
from support.common import REPOSITORY, run_host, train_arguments

COMMAND = os.environ.get("IMG2DATASET") or shutil.which("img2dataset")

pytestmark = [
    pytest.mark.slow,  # a download with time-outs and an image of 81 megapixels, and the trainer: a minute
    pytest.mark.skipif(
        COMMAND is None,
        reason="img2dataset is not installed; it wants an environment of its own (examples/recipes/README.md), "
        "whose command is to be named in IMG2DATASET",
    ),
]

HUGE = 9000  # pixels a side
SHARD = 20  # addresses
TIMEOUT = 2  # seconds


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _drawing() -> Image.Image:
    """Red, green, blue and white quarters, 256 x 256: what becomes of its colours is easy to say."""
    image = Image.new("RGB", (256, 256), "white")
    for box, colour in (((0, 0), "red"), ((128, 0), "lime"), ((0, 128), "blue")):
        image.paste(Image.new("RGB", (128, 128), colour), box)
    return image


def _transparent() -> Image.Image:
    image = _drawing().convert("RGBA")
    image.putalpha(0)
    return image


def _gif() -> bytes:
    return _encoded(_drawing(), "GIF", save_all=True, append_images=[Image.new("RGB", (256, 256))] * 3)


def _deep() -> Image.Image:
    return Image.fromarray(np.full((256, 256), 20000, dtype=np.uint16))


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


# what becomes an image: bytes by path
GOOD = {
    "rgb.jpg": lambda: _encoded(_drawing(), "JPEG", quality=95),
    "grey.jpg": lambda: _encoded(_drawing().convert("L"), "JPEG"),
    "cmyk.jpg": lambda: _encoded(_drawing().convert("CMYK"), "JPEG", quality=95),
    "progressive.jpg": lambda: _encoded(_drawing(), "JPEG", progressive=True),
    "rgba.png": lambda: _encoded(_drawing().convert("RGBA"), "PNG"),
    "transparent.png": lambda: _encoded(_transparent(), "PNG"),
    "palette.png": lambda: _encoded(_drawing().convert("P"), "PNG"),
    "bilevel.png": lambda: _encoded(_drawing().convert("1"), "PNG"),
    "deep.png": lambda: _encoded(_deep(), "PNG"),
    "animated.gif": _gif,
    "still.webp": lambda: _encoded(_drawing(), "WEBP", quality=95),
    "still.bmp": lambda: _encoded(_drawing(), "BMP"),
    "still.tiff": lambda: _encoded(_drawing(), "TIFF"),
    "huge.jpg": lambda: _encoded(_drawing().resize((HUGE, HUGE), Image.Resampling.NEAREST), "JPEG"),
    "tiny.png": lambda: _encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "wide.png": lambda: _encoded(Image.new("RGB", (3000, 2), "red"), "PNG"),
    "wrong-type.jpg": lambda: _encoded(_drawing(), "JPEG"),
    "caf%C3%A9.png": lambda: _encoded(_drawing(), "PNG"),
}
# what does not
BROKEN = {
    "half.jpg": lambda: _half(_encoded(_noise(), "JPEG")),
    "half.png": lambda: _half(_encoded(_noise(), "PNG")),
    "half.gif": lambda: _half(_encoded(_noise(), "GIF")),
    "noise.jpg": lambda: bytes(range(256)) * 20,
    "empty.jpg": lambda: b"",
    "page.html": lambda: b"<html><body>This image has moved.</body></html>",
    "page.jpg": lambda: b"<html><body>This image has moved.</body></html>",
    "drawing.svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9"/></svg>',
}
# what the server does with other paths: status and headers
STATUS = {
    "gone.jpg": (404, {}),
    "forbidden.jpg": (403, {}),
    "failing.jpg": (500, {}),
    "moved.jpg": (302, {"Location": "rgb.jpg"}),
    "moved-away.jpg": (301, {"Location": "gone.jpg"}),
    "round.jpg": (302, {"Location": "round.jpg"}),
    "noai.jpg": (200, {"X-Robots-Tag": "noai"}),
}
# those of them that give an image, and which
REACHED = {"moved.jpg": "rgb.jpg"}
QUADRANTS = ("red", "lime", "blue", "white")
COLOURS = {"red": (254, 0, 0), "lime": (0, 255, 1), "blue": (0, 0, 254), "white": (255, 255, 255)}


class Web(http.server.BaseHTTPRequestHandler):
    """Answers as STATUS says, with what GOOD and BROKEN make; some answers come late, or are cut."""

    bodies: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        name = self.path.removeprefix("/")
        if name == "late.jpg":
            time.sleep(TIMEOUT + 2)
        status, headers = STATUS.get(name, (200, {}))
        body = self.bodies.get(name, self.bodies["rgb.jpg"])
        self.send_response(status)
        kind = "text/html" if name == "wrong-type.jpg" or name.endswith(".html") else "image/jpeg"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        with contextlib.suppress(ConnectionError):  # who asked for late.jpg has gone
            self.end_headers()
            self.wfile.write(_half(body) if name == "cut.jpg" else body)

    def log_message(self, *arguments):
        pass


class Shards:
    """What img2dataset made: its folder, and each sample by the name of its image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.statistics = [json.loads(path.read_text()) for path in sorted(folder.glob("*_stats.json"))]
        self.samples: dict[str, dict[str, bytes]] = {}
        for shard in sorted(folder.glob("*.tar")):
            files: dict[str, dict[str, bytes]] = {}
            with tarfile.open(shard) as tar:
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    files.setdefault(key, {})[kind] = tar.extractfile(member).read()
            for sample in files.values():
                self.samples[json.loads(sample["json"])["url"].rpartition("/")[2]] = sample

    def image(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.samples[name]["jpg"]))

    def total(self, key: str) -> int:
        return sum(statistics[key] for statistics in self.statistics)


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def captions() -> dict[str, str]:
    """By the images' names; all are different."""
    names = [*GOOD, *BROKEN, *STATUS, "late.jpg", "cut.jpg", "refused.jpg", "no-host.jpg", "a space.jpg"]
    captions = {name: f'{number}: "a" {name}' for number, name in enumerate(names)}
    return captions | {"grey.jpg": '"unbalanced', "rgba.png": "ναί, 漢字", "still.bmp": "", "cmyk.jpg": "NA"}


@pytest.fixture(scope="module")
def fetched(captions, tmp_path_factory) -> Iterator[Shards]:
    Web.bodies = {name: make() for name, make in {**GOOD, **BROKEN}.items()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hosts = {"refused.jpg": f"http://127.0.0.1:{_closed_port()}", "no-host.jpg": "http://nowhere.invalid"}
    web = f"http://127.0.0.1:{server.server_port}"
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "data").mkdir()
    lines = [f"{hosts.get(name, web)}/{name}\t{caption}\n" for name, caption in captions.items()]
    (folder / "data" / "cc12m.tsv").write_text("".join(lines), encoding="utf-8")
    command = ["bash", str(REPOSITORY / "examples" / "recipes" / "cc12m.sh"), "data", "--timeout", str(TIMEOUT)]
    run_host(command, folder, IMG2DATASET=COMMAND, SHARD_SIZE=str(SHARD), DOWNLOADERS="2")
    yield Shards(folder / "data" / "cc12m")
    server.shutdown()


def test_what_is_taken(fetched):
    assert set(fetched.samples) == {*GOOD, *REACHED}
    assert {Image.open(io.BytesIO(sample["jpg"])).format for sample in fetched.samples.values()} == {"JPEG"}


def test_statistics_count_what_is_there(fetched, captions):
    assert fetched.total("count") == len(captions)
    assert fetched.total("successes") == len(fetched.samples)
    reasons: dict[str, int] = {}
    for statistics in fetched.statistics:
        for reason, count in statistics["status_dict"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    text = "\n".join(f"{count} {reason}" for reason, count in reasons.items())
    for pattern in (
        r"2 HTTP Error 404: ",  # gone, and moved to what is gone
        r"1 HTTP Error 403: ",
        r"1 HTTP Error 500: ",
        r"1 HTTP Error 302: .*infinite loop",
        r"1 <urlopen error \[Errno 111\]",  # refused
        r"1 .*timed out",
        r"1 IncompleteRead",
        r"1 URL can't contain control characters",
        r"1 Use of image disallowed by X-Robots-Tag directive",
        rf"{len(BROKEN) - 1} Image decoding error",  # all but the empty file
    ):
        assert re.search(rf"^{pattern}", text, re.MULTILINE), (pattern, text)


def test_captions_are_the_lists(fetched, captions):
    for name, sample in fetched.samples.items():
        assert sample["txt"].decode("utf-8") == captions[name]


@pytest.mark.parametrize(
    "name", ["rgb.jpg", "cmyk.jpg", "rgba.png", "animated.gif", "huge.jpg", "still.webp", "moved.jpg"]
)
def test_images_keep_their_colours(name, fetched):
    image = fetched.image(name)
    assert (image.size, image.mode) == ((224, 224), "RGB")
    for colour, place in zip(QUADRANTS, ((56, 56), (168, 56), (56, 168), (168, 168)), strict=True):
        assert np.abs(np.subtract(image.getpixel(place), COLOURS[colour])).max() <= 3, (name, colour)


def test_what_becomes_of_odd_images(fetched):
    assert fetched.image("grey.jpg").mode == fetched.image("bilevel.png").mode == "L"
    assert fetched.image("grey.jpg").size == (224, 224)
    assert fetched.image("transparent.png").getpixel((9, 9)) == (255, 255, 255)
    # shorter than 224 pixels, so as they were
    assert fetched.image("tiny.png").size == (1, 1)
    assert fetched.image("wide.png").size == (3000, 2)
    # 16 bits are cut to 8 from above: 20,000 of 65,535 should be a dark grey
    assert fetched.image("deep.png").getpixel((9, 9)) == 255


def test_the_trainer_reads_every_sample(fetched):
    _, preprocess, _ = open_clip.create_model_and_transforms("DiffCLIP-nano")
    tokenizer = open_clip.get_tokenizer("DiffCLIP-nano")
    last = sorted(fetched.folder.glob("*.tar"))[-1].stem
    args = Namespace(val_data=f"{fetched.folder}/{{00000..{last}}}.tar", val_num_samples=None, batch_size=7, workers=1)
    loader = get_wds_dataset(args, preprocess, is_train=False, tokenizer=tokenizer).dataloader
    images, texts = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert images.shape == (len(fetched.samples), 3, 48, 48)
    assert torch.isfinite(images).all()
    expected = [tokenizer([sample["txt"].decode()])[0].tolist() for sample in fetched.samples.values()]
    assert sorted(texts.tolist()) == sorted(expected)


def test_trains(fetched, tmp_path):
    last = sorted(fetched.folder.glob("*.tar"))[-1].stem
    arguments = train_arguments(Path(f"{fetched.folder}/{{00000..{last}}}.tar"))
    arguments += ["--train-num-samples", str(fetched.total("successes")), "--epochs", "2", "--log-every-n-steps", "1"]
    output = run_host([sys.executable, "-m", "open_clip_train.main", *arguments], tmp_path).stdout
    losses = [float(loss) for loss in re.findall(r" Loss: (\S+)", output)]
    assert len(losses) == 2 * -(-len(fetched.samples) // 8)
    assert all(0 < loss < 4 for loss in losses)
    assert "Handling webdataset error" not in output


def test_going_on_fetches_unfinished_shards_only(fetched):
    """As after an interruption: a shard without statistics is fetched again, the others stay."""
    kept, cut = sorted(fetched.folder.glob("*.tar"))[:2]
    before = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:512])
    cut.with_name(f"{cut.stem}_stats.json").unlink()
    command = ["bash", str(REPOSITORY / "examples" / "recipes" / "cc12m.sh"), "data", "--timeout", str(TIMEOUT)]
    run_host(command, fetched.folder.parents[1], IMG2DATASET=COMMAND, SHARD_SIZE=str(SHARD), DOWNLOADERS="1")
    assert kept.stat().st_mtime_ns == before
    again = Shards(fetched.folder)
    assert again.total("count") == fetched.total("count")
    assert again.samples.keys() == fetched.samples.keys()
