"""clip_benchmark's webdataset layout: ROOT/DATASET/SPLIT/{0..}.tar, nshards.txt, and text files beside the splits.

Source: clip_benchmark@1.6.2:clip_benchmark/datasets/builder.py, build_wds_dataset. Its own
``webdataset_builder.convert_dataset`` writes the same, but in place, so that a run that ends early leaves part of a
split, and with a lambda for its workers, which cannot be started where Python spawns processes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from diffclip_openclip.data.images import ImageSource, encode
from diffclip_openclip.evaluation.published import size_note
from diffclip_openclip.extras import require
from diffclip_openclip.files import Folder, check_place, staged

SHARD_SIZE = 1000  # samples; readers decode shards in parallel
_SHARDS = ("[0-9].tar", "[1-9][0-9].tar", "[1-9][0-9][0-9].tar", "[1-9][0-9][0-9][0-9].tar")
_SPLIT = Folder("a split of a data set", ("nshards.txt", *_SHARDS), mark="nshards.txt")
_METADATA = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")


@dataclass(frozen=True)
class Sample:
    """An image, and the files that go with it by their extension (``cls``, ``txt``, ``json``)."""

    image: ImageSource
    fields: Mapping[str, bytes]


def classified(image: ImageSource, label: int) -> Sample:
    """A sample of a classification set; ``label`` counts from 0."""
    return Sample(image, {"cls": str(label).encode("ascii")})


def classification_metadata(classes: Sequence[str], templates: Sequence[str]) -> dict[str, str]:
    """The text files of a classification set: line i of the class names is class i, templates hold ``{c}``."""
    return {_METADATA[0]: "".join(f"{name}\n" for name in classes), _METADATA[1]: "".join(f"{t}\n" for t in templates)}


def retrieval_metadata() -> dict[str, str]:
    """The text file of a set of images with captions."""
    return {_METADATA[2]: "retrieval\n"}


@dataclass(frozen=True)
class Split:
    """A split to be written to ROOT/DATASET/NAME.

    Raises:
        ValueError: ``dataset`` or ``name`` is no name for a folder.
    """

    root: Path
    dataset: str
    name: str
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in (self.dataset, self.name):
            if not name or Path(name).name != name or name.startswith("."):
                raise ValueError(f"{name!r} is no name for a folder of {self.root}; give a plain word, e.g. imagenet1k")

    @property
    def folder(self) -> Path:
        return self.root / self.dataset / self.name

    def finished(self) -> list[str]:
        """A line that says so where the split is complete and is to stay, otherwise nothing."""
        count = self.folder / "nshards.txt"
        if self.overwrite or not count.is_file():
            return []
        text = count.read_text(encoding="utf-8").strip()
        shards = [self.folder / f"{index}.tar" for index in range(int(text) if text.isdecimal() else 0)]
        if not shards or not all(shard.is_file() for shard in shards):
            return []
        return [f"{self.folder} is there, in {len(shards)} shards; --overwrite makes it again"]

    def write(self, samples: Iterable[Sample], total: int, metadata: Mapping[str, str]) -> list[str]:
        """Write ``total`` samples in their order, and the data set's text files.

        The folder appears when all of it is written. Nothing stays of a run that fails.

        Returns:
            lines to show: what was written, and whether its size is the published one.

        Raises:
            FileExistsError: the folder is there, or one of the text files with another content, and ``overwrite`` is
                not given.
            FileNotFoundError, ValueError: an image that is missing or cannot be read, or no images at all.
            ImportError: webdataset is not installed.
        """
        require("preparing data sets", "eval", "webdataset")
        if total == 0:
            raise ValueError(f"the source has no images for {self.dataset}/{self.name}")
        home = self.folder.parent
        if home.is_dir():
            check_place(self.folder, self.overwrite, _SPLIT)
        _check_metadata(home, metadata, self.overwrite)
        with _made(home), staged(self.folder, self.overwrite) as new:
            new.mkdir()
            shards = _write_shards(new, samples, total, f"{self.dataset}/{self.name}")
            (new / "nshards.txt").write_text(f"{shards}\n", encoding="ascii")
            _write_metadata(home, metadata)
        return [f"{self.folder}: {total:,} images in {shards} shards", *size_note(self.dataset, self.name, total)]


def _write_shards(folder: Path, samples: Iterable[Sample], total: int, title: str) -> int:
    from webdataset import TarWriter

    numbered, shards = enumerate(samples), 0
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc=title, unit="image", delay=2) as progress:
        while chunk := list(islice(numbered, SHARD_SIZE)):
            encoded = pool.map(encode, [sample.image for _, sample in chunk])
            # a fixed time makes the same data the same bytes; ShardWriter would take a % in the path for its own
            with (folder / f"{shards}.tar").open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
                for (index, sample), (extension, data) in zip(chunk, encoded, strict=True):
                    tar.write({"__key__": f"s{index:07d}", extension: data, **sample.fields})
                    progress.update()
            shards += 1
    return shards


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; where the body fails, take away what was made for it and is empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _check_metadata(home: Path, metadata: Mapping[str, str], overwrite: bool) -> None:
    for name in _METADATA:
        path = home / name
        if not overwrite and path.is_file() and path.read_text(encoding="utf-8") != metadata.get(name):
            raise FileExistsError(
                f"{path} says otherwise than this source: it is of other classes, or of another kind of data set; name "
                "another place, or replace it with --overwrite"
            )


def _write_metadata(home: Path, metadata: Mapping[str, str]) -> None:
    for name in _METADATA:
        if name in metadata:
            with staged(home / name, overwrite=True) as new:
                new.write_text(metadata[name], encoding="utf-8", newline="\n")
        else:
            (home / name).unlink(missing_ok=True)
