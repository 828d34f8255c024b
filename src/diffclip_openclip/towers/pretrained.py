"""Hold what the transformers models of both towers share: attention options, maps, and where new parameters are put.

Shape legend: B batch, N tokens, C hidden_size, h maps a layer (pairs of heads in version 1, else heads).
"""

from typing import Any, cast

import torch
from timm.layers import Attention
from torch import nn
from transformers import PreTrainedModel

from diffclip_openclip.attention.reference import attention_bias, attention_map
from diffclip_openclip.attention.v1 import DifferentialAttention
from diffclip_openclip.attention.v2 import DifferentialAttentionV2

ATTN_IMPLEMENTATIONS = ("sdpa", "eager")


class DiffCLIPPreTrainedModel(PreTrainedModel):
    """Let a transformers model's attention layers choose their own way of computing.

    ``attn_implementation`` may be "sdpa", the default, or "eager". Both run the same layers; only with "eager" does
    transformers let ``output_attentions`` be set in the config. As an argument it is taken with either.
    """

    _supports_sdpa = True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """Return the implementation to note in the config; transformers calls this for a new model and a new choice.

        Raises:
            ValueError: for any other than those of ``ATTN_IMPLEMENTATIONS``.
        """
        if attn_implementation is None:
            return "eager" if self.config.output_attentions else "sdpa"
        if attn_implementation not in ATTN_IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation is {attn_implementation!r}; {type(self).__name__} takes "
                f"{' or '.join(map(repr, ATTN_IMPLEMENTATIONS))} alone: the values of differential attention are wider "
                "than its keys, which FlashAttention, FlexAttention and hub kernels behind transformers' interface do "
                "not take, and its layers choose among torch's fused kernels by themselves. Leave the argument out"
            )
        return attn_implementation


def weighted_maps(attention: nn.Module, x_BNC: torch.Tensor, is_causal: bool = False) -> torch.Tensor:
    """Return the map A1 - lambda A2 that a layer multiplies its values with, (B, h, N, N), without dropout.

    Plain attention of timm has one softmax map, which is returned as it is.

    Raises:
        ValueError: the layer is of another class, or its own parameters are offloaded.
    """
    if isinstance(attention, Attention):
        q_BNC, k_BNC, _ = attention.qkv(x_BNC).chunk(3, dim=-1)
        q_BhNd, k_BhNd = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (q_BNC, k_BNC))
        q_BhNd, k_BhNd = attention.q_norm(q_BhNd), attention.k_norm(k_BhNd)
        B, h, N, _ = q_BhNd.shape
        return attention_map(q_BhNd, k_BhNd, attention_bias(None, is_causal, B, h, N, q_BhNd.dtype, q_BhNd.device))
    if not isinstance(attention, DifferentialAttention | DifferentialAttentionV2):
        raise ValueError(
            f"output_attentions is given, and {type(attention).__name__} has no attention maps to return; "
            "differential layers and timm's Attention have"
        )
    if not x_BNC.is_meta and any(parameter.is_meta for parameter in attention.parameters(recurse=False)):
        raise ValueError(
            "output_attentions is given, and the layers' lambda vectors are offloaded, so that only a layer's forward "
            "sees them; load the model without offloading for its attention maps"
        )
    a1_BhNN, a2_BhNN = attention.attention_maps(x_BNC, is_causal=is_causal)
    lambda_ = (
        attention.compute_lambda(x_BNC)
        if isinstance(attention, DifferentialAttentionV2)
        else attention.compute_lambda()
    )
    return a1_BhNN - lambda_.to(a1_BhNN.dtype) * a2_BhNN


def device_of_new_parameters() -> torch.device:
    """Return the device that a module's new parameters are put on; accelerate's init_empty_weights decides it too."""
    probe = nn.Module()
    probe.register_parameter("parameter", nn.Parameter(torch.empty(0)))
    return cast(nn.Parameter, probe.parameter).device
