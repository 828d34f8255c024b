"""Check the README's code blocks: Python runs, and shell commands are accepted by the programs they call."""

import argparse

import open_clip
import pytest
from safetensors.torch import save_file
from support.common import REPOSITORY, run_warm
from support.markdown import blocks, broken_links, check, commands, languages, python_code

from diffclip_cli.main import build_parser, main
from diffclip_openclip import to_reference

README = REPOSITORY / "README.md"


@pytest.fixture(scope="module")
def called(tmp_path_factory) -> list[list[str]]:
    """Return the words of every command."""
    return commands(README, tmp_path_factory.mktemp("shell"))


def test_python_blocks_run(tmp_path):
    assert len(blocks(README, "python")) >= 3
    assert all(block.needs is None for block in blocks(README, "python"))
    state_dict = open_clip.create_model("DiffCLIP-B-16").state_dict()
    save_file(to_reference(state_dict), tmp_path / "weights.safetensors")
    out = str(tmp_path / "OUT")
    assert main(["convert", str(tmp_path / "weights.safetensors"), out]) == 0
    assert main(["convert", out, str(tmp_path / "tower.safetensors"), "--to", "timm"]) == 0
    run_warm(python_code(README), tmp_path)


def test_commands_parse(called):
    """Commands behind torchrun are checked with the ``--`` that it needs; those of unknown programs fail."""
    for words in called:
        check(words)


def test_every_program_is_shown(called):
    programs = [words[words.index("--") + 1] if words[0] == "torchrun" else words[0] for words in called]
    assert programs.count("open_clip_train") >= 2
    assert {"clip_benchmark", "diffclip", "make", "pip"} <= set(programs)


def _subcommands() -> list[str]:
    (action,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return list(action.choices)


def test_every_subcommand_is_shown(called):
    assert {words[1] for words in called if words[0] == "diffclip"} == set(_subcommands())


def test_nothing_is_left_unchecked():
    assert set(languages(README)) <= {"bash", "python", "bibtex"}


def test_links_into_the_repository_exist():
    assert broken_links(README) == []
