"""Build the emoji data set:  python examples/emoji/build.py

Takes a minute, fetches 30 MB from npm and writes 8.7 MB to examples/emoji/data. Needs npm and
`pip install resvg-py pillow tqdm`. Without a network: fetch the packages of sources.json elsewhere with
`npm pack NAME@VERSION` and pass their directory as --packages. The same versions of resvg-py, Pillow and
zlib give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import resvg_py
    from PIL import Image
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
except ImportError as error:
    sys.exit(f"{error.name} is missing: pip install resvg-py pillow tqdm")

HERE = Path(__file__).resolve().parent
SOURCES = json.loads((HERE / "sources.json").read_text(encoding="utf-8"))
PACKAGES: dict[str, dict[str, str]] = SOURCES["packages"]
GROUPS: dict[str, str] = SOURCES["groups"]  # emojibase's number -> class name, without flags and parts
VENDORS = ("noto", "twemoji", "openmoji", "fluent")
SEED, SIZE, QUALITY, RETRIEVAL = 0, 64, 80, 500  # pixels a side; WebP quality; concepts in eval/retrieval
STRAIGHT_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})

Emoji = Mapping[str, dict[str, Any]]  # hexcode -> emojibase's record
Images = Mapping[str, Mapping[str, bytes]]  # vendor -> hexcode -> WebP
Sample = tuple[str, dict[str, bytes]]  # key, extension -> content


@dataclass(frozen=True)
class Concept:
    hexcode: str
    label: str
    tags: list[str]
    group: str
    held_out: bool

    @property
    def keywords(self) -> str:
        return ", ".join(tag for tag in self.tags if tag.lower() != self.label.lower()) or self.label


def fetch_packages(directory: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm was not found: install Node.js, or pass the packages' tarballs with --packages DIR")
    specs = [f"{package['name']}@{package['version']}" for package in PACKAGES.values()]
    with tqdm(specs, desc="fetch packages") as progress:
        for spec in progress:
            done = subprocess.run([npm, "pack", spec], cwd=directory, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"`npm pack {spec}` failed:\n{done.stderr.strip()}")


def read_package(directory: Path, package: Mapping[str, str]) -> dict[str, bytes]:
    """The files that we need of an npm package, after checking its hash and the licence that it declares."""
    spec = f"{package['name']}@{package['version']}"
    path = directory / f"{spec.lstrip('@').replace('/', '-').replace('@', '-')}.tgz"
    if not path.is_file():
        sys.exit(f"{path} is missing: run `npm pack {spec}` in that directory")
    if hashlib.sha256(path.read_bytes()).hexdigest() != package["sha256"]:
        sys.exit(f"{path} is damaged or not {spec}: delete it and fetch it again")
    wanted, files = re.compile(f"package/(package\\.json|{package['files']})"), {}
    with tarfile.open(path) as tar:
        for member in tar:
            if wanted.fullmatch(member.name) and (stream := tar.extractfile(member)):
                files[member.name.removeprefix("package/")] = stream.read()
    if (licence := json.loads(files["package.json"])["license"]) != package["licence"]:
        sys.exit(f"{spec} declares the licence {licence}, not {package['licence']}")
    return files


def normal(hexcode: str) -> str:
    """Lower case and without the variation selector, which the sources write only in some places."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def read_emoji(data_json: bytes) -> Emoji:
    """Sorted by hexcode. Leaves out flags, parts, skin tones and mirror images."""
    emoji = {normal(e["hexcode"]): e for e in json.loads(data_json) if str(e.get("group")) in GROUPS}
    for e in emoji.values():
        e["label"] = e["label"].translate(STRAIGHT_QUOTES)
        e["tags"] = [tag.translate(STRAIGHT_QUOTES) for tag in e.get("tags", [])]
    return {h: e for h, e in sorted(emoji.items()) if not e["label"].endswith(": facing right")}


def fluent_icon_names(emoji: Emoji, icons: Mapping[str, Any]) -> dict[str, str]:
    """hexcode -> icon name. This package has no code points, so we go by the labels."""
    names = {}
    for hexcode, e in emoji.items():
        slug = re.sub("[^a-z0-9]+", "-", re.sub("[^ -~]|'", "", e["label"].lower())).strip("-")
        for name in (f"person-{slug}", SOURCES["fluent_names"].get(e["label"], slug)):  # the later one wins
            if name in icons["icons"] or name in icons["aliases"]:
                names[hexcode] = name
    return names


def iconify_svg(icons: Mapping[str, Any], name: str) -> str | None:
    alias = icons["aliases"].get(name, {})
    icon = icons["icons"].get(alias.get("parent", name))
    if icon is None:
        return None
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} width="{2 * SIZE}" height="{2 * SIZE}" viewBox="0 0 {width} {height}">{body}</svg>'


def read_drawings(vendor: str, files: Mapping[str, bytes], emoji: Emoji) -> dict[str, str]:
    """hexcode -> SVG"""
    if vendor == "openmoji":
        return {normal(Path(p).stem): svg.decode() for p, svg in files.items() if p.endswith(".svg")}
    icons = json.loads(files["icons.json"])
    if vendor == "fluent":
        names = fluent_icon_names(emoji, icons)
    else:
        names = {normal(hexcode): name for hexcode, name in json.loads(files["chars.json"]).items()}
    return {h: svg for h, name in names.items() if (svg := iconify_svg(icons, name))}


def render(svg: str) -> bytes:
    """At twice the size, then halved: resvg leaves jagged edges where Fluent uses filters."""
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=2 * SIZE, height=2 * SIZE, background="#ffffff", skip_system_fonts=True
    )
    image, webp = Image.open(io.BytesIO(bytes(png))).convert("RGB"), io.BytesIO()
    if image.size != (2 * SIZE, 2 * SIZE):
        sys.exit(f"a drawing came out as {image.size} instead of {(2 * SIZE, 2 * SIZE)}")
    image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(webp, "WEBP", quality=QUALITY, method=6)
    return webp.getvalue()


def hold_out(groups: Mapping[str, str], images: Images) -> set[str]:
    """A seeded tenth of each group, none of which a vendor draws exactly like another concept."""
    times_drawn = {v: Counter(images[v].values()) for v in VENDORS}
    alone = [h for h in groups if all(times_drawn[v][images[v][h]] == 1 for v in VENDORS)]
    rng, held_out = random.Random(SEED), set()
    for group in GROUPS.values():
        tenth = round(sum(g == group for g in groups.values()) / 10)
        held_out.update(rng.sample([h for h in alone if groups[h] == group], tenth))
    return held_out


def make_concepts(hexcodes: list[str], emoji: Emoji, images: Images) -> list[Concept]:
    groups = {h: GROUPS[str(emoji[h]["group"])] for h in hexcodes}
    held_out = hold_out(groups, images)
    concepts = [Concept(h, emoji[h]["label"], emoji[h]["tags"], groups[h], h in held_out) for h in hexcodes]
    twice = [label for label, n in Counter(c.label.lower() for c in concepts).items() if n > 1]
    if twice:
        sys.exit(f"labels of more than one concept, make them distinct in read_emoji: {twice}")
    return concepts


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """Compressed inside: headers are as large as the images, and an image stored twice in a row is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for key, contents in samples:
            for extension, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{extension}")  # with time, user and group 0
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_training_sets(out: Path, concepts: list[Concept], images: Images) -> dict[str, int]:
    """One shard a vendor, images shuffled, two neighbouring samples an image: its label and its keywords."""
    shards = {
        "noto": "train/noto.tar",
        "twemoji": "train/twemoji.tar",
        "openmoji": "train-openmoji/openmoji.tar",
    }
    for vendor, path in shards.items():
        samples = [
            (f"{vendor}_{c.hexcode}_{kind}", {"webp": images[vendor][c.hexcode], "txt": text.encode()})
            for c in random.Random(f"{SEED} {vendor}").sample(concepts, len(concepts))
            for kind, text in (("label", c.label), ("tags", c.keywords))
        ]
        write_tar(out / path, samples)
    counts = {path: 2 * len(concepts) for path in shards.values()}
    sizes = json.dumps({Path(path).name: n for path, n in counts.items()}, indent=2)
    for directory in ("train", "train-openmoji"):  # open_clip looks beside the first shard that it is given
        (out / directory / "sizes.json").write_text(f"{sizes}\n")
    return counts


def write_evaluation_sets(out: Path, concepts: list[Concept], images: Images) -> dict[str, int]:
    """clip_benchmark's webdataset layout; the images that training saw are only in seen-vendors."""
    seen, held_out = [c for c in concepts if not c.held_out], [c for c in concepts if c.held_out]
    others = random.Random(f"{SEED} retrieval").sample(seen, RETRIEVAL - len(held_out))
    retrieval = sorted(held_out + others, key=lambda c: c.hexcode)
    times = Counter(c.keywords for c in retrieval)
    captions = [c.keywords if times[c.keywords] == 1 else f"{c.keywords}, {c.label}" for c in retrieval]

    def sample(vendor: str, c: Concept, extension: str, text: str | int) -> Sample:
        return f"{vendor}_{c.hexcode}", {"webp": images[vendor][c.hexcode], extension: str(text).encode()}

    labels, groups = [c.label for c in seen], list(GROUPS.values())
    new_by_three = [(v, i, c) for v in ("noto", "twemoji", "fluent") for i, c in enumerate(held_out)]
    sets: dict[str, tuple[list[str] | None, list[Sample]]] = {
        "unseen-vendor": (labels, [sample("fluent", c, "cls", i) for i, c in enumerate(seen)]),
        "unseen-vendor-groups": (groups, [sample("fluent", c, "cls", groups.index(c.group)) for c in seen]),
        "seen-vendors": (labels, [sample(VENDORS[i % 2], c, "cls", i) for i, c in enumerate(seen)]),
        "heldout-concepts": (
            [c.label for c in held_out],
            [sample(v, c, "cls", i) for v, i, c in new_by_three],
        ),
        "retrieval": (None, [sample("fluent", c, "txt", captions[i]) for i, c in enumerate(retrieval)]),
    }
    for name, (classes, samples) in sets.items():
        folder = out / "eval" / name
        write_tar(folder / "test" / "0.tar", samples)
        (folder / "test" / "nshards.txt").write_text("1\n")
        if classes is None:
            (folder / "dataset_type.txt").write_text("retrieval\n")
        else:
            (folder / "classnames.txt").write_text("".join(f"{c}\n" for c in classes), encoding="utf-8")
            (folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    return {f"eval/{name}": len(samples) for name, (_, samples) in sets.items()}


def write_licences(out: Path, files: Mapping[str, Mapping[str, bytes]]) -> None:
    folder = out / "LICENSES"
    folder.mkdir()
    table = "| what | author | licence | from the npm package | used in |\n| --- | --- | --- | --- | --- |\n"
    for key, p in PACKAGES.items():
        text = files[key].get(p["licence_text"]) or (HERE / "licenses" / p["licence_text"]).read_bytes()
        (folder / f"{key}.txt").write_bytes(text)
        package, licence = f"`{p['name']}` {p['version']}", f"{p['licence']}, `{key}.txt`"
        table += f"| {key} | {p['author']} | {licence} | {package} | {p['used_in']} |\n"
    changes = (HERE / "licenses" / "changes.md").read_text(encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(f"# Attribution\n\n{table}\n{changes}", encoding="utf-8")
    shutil.copyfile(HERE / "licenses" / "Unicode-3.0.txt", folder / "unicode-cldr.txt")
    shutil.copyfile(folder / "openmoji.txt", out / "train-openmoji" / "ATTRIBUTION.txt")
    (out / "train-openmoji" / "LICENSE.txt").write_bytes(files["openmoji"]["LICENSE.txt"])


def write_metadata(out: Path, concepts: list[Concept], counts: Mapping[str, int]) -> None:
    contents = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    metadata = {
        "seed": SEED,
        "image": {"size": SIZE, "format": "WebP", "quality": QUALITY, "background": "white"},
        "rendered_with": {name: importlib.metadata.version(name) for name in ("resvg-py", "pillow")},
        "packages": {k: {key: p[key] for key in ("name", "version", "licence")} for k, p in PACKAGES.items()},
        "concept_counts": {"all": len(concepts), "held_out": sum(c.held_out for c in concepts)},
        "sample_counts": counts,
        "files": {p: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for p, b in contents.items()},
    }
    rows = ",\n    ".join(json.dumps(asdict(c), ensure_ascii=False) for c in concepts)  # one concept a line
    text = json.dumps(metadata, indent=2).removesuffix("\n}") + f',\n  "concepts": [\n    {rows}\n  ]\n}}\n'
    (out / "metadata.json").write_text(text, encoding="utf-8")


def build(packages: Path, out: Path) -> dict[str, int]:
    files = {key: read_package(packages, p) for key, p in PACKAGES.items()}
    emoji = read_emoji(files["emojibase"]["en/data.json"])
    drawings = {v: read_drawings(v, files[v], emoji) for v in VENDORS}
    hexcodes = [h for h in emoji if all(h in drawings[v] for v in VENDORS)]
    images = {v: {h: render(drawings[v][h]) for h in tqdm(hexcodes, desc=f"render {v}")} for v in VENDORS}
    concepts = make_concepts(hexcodes, emoji, images)
    counts = write_training_sets(out, [c for c in concepts if not c.held_out], images)
    counts |= write_evaluation_sets(out, concepts, images)
    write_licences(out, files)
    write_metadata(out, concepts, counts)
    return counts


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--packages", type=Path, metavar="DIR", help="take the npm tarballs from here")
    parser.add_argument("--output", type=Path, metavar="DIR", default=HERE / "data", help="default: data")
    args = parser.parse_args()
    out: Path = args.output.resolve()
    if out.exists() and not (out / "metadata.json").is_file():
        sys.exit(f"{out} exists and was not written by this script: choose another --output")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        new, packages = Path(scratch, "new"), args.packages or Path(scratch, "packages")
        new.mkdir()
        if args.packages is None:
            packages.mkdir()
            fetch_packages(packages)
        counts = build(packages, new)
        if out.exists():
            out.rename(Path(scratch, "old"))
        new.rename(out)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print("\n".join(f"{n:6,}  {name}" for name, n in counts.items()) + f"\n{size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    main()
