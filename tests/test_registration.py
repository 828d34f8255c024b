"""register(): repeatable, refuses clashes, leaves nothing behind."""

import json
import threading

import open_clip
import pytest
from conftest import run_python

import diffclip_openclip
from diffclip_openclip import registration

OFF = {"DIFFCLIP_OPENCLIP_AUTOLOAD": "0"}


def test_repeating_changes_nothing():
    before = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    threads = [threading.Thread(target=diffclip_openclip.register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: open_clip.get_model_config(name) for name in open_clip.list_models()} == before


def test_names_are_those_of_the_design():
    sizes = ("S-16", "B-16", "B-32", "L-14", "H-14", "nano")
    expected = {f"DiffCLIP-{size}" for size in sizes} | {f"CLIP-{size}-baseline" for size in sizes}
    expected |= {"DiffCLIP-B-16-vision", "DiffCLIP-B-16-dynamic"}
    assert set(diffclip_openclip.model_names()) == expected
    assert expected <= set(open_clip.list_models())


def test_threads_and_no_files_left(tmp_path):
    code = (
        "import threading, sys, importlib, os, open_clip\n"
        "from diffclip_openclip import registration\n"
        "print('DiffCLIP-B-16' in open_clip.list_models(), os.listdir(os.environ['TMPDIR']))"
    )
    folder = tmp_path / "tmp"
    folder.mkdir()
    assert run_python(code, tmp_path, TMPDIR=str(folder)).endswith("True []\n")


CLASHES = {
    "open_clip model": (
        "import json, pathlib, open_clip\n"
        "config = open_clip.get_model_config('ViT-B-16')\n"
        "pathlib.Path('DiffCLIP-B-16.json').write_text(json.dumps(config))\n"
        "open_clip.add_model_config('DiffCLIP-B-16.json')\n",
        "open_clip already has other models named ['DiffCLIP-B-16']",
    ),
    "text architecture": (
        "from open_clip.hf_configs import arch_dict\narch_dict['diffclip_text'] = {'pooler': 'mean_pooler'}\n",
        "arch_dict already has another entry 'diffclip_text'",
    ),
    "transformers model type": (
        "from transformers import AutoConfig, PretrainedConfig\n"
        "class Foreign(PretrainedConfig):\n    model_type = 'diffclip_text'\n"
        "AutoConfig.register('diffclip_text', Foreign)\n",
        "transformers already has another model type 'diffclip_text', from __main__",
    ),
}


@pytest.mark.parametrize("clash", CLASHES)
def test_a_different_model_of_the_same_name_is_not_overwritten(clash, tmp_path):
    code, message = CLASHES[clash]
    code += (
        "try:\n    import diffclip_openclip\nexcept ValueError as error:\n    print('refused:', error)\n"
        "import open_clip\nprint('DiffCLIP-L-14' in open_clip.list_models())"
    )
    output = run_python(code, tmp_path, **OFF)
    assert f"refused: {message}" in output
    assert output.endswith("False\n")


def test_missing_configs_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(registration, "__file__", str(tmp_path / "a" / "b" / "registration.py"))
    with pytest.raises(FileNotFoundError, match=r"looked in .*model_configs.*reinstall"):
        registration.config_dir()


def test_configs_use_absolute_text_paths_only_in_open_clip():
    for path in registration.config_dir().glob("*.json"):
        text_cfg = json.loads(path.read_text())["text_cfg"]
        if "hf_model_name" in text_cfg:
            known = open_clip.get_model_config(path.stem)["text_cfg"]["hf_model_name"]
            assert known == str(registration.config_dir() / text_cfg["hf_model_name"])
            assert json.loads((path.parent / text_cfg["hf_model_name"] / "config.json").read_text())
