"""attend, lambdas."""

import argparse
from pathlib import Path

from diffclip_openclip.commands.subcommand import AddCommand, add_overwrite

_ATTEND = """\
examples:
  diffclip attend photo.jpg --text mug --text lamp --model A,a.pt --model B,b.pt -o out.png   the paper's Figure 2
  diffclip attend photo.jpg --maps --model local-dir:OUT -o maps.png      A1, A2, A1 - lambda A2 of every layer and head
  diffclip attend photo.jpg --text mug --model local-dir:OUT -o out.html  a page to look around in, works offline

Models are open_clip's, ours or not, with a ViT for images.
"""
_LAMBDAS = """\
examples:
  diffclip lambdas OUT                        a converted directory, or a checkpoint file
  diffclip lambdas logs/run -o lambdas.png    a run of open_clip_train: over its checkpoints
"""


def _attend(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.explain.attend import attend

    return attend(
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

    return show_lambdas(arguments.src, arguments.output, variant=arguments.variant, overwrite=arguments.overwrite)


def add_commands(command: AddCommand) -> None:
    """What models attend to."""
    sub = command("attend", _attend, "Pictures of what models attend to in images, for texts.", _ATTEND)
    sub.add_argument("image", nargs="+", type=Path, metavar="IMAGE")
    sub.add_argument("--text", action="append", default=[], help="what to look for; repeatable, a row each")
    sub.add_argument(
        "--model", action="append", required=True, metavar="NAME[,PRETRAINED]", help="repeatable, a column each"
    )
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".png, .svg or .html")
    sub.add_argument(
        "--method", choices=("chefer", "rollout", "gradcam"), default="chefer", help="default: the paper's"
    )
    sub.add_argument("--start-layer", type=int, metavar="N", help="first layer that counts; default: the method's own")
    sub.add_argument("--maps", action="store_true", help="draw the attention maps themselves")
    sub.add_argument("--colormap", default="inferno", help="matplotlib's name; the paper's is jet")
    add_overwrite(sub)

    sub = command("lambdas", _lambdas, "The lambda of every layer, over training where there is a run.", _LAMBDAS)
    sub.add_argument("src", metavar="SRC", help="what `diffclip convert` takes, or a run of open_clip_train")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="plot: .png or .svg")
    sub.add_argument("--variant", choices=("static", "dynamic"), help="lambda_init, where SRC does not say")
    add_overwrite(sub)
