"""Read a tower of a CLIP off its modules, as the config of the same tower with version 2 attention.

Whatever version 2 attention or the twin's towers cannot have is refused by its name.
"""

import math
from typing import Any

import timm.layers
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from timm.layers import to_2tuple
from timm.models import VisionTransformer as TimmVisionTransformer
from timm.models.vision_transformer import Block
from torch import nn

from diffclip_openclip.models import KINDS, SIZES, TOWERS, TWIN, Tower
from diffclip_openclip.towers.blocks import PlainAttention
from diffclip_openclip.towers.configs import POOLINGS, DiffCLIPTextConfig
from diffclip_openclip.weights.architecture import adapter_config, text_json

SUPPORTED = (
    "supported are open_clip's own ViTs and timm's VisionTransformer as image towers, and open_clip's own text "
    "transformer"
)
_LAST_TOKEN = 49407  # of OpenAI's vocabulary, the end of a text
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}  # timm's -> transformers'


def _refusal(tower: str, reason: str) -> ValueError:
    return ValueError(f"its {tower} tower {reason}; {SUPPORTED}")


# image towers


def image_blocks(visual: Any) -> list[Any]:
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


def image_tower(
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
        "img_size": one_size(visual.image_size),
        "patch_size": one_size(visual.patch_size),
        "embed_dim": width,
        "depth": len(visual.transformer.resblocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": _ratio(block.mlp.c_fc.out_features, width),
        "pre_norm": _does_something(visual, "ln_pre"),
        "norm_eps": _norm_eps(visual, "image"),
        "act_layer": _activation(block, "image"),
        "global_pool": {"tok": "token", "avg": "avg"}[visual.pool_type],
    }
    if visual.pool_type == "avg":
        arguments["fc_norm"] = visual.final_ln_after_pool
    if _does_something(block, "ls_1"):
        arguments["init_values"] = 1.0  # any number: it is where training from scratch begins
    return arguments


def check_image_size(visual: Any, size: Any) -> None:
    """Refuse images, of ``size`` pixels, that are smaller than a patch of the tower, if it has patches."""
    patches = getattr(visual.trunk, "patch_embed", None) if isinstance(visual, TimmModel) else visual
    patch = one_size(getattr(patches, "patch_size", 1))
    if any(pixels < least for pixels, least in zip(to_2tuple(size), to_2tuple(patch), strict=True)):
        raise ValueError(f"its image tower has patches of {patch} pixels; {size} is less than one")


def one_size(size: Any) -> int | list[int]:
    """Return a square's size as one number."""
    height, width = to_2tuple(size)
    return height if height == width else [height, width]


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio that timm makes ``hidden`` of, whose way of rounding is down."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


def _norm_eps(module: nn.Module, tower: str) -> float:
    """Return the one eps of a tower's norms, each of which has weight and bias."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.LayerNorm)]
    if any(norm.weight is None or norm.bias is None for norm in norms):
        raise _refusal(tower, "has LayerNorms without weight or bias")
    eps, *others = sorted({norm.eps for norm in norms})
    if others:
        raise _refusal(tower, f"has LayerNorms of several kinds of eps, {[eps, *others]}")
    return eps


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


def text_blocks(text: Any) -> list[Any]:
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


def text_tower(
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
        layer_norm_eps=_norm_eps(text, "text"),
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
