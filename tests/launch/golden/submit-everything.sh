#!/bin/bash
# Run demo: 4 nodes × 8 processes, torchrun. Written by `python -m launch submit`.
#SBATCH --job-name=demo
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --gpus-per-node=8
#SBATCH --mem=500G
#SBATCH --time=90
#SBATCH --partition=h100
#SBATCH --chdir='/home/me/my project'
#SBATCH --output='/shared/my runs/it'"'"'s/logs/slurm.log'
#SBATCH --open-mode=append

set -e -o pipefail
export PYTHONPATH=/ROOT${PYTHONPATH:+:$PYTHONPATH}

# launch.setup
module load cuda/12

# One agent per node; it starts the node's ranks. When one fails, all are stopped,
# and the exit code of the training script becomes the exit code of the job.
export SUBMITIT_EXECUTOR=slurm
srun --kill-on-bad-exit=1 --wait=0 --unbuffered --cpus-per-task=96 /venv/bin/python -u -m submitit.core._submit '/shared/my runs/it'"'"'s/submitit'
