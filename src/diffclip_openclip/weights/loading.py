"""Models to be measured or looked at: any of open_clip's, with the preprocessing that belongs to them."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import open_clip
import torch
from torch import nn

from diffclip_openclip.weights.source import preprocess_of_run
from diffclip_openclip.weights.spec import ModelSpec, architecture_of_spec, parse_spec


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model in evaluation mode, with what belongs to it.

    ``preprocess`` makes an image tensor of a PIL image, as open_clip does in evaluation; ``preprocess_cfg`` are its
    settings (open_clip's ``PreprocessCfg`` as a dictionary). ``architecture`` is open_clip's name of it, if there is
    one.
    """

    name: str
    pretrained: str
    model: nn.Module
    tokenizer: Callable[..., torch.Tensor]
    preprocess: Callable[..., torch.Tensor]
    preprocess_cfg: dict[str, Any]
    architecture: str | None = None

    @property
    def label(self) -> str:
        """The name in tables."""
        return ModelSpec(self.name, self.pretrained).label

    @cached_property
    def sha256(self) -> str:
        """Of what the outputs depend on: weights, architecture and preprocessing, in hexadecimal."""
        digest = hashlib.sha256(repr((self.model, sorted(self.preprocess_cfg.items()))).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_model(spec: str, device: str | torch.device = "cpu") -> LoadedModel:
    """Load ``NAME[,PRETRAINED]``.

    NAME is open_clip's (``DiffCLIP-B-16``, ``local-dir:OUT``, ``hf-hub:owner/repo``), PRETRAINED one of its tags or a
    checkpoint file. The preprocessing of a run of open_clip_train is read from the params.txt beside its checkpoints.

    Raises:
        ValueError: a name or tag that open_clip does not know, no weights, weights of another model, or weights that
            are not finite.
        FileNotFoundError: a directory or checkpoint file that is not there.
    """
    parsed = parse_spec(spec)
    given = preprocess_of_run(parsed.checkpoint) if parsed.checkpoint else None
    overrides = {f"image_{key}": value for key, value in (given or {}).items()}
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            parsed.name, pretrained=parsed.pretrained or None, device=device, require_pretrained=True, **overrides
        )
    except (RuntimeError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{spec} cannot be loaded; are these weights that model's? {error}") from error
    _check_finite(model, spec)
    tokenizer = open_clip.get_tokenizer(parsed.name)
    settings = dict(open_clip.get_model_preprocess_cfg(model))
    architecture = architecture_of_spec(parsed)
    return LoadedModel(parsed.name, parsed.pretrained, model.eval(), tokenizer, preprocess, settings, architecture)


def _check_finite(model: nn.Module, spec: str) -> None:
    """NaN embeddings would be scored like any others: the first class wins, and is right as often as it occurs."""
    bad = [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{spec} has {len(bad)} tensors with values that are NaN or infinite, the first is {bad[0]}")
