"""Run random command lines: each works, or ends in a line that says what is wrong, never in a crash from inside."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.fuzz import NAME, PLAIN, diffclip, few, leaves, make_inputs, outputs, workplace

from diffclip_cli.main import build_parser


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Make inputs for every command, results of an evaluation among them."""
    root = tmp_path_factory.mktemp("inputs") / "in"
    root.mkdir()
    make_inputs(root)
    words = f"evaluate --model {NAME},{NAME}.pt --data data --output R --workers 0"
    assert diffclip(words.split(), root).status == 0
    return root


# a line of each subcommand that works or, marked !, is refused only where work that takes long or a network would begin
GOOD = {
    "convert": f"in/{NAME}.pt out/new.safetensors --to timm",
    "warm-start": f"{PLAIN},in/{PLAIN}.pt out/new --preprocess slip",
    "push !": "in/directory owner/repo",
    "export !": "in/directory --format onnx",
    "data torchvision !": "cifar10 --source in/empty --data out/folder",
    "data folder": "set --source in/classes --data out/folder",
    "data karpathy": "flickr8k --annotations in/dataset.json --images in --data out/folder",
    "data captions": "set --annotations in/captions.csv --images in --data out/folder",
    "data mmvp": "--source in/mmvp --data out/folder",
    "data sugar-crepe": "--source in/sugar-crepe --images in --data out/folder",
    "data winoground": "--source in/winoground --data out/folder",
    "evaluate": f"--model {NAME},in/{NAME}.pt --data in/data --output out/folder --workers 0",
    "pope": "in/questions.jsonl in/answers.jsonl --category random --label a --output out/folder",
    "report": "in/R --output out/new",
    "attend": f"in/image.png --text mug --model {NAME},in/{NAME}.pt -o out/new.png",
    "lambdas": f"in/{NAME}.pt",
    "bench": f"--model {NAME} --rounds 2 --batch-size 2 --forward-only",
}
JUNK = ["", " ", "x", "None", "nan", "-", "--", "ü😀", "\udcff", "a\nb", "a" * 300, "a/" * 2500, "..", "../..", "."]
JUNK += ["{dataset}", "{x}", "%s", "~", "hf://owner", "hf://owner/repo", "http://localhost:1/x", "hf-hub:owner/repo"]
NUMBERS = ["-1", "0", "1", "3", "1.5", "1e3", "٣", "0x10", str(10**12), str(10**30)]
PLACES = ["cut.pt", "image.png", "dataset.json", "noise.bin", "empty", "directory", "data", "mmvp", "none", "R"]
WORDS = JUNK + NUMBERS + [f"in/{name}" for name in (*PLACES, "noise.bin/a", f"{NAME}.pt")] + ["in", os.devnull]
WORDS += ["out", "out/file", "out/file/a", "out/folder", "out/no/such", "out/new", "out/a.svg", "out/a.json"]
WORDS += [f"{NAME},in/cut.pt", f"{PLAIN},in/{NAME}.pt", f"{NAME}:in/{NAME}.pt", f"{NAME},", "DiffCLIP-X"]
WORDS += ["local-dir:in/directory", "local-dir:", "ViT-B-32,openai", "a=CC12M/CLIP"]
# what takes minutes, or shows a traceback on purpose
_LEFT_OUT = {"--compile", "--debug"}
PARSERS = dict(leaves(build_parser()))


def _values(option: Any) -> st.SearchStrategy[str]:
    """Draw values of an option, mostly of its own kind."""
    own = [*option.choices] if option.choices else NUMBERS if option.type is int else WORDS
    return st.sampled_from(own) | st.sampled_from(own) | st.sampled_from(WORDS)


def _split(words: list[str]) -> list[list[str]]:
    """Split a line into positional arguments, and options with their values."""
    parts: list[list[str]] = []
    for word in words:
        if parts and len(parts[-1]) == 1 and parts[-1][0].startswith("-") and not word.startswith("-"):
            parts[-1].append(word)
        else:
            parts.append([word])
    return parts


@st.composite
def command_lines(draw: Any, name: str) -> list[str]:
    """Draw the good line with values replaced, options added, and sometimes parts dropped, doubled or moved."""
    path = name.removesuffix(" !")
    known = PARSERS[path]._option_string_actions
    parts = _split(GOOD[name].split())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        kind = draw(st.sampled_from(["value"] * 6 + ["option"] * 4 + ["drop", "double", "move"]))
        if kind == "option":
            option = draw(st.sampled_from(sorted(known.keys() - _LEFT_OUT)))
            parts.append([option] if known[option].nargs == 0 else [option, draw(_values(known[option]))])
        elif kind == "value":
            option = parts[at][0]
            parts[at] = [*parts[at][:-1], draw(_values(known[option]) if option in known else st.sampled_from(WORDS))]
        elif kind == "double":
            parts.append(parts[at])
        elif len(parts) > 1:
            part = parts.pop(at)
            parts += [part] if kind == "move" else []
    if path == "bench":  # its default models take minutes, and so many rounds years
        assume(any(part[0] == "--model" for part in parts))
        assume(not any(part[0] == "--rounds" and part[-1] in NUMBERS[-2:] for part in parts))
    return [*path.split(), *(word for part in parts for word in part)]


def _check(words: list[str], folder: Path) -> None:
    """Fail unless the command works and writes where it was told to, or refuses in one line and changes nothing."""
    places = outputs(words, folder)
    ended = diffclip(words, folder)
    if ended.status != 0:
        line = ended.refusal()
        assert ended.err.startswith("usage: ") or _names_something(line, words), line
    if ended.status == 0 or words[0] == "evaluate":  # of which what went well stays
        stray = [path for path in ended.changed if not any(_belongs(path, place) for place in places)]
        assert stray == []
    else:
        assert ended.out == ""
        assert ended.changed == set()


def _names_something(refusal: str, words: list[str]) -> bool:
    """Return whether a refusal names a word that was given (blank ones are in all), or an option that is lacking."""
    message = refusal.partition(": error: ")[2]
    forms = {form for word in words[1:] for form in (word, repr(word)[1:-1], str(Path(word)), *Path(word).parts)}
    readable = {" ".join(form.encode("utf-8", "backslashreplace").decode().split()) for form in forms}
    if "" in readable:
        return True
    whole_words = (rf"(?<!\w){re.escape(word)}(?!\w)" for word in readable)
    return any(re.search(word, message) for word in whole_words) or "--" in message


def _belongs(path: Path, place: Path) -> bool:
    return path.is_relative_to(place) or place.is_relative_to(path)


def _check_lines(name: str, count: int, inputs: Path) -> None:
    @few(count)
    @given(words=command_lines(name))
    def run(words: list[str]) -> None:
        with workplace(inputs) as folder:
            _check(words, folder)

    run()


def test_every_subcommand_has_a_good_line(inputs):
    assert {name.removesuffix(" !") for name in GOOD} == PARSERS.keys()
    for name, words in GOOD.items():
        with workplace(inputs) as folder:
            ended = diffclip(f"{name.removesuffix(' !')} {words}".split(), folder)
            assert ended.status == (2 if name.endswith("!") else 0), (name, ended)


EXAMPLES = {"report": 4, "warm-start": 5, "attend": 6, "bench": 5, "evaluate": 6}


@pytest.mark.parametrize("name", GOOD)
def test_command_lines(name, inputs):
    _check_lines(name, EXAMPLES.get(name, 14), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_many_command_lines(name, inputs):
    _check_lines(name, 10 * EXAMPLES.get(name, 14), inputs)


# found by long runs
REFUSED = [
    f"bench --model {NAME} --rounds 2 --forward-only --image-size 1",
    f"bench --model {NAME} --rounds 2 --forward-only --batch-size {10**12}",
    "bench --model hf://owner --rounds 2",
    f"evaluate {GOOD['evaluate']} --batch-size 0",
    f"evaluate {GOOD['evaluate']} --batch-size -1",
    f"evaluate {GOOD['evaluate']} --workers -1",
    f"evaluate {GOOD['evaluate']} --seed {10**30}",
    f"evaluate {GOOD['evaluate'].replace('in/data', 'http://localhost:1/x')}",
    "data torchvision cifar10 --source in/empty --data out/folder --download",
    f"attend {GOOD['attend']} --text \udcff",
    f"data folder \udcff {GOOD['data folder'].partition(' ')[2]}",
]


@pytest.mark.parametrize("line", REFUSED, ids=range(len(REFUSED)))
def test_lines_that_are_refused(line, inputs):
    """They are refused before anything is written, in contrast to an evaluation that fails."""
    with workplace(inputs) as folder:
        _check(line.split(), folder)
        ended = diffclip(line.split(), folder)
        ended.refusal()
        assert ended.changed == set()
