"""Whether a node's ranks still move. Pure: what the board shows and the time in, what hangs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from launch.spec import Watchdog
from node_board import Slot

RECENT_STEPS = 32
LONGEST_LOOK_S = 1.0
"""More time than this between two looks is not held against a rank: this process was stopped too, as by a suspended
job, or the machine is overloaded."""


@dataclass
class _Progress:
    """What has been seen of one rank."""

    num_beats: int = -1
    still_s: float = 0.0
    """How long it has not beaten, by our own looks."""
    step: int = -1
    began_at: float | None = None
    """When the step began, by its own beat; None in another phase."""
    first_s: float | None = None
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    def see(self, slot: Slot, elapsed_s: float) -> None:
        """Takes a look into account."""
        if slot.num_beats == self.num_beats:
            self.still_s += elapsed_s
            return
        self.num_beats, self.still_s = slot.num_beats, 0.0
        if slot.phase != "step":
            self.began_at = None
        elif self.began_at is None or slot.step != self.step:
            if self.began_at is not None and slot.step > self.step:
                self._add((slot.beat_at - self.began_at) / (slot.step - self.step))
            self.began_at = slot.beat_at
        self.step = slot.step

    def _add(self, duration_s: float) -> None:
        """The first step of an attempt takes longer than all others, as it compiles and allocates."""
        if self.first_s is None:
            self.first_s = duration_s
        else:
            self.recent_s.append(duration_s)

    @property
    def slowest_step_s(self) -> float | None:
        """Of the recent steps; None before the first is done."""
        return max(self.recent_s, default=self.first_s)


class Stillness:
    """How long each rank of a node has not moved, and whether that is too long."""

    def __init__(self, limits: Watchdog) -> None:
        self._limits = limits
        self._ranks: dict[int, _Progress] = {}
        self._looked_at: float | None = None

    def look(self, slots: Iterable[Slot], now: float) -> None:
        """Takes the board as it is at `now` (time.monotonic()) into account. Ranks that are not there are left out."""
        elapsed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now
        for slot in slots:
            if slot.pid:
                self._ranks.setdefault(slot.local_rank, _Progress()).see(slot, elapsed_s)

    def still_s(self, slot: Slot) -> float:
        """How long a rank has not moved."""
        progress = self._ranks.get(slot.local_rank)
        return 0.0 if progress is None else progress.still_s

    def limit_s(self, slot: Slot) -> float | None:
        """How long a rank may stand still where it is; None: for ever."""
        limits = self._limits
        if slot.phase == "data":
            return None  # no collective: whoever encodes takes as long as the data is large
        if slot.phase == "step":
            progress = self._ranks.get(slot.local_rank)
            slowest_s = progress.slowest_step_s if progress is not None else None
            return limits.start_s if slowest_s is None else max(limits.step_s, limits.step_factor * slowest_s)
        return {"start": limits.start_s, "evaluation": limits.evaluation_s}.get(slot.phase, limits.checkpoint_s)

    def hanging(self, slots: Iterable[Slot]) -> list[Slot]:
        """The ranks that have stood still for too long; none where the watchdog is off."""
        if not self._limits.enabled:
            return []
        return [
            slot
            for slot in slots
            if slot.pid and (limit_s := self.limit_s(slot)) is not None and self.still_s(slot) > limit_s
        ]

    def moves_while_stopping(self, slot: Slot) -> bool:
        """Whether a rank that was asked to stop may still be on its way: it saves, or its step is not overdue."""
        if slot.phase in ("checkpoint", "end"):
            return True
        progress = self._ranks.get(slot.local_rank)
        slowest_s = progress.slowest_step_s if progress is not None else None
        return self.still_s(slot) < max(self._limits.step_s, 3 * (slowest_s or 0.0))
