"""report."""

import argparse
from pathlib import Path

from diffclip_openclip.commands.subcommand import AddCommand, add_overwrite

_REPORT = """\
examples:
  diffclip report RESULTS --output REPORT
  diffclip report RESULTS --output REPORT --match 'DiffCLIP-B-16 my-run epoch_40=CC12M/DiffCLIP'
  diffclip report --paper-only --output PAPER

REPORT/index.html shows all of it offline; tables are in REPORT/tables as Markdown and CSV, figures in REPORT/figures
as PNG and SVG. Rows of the paper: CC3M/CLIP, CC3M/DiffCLIP, CC12M/CLIP, CC12M/DiffCLIP, -dynamic, -vision.
"""


def _report(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.report.command import report

    return report(
        arguments.results,
        arguments.output,
        paper_only=arguments.paper_only,
        match=arguments.match,
        baseline=arguments.baseline,
        overwrite=arguments.overwrite,
    )


def add_commands(command: AddCommand) -> None:
    """The paper's tables and figures."""
    sub = command("report", _report, "The paper's tables and figures from results, beside its own numbers.", _REPORT)
    sub.add_argument("results", nargs="?", type=Path, metavar="RESULTS", help="folder that `diffclip evaluate` wrote")
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    sub.add_argument("--paper-only", action="store_true", help="the paper's own numbers, without results")
    sub.add_argument(
        "--match",
        action="append",
        default=[],
        metavar="MODEL=ROW",
        help="hold a model against a row of the paper, as in 'my run=CC12M/DiffCLIP'; repeatable",
    )
    sub.add_argument(
        "--baseline",
        metavar="MODEL",
        help="what all other models are compared with; default: the CLIP-...-baseline of the same size",
    )
    add_overwrite(sub)
