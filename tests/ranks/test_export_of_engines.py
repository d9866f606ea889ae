"""A checkpoint of any engine becomes a model in one process: the one that the run itself has written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import QWEN3, TOKENIZER, answer_of, write_answers

from sft.__main__ import main
from sft.config import ROOT
from sft.export_check import probe_logits, relative_difference

pytestmark = pytest.mark.ranks
ENGINES = {"ddp": {}, "fsdp2": {"fsdp": True}, "zero3": {"deepspeed": str(ROOT / "ds_configs" / "zero3.json")}}


@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=pytest.mark.soak), "fsdp2", "zero3"])
def test_a_checkpoint_of_two_ranks_is_exported_without_running_it(engine: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_answers(tmp_path / "data.jsonl")
    settings = {
        "model_config": QWEN3, "tokenizer_name": TOKENIZER, "train_file": "data.jsonl", "output_dir": "run",
        "learning_rate": 1e-2, "per_device_train_batch_size": 2, "max_steps": 30, "save_steps": 30, "report_to": "none",
        "bf16": False, **ENGINES[engine],
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["torchrun", "--nproc-per-node", "2", str(ROOT / "sft" / "train.py"), "--config", "run.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    output = tmp_path / "model"
    assert main(["export", str(tmp_path / "run"), "--from", "newest", "--output", str(output)]) == 0
    found, trained = (AutoModelForCausalLM.from_pretrained(each) for each in (output, tmp_path / "run"))
    logits = [probe_logits(model, torch.float32) for model in (found, trained)]
    assert relative_difference(*logits) < 1e-5
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template == (tmp_path / "run" / "chat_template.jinja").read_text()
    stops = json.loads((output / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ([stops] if isinstance(stops, int) else stops)
    assert [answer_of(each, "sun") for each in (output, tmp_path / "run")] == [("yes.", True)] * 2
    summary = json.loads((tmp_path / "run" / "training_log.json").read_text())[-1]
    assert len(summary["ranks"]["peak_bytes"]) == 2
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "longest on rank" in (tmp_path / "run" / "report.html").read_text()
