"""Classify zero-shot: the nearest class by the text embeddings of its templates, as clip_benchmark does."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from diffclip_openclip.data.catalog import DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Measurement, Subject, Variant
from diffclip_openclip.files import staged


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
    """Return a data set's sets of templates: :data:`TEMPLATE_SETS` for the paper's, else its own or OpenAI's 80.

    Raises:
        ValueError: its own templates are none.
    """
    if data_set.paper:
        return TEMPLATE_SETS
    return {"own": location.templates} if location.templates else {"openai-80": TEMPLATE_SETS["openai-80"]}


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List a result for each set of templates."""
    return [Variant(templates=name) for name in templates_of(data_set, location)]


def run(subject: Subject) -> Iterator[Measurement]:
    """Yield acc1, acc5 and mean_per_class_recall for each set of templates, in one pass over the images.

    acc5 is NaN below five classes, as in clip_benchmark. Logits are scored batch by batch: of 50,000 images and two
    sets of 1,000 classes they would take 400 MB.

    Raises:
        FileNotFoundError: the data set has no classnames.txt.
        ValueError: a sample's class is not among the class names.
    """
    location, compute = subject.location, subject.compute
    classes = location.class_names
    with compute.autocast():
        classifiers = [
            _classifier(subject, classes, lines) for lines in templates_of(subject.data_set, location).values()
        ]
        # The sets' classifiers side by side are one classifier of more classes.
        scored = list(_scored_batches(subject, torch.cat(classifiers, dim=1), len(classes)))
    label, *hits_by_set = (np.concatenate(column) for column in zip(*scored, strict=True))
    order = np.argsort(label[:, 0], kind="stable")  # by shard
    label = label[order, 1]
    for hits in hits_by_set:
        yield _measurement(hits[order], label, len(classes))


def _scored_batches(subject: Subject, classifier: torch.Tensor, num_classes: int) -> Iterator[list[np.ndarray]]:
    """Yield for each batch its shard and labels (B, 2), and for each set of templates the hits of :func:`_hits`."""
    model: Any = subject.loaded.model
    device = subject.compute.device
    with tqdm(desc=f"zero-shot on {subject.data_set.name}", unit=" images", leave=False) as bar:
        for shard, images, labels in subject.test_batches("cls"):
            if max(labels) >= num_classes:
                raise ValueError(
                    f"{subject.location.base} has a sample of class {max(labels)}, its classnames.txt {num_classes} "
                    "lines"
                )
            # as clip_benchmark@1.6.2:clip_benchmark/metrics/zeroshot_classification.py, run_classification
            with torch.inference_mode():
                image_embed = F.normalize(model.encode_image(images.to(device, non_blocking=True)), dim=-1)
                logits = (100.0 * image_embed @ classifier).float().cpu()
            target = torch.tensor(labels)
            column = np.stack([np.full(len(labels), shard), target.numpy()], axis=1)
            yield [column, *(_hits(part, target) for part in logits.split(num_classes, dim=1))]
            bar.update(len(labels))


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


def _classifier(subject: Subject, classes: list[str], templates: list[str]) -> torch.Tensor:
    """Return the text embeddings of the classes, (embed_dim, classes).

    They are kept, as ImageNet, V2 and Sketch have the same classes.
    """
    loaded, compute = subject.loaded, subject.compute
    key = hashlib.sha256(repr((loaded.sha256, compute.precision, classes, templates)).encode()).hexdigest()
    file = subject.cache_dir / "classifiers" / f"{key}.safetensors"
    if not file.is_file():
        classifier = zero_shot_classifier(
            loaded.model, loaded.tokenizer, classes, templates, device=compute.device, amp=compute.amp
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        with staged(file, overwrite=True) as new:
            save_file({"classifier": classifier.cpu().contiguous()}, new)
    return load_file(file)["classifier"].to(compute.device)
