"""Measure MMVP-VLM: pairs of images that CLIP confuses, by visual pattern.

Source: paper, section 4.4; tsb0601/MMVP@7635005:scripts/evaluate_vlm.py. Shape legend: P pairs.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffclip_openclip.data.catalog import MMVP_PAPER_PATTERNS, MMVP_PATTERNS, DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.data.shards import read_shard
from diffclip_openclip.evaluation.evaluator import Measurement, Subject, Variant

_PROMPT = "a photo of "


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List the one result."""
    return [Variant()]


def run(subject: Subject) -> Iterator[Measurement]:
    """Yield the share of pairs that count, by pattern, and the means of these.

    A pair counts if each text prefers its own image to the other, so chance is 25 %. The metrics are patterns (name ->
    share), mean_9 (over the benchmark's nine patterns) and mean_7 (over those of the paper's Figure 4); a mean is None
    where the data set lacks one of its patterns.
    """
    pairs = read_pairs(subject.location, subject.loaded.preprocess)
    hits: dict[str, list[bool]] = defaultdict(list)
    pattern_P = [MMVP_PATTERNS.index(first["pattern"]) for first, _ in pairs]
    hit_P = [bool(pair_hits(_similarity(subject, first, second)[None])) for first, second in pairs]
    for pattern, hit in zip(pattern_P, hit_P, strict=True):
        hits[MMVP_PATTERNS[pattern]].append(hit)
    shares = {name: sum(hits[name]) / len(hits[name]) for name in MMVP_PATTERNS if name in hits}
    means = {"mean_7": _mean(shares, MMVP_PAPER_PATTERNS), "mean_9": _mean(shares, MMVP_PATTERNS)}
    outcomes = {"hit": np.array(hit_P), "pattern": np.array(pattern_P)}
    yield Measurement({"patterns": shares} | means, {"test": 2 * len(pairs)}, outcomes)


def _mean(shares: dict[str, float], patterns: tuple[str, ...]) -> float | None:
    known = [shares[name] for name in patterns if name in shares]
    return sum(known) / len(known) if len(known) == len(patterns) else None


@torch.inference_mode()
def _similarity(subject: Subject, first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
    """Compute the cosine similarities of a pair, (text, image)."""
    model: Any = subject.loaded.model
    compute = subject.compute
    images = torch.stack([first["image"], second["image"]]).to(compute.device)
    texts = subject.loaded.tokenizer([_PROMPT + sample["statement"] for sample in (first, second)]).to(compute.device)
    with compute.autocast():
        image_embed, text_embed = model.encode_image(images), model.encode_text(texts)
    return F.normalize(text_embed.float(), dim=-1) @ F.normalize(image_embed.float(), dim=-1).t()


def read_pairs(location: Location, transform: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Read the samples two by two; a pair's qids are 2 p - 1 and 2 p.

    Returns:
        pairs of samples, each with ``image``, ``statement``, ``pattern`` and ``qid``.

    Raises:
        ValueError: a question without its partner, or a pair of two patterns, or of an unknown one.
    """
    samples = {}
    for shard in location.shards("test"):
        for image, entry, statement in read_shard(shard, ("json", "txt"), transform):
            samples[int(entry["qid"])] = {**entry, "image": image, "statement": statement.strip()}
    pairs = []
    for first in sorted(qid for qid in samples if qid % 2):
        pair = samples.pop(first), samples.pop(first + 1, None)
        if pair[1] is None or pair[0]["pattern"] != pair[1]["pattern"] or pair[0]["pattern"] not in MMVP_PATTERNS:
            raise ValueError(
                f"{location.base}: questions {first} and {first + 1} must be there and of one pattern of MMVP-VLM's; "
                f"found {pair[0]['pattern']!r} and {pair[1]['pattern'] if pair[1] else 'nothing'!r}"
            )
        pairs.append((pair[0], pair[1]))
    if samples:
        raise ValueError(f"{location.base}: questions {sorted(samples)} have no partner before them")
    return pairs


def pair_hits(similarity_P22: torch.Tensor) -> torch.Tensor:
    """Tell of each pair whether both texts are nearer to their own image, (P,); similarity is (pair, text, image)."""
    own = similarity_P22.diagonal(dim1=1, dim2=2)
    other = similarity_P22.flip(2).diagonal(dim1=1, dim2=2)
    return (own > other).all(dim=1)
