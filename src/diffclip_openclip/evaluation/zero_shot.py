"""Classify zero-shot: the nearest class by the text embeddings of its templates, by clip_benchmark's functions."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import open_clip
import torch
from clip_benchmark.metrics.zeroshot_classification import accuracy, run_classification, zero_shot_classifier
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score

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

    acc5 is NaN below five classes, as in clip_benchmark.

    Raises:
        FileNotFoundError: the data set has no classnames.txt.
        ValueError: a sample's class is not among the class names.
    """
    loaded, location, compute = subject.loaded, subject.location, subject.compute
    classes = location.class_names
    with compute.autocast():
        classifiers = [
            _classifier(subject, classes, lines) for lines in templates_of(subject.data_set, location).values()
        ]
        labelled = ((images, torch.tensor(labels)) for images, labels in subject.test_batches("cls"))
        # The sets' classifiers side by side are one classifier of more classes.
        logits, target = run_classification(
            loaded.model, torch.cat(classifiers, dim=1), labelled, compute.device, amp=compute.amp
        )
    if target.max() >= len(classes):
        raise ValueError(
            f"{location.base} has a sample of class {target.max()}, its classnames.txt {len(classes)} lines"
        )
    for part in logits.split(len(classes), dim=1):
        yield Measurement(_metrics(part, target), {"test": len(target)})


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


def _metrics(logits: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """Score logits (B, classes) against class indices (B,) as clip_benchmark does."""
    top = (1, 5) if logits.shape[1] >= 5 else (1,)
    acc1, acc5 = (*accuracy(logits, target, topk=top), math.nan)[:2]
    recall = float(balanced_accuracy_score(target, logits.argmax(dim=1)))
    return {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": recall}
