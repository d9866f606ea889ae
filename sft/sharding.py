"""Which rows a rank trains on in a step: a pure function of (seed, epoch, step, rank, world).

An epoch is one permutation of the rows. Step s takes the next `rows_per_step` of it, whatever the world: the same rows
are in the same step for every split into ranks, micro-batches and accumulation. The last step of an epoch is shorter
if the rows do not divide; no row is dropped, none is seen twice.
"""

from __future__ import annotations

import math

import numpy as np


def steps_per_epoch(num_rows: int, rows_per_step: int) -> int:
    """Optimizer steps that one epoch takes."""
    return math.ceil(num_rows / rows_per_step)


def step_rows(num_rows: int, rows_per_step: int, seed: int, step: int) -> list[int]:
    """Row numbers of the optimizer step `step`, counted from 0, over all ranks."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_rows, rows_per_step))
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    start = step_in_epoch * rows_per_step
    return [int(row) for row in order[start : start + rows_per_step]]


def rank_batches(rows: list[int], rank: int, world_size: int, batch_size: int) -> list[list[int]]:
    """The micro-batches of one rank. All ranks get the same number of them, so that collectives meet;
    the last ones are shorter or empty where the rows do not divide."""
    num_batches = math.ceil(len(rows) / (world_size * batch_size))
    own = rows[rank::world_size]
    return [own[index * batch_size : (index + 1) * batch_size] for index in range(num_batches)]
