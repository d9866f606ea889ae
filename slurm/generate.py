"""Writes slurm/torchrun.sbatch, deepspeed.sbatch and chain.sbatch: `python slurm/generate.py`, in the project's root.

They are for those who work without the launcher, and need none of its Python. Their commands are the launcher's own,
with variables of the shell in place of what it would know.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.command import deepspeed_words, torchrun_words
from launch.rendezvous import Rendezvous
from launch.script import SRUN, WAIT_FOR_SRUN, sbatch_lines

FOLDER = Path(__file__).resolve().parent
WIDTH = 118
PYTHON = '"$PYTHON"'
RENDEZVOUS = Rendezvous(
    id='"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
    address='"$MASTER_ADDR"',
    port='"$MASTER_PORT"',
    node_rank='"$SLURM_NODEID"',
    hosts=(),
)
"""As the task of a node knows it, in words of its shell."""
OPTIONS = {"job-name": "sft", "nodes": 2, "ntasks-per-node": 1, "output": "%x-%j.log", "open-mode": "append"}
LEAD_S = 120
"""How long before the time limit a chain's ranks are told to save."""
OUTPUT = '--output_dir "$OUTPUT_DIR"'


def texts() -> dict[str, str]:
    """File name → text."""
    return {"torchrun.sbatch": torchrun(), "deepspeed.sbatch": deepspeed(), "chain.sbatch": chain()}


def torchrun() -> str:
    """One torchrun on each node."""
    usage = """\
# Trains on the nodes that Slurm gives, with one torchrun on each. In the project's root:
#
#     sbatch [--nodes=4 --gpus-per-node=8 --cpus-per-task=64 …] slurm/torchrun.sbatch run.yaml [--learning_rate 1e-5 …]
#
# The settings file comes first; all further words go to the trainer. Options of sbatch win over the #SBATCH lines.
# PYTHON=/path/to/python and PROCS_PER_NODE=2 in the environment choose Python (default: .venv/bin/python, or python)
# and the number of ranks per node (default: the node's GPUs, or 1). `python -m launch submit` does the same, with
# records, status and exact exit codes.
"""
    return _text("torchrun", usage, [], [], _on_nodes("torchrun", _torchrun_lines('sft/train.py --config "$@"')))


def _torchrun_lines(script: str) -> list[str]:
    words = torchrun_words(PYTHON, '"$SLURM_JOB_NUM_NODES"', '"$PROCS_PER_NODE"', RENDEZVOUS)
    return [_ACCELERATOR, *_command(["exec", *words], script)]


def deepspeed() -> str:
    """DeepSpeed's launcher on each node."""
    usage = """\
# Trains on the nodes that Slurm gives, with DeepSpeed's launcher on each, without ssh. In the project's root:
#
#     sbatch [--nodes=4 --gpus-per-node=8 --cpus-per-task=64 …] slurm/deepspeed.sbatch run.yaml [--learning_rate 1e-5 …]
#
# The settings file comes first; all further words go to the trainer. Options of sbatch win over the #SBATCH lines.
# In the environment: ZERO=0|1|2|3 chooses ds_configs/zero<N>.json (default 2), PYTHON=/path/to/python
# (default: .venv/bin/python, or python), PROCS_PER_NODE=2 the ranks per node (default: the node's GPUs, or 1).
# `python -m launch submit --launcher deepspeed` does the same, with records, status and exact exit codes.
"""
    checks = [
        "export ZERO=${ZERO:-2}",
        '[ -f "ds_configs/zero$ZERO.json" ] || fail "ZERO is \'$ZERO\'; it must be 0, 1, 2 or 3"',
    ]
    hostfile = """\

# DeepSpeed's list of nodes; without it each launcher would silently train alone.
HOSTFILE_TEXT=$(sed "s/\\$/ slots=$PROCS_PER_NODE/" <<< "$nodes")
export HOSTFILE_TEXT"""
    words = deepspeed_words(PYTHON, '"$hostfile"', RENDEZVOUS)
    lines = [
        "set -e",
        _ACCELERATOR,
        "hostfile=$(mktemp)",
        'trap "rm -f \\"$hostfile\\"" EXIT',
        'printf "%s\\n" "$HOSTFILE_TEXT" > "$hostfile"',
        *_command(words, 'sft/train.py --config "$@" --deepspeed "ds_configs/zero$ZERO.json"'),
    ]
    return _text("deepspeed", usage, checks, [hostfile], _on_nodes("deepspeed", lines))


def chain() -> str:
    """One torchrun on each node, in a job that goes on by itself."""
    usage = """\
# Trains as slurm/torchrun.sbatch does, in a job that goes on by itself until it is done: it saves before the time
# limit, and is requeued then, and where a rank or a node was lost. In the project's root:
#
#     sbatch [--nodes=4 --time=240 …] slurm/chain.sbatch run.yaml [--save_steps 100 …]
#
# In the environment: OUTPUT_DIR=DIR the run directory (default runs/<job's name>-<job's id>), PYTHON and PROCS_PER_NODE
# as in slurm/torchrun.sbatch. The job's exit code is that of the rank that failed first (docs/exit-codes.md).
# `python -m launch submit` does the same and more: it finds ranks that hang, and says what was wrong, and where.
"""
    words = ["--requeue", f"--signal=B:USR1@{LEAD_S}"]
    return _text("chain", usage, [], [_CHAIN_BEFORE], [*_chain_step(), _CHAIN_AFTER], words)


_ACCELERATOR = "[ -e /dev/nvidia0 ] || export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}"

_RENDEZVOUS = """
# The address of the first node as Slurm knows it. Without it every node would train alone: then rather not at all.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(scontrol show node "${nodes%%$'\\n'*}" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
[ -n "$address" ] || fail "scontrol does not know the address of ${nodes%%$'\\n'*}"

# A port from the job's id, below those that the kernel gives to outgoing connections.
read -r first_ephemeral _ < /proc/sys/net/ipv4/ip_local_port_range
[ "$first_ephemeral" -gt 10100 ] || first_ephemeral=32768

export MASTER_ADDR=$address
export MASTER_PORT=$((10000 + SLURM_JOB_ID % (first_ephemeral - 10000)))
export PROCS_PER_NODE=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
cpus=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > PROCS_PER_NODE ? cpus / PROCS_PER_NODE : 1))}
export PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python)}
# Since Slurm 22.05 srun does not take --cpus-per-task from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"""

_CHAIN_BEFORE = """
# The same in each attempt: the trainer goes on from the newest checkpoint there. In codes/ ranks write how they ended,
# and after each attempt the newest checkpoint is noted. An earlier job in the same directory may have left codes there.
export OUTPUT_DIR=${OUTPUT_DIR:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}
export CODES=$OUTPUT_DIR/codes
export ATTEMPT=${SLURM_RESTART_COUNT:-0}
mkdir -p "$CODES"
rm -f "$CODES/$ATTEMPT".*
newest() { (ls -d "$OUTPUT_DIR"/checkpoints/step-???????? 2> /dev/null || echo none) | tail -n 1; }
[ "$ATTEMPT" -gt 0 ] || newest > "$CODES/newest"

# What each rank runs. torchrun would turn any code into 1, and end the others where one has saved and leaves with 10.
# shellcheck disable=SC2016
export ON_RANK='
    trap : TERM  # it waits for the trainer, which saves
    code=0
    "$PYTHON" -u sft/train.py --config "$@" --output_dir "$OUTPUT_DIR" || code=$?
    echo "$code" > "$CODES/$ATTEMPT.$RANK"
    [ "$code" -eq 10 ] || exit "$code"
'

# USR1 comes to this shell alone, before the time limit: it is passed on, the ranks save and end. TERM comes to all,
# when Slurm ends the job or puts it back into the queue.
told=
trap 'told=USR1; scancel --signal=USR1 "$SLURM_JOB_ID" || true' USR1
trap 'told=TERM' TERM"""

_CHAIN_AFTER = """
# The code of the rank that failed first; 11 (another one is gone) only where there is no other; 143 without any.
cause=
for one in $(cd "$CODES" && ls -tr -- "$ATTEMPT".* 2> /dev/null | xargs -r cat); do
  case $one in
    0) ;;
    11) cause=${cause:-11} ;;
    *) cause=$one; break ;;
  esac
done
[ -n "$cause" ] || [ "$code" -eq 0 ] || cause=143
[ -n "$cause" ] || { echo "attempt $ATTEMPT is done"; exit 0; }
newest >> "$CODES/newest"

# Only what another attempt can cure: stopped and saved (10), another rank gone (11), ended by a signal, or no code.
say="attempt $ATTEMPT ended with code $cause"
case $cause in
  10 | 11 | 129 | 13? | 14? | 15?) ;;
  *) echo "$say; another attempt would not cure that"; exit "$cause" ;;
esac
[ "$told" != TERM ] || { echo "$say: Slurm ends the job, or puts it back by itself"; exit "$cause"; }
if [ "$(tail -n 4 "$CODES/newest" | uniq -c | sed 's/^ *//; s/ .*//')" = 4 ]; then
  echo "$say; three attempts in a row brought no newer checkpoint"; exit 93
fi
echo "$say; it goes on from $(tail -n 1 "$CODES/newest")"
scontrol requeue "$SLURM_JOB_ID" || exit "$cause\""""


def _chain_step() -> list[str]:
    lines = [
        'trap "" USR1  # torchrun would die of it; the trainer takes it',
        *_torchrun_lines('--no-python bash -c "$ON_RANK" rank "$@"'),
    ]
    *most, last = _on_nodes("torchrun", lines)
    return [*most, f"{last} &", "srun=$!", *WAIT_FOR_SRUN]


def _text(
    name: str,
    usage: str,
    checks: Sequence[str],
    before: Sequence[str],
    step: Sequence[str],
    words: Sequence[str] = (),
) -> str:
    """A whole script.

    Args:
        name: of the file.
        usage: the comment at its beginning.
        checks: lines that refuse what was given, beside those of all.
        before: lines between the rendezvous and the step.
        step: what runs on the nodes, and what comes after.
        words: options of sbatch, beside those of all.
    """
    lines = [
        "#!/bin/bash",
        usage.rstrip(),
        "# Written by slurm/generate.py.",
        *sbatch_lines(OPTIONS, words),
        "",
        "set -euo pipefail",
        'fail() { echo "error: $*" >&2; exit 2; }',
        "",
        f'[ $# -ge 1 ] || fail "no settings file; usage: sbatch slurm/{name}.sbatch run.yaml [words for the trainer]"',
        '[ -f sft/train.py ] || fail "$PWD has no sft/train.py; call sbatch in the project\'s root"',
        '[ -f "$1" ] || fail "the settings file is \'$1\'; it must be a file"',
        *checks,
        _RENDEZVOUS,
        *before,
        *step,
    ]
    return "\n".join(lines) + "\n"


def _on_nodes(name: str, lines: Sequence[str]) -> list[str]:
    return [
        "",
        "# Quoted with '…': SLURM_NODEID has its value only in the task on each node, not here.",
        "# When one node fails, all stop; one that is done waits for the one that still writes the model.",
        f"{' '.join(SRUN)} bash -c '",
        *(f"    {line}" for line in lines),
        f'\' {name} "$@"',
    ]


def _command(words: Sequence[str], script: str) -> list[str]:
    """A command, on several lines that go on with a backslash; its script on the last."""
    lines = [""]
    for word in words:
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) > WIDTH - 10:
            lines.append(word)
        else:
            lines[-1] = joined
    first, *rest = [*lines, script]
    return [f"{first} \\", *(f"    {line} \\" for line in rest[:-1]), f"    {rest[-1]}"]


if __name__ == "__main__":
    for file, text in texts().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
