"""bench."""

import argparse
from pathlib import Path

from diffclip_openclip.commands.subcommand import AddCommand, add_overwrite

_BENCH_MODELS = ("CLIP-B-16-baseline", "DiffCLIP-B-16")
_BENCH = """\
examples:
  diffclip bench                                                 DiffCLIP-B-16 beside CLIP-B-16-baseline, float32
  diffclip bench --device cuda --precision amp_bf16 --compile --batch-size 256
  diffclip bench --model CLIP-S-16-baseline --model DiffCLIP-S-16 --image-size 224 336 448 --output curve.json
                                                                 writes curve.json and curve.png
"""


def _bench(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.bench import measure, outputs

    if arguments.output is not None:
        outputs.check_output(arguments.output, arguments.overwrite)
    settings = measure.settings_of(
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
        grad_checkpointing=arguments.grad_checkpointing,
        batch_sizes=arguments.batch_size,
        image_sizes=arguments.image_size,
    )
    passes = measure.PASSES[:1] if arguments.forward_only else measure.PASSES
    measured = measure.bench(arguments.model or _BENCH_MODELS, settings, rounds=arguments.rounds, passes=passes)
    if arguments.output is not None:
        outputs.save(measured, command=arguments.command, path=arguments.output, overwrite=arguments.overwrite)
    return [outputs.table(measured)]


def add_commands(command: AddCommand) -> None:
    """Speed and memory."""
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
    add_overwrite(sub)
