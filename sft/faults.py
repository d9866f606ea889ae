"""Faults on purpose: `SFT_FAULT=kill@1:7` ends rank 1 by SIGKILL in step 7. For tests and drills.

    SFT_FAULT = FAULT[,FAULT…]
    FAULT     = [always:]KIND@RANK:STEP[:POINT] | [KIND+KIND…]@poisson:SEED:MTBF_S

POINT is where in the step: `step` (the default), or a name that a part of saving calls `fault_at` with. `bitflip` takes
no POINT: it changes a bit of this rank's part of the step's checkpoint once that is complete. A fault happens once in a
run directory of the launcher, or each time with `always:`. With `poisson`, faults of these kinds come at
random times with a mean distance of MTBF_S seconds over all ranks, the same for the same seed and attempt.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from strict_settings import Problem, SettingsError

VARIABLE = "SFT_FAULT"
CALLERS_KINDS = ("nan", "perturb", "bitflip")
"""Done by whoever calls `fault_at`, who is handed the kind: a loss that is no number; a weight that is changed; a bit
of a checkpoint's file."""
PART_COMMITTED = "part_committed"
"""The point of `bitflip`: rank 0 comes to it for each rank, whose part of a checkpoint is complete."""
SLOW_S = 0.3
"""Of `slow`; `slow15` takes 15 s."""
_FAULT = re.compile(r"(always:)?([a-z_0-9]+)@(\d+):(\d+)(?::([A-Za-z_0-9.-]+))?")
_POISSON = re.compile(r"([a-z_0-9]+(?:\+[a-z_0-9]+)*)@poisson:(\d+):(\d+(?:\.\d+)?)")
_ONCE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class InjectedFaultError(RuntimeError):
    """What `raise` raises."""


def _hold_the_gil() -> None:
    re.match(r"(a?){40}a{40}", "a" * 40)  # exponential, and a match never lets another thread run


def _raise() -> None:
    raise InjectedFaultError(f"a fault on purpose, by {VARIABLE}")


def _fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _use_up_memory() -> None:
    blocks = []
    while True:
        blocks.append(b"\1" * (32 << 20))


def _send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _send(signal.SIGKILL),
    "stop": _send(signal.SIGSTOP),
    "term": _send(signal.SIGTERM),
    "segv": _send(signal.SIGSEGV),
    "abort": os.abort,
    "raise": _raise,
    "exit0": lambda: os._exit(0),
    "slow": lambda: time.sleep(SLOW_S),
    "hang": lambda: time.sleep(1e6),
    "lock_gil": _hold_the_gil,
    "enospc": _fill_the_disk,
    "oom": _use_up_memory,
    **dict.fromkeys(CALLERS_KINDS, lambda: None),
}
KINDS = tuple(_ACTIONS)
_LONG = re.compile(r"slow(\d+)")


def _is_kind(word: str) -> bool:
    return word in _ACTIONS or _LONG.fullmatch(word) is not None


def _act(kind: str) -> None:
    if (match := _LONG.fullmatch(kind)) is not None:
        time.sleep(int(match[1]))
    else:
        _ACTIONS[kind]()


@dataclass(frozen=True)
class Fault:
    """One fault: what, on which rank, when."""

    kind: str
    rank: int
    step: int
    point: str = "step"
    is_repeated: bool = False

    @property
    def name(self) -> str:
        """As a file name."""
        return f"{self.kind}-{self.rank}-{self.step}-{self.point}"


@dataclass(frozen=True)
class RandomFaults:
    """Faults of these kinds at random times."""

    kinds: tuple[str, ...]
    seed: int
    mtbf_s: float
    """Mean time between two of them, over all ranks."""

    def course(self, num_ranks: int, attempt: str) -> Iterator[tuple[float, str, int]]:
        """(seconds since the start, kind, rank) of one fault after the other: a Poisson process."""
        rng, at_s = random.Random(f"{self.seed}.{attempt}"), 0.0
        while True:
            at_s += rng.expovariate(1.0 / self.mtbf_s)
            yield at_s, rng.choice(self.kinds), rng.randrange(num_ranks)


def parse_faults(text: str) -> list[Fault | RandomFaults]:
    """The faults that the variable's text means.

    Raises:
        SettingsError: a word that is no fault.
    """
    return [_parse(word.strip()) for word in text.split(",") if word.strip()]


def _parse(word: str) -> Fault | RandomFaults:
    if (match := _POISSON.fullmatch(word)) is not None:
        kinds = tuple(match[1].split("+"))
        if all(_is_kind(kind) and kind != "bitflip" for kind in kinds) and float(match[3]) > 0:
            return RandomFaults(kinds, int(match[2]), float(match[3]))
    elif (match := _FAULT.fullmatch(word)) is not None and _is_kind(match[2]):
        always, kind, rank, step, point = match.groups()
        if kind != "bitflip":
            return Fault(kind, int(rank), int(step), point or "step", bool(always))
        if point is None:
            return Fault(kind, int(rank), int(step), PART_COMMITTED, bool(always))
    rule = f"be KIND@RANK:STEP[:POINT] or KIND+KIND@poisson:SEED:MTBF_S, KIND one of {', '.join(KINDS)}"
    raise SettingsError(Problem(VARIABLE, word, rule))


class Faults:
    """The faults of one process."""

    def __init__(self, text: str, num_ranks: int, attempt: str, folder: Path | None) -> None:
        """
        Args:
            text: the variable's.
            num_ranks: of the world.
            attempt: of the run: random faults come at other times in each.
            folder: where it is noted which faults have happened; None: every process is the first.
        """
        found = parse_faults(text)
        self._fixed = [fault for fault in found if isinstance(fault, Fault)]
        self._random = [fault.course(num_ranks, attempt) for fault in found if isinstance(fault, RandomFaults)]
        self._folder = folder
        self._started = time.monotonic()
        self._next = [next(source) for source in self._random]

    def at(self, point: str, step: int, rank: int) -> str | None:
        """Does what is due here; the kind, where the caller is to do it."""
        for fault in self._fixed:
            if (fault.point, fault.step, fault.rank) == (point, step, rank) and self._is_new(fault):
                return self._do(fault.kind, f"{point} {step}")
        # At a part's point rank 0 asks for others too: what comes at random there is theirs.
        for number, (at_s, kind, its_rank) in enumerate(self._next if point != PART_COMMITTED else ()):
            if time.monotonic() - self._started >= at_s:
                self._next[number] = next(self._random[number])
                if its_rank == rank:
                    return self._do(kind, f"{point} {step}, {at_s:.1f} s")
        return None

    def _is_new(self, fault: Fault) -> bool:
        if fault.is_repeated or self._folder is None:
            return True
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(self._folder / fault.name, _ONCE, 0o600))
        except FileExistsError:
            return False
        return True

    @staticmethod
    def _do(kind: str, where: str) -> str | None:
        print(f"fault on purpose: {kind} at {where}", flush=True)
        _act(kind)
        return kind if kind in CALLERS_KINDS else None


_faults: list[Faults] = []
"""Those of this process, none or one: its points are everywhere, and by default there is nothing to pass to them."""


def install(environ: Mapping[str, str]) -> None:
    """Takes the faults from the environment; none where the variable is not set.

    Raises:
        SettingsError: it makes no sense.
    """
    _faults.clear()
    if environ.get(VARIABLE):
        run_dir = environ.get("CLEANSFT_RUN_DIR")
        folder = Path(run_dir) / "faults" if run_dir else None
        num_ranks, attempt = int(environ.get("WORLD_SIZE", "1")), environ.get("CLEANSFT_ATTEMPT", "0")
        _faults.append(Faults(environ[VARIABLE], num_ranks, attempt, folder))


def flip_bit(path: Path) -> None:
    """Changes one bit in the middle of a file, as a disk may."""
    with path.open("r+b", buffering=0) as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        (byte,) = file.read(1)
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def fault_at(point: str, step: int, rank: int) -> str | None:
    """Lets a fault that is due here happen. Returns a kind of `CALLERS_KINDS` that the caller is to do, or None.

    Raises:
        InjectedFaultError: by `raise`.
        OSError: by `enospc`.
    """
    return _faults[0].at(point, step, rank) if _faults else None
