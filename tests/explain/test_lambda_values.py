"""Lambdas of models, of weights in every layout, and over a run are the reference's and the model's own."""

import argparse
import math
import re

import open_clip
import pytest
import timm
import torch
from support.common import run_host, script, train_arguments
from support.explain_models import clip
from support.golden_model import facts_of, golden_model, reference_state_dict

from diffclip_openclip import to_reference
from diffclip_openclip.attention.v1 import dynamic_lambda_init
from diffclip_openclip.explain.lambda_report import show_lambdas
from diffclip_openclip.explain.lambda_values import LayerLambda, lambdas, lambdas_over_training
from diffclip_openclip.weights import convert

GOLDEN = ("tiny_static", "tiny_dynamic")
_NAMES = {"image": "visual.blocks", "text": "transformer.resblocks"}


def _nano(name="DiffCLIP-nano", seed=0):
    """Make a DiffCLIP of the quick start's size with lambdas far from where they start."""
    model = open_clip.create_model(name)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if ".lambda_" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def nano():
    return _nano()


def _of_modules(model):
    """Return (tower, layer, lambda) by the attention modules' own float32 computation."""
    blocks = {"image": model.visual.trunk.blocks, "text": model.text.transformer.layers}
    return [
        (tower, layer, pytest.approx(block.attn.compute_lambda().item(), abs=1e-6))
        for tower in blocks
        for layer, block in enumerate(blocks[tower])
    ]


def _short(rows):
    return [(row.tower, row.layer, row.lambda_) for row in rows]


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("form", ["model", "state dict", "authors' state dict", "theirs with module."])
def test_golden_lambdas(case, form, tmp_path):
    source = golden_model(case, tmp_path)
    variant = None
    if form != "model":
        variant = case.removeprefix("tiny_")
        source = source.state_dict() if form == "state dict" else reference_state_dict(case)
    if "module" in form:
        source = {f"module.{key}": tensor for key, tensor in source.items()}
    rows = lambdas(source, variant)
    found = {f"{_NAMES[row.tower]}.{row.layer}": row.lambda_ for row in rows}
    expected = facts_of(case)["lambda"]
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-12)
    for row in rows:
        assert row.lambda_init == (0.8 if case == "tiny_static" else dynamic_lambda_init(row.layer))
        assert row.lambda_ == pytest.approx(row.exp1 - row.exp2 + row.lambda_init, abs=1e-15)


def test_parts_by_hand():
    weights = {
        "visual.trunk.blocks.0.attn.lambda_q1": torch.tensor([1.0, 2.0]),
        "visual.trunk.blocks.0.attn.lambda_k1": torch.tensor([0.5, 0.25]),
        "visual.trunk.blocks.0.attn.lambda_q2": torch.tensor([3.0, -1.0]),
        "visual.trunk.blocks.0.attn.lambda_k2": torch.tensor([0.0, 2.0]),
    }
    expected = LayerLambda("image", 0, math.e - math.exp(-2) + 0.8, math.e, math.exp(-2), 0.8)
    [row] = lambdas(weights)
    assert vars(row) == pytest.approx(vars(expected), abs=1e-15)
    assert lambdas(weights, "static") == [row]
    [row] = lambdas(weights, "dynamic")
    assert row.lambda_init == pytest.approx(0.2, abs=1e-15)


def test_files_and_directories(nano, tmp_path):
    published = {f"module.{key}": tensor for key, tensor in to_reference(nano.state_dict()).items()}
    torch.save({"state_dict": published, "args": argparse.Namespace(model="x"), "epoch": 3}, tmp_path / "authors.pt")
    torch.save(nano.state_dict(), tmp_path / "open_clip.pt")
    convert(str(tmp_path / "authors.pt"), tmp_path / "static")
    convert(str(tmp_path / "authors.pt"), tmp_path / "dynamic", variant="dynamic")
    for name in ("authors.pt", "open_clip.pt", "static"):
        assert _short(lambdas(tmp_path / name)) == _of_modules(nano), name
        assert lambdas(str(tmp_path / name)) == lambdas(tmp_path / name)
    dynamic = lambdas(tmp_path / "dynamic")
    assert lambdas(tmp_path / "authors.pt", "dynamic") == dynamic
    assert {row.tower for row in dynamic} == {"image", "text"}
    assert [row.lambda_init for row in dynamic] == [dynamic_lambda_init(row.layer) for row in dynamic]
    assert [row.exp1 for row in dynamic] == [row.exp1 for row in lambdas(nano)]
    with pytest.raises(ValueError, match="leave out --variant static"):
        lambdas(tmp_path / "dynamic", "static")


def test_only_differential_towers_have_rows():
    assert {row.tower for row in lambdas(_nano("DiffCLIP-nano-vision"))} == {"image"}
    vision = _nano("DiffCLIP-nano-vision").state_dict()
    assert {row.tower for row in lambdas(vision)} == {row.tower for row in lambdas(to_reference(vision))} == {"image"}
    assert {row.tower for row in lambdas(clip("plain", "v1"))} == {"text"}


def test_models_with_attention_of_timm():
    rows = lambdas(clip("timm's differential"))
    assert [row.lambda_init for row in rows] == [dynamic_lambda_init(0), dynamic_lambda_init(1)]
    expected = [block.attn._compute_lambda().item() for block in clip("timm's differential").visual.trunk.blocks]
    assert [row.lambda_ for row in rows] == pytest.approx(expected, abs=1e-6)
    dual = clip("timm's differential")
    for block in dual.visual.trunk.blocks:
        block.attn = timm.layers.DiffAttention(32, 4, dual_lambda=True)
    with pytest.raises(ValueError, match="neither tower has differential attention with lambda vectors"):
        lambdas(dual)


def test_nothing_to_show(tmp_path):
    baseline = open_clip.create_model("CLIP-nano-baseline")
    torch.save(baseline.state_dict(), tmp_path / "plain.pt")
    for source in (baseline, baseline.state_dict(), tmp_path / "plain.pt", clip("open_clip"), {}):
        with pytest.raises(ValueError, match="there is no lambda: neither tower has differential attention"):
            lambdas(source)
    second = open_clip.create_model("DiffCLIP-V2-nano")
    torch.save(second.state_dict(), tmp_path / "v2.pt")
    for source in (second, second.state_dict(), tmp_path / "v2.pt"):
        with pytest.raises(ValueError, match=r"one for each token that it is given; .*attention_maps shows them"):
            lambdas(source)


def test_bad_input(nano, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.pt"):
        lambdas(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="a model knows its own lambda_init; leave out variant 'static'"):
        lambdas(nano, "static")
    with pytest.raises(ValueError, match="variant is 'gelu'; it must be 'static' or 'dynamic'"):
        lambdas(nano.state_dict(), "gelu")
    key = "text.transformer.layers.1.attn.lambda_k2"
    with pytest.raises(ValueError, match=f"the weights lack {re.escape(key)}"):
        lambdas({name: tensor for name, tensor in nano.state_dict().items() if name != key})
    torch.save(nano.visual.trunk.state_dict(), tmp_path / "tower.pt")
    with pytest.raises(ValueError, match="holds a timm image tower alone"):
        lambdas(tmp_path / "tower.pt")
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match="cut short or damaged"):
        lambdas(tmp_path / "bad.pt")


def _write_run(folder, names, model="DiffCLIP-nano-dynamic", start=0):
    """Write checkpoints as open_clip's trainer does; that of epoch n has the weights of seed n."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text(f"model: {model}\nforce_image_size: None\n")
    for name, epoch in names.items():
        weights = _nano("DiffCLIP-nano", epoch).state_dict()
        weights["logit_scale"] = torch.tensor(float(epoch) / 4)
        content = {"epoch": epoch, "name": "run", "state_dict": weights, "optimizer": {"state": {}}}
        torch.save(content, folder / "checkpoints" / name)


def test_over_training(tmp_path):
    _write_run(tmp_path, {"epoch_10.pt": 10, "epoch_9.pt": 9, "epoch_latest.pt": 5})
    (tmp_path / "checkpoints" / "epoch_best.pt").write_bytes(b"something else")
    run = lambdas_over_training(tmp_path / "checkpoints")
    assert [checkpoint.epoch for checkpoint in run] == [5, 9, 10]
    assert [checkpoint.logit_scale for checkpoint in run] == pytest.approx([math.exp(n / 4) for n in (5, 9, 10)])
    for checkpoint in run:  # the run's params.txt says that lambda_init is DiffCLIP*'s
        assert checkpoint.layers == lambdas(_nano("DiffCLIP-nano", checkpoint.epoch).state_dict(), "dynamic")
    assert lambdas_over_training(str(tmp_path)) == run


def test_the_latest_checkpoint_is_not_counted_twice(tmp_path):
    _write_run(tmp_path, {"epoch_2.pt": 2, "epoch_latest.pt": 2})
    assert [checkpoint.epoch for checkpoint in lambdas_over_training(tmp_path)] == [2]
    _write_run(tmp_path / "only", {"epoch_latest.pt": 7})
    assert [checkpoint.epoch for checkpoint in lambdas_over_training(tmp_path / "only")] == [7]


def test_runs_without_checkpoints(tmp_path, nano):
    with pytest.raises(FileNotFoundError, match=r"there is no epoch_1\.pt or the like, nor epoch_latest\.pt, in"):
        lambdas_over_training(tmp_path)
    with pytest.raises(FileNotFoundError, match="give a run's folder"):
        lambdas_over_training(tmp_path / "missing")
    torch.save(nano.state_dict(), tmp_path / "epoch_latest.pt")
    with pytest.raises(ValueError, match="does not say after which epoch it was written"):
        lambdas_over_training(tmp_path)


def test_a_run_that_does_not_say_its_variant(tmp_path):
    """Ask for it where params.txt is missing or names a model that is not here, and contradict no other."""
    _write_run(tmp_path / "unknown", {"epoch_1.pt": 1, "epoch_2.pt": 2}, model="local-dir:/gone/DYN")
    with pytest.raises(ValueError, match=r"is of local-dir:/gone/DYN, which cannot be found here.* --variant dynamic"):
        show_lambdas(str(tmp_path / "unknown"))
    _write_run(tmp_path / "silent", {"epoch_1.pt": 1, "epoch_2.pt": 2})
    (tmp_path / "silent" / "params.txt").unlink()
    _write_run(tmp_path / "known", {"epoch_1.pt": 1, "epoch_2.pt": 2})
    expected = lambdas_over_training(tmp_path / "known")
    for run in ("unknown", "silent"):
        assert lambdas_over_training(tmp_path / run, "dynamic") == expected
        assert show_lambdas(str(tmp_path / run), variant="dynamic") == show_lambdas(str(tmp_path / "known"))
    with pytest.raises(ValueError, match="leave out --variant dynamic"):
        show_lambdas(str(tmp_path / "known"), variant="dynamic")


@pytest.mark.slow
def test_a_run_of_the_trainer(train_shard, tmp_path):
    command = [script("open_clip_train"), *train_arguments(train_shard), "--epochs", "2", "--save-frequency", "1"]
    run_host([*command, "--save-most-recent", "--lr", "1e-2"], tmp_path)
    first, second = lambdas_over_training(tmp_path / "logs" / "run")
    assert (first.epoch, second.epoch) == (1, 2)
    checkpoint = torch.load(tmp_path / "logs" / "run" / "checkpoints" / "epoch_2.pt", weights_only=True)
    model = open_clip.create_model("DiffCLIP-nano")
    model.load_state_dict(checkpoint["state_dict"])
    assert second.layers == lambdas(model)
    assert second.layers != first.layers
    assert second.logit_scale == pytest.approx(model.logit_scale.exp().item(), abs=1e-5)
