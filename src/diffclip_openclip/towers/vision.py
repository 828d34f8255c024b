"""Define image towers as transformers models, for LLaVA-style models that read a tower's hidden states.

A tower is a timm ViT without its projection into the joint space. What it gives follows transformers'
``CLIPVisionModel`` (transformers@v5.23.0:src/transformers/models/clip/modeling_clip.py): ``hidden_states`` and
``last_hidden_state`` are before the final norm, and ``pooler_output`` is the class token behind it.

Shape legend: B batch, N tokens (the class token, then the patches), C hidden_size.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from safetensors import safe_open
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import CONFIG_NAME, can_return_tuple

from diffclip_openclip.files import read_json
from diffclip_openclip.models import TRUNK, TWIN
from diffclip_openclip.towers.configs import DiffCLIPVisionConfig
from diffclip_openclip.towers.pretrained import DiffCLIPPreTrainedModel, weighted_maps

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor


class Trunk(VisionTransformer):
    """Run timm's ViT and keep each block's state.

    The states are collected in the ViT's own ``forward``, since class token and position embedding belong to no module
    inside it: hooks that bring parameters in place for a call, such as accelerate's and FSDP's, then see this call.
    """

    gradient_checkpointing = False  # transformers sets it, and _gradient_checkpointing_func, to what its user asks for

    @classmethod
    def create(cls, config: DiffCLIPVisionConfig) -> "Trunk":
        """Build the ViT of a config without a head, for images of any size.

        Raises:
            ValueError: it is no ViT with one class token.
        """
        assert config.hidden_size  # which looks at the ViT
        arguments = config.timm_model_args or {}
        trunk: Any = timm.create_model(config.timm_model_name, num_classes=0, dynamic_img_size=True, **arguments)
        trunk.__class__ = cls  # timm's functions for its own models take no class
        return trunk

    def forward(  # type: ignore[override]  # timm's forward gives the pooled state alone
        self, x: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return the pooled state (B, C), the state before the first and behind each block, and maps if asked for.

        Raises:
            ValueError: maps are asked for, and a block is of a kind that has none to return.
        """
        x_BNC = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        states, maps = [x_BNC], []
        for block in self.blocks:
            if output_attentions:
                if not isinstance(block, Block):
                    raise ValueError(
                        f"output_attentions is given, and the maps of {type(block).__name__} are not to be had; "
                        "towers of timm's Block have them"
                    )
                maps.append(weighted_maps(block.attn, block.norm1(x_BNC)))
            if self.gradient_checkpointing and self.training:
                x_BNC = cast(Any, self)._gradient_checkpointing_func(block.__call__, x_BNC)
            else:
                x_BNC = block(x_BNC)
            states.append(x_BNC)
        return self.norm(x_BNC[:, 0]), states, maps


class DiffCLIPVisionModel(DiffCLIPPreTrainedModel):
    """Encode images by a timm ViT, ``trunk``, behind the interface of transformers' ``CLIPVisionModel``.

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
        self.trunk = Trunk.create(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load as transformers does, but take missing weights for an error, about which it only warns.

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
        """Build the image tower of an open_clip model directory, in float32 and evaluation mode.

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
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: preprocessed images, (B, 3, image_size, image_size).
            interpolate_pos_encoding: take images of other sizes too, whole patches each way, and resample the position
                embedding to them as timm does (bicubic, with antialiasing).
            output_hidden_states: also return the state before the first and behind each block, each (B, N, C).
            output_attentions: also return each block's map A1 - lambda A2, (B, h, N, N): h is the number of pairs of
                heads in version 1, of heads in version 2; of a plain ViT, its one map.

        Returns:
            ``last_hidden_state`` (B, N, C) and ``pooler_output`` (B, C).

        Raises:
            ValueError: images of another size.
        """
        self._check_image_size(pixel_values, interpolate_pos_encoding)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        images = pixel_values.to(self.trunk.patch_embed.proj.weight.dtype)
        pooled_BC, hidden_states, attentions = self.trunk(images, output_attentions)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states[-1],
            pooler_output=pooled_BC,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _check_image_size(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> None:
        height, width = pixel_values.shape[-2:]
        name, patches = self.config.timm_model_name, self.trunk.patch_embed
        if interpolate_pos_encoding and (height % patches.patch_size[0] or width % patches.patch_size[1]):
            raise ValueError(
                f"the images are {height} x {width} pixels; with interpolate_pos_encoding {name} takes any number of "
                f"whole patches of {patches.patch_size[0]} x {patches.patch_size[1]} pixels"
            )
        if not interpolate_pos_encoding and (height, width) != patches.img_size:
            raise ValueError(
                f"the images are {height} x {width} pixels, {name} takes {patches.img_size[0]} x "
                f"{patches.img_size[1]}; preprocess them with its own image processor, or pass "
                "interpolate_pos_encoding=True"
            )


def image_processor_from_open_clip(directory: str | Path) -> "CLIPImageProcessor":
    """Build the preprocessing of an open_clip model directory as transformers has it.

    Saved beside the tower, ``AutoImageProcessor`` finds it.

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
    _open_clip_tower(directory)
    size = _open_clip_config(directory)["model_cfg"]["vision_cfg"].get("image_size", 224)
    if type(size) is not int:
        raise ValueError(f"{directory} has images of {size} pixels; only squares can be converted")
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
    content: dict[str, Any] = read_json(_existing(directory / "open_clip_config.json"))
    return content


def _open_clip_tower(directory: Path) -> DiffCLIPVisionConfig:
    vision_cfg = _open_clip_config(directory)["model_cfg"]["vision_cfg"]
    if "timm_model_name" not in vision_cfg:
        raise ValueError(
            f"the image tower of {directory} is open_clip's own, not one of timm: its vision_cfg is {vision_cfg}; "
            "only models whose vision_cfg has a timm_model_name can be used"
        )
    name = vision_cfg["timm_model_name"]
    if isinstance(name, str) and ":" in name:  # the place from which timm is to read it, which may be an old one
        return DiffCLIPVisionConfig(TWIN, read_json(_existing(directory / CONFIG_NAME)).get("model_args"))
    return DiffCLIPVisionConfig(name)


AutoModel.register(DiffCLIPVisionConfig, DiffCLIPVisionModel, exist_ok=True)
