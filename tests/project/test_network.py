"""Do a round of work where every connection is noted and refused: nothing is fetched that nobody asked for."""

import json
import shutil
import sys

from support.common import run_host, train_arguments

# Workers of data loaders, which are forked, keep the hook. Sockets of this machine's own kind are between processes;
# urllib3 looks, when it is imported, whether it can bind to ::1.
_GUARD = """
import os, sys

def guard(event, arguments):
    if not event.startswith('socket.') or event in ('socket.__new__', 'socket.gethostname', 'socket.sethostname'):
        return
    if arguments and getattr(arguments[0], 'family', None) == 1:  # AF_UNIX
        return
    if event == 'socket.bind' and arguments[1][:1] == ('::1',):
        return
    frame, modules = sys._getframe(), []
    while frame is not None:
        modules.append(frame.f_globals.get('__name__', ''))
        frame = frame.f_back
    with open(LOG, 'a') as log:
        print(event, *(name for name in ('huggingface_hub', 'urllib') if any(m.startswith(name) for m in modules)),
              file=log)
    raise OSError('there is no network here')

LOG = os.path.abspath('network.log')
sys.addaudithook(guard)
"""
_WORK = """
import json
import open_clip
from open_clip_train.main import main as train
from diffclip_cli.main import main

model, _, _ = open_clip.create_model_and_transforms('DiffCLIP-nano')
model.encode_text(open_clip.get_tokenizer('DiffCLIP-nano')(['a mug']))
train(json.loads(sys.argv[1]))
checkpoint = 'logs/run/checkpoints/epoch_1.pt'
codes = [main(arguments) for arguments in (
    ['evaluate', '--model', 'DiffCLIP-nano,' + checkpoint, '--data', 'data', '--output', 'RESULTS'],
    ['convert', checkpoint, 'OUT'],
    ['lambdas', 'logs/run', '--output', 'lambdas.png'],
    ['report', 'RESULTS', '--output', 'REPORT'],
)]
print(json.dumps([codes, os.path.exists(LOG), main(['convert', 'hf://owner/repo', 'FETCHED'])]))
"""


def test_no_network_unless_it_is_asked_for(train_shard, eval_root, tmp_path):
    """Training, evaluation and report reach out nowhere, and what is asked of the hub goes through its client alone."""
    shutil.copytree(eval_root / "retrieval", tmp_path / "data" / "flickr8k")
    arguments = [*train_arguments(train_shard), "--train-num-samples", "16", "--epochs", "1", "--precision", "fp32"]
    arguments += ["--lr", "1e-3", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8"]
    command = [sys.executable, "-c", _GUARD + _WORK, json.dumps(arguments)]
    said = run_host(command, tmp_path, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home")).stdout.splitlines()
    assert json.loads(said[-1]) == [[0, 0, 0, 0], False, 2]
    assert (tmp_path / "REPORT" / "index.html").is_file()
    (error,) = (line for line in said if line.startswith("diffclip convert: error: "))
    assert error.endswith("hf://owner/repo is not in the cache, and the hub cannot be reached")
    asked = (tmp_path / "network.log").read_text().splitlines()
    assert asked
    assert all(line.split()[1:] == ["huggingface_hub"] for line in asked)
