#!/usr/bin/env bash
# A recipe's training as a Slurm job, on any number of machines that share a file system:
#
#   sbatch --nodes 2 --gpus-per-node 4 examples/recipes/slurm.sh examples/recipes/cc12m.sh DiffCLIP-B-16
#
# Where a machine has not 8 GPUs, give --cpus-per-task too: 10 a GPU, for 8 data loaders, the trainer and its threads.
# Submit it from the folder that holds data/ and runs/, with the environment active. Interrupted or out of time, the
# same command goes on after the last whole epoch. Arguments behind the model are the trainer's.
#SBATCH --job-name=diffclip
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=80
#SBATCH --time=48:00:00
#SBATCH --open-mode=append
set -euo pipefail

recipe=$1 model=$2
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export NODES=$SLURM_JOB_NUM_NODES GPUS=$SLURM_GPUS_ON_NODE
# a port that another job on the machine is unlikely to have
export RDZV=$first:$((10000 + SLURM_JOB_ID % 20000))

# a torchrun a machine, which starts a process a GPU
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    bash "$recipe" train "$model" "${@:3}"
