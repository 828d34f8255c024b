"""Recognize the model that a state dict in open_clip's layout belongs to, as configs for open_clip and transformers."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from transformers import AutoModel
from transformers.utils import CONFIG_NAME

from diffclip_openclip.attention.v1 import DYNAMIC, LAMBDA_INIT
from diffclip_openclip.files import read_json
from diffclip_openclip.models import HALF_HEADS, KINDS, SIZES, TEXT_TOWER, TOWERS, TRUNK, TWIN, find_tower
from diffclip_openclip.registration import model_names
from diffclip_openclip.towers.configs import DiffCLIPTextConfig
from diffclip_openclip.weights.foreign import (
    check_runs_nothing,
    check_sizes,
    loading_errors,
    timm_place,
    twin_arguments,
)
from diffclip_openclip.weights.layouts import depth_of

_STANDARD_HEAD_DIM = 64  # of the plain text towers of OpenAI, open_clip and SLIP, at every width


@dataclass(frozen=True)
class Architecture:
    """Describe a model by what open_clip and transformers need to build it."""

    model_cfg: dict[str, Any]  # open_clip's, without the towers' places; the image tower has its name in timm
    text_config: dict[str, Any] | None  # the text tower's own config, if that tower is ours
    tower_arguments: dict[str, Any] | None = None  # the image tower's, if it is ``models.TWIN``

    @property
    def name(self) -> str | None:
        """Return the packaged model of this architecture, if there is one."""
        return next((name for name in model_names() if packaged_architecture(name) == self), None)

    @property
    def tower(self) -> str:
        """Return timm's name of the image tower, or the class of open_clip's own."""
        return self.model_cfg["vision_cfg"].get("timm_model_name") or "open_clip.transformer.VisionTransformer"

    @property
    def version(self) -> int:
        """Return the version of the differential attention, 0 for a plain image tower beside a text tower without 2."""
        if self.tower_arguments is not None or (self.text_config or {}).get("attention_version") == 2:
            return 2
        return KINDS[self.kind].version

    @property
    def variant(self) -> str | None:
        """Return what weights do not tell, one of ``models.VARIANTS``; None where there is nothing to tell."""
        return KINDS[self.kind].variant

    @property
    def kind(self) -> str:
        """Return the image tower's kind, a key of ``models.KINDS``."""
        return TOWERS[self.tower].kind if self.tower in TOWERS else "plain"


def architecture_of(model_cfg: dict[str, Any], folder: Path | None = None) -> Architecture:
    """Return the architecture of an open_clip config.

    Args:
        folder: where the towers' own config is, if not where ``model_cfg`` says.

    Raises:
        FileNotFoundError: no config of a tower there.
        ValueError: a text tower of another type than ours, or arguments that no image tower has.
    """
    model_cfg = deepcopy(model_cfg)
    tower_arguments = None
    if place := timm_place(model_cfg):
        path = Path(folder or place, CONFIG_NAME)
        tower_arguments = twin_arguments(_config_of_tower(path, "image"), path)
        model_cfg["vision_cfg"]["timm_model_name"] = TWIN
    place = model_cfg["text_cfg"].pop("hf_model_name", None)
    if place is None:
        return Architecture(model_cfg, None, tower_arguments)
    path = Path(folder or place, CONFIG_NAME)
    config = _config_of_tower(path, "text")
    kind = config.get("model_type") if isinstance(config, dict) else config
    if kind != DiffCLIPTextConfig.model_type:
        raise ValueError(
            f"the text tower of {path} is of type {kind!r}; only {DiffCLIPTextConfig.model_type!r} and open_clip's own "
            "are supported"
        )
    known = DiffCLIPTextConfig().to_dict().keys()
    with loading_errors(path):
        text_config = text_json(DiffCLIPTextConfig.from_dict({key: config[key] for key in config if key in known}))
    return Architecture(model_cfg, text_config, tower_arguments)


def _config_of_tower(path: Path, tower: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no config of the {tower} tower, {path}")
    config = read_json(path)
    check_runs_nothing(config, path)
    check_sizes(config, path)
    return config


def packaged_architecture(name: str) -> Architecture:
    """Return the architecture of one of this package's models, by its open_clip name."""
    return architecture_of(open_clip.get_model_config(name))


def recognize(state_dict: Mapping[str, torch.Tensor], variant: str | None = None) -> Architecture:
    """Return the architecture that ``state_dict`` belongs to, by its keys and shapes.

    It is in open_clip's layout, with an image tower of timm.

    Args:
        variant: what weights do not tell: "static" (the default) or "dynamic" lambda_init for differential attention,
            "gelu" or "quickgelu" for V2 in OpenAI's layout, "half-heads" for plain attention with half the usual heads.

    Raises:
        ValueError: no tower of that size exists, the variant is needed and missing, or no packaged model tells the
            number of heads.
    """
    image = recognize_image_tower(state_dict, variant, TRUNK)
    model_cfg: dict[str, Any] = {"embed_dim": _size(state_dict, "visual.head.proj.weight", 0)}
    if f"{TEXT_TOWER}layers.0.attn.proj.weight" in state_dict:
        text_config = _own_text(state_dict, variant)
        text_cfg = adapter_config(text_config)
    else:
        text_config = None
        text_cfg = _plain_text(state_dict, variant)
        model_cfg |= {"quick_gelu": True, "custom_text": True}
    return Architecture(model_cfg | {"vision_cfg": image, "text_cfg": text_cfg}, text_config)


def recognize_image_tower(state_dict: Mapping[str, torch.Tensor], variant: str | None, prefix: str) -> dict[str, Any]:
    """Return open_clip's ``vision_cfg`` for the timm tower whose keys start with ``prefix``.

    Raises:
        ValueError: as :func:`recognize`.
    """
    kind = _image_kind(state_dict, variant, prefix)
    embed_dim, _, patch_size, _ = _shape(state_dict, f"{prefix}patch_embed.proj.weight", 4)
    tower = find_tower(kind, patch_size, embed_dim, depth_of(state_dict, f"{prefix}blocks."))
    measures = SIZES[tower.size]
    expected = (measures.image_size // patch_size) ** 2 + 1  # patches and the class token
    if (num_tokens := _size(state_dict, f"{prefix}pos_embed", 1)) != expected:
        raise ValueError(
            f"the image tower has {num_tokens} position embeddings; open_clip builds {tower.name} for "
            f"{measures.image_size} pixels, {expected} of them"
        )
    lambda_q1 = state_dict.get(f"{prefix}blocks.0.attn.lambda_q1")
    if lambda_q1 is not None and embed_dim != measures.num_heads * len(lambda_q1):
        raise ValueError(
            f"the image tower has {embed_dim // len(lambda_q1)} heads; {tower.name} has {measures.num_heads}"
        )
    return {
        "image_size": measures.image_size,
        "timm_model_name": tower.name,
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "linear",
    }


def text_json(config: DiffCLIPTextConfig) -> dict[str, Any]:
    """Return what config.json holds: equal for equal models, whichever version of transformers wrote it."""
    config.architectures = ["DiffCLIPTextModel"]
    fields = config.to_diff_dict()
    for unstable in ("transformers_version", "transformers_weights", "dtype"):
        fields.pop(unstable, None)
    return fields


def adapter_config(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's ``text_cfg`` for a text tower of ours, without its place."""
    return {
        "context_length": text_config["max_position_embeddings"],
        "vocab_size": text_config["vocab_size"],
        "hf_pooler_type": "diffclip_text_pooler",
        "hf_proj_type": "linear",
    }


def text_config_for(tower: str, lambda_init: float | str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return ``text_cfg``, text config and embed_dim of the packaged DiffCLIP with an image tower of that size.

    Raises:
        ValueError: there is none.
    """
    for name in model_names():
        architecture = packaged_architecture(name)
        other = TOWERS.get(architecture.tower)
        if architecture.text_config and other and (other.kind, other.size) == ("diffclip", TOWERS[tower].size):
            text_config = architecture.text_config | {"lambda_init": lambda_init}
            return architecture.model_cfg["text_cfg"], text_config, architecture.model_cfg["embed_dim"]
    raise ValueError(f"no DiffCLIP is defined for the image tower {tower}, so there is no text tower to go with it")


def _image_kind(state_dict: Mapping[str, torch.Tensor], variant: str | None, prefix: str) -> str:
    if f"{prefix}blocks.0.attn.lambda_proj.weight" in state_dict:
        if f"{prefix}norm_pre.weight" not in state_dict:
            return "diffclip_v2"
        if variant not in ("gelu", "quickgelu"):
            raise ValueError("weights do not tell GELU from QuickGELU: add --variant gelu or --variant quickgelu")
        return "clip_diffclip_v2" if variant == "gelu" else "clip_quickgelu_diffclip_v2"
    if f"{prefix}blocks.0.attn.lambda_q1" in state_dict:
        return "diffclip_dynamic" if variant == "dynamic" else "diffclip"
    if f"{prefix}blocks.0.attn.gate.weight" in state_dict:
        return "gated"
    return "half_heads" if variant == HALF_HEADS else "plain"


def _own_text(state_dict: Mapping[str, torch.Tensor], variant: str | None) -> dict[str, Any]:
    first = f"{TEXT_TOWER}layers.0."
    hidden_size = _size(state_dict, f"{first}attn.proj.weight", 0)
    if f"{first}attn.lambda_proj.weight" in state_dict:
        kind: dict[str, Any] = {"attention_version": 2, "hidden_act": "gelu" if variant == "gelu" else "quick_gelu"}
        num_heads = _size(state_dict, f"{first}attn.lambda_proj.weight", 0)
    elif f"{first}attn.lambda_q1" not in state_dict:
        return _text_without_lambda(state_dict)
    else:
        kind = {"lambda_init": DYNAMIC if variant == "dynamic" else LAMBDA_INIT}
        num_heads = hidden_size // _size(state_dict, f"{first}attn.lambda_q1", 0)
    config = DiffCLIPTextConfig(
        vocab_size=_size(state_dict, f"{TEXT_TOWER}embeddings.token_embedding.weight", 0),
        hidden_size=hidden_size,
        intermediate_size=_size(state_dict, f"{first}mlp.c_fc.weight", 0),
        num_hidden_layers=depth_of(state_dict, f"{TEXT_TOWER}layers."),
        num_attention_heads=num_heads,
        max_position_embeddings=_size(state_dict, f"{TEXT_TOWER}embeddings.positional_embedding", 0),
        **kind,
    )
    return text_json(config)


def _text_without_lambda(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the config of the packaged model whose text tower of plain attention has these keys and shapes."""
    own = {key: tensor.shape for key, tensor in state_dict.items() if key.startswith(TEXT_TOWER)}
    for name in model_names():
        config = packaged_architecture(name).text_config
        if config and config.get("attention_version") == 0:
            with torch.device("meta"):
                tower = AutoModel.from_config(DiffCLIPTextConfig.from_dict(config))
            if {f"{TEXT_TOWER}{key}": tensor.shape for key, tensor in tower.state_dict().items()} == own:
                return config
    raise ValueError(
        "the text tower has plain attention, whose number of heads weights do not tell, and is of no packaged model's "
        "size; give a model directory, or NAME,FILE with the model's name"
    )


def _plain_text(state_dict: Mapping[str, torch.Tensor], variant: str | None) -> dict[str, Any]:
    vocab_size, width = _shape(state_dict, "text.token_embedding.weight", 2)
    text_cfg = {
        "context_length": _size(state_dict, "text.positional_embedding", 0),
        "vocab_size": vocab_size,
        "width": width,
        "layers": depth_of(state_dict, f"{TEXT_TOWER}resblocks."),
    }
    for name in model_names():  # a packaged tower of that size knows its number of heads
        architecture = packaged_architecture(name)
        packaged, is_half = architecture.model_cfg["text_cfg"], architecture.variant == HALF_HEADS
        if packaged.items() >= text_cfg.items() and "heads" in packaged and is_half == (variant == HALF_HEADS):
            return packaged
    heads = width // _STANDARD_HEAD_DIM
    return text_cfg | {"heads": heads // 2 if variant == HALF_HEADS else heads}


def _shape(state_dict: Mapping[str, torch.Tensor], key: str, num_dims: int) -> torch.Size:
    if key not in state_dict:
        raise ValueError(f"the state dict lacks {key}")
    if state_dict[key].dim() != num_dims:
        raise ValueError(f"{key} has shape {list(state_dict[key].shape)}, which needs {num_dims} dimensions")
    if 0 in state_dict[key].shape:
        raise ValueError(
            f"{key} has shape {list(state_dict[key].shape)}, which holds no values; copy the weights again"
        )
    return state_dict[key].shape


def _size(state_dict: Mapping[str, torch.Tensor], key: str, dim: int) -> int:
    num_dims = 3 if key.endswith("pos_embed") else 1 if key.endswith("lambda_q1") else 2
    return _shape(state_dict, key, num_dims)[dim]
