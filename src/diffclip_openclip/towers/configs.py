"""Define the configurations of both towers as transformers models, known to transformers by ``model_type``.

They are apart from the models because transformers' model classes take long to import, which ``import open_clip`` is to
be spared. Whoever asks ``AutoModel`` for a model has a config first, so it is configs that make their model known.
"""

import importlib
import json
import math
from functools import lru_cache
from typing import Any, cast

import timm
import torch
from timm.models import VisionTransformer
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from diffclip_openclip.attention.v1 import LAMBDA_INIT, resolve_lambda_init
from diffclip_openclip.models import TWIN
from diffclip_openclip.towers import timm_vit  # noqa: F401  importing it registers the towers with timm
from diffclip_openclip.towers.timm_twin import check_arguments  # which registers one more


def register_model(module: str) -> None:
    """Import a module of towers/, whose model registers itself with ``AutoModel``."""
    importlib.import_module(f"diffclip_openclip.towers.{module}")


def _check_sizes(sizes: dict[str, Any]) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:  # True is an int too
            raise ValueError(f"{name} is {size!r}; it must be a whole number above 0")


def _check_number(name: str, value: Any, least: float, below: float) -> None:
    if type(value) not in (int, float) or not least <= value < below:
        raise ValueError(f"{name} is {value!r}; it must be a number of at least {least:g} and below {below:g}")


def _check_activation(name: Any) -> None:
    from transformers.activations import ACT2FN  # imported by the model's module already

    if not isinstance(name, str) or name not in ACT2FN:
        raise ValueError(f"hidden_act is {name!r}; it must be one of transformers': {', '.join(sorted(ACT2FN))}")


def _check_layers(name: str, layers: Any, depth: int) -> None:
    if layers is not None and not (
        isinstance(layers, list | tuple) and all(type(layer) is int and 0 <= layer < depth for layer in layers)
    ):
        raise ValueError(f"{name} is {layers!r}; it must be a list of indices from 0 to {depth - 1}, or null for all")


# the token that a text tower reads out: the first with the largest id, the first that is eos_token_id, ...
POOLINGS = ("argmax", "eos", "first", "last")
# fields that came later, and their defaults: a config.json has them only where they differ, and is else what it was
_LATER = {"differential_layers": None, "causal": True, "pooling": "argmax", "projection_dim": None}
_LATER |= {"timm_model_args": None}


def _without_later(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _LATER or value != _LATER[name]}


class DiffCLIPTextConfig(PretrainedConfig):
    """Hold what decides a :class:`DiffCLIPTextModel`; the defaults are the text tower of DiffCLIP-B/16.

    Args:
        hidden_size: embed_dim C of the tower.
        num_attention_heads: the usual number of heads; in version 1 two of them make a differential pair, so even.
        max_position_embeddings: longest context.
        hidden_act: transformers' name of the activation, "quick_gelu" or "gelu" in CLIP.
        attention_version: 1 for DiffCLIP's attention, 2 for :class:`DifferentialAttentionV2`, 0 for timm's plain
            ``Attention``.
        attention_gate: multiply the attention's output by sigmoid(gate(x)), elementwise; version 0 alone has a gate.
        differential_layers: indices of the layers with that attention, the others have plain attention; all if None.
        lambda_init: a number in [0, 1), or "dynamic" for 0.8 - 0.6 exp(-0.3 l) in layer l (DiffCLIP*); only version
            1 has one.
        attention_dropout: dropout on both attention maps.
        causal: hide later tokens from earlier ones.
        pooling: the token that is read out, one of :data:`POOLINGS`.
        projection_dim: size of a biased projection behind the token that is read out; None for none.
        pad_token_id: read by open_clip's adapter for an attention mask, which has no effect on this model.

    Raises:
        ValueError: a value that is none of these, or sizes that no layer can have; names the field and what is allowed.
    """

    model_type = "diffclip_text"

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
        attention_version: int = 1,
        attention_gate: bool = False,
        lambda_init: float | str = LAMBDA_INIT,
        differential_layers: list[int] | None = None,
        causal: bool = True,
        pooling: str = "argmax",
        projection_dim: int | None = None,
        pad_token_id: int = 0,
        bos_token_id: int = 49406,
        eos_token_id: int = 49407,
        **kwargs: Any,
    ) -> None:
        register_model("text")
        _check_sizes(
            {
                "vocab_size": vocab_size,
                "hidden_size": hidden_size,
                "intermediate_size": intermediate_size,
                "num_hidden_layers": num_hidden_layers,
                "num_attention_heads": num_attention_heads,
                "max_position_embeddings": max_position_embeddings,
            }
            | ({} if projection_dim is None else {"projection_dim": projection_dim})
        )
        if type(attention_version) is not int or attention_version not in (0, 1, 2):  # True is 1 too
            raise ValueError(f"attention_version is {attention_version!r}; it must be 1 or 2, or 0 for plain attention")
        if type(attention_gate) is not bool or (attention_gate and attention_version != 0):
            raise ValueError(
                f"attention_gate is {attention_gate!r} with attention_version {attention_version}; it must be "
                "False, or True with version 0"
            )
        _check_activation(hidden_act)
        _check_number("layer_norm_eps", layer_norm_eps, 0.0, math.inf)
        _check_number("attention_dropout", attention_dropout, 0.0, 1.0)
        resolve_lambda_init(lambda_init, depth=0)
        _check_layers("differential_layers", differential_layers, num_hidden_layers)
        if type(causal) is not bool:
            raise ValueError(f"causal is {causal!r}; it must be true or false")
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.attention_dropout = attention_dropout
        self.attention_version = attention_version
        self.attention_gate = attention_gate
        self.lambda_init = lambda_init
        self.differential_layers = differential_layers
        self.causal = causal
        self.pooling = pooling
        self.projection_dim = projection_dim
        kwargs |= {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the fields that config.json holds."""
        return _without_later(super().to_diff_dict())

    @property
    def pooled_size(self) -> int:
        """Return the size of what is read out, by which open_clip's adapter knows whether to project it."""
        return self.projection_dim or self.hidden_size


@lru_cache
def vit_sizes(timm_model_name: str, arguments: str = "{}") -> dict[str, int]:
    """Return what transformers' users read from a config: widths and counts of a ViT, image and patch size in pixels.

    Args:
        arguments: of ``timm.create_model``, as JSON.

    Raises:
        ValueError: the model is no ViT with one class token.
    """
    with torch.device("meta"):
        vit = timm.create_model(timm_model_name, num_classes=0, **json.loads(arguments))
    # readers of such towers drop one token, the first, and take the others for patches
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None or vit.num_prefix_tokens != 1:
        raise ValueError(
            f"{timm_model_name!r} is not a timm VisionTransformer with a class token and no other extra token; "
            "choose one that is, such as 'vit_base_patch16_diffclip_224' or 'vit_base_patch16_224'"
        )
    return {
        "hidden_size": vit.embed_dim,
        "image_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": cast(Any, vit.blocks[0]).attn.num_heads,
    }


class DiffCLIPVisionConfig(PretrainedConfig):
    """Hold the name that decides a :class:`DiffCLIPVisionModel` with every size of it.

    Args:
        timm_model_name: a ViT registered with timm, differential or plain, that has one class token.
        timm_model_args: arguments of the image tower of warm starts, which is one name for many towers.

    Raises:
        ValueError: timm has no model of that name, or the model takes no such arguments.
    """

    model_type = "diffclip_vision"

    def __init__(
        self,
        timm_model_name: str = "vit_base_patch16_diffclip_224",
        timm_model_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        register_model("vision")
        if not isinstance(timm_model_name, str) or not timm.is_model(timm_model_name):
            raise ValueError(
                f"timm has no model {timm_model_name!r}; timm.list_models('vit_*') lists those that it has"
            )
        if timm_model_args is not None and timm_model_name != TWIN:
            raise ValueError(
                f"timm_model_args is {timm_model_args!r:.60}; {timm_model_name} takes none, only {TWIN} does"
            )
        self.timm_model_name = timm_model_name
        self.timm_model_args = timm_model_args and check_arguments(timm_model_args, "the config")
        super().__init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the fields that config.json holds."""
        return _without_later(super().to_diff_dict())

    @property
    def _sizes(self) -> dict[str, int]:
        return vit_sizes(self.timm_model_name, json.dumps(self.timm_model_args or {}))

    @property
    def hidden_size(self) -> int:
        return self._sizes["hidden_size"]

    @property
    def image_size(self) -> int:
        return self._sizes["image_size"]

    @property
    def patch_size(self) -> int:
        return self._sizes["patch_size"]

    @property
    def num_hidden_layers(self) -> int:
        return self._sizes["num_hidden_layers"]

    @property
    def num_attention_heads(self) -> int:
        return self._sizes["num_attention_heads"]


def register_configs() -> None:
    """Make both model types known to ``AutoConfig``; repeating it changes nothing.

    Raises:
        ValueError: another package has registered a different class for one of them.
    """
    for config_class in (DiffCLIPTextConfig, DiffCLIPVisionConfig):
        model_type = config_class.model_type
        known = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else config_class  # noqa: SIM401  get finds none
        if known.__module__ != config_class.__module__:
            raise ValueError(
                f"transformers already has another model type {model_type!r}, from {known.__module__}; "
                "uninstall or rename that one to use diffclip_openclip"
            )
        AutoConfig.register(model_type, config_class, exist_ok=True)
