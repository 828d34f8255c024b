"""Check diffclip's parser: it imports no host, offers what the package knows, and names models alike everywhere."""

import json
import re

import pytest
from support.common import run_python
from support.fuzz import leaves

from diffclip_cli.arguments import MODEL, MODEL_GRAMMAR, SOURCE, SOURCE_GRAMMAR
from diffclip_cli.main import build_parser
from diffclip_openclip import __version__
from diffclip_openclip.data.catalog import POPE_CATEGORIES, TASKS
from diffclip_openclip.evaluation.evaluator import PRECISIONS, Compute
from diffclip_openclip.explain.pictures import COLORMAP
from diffclip_openclip.models import VARIANTS
from diffclip_openclip.weights.source import PREPROCESS

PARSERS = dict(leaves(build_parser()))
LINES = ["--help", "--version", "", "--bad", "none", "data --help"]
LINES += [f"{name} {option}" for name in PARSERS for option in ("--help", "--bad")]

_ANSWERS = """
import sys
before = set(sys.modules)
import contextlib, io, json
from diffclip_cli.main import main

said = {}
for line in LINES:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(line.split())
        except SystemExit as ended:
            status = ended.code or 0
    said[line] = [status, out.getvalue(), err.getvalue()]
imported = {name.partition('.')[0] for name in set(sys.modules) - before}
print(json.dumps([said, sorted(imported - sys.stdlib_module_names)]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[dict[str, tuple[int, str, str]], list[str]]:
    """Return status, output and errors of every line that the parser answers alone, and what was imported for it."""
    code = _ANSWERS.replace("LINES", repr(LINES))
    said, imported = json.loads(run_python(code, tmp_path_factory.mktemp("answers")).splitlines()[-1])
    return said, imported


def test_answers_import_the_standard_library_alone(answers):
    """Importing the hosts, or the package that registers the models with them, takes seconds."""
    assert answers[1] == ["diffclip_cli"]


@pytest.mark.parametrize("line", LINES)
def test_answers(line, answers):
    status, out, err = answers[0][line]
    if line.endswith(("--help", "--version")):
        assert (status, err) == (0, "")
        assert out == f"{__version__}\n" if line == "--version" else out.startswith("usage: diffclip")
    else:
        assert (status, out) == (2, "")
        assert re.match(r"diffclip[\w -]*: error: ", err.splitlines()[-1])


# Choices and defaults are written out in the parser, which cannot import what has them.


@pytest.mark.parametrize(
    ("command", "option", "known"),
    [
        ("convert", "--variant", VARIANTS),
        ("convert", "--preprocess", PREPROCESS),
        ("warm-start", "--preprocess", PREPROCESS),
        ("evaluate", "--task", TASKS),
        ("evaluate", "--precision", PRECISIONS),
        ("pope", "--category", POPE_CATEGORIES),
    ],
)
def test_choices_are_the_packages(command, option, known):
    assert list(PARSERS[command]._option_string_actions[option].choices) == list(known)


def test_defaults_are_the_packages():
    given = build_parser().parse_args(["evaluate", "--model", "a", "--data", "b", "--output", "c", "--device", "cpu"])
    settings = vars(Compute())
    assert {name: getattr(given, name) for name in settings} == settings
    assert build_parser().parse_args(["attend", "a", "--model", "b", "-o", "c"]).colormap == COLORMAP


def test_models_are_named_alike_in_all_commands(answers):
    for name, parser in PARSERS.items():
        metavars = {action.metavar for action in parser._actions}
        help_text = answers[0][f"{name} --help"][1]
        assert (MODEL_GRAMMAR in help_text) == (MODEL in metavars), name
        assert (SOURCE_GRAMMAR in help_text) == (SOURCE in metavars), name
    assert sum(MODEL_GRAMMAR in out for _, out, _ in answers[0].values()) == 4
    assert sum(SOURCE_GRAMMAR in out for _, out, _ in answers[0].values()) == 2
