"""What is measured inside attention is right on maps small enough for a pencil, and on the models' own calls."""

import json
import math
import runpy
import sys

import open_clip
import pytest
import torch
from attention_inside import MEASURES, summarize
from attention_statistics import (
    SecondMoments,
    cka_of_heads,
    column_weights,
    head_outputs,
    measure_tower,
    negative_mass,
    sink_ratio,
)
from support.common import REPOSITORY

from diffclip_openclip.explain import attention_maps, lambdas
from diffclip_openclip.explain.attention_formulas import weighted_difference, write_out
from diffclip_openclip.explain.maps import attention_layers, recorded

MODELS = ("CLIP-nano-baseline", "DiffCLIP-nano", "DiffCLIP-V2-nano")


def _map(*rows):
    return torch.tensor([[rows]], dtype=torch.float64)


def test_sink_of_a_plain_map():
    # column sums 2, 0.5 and 0.5
    found = _map([0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0])
    assert column_weights(found).flatten().tolist() == [2, 0.5, 0.5]
    assert sink_ratio(found).item() == 4


def test_sink_and_negative_mass_of_a_difference():
    # A1 - A2 / 2 with A1 = (1, 0), (1/2, 1/2) and A2 = (0, 1), (0, 1)
    a1, a2 = _map([1.0, 0.0], [0.5, 0.5]), _map([0.0, 1.0], [0.0, 1.0])
    found = weighted_difference(a1, a2, torch.tensor(0.5))
    assert found.flatten().tolist() == [1, -0.5, 0.5, 0]
    # columns 1.5 and 0.5 by absolute value, their median 1
    assert sink_ratio(found).item() == 1.5
    assert negative_mass(found).item() == 0.25
    assert negative_mass(a1).item() == 0


def test_sink_of_even_maps():
    assert sink_ratio(torch.full((1, 1, 5, 5), 0.2)).item() == pytest.approx(1)
    causal = torch.ones(5, 5).tril()
    causal = causal / causal.sum(-1, keepdim=True)
    # columns 137/60, 77/60, 47/60, 27/60 and 12/60
    assert sink_ratio(causal[None, None]).item() == pytest.approx(137 / 47)


def _cka(*heads):
    moments = SecondMoments()
    rows = torch.cat([torch.tensor(head, dtype=torch.float64).view(len(head), -1) for head in heads], dim=1)
    for part in (rows[:1], rows[1:]):  # in batches
        moments.add(part)
    return cka_of_heads(moments.covariance(), len(heads))


def test_cka_of_heads():
    assert _cka([1.0, 0, -1], [3.0, 1, -1]) == pytest.approx(1)  # scaled and shifted
    assert _cka([1.0, 0, -1], [1.0, -2, 1]) == pytest.approx(0)  # uncorrelated
    # squared correlation: centred, the second is (2, -1, -1) / 3; 1^2 / (2 x 2/3)
    assert _cka([1.0, 0, -1], [1.0, 0, 0]) == pytest.approx(0.75)
    assert _cka([[1.0, 0], [0, 1], [0, 0]], [[0, 1.0], [-1, 0], [0, 0]]) == pytest.approx(1)  # rotated
    # the mean over the three pairs of heads: 1, 0.75 and 0.75
    assert _cka([1.0, 0, -1], [1.0, 0, -1], [1.0, 0, 0]) == pytest.approx(2.5 / 3)
    assert math.isnan(_cka([1.0, 0, -1]))  # one head has no pair


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    texts = open_clip.get_tokenizer("DiffCLIP-nano")(["a cat", "a dog", "a sun"])
    return torch.randn(3, 3, 48, 48, generator=generator), texts


@pytest.mark.parametrize("name", [*MODELS, "CLIP-nano-gated"])
def test_measures_are_of_the_models_own_calls(name, inputs):
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    images, texts = inputs
    length = int(texts[0].argmax()) + 1
    for tower, batch, tokens in (("image", images, 17), ("text", texts, length)):
        found = measure_tower(model, tower, batch.split([2, 1]))
        expected = attention_maps(model, **{tower: batch})
        assert len(found) == len(expected)
        for measures, maps in zip(found, expected, strict=True):
            own = maps.attention[..., :tokens, :tokens].double()
            ratio = sink_ratio(own).log().mean().exp()
            assert measures["sink"] == pytest.approx(ratio.item(), rel=1e-4)
            assert measures.keys() == (
                set(MEASURES) if maps.a2 is not None else {"sink", "first token", "CKA of heads"}
            )
            first = column_weights(own).argmax(-1) == 0
            assert measures["first token"] == pytest.approx(first.double().mean().item())
            if maps.a2 is not None:
                for name_of_map, single in (("A1", maps.a1), ("A2", maps.a2)):
                    alone = sink_ratio(single[..., :tokens, :tokens].double()).log().mean().exp()
                    assert measures[f"sink of {name_of_map}"] == pytest.approx(alone.item(), rel=1e-4)
                assert measures["negative mass"] == pytest.approx(negative_mass(own).mean().item(), rel=1e-4)
        with recorded(model, attention_layers(model, tower)) as calls, torch.no_grad():
            (model.encode_image if tower == "image" else model.encode_text)(batch)
            module, call = list(calls.items())[-1]
            outputs = head_outputs(module, write_out(module, *call.args, **call.kwargs))
            projection = module.proj if hasattr(module, "proj") else module.out_proj
            torch.testing.assert_close(projection(outputs), call.output, rtol=1e-4, atol=1e-5)
        whole = SecondMoments()
        whole.add(outputs[:, :tokens].flatten(0, 1))
        assert found[-1]["CKA of heads"] == pytest.approx(cka_of_heads(whole.covariance(), own.shape[1]), rel=1e-3)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_lambda_is_the_layers_or_the_mean_over_tokens(inputs):
    torch.manual_seed(0)
    model = open_clip.create_model("DiffCLIP-nano").eval()
    found = measure_tower(model, "image", [inputs[0]])
    assert [row["lambda"] for row in found] == pytest.approx([row.lambda_ for row in lambdas(model)[:4]], rel=1e-5)
    assert [row["spread of lambda"] for row in found] == [0] * 4
    model = open_clip.create_model("DiffCLIP-V2-nano").eval()
    values = attention_maps(model, text=inputs[1])[0].lambda_[..., : int(inputs[1][0].argmax()) + 1, :]
    row = measure_tower(model, "text", [inputs[1]])[0]
    assert row["lambda"] == pytest.approx(values.mean().item(), rel=1e-5)
    assert row["spread of lambda"] == pytest.approx(values.std(correction=0).item(), rel=1e-3)
    assert row["spread of lambda"] > 0


def test_rows_compare_with_the_first_group_where_it_has_the_measure():
    plain = [{("image", 0, "sink"): 2.0}, {("image", 0, "sink"): 4.0}]
    other = [{("image", 0, "lambda"): 0.8, ("image", 0, "sink"): own} for own in (1.0, 2.0)]
    rows = summarize({"A": plain, "B": other})
    assert [(row["group"], row["measure"], row["mean"]) for row in rows] == [
        ("A", "sink", 3.0),
        ("B", "sink", 1.5),
        ("B", "lambda", 0.8),
    ]
    assert [row["difference"] and row["difference"]["mean"] for row in rows] == [None, -1.5, None]


def test_the_command_writes_rows_and_a_figure(nano_checkpoints, eval_root, tmp_path, monkeypatch, capsys):
    specs = [spec for name in MODELS for spec in nano_checkpoints[name]]
    arguments = [*(f"--model={spec}" for spec in specs), "--data", str(eval_root / "groups"), "--num-images", "5"]
    output = tmp_path / "inside.json"
    monkeypatch.setattr(sys, "argv", ["attention_inside.py", *arguments, "--output", str(output)])
    runpy.run_path(str(REPOSITORY / "benchmarks" / "attention_inside.py"), run_name="__main__")
    found = json.loads(output.read_text())
    assert list(found["models"]) == list(MODELS)
    assert found["images"] == 5
    layers = {(row["group"], row["tower"], row["layer"]) for row in found["rows"]}
    assert len(layers) == 3 * (4 + 2)
    assert all(len(row["seeds"]) == len(nano_checkpoints[row["group"]]) for row in found["rows"])
    assert output.with_suffix(".png").is_file()
    assert "| image: negative mass | – |" in capsys.readouterr().out
