"""Compare what benchmarks/step_model.py predicts of a training step with the models themselves."""

import json
import sys

import open_clip
import pytest
from support.common import REPOSITORY, run_host, run_warm, simulates_cuda
from support.recipes import RECIPES

CHECK = """
import json, sys
sys.path.insert(0, BENCHMARKS)
import open_clip, step_check, step_model
rows = {}
for name in ("DiffCLIP-nano", "DiffCLIP-B-16", "DiffCLIP-L-14", "CLIP-B-16-baseline"):
    towers = step_model.towers_of(step_model.empty_model(name))
    rows[name] = [[step_model.activation_bytes([tower]) for tower in towers], step_check.simulated(name)]
model = open_clip.create_model("DiffCLIP-nano", output_dict=True)
towers = step_model.towers_of(model)
rows["CPU"] = [[step_check.cpu_bytes(t) for t in towers], step_check.bytes_of_a_sample(model, (600, 640), "cpu")]
print(json.dumps(rows))
"""


@simulates_cuda
def test_predicted_activations_are_what_is_kept(tmp_path):
    code = CHECK.replace("BENCHMARKS", repr(str(REPOSITORY / "benchmarks")))
    rows = json.loads(run_warm(code, tmp_path).splitlines()[-1])
    for name, (predicted, kept) in rows.items():
        assert predicted == pytest.approx(kept, rel=0.003), name
    assert sum(rows["DiffCLIP-B-16"][1]) <= 1.05 * sum(rows["CLIP-B-16-baseline"][1])


def test_step_model_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import step_model

    model = step_model.empty_model("DiffCLIP-nano")
    image, text = step_model.towers_of(model)
    assert (image.depth, image.width, image.heads, image.tokens, image.inputs) == (4, 128, 4, 17, 3 * 48 * 48)
    assert (text.depth, text.width, text.heads, text.tokens, text.inputs) == (2, 128, 4, 16, 0)
    # residual sums, norms' outputs, q, k, v, both maps' outputs, hidden; norms, sums
    block = 17 * (128 * (8 + 4 + 6 + 4 + 16) + 4 * 4) + 32 * 4 * 4
    assert step_model.block_bytes(image) == block
    assert step_model.activation_bytes([image]) == 4 * block + 17 * 128 * 4 + 2 * image.inputs
    assert step_model.activation_bytes([image], checkpointing=True) == block + 5 * 17 * 128 * 4 + 2 * image.inputs
    # a block: four times C^2 for q, k, v and projection, eight for the MLP; three products of N^2, two with 2 d
    linear, maps = 2 * 12 * 17 * 128**2, 2 * 17**2 * 128 * 3
    ends = 2 * 16 * 3 * 12**2 * 128 + 2 * 128 * 128
    assert step_model.flops(model)[0] == 4 * (linear + maps) + ends
    assert step_model.parameters(model) == sum(p.numel() for p in open_clip.create_model("DiffCLIP-nano").parameters())


@pytest.mark.slow  # builds and counts every size: a quarter of a minute
def test_the_table_of_sizes_is_the_models(tmp_path):
    printed = run_host([sys.executable, str(REPOSITORY / "benchmarks" / "step_model.py")], tmp_path).stdout
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 8
    assert "\n".join(rows) in (RECIPES / "README.md").read_text(encoding="utf-8")
