"""Result files: one JSON a task, in clip_benchmark's form with what makes it repeatable."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffclip_openclip.evaluation.published import deviations
from diffclip_openclip.files import staged

_PACKAGES = ("diffclip-openclip", "open_clip_torch", "clip_benchmark", "timm", "torch", "transformers", "webdataset")


@dataclass(frozen=True)
class Identity:
    """What a result depends on; a result file with another one is out of date.

    ``seed`` is for linear probe and few-shot only, ``templates`` for zero-shot classification. ``architecture`` is
    open_clip's name of the model's, where it has one.
    """

    task: str
    dataset: str
    label: str
    model: str
    pretrained: str
    checkpoint_sha256: str
    dataset_sha256: str
    precision: str
    seed: int | None = None
    templates: str | None = None
    architecture: str | None = None

    def path(self, results: Path) -> Path:
        """RESULTS/MODEL/TASK/NAME.json; MODEL ends with the start of the checkpoint's hash."""
        name = file_name(self.dataset, self.templates, self.precision, self.seed)
        return results / f"{slug(self.label)}-{self.checkpoint_sha256[:8]}" / self.task / name

    def fields(self) -> dict[str, Any]:
        """As written: without what does not apply, and with clip_benchmark's ``language``."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return given | {"language": "en"}


def file_name(dataset: str, templates: str | None, precision: str, seed: int | None) -> str:
    """Of a result; other settings than the usual ones, fp32 and seed 0, are in it."""
    parts = [dataset, templates, None if precision == "fp32" else precision, f"seed{seed}" if seed else None]
    return f"{'_'.join(filter(None, parts))}.json"


def slug(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r"[^\w.=-]+", "_", label)


def is_done(identity: Identity, results: Path) -> bool:
    """Whether the result is there already, of this very model, data and setting."""
    path = identity.path(results)
    if not path.is_file():
        return False
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(known, dict) and {key: known.get(key) for key in identity.fields()} == identity.fields()


def write(
    identity: Identity,
    results: Path,
    metrics: Mapping[str, Any],
    device: str,
    seconds: float,
    images: Mapping[str, int] | None = None,
) -> Path:
    """Write a result where it belongs; it replaces an older one. ``images`` counts those it is of, by split."""
    path = identity.path(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in metrics.items()}
    entry = identity.fields() | {
        "metrics": plain,
        "images": dict(images or {}),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": device,
        "seconds": round(seconds, 3),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with staged(path, overwrite=True) as new:
        new.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return path


def headline(path: Path) -> str:
    """A result file as one line: its first figures, and whether its data set is whole."""
    entry = json.loads(path.read_text(encoding="utf-8"))
    figures = [(key, value) for key, value in entry["metrics"].items() if isinstance(value, float)]
    shown = ", ".join(f"{key} {100 * value:.1f} %" for key, value in figures[:3] if value <= 1)
    templates = f" ({entry['templates']} templates)" if "templates" in entry else ""
    unlike = deviations(entry["dataset"], entry["images"])
    warning = f"; warning: not of the published size ({', '.join(unlike)})" if unlike else ""
    return f"{entry['label']}: {entry['task']} on {entry['dataset']}{templates}: {shown}{warning}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
