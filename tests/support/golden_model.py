"""Rebuilds the weights and inputs of tests/golden/*.npz by the recipe of tests/golden/README.md."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CustomTextCLIP

from diffclip_openclip import from_reference

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("tiny_static", "tiny_dynamic", "b16_static", "b16_dynamic")
_NORMS = ("norm1.weight", "norm2.weight", "norm.weight", "ln_1.weight", "ln_2.weight", "ln_final.weight")
_TOKENS = ("token_embedding.weight", "positional_embedding", "visual.pos_embed", "visual.cls_token")


def load(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"golden_{case}.npz"))


def facts_of(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"golden_{case}.json").read_text())


def reference_weight(key: str, shape: list[int]) -> torch.Tensor:
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key == "logit_scale":
        x = np.array(math.log(1 / 0.07))
    elif key.endswith(_NORMS):
        x = 1 + 0.1 * x
    elif ".lambda_" in key:
        x = 0.1 * x
    elif key.endswith("bias") or len(shape) == 1:
        x = 0.02 * x
    elif key == "visual.patch_embed.proj.weight":
        x = x / math.sqrt(3 * 16 * 16)
    elif key in _TOKENS:
        x = 0.1 * x
    elif key in ("image_projection", "text_projection"):
        x = x / math.sqrt(shape[0])
    else:
        x = x / math.sqrt(shape[1])
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def reference_state_dict(case: str) -> dict[str, torch.Tensor]:
    return {key: reference_weight(key, shape) for key, shape in facts_of(case)["shapes"].items()}


def inputs(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, size, size), float32, and token ids (n, 77)."""
    n, size = (4, 64) if case.startswith("tiny") else (2, 224)
    random = np.random.RandomState(0)
    images = torch.from_numpy(random.standard_normal((n, 3, size, size)).astype(np.float32))
    text = torch.zeros(n, 77, dtype=torch.int64)
    for i in range(n):
        length = random.randint(3, 76)
        text[i, 0] = 49406
        text[i, 1:length] = torch.from_numpy(random.randint(0, 49406, size=length - 1))
        text[i, length] = 49407
    text[0, 3] = 0
    return images, text


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


def tiny_model(tmp_path: Path, lambda_init: float | str, **overrides: Any) -> CustomTextCLIP:
    """The golden "tiny" size as an open_clip model: timm tower and text tower built from a config folder."""
    import timm

    from diffclip_openclip import DiffCLIPTextConfig

    DiffCLIPTextConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        lambda_init=lambda_init,
    ).save_pretrained(tmp_path)
    kind = "diffclip_dynamic" if lambda_init == "dynamic" else "diffclip"
    text_cfg: dict[str, Any] = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    text_cfg |= {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}
    vision_cfg = {"timm_model_name": f"vit_base_patch16_{kind}_224", "timm_pool": "token", "timm_proj": "linear"}
    model = CustomTextCLIP(embed_dim=64, vision_cfg=vision_cfg, text_cfg=text_cfg, **overrides)
    model.visual.trunk = timm.create_model(
        vision_cfg["timm_model_name"], img_size=64, embed_dim=128, depth=3, num_heads=4, num_classes=0
    )
    model.visual.head.proj = torch.nn.Linear(128, 64, bias=False)
    return model


def golden_model(case: str, tmp_path: Path) -> CustomTextCLIP:
    """The case's model with its weights, float32."""
    import open_clip

    if case.startswith("tiny"):
        model = tiny_model(tmp_path, "dynamic" if case.endswith("dynamic") else 0.8)
    else:
        model = open_clip.create_model("DiffCLIP-B-16-dynamic" if case.endswith("dynamic") else "DiffCLIP-B-16")
    model.load_state_dict(from_reference(reference_state_dict(case)))
    return model
