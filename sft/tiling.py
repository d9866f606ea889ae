"""The feed-forward blocks in tiles of tokens, for rows whose activations within one block would not fit.

A feed-forward block works token by token and is several times as wide as the model: in a long row it holds more than
any other part of a layer. Tiled, only one tile of it is there at a time, recomputed in the backward pass
(arXiv:2506.13996, "TiledMLP"). The result is the same; only the order in which weight gradients add up is another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from strict_settings import Problem, SettingsError


def tile_mlps(model: nn.Module, tile_tokens: int) -> int:
    """Makes every decoder layer's `mlp` work on so many tokens at a time; returns how many there are.

    Raises:
        SettingsError: no layer has an `mlp`.
    """
    blocks = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "mlp"]
    if not blocks:
        kind = type(model).__name__
        problem = Problem(
            "mlp_tile_tokens", tile_tokens, f"not be given for {kind}", "None of its layers has an `mlp`."
        )
        raise SettingsError(problem)
    for block in blocks:
        # The instance's own: modules keep their names and hooks, by which engines gather their weights.
        block.forward = partial(tiled, block.forward, tile_tokens)
    return len(blocks)


def tiled(function: Callable[..., Any], tile_tokens: int, states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """function(states), computed for so many tokens at a time, and again so in the backward pass.

    Args:
        function: works token by token and gives a tensor of the same tokens.
        tile_tokens: tokens of a tile.
        states: (…, tokens, width).
        args: a tensor of the same tokens, such as Bloom's residual, goes in tiles too; others are for every tile the
            same, as are the named ones.

    Raises:
        SettingsError: the function gives something else than a tensor: already for rows of one tile, so that the
            trials before the first step find it.
    """
    tiles = _tiles(states, tile_tokens)
    rest = zip(*(_of_each_tile(value, states, tile_tokens, len(tiles)) for value in args), strict=True)
    inputs = [(tile, *own) for tile, own in zip(tiles, rest if args else [()] * len(tiles), strict=True)]
    if len(tiles) == 1:
        found = [function(states, *args, **kwargs)]
    elif not torch.is_grad_enabled():
        found = [function(*own, **kwargs) for own in inputs]
    else:
        found = [checkpoint(function, *own, use_reentrant=False, **kwargs) for own in inputs]
    if not isinstance(found[0], Tensor):
        rule = "not be given for this model"
        remedy = f"Its `mlp` gives a {type(found[0]).__name__}, not one tensor."
        raise SettingsError(Problem("mlp_tile_tokens", tile_tokens, rule, remedy))
    return found[0] if len(found) == 1 else torch.cat(found, dim=-2)


def _tiles(states: Tensor, tile_tokens: int) -> list[Tensor]:
    # Contiguous, as whole rows are: blocks may ask for a view of their tokens. A single row's tiles are so already.
    return [tile.contiguous() for tile in states.split(tile_tokens, dim=-2)]  # type: ignore[no-untyped-call]


def _of_each_tile(value: Any, states: Tensor, tile_tokens: int, num_tiles: int) -> list[Any]:
    """Of each tile's tokens the part of a tensor that has a row for each of them; anything else as it is."""
    is_per_token = isinstance(value, Tensor) and value.dim() > 1 and value.shape[:-1] == states.shape[:-1]
    return _tiles(value, tile_tokens) if is_per_token else [value] * num_tiles
