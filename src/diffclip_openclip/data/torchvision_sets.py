"""``diffclip data torchvision``: the nine data sets of the linear probe and few-shot classification."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.error import URLError

from torchvision.datasets import CIFAR10, CIFAR100, DTD, FGVCAircraft, Flowers102, Food101

from diffclip_openclip.data.labelled import Labelled, caltech101, cifar, listed, pets, sun397
from diffclip_openclip.data.names import class_names, templates
from diffclip_openclip.data.writer import Split, classification_metadata, classified
from diffclip_openclip.evaluation.suite import find_data_set
from diffclip_openclip.extras import require

SETS: dict[str, Callable[[Path, str, bool], Labelled]] = {
    "caltech101": caltech101,
    "dtd": partial(listed, DTD),
    "pets": pets,
    "flowers": partial(listed, Flowers102),
    "sun397": sun397,
    "fgvc_aircraft": partial(listed, FGVCAircraft),
    "cifar10": partial(cifar, CIFAR10),
    "cifar100": partial(cifar, CIFAR100),
    "food101": partial(listed, Food101),
}


def convert(name: str, source: Path, root: Path, download: bool = False, overwrite: bool = False) -> list[str]:
    """Write all splits of a data set that torchvision's class of it reads from ``source`` to ``root``/``name``.

    Splits that are complete stay, and their source is not looked at. With ``download``, torchvision puts into
    ``source`` what is not there.

    Returns:
        lines to show.

    Raises:
        ValueError: ``name`` is none of :data:`SETS`, or the source is broken.
        FileNotFoundError: the source is not there, or lacks an image.
        FileExistsError: as :meth:`diffclip_openclip.data.writer.Split.write`.
        ImportError: a package of the extra ``eval`` is not installed.
        OSError: a download that fails.
    """
    if name not in SETS:
        raise ValueError(f"{name!r} is none of the data sets that torchvision has here: {', '.join(SETS)}")
    if name == "flowers":
        require("reading Flowers-102's lists", "eval", "scipy")
    return write_splits(name, SETS[name], source, root, download, overwrite)


def write_splits(
    name: str,
    open_split: Callable[[Path, str, bool], Labelled],
    source: Path,
    root: Path,
    download: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """:func:`convert` for splits that ``open_split`` opens; raises the same."""
    lines = []
    for split_name in find_data_set(name).splits:
        split = Split(root, name, split_name, overwrite)
        if finished := split.finished():
            lines += finished
            continue
        try:
            labelled = open_split(source, split_name, download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{source} does not hold {name} as torchvision unpacks it ({error}); --download fetches it"
            ) from error
        except URLError as error:
            raise ConnectionError(f"{name} cannot be downloaded to {source}: {error.reason}") from error
        samples = labelled.samples
        lines += split.write(
            (classified(*samples[index]) for index in range(len(samples))),
            len(samples),
            classification_metadata(_names(name, labelled.classes), templates(name)),
        )
        lines += [note for note in labelled.notes if note not in lines]
    return lines


def _names(dataset: str, classes: Sequence[str]) -> Sequence[str]:
    """Class names as clip_benchmark has them (clip_benchmark@1.6.2:clip_benchmark/datasets/builder.py)."""
    if dataset == "flowers":
        return class_names(dataset)
    if dataset in ("food101", "sun397"):
        return [name.replace("_", " ").replace("/", " ") for name in classes]
    return classes
