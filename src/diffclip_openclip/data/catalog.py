"""List the data sets, a row each: tasks, splits, sizes, source, metric, place in the paper; and their classes.

The paper's come first, then those that are evaluated beside them. Names are clip_benchmark's, without its "vtab/".
Splits and metrics of linear probe and few-shot are those of mbanani/lgssl@e4ae979:lgssl/datasets/catalog.py;
docs/data.md gives the source of each size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import NamedTuple

from diffclip_openclip.extras import require

# Tasks, by the names that result files give them.
ZERO_SHOT = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
LINEAR_PROBE = "linear_probe"
FEW_SHOT = "few_shot"
MMVP = "mmvp"
SUGAR_CREPE = "sugar_crepe"
WINOGROUND = "winoground"
TASKS = (ZERO_SHOT, RETRIEVAL, LINEAR_PROBE, FEW_SHOT, MMVP, SUGAR_CREPE, WINOGROUND)  # those of ``diffclip evaluate``
POPE = "pope"  # scores answers instead of a data set's images

# Sources: the form of ``diffclip data`` that writes a data set.
FOLDER = "folder"
KARPATHY = "karpathy"
TORCHVISION = "torchvision"
MMVP_QUESTIONS = "mmvp"
SUGAR_CREPE_QUESTIONS = "sugar-crepe"
WINOGROUND_EXAMPLES = "winoground"


@dataclass(frozen=True)
class DataSet:
    """Describe a data set, which lies in ROOT/``name``/SPLIT/ in clip_benchmark's webdataset layout."""

    name: str
    title: str  # the paper's name for it
    tasks: tuple[str, ...]  # what is measured on it
    splits: Mapping[str, int | None] = field(hash=False)  # that its tasks read: published number of images, or None
    # Published number of captions of those splits, where a published size has one.
    captions: Mapping[str, int] = field(hash=False, default_factory=dict)
    source: str | None = None  # the form of ``diffclip data`` that writes it; None for a user's own data set
    paper: tuple[str, ...] = ()  # the tables and figures of the paper that show it
    mean_per_class: bool = False  # the linear probe's accuracy is the mean of the classes' recall; otherwise top-1
    more_tasks: tuple[str, ...] = ()  # what can be measured on it beside the paper's tasks, where it is asked for
    synsets: str | None = None  # file of WordNet ids by label in timm's package (timm@1.0.31:timm/data/_info)


def _imagenet(name: str, title: str, images: int, synsets: str | None, *tables: str) -> DataSet:
    paper = (*tables, "Figure 3")
    return DataSet(name, title, (ZERO_SHOT,), {"test": images}, source=FOLDER, paper=paper, synsets=synsets)


def _captioned(name: str, title: str, images: int, captions: int) -> DataSet:
    counts = {"test": captions}
    return DataSet(name, title, (RETRIEVAL,), {"test": images}, counts, source=KARPATHY, paper=("Table 2",))


def _probed(name: str, title: str, mean_per_class: bool = False, **images: int) -> DataSet:
    # Without an official split ``val``, a fifth of train is held out at evaluation.
    tasks = (LINEAR_PROBE, FEW_SHOT)
    return DataSet(
        name,
        title,
        tasks,
        images,
        source=TORCHVISION,
        paper=("Table 1",),
        mean_per_class=mean_per_class,
        more_tasks=(ZERO_SHOT,),
    )


_SYNSETS = "imagenet_synsets.txt"

DATA_SETS = (
    _imagenet("imagenet1k", "ImageNet", 50_000, _SYNSETS, "Table 2"),
    _imagenet("imagenetv2", "ImageNet-V2", 10_000, None),
    _imagenet("imagenet-a", "ImageNet-A", 7_500, "imagenet_a_synsets.txt"),
    _imagenet("imagenet-r", "ImageNet-R", 30_000, "imagenet_r_synsets.txt"),
    _imagenet("imagenet_sketch", "ImageNet-Sketch", 50_889, _SYNSETS),
    _captioned("flickr30k", "Flickr30k", 1_000, captions=5_000),
    _captioned("flickr8k", "Flickr8k", 1_000, captions=5_000),
    _captioned("mscoco_captions", "MSCOCO", 5_000, captions=25_010),
    _probed("caltech101", "Caltech-101", mean_per_class=True, train=3_060, test=6_084),
    _probed("dtd", "DTD", train=1_880, val=1_880, test=1_880),
    _probed("pets", "Pets", mean_per_class=True, train=3_680, test=3_669),
    _probed("flowers", "Flowers", mean_per_class=True, train=1_020, val=1_020, test=6_149),
    _probed("sun397", "SUN397", train=19_850, test=19_850),
    _probed("fgvc_aircraft", "Aircraft", mean_per_class=True, train=3_334, val=3_333, test=3_333),
    _probed("cifar10", "CIFAR10", train=50_000, test=10_000),
    _probed("cifar100", "CIFAR100", train=50_000, test=10_000),
    _probed("food101", "Food-101", train=75_750, test=25_250),
    DataSet("mmvp", "MMVP-VLM", (MMVP,), {"test": 270}, source=MMVP_QUESTIONS, paper=("Figure 4",)),
    DataSet(SUGAR_CREPE, "SugarCrepe", (SUGAR_CREPE,), {"test": 1_560}, source=SUGAR_CREPE_QUESTIONS),
    DataSet(WINOGROUND, "Winoground", (WINOGROUND,), {"test": 800}, source=WINOGROUND_EXAMPLES),
)

# MMVP-VLM's patterns in the benchmark's order (tsb0601/MMVP@7635005:scripts/evaluate_vlm.py).
MMVP_PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)
# The patterns that the paper's Figure 4 shows.
MMVP_PAPER_PATTERNS = tuple(name for name in MMVP_PATTERNS if name not in ("Quantity and Count", "Texts"))

# SugarCrepe's kinds of questions, each a file, with the number of its questions; in the order of the authors' script
# (RAIVNLab/sugar-crepe@0047054:main_eval.py and data/).
SUGAR_CREPE_KINDS = {
    "add_obj": 2_062,
    "add_att": 692,
    "replace_obj": 1_652,
    "replace_att": 788,
    "replace_rel": 1_406,
    "swap_obj": 245,
    "swap_att": 666,
}

# The k of recall@k in retrieval; the paper shows 5.
RECALL_AT = (1, 5, 10)

POPE_CATEGORIES = ("random", "popular", "adversarial")

_BY_NAME = {data_set.name: data_set for data_set in DATA_SETS}


def known_data_set(name: str) -> DataSet | None:
    """Return the data set of that name, or None where the table has no such."""
    return _BY_NAME.get(name)


def find_data_set(name: str) -> DataSet:
    """Return the data set of that name.

    Raises:
        ValueError: the table has no such data set; the message lists those it has.
    """
    if name not in _BY_NAME:
        raise ValueError(f"{name!r} is no data set that is known; there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def names_from(source: str) -> list[str]:
    """List the data sets of the table that a form of ``diffclip data`` writes."""
    return [data_set.name for data_set in DATA_SETS if data_set.source == source]


class Deviation(NamedTuple):
    """Describe a split that is not of the published size."""

    split: str
    what: str  # images or captions
    size: int
    published: int


def other_sizes(name: str, images: Mapping[str, int], captions: Mapping[str, int] | None = None) -> list[Deviation]:
    """Return the splits of a data set of the table that are not of the published size.

    Args:
        images: numbers of images by split.
        captions: numbers of captions by split, where they are known.
    """
    if (data_set := _BY_NAME.get(name)) is None:
        return []
    counted = (("images", images, data_set.splits), ("captions", captions or {}, data_set.captions))
    return [
        Deviation(split, what, count, size)
        for what, counts, published in counted
        for split, count in counts.items()
        if (size := published.get(split)) is not None and size != count
    ]


def deviations(name: str, images: Mapping[str, int], captions: Mapping[str, int] | None = None) -> list[str]:
    """Describe what :func:`other_sizes` returns."""
    return [
        f"{found.split} {found.size:,} {found.what} instead of {found.published:,}"
        for found in other_sizes(name, images, captions)
    ]


def size_warning(name: str, split: str, images: int, captions: int | None = None) -> list[str]:
    """Return a warning where a split of a data set of the table is not of the published size, else nothing."""
    if not deviations(name, {split: images}, {} if captions is None else {split: captions}):
        return []
    size = f"{_BY_NAME[name].splits[split]:,} images"
    if split in _BY_NAME[name].captions:
        size += f" and {_BY_NAME[name].captions[split]:,} captions"
    return [f"warning: the published {name}/{split} has {size}: results will not compare with others'"]


def class_names(key: str) -> list[str]:
    """Return class names by label: an entry of clip_benchmark's en_classnames.json."""
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
    if name not in _BY_NAME or (file := _BY_NAME[name].synsets) is None:
        return None
    return (files("timm") / "data" / "_info" / file).read_text(encoding="ascii").split()


def _of_clip_benchmark(file: str) -> dict[str, list[str]]:
    require("preparing data sets", "eval", "clip_benchmark")
    text = (files("clip_benchmark") / "datasets" / file).read_text(encoding="utf-8")
    loaded: dict[str, list[str]] = json.loads(text)
    return loaded
