"""A seeded corpus of conversations with lengths as data sets have them, and the model and settings to train on it.

Nothing is downloaded: words are drawn from Zipf's distribution, a tokenizer knows each of them as one token, and the
weights are random. Document lengths are log-normal: `LONG_TAIL` has a median of 300 tokens and σ 1.0, `CHAT` one of 900
and σ 0.7, both 4,096 tokens at most; 45 % of all tokens are trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

MODEL_T = {
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "vocab_size": 32_000,
}
"""Qwen3-shaped, 41 million parameters."""


def _qwen3(width: int, intermediate_size: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    """As published, with tied embeddings."""
    return {
        "model_type": "qwen3", "hidden_size": width, "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers, "num_attention_heads": num_heads, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 40_960, "rope_theta": 1e6, "tie_word_embeddings": True,
        "vocab_size": 151_936,
    }  # fmt: skip


MODELS = {
    "41M": MODEL_T,
    "0.6B": _qwen3(1024, 3072, 28, 16),
    "1.7B": _qwen3(2048, 6144, 28, 16),
    "4B": _qwen3(2560, 9728, 36, 32),
    "8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 5e5,
        "tie_word_embeddings": False, "vocab_size": 128_256,
    },
}  # fmt: skip
"""The sizes of Qwen3 and Llama 3 that are trained on one GPU."""

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' + message['content'] + ' <|im_end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
_OVERHEAD = 3
"""Tokens of a message besides its content: start, role, end."""
_SPECIAL = ("<|im_start|>", "<|im_end|>", "user", "assistant")
_MAX_TURNS = 3


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of document lengths, in tokens."""

    median: float
    sigma: float
    longest: int

    def draw(self, num_documents: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """So many lengths, clipped to what two messages need and to the longest."""
        drawn = rng.lognormal(np.log(self.median), self.sigma, num_documents).astype(np.int64)
        return np.clip(drawn, 2 * (_OVERHEAD + 1), self.longest)

    def shorter(self, factor: float) -> Lengths:
        """The same shape, so many times shorter."""
        return replace(self, median=self.median / factor, longest=int(self.longest / factor))


def small(config: dict[str, Any]) -> dict[str, Any]:
    """A model of the same kind that proves nothing, to try a script."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 500}
    return config | sizes | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


LONG_TAIL = Lengths(300, 1.0, 4096)
CHAT = Lengths(900, 0.7, 4096)
TRAINED_SHARE = 0.45


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of so many words, one token each, with its chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *(f"w{number}" for number in range(vocab_size - len(_SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def write_conversations(path: Path, num_documents: int, lengths: Lengths, vocab_size: int, seed: int) -> None:
    """A JSON Lines file of conversations of one to three turns; their documents have the lengths drawn."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for length in lengths.draw(num_documents, rng).tolist():
            messages = list(_messages(length, vocab_size - len(_SPECIAL), rng))
            file.write(json.dumps({"messages": messages}) + "\n")


def _messages(length: int, num_words: int, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    num_turns = min(int(rng.integers(1, _MAX_TURNS + 1)), length // (2 * (_OVERHEAD + 1)))
    for turn in range(num_turns):
        share = (turn + 1) * length // num_turns - turn * length // num_turns
        # Of an answer, its words and the end are trained.
        answer = max(1, min(round(share * TRAINED_SHARE) - 1, share - 2 * _OVERHEAD - 1))
        yield {"role": "user", "content": _text(share - 2 * _OVERHEAD - answer, num_words, rng)}
        yield {"role": "assistant", "content": _text(answer, num_words, rng)}


def _text(num_words: int, vocabulary: int, rng: np.random.Generator) -> str:
    # Zipf's law by inversion: the rank's logarithm is uniform.
    ranks = np.exp(rng.random(num_words) * np.log(vocabulary)).astype(np.int64) - 1
    return " ".join(f"w{rank}" for rank in ranks)


def encoded(args: Any, tokenizer: Any) -> Any:
    """The training data of a run's settings, as its documents, in memory."""
    from sft.dataset import ConversationDataset
    from sft.masking import Masker
    from sft.sources import read_conversations
    from sft.tokenizer import pad_token_id

    masker = Masker(tokenizer, pad_token_id(tokenizer))
    return ConversationDataset(read_conversations(str(args.train_file)), masker, args.max_length)


def write_model(
    folder: Path, config: dict[str, Any], tokenizer_folder: Path, seed: int, device: str = "cpu", dtype: str = "float32"
) -> None:
    """Random weights, the same for the same seed and device, with the tokenizer beside them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
