"""A DiffCLIP image tower for TinyLLaVA Factory v1: registers ``diffattn_vit`` with its vision tower factory.

Copy this file into ``tinyllava/model/vision_tower/``, whose modules the factory imports by itself, and name a tower as
``diffattn_vit:DIRECTORY``. The factory takes the last registered name that occurs in what is before the colon, so a
name with "clip" in it would be at the mercy of the order of imports. Features are those of ``VisionTower.forward``:
``hidden_states[-2]`` unless another layer is asked for, without the class token, (batch, patches, hidden_size).
"""

from tinyllava.model.vision_tower import register_vision_tower
from tinyllava.model.vision_tower.base import VisionTower
from transformers import AutoImageProcessor

from diffclip_openclip import DiffCLIPVisionConfig, DiffCLIPVisionModel


@register_vision_tower("diffattn_vit")
class DiffAttnVisionTower(VisionTower):
    def __init__(self, cfg: DiffCLIPVisionConfig) -> None:
        super().__init__(cfg)
        self._vision_tower = DiffCLIPVisionModel(cfg)
        self._image_processor = AutoImageProcessor.from_pretrained(cfg.model_name_or_path)
