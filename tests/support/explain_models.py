"""Build small CLIPs with every kind of attention that diffclip_openclip.explain knows: two layers, 3 x 4 patches."""

from typing import Any

import open_clip
import timm
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from diffclip_openclip import DiffCLIPTextConfig

GRID = (3, 4)
SIZE = (24, 32)  # pixels
EMBED_DIM = 16
CONTEXT, VOCAB = 9, 50

_ViT = "vit_base_patch16_224"
# timm's name of a tower and what is changed in it
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("vit_base_patch16_diffclip_dynamic_224", {}),
    "v2": ("vit_base_patch16_diffclip_v2_224", {}),
    "plain": (_ViT, {}),
    "plain with norms": (_ViT, {"qk_norm": True, "scale_attn_norm": True, "reg_tokens": 2, "init_values": 0.5}),
    "plain averaged": (_ViT, {"class_token": False, "global_pool": "avg"}),
    "plain averaged with prefix": (_ViT, {"global_pool": "avg", "pool_include_prefix": True}),
    "plain post-norm": (_ViT, {"block_fn": ResPostBlock}),
    "timm's differential": (_ViT, {"attn_layer": "diff"}),
    "eva": ("eva_giant_patch14_224", {"global_pool": "token"}),
    "eva rotary": ("eva02_base_patch16_clip_224", {}),
    "rotary": ("vit_pe_core_base_patch16_224", {"global_pool": "token"}),
}
_CUSTOM = {"block_type": "custom", "qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip": {},
    "open_clip averaged": {"pool_type": "avg"},
    "open_clip custom": _CUSTOM,
}
IMAGE_KINDS = (*TIMM, *OPEN_CLIP)
TEXT_KINDS = ("v1", "v2", "open_clip", "custom", "class token")


def image_tower(kind: str) -> nn.Module:
    if kind in OPEN_CLIP:
        return VisionTransformer(SIZE, 8, 32, 2, 4, mlp_ratio=2.0, output_dim=EMBED_DIM, **OPEN_CLIP[kind])
    name, changes = TIMM[kind]
    tower = TimmModel("vit_nano_patch12_diffclip_48", EMBED_DIM, pool="token")  # whose trunk is replaced
    tower.trunk = timm.create_model(
        name, img_size=SIZE, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0, **changes
    )
    tower.head.proj = nn.Linear(32, EMBED_DIM, bias=False)
    return tower


def text_tower(kind: str) -> nn.Module:
    if kind in ("v1", "v2"):
        config = DiffCLIPTextConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            attention_version=int(kind[1]),
            bos_token_id=VOCAB - 2,
            eos_token_id=VOCAB - 1,
        )
        return HFTextEncoder("", EMBED_DIM, config, pooler_type="cls_pooler", proj_type="linear")
    kwargs = {"custom": _CUSTOM, "class token": {"embed_cls": True}}.get(kind, {})
    return TextTransformer(CONTEXT, VOCAB, 24, 4, 2, output_dim=EMBED_DIM, **kwargs)


def clip(image: str = "v1", text: str = "open_clip", seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a CustomTextCLIP in evaluation mode, with weights that make attention maps far from uniform."""
    model = open_clip.CustomTextCLIP(
        EMBED_DIM,
        {"image_size": 8, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
        {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 8, "heads": 1, "layers": 1},
    )
    model.visual, model.text = image_tower(image), text_tower(text)
    return randomized(model, seed).to(dtype).eval()


def plain_clip(seed: int = 0) -> nn.Module:
    """Build open_clip's CLIP, whose text tower is not a module of its own."""
    vision_cfg = {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
    text_cfg = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 24, "heads": 4, "layers": 2}
    return randomized(open_clip.CLIP(EMBED_DIM, vision_cfg, text_cfg), seed).double().eval()


def randomized(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale") and parameter.dim() == 0:
                continue
            x = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.dim() > 1:
                parameter.copy_(1.5 * x / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(1 + 0.2 * x if name.endswith("weight") else 0.4 * x)
    return model


def images(count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def texts(count: int = 2) -> torch.Tensor:
    """Draw token ids, each text with an end-of-text token and padding behind it."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, VOCAB - 2, (count, CONTEXT), generator=generator)
    for i in range(count):
        ids[i, 4 + i % 4] = VOCAB - 1
        ids[i, 5 + i % 4 :] = 0
    return ids


def hooks_of(model: nn.Module) -> int:
    """Count the hooks in ``model``."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
