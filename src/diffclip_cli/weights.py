"""Define convert, warm-start, push and export: weights in and out."""

import argparse
from pathlib import Path

from diffclip_cli.arguments import MODEL, MODEL_GRAMMAR, SOURCE, SOURCE_GRAMMAR, AddCommand, add_overwrite

_CONVERT = f"""\
examples:
  diffclip convert hf://hammh0a/DiffCLIP_ViTB16_CC12M DiffCLIP-B-16   the authors' checkpoint, from the hub
  diffclip convert checkpoint_best.pt OUT --variant dynamic           DiffCLIP*, which weights do not tell
  diffclip convert logs/run/checkpoints/epoch_40.pt OUT               open_clip_train's checkpoint
  diffclip convert vit_diff.safetensors OUT --preprocess slip         a timm ViT with DiffAttention
  diffclip convert OUT reference.pt --to reference                    the authors' layout
  diffclip convert OUT tower.safetensors --to timm                    the image tower, for timm's checkpoint_path
  diffclip convert OUT OUT                                            after OUT was moved: correct its one path

OUT then loads by name: open_clip.create_model_and_transforms('local-dir:OUT').
{SOURCE_GRAMMAR}"""
_WARM_START = f"""\
examples:
  diffclip warm-start ViT-B-16,laion2b_s34b_b88k OUT
  diffclip warm-start ViT-B-32-quickgelu,openai OUT
  diffclip warm-start ViT-B-32,path/to/epoch_30.pt OUT
  diffclip warm-start ViT-SO400M-14-SigLIP2,webli OUT --layers image
  diffclip warm-start ViT-L-14,openai OUT --layers image:12: --force-image-size 336
  open_clip_train --model local-dir:OUT ...              then train on
{MODEL_GRAMMAR}"""
_PUSH = """\
example:
  diffclip push OUT owner/repo    then anywhere: open_clip.create_model_and_transforms('hf-hub:owner/repo')

Log in first with `hf auth login`, or set HF_TOKEN.
"""
_EXPORT = """\
example:
  diffclip export OUT --format onnx    writes OUT/onnx/image.onnx and OUT/onnx/text.onnx
"""


def _convert(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights import convert

    return convert(
        arguments.src,
        arguments.out,
        to=arguments.to,
        variant=arguments.variant,
        preprocess=arguments.preprocess,
        overwrite=arguments.overwrite,
    )


def _warm_start(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights import warm_start

    return warm_start(
        arguments.model,
        arguments.out,
        layers=arguments.layers,
        image_size=arguments.force_image_size,
        preprocess=arguments.preprocess,
        overwrite=arguments.overwrite,
    )


def _push(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights import push

    address = push(arguments.out, arguments.repo, private=arguments.private)
    return [address, f"load it anywhere with open_clip.create_model_and_transforms('hf-hub:{arguments.repo}')"]


def _export(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.weights.onnx import export_onnx

    return export_onnx(arguments.out, arguments.out / "onnx", overwrite=arguments.overwrite)


def _add_preprocess(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preprocess",
        choices=("slip", "openai"),
        help="how images were preprocessed, where nothing says so: slip (ImageNet mean and std, bilinear) or openai "
        "(OpenAI mean and std, bicubic)",
    )


def add_commands(command: AddCommand) -> None:
    """Add convert, warm-start, push and export."""
    sub = command("convert", _convert, "Weights of any layout into a directory for open_clip, or back.", _CONVERT)
    sub.add_argument("src", metavar=SOURCE, help="weights to convert")
    sub.add_argument("out", metavar="OUT", type=Path, help="directory (or file, with --to) to write")
    sub.add_argument("--to", choices=("open_clip", "reference", "timm"), default="open_clip", help="layout of OUT")
    sub.add_argument(
        "--variant",
        choices=("static", "dynamic", "gelu", "quickgelu", "half-heads"),
        help="what weights do not tell: lambda_init, V2's activation, or a plain model's number of heads",
    )
    _add_preprocess(sub)
    add_overwrite(sub)

    sub = command("warm-start", _warm_start, "A trained CLIP as a DiffCLIP (V2) with the same outputs.", _WARM_START)
    sub.add_argument("model", metavar=MODEL, help="the trained CLIP")
    sub.add_argument("out", metavar="OUT", type=Path, help="directory to write")
    sub.add_argument(
        "--layers",
        default="all",
        metavar="WHICH",
        help="layers that become differential: all, image or text (one tower's), 6: (both towers' from layer 6 on, "
        "counted from 0), image:6: or --layers=-6: (the last six)",
    )
    sub.add_argument(
        "--force-image-size",
        type=int,
        metavar="PIXELS",
        help="another image size than the model's: its position embedding is resized, as open_clip_train does",
    )
    _add_preprocess(sub)
    add_overwrite(sub)

    sub = command("push", _push, "Upload a converted directory to the hub.", _PUSH)
    sub.add_argument("out", metavar="OUT", type=Path, help="directory made by convert or warm-start")
    sub.add_argument("repo", metavar="owner/repo", help="repository, made if it is not there")
    sub.add_argument("--private", action="store_true", help="make a new repository private")

    sub = command("export", _export, "Both towers of a converted directory in another runtime's format.", _EXPORT)
    sub.add_argument("out", metavar="OUT", type=Path, help="directory made by convert or warm-start")
    sub.add_argument("--format", choices=("onnx",), required=True, help="of the files in OUT")
    add_overwrite(sub)
