"""Class names and templates as clip_benchmark has them, and the ImageNet sets' folders."""

import json
from importlib.resources import files

from diffclip_openclip.extras import require

_SYNSETS = {
    "imagenet1k": "imagenet_synsets.txt",
    "imagenet_sketch": "imagenet_synsets.txt",
    "imagenet-a": "imagenet_a_synsets.txt",
    "imagenet-r": "imagenet_r_synsets.txt",
}


def class_names(key: str) -> list[str]:
    """The names of an entry of clip_benchmark's en_classnames.json, in the order of the labels."""
    return _of_clip_benchmark("en_classnames.json")[key]


def templates(dataset: str) -> list[str]:
    """clip_benchmark's templates for a data set, with ``{c}``; ImageNet's 80 where it has none of its own."""
    known = _of_clip_benchmark("en_zeroshot_classification_templates.json")
    return known.get(dataset, known["imagenet1k"])


def imagenet_folders(dataset: str) -> dict[str, str] | None:
    """The class folders of an ImageNet set and their class names, in the order of the labels; None for other sets.

    Folders are WordNet ids (timm@1.0.31:timm/data/_info), those of ImageNet-V2 the numbers of the classes.
    """
    if dataset == "imagenetv2":
        return {str(label): name for label, name in enumerate(class_names("imagenet1k"))}
    if dataset not in _SYNSETS:
        return None
    names = dict(zip(_synsets("imagenet1k"), class_names("imagenet1k"), strict=True))
    return {folder: names[folder] for folder in _synsets(dataset)}


def _synsets(dataset: str) -> list[str]:
    return (files("timm") / "data" / "_info" / _SYNSETS[dataset]).read_text(encoding="ascii").split()


def _of_clip_benchmark(file: str) -> dict[str, list[str]]:
    require("preparing data sets", "eval", "clip_benchmark")
    text = (files("clip_benchmark") / "datasets" / file).read_text(encoding="utf-8")
    loaded: dict[str, list[str]] = json.loads(text)
    return loaded
