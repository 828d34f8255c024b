"""Image towers: timm's ViT with differential attention, registered with timm under their own names.

The towers are stock ``timm.models.VisionTransformer`` objects built through its ``block_fn`` and ``attn_layer``
arguments, so everything that timm does with a ViT works on them. They follow the authors' image tower (paper,
section 4.1): class token, learned position embedding, no pre-norm, LayerNorm eps 1e-5, GELU.
"""

import itertools
from functools import partial
from typing import Any, cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm
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

from diffclip_openclip.attention import DYNAMIC, LAMBDA_INIT, DifferentialAttention, resolve_lambda_init

__all__: list[str] = []  # timm's register_model appends the towers' names

# name part -> (patch_size, image size, embed_dim, depth, num_heads); S to H are timm's own sizes
_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "nano_patch12": (12, 48, 128, 4, 4),
    "small_patch16": (16, 224, 384, 12, 6),
    "base_patch16": (16, 224, 768, 12, 12),
    "base_patch32": (32, 224, 768, 12, 12),
    "large_patch14": (14, 224, 1024, 24, 16),
    "huge_patch14": (14, 224, 1280, 32, 16),
}


class TimmDifferentialAttention(DifferentialAttention):
    """:class:`DifferentialAttention` behind the constructor arguments that timm's blocks pass."""

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
                f"qk_norm is {qk_norm} and scale_attn_norm {scale_norm}; DiffCLIP has neither, both must be False"
            )
        super().__init__(dim, num_heads, **kwargs)


class DifferentialBlock(Block):
    """timm's pre-norm block; its index decides lambda_init."""

    def __init__(self, *, lambda_init: float | str, depth: int = 0, **kwargs: Any) -> None:
        super().__init__(depth=depth, **kwargs)
        cast(DifferentialAttention, self.attn).lambda_init = resolve_lambda_init(lambda_init, depth)


def _default_cfg(size: str) -> dict[str, Any] | PretrainedCfg:
    """Input and preprocessing of the paper's towers (SLIP's evaluation transform)."""
    return {
        "input_size": (3, _SIZES[size][1], _SIZES[size][1]),
        "num_classes": 0,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
    }


def _tower_name(size: str, kind: str) -> str:
    return f"vit_{size}_{kind}_{_SIZES[size][1]}"


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
        return _create(name, size, pretrained, **(_KINDS[kind] | kwargs))

    entrypoint.__name__ = entrypoint.__qualname__ = name
    globals()[name] = register_model(entrypoint)


def _differential_tower(lambda_init: float | str) -> dict[str, Any]:
    return {
        "attn_layer": TimmDifferentialAttention,
        "block_fn": partial(DifferentialBlock, lambda_init=lambda_init),
        "norm_layer": partial(LayerNorm, eps=1e-5),
        # the authors put blocks with PyTorch's own initialisation into an initialised timm ViT
        "weight_init": "reset",
    }


_KINDS: dict[str, dict[str, Any]] = {
    "diffclip": _differential_tower(LAMBDA_INIT),
    "diffclip_dynamic": _differential_tower(DYNAMIC),
    "plain": {},
}
# timm has a plain ViT of every size but the quick start's
_TOWERS = [*itertools.product(_SIZES, ("diffclip", "diffclip_dynamic")), ("nano_patch12", "plain")]
default_cfgs = generate_default_cfgs({_tower_name(*tower): _default_cfg(tower[0]) for tower in _TOWERS})
for _size, _kind in _TOWERS:
    _register_tower(_size, _kind)
