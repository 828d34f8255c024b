"""Segmentation reads the data sets' own formats, scores as counted by hand, and treats both kinds of model alike."""

import json
import runpy
import sys

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from segmentation import class_logits, dense_embeddings, estimate, starts
from segmentation_data import class_ious, count_pixels, mean_iou, pixel_accuracy, read_ade20k, read_annotation, read_voc
from support.common import REPOSITORY
from support.segmentation_data import halves, write_ade20k, write_voc

# data sets


def test_voc_is_read_as_published(tmp_path):
    labels = halves(0, 20)
    labels[0] = 255
    data = read_voc(write_voc(tmp_path, {"2007_000033": labels, "2007_000042": halves(1, 2)}))
    assert [image.name for image, _ in data.files] == ["2007_000033.jpg", "2007_000042.jpg"]
    assert len(data.class_names) == 20
    assert (data.class_names[0], data.class_names[19]) == ("aeroplane", "tvmonitor")
    found = read_annotation(data.files[0][1], 20)
    assert found.shape == (30, 40)
    assert found[0].unique().tolist() == [-1]
    assert (found[1:, :20] == -1).all()
    assert (found[1:, 20:] == 19).all()


def test_ade20k_is_read_as_published(tmp_path):
    data = read_ade20k(write_ade20k(tmp_path, {"ADE_val_00000001": halves(0, 3)}))
    assert data.class_names == ["wall", "building", "bed"]
    assert read_annotation(data.files[0][1], 3).unique().tolist() == [-1, 2]
    with pytest.raises(ValueError, match="has the class 3, and there are 2"):
        read_annotation(data.files[0][1], 2)
    with pytest.raises(ValueError, match="of the mode RGB"):
        read_annotation(write_rgb(tmp_path / "rgb.png"), 3)


def write_rgb(path):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(path)
    return path


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*val\.txt; give VOCdevkit/VOC2012 of http"):
        read_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*objectInfo150\.txt; give the folder in http"):
        read_ade20k(tmp_path)
    root = write_voc(tmp_path / "voc", {"a": halves(1, 2)})
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg; give the whole data set"):
        read_voc(root)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="has no validation images"):
        read_voc(root)


# scores


def test_iou_is_that_counted_by_hand():
    labels = torch.tensor([[0, 0, 1], [1, -1, -1]])
    predicted = torch.tensor([[0, 1, 1], [1, 0, 3]])
    counts = count_pixels(predicted, labels, 4)
    # both, predicted and true pixels of each class; what is ignored counts nowhere
    assert counts.tolist() == [[1, 2, 0, 0], [1, 3, 0, 0], [2, 2, 0, 0]]
    assert class_ious(counts)[:2].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert np.isnan(class_ious(counts)[2:]).all()  # classes that are nowhere are left out
    assert mean_iou(counts) == pytest.approx(7 / 12)
    assert pixel_accuracy(counts) == 0.75
    # over images, intersections and unions are summed first
    other = count_pixels(torch.tensor([[2, 2]]), torch.tensor([[0, 2]]), 4)
    assert mean_iou(counts + other) == pytest.approx(np.mean([1 / 3, 2 / 3, 1 / 2]))


def test_one_model_has_an_interval_over_images():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.4
    counts = np.stack([np.stack([[own], [1], [1]]) for own in right.astype(int)])
    found = estimate([counts], pixel_accuracy, seed=0)
    half = 1.96 * right.std() / 200**0.5
    assert (found.low, found.high) == pytest.approx((right.mean() - half, right.mean() + half), abs=0.2 * half)
    assert estimate([counts, counts], pixel_accuracy, seed=0).seeds == [right.mean()] * 2


# the read-out


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def _values_alone(model, image):
    """Compute the last layer by MaskCLIP's formula, v alone through the output projection, from the tower's parts."""
    trunk = model.visual.trunk
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(image)))
    *blocks, last = trunk.blocks
    for block in blocks:
        x = block(x)
    own = last.norm1(x)
    attention, C = last.attn, x.shape[-1]
    v = attention.qkv(own)[..., -C:]  # values are the last rows in all versions
    if getattr(attention, "gate", None) is not None:
        v = v * attention.gate(own).sigmoid()
    if hasattr(attention, "sub_norm"):
        sign = torch.sign(1 - attention.compute_lambda())
        e = 2 * attention.head_dim
        normed = F.rms_norm(v.unflatten(-1, (-1, e)), (e,), attention.sub_norm.weight) * sign
        v = (normed * (1 - attention.lambda_init)).flatten(-2)
    elif hasattr(attention, "lambda_proj"):
        rest = 1 - attention.lambda_proj(own).sigmoid()
        v = (v.unflatten(-1, (-1, attention.head_dim)) * rest[..., None]).flatten(-2)
    x = x + attention.proj(v)
    x = trunk.norm(x + last.mlp(last.norm2(x)))
    return F.normalize(model.visual.head(x[:, 1:]), dim=-1).unflatten(1, (4, 4))


@pytest.mark.parametrize("name", ["CLIP-nano-baseline", "CLIP-nano-gated", "DiffCLIP-nano", "DiffCLIP-V2-nano"])
def test_the_read_out_is_maskclips(name, image):
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        before = model.encode_image(image)
        found = dense_embeddings(model, image)
        torch.testing.assert_close(found, _values_alone(model, image), rtol=1e-3, atol=1e-3)
        assert torch.equal(model.encode_image(image), before)  # no hook stays
    assert found.shape == (2, 4, 4, 128)


def test_the_last_map_has_no_influence(image):
    torch.manual_seed(0)
    model = open_clip.create_model("DiffCLIP-nano").eval()
    found = dense_embeddings(model, image)
    with torch.no_grad():
        weight = model.visual.trunk.blocks[-1].attn.qkv.weight
        weight[: 2 * 128].normal_()  # queries and keys
    torch.testing.assert_close(dense_embeddings(model, image), found)


def test_open_clips_own_tower_is_read_out_alike(image):
    torch.manual_seed(0)
    vision_cfg = {"image_size": 48, "patch_size": 12, "width": 32, "layers": 2, "head_width": 8}
    text_cfg = {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1}
    model = open_clip.CLIP(16, vision_cfg, text_cfg).eval()
    visual = model.visual
    found = dense_embeddings(model, image)
    with torch.no_grad():
        x = visual.transformer.resblocks[0](visual._embeds(image))
        last = visual.transformer.resblocks[1]
        v = F.linear(last.ln_1(x), last.attn.in_proj_weight[-32:], last.attn.in_proj_bias[-32:])
        x = x + last.attn.out_proj(v)
        x = visual.ln_post(x + last.mlp(last.ln_2(x)))[:, 1:] @ visual.proj
    torch.testing.assert_close(found, F.normalize(x, dim=-1).unflatten(1, (4, 4)), rtol=1e-4, atol=1e-5)
    assert not visual.output_tokens


def test_a_tower_without_class_token_is_refused(image):
    model = open_clip.create_model("CLIP-nano-baseline").eval()
    model.visual.trunk.global_pool = "avg"
    with pytest.raises(ValueError, match="does not pool by a class token"):
        dense_embeddings(model, image)


def test_windows_cover_the_image():
    assert starts(224, 224, 112) == [0]
    assert starts(336, 224, 112) == [0, 112]
    assert starts(337, 224, 112) == [0, 112, 113]
    assert starts(500, 224, 112) == [0, 112, 224, 276]


def test_overlapping_windows_are_averaged(monkeypatch):
    # every window says its own brightness for the only class
    monkeypatch.setattr(
        "segmentation.dense_embeddings", lambda model, crops: crops.mean((1, 2, 3))[:, None, None, None]
    )
    image = torch.zeros(3, 4, 6)
    image[..., 2:4] = 1
    found = class_logits(None, image, torch.ones(1, 1), window=4)
    # windows at 0 and 2 are half bright each
    assert found.shape == (1, 4, 6)
    assert torch.allclose(found, torch.tensor(0.5))
    image[..., 4:] = 1
    found = class_logits(None, image, torch.ones(1, 1), window=4)
    assert found[0, 0].tolist() == [0.5, 0.5, 0.75, 0.75, 1, 1]


def test_the_command_writes_rows_and_a_figure(nano_checkpoints, tmp_path, monkeypatch, capsys):
    voc = write_voc(tmp_path / "voc", {"a": halves(0, 20), "b": halves(1, 2, (60, 33))})
    ade20k = write_ade20k(tmp_path / "ade", {"ADE_val_00000001": halves(1, 3)})
    specs = [*nano_checkpoints["CLIP-nano-baseline"], *nano_checkpoints["DiffCLIP-nano"]]
    output = tmp_path / "segmentation.json"
    arguments = [*(f"--model={spec}" for spec in specs), "--voc", str(voc), "--ade20k", str(ade20k)]
    monkeypatch.setattr(sys, "argv", ["segmentation.py", *arguments, "--output", str(output)])
    monkeypatch.setattr("diffclip_openclip.evaluation.zero_shot.TEMPLATE_SETS", {"openai-80": ["{c}"]})
    runpy.run_path(str(REPOSITORY / "benchmarks" / "segmentation.py"), run_name="__main__")
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    assert {row["data"] for row in rows} == {"VOC 2012 val", "ADE20K val"}
    assert all(0 <= value <= 1 for row in rows for value in row["seeds"])
    assert {row["group"] for row in rows if row["difference"]} == {"DiffCLIP-nano"}
    assert set(rows[-2]["classes"]) == {"wall", "building", "bed"}
    assert output.with_suffix(".png").is_file()
    printed = capsys.readouterr().out
    assert "| VOC 2012 val, mIoU |" in printed
