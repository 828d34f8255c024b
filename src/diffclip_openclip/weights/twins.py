"""Describe the twin of a CLIP: the same model with version 2 attention in chosen layers, and the same embeddings.

A plain attention layer, A v W, becomes (A1 - sigmoid(lambda) A2) v (2 W) with both queries the plain one's and the
projection of lambda zero, so that A1 = A2 = A and sigmoid(lambda) = 1/2. The gradients of the two queries have opposite
signs, so training parts them.

Sizes and options are read off the source's modules, which may be on the meta device. So there is no table of models,
and whatever the twin cannot have is refused by its name before weights are asked for.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer

from diffclip_openclip.models import TEXT_TOWER, TRUNK
from diffclip_openclip.weights.architecture import Architecture, architecture_of
from diffclip_openclip.weights.checkpoint import StateDict
from diffclip_openclip.weights.foreign import loading_errors
from diffclip_openclip.weights.layouts import from_openai
from diffclip_openclip.weights.twin_towers import (
    SUPPORTED,
    check_image_size,
    image_blocks,
    image_tower,
    one_size,
    text_blocks,
    text_tower,
)

# a twin's tower -> what stands before the index of its layers in the state dict
_BLOCKS = {"image": f"{TRUNK}blocks", "text": f"{TEXT_TOWER}layers"}


class Layers(NamedTuple):
    """Say which layers become differential, as ``--layers`` does."""

    towers: tuple[str, ...] = ("image", "text")
    first: int = 0  # of each of the towers; a negative one counts from the end

    @classmethod
    def parse(cls, text: str) -> "Layers":
        """Read "all", "image" or "text", "6:" for both towers from layer 6 on, or "image:6:" for one.

        Raises:
            ValueError: another text.
        """
        match = re.fullmatch(r"(all|image|text)?(?:(?:^|(?<=.):)(-?\d{1,3}):)?", text)
        if not text or match is None:
            raise ValueError(
                f"--layers is {text!r}; it must be all, image or text, or layers from one on, counted from 0: 6: for "
                "both towers, image:6: for one, --layers=-6: for the last six"
            )
        tower, first = match.groups()
        return cls(("image", "text") if tower in (None, "all") else (tower,), int(first or 0))

    def of(self, tower: str, depth: int) -> list[int]:
        """Return the indices of a tower's chosen layers."""
        return list(range(depth))[self.first :] if tower in self.towers else []


class Twin(NamedTuple):
    """Describe the twin of a CLIP."""

    architecture: Architecture
    # what stands before the index of a tower's layers in the twin's keys -> the layers that become differential, and
    # their number of heads
    layers: dict[str, tuple[list[int], int]]
    converted: tuple[str, ...]  # how keys of towers begin that are open_clip's own in the source and not in the twin

    def chosen_layers(self) -> str:
        """Return in words which layers of each tower become differential, counted from 0."""
        chosen = {tower: self.layers.get(blocks, ([], 0))[0] for tower, blocks in _BLOCKS.items()}
        return ", ".join(f"{tower} {f'{own[0]} to {own[-1]}' if own else 'none'}" for tower, own in chosen.items())

    def weights(self, state_dict: StateDict) -> StateDict:
        """Return the twin's weights from those of its source, a ``CustomTextCLIP``; most tensors share their memory."""
        theirs = {key: tensor for key, tensor in state_dict.items() if key.startswith(self.converted)}
        twin = {key: tensor for key, tensor in state_dict.items() if key not in theirs}
        twin |= from_openai(theirs, copy=False)
        patches = f"{TRUNK}patch_embed.proj"
        if "visual." in self.converted and f"{TRUNK}norm_pre.weight" not in twin:  # where timm's patches have a bias
            twin[f"{patches}.bias"] = torch.zeros_like(twin[f"{patches}.weight"][:, 0, 0, 0])
        if (self.architecture.tower_arguments or {}).get("fc_norm"):  # timm's name of a norm behind pooling
            for name in ("weight", "bias"):
                twin[f"{TRUNK}fc_norm.{name}"] = twin.pop(f"{TRUNK}norm.{name}")
        for blocks, (indices, num_heads) in self.layers.items():
            for prefix in (f"{blocks}.{i}.attn" for i in indices):
                for name in {"weight", "bias"} & {key.removeprefix(f"{prefix}.qkv.") for key in twin}:
                    twin[f"{prefix}.qkv.{name}"] = _with_each_query_twice(twin[f"{prefix}.qkv.{name}"], num_heads)
                proj = twin[f"{prefix}.proj.weight"]
                twin[f"{prefix}.proj.weight"] = 2 * proj
                twin[f"{prefix}.lambda_proj.weight"] = proj.new_zeros(num_heads, proj.shape[0])
        return twin


def _with_each_query_twice(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return V2's qkv, (4 C, ...), from a plain layer's, (3 C, ...): a head's two queries stand beside each other."""
    q, k, v = qkv.chunk(3)
    q = q.unflatten(0, (num_heads, 1, -1))
    return torch.cat([torch.cat([q, q], dim=1).flatten(0, 2), k, v])


def skeleton(model_cfg: dict[str, Any]) -> Any:
    """Return the ``CustomTextCLIP`` of an open_clip config on the meta device, with no weights and no download.

    Raises:
        ValueError: a model that has no twin whatever its layers, or a config that open_clip cannot build.
    """
    model_cfg = deepcopy(model_cfg)
    model_cfg.pop("custom_text", None)
    if "multimodal_cfg" in model_cfg:
        raise ValueError(f"it is a CoCa, whose decoder reads the image tower's tokens too; {SUPPORTED}")
    text_tower = model_cfg["text_cfg"].get("hf_model_name")
    if text_tower and not Path(text_tower).is_dir():
        raise ValueError(f"its text tower is transformers' {text_tower!r}; {SUPPORTED}")
    model_cfg["vision_cfg"]["timm_model_pretrained"] = False
    model_cfg["text_cfg"]["hf_model_pretrained"] = False
    with torch.device("meta"), loading_errors("its config"):
        return CustomTextCLIP(**model_cfg).eval()


def twin_of(
    model: Any,
    model_cfg: dict[str, Any],
    layers: Layers = Layers(),  # noqa: B008  it is immutable
    *,
    image_size: int | None = None,
    folder: Path | None = None,
) -> Twin:
    """Return the twin of a CLIP.

    Args:
        model: its ``CustomTextCLIP``, maybe on the meta device.
        model_cfg: open_clip's config of it.
        image_size: in pixels, if timm's image tower is to be resized.
        folder: of its towers' own config, as :func:`~diffclip_openclip.weights.architecture.architecture_of`.

    Raises:
        ValueError: no layer is chosen, or a tower of one cannot have version 2 attention; says why.
    """
    source = architecture_of(model_cfg, folder)
    model_cfg, text_config, tower_arguments = deepcopy(source.model_cfg), source.text_config, source.tower_arguments
    own_size = one_size(model_cfg["vision_cfg"].get("image_size", 224))
    size = model_cfg["vision_cfg"]["image_size"] = image_size or one_size(model.visual.image_size)
    check_image_size(model.visual, size)
    chosen: dict[str, tuple[list[int], int]] = {}
    converted = []
    if "image" in layers.towers:
        blocks = image_blocks(model.visual)
        if indices := layers.of("image", len(blocks)):
            chosen[_BLOCKS["image"]] = (indices, blocks[0].attn.num_heads)
            converted += ["visual."] * isinstance(model.visual, VisionTransformer)
            model_cfg["vision_cfg"], tower_arguments = image_tower(model.visual, model_cfg["vision_cfg"], indices)
    if "text" in layers.towers:
        blocks = text_blocks(model.text)
        if indices := layers.of("text", len(blocks)):
            chosen[_BLOCKS["text"]] = (indices, blocks[0].attn.num_heads)
            converted += ["text."]
            model_cfg["text_cfg"], text_config = text_tower(model.text, model_cfg, indices)
    if size != own_size and _BLOCKS["image"] not in chosen and isinstance(model.visual, TimmModel):
        raise ValueError(
            f"its image tower is timm's for {own_size} pixels; it keeps the size {size} only with layers of its own "
            "among those of --layers"
        )
    if not chosen:
        raise ValueError(f"there is no layer {layers.first} or behind it in the {' or '.join(layers.towers)} tower")
    model_cfg.pop("custom_text", None)
    if text_config is None:
        model_cfg["custom_text"] = True
    if text_config is not None and "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg.pop("quick_gelu", None)  # says something of open_clip's own towers alone
    return Twin(Architecture(model_cfg, text_config, tower_arguments), chosen, tuple(converted))
