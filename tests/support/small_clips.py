"""Make small CLIPs of the families that open_clip knows: its configs with fewer and narrower layers, all else kept."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip import CustomTextCLIP
from timm.layers import HybridEmbed

from diffclip_openclip.weights import directory
from diffclip_openclip.weights.architecture import Architecture

_HEADS, _LAYERS, _TIMM_WIDTH = 2, 3, 48


def small(name: str, *, vocab_size: int = 60, **timm_arguments: Any) -> dict[str, Any]:
    """Return the config of one of open_clip's models, or of a CLIP around one of timm's, with small sizes."""
    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        vision_cfg = {"image_size": 224, "timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear"}
        model_cfg = {"embed_dim": 512, "vision_cfg": vision_cfg, "text_cfg": {}}
    vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    same_width = model_cfg["embed_dim"] == text_cfg.get("width")
    model_cfg["embed_dim"] = _TIMM_WIDTH if vision_cfg.get("timm_proj") == "none" else 8
    text_cfg |= {"vocab_size": vocab_size, "context_length": 9, "layers": _LAYERS, "heads": _HEADS}
    text_cfg["width"] = model_cfg["embed_dim"] if same_width else 12
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_name"], vision_cfg["image_size"] = small_timm(
            vision_cfg["timm_model_name"], **timm_arguments
        )
        return model_cfg
    head_width = vision_cfg.get("head_width", 64) // 8
    vision_cfg |= {"layers": _LAYERS, "head_width": head_width, "width": _HEADS * head_width}
    vision_cfg["image_size"] = 2 * vision_cfg["patch_size"]
    return model_cfg


@cache
def small_timm(name: str, **arguments: Any) -> tuple[str, int]:
    """Register a small variant of one of timm's ViTs, and return its name and image size."""
    entrypoint = timm.models.model_entrypoint(name)
    with torch.device("meta"):
        patches = entrypoint().patch_embed
    sizes: dict[str, Any] = {"depth": _LAYERS, "img_size": 2 * patches.patch_size[0]}
    if isinstance(patches, HybridEmbed):  # whose width is that of its own backbone
        sizes["img_size"] = 64
    else:
        sizes |= {"embed_dim": _TIMM_WIDTH, "num_heads": _HEADS}
    small_name = f"small_{name}" + "".join(f"_{key}" for key in arguments)

    def create(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        return entrypoint(pretrained, **(sizes | arguments | kwargs))

    create.__name__, create.__module__ = small_name, __name__
    timm.models.register_model(create)
    return small_name, sizes["img_size"]


def perturbed(model_cfg: dict[str, Any]) -> Any:
    """Return a CLIP whose every value, of norms, biases and layer scales too, is far from where it starts."""
    model_cfg = deepcopy(model_cfg)
    model_cfg.pop("custom_text", None)
    torch.manual_seed(0)
    model = CustomTextCLIP(**model_cfg).eval()
    with torch.no_grad():
        for tensor in (
            *model.parameters(),
            *(buffer for key, buffer in model.named_buffers() if key in model.state_dict()),
        ):
            if tensor.is_floating_point() and tensor.dim():
                tensor += 0.1 * torch.rand_like(tensor) if tensor.dim() == 1 else 0.1 * torch.randn_like(tensor)
    return model


def built(architecture: Architecture, folder: Path, device: str = "cpu") -> Any:
    """Return a model of an architecture as open_clip builds it, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    directory._write_configs(folder, architecture, {}, place=folder)
    with torch.device(device):
        return open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, device=device).eval()


@torch.no_grad()
def embeddings(model: Any, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised embeddings of images and texts that are drawn anew in the same way each time."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *model.visual.image_size, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.randint(3, model.vocab_size, (4, model.context_length), generator=generator)
    tokens[0, 5:], tokens[1, 2], tokens[2, -1] = 0, 2, 2
    model = model.to(dtype)
    return F.normalize(model.encode_image(images)), F.normalize(model.encode_text(tokens))
