"""Read the samples of shards, local tar files or URLs, decoded in worker processes and in batches.

Of a sample only its image and the fields that are asked for are decoded. webdataset's own decoders are not used: they
unpickle some kinds of files, and its opener runs parts of an address in a shell.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_iterator

from diffclip_openclip.data.images import EXTENSIONS, decode
from diffclip_openclip.data.remote import URL_MARK, open_remote

# What becomes of a sample's files, by extension.
_DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "cls": int,
    "txt": lambda data: data.decode("utf-8"),
    "json": json.loads,
}


class Batch(NamedTuple):
    """Hold a batch of one shard's samples, or the shard's end."""

    shard: int  # the shard's number among those that are read
    images: torch.Tensor | None = None  # (B, 3, H, W); None at the shard's end
    values: tuple[Any, ...] = ()  # the field of each image's sample
    error: str | None = None  # why the shard cannot be read further


def batches(
    shards: Sequence[str],
    field: str,
    transform: Callable[[Any], torch.Tensor],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Read shards in batches that cross no shard's end; each shard's last batch is its end, without images.

    Args:
        shards: paths or URLs.
        field: the extension of what is given beside each image: cls, txt or json.
        transform: makes a tensor (3, H, W) of an RGB image.
        workers: processes that decode, a shard each at a time; with 0 this process does.
        pin_memory: whether the images are put into memory from which a GPU copies them asynchronously.

    Raises:
        ValueError: a shard that cannot be read; its name is in the message.
    """
    loader = DataLoader(
        _ShardBatches(shards, field, transform, batch_size),
        batch_size=None,
        num_workers=min(workers, len(shards)),
        pin_memory=pin_memory,
    )
    for batch in loader:
        if batch.error is not None:
            raise ValueError(batch.error)
        yield batch


class _ShardBatches(IterableDataset[Batch]):
    """Decode whole shards, so that a shard's samples keep their order whatever the number of workers."""

    def __init__(
        self, shards: Sequence[str], field: str, transform: Callable[[Any], torch.Tensor], batch_size: int
    ) -> None:
        self.shards, self.field, self.transform, self.batch_size = shards, field, transform, batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        numbered = list(enumerate(self.shards))
        for index, shard in numbered if worker is None else numbered[worker.id :: worker.num_workers]:
            try:
                for samples in _in_batches(read_shard(shard, (self.field,), self.transform), self.batch_size):
                    images, values = zip(*samples, strict=True)
                    yield Batch(index, torch.stack(images), values)
                yield Batch(index)
            except Exception as error:  # as a value: an exception of a worker arrives with its whole traceback in it
                yield Batch(index, error=f"the shard {shard} cannot be read: {type(error).__name__} {error}")
                return


def read_shard(shard: str, fields: Sequence[str], transform: Callable[[Any], Any]) -> Iterator[tuple[Any, ...]]:
    """Read a shard's samples: the transformed RGB image of each, then ``fields`` of it.

    Images are those that clip_benchmark gives, but for greys of 16 bits
    (:func:`~diffclip_openclip.data.images.to_rgb`).

    Raises:
        ValueError: a sample without an image or without one of ``fields``, or one that cannot be decoded.
        OSError: a shard that cannot be opened.
    """
    with _open(shard) as stream:
        for sample in group_by_keys({**file, "__url__": shard} for file in tar_file_iterator(stream)):
            kind = next((kind for kind in EXTENSIONS if kind in sample), None)
            if kind is None or not sample.keys() >= set(fields):
                wanted = " or ".join(f".{field}" for field in fields)
                raise ValueError(f"the sample {sample['__key__']} lacks an image ({', '.join(EXTENSIONS)}) or {wanted}")
            try:
                values = [_DECODERS[field](sample[field]) for field in fields]
                image = decode(sample[kind])
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
                raise ValueError(f"the sample {sample['__key__']}: {type(error).__name__} {error}") from error
            yield transform(image), *values


def _open(shard: str) -> BinaryIO:
    return open_remote(shard) if URL_MARK in shard else Path(shard).open("rb")


def _in_batches(samples: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
