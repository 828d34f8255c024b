"""Text tower: OpenAI's text transformer with differential attention, a transformers model.

Registered with ``AutoConfig`` and ``AutoModel`` under ``model_type = "diffclip_text"``, which is how open_clip's
``HFTextEncoder`` builds it. Architecture: CLIP (arXiv 2103.00020, section 2.4), every attention layer differential
(DiffCLIP, section 4.1), of either version.

Shape legend: B batch, N tokens, C hidden_size.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import CONFIG_NAME, can_return_tuple

from diffclip_openclip.attention.v1 import DifferentialAttention
from diffclip_openclip.attention.v2 import DifferentialAttentionV2
from diffclip_openclip.towers.configs import DiffCLIPTextConfig

# where to fetch weights, which AutoModel passes on although there are none to fetch
_HUB_ARGUMENTS = {
    *("_commit_hash", "_from_auto", "adapter_kwargs", "cache_dir", "force_download", "local_files_only", "proxies"),
    *("revision", "subfolder", "token", "trust_remote_code", "use_safetensors", "variant", "weights_only"),
    "key_mapping",
}
# in a model directory of open_clip, config.json names the whole model's weights as the tower's (transformers_weights)
_IN_OPEN_CLIP = {r"^text\.transformer\.": ""}


class DiffCLIPTextEmbeddings(nn.Module):
    """Token plus learned position embedding."""

    def __init__(self, config: DiffCLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positional_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        num_tokens, longest = input_ids.shape[1], self.positional_embedding.shape[0]
        if num_tokens > longest:
            raise ValueError(
                f"the input has {num_tokens} tokens a text, this text tower takes at most {longest} "
                f"(max_position_embeddings); tokenize with context_length={longest}"
            )
        return self.token_embedding(input_ids) + self.positional_embedding[:num_tokens]


class DiffCLIPTextMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: DiffCLIPTextConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x_BNC)))


def _attention(config: DiffCLIPTextConfig, depth: int) -> DifferentialAttention | DifferentialAttentionV2:
    sizes = (config.hidden_size, config.num_attention_heads)
    if config.attention_version == 2:
        return DifferentialAttentionV2(*sizes, attn_drop=config.attention_dropout)
    return DifferentialAttention(
        *sizes, attn_drop=config.attention_dropout, lambda_init=config.lambda_init, depth=depth
    )


class DiffCLIPTextLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block with causal differential attention."""

    def __init__(self, config: DiffCLIPTextConfig, depth: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = _attention(config, depth)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DiffCLIPTextMLP(config)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        x_BNC = x_BNC + self.attn(self.ln_1(x_BNC), is_causal=True)
        return x_BNC + self.mlp(self.ln_2(x_BNC))


def _weight_stds(layers: Iterable[nn.Module], config: DiffCLIPTextConfig) -> dict[nn.Module, float]:
    """Each linear layer's initial standard deviation (openai/CLIP@main:clip/model.py, initialize_parameters)."""
    width_std = config.hidden_size**-0.5
    residual_std = width_std * (2 * config.num_hidden_layers) ** -0.5
    stds: dict[nn.Module, float] = {}
    for layer in cast(Iterable[DiffCLIPTextLayer], layers):
        stds |= {layer.attn.qkv: width_std, layer.attn.proj: residual_std}
        stds |= {layer.mlp.c_fc: (2 * config.hidden_size) ** -0.5, layer.mlp.c_proj: residual_std}
    return stds


def _is_config_only(directory: Path) -> bool:
    if not (directory / CONFIG_NAME).is_file():
        return False
    return not any(path.suffix in (".safetensors", ".bin") or ".index." in path.name for path in directory.iterdir())


class DiffCLIPTextModel(PreTrainedModel):
    """Causal text transformer with differential attention, read out at the end-of-text token.

    ``pooler_output`` (B, C) is the final LayerNorm's state at the first occurrence of the largest token id of each
    text, which is CLIP's end-of-text token (openai/CLIP@main:clip/model.py, encode_text).

    Args:
        config: sizes.
        add_pooling_layer: accepted and without effect, since reading out has no weights; open_clip passes it, True for
            its own pooler only.
    """

    config: DiffCLIPTextConfig
    config_class = DiffCLIPTextConfig
    base_model_prefix = "diffclip_text"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_load_unexpected = [r"^visual\.", r"^text\.proj\.", r"^logit_"]  # noqa: RUF012  so in transformers
    _no_split_modules = ["DiffCLIPTextLayer"]  # noqa: RUF012  declared so by transformers

    def __init__(self, config: DiffCLIPTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        device = torch.get_default_device()
        with torch.device("meta"):  # so that nothing is drawn before _init_weights draws it
            self.embeddings = DiffCLIPTextEmbeddings(config)
            self.layers = nn.ModuleList(DiffCLIPTextLayer(config, depth) for depth in range(config.num_hidden_layers))
            self.ln_final = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.to_empty(device=device)
        self._weight_stds = _weight_stds(self.layers, config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a directory that holds a config but no weights gives an initialised model.

        open_clip builds every text tower through ``from_pretrained``, also one that is to be trained from scratch.
        """
        kwargs.setdefault("key_mapping", _IN_OPEN_CLIP)
        elsewhere = kwargs.get("variant") or kwargs.get("subfolder")
        if elsewhere or not _is_config_only(Path(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = kwargs.pop("config", None)
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
            )
        return cls._from_config(config, **{k: v for k, v in kwargs.items() if k not in _HUB_ARGUMENTS}).eval()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, under this class's own names also if the weights came from an open_clip directory."""
        return super().save_pretrained(*args, **({"save_original_format": False} | kwargs))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.token_embedding = value  # type: ignore[assignment]  # transformers gives its type as Module

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DiffCLIPTextEmbeddings):
            nn.init.normal_(module.positional_embedding, std=0.01)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif module in self._weight_stds:
            linear = cast(nn.Linear, module)
            nn.init.normal_(linear.weight, std=self._weight_stds[module])
            nn.init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)  # torch's own
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm | DifferentialAttention):
            module.reset_parameters()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: token ids, (B, N), N up to ``config.max_position_embeddings``.
            attention_mask: accepted and without effect: a causal tower read out at its end-of-text token never sees
                what is behind it.
            output_hidden_states: also give the state before the first and behind each layer, each (B, N, C).

        Raises:
            ValueError: texts that are too long.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x_BNC = self.embeddings(input_ids)
        hidden_states = [x_BNC]
        for layer in self.layers:
            x_BNC = layer(x_BNC)
            hidden_states.append(x_BNC)
        x_BNC = self.ln_final(x_BNC)
        end_of_text = input_ids.argmax(dim=-1)
        return BaseModelOutputWithPooling(
            last_hidden_state=x_BNC,
            pooler_output=x_BNC[torch.arange(x_BNC.shape[0], device=x_BNC.device), end_of_text],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


AutoModel.register(DiffCLIPTextConfig, DiffCLIPTextModel, exist_ok=True)
