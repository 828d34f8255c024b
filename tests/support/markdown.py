"""Read code in Markdown pages, shell commands as bash reads them, and check it with the parsers that it is for.

A Python block that needs what tests do not have stands behind a line ``<!-- needs data: what -->``.
"""

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import open_clip
from packaging.requirements import Requirement
from support.common import REPOSITORY

_FENCE = re.compile(
    r"(?:^<!-- needs data: (?P<needs>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")

# writes every command's words, with their number before them and a NUL behind each, in place of running it
_RECORD = 'exec 3>"$1"; record() { printf "%s\\0" "$#" "$@" >&3; }; cd() { :; }; source() { :; }\n'


class Block(NamedTuple):
    """Hold a fenced block; ``needs`` says what it cannot run without."""

    language: str
    code: str
    needs: str | None


def blocks(page: Path, language: str) -> list[Block]:
    """Return the page's blocks of a language, "" for those of none."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"], match["code"], match["needs"]) for match in found if match["language"] == language]


def languages(page: Path) -> list[str]:
    """Return the language of each of the page's blocks; fail on a fence or a mark that belongs to no block."""
    text = page.read_text(encoding="utf-8")
    matches = list(_FENCE.finditer(text))
    assert text.count("```") == 2 * len(matches), f"{page.name}: a fence is not closed, or indented"
    marks = [match for match in matches if match["needs"]]
    assert text.count("<!-- needs data") == len(marks), f"{page.name}: a mark does not stand right above a block"
    return [match["language"] for match in matches]


def python_code(page: Path) -> str:
    """Return all Python of the page that can run here, in order."""
    return "\n".join(block.code for block in blocks(page, "python") if block.needs is None)


def commands(page: Path, folder: Path) -> list[list[str]]:
    """Return the commands of the page's bash blocks, each as its words, after all of bash's expansions.

    Bash runs the blocks, in ``folder``, but each of :data:`PROGRAMS` is a function that only records its words, and
    there are no others.
    """
    functions = "".join(f'{name}() {{ record {name} "$@"; }}\n' for name in PROGRAMS)
    recorded: list[list[str]] = []
    for block in blocks(page, "bash"):
        done = subprocess.run(
            [str(shutil.which("bash")), "-euc", _RECORD + functions + block.code, "bash", str(folder / "words")],
            cwd=folder,
            env={"PATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{page.name}: {done.stderr}\n{block.code}"
        recorded += _commands((folder / "words").read_text())
    return recorded


def _commands(words: str) -> list[list[str]]:
    rest, found = words.split("\0")[:-1], []
    while rest:
        count = int(rest[0])
        found.append(rest[1 : count + 1])
        rest = rest[count + 1 :]
    return found


def check(words: list[str]) -> None:
    """Fail unless the program that is called accepts its arguments."""
    program, *arguments = words
    status, said = 0, io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            PROGRAMS[program](arguments)
        except SystemExit as error:  # without a status for --version and --help
            status = error.code
    assert not status, f"{words}: {said.getvalue()}"


def _diffclip(arguments: list[str]) -> None:
    from diffclip_cli.main import build_parser

    build_parser().parse_args(arguments)


def _open_clip_train(arguments: list[str]) -> None:
    from open_clip_train.params import parse_args

    model = parse_args(arguments).model
    assert model in open_clip.list_models() or model.startswith("local-dir:"), f"open_clip has no model {model}"


def _clip_benchmark(arguments: list[str]) -> None:
    from clip_benchmark.cli import get_parser_args

    with mock.patch("sys.argv", ["clip_benchmark", *arguments]):
        assert get_parser_args()[1].which == "eval"


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import parse_args

    # without it, torchrun takes the trainer's --logs for its own --logs-specs
    assert "--" in arguments, f"torchrun {arguments} lacks -- before the program"
    given = parse_args(arguments)
    assert given.no_python, "a console script is no Python file: --no-python"
    check([given.training_script, *given.training_script_args])


def _python(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif arguments[:2] == ["-m", "venv"]:
        assert len(arguments) == 3
    elif arguments[:2] == ["-m", "open_clip_train.main"]:
        _open_clip_train(arguments[2:])
    else:
        assert (REPOSITORY / arguments[0]).is_file(), f"there is no {arguments[0]}"


def extras() -> set[str]:
    """Return the package's extras as pyproject.toml has them, since an editable install's metadata may be older."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.M))


def _pip(arguments: list[str]) -> None:
    """Fail unless the extras that are asked for exist."""
    assert arguments[0] in ("install", "uninstall", "wheel")
    for word in arguments[1:]:
        if word.startswith(("diffclip-openclip", ".")):
            asked = Requirement(word.replace(".", "diffclip-openclip", 1) if word.startswith(".") else word).extras
            assert asked <= extras(), f"{word}: there are {sorted(extras())}"


def _make(arguments: list[str]) -> None:
    done = subprocess.run(["make", "-n", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _unchecked(arguments: list[str]) -> None:
    """Accept any arguments of a program."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "clip_benchmark": _clip_benchmark,
    "diffclip": _diffclip,
    "make": _make,
    "open_clip_train": _open_clip_train,
    "pip": _pip,
    "python": _python,
    "torchrun": _torchrun,
} | dict.fromkeys(("cp", "git", "hf", "img2dataset", "jupyter", "sed", "srun", "tensorboard"), _unchecked)


def broken_links(page: Path) -> list[str]:
    """Return the page's links to files that are not there, or to headings that their page does not have."""
    return [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not _leads_somewhere(page, link)]


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(page: Path) -> set[str]:
    """Return GitHub's names of a page's headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}
