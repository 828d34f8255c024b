"""The command ``diffclip``: argument parsing and errors; each subcommand's work is in a module of its own."""

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffclip_openclip import __version__
from diffclip_openclip.weights.architecture import VARIANTS

_LONGEST_MESSAGE = 600  # characters, so that a list of a hundred missing keys stays one line that can be read
_BENCH_MODELS = ("CLIP-B-16-baseline", "DiffCLIP-B-16")
_BAD_INPUT = (ValueError, OSError, ImportError)

_CONVERT = """\
examples:
  diffclip convert hf://hammh0a/DiffCLIP_ViTB16_CC12M DiffCLIP-B-16   the authors' checkpoint, from the hub
  diffclip convert checkpoint_best.pt OUT --variant dynamic           DiffCLIP*, which weights do not tell
  diffclip convert logs/run/checkpoints/epoch_40.pt OUT               open_clip_train's checkpoint
  diffclip convert vit_diff.safetensors OUT --preprocess slip         a timm ViT with DiffAttention
  diffclip convert OUT reference.pt --to reference                    the authors' layout
  diffclip convert OUT tower.safetensors --to timm                    the image tower, for timm's checkpoint_path
  diffclip convert OUT OUT                                            after OUT was moved: correct its one path

OUT then loads by name: open_clip.create_model_and_transforms('local-dir:OUT').
"""
_WARM_START = """\
examples:
  diffclip warm-start ViT-B-16:laion2b_s34b_b88k OUT     a pretrained tag of open_clip
  diffclip warm-start ViT-B-32-quickgelu:openai OUT
  diffclip warm-start ViT-B-32:path/to/epoch_30.pt OUT   a file
  open_clip_train --model local-dir:OUT ...              then train on
"""
_PUSH = """\
example:
  diffclip push OUT owner/repo    then anywhere: open_clip.create_model_and_transforms('hf-hub:owner/repo')

Log in first with `hf auth login`, or set HF_TOKEN.
"""
_EXPORT = """\
example:
  diffclip export OUT --format onnx    writes OUT/onnx/image.onnx and OUT/onnx/text.onnx
"""
_BENCH = """\
examples:
  diffclip bench                                                 DiffCLIP-B-16 beside CLIP-B-16-baseline, float32
  diffclip bench --device cuda --precision amp_bf16 --compile --batch-size 256
  diffclip bench --model CLIP-S-16-baseline --model DiffCLIP-S-16 --image-size 224 336 448 --output curve.json
                                                                 writes curve.json and curve.png
"""


def _convert(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights.convert import convert

    return convert(
        arguments.src, arguments.out, arguments.to, arguments.variant, arguments.preprocess, arguments.overwrite
    )


def _warm_start(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights.warm_start import warm_start

    return warm_start(arguments.src, arguments.out, arguments.preprocess, arguments.overwrite)


def _push(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights.hub import push

    address = push(arguments.out, arguments.repo, arguments.private)
    return [address, f"load it anywhere with open_clip.create_model_and_transforms('hf-hub:{arguments.repo}')"]


def _export(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.export import export_onnx

    return export_onnx(arguments.out, arguments.out / "onnx", arguments.overwrite)


def _bench(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip import bench

    if arguments.output is not None:
        bench.check_output(arguments.output, arguments.overwrite)
    settings = bench.settings_of(
        arguments.device,
        arguments.precision,
        arguments.compile,
        arguments.grad_checkpointing,
        arguments.batch_size,
        arguments.image_size,
    )
    passes = bench.PASSES[:1] if arguments.forward_only else bench.PASSES
    rows = bench.bench(arguments.model or _BENCH_MODELS, settings, arguments.rounds, passes)
    if arguments.output is not None:
        bench.save(rows, arguments.command, arguments.output, arguments.overwrite)
    return [bench.table(rows)]


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="diffclip", description="Tools for DiffCLIP models in open_clip.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, description: str, examples: str) -> argparse.ArgumentParser:
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

    sub = command("convert", _convert, "Weights of any layout into a directory for open_clip, or back.", _CONVERT)
    sub.add_argument(
        "src", metavar="SRC", help="checkpoint file, directory made by this command, hf://owner/repo[/file]"
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="directory (or file, with --to) to write")
    sub.add_argument("--to", choices=("open_clip", "reference", "timm"), default="open_clip", help="layout of OUT")
    sub.add_argument("--variant", choices=VARIANTS, help="what weights do not tell: lambda_init, or V2's activation")
    _add_preprocess(sub)
    _add_overwrite(sub)

    sub = command("warm-start", _warm_start, "A trained CLIP as a DiffCLIP (V2) with the same outputs.", _WARM_START)
    sub.add_argument("src", metavar="SRC", help="NAME:TAG or NAME:FILE, NAME and TAG being open_clip's")
    sub.add_argument("out", metavar="OUT", type=Path, help="directory to write")
    _add_preprocess(sub)
    _add_overwrite(sub)

    sub = command("push", _push, "Upload a converted directory to the hub.", _PUSH)
    sub.add_argument("out", metavar="OUT", type=Path, help="directory made by convert or warm-start")
    sub.add_argument("repo", metavar="owner/repo")
    sub.add_argument("--private", action="store_true", help="make a new repository private")

    sub = command("export", _export, "Both towers of a converted directory in another runtime's format.", _EXPORT)
    sub.add_argument("out", metavar="OUT", type=Path, help="directory made by convert or warm-start")
    sub.add_argument("--format", choices=("onnx",), required=True)
    _add_overwrite(sub)

    sub = command("bench", _bench, "Speed and memory of models beside each other.", _BENCH)
    sub.add_argument("--model", action="append", help=f"open_clip's name, repeatable ({', '.join(_BENCH_MODELS)})")
    sub.add_argument("--device", default="cpu", help="torch's name: cpu, cuda, mps")
    sub.add_argument("--precision", choices=("fp32", "amp_bf16", "pure_bf16"), default="fp32", help="as in open_clip")
    sub.add_argument("--compile", action="store_true", help="torch.compile the models")
    sub.add_argument("--grad-checkpointing", action="store_true")
    sub.add_argument("--batch-size", type=int, nargs="+", default=[8])
    sub.add_argument("--image-size", type=int, nargs="+", default=[None], help="pixels; default: the model's own")
    sub.add_argument("--forward-only", action="store_true", help="no train step, which needs memory for an optimizer")
    sub.add_argument("--rounds", type=int, default=10, help="turns of each model that are counted")
    sub.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there, and a plot beside it")
    _add_overwrite(sub)
    return parser


def _add_preprocess(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preprocess",
        choices=("slip", "openai"),
        help="how images were preprocessed, where SRC does not say: slip (ImageNet mean and std, bilinear) or openai "
        "(OpenAI mean and std, bicubic)",
    )


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


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
