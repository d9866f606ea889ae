"""Tiny models, tokenizers and conversations for tests: random weights, the bundled tokenizer, seeded text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft.config import ROOT, Args

TOKENIZER = str(ROOT / "sft" / "quickstart" / "tokenizer")
WORDS = "sun moon star river stone leaf wind fire snow rain field road house bread salt bird fish horse".split()

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}

ANY_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A tiny configuration that every architecture takes."""


def write_conversations(path: Path, num_rows: int, seed: int = 0) -> Path:
    """A JSONL file of conversations of very unequal length."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(num_rows):
            messages = []
            for _ in range(rng.randint(1, 3)):
                question, answer = (" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(2))
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def write_answers(path: Path) -> Path:
    """A JSONL file that a tiny model learns in some dozen steps: every question has the answer `yes.`."""
    path.write_text("".join(json.dumps({"prompt": word, "response": "yes."}) + "\n" for word in WORDS[:8]))
    return path


def answer_of(folder: Path, question: str) -> tuple[str, bool]:
    """(what transformers' own `generate` says to a question with the model of a folder, greedily and as its generation
    settings have it; whether it stopped by itself)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True), len(said) < 16


def tiny_args(train_file: Path, output_dir: Path, **settings: Any) -> Args:
    """Settings of a tiny float32 run."""
    defaults: dict[str, Any] = {
        "model_config": QWEN3,
        "tokenizer_name": TOKENIZER,
        "train_file": str(train_file),
        "output_dir": str(output_dir),
        "bf16": False,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "save_steps": 0,
    }
    return Args(**{**defaults, **settings})


def losses(output_dir: Path) -> list[float]:
    """The training losses that a run logged."""
    records = json.loads((output_dir / "training_log.json").read_text())
    return [record["loss"] for record in records if record["type"] == "train"]


def moves_below_bfloat16(before: dict[str, Tensor], after: dict[str, Tensor], most: float) -> None:
    """Asserts that float32 weights moved, by at most `most`, and that bfloat16 weights would have stood still."""
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == torch.float32, name
        moved = after[name] - tensor
        # Large weights are coarse in float32 too, and some tokens are in no document.
        seen = (tensor.abs() < 0.1) & (tensor.abs() > 1e-3)
        if not seen.any():
            continue
        assert (moved[seen] != 0).float().mean() > (0.1 if "embed" in name else 0.5), name
        assert moved.abs().max() <= 1.5 * most + 1e-7 * tensor.abs().max(), name
        half = tensor.bfloat16()
        stood_still = half[seen] + moved[seen].bfloat16() == half[seen]
        assert stood_still.all(), name
