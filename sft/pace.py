"""Which ranks compute for longer than the others: those keep all waiting, as every step ends with the last."""

from __future__ import annotations

from collections.abc import Sequence

SLOW = 1.5
"""So many times the median rank's own time."""
NOTICEABLE_S = 0.005
"""And so much more per step."""
LASTING_STEPS = 5
"""For so many steps on end."""


class Pace:
    """The ranks' own computing times, over the steps."""

    def __init__(self, num_ranks: int) -> None:
        self._slow_steps = [0] * num_ranks
        self._told: set[int] = set()

    def see(self, busy_s: Sequence[float], num_steps: int) -> list[float]:
        """Each rank's time in proportion to the median rank's, where it is slow for long enough; 0 for the others.

        Args:
            busy_s: seconds that each rank has computed by itself in the last steps, without waiting for others.
            num_steps: how many these were.
        """
        median_s = max(sorted(busy_s)[(len(busy_s) - 1) // 2], 1e-9)
        found = []
        for rank, own_s in enumerate(busy_s):
            is_slow = own_s >= SLOW * median_s and own_s - median_s >= NOTICEABLE_S * num_steps
            self._slow_steps[rank] = self._slow_steps[rank] + num_steps if is_slow else 0
            found.append(own_s / median_s if self._slow_steps[rank] >= LASTING_STEPS else 0.0)
        return found

    def news(self, slowness: Sequence[float]) -> list[str]:
        """A warning for each rank that has become slow, and was not before."""
        slow = {rank for rank, ratio in enumerate(slowness) if ratio}
        new, self._told = slow - self._told, slow
        return [
            f"warning: rank {rank} takes {slowness[rank]:.1f} times as long as the median rank for data and forward "
            "passes; all ranks wait for it."
            for rank in sorted(new)
        ]
