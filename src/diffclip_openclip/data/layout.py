"""Find data sets and their files: clip_benchmark's webdataset layout, in local folders or behind URLs.

A data set is BASE/SPLIT/{0..}.tar with BASE/SPLIT/nshards.txt, and text files beside its splits
(clip_benchmark@1.6.2:clip_benchmark/datasets/builder.py, build_wds_dataset).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from diffclip_openclip.data.remote import URL_MARK, file_address, read_remote_file, remote_state
from diffclip_openclip.files import sha256, staged, text_of

SHARD_COUNT = "nshards.txt"  # in each split
SAMPLE_COUNTS = "nsamples.txt"  # in each split that `diffclip data` wrote: line i is the number of samples of shard i
CLASS_NAMES = "classnames.txt"  # line i names class i
TEMPLATES = "zeroshot_classification_templates.txt"  # a template a line, with {c} for the class
TYPE = "dataset_type.txt"  # one of the kinds below; classification where there is no such file
CLASSIFICATION, RETRIEVAL, SELECTION = KINDS = ("classification", "retrieval", "image_caption_selection")
# The text files beside the splits, which say how to read the shards.
METADATA = (CLASS_NAMES, TEMPLATES, TYPE)

_MOST_SHARDS = 100_000
_LARGEST_TEXT = 1 << 22  # bytes of a text file: the names of 20,000 classes are 0.5 MB
_HASH = re.compile(rb"[0-9a-f]{64}")
_LONGEST_NAME = 1_000  # characters of a class's name


@dataclass(frozen=True)
class Shard:
    """Name a shard."""

    address: str  # a path or URL
    samples: int | None = None  # the number of samples that were written to it, where that is known

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class Location:
    """Hold where a data set was found."""

    base: str  # the folder or URL in which its splits lie
    shard_counts: dict[str, int]  # the number of shards of each split
    # The number of samples of each shard, by split; of the splits for which it was written down.
    sample_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def shards(self, split: str) -> list[Shard]:
        """List a split's shards, in order."""
        folder, count = f"{file_address(self.base)}/{split}", self.shard_counts[split]
        samples = self.sample_counts.get(split, [None] * count)
        return [Shard(f"{folder}/{index}.tar", samples[index]) for index in range(count)]

    @cached_property
    def class_names(self) -> list[str]:
        r"""Return the names of the classes, by label.

        Raises:
            FileNotFoundError: there is no classnames.txt.
            ValueError: a name is too long, or has a line break other than ``\n``, where other readers split it.
        """
        text = self._texts[CLASS_NAMES]
        if text is None:
            raise FileNotFoundError(f"{self.base} has no {CLASS_NAMES}; `diffclip data` writes it")
        return [check_class_name(line, f"{self.base}/{CLASS_NAMES}").strip() for line in _lines(text)]

    @property
    def has_class_names(self) -> bool:
        """Return whether there is a classnames.txt."""
        return self._texts[CLASS_NAMES] is not None

    @cached_property
    def kind(self) -> str:
        """Return what the data set is for: one of :data:`KINDS`.

        Raises:
            ValueError: its dataset_type.txt says another.
        """
        text = (self._texts[TYPE] or CLASSIFICATION).strip().lower()  # as clip_benchmark reads it
        if text not in KINDS:
            raise ValueError(
                f"{self.base} is of the type {text[:40]!r} by its {TYPE}, which nothing here measures; there are "
                f"{', '.join(KINDS)}"
            )
        return text

    @property
    def has_captions(self) -> bool:
        """Return whether the data set is for retrieval."""
        return self.kind == RETRIEVAL

    @cached_property
    def templates(self) -> list[str]:
        """Return the data set's own templates, with ``{c}`` for the class name; empty if it brings none.

        Raises:
            ValueError: a line without ``{c}``, or with other braces.
        """
        lines = [line.strip() for line in _lines(self._texts[TEMPLATES] or "")]
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

    def shard_hashes(self, cache_dir: Path, rank: int = 0, world: int = 1) -> dict[Shard, str]:
        """Hash the shards of all splits; see :func:`shard_fingerprint`.

        Args:
            rank: which of ``world`` processes this is; each hashes every ``world``-th shard.
        """
        shards = [shard for split in sorted(self.shard_counts) for shard in self.shards(split)][rank::world]
        bar = tqdm(shards, desc=f"fingerprint of {self.base}", leave=False, delay=2)
        return {shard: shard_fingerprint(shard, cache_dir) for shard in bar}

    def fingerprint(self, shard_hashes: Mapping[Shard, str]) -> str:
        """Hash the data set's content, its shards and the text files that say how to read them; in hexadecimal."""
        digest = hashlib.sha256()
        for name, text in self._texts.items():
            digest.update(f"{name}:{text or ''}".encode())
        for split in sorted(self.shard_counts):
            for index, shard in enumerate(self.shards(split)):
                digest.update(f"{split}/{index}:{shard_hashes[shard]}".encode())
        return digest.hexdigest()


def shard_fingerprint(shard: Shard, cache_dir: Path) -> str:
    """Hash a shard's content; of a remote shard, its address and what the server says of its size, ETag and date.

    Args:
        cache_dir: a folder in which the hash of each local shard is kept under its path, inode, size and times of
            change, so that it is read for its hash only once. A note there that holds no hash is written anew.

    Returns:
        a SHA-256 in hexadecimal.
    """
    if URL_MARK in shard.address:
        return hashlib.sha256(repr(remote_state(shard.address)).encode()).hexdigest()
    path = Path(shard.address)
    state = path.stat()
    # a file that takes another's place can have its size and its time of change, but not its inode and ctime
    identity = (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    note = cache_dir / hashlib.sha256(repr(identity).encode()).hexdigest()
    if note.is_file() and _HASH.fullmatch(known := note.read_bytes()):
        return known.decode("ascii")
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
        ValueError: an nshards.txt or nsamples.txt that holds no numbers, a folder that lacks a shard, a data set of an
            unknown type, or a URL of an unknown scheme.
        OSError: a URL that cannot be reached; a server that says that the file is not there is no error.
    """
    for root in roots:
        base = root.replace("{dataset}", name) if "{dataset}" in root else f"{root.rstrip('/')}/{name}"
        counts = {split: _count_shards(base, split) for split in (*splits, *optional)}
        found = {split: count for split, count in counts.items() if count is not None}
        if found.keys() >= set(splits):
            samples = {split: _count_samples(base, split, count) for split, count in found.items()}
            location = Location(base, found, {split: counts for split, counts in samples.items() if counts})
            _ = location.kind  # refuses an unknown one before anything is measured
            return location
    return None


def check_class_name(name: str, place: str) -> str:
    """Return a class's name, and refuse one that readers would not take for one.

    Args:
        place: where it stands, for the message.

    Raises:
        ValueError: it has a line break of any kind, more than 1,000 characters, or bytes that are no text.
    """
    is_text = name.encode("utf-8", "replace").decode("utf-8") == name
    if len(name) > _LONGEST_NAME or name.splitlines() not in ([name], []) or not is_text:
        raise ValueError(
            f"{place} has {name[:80]!r} for a class's name; it must be one line of text of at most {_LONGEST_NAME:,} "
            "characters, without Unicode's other line breaks either"
        )
    return name


def _lines(text: str) -> list[str]:
    r"""Split at ``\n`` or ``\r\n`` alone, so that a name with another line break shifts no other name."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _count_shards(base: str, split: str) -> int | None:
    """Return the number of shards that a split says it has, and check that local ones are there."""
    text = _read_text(f"{file_address(base)}/{split}/{SHARD_COUNT}")
    if text is None:
        return None
    if not (count := _number(text)) or count > _MOST_SHARDS:
        raise ValueError(
            f"{base}/{split}/{SHARD_COUNT} holds {text.strip()[:40]!r}; it must be the number of shards, above 0"
        )
    if URL_MARK not in base:
        for index in range(count):
            if not Path(base, split, f"{index}.tar").is_file():
                raise ValueError(f"{base}/{split} lacks {index}.tar; its {SHARD_COUNT} says {count} shards")
    return count


def _count_samples(base: str, split: str, shards: int) -> list[int]:
    """Return the number of samples of each shard; empty where it was not written down."""
    text = _read_text(f"{file_address(base)}/{split}/{SAMPLE_COUNTS}")
    if text is None:
        return []
    counts = [_number(line) for line in _lines(text)]
    if len(counts) != shards or not all(counts):
        raise ValueError(f"{base}/{split}/{SAMPLE_COUNTS} must have a number of samples for each of {shards} shards")
    return [count or 0 for count in counts]


def _number(text: str) -> int | None:
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def _read_text(address: str) -> str | None:
    """Read a text file; None where it is not there."""
    if URL_MARK in address:
        data = read_remote_file(address, _LARGEST_TEXT + 1)
    elif Path(address).is_file():
        with Path(address).open("rb") as file:
            data = file.read(_LARGEST_TEXT + 1)
    else:
        data = None
    return None if data is None else text_of(data, address, _LARGEST_TEXT)
