"""Differential attention for CLIP (DiffCLIP, arXiv 2503.06626) as an open_clip plugin.

Importing this package registers the models; after installation ``import open_clip`` does it by itself.
"""

from diffclip_openclip.attention import DifferentialAttention, differential_attention_reference
from diffclip_openclip.attention_v2 import DifferentialAttentionV2, differential_attention_v2_reference
from diffclip_openclip.registration import model_names, register
from diffclip_openclip.text import DiffCLIPTextConfig, DiffCLIPTextModel
from diffclip_openclip.vision_model import DiffCLIPVisionConfig, DiffCLIPVisionModel
from diffclip_openclip.weights.reference import from_reference, to_reference

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

register()
