"""Define the text tower: OpenAI's text transformer with differential attention, a transformers model.

Registered with ``AutoConfig`` and ``AutoModel`` under ``model_type = "diffclip_text"``, which is how open_clip's
``HFTextEncoder`` builds it. Architecture: CLIP (arXiv 2103.00020, section 2.4), every attention layer differential
(DiffCLIP, section 4.1), of either version, or timm's plain attention as a control. Warm starts have plain layers among
differential ones, and what other CLIPs do otherwise: SigLIP's is not causal, reads out the last token, and has a bias
in its projection.

Shape legend: B batch, N tokens, C hidden_size.
"""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from diffclip_openclip.attention.v1 import DifferentialAttention
from diffclip_openclip.attention.v2 import DifferentialAttentionV2
from diffclip_openclip.towers.blocks import GatedAttention, OpenClipBlock, PlainAttention
from diffclip_openclip.towers.configs import DiffCLIPTextConfig
from diffclip_openclip.towers.folders import check_named_to_open_clip, has_no_weights
from diffclip_openclip.towers.pretrained import DiffCLIPPreTrainedModel, device_of_new_parameters, weighted_maps

# in a model directory of open_clip, config.json names the whole model's weights as the tower's (transformers_weights)
_IN_OPEN_CLIP = {r"^text\.transformer\.": ""}
# what open_clip gives to from_pretrained, and what AutoModel adds: nothing for which new weights need a loader
_WITHOUT_LOADING = {"_from_auto", "adapter_kwargs", "add_pooling_layer", "key_mapping", "revision", "trust_remote_code"}


class _NamesLayerNorms(nn.Module):
    """Tell open_clip's ``--lock-text`` which parameters are a LayerNorm's.

    Its adapter takes for a LayerNorm what has a module called ``LayerNorm`` in its name, as BERT has, and leaves those
    trainable unless asked not to (open_clip@v3.3.0 and @89fb801:src/open_clip/hf_model.py, HFTextEncoder.lock). The
    names of this tower's norms are those of its checkpoints, ``ln_1`` and so on, and must stay. So the adapter's
    ``lock``, and nobody else, gets names that say it.
    """

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        named = super().named_parameters(*args, **kwargs)
        caller = None if torch.compiler.is_compiling() else sys._getframe(1)
        if caller is None or (caller.f_globals.get("__name__"), caller.f_code.co_name) != (
            "open_clip.hf_model",
            "lock",
        ):
            return named
        norms = {id(p) for module in self.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
        return ((f"{name}.LayerNorm" if id(p) in norms else name, p) for name, p in named)


class _LastGroup(_NamesLayerNorms, nn.ModuleList):
    """Hold the last layer and ``ln_final`` for a moment, as what open_clip locks or decays together."""


class DiffCLIPTextEmbeddings(nn.Module):
    """Add token and learned position embedding."""

    def __init__(self, config: DiffCLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positional_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        B, N = input_ids.shape
        longest = self.positional_embedding.shape[0]
        if longest < N:
            raise ValueError(
                f"the input has {N} tokens a text, this text tower takes at most {longest} "
                f"(max_position_embeddings); tokenize with context_length={longest}; a longer tower needs a config of "
                "its own, since open_clip keeps --force-context-length from it (docs/training.md#longer-texts)"
            )
        if position_ids is None:
            return self.token_embedding(input_ids) + self.positional_embedding[:N]
        if position_ids.shape not in ((B, N), (1, N)):
            raise ValueError(
                f"position_ids has shape {list(position_ids.shape)}; it must be {[B, N]}, as input_ids, or {[1, N]}"
            )
        return self.token_embedding(input_ids) + F.embedding(position_ids, self.positional_embedding)


class DiffCLIPTextMLP(nn.Module):
    """Compute two linear layers with an activation between them."""

    def __init__(self, config: DiffCLIPTextConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x_BNC)))


def _attention(
    config: DiffCLIPTextConfig, depth: int
) -> DifferentialAttention | DifferentialAttentionV2 | PlainAttention:
    sizes = (config.hidden_size, config.num_attention_heads)
    differential = config.differential_layers is None or depth in config.differential_layers
    if config.attention_version == 0 or not differential:
        plain = GatedAttention if config.attention_gate else PlainAttention
        return plain(*sizes, qkv_bias=True, attn_drop=config.attention_dropout)
    if config.attention_version == 2:
        return DifferentialAttentionV2(*sizes, attn_drop=config.attention_dropout)
    return DifferentialAttention(
        *sizes, attn_drop=config.attention_dropout, lambda_init=config.lambda_init, depth=depth
    )


class DiffCLIPTextLayer(_NamesLayerNorms, GradientCheckpointingLayer, OpenClipBlock):
    """Compute a pre-norm transformer block.

    Each linear layer carries the standard deviation of its initial weights as ``initial_std``
    (openai/CLIP@main:clip/model.py, initialize_parameters).
    """

    def __init__(self, config: DiffCLIPTextConfig, depth: int) -> None:
        super().__init__()
        self.causal = config.causal
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = _attention(config, depth)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DiffCLIPTextMLP(config)
        width_std = config.hidden_size**-0.5
        residual_std = width_std * (2 * config.num_hidden_layers) ** -0.5
        cast(Any, self.attn.qkv).initial_std = width_std
        if config.attention_gate:
            cast(Any, self.attn).gate.initial_std = width_std
        cast(Any, self.attn.proj).initial_std = residual_std
        cast(Any, self.mlp.c_fc).initial_std = (2 * config.hidden_size) ** -0.5
        cast(Any, self.mlp.c_proj).initial_std = residual_std

    def forward(
        self, x_BNC: torch.Tensor, output_attentions: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the state behind the block, and with ``output_attentions`` the map A1 - lambda A2 beside it."""
        normed_BNC = self.ln_1(x_BNC)
        hidden_BNC = x_BNC + self.attn(normed_BNC, is_causal=self.causal)
        out_BNC = hidden_BNC + self.mlp(self.ln_2(hidden_BNC))
        return (out_BNC, weighted_maps(self.attn, normed_BNC, is_causal=self.causal)) if output_attentions else out_BNC


class DiffCLIPTextModel(_NamesLayerNorms, DiffCLIPPreTrainedModel):
    """Encode texts by a transformer with differential attention, read out at one token.

    ``pooler_output`` (B, pooled_size) is the final LayerNorm's state at the token that ``config.pooling`` says,
    projected if ``config.projection_dim`` is set. "argmax" is the first occurrence of the largest token id of a text,
    which is CLIP's end-of-text token (openai/CLIP@main:clip/model.py, encode_text).

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
    _no_split_modules = ["DiffCLIPTextEmbeddings", "DiffCLIPTextLayer"]  # noqa: RUF012  declared so by transformers

    def __init__(self, config: DiffCLIPTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        device = device_of_new_parameters()
        with torch.device("meta"):  # so that nothing is drawn before _init_weights draws it
            self.embeddings = DiffCLIPTextEmbeddings(config)
            self.layers = nn.ModuleList(DiffCLIPTextLayer(config, depth) for depth in range(config.num_hidden_layers))
            self.ln_final = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            # open_clip's adapter has a projection of its own, without a bias
            self.projection = nn.Linear(config.hidden_size, config.projection_dim) if config.projection_dim else None
        if device.type != "meta":
            self.to_empty(device=device)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; where open_clip names a directory without weights, initialise a model.

        open_clip builds every text tower through ``from_pretrained``, also one that is to be trained from scratch. That
        a model config known to open_clip names the directory is what tells it from an incomplete copy of a model.

        Raises:
            OSError: there are no weights, and no model config that open_clip knows names the directory.
        """
        kwargs.setdefault("key_mapping", _IN_OPEN_CLIP)
        elsewhere = pretrained_model_name_or_path is None or kwargs.get("variant") or kwargs.get("subfolder")
        if elsewhere or not has_no_weights(Path(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        check_named_to_open_clip(Path(pretrained_model_name_or_path))
        return cls._initialised(Path(pretrained_model_name_or_path), *args, **kwargs)

    @classmethod
    def _initialised(cls, directory: Path, *args: Any, **kwargs: Any) -> Any:
        """Return a model with new weights; transformers' loader heeds further arguments as for loaded ones."""
        dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
        config = kwargs.pop("config", None)
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(directory, return_unused_kwargs=True, **kwargs)
        model = cls._from_config(copy.deepcopy(config)).eval()
        if not dtypes and not kwargs.keys() - _WITHOUT_LOADING:
            return model
        weights = model.state_dict()
        loaded: Any = super().from_pretrained(None, *args, config=config, state_dict=weights, **dtypes, **kwargs)
        if kwargs.get("output_loading_info"):
            loaded[1]["missing_keys"] = set(weights)
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, under this class's own names also for weights of an open_clip directory."""
        return super().save_pretrained(*args, **({"save_original_format": False} | kwargs))

    @property
    def layer_groups(self) -> list[nn.Module]:
        """Return the layers, the last with ``ln_final``, as open_clip groups those of its own text tower.

        Its adapter locks, unlocks and decays the learning rates of what the registered ``layer_attr`` names, and would
        leave ``ln_final`` out (open_clip@89fb801:src/open_clip/hf_model.py, HFTextEncoder.layer_groups; of the plain
        tower: transformer.py, _text_layer_groups).
        """
        return [*self.layers[:-1], _LastGroup([self.layers[-1], self.ln_final])]

    def no_weight_decay(self) -> set[str]:
        """Return the names of matrices that trainers keep from weight decay, as they do of a plain text tower."""
        return {"embeddings.positional_embedding"}

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
        elif isinstance(module, nn.Linear) and hasattr(module, "initial_std"):
            nn.init.normal_(module.weight, std=cast(float, module.initial_std))
            nn.init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)  # torch's own
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm | DifferentialAttention):
            module.reset_parameters()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: token ids, (B, N), N up to ``config.max_position_embeddings``.
            attention_mask: accepted and without effect: a causal tower read out at its end-of-text token never sees
                what is behind it, and one that is not causal is trained to see padding.
            position_ids: row of the position embedding that each token gets, (B, N) or (1, N); 0, 1, ... unless given.
            output_hidden_states: also return the state before the first and behind each layer, each (B, N, C).
            output_attentions: also return each layer's map A1 - lambda A2, (B, h, N, N): h is the number of pairs of
                heads in version 1, of heads in version 2.

        Raises:
            ValueError: texts that are too long, or ``position_ids`` of another shape.
            IndexError: ``position_ids`` that the position embedding does not have.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x_BNC = self.embeddings(input_ids, position_ids)
        hidden_states, attentions = [], []
        for layer in self.layers:
            if output_hidden_states:  # else a layer's memory is free for the next
                hidden_states.append(x_BNC)
            if output_attentions:
                x_BNC, map_BhNN = layer(x_BNC, output_attentions=True)
                attentions.append(map_BhNN)
            else:
                x_BNC = layer(x_BNC)
        if output_hidden_states:
            hidden_states.append(x_BNC)
        x_BNC = self.ln_final(x_BNC)
        pooled_BC = x_BNC[torch.arange(x_BNC.shape[0], device=x_BNC.device), self._read_out(input_ids)]
        return BaseModelOutputWithPooling(
            last_hidden_state=x_BNC,
            pooler_output=pooled_BC if self.projection is None else self.projection(pooled_BC),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _read_out(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the index of the token of each text whose state is read out, (B,)."""
        if self.config.pooling == "argmax":
            return input_ids.argmax(dim=-1)
        if self.config.pooling == "eos":
            return (input_ids == self.config.eos_token_id).int().argmax(dim=-1)
        return torch.full_like(input_ids[:, 0], 0 if self.config.pooling == "first" else input_ids.shape[1] - 1)


AutoModel.register(DiffCLIPTextConfig, DiffCLIPTextModel, exist_ok=True)
