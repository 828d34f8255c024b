"""Image towers: timm's ViT with differential attention, registered with timm under their own names.

The towers are stock ``timm.models.VisionTransformer`` objects built through its ``block_fn`` and ``attn_layer``
arguments, so everything that timm does with a ViT works on them. All have a class token and a learned position
embedding. DiffCLIP's follow the authors' image tower (paper, section 4.1): no pre-norm, LayerNorm eps 1e-5, GELU. Those
with version 2 attention are in everything else timm's ViT (``vit_*``: no pre-norm, eps 1e-6) or timm's OpenAI tower
(``vit_*_clip_*``: pre-norm, eps 1e-5), so that they can start from a plain tower's weights.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple, cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers import LayerNorm, use_fused_attn
from timm.models import (
    PretrainedCfg,
    VisionTransformer,
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models.vision_transformer import Block, checkpoint_filter_fn
from torch import nn

from diffclip_openclip.attention.v1 import DYNAMIC, LAMBDA_INIT, DifferentialAttention, resolve_lambda_init
from diffclip_openclip.attention.v2 import DifferentialAttentionV2

__all__: list[str] = []  # timm's register_model appends the towers' names

# name part -> (patch_size, image size, embed_dim, depth, num_heads); S to H are timm's own sizes
_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "nano_patch12": (12, 48, 128, 4, 4),
    "small_patch16": (16, 224, 384, 12, 6),
    "base_patch16": (16, 224, 768, 12, 12),
    "base_patch32": (32, 224, 768, 12, 12),
    "large_patch16": (16, 224, 1024, 24, 16),
    "large_patch14": (14, 224, 1024, 24, 16),
    "huge_patch14": (14, 224, 1280, 32, 16),
}


class _TimmArguments(nn.Module):
    """Takes the constructor arguments that timm's blocks pass, before an attention class of this package."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_norm: bool = False,
        scale_norm: bool = False,
        norm_layer: Any = None,
        **kwargs: Any,
    ) -> None:
        if qk_norm or scale_norm:
            raise ValueError(
                f"qk_norm is {qk_norm} and scale_attn_norm {scale_norm}; "
                "differential attention has neither, both must be False"
            )
        super().__init__(dim, num_heads, **kwargs)
        self.fused_attn = bool(use_fused_attn())


class TimmDifferentialAttention(_TimmArguments, DifferentialAttention):
    """:class:`DifferentialAttention` behind the constructor arguments that timm's blocks pass."""


class TimmDifferentialAttentionV2(_TimmArguments, DifferentialAttentionV2):
    """:class:`DifferentialAttentionV2` behind the constructor arguments that timm's blocks pass."""


class DifferentialBlock(Block):
    """timm's pre-norm block; its index decides lambda_init."""

    def __init__(self, *, lambda_init: float | str, depth: int = 0, **kwargs: Any) -> None:
        super().__init__(depth=depth, **kwargs)
        cast(DifferentialAttention, self.attn).lambda_init = resolve_lambda_init(lambda_init, depth)


class _Kind(NamedTuple):
    """Towers of one architecture: arguments of timm's ViT except sizes, entries of its cfg, and the sizes it is in."""

    arguments: dict[str, Any]
    preprocessing: dict[str, Any]
    sizes: Collection[str] = tuple(_SIZES)


def _diffclip(lambda_init: float | str) -> dict[str, Any]:
    return {
        "attn_layer": TimmDifferentialAttention,
        "block_fn": partial(DifferentialBlock, lambda_init=lambda_init),
        "norm_layer": partial(LayerNorm, eps=1e-5),
        # the authors put blocks with PyTorch's own initialisation into an initialised timm ViT
        "weight_init": "reset",
    }


# the paper's: SLIP's evaluation transform
_SLIP = {"interpolation": "bilinear", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
_OPENAI = {"interpolation": "bicubic", "mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
_OPENAI_SIZES = ("base_patch32", "base_patch16", "large_patch14")
_V2 = {"attn_layer": TimmDifferentialAttentionV2}
_CLIP_V2 = _V2 | {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)}
_KINDS = {
    "diffclip": _Kind(_diffclip(LAMBDA_INIT), _SLIP),
    "diffclip_dynamic": _Kind(_diffclip(DYNAMIC), _SLIP),
    "diffclip_v2": _Kind(_V2, _SLIP),
    "clip_diffclip_v2": _Kind(_CLIP_V2, _OPENAI, _OPENAI_SIZES),
    "clip_quickgelu_diffclip_v2": _Kind(_CLIP_V2 | {"act_layer": "quick_gelu"}, _OPENAI, _OPENAI_SIZES),
    # timm has a plain ViT of every size but the quick start's
    "plain": _Kind({}, _SLIP, ("nano_patch12",)),
}


class Tower(NamedTuple):
    """A registered image tower: timm's name, the image size in pixels that it is built for, its number of heads."""

    name: str
    image_size: int
    num_heads: int


def find_tower(kind: str, patch_size: int, embed_dim: int, depth: int) -> Tower:
    """The tower with these measures; ``kind`` is "diffclip", "diffclip_v2" and so on, or "plain" for a ViT.

    Raises:
        ValueError: none has them; lists those that exist.
    """
    sizes = _KINDS[kind].sizes if kind != "plain" else tuple(_SIZES)
    for size in sizes:
        patch, image_size, width, blocks, num_heads = _SIZES[size]
        if (patch, width, blocks) == (patch_size, embed_dim, depth):
            own = kind != "plain" or size in _KINDS["plain"].sizes
            return Tower(_tower_name(size, kind) if own else f"vit_{size}_{image_size}", image_size, num_heads)
    raise ValueError(
        f"no {kind} image tower has patches of {patch_size}, embed_dim {embed_dim} and {depth} blocks; there are: "
        + ", ".join(f"{size} ({_SIZES[size][2]}, {_SIZES[size][3]} blocks)" for size in sizes)
    )


def _tower_name(size: str, kind: str) -> str:
    return f"vit_{size}_{kind}_{_SIZES[size][1]}"


def _default_cfg(size: str, kind: str) -> dict[str, Any] | PretrainedCfg:
    return {
        "input_size": (3, _SIZES[size][1], _SIZES[size][1]),
        "num_classes": 0,
        "pool_size": None,
        "crop_pct": 1.0,
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
        **_KINDS[kind].preprocessing,
    }


def _create(name: str, size: str, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    patch_size, img_size, embed_dim, depth, num_heads = _SIZES[size]
    sizes = {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "num_classes": 0,
    }
    return build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **(sizes | kwargs),
    )


def _register_tower(size: str, kind: str) -> None:
    """Register one tower with timm; the caller of ``timm.create_model`` may override any of its arguments."""
    name = _tower_name(size, kind)
    if is_model(name) and model_entrypoint(name).__module__ != __name__:
        raise ValueError(
            f"timm already has another model named {name!r}, from {model_entrypoint(name).__module__}; "
            "uninstall or rename that one to use diffclip_openclip"
        )

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        return _create(name, size, pretrained, **(_KINDS[kind].arguments | kwargs))

    entrypoint.__name__ = entrypoint.__qualname__ = name
    globals()[name] = register_model(entrypoint)


_TOWERS = [(size, name) for name, kind in _KINDS.items() for size in kind.sizes]
default_cfgs = generate_default_cfgs({_tower_name(*tower): _default_cfg(*tower) for tower in _TOWERS})
for _size, _kind in _TOWERS:
    _register_tower(_size, _kind)
