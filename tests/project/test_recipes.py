"""The recipes' own command lines, read by the hosts' own parsers, and the numbers in them."""

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

import open_clip
import pytest
import torch
from open_clip_train.data import get_wds_dataset
from open_clip_train.params import parse_args
from support.common import EMOJI, REPOSITORY, plain_environment, read_tar, run_host, script, simulates_cuda, write_tar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.run import parse_args as parse_torchrun
from torchvision.transforms import InterpolationMode

from diffclip_cli.main import build_parser
from diffclip_openclip.evaluation.results import slug
from diffclip_openclip.report.paper import find_row, load_paper
from diffclip_openclip.weights.spec import ModelSpec

RECIPES = REPOSITORY / "examples" / "recipes"
MODELS = ["CLIP-B-16-baseline", "DiffCLIP-B-16", "DiffCLIP-B-16-dynamic", "DiffCLIP-B-16-vision"]
# recipe -> models, processes, pairs, warm-up steps (protocol of the paper)
PAPER = {
    "cc3m": (MODELS, 4, 2_300_000, 568),
    "cc12m": (MODELS, 8, 7_900_000, 1936),
    "scaling": (["CLIP-L-14-baseline", "DiffCLIP-L-14", "CLIP-H-14-baseline", "DiffCLIP-H-14"], 8, 7_900_000, 1936),
}
# of the recipes; those of the shell that the tests are run in are not theirs
VARIABLES = {
    *("IMG2DATASET", "DATA", "LIST", "EVAL", "OUT", "NODES", "GPUS", "RDZV", "ACCUM", "WORKERS", "SEED", "EPOCHS"),
    *("SAMPLES", "SMALL", "DRY_RUN"),
}
CASES = [(recipe, model) for recipe, (models, *_) in PAPER.items() for model in models]


def recipe(name: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe as a user with the environment active would."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {key: value for key, value in plain_environment(PATH=path).items() if key not in VARIABLES}
    command = ["bash", str(RECIPES / f"{name}.sh"), *arguments]
    return subprocess.run(command, cwd=cwd, env=own | variables, capture_output=True, text=True)


def commands(name: str, *arguments: str, cwd: Path, **variables: str) -> list[list[str]]:
    """The command lines that a recipe would run."""
    done = recipe(name, *arguments, cwd=cwd, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def trainer(command: list[str]):
    """What torchrun and the trainer read from a command line: torchrun's arguments, and the trainer's."""
    assert command[0] == "torchrun"
    launch = parse_torchrun(command[1:])
    assert launch.no_python
    assert launch.training_script == "open_clip_train"
    return launch, parse_args(launch.training_script_args)


def train(name: str, model: str, cwd: Path, *arguments: str, **variables: str):
    (command,) = commands(name, "train", model, *arguments, cwd=cwd, **variables)
    return trainer(command)


def processes(launch) -> int:
    return int(launch.nnodes.partition(":")[0]) * int(launch.nproc_per_node)


def steps_of_an_epoch(args, world_size: int) -> int:
    """As the trainer counts them, by its own code."""
    args.world_size = world_size
    loader = get_wds_dataset(args, preprocess_img=None, is_train=True, tokenizer=None).dataloader
    return loader.num_batches // args.accum_freq


@pytest.mark.parametrize(("name", "model"), CASES)
def test_the_paper_settings(name, model, tmp_path):
    _, gpus, pairs, warmup = PAPER[name]
    launch, args = train(name, model, tmp_path)
    assert processes(launch) == gpus
    assert args.batch_size * gpus * args.accum_freq == 4096
    assert args.train_num_samples == pairs
    assert args.warmup == steps_of_an_epoch(args, gpus) == warmup
    assert args.model == model
    assert model in open_clip.list_models()
    assert (args.epochs, args.lr_scheduler, args.skip_scheduler) == (40, "cosine", False)
    assert (args.opt, args.lr, args.wd, args.beta1, args.beta2, args.eps) == ("adamw", 5e-4, 0.5, 0.9, 0.98, 1e-8)
    assert args.grad_clip_norm is None
    # features of other processes without gradient, as in SLIP
    assert (args.local_loss, args.gather_with_grad) == (True, False)
    assert args.precision == ("amp_bf16" if name == "scaling" else "amp")
    # neither changes what is computed
    assert args.grad_checkpointing == (name != "cc12m")
    assert args.torchcompile == (name == "scaling")
    assert (args.save_frequency, args.resume, args.report_to) == (1, "latest", "tensorboard")


def test_all_models_of_a_recipe_are_trained_alike(tmp_path):
    for name, (models, *_) in PAPER.items():
        settings = []
        for model in models:
            _, args = train(name, model, tmp_path)
            assert args.logs.endswith(f"/{model}")
            settings.append({key: value for key, value in vars(args).items() if key not in ("model", "logs")})
        assert all(setting == settings[0] for setting in settings)


def test_images_are_transformed_as_in_slip(tmp_path):
    _, args = train("cc12m", "DiffCLIP-B-16", tmp_path)
    _, for_training, for_evaluation = open_clip.create_model_and_transforms(
        "DiffCLIP-nano",
        force_image_size=224,
        image_mean=args.image_mean,
        image_std=args.image_std,
        image_interpolation=args.image_interpolation,
        aug_cfg=args.aug_cfg,
    )
    kinds = [type(step).__name__ for step in for_training.transforms]
    assert kinds == ["RandomResizedCropAndInterpolation", "MaybeToTensor", "Normalize"], "no flip, no colour jitter"
    crop, _, normalize = for_training.transforms
    assert (crop.size, crop.scale, crop.interpolation) == ((224, 224), (0.5, 1.0), InterpolationMode.BILINEAR)
    assert torch.as_tensor(normalize.mean).tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert torch.as_tensor(normalize.std).tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert for_evaluation.transforms[0].interpolation == InterpolationMode.BILINEAR
    assert list(for_evaluation.transforms[-1].mean) == args.image_mean


@pytest.mark.parametrize(
    ("nodes", "gpus", "accum", "workers"), [(1, 8, 1, 8), (2, 4, 1, 6), (4, 8, 1, 10), (1, 1, 16, 8), (2, 2, 3, 8)]
)
def test_other_machines_share_the_same_batch(nodes, gpus, accum, workers, tmp_path):
    sizes = {"NODES": str(nodes), "GPUS": str(gpus), "ACCUM": str(accum), "WORKERS": str(workers)}
    if accum == 3:
        sizes["GLOBAL_BATCH"] = "6144"
    launch, args = train("cc12m", "DiffCLIP-B-16", tmp_path, RDZV="first:29500", **sizes)
    assert processes(launch) == nodes * gpus
    assert args.batch_size * nodes * gpus * args.accum_freq == int(sizes.get("GLOBAL_BATCH", 4096))
    assert args.workers == workers
    assert args.warmup == steps_of_an_epoch(args, nodes * gpus)
    if nodes > 1:
        assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.rdzv_id) == ("c10d", "first:29500", "cc12m")
    else:
        assert launch.standalone


def test_arguments_of_the_user_come_last(tmp_path):
    _, args = train("cc12m", "DiffCLIP-B-16", tmp_path, "--lr", "1e-3", "--grad-clip-norm", "1", IMAGENET_VAL="a b/val")
    assert (args.lr, args.grad_clip_norm, args.imagenet_val, args.zeroshot_frequency) == (1e-3, 1.0, "a b/val", 1)


def test_checkpointing_can_be_chosen(tmp_path):
    for name, model, chosen in (("cc3m", "DiffCLIP-B-16", ""), ("cc12m", "DiffCLIP-B-16", "1")):
        _, args = train(name, model, tmp_path, CHECKPOINTING=chosen)
        assert args.grad_checkpointing == bool(chosen)


def shards(folder: Path, successes: list[int]) -> None:
    """What img2dataset leaves: shards and their statistics."""
    folder.mkdir()
    for number, count in enumerate(successes):
        (folder / f"{number:05}.tar").touch()
        statistics = {"count": 10000, "successes": count, "status_dict": {"success": count, '"successes": 9': 1}}
        (folder / f"{number:05}_stats.json").write_text(json.dumps(statistics, indent=4))


def test_pairs_are_counted(tmp_path):
    shards(tmp_path / "own", [7001, 0, 6999])
    _, args = train("cc3m", "DiffCLIP-B-16", tmp_path, DATA="own", GPUS="1", WORKERS="3", GLOBAL_BATCH="1000")
    assert args.train_num_samples == 14000
    assert args.train_data == "own/{00000..00002}.tar"
    assert args.warmup == steps_of_an_epoch(args, 1) == 15  # 14 batches, five for each of three workers
    (tmp_path / "own" / "00003.tar").touch()
    done = recipe("cc3m", "train", "DiffCLIP-B-16", cwd=tmp_path, DATA="own", DRY_RUN="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "own/00003.tar is not finished" in done.stderr
    _, args = train("cc3m", "DiffCLIP-B-16", tmp_path, DATA="own", SAMPLES="15000")
    assert (args.train_num_samples, args.train_data) == (15000, "own/{00000..00003}.tar")


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["train", "DiffCLIP-L-14"], {}, "DiffCLIP-L-14 is no model of this recipe; it has: CLIP-B-16-baseline"),
        (["evaluate"], {}, "name a model: CLIP-B-16-baseline DiffCLIP-B-16 "),
        (["train", "DiffCLIP-B-16"], {"GPUS": "3"}, "a batch of 4096 cannot be shared by NODES x GPUS x ACCUM = 1 x 3"),
        (["train", "DiffCLIP-B-16"], {"NODES": "2"}, "set RDZV to HOST:PORT"),
        (["train", "DiffCLIP-B-16"], {"DRY_RUN": ""}, "there are no shards in data/cc12m; make them with:"),
        (["data"], {"DRY_RUN": ""}, "there is no list of addresses data/cc12m.tsv"),
        (["fly"], {}, "usage: "),
        ([], {}, "usage: "),
    ],
)
def test_bad_input(arguments, variables, message, tmp_path):
    done = recipe("cc12m", *arguments, cwd=tmp_path, **{"DRY_RUN": "1", **variables})
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAPER)
def test_all_is_every_stage_in_order(name, tmp_path):
    models = PAPER[name][0]
    first, *middle, last = commands(name, "all", cwd=tmp_path)
    assert first[0] == "img2dataset"
    assert len(middle) == 2 * len(models)
    for model, training, evaluation in zip(models, middle[::2], middle[1::2], strict=True):
        _, args = trainer(training)
        assert args.model == model
        launch = parse_torchrun(evaluation[1:])
        parsed = build_parser().parse_args(launch.training_script_args)
        checkpoint = Path(args.logs, args.name, "checkpoints", f"epoch_{args.epochs}.pt")
        assert parsed.model == [f"{model},{checkpoint}"]
        assert launch.training_script == last[0] == "diffclip"
        report = build_parser().parse_args(last[1:])
        assert report.results == parsed.output
        assert report.overwrite
    assert not list(tmp_path.iterdir()), "a dry run leaves nothing"


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_the_report_is_beside_the_papers_rows(name, tmp_path):
    labels = {}
    for model in MODELS:
        _, args = train(name, model, tmp_path)
        checkpoint = tmp_path / args.logs / args.name / "checkpoints" / "epoch_40.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        labels[ModelSpec(model, str(checkpoint)).label] = model
    for label in list(labels)[:3]:
        (tmp_path / "runs" / name / "results" / f"{slug(label)}-0123abcd").mkdir(parents=True)
    (command,) = commands(name, "report", cwd=tmp_path)
    match = dict(text.rsplit("=", 1) for text in build_parser().parse_args(command[1:]).match)
    rows = load_paper()
    found = {labels[label]: find_row(rows, row).name for label, row in match.items()}
    expected = {"CLIP-B-16-baseline": "CLIP", "DiffCLIP-B-16": "DiffCLIP", "DiffCLIP-B-16-dynamic": "DiffCLIP*"}
    if name == "cc3m":
        del expected["DiffCLIP-B-16-dynamic"]  # the paper has none
    assert found == {model: f"{name.upper()}/{row}" for model, row in expected.items()}


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_the_scores_in_a_recipe_are_the_papers(name):
    keys = ["zero_shot_7/imagenet1k", "zero_shot_7/mean", "image_retrieval@5/mean", "text_retrieval@5/mean"]
    keys += ["linear_probe/mean", "few_shot/mean"]
    rows = load_paper()
    text = (RECIPES / f"{name}.sh").read_text(encoding="utf-8")
    matches = dict(re.findall(r"\[(.+)\]=(\w+/[\w-]+)", text.replace(" [", "\n[")))
    assert len(matches) == (4 if name == "cc12m" else 2)
    for model, row in matches.items():
        written = re.search(rf"^#   {model} +(.*)$", text, re.MULTILINE)[1].split()[: len(keys)]
        scores = find_row(rows, row).scores
        assert written == [f"{scores[key].value:.1f}" if key in scores else "-" for key in keys], model


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
        done = recipe(name, "data", cwd=tmp_path, IMG2DATASET="true")
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
    """slurm.sh where srun and scontrol are stand-ins of two machines; what each machine printed."""
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
    launch, args = trainer(first)
    assert (launch.nnodes, launch.nproc_per_node) == ("2", "4")
    assert launch.rdzv_endpoint == f"localhost:{10000 + (400_000 + os.getpid()) % 20000}"
    assert launch.rdzv_id == str(400_000 + os.getpid())
    assert (args.batch_size, args.debug) == (512, True)


@pytest.mark.slow  # six interpreters that import torch, four of them open_clip: half a minute
def test_torchrun_starts_the_trainer_on_two_machines(tmp_path):
    shards(tmp_path / "own", [8])
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
    done = recipe("cc3m", "data", cwd=tmp_path, SMALL="1", IMG2DATASET=IMG2DATASET)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "cc3m-small"
    reasons = [json.loads(path.read_text())["status_dict"] for path in (out / "shards").glob("*_stats.json")]
    assert sum(reason["success"] for reason in reasons) == 1412
    assert [key for reason in reasons for key in reason if key != "success"] == ["HTTP Error 404: File not found"]
    _, args = train("cc3m", "DiffCLIP-B-16", tmp_path, SMALL="1")
    assert args.train_num_samples == 1412
    address = (out / "list.tsv").read_text().splitlines()[0].partition("\t")[2]
    with pytest.raises(URLError):  # the server ended with the stage
        urlopen(address)


def small_suite(root: Path) -> None:
    """A classification and a retrieval set of 64 files each, under names of the paper's."""
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
        done = recipe("cc12m", *stage, cwd=tmp_path, **variables)
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
    done = recipe("cc12m", "train", "DiffCLIP-B-16-dynamic", cwd=tmp_path, **variables)
    assert done.returncode == 0
    assert "resuming checkpoint" in done.stderr
    assert "Train Epoch" not in done.stderr


CHECK = """
import json, sys
sys.path.insert(0, sys.argv[1])
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
    command = [sys.executable, "-c", CHECK, str(REPOSITORY / "benchmarks")]
    rows = json.loads(run_host(command, tmp_path).stdout.splitlines()[-1])
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


def test_shellcheck():
    run_host([script("shellcheck"), *map(str, sorted(RECIPES.glob("*.sh")))], REPOSITORY)
