"""Steps that are left out because their loss is far above the recent ones: `skip_loss_spikes`. Pure.

How far is measured in robust standard deviations: 1.4826 times the median distance of the recent losses from their
median, which is the standard deviation where they are normally distributed, and which a spike hardly moves. What is
compared is the loss of the whole step over all ranks, which is the same number on each of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sft.config import Args
from sft.optimizer import num_warmup_steps

WINDOW = 64
"""Losses that are compared with: those of the last steps that were not left out."""
MIN_LOSSES = 16
"""As long as there are fewer, no step is left out."""
LEAST_DEVIATION = 0.01
"""Of the median. Where losses hardly differ, as on rows that are all alike, a little more is no spike."""
_NORMAL = 1.4826


@dataclass(frozen=True)
class SpikeRule:
    """Which losses are spikes."""

    num_deviations: float
    """Robust standard deviations above the median from which on a loss is one; infinite: none is."""
    num_warmup_steps: int
    """While the learning rate rises, losses fall fast, and none is a spike."""

    @classmethod
    def of(cls, args: Args, num_steps: int) -> SpikeRule:
        """That of a run of so many steps."""
        deviations = math.inf if args.skip_loss_spikes is None else args.skip_loss_spikes
        return cls(deviations, num_warmup_steps(num_steps, args))

    def highest_loss(self, step: int, recent: Sequence[float]) -> float:
        """The highest loss with which this step is still made.

        Args:
            step: its number.
            recent: losses of the steps before it that were made, oldest first.
        """
        if step <= self.num_warmup_steps or len(recent) < MIN_LOSSES or math.isinf(self.num_deviations):
            return math.inf
        median = statistics.median(recent)
        deviation = _NORMAL * statistics.median(abs(loss - median) for loss in recent)
        return median + self.num_deviations * max(deviation, LEAST_DEVIATION * median)

    def remembered(self, recent: Sequence[float], loss: float) -> tuple[float, ...]:
        """The recent losses with one more; none are kept where no step is ever left out."""
        return () if math.isinf(self.num_deviations) else (*recent, loss)[-WINDOW:]
