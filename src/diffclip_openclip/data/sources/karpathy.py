"""Read images with captions in Karpathy's splits, for retrieval: ``diffclip data karpathy``."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from diffclip_openclip.data.annotations import read_list
from diffclip_openclip.data.catalog import KARPATHY, names_from
from diffclip_openclip.data.writer import RETRIEVAL_METADATA, Split, captioned


class _Entry(NamedTuple):
    """Hold one image's entry in the JSON."""

    filename: str
    folder: str  # the folder below ``images`` that COCO's entries name; "" in the others
    captions: list[str]


def convert(
    name: str, *, annotations: Path, images: Path, root: Path, split: str = "test", overwrite: bool = False
) -> list[str]:
    """Write the images of one of Karpathy's splits with all their captions to ``root``/``name``/``split``.

    Captions keep their order. A line is a caption, so that a line break within one becomes a space. All captions are
    taken, as in clip_benchmark's own data sets (clip_benchmark@1.6.2:clip_benchmark/datasets/flickr.py; torchvision's
    CocoCaptions for COCO).

    Args:
        name: one of the paper's data sets with captions.
        annotations: Karpathy's JSON, ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``.
        images: the folder of ``filepath``/``filename``, or of ``filename``.

    Raises:
        ValueError: ``name`` is none of the paper's, ``annotations`` is of another form or has no such split, or an
            image is listed twice or has no caption.
        FileNotFoundError: a file that is missing.
    """
    if name not in (known := names_from(KARPATHY)):
        raise ValueError(f"{name!r} is no data set with captions of the paper's; there are {', '.join(known)}")
    target = Split(root, name, split, overwrite)
    if finished := target.finished():
        return finished
    entries = _entries(annotations, split)
    samples, notes = captioned((_find(images, entry), entry.captions) for entry in entries)
    return [*target.write(samples, len(samples), RETRIEVAL_METADATA), *notes]


def _entries(annotations: Path, split: str) -> list[_Entry]:
    try:
        listed = read_list(annotations)["images"]
        splits = {str(entry["split"]) for entry in listed}
        entries = [
            _Entry(entry["filename"], entry.get("filepath", ""), [sentence["raw"] for sentence in entry["sentences"]])
            for entry in listed
            if entry["split"] == split
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{annotations} is not of the form of Karpathy's dataset_*.json ({error!r})") from error
    if not entries:
        raise ValueError(f"{annotations} has no split {split!r}; it has {', '.join(sorted(splits))}")
    name, count = Counter(entry.filename for entry in entries).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{annotations} lists {name} {count} times in the split {split!r}")
    return entries


def _find(images: Path, entry: _Entry) -> Path:
    places = [images / entry.folder / entry.filename, images / entry.filename]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"there is no image {places[0]}; --images must be the folder that holds it")
