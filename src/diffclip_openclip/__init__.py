"""Differential attention for CLIP (DiffCLIP, arXiv 2503.06626) as an open_clip plugin.

Importing this package registers the models; after installation ``import open_clip`` does it by itself.
"""

from typing import TYPE_CHECKING, Any

from diffclip_openclip.attention import (
    DifferentialAttention,
    DifferentialAttentionV2,
    differential_attention_reference,
    differential_attention_v2_reference,
)
from diffclip_openclip.registration import model_names, register
from diffclip_openclip.towers.configs import DiffCLIPTextConfig, DiffCLIPVisionConfig
from diffclip_openclip.weights.layouts import from_reference, to_reference

if TYPE_CHECKING:
    from diffclip_openclip.towers.text import DiffCLIPTextModel
    from diffclip_openclip.towers.vision import DiffCLIPVisionModel

__version__ = "0.1.0"
__all__ = [
    "DiffCLIPTextConfig",
    "DiffCLIPTextModel",
    "DiffCLIPVisionConfig",
    "DiffCLIPVisionModel",
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "differential_attention_reference",
    "differential_attention_v2_reference",
    "from_reference",
    "model_names",
    "register",
    "to_reference",
]


def __getattr__(name: str) -> Any:
    """Import the transformers models, which takes long, when they are asked for (PEP 562)."""
    if name == "DiffCLIPTextModel":
        from diffclip_openclip.towers.text import DiffCLIPTextModel

        return DiffCLIPTextModel
    if name == "DiffCLIPVisionModel":
        from diffclip_openclip.towers.vision import DiffCLIPVisionModel

        return DiffCLIPVisionModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()
