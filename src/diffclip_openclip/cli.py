"""The command ``diffclip``: its parser, and what becomes of errors."""

import argparse
import io
import logging
import shlex
import signal
import sys
from collections.abc import Sequence

from diffclip_openclip import __version__
from diffclip_openclip.commands import attention, bench, data, evaluation, report, weights
from diffclip_openclip.commands.subcommand import Run

_LONGEST_MESSAGE = 600  # characters, so that a list of a hundred missing keys stays one line that can be read
_BAD_INPUT = (ValueError, OSError, ImportError)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="diffclip", description="Tools for DiffCLIP models in open_clip.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, description: str, examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, prog=sub.prog)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    for module in (weights, data, evaluation, report, attention, bench):
        module.add_commands(command)
    return parser


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} ... (--debug shows all)"
    return message


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; bad input gives one line and status 2."""
    arguments = build_parser().parse_args(argv)
    arguments.command = shlex.join(["diffclip", *(sys.argv[1:] if argv is None else argv)])
    logging.getLogger().setLevel(logging.ERROR)  # the hosts' warnings are about models on their way to be loaded
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text that can be printed
        sys.stdout.reconfigure(errors="backslashreplace")
    # as for Ctrl-C: what is half written is cleaned up on the way out
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        print("\n".join(arguments.run(arguments)))
    except _BAD_INPUT as error:
        if arguments.debug:
            raise
        print(f"{arguments.prog}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{arguments.prog}: interrupted", file=sys.stderr)
        return 130
    return 0
