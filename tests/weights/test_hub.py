"""The hub as a source and as a place, against a stand-in on loopback and with the unchanged hosts."""

import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from support.checkpoints import save_as_published
from support.common import run_warm
from support.hub_stand_in import HubStandIn

from diffclip_cli.main import main
from diffclip_openclip.explain.lambda_report import show_lambdas


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubStandIn(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.create_model("DiffCLIP-nano").eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return save_as_published(model, tmp_path_factory.mktemp("published") / "checkpoint_best.pt")


_RUN = """
import contextlib, io, json, sys
from diffclip_cli.main import main
from diffclip_openclip.explain.lambda_report import show_lambdas
results = []
for arguments in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(arguments)
    results.append((code, out.getvalue(), error.getvalue()))
print(json.dumps(results))
"""


def _diffclip(hub, cwd: Path, *calls: list[str], token: str = "", **extra: str) -> list[tuple[int, str, str]]:
    """Return status, output and errors of calls of the command, in one process; all share a cache of the hub."""
    environment = hub.environment(hub.folder / "home", token=token) | extra
    return json.loads(run_warm(_RUN, cwd, json.dumps(calls), **environment).splitlines()[-1])


def test_push_and_load_anywhere(hub, model, checkpoint, tmp_path):
    """As on another machine: another cache, no directory of ours, no import of ours."""
    out = tmp_path / "OUT"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    ((code, said, error),) = _diffclip(hub, tmp_path, ["push", str(out), "owner/nano", "--private"], token=hub.token)
    assert code == 0, error
    assert "hf-hub:owner/nano" in said
    files = hub.files("owner/nano")
    assert {path.name for path in out.iterdir()} <= files.keys()
    config = json.loads(files["open_clip_config.json"])
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "owner/nano"
    assert str(out) in (out / "open_clip_config.json").read_text()  # the local one is as it was
    loading = (
        "import open_clip, torch\n"
        "model, _, preprocess = open_clip.create_model_and_transforms('hf-hub:owner/nano')\n"
        "tokens = open_clip.get_tokenizer('hf-hub:owner/nano')(['a mug'])\n"
        "torch.save(model.eval().encode_text(tokens).detach(), 'text.pt')\n"
        "assert 'bilinear' in str(preprocess)\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        "assert AutoTokenizer.from_pretrained('owner/nano')(['a mug'])['input_ids'] == [tokens[0, :4].tolist()]\n"
        "text = AutoModel.from_pretrained('owner/nano')\n"
        "assert all(torch.equal(a, b) for a, b in zip(text.state_dict().values(),"
        " model.text.transformer.state_dict().values(), strict=True))"
    )
    run_warm(loading, tmp_path, **hub.environment(tmp_path / "elsewhere", token=hub.token))
    tokens = open_clip.get_tokenizer("DiffCLIP-nano")(["a mug"])
    with torch.no_grad():
        expected = model.encode_text(tokens)
    assert torch.equal(torch.load(tmp_path / "text.pt", weights_only=True), expected)
    # and back from the hub into a directory
    ((code, _, error),) = _diffclip(hub, tmp_path, ["convert", "hf://owner/nano", "BACK"], token=hub.token)
    assert code == 0, error
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'BACK'}").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


def test_authors_repository_online_then_offline(hub, model, checkpoint, tmp_path):
    hub.add_repo("hammh0a/DiffCLIP_nano", {"checkpoint_best.pt": checkpoint, "README.md": b"# model"})
    ((code, _, error),) = _diffclip(hub, tmp_path, ["convert", "hf://hammh0a/DiffCLIP_nano", "OUT"])
    assert code == 0, error
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())
    card = (tmp_path / "OUT" / "README.md").read_text()
    assert "hf://hammh0a/DiffCLIP_nano/checkpoint_best.pt at " in card
    seen = len(hub.requests)
    ((code, _, error),) = _diffclip(hub, tmp_path, ["convert", "hf://hammh0a/DiffCLIP_nano", "OFF"], HF_HUB_OFFLINE="1")
    assert code == 0, error
    assert len(hub.requests) == seen


def _holds(folder: Path, model) -> bool:
    loaded = open_clip.create_model(f"local-dir:{folder}").state_dict()
    return all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


def test_a_revision_is_pinned(hub, model, checkpoint, tmp_path):
    """Of a repository that was the authors', and to which another model has been pushed since."""
    torch.manual_seed(1)
    other = open_clip.create_model("DiffCLIP-nano").eval()
    assert main(["convert", str(save_as_published(other, tmp_path / "other.pt")), str(tmp_path / "OTHER")]) == 0
    hub.add_repo("owner/moving", {"checkpoint_best.pt": checkpoint})
    first = ["convert", "hf://owner/moving", "FIRST"]
    results = _diffclip(hub, tmp_path, first, ["push", str(tmp_path / "OTHER"), "owner/moving"], token=hub.token)
    commit = re.search(r" at (\w{40})", (tmp_path / "FIRST" / "README.md").read_text())[1]
    pinned = f"hf://owner/moving@{commit}"
    sources = {"NEW": "hf://owner/moving", "MAIN": "hf://owner/moving@main", "OLD": pinned}
    sources |= {"FILE": f"{pinned}/checkpoint_best.pt"}
    results += _diffclip(hub, tmp_path, *(["convert", source, out] for out, source in sources.items()))
    assert [(code, error) for code, _, error in results if code] == []
    assert _holds(tmp_path / "NEW", other)
    assert _holds(tmp_path / "MAIN", other)
    assert _holds(tmp_path / "OLD", model)
    assert _holds(tmp_path / "FILE", model)
    assert f"hf://owner/moving/checkpoint_best.pt at {commit}" in (tmp_path / "OLD" / "README.md").read_text()


def test_revisions_without_what_is_asked_for(hub, checkpoint, tmp_path):
    hub.add_repo("owner/still", {"checkpoint_best.pt": checkpoint})
    hub.add_repo("owner/odd", {"weights.pt": b"x"})
    cases = {
        "hf://owner/still@v2": "hf://owner/still has no such revision; name a branch, tag or commit",
        "hf://owner/still@refs%2Fpr%2F1/checkpoint_best.pt": "hf://owner/still has no such revision",
        "hf://owner/odd@main": "name one of its files: hf://owner/odd@main/weights.pt",
        "hf://owner/still@": "is not of the form hf://owner/repo, with @revision or /file after it",
    }
    results = _diffclip(hub, tmp_path, *(["convert", source, "OUT"] for source in cases))
    for expected, (code, _, error) in zip(cases.values(), results, strict=True):
        assert code == 2
        assert expected in error.splitlines()[-1]
    assert not (tmp_path / "OUT").exists()


def test_lambdas_of_what_is_on_the_hub(hub, model, checkpoint, tmp_path):
    tower = tmp_path / "tower.pt"
    torch.save(model.visual.trunk.state_dict(), tower)
    hub.add_repo("owner/authors", {"checkpoint_best.pt": checkpoint, "tower.pt": tower})
    sources = ["hf://owner/authors", "hf://owner/authors/tower.pt"]
    (code, said, error), (failed, _, reason) = _diffclip(hub, tmp_path, *(["lambdas", source] for source in sources))
    assert code == 0, error
    assert said.splitlines() == show_lambdas(str(checkpoint))
    assert failed == 2
    assert "hf://owner/authors/tower.pt holds a timm image tower alone" in reason


def test_a_cut_download_is_taken_up_again(hub, tmp_path):
    """Within a call; huggingface_hub keeps nothing of a download that failed in another process."""
    torch.save({"visual.conv1.weight": torch.randn(4_000_000)}, tmp_path / "large.pt")
    hub.add_repo("owner/large", {"large.pt": tmp_path / "large.pt"})
    hub.cut_after["owner/large/large.pt"] = 12 * 2**20
    ((code, _, error),) = _diffclip(hub, tmp_path, ["convert", "hf://owner/large/large.pt", "OUT"])
    assert code == 2
    assert "diffclip warm-start" in error.splitlines()[-1]  # it arrived whole, and is an OpenAI CLIP
    assert any(request.range and request.path.endswith("large.pt") for request in hub.requests)


def test_errors_are_one_line(hub, checkpoint, tmp_path):
    hub.add_repo("owner/other", {"weights.pt": b"x", "notes.txt": b"x"})
    hub.add_repo("owner/secret", {"checkpoint_best.pt": b"x"}, private=True)
    out = tmp_path / "NANO"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    cases = [
        (["convert", "hf://owner/other", "OUT"], "name one of its files: hf://owner/other/weights.pt"),
        (["convert", "hf://owner/other/none.pt", "OUT"], "hf://owner/other has no such file"),
        (["convert", "hf://owner/none", "OUT"], "there is no hf://owner/none, or it is private"),
        (["convert", "hf://owner/secret", "OUT"], "there is no hf://owner/secret, or it is private"),
        (["push", str(out), "owner/new"], "log in with a token that may: hf auth login"),
        (["push", str(out), "new"], "not of the form owner/repo"),
    ]
    results = _diffclip(hub, tmp_path, *(arguments for arguments, _ in cases))
    absent = ["convert", "hf://owner/absent", "OUT"]
    cases.append((absent, "not in the cache, and the hub cannot be reached"))
    results += _diffclip(hub, tmp_path, absent, HF_HUB_OFFLINE="1")
    for (_, expected), (code, said, error) in zip(cases, results, strict=True):
        assert (code, said) == (2, "")
        assert expected in error.splitlines()[-1]
        assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"NANO"}
