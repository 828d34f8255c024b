"""Register one model with timm that is any of timm's ViTs, with version 2 attention in chosen layers.

It is the image tower of warm starts, which have no table of names and sizes. open_clip gives timm a name and no sizes
(open_clip@v3.3.0:src/open_clip/timm_model.py, TimmModel). But timm reads a name ``local-dir:DIR`` or
``hf-hub:OWNER/REPO`` from the config.json there, whose ``architecture`` is then this model's name and whose
``model_args`` are its arguments. They are checked here, since others write such files.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import LayerNorm
from timm.models import VisionTransformer, generate_default_cfgs, is_model, model_entrypoint, register_model

from diffclip_openclip.models import TWIN
from diffclip_openclip.towers.blocks import PlainAttention
from diffclip_openclip.towers.timm_vit import (
    DEFAULT_CFG,
    Block,
    TimmDifferentialAttentionV2,
    build_vit,
    check_name_is_free,
)

__all__: list[str] = []  # timm's register_model appends the name
_LARGEST = 1 << 16
_POOLS = ("token", "avg", "map", "avgmax", "max", "prr")  # timm's


def _is_whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value <= _LARGEST  # True is an int too


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= _LARGEST


def _is_size(value: Any) -> bool:
    sizes = value if isinstance(value, list | tuple) else [value] * 2
    return len(sizes) == 2 and all(_is_whole(size) and size <= 1 << 13 for size in sizes)


def _is_base(value: Any) -> bool:
    return isinstance(value, str) and is_model(value) and value.partition(".")[0] != TWIN  # a tag follows the dot


# argument of the model, and of config.json's model_args -> what it may be, in words and as a function
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    # a ViT that timm knows, whose arguments the others override; without it, they say all
    "base": ("the name of a ViT of timm, and not this one", _is_base),
    # indices of the layers that are differential; all if it is not given
    "layers": ("a list of whole numbers", lambda x: isinstance(x, list) and all(_is_whole(i, 0) for i in x)),
    "img_size": ("one or two whole numbers, of pixels", _is_size),
    "patch_size": ("one or two whole numbers, of pixels", _is_size),
    "embed_dim": ("a whole number above 0", _is_whole),
    "depth": ("a whole number above 0 and below 1000", lambda x: _is_whole(x) and x < 1000),
    "num_heads": ("a whole number above 0", _is_whole),
    "mlp_ratio": ("a number above 0 and up to 64", lambda x: _is_number(x) and x <= 64),
    "pre_norm": ("true or false", lambda x: type(x) is bool),
    "fc_norm": ("true or false", lambda x: type(x) is bool),
    "init_values": ("a number above 0", _is_number),
    "norm_eps": ("a number above 0", _is_number),
    "act_layer": ("gelu, gelu_tanh or quick_gelu", lambda x: x in ("gelu", "gelu_tanh", "quick_gelu")),
    "global_pool": (", ".join(_POOLS), lambda x: x in _POOLS),
}


def check_arguments(arguments: Any, path: object) -> dict[str, Any]:
    """Return the arguments of :data:`~diffclip_openclip.models.TWIN` as JSON holds them.

    Args:
        path: where they are from, for the message.

    Raises:
        ValueError: an argument that it does not have, or a value that none of its towers has.
    """
    if not isinstance(arguments, dict) or (unknown := arguments.keys() - _ARGUMENTS.keys()):
        found = ", ".join(map(repr, sorted(unknown))) if isinstance(arguments, dict) else repr(arguments)
        raise ValueError(f"{path} has {found:.80} as model_args of {TWIN}; known are {', '.join(_ARGUMENTS)}")
    for name, value in arguments.items():
        allowed, fits = _ARGUMENTS[name]
        if not fits(value):
            raise ValueError(f"{path} has {name} {value!r:.60} in model_args of {TWIN}; it must be {allowed}")
    return arguments


def check_pretrained_cfg(config: Any, path: object) -> None:
    """Refuse what a config.json has for timm beside the arguments, such as addresses and a head of any size.

    Args:
        config: the file's content.
        path: where it is from, for the message.

    Raises:
        ValueError: ``pretrained_cfg`` is not as this package writes it, or something overrides it.
    """
    own = config.get("pretrained_cfg")
    if not isinstance(own, dict) or (more := own.keys() - DEFAULT_CFG.keys() - {"input_size"}):
        found = ", ".join(map(repr, sorted(more))) if isinstance(own, dict) else repr(own)
        raise ValueError(f"{path} has {found:.80} as pretrained_cfg; it may have {', '.join(DEFAULT_CFG)}, input_size")
    sizes = own.get("input_size", [3, 1, 1])
    if not isinstance(sizes, list) or sizes[:1] != [3] or not _is_size(sizes[1:]):
        raise ValueError(f"{path} has input_size {sizes!r:.60} in pretrained_cfg; it must be 3, height and width")
    for num_classes in (own.get("num_classes", 0), config.get("num_classes", 0)):
        if num_classes != 0:
            raise ValueError(f"{path} has num_classes {num_classes!r:.60}; it must be 0, since a CLIP has none")


def _entrypoint(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the tower; further arguments are timm's, such as ``num_classes``."""
    own = {name: kwargs.pop(name) for name in _ARGUMENTS.keys() & kwargs.keys() if name in ("base", "layers")}
    check_arguments(own | {name: kwargs[name] for name in _ARGUMENTS.keys() & kwargs.keys()}, "timm.create_model")
    if (eps := kwargs.pop("norm_eps", None)) is not None:
        kwargs["norm_layer"] = partial(LayerNorm, eps=eps)
    kwargs |= {"block_fn": partial(_block, layers=own.get("layers")), "attn_layer": TimmDifferentialAttentionV2}
    if "base" not in own:
        return build_vit(TWIN, pretrained, **kwargs)
    refusal = f"base is {own['base']!r}; it must be one of timm's VisionTransformer"
    try:
        vit = model_entrypoint(own["base"])(pretrained, **kwargs)
    except TypeError as error:  # other models take no blocks
        raise ValueError(f"{refusal}: {error}") from error
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"{refusal}, not a {type(vit).__name__}")
    return vit


def _block(*, layers: list[int] | None, depth: int, attn_layer: Any, **kwargs: Any) -> Block:
    return Block(depth=depth, attn_layer=attn_layer if layers is None or depth in layers else PlainAttention, **kwargs)


# timm takes from it what the config.json does not say, where the name is a place
default_cfgs = generate_default_cfgs({TWIN: DEFAULT_CFG})
check_name_is_free(TWIN, __name__)
_entrypoint.__name__ = _entrypoint.__qualname__ = TWIN
globals()[TWIN] = register_model(_entrypoint)
