"""What the evaluation is tested on: emoji as pixels, and as the paper's data sets in small; models; results."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from support.common import REPOSITORY

from diffclip_cli.main import main
from diffclip_openclip.data.catalog import find_data_set
from diffclip_openclip.data.layout import Location, locate
from diffclip_openclip.evaluation.evaluator import Compute, Evaluator, Measurement, Subject
from diffclip_openclip.evaluation.features import BACKBONE, Features, compute_features, read_features
from diffclip_openclip.weights.loading import LoadedModel

sys.path.insert(0, str(REPOSITORY / "examples" / "emoji"))

import paper_suite

LIMIT = 10  # images a class of the suite
SOME = ("dtd", "flickr8k", "imagenet-r", "mmvp", "pets")  # every task, by fewer data sets


def emoji_pixels(count: int, size: int) -> Features:
    """Return ``count`` emoji of one vendor as centred pixels, (count, 3 size^2), with the index of their group."""
    groups = sorted({concept["group"] for concept in paper_suite.concepts()})
    group_of = {concept["hexcode"]: groups.index(concept["group"]) for concept in paper_suite.concepts()}
    drawings = paper_suite.images("twemoji")
    chosen = sorted(drawings)[:: len(drawings) // count][:count]
    images = [Image.open(io.BytesIO(drawings[code])).convert("RGB").resize((size, size)) for code in chosen]
    pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in images]))
    return Features(pixels - pixels.mean(dim=0), torch.tensor([group_of[code] for code in chosen]))


def build_suite(root: Path, limit: int = LIMIT) -> Path:
    """Write all of the paper's data sets with ``limit`` images a class; returns ``root``."""
    paper_suite.build(root, limit)
    return root


def write_run(logs: Path) -> Path:
    """Write a run's checkpoint as open_clip's trainer does, of random weights."""
    torch.manual_seed(0)
    run = logs / "a-run"
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints" / "epoch_2.pt"
    state_dict = open_clip.create_model("DiffCLIP-nano").state_dict()
    torch.save({"epoch": 2, "name": "a-run", "state_dict": state_dict}, path)
    (run / "params.txt").write_text("image_mean: [0.1, 0.2, 0.3]\nimage_std: None\nmodel: DiffCLIP-nano\nseed: 5\n")
    return path


def write_directory(folder: Path) -> Path:
    """Write a model directory of other weights and another lambda_init than :func:`write_run`'s."""
    torch.manual_seed(1)
    torch.save(open_clip.create_model("DiffCLIP-nano-dynamic").state_dict(), folder / "weights.pt")
    command = ["convert", str(folder / "weights.pt"), str(folder / "DYNAMIC"), "--preprocess", "slip"]
    assert main([*command, "--variant", "dynamic"]) == 0
    return folder / "DYNAMIC"


def locate_paper(name: str, *roots: Path | str) -> Location | None:
    """Find one of the paper's data sets with its splits."""
    return locate(name, tuple(find_data_set(name).splits), [str(root) for root in roots])


def paper_subject(
    loaded: LoadedModel, name: str, root: Path | str, cache_dir: Path, compute: Compute | None = None
) -> Subject:
    """Make a subject of one of the paper's data sets below ``root``."""
    location = locate_paper(name, root)
    hashes = location.shard_hashes(cache_dir / "fingerprints")
    return Subject(loaded, find_data_set(name), location, hashes, compute or Compute(), cache_dir)


def measure(evaluator: Evaluator, subject: Subject) -> list[Measurement]:
    """Compute what a protocol scores, and score it."""
    return list(evaluator.score(subject, compute_features(subject, evaluator.READING)))


def extract(subject: Subject, split: str) -> Features:
    """Return the features of a split for linear probe and few-shot."""
    return read_features(compute_features(subject, BACKBONE)[split], "cpu")


def arguments(spec: str, data: Path, output: Path) -> list[str]:
    """Return the arguments of ``diffclip evaluate`` that every test gives."""
    return ["--model", spec, "--data", str(data), "--output", str(output), "--workers", "1"]


def result_files(results: Path) -> list[Path]:
    """List result files; a killed process leaves hidden folders with what it was writing."""
    return list(results.glob("[!.]*/[!.]*/[!.]*.json"))


def metrics_of(results: Path) -> dict[str, dict[str, Any]]:
    """Read every result's identity and metrics, without what differs between runs."""
    found = {}
    for path in result_files(results):
        entry = json.loads(path.read_text())
        found[str(path.relative_to(results))] = {k: v for k, v in entry.items() if k not in ("seconds", "date")}
    return found


def of_some(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Choose the results on the data sets of ``SOME``."""
    return {path: entry for path, entry in metrics.items() if entry["dataset"] in SOME}
