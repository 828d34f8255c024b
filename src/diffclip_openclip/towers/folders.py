"""Tell which folders with a text tower's config and no weights give a new tower.

open_clip builds every text tower of transformers from a place, ``hf_model_name``, and passes nothing else of the model
config on to it (open_clip@v3.3.0:src/open_clip/model.py, _build_text_tower). So the place alone can tell a tower that
it is to be trained from scratch.
"""

from pathlib import Path

import open_clip
from transformers.utils import CONFIG_NAME


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
    if folder.resolve() not in {place.resolve() for place in named if place.is_dir()}:
        raise OSError(
            f"{folder} has a {CONFIG_NAME} and no weights: neither model.safetensors nor pytorch_model.bin, whole or "
            "in shards; copy them there too. For a tower with new, random weights use "
            "AutoModel.from_config(AutoConfig.from_pretrained(folder)); in open_clip, create_model(..., "
            "pretrained_text=False), or open_clip.add_model_config with a config whose text_cfg has the folder as "
            "hf_model_name"
        )
