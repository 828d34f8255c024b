#!/usr/bin/env bash
# The paper's four models on CC12M, from addresses to report:
#
#   examples/recipes/cc12m.sh data                      the images of data/cc12m.tsv, by img2dataset
#   examples/recipes/cc12m.sh train DiffCLIP-B-16       open_clip's trainer, by torchrun
#   examples/recipes/cc12m.sh evaluate DiffCLIP-B-16    the paper's suite
#   examples/recipes/cc12m.sh report                    its tables and figures, beside the paper's numbers
#
# and for CLIP-B-16-baseline, DiffCLIP-B-16-dynamic (DiffCLIP*) and DiffCLIP-B-16-vision (DiffCLIP†) likewise.
#
# Hardware: one machine with 8 A100 (paper, section 4.1). Others: NODES, GPUS, ACCUM (README.md); slurm.sh for Slurm.
# Memory: predicted 50 GB a GPU, 11 GB with CHECKPOINTING=1, for cards of 40 GB.
# Time: about 10 GPU-days a model on A100 (section 5.2), so 30 hours on 8. Not measured with this code.
# Disk: 7.9 million images of 224 pixels; 40 checkpoints of 1.8 GB a model.
#
# The paper's scores in %: zero-shot ImageNet by 7 templates (inferred); OOD and the others are means (Figure 3, Tables 1, 2).
#
#   model                 ImageNet   OOD  image R@5  text R@5  linear probe  few-shot
#   CLIP-B-16-baseline        31.8  26.0       55.3      69.4          77.0      85.3
#   DiffCLIP-B-16             33.8  28.1       55.3      70.1          77.3      85.4
#   DiffCLIP-B-16-dynamic     34.6  27.3       55.4      70.9          77.0      85.5   from differences (4.5, Figure 5)
#   DiffCLIP-B-16-vision      33.7  28.3       55.7      70.6          77.1      85.6   from differences (section 4.6)
set -euo pipefail

RUNS=cc12m SET=cc12m LIST_HEADER='url\tcaption' LAST_SHARD=01242
PAPER_SAMPLES=7900000 PAPER_GPUS=8
MODELS=(CLIP-B-16-baseline DiffCLIP-B-16 DiffCLIP-B-16-dynamic DiffCLIP-B-16-vision)
declare -A PAPER_ROWS=(
    [CLIP-B-16-baseline]=CC12M/CLIP
    [DiffCLIP-B-16]=CC12M/DiffCLIP
    [DiffCLIP-B-16-dynamic]=CC12M/DiffCLIP-dynamic
    [DiffCLIP-B-16-vision]=CC12M/DiffCLIP-vision
)
PRECISION=amp FLAGS=()
: "${CHECKPOINTING=}"

source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
