"""Folders with a text tower's config and no weights: which give a new tower, and for how long a context.

open_clip builds every text tower of transformers from a place, ``hf_model_name``, and passes nothing else of the model
config on to it (open_clip@v3.3.0:src/open_clip/model.py, _build_text_tower). So the place alone can tell a tower that
it is to be trained from scratch, and that its context is longer than usual.
"""

import copy
import json
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
from transformers.utils import CONFIG_NAME

_lock = threading.Lock()
_longer: set[Path] = set()  # what _with_context has made


def has_no_weights(folder: Path) -> bool:
    """Return whether a folder has a config.json and no file in which transformers could find weights."""
    if not (folder / CONFIG_NAME).is_file():
        return False
    return not any(path.suffix in (".safetensors", ".bin") or ".index." in path.name for path in folder.iterdir())


def check_named_to_open_clip(folder: Path) -> None:
    """Check that a model config which open_clip knows names a folder as its text tower's.

    So do the configs of this package, and those that are given to ``open_clip.add_model_config``. Nothing else tells a
    config from which towers are to be built from what is left of an incomplete copy of a model.

    Raises:
        OSError: none names it.
    """
    text_cfgs = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    named = {Path(text_cfg["hf_model_name"]) for text_cfg in text_cfgs if text_cfg.get("hf_model_name")}
    if folder.resolve() not in _longer | {place.resolve() for place in named if place.is_dir()}:
        raise OSError(
            f"{folder} has a {CONFIG_NAME} and no weights: neither model.safetensors nor pytorch_model.bin, whole or "
            "in shards; copy them there too. For a tower with new, random weights use "
            "AutoModel.from_config(AutoConfig.from_pretrained(folder)); in open_clip, create_model(..., "
            "pretrained_text=False), or open_clip.add_model_config with a config whose text_cfg has the folder as "
            "hf_model_name"
        )


class TextCfg(dict[str, Any]):
    """Hold a model's ``text_cfg`` whose ``context_length`` may be raised above the text tower's own.

    ``open_clip.create_model`` sets ``context_length`` to what ``--force-context-length`` asks for, and copies the model
    config before it builds the model. The copy names a folder whose config has as many positions.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "TextCfg":
        new = TextCfg(copy.deepcopy(dict(self), memo))
        if new.get("hf_model_name") and new.get("context_length"):
            new["hf_model_name"] = str(_with_context(Path(new["hf_model_name"]), new["context_length"]))
        return new


@cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="diffclip_openclip_")  # removed when the interpreter ends


def _with_context(folder: Path, context_length: int) -> Path:
    """Return a folder with the text tower of ``folder`` for at least ``context_length`` tokens."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return folder
    config = json.loads(path.read_text(encoding="utf-8"))
    if context_length <= config["max_position_embeddings"]:
        return folder
    config["max_position_embeddings"] = context_length
    with _lock:
        longer = Path(_temporary().name).resolve() / f"{folder.name}-context-{context_length}"
        if longer not in _longer:
            longer.mkdir()
            (longer / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
            _longer.add(longer)
    return longer
