"""Models to be evaluated: any of open_clip's, with the preprocessing and the content hash that results depend on."""

import difflib
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import parse_model_name
from torch import nn

from diffclip_openclip.weights.source import preprocess_of_run


@dataclass(frozen=True)
class LoadedModel:
    """An open_clip model in evaluation mode, with what belongs to it.

    ``preprocess`` makes an image tensor of a PIL image, as open_clip does in evaluation; ``preprocess_cfg`` are its
    settings (open_clip's ``PreprocessCfg`` as a dictionary).
    """

    name: str
    pretrained: str
    model: nn.Module
    tokenizer: Callable[..., torch.Tensor]
    preprocess: Callable[..., torch.Tensor]
    preprocess_cfg: dict[str, Any]

    @property
    def label(self) -> str:
        """The name in tables: NAME, and the checkpoint's run and file where there is one."""
        path = Path(self.pretrained)
        if not path.is_file():
            return " ".join(filter(None, (self.name.rpartition("/")[2], self.pretrained)))
        run = path.absolute().parent.parent.name if path.absolute().parent.name == "checkpoints" else ""
        return " ".join(filter(None, (self.name, run if run != self.name else "", path.stem)))

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
        ValueError: a name or tag that open_clip does not know, no weights, or weights of another model.
        FileNotFoundError: a directory or checkpoint file that is not there.
    """
    name, _, pretrained = spec.partition(",")
    name = _checked_name(name)
    _check_pretrained(name, pretrained)
    given = preprocess_of_run(Path(pretrained)) if Path(pretrained).is_file() else None
    overrides = {f"image_{key}": value for key, value in (given or {}).items()}
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained or None, device=device, **overrides
        )
    except (RuntimeError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{spec} cannot be loaded; are these weights that model's? {error}") from error
    tokenizer = open_clip.get_tokenizer(name)
    settings = dict(open_clip.get_model_preprocess_cfg(model))
    return LoadedModel(name, pretrained, model.eval(), tokenizer, preprocess, settings)


def _checked_name(name: str) -> str:
    schema, place = parse_model_name(name)
    if schema == "local-dir":
        if not Path(place).is_dir():
            raise FileNotFoundError(f"there is no directory {place}, which {name} names")
        return name
    if schema is not None:
        return name
    known = open_clip.list_models()
    if (name := name.replace("/", "-")) not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"open_clip knows no model {name!r}{hint}; open_clip.list_models() lists all")
    return name


def _check_pretrained(name: str, pretrained: str) -> None:
    schema, _ = parse_model_name(name)
    if schema is not None:
        if pretrained:
            raise ValueError(f"{name} brings its own weights; leave out {pretrained!r}")
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = f"its tags: {', '.join(tags)}" if tags else "it has no pretrained tags"
    if not pretrained:
        raise ValueError(f"{name} names no weights; give {name},CHECKPOINT or a tag of open_clip ({known})")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise FileNotFoundError(f"{pretrained!r} is neither a file nor a pretrained tag of {name} ({known})")
