"""The stand-in of the Hugging Face Hub against huggingface_hub, in processes that know it by HF_ENDPOINT only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from support.common import run_python
from support.hub_stand_in import HubStandIn, Request

UPLOAD = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("owner/repo")
api.create_repo("owner/repo", exist_ok=True, private=True)
api.upload_folder(repo_id="owner/repo", folder_path="model")
"""
DOWNLOAD = """
import json
from huggingface_hub import hf_hub_download
print(json.dumps([hf_hub_download("owner/repo", file) for file in FILES]))
"""
# what each call ends with: an exception's name and its status, or the value
ATTEMPTS = """
import json
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
results = {}
def upload(content, path, **options):
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="owner/repo", **options)
def attempt(name, call):
    try:
        results[name] = call()
    except Exception as error:
        response = getattr(error, "response", None)
        results[name] = [type(error).__name__, response.status_code if response is not None else None]
"""


@pytest.fixture
def hub(tmp_path):
    with HubStandIn(tmp_path / "hub") as hub:
        yield hub


def attempts(calls: dict[str, str], cwd: Path, **environment: str) -> dict[str, object]:
    lines = [f"attempt({name!r}, lambda: {call})" for name, call in calls.items()]
    printed = run_python("\n".join([ATTEMPTS, *lines, "print(json.dumps(results))"]), cwd, **environment)
    return json.loads(printed.splitlines()[-1])


def download(files: list[str], cwd: Path, **environment: str) -> dict[str, bytes]:
    printed = run_python(DOWNLOAD.replace("FILES", repr(files)), cwd, **environment)
    paths = json.loads(printed.splitlines()[-1])
    return {file: Path(path).read_bytes() for file, path in zip(files, paths, strict=True)}


def model_files() -> dict[str, bytes]:
    weights = torch.arange(2**19, dtype=torch.float32)
    card = b"---\nlicense: mit\nlibrary_name: open_clip\n---\n# A model\n"
    return {
        "README.md": card,
        "model.safetensors": save({"weights": weights}),
        "open_clip_config.json": b'{"model_cfg": {}}',
        "tokenizer/vocab.json": b'{"a": 0}',
    }


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_upload_then_download(hub, tmp_path):
    files = model_files()
    write_folder(tmp_path / "model", files)
    run_python(UPLOAD, tmp_path, **hub.environment(tmp_path / "writer", token=hub.token))
    assert hub.files("owner/repo") == files
    assert sum(request.method == "PUT" for request in hub.requests) == 1  # the weights alone go by LFS

    reader = hub.environment(tmp_path / "reader")
    assert download(list(files), tmp_path, **reader) == files
    served = len(hub.requests)
    assert download(list(files), tmp_path, **reader | {"HF_HUB_OFFLINE": "1"}) == files
    assert len(hub.requests) == served

    again = UPLOAD.replace('api.create_repo("owner/repo")', "")
    run_python(again, tmp_path, **hub.environment(tmp_path / "writer", token=hub.token))
    assert "PUT" not in [request.method for request in hub.requests[served:]]  # the weights are there already


def test_upload_with_xet_installed(tmp_path):
    files = model_files()
    write_folder(tmp_path / "model", files)
    with HubStandIn(tmp_path / "hub", lfs=False) as hub:
        run_python(UPLOAD, tmp_path, **hub.environment(tmp_path / "home", token=hub.token))
        assert hub.files("owner/repo") == files


def test_lists(hub, tmp_path):
    files = model_files()
    hub.add_repo("owner/repo", files)
    calls = {
        "files": "api.list_repo_files('owner/repo')",
        "info": "[(file.rfilename, file.size) for file in api.model_info('owner/repo', files_metadata=True).siblings]",
        "top": "[entry.path for entry in api.list_repo_tree('owner/repo')]",
        "tree": "[entry.path for entry in api.list_repo_tree('owner/repo', recursive=True)]",
        "missing folder": "list(api.list_repo_tree('owner/repo', 'absent'))",
        "snapshot": "len(list(__import__('pathlib').Path(api.snapshot_download('owner/repo')).rglob('*.json')))",
        "exists": "[api.file_exists('owner/repo', 'README.md'), api.file_exists('owner/repo', 'no.md')]",
        "me": "api.whoami()['name']",
    }
    results = attempts(calls, tmp_path, **hub.environment(tmp_path / "home", hub.token))
    assert results.pop("missing folder") == ["RemoteEntryNotFoundError", 404]
    assert results == {
        "files": list(files),
        "info": [[name, len(data)] for name, data in files.items()],
        "top": ["README.md", "model.safetensors", "open_clip_config.json", "tokenizer"],
        "tree": ["README.md", "model.safetensors", "open_clip_config.json", "tokenizer", "tokenizer/vocab.json"],
        "snapshot": 2,
        "exists": [True, False],
        "me": "tester",
    }


def test_download_resumes_after_a_cut(hub, tmp_path):
    """huggingface_hub writes 10 MiB at a time and resumes after what it wrote: less than that starts over."""
    written = 10 * 2**20
    hub.add_repo("owner/repo", {"large.bin": bytes(range(256)) * (12 * 2**12), "small.bin": bytes(2**20)})
    hub.cut_after = {"owner/repo/large.bin": written + 2**20, "owner/repo/small.bin": 2**19}
    got = download(["large.bin", "small.bin"], tmp_path, **hub.environment(tmp_path / "home"))
    assert got == hub.files("owner/repo")
    large, small = "/owner/repo/resolve/main/large.bin", "/owner/repo/resolve/main/small.bin"
    gets = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert gets == [
        Request("GET", large, None),
        Request("GET", large, f"bytes={written}-"),
        Request("GET", small, None),
        Request("GET", small, None),
    ]


def test_exceptions_are_those_of_the_hub(hub, tmp_path):
    hub.add_repo("owner/repo", {"README.md": b"# A model\n"})
    hub.add_repo("owner/secret", {"README.md": b"# A model\n"}, private=True)
    calls = {
        "missing file": "hf_hub_download('owner/repo', 'absent.json')",
        "missing revision": "hf_hub_download('owner/repo', 'README.md', revision='v2')",
        "missing repo": "hf_hub_download('owner/absent', 'README.md')",
        "private repo": "api.model_info('owner/secret').private",
        "private file": "bool(hf_hub_download('owner/secret', 'README.md'))",
        "create": "api.create_repo('owner/new').repo_id",
        "create again": "api.create_repo('owner/repo')",
        "upload": "upload(b'{}', 'a.json').repo_url.repo_id",
        "stale": "upload(b'[]', 'a.json', parent_commit='0' * 40)",
        "card": "upload(b'---\\n: : [\\n---\\n', 'README.md')",
    }
    nobody = attempts(calls, tmp_path, **hub.environment(tmp_path / "nobody"))
    forger = attempts(calls, tmp_path, **hub.environment(tmp_path / "forger", token="hf_wrong"))
    assert list(hub.files("owner/repo")) == ["README.md"]
    owner = attempts(calls, tmp_path, **hub.environment(tmp_path / "owner", token=hub.token))
    missing = {"missing file": ["RemoteEntryNotFoundError", 404], "missing revision": ["RevisionNotFoundError", 404]}
    hidden, refused, invalid = ["RepositoryNotFoundError", 401], ["HfHubHTTPError", 401], ["ValueError", None]
    assert nobody == missing | {
        "missing repo": hidden,
        "private repo": hidden,
        "private file": hidden,
        "create": refused,
        "create again": refused,
        "upload": hidden,
        "stale": hidden,
        "card": invalid,
    }
    assert forger == dict.fromkeys(calls, refused)
    assert owner == missing | {
        "missing repo": ["RepositoryNotFoundError", 404],
        "private repo": True,
        "private file": True,
        "create": "owner/new",
        "create again": ["HfHubHTTPError", 409],
        "upload": "owner/repo",
        "stale": ["HfHubHTTPError", 412],
        "card": invalid,
    }
