"""Write small segmentation sets in the formats of VOC 2012 and of ADE20K's scene parsing challenge."""

from pathlib import Path

import numpy as np
from PIL import Image


def _save_photo(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def write_voc(root: Path, labels: dict[str, np.ndarray]) -> Path:
    """Write photographs with these annotations: 0 background, 1 to 20, 255 border; palette PNGs as VOC's."""
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{name}\n" for name in labels))
    (root / "SegmentationClass").mkdir()
    for seed, (name, own) in enumerate(labels.items()):
        _save_photo(root / "JPEGImages" / f"{name}.jpg", own.shape, seed)
        annotation = Image.fromarray(own.astype(np.uint8), mode="P")
        annotation.putpalette([(37 * i) % 256 for i in range(768)])  # colours are not the classes
        annotation.save(root / "SegmentationClass" / f"{name}.png")
    return root


def write_ade20k(root: Path, labels: dict[str, np.ndarray]) -> Path:
    """Write photographs with these annotations, 0 "other", 1 to 3, and the list of classes as it is published."""
    (root / "annotations" / "validation").mkdir(parents=True)
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n"
        "1\t0.1576\t11664\t1172\twall\n2\t0.1072\t6046\t612\tbuilding, edifice\n22 \t0.0231\t1906\t199\tbed \n"
    )
    for seed, (name, own) in enumerate(labels.items()):
        _save_photo(root / "images" / "validation" / f"{name}.jpg", own.shape, seed)
        Image.fromarray(own.astype(np.uint8)).save(root / "annotations" / "validation" / f"{name}.png")
    return root


def halves(left: int, right: int, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    """Return labels of one class on the left, and another on the right."""
    labels = np.full(size, left)
    labels[:, size[1] // 2 :] = right
    return labels
