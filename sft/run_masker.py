"""The masker of a run's settings: the same for training, and for all that shows what is trained."""

from __future__ import annotations

from typing import Any

from sft.config import Args
from sft.masking import Masker, MaskOptions
from sft.tokenizer import pad_token_id, stop_tokens


def masker_of(args: Args, tokenizer: Any, *, has_model: bool = True) -> Masker:
    """
    Args:
        args: the settings.
        tokenizer: with the chat template.
        has_model: False for a bare tokenizer, which has no model whose generation settings say where it stops.

    Raises:
        MaskError: the tokenizer has no template that masks can be made with.
    """
    stops = stop_tokens(args, tokenizer) if has_model else ()
    return Masker(tokenizer, pad_token_id(tokenizer), MaskOptions.of(args), stops)
