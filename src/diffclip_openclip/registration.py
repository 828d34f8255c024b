"""Make the DiffCLIP models known to open_clip; no other module changes its registries.

Model definitions are the JSONs of ``model_configs/``. A DiffCLIP JSON names its text tower by a path relative to that
folder. open_clip hands the name to ``transformers.AutoConfig``, which finds directories from the working directory
alone, so open_clip is given copies with absolute paths.
"""

import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import open_clip
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import register_pooler

from diffclip_openclip.pooler import DiffclipTextPooler
from diffclip_openclip.towers.configs import DiffCLIPTextConfig, register_configs

_TEXT_ARCH: dict[str, Any] = {
    "config_names": {
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "width": "pooled_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "layer_attr": "layer_groups",
        "token_embeddings_attr": "embeddings",
    },
    "pooler": "diffclip_text_pooler",
}
_lock = threading.Lock()


def config_dir() -> Path:
    """Return the folder with open_clip's model JSONs: package data, or the checkout's in an editable install.

    Raises:
        FileNotFoundError: neither exists.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "model_configs", package.parents[1] / "model_configs")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"diffclip_openclip's model configs are missing, looked in {' and '.join(map(str, candidates))}; "
        "reinstall the package: pip install --force-reinstall --no-deps diffclip-openclip"
    )


def model_names() -> list[str]:
    """Return the names under which :func:`register` makes models known to open_clip."""
    return sorted(path.stem for path in config_dir().glob("*.json"))


def _resolved_config(path: Path) -> dict[str, Any]:
    """Read a model JSON as open_clip is to see it: the text tower's folder as an absolute path."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_name"] = str(path.parent / config["text_cfg"]["hf_model_name"])
    return config


def _register_text_arch() -> None:
    known = arch_dict.setdefault(DiffCLIPTextConfig.model_type, _TEXT_ARCH)
    if known != _TEXT_ARCH:
        raise ValueError(
            f"open_clip.hf_configs.arch_dict already has another entry {DiffCLIPTextConfig.model_type!r}: {known}; "
            "uninstall or change the package that added it to use diffclip_openclip"
        )


def _missing_configs(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return those of ``configs`` that open_clip does not know yet."""
    missing = {name: config for name, config in configs.items() if name not in open_clip.list_models()}
    clashes = [name for name in configs.keys() - missing.keys() if open_clip.get_model_config(name) != configs[name]]
    if clashes:
        raise ValueError(
            f"open_clip already has other models named {sorted(clashes)}; remove or rename the configs that were given "
            "to open_clip.add_model_config to use diffclip_openclip's"
        )
    return missing


def register() -> None:
    """Register the towers with timm and transformers and the models with open_clip.

    Safe to repeat, in threads, and in many processes at once; leaves no files behind. ``import diffclip_openclip``
    calls it, and ``import open_clip`` does through the start-up hook.

    Raises:
        ValueError: one of the names is taken by a different model; nothing is then registered with open_clip.
        FileNotFoundError: the package's own model configs are missing, or there is no usable temporary directory.
        RuntimeError: open_clip did not get the configs; another call may succeed.
    """
    with _lock:
        missing = _missing_configs({path.stem: _resolved_config(path) for path in config_dir().glob("*.json")})
        register_configs()
        _register_text_arch()
        register_pooler(DiffclipTextPooler)
        if not missing:
            return
        # open_clip takes files only, and reads them at once
        folder, process = Path(tempfile.mkdtemp(prefix="diffclip_openclip_")), os.getpid()
        try:
            for name, config in missing.items():
                (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(folder)
        finally:
            _forget(folder)
            if os.getpid() == process:  # a fork that ends in here leaves the folder to the process that it is of
                shutil.rmtree(folder, ignore_errors=True)
        if lost := missing.keys() - set(open_clip.list_models()):
            raise RuntimeError(
                f"open_clip did not take the models {sorted(lost)} from {folder}, which something else emptied in the "
                "meantime; call diffclip_openclip.register() again"
            )


def _forget(folder: Path) -> None:
    """Take a folder that is to be deleted out of the list that open_clip reads again at each ``add_model_config``.

    Its name is free from then on: in a shared /tmp whoever makes it again would define models. open_clip has no
    function for it.
    """
    paths = getattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    paths[:] = [path for path in paths if path != folder]
