"""Describe the twin of a CLIP: the same model with version 2 attention in chosen layers, and the same embeddings.

A plain attention layer, A v W, becomes (A1 - sigmoid(lambda) A2) v (2 W) with both queries the plain one's and the
projection of lambda zero, so that A1 = A2 = A and sigmoid(lambda) = 1/2. The gradients of the two queries have opposite
signs, so training parts them.

Sizes and options are read off the source's modules, which may be on the meta device. So there is no table of models,
and whatever the twin cannot have is refused by its name before weights are asked for.
"""

import math
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import timm.layers
import torch
from open_clip import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from timm.layers import to_2tuple
from timm.models import VisionTransformer as TimmVisionTransformer
from timm.models.vision_transformer import Block
from torch import nn

from diffclip_openclip.models import KINDS, SIZES, TEXT_TOWER, TOWERS, TRUNK, TWIN, Tower
from diffclip_openclip.towers.blocks import PlainAttention
from diffclip_openclip.towers.configs import POOLINGS, DiffCLIPTextConfig
from diffclip_openclip.weights.architecture import Architecture, adapter_config, architecture_of, text_json
from diffclip_openclip.weights.checkpoint import StateDict
from diffclip_openclip.weights.foreign import loading_errors
from diffclip_openclip.weights.layouts import from_openai

_SUPPORTED = (
    "supported are open_clip's own ViTs and timm's VisionTransformer as image towers, and open_clip's own text "
    "transformer"
)
_LAST_TOKEN = 49407  # of OpenAI's vocabulary, the end of a text
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}  # timm's -> transformers'


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

    def weights(self, state_dict: StateDict) -> StateDict:
        """Return the twin's weights from those of its source, a ``CustomTextCLIP``; most tensors share their memory."""
        theirs = {key: tensor for key, tensor in state_dict.items() if key.startswith(self.converted or "!")}
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
        raise ValueError(f"it is a CoCa, whose decoder reads the image tower's tokens too; {_SUPPORTED}")
    text_tower = model_cfg["text_cfg"].get("hf_model_name")
    if text_tower and not Path(text_tower).is_dir():
        raise ValueError(f"its text tower is transformers' {text_tower!r}; {_SUPPORTED}")
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
    model_cfg["vision_cfg"]["image_size"] = image_size or _one(model.visual.image_size)
    chosen: dict[str, tuple[list[int], int]] = {}
    converted = []
    if "image" in layers.towers:
        blocks = _image_blocks(model.visual)
        if indices := layers.of("image", len(blocks)):
            chosen[f"{TRUNK}blocks"] = (indices, blocks[0].attn.num_heads)
            converted += ["visual."] * isinstance(model.visual, VisionTransformer)
            model_cfg["vision_cfg"], tower_arguments = _image_tower(model.visual, model_cfg["vision_cfg"], indices)
    if "text" in layers.towers:
        blocks = _text_blocks(model.text)
        if indices := layers.of("text", len(blocks)):
            chosen[f"{TEXT_TOWER}layers"] = (indices, blocks[0].attn.num_heads)
            converted += ["text."]
            model_cfg["text_cfg"], text_config = _text_tower(model.text, model_cfg, indices)
    if image_size and f"{TRUNK}blocks" not in chosen and isinstance(model.visual, TimmModel):
        raise ValueError("an image tower of timm changes its size only with layers of its own among those of --layers")
    if not chosen:
        raise ValueError(f"there is no layer {layers.first} or behind it in the {' or '.join(layers.towers)} tower")
    model_cfg.pop("custom_text", None)
    if text_config is None:
        model_cfg["custom_text"] = True
    if text_config is not None and "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg.pop("quick_gelu", None)  # says something of open_clip's own towers alone
    return Twin(Architecture(model_cfg, text_config, tower_arguments), chosen, tuple(converted))


def _refusal(tower: str, reason: str) -> ValueError:
    return ValueError(f"its {tower} tower {reason}; {_SUPPORTED}")


# image towers


def _image_blocks(visual: Any) -> list[Any]:
    """Return an image tower's blocks, each of which can have version 2 attention."""
    if isinstance(visual, VisionTransformer):
        return _native_blocks("image", visual.transformer)
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else visual
    if not isinstance(trunk, TimmVisionTransformer):
        rotary = getattr(trunk, "rope", None) is not None
        raise _refusal(
            "image",
            f"is {type(trunk).__module__.partition('.')[0]}'s {type(trunk).__name__}"
            + (", whose attention rotates queries and keys by their position (RoPE)" if rotary else ""),
        )
    for block in trunk.blocks:
        if not isinstance(block, Block) or type(block.attn) not in (timm.layers.Attention, PlainAttention):
            found = type(getattr(block, "attn", block)).__name__
            raise _refusal("image", f"has {found} in its blocks, where timm's Block with its Attention is needed")
        attention: Any = block.attn
        extras = [name for name in ("q_norm", "k_norm", "norm", "gate") if _does_something(attention, name)]
        if extras or attention.qkv.out_features != 3 * attention.qkv.in_features:
            what = f"has {', '.join(extras)} in its attention" if extras else "has heads of another total width"
            raise _refusal("image", f"{what}, which version 2 attention has not")
    return list(trunk.blocks)


def _does_something(module: nn.Module, name: str) -> bool:
    return not isinstance(getattr(module, name, None), nn.Identity | None)


def _image_tower(
    visual: Any, vision_cfg: dict[str, Any], layers: list[int]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the twin's ``vision_cfg`` and its tower's arguments; None for a tower that has a name."""
    if isinstance(visual, VisionTransformer):
        arguments = _native_arguments(visual)
        vision_cfg = {name: vision_cfg[name] for name in ("image_size", "patch_dropout") if vision_cfg.get(name)}
        vision_cfg |= {"timm_model_pretrained": False, "timm_pool": arguments["global_pool"], "timm_proj": "linear"}
        depth = arguments["depth"]
    else:
        arguments = {"base": vision_cfg["timm_model_name"], "img_size": vision_cfg["image_size"]}
        depth = len(visual.trunk.blocks)
    if len(layers) < depth:
        arguments["layers"] = layers
    named = next((tower.name for tower in TOWERS.values() if _arguments_of(tower) == arguments), None)
    return {**vision_cfg, "timm_model_name": named or TWIN}, None if named else arguments


def _arguments_of(tower: Tower) -> dict[str, Any] | None:
    """Return the arguments by which the twin's tower is one that has a name; None for towers of other attention."""
    measures = SIZES[tower.size]
    if tower.kind == "diffclip_v2":
        plain = next(other.name for other in TOWERS.values() if (other.kind, other.size) == ("plain", tower.size))
        return {"base": plain, "img_size": measures.image_size}
    if KINDS[tower.kind].version != 2:
        return None
    return {
        "img_size": measures.image_size,
        "patch_size": measures.patch_size,
        "embed_dim": measures.embed_dim,
        "depth": measures.depth,
        "num_heads": measures.num_heads,
        "mlp_ratio": 4.0,
        "pre_norm": True,
        "norm_eps": 1e-5,
        "act_layer": "quick_gelu" if KINDS[tower.kind].variant == "quickgelu" else "gelu",
        "global_pool": "token",
    }


def _native_arguments(visual: VisionTransformer) -> dict[str, Any]:
    """Read the arguments of a tower with the structure of open_clip's own."""
    if visual.attn_pool is not None or visual.output_tokens or visual.pool_type not in ("tok", "avg"):
        raise _refusal("image", "has attentional pooling or gives its tokens out")
    if not visual.positional_embedding.requires_grad:
        raise _refusal("image", "has a position embedding that is not learned")
    block, width = visual.transformer.resblocks[0], visual.conv1.out_channels
    arguments = {
        "img_size": _one(visual.image_size),
        "patch_size": _one(visual.patch_size),
        "embed_dim": width,
        "depth": len(visual.transformer.resblocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": _ratio(block.mlp.c_fc.out_features, width),
        "pre_norm": _does_something(visual, "ln_pre"),
        "norm_eps": _only({norm.eps for norm in visual.modules() if isinstance(norm, nn.LayerNorm)}, "image"),
        "act_layer": _activation(block, "image"),
        "global_pool": {"tok": "token", "avg": "avg"}[visual.pool_type],
    }
    if visual.pool_type == "avg":
        arguments["fc_norm"] = visual.final_ln_after_pool
    if _does_something(block, "ls_1"):
        arguments["init_values"] = 1.0  # any number: it is where training from scratch begins
    return arguments


def _one(size: Any) -> int | list[int]:
    """Return a square's size as one number."""
    height, width = to_2tuple(size)
    return height if height == width else [height, width]


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio that timm makes ``hidden`` of, whose way of rounding is down."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


def _only(values: set[Any], tower: str) -> Any:
    if len(values) != 1:
        raise _refusal(tower, f"has LayerNorms of several kinds of eps, {sorted(values)}")
    return values.pop()


# open_clip's own blocks, of both towers


def _native_blocks(tower: str, transformer: Any) -> list[Any]:
    for block in transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or type(block.attn) is not nn.MultiheadAttention:
            raise _refusal(
                tower, f"has open_clip's {type(block).__name__} as its blocks, which may do more than the usual"
            )
    return list(transformer.resblocks)


def _activation(block: Any, tower: str) -> str:
    """Return timm's name of an activation."""
    activation = block.mlp.gelu
    if isinstance(activation, QuickGELU):
        return "quick_gelu"
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    raise _refusal(tower, f"has the activation {type(activation).__name__}")


# text towers


def _text_blocks(text: Any) -> list[Any]:
    """Return a text tower's blocks, each of which can have version 2 attention."""
    if not isinstance(text, TextTransformer):
        inner = getattr(text, "transformer", text)
        raise _refusal("text", f"is a {type(inner).__name__}")
    if text.cls_emb is not None or text.output_tokens or text.use_pad_mask or text.pool_type not in POOLINGS:
        raise _refusal("text", "has a class embedding, hides padding, or gives its tokens out")
    blocks = _native_blocks("text", text.transformer)
    if any(_does_something(block, "ls_1") for block in blocks):
        raise _refusal("text", "has LayerScale")
    return blocks


def _text_tower(
    text: TextTransformer, model_cfg: dict[str, Any], layers: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the twin's ``text_cfg`` and its text tower's config."""
    block, projection, depth = text.transformer.resblocks[0], text.text_projection, len(text.transformer.resblocks)
    biased = isinstance(projection, nn.Linear)
    if projection is None and text.width != model_cfg["embed_dim"]:
        raise _refusal("text", f"gives {text.width} features, not embed_dim {model_cfg['embed_dim']}")
    # transformers warns of special tokens that a vocabulary has not, and only this pooling reads one
    special: dict[str, Any] = {} if text.vocab_size > _LAST_TOKEN else {"bos_token_id": None, "eos_token_id": None}
    special |= {"eos_token_id": text.eos_id} if text.pool_type == "eos" else {}
    config = DiffCLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=depth,
        num_attention_heads=text.heads,
        max_position_embeddings=text.num_pos,
        hidden_act=_ACTIVATIONS[_activation(block, "text")],
        layer_norm_eps=_only({norm.eps for norm in text.modules() if isinstance(norm, nn.LayerNorm)}, "text"),
        attention_version=2,
        differential_layers=layers if len(layers) < depth else None,
        causal=text.attn_mask is not None,
        pooling=text.pool_type,
        projection_dim=model_cfg["embed_dim"] if biased else None,
        **special,
    )
    tokenizer = {name: value for name, value in model_cfg["text_cfg"].items() if "tokenizer" in name}
    text_config = text_json(config)
    without = {"hf_proj_type": None} if biased or projection is None else {}
    return adapter_config(text_config) | without | tokenizer, text_config
