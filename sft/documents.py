"""Document: one sequence of tokens to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Document:
    """One sequence of tokens to train on."""

    input_ids: Sequence[int] | NDArray[np.int32]
    trained: Sequence[bool] | NDArray[np.bool_]
    """One per token: the loss is taken where the token is predicted."""
    weights: Sequence[float] | NDArray[np.float32] | None = None
    """One per token, where they are not all 1: what the token's loss is multiplied by. 0 where not trained."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the document was made, in words that are the same for like documents."""

    turn_starts: tuple[int, ...] = ()
    """With `truncation: left`: the first token of each user's turn, its header included."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens with a loss; the first token of a sequence is predicted from nothing and has none."""
        return int(np.count_nonzero(self.trained[1:]))

    @property
    def total_weight(self) -> float:
        """Sum of the weights of its trained tokens; their number where they are not weighted."""
        if self.weights is None:
            return float(self.num_trained_tokens)
        return float(np.sum(np.asarray(self.weights)[1:], where=np.asarray(self.trained)[1:], dtype=np.float64))
