"""Read the folder that open_clip's trainer makes of a run: its params.txt, its checkpoints and their names."""

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from open_clip.constants import HF_CONFIG_NAME
from open_clip.factory import parse_model_name
from open_clip.pretrained import get_pretrained_cfg

from diffclip_openclip.weights.checkpoint import read_epoch
from diffclip_openclip.weights.directory import PREPROCESS, read_config
from diffclip_openclip.weights.foreign import check_preprocess_cfg

_CHECKPOINTS = "checkpoints"
_LARGEST_PARAMS = 1 << 20
_LATEST = "epoch_latest.pt"


@dataclass(frozen=True)
class TrainingRun:
    """Describe a run of open_clip_train (open_clip@v3.3.0:src/open_clip_train/main.py), as far as its folder tells.

    The trainer writes ``RUN/params.txt`` and ``RUN/checkpoints/epoch_1.pt``, ``epoch_2.pt``, ... Checkpoints that lie
    in another folder are a run of which nothing else is known.
    """

    checkpoint_folder: Path

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "TrainingRun":
        """Return the run that a checkpoint file is from."""
        return cls(checkpoint.absolute().parent)

    @classmethod
    def at(cls, folder: Path) -> "TrainingRun":
        """Return the run of a folder, which may be the one of its checkpoints."""
        return cls(folder / _CHECKPOINTS if (folder / _CHECKPOINTS).is_dir() else folder)

    @property
    def is_there(self) -> bool:
        """Return whether the folder is a run's by its name or by what is in it."""
        folder = self.checkpoint_folder
        return folder.is_dir() and (folder.name == _CHECKPOINTS or any(folder.glob("epoch_*.pt")))

    @property
    def name(self) -> str:
        """Return the trainer's ``--name``; empty where it is not known."""
        return self.checkpoint_folder.parent.name if self.checkpoint_folder.name == _CHECKPOINTS else ""

    @cached_property
    def params(self) -> dict[str, Any]:
        """Return the trainer's arguments by their names in Python; empty without a params.txt.

        Raises:
            ValueError: the file is too large, or is no text.
        """
        path = self.checkpoint_folder.absolute().parent / "params.txt"
        if self.checkpoint_folder.name != _CHECKPOINTS or not path.is_file():
            return {}
        if (size := path.stat().st_size) > _LARGEST_PARAMS:
            raise ValueError(f"{path} has {size} bytes; the trainer writes no more than {_LARGEST_PARAMS}")
        params = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(": ")
            try:
                params[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # text, written without quotes
                params[key] = value
        return params

    @property
    def model(self) -> str | None:
        """Return the model as the trainer was given it; None where it is not known."""
        return str(self.params["model"]) if "model" in self.params else None

    @property
    def directory(self) -> Path | None:
        """Return the model directory that the run started from, if it did and the directory is still there."""
        schema, place = parse_model_name(str(self.model))
        return Path(place) if schema == "local-dir" and Path(place, HF_CONFIG_NAME).is_file() else None

    @property
    def has_other_sizes(self) -> bool:
        """Return whether the model was given another image size or context length than its config says."""
        return bool(self.params.get("force_image_size") or self.params.get("force_context_length"))

    @property
    def preprocess_cfg(self) -> dict[str, Any] | None:
        """Return open_clip's ``preprocess_cfg`` of the training images; None where nothing tells.

        Raises:
            ValueError: it is one with which no model is trained.
        """
        schema, name = parse_model_name(str(self.model))
        if self.directory is not None:
            base = read_config(self.directory)[1]
        elif schema is None and self.params:
            base = PREPROCESS["openai"] | (get_pretrained_cfg(name, str(self.params.get("pretrained"))) or {})
        else:
            return None
        given = {field: self.params.get(f"image_{field}") for field in PREPROCESS["openai"]}
        found = {field: base[field] if value is None else value for field, value in given.items()}
        check_preprocess_cfg(found, self.checkpoint_folder.parent / "params.txt")
        return found

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints by epoch, the first one first; ``epoch_latest.pt`` counts where it is one more.

        Raises:
            FileNotFoundError: there is none.
            ValueError: ``epoch_latest.pt`` does not say its epoch, or is damaged.
        """
        epochs = {path: epoch_of(path) for path in self.checkpoint_folder.glob("*.pt")}
        found = {epoch: path for path, epoch in epochs.items() if epoch is not None}
        if (latest := self.checkpoint_folder / _LATEST).is_file():
            found.setdefault(read_epoch(latest), latest)
        if not found:
            raise FileNotFoundError(
                f"there is no epoch_1.pt or the like, nor {_LATEST}, in {self.checkpoint_folder}; give a run's folder, "
                "as open_clip_train makes it"
            )
        return dict(sorted(found.items()))


def epoch_of(checkpoint: Path) -> int | None:
    """Return the epoch that a checkpoint's name says; None where it says none, as ``epoch_latest.pt``."""
    match = re.fullmatch(r"epoch_(\d+)", checkpoint.stem)
    return int(match[1]) if match else None
