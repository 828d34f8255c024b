"""Extract a data set's image features for linear probe and few-shot: once, shard by shard, and keep them.

Shape legend: B images, C width of the features.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from diffclip_openclip.data.layout import Shard, shard_fingerprint
from diffclip_openclip.evaluation.evaluator import Subject
from diffclip_openclip.files import staged
from diffclip_openclip.weights.loading import LoadedModel


class Features(NamedTuple):
    """Hold the features of a split, in the order of its samples."""

    features: torch.Tensor  # (B, C) float32
    labels: torch.Tensor  # class indices, (B,) int64


def join(parts: Iterable[Features]) -> Features:
    """Put the samples of several shards or splits together."""
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Splits(NamedTuple):
    """Hold the features that linear probe and few-shot take."""

    train: Features
    val: Features
    test: Features
    images: Mapping[str, int]  # the number of images of each split of the data set


def read_splits(subject: Subject) -> Splits:
    """Return the features of a data set, on the device, extracting those that are not kept yet.

    Without a split ``val``, a fifth of train is held out. Both tasks of a data set take the same features.

    Raises:
        ValueError: as :func:`extract` and :func:`hold_out`.
    """
    if "features" not in subject.shared:
        parts = {}
        for split in subject.data_set.splits:
            extracted = extract(subject, split)
            parts[split] = Features(*(tensor.to(subject.compute.device) for tensor in extracted))
        images = {split: len(part.labels) for split, part in parts.items()}
        train, val = parts["train"], parts.get("val")
        if val is None:
            train, val = hold_out(train, subject.compute.seed)
        subject.shared["features"] = Splits(train, val, parts["test"], images)
    splits: Splits = subject.shared["features"]
    return splits


def hold_out(train: Features, seed: int) -> tuple[Features, Features]:
    """Divide the training samples into four fifths and one fifth, for data sets without a validation split.

    tensorflow_datasets' train[:80%] of the protocol is a part of its own random order; here the order is drawn from
    ``seed``.

    Raises:
        ValueError: so few samples that nothing is held out.
    """
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    cut = round(0.8 * len(order))
    if cut == len(order):
        raise ValueError(f"the training split has {len(order)} images, too few to hold out a fifth; give a split val")
    return Features(*(part[order[:cut]] for part in train)), Features(*(part[order[cut:]] for part in train))


def probe_transform(loaded: LoadedModel) -> Any:
    """Make the transform: resize (bicubic) and centre crop to the model's image size, then the model's mean and std.

    Source: mbanani/lgssl@e4ae979; its mean and std are ImageNet's, which are those of the paper's models.
    """
    settings = loaded.preprocess_cfg | {"interpolation": "bicubic", "resize_mode": "shortest"}
    return image_transform_v2(PreprocessCfg(**settings), is_train=False)


def extract(subject: Subject, split: str) -> Features:
    """Return a split's backbone features, before the projection to the joint space and not normalised.

    A shard's features are kept under a cache key of model, transform, precision and the shard's content, so that they
    are never stale, and what was interrupted goes on at the first shard that is missing.

    Raises:
        ValueError: a shard that cannot be read; its name is in the message.
    """
    loaded, cache_dir = subject.loaded, subject.cache_dir
    transform = probe_transform(loaded)
    key = hashlib.sha256(f"{loaded.sha256} {transform} {subject.compute.precision}".encode()).hexdigest()[:16]
    folder = cache_dir / "features" / key
    files = {
        shard: folder / f"{shard_fingerprint(shard, cache_dir / 'fingerprints')}.safetensors"
        for shard in subject.location.shards(split)
    }
    missing = [shard for shard, file in files.items() if not file.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        title = f"features of {Path(subject.location.base).name} {split}"
        for shard, part in _extracted(subject, missing, transform, title):
            with staged(files[shard], overwrite=True) as new:
                save_file(part._asdict(), new)
    return join(Features(**load_file(file)) for file in files.values())


def _extracted(
    subject: Subject, shards: Sequence[Shard], transform: Any, title: str
) -> Iterator[tuple[Shard, Features]]:
    """Yield each shard with its features, when the shard is complete."""
    compute = subject.compute
    # Workers read several shards at once, so that batches of different shards come in turns.
    parts: dict[int, list[Features]] = {index: [] for index in range(len(shards))}
    with tqdm(desc=title, unit=" images", leave=False) as bar, backbone(subject.loaded.model) as encode:
        for batch in subject.batches(shards, "cls", transform):
            if batch.images is None:
                yield shards[batch.shard], join(parts.pop(batch.shard))
                continue
            with torch.inference_mode(), compute.autocast():
                features = encode(batch.images.to(compute.device, non_blocking=True))
            parts[batch.shard].append(Features(features.float().cpu(), torch.tensor(batch.values)))
            bar.update(len(batch.values))


@contextmanager
def backbone(model: Any) -> Iterator[Any]:
    """Give the image tower before its projection: a function (B, 3, H, W) -> (B, C).

    For timm towers that is the trunk, for open_clip's own ViT the pooled output; other towers (ResNets, whose pooling
    is the projection) give their embedding.
    """
    visual = model.visual
    if hasattr(visual, "trunk"):
        yield visual.trunk
    elif isinstance(getattr(visual, "proj", None), nn.Parameter):
        # open_clip's ViT leaves the projection out where it is None (open_clip@v3.3.0:src/open_clip/transformer.py)
        projection, visual.proj = visual.proj, None
        try:
            yield visual
        finally:
            visual.proj = projection
    else:
        yield visual
