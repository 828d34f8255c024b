"""The paper's evaluation as a table: data sets, their splits, and what is measured on each.

Sources: paper, section 4.1 and Tables 1 and 2, Figures 3 and 4; splits and metrics of linear probe and few-shot:
mbanani/lgssl@e4ae979:lgssl/datasets/catalog.py. Names are clip_benchmark's, without its "vtab/".
"""

from dataclasses import dataclass

# tasks, as result files name them
ZERO_SHOT = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
LINEAR_PROBE = "linear_probe"
FEW_SHOT = "few_shot"
MMVP = "mmvp"
TASKS = (ZERO_SHOT, RETRIEVAL, LINEAR_PROBE, FEW_SHOT, MMVP)  # of ``diffclip evaluate``
POPE = "pope"


@dataclass(frozen=True)
class DataSet:
    """A data set of the paper, which lies in ROOT/``name``/SPLIT/ in clip_benchmark's webdataset layout.

    ``title`` is the paper's name for it, ``splits`` are the folders that its tasks read. ``mean_per_class``: accuracy
    is the mean of the classes' (else top-1).
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    mean_per_class: bool = False


def _probed(name: str, title: str, official_val: bool = False, mean_per_class: bool = False) -> DataSet:
    # where there is no official validation split, a fifth of train is held out
    splits = ("train", "val", "test") if official_val else ("train", "test")
    return DataSet(name, title, (LINEAR_PROBE, FEW_SHOT), splits, mean_per_class)


DATA_SETS = (
    DataSet("imagenet1k", "ImageNet", (ZERO_SHOT,), ("test",)),
    DataSet("imagenetv2", "ImageNet-V2", (ZERO_SHOT,), ("test",)),
    DataSet("imagenet-a", "ImageNet-A", (ZERO_SHOT,), ("test",)),
    DataSet("imagenet-r", "ImageNet-R", (ZERO_SHOT,), ("test",)),
    DataSet("imagenet_sketch", "ImageNet-Sketch", (ZERO_SHOT,), ("test",)),
    DataSet("flickr30k", "Flickr30k", (RETRIEVAL,), ("test",)),
    DataSet("flickr8k", "Flickr8k", (RETRIEVAL,), ("test",)),
    DataSet("mscoco_captions", "MSCOCO", (RETRIEVAL,), ("test",)),
    _probed("caltech101", "Caltech-101", mean_per_class=True),
    _probed("dtd", "DTD", official_val=True),
    _probed("pets", "Pets", mean_per_class=True),
    _probed("flowers", "Flowers", official_val=True, mean_per_class=True),
    _probed("sun397", "SUN397"),
    _probed("fgvc_aircraft", "Aircraft", official_val=True, mean_per_class=True),
    _probed("cifar10", "CIFAR10"),
    _probed("cifar100", "CIFAR100"),
    _probed("food101", "Food-101"),
    DataSet("mmvp", "MMVP-VLM", (MMVP,), ("test",)),
)

# MMVP-VLM's patterns in the benchmark's order (tsb0601/MMVP@7635005:scripts/evaluate_vlm.py)
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
# those that the paper's Figure 4 shows
MMVP_PAPER_PATTERNS = tuple(name for name in MMVP_PATTERNS if name not in ("Quantity and Count", "Texts"))

POPE_CATEGORIES = ("random", "popular", "adversarial")


def find_data_set(name: str) -> DataSet:
    """The data set of that name.

    Raises:
        ValueError: the paper has no such data set; lists those it has.
    """
    for data_set in DATA_SETS:
        if data_set.name == name:
            return data_set
    raise ValueError(f"{name!r} is no data set of the paper; there are {', '.join(d.name for d in DATA_SETS)}")
