"""Look up class names and templates as clip_benchmark has them, and the class folders of the ImageNet sets."""

import json
from importlib.resources import files

from diffclip_openclip.data.catalog import known_data_set
from diffclip_openclip.extras import require


def class_names(key: str) -> list[str]:
    """Return an entry of clip_benchmark's en_classnames.json: names in the order of the labels."""
    return _of_clip_benchmark("en_classnames.json")[key]


def templates(name: str) -> list[str]:
    """Return clip_benchmark's templates for a data set, with ``{c}``; ImageNet's 80 where it has none of its own."""
    known = _of_clip_benchmark("en_zeroshot_classification_templates.json")
    return known.get(name, known["imagenet1k"])


def imagenet_folders(name: str) -> dict[str, str] | None:
    """Return the class folders of an ImageNet set with their class names, by label; None for other data sets.

    Folders are WordNet ids; those of ImageNet-V2 are the numbers of the classes.
    """
    if name == "imagenetv2":
        return {str(label): class_name for label, class_name in enumerate(class_names("imagenet1k"))}
    if (synsets := _synsets(name)) is None:
        return None
    names = dict(zip(_synsets("imagenet1k") or [], class_names("imagenet1k"), strict=True))
    return {folder: names[folder] for folder in synsets}


def _synsets(name: str) -> list[str] | None:
    """Return the WordNet ids of a data set's classes, by label, where it has such."""
    data_set = known_data_set(name)
    if data_set is None or data_set.synsets is None:
        return None
    return (files("timm") / "data" / "_info" / data_set.synsets).read_text(encoding="ascii").split()


def _of_clip_benchmark(file: str) -> dict[str, list[str]]:
    require("preparing data sets", "eval", "clip_benchmark")
    text = (files("clip_benchmark") / "datasets" / file).read_text(encoding="utf-8")
    loaded: dict[str, list[str]] = json.loads(text)
    return loaded
