"""Register the image towers with timm: its ViT with differential attention, under names of their own.

The towers are stock ``timm.models.VisionTransformer`` objects built through its ``block_fn`` and ``attn_layer``
arguments, so everything that timm does with a ViT works on them. All have a class token and a learned position
embedding. DiffCLIP's follow the authors' image tower (paper, section 4.1): no pre-norm, LayerNorm eps 1e-5, GELU. Those
with version 2 attention are in everything else timm's ViT (``vit_*``: no pre-norm, eps 1e-6) or timm's OpenAI tower
(``vit_*_clip_*``: pre-norm, eps 1e-5), so that they can start from a plain tower's weights. Two plain towers are
controls in comparisons: ``gated`` has timm's sigmoid gate on the attention's output (arXiv 2505.06708), ``half_heads``
as many heads as DiffCLIP's has pairs.
"""

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
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from diffclip_openclip.attention.v1 import DYNAMIC, LAMBDA_INIT, DifferentialAttention, resolve_lambda_init
from diffclip_openclip.attention.v2 import DifferentialAttentionV2
from diffclip_openclip.models import KINDS, SIZES, TOWERS, Tower
from diffclip_openclip.towers.blocks import GatedAttention, OpenClipBlock, PlainAttention

__all__: list[str] = []  # timm's register_model appends the towers' names


class _TimmArguments(nn.Module):
    """Take the constructor arguments that timm's blocks pass, before an attention class of this package."""

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
    """Compute :class:`DifferentialAttention`, behind the constructor arguments that timm's blocks pass."""


class TimmDifferentialAttentionV2(_TimmArguments, DifferentialAttentionV2):
    """Compute :class:`DifferentialAttentionV2`, behind the constructor arguments that timm's blocks pass."""


class Block(TimmBlock, OpenClipBlock):
    """Compute timm's pre-norm block; its name is in the hash under which features of models are kept."""


class DifferentialBlock(Block):
    """Compute timm's pre-norm block, whose index decides lambda_init."""

    def __init__(self, *, lambda_init: float | str, depth: int = 0, **kwargs: Any) -> None:
        super().__init__(depth=depth, **kwargs)
        cast(DifferentialAttention, self.attn).lambda_init = resolve_lambda_init(lambda_init, depth)


class _Build(NamedTuple):
    """Describe how timm builds the towers of a kind."""

    arguments: dict[str, Any]  # of timm's ViT, except sizes
    preprocessing: dict[str, Any]  # entries of its cfg


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
_V2 = {"attn_layer": TimmDifferentialAttentionV2, "block_fn": Block}
_CLIP_V2 = _V2 | {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)}
_BUILDS = {
    "diffclip": _Build(_diffclip(LAMBDA_INIT), _SLIP),
    "diffclip_dynamic": _Build(_diffclip(DYNAMIC), _SLIP),
    "diffclip_v2": _Build(_V2, _SLIP),
    "clip_diffclip_v2": _Build(_CLIP_V2, _OPENAI),
    "clip_quickgelu_diffclip_v2": _Build(_CLIP_V2 | {"act_layer": "quick_gelu"}, _OPENAI),
    # the gate's C x C weights are taken from the MLP, whose two layers have 4 C x C each
    "gated": _Build({"attn_layer": GatedAttention, "block_fn": Block, "mlp_ratio": 3.5}, _SLIP),
    "half_heads": _Build({"attn_layer": PlainAttention, "block_fn": Block}, _SLIP),
    "plain": _Build({}, _SLIP),
}


# What timm is told of any of our towers.
DEFAULT_CFG = {
    "num_classes": 0,
    "pool_size": None,
    "crop_pct": 1.0,
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


def _default_cfg(tower: Tower) -> dict[str, Any] | PretrainedCfg:
    image_size = SIZES[tower.size].image_size
    own = {"input_size": (3, image_size, image_size), "license": "mit"}
    return DEFAULT_CFG | own | _BUILDS[tower.kind].preprocessing


def build_vit(name: str, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    """Build timm's ViT with its arguments, as timm's own functions do for theirs."""
    return build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


def _create(tower: Tower, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    measures = SIZES[tower.size]
    sizes = {
        "img_size": measures.image_size,
        "patch_size": measures.patch_size,
        "embed_dim": measures.embed_dim,
        "depth": measures.depth,
        "num_heads": measures.num_heads // KINDS[tower.kind].heads_divisor,
        "num_classes": 0,
    }
    return build_vit(tower.name, pretrained, **(sizes | kwargs))


def check_name_is_free(name: str, module: str) -> None:
    """Check that timm has no model of that name from elsewhere than ``module``.

    Raises:
        ValueError: it has.
    """
    if is_model(name) and model_entrypoint(name).__module__ != module:
        raise ValueError(
            f"timm already has another model named {name!r}, from {model_entrypoint(name).__module__}; "
            "uninstall or rename that one to use diffclip_openclip"
        )


def _register_tower(tower: Tower) -> None:
    """Register one tower with timm; the caller of ``timm.create_model`` may override any of its arguments."""
    name = tower.name
    check_name_is_free(name, __name__)

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        return _create(tower, pretrained, **(_BUILDS[tower.kind].arguments | kwargs))

    entrypoint.__name__ = entrypoint.__qualname__ = name
    globals()[name] = register_model(entrypoint)


_OURS = [tower for tower in TOWERS.values() if tower.is_ours]
default_cfgs = generate_default_cfgs({tower.name: _default_cfg(tower) for tower in _OURS})
for _tower in _OURS:
    _register_tower(_tower)
