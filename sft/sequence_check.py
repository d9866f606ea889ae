"""Is a model whose ranks share each row's tokens the same model? Asked before the first step, of the model itself.

What works token by token does not notice; attention brings the row together. A layer that mixes tokens in another way,
or counts places itself, would see a piece and take it for a row, and nothing in a loss would show it.
"""

from __future__ import annotations

import numpy as np
import torch

from sft.batching import collate_flat
from sft.documents import Document
from sft.engine import Forward
from sft.sequence_shards import shard_of
from sft.world import World
from strict_settings import Problem, SettingsError

_LENGTHS = (5, 13, 1, 22)
"""Tokens of the documents of a row that is tried: boundaries fall within pieces, and pieces within documents."""


def refuse_if_shards_differ(engine: Forward, world: World) -> None:
    """Returns if each rank's piece of a row has the logits that it has in the whole row; a collective.

    Raises:
        SettingsError: it has not, on all ranks alike.
    """
    group = world.sequence
    if group.size == 1:
        return
    config = engine.model.config.get_text_config()
    num_heads = int(config.num_attention_heads)
    if num_heads % group.size:
        raise refused(world, f"It has {num_heads} attention heads: take a divisor of that number.")
    rng = np.random.default_rng(0)
    limit = min(int(config.vocab_size), 1000)
    documents = [Document(rng.integers(0, limit, n).astype(np.int32), np.ones(n, dtype=np.bool_)) for n in _LENGTHS]
    batch = collate_flat(documents, 0)
    own = shard_of(batch, group)
    whole = engine.logits(batch.to(world.device)).float()
    reason = ""
    try:
        found = engine.logits(own.to(world.device))
    except (TypeError, ValueError) as error:  # heads that differ from layer to layer
        reason = f"It does not run on shared rows: {error}."
    else:
        assert batch.predicting is not None
        start = group.rank * own.input_ids.shape[1]
        expected = whole[(batch.predicting >= start) & (batch.predicting < start + own.input_ids.shape[1])]
        # The median over tokens: in a mixture of experts rounding may send single tokens elsewhere.
        differences = (found[: len(expected)].float() - expected).abs().amax(-1)
        scale = float(whole.abs().max())
        allowed = scale * (5e-2 if found.dtype in (torch.bfloat16, torch.float16) else 1e-4)
        if len(expected) and not float(differences.median()) <= allowed:
            reason = "Some layer besides attention lets tokens see each other, or counts their places itself."
    if world.any(bool(reason)):
        raise refused(world, reason or "Another rank found that its tokens see others than in a whole row.")


def refused(world: World, reason: str) -> SettingsError:
    """The one error for a model whose rows cannot be shared."""
    return SettingsError(Problem("sequence_parallel_size", world.sequence.size, "be 1 for this model", reason))
