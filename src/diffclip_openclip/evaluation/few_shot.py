"""Classify few-shot: nearest class mean of a handful of examples, over many random episodes.

Source: paper, section 4.1 (protocol of LGSSL, arXiv 2302.12248), mbanani/lgssl@e4ae979:lgssl/evaluation/fewshot.py.
Shape legend: E episodes, W classes of an episode, S examples a class, Q queries a class, C width of the features.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from diffclip_openclip.data.catalog import DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Computed, Measurement, Subject, Variant
from diffclip_openclip.evaluation.features import BACKBONE, Features
from diffclip_openclip.evaluation.linear_probe import read_splits

READING = BACKBONE
EPISODES, WAYS, SHOTS, QUERIES = 5000, 5, 5, 6
_CHUNK = 100  # episodes computed at once, to bound the memory of their features


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List the one result, which depends on the seed of the episodes."""
    return [Variant(seed=seed)]


def score(subject: Subject, computed: Computed) -> Iterator[Measurement]:
    """Yield the accuracy over the episodes; see :func:`episode_accuracies`."""
    splits = read_splits(computed, subject.compute)
    accuracies = episode_accuracies(splits.train, splits.test, seed=subject.compute.seed, title=subject.data_set.name)
    yield Measurement(summary(accuracies), splits.images, {"accuracy": accuracies})


def summary(accuracies: np.ndarray) -> dict[str, float]:
    """Return accuracy (mean over episodes), std over episodes, and ci95, half the width of the mean's 95 % interval."""
    std = float(accuracies.std(ddof=1))
    return {"accuracy": float(accuracies.mean()), "std": std, "ci95": 1.96 * std / math.sqrt(len(accuracies))}


def episode_accuracies(
    train: Features, test: Features, *, seed: int = 0, episodes: int = EPISODES, title: str = ""
) -> np.ndarray:
    """Score episodes of 5 classes, with 5 examples of each from ``train`` and 6 queries of each from ``test``.

    A class with fewer than 6 test images gives all it has.

    Returns:
        the accuracy of each episode, (E,) float64.

    Raises:
        ValueError: fewer than five classes have five training images and a test image.
    """
    generator = torch.Generator().manual_seed(seed)
    pools = [(_indices(train, c), _indices(test, c)) for c in train.labels.unique().tolist()]
    usable = [(support, query) for support, query in pools if len(support) >= SHOTS and len(query)]
    if len(usable) < WAYS:
        raise ValueError(
            f"{len(usable)} of {len(pools)} classes have {SHOTS} training images and a test image; "
            f"{WAYS}-way {SHOTS}-shot episodes need {WAYS} such classes"
        )
    scores = []
    for first in tqdm(range(0, episodes, _CHUNK), desc=f"few-shot of {title}", leave=False):
        count = min(_CHUNK, episodes - first)
        support_EWS, query_EWQ = zip(*(_draw(usable, generator) for _ in range(count)), strict=True)
        scores.append(_accuracy(train.features[torch.stack(support_EWS)], test, torch.stack(query_EWQ)))
    return torch.cat(scores).numpy()


def _indices(data: Features, label: int) -> torch.Tensor:
    return (data.labels == label).nonzero().squeeze(1).cpu()


def _draw(
    pools: list[tuple[torch.Tensor, torch.Tensor]], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the samples of an episode, as indices (W, S) and (W, Q); -1 where a class has no further query."""
    classes = torch.randperm(len(pools), generator=generator)[:WAYS].tolist()
    support_WS = torch.stack([_choose(pools[c][0], SHOTS, generator) for c in classes])
    query_WQ = torch.full((WAYS, QUERIES), -1)
    for way, c in enumerate(classes):
        chosen = _choose(pools[c][1], QUERIES, generator)
        query_WQ[way, : len(chosen)] = chosen
    return support_WS, query_WQ


def _choose(pool: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return pool[torch.randperm(len(pool), generator=generator)[:count]]


def _accuracy(support_EWSC: torch.Tensor, test: Features, query_EWQ: torch.Tensor) -> torch.Tensor:
    """Compute the share of queries, (E,), whose nearest prototype is their own class's."""
    mean_E11C = support_EWSC.mean(dim=(1, 2), keepdim=True)
    prototype_EWC = F.normalize(support_EWSC - mean_E11C, dim=-1).mean(dim=2)  # not normalised again
    there_EWQ = query_EWQ >= 0
    query_EWQC = F.normalize(test.features[query_EWQ.clamp_min(0)] - mean_E11C, dim=-1)
    distance_ENW = torch.cdist(query_EWQC.flatten(1, 2), prototype_EWC, compute_mode="donot_use_mm_for_euclid_dist")
    truth_EWQ = torch.arange(WAYS).view(1, WAYS, 1)
    hit_EWQ = (distance_ENW.argmin(dim=-1).cpu().view_as(query_EWQ) == truth_EWQ) & there_EWQ
    return hit_EWQ.sum(dim=(1, 2)).double() / there_EWQ.sum(dim=(1, 2))
