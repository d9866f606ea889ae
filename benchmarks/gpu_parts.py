"""One part of gpu.py, in a process of its own: `python benchmarks/gpu_parts.py PART FOLDER RESULT`, where PART is
`weights`, then `reference` or `cleansft`.

FOLDER is made by gpu.py: `run.yaml` with its data, `tokenizer/`, and the model's configuration, `model.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402
from benchmarks.corpus import encoded, write_model  # noqa: E402
from benchmarks.gpu import GATE_STEPS, SEED  # noqa: E402


def weights(folder: Path) -> dict[str, Any]:
    """Random weights in `model/`, for all other parts; made on the GPU where there is one."""
    config = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    write_model(folder / "model", config, folder / "tokenizer", SEED, rounds.here(), "bfloat16")
    return {}


def cleansft(folder: Path) -> dict[str, Any]:
    """The project as it is used; what its log says of each step, and the peak of the GPU's memory."""
    import torch

    from sft.train import run_training

    output_dir = run_training(folder / "run.yaml")
    log = json.loads((output_dir / "training_log.json").read_text(encoding="utf-8"))
    records = [record for record in log if record["type"] == "train"]
    names = ("loss", "grad_norm", "elapsed_s", "num_tokens", "tflops_per_s", "mfu", "mfu_palm")
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {**{name: [record[name] for record in records] for name in names}, "peak_gib": peak / 2**30}


def reference(folder: Path) -> dict[str, Any]:
    """Losses and gradient norms of the first steps: the same model and documents, transformers' own attention and
    logits, one document at a time, weights in float32."""
    import torch
    from torch.nn import functional

    from sft.arguments import load_args
    from sft.model import build_model
    from sft.tokenizer import build_tokenizer

    args, device = load_args(config=folder / "run.yaml"), torch.device(rounds.here())
    tokenizer = build_tokenizer(args)
    model = build_model(args, tokenizer).model.float().to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.peak_learning_rate, weight_decay=0.0, fused=True)
    losses, norms = [], []
    for documents in _steps(args, tokenizer):
        targets = [torch.where(is_trained, ids.long(), -100)[1:] for ids, is_trained in documents]
        total = sum(int((labels != -100).sum()) for labels in targets)
        loss = 0.0
        for (ids, _), labels in zip(documents, targets, strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=rounds.is_bf16("auto", device.type)):
                logits = model(input_ids=ids[None].to(device)).logits[0, :-1]
            own = functional.cross_entropy(logits.float(), labels.to(device), reduction="sum") / total
            own.backward()
            loss += float(own)
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
    return {"loss": losses, "grad_norm": norms}


def _steps(args: Any, tokenizer: Any) -> Iterator[list[tuple[Any, Any]]]:
    """(ids, which of them are trained) of each document of the first steps, as the project's plan takes them."""
    import torch

    from sft.plan import Plan

    data = encoded(args, tokenizer)
    plan = Plan.of(args, len(data), 1, data.lengths)
    for step in range(GATE_STEPS):
        rows = plan.rows.step(step, plan.rows_per_step)
        documents = [data[number] for row in rows for number in row]
        yield [(torch.tensor(one.input_ids), torch.tensor(one.trained)) for one in documents]


def main(part: str, folder: str, result: str) -> None:
    """Runs a part and writes what it found."""
    found = {"weights": weights, "reference": reference, "cleansft": cleansft}[part](Path(folder))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
