"""Run commands in this process, in a folder of their own and without a network, and see what they left where."""

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import huggingface_hub.constants
import matplotlib
import open_clip
import torch
from hypothesis import HealthCheck, Phase, settings
from PIL import Image
from support.common import write_tar
from support.images import encoded

from diffclip_cli.main import build_parser, main
from diffclip_openclip.data.catalog import SUGAR_CREPE_KINDS

matplotlib.get_configdir(), matplotlib.get_cachedir()  # which it makes at their first use
NAME, PLAIN = "DiffCLIP-nano", "CLIP-nano-baseline"


def few(count: int) -> settings:
    """Ask hypothesis for ``count`` examples, the same in every run; under ``make fuzz`` for more, and always others."""
    times = int(os.environ.get("DIFFCLIP_FUZZ", "1"))
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=count * times,
        deadline=None,
        derandomize=times == 1,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=checks,
    )


class Outcome(NamedTuple):
    """Hold how a command ended, what it printed, and which paths it touched."""

    status: object
    out: str
    err: str
    changed: set[Path]

    def refusal(self) -> str:
        """Return the one line that the command ends with when it refuses, and fail where it did not."""
        assert self.status == 2, self
        assert "Traceback (most recent call last)" not in self.err
        if self.err.startswith("usage: "):  # argparse's own, which repeats line breaks that it was given
            line = self.err[self.err.index("\ndiffclip") + 1 :]
        else:
            line = self.err.splitlines()[-1]
        assert line.startswith("diffclip"), self.err
        assert ": error: " in line, self.err
        return line


def unreachable(*_: object, **__: object) -> None:
    """Answer as a socket does on a machine without a network."""
    raise OSError(errno.ENETUNREACH, "Network is unreachable")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Work in ``folder``, with temporary files and downloads beside it, and leave the process as it was."""
    before, level, terminated = Path.cwd(), logging.getLogger().level, signal.getsignal(signal.SIGTERM)
    aside = folder.parent / "aside"
    aside.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, terminated)
        stack.callback(logging.getLogger().setLevel, level)
        stack.callback(os.chdir, before)
        stack.enter_context(mock.patch.object(socket.socket, "connect", unreachable))
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", unreachable))
        stack.enter_context(mock.patch.object(tempfile, "tempdir", str(aside)))
        stack.enter_context(mock.patch.object(huggingface_hub.constants, "HF_HUB_CACHE", str(aside)))
        stack.enter_context(mock.patch.dict(os.environ, HOME=str(aside)))
        os.chdir(folder)
        yield


def _state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return everything in ``folder``, and of files what changes when they are written or replaced."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[path] = () if path.is_dir() else (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def diffclip(words: list[str], folder: Path) -> Outcome:
    """Run the command in ``folder``, which has a parent of its own; raise whatever is no exit."""
    # as a terminal's, where not every name can be written
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    before = _state(folder.parent)
    with _alone(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: object = main(words)
        except SystemExit as ended:  # argparse's way
            status = ended.code
    after = _state(folder.parent)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    changed -= {
        folder.parent / "aside",
        *(folder.parent / "aside").glob(".cache/**/*"),
        folder.parent / "aside" / ".cache",
    }
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Outcome(status, *texts, changed)


@contextlib.contextmanager
def workplace(inputs: Path | None = None) -> Iterator[Path]:
    """Make a folder so deep that ``../..`` is not others' ground, with inputs in ``in`` and ``out`` to write to."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "a", "b", "c", "cwd")
        (folder / "out" / "folder").mkdir(parents=True)
        (folder / "out" / "file").write_text("here already")
        if inputs is not None:
            shutil.copytree(inputs, folder / "in", copy_function=os.link)
        yield folder


def outputs(words: list[str], folder: Path) -> list[Path]:
    """Return the places that a command line says to write to; none where it cannot be parsed."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            arguments = vars(build_parser().parse_args(words))
        except SystemExit:
            return []
    places = [arguments.get(name) for name in ("out", "data", "output")]
    named = [folder / place for place in places if isinstance(place, Path)]
    if words[0] == "bench":
        named += [place.with_suffix(".png") for place in named if place.name]
    return [Path(os.path.normpath(place)) for place in named]


def leaves(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every subcommand with its parser, as they are registered."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for name, sub in (pair for action in below for pair in action.choices.items()):
        yield from leaves(sub, f"{path} {name}".strip())
    if not below:
        yield path, parser


def make_inputs(root: Path) -> None:
    """Make what command lines name: all that good ones need, and some things that are not what they should be."""
    for name in (NAME, PLAIN):
        torch.save(open_clip.create_model(name).state_dict(), root / f"{name}.pt")
    (root / "cut.pt").write_bytes((root / f"{NAME}.pt").read_bytes()[:100_000])
    png = encoded(Image.new("RGB", (60, 48), (200, 30, 30)), "PNG")
    texts = "mmvp/MLLM_VLM Images/Texts"
    for name in ("image.png", "classes/cat/1.png", "classes/dog/1.png", f"{texts}/1.jpg", f"{texts}/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png)
    (root / "mmvp/Questions.csv").write_text("Question ID,Type,Statement\n1,Texts,a mug\n2,Texts,a lamp\n")
    entry = {"filename": "image.png", "split": "test", "sentences": [{"raw": "a mug"}]}
    (root / "dataset.json").write_text(json.dumps({"images": [entry]}))
    (root / "captions.csv").write_text("image,caption\nimage.png,a mug\n")
    question = {"filename": "image.png", "caption": "a mug", "negative_caption": "a lamp"}
    (root / "sugar-crepe").mkdir()
    for kind in SUGAR_CREPE_KINDS:
        (root / "sugar-crepe" / f"{kind}.json").write_text(json.dumps({"0": question}))
    (root / "winoground").mkdir()
    example = {"id": 0, "image_0": "../../image", "image_1": "../../image", "caption_0": "a mug", "caption_1": "mug a"}
    example |= {"tag": "", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": ""}
    (root / "winoground" / "examples.jsonl").write_text(json.dumps(example))
    (root / "winoground" / "images").mkdir()
    (root / "questions.jsonl").write_text('{"question_id": 1, "text": "Is there a dog?", "label": "yes"}\n')
    (root / "answers.jsonl").write_text('{"question_id": 1, "text": "No."}\n')
    (root / "noise.bin").write_bytes(bytes(range(256)) * 10)
    (root / "empty").mkdir()
    (root / "directory").mkdir()  # without weights
    config: dict[str, Any] = {"model_cfg": open_clip.get_model_config(NAME), "preprocess_cfg": {"mean": [0.5] * 3}}
    (root / "directory" / "open_clip_config.json").write_text(json.dumps(config))
    samples = [(f"{i}.{end}", data) for i in range(3) for end, data in (("png", png), ("cls", str(i % 2).encode()))]
    write_tar(root / "data" / "imagenet-r" / "test" / "0.tar", samples)
    (root / "data" / "imagenet-r" / "test" / "nshards.txt").write_text("1\n")
    (root / "data" / "imagenet-r" / "classnames.txt").write_text("cat\ndog\n")
