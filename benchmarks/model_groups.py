"""Read the models that a benchmark compares, in groups of seeds, and the images; estimate scores over seeds.

A group holds the checkpoints of one training with several seeds. Benchmarks take ``--model [GROUP=]MODEL`` once for
each checkpoint, MODEL as :mod:`~diffclip_openclip.weights.spec` reads it. Without GROUP, those of one NAME are a group.
``--runs DIR`` takes the models that examples/emoji/compare.py trained, of the seeds that are trained in all its models.
Groups with equally many checkpoints are compared seed by seed, so give the seeds of all groups in the same order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffclip_openclip.data.layout import locate
from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.evaluation.zero_shot import TEMPLATE_SETS
from diffclip_openclip.files import check_place
from diffclip_openclip.report.uncertainty import runs_interval, share_interval
from diffclip_openclip.weights.loading import LoadedModel, load_model
from diffclip_openclip.weights.spec import parse_spec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "emoji"))

from comparison import ARMS, Comparison

Specs = Mapping[str, Sequence[str]]  # of each group, the models' names
Groups = Mapping[str, Sequence[LoadedModel]]


# models


def group_specs(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the models of each group, in the order given.

    Args:
        texts: ``[GROUP=]MODEL`` each.

    Raises:
        ValueError: open_clip does not know a model.
        FileNotFoundError: its weights are not there.
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, sign, model = text.partition("=")
        if not sign or set(name) & set(",/:"):  # the = of a path
            name, model = "", text
        spec = parse_spec(model)
        groups.setdefault(name or (spec.name if spec.checkpoint else spec.label), []).append(model)
    return groups


def run_specs(folder: Path) -> dict[str, list[str]]:
    """Return the models that examples/emoji/compare.py trained, by its titles, of the seeds that all of them have.

    Args:
        folder: its ``--output``.

    Raises:
        FileNotFoundError: it trained nothing there.
        ValueError: no seed is trained in all models yet.
    """
    comparison = Comparison.read(folder)
    seeds = comparison.trained_seeds()
    if not seeds:
        raise ValueError(f"{folder} has no seed that is trained in all of {', '.join(ARMS)} yet")
    return {
        arm.title: [f"{arm.model},{comparison.checkpoint(seed, name)}" for seed in seeds] for name, arm in ARMS.items()
    }


def load_groups(specs: Specs, device: str = "cpu") -> dict[str, list[LoadedModel]]:
    """Load the models of each group; errors are those of ``load_model``."""
    return {group: [load_model(spec, device) for spec in own] for group, own in specs.items()}


# images


@dataclass(frozen=True)
class LabelledImages:
    """Hold images of a classification set and how its classes are put into words."""

    images: list[Image.Image]  # RGB
    labels: list[int]  # of each image, an index of class_names
    class_names: list[str]
    templates: list[str]  # with {c} for the class


def read_images(folder: Path, count: int, seed: int = 0) -> LabelledImages:
    """Draw images of the test split of a data set as ``diffclip evaluate`` reads it; the same seed draws the same ones.

    Templates are the data set's own, or OpenAI's 80.

    Args:
        folder: a classification set in clip_benchmark's webdataset layout.
        count: how many images; all of them if there are fewer.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: a shard that cannot be read, or an image of a class without a name.
    """
    location = locate(folder.name, ["test"], [str(folder.parent)]) if folder.is_dir() else None
    if location is None:
        raise FileNotFoundError(
            f"{folder} has no test/nshards.txt; give a folder in clip_benchmark's webdataset layout, such as "
            "`diffclip data` writes or examples/emoji/data/eval/unseen-vendor"
        )
    rng = np.random.default_rng(seed)
    drawn: list[tuple[int, Image.Image, int]] = []
    samples = (
        sample for shard in location.shards("test") for sample in read_shard(shard, ("cls",), lambda image: image)
    )
    for index, (image, label) in enumerate(samples):  # reservoir sampling: the set may not fit into memory
        if label >= len(location.class_names):
            raise ValueError(f"{folder} has an image of class {label} and {len(location.class_names)} class names")
        if len(drawn) < count:
            drawn.append((index, image, label))
        elif (place := int(rng.integers(index + 1))) < count:
            drawn[place] = (index, image, label)
    drawn.sort(key=lambda sample: sample[0])
    _, images, labels = zip(*drawn, strict=True)
    return LabelledImages(
        list(images), list(labels), location.class_names, location.templates or TEMPLATE_SETS["openai-80"]
    )


# scores


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over the models of a group, with its 95 % interval."""

    mean: float
    low: float | None  # None where there is nothing to estimate it from
    high: float | None
    seeds: list[float]  # the value of each model


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval over seeds; with one seed there is no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None, [*map(float, values)])
    interval = runs_interval(values)
    return Estimate(mean, interval.low, interval.high, [*map(float, values)])


def over_seeds_or_images(hits: Sequence[torch.Tensor]) -> Estimate | None:
    """Return the mean share of hits with its interval over seeds, or over images (Wilson's) where there is one seed.

    Args:
        hits: of each model, whether it was right, by image; models need not have the same images.

    Returns:
        None where a model has no image.
    """
    if not all(len(own) for own in hits):
        return None
    if len(hits) > 1:
        return over_seeds([own.double().mean().item() for own in hits])
    share = float(hits[0].double().mean())
    interval = share_interval(int(hits[0].sum()), len(hits[0]))
    return Estimate(share, interval.low / 100, interval.high / 100, [share])


def difference(own: Estimate, base: Estimate) -> Estimate | None:
    """Return the difference to another group, seed by seed; None unless both have equally many seeds, two at least."""
    if len(own.seeds) != len(base.seeds) or len(own.seeds) < 2:
        return None
    return over_seeds([value - other for value, other in zip(own.seeds, base.seeds, strict=True)])


# command lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all of these benchmarks have."""
    parser.add_argument(
        "--model", action="append", default=[], metavar="[GROUP=]MODEL", help="NAME,CHECKPOINT, say; repeatable"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="what examples/emoji/compare.py wrote")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE.json", required=True, help="the figure goes beside it")
    parser.add_argument("--overwrite", action="store_true")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of benchmarks that show a classification set's images to the models."""
    parser.add_argument("--data", type=Path, required=True, help="a classification set in clip_benchmark's layout")
    parser.add_argument("--num-images", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")


def check_arguments(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the models of each group; refuse an output that cannot be written before anything is measured.

    Raises:
        ValueError: the output is no .json file, there is no model, or as :func:`group_specs` and :func:`run_specs`.
        FileExistsError: the output exists, and ``--overwrite`` is not given.
        FileNotFoundError: its folder or a model is not there.
    """
    if args.output.suffix != ".json":
        raise ValueError(f"{args.output} does not end in .json; the figure goes beside it, as .png")
    for path in (args.output, args.output.with_suffix(".png")):
        check_place(path, args.overwrite)
    specs = (run_specs(args.runs) if args.runs else {}) | group_specs(args.model)
    if not specs:
        raise ValueError("there is no model to measure; give --runs DIR or --model [GROUP=]NAME,CHECKPOINT")
    return specs
