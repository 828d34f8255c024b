"""What subcommands have in common."""

import argparse
from collections.abc import Callable
from typing import Protocol

# a subcommand's work: parsed arguments to lines that are printed
Run = Callable[[argparse.Namespace], list[str]]


class AddCommand(Protocol):
    """Makes the parser of a subcommand."""

    def __call__(self, name: str, run: Run, description: str, examples: str) -> argparse.ArgumentParser:
        """``examples`` ends the help text."""
        ...


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """--overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="replace this command's own old output")
