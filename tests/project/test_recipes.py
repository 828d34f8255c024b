"""Read the recipes' command lines with the hosts' own parsers, and compare the numbers in them with the paper's."""

import re
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip_train.data import get_wds_dataset
from support.common import REPOSITORY, run_host, script
from support.recipes import RECIPES, make_shards, planned_commands, planned_training, read_training, run_recipe
from torch.distributed.run import parse_args as parse_torchrun
from torchvision.transforms import InterpolationMode

from diffclip_cli.main import build_parser
from diffclip_openclip.evaluation.results import slug
from diffclip_openclip.report.paper import find_row, load_paper
from diffclip_openclip.weights.spec import ModelSpec

MODELS = ["CLIP-B-16-baseline", "DiffCLIP-B-16", "DiffCLIP-B-16-dynamic", "DiffCLIP-B-16-vision"]
# recipe -> models, processes, pairs, warm-up steps (protocol of the paper)
PAPER = {
    "cc3m": (MODELS, 4, 2_300_000, 568),
    "cc12m": (MODELS, 8, 7_900_000, 1936),
    "scaling": (["CLIP-L-14-baseline", "DiffCLIP-L-14", "CLIP-H-14-baseline", "DiffCLIP-H-14"], 8, 7_900_000, 1936),
}
CASES = [(recipe, model) for recipe, (models, *_) in PAPER.items() for model in models]


def processes(launch) -> int:
    return int(launch.nnodes.partition(":")[0]) * int(launch.nproc_per_node)


def steps_of_an_epoch(args, world_size: int) -> int:
    """Count an epoch's steps with the trainer's own code."""
    args.world_size = world_size
    loader = get_wds_dataset(args, preprocess_img=None, is_train=True, tokenizer=None).dataloader
    return loader.num_batches // args.accum_freq


@pytest.mark.parametrize(("name", "model"), CASES)
def test_the_paper_settings(name, model, tmp_path):
    _, gpus, pairs, warmup = PAPER[name]
    launch, args = planned_training(name, model, tmp_path)
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
            _, args = planned_training(name, model, tmp_path)
            assert args.logs.endswith(f"/{model}")
            settings.append({key: value for key, value in vars(args).items() if key not in ("model", "logs")})
        assert all(setting == settings[0] for setting in settings)


def test_images_are_transformed_as_in_slip(tmp_path):
    _, args = planned_training("cc12m", "DiffCLIP-B-16", tmp_path)
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
    launch, args = planned_training("cc12m", "DiffCLIP-B-16", tmp_path, RDZV="first:29500", **sizes)
    assert processes(launch) == nodes * gpus
    assert args.batch_size * nodes * gpus * args.accum_freq == int(sizes.get("GLOBAL_BATCH", 4096))
    assert args.workers == workers
    assert args.warmup == steps_of_an_epoch(args, nodes * gpus)
    if nodes > 1:
        assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.rdzv_id) == ("c10d", "first:29500", "cc12m")
    else:
        assert launch.standalone


def test_arguments_of_the_user_come_last(tmp_path):
    _, args = planned_training(
        "cc12m", "DiffCLIP-B-16", tmp_path, "--lr", "1e-3", "--grad-clip-norm", "1", IMAGENET_VAL="a b/val"
    )
    assert (args.lr, args.grad_clip_norm, args.imagenet_val, args.zeroshot_frequency) == (1e-3, 1.0, "a b/val", 1)


def test_checkpointing_can_be_chosen(tmp_path):
    for name, model, chosen in (("cc3m", "DiffCLIP-B-16", ""), ("cc12m", "DiffCLIP-B-16", "1")):
        _, args = planned_training(name, model, tmp_path, CHECKPOINTING=chosen)
        assert args.grad_checkpointing == bool(chosen)


def test_pairs_are_counted(tmp_path):
    make_shards(tmp_path / "own", [7001, 0, 6999])
    _, args = planned_training(
        "cc3m", "DiffCLIP-B-16", tmp_path, DATA="own", GPUS="1", WORKERS="3", GLOBAL_BATCH="1000"
    )
    assert args.train_num_samples == 14000
    assert args.train_data == "own/{00000..00002}.tar"
    assert args.warmup == steps_of_an_epoch(args, 1) == 15  # 14 batches, five for each of three workers
    (tmp_path / "own" / "00003.tar").touch()
    done = run_recipe("cc3m", "train", "DiffCLIP-B-16", cwd=tmp_path, DATA="own", DRY_RUN="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "own/00003.tar is not finished" in done.stderr
    _, args = planned_training("cc3m", "DiffCLIP-B-16", tmp_path, DATA="own", SAMPLES="15000")
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
    done = run_recipe("cc12m", *arguments, cwd=tmp_path, **{"DRY_RUN": "1", **variables})
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAPER)
def test_all_is_every_stage_in_order(name, tmp_path):
    models = PAPER[name][0]
    first, *middle, last = planned_commands(name, "all", cwd=tmp_path)
    assert first[0] == "img2dataset"
    assert len(middle) == 2 * len(models)
    for model, training, evaluation in zip(models, middle[::2], middle[1::2], strict=True):
        _, args = read_training(training)
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
        _, args = planned_training(name, model, tmp_path)
        checkpoint = tmp_path / args.logs / args.name / "checkpoints" / "epoch_40.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        labels[ModelSpec(model, str(checkpoint)).label] = model
    for label in list(labels)[:3]:
        (tmp_path / "runs" / name / "results" / f"{slug(label)}-0123abcd").mkdir(parents=True)
    (command,) = planned_commands(name, "report", cwd=tmp_path)
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


def test_shellcheck():
    run_host([script("shellcheck"), *map(str, sorted(RECIPES.glob("*.sh")))], REPOSITORY)
