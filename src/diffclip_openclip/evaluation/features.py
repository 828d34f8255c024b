"""Image features of a data set for linear probe and few-shot: extracted once, shard by shard, and kept.

Shape legend: B images, C width of the features.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
import webdataset as wds
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from diffclip_openclip.data.rgb import to_rgb
from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.layout import Place, shard_fingerprint
from diffclip_openclip.files import staged
from diffclip_openclip.weights.loading import LoadedModel

IMAGES = ["webp", "png", "jpg", "jpeg"]  # those that clip_benchmark reads


class Features(NamedTuple):
    """Features of a split, (B, C) float32, in the order of its samples, and their class indices, (B,) int64."""

    features: torch.Tensor
    labels: torch.Tensor


def probe_transform(loaded: LoadedModel) -> Any:
    """Resize (bicubic) and centre crop to the model's image size, then the model's mean and std.

    Source: mbanani/lgssl@e4ae979; its mean and std are ImageNet's, which are those of the paper's models.
    """
    settings = loaded.preprocess_cfg | {"interpolation": "bicubic", "resize_mode": "shortest"}
    return image_transform_v2(PreprocessCfg(**settings), is_train=False)


def extract(loaded: LoadedModel, place: Place, split: str, compute: Compute, cache_dir: Path) -> Features:
    """Backbone features of a split, before the projection to the joint space, not normalised.

    A shard's features are kept in ``cache_dir`` under the hashes of model, shard and settings, so that they are never
    stale, and what was interrupted goes on at the first shard that is missing.

    Raises:
        ValueError: a shard that cannot be read; its name is in the message.
    """
    transform = probe_transform(loaded)
    settings = hashlib.sha256(f"{loaded.sha256} {transform} {compute.precision}".encode()).hexdigest()[:16]
    folder = cache_dir / "features" / settings
    files = []
    for index in range(place.shards[split]):
        content = shard_fingerprint(place.shard(split, index), cache_dir / "fingerprints")
        files.append(folder / f"{content}.safetensors")
    missing = [index for index, file in enumerate(files) if not file.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        shards = [(index, place.shard(split, index)) for index in missing]
        for index, part in _extracted(loaded.model, shards, transform, compute, f"{Path(place.base).name} {split}"):
            with staged(files[index], overwrite=True) as new:
                save_file(part._asdict(), new)
    parts = [load_file(file) for file in files]
    return Features(*(torch.cat([part[field] for part in parts]) for field in Features._fields))


def _extracted(
    model: nn.Module, shards: Sequence[tuple[int, str]], transform: Any, compute: Compute, title: str
) -> Iterator[tuple[int, Features]]:
    """Each shard's index and features, when the shard is complete."""
    loader = shard_batches(shards, "cls", transform, compute)
    parts: dict[int, list[Features]] = {index: [] for index, _ in shards}
    with tqdm(desc=f"features of {title}", unit=" images", leave=False) as bar, backbone(model) as encode:
        for batch in loader:
            if batch.images is None:
                if not parts[batch.shard]:
                    raise ValueError(f"the shard {dict(shards)[batch.shard]} holds no images with a .cls")
                done = parts.pop(batch.shard)
                yield batch.shard, Features(*(torch.cat(column) for column in zip(*done, strict=True)))
                continue
            with torch.inference_mode(), compute.autocast():
                features = encode(batch.images.to(compute.device, non_blocking=True))
            parts[batch.shard].append(Features(features.float().cpu(), torch.tensor(batch.values)))
            bar.update(len(batch.values))


class Batch(NamedTuple):
    """Images (B, 3, H, W) of one shard with a field of each; without images, the shard's end."""

    shard: int
    images: torch.Tensor | None = None
    values: tuple[Any, ...] = ()
    error: str | None = None


def shard_batches(shards: Sequence[tuple[int, str]], field: str, transform: Any, compute: Compute) -> Iterator[Batch]:
    """The samples of shards (index, path or URL) in batches, decoded in workers.

    Raises:
        ValueError: a shard that cannot be read; its name is in the message.
    """
    loader = DataLoader(
        _ShardBatches(shards, field, transform, compute.batch_size),
        batch_size=None,
        num_workers=min(compute.workers, len(shards)),
        pin_memory=compute.device == "cuda",
    )
    for batch in loader:
        if batch.error is not None:
            raise ValueError(batch.error)
        yield batch


class _ShardBatches(IterableDataset[Batch]):
    """Decodes whole shards, a worker one at a time; no batch crosses a shard's end."""

    def __init__(self, shards: Sequence[tuple[int, str]], field: str, transform: Any, batch_size: int) -> None:
        self.shards, self.field, self.transform, self.batch_size = shards, field, transform, batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine = self.shards if worker is None else self.shards[worker.id :: worker.num_workers]
        for index, shard in mine:
            try:
                for samples in _in_batches(read_shard(shard, (self.field,), self.transform), self.batch_size):
                    images, values = zip(*samples, strict=True)
                    yield Batch(index, torch.stack(images), values)
                yield Batch(index)
            except Exception as error:  # as a value: an exception of a worker arrives with its whole traceback in it
                yield Batch(index, error=f"the shard {shard} cannot be read: {type(error).__name__} {error}")
                return


def read_shard(shard: str, fields: tuple[str, ...], transform: Any) -> Iterator[tuple[Any, ...]]:
    """Transformed RGB images of a shard, each with other fields of its sample.

    Images are those that clip_benchmark gives, but for greys of 16 bits
    (:func:`~diffclip_openclip.data.rgb.to_rgb`). Nothing else in the shard is decoded: webdataset would unpickle some
    kinds of files.
    """
    decode = wds.decode(_decode_image, only=[*IMAGES, *fields])
    pipeline = wds.DataPipeline(wds.SimpleShardList(shard), wds.tarfile_to_samples(), decode)
    for sample in pipeline:
        image = next((sample[kind] for kind in IMAGES if kind in sample), None)
        if image is None or not sample.keys() >= set(fields):
            wanted = " or ".join(f".{field}" for field in fields)
            raise ValueError(f"the sample {sample['__key__']} lacks an image ({', '.join(IMAGES)}) or {wanted}")
        yield transform(image), *(sample[field] for field in fields)


def _decode_image(key: str, data: bytes) -> Image.Image | None:
    """A decoder in webdataset's sense, which leaves other files to others."""
    if key.rpartition(".")[2].lower() not in IMAGES:
        return None
    with Image.open(BytesIO(data)) as image:
        return to_rgb(image)


def _in_batches(samples: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def backbone(model: Any) -> Iterator[Any]:
    """The image tower before its projection: a function (B, 3, H, W) -> (B, C).

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
