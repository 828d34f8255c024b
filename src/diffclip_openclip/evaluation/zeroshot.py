"""Zero-shot classification and retrieval, by clip_benchmark's own functions."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import open_clip
import torch
from clip_benchmark.metrics import zeroshot_retrieval
from clip_benchmark.metrics.zeroshot_classification import accuracy, run_classification, zero_shot_classifier
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score

from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.features import shard_batches
from diffclip_openclip.evaluation.layout import Place
from diffclip_openclip.files import staged
from diffclip_openclip.weights.loading import LoadedModel

RECALL_AT = (1, 5, 10)


def _strings(templates: Sequence[Any]) -> list[str]:
    return [str(template("{c}")) for template in templates]


# clip_benchmark and open_clip_train take OpenAI's 80, the paper's evaluation 7 of them
TEMPLATES: Mapping[str, list[str]] = {
    "openai-80": _strings(open_clip.OPENAI_IMAGENET_TEMPLATES),
    "paper-7": _strings(open_clip.SIMPLE_IMAGENET_TEMPLATES),
}


def templates_of(place: Place, of_paper: bool) -> Mapping[str, list[str]]:
    """The sets of templates of a data set: :data:`TEMPLATES` for the paper's, for others their own, or OpenAI's 80."""
    if of_paper:
        return TEMPLATES
    return {"own": place.templates} if place.templates else {"openai-80": TEMPLATES["openai-80"]}


def classify(
    loaded: LoadedModel, place: Place, compute: Compute, cache_dir: Path, templates: Mapping[str, list[str]] = TEMPLATES
) -> tuple[dict[str, dict[str, float]], int]:
    """acc1, acc5 and mean_per_class_recall for each set of templates, in one pass over the images; and their number.

    acc5 is NaN below five classes, as in clip_benchmark. Classifiers are kept in ``cache_dir``: ImageNet, V2 and Sketch
    have the same classes.

    Raises:
        FileNotFoundError: the data set has no classnames.txt.
        ValueError: a sample's class is not among the class names.
    """
    classes = place.class_names
    with compute.autocast():
        classifiers = [_classifier(loaded, classes, lines, compute, cache_dir) for lines in templates.values()]
        loader = _batches(loaded, place, "cls", torch.tensor, compute)
        logits, target = run_classification(
            loaded.model, torch.cat(classifiers, dim=1), loader, compute.device, amp=compute.amp
        )
    if target.max() >= len(classes):
        raise ValueError(f"{place.base} has a sample of class {target.max()}, its classnames.txt {len(classes)} lines")
    parts = logits.split(len(classes), dim=1)
    return {name: _metrics(part, target) for name, part in zip(templates, parts, strict=True)}, len(target)


def _classifier(
    loaded: LoadedModel, classes: list[str], templates: list[str], compute: Compute, cache_dir: Path
) -> torch.Tensor:
    """Text embeddings of the classes, (embed_dim, classes)."""
    key = hashlib.sha256(repr((loaded.sha256, compute.precision, classes, templates)).encode()).hexdigest()
    file = cache_dir / "classifiers" / f"{key}.safetensors"
    if not file.is_file():
        classifier = zero_shot_classifier(
            loaded.model, loaded.tokenizer, classes, templates, device=compute.device, amp=compute.amp
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        with staged(file, overwrite=True) as new:
            save_file({"classifier": classifier.cpu().contiguous()}, new)
    return load_file(file)["classifier"].to(compute.device)


def _metrics(logits: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """Logits (B, classes) and class indices (B,) as clip_benchmark scores them."""
    top = (1, 5) if logits.shape[1] >= 5 else (1,)
    acc1, acc5 = (*accuracy(logits, target, topk=top), math.nan)[:2]
    recall = float(balanced_accuracy_score(target, logits.argmax(dim=1)))
    return {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": recall}


def retrieve(loaded: LoadedModel, place: Place, compute: Compute) -> tuple[dict[str, float], int]:
    """image_retrieval_recall@k and text_retrieval_recall@k for k of 1, 5 and 10; and the number of images.

    They are NaN where there are fewer than k images or captions.
    """
    counted = _Counted(_batches(loaded, place, "txt", _captions, compute))
    at_least = counted.at_least(max(RECALL_AT))
    known = [k for k in RECALL_AT if k <= at_least]
    with compute.autocast():
        metrics = zeroshot_retrieval.evaluate(
            loaded.model, counted, loaded.tokenizer, device=compute.device, amp=compute.amp, recall_k_list=known
        )
    names = (f"{kind}_retrieval_recall@{k}" for k in RECALL_AT for kind in ("image", "text"))
    return {name: metrics.get(name, math.nan) for name in names}, counted.images


class _Counted:
    """Batches of images and their captions, which counts what it gives."""

    def __init__(self, batches: Iterator[tuple[torch.Tensor, list[list[str]]]]) -> None:
        self._ahead: list[tuple[torch.Tensor, list[list[str]]]] = []
        self._batches = batches
        self.images = 0

    def at_least(self, enough: int) -> int:
        """The number of images or of captions, whichever is smaller; no more is looked at than shows ``enough``."""
        images = captions = 0
        for batch in self._batches:
            self._ahead.append(batch)
            images, captions = images + len(batch[0]), captions + sum(map(len, batch[1]))
            if min(images, captions) >= enough:
                break
        return min(images, captions)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
        for images, captions in chain(self._ahead, self._batches):
            self.images += len(images)
            yield images, captions


def _captions(texts: tuple[Any, ...]) -> list[list[str]]:
    return [text.splitlines() for text in texts]


def _batches(
    loaded: LoadedModel, place: Place, field: str, convert: Callable[[tuple[Any, ...]], Any], compute: Compute
) -> Iterator[tuple[torch.Tensor, Any]]:
    """Batches of images and what clip_benchmark's functions want with them, as its own data sets give them."""
    shards = [(index, place.shard("test", index)) for index in range(place.shards["test"])]
    for batch in shard_batches(shards, field, loaded.preprocess, compute):
        if batch.images is not None:
            yield batch.images, convert(batch.values)
