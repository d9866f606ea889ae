"""Small tokenizers of kinds that the bundled one is not, made in a moment."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from .control_tokens import control_strings, stop_strings

TEXT = [
    "Where is the bread? At home, I think. And the salt, too.\n\nNo: in the road house.",
    "system user assistant USER: ASSISTANT: ### Instruction:\n### Response:\nToday",
    "bofu dike gapi nazo rilu mese vota kapu in the rain, by the river; a star.",
]


def sentencepiece_like(name: str, template: str) -> Any:
    """A tokenizer as Llama 2 and Phi-3 have it: `▁` for a blank and before every piece, unknown bytes one by one."""
    from transformers import PreTrainedTokenizerFast

    blank = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = blank
    pieces = [line for text in TEXT for line in text.split("\n")]
    learner.train_from_iterator(pieces, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in learned["vocab"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = blank
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    stops = stop_strings(name, template)
    eos = stops[0] if stops[0] != "none" else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=eos, unk_token="<unk>")
    special = [AddedToken(text, special=True, normalized=False) for text in control_strings(template)]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def with_bos_of_its_own(tokenizer: Any) -> Any:
    """The tokenizer, adding a beginning of text to whatever it is given, as Llama's does."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        pair=f"{tokenizer.bos_token} $A $B",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
    )
    return tokenizer
