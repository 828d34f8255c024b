"""Define data with its forms, torchvision, folder, captions, ...: data sets into the evaluation's layout."""

import argparse
from pathlib import Path

from diffclip_cli.arguments import AddCommand, Run, add_overwrite

_DATA = """\
examples:
  diffclip data torchvision cifar10 --source torchvision --data DATA --download
  diffclip data folder imagenet1k --source imagenet/val --data DATA
  diffclip data folder my-images --source my-images --data DATA
  diffclip data karpathy flickr30k --annotations dataset_flickr30k.json --images flickr30k-images --data DATA
  diffclip data captions my-photos --annotations photos.csv --images photos --data DATA
  diffclip data mmvp --source MMVP_VLM --data DATA
  diffclip data sugar-crepe --source sugar-crepe/data --images val2017 --data DATA
  diffclip data winoground --source winoground --data DATA

Writes DATA/NAME/SPLIT in clip_benchmark's webdataset layout, which `diffclip evaluate` and clip_benchmark read; under
a name of your own, `diffclip evaluate --dataset NAME` does. docs/data.md says where each data set comes from.
"""


def _torchvision(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import torchvision_sets

    return torchvision_sets.convert(
        arguments.name,
        source=arguments.source,
        root=arguments.data,
        download=arguments.download,
        overwrite=arguments.overwrite,
    )


def _folder(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import folders

    return folders.convert(
        arguments.name,
        source=arguments.source,
        root=arguments.data,
        split=arguments.split,
        classnames=arguments.classnames,
        overwrite=arguments.overwrite,
    )


def _karpathy(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import karpathy

    return karpathy.convert(
        arguments.name,
        annotations=arguments.annotations,
        images=arguments.images,
        root=arguments.data,
        split=arguments.split,
        overwrite=arguments.overwrite,
    )


def _mmvp(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import mmvp

    return mmvp.convert(source=arguments.source, root=arguments.data, overwrite=arguments.overwrite)


def _captions(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import captions

    return captions.convert(
        arguments.name,
        annotations=arguments.annotations,
        images=arguments.images,
        root=arguments.data,
        split=arguments.split,
        image_key=arguments.image_key,
        caption_key=arguments.caption_key,
        overwrite=arguments.overwrite,
    )


def _sugar_crepe(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import sugar_crepe

    return sugar_crepe.convert(
        source=arguments.source, images=arguments.images, root=arguments.data, overwrite=arguments.overwrite
    )


def _winoground(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.data.sources import winoground

    return winoground.convert(source=arguments.source, root=arguments.data, overwrite=arguments.overwrite)


def add_commands(command: AddCommand) -> None:
    """Add data with its forms."""
    # a form is required and brings a run of its own, so that this one never counts
    data = command("data", _torchvision, "Data sets of other forms into the evaluation's layout.", _DATA)
    forms = data.add_subparsers(required=True, metavar="FORM")

    def form(name: str, run: Run, description: str) -> argparse.ArgumentParser:
        parser = forms.add_parser(name, help=description, description=description)
        parser.set_defaults(run=run, prog=parser.prog)
        parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder of all data sets")
        add_overwrite(parser)
        return parser

    sub = form("torchvision", _torchvision, "One of the nine data sets of linear probe and few-shot.")
    sub.add_argument("name", metavar="NAME", help="caltech101, dtd, pets, flowers, sun397, fgvc_aircraft, cifar10, ...")
    sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="torchvision's root")
    sub.add_argument("--download", action="store_true", help="let torchvision fetch what is not there")

    sub = form("folder", _folder, "Images in a folder for each class: ImageNet and its variants, or any others.")
    sub.add_argument(
        "name", metavar="NAME", help="imagenet1k, imagenetv2, imagenet-a, imagenet-r, imagenet_sketch, or your own"
    )
    sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the folder of the class folders")
    sub.add_argument("--split", default="test", help="folder of NAME to write; default: test")
    sub.add_argument("--classnames", type=Path, metavar="FILE", help="a name a line, for the folders in order")

    sub = form("karpathy", _karpathy, "Images with captions, split by Karpathy's JSON.")
    sub.add_argument("name", metavar="NAME", help="flickr30k, flickr8k, mscoco_captions")
    sub.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="dataset_flickr30k.json, ...")
    sub.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder that its names start from")
    sub.add_argument("--split", default="test", help="of the JSON, and folder of NAME to write; default: test")

    sub = form("mmvp", _mmvp, "MMVP-VLM: Questions.csv and its images.")
    sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the folder of Questions.csv")

    sub = form("captions", _captions, "Images with captions of your own, from a table or JSON.")
    sub.add_argument("name", metavar="NAME", help="your own")
    sub.add_argument("--annotations", type=Path, required=True, metavar="FILE", help=".csv, .tsv, .json or .jsonl")
    sub.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder that its names start from")
    sub.add_argument("--split", default="test", help="folder of NAME to write; default: test")
    sub.add_argument("--image-key", default="image", metavar="KEY", help="title or key of an image's name")
    sub.add_argument("--caption-key", default="caption", metavar="KEY", help="title or key of its captions")

    sub = form("sugar-crepe", _sugar_crepe, "SugarCrepe: its JSON files and COCO's val2017.")
    sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the folder of add_obj.json, ...")
    sub.add_argument("--images", type=Path, required=True, metavar="DIR", help="COCO's folder val2017")

    sub = form("winoground", _winoground, "Winoground: its examples and images.")
    sub.add_argument("--source", type=Path, required=True, metavar="DIR", help="the folder of examples.jsonl")
