"""Define attend, lambdas and bench: what models attend to, what their lambdas are, how fast they are."""

import argparse
from pathlib import Path

from diffclip_cli.arguments import MODEL, MODEL_GRAMMAR, SOURCE, SOURCE_GRAMMAR, AddCommand, add_models, add_overwrite

_ATTEND = f"""\
examples:
  diffclip attend photo.jpg --text mug --text lamp --model A,a.pt --model B,b.pt -o out.png   the paper's Figure 2
  diffclip attend photo.jpg --maps --model local-dir:OUT -o maps.png      A1, A2, A1 - lambda A2 of every layer and head
  diffclip attend photo.jpg --text mug --model local-dir:OUT -o out.html  a page to look around in, works offline

Any model that open_clip knows, with a ViT for images.
{MODEL_GRAMMAR}"""
_LAMBDAS = f"""\
examples:
  diffclip lambdas OUT                        a converted directory, or a checkpoint file
  diffclip lambdas logs/run -o lambdas.png    a run of open_clip_train: over its checkpoints
{SOURCE_GRAMMAR}"""
_BENCH_MODELS = ("CLIP-B-16-baseline", "DiffCLIP-B-16")
_BENCH = f"""\
examples:
  diffclip bench                                                 DiffCLIP-B-16 beside CLIP-B-16-baseline, float32
  diffclip bench --device cuda --precision amp_bf16 --compile --batch-size 256
  diffclip bench --model CLIP-S-16-baseline --model DiffCLIP-S-16 --image-size 224 336 448 --output curve.json
                                                                 writes curve.json and curve.png

Weights do not change the speed: the NAME of a model is enough.
{MODEL_GRAMMAR}"""


def _attend(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.explain.attend import show_attention

    return show_attention(
        arguments.image,
        texts=arguments.text,
        models=arguments.model,
        out=arguments.output,
        method=arguments.method,
        start_layer=arguments.start_layer,
        maps=arguments.maps,
        colormap=arguments.colormap,
        overwrite=arguments.overwrite,
    )


def _lambdas(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.explain.lambda_report import show_lambdas

    return show_lambdas(arguments.src, out=arguments.output, variant=arguments.variant, overwrite=arguments.overwrite)


def _bench(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.bench import measure, outputs

    if arguments.output is not None:
        outputs.check_output(arguments.output, overwrite=arguments.overwrite)
    settings = measure.settings_of(
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
        grad_checkpointing=arguments.grad_checkpointing,
        batch_sizes=arguments.batch_size,
        image_sizes=arguments.image_size,
        busy=arguments.busy,
    )
    passes = measure.PASSES[:1] if arguments.forward_only else measure.PASSES
    rows = measure.bench(arguments.model or _BENCH_MODELS, settings, rounds=arguments.rounds, passes=passes)
    if arguments.output is not None:
        outputs.write_outputs(rows, command=arguments.command, path=arguments.output, overwrite=arguments.overwrite)
    return [outputs.table(rows)]


def add_commands(command: AddCommand) -> None:
    """Add attend, lambdas and bench."""
    sub = command("attend", _attend, "Pictures of what models attend to in images, for texts.", _ATTEND)
    sub.add_argument("image", nargs="+", type=Path, metavar="IMAGE", help="files that Pillow can read")
    sub.add_argument("--text", action="append", default=[], help="what to look for; repeatable, a row each")
    add_models(sub, "whose attention is drawn; repeatable, a column each")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".png, .svg or .html")
    sub.add_argument(
        "--method", choices=("chefer", "rollout", "gradcam"), default="chefer", help="default: the paper's"
    )
    sub.add_argument("--start-layer", type=int, metavar="N", help="first layer that counts; default: the method's own")
    sub.add_argument("--maps", action="store_true", help="draw the attention maps themselves; B/16: 2.0 GB of memory")
    sub.add_argument("--colormap", default="inferno", help="matplotlib's name; the paper's is jet")
    add_overwrite(sub)

    sub = command("lambdas", _lambdas, "The lambda of every layer, over training where there is a run.", _LAMBDAS)
    sub.add_argument("src", metavar=SOURCE, help="weights, or the folder of a run of open_clip_train")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="plot: .png or .svg")
    sub.add_argument("--variant", choices=("static", "dynamic"), help="lambda_init, where SRC does not say")
    add_overwrite(sub)

    sub = command("bench", _bench, "Speed and memory of models beside each other.", _BENCH)
    sub.add_argument(
        "--model",
        action="append",
        metavar=MODEL,
        help=f"the first is what others are compared with; repeatable; default: {', '.join(_BENCH_MODELS)}",
    )
    sub.add_argument("--device", default="cpu", help="torch's name: cpu, cuda, mps")
    sub.add_argument("--precision", choices=("fp32", "amp_bf16", "pure_bf16"), default="fp32", help="as in open_clip")
    sub.add_argument("--compile", action="store_true", help="torch.compile the models")
    sub.add_argument("--grad-checkpointing", action="store_true", help="keep the blocks' inputs alone")
    sub.add_argument("--batch-size", type=int, nargs="+", default=[8], metavar="N", help="images at once; default: 8")
    sub.add_argument(
        "--image-size", type=int, nargs="+", default=[None], metavar="N", help="pixels; default: the model's own"
    )
    sub.add_argument("--forward-only", action="store_true", help="no train step, which needs memory for an optimizer")
    sub.add_argument(
        "--busy", type=int, default=0, metavar="N", help="processes that keep a core each busy meanwhile; default: 0"
    )
    sub.add_argument("--rounds", type=int, default=10, metavar="N", help="counted turns of each model; default: 10")
    sub.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there, and a plot beside it")
    add_overwrite(sub)
