"""Measure if a text's relevance lies in what it names:  python benchmarks/attention_score.py --model NAME,CHECKPOINT

Emoji cut out of their white ground are put in pairs on photographs (or on white, as they were trained on). Both are
asked for by name in turn, so a map that knows no text gives "within pair" exactly 1/2, whatever it prefers. The
pointing game is arXiv 1608.00507's. Checkpoints of one NAME are averaged, each NAME is compared with the first, and the
same models with shuffled weights are the control. Prints a Markdown table for each combination of data, ground and
method. `make quickstart COMPARE=1` or examples/emoji/compare.py train such checkpoints.

A map is as fine as the model's patches: the nano models see 4 x 4 of them, so that an object lies in 2 x 2 and its
outline cannot be hit. Scores compare models with the same patches.

"chefer" does not compare DiffCLIP with CLIP like for like. Behind DiffCLIP's maps stands a norm, so the output does not
depend on the scale of a map's row, and gradient times map sums to zero over it (Euler): for all that speaks for a text,
the row has as much against it, which "chefer" drops. Plain attention has no such balance. "gradcam" reads no maps.

Shape legend: S checkpoints of a model, I images, K scores, h x w grid of patches, H x W pixels.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from composed_images import SIDE, Pair, compose, photographs, read_cut_outs
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffclip_openclip.bench.outputs import machine
from diffclip_openclip.explain import relevance
from diffclip_openclip.files import check_place, staged
from diffclip_openclip.report.uncertainty import LEVEL
from diffclip_openclip.weights.loading import LoadedModel, load_model

DATA = Path(__file__).resolve().parents[1] / "examples" / "emoji" / "data" / "eval"
SCORES = ("inside", "pointing", "within pair", "recognised")
Floats = np.ndarray[Any, np.dtype[np.float64]]
_RESAMPLES = 9999


# one map


def score_map(map_hw: Tensor, named_HW: Tensor, other_HW: Tensor) -> tuple[float, float, float]:
    """Return inside, pointing and within pair of one map, stretched bilinearly to the pixels of the masks.

    Inside: the share of all relevance that lies in the named object. Pointing: whether the maximum does; the share of
    the maximum's pixels, where it is a plateau. Within pair: the named object's share of what lies in either.
    A map without any relevance counts as one that is the same everywhere.

    Args:
        map_hw: relevance, not negative, (h, w).
        named_HW: mask of the named object.
        other_HW: mask of the other object.
    """
    pixels = F.interpolate(map_hw[None, None].double(), named_HW.shape, mode="bilinear", align_corners=False)[0, 0]
    if not pixels.any():
        pixels = torch.ones_like(pixels)
    named, other = pixels[named_HW].sum(), pixels[other_HW].sum()
    pointing = named_HW[pixels == pixels.max()].double().mean()
    # a map with nothing in either object prefers neither
    within = named / (named + other) if named + other > 0 else torch.tensor(0.5)
    return float(named / pixels.sum()), float(pointing), float(within)


def chance(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return what each score is for a map that is the same everywhere, or for a text chosen blindly."""
    area = float(np.mean([pair.masks.mean() for pair in pairs]))
    return dict(zip(SCORES, (area, area, 0.5, 0.5), strict=True))


# one model


def score_model(
    loaded: LoadedModel, pairs: Sequence[Pair], *, method: str = "chefer", start_layer: int | None = None
) -> Floats:
    """Return :data:`SCORES` of each image, (I, 4), each the mean of the image's two texts.

    Recognised: the share of comparisons in which a name of the image is more similar to it than one of the next image.
    Where it is at chance, there is nothing that relevance could be inside of.

    Raises:
        ValueError: there are fewer than two images, or as :func:`~diffclip_openclip.explain.relevance`.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"there are {len(pairs)} images; names are compared with those of the next, so give at least 2"
        )
    texts = loaded.tokenizer([name for pair in pairs for name in pair.names])
    scores = []
    for index, pair in enumerate(tqdm(pairs, desc=loaded.spec.label, unit="image", leave=False)):
        image, ids = loaded.preprocess(pair.image)[None], texts[2 * index : 2 * index + 2]
        found = relevance(loaded.model, image, ids, method=method, start_layer=start_layer)
        masks = torch.from_numpy(pair.masks)
        both = [score_map(found.maps[0, i], masks[i], masks[1 - i]) for i in (0, 1)]
        next_ids = texts.roll(-2 * (index + 1), 0)[:2]
        scores.append([*np.mean(both, axis=0), _recognised(loaded.model, image, next_ids, found.similarity[0])])
    return np.array(scores)


@torch.no_grad()
def _recognised(model: Any, image: Tensor, absent: Tensor, own_similarity: Tensor) -> float:
    image_1C = F.normalize(model.encode_image(image), dim=-1)
    text_2C = F.normalize(model.encode_text(absent), dim=-1)
    return float((own_similarity[:, None] > image_1C @ text_2C.t()).double().mean())


def shuffle_weights(loaded: LoadedModel, seed: int = 0) -> LoadedModel:
    """Copy a model with the entries of each tensor of weights in another order: it has learnt nothing.

    Source: the randomization test of arXiv 1810.03292.
    """
    model, generator = copy.deepcopy(loaded.model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            order = torch.randperm(weights.numel(), generator=generator)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return dataclasses.replace(loaded, model=model)


# models beside each other


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over images and checkpoints, with its 95 % bootstrap interval over images."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelScore:
    """Hold one score of one model, in 0..1."""

    model: str
    score: str  # one of SCORES
    chance: float  # what chance gives
    value: Estimate
    checkpoints: list[float]  # the mean of each
    difference: Estimate | None  # to the first model on the same images; None for the first model itself


def summarize(scores: Mapping[str, Floats], chances: Mapping[str, float], seed: int = 0) -> list[ModelScore]:
    """Compute means, intervals and paired differences, score by score.

    Intervals are over images, with the checkpoints as they are; how much trainings differ is in ``checkpoints``.

    Args:
        scores: of each model, (S, I, K), on the same images.
        chances: the K scores' names, in this order, with what chance gives.
        seed: of the bootstrap.
    """
    first = next(iter(scores))
    found = []
    for i, score in enumerate(chances):
        base_I = scores[first][:, :, i].mean(axis=0)
        for model, values in scores.items():
            own_I = values[:, :, i].mean(axis=0)
            difference = None if model == first else _estimate(own_I - base_I, seed)
            checkpoints = values[:, :, i].mean(axis=1).tolist()
            found.append(ModelScore(model, score, chances[score], _estimate(own_I, seed), checkpoints, difference))
    return found


def _estimate(values_I: Floats, seed: int) -> Estimate:
    from scipy.stats import bootstrap

    drawn = bootstrap(
        (values_I,), np.mean, n_resamples=_RESAMPLES, confidence_level=1 - LEVEL, method="percentile", rng=seed
    )
    return Estimate(float(values_I.mean()), *map(float, drawn.confidence_interval))


def attention_score(
    models: Sequence[str],
    pairs: Sequence[Pair],
    *,
    method: str = "chefer",
    start_layer: int | None = None,
    seed: int = 0,
) -> list[ModelScore]:
    """Score models, and as a control the same models with their weights shuffled.

    Args:
        models: ``NAME,PRETRAINED``, as :func:`~diffclip_openclip.weights.loading.load_model` takes them. Those of the
            same NAME count as checkpoints of one model; differences are to the first NAME.
        method: as :func:`~diffclip_openclip.explain.relevance` takes it.
        start_layer: likewise.
        seed: of the bootstrap and of the shuffling.

    Raises:
        ValueError: there is no model or there are fewer than two images, or a model, method or layer cannot be.
        FileNotFoundError: there are no such weights.
    """
    if not models:
        raise ValueError("there is no model to score; give at least one, NAME,PRETRAINED")
    trained: dict[str, list[Floats]] = {}
    shuffled: dict[str, list[Floats]] = {}
    for spec in models:
        loaded = load_model(spec)
        own = score_model(loaded, pairs, method=method, start_layer=start_layer)
        control = score_model(shuffle_weights(loaded, seed), pairs, method=method, start_layer=start_layer)
        trained.setdefault(loaded.spec.name, []).append(own)
        shuffled.setdefault(f"{loaded.spec.name}, shuffled", []).append(control)
    scores = {name: np.stack(values) for name, values in (trained | shuffled).items()}
    return summarize(scores, chance(pairs), seed)


def as_markdown(scores: Sequence[ModelScore]) -> str:
    """Return a table in per cent: intervals in brackets, differences in points."""
    first = scores[0].model
    lines = [
        f"| score | chance | model | mean [95 % interval] | its checkpoints | difference to {first} |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in scores:
        checkpoints = ", ".join(f"{100 * value:.1f}" for value in row.checkpoints)
        difference = "" if row.difference is None else _cell(row.difference, "+")
        cells = [row.score, f"{100 * row.chance:.1f}", row.model, _cell(row.value), checkpoints, difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (format(100 * value, f"{sign}.1f") for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


# the command


def _grounds(name: str) -> dict[str, Image.Image]:
    """Return what objects are put on, by what it shows."""
    return photographs() if name == "photographs" else {"": Image.new("RGB", (SIDE, SIDE), "white")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME,CHECKPOINT; repeatable")
    parser.add_argument(
        "--data", nargs="+", default=["unseen-vendor"], help=f"folders of {DATA.name}/, or any like them"
    )
    parser.add_argument("--ground", nargs="+", choices=("photographs", "white"), default=["photographs"])
    parser.add_argument("--method", nargs="+", choices=("chefer", "rollout", "gradcam"), default=["chefer"])
    parser.add_argument("--start-layer", type=int, help="default: the method's")
    parser.add_argument("--num-images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there")
    args = parser.parse_args()
    if args.output is not None:
        check_place(args.output)

    tables: list[dict[str, Any]] = []
    for data, ground, method in product(args.data, args.ground, args.method):
        pairs = compose(read_cut_outs(DATA / data), _grounds(ground), args.num_images, args.seed)
        scores = attention_score(args.model, pairs, method=method, start_layer=args.start_layer, seed=args.seed)
        print(f"\n{data}, on {ground}, {method}, {len(pairs)} images\n\n{as_markdown(scores)}", flush=True)
        rows = [asdict(score) for score in scores]
        tables.append({"data": data, "ground": ground, "method": method, "rows": rows})
    if args.output is not None:
        command = shlex.join(["python", *sys.argv])
        figures = {"command": command, "machine": machine("cpu"), "num_images": args.num_images, "tables": tables}
        with staged(args.output) as new:
            new.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
