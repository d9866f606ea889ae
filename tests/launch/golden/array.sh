#!/bin/bash
# Sweep s. Written by `python -m launch sweep`.
#SBATCH --job-name=s
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --chdir=/FOLDER
#SBATCH --output=/FOLDER/runs/s/%a/logs/slurm.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --no-requeue

# Each task is a run of its own, in a directory of its own: what stops or requeues one touches no other.
exec bash /FOLDER/runs/s/$SLURM_ARRAY_TASK_ID/submit.sh
