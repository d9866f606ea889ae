"""How a model gets its documents, and how its loss is computed: found by running it, before the first step.

The collations of `sft/batching.py`, the fastest first. Attention per document needs a model whose layers see other
tokens through transformers' AttentionInterface alone; what its configuration promises is not believed, but tried: the
logits of a document among others must be those that it has alone, by the model's own attention.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft.attention import transformers_model, use_document_attention
from sft.batching import Batch, collate, collate_flat
from sft.config import Args
from sft.documents import Document
from sft.engine import Forward, compile_layers
from sft.last_layer import shorten_last_layer
from sft.loss import has_router_loss
from sft.output_layer import output_layer_of
from sft.packing_check import refuse_if_packing_leaks, stateful_part
from sft.sequence_check import refuse_if_shards_differ, refused
from sft.world import World
from strict_settings import Problem, SettingsError

Collation = Literal["flat", "packed", "padded"]
"""All documents of a batch in one row without padding; rows of a fixed capacity; a padded row for each document."""

_OTHER, _DOCUMENT, _LOOKED_AT = 7, 11, 7
"""Tokens of a document, of those after it, and of their ends, which are compared."""
_SAME = {True: (2e-2, 5e-2), False: (1e-3, 1e-3)}
"""Half precision? → how far logits may be from those alone, as a share of the largest, and how much of what a document
before would change without a boundary may be left."""


def prepare_model(engine: Forward, args: Args, world: World) -> Collation:
    """Chooses the fastest collation and the fastest loss that are right for this model; a collective.

    What the model cannot do is said in one line.

    Raises:
        SettingsError: the model's tokens see what comes after them; `packing` is asked for, and packed documents see
            each other however they are collated.
    """
    was_training = engine.model.training
    engine.model.eval()
    if has_router_loss(engine.model):
        _say(world, "output_router_logits: the loss that balances the experts is not trained")
    try:
        _refuse_if_not_causal(engine, world)
        collation = _collation(engine, args, world)
        if reason := _why_not_in_tiles(engine, collation, world):
            _say(world, f"output layer: by the model's own forward, since {reason}")
        if collation == "flat" and not args.compile:  # a compiled layer should meet the same shapes at each step
            _shorten_last_layer(engine, world)
    finally:
        engine.model.train(was_training)
    if args.compile:  # not before: what is tried here would be compiled too
        compile_layers(engine.model, fixed_sizes=collation == "packed" or args.row_capacity is not None)
    return collation


def _refuse_if_not_causal(engine: Forward, world: World) -> None:
    """Tries a document with another last token: what is predicted before it must stay the same."""
    (document, _), _ = _documents(engine.model.config, _OTHER)
    ids = np.array(document.input_ids)
    ids[-1] = (ids[-1] + 1) % int(engine.model.config.get_text_config().vocab_size)
    rows = (collate([one], 0).to(world.device) for one in (document, _ending(ids, _LOOKED_AT)))
    first, second = (engine.logits(row) for row in rows)
    share, _ = _SAME[first.dtype != torch.float32]
    if _typical((first.float() - second.float())[None]) > share * float(first.abs().max()):
        problem = Problem(
            "the model", engine.model.config.model_type, "be causal: its tokens see those that they are to predict",
            "Some are with `is_decoder: true` in their configuration.",
        )  # fmt: skip
        raise SettingsError(problem)


def _collation(engine: Forward, args: Args, world: World) -> Collation:
    if args.attn_implementation == "auto":
        reason = _why_not_flat(engine, args.max_length, world)
        if reason is None:
            refuse_if_shards_differ(engine, world)
            return "flat"
        if world.sequence.size > 1:
            raise refused(world, f"Its attention cannot run per document: {engine.model.config.model_type}, {reason}.")
        instead = "rows of several documents need a mask" if args.packing else "rows are padded"
        _say(world, f"attention per document: not with {engine.model.config.model_type}, {reason}; {instead}")
    if args.packing:
        refuse_if_packing_leaks(engine.model, engine.logits)
        return "packed"
    return "padded"


def _why_not_flat(engine: Forward, max_length: int, world: World) -> str | None:
    """Makes attention per document the model's, and returns None; or leaves it as it is, and returns the reason."""
    config = engine.model.config
    if found := stateful_part(config, by_layers_alone=True):
        return f"which carries a state along a row ({found})"
    base, before = transformers_model(engine.model), None
    documents, others = _documents(config, max_length)
    try:
        alone = torch.stack([engine.logits(collate([document], 0).to(world.device)) for document in documents])
        before = use_document_attention(engine.model)
        reason = _leak(engine, documents, others, alone, world)
    except SettingsError:  # what no other attention would mend
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:  # of layers and kernels, in their own words
        reason = f"which does not run on them: {error}"
    if world.any(reason is not None):
        if before is not None:
            base.set_attn_implementation(before)
        return reason or "as another rank found"
    return None


def _documents(config: Any, max_length: int) -> tuple[list[Document], list[Document]]:
    """Two documents whose ends are looked at, longer than a window of attention if documents of the run can be, and two
    that stand before them."""
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    length = max([_DOCUMENT, *(_DOCUMENT + window for window in windows if window and window < max_length)])
    ids = np.random.default_rng(0).integers(0, min(int(text.vocab_size), 1000), 2 * (length + _OTHER))
    first, second, third, fourth = np.split(ids.astype(np.int32), np.cumsum([length, length, _OTHER]))
    return [_ending(first, _LOOKED_AT), _ending(second, _LOOKED_AT)], [_ending(third, 1), _ending(fourth, 1)]


def _ending(ids: NDArray[np.int32], num_trained: int) -> Document:
    """A document of which only the last tokens are trained: logits are made where those are predicted."""
    return Document(ids, np.arange(len(ids)) >= len(ids) - num_trained)


def _leak(
    engine: Forward, documents: list[Document], others: list[Document], alone: Tensor, world: World
) -> str | None:
    """Whether documents end to end see each other, or are not what they are alone; None if all is well.

    Args:
        engine: runs the model by attention per document.
        documents: of one length.
        others: shorter ones, which stand before them.
        alone: (documents, tokens, vocabulary), the logits of the documents' ends by the model's own attention.
        world: the ranks.
    """

    def ends(*row: Document) -> Tensor:
        found = engine.logits(collate_flat(row, 0).to(world.device))
        return found[-_LOOKED_AT * len(documents) :].float()

    first, second = (ends(other, *documents).view_as(alone) for other in others)
    joined = (np.concatenate([np.asarray(other.input_ids), np.asarray(documents[0].input_ids)]) for other in others)
    open_first, open_second = (ends(_ending(ids, _LOOKED_AT)) for ids in joined)
    share_of_logits, share_of_dependence = _SAME[alone.dtype != torch.float32]
    # The median over tokens: in a mixture of experts rounding may send single tokens elsewhere.
    left, dependence = _typical(first - second), _typical(open_first - open_second)
    rounding = 8 * torch.finfo(torch.float32).eps * float(alone.abs().max())
    if not left <= share_of_dependence * dependence + rounding:
        return "whose documents in one row see each other"
    if not _typical(first - alone.float()) <= share_of_logits * float(alone.abs().max()):
        return "whose attention is another than softmax(q kᵀ) v"
    return None


def _typical(difference: Tensor) -> float:
    """The largest difference of a token's logits: of each document its median token, of those the largest."""
    return float(difference.abs().amax(-1).median(-1).values.max())


def _why_not_in_tiles(engine: Forward, collation: Collation, world: World) -> str | None:
    """Makes the loss that of `OutputLayer`, and returns None; or leaves it as it is, and returns the reason."""
    module = engine.loss_module
    layer = output_layer_of(transformers_model(engine.model))
    if layer is None:
        return "the output layer is no plain linear layer"
    batch = _few_trained(engine, collation, world)
    expected = float(engine.evaluate(batch))
    module.output_layer = layer
    try:
        is_same = _has_loss(engine, batch, expected)
        reason = None if is_same else "the model does more to its logits than its configuration tells"
    except (TypeError, ValueError, AttributeError) as error:
        reason = f"the model does not run without it: {error}"
    if world.any(reason is not None):
        module.output_layer = None
        return reason or "another rank found that the loss differs"
    return None


def _few_trained(engine: Forward, collation: Collation, world: World) -> Batch:
    """A batch of short documents, of which only some tokens are trained."""
    documents = [document for pair in _documents(engine.model.config, _OTHER) for document in pair]
    return (collate_flat if collation == "flat" else collate)(documents, 0).to(world.device)


def _has_loss(engine: Forward, batch: Batch, expected: float) -> bool:
    """Whether the batch's loss is the expected one, but for rounding."""
    is_half = engine.logits(batch).dtype != torch.float32
    return abs(float(engine.evaluate(batch)) - expected) <= (1e-2 if is_half else 1e-5) * abs(expected)


def _shorten_last_layer(engine: Forward, world: World) -> None:
    """Leaves out of the last decoder layer what is of no consequence for the loss, where that is so."""
    batch = _few_trained(engine, "flat", world)
    expected = float(engine.evaluate(batch))
    layers = engine.model.config.get_text_config().num_hidden_layers
    shortened = shorten_last_layer(transformers_model(engine.model).base_model, layers)
    if shortened is None:
        return
    try:
        is_same = _has_loss(engine, batch, expected)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):  # a part of it is of another kind
        is_same = False
    if world.any(not is_same):
        shortened.remove()


def _say(world: World, text: str) -> None:
    if world.is_main:
        print(text, flush=True)
