"""Read the samples of shards, local tar files or URLs, decoded in worker processes and in batches.

Of a sample only its image and the fields that are asked for are decoded. webdataset's own decoders are not used: they
unpickle some kinds of files, and its opener runs parts of an address in a shell. A shard counts only as a whole: one
that is cut short, damaged, or of other samples than were written is an error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import base_plus_ext, group_by_keys

from diffclip_openclip.data.images import EXTENSIONS, decode
from diffclip_openclip.data.layout import Shard
from diffclip_openclip.data.remote import URL_MARK, open_remote
from diffclip_openclip.data.tar_files import tar_files
from diffclip_openclip.files import parse_json

# What a sample's files can honestly have, in bytes.
_LARGEST_IMAGE = 1 << 28
_LARGEST_FIELD = 1 << 20
_LARGEST_LABEL = 999_999  # a probe has a row of weights for each class up to the largest


def _label(data: bytes) -> int:
    digits = data.strip()
    if not digits.isdigit() or len(digits) > 20 or int(digits) > _LARGEST_LABEL:
        raise ValueError(f"its .cls holds {_shown(data)}; it must be the class's number, 0 to {_LARGEST_LABEL:,}")
    return int(digits)


def _captions(data: bytes) -> str:
    text = data.decode("utf-8")
    if not text.strip():
        raise ValueError("its .txt is empty; it must hold a caption a line")
    return text


def _entry(data: bytes) -> Any:
    return parse_json(data.decode("utf-8-sig"), "its .json")


def _shown(data: bytes) -> str:
    return repr(data[:20])[1:] + ("..." if len(data) > 20 else "")


# What becomes of a sample's files, by extension.
_KEY = "__key__"  # webdataset's name for a sample's key
_DECODERS: Mapping[str, Callable[[bytes], Any]] = {"cls": _label, "txt": _captions, "json": _entry, _KEY: str}
_PATIENCE = 600  # seconds without a batch: a slow disk takes less, a worker that was killed never gives one


class Batch(NamedTuple):
    """Hold a batch of one shard's samples, or the shard's end."""

    shard: int  # the shard's number among those that are read
    images: torch.Tensor | None = None  # (B, 3, H, W); None at the shard's end
    keys: tuple[str, ...] = ()  # the key of each image's sample
    values: tuple[tuple[Any, ...], ...] = ()  # the fields of each image's sample
    error: str | None = None  # why the shard cannot be read further


def batches(
    shards: Sequence[Shard],
    fields: Sequence[str],
    transform: Callable[[Any], torch.Tensor],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    patience: int = _PATIENCE,
) -> Iterator[Batch]:
    """Read shards in batches that cross no shard's end; each shard's last batch is its end, without images.

    Args:
        fields: the extensions of what is given beside each image: cls, txt or json.
        transform: makes a tensor (3, H, W) of an RGB image.
        workers: processes that decode, a shard each at a time; with 0 this process does.
        pin_memory: whether the images are put into memory from which a GPU copies them asynchronously.
        patience: seconds to wait for a batch of the workers.

    Raises:
        ValueError: a shard that cannot be read; its name is in the message.
        TimeoutError: the workers give no batch any more.
    """
    workers = min(workers, len(shards))
    loader = DataLoader(
        _ShardBatches(shards, fields, transform, batch_size),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=patience if workers else 0,
    )
    try:
        for batch in loader:
            if batch.error is not None:
                raise ValueError(batch.error)
            yield batch
    except RuntimeError as error:  # of the loader
        if "timed out" not in str(error):
            raise
        raise TimeoutError(
            f"{workers} workers gave no batch for {patience} seconds; give fewer --workers, or 0 to decode without"
        ) from error


class _ShardBatches(IterableDataset[Batch]):
    """Decode whole shards, so that a shard's samples keep their order whatever the number of workers."""

    def __init__(
        self, shards: Sequence[Shard], fields: Sequence[str], transform: Callable[[Any], torch.Tensor], batch_size: int
    ) -> None:
        self.shards, self.fields, self.transform, self.batch_size = shards, fields, transform, batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        numbered = list(enumerate(self.shards))
        for index, shard in numbered if worker is None else numbered[worker.id :: worker.num_workers]:
            try:
                read = read_shard(shard, (_KEY, *self.fields), self.transform)
                for samples in _in_batches(read, self.batch_size):
                    images, keys, *columns = zip(*samples, strict=True)
                    yield Batch(index, torch.stack(images), keys, tuple(zip(*columns, strict=True)))
                yield Batch(index)
            except Exception as error:  # as a value: an exception of a worker arrives with its whole traceback in it
                yield Batch(index, error=str(error))
                return


def read_shard(shard: Shard, fields: Sequence[str], transform: Callable[[Any], Any]) -> Iterator[tuple[Any, ...]]:
    """Read a shard's samples: the transformed RGB image of each, then ``fields`` of it.

    Images are those that clip_benchmark gives, but for greys of 16 bits
    (:func:`~diffclip_openclip.data.images.to_rgb`). A sample's label is at least 0, and its captions are not all empty.

    Raises:
        ValueError: the shard is cut short or damaged, has no samples or another number than was written, or a sample
            lacks an image or one of ``fields``, or cannot be decoded. The message names the shard and the sample.
    """
    count = 0
    try:
        with _open(shard.address) as stream:
            for sample in _samples(stream, fields):
                yield _decoded(sample, fields, transform)
                count += 1
        if not count or shard.samples not in (None, count):
            expected = "one at least" if shard.samples is None else f"{shard.samples:,}"
            raise ValueError(f"it has {count:,} samples instead of {expected}")
    except Exception as error:  # each client library has its own
        raise ValueError(f"the shard {shard} cannot be read: {str(error) or type(error).__name__}") from error


def _samples(stream: BinaryIO, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the contents of each sample's files by extension; those that are not wanted are None."""
    most = dict.fromkeys(EXTENSIONS, _LARGEST_IMAGE) | dict.fromkeys(fields, _LARGEST_FIELD)
    files = tar_files(stream, lambda name: most.get((base_plus_ext(name)[1] or "").lower(), 0))
    last = "before its first sample"
    try:
        for sample in group_by_keys({"fname": name, "data": data, "__url__": ""} for name, data in files):
            yield sample
            last = f"after the sample {sample['__key__']}"
    except Exception as error:  # of tarfile, decompression, the network and group_by_keys
        raise ValueError(f"it is cut short or damaged {last}: {str(error) or type(error).__name__}") from error


def _decoded(sample: Mapping[str, Any], fields: Sequence[str], transform: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Return a sample's transformed image and the values of its fields."""
    kind = next((kind for kind in EXTENSIONS if kind in sample), None)
    if kind is None or not sample.keys() >= set(fields):
        wanted = " or ".join(f".{field}" for field in fields if field != _KEY)
        raise ValueError(f"the sample {sample['__key__']} lacks an image ({', '.join(EXTENSIONS)}) or {wanted}")
    try:
        return transform(decode(sample[kind])), *(_DECODERS[field](sample[field]) for field in fields)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
        raise ValueError(f"the sample {sample['__key__']}: {type(error).__name__} {error}") from error


def _open(address: str) -> BinaryIO:
    return open_remote(address) if URL_MARK in address else Path(address).open("rb")


def _in_batches(samples: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
