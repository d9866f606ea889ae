"""Sequence parallelism: a group of ranks shares the tokens of each row, and in attention its heads instead.

Ulysses (Jacobs et al., 2023, arXiv:2309.14509). Everything but attention works token by token, so that a rank needs
only its own piece of the row. For attention an all-to-all gives each rank every token of the row for its part of the
heads, and another one gives the result back. A rank's piece of a layer's activations is thus 1/size of the row's.

The exchange is its own transpose: what rank i sent to rank j comes back from j to i as a gradient. With the loss of the
whole being the sum of the ranks' losses, each rank's backward pass gives its part of the gradient, to be added up over
ranks as it is without sequence parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sft.world import SequenceGroup

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (rows, heads, tokens, head size) → (rows, tokens, heads, head size)."""


def attend(attention: Attention, group: SequenceGroup, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What `attention` gives for this rank's tokens of a row whose pieces are on the ranks of the group.

    Args:
        attention: over whole rows, for any number of heads.
        group: of ranks, each with as many tokens.
        query: of this rank's tokens, as are key and value, with as many heads or a divisor of them.

    Raises:
        ValueError: the heads cannot be shared out.
    """
    if group.size == 1:
        return attention(query, key, value)
    if torch.is_autocast_enabled(query.device.type):
        # Attention would do it; norms may have left some of the three in float32, of twice the bytes to exchange.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    copies = copies_of_key_heads(query.shape[1], key.shape[1], group.size)
    if copies > 1:
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    return heads_to_tokens(attention(*tokens_to_heads((query, key, value), group)), group)


def copies_of_key_heads(num_heads: int, num_key_value_heads: int, size: int) -> int:
    """How often each key-value head is there, so that every rank of a group has those of its own query heads.

    One where the key-value heads can be shared out as they are; otherwise as few copies as that takes.

    Raises:
        ValueError: the query heads cannot be shared out.
    """
    if num_heads % size:
        raise ValueError(f"the number of heads is {num_heads}; it must be a multiple of {size}.")
    return math.lcm(num_key_value_heads, size) // num_key_value_heads


def tokens_to_heads(states: Sequence[Tensor], group: SequenceGroup) -> list[Tensor]:
    """(rows, heads, own tokens, head size) → (rows, own heads, tokens, head size), all tensors in one exchange.

    Tokens are in the order of the ranks; heads are a multiple of the group's size, the first ones rank 0's.
    """
    size = group.size
    parts = [state.unflatten(1, (size, -1)).movedim(1, 0) for state in states]  # type: ignore[no-untyped-call]
    received = _exchanged(parts, group)
    return [part.movedim(0, 2).flatten(2, 3) for part in received]


def heads_to_tokens(output: Tensor, group: SequenceGroup) -> Tensor:
    """(rows, tokens, own heads, head size) → (rows, own tokens, heads, head size): the way back."""
    parts = output.unflatten(1, (group.size, -1)).movedim(1, 0)  # type: ignore[no-untyped-call]
    (received,) = _exchanged([parts], group)
    return received.movedim(0, 2).flatten(2, 3)


def _exchanged(parts: Sequence[Tensor], group: SequenceGroup) -> list[Tensor]:
    """Tensors whose entry j is for rank j → tensors of the same shapes whose entry j is from rank j."""
    flat = torch.cat([part.flatten(1) for part in parts], dim=1)
    received = _AllToAll.apply(flat, group.process_group)  # type: ignore[no-untyped-call]
    pieces = received.split([part[0].numel() for part in parts], dim=1)
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


class _AllToAll(torch.autograd.Function):
    """Entry j of the input goes to rank j, entry j of the output comes from it; so do their gradients.

    Without a process group nothing is sent: on tensors without memory, whose pass is only measured.
    """

    @staticmethod
    def forward(ctx: Any, sent: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        received = torch.empty_like(sent)
        if process_group is not None:
            dist.all_to_all_single(received, sent, group=process_group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        returned = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        if ctx.process_group is not None:
            dist.all_to_all_single(returned, gradient.contiguous(), group=ctx.process_group)
        return returned, None
