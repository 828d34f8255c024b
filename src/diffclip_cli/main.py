"""Run the command ``diffclip``: its parser, its exit status, and what becomes of errors."""

import argparse
import contextlib
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from diffclip_cli import data, evaluation, inspection, weights
from diffclip_cli.arguments import Run

_LONGEST_MESSAGE = 600  # characters, so that a list of a hundred missing keys stays one line that can be read
_BAD_INPUT = (ValueError, OSError, ImportError)
# what is refused where it is read comes first; these are left for inputs that are larger than anybody thought of
_TOO_LARGE = (MemoryError, RecursionError, OverflowError)


class _Version(argparse.Action):
    """Print the version that is installed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # its import takes longer than that of all the rest

        print(version("diffclip-openclip"))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, without importing what they call."""
    parser = argparse.ArgumentParser(prog="diffclip", description="Tools for DiffCLIP models in open_clip.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, description: str, epilog: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, prog=sub.prog)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    for module in (weights, data, evaluation, inspection):
        module.add_commands(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 0, also where nobody reads what was done, 2 for bad input, which is said in one line, and 130 for
    Ctrl-C. SIGTERM ends the process with 143, a closed terminal (SIGHUP) with 129.
    """
    try:
        arguments = build_parser().parse_args(argv)
        arguments.command = shlex.join(["diffclip", *(sys.argv[1:] if argv is None else argv)])
        return _run(arguments)
    finally:
        _flush()


def _run(arguments: argparse.Namespace) -> int:
    logging.getLogger().setLevel(logging.ERROR)  # the hosts' warnings are about models on their way to be loaded
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text that can be printed
        sys.stdout.reconfigure(errors="backslashreplace")
    for signum in _ends():
        signal.signal(signum, _end)
    try:
        lines = arguments.run(arguments)
        with contextlib.suppress(BrokenPipeError):  # the work is done, whether or not anybody reads about it
            print("\n".join(map(_printable, lines)), flush=True)
    except _BAD_INPUT as error:
        if arguments.debug:
            raise
        print(f"{arguments.prog}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except _TOO_LARGE as error:
        if arguments.debug:
            raise
        print(f"{arguments.prog}: error: the input is too large: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{arguments.prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def _ends() -> list[signal.Signals]:
    """Return the signals that end a command: a terminal that is closed sends SIGHUP, which nohup has it ignore."""
    names = ("SIGTERM", "SIGHUP")  # the second one is not on every system
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in found if signal.getsignal(number) is not signal.SIG_IGN]


def _end(number: int, _: object) -> NoReturn:
    """End as for Ctrl-C, so that what is half written is cleaned up on the way out; once, whoever asks again."""
    for other in _ends():
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _printable(line: str) -> str:
    """Return a line without commands for a terminal, which the keys of a checkpoint may hold."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in line)


def _one_line(error: BaseException) -> str:
    message = _printable(" ".join(str(error).split()) or type(error).__name__)
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} ... (--debug shows all)"
    return message


def _flush() -> None:
    """Write what is left, and give up what cannot be written, for which Python would fail at its end."""
    try:
        print(end="", flush=True)
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
