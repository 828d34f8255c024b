"""Retrieve zero-shot: images by their captions and captions by their images, with clip_benchmark's recalls.

Source: clip_benchmark@1.6.2:clip_benchmark/metrics/zeroshot_retrieval.py. Shape legend: N images, T captions, C width
of the joint space.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from diffclip_openclip.data.catalog import RECALL_AT, DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Computed, Measurement, Reading, Subject, Variant
from diffclip_openclip.evaluation.features import read_embedded

READING = Reading("captions", ("txt",), texts=str.splitlines)
_CHUNK = 1000  # rows of scores computed at once, to bound their memory


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List the one result."""
    return [Variant()]


def score(subject: Subject, computed: Computed) -> Iterator[Measurement]:
    """Yield image_retrieval_recall@k and text_retrieval_recall@k for k of 1, 5 and 10.

    They are NaN where there are fewer than k images or captions.
    """
    parts = [read_embedded(file) for file in computed["test"]]
    image_NC, text_TC, text_counts_N = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("image", "text", "text_counts")
    )
    image_of_text_T = torch.arange(len(image_NC)).repeat_interleave(text_counts_N)
    with torch.inference_mode(), subject.compute.autocast():
        text_to_image_T = ranks(text_TC, image_of_text_T, image_NC, torch.arange(len(image_NC)))
        image_to_text_N = ranks(image_NC, torch.arange(len(image_NC)), text_TC, image_of_text_T)
    known = [k for k in RECALL_AT if k <= min(len(image_NC), len(text_TC))]
    by_kind = {"image": text_to_image_T, "text": image_to_text_N}
    metrics = {
        f"{kind}_retrieval_recall@{k}": float((rank <= k).mean()) if k in known else math.nan
        for k in RECALL_AT
        for kind, rank in by_kind.items()
    }
    outcomes = {
        "image_to_text_rank": image_to_text_N,
        "text_to_image_rank": text_to_image_T,
        "image_of_text": image_of_text_T.numpy(),
    }
    yield Measurement(metrics, {"test": len(image_NC)}, outcomes, {"test": len(text_TC)})


def ranks(
    query_QC: torch.Tensor, image_of_query_Q: torch.Tensor, key_KC: torch.Tensor, image_of_key_K: torch.Tensor
) -> np.ndarray:
    """Return the rank, from 1, of each query's nearest own key among all keys, (Q,).

    Own are the keys of the query's image. Of equal scores the first key comes first. A query without own keys ranks
    behind all.
    """
    found = []
    for query, image in zip(query_QC.split(_CHUNK), image_of_query_Q.split(_CHUNK), strict=True):
        scores = query @ key_KC.t()
        best = scores.masked_fill(image[:, None] != image_of_key_K, -math.inf).max(dim=1, keepdim=True)
        # max gives any of several largest; the first of them is the one that no equal score precedes
        is_best = (scores == best.values) & (image[:, None] == image_of_key_K)
        place = is_best.int().argmax(dim=1, keepdim=True)
        is_equal_before = (scores == best.values) & (torch.arange(len(key_KC)) < place)
        found.append((scores > best.values).sum(dim=1) + is_equal_before.sum(dim=1) + 1)
        found[-1][~is_best.any(dim=1)] = len(key_KC) + 1
    return torch.cat(found).numpy()
