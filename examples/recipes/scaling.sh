#!/usr/bin/env bash
# Beyond the paper (section 5.2): DiffCLIP and its baseline at L/14 and H/14, on CC12M with the paper's settings, so
# that nothing but the size differs.
#
#   examples/recipes/scaling.sh data                      as cc12m.sh data; the same shards
#   examples/recipes/scaling.sh train DiffCLIP-L-14       and DiffCLIP-H-14, CLIP-L-14-baseline, CLIP-H-14-baseline
#   examples/recipes/scaling.sh evaluate DiffCLIP-L-14
#   examples/recipes/scaling.sh report
#
# Hardware: 8 GPUs of 80 GB: predicted 30 GB a GPU for L/14 and 55 GB for H/14, with gradient checkpointing.
# Time and score: not known; these sizes have not been trained. A pair's arithmetic is 4.3 times B/16's for L/14 and 9.3
# times for H/14, and a third more with checkpointing: at the paper's speed (10 GPU-days for B/16) 57 and 124 GPU-days.
# Large models may want another learning rate or weight decay: append --lr, --wd.
set -euo pipefail

RUNS=scaling SET=cc12m LIST_HEADER='url\tcaption' LAST_SHARD=01242
PAPER_SAMPLES=7900000 PAPER_GPUS=8
MODELS=(CLIP-L-14-baseline DiffCLIP-L-14 CLIP-H-14-baseline DiffCLIP-H-14)
declare -A PAPER_ROWS=()
# bfloat16 has the range of float32, so needs no scaling of the loss
PRECISION=amp_bf16 FLAGS=(--torchcompile)
: "${CHECKPOINTING=1}"

source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
