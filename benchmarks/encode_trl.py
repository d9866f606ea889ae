"""The peer of encode.py, in a process of its own: TRL's preparation of the same rows. Prints one JSON line per round.

    python benchmarks/encode_trl.py ROWS.json TOKENIZER TEMPLATE ROUNDS

It is started by encode.py, with TRL on its path. Only the preparation inside the trainer's constructor is timed:
rendering, tokenizing and masks, in one process, without the cache of `datasets`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(rows_file: str, tokenizer_file: str, template_file: str, rounds: str) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = Path(template_file).read_text(encoding="utf-8")
    rows = [{"messages": messages} for messages in json.loads(Path(rows_file).read_text(encoding="utf-8"))]
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, num_key_value_heads=1)
    )  # fmt: skip
    taken: list[float] = []
    made: list[Any] = []
    prepare = SFTTrainer._prepare_dataset

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        prepared = prepare(self, *args, **kwargs)
        taken.append(time.perf_counter() - started)
        made.append(prepared)
        return prepared

    SFTTrainer._prepare_dataset = timed
    print("READY", flush=True)
    sys.stdin.readline()
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as folder:
            SFTTrainer(
                model=model,
                args=SFTConfig(output_dir=folder, assistant_only_loss=True, max_length=None, report_to="none",
                               use_cpu=True, bf16=False),
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )  # fmt: skip
        data = made[-1]
        ids = list(data["input_ids"])
        if "assistant_masks" in data.column_names:
            masks = list(data["assistant_masks"])
        else:
            masks = [[int(label != -100) for label in labels] for labels in data["labels"]]
        answer = {"seconds": taken[-1], "tokens": sum(map(len, ids)), "trained": sum(map(sum, masks))}
        rows_made = [[list(row), [int(flag) for flag in mask]] for row, mask in zip(ids, masks, strict=True)]
        Path(rows_file + ".trl").write_text(json.dumps(rows_made), encoding="utf-8")
        print("RESULT " + json.dumps(answer), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
