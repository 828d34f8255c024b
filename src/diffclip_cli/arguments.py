"""Hold what the commands' arguments have in common: how models are named, and the options of several commands."""

import argparse
from collections.abc import Callable

# does a command's work: parsed arguments to the lines that are printed
Run = Callable[[argparse.Namespace], list[str]]
# makes a command's parser of its name, its work, and what its help begins with and ends with
AddCommand = Callable[[str, Run, str, str], argparse.ArgumentParser]

# A model with its weights, and weights whose model is found out: their metavars, and what ends the help of the commands
# that take them. diffclip_openclip.weights reads both.
MODEL = "MODEL"
MODEL_GRAMMAR = f"""
{MODEL}, in every command, is one of
  NAME,TAG            a model of open_clip with one of its pretrained tags: ViT-B-16,laion2b_s34b_b88k
  NAME,FILE           a model of open_clip with a checkpoint: DiffCLIP-B-16,logs/run/checkpoints/epoch_40.pt
  local-dir:DIR       a directory that `diffclip convert` or `diffclip warm-start` wrote
  hf-hub:owner/repo   a repository in open_clip's form
"""
SOURCE = "SRC"
SOURCE_GRAMMAR = f"""
{SOURCE}, whose model need not be named, is one of
  FILE                                a checkpoint of open_clip, its trainer, the authors or timm
  DIR                                 a directory that `diffclip convert` or `diffclip warm-start` wrote
  hf://owner/repo[@revision][/FILE]   a repository in open_clip's form or the authors', or a file of it
"""


def add_models(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``--model``, which is repeated for several models."""
    parser.add_argument("--model", action="append", required=True, metavar=MODEL, help=help)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``."""
    parser.add_argument("--overwrite", action="store_true", help="replace this command's own old output")
