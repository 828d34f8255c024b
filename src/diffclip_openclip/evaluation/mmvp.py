"""MMVP-VLM: pairs of images that CLIP confuses, by visual pattern.

Source: paper, section 4.4; tsb0601/MMVP@7635005:scripts/evaluate_vlm.py. Shape legend: P pairs.
"""

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F

from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.features import read_shard
from diffclip_openclip.evaluation.layout import Place
from diffclip_openclip.evaluation.suite import MMVP_PAPER_PATTERNS, MMVP_PATTERNS
from diffclip_openclip.weights.loading import LoadedModel

_PROMPT = "a photo of "


def read_pairs(place: Place, transform: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Samples two by two: each has ``image``, ``statement``, ``pattern`` and ``qid``; a pair's qids are 2 p - 1, 2 p.

    Raises:
        ValueError: a question without its partner, or a pair of two patterns, or of an unknown one.
    """
    samples = {}
    for index in range(place.shards["test"]):
        shard = place.shard("test", index)
        for image, entry, statement in read_shard(shard, ("json", "txt"), transform):
            samples[int(entry["qid"])] = {**entry, "image": image, "statement": statement.strip()}
    pairs = []
    for first in sorted(qid for qid in samples if qid % 2):
        pair = samples.pop(first), samples.pop(first + 1, None)
        if pair[1] is None or pair[0]["pattern"] != pair[1]["pattern"] or pair[0]["pattern"] not in MMVP_PATTERNS:
            raise ValueError(
                f"{place.base}: questions {first} and {first + 1} must be there and of one pattern of MMVP-VLM's; "
                f"found {pair[0]['pattern']!r} and {pair[1]['pattern'] if pair[1] else 'nothing'!r}"
            )
        pairs.append((pair[0], pair[1]))
    if samples:
        raise ValueError(f"{place.base}: questions {sorted(samples)} have no partner before them")
    return pairs


def pair_hits(similarity_P22: torch.Tensor) -> torch.Tensor:
    """Whether both texts of a pair are nearer to their own image, (P,); similarity is (pair, text, image)."""
    own = similarity_P22.diagonal(dim1=1, dim2=2)
    other = similarity_P22.flip(2).diagonal(dim1=1, dim2=2)
    return (own > other).all(dim=1)


@torch.inference_mode()
def evaluate(loaded: LoadedModel, place: Place, compute: Compute) -> tuple[dict[str, Any], int]:
    """Share of pairs that count, by pattern, and its means; and the number of images.

    A pair counts if each text prefers its own image to the other, so chance is 25 %.

    Returns:
        patterns (name -> share), mean_9 (over the patterns that the data set has, nine in the benchmark) and mean_7
        (those of the paper's Figure 4).
    """
    model: Any = loaded.model
    hits = defaultdict(list)
    pairs = read_pairs(place, loaded.preprocess)
    for first, second in pairs:
        images = torch.stack([first["image"], second["image"]]).to(compute.device)
        texts = loaded.tokenizer([_PROMPT + sample["statement"] for sample in (first, second)]).to(compute.device)
        with compute.autocast():
            image_embed, text_embed = model.encode_image(images), model.encode_text(texts)
        similarity = F.normalize(text_embed.float(), dim=-1) @ F.normalize(image_embed.float(), dim=-1).t()
        hits[first["pattern"]].append(pair_hits(similarity[None]).item())
    shares = {name: sum(hits[name]) / len(hits[name]) for name in MMVP_PATTERNS if name in hits}
    paper = [shares[name] for name in MMVP_PAPER_PATTERNS if name in shares]
    metrics = {
        "patterns": shares,
        "mean_7": sum(paper) / len(paper) if len(paper) == len(MMVP_PAPER_PATTERNS) else None,
        "mean_9": sum(shares.values()) / len(shares) if len(shares) == len(MMVP_PATTERNS) else None,
    }
    return metrics, 2 * len(pairs)
