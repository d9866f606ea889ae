"""Words that launchers, shells and schedulers like to change, and a script that writes down what it got."""

from __future__ import annotations

HOSTILE = (
    "",
    " ",
    "two words",
    "it's",
    'say "hi"',
    "a,b=c;d&e|f",
    "line one\nline two",
    "$(id)",
    "`id`",
    "$HOME ${local_rank} $$",
    "%j %t %%",
    "back\\slash\\n",
    '{"lora": {"r": 8}, "x": [1, null]}',
    "é – 中文 🙂",
    "-c",
    "--",
    "--master_port=1",
    "--b=c",
    "*?[a]",
    "~ # not a comment",
    "\ttab\r\x1b[0m",
)

PROBE = """\
import json, os, signal, sys, time

rank = int(os.environ["RANK"])
seen = {"argv": sys.argv[1:], "env": dict(os.environ), "host": os.uname().nodename}
path = os.path.join(os.environ["CLEANSFT_RUN_DIR"], f"seen-{rank}.json")
with open(path + ".tmp", "w") as file:
    json.dump(seen, file)
os.rename(path + ".tmp", path)
print(f"rank {rank} of {os.environ['WORLD_SIZE']}", flush=True)
time.sleep(float(os.environ.get("SLEEP", 0)))
while os.environ.get("WAIT_FOR") and not os.path.exists(os.environ["WAIT_FOR"]):
    time.sleep(0.05)
if os.environ.get("STRAY"):
    import subprocess
    stray = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", stray, os.environ["CLEANSFT_RUN_DIR"]])
mode = os.environ.get("FAIL", "")
if mode == "hang":
    time.sleep(300)
if mode and rank == 1:
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "raise":
        raise ValueError("the answer is not 42")
    sys.exit(int(mode.split()[1]))
if mode:
    time.sleep(300)
"""

TRAINER = """\
# Stands for the trainer: counts steps, saves them, heeds the request to stop, goes on where it was.
import os, signal, sys, time
from pathlib import Path

from node_board import NodeBoard

run, rank, attempt = Path(os.environ["CLEANSFT_RUN_DIR"]), int(os.environ["RANK"]), os.environ["CLEANSFT_ATTEMPT"]
last, pace, save_s = (float(os.environ.get(name, default)) for name, default in
                      (("STEPS", 20), ("PACE", 0.1), ("SAVE", 0)))
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("SIGTERM"))
board = NodeBoard.attach_from(os.environ, int(os.environ["LOCAL_RANK"]))
checkpoints = run / "checkpoints"
checkpoints.mkdir(exist_ok=True, mode=0o700)
done = max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)
print(f"attempt {attempt} begins at step {done}", flush=True)
fails = dict(word.split(":") for word in os.environ.get("FAILS", "").split(",") if word)


def save(step):
    board.beat("checkpoint", step)
    time.sleep(save_s)
    if rank == 0:
        (checkpoints / f"step-{step:08d}").mkdir(exist_ok=True, mode=0o700)
    print(f"saved step {step}", flush=True)


for step in range(done + 1, int(last) + 1):
    board.beat("step", step)
    time.sleep(pace)
    with open(run / f"trace-{rank}.txt", "a") as trace:
        trace.write(f"{step} {attempt}\\n")
    if os.environ.get("FAIL_AT") == str(step) and rank == 0:
        sys.exit(int(os.environ["FAIL_CODE"]))
    if attempt in fails and step == done + 3 and rank == 0:
        code = int(fails[attempt])
        save(step)
        sys.exit(code)
    if told or board.stop_reason:
        print(f"told to stop: {told or board.stop_reason}", flush=True)
        save(step)
        sys.exit(10)
board.beat("end", int(last))
"""
