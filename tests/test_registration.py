"""register(): repeatable, refuses clashes, leaves nothing behind."""

import json
import os
import shutil
import threading

import open_clip
import pytest
import torch
from open_clip.hf_configs import arch_dict
from support.common import run_python
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import diffclip_openclip
from diffclip_openclip import registration
from diffclip_openclip.attention import use_path


def test_repeating_changes_nothing():
    before = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    threads = [threading.Thread(target=diffclip_openclip.register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: open_clip.get_model_config(name) for name in open_clip.list_models()} == before


def test_open_clip_reads_no_folder_again_that_is_gone(tmp_path):
    """In a shared /tmp its name is free for anybody, who would define models at the next ``add_model_config``."""
    code = (
        "import open_clip\npaths = open_clip.factory._MODEL_CONFIG_PATHS\n"
        "print('DiffCLIP-B-16' in open_clip.list_models(), [p for p in paths if not p.exists()], len(paths))"
    )
    assert run_python(code, tmp_path, TMPDIR=str(tmp_path)).endswith("True [] 1\n")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def one_model_missing(monkeypatch):
    """A model that open_clip does not know, and must not keep."""
    models = dict(open_clip.factory._MODEL_CONFIGS)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", models)
    del models["DiffCLIP-nano"]


def test_a_fork_that_ends_within_takes_nothing_from_the_other_process(one_model_missing, monkeypatch):
    add = open_clip.add_model_config

    def forked(folder):
        if child := os.fork():
            os.waitpid(child, 0)
            add(folder)
        else:
            raise SystemExit  # unwinds, as sys.exit() does in somebody's import hook

    monkeypatch.setattr(open_clip, "add_model_config", forked)
    parent = os.getpid()
    try:
        diffclip_openclip.register()
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert "DiffCLIP-nano" in open_clip.list_models()


def test_configs_that_were_taken_away_are_missed(one_model_missing, monkeypatch):
    add = open_clip.add_model_config
    monkeypatch.setattr(open_clip, "add_model_config", lambda folder: (shutil.rmtree(folder), add(folder)))
    with pytest.raises(RuntimeError, match=r"did not take the models \['DiffCLIP-nano'\].*register\(\) again"):
        diffclip_openclip.register()


def test_names_are_those_of_the_design():
    sizes = ("S-16", "B-16", "B-32", "L-14", "H-14", "nano")
    expected = {f"DiffCLIP-{size}" for size in sizes} | {f"CLIP-{size}-baseline" for size in sizes}
    expected |= {f"DiffCLIP-{size}-{variant}" for size in ("B-16", "nano") for variant in ("vision", "dynamic")}
    expected |= {"DiffCLIP-V2-B-16", "DiffCLIP-V2-nano"}
    expected |= {f"CLIP-{size}-{control}" for size in ("B-16", "nano") for control in ("gated", "half-heads")}
    expected |= {f"DiffCLIP-V2-ViT-{size}{act}" for size in ("B-32", "B-16", "L-14") for act in ("", "-quickgelu")}
    assert set(diffclip_openclip.model_names()) == expected
    assert expected <= set(open_clip.list_models())


def test_a_different_model_of_the_same_name_is_not_overwritten(tmp_path):
    """As a user meets it: a config of his own was added before ours."""
    code = (
        "import json, pathlib, open_clip\n"
        "config = open_clip.get_model_config('ViT-B-16')\n"
        "pathlib.Path('DiffCLIP-B-16.json').write_text(json.dumps(config))\n"
        "open_clip.add_model_config('DiffCLIP-B-16.json')\n"
        "try:\n    import diffclip_openclip\nexcept ValueError as error:\n    print('refused:', error)\n"
        "print(open_clip.get_model_config('DiffCLIP-B-16') == config, 'DiffCLIP-L-14' in open_clip.list_models())"
    )
    output = run_python(code, tmp_path, DIFFCLIP_OPENCLIP_AUTOLOAD="0")
    assert "refused: open_clip already has other models named ['DiffCLIP-B-16']" in output
    assert output.endswith("True False\n")


def test_another_text_architecture_is_not_overwritten(monkeypatch):
    foreign = {"pooler": "mean_pooler"}
    monkeypatch.setitem(arch_dict, "diffclip_text", foreign)
    with pytest.raises(ValueError, match=r"arch_dict already has another entry 'diffclip_text'.*mean_pooler"):
        diffclip_openclip.register()
    assert arch_dict["diffclip_text"] is foreign


def test_another_model_type_is_not_overwritten(monkeypatch):
    class Foreign(PretrainedConfig):
        model_type = "diffclip_text"

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "diffclip_text", Foreign)
    with pytest.raises(ValueError, match=rf"another model type 'diffclip_text', from {__name__}"):
        diffclip_openclip.register()
    assert isinstance(AutoConfig.for_model("diffclip_text"), Foreign)


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


@pytest.mark.parametrize("name", ["DiffCLIP-nano", "DiffCLIP-V2-nano"])
def test_whole_models_compile_to_one_graph(name):
    """As the plain ones do; with open_clip's own pooler the adapter's mask breaks the graph."""
    model = open_clip.create_model(name).train()
    images, texts = torch.randn(2, 3, 48, 48), torch.randint(1, 49408, (2, 16))
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    for actual, expected in zip(compiled(images, texts), model(images, texts), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)  # float32, another order of summation


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # open_clip calls this one
@pytest.mark.parametrize("name", ["DiffCLIP-nano", "DiffCLIP-V2-nano"])
def test_gradients_do_not_depend_on_what_is_kept(name):
    """Accelerators make what follows both maps again, within --grad-checkpointing for the second time."""

    def gradients(wide, checkpointing):
        torch.manual_seed(0)
        model = open_clip.create_model(name).double().train()
        if checkpointing:
            model.set_grad_checkpointing()
        images, texts = torch.randn(2, 3, 48, 48, dtype=torch.float64), torch.randint(1, 49408, (2, 16))
        with use_path("sdpa" if wide else "maps"):
            open_clip.ClipLoss()(*model(images, texts)).backward()
        return {key: parameter.grad for key, parameter in model.named_parameters()}

    expected = gradients(False, False)
    for wide, checkpointing in ((False, True), (True, False), (True, True)):
        for key, gradient in gradients(wide, checkpointing).items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12)
