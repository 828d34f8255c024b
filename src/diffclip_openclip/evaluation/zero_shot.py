"""Classify zero-shot: the nearest class by the text embeddings of its templates, as clip_benchmark does."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from diffclip_openclip.data.catalog import ZERO_SHOT, DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Computed, Measurement, Reading, Subject, Variant
from diffclip_openclip.evaluation.features import read_embedded
from diffclip_openclip.files import kept
from diffclip_openclip.weights.loading import LoadedModel

READING = Reading("embeddings", ("cls",))
_CHUNK = 1000  # images whose logits are held at once


def _strings(templates: Sequence[Any]) -> list[str]:
    """Write open_clip's templates, which are functions, with ``{c}`` for the class name."""
    return [str(template("{c}")) for template in templates]


# The sets of templates of the paper's data sets: clip_benchmark and open_clip_train take OpenAI's 80, the paper's
# evaluation 7 of them.
TEMPLATE_SETS: Mapping[str, list[str]] = {
    "openai-80": _strings(open_clip.OPENAI_IMAGENET_TEMPLATES),
    "paper-7": _strings(open_clip.SIMPLE_IMAGENET_TEMPLATES),
}


def templates_of(data_set: DataSet, location: Location) -> Mapping[str, list[str]]:
    """Return a data set's sets of templates: its own, or OpenAI's 80; what the paper classifies has both its sets.

    Raises:
        ValueError: its own templates are none.
    """
    if data_set.paper and ZERO_SHOT not in data_set.more_tasks:
        return TEMPLATE_SETS
    return {"own": location.templates} if location.templates else {"openai-80": TEMPLATE_SETS["openai-80"]}


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List a result for each set of templates."""
    return [Variant(templates=name) for name in templates_of(data_set, location)]


def score(subject: Subject, computed: Computed) -> Iterator[Measurement]:
    """Yield acc1, acc5 and mean_per_class_recall for each set of templates.

    acc5 is NaN below five classes, as in clip_benchmark. Logits are scored shard by shard: of 50,000 images and two
    sets of 1,000 classes they would take 400 MB.

    Raises:
        FileNotFoundError: the data set has no classnames.txt.
        ValueError: a sample's class is not among the class names.
    """
    location, compute = subject.location, subject.compute
    classes = location.class_names
    templates = templates_of(subject.data_set, location)
    with torch.inference_mode(), compute.autocast():
        classifiers = [_classifier(subject, classes, lines) for lines in templates.values()]
        # The sets' classifiers side by side are one classifier of more classes.
        classifier = torch.cat(classifiers, dim=1)
        scored = list(chain.from_iterable(_scored(subject, file, classifier, classes) for file in computed["test"]))
    label, *hits_by_set = (np.concatenate(column) for column in zip(*scored, strict=True))
    for hits in hits_by_set:
        yield _measurement(hits, label, len(classes))


def _scored(
    subject: Subject, file: Path, classifier: torch.Tensor, classes: Sequence[str]
) -> Iterator[list[np.ndarray]]:
    """Yield for each chunk of a shard the labels (B,), and for each set of templates the hits of :func:`_hits`."""
    embedded = read_embedded(file)
    for key, label in embedded.samples:
        if label >= len(classes):
            raise ValueError(
                f"{subject.location.base}: the sample {key} is of class {label}, and its classnames.txt has "
                f"{len(classes)} lines"
            )
    targets = torch.tensor([label for _, label in embedded.samples])
    for image, target in zip(embedded.image.split(_CHUNK), targets.split(_CHUNK), strict=True):
        # as clip_benchmark@1.6.2:clip_benchmark/metrics/zeroshot_classification.py, run_classification
        logits = (100.0 * image.to(classifier.device) @ classifier).float().cpu()
        yield [target.numpy(), *(_hits(part, target) for part in logits.split(len(classes), dim=1))]


def _hits(logits: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Tell of logits (B, classes) whether the class is first, among the first five, and the largest; (B, 3).

    Two of the three differ only between equal logits: clip_benchmark takes the accuracies of ``topk`` and the recall of
    ``argmax``, and so the first and the last.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
    return torch.stack([top[:, 0], top.any(dim=1), logits.argmax(dim=1) == target], dim=1).numpy()


def _measurement(hits: np.ndarray, label: np.ndarray, num_classes: int) -> Measurement:
    """Make the metrics of the hits (B, 3) of all samples."""
    has_five = num_classes >= 5
    acc1, acc5 = hits[:, :2].mean(axis=0).tolist()
    recall = np.bincount(label, hits[:, 2])[np.unique(label)] / np.unique(label, return_counts=True)[1]
    metrics = {"acc1": acc1, "acc5": acc5 if has_five else math.nan, "mean_per_class_recall": float(recall.mean())}
    outcomes = {"correct1": hits[:, 0], "label": label} | ({"correct5": hits[:, 1]} if has_five else {})
    return Measurement(metrics, {"test": len(label)}, outcomes)


def _classifier(subject: Subject, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Return the text embeddings of the classes, (embed_dim, classes).

    They are kept, as ImageNet, V2 and Sketch have the same classes.
    """
    loaded, compute = subject.loaded, subject.compute
    key = hashlib.sha256(repr((loaded.sha256, compute.precision, classes, templates)).encode()).hexdigest()
    file = subject.cache_dir / "classifiers" / f"{key}.safetensors"
    try:
        return load_file(file, device=compute.device)["classifier"]
    except (FileNotFoundError, SafetensorError):  # not there, or damaged
        classifier = embed_classes(loaded, compute.device, classes, templates)
    file.parent.mkdir(parents=True, exist_ok=True)
    with kept(file) as new:
        save_file({"classifier": classifier.contiguous()}, new)
    return classifier


def embed_classes(loaded: LoadedModel, device: str, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Embed each class as the mean of its templates' embeddings, (embed_dim, classes).

    Source: clip_benchmark@1.6.2:clip_benchmark/metrics/zeroshot_classification.py, zero_shot_classifier.
    """
    model: Any = loaded.model
    means = []
    for name in tqdm(classes, desc=f"classes in {len(templates)} templates", leave=False):
        tokens = loaded.tokenizer([template.replace("{c}", name) for template in templates]).to(device)
        mean = F.normalize(model.encode_text(tokens), dim=-1).mean(dim=0)
        means.append(mean / mean.norm())
    return torch.stack(means, dim=1)
