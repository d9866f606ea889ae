"""Which ranks compute for longer than the others: those keep all waiting, as every step ends with the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    def news(self, slowness: Sequence[float], phases_s: Mapping[str, Sequence[float]]) -> list[str]:
        """A warning for each rank that has become slow, and was not before.

        Args:
            slowness: as `see` gives it.
            phases_s: name of a phase → seconds of each rank in it; they add up to what `see` was given.
        """
        slow = {rank for rank, ratio in enumerate(slowness) if ratio}
        new, self._told = slow - self._told, slow
        return [
            f"warning: rank {rank} takes {slowness[rank]:.1f} times as long as the median rank for "
            f"{' and '.join(phases_s)}, most of it in {slowest_phase(phases_s, rank)}; all ranks wait for it."
            for rank in sorted(new)
        ]


def slowest_phase(phases_s: Mapping[str, Sequence[float]], rank: int) -> str:
    """The phase in which a rank loses most against the median rank of that phase."""

    def lost_s(phase: str) -> float:
        ranks_s = phases_s[phase]
        return ranks_s[rank] - sorted(ranks_s)[(len(ranks_s) - 1) // 2]

    return max(phases_s, key=lost_s)
