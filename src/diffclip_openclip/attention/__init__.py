"""Differential attention: the layers, their definitions and the ways to compute them; torch only."""

from diffclip_openclip.attention.paths import differential_attention_reference
from diffclip_openclip.attention.v1 import DifferentialAttention
from diffclip_openclip.attention.v2 import DifferentialAttentionV2, differential_attention_v2_reference

__all__ = [
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "differential_attention_reference",
    "differential_attention_v2_reference",
]
