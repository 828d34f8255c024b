"""Read segmentation sets in their own public formats, and score predictions on them.

Shape legend: K classes, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffclip_openclip.files import read_text

_IGNORED = -1
# where the archives are, for messages
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_VOC_CLASSES = """aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor"""

Counts = np.ndarray[Any, np.dtype[np.int64]]


# data sets


class SegmentationSet(NamedTuple):
    """Hold where the images of a data set and their annotations are."""

    name: str
    class_names: list[str]
    files: list[tuple[Path, Path]]  # image and annotation


def read_voc(root: Path) -> SegmentationSet:
    """List VOC 2012's validation images, from its devkit's folder.

    Raises:
        FileNotFoundError: a file or folder is missing.
    """
    listed = _existing(root / "ImageSets" / "Segmentation" / "val.txt", f"VOCdevkit/VOC2012 of {_VOC}")
    pairs = [
        (root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in read_text(listed).split()
    ]
    return _complete(SegmentationSet("VOC 2012 val", _VOC_CLASSES.split(), pairs), root)


def read_ade20k(root: Path) -> SegmentationSet:
    """List ADE20K's validation images and classes, from the folder of its scene parsing challenge.

    Raises:
        FileNotFoundError: a file or folder is missing.
    """
    listed = _existing(root / "objectInfo150.txt", f"the folder in {_ADE20K}")
    lines = [line.split("\t") for line in read_text(listed).splitlines()[1:] if line.strip()]
    names = [line[-1].partition(",")[0].strip() for line in lines]
    annotations = sorted((root / "annotations" / "validation").glob("*.png"))
    pairs = [(root / "images" / "validation" / f"{path.stem}.jpg", path) for path in annotations]
    return _complete(SegmentationSet("ADE20K val", names, pairs), root)


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give {what}")
    return path


def _complete(data: SegmentationSet, root: Path) -> SegmentationSet:
    if not data.files:
        raise FileNotFoundError(f"{root} has no validation images; unpack the whole archive of the data set")
    for path in (path for pair in data.files for path in pair):
        _existing(path, "the whole data set")
    return data


def read_annotation(path: Path, num_classes: int) -> Tensor:
    """Return the classes of the pixels from 0, (H, W); -1 for background (0), borders (255) and "other".

    Raises:
        ValueError: it has no index for each pixel, or one of a class that is not there.
    """
    with Image.open(path, formats=("PNG",)) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(
                f"{path} is an image of the mode {image.mode}; it must have a class's index for each pixel"
            )
        labels = torch.from_numpy(np.array(image, dtype=np.int64))
    labels = labels.masked_fill(labels == 255, 0) - 1
    if labels.max() >= num_classes:
        raise ValueError(f"{path} has the class {int(labels.max()) + 1}, and there are {num_classes}")
    return labels


# scores


def count_pixels(predicted: Tensor, labels: Tensor, num_classes: int) -> Counts:
    """Count the pixels of each class: in both prediction and truth, in the prediction, and in the truth, (3, K).

    Pixels with the label -1 count nowhere.
    """
    seen = labels != _IGNORED
    predicted, labels = predicted[seen], labels[seen]
    return np.stack(
        [part.bincount(minlength=num_classes).numpy() for part in (labels[predicted == labels], predicted, labels)]
    )


def class_ious(counts: Counts) -> np.ndarray:
    """Return the IoU of each class from summed counts, (..., 3, K) -> (..., K); NaN where a class is nowhere."""
    both, predicted, truth = np.moveaxis(counts, -2, 0).astype(float)
    union = predicted + truth - both
    return np.divide(both, union, out=np.full_like(union, np.nan), where=union > 0)


def mean_iou(counts: Counts) -> np.ndarray:
    """Return mIoU from summed counts, (..., 3, K) -> (...)."""
    return np.nanmean(class_ious(counts), axis=-1)


def pixel_accuracy(counts: Counts) -> np.ndarray:
    """Return the share of pixels that are classified rightly, from summed counts, (..., 3, K) -> (...)."""
    return counts[..., 0, :].sum(-1) / counts[..., 2, :].sum(-1)
