"""What rows cost to compute, by which ranks get shares that take nearly the same time. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft.flops import ModelShape, Work, causal_flops

ATTENTION_TIME = 2.0
"""How long an operation of attention takes, in those of everything else: there is a softmax between its products, and
backward the scores are computed again. Seen: 2.3 on a CPU with bfloat16 products."""


def row_costs(
    rows: Sequence[Sequence[int]], lengths: ArrayLike, num_trained: ArrayLike, shape: ModelShape
) -> NDArray[np.float64]:
    """What each row costs, in operations: its tokens, their attention within documents, and the loss of the trained.

    Args:
        rows: document numbers.
        lengths: tokens of each document of the data set.
        num_trained: trained tokens likewise.
        shape: of the model.
    """
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    documents = np.array([document for row in rows for document in row], dtype=np.int64)
    tokens = np.asanyarray(lengths)[documents].astype(np.float64)
    trained = np.asanyarray(num_trained)[documents]
    cost = tokens * causal_flops(shape, Work(num_tokens=1)) + trained * causal_flops(shape, Work(num_trained_tokens=1))
    cost += ATTENTION_TIME * tokens**2 * causal_flops(shape, Work(sum_squared_lengths=1))
    beyond = np.maximum(tokens - shape.window, 0.0) if shape.window else np.zeros_like(tokens)
    cost += ATTENTION_TIME * beyond**2 * causal_flops(shape, Work(sum_squared_beyond=1))  # a negative number
    ends = np.cumsum(sizes)
    return np.diff(np.concatenate([[0.0], np.cumsum(cost)])[np.concatenate([[0], ends])])
