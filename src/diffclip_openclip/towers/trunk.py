"""timm's ViTs as image towers of other libraries: built by name, and their sizes."""

from functools import lru_cache
from typing import Any, cast

import timm
import torch
from timm.models import VisionTransformer


def create_trunk(timm_model_name: str) -> VisionTransformer:
    """The named ViT without a head.

    Raises:
        ValueError: it is no ViT with one class token.
    """
    trunk = timm.create_model(timm_model_name, num_classes=0)
    # readers of such towers drop one token, the first, and take the others for patches
    if not isinstance(trunk, VisionTransformer) or trunk.cls_token is None or trunk.num_prefix_tokens != 1:
        raise ValueError(
            f"{timm_model_name!r} is not a timm VisionTransformer with a class token and no other extra token; "
            "choose one that is, such as 'vit_base_patch16_diffclip_224' or 'vit_base_patch16_224'"
        )
    return trunk


@lru_cache
def sizes_of(timm_model_name: str) -> dict[str, int]:
    """What transformers' users read from a config: widths and counts of a tower, image and patch size in pixels."""
    with torch.device("meta"):
        trunk = create_trunk(timm_model_name)
    return {
        "hidden_size": trunk.embed_dim,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": cast(Any, trunk.blocks[0]).attn.num_heads,
    }
