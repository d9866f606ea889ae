"""Kills a process at each system call of a resume and a save: `python crash_points.py FOLDER EVERY` prints, as JSON,
how many calls each scenario makes, at which of them a process was killed, and what was wrong afterwards.

A call is what changes or reads the file system through `os`. A process is killed before it, and also in the middle of
each write. Processes are forks of one that has imported everything.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CALLS = (
    "open",
    "write",
    "fsync",
    "close",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "listdir",
    "scandir",
    "stat",
)


class FakeEngine:
    """Two parameters whose values are those of a step."""

    def __init__(self, step: int) -> None:
        import torch

        self.values = torch.full((700,), float(step))

    def pieces(self) -> list[Any]:
        from sft.pieces import KINDS, Piece

        return [Piece(name, kind, 0, 700, 700) for kind in KINDS for name in ("a", "b")]

    def read_piece(self, piece: Any) -> Any:
        return self.values

    def write_piece(self, piece: Any, values: Any) -> None:
        self.values = values

    def weights_changed(self) -> None:
        """Nothing follows from them."""

    def start_from(self, num_steps: int) -> None:
        """No means either."""


def checkpoints_of(folder: Path, fence: Any = None) -> Any:
    import torch

    from sft.checkpoint import Checkpoints
    from sft.identity import Identity
    from sft.world import World

    solo = World(0, 0, 1, torch.device("cpu"))
    quiet: Callable[[str], None] = lambda _: None  # noqa: E731
    return Checkpoints(
        folder / "checkpoints", solo, Identity({}, {}), 1, fence=fence, cursor=lambda step: (0, step), say=quiet
    )


def resume_and_save(folder: Path, step: int, fence: Any) -> None:
    """What a run does with its checkpoints, from its start to its end one step later."""
    from sft.checkpoint import RunState

    checkpoints = checkpoints_of(folder, fence)
    engine: Any = FakeEngine(step)
    found = checkpoints.find("auto")
    state = checkpoints.load(found, engine) if found is not None else RunState()
    checkpoints.begin(engine, state.step, 2)
    for own in (step, step + 1):
        checkpoints.save(FakeEngine(own), RunState(step=own))
    checkpoints.finish()


def first(folder: Path) -> int:
    """A run's first checkpoints."""
    return 0


def going_on(folder: Path) -> int:
    """One is there."""
    forked(lambda: resume_and_save(folder, 1, held(folder)))
    return 2


def after_a_crash(folder: Path) -> int:
    """One is there, and what a dead writer and a dead remover left; a later one is damaged."""
    from sft.commit import checkpoint_path

    going_on(folder)
    path = checkpoint_path(folder / "checkpoints", 2)
    for name in ("step-00000003.tmp-1-1", "step-00000001.gone", "step-00000009"):
        shutil.copytree(path, path.with_name(name))
    (path.with_name("step-00000009") / "part-00000.safetensors").write_bytes(b"")
    return 2


SCENARIOS = {scenario.__name__: scenario for scenario in (first, going_on, after_a_crash)}


def held(folder: Path) -> Any:
    from sft.fence import Holder, take

    return take(folder, Holder.this_process({}), say=lambda _: None)


def forked(body: Callable[[], None]) -> int:
    """Runs the body in a fork; returns its exit status as `os.waitpid` has it."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def counted(at: int | None, written: Path | None) -> None:
    """From now on this process dies at its `at`th call; without a number it leaves how many there were."""
    number = 0

    def step_to(die_half: Callable[[], None] | None = None) -> None:
        nonlocal number
        for half in (False, True) if die_half else (False,):
            if number == at:
                if half and die_half:
                    die_half()
                os.kill(os.getpid(), signal.SIGKILL)
            number += 1
        if written is not None:
            open_text(written, str(number))

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "write":
                step_to(lambda: original(args[0], args[1][: len(args[1]) // 2]))
            else:
                step_to()
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def open_text(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def run_until(folder: Path, step: int, at: int | None, written: Path | None = None) -> int:
    """Resumes and saves in a fork that dies at a call."""

    def body() -> None:
        fence = held(folder)
        counted(at, written)
        resume_and_save(folder, step + 1 if step else 1, fence)

    return forked(body)


def sweep(folder: Path, every: int) -> dict[str, Any]:
    """Kills at every so many calls of each scenario."""
    killed, wrong = 0, []
    totals = {}
    for name, prepare in SCENARIOS.items():
        count = folder / f"{name}.count"
        own = folder / name
        own.mkdir()
        assert run_until(own, prepare(own), None, count) == 0, name
        totals[name] = int(count.read_text())
        shutil.rmtree(own)
        for at in range(random.Random(name).randrange(every), totals[name], every):
            own.mkdir()
            step = prepare(own)
            status = run_until(own, step, at)
            if status == signal.SIGKILL:
                killed += 1
                wrong += [f"{name} at {at}: {problem}" for problem in problems_after(own, step)]
            else:
                wrong.append(f"{name} at {at}: exit status {status}")
            shutil.rmtree(own)
    return {"calls": totals, "killed": killed, "wrong": wrong}


def problems_after(folder: Path, step: int) -> list[str]:
    """What is wrong after a kill: the step that was there must be, or a later one, and it must load as it was."""
    checkpoints = checkpoints_of(folder)
    try:
        path = checkpoints.find("auto")
        if path is None:
            return ["no checkpoint is left"] if step else []
        engine: Any = FakeEngine(-1)
        state = checkpoints.load(path, engine)
        found = []
        if not step <= state.step <= (step or 1) + 2:
            found.append(f"step {state.step} is found, where {step} was there")
        if engine.values.tolist() != [float(state.step)] * 700:
            found.append(f"the values of step {state.step} are others")
        status = forked(lambda: resume_and_save(folder, state.step + 1, held(folder)))
        return [*found, *([f"a run that goes on ends with {status}"] if status else [])]
    except Exception as error:
        return [repr(error)]


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import torch

    import sft.checkpoint  # noqa: F401  (once, for all forks)

    torch.set_num_threads(1)
    print(json.dumps(sweep(Path(sys.argv[1]), int(sys.argv[2]))))
