"""Compute what protocols score, features and embeddings: once for each shard, and keep them.

Processes of torchrun take shards in turns. A file is of one shard under a cache key of model, transform, precision and
the shard's content, so it is never stale, and what was interrupted goes on at the first shard that is missing.
Shape legend: B images, T texts, C width of the features or of the joint space.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from diffclip_openclip.data.layout import Shard
from diffclip_openclip.data.shards import Batch, batches
from diffclip_openclip.evaluation.evaluator import Computed, Reading, Subject
from diffclip_openclip.files import kept
from diffclip_openclip.weights.loading import LoadedModel

BACKBONE = Reading("features", ("cls",), splits=None, in_backbone=True)  # for linear probe and few-shot

_Tensors = dict[str, torch.Tensor]


class Features(NamedTuple):
    """Hold features before the projection to the joint space, not normalised, in the order of their samples."""

    features: torch.Tensor  # (B, C) float32
    labels: torch.Tensor  # class indices, (B,) int64


class Embedded(NamedTuple):
    """Hold a shard's samples in the joint space, normalised, in their order."""

    samples: list[list[Any]]  # the key of each sample and the values of its fields
    image: torch.Tensor  # (B, C)
    text: torch.Tensor | None  # (T, C), those of the first sample first
    text_counts: torch.Tensor | None  # the number of texts of each sample, (B,)


def read_features(files: Iterable[Path], device: str) -> Features:
    """Return the features of all shards of a split, on the device."""
    return join(Features(**load_file(file, device=device)) for file in files)


def join(parts: Iterable[Features]) -> Features:
    """Put the samples of several shards or splits together."""
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


def read_embedded(file: Path) -> Embedded:
    """Return the embeddings of a shard, on the CPU."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
        return Embedded(
            json.loads(opened.metadata()["samples"]),
            tensors["image"],
            tensors.get("text"),
            tensors.get("text_counts"),
        )


def compute_features(subject: Subject, reading: Reading, rank: int = 0, world: int = 1) -> Computed:
    """Compute what is missing of a data set's shards, and return the files of all shards.

    Args:
        rank: which of ``world`` processes this is; each computes every ``world``-th shard.

    Raises:
        ValueError: a shard that cannot be read; its name is in the message.
        OSError: a file that cannot be written.
    """
    loaded, location = subject.loaded, subject.location
    transform = probe_transform(loaded) if reading.in_backbone else loaded.preprocess
    key = hashlib.sha256(f"{loaded.sha256} {transform} {subject.compute.precision}".encode()).hexdigest()[:16]
    folder = subject.cache_dir / reading.name / key
    computed = {}
    for split in reading.splits or subject.data_set.splits:
        shards = location.shards(split)
        computed[split] = [folder / f"{subject.shard_hashes[shard]}.safetensors" for shard in shards]
        own = list(zip(shards, computed[split], strict=True))[rank::world]
        missing = {shard: file for shard, file in own if not _is_whole(file, shard.samples)}
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            _compute(subject, reading, transform, missing, f"{reading.name} of {subject.data_set.name} {split}")
    return computed


def _is_whole(file: Path, samples: int | None) -> bool:
    """Tell whether there is a file with all that its header says, of so many samples where their number is known."""
    try:
        with safe_open(file, "pt") as opened:
            name = "labels" if "labels" in opened.keys() else "image"  # noqa: SIM118 (it is no dictionary)
            return samples in (None, opened.get_slice(name).get_shape()[0])
    except FileNotFoundError:
        return False
    except SafetensorError as error:
        tqdm.write(f"{file} is damaged ({error}), and is computed again")
        return False


def _compute(subject: Subject, reading: Reading, transform: Any, files: Mapping[Shard, Path], title: str) -> None:
    """Write each shard's file when the shard is complete."""
    compute, shards = subject.compute, list(files)
    encoder = backbone(subject.loaded.model) if reading.in_backbone else _joint(subject, reading)
    read = batches(
        shards,
        reading.fields,
        transform,
        batch_size=compute.batch_size,
        workers=compute.workers,
        pin_memory=compute.device == "cuda",
    )
    # Workers read several shards at once, so that batches of different shards come in turns.
    parts: dict[int, list[tuple[Batch, _Tensors]]] = {index: [] for index in range(len(shards))}
    with tqdm(desc=title, unit=" images", leave=False) as bar, encoder as encode, compute.autocast():
        for batch in read:
            if batch.images is not None:
                with torch.inference_mode():
                    images = batch.images.to(compute.device, non_blocking=True)
                    tensors = {name: tensor.cpu() for name, tensor in encode(images, batch).items()}
                parts[batch.shard].append((batch._replace(images=None), tensors))
                bar.update(len(images))
                continue
            _write(files[shards[batch.shard]], reading, parts.pop(batch.shard))


def _write(file: Path, reading: Reading, parts: Sequence[tuple[Batch, _Tensors]]) -> None:
    """Write what was computed of a shard's batches."""
    tensors = {name: torch.cat([part[name] for _, part in parts]).contiguous() for name in parts[0][1]}
    samples = [[key, *values] for batch, _ in parts for key, values in zip(batch.keys, batch.values, strict=True)]
    with kept(file) as new:
        save_file(tensors, new, None if reading.in_backbone else {"samples": json.dumps(samples)})


@contextmanager
def _joint(subject: Subject, reading: Reading) -> Iterator[Callable[[torch.Tensor, Batch], _Tensors]]:
    """Give a function that embeds images and, where the reading has them, their texts in the joint space.

    Source: clip_benchmark@1.6.2:clip_benchmark/metrics, zeroshot_classification.py and zeroshot_retrieval.py.
    """
    model: Any = subject.loaded.model
    tokenizer, device, texts_of = subject.loaded.tokenizer, subject.compute.device, reading.texts

    def encode(images: torch.Tensor, batch: Batch) -> _Tensors:
        tensors = {"image": F.normalize(model.encode_image(images), dim=-1)}
        if texts_of is None:
            return tensors
        texts = [_texts(texts_of, key, values) for key, values in zip(batch.keys, batch.values, strict=True)]
        tokens = tokenizer(list(chain.from_iterable(texts))).to(device)
        tensors["text"] = F.normalize(model.encode_text(tokens), dim=-1)
        return tensors | {"text_counts": torch.tensor([len(lines) for lines in texts])}

    yield encode


def _texts(texts_of: Callable[..., Sequence[str]], key: str, values: tuple[Any, ...]) -> Sequence[str]:
    """Return the texts of a sample; refuse one whose files are of another form, and one without texts."""
    try:
        texts = texts_of(*values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the sample {key} is not of the form of this benchmark ({error!r})") from error
    if not texts or not all(texts):
        raise ValueError(f"the sample {key} has {'an empty' if texts else 'no'} text")
    return texts


@contextmanager
def backbone(model: Any) -> Iterator[Callable[[torch.Tensor, Batch], _Tensors]]:
    """Give a function that computes an image tower's features before its projection, (B, C), and keeps the labels.

    For timm towers that is the trunk, for open_clip's own ViT the pooled output; other towers (ResNets, whose pooling
    is the projection) give their embedding.
    """
    visual = model.visual
    # open_clip's ViT leaves the projection out where it is None (open_clip@v3.3.0:src/open_clip/transformer.py)
    projection = getattr(visual, "proj", None) if isinstance(getattr(visual, "proj", None), nn.Parameter) else None
    tower = getattr(visual, "trunk", visual)

    def encode(images: torch.Tensor, batch: Batch) -> _Tensors:
        return {"features": tower(images).float(), "labels": torch.tensor([label for (label,) in batch.values])}

    if projection is not None:
        visual.proj = None
    try:
        yield encode
    finally:
        if projection is not None:
            visual.proj = projection


def probe_transform(loaded: LoadedModel) -> Any:
    """Make the transform: resize (bicubic) and centre crop to the model's image size, then the model's mean and std.

    Source: mbanani/lgssl@e4ae979; its mean and std are ImageNet's, which are those of the paper's models.
    """
    settings = loaded.preprocess_cfg | {"interpolation": "bicubic", "resize_mode": "shortest"}
    return image_transform_v2(PreprocessCfg(**settings), is_train=False)
