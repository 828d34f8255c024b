"""Run the recipes' stages on small data and simulated machines, and their script of gradient norms."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from support.common import EMOJI, read_tar, run_host, script, write_tar
from support.recipes import RECIPES, make_shards, planned_training, read_training, run_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_no_caption_swallows_its_neighbours(tmp_path):
    pairs = [
        ('"unbalanced', "http://a/1"),
        ("plain, 5' tall", "http://a/2"),
        ('a "quoted" word"', "http://a/3?x=%22&y"),
        ("back\\slash & $HOME `ls`", "http://a/4"),
        ("ναί – 漢字", "http://a/5"),
        ("", "http://a/6"),
    ]
    (tmp_path / "data").mkdir()
    for name, swap in (("cc3m", 1), ("cc12m", -1)):
        lines = ["\t".join(pair[::swap]) for pair in pairs]
        (tmp_path / "data" / f"{name}.tsv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
        done = run_recipe(name, "data", cwd=tmp_path, IMG2DATASET="true")
        assert done.returncode == 0, done.stderr
        with (tmp_path / "runs" / name / "addresses.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", strict=True))
        assert [(row["caption"], row["url"]) for row in rows] == pairs


SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for node in 1 2; do SLURM_PROCID=$((node - 1)) "$@" >"srun-$node.log" 2>&1 & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SCONTROL = """#!/usr/bin/env bash
[[ $* == "show hostnames node[7-8]" ]] && printf 'localhost\\nnode8\\n'
"""


def slurm(cwd: Path, *arguments: str, **variables: str) -> list[str]:
    """Run slurm.sh where stand-ins of srun and scontrol have two machines, and return what each of these printed."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (cwd / "bin").mkdir(exist_ok=True)
        (cwd / "bin" / name).write_text(text)
        (cwd / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": str(400_000 + os.getpid())}
    path = os.pathsep.join([str(cwd / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", str(RECIPES / "slurm.sh"), *arguments]
    run_host(command, cwd, PATH=path, SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="80", **job, **variables)
    return [(cwd / f"srun-{node}.log").read_text() for node in (1, 2)]


def test_a_slurm_job_runs_a_torchrun_a_machine(tmp_path):
    name = str(RECIPES / "cc12m.sh")
    printed = slurm(tmp_path, name, "DiffCLIP-B-16", "--debug", DRY_RUN="1", SLURM_GPUS_ON_NODE="4")
    first, second = (shlex.split(text.splitlines()[-1]) for text in printed)
    assert first == second
    launch, args = read_training(first)
    assert (launch.nnodes, launch.nproc_per_node) == ("2", "4")
    assert launch.rdzv_endpoint == f"localhost:{10000 + (400_000 + os.getpid()) % 20000}"
    assert launch.rdzv_id == str(400_000 + os.getpid())
    assert (args.batch_size, args.debug) == (512, True)


@pytest.mark.slow  # six interpreters that import torch, four of them open_clip: half a minute
def test_torchrun_starts_the_trainer_on_two_machines(tmp_path):
    make_shards(tmp_path / "own", [8])
    name = str(RECIPES / "cc12m.sh")
    printed = slurm(tmp_path, name, "DiffCLIP-B-16", "--help", DATA="own", SLURM_GPUS_ON_NODE="1")
    assert all("usage: open_clip_train" in text for text in printed)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    assert "--train-data" in run_host([*torchrun, "-m", "--", "open_clip_train.main", "--help"], tmp_path).stdout


def test_gradient_norms_by_hand(tmp_path):
    weights = {"visual.proj.weight": torch.zeros(2, 2), "visual.attn.lambda_q1": torch.zeros(2)}
    weights |= {"logit_scale": torch.tensor(1.0), "text.weight": torch.zeros(1, 2)}
    parameters = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
    groups = [["visual.attn.lambda_q1", "logit_scale"], ["visual.proj.weight", "text.weight"]]
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[name] for name in group]} for group in groups], betas=(0.0, 0.5)
    )
    gradients = {"visual.proj.weight": 3.0, "visual.attn.lambda_q1": 2.0, "logit_scale": 1.0, "text.weight": 0.0}
    for factor in (1.0, 2.0):
        for name, parameter in parameters.items():
            parameter.grad = torch.full_like(parameter, factor * gradients[name])
        optimizer.step()
    (tmp_path / "checkpoints").mkdir()
    state = {f"module.{name}": tensor for name, tensor in weights.items()}
    checkpoint = {"epoch": 3, "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoints" / "epoch_3.pt")
    command = [sys.executable, str(RECIPES / "grad_norms.py"), str(tmp_path)]
    title, line = run_host(command, tmp_path).stdout.splitlines()
    assert re.split(r"  +", title) == ["epoch", "all", "image tower", "text tower", "lambdas", "logit_scale"]
    # weights of the two steps' squares: a quarter and a half, over their sum
    mean = (0.25 * 1 + 0.5 * 4) / 0.75
    squares = [4 * 9 + 2 * 4 + 1, 4 * 9 + 2 * 4, 0, 2 * 4, 1]
    assert line.split() == ["3", *(f"{math.sqrt(mean * square):.4g}" for square in squares)]
    del checkpoint["optimizer"]["state"][3]
    torch.save(checkpoint, tmp_path / "checkpoints" / "epoch_3.pt")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "not that of AdamW with all of the model's weights trained" in done.stderr


IMG2DATASET = os.environ.get("IMG2DATASET") or shutil.which("img2dataset")


@pytest.mark.slow  # downloads 1,412 images from a server on this machine: half a minute
@pytest.mark.skipif(IMG2DATASET is None, reason="img2dataset is not installed; name its command in IMG2DATASET")
def test_small_data_stage(tmp_path):
    done = run_recipe("cc3m", "data", cwd=tmp_path, SMALL="1", IMG2DATASET=IMG2DATASET)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "cc3m-small"
    reasons = [json.loads(path.read_text())["status_dict"] for path in (out / "shards").glob("*_stats.json")]
    assert sum(reason["success"] for reason in reasons) == 1412
    assert [key for reason in reasons for key in reason if key != "success"] == ["HTTP Error 404: File not found"]
    _, args = planned_training("cc3m", "DiffCLIP-B-16", tmp_path, SMALL="1")
    assert args.train_num_samples == 1412
    address = (out / "list.tsv").read_text().splitlines()[0].partition("\t")[2]
    with pytest.raises(URLError):  # the server ended with the stage
        urlopen(address)


def small_suite(root: Path) -> None:
    """Write a classification and a retrieval set of 64 files each, under names of the paper's."""
    for name, source in (("imagenet-r", "unseen-vendor-groups"), ("flickr8k", "retrieval")):
        folder = EMOJI / "eval" / source
        write_tar(root / name / "test" / "0.tar", read_tar(folder / "test" / "0.tar", 64))
        (root / name / "test" / "nshards.txt").write_text("1\n")
        for path in folder.glob("*.txt"):
            shutil.copy(path, root / name)


@pytest.mark.slow  # trains, evaluates and reports: a minute
def test_small_from_shards_to_report(tmp_path):
    pairs = read_tar(EMOJI / "train" / "noto.tar", 64)
    for shard in range(2):
        write_tar(tmp_path / "own" / f"{shard:05}.tar", pairs[32 * shard : 32 * shard + 32])
        (tmp_path / "own" / f"{shard:05}_stats.json").write_text('{"successes": 16}')
    small_suite(tmp_path / "eval")
    variables = {"SMALL": "1", "DATA": "own", "EVAL": "eval", "GLOBAL_BATCH": "8"}
    for stage in (["train", "DiffCLIP-B-16-dynamic"], ["evaluate", "DiffCLIP-B-16-dynamic"], ["report"]):
        done = run_recipe("cc12m", *stage, cwd=tmp_path, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "runs" / "cc12m-small"
    assert "DiffCLIP-nano-dynamic cc12m epoch_2" in (out / "report" / "index.html").read_text(encoding="utf-8")
    run = out / "logs" / "DiffCLIP-nano-dynamic" / "cc12m"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/scale", "train/lr"} <= set(events.Tags()["scalars"])
    assert not any("norm" in tag for tag in events.Tags()["scalars"]), "README.md says that the trainer logs no norms"
    assert [event.step for event in events.Scalars("train/loss")] == [0, 3, 4, 7]
    norms = run_host([sys.executable, str(RECIPES / "grad_norms.py"), str(run)], tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in norms] == ["epoch", "1", "2"]
    assert all(0 < float(norm) < 100 for line in norms[1:] for norm in line.split()[1:])
    assert "epoch  logit scale" in run_host([script("diffclip"), "lambdas", str(run)], tmp_path).stdout
    # the same command again goes on after the last epoch, of which there is none
    done = run_recipe("cc12m", "train", "DiffCLIP-B-16-dynamic", cwd=tmp_path, **variables)
    assert done.returncode == 0
    assert "resuming checkpoint" in done.stderr
    assert "Train Epoch" not in done.stderr
