"""Tools that are built on open_clip, each by its block in docs/tools.md: the embeddings are open_clip's own.

They are no dependencies of the tests, being large, so a block runs where its tool is installed.
"""

import io
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.common import EMOJI, REPOSITORY, read_tar
from support.markdown import blocks

from diffclip_cli.main import main

BLOCKS = {block.needs: block.code for block in blocks(REPOSITORY / "docs" / "tools.md", "python")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make what the blocks find in their folder: a run, OUT and a photo."""
    folder = tmp_path_factory.mktemp("tools")
    checkpoint = folder / "logs" / "run" / "checkpoints" / "epoch_1.pt"
    checkpoint.parent.mkdir(parents=True)
    (folder / "logs" / "run" / "params.txt").write_text("model: DiffCLIP-nano\npretrained: \n")
    torch.manual_seed(0)
    state_dict = open_clip.create_model("DiffCLIP-nano").state_dict()
    torch.save({"epoch": 1, "name": "run", "state_dict": state_dict}, checkpoint)
    assert main(["convert", str(checkpoint), str(folder / "OUT")]) == 0
    [(_, drawing)] = read_tar(EMOJI / "train" / "noto.tar", 1)
    Image.open(io.BytesIO(drawing)).convert("RGB").save(folder / "photo.jpg")
    return folder


@torch.no_grad()
def _expected() -> tuple[np.ndarray, np.ndarray]:
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:OUT")
    tokens = open_clip.get_tokenizer("local-dir:OUT")(["a mug"])
    image = model.eval().encode_image(preprocess(Image.open("photo.jpg"))[None], normalize=True)
    return image[0].numpy(), model.encode_text(tokens, normalize=True)[0].numpy()


@pytest.mark.parametrize("tool", BLOCKS)
def test_a_tools_embeddings_are_open_clips(tool, request, monkeypatch):
    pytest.importorskip(tool)
    monkeypatch.chdir(request.getfixturevalue("folder"))
    found: dict = {}
    exec(compile(BLOCKS[tool], f"docs/tools.md, {tool}", "exec"), found)
    image, text = _expected()
    assert {"image", "text", "score"} & found.keys()
    for name, expected in (("image", image), ("text", text)):
        if name in found:
            vector = np.asarray(found[name]).reshape(-1)
            np.testing.assert_allclose(vector / np.linalg.norm(vector), expected, rtol=0, atol=1e-6)
    if "score" in found:
        assert float(found["score"]) == pytest.approx(100 * max(float(image @ text), 0), abs=1e-3)


def test_every_tool_that_can_be_installed_has_a_block():
    page = (REPOSITORY / "docs" / "tools.md").read_text(encoding="utf-8")
    assert page.count("\n## ") == len(BLOCKS) == 7
