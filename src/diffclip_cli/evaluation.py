"""Define evaluate, pope and report: what models score, and the paper's tables and figures of it."""

import argparse
from pathlib import Path

from diffclip_cli.arguments import MODEL_GRAMMAR, AddCommand, add_models, add_overwrite

_TASKS = (
    "zeroshot_classification",
    "zeroshot_retrieval",
    "linear_probe",
    "few_shot",
    "mmvp",
    "sugar_crepe",
    "winoground",
)
_EVALUATE = f"""\
examples:
  diffclip evaluate --model DiffCLIP-B-16,logs/run/checkpoints/epoch_40.pt --data DATA --output RESULTS
  diffclip evaluate --model local-dir:OUT --model ViT-B-16,openai --data DATA --output RESULTS --dry-run
  diffclip evaluate --model local-dir:OUT --data DATA --output RESULTS \\
      --data 'https://huggingface.co/datasets/clip-benchmark/wds_{{dataset}}/tree/main'
  diffclip evaluate --model local-dir:OUT --data DATA --dataset my-images --output RESULTS
  diffclip evaluate --model logs/run --data DATA --dataset imagenet1k --output RESULTS
  torchrun --nproc-per-node 8 --no-python -- diffclip evaluate --model local-dir:OUT --data DATA --output RESULTS

DATA has a folder for each data set, made by `diffclip data` (docs/data.md). What is done already is not done again.
A training run's folder is all of its checkpoints, RUN or NAME,RUN.
`diffclip report RESULTS --output DIR` draws the paper's tables and figures.
{MODEL_GRAMMAR}"""
_POPE = """\
example:
  diffclip pope coco_pope_random.json answers.jsonl --category random --label TinyLLaVA-DiffCLIP --output RESULTS
"""
_REPORT = """\
examples:
  diffclip report RESULTS --output REPORT
  diffclip report RESULTS --output REPORT --match 'DiffCLIP-B-16 my-run epoch_40=CC12M/DiffCLIP'
  diffclip report RESULTS --output REPORT --group 'CLIP=CLIP-B-16-baseline seed*' --group 'DiffCLIP=DiffCLIP-B-16 seed*'
  diffclip report --paper-only --output PAPER

REPORT/index.html shows all of it offline; tables are in REPORT/tables as Markdown, CSV and LaTeX, figures in
REPORT/figures as PNG, SVG and PDF. LABEL is a model's name in the tables. ROW is one of the paper's: CC3M/CLIP,
CC3M/DiffCLIP, CC12M/CLIP, CC12M/DiffCLIP, -dynamic, -vision.
"""


def _evaluate(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.extras import require

    require("diffclip evaluate", "eval", "webdataset", "clip_benchmark", "sklearn")
    import torch
    from tqdm import tqdm

    from diffclip_openclip.evaluation import runner
    from diffclip_openclip.evaluation.evaluator import Compute
    from diffclip_openclip.evaluation.plan import plan

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    compute = Compute(
        device=device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        seed=arguments.seed,
    )
    jobs, missing = plan(arguments.model, arguments.data, names=arguments.dataset, tasks=arguments.task)
    if arguments.dry_run:
        return runner.dry_run(jobs, arguments.output, compute) + missing
    if not jobs:
        chosen = (
            "the data sets and tasks that are named" if arguments.dataset or arguments.task else "the paper's data sets"
        )
        raise FileNotFoundError(f"{', '.join(arguments.data)} has none of {chosen}; see docs/data.md")
    failures = runner.evaluate(jobs, arguments.output, compute=compute, log=tqdm.write)
    if failures:
        raise ValueError(f"{len(failures)} of {len(jobs)} failed, the others are in {arguments.output}: {failures[0]}")
    return missing


def _pope(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.evaluation import pope
    from diffclip_openclip.evaluation.results import headline

    written = pope.score_to_file(
        questions=arguments.questions,
        answers=arguments.answers,
        category=arguments.category,
        label=arguments.label,
        results=arguments.output,
    )
    return [headline(written)]


def _report(arguments: argparse.Namespace) -> list[str]:
    from diffclip_openclip.report.command import report

    return report(
        arguments.results,
        arguments.output,
        paper_only=arguments.paper_only,
        match=arguments.match,
        baseline=arguments.baseline,
        group=arguments.group,
        overwrite=arguments.overwrite,
    )


def add_commands(command: AddCommand) -> None:
    """Add evaluate, pope and report."""
    sub = command("evaluate", _evaluate, "The paper's evaluation: every task whose data are there.", _EVALUATE)
    add_models(sub, "what is evaluated; repeatable")
    sub.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="ROOT",
        help="folder or URL with a folder for each data set, or with {dataset} in it; repeatable, the first counts",
    )
    sub.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help="a folder of ROOT, the paper's or your own; repeatable; default: all of the paper's",
    )
    sub.add_argument("--task", action="append", default=[], choices=_TASKS, help="repeatable; default: all")
    sub.add_argument("--output", type=Path, required=True, metavar="RESULTS", help="folder of the results")
    sub.add_argument("--dry-run", action="store_true", help="say what would run, what is there and what is missing")
    sub.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, else cpu")
    sub.add_argument("--precision", choices=("fp32", "amp", "amp_bf16"), default="fp32", help="as in open_clip")
    sub.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once; default: 64")
    sub.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode images; default: 2")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of few-shot episodes and held-out samples")

    sub = command("pope", _pope, "Score a language model's answers to POPE's questions (paper, Table 3).", _POPE)
    sub.add_argument("questions", type=Path, metavar="QUESTIONS", help="POPE's file: coco_pope_random.json, ...")
    sub.add_argument("answers", type=Path, metavar="ANSWERS", help="JSON lines with question_id and text")
    sub.add_argument("--category", choices=("random", "popular", "adversarial"), required=True, help="of the questions")
    sub.add_argument("--label", required=True, help="the model's name in tables")
    sub.add_argument("--output", type=Path, required=True, metavar="RESULTS", help="folder of the results")

    sub = command("report", _report, "The paper's tables and figures from results, beside its own numbers.", _REPORT)
    sub.add_argument("results", nargs="?", type=Path, metavar="RESULTS", help="folder that `diffclip evaluate` wrote")
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    sub.add_argument("--paper-only", action="store_true", help="the paper's own numbers, without results")
    sub.add_argument(
        "--match",
        action="append",
        default=[],
        metavar="LABEL=ROW",
        help="hold a model against a row of the paper, as in 'my run=CC12M/DiffCLIP'; repeatable",
    )
    sub.add_argument(
        "--baseline",
        metavar="LABEL",
        help="what all other models are compared with; default: the CLIP-...-baseline of the same size",
    )
    sub.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=LABEL",
        help="several training runs become one model, mean ± standard deviation; * in LABEL stands for anything, as in "
        "'DiffCLIP=DiffCLIP-B-16 seed*'; repeatable",
    )
    add_overwrite(sub)
