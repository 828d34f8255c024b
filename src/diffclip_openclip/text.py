"""Text tower: OpenAI's text transformer with differential attention, a transformers model.

Registered with ``AutoConfig`` and ``AutoModel`` under ``model_type = "diffclip_text"``, which is how open_clip's
``HFTextEncoder`` builds it. Architecture: CLIP (arXiv 2103.00020, section 2.4), every attention layer differential
(DiffCLIP, section 4.1).

Shape legend: B batch, N tokens, C hidden_size.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    can_return_tuple,
)

from diffclip_openclip.attention import LAMBDA_INIT, DifferentialAttention, resolve_lambda_init

MODEL_TYPE = "diffclip_text"


class DiffCLIPTextConfig(PretrainedConfig):
    """Configuration of :class:`DiffCLIPTextModel`; the defaults are the text tower of DiffCLIP-B/16.

    Args:
        hidden_size: embed_dim C of the tower.
        num_attention_heads: the usual number of heads, even; two of them make a differential pair.
        max_position_embeddings: longest context.
        lambda_init: a number in [0, 1), or "dynamic" for 0.8 - 0.6 exp(-0.3 l) in layer l (DiffCLIP*).
        attention_dropout: dropout on both attention maps.
        pad_token_id: read by open_clip's adapter for an attention mask, which has no effect on this model.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        lambda_init: float | str = LAMBDA_INIT,
        pad_token_id: int = 0,
        bos_token_id: int = 49406,
        eos_token_id: int = 49407,
        **kwargs: Any,
    ) -> None:
        resolve_lambda_init(lambda_init, depth=0)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.attention_dropout = attention_dropout
        self.lambda_init = lambda_init
        kwargs |= {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**kwargs)


def _residual_std(config: DiffCLIPTextConfig) -> float:
    """Standard deviation of the weights that write to the residual stream (two layers a block)."""
    return config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5


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


class NormalLinear(nn.Linear):
    """A linear layer whose weights start as N(0, std^2)."""

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        self.std = std  # before Linear.__init__, which draws the weights
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight, std=self.std)


class DiffCLIPTextMLP(nn.Module):
    """Two linear layers with CLIP's QuickGELU between them."""

    def __init__(self, config: DiffCLIPTextConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.c_fc = NormalLinear(width, hidden, std=(2 * width) ** -0.5)
        self.act = ACT2FN[config.hidden_act]
        self.c_proj = NormalLinear(hidden, width, std=_residual_std(config))

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x_BNC)))


class DiffCLIPTextLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block with causal differential attention."""

    def __init__(self, config: DiffCLIPTextConfig, depth: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = DifferentialAttention(
            config.hidden_size,
            config.num_attention_heads,
            attn_drop=config.attention_dropout,
            lambda_init=config.lambda_init,
            depth=depth,
        )
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DiffCLIPTextMLP(config)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        x_BNC = x_BNC + self.attn(self.ln_1(x_BNC), is_causal=True)
        return x_BNC + self.mlp(self.ln_2(x_BNC))


def _has_weights(directory: Path) -> bool:
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    return any((directory / name).is_file() for name in names)


class DiffCLIPTextModel(PreTrainedModel):
    """Causal text transformer with differential attention, read out at the end-of-text token.

    ``pooler_output`` (B, C) is the final LayerNorm's state at the first occurrence of the largest token id of each
    text, which is CLIP's end-of-text token (openai/CLIP@main:clip/model.py, encode_text).

    Args:
        config: sizes.
        add_pooling_layer: give ``pooler_output``; open_clip asks for it by this name.
    """

    config: DiffCLIPTextConfig
    config_class = DiffCLIPTextConfig
    base_model_prefix = "diffclip_text"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DiffCLIPTextLayer"]  # noqa: RUF012  declared so by transformers

    def __init__(self, config: DiffCLIPTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.add_pooling_layer = add_pooling_layer
        self.embeddings = DiffCLIPTextEmbeddings(config)
        self.layers = nn.ModuleList(DiffCLIPTextLayer(config, depth) for depth in range(config.num_hidden_layers))
        self.ln_final = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a directory that holds a config but no weights gives an initialised model.

        open_clip builds every text tower through ``from_pretrained``, also one that is to be trained from scratch.
        """
        directory = Path(pretrained_model_name_or_path)
        if not directory.is_dir() or _has_weights(directory):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = kwargs.get("config") or cls.config_class.from_pretrained(directory)
        return cls(config, add_pooling_layer=kwargs.get("add_pooling_layer", True))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.token_embedding = value  # type: ignore[assignment]  # transformers gives its type as Module

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """OpenAI's text initialisation (openai/CLIP@main:clip/model.py, initialize_parameters)."""
        if isinstance(module, DiffCLIPTextEmbeddings):
            nn.init.normal_(module.token_embedding.weight, std=0.02)
            nn.init.normal_(module.positional_embedding, std=0.01)
        elif isinstance(module, DifferentialAttention):
            module.reset_parameters()
            nn.init.normal_(module.qkv.weight, std=self.config.hidden_size**-0.5)
            nn.init.normal_(module.proj.weight, std=_residual_std(self.config))
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm):
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
        pooler_output = None
        if self.add_pooling_layer:
            end_of_text = input_ids.argmax(dim=-1)
            pooler_output = x_BNC[torch.arange(x_BNC.shape[0], device=x_BNC.device), end_of_text]
        return BaseModelOutputWithPooling(
            last_hidden_state=x_BNC,
            pooler_output=pooler_output,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


def register_text_model() -> None:
    """Make ``diffclip_text`` known to transformers' Auto classes; repeating it changes nothing.

    Raises:
        ValueError: another package has registered a different class for ``diffclip_text``.
    """
    try:
        known = type(AutoConfig.for_model(MODEL_TYPE))
    except ValueError:  # transformers' answer for an unknown model type
        known = DiffCLIPTextConfig
    if known.__module__ != DiffCLIPTextConfig.__module__:
        raise ValueError(
            f"transformers already has another model type {MODEL_TYPE!r}, from {known.__module__}; "
            "uninstall or rename that one to use diffclip_openclip"
        )
    AutoConfig.register(MODEL_TYPE, DiffCLIPTextConfig, exist_ok=True)
    AutoModel.register(DiffCLIPTextConfig, DiffCLIPTextModel, exist_ok=True)
