"""The exchange of sequence parallelism: every element arrives where it belongs, and its gradient where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from spawned import spawn
from torch import Tensor
from torch.nn import functional

from sft.sequence_parallel import attend, copies_of_key_heads, heads_to_tokens, tokens_to_heads
from sft.world import SequenceGroup, World

pytestmark = pytest.mark.ranks

ROWS, TOKENS, HEAD_SIZE, VALUE_SIZE = 2, 12, 5, 3
HEADS = {1: [(4, 2)], 2: [(4, 4), (4, 2), (4, 1)], 3: [(6, 2), (3, 3)], 4: [(8, 2), (8, 8)]}
"""Size of the group → (query heads, key-value heads)."""


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own(tensor: Tensor, dim: int, group: SequenceGroup) -> Tensor:
    """This rank's equal piece of a tensor."""
    return tensor.chunk(group.size, dim)[group.rank]


def exchange(group: SequenceGroup) -> None:
    """There and back, with gradients, of two tensors of unlike shapes in one exchange."""
    whole = [seeded(0, ROWS, 8, TOKENS, HEAD_SIZE), seeded(1, ROWS, 4, TOKENS, VALUE_SIZE)]
    mine = [own(tensor, 2, group).clone().requires_grad_() for tensor in whole]
    by_heads = tokens_to_heads(mine, group)
    for found, tensor in zip(by_heads, whole, strict=True):
        assert torch.equal(found, own(tensor, 1, group))
    weights = [seeded(2 + number, *tensor.shape) for number, tensor in enumerate(whole)]
    sum((found * own(weight, 1, group)).sum() for found, weight in zip(by_heads, weights, strict=True)).backward()
    for state, weight in zip(mine, weights, strict=True):
        assert state.grad is not None
        assert torch.equal(state.grad, own(weight, 2, group))

    output = seeded(9, ROWS, TOKENS, 8, HEAD_SIZE)
    heads = own(output, 2, group).clone().requires_grad_()
    by_tokens = heads_to_tokens(heads, group)
    assert torch.equal(by_tokens, own(output, 1, group))
    weight = seeded(10, *output.shape)
    (by_tokens * own(weight, 1, group)).sum().backward()
    assert heads.grad is not None
    assert torch.equal(heads.grad, own(weight, 2, group))


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    found = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2)


def attention(group: SequenceGroup, num_heads: int, num_key_value_heads: int) -> None:
    """Attention over a row whose tokens are spread is that over the whole row, as are its gradients."""
    shapes = [(num_heads, HEAD_SIZE), (num_key_value_heads, HEAD_SIZE), (num_key_value_heads, VALUE_SIZE)]
    whole = [seeded(n, ROWS, heads, TOKENS, size).requires_grad_() for n, (heads, size) in enumerate(shapes)]
    expected = causal(*whole)
    weight = seeded(7, *expected.shape)
    (expected * weight).sum().backward()

    query, key, value = (own(state.detach(), 2, group).clone().requires_grad_() for state in whole)
    found = attend(causal, group, query, key, value)
    torch.testing.assert_close(found, own(expected, 1, group), rtol=1e-5, atol=1e-6)
    (found * own(weight, 1, group)).sum().backward()
    for state, reference in zip((query, key, value), whole, strict=True):
        assert state.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(state.grad, own(reference.grad, 2, group), rtol=1e-5, atol=1e-5)


def everything(world: World, folder: Path) -> None:
    """In one start of four processes: groups of one, of two, of three (the fourth rank looks on) and of four."""
    two, _ = dist.new_subgroups(group_size=2)
    three = dist.new_group([0, 1, 2])
    groups = [SequenceGroup(world.rank % 2, 2, two), SequenceGroup(world.rank, 4, dist.group.WORLD)]
    for group in groups:
        exchange(group)
    if world.rank < 3:
        groups.append(SequenceGroup(world.rank, 3, three))
    for group in (SequenceGroup(), *groups):
        for num_heads, num_key_value_heads in HEADS[group.size]:
            attention(group, num_heads, num_key_value_heads)
    (folder / f"done-{world.rank}").touch()


def test_every_element_and_its_gradient_arrive_and_attention_is_that_of_the_whole_row(tmp_path: Path) -> None:
    spawn(everything, 4, tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 4


@pytest.mark.parametrize(
    ("num_heads", "num_key_value_heads", "size", "copies"),
    [(8, 8, 4, 1), (8, 4, 2, 1), (8, 2, 4, 2), (8, 1, 8, 8), (6, 2, 3, 3), (12, 4, 6, 3)],
)
def test_key_heads_are_copied_as_often_as_each_rank_needs(
    num_heads: int, num_key_value_heads: int, size: int, copies: int
) -> None:
    assert copies_of_key_heads(num_heads, num_key_value_heads, size) == copies
    # Each rank then has the very key heads that its query heads belong to.
    key_head_of = [head // (num_heads // num_key_value_heads) for head in range(num_heads)]
    copied = [head for head in range(num_key_value_heads) for _ in range(copies)]
    for rank in range(size):
        queries = key_head_of[rank * num_heads // size : (rank + 1) * num_heads // size]
        keys = copied[rank * len(copied) // size : (rank + 1) * len(copied) // size]
        assert queries == [key for key in keys for _ in range(len(queries) // len(keys))]


def test_query_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="the number of heads is 6; it must be a multiple of 4"):
        copies_of_key_heads(6, 2, 4)
