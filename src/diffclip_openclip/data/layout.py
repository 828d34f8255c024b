"""Find data sets and their files: clip_benchmark's webdataset layout, in local folders or behind URLs.

A data set is BASE/SPLIT/{0..}.tar with BASE/SPLIT/nshards.txt, and text files beside its splits
(clip_benchmark@1.6.2:clip_benchmark/datasets/builder.py, build_wds_dataset).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from diffclip_openclip.data.remote import URL_MARK, file_address, read_remote_text, remote_state
from diffclip_openclip.files import sha256, staged

SHARD_COUNT = "nshards.txt"  # in each split
CLASS_NAMES = "classnames.txt"  # line i names class i
TEMPLATES = "zeroshot_classification_templates.txt"  # a template a line, with {c} for the class
TYPE = "dataset_type.txt"  # one of the kinds below; classification where there is no such file
CLASSIFICATION, RETRIEVAL, SELECTION = "classification", "retrieval", "image_caption_selection"
# The text files beside the splits, which say how to read the shards.
METADATA = (CLASS_NAMES, TEMPLATES, TYPE)


@dataclass(frozen=True)
class Location:
    """Hold where a data set was found."""

    base: str  # the folder or URL in which its splits lie
    shard_counts: dict[str, int]  # the number of shards of each split

    def shards(self, split: str) -> list[str]:
        """List the paths or URLs of a split's shards, in order."""
        return [f"{file_address(self.base)}/{split}/{index}.tar" for index in range(self.shard_counts[split])]

    @cached_property
    def class_names(self) -> list[str]:
        """Return the names of the classes, by label.

        Raises:
            FileNotFoundError: there is no classnames.txt.
        """
        text = self._texts[CLASS_NAMES]
        if text is None:
            raise FileNotFoundError(f"{self.base} has no {CLASS_NAMES}; `diffclip data` writes it")
        return [line.strip() for line in text.splitlines()]

    @property
    def has_class_names(self) -> bool:
        """Return whether there is a classnames.txt."""
        return self._texts[CLASS_NAMES] is not None

    @property
    def has_captions(self) -> bool:
        """Return whether the data set is for retrieval."""
        return (self._texts[TYPE] or "").strip() == "retrieval"

    @cached_property
    def templates(self) -> list[str]:
        """Return the data set's own templates, with ``{c}`` for the class name; empty if it brings none.

        Raises:
            ValueError: a line without ``{c}``, or with other braces.
        """
        lines = [line.strip() for line in (self._texts[TEMPLATES] or "").splitlines()]
        for line in filter(None, lines):
            if "{c}" not in line or set("{}") & set(line.replace("{c}", "")):
                raise ValueError(
                    f"{self.base}/{TEMPLATES}: {line!r} must have {{c}} for the class, and no other braces"
                )
        return [line for line in lines if line]

    @cached_property
    def _texts(self) -> dict[str, str | None]:
        """Return the text files beside the splits, by name; None where one is not there."""
        return {name: _read_text(f"{file_address(self.base)}/{name}") for name in METADATA}

    def fingerprint(self, cache_dir: Path) -> str:
        """Hash the data set's content: its shards, and the text files that say how to read them.

        Args:
            cache_dir: see :func:`shard_fingerprint`.

        Returns:
            a SHA-256 in hexadecimal.
        """
        digest = hashlib.sha256()
        for name, text in self._texts.items():
            digest.update(f"{name}:{text or ''}".encode())
        shards = [
            (split, *numbered) for split in sorted(self.shard_counts) for numbered in enumerate(self.shards(split))
        ]
        for split, index, shard in tqdm(shards, desc=f"fingerprint of {self.base}", leave=False, delay=2):
            digest.update(f"{split}/{index}:{shard_fingerprint(shard, cache_dir)}".encode())
        return digest.hexdigest()


def shard_fingerprint(shard: str, cache_dir: Path) -> str:
    """Hash a shard's content; of a remote shard, its address and what the server says of its size, ETag and date.

    Args:
        cache_dir: a folder in which the hash of each local shard is kept under its path, size and time of change, so
            that it is read for its hash only once.

    Returns:
        a SHA-256 in hexadecimal.
    """
    if URL_MARK in shard:
        return hashlib.sha256(repr(remote_state(shard)).encode()).hexdigest()
    path = Path(shard)
    state = path.stat()
    key = hashlib.sha256(repr((str(path.absolute()), state.st_size, state.st_mtime_ns)).encode()).hexdigest()
    note = cache_dir / key
    if note.is_file():
        return note.read_text(encoding="ascii")
    value = sha256(path)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with staged(note, overwrite=True) as new:
        new.write_text(value, encoding="ascii")
    return value


def locate(name: str, splits: Sequence[str], roots: Sequence[str], *, optional: Sequence[str] = ()) -> Location | None:
    """Find a data set in the first of ``roots`` that has all of ``splits``.

    Args:
        splits: the splits that must be there.
        roots: folders or URLs that have a folder for each data set; ``{dataset}`` in one stands for ``name``.
        optional: more splits, which the location has if they are there.

    Returns:
        the location, or None where no root has all splits.

    Raises:
        ValueError: an nshards.txt that holds no number, a folder that lacks a shard, or a URL of an unknown scheme.
        OSError: a URL that cannot be reached; a server that says that the file is not there is no error.
    """
    for root in roots:
        base = root.replace("{dataset}", name) if "{dataset}" in root else f"{root.rstrip('/')}/{name}"
        counts = {split: _count_shards(base, split) for split in (*splits, *optional)}
        found = {split: count for split, count in counts.items() if count is not None}
        if found.keys() >= set(splits):
            return Location(base, found)
    return None


def _count_shards(base: str, split: str) -> int | None:
    """Return the number of shards that a split says it has, and check that local ones are there."""
    text = _read_text(f"{file_address(base)}/{split}/{SHARD_COUNT}")
    if text is None:
        return None
    if not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(
            f"{base}/{split}/{SHARD_COUNT} holds {text.strip()!r}; it must be the number of shards, above 0"
        )
    if URL_MARK not in base:
        for index in range(int(text)):
            if not Path(base, split, f"{index}.tar").is_file():
                raise ValueError(f"{base}/{split} lacks {index}.tar; its {SHARD_COUNT} says {text.strip()} shards")
    return int(text)


def _read_text(address: str) -> str | None:
    """Read a text file; None where it is not there."""
    if URL_MARK in address:
        return read_remote_text(address)
    path = Path(address)
    return path.read_text(encoding="utf-8") if path.is_file() else None
