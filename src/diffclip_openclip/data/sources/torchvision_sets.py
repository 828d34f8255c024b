"""Read the nine data sets of linear probe and few-shot as torchvision stores them: ``diffclip data torchvision``.

Splits: mbanani/lgssl@e4ae979:lgssl/datasets/catalog.py.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
from torchvision.datasets import (
    CIFAR10,
    CIFAR100,
    DTD,
    SUN397,
    Caltech101,
    FGVCAircraft,
    Flowers102,
    Food101,
    OxfordIIITPet,
)
from torchvision.datasets.utils import download_and_extract_archive

from diffclip_openclip.data.catalog import class_names, find_data_set, templates
from diffclip_openclip.data.images import ImageSource
from diffclip_openclip.data.writer import Split, classification_metadata, classified
from diffclip_openclip.extras import require

_SEED = 1234  # tensorflow_datasets' own for Caltech-101
# tensorflow/datasets@0032104:tensorflow_datasets/image_classification/sun.py
_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"


class Labelled(NamedTuple):
    """Hold one split of a classification set."""

    classes: Sequence[str]  # class names by label
    samples: Sequence[tuple[ImageSource, int]]  # images with their labels, from 0
    notes: Sequence[str] = ()  # what there is to say of the split


# Opens a split: (torchvision's root, train/val/test, whether to download what is not there). Each raises RuntimeError,
# in torchvision's words, where the data set is not there.
OpenSplit = Callable[[Path, str, bool], Labelled]


def convert(name: str, *, source: Path, root: Path, download: bool = False, overwrite: bool = False) -> list[str]:
    """Write all splits of a data set that torchvision's class of it reads from ``source`` to ``root``/``name``.

    Args:
        name: one of :data:`SETS`.
        source: torchvision's root.
        download: whether torchvision puts into ``source`` what is not there.

    Raises:
        ValueError: ``name`` is none of :data:`SETS`, or the source is broken.
        FileNotFoundError: the source is not there, or lacks an image.
        OSError: a download that fails.
    """
    if name not in SETS:
        raise ValueError(f"{name!r} is none of the data sets that torchvision has here: {', '.join(SETS)}")
    if name == "flowers":
        require("reading Flowers-102's lists", "eval", "scipy")
    return write_splits(name, SETS[name], source=source, root=root, download=download, overwrite=overwrite)


def write_splits(
    name: str, open_split: OpenSplit, *, source: Path, root: Path, download: bool = False, overwrite: bool = False
) -> list[str]:
    """Write the splits that ``open_split`` opens; arguments, result and errors are those of :func:`convert`."""
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


def _names(name: str, classes: Sequence[str]) -> Sequence[str]:
    """Return class names as clip_benchmark has them (clip_benchmark@1.6.2:clip_benchmark/datasets/builder.py)."""
    if name == "flowers":
        return class_names(name)
    if name in ("food101", "sun397"):
        return [class_name.replace("_", " ").replace("/", " ") for class_name in classes]
    return classes


def listed(dataset: Any, source: Path, split: str, download: bool) -> Labelled:
    """Open a split of DTD, Flowers102, FGVCAircraft or Food101, which have our splits and a ``loader``."""
    opened = dataset(source, split=split, download=download, loader=Path)
    return Labelled(opened.classes, [opened[index] for index in range(len(opened))])


def cifar(dataset: Any, source: Path, split: str, download: bool) -> Labelled:
    """Open a split of CIFAR10 or CIFAR100, whose images are arrays."""
    opened = dataset(source, train=split == "train", download=download)
    return Labelled(opened.classes, opened)


def _pets(source: Path, split: str, download: bool) -> Labelled:
    """Open a split of Oxford-IIIT Pet, whose train is its trainval."""
    name = "trainval" if split == "train" else split
    opened = OxfordIIITPet(source, split=name, download=download)
    folder, samples = source / "oxford-iiit-pet", []
    for line in (folder / "annotations" / f"{name}.txt").read_text(encoding="ascii").splitlines():
        image, label, *_ = line.split()  # labels count from 1 there
        samples.append((folder / "images" / f"{image}.jpg", int(label) - 1))
    return Labelled(opened.classes, samples)


def _caltech101(source: Path, split: str, download: bool) -> Labelled:
    """Open a split of Caltech-101 with its background class: 30 images of each class drawn for train, the others test.

    tensorflow_datasets draws as many (tensorflow/datasets@15f9f63:tensorflow_datasets/image_classification/caltech.py),
    but from folders in the order in which the file system lists them, so that its draw cannot be repeated. Labels and
    names are its own, in the lower-case order of the folders.
    """
    if download:
        Caltech101(source, download=True)
    folder = source / "caltech101" / "101_ObjectCategories"
    if not folder.is_dir():  # torchvision's class would make source / "caltech101"
        raise RuntimeError(f"there is no {folder}")
    classes = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.name.lower())
    names = class_names("caltech101_vtab")
    if len(classes) != len(names):
        raise ValueError(f"{folder} has {len(classes)} class folders, Caltech-101 {len(names)}; unpack all of it")
    images = {label: list(path.glob("*.jpg")) for label, path in enumerate(classes)}
    note = f"note: train and test are drawn with seed {_SEED}, 30 images a class for train (see docs/data.md)"
    return Labelled(names, _draw(images, split, 30, None), [note])


def _sun397(source: Path, split: str, download: bool) -> Labelled:
    """Open a split of SUN397 in the first of its ten official partitions, if its lists are in ``source``/Partitions.

    Otherwise 50 images a class are drawn for each split, as many as the partition has.
    """
    opened = SUN397(source, download=download, loader=Path)
    lists = source / "Partitions"
    chosen = lists / ("Training_01.txt" if split == "train" else "Testing_01.txt")
    if download and not chosen.is_file():
        download_and_extract_archive(_PARTITIONS, lists)
    labels = dict(opened[index] for index in range(len(opened)))
    if lists.is_dir():
        return Labelled(opened.classes, _of_list(chosen, source / "SUN397", labels))
    images: dict[int, list[Path]] = {label: [] for label in range(len(opened.classes))}
    for path, label in labels.items():
        images[label].append(path)
    note = f"warning: drawn with seed {_SEED}; for the official partition unpack {_PARTITIONS} into {lists}"
    return Labelled(opened.classes, _draw(images, split, 50, 50), [note])


def _of_list(chosen: Path, folder: Path, labels: Mapping[Path, int]) -> list[tuple[ImageSource, int]]:
    """Return the images that a list of the partition names, in its order."""
    lines = chosen.read_text(encoding="utf-8").split()
    paths = [folder / line.lstrip("/") for line in lines]
    absent = [path for path in paths if path not in labels]
    if absent:
        raise FileNotFoundError(
            f"{absent[0]} is missing, one of {len(absent)} that {chosen} lists; unpack all of SUN397"
        )
    return [(path, labels[path]) for path in paths]


def _draw(
    images: Mapping[int, Sequence[Path]], split: str, train: int, test: int | None
) -> list[tuple[ImageSource, int]]:
    """Draw a split's images, ``train`` or ``test`` (None: all others) of each class, class by class."""
    generator, drawn = np.random.RandomState(_SEED), []
    for label, paths in images.items():
        least = train + (test or 1)
        if len(paths) < least:
            raise ValueError(
                f"class {label} has {len(paths)} images, {least} or more are needed; unpack all of the set"
            )
        order, in_order = generator.permutation(len(paths)), sorted(paths)
        first, last = (0, train) if split == "train" else (train, train + test if test else len(paths))
        drawn += [(in_order[index], label) for index in sorted(order[first:last])]
    return drawn


SETS: dict[str, OpenSplit] = {
    "caltech101": _caltech101,
    "dtd": partial(listed, DTD),
    "pets": _pets,
    "flowers": partial(listed, Flowers102),
    "sun397": _sun397,
    "fgvc_aircraft": partial(listed, FGVCAircraft),
    "cifar10": partial(cifar, CIFAR10),
    "cifar100": partial(cifar, CIFAR100),
    "food101": partial(listed, Food101),
}
