"""Image towers as transformers models, for LLaVA-style models that read a tower's hidden states.

A tower is a timm ViT without its projection into the joint space. What it gives follows transformers'
``CLIPVisionModel`` (transformers@v5.23.0:src/transformers/models/clip/modeling_clip.py): ``hidden_states`` and
``last_hidden_state`` are before the final norm, and ``pooler_output`` is the class token behind it.

Shape legend: B batch, N tokens (the class token, then the patches), C hidden_size.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from timm.models import VisionTransformer
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from diffclip_openclip.models import TRUNK
from diffclip_openclip.towers.configs import DiffCLIPVisionConfig
from diffclip_openclip.towers.trunk import create_trunk

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor


class DiffCLIPVisionModel(PreTrainedModel):
    """A timm ViT, ``trunk``, behind the interface of transformers' ``CLIPVisionModel``.

    Raises:
        ValueError: the config names a tower that is no ViT with one class token.
    """

    config: DiffCLIPVisionConfig
    config_class = DiffCLIPVisionConfig
    base_model_prefix = "diffclip_vision"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "DifferentialBlock"]  # noqa: RUF012  declared so by transformers

    def __init__(self, config: DiffCLIPVisionConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.trunk = create_trunk(config.timm_model_name)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, which only warns about missing weights: here they are an error.

        Raises:
            ValueError: the checkpoint lacks some of the tower's weights.
        """
        model, info = cast(Any, super()).from_pretrained(*args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            raise ValueError(
                f"the checkpoint lacks {len(info['missing_keys'])} weights of {model.config.timm_model_name}: "
                f"{', '.join(sorted(info['missing_keys']))}; make it anew with DiffCLIPVisionModel.from_open_clip"
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_open_clip(cls, directory: str | Path) -> "DiffCLIPVisionModel":
        """The image tower of an open_clip model directory, in float32 and evaluation mode.

        Args:
            directory: with open_clip_config.json and open_clip_model.safetensors.

        Raises:
            FileNotFoundError: one of the two is missing.
            ValueError: the model's image tower is not a timm one, or its weights do not fit.
        """
        directory = Path(directory)
        model = cls(_open_clip_tower(directory))
        path = _existing(directory / "open_clip_model.safetensors")
        with safe_open(path, framework="pt") as file:
            weights = {key.removeprefix(TRUNK): file.get_tensor(key) for key in file.keys() if key.startswith(TRUNK)}  # noqa: SIM118  not a dict
        try:
            model.trunk.load_state_dict(weights)
        except RuntimeError as error:  # torch's answer, which lists what does not fit
            raise ValueError(f"{path} does not hold a {model.config.timm_model_name}: {error}") from error
        return model.eval()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.trunk.patch_embed

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, VisionTransformer):
            module.init_weights()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: preprocessed images, (B, 3, image_size, image_size).
            output_hidden_states: also give the state before the first and behind each block, each (B, N, C).

        Returns:
            ``last_hidden_state`` (B, N, C) and ``pooler_output`` (B, C).

        Raises:
            ValueError: images of another size.
        """
        size = self.config.image_size
        if pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"the images are {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels, "
                f"{self.config.timm_model_name} takes {size} x {size}; preprocess them with its own image processor"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        trunk = self.trunk
        x_BNC = trunk.patch_embed(pixel_values.to(trunk.patch_embed.proj.weight.dtype))
        x_BNC = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(x_BNC)))
        hidden_states = [x_BNC]
        for block in trunk.blocks:
            if self.gradient_checkpointing and self.training:
                x_BNC = self._gradient_checkpointing_func(block.__call__, x_BNC)
            else:
                x_BNC = block(x_BNC)
            hidden_states.append(x_BNC)
        return BaseModelOutputWithPooling(
            last_hidden_state=x_BNC,
            pooler_output=trunk.norm(x_BNC[:, 0]),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


def image_processor_from_open_clip(directory: str | Path) -> "CLIPImageProcessor":
    """The preprocessing of an open_clip model directory; saved beside the tower, ``AutoImageProcessor`` finds it.

    Raises:
        FileNotFoundError: no open_clip_config.json.
        ValueError: the image tower is not a timm one, or the images are resized in a way that
            ``CLIPImageProcessor`` does not have.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict
    from transformers import CLIPImageProcessor

    directory = Path(directory)
    preprocess = merge_preprocess_dict(PreprocessCfg(), _open_clip_config(directory).get("preprocess_cfg", {}))
    filters = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
    if preprocess["resize_mode"] != "shortest" or preprocess["interpolation"] not in filters:
        raise ValueError(
            f"{directory} resizes with resize_mode {preprocess['resize_mode']!r} and interpolation "
            f"{preprocess['interpolation']!r}; only 'shortest' with {' or '.join(map(repr, filters))} can be converted"
        )
    size = _open_clip_tower(directory).image_size
    return CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=filters[preprocess["interpolation"]],
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}; give a directory in open_clip's form with safetensors weights, as diffclip convert "
            "makes them"
        )
    return path


def _open_clip_config(directory: Path) -> dict[str, Any]:
    return json.loads(_existing(directory / "open_clip_config.json").read_text(encoding="utf-8"))


def _open_clip_tower(directory: Path) -> DiffCLIPVisionConfig:
    vision_cfg = _open_clip_config(directory)["model_cfg"]["vision_cfg"]
    if "timm_model_name" not in vision_cfg:
        raise ValueError(
            f"the image tower of {directory} is open_clip's own, not one of timm: its vision_cfg is {vision_cfg}; "
            "only models whose vision_cfg has a timm_model_name can be used"
        )
    return DiffCLIPVisionConfig(timm_model_name=vision_cfg["timm_model_name"])


AutoModel.register(DiffCLIPVisionConfig, DiffCLIPVisionModel, exist_ok=True)
