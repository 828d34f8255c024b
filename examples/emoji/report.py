"""The quick start's table and picture, from clip_benchmark's results and the checkpoint."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS, PICTURES, TOP = 6, 18, 3


@dataclass(frozen=True)
class Split:
    """An evaluation set of ``data/eval`` and the metrics shown of it, (clip_benchmark's key, title, chance)."""

    name: str
    task: str
    title: str
    metrics: tuple[tuple[str, str, float], ...]


def _classification(name: str, title: str, num_classes: int, top5: bool = True) -> Split:
    metrics = [("acc1", "top-1", 1 / num_classes)]
    if top5:
        metrics.append(("acc5", "top-5", 5 / num_classes))
    return Split(name, "zeroshot_classification", title, tuple(metrics))


SPLITS = (
    _classification("unseen-vendor", "unseen vendor, 1,412 labels", 1412),
    _classification("unseen-vendor-groups", "unseen vendor, 8 groups", 8, top5=False),
    _classification("heldout-concepts", "unseen concepts, 156 labels", 156),
    _classification("seen-vendors", "seen vendors (training images), 1,412 labels", 1412),
    Split(
        "retrieval",
        "zeroshot_retrieval",
        "unseen vendor, 500 keyword captions",
        (("image_retrieval_recall@5", "image R@5", 5 / 500), ("text_retrieval_recall@5", "text R@5", 5 / 500)),
    ),
)


def result_file(runs: Path, model: str, split: str) -> Path:
    """Where clip_benchmark's result of a split is kept."""
    return runs / model / f"{split}.json"


def print_table(models: list[str], runs: Path) -> None:
    """Print every split's metrics in per cent, a column a model, beside chance, as Markdown."""
    rows = [["zero-shot on", "metric", "chance", *models]]
    for split in SPLITS:
        results = [json.loads(result_file(runs, model, split.name).read_text())["metrics"] for model in models]
        for key, title, chance in split.metrics:
            values = [f"{100 * metrics[key]:.1f} %" for metrics in results]
            rows.append([split.title, title, f"{100 * chance:.3g} %", *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    print()
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()


def read_samples(directory: Path) -> list[tuple[bytes, int]]:
    """Images (encoded) and class indices of a classification set in clip_benchmark's layout."""
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(directory / "test" / "0.tar") as tar:
        for member in tar:
            key, extension = member.name.rsplit(".", 1)
            stream = tar.extractfile(member)
            assert stream is not None
            files.setdefault(key, {})[extension] = stream.read()
    return [(sample["webp"], int(sample["cls"])) for sample in files.values()]


def save_predictions(model_name: str, checkpoint: Path, directory: Path, output: Path) -> None:
    """Draw some images of ``directory`` with the model's most probable labels; the true one in green."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import open_clip
    import torch
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=str(checkpoint))
    tokenizer = open_clip.get_tokenizer(model_name)
    model.eval()
    labels = (directory / "classnames.txt").read_text(encoding="utf-8").splitlines()
    samples = random.Random(0).sample(read_samples(directory), PICTURES)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data, _ in samples]
    with torch.no_grad():
        text = model.encode_text(tokenizer(labels), normalize=True)
        image = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        probabilities, indices = (model.logit_scale.exp() * image @ text.t()).softmax(dim=-1).topk(TOP)

    rows = PICTURES // COLUMNS
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.3 * COLUMNS, 2.5 * rows), layout="constrained")
    for axis, picture, (_, truth), probability, index in zip(
        axes.flat, images, samples, probabilities.tolist(), indices.tolist(), strict=True
    ):
        _draw(axis, picture, labels[truth], [labels[i] for i in index], probability)
    figure.suptitle(
        f"{model_name} on a vendor it has not seen: true label above, its top {TOP} of {len(labels):,} below"
    )
    temporary = output.with_name(f".{output.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(output)
    plt.close(figure)


def _short(label: str) -> str:
    return label if len(label) <= 28 else f"{label[:27]}…"


def _draw(axis: Any, picture: Any, truth: str, guesses: list[str], probabilities: list[float]) -> None:
    axis.imshow(picture)
    axis.axis("off")
    axis.set_title(_short(truth), fontsize=8, pad=2)
    for line, (guess, probability) in enumerate(zip(guesses, probabilities, strict=True)):
        color = "#00734d" if guess == truth else "#444444"
        weight = "bold" if guess == truth else "normal"
        text = f"{_short(guess)} {100 * probability:.0f} %"
        style = {"color": color, "fontweight": weight, "fontsize": 8, "ha": "center", "va": "top"}
        axis.text(0.5, -0.04 - 0.11 * line, text, transform=axis.transAxes, **style)
