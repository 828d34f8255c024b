"""Check configs that others wrote, before a host builds anything of them.

open_clip passes ``tokenizer_kwargs`` of a model directory on to ``AutoTokenizer``, and its text tower's config to
``AutoConfig`` and ``AutoModel``. transformers then imports Python files that lie beside a config, or kernels from the
hub, where the config says so. So what a config may hold is listed here, and what would have code run is refused by
name, wherever in a file it stands.
"""

import math
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

from diffclip_openclip.models import TWIN
from diffclip_openclip.towers.timm_twin import check_arguments, check_pretrained_cfg

_SECTIONS = {"text_cfg": CLIPTextCfg, "vision_cfg": CLIPVisionCfg}
# of open_clip's main branch: passed on to timm, which takes paths of weights among its arguments
_PASSED_TO_TIMM = {"timm_model_kwargs"}
# of the arguments of open_clip's tokenizers, those that are not passed on to transformers
_TOKENIZER_KWARGS = {
    *("add_bos", "add_eos", "clean", "language", "reduction_mask", "strip_sep_token"),
}
# keys by which transformers is told to import what lies beside a config or in another repository
_RUNS_CODE = {"auto_map", "code_revision", "custom_generate", "custom_pipelines", "trust_remote_code"}
# keys that choose how transformers computes; a name with a slash is a kernel on the hub, which is code
_IMPLEMENTATIONS = {
    prefix + name + suffix
    for name in ("attn_implementation", "experts_implementation")
    for prefix in ("", "_")
    for suffix in ("", "_internal")
}
_OWN_IMPLEMENTATIONS = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
_OWN_IMPLEMENTATIONS |= {"grouped_mm", "batched_mm"}
# far above every model that there is, and low enough to be refused before memory for it is asked for
_LARGEST = {
    **dict.fromkeys(("layers", "num_hidden_layers"), 1000),
    "image_size": 1 << 13,
    **dict.fromkeys(
        ("embed_dim", "width", "hidden_size", "projection_dim", "heads", "num_attention_heads", "n_queries"), 1 << 16
    ),
    **dict.fromkeys(("intermediate_size", "context_length", "max_position_embeddings"), 1 << 20),
    "vocab_size": 1 << 23,
    "num_labels": 1 << 16,  # transformers makes a name for each, whatever the model
}
# what the hosts answer to configs and weights that they cannot work with
HOST_ERRORS = (
    *(RuntimeError, LookupError, EOFError, pickle.UnpicklingError),
    *(TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError),
)
_CHOICES = {
    "interpolation": ("bicubic", "bilinear", "random"),
    "resize_mode": ("shortest", "longest", "squash"),
    "mode": ("RGB",),
}


def check_runs_nothing(config: Any, path: object) -> None:
    """Refuse a config of any library that would have transformers run code which it does not bring itself.

    Args:
        path: where it is from, for the message.

    Raises:
        ValueError: it names such code.
    """
    for key, value in _items(config):
        if key in _RUNS_CODE:
            raise ValueError(
                f"{path} has {key!r}, by which transformers runs code that comes with a model; nothing of it was "
                "loaded or run. This package loads no model that needs it; leave the key out if this one does not"
            )
        if key in _IMPLEMENTATIONS:
            for name in value.values() if isinstance(value, dict) else [value]:
                if not isinstance(name, str | None) or name not in _OWN_IMPLEMENTATIONS:
                    raise ValueError(
                        f"{path} has {key!r}: {name!r}, a kernel that would be fetched and run; nothing was loaded. "
                        f"It may be {', '.join(sorted(filter(None, _OWN_IMPLEMENTATIONS)))}, or left out"
                    )


def check_sizes(config: Any, path: object) -> None:
    """Refuse sizes that no model has, for which a host would ask for all memory or work for hours.

    Args:
        path: where the config is from, for the message.

    Raises:
        ValueError: one is no whole number, or too large.
    """
    for key, value in _items(config):
        for size in value if isinstance(value, list | tuple) else [value]:
            if key in _LARGEST and size is not None and (type(size) is not int or not 0 <= size <= _LARGEST[key]):
                raise ValueError(f"{path} has {key} {value!r:.60}; no model has more than {_LARGEST[key]}")


@contextmanager
def loading_errors(spec: object) -> Iterator[None]:
    """Make one error of the hosts' many, for weights or configs that open_clip cannot make a model of.

    Raises:
        ValueError: in place of any of theirs.
    """
    try:
        yield
    except HOST_ERRORS as error:
        # torch has a line for each tensor, and a long one for all keys that are missing
        first, *rest = [f"{line.strip():.300}" for line in str(error).splitlines() if line.strip()] or [""]
        told = " ".join([first, *rest[:1]]) + (f" and {len(rest) - 1} more such lines" if len(rest) > 1 else "")
        raise ValueError(f"{spec} cannot be loaded; are these weights that model's? {told}") from error


def _items(config: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all keys at any depth with their values."""
    left = [config]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            left += inner.values()
        elif isinstance(inner, list):
            left += inner


def check_open_clip_config(config: Any, path: object, *, beside: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of an ``open_clip_config.json``'s content.

    Args:
        path: where it is from, for the message.
        beside: the content of the config.json beside it, which may hold the image tower's arguments.

    Raises:
        ValueError: it is not open_clip's, would have code run, or has a key or a value that open_clip does not know.
    """
    check_runs_nothing(config, path)
    check_sizes(config, path)
    try:
        model_cfg, preprocess_cfg = config["model_cfg"], config["preprocess_cfg"]
        model_cfg["text_cfg"].keys(), model_cfg["vision_cfg"].keys(), preprocess_cfg["mean"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not open_clip's: {type(error).__name__} {error}") from error
    for section, known in _SECTIONS.items():
        allowed = {field.name for field in fields(known)} - _PASSED_TO_TIMM
        if section == "text_cfg":
            kwargs = model_cfg[section].get("tokenizer_kwargs") or {}
            _check_keys(kwargs, _TOKENIZER_KWARGS, f"{path}: tokenizer_kwargs")
            allowed.add("tokenizer_kwargs")
        _check_keys(model_cfg[section], allowed, f"{path}: {section}")
    _check_names(model_cfg, path, beside)
    check_preprocess_cfg(preprocess_cfg, path)
    return model_cfg, preprocess_cfg


def _check_keys(config: Any, allowed: set[str], what: str) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"{what} is {config!r}; it must be an object")
    if unknown := sorted(config.keys() - allowed):
        raise ValueError(f"{what} has {', '.join(unknown)}, which nobody knows; known are {', '.join(sorted(allowed))}")


def timm_place(model_cfg: Mapping[str, Any]) -> str | None:
    """Return the folder or repository from whose config.json timm is to read the image tower; None for a name."""
    match = re.fullmatch(r"(?:local-dir|hf-hub):(.+)", str(model_cfg["vision_cfg"].get("timm_model_name")), re.DOTALL)
    return match[1] if match else None


def named_timm_place(place: str) -> str:
    """Return the inverse of :func:`timm_place`; a folder is named by its absolute path."""
    return f"{'local-dir' if Path(place).is_absolute() else 'hf-hub'}:{place}"


def twin_arguments(config: Any, path: object) -> dict[str, Any]:
    """Return the image tower's arguments that a config.json has for timm.

    Args:
        path: where the config is from, for the message.

    Raises:
        ValueError: it has another model for timm than ours, or arguments that ours does not take.
    """
    if not isinstance(config, dict) or config.get("architecture") != TWIN:
        found = config.get("architecture") if isinstance(config, dict) else None
        raise ValueError(
            f"{path} goes by a config.json whose architecture is {found!r:.60}; of timm's models only {TWIN!r} is read "
            "from a file, timm.list_models() lists those that have a name"
        )
    arguments = check_arguments(config.get("model_args"), path)
    check_pretrained_cfg(config, path)
    return arguments


def _check_names(model_cfg: Mapping[str, Any], path: object, beside: Any) -> None:
    """Check what leads the hosts to other places: timm's model, and the text tower's config and tokenizer."""
    tower = model_cfg["vision_cfg"].get("timm_model_name")
    # timm reads others from the hub or from a folder, with arguments from there: its own folder's were checked
    if isinstance(tower, str) and timm_place(model_cfg) and beside is not None:
        twin_arguments(beside, f"{path}: timm_model_name {tower!r}")
    elif tower is not None and not (isinstance(tower, str) and timm.is_model(tower)):
        raise ValueError(f"{path} has timm_model_name {tower!r}; timm.list_models() lists those that are known")
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if not isinstance(name := model_cfg["text_cfg"].get(key), str | None):
            raise ValueError(f"{path} has {key} {name!r}; it must be the name of a repository or a folder")


def check_preprocess_cfg(config: Any, path: object) -> None:
    """Refuse settings of images that open_clip would take and that no model was trained with.

    Args:
        path: where they are from, for the message.

    Raises:
        ValueError: mean or std are not three finite numbers, or another setting has a value that open_clip has not.
    """
    for key, value in config.items():
        if value is None or key not in {field.name for field in fields(PreprocessCfg)}:
            continue  # which open_clip passes over
        if key in ("mean", "std"):
            values = value if isinstance(value, list | tuple) else [value] * 3
            fits = len(values) == 3 and all(_is_number(v) and (key == "mean" or v > 0) for v in values)
            allowed = "three finite numbers" + (" above 0" if key == "std" else "")
        elif key == "size":
            values = value if isinstance(value, list | tuple) else [value] * 2
            fits = len(values) in (1, 2) and all(type(v) is int and 0 < v < 1 << 16 for v in values)
            allowed = "one or two whole numbers above 0"
        elif key == "fill_color":
            fits, allowed = _is_number(value) and 0 <= value <= 255, "a number from 0 to 255"
        else:
            fits, allowed = value in _CHOICES[key], " or ".join(_CHOICES[key])
        if not fits:
            raise ValueError(f"{path} prepares images with {key} {value!r}; it must be {allowed}")


def _is_number(value: Any) -> bool:
    # a float32 must hold it, in which images are normalised
    return type(value) in (int, float) and abs(value) < 3e38 and math.isfinite(value)
