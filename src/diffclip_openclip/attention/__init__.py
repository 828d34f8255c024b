"""Define differential attention: layers, definitions and the ways to compute them. It imports torch only."""

from diffclip_openclip.attention.choice import choose_path, use_path
from diffclip_openclip.attention.reference import (
    differential_attention_reference,
    differential_attention_v2_reference,
)
from diffclip_openclip.attention.v1 import DifferentialAttention
from diffclip_openclip.attention.v2 import DifferentialAttentionV2

__all__ = [
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "choose_path",
    "differential_attention_reference",
    "differential_attention_v2_reference",
    "use_path",
]
