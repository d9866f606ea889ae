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
