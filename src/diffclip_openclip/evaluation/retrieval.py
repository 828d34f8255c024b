"""Retrieve zero-shot: images by their captions and captions by their images, by clip_benchmark's functions."""

import math
from collections.abc import Iterator
from itertools import chain

import torch
from clip_benchmark.metrics import zeroshot_retrieval

from diffclip_openclip.data.catalog import RECALL_AT, DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Measurement, Subject, Variant

# Images (B, 3, H, W), and the captions of each.
CaptionedBatch = tuple[torch.Tensor, list[list[str]]]


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List the one result."""
    return [Variant()]


def run(subject: Subject) -> Iterator[Measurement]:
    """Yield image_retrieval_recall@k and text_retrieval_recall@k for k of 1, 5 and 10.

    They are NaN where there are fewer than k images or captions.
    """
    loaded, compute = subject.loaded, subject.compute
    texts = ((images, [text.splitlines() for text in captions]) for images, captions in subject.test_batches("txt"))
    counted = _Counted(texts)
    at_least = counted.at_least(max(RECALL_AT))
    known = [k for k in RECALL_AT if k <= at_least]
    with compute.autocast():
        metrics = zeroshot_retrieval.evaluate(
            loaded.model, counted, loaded.tokenizer, device=compute.device, amp=compute.amp, recall_k_list=known
        )
    names = (f"{kind}_retrieval_recall@{k}" for k in RECALL_AT for kind in ("image", "text"))
    yield Measurement({name: metrics.get(name, math.nan) for name in names}, {"test": counted.images})


class _Counted:
    """Count the images of batches while they are read."""

    def __init__(self, batches: Iterator[CaptionedBatch]) -> None:
        self._ahead: list[CaptionedBatch] = []
        self._batches = batches
        self.images = 0

    def at_least(self, enough: int) -> int:
        """Return the number of images or of captions, whichever is smaller, reading ahead until it is ``enough``."""
        images = captions = 0
        for batch in self._batches:
            self._ahead.append(batch)
            images, captions = images + len(batch[0]), captions + sum(map(len, batch[1]))
            if min(images, captions) >= enough:
                break
        return min(images, captions)

    def __iter__(self) -> Iterator[CaptionedBatch]:
        for images, captions in chain(self._ahead, self._batches):
            self.images += len(images)
            yield images, captions
