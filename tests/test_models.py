"""The tables of models and towers agree with what is registered by their names."""

import json

import open_clip
import pytest
import timm

from diffclip_openclip import model_names
from diffclip_openclip.models import KINDS, MODELS, SIZES, TOWERS, VARIANTS
from diffclip_openclip.registration import config_dir
from diffclip_openclip.towers import timm_vit


def test_every_packaged_model_is_in_the_table():
    assert sorted(MODELS) == model_names()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_of_the_family_that_its_config_makes_it(name):
    config = json.loads((config_dir() / f"{name}.json").read_text())
    kind = KINDS[TOWERS[config["vision_cfg"]["timm_model_name"]].kind]
    if kind.version == 2:
        expected = None
    elif kind.version == 0:
        expected = "CLIP" if name.endswith("-baseline") else None  # the paper has no controls
    elif "hf_model_name" not in config["text_cfg"]:
        expected = "DiffCLIP†"
    else:
        expected = {"static": "DiffCLIP", "dynamic": "DiffCLIP*"}[kind.variant]
    assert MODELS[name].family == expected


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].baseline])
def test_a_baseline_is_a_plain_model_of_the_same_size(name):
    towers = [
        TOWERS[open_clip.get_model_config(each)["vision_cfg"]["timm_model_name"]]
        for each in (name, MODELS[name].baseline)
    ]
    assert towers[0].size == towers[1].size
    assert towers[1].kind == "plain"


def test_towers_are_timms_and_ours():
    assert sorted(timm_vit.__all__) == sorted(name for name, tower in TOWERS.items() if tower.is_ours)
    for name, tower in TOWERS.items():
        assert timm.is_model(name)
        assert timm.get_pretrained_cfg(name).input_size == (
            3,
            SIZES[tower.size].image_size,
            SIZES[tower.size].image_size,
        )
    assert {kind.variant for kind in KINDS.values()} - {None} == set(VARIANTS)
