"""Load models that are to be measured or looked at: any of open_clip's, with the preprocessing that belongs to them."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import parse_model_name
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from diffclip_openclip.towers.configs import DiffCLIPTextConfig
from diffclip_openclip.weights.checkpoint import check_pickle
from diffclip_openclip.weights.directory import tokenizer_of
from diffclip_openclip.weights.foreign import check_runs_nothing, check_sizes, loading_errors
from diffclip_openclip.weights.runs import TrainingRun
from diffclip_openclip.weights.spec import ModelSpec, architecture_of_spec, config_of, parse_spec

_DROPOUT_ON_MAPS = re.compile(r"(?<=bias=True\)\n) *\(attn_drop\): Dropout\([^\n]*\n(?= *\((?:sub_norm|lambda_proj)\))")


@dataclass(frozen=True)
class LoadedModel:
    """Hold an open_clip model in evaluation mode, with what belongs to it."""

    spec: ModelSpec
    model: nn.Module
    tokenizer: Callable[..., torch.Tensor]
    preprocess: Callable[..., torch.Tensor]  # makes an image tensor of a PIL image, as open_clip does in evaluation
    preprocess_cfg: dict[str, Any]  # its settings: open_clip's PreprocessCfg as a dictionary
    architecture: str | None = None  # open_clip's name of it, if there is one

    @cached_property
    def sha256(self) -> str:
        """Hash what the outputs depend on, weights, architecture and preprocessing; in hexadecimal."""
        # differential layers had no module for dropout on their maps once, and cached features are still found
        architecture = _DROPOUT_ON_MAPS.sub("", repr((self.model, sorted(self.preprocess_cfg.items()))))
        digest = hashlib.sha256(architecture.encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_model(spec: str, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model with its weights.

    The preprocessing of a run of open_clip_train is read from the params.txt beside its checkpoints.

    Args:
        spec: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that open_clip builds.

    Raises:
        ValueError: a name or tag that open_clip does not know, no weights, weights of another model, or weights that
            are not finite.
        FileNotFoundError: a directory or checkpoint file that is not there.
        OSError: a directory without its weights.
    """
    parsed = parse_spec(spec)
    model_cfg = checked_config(parsed)
    given = TrainingRun.of_checkpoint(parsed.checkpoint).preprocess_cfg if parsed.checkpoint else None
    overrides = {f"image_{key}": value for key, value in (given or {}).items()}
    with loading_errors(spec):
        model, _, preprocess = open_clip.create_model_and_transforms(
            parsed.name, pretrained=parsed.pretrained or None, device=device, require_pretrained=True, **overrides
        )
    _check_finite(model, spec)
    with loading_errors(spec):
        tokenizer = tokenizer_of(parsed.name, model_cfg)
    settings = dict(open_clip.get_model_preprocess_cfg(model))
    architecture = architecture_of_spec(parsed)
    return LoadedModel(parsed, model.eval(), tokenizer, preprocess, settings, architecture)


def checked_config(spec: ModelSpec) -> dict[str, Any]:
    """Return open_clip's config of a model that is to be built, once nothing that it or its weights name would run.

    Raises:
        FileNotFoundError, ConnectionError: a repository that is not there.
        ValueError: a config that is refused; see :mod:`~diffclip_openclip.weights.foreign`.
        OSError: the text tower's config is not where the config says.
    """
    for path in _pickled(spec):
        try:
            check_pickle(path)
        except ValueError as error:
            raise ValueError(f"{spec} cannot be loaded: {error}") from error
    model_cfg = config_of(spec.name)
    assert model_cfg is not None
    foreign = parse_model_name(spec.name)[0] is not None
    if foreign and (text_tower := model_cfg["text_cfg"].get("hf_model_name")):
        config, where = PretrainedConfig.get_config_dict(text_tower)[0], f"{text_tower}/{CONFIG_NAME}"
        check_runs_nothing(config, where)
        ours = config.get("model_type") == DiffCLIPTextConfig.model_type
        # keys of others may mean something else, but for those of every config of transformers
        check_sizes(config if ours else {"num_labels": config.get("num_labels")}, where)
    return model_cfg


def _pickled(spec: ModelSpec) -> list[Path]:
    """Return the files from which open_clip may load the model's weights by ``torch.load``."""
    found = [spec.checkpoint] if spec.checkpoint is not None else []
    if spec.directory is not None:
        found = [path for path in spec.directory.iterdir() if path.suffix in (".bin", ".pth")]
    return [path for path in found if path.suffix not in (".safetensors", ".npz", ".npy")]


def _check_finite(model: nn.Module, spec: str) -> None:
    """Refuse NaN, whose embeddings would be scored like any others: the first class wins, and is right now and then."""
    bad = [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{spec} has {len(bad)} tensors with values that are NaN or infinite, the first is {bad[0]}")
