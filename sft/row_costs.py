"""What rows cost to compute, by which ranks get shares that take nearly the same time. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft.flops import ModelShape, Work, causal_flops, recomputed_flops

ATTENTION_FACTOR = 2.0
"""How much longer an operation of attention takes than others: there is a softmax between its products, and backward
the scores are computed again. On a CPU with bfloat16 products it was 2.3; on GPUs it is not measured."""


def row_costs(
    rows: Sequence[Sequence[int]],
    lengths: ArrayLike,
    num_trained: ArrayLike,
    shape: ModelShape,
    recomputed_share: float = 0.0,
) -> NDArray[np.float64]:
    """What each row costs: the operations of its tokens, of the loss of the trained ones, and of attention within its
    documents, the last ones times ATTENTION_FACTOR.

    Args:
        rows: document numbers.
        lengths: tokens of each document of the data set.
        num_trained: trained tokens likewise.
        shape: of the model.
        recomputed_share: of its layers, by gradient checkpointing.
    """

    def operations(work: Work) -> float:
        return causal_flops(shape, work) + recomputed_share * recomputed_flops(shape, work)

    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    documents = np.array([document for row in rows for document in row], dtype=np.int64)
    tokens = np.asanyarray(lengths)[documents].astype(np.float64)
    trained = np.asanyarray(num_trained)[documents]
    beyond = np.maximum(tokens - shape.window, 0.0)
    attention = tokens**2 * operations(Work(sum_squared_lengths=1)) + beyond**2 * operations(Work(sum_squared_beyond=1))
    cost = tokens * operations(Work(num_tokens=1)) + trained * operations(Work(num_trained_tokens=1))
    cost += ATTENTION_FACTOR * attention
    ends = np.cumsum(sizes)
    return np.diff(np.concatenate([[0.0], np.cumsum(cost)])[np.concatenate([[0], ends])])
