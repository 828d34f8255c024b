"""The linear probe's data sets as torchvision stores them: images with labels, split as in the paper's evaluation.

Each function takes the folder that torchvision calls ``root``, a split of ours (train, val, test), and whether to
download what is not there. Splits: mbanani/lgssl@e4ae979:lgssl/datasets/catalog.py.

Raises, all of them: RuntimeError, in torchvision's words, where the data set is not there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torchvision.datasets import SUN397, Caltech101, OxfordIIITPet
from torchvision.datasets.utils import download_and_extract_archive

from diffclip_openclip.data.images import ImageSource
from diffclip_openclip.data.names import class_names

_SEED = 1234  # tensorflow_datasets' own for Caltech-101
# tensorflow/datasets@0032104:tensorflow_datasets/image_classification/sun.py
_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"


class Labelled(NamedTuple):
    """Images with their labels (from 0), the classes' names by label, and what there is to say of the split."""

    classes: Sequence[str]
    samples: Sequence[tuple[ImageSource, int]]
    notes: Sequence[str] = ()


def listed(dataset: Any, source: Path, split: str, download: bool) -> Labelled:
    """A torchvision class with splits of its own and a ``loader``: DTD, Flowers102, FGVCAircraft, Food101."""
    opened = dataset(source, split=split, download=download, loader=Path)
    return Labelled(opened.classes, [opened[index] for index in range(len(opened))])


def cifar(dataset: Any, source: Path, split: str, download: bool) -> Labelled:
    """CIFAR10 or CIFAR100, whose images are arrays."""
    opened = dataset(source, train=split == "train", download=download)
    return Labelled(opened.classes, opened)


def pets(source: Path, split: str, download: bool) -> Labelled:
    """Oxford-IIIT Pet; train is its trainval."""
    name = "trainval" if split == "train" else split
    opened = OxfordIIITPet(source, split=name, download=download)
    folder, samples = source / "oxford-iiit-pet", []
    for line in (folder / "annotations" / f"{name}.txt").read_text(encoding="ascii").splitlines():
        image, label, *_ = line.split()  # labels count from 1 there
        samples.append((folder / "images" / f"{image}.jpg", int(label) - 1))
    return Labelled(opened.classes, samples)


def caltech101(source: Path, split: str, download: bool) -> Labelled:
    """Caltech-101 with its background class; 30 images of each class drawn for train, the others are test.

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


def sun397(source: Path, split: str, download: bool) -> Labelled:
    """SUN397 in the first of its ten official partitions, where its lists are in ``source``/Partitions.

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
    """Images of a split, ``train`` or ``test`` (None: all others) of each class, class by class."""
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
