"""The README's code blocks: Python runs, shell commands are accepted by the programs they call."""

import argparse
import re
import shlex
import subprocess
import sys

import open_clip
import pytest
from conftest import REPOSITORY, run_python
from open_clip_train.params import parse_args
from safetensors.torch import save_file

from diffclip_openclip import to_reference
from diffclip_openclip.cli import build_parser, main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def _commands() -> list[list[str]]:
    lines = "\n".join(_blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _arguments(program: str) -> list[list[str]]:
    """Arguments of each command that calls ``program``, directly or behind torchrun."""
    return [words[words.index(program) + 1 :] for words in _commands() if program in words]


def test_python_blocks_run(tmp_path):
    blocks = _blocks("python")
    assert len(blocks) >= 3
    state_dict = open_clip.create_model("DiffCLIP-B-16").state_dict()
    save_file(to_reference(state_dict), tmp_path / "weights.safetensors")
    out = str(tmp_path / "OUT")
    assert main(["convert", str(tmp_path / "weights.safetensors"), out]) == 0
    assert main(["convert", out, str(tmp_path / "tower.safetensors"), "--to", "timm"]) == 0
    run_python("\n".join(blocks), tmp_path)


def test_every_shell_command_is_of_a_known_program():
    known = {
        "make",
        "pip",
        "git",
        "cd",
        "torchrun",
        "open_clip_train",
        "clip_benchmark",
        "python",
        "export",
        "diffclip",
    }
    assert {words[0] for words in _commands()} <= known


def test_trainer_commands_parse():
    commands = _arguments("open_clip_train")
    assert len(commands) >= 2
    for arguments in commands:
        model = parse_args(arguments).model
        assert model in open_clip.list_models() or model.startswith("local-dir:")


def test_benchmark_commands_parse(monkeypatch):
    from clip_benchmark.cli import get_parser_args

    commands = _arguments("clip_benchmark")
    assert commands
    for arguments in commands:
        monkeypatch.setattr(sys, "argv", ["clip_benchmark", *arguments])
        assert get_parser_args()[1].which == "eval"


def _subcommands() -> list[str]:
    (action,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return list(action.choices)


def test_diffclip_commands_parse():
    commands = [words[1:] for words in _commands() if words[0] == "diffclip"]
    assert {words[0] for words in commands} == set(_subcommands())
    for arguments in commands:
        build_parser().parse_args(arguments)


def test_make_targets_exist():
    for target, *_ in _arguments("make"):
        done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_torchrun_has_its_separator():
    """Without ``--``, torchrun takes the trainer's --logs for its own --logs-specs."""
    for words in _commands():
        if words[0] == "torchrun":
            assert words.index("--") < words.index("open_clip_train")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?://|#)([^)#]+)", README))))
def test_links_into_the_repository_exist(link):
    assert (REPOSITORY / link).exists()
