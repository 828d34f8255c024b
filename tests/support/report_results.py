"""Write result files with values made up by hand, for tests of ``diffclip report``."""

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np

from diffclip_openclip.data.catalog import DATA_SETS, MMVP_PATTERNS
from diffclip_openclip.report.uncertainty import Outcomes

CLIP, DIFF = "CLIP-nano-baseline run", "DiffCLIP-nano run"

PROBED = [data_set.name for data_set in DATA_SETS if "linear_probe" in data_set.tasks]

OOD = ["imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch"]

MATCH = [f"{CLIP}=CC12M/CLIP", f"{DIFF}=CC12M/DiffCLIP"]


def put(root: Path, label: str, task: str, dataset: str, metrics: dict, folder: str | None = None, **fields) -> Path:
    """Write a result file as `diffclip evaluate` does."""
    path = root / (folder or label.replace(" ", "_")) / task / f"{dataset}_{fields.get('templates', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "model": label.split()[0], "pretrained": "logs/run/epoch_1.pt", "task": task}
    content |= {"metrics": metrics, "images": {}, "label": label, "architecture": label.split()[0]}
    content |= {"checkpoint_sha256": f"{label[0]}1" * 32, "dataset_sha256": "da7a"}
    content |= {
        "versions": {"torch": "2.15.0", "timm": None},
        "seed": 3,
        "device": "NVIDIA <H200>",
        "precision": "fp32",
    }
    content |= {"seconds": 1.2, "date": "2026-11-22T10:00:00+00:00", "language": "en"}
    path.write_text(json.dumps(content | fields))
    return path


def put_outcomes(path: Path, **arrays) -> None:
    """Write the outcomes of a result as `diffclip evaluate` does."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    path.with_suffix(".npz").write_bytes(file.getvalue())
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outcomes_sha256": digest}))


def put_runs(root: Path, scores: dict[str, list[float]], task: str = "few_shot", dataset: str = "dtd") -> None:
    """Write an accuracy for each training run, "<model> seed0" and so on, of the models that are named."""
    for model, values in scores.items():
        for seed, value in enumerate(values):
            put(root, f"{model} seed{seed}", task, dataset, {"accuracy": value}, checkpoint_sha256=f"{model}{seed}")


def outcomes(hits, trials=None, classes=None, samples: str = "the same") -> Outcomes:
    """Return outcomes, by default of one trial each."""
    hits = np.asarray(hits, dtype=float)
    return Outcomes(samples, hits, np.ones(len(hits)) if trials is None else np.asarray(trials, dtype=float), classes)


def save_nothing(figures, folder: Path) -> None:
    """Stand in for ``save_figures`` where nobody looks at the figures, which take seconds to draw."""
    for figure in figures:
        (folder / f"{figure.name}.svg").write_text("<svg/>")


def retrieval(image: float, text: float) -> dict:
    pairs = itertools.product((1, 5, 10), (("image", image), ("text", text)))
    return {f"{kind}_retrieval_recall@{k}": value + k / 100 for k, (kind, value) in pairs}


def pope(accuracy: float) -> dict:
    return {"accuracy": accuracy, "precision": 0.5, "recall": 0.75, "f1": 0.6, "yes_ratio": 0.875}


def write_results(root: Path) -> None:
    """Write results of CLIP and DIFF on all that the paper reports, and files that are no results."""
    for place, name in enumerate(PROBED):
        put(root, CLIP, "few_shot", name, {"accuracy": (place + 1) / 10, "std": 0.1, "ci95": 0.01})
        put(root, DIFF, "few_shot", name, {"accuracy": (place + 1) / 10 + 0.0123, "std": 0.1, "ci95": 0.01})
        # 50.0 and 50.6, whose difference is 0.5 before rounding
        put(root, CLIP, "linear_probe", name, {"accuracy": 0.5004, "acc1": 0, "mean_per_class_recall": 0, "best_C": 1})
        if name != "dtd":
            put(root, DIFF, "linear_probe", name, {"accuracy": 0.5056})
    for label, up in ((CLIP, 0.0), (DIFF, 0.05)):
        for name, value in zip(OOD, (0.3, 0.2, 0.1, 0.4, 0.6), strict=True):
            put(root, label, "zeroshot_classification", name, {"acc1": value + up, "acc5": None}, templates="paper-7")
            put(root, label, "zeroshot_classification", name, {"acc1": value + up + 0.1}, templates="openai-80")
        for name, value in (("flickr30k", 0.2), ("flickr8k", 0.3), ("mscoco_captions", 0.4)):
            put(root, label, "zeroshot_retrieval", name, retrieval(value, value + up))
        patterns = {name: 1.0 if name in ("Quantity and Count", "Texts") else 3 / 15 for name in MMVP_PATTERNS}
        put(root, label, "mmvp", "mmvp", {"patterns": patterns, "mean_7": 0.2, "mean_9": 17 / 45})
    for category in ("random", "popular", "adversarial"):  # of answers, so each file has a hash of its own
        put(root, DIFF, "pope", f"pope_{category}", pope(0.8), folder=category, checkpoint_sha256=category)
    put(root, DIFF, "zeroshot_classification", "emoji", {"acc1": 0.5}, templates="openai-80")
    for other in ("cache/features/x.json", "notes/readme.json", "cache/linear_probe/x.npz"):
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_text("no result")
