"""Random state dicts and damaged directories: loaded as they are, or refused by name; never a crash from inside."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.fuzz import NAME, diffclip, few, workplace
from transformers import AutoModel

from diffclip_openclip import DiffCLIPVisionModel, from_reference, to_reference
from diffclip_openclip.weights.loading import load_model

StateDict = Mapping[str, torch.Tensor]
# what is done to one tensor
TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flatten": lambda tensor: tensor.flatten(),
    "transpose": lambda tensor: tensor.transpose(0, -1),
    "unsqueeze": lambda tensor: tensor[None],
    "cut": lambda tensor: tensor[1:],
    "empty": lambda tensor: tensor[:0],
    "scalar": lambda tensor: tensor.sum(),
    "nan": lambda tensor: tensor * math.nan,
    "inf": lambda tensor: tensor + math.inf,
    "half": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "double": lambda tensor: tensor.double(),
    "integers": lambda tensor: (100 * tensor).long(),
    "strided": lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1),
}


@pytest.fixture(scope="module")
def ours() -> StateDict:
    torch.manual_seed(0)
    return open_clip.create_model(NAME).state_dict()


@pytest.fixture(scope="module")
def authors(ours) -> StateDict:
    return to_reference(ours)


def changes(whole: StateDict) -> st.SearchStrategy[dict[str, str]]:
    """What to do to which one to three tensors."""
    keys = st.sampled_from([key for key, value in whole.items() if value.dim()])
    return st.dictionaries(keys, st.sampled_from([*TENSORS, "drop", "rename", "add", "alias"]), min_size=1, max_size=3)


def _changed(whole: StateDict, done: Mapping[str, str]) -> dict[str, torch.Tensor]:
    state_dict = dict(whole)
    for key, change in done.items():
        if change == "add":
            state_dict[f"{key}.more"] = torch.ones(1)
        elif change == "rename":
            state_dict[f"{key}_"] = state_dict.pop(key)
        elif change == "alias":  # one tensor under two names
            others = (value for name, value in whole.items() if name != key and value.shape == whole[key].shape)
            state_dict[key] = next(others, whole[key])
        elif change == "drop":
            del state_dict[key]
        else:
            state_dict[key] = TENSORS[change](whole[key])
    return state_dict


def _fits(state_dict: StateDict, whole: StateDict, prefix: str = "") -> bool:
    """Whether there are the same keys in the same shapes."""
    shapes = [{k: v.shape for k, v in each.items() if k.startswith(prefix)} for each in (state_dict, whole)]
    return shapes[0] == shapes[1]


def _same(loaded: StateDict, given_: StateDict) -> None:
    """Every value is the one that was given, if in another precision."""
    assert loaded.keys() == given_.keys()
    for key, value in loaded.items():
        torch.testing.assert_close(value, given_[key].to(value.dtype), rtol=0, atol=0, equal_nan=True)


def _tried(work: Callable[..., Any], *arguments: object) -> tuple[Any, str]:
    """What it gives, or the message that it refuses with."""
    try:
        return work(*arguments), ""
    except ValueError as error:
        return None, str(error)


def _named(message: str, done: Mapping[str, str]) -> bool:
    """A layer of one of the tensors; of two that contradict each other, either may be the one that is named."""
    layers = {key.rpartition(".")[0] for key in done}
    return any(layer in message for layer in layers) or ("visual.head.proj" in layers and "text.proj" in message)


# their sizes are told by these tensors alone, so that any will do
_FREE = {"token_embedding.weight", "positional_embedding"}


@pytest.mark.parametrize("convert", [from_reference, to_reference])
@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_layouts(convert, count, ours, authors):
    whole, back = (authors, to_reference) if convert is from_reference else (ours, from_reference)

    @few(count)
    @given(done=changes(whole), wrapped=st.booleans())
    def run(done: dict[str, str], wrapped: bool) -> None:
        state_dict = _changed(whole, done)
        prefix = "module." if wrapped and convert is from_reference else ""
        converted, refusal = _tried(convert, {prefix + key: tensor for key, tensor in state_dict.items()})
        if refusal:
            assert not _fits(state_dict, whole), refusal
            assert _named(refusal, done), refusal
        else:
            _same(back(converted), state_dict)
            odd = {key for key in whole if state_dict[key].shape != whole[key].shape}
            assert all(key.endswith(tuple(_FREE)) and state_dict[key].dim() == 2 for key in odd)

    run()


@pytest.mark.parametrize("layout", ["authors", "ours"])
@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_convert(layout, count, ours, request):
    whole = request.getfixturevalue(layout)
    in_open_clip = from_reference if layout == "authors" else dict

    @few(count)
    @given(done=changes(whole))
    def run(done: dict[str, str]) -> None:
        state_dict = _changed(whole, done)
        with workplace() as folder:
            torch.save({"state_dict": state_dict}, folder / "source.pt")
            ended = diffclip(["convert", "source.pt", "OUT", "--preprocess", "slip"], folder)
            if ended.status != 0:
                line = ended.refusal()
                assert ended.changed == set()
                assert not _fits(state_dict, whole) or {"nan", "inf"} & set(done.values()), line
                names = done if not _fits(state_dict, whole) else _infected(state_dict, in_open_clip)
                # sizes that no tower has are told as such
                assert _named(line, dict(done, **dict.fromkeys(names, ""))) or "no diffclip image tower has" in line
                return
            assert not {"nan", "inf"} & set(done.values())
            loaded = open_clip.create_model(f"local-dir:{folder / 'OUT'}").state_dict()
            _same(loaded, in_open_clip(state_dict))

    run()


def _infected(state_dict: StateDict, in_open_clip: Callable[[StateDict], StateDict]) -> set[str]:
    return {key for key, value in in_open_clip(state_dict).items() if not value.isfinite().all()}


def _directory(state_dict: StateDict, folder: Path) -> Path:
    """A model directory with those weights, whatever they are."""
    model_cfg = open_clip.get_model_config(NAME)
    shutil.copytree(model_cfg["text_cfg"]["hf_model_name"], folder / "OUT")
    config = json.loads((folder / "OUT" / "config.json").read_text())
    config["transformers_weights"] = "open_clip_model.safetensors"
    (folder / "OUT" / "config.json").write_text(json.dumps(config))
    (folder / "OUT" / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()}
    save_file(own, folder / "OUT" / "open_clip_model.safetensors", metadata={"format": "pt"})
    return folder / "OUT"


def _with_prefix(prefix: str, state_dict: StateDict) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in state_dict.items()}


def _evaluated(state_dict: StateDict, folder: Path) -> StateDict:
    torch.save(state_dict, folder / "source.pt")
    return load_model(f"{NAME},{folder / 'source.pt'}").model.state_dict()


def _vision(state_dict: StateDict, folder: Path) -> StateDict:
    model = DiffCLIPVisionModel.from_open_clip(_directory(state_dict, folder))
    return _with_prefix("visual.trunk.", model.trunk.state_dict())


def _text(state_dict: StateDict, folder: Path) -> StateDict:
    try:
        model = AutoModel.from_pretrained(_directory(state_dict, folder))
    except RuntimeError as error:  # transformers' own, which logs the shapes that do not fit
        raise ValueError(str(error)) from error
    return _with_prefix("text.transformer.", model.state_dict())


LOADERS = {"": _evaluated, "visual.trunk.": _vision, "text.transformer.": _text}


@pytest.mark.parametrize("prefix", LOADERS)
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_loading(prefix, count, ours):
    """What a loader does not read is no concern of it; what is to be evaluated must be finite besides."""

    @few(count)
    @given(done=changes(ours))
    def run(done: dict[str, str]) -> None:
        state_dict = _changed(ours, done)
        infinite = prefix == "" and {"nan", "inf"} & set(done.values())
        with workplace() as folder:
            loaded, refusal = _tried(LOADERS[prefix], state_dict, folder)
            if refusal:
                assert infinite or not _fits(state_dict, ours, prefix), refusal
                own = {key.removeprefix(prefix): change for key, change in done.items()}
                assert prefix == "text.transformer." or _named(refusal, own), refusal
            else:
                assert not infinite
                if prefix == "text.transformer.":  # transformers passes over what is unknown and draws what is missing
                    state_dict = {key: tensor for key, tensor in state_dict.items() if key in loaded}
                    loaded = {key: tensor for key, tensor in loaded.items() if key in state_dict}
                _same(loaded, {key: tensor for key, tensor in state_dict.items() if key.startswith(prefix)})

    run()


WEIGHT, BIAS = "visual.blocks.0.attn.q_proj.weight", "ln_final.bias"
UNUSUAL: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "float8": (WEIGHT, lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "complex": (BIAS, lambda tensor: tensor + 1j),
    "sparse": (WEIGHT, lambda tensor: tensor.to_sparse()),
    "sparse rows": (WEIGHT, lambda tensor: tensor.to_sparse_csr()),
    "quantized": (WEIGHT, lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "without data": (WEIGHT, lambda tensor: tensor.to("meta")),
    "infinite scale": ("logit_scale", lambda tensor: torch.tensor(1000.0)),  # exp of it
    "scale in a list": ("logit_scale", lambda tensor: tensor[None]),
    "a few words": ("token_embedding.weight", lambda tensor: tensor[:64]),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tensors_are_refused_by_name(name, authors):
    """Numbers that weights never are, or that no layer could work with."""
    key, change = UNUSUAL[name]
    with workplace() as folder:
        torch.save(dict(authors) | {key: change(authors[key])}, folder / "source.pt")
        ended = diffclip(["convert", "source.pt", "OUT"], folder)
        assert any(word in ended.refusal() for word in (key, key.replace("q_proj", "qkv").replace("visual", "trunk")))
        assert ended.changed == set()


def test_a_key_with_a_large_number_in_it(authors):
    """Not as many blocks are made up as it says: with nine digits that would fill the memory."""
    with pytest.raises(ValueError, match=r"unexpected visual\.blocks\.20000\.norm1\.weight") as error:
        from_reference(dict(authors) | {"visual.blocks.20000.norm1.weight": torch.ones(128)})
    assert len(str(error.value)) < 1_000_000


# --- damaged directories ---

JSON = st.none() | st.booleans() | st.integers(-2, 10**20) | st.floats() | st.text(max_size=5)
JSON = JSON | st.lists(JSON, max_size=2) | st.dictionaries(st.text(max_size=3), JSON, max_size=2)


@st.composite
def damaged(draw: Any, content: dict[str, Any]) -> Any:
    """``content`` with one of its values replaced by any other, or taken away."""
    content = json.loads(json.dumps(content))
    inner = content
    while True:
        key = draw(st.sampled_from(sorted(inner)))
        if isinstance(inner[key], dict) and inner[key] and draw(st.integers(0, 4)):
            inner = inner[key]
            continue
        if draw(st.booleans()):
            inner[key] = draw(JSON)
        else:
            del inner[key]
        return content


@pytest.mark.parametrize("file", ["open_clip_config.json", "config.json"])
@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_directories(file, count, ours, tmp_path):
    whole = json.loads((_directory(ours, tmp_path) / file).read_text())

    @few(count)
    @given(content=damaged(whole), command=st.sampled_from(["convert OUT new", "push OUT owner/repo", "lambdas OUT"]))
    def run(content: Any, command: str) -> None:
        with workplace() as folder:
            shutil.copytree(tmp_path / "OUT", folder / "OUT", copy_function=os.link)
            (folder / "OUT" / file).unlink()
            (folder / "OUT" / file).write_text(json.dumps(content))
            ended = diffclip(command.split(), folder)
            if ended.status != 0:
                ended.refusal()
                assert ended.changed == set()
            elif command.startswith("convert"):
                _same(open_clip.create_model(f"local-dir:{folder / 'new'}").state_dict(), ours)

    run()
