#!/bin/bash
# Run demo: 2 nodes × 2 processes, torchrun. Written by `python -m launch submit`.
#SBATCH --job-name=demo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --chdir='/home/me/my project'
#SBATCH --output=/shared/runs/demo/logs/slurm.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --no-requeue

# When Slurm announces the end (SIGUSR1: a time limit or preemption is near; SIGTERM: it ends now), the ranks
# are asked to save and stop: their agents look for this file.
told=
ask_to_stop() {
  told="$told $1"
  [ -z "$CLEANSFT_ATTEMPT" ] ||
    echo '{"reason": "'$1'"}' > /shared/runs/demo/exit/$CLEANSFT_ATTEMPT/stop.json || true
}
trap 'ask_to_stop signal' USR1
trap 'ask_to_stop terminated' TERM

# Where the job ends before an attempt has begun, as where a line below fails, nobody else knows its code.
CLEANSFT_ATTEMPT=
note_end() {
  code=$?; [ -z "$CLEANSFT_ATTEMPT" ] || return 0
  echo '{"code": '$code', "claim": '${CLEANSFT_CLAIM:-0}'}' > /shared/runs/demo/exit/not_begun.json || true
}
trap note_end EXIT

set -e -o pipefail
umask 077
export PYTHONPATH=/ROOT${PYTHONPATH:+:$PYTHONPATH}

# launch.modules
command -v module > /dev/null || { set +e; . /etc/profile; set -e; }
module load cuda/12.6 nccl

# launch.setup
ulimit -l unlimited

# A new attempt of this run: 0, 1, 2, … also after a requeue.
CLEANSFT_ATTEMPT=$(/venv/bin/python -m launch.batch begin /shared/runs/demo)
export CLEANSFT_ATTEMPT
[ -z "$told" ] || ask_to_stop signal

# One agent per node; it starts the node's ranks. When one fails, all are stopped,
# and the exit code of the training script becomes the exit code of the job.
export SUBMITIT_EXECUTOR=slurm
srun --kill-on-bad-exit=1 --wait=0 --unbuffered --cpus-per-task=8 '--container-image=nvcr.io#nvidia/pytorch:25.01' --container-mounts=/data:/data,/home/me:/home/me,/scratch/x:/scratch,/ROOT:/ROOT,/shared/runs/demo:/shared/runs/demo,/code:/code '--container-workdir=/home/me/my project' /opt/venv/bin/python -u -m launch.agent /shared/runs/demo &
srun=$!
# Where a node's slurmstepd was killed, srun is never told that its agent has ended, and would keep the nodes
# until the time limit. So it is ended itself, half a minute after the records of all agents are there.
all_ended() {
  set -- /shared/runs/demo/exit/$CLEANSFT_ATTEMPT/node-*.json; [ $# -ge 2 ] && [ -e "$1" ]
}
{ until all_ended; do sleep 10; done; sleep 30; kill -KILL $srun; } 2> /dev/null &
watcher=$!; disown $watcher
# In the background, as a trap runs only between commands; `wait` returns early for one.
while true; do
  code=0; wait $srun || code=$?
  kill -0 $srun 2> /dev/null || break
done
kill $watcher 2> /dev/null || true

# What follows: the end, the same job again, or its successor. Nobody is left to be asked.
trap '' USR1 TERM
/venv/bin/python -m launch.batch end /shared/runs/demo $code $told
