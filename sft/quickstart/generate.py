"""Writes the quick start's data: train.jsonl, eval.jsonl and a tokenizer trained on them. The same bytes every time.

    python -m sft.quickstart.generate [--output DIR]

The files are committed; run this only after a change here or in conversations.py. A test compares both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sft.quickstart.conversations import Exchange, conversations

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent / "templates" / "chatml.jinja"
IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
VOCAB_SIZE = 512
MAX_LENGTH_TOKENS = 256


def main() -> None:
    """Write all files below --output, by default beside this module."""
    parser = argparse.ArgumentParser(description="Write the quick start's conversations and tokenizer.")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="folder to write to (default: here)")
    write_all(parser.parse_args().output)


def write_all(folder: Path) -> None:
    """Write train.jsonl, eval.jsonl and tokenizer/ into `folder`, which is made where it does not exist."""
    split = conversations()
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", split.train)
    write_rows(folder / "eval.jsonl", split.held_out)
    # Merges are learned from the training rows alone, as in earnest; with the roles, which the template writes too.
    messages = [message for row in split.train for message in _messages(row)]
    texts = [text for message in messages for text in (message["role"], message["content"])]
    write_tokenizer(folder / "tokenizer", train_tokenizer(texts))


def write_rows(path: Path, rows: list[list[Exchange]]) -> None:
    """One {"messages": […]} object per line."""
    lines = [json.dumps({"messages": _messages(row)}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer: at most VOCAB_SIZE tokens, among them all 256 bytes, so that any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The three files that transformers.AutoTokenizer.from_pretrained(folder) reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": PAD,
        "additional_special_tokens": [IM_START],
        "model_max_length": MAX_LENGTH_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8", newline="\n")
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")
    (folder / "chat_template.jinja").write_bytes(TEMPLATE.read_bytes())


def _messages(row: list[Exchange]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for exchange in row
        for role, content in (("user", exchange.question), ("assistant", exchange.answer))
    ]


if __name__ == "__main__":
    main()
