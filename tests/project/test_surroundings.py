"""Register and convert in hostile surroundings: many processes at once, and no place that can be written to."""

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from support.common import run_host
from support.hub_stand_in import HubStandIn

from diffclip_openclip import model_names, to_reference

PROCESSES = 8

# The parent imports what takes long, but not open_clip; so registering is what the children do at the same time.
_FORKED = """
import json, os, resource, signal, sys, tempfile, traceback
import torch, torchvision, timm, transformers
assert 'open_clip' not in sys.modules

def start(work):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.dup2(writer, 1), os.dup2(writer, 2)
    tempfile.tempdir = None  # as in a new process
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        print(f'{type(error).__name__}: {error}')
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)

def result(pid, reader):
    with os.fdopen(reader) as output:
        said = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said

def names():
    import open_clip
    print(*(name for name in open_clip.list_models() if name.startswith(('DiffCLIP', 'CLIP-'))))

gate, hold = os.pipe()

def together():
    os.close(hold)
    os.read(gate, 1)  # until the parent closes its end
    names()

def with_temporary_folder(path):
    os.environ['TMPDIR'] = path
    names()

def nowhere_to_write():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    names()
    import open_clip
    print('ViT-B-32' in open_clip.list_models())
    import diffclip_openclip

crowd = [start(together) for _ in range(int(sys.argv[1]))]
os.close(hold)
print(json.dumps({
    'crowd': [result(*child) for child in crowd],
    'missing': result(*start(lambda: with_temporary_folder('no/such/folder'))),
    'file': result(*start(lambda: with_temporary_folder(sys.argv[2]))),
    'nowhere': result(*start(nowhere_to_write)),
}))
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """Make the temporary folder of all processes."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def forked(scratch, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("forked")
    (folder / "a-file").touch()
    command = [sys.executable, "-c", _FORKED, str(PROCESSES), str(folder / "a-file")]
    done = run_host(command, folder, TMPDIR=str(scratch))
    return json.loads(done.stdout.splitlines()[-1])


def test_many_processes_register_at_once(forked, scratch):
    assert [code for code, _ in forked["crowd"]] == [0] * PROCESSES
    for _, said in forked["crowd"]:
        assert sorted(said.split()) == model_names()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_an_unusable_temporary_folder_is_not_insisted_on(kind, forked):
    """Python takes another one instead, /tmp and the like."""
    code, said = forked[kind]
    assert (code, sorted(said.split())) == (0, model_names())


def test_nowhere_to_write_is_said_in_one_line_and_open_clip_works(forked):
    code, said = forked["nowhere"]
    assert code == 1
    warning, _, listed, works, error = said.splitlines()
    assert "RuntimeWarning: diffclip_openclip could not register its models with open_clip" in warning
    assert "FileNotFoundError: [Errno 2] No usable temporary directory found in [" in warning
    assert listed == ""
    assert works == "True"
    assert error.startswith("FileNotFoundError: [Errno 2] No usable temporary directory found in [")


_CACHES = ["HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"]

_USE = """
import json, sys
import open_clip, torch
model, _, preprocess = open_clip.create_model_and_transforms('DiffCLIP-nano')
tokens = open_clip.get_tokenizer('DiffCLIP-nano')(['a mug'])
image_features, text_features, _ = model(torch.zeros(1, 3, 48, 48), tokens)
image_features.sum().backward()
from diffclip_cli.main import main
codes = [main(['convert', source, out]) for source, out in (sys.argv[1:3], ('hf://owner/nano', 'FETCHED'))]
print(json.dumps([open_clip.list_models().count('DiffCLIP-nano'), list(text_features.shape), codes]))
"""


def test_without_a_home_and_caches_all_but_downloads_work(tmp_path):
    """A file is in the place of each folder, since not even root can write into a file's folder."""
    nowhere = tmp_path / "file" / "folder"
    nowhere.parent.touch()
    torch.manual_seed(0)
    published = tmp_path / "checkpoint_best.pt"
    torch.save({"state_dict": to_reference(open_clip.create_model("DiffCLIP-nano").state_dict())}, published)
    with HubStandIn(tmp_path / "hub") as hub:
        hub.add_repo("owner/nano", {"checkpoint_best.pt": published})
        environment = hub.environment(nowhere) | dict.fromkeys(["HOME", *_CACHES], str(nowhere))
        command = [sys.executable, "-c", _USE, str(published), "OUT"]
        said = run_host(command, tmp_path, **environment).stdout.splitlines()
    assert json.loads(said[-1]) == [1, [1, 128], [0, 2]]
    (error,) = (line for line in said if "error" in line)
    assert error.startswith("diffclip convert: error: ")
    assert str(nowhere) in error
    assert (tmp_path / "OUT" / "open_clip_model.safetensors").is_file()
    assert not (tmp_path / "FETCHED").exists()
