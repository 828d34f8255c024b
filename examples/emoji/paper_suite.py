"""The paper's evaluation in small: the embedded emoji arranged as each of its data sets.

    python examples/emoji/paper_suite.py DATA
    diffclip evaluate --model DiffCLIP-nano,CHECKPOINT --data DATA --output RESULTS
    diffclip report RESULTS --output REPORT

DATA gets a folder for each of the paper's 18 data sets, under the same names and in the same layout, so that every task
runs on real images in seconds. The numbers have nothing to do with the paper's: "imagenet-a" is a vendor's emoji here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

DATA = Path(__file__).resolve().parent / "data"
NAMES = {"noto": "train/noto.tar", "twemoji": "train/twemoji.tar", "openmoji": "train-openmoji/openmoji.tar"}
TEMPLATES = "zeroshot_classification_templates.txt"
SHARD = 250  # samples; several shards for each split, as large data sets have

# nine classification problems; a class is a keyword, or one of the eight groups
PROBLEMS: dict[str, tuple[str, ...]] = {
    "caltech101": ("clothing", "tool", "building", "car", "music", "money"),
    "dtd": ("arrow", "button", "clock", "heart", "square", "zodiac"),
    "pets": ("bird", "cat", "plant", "fruit", "ocean", "dessert"),
    "flowers": ("smile", "sad", "love", "man", "woman", "hand"),
    "sun397": ("space", "weather", "building", "beach", "religion", "celebration"),
    "fgvc_aircraft": ("sport", "game", "music", "tool", "card", "ball"),
    "cifar10": (),
    "cifar100": ("face", "animal", "food", "hand", "arrow", "clock", "heart", "sport", "fantasy", "tool", "button"),
    "food101": ("fruit", "drink", "dessert", "restaurant", "animal", "clothing"),
}
OFFICIAL_VAL = ("dtd", "flowers", "fgvc_aircraft")

# pairs of concepts that differ in one respect, as MMVP-VLM's photographs do
PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "Orientation and Direction": (
        ("up arrow", "down arrow"),
        ("left arrow", "right arrow"),
        ("backhand index pointing left", "backhand index pointing right"),
        ("rightwards hand", "leftwards hand"),
    ),
    "Presence of Specific Features": (
        ("grinning face", "grinning face with sweat"),
        ("bell", "bell with slash"),
        ("smiling face with halo", "smiling face with horns"),
        ("closed mailbox with lowered flag", "closed mailbox with raised flag"),
    ),
    "State and Condition": (
        ("locked", "unlocked"),
        ("closed book", "open book"),
        ("battery", "low battery"),
        ("hourglass done", "hourglass not done"),
    ),
    "Quantity and Count": (
        ("red heart", "two hearts"),
        ("keycap: 1", "keycap: 2"),
        ("keycap: 3", "keycap: 4"),
        ("closed book", "books"),
    ),
    "Positional and Relational Context": (
        ("sun behind small cloud", "sun behind large cloud"),
        ("index pointing up", "index pointing at the viewer"),
        ("palm down hand", "palm up hand"),
        ("incoming envelope", "envelope with arrow"),
    ),
    "Color and Appearance": (
        ("red square", "blue square"),
        ("green heart", "purple heart"),
        ("yellow circle", "brown circle"),
        ("green book", "orange book"),
    ),
    "Structural Characteristics": (
        ("waxing crescent moon", "full moon"),
        ("one o'clock", "six o'clock"),
        ("globe with meridians", "globe showing Americas"),
        ("speaker low volume", "speaker high volume"),
    ),
    "Texts": (
        ("NEW button", "FREE button"),
        ("ID button", "OK button"),
        ("SOS button", "COOL button"),
        ("BACK arrow", "END arrow"),
    ),
    "Viewpoint and Perspective": (
        ("cat", "cat face"),
        ("tiger", "tiger face"),
        ("mouse", "mouse face"),
        ("horse", "horse face"),
    ),
}


def concepts() -> list[dict[str, Any]]:
    """Every concept: hexcode, label, tags, group, held_out."""
    entries: list[dict[str, Any]] = json.loads((DATA / "metadata.json").read_text(encoding="utf-8"))["concepts"]
    return entries


def images(vendor: str) -> dict[str, bytes]:
    """A vendor's drawings by hexcode; "fluent" is the one that is in no training shard."""
    if vendor == "fluent":
        folders = ("unseen-vendor", "heldout-concepts")
        paths = [DATA / "eval" / name / "test" / "0.tar" for name in folders]
    else:
        paths = [DATA / NAMES[vendor]]
    wanted = f"{vendor}_"
    found = {}
    for name, content in itertools.chain.from_iterable(map(_read, paths)):
        key, _, kind = name.rpartition(".")
        if kind == "webp" and key.startswith(wanted):
            found[key.removeprefix(wanted).partition("_")[0]] = content
    return found


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            yield member.name, stream.read()


def write_split(folder: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Samples as the shards of one split."""
    folder.mkdir(parents=True)
    numbered = enumerate(samples)
    for shard in itertools.count():
        if not (chunk := list(itertools.islice(numbered, SHARD))):
            break
        # webdataset's own opener would take some names for commands, and a % for its own
        with (folder / f"{shard}.tar").open("wb") as file, wds.TarWriter(file) as sink:
            for index, sample in chunk:
                sink.write({"__key__": f"s{index:07d}"} | sample)
    (folder / "nshards.txt").write_text(f"{len(list(folder.glob('*.tar')))}\n")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def classification(root: Path, limit: int | None) -> None:
    """The nine data sets of linear probe and few-shot: two vendors to learn from, an unseen one as the test."""
    by_vendor = {vendor: images(vendor) for vendor in (*NAMES, "fluent")}
    for name, keywords in PROBLEMS.items():
        classes = keywords or tuple(sorted({concept["group"] for concept in concepts()}))
        labelled = {}
        for concept in concepts():
            matches = [word for word in classes if word == concept["group"] or word in concept["tags"]]
            if len(matches) == 1 and not concept["held_out"]:
                labelled[concept["hexcode"]] = classes.index(matches[0])
        val = ["openmoji"] if name in OFFICIAL_VAL else []
        splits = {"train": [v for v in NAMES if v not in val], "test": ["fluent"]} | ({"val": val} if val else {})
        for split, vendors in splits.items():
            samples = [{"webp": by_vendor[v][code], "cls": label} for v in vendors for code, label in labelled.items()]
            write_split(root / name / split, _first_of_each(samples, limit))
        write_lines(root / name / "classnames.txt", classes)


def _first_of_each(samples: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    seen: Counter[int] = Counter()
    kept = []
    for sample in samples:
        seen[sample["cls"]] += 1
        if limit is None or seen[sample["cls"]] <= limit:
            kept.append(sample)
    return kept


def zero_shot(root: Path, limit: int | None) -> None:
    """ImageNet and its variants: the emoji's own classification sets, and OpenMoji's drawings as the sketches."""
    sets = {
        "imagenet1k": "seen-vendors",
        "imagenetv2": "heldout-concepts",
        "imagenet-a": "unseen-vendor",
        "imagenet-r": "unseen-vendor-groups",
    }
    for name, source in sets.items():
        samples: dict[str, dict[str, Any]] = {}
        for file, content in _read(DATA / "eval" / source / "test" / "0.tar"):
            key, _, kind = file.rpartition(".")
            samples.setdefault(key, {})[kind] = content
        classes = _lines(DATA / "eval" / source / "classnames.txt")[: _cut(limit)]
        known = [sample for sample in samples.values() if int(sample["cls"]) < len(classes)]
        write_split(root / name / "test", known[: _cut(limit)])
        write_lines(root / name / "classnames.txt", classes)
        write_lines(root / name / TEMPLATES, _lines(DATA / "eval" / source / TEMPLATES))
    trained = [concept for concept in concepts() if not concept["held_out"]][: _cut(limit)]
    drawings = images("openmoji")
    sketches = [{"webp": drawings[concept["hexcode"]], "cls": i} for i, concept in enumerate(trained)]
    write_split(root / "imagenet_sketch" / "test", sketches)
    write_lines(root / "imagenet_sketch" / "classnames.txt", (concept["label"] for concept in trained))
    write_lines(root / "imagenet_sketch" / TEMPLATES, _lines(DATA / "eval" / "unseen-vendor" / TEMPLATES))


def retrieval(root: Path, limit: int | None) -> None:
    """Label and keywords are an image's two captions; a vendor a data set."""
    for name, vendor in (("flickr30k", "fluent"), ("flickr8k", "noto"), ("mscoco_captions", "twemoji")):
        drawings = images(vendor)
        samples = [
            {"webp": drawings[concept["hexcode"]], "txt": f"{concept['label']}\n{', '.join(concept['tags'])}"}
            for concept in concepts()
            if concept["hexcode"] in drawings and concept["tags"]
        ]
        write_split(root / name / "test", samples[: _cut(limit) or 500])
        write_lines(root / name / "dataset_type.txt", ["retrieval"])


def mmvp(root: Path) -> None:
    """Pairs of Fluent's drawings, all nine patterns."""
    codes = {concept["label"]: concept["hexcode"] for concept in concepts()}
    drawings = images("fluent")
    texts = [(pattern, text) for pattern, pairs in PAIRS.items() for pair in pairs for text in pair]
    samples = [
        {"webp": drawings[codes[text]], "txt": text, "json": {"qid": number, "pattern": pattern}}
        for number, (pattern, text) in enumerate(texts, start=1)
    ]
    write_split(root / "mmvp" / "test", samples)
    write_lines(root / "mmvp" / "dataset_type.txt", ["retrieval"])


def build(root: Path, limit: int | None = None) -> None:
    """All data sets; with ``limit`` only the first of each class, and eight times as many of other sets."""
    classification(root, limit)
    zero_shot(root, limit)
    retrieval(root, limit)
    mmvp(root)


def _cut(limit: int | None) -> int | None:
    return limit and 8 * limit


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="a new folder")
    args = parser.parse_args()
    if args.data.exists():
        parser.error(f"{args.data} exists; name a new folder")
    temporary = args.data.with_name(f".{args.data.name}.new")
    build(temporary)
    temporary.rename(args.data)


if __name__ == "__main__":
    main()
