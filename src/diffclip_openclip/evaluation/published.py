"""How many images the paper's data sets have, to notice data that are not whole; sources in docs/data.md."""

from collections.abc import Mapping

_IMAGES = {
    "imagenet1k": {"test": 50_000},
    "imagenetv2": {"test": 10_000},
    "imagenet-a": {"test": 7_500},
    "imagenet-r": {"test": 30_000},
    "imagenet_sketch": {"test": 50_889},
    "flickr30k": {"test": 1_000},
    "flickr8k": {"test": 1_000},
    "mscoco_captions": {"test": 5_000},
    "caltech101": {"train": 3_060, "test": 6_084},
    "dtd": {"train": 1_880, "val": 1_880, "test": 1_880},
    "pets": {"train": 3_680, "test": 3_669},
    "flowers": {"train": 1_020, "val": 1_020, "test": 6_149},
    "sun397": {"train": 19_850, "test": 19_850},
    "fgvc_aircraft": {"train": 3_334, "val": 3_333, "test": 3_333},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "food101": {"train": 75_750, "test": 25_250},
    "mmvp": {"test": 270},
}


def deviations(dataset: str, images: Mapping[str, int]) -> list[str]:
    """Splits of one of the paper's data sets that are not of the published size; ``images`` counts them by split."""
    published = _IMAGES.get(dataset, {})
    return [
        f"{split} {count:,} images instead of {published[split]:,}"
        for split, count in images.items()
        if split in published and count != published[split]
    ]


def size_note(dataset: str, split: str, images: int) -> list[str]:
    """A warning where a split of the paper's is not of the published size."""
    published = _IMAGES.get(dataset, {}).get(split, images)
    if images == published:
        return []
    return [f"warning: the published {dataset}/{split} has {published:,} images: results will not compare with others'"]
