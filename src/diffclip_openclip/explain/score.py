"""How much of a text's relevance lies inside the object that it names, beside chance.

Every image shows two objects, and both are asked for in turn. So a map that knows no text gives "within pair" exactly
1/2, whatever it prefers. The pointing game is arXiv 1608.00507's.

"chefer" does not compare DiffCLIP with CLIP like for like. Behind DiffCLIP's maps stands a norm, so the output does not
depend on the scale of a map's row, and gradient times map sums to zero over it (Euler): for all that speaks for a text,
the row has as much against it, which "chefer" drops. Plain attention has no such balance. "gradcam" reads no maps.

Shape legend: I images, h x w grid of patches, H x W pixels.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diffclip_openclip.explain.composed import Pair
from diffclip_openclip.explain.relevance import relevance
from diffclip_openclip.explain.score_table import Floats, Row, summarize
from diffclip_openclip.weights.loading import LoadedModel, load_model

SCORES = ("inside", "pointing", "within pair", "recognised")


def attention_score(
    models: Sequence[str], pairs: Sequence[Pair], method: str = "chefer", start_layer: int | None = None, seed: int = 0
) -> list[Row]:
    """:data:`SCORES` of models, and as a control of the same models with their weights shuffled.

    Args:
        models: ``NAME,PRETRAINED``, as :func:`~diffclip_openclip.weights.loading.load_model` takes them. Those of the
            same NAME count as checkpoints of one model; differences are to the first NAME.
        method, start_layer: as :func:`~diffclip_openclip.explain.relevance.relevance` takes them.
        seed: of the bootstrap and of the shuffling.

    Raises:
        ValueError: no model, fewer than two images, or a model, method or layer that cannot be.
        FileNotFoundError: weights that are not there.
    """
    if not models:
        raise ValueError("there is no model to score; give at least one, NAME,PRETRAINED")
    trained: dict[str, list[Floats]] = {}
    shuffled: dict[str, list[Floats]] = {}
    for spec in models:
        loaded = load_model(spec)
        trained.setdefault(loaded.name, []).append(score_model(loaded, pairs, method, start_layer))
        control = shuffle_weights(loaded, seed)
        shuffled.setdefault(f"{loaded.name}, shuffled", []).append(score_model(control, pairs, method, start_layer))
    scores = {name: np.stack(values) for name, values in (trained | shuffled).items()}
    return summarize(scores, chance(pairs), seed)


def shuffle_weights(loaded: LoadedModel, seed: int = 0) -> LoadedModel:
    """A copy that has learnt nothing: the entries of each tensor of weights in another order (arXiv 1810.03292)."""
    model, generator = copy.deepcopy(loaded.model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            order = torch.randperm(weights.numel(), generator=generator)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return dataclasses.replace(loaded, model=model)


def score_map(map_hw: Tensor, named_HW: Tensor, other_HW: Tensor) -> tuple[float, float, float]:
    """Inside, pointing and within pair of one map, stretched bilinearly to the pixels of the masks.

    Inside: the share of all relevance that lies in the named object. Pointing: whether the maximum does; the share of
    the maximum's pixels, where it is a plateau. Within pair: the named object's share of what lies in either.
    A map without any relevance counts as one that is the same everywhere.

    Args:
        map_hw: relevance, not negative, (h, w).
        named_HW, other_HW: masks of the named object and of the other one.
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
    """What each score is for a map that is the same everywhere, or a text chosen blindly."""
    area = float(np.mean([pair.masks.mean() for pair in pairs]))
    return dict(zip(SCORES, (area, area, 0.5, 0.5), strict=True))


def score_model(
    loaded: LoadedModel, pairs: Sequence[Pair], method: str = "chefer", start_layer: int | None = None
) -> Floats:
    """:data:`SCORES` of each image, (I, 4), each the mean of the image's two texts.

    Recognised: the share of comparisons in which a name of the image is more similar to it than one of the next image.
    Where it is at chance, there is nothing that relevance could be inside of.

    Raises:
        ValueError: fewer than two images, or as :func:`~diffclip_openclip.explain.relevance.relevance`.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"there are {len(pairs)} images; names are compared with those of the next, so give at least 2"
        )
    texts = loaded.tokenizer([name for pair in pairs for name in pair.names])
    scores = []
    for index, pair in enumerate(tqdm(pairs, desc=loaded.label, unit="image", leave=False)):
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
