"""`make demo`: two nodes train one model through the launcher; then the model answers a question it was never shown.

The run is `python -m launch submit --nodes 2 --wait` and nothing else: this file only asks afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from sft.quickstart import DEMO_ANSWER, DEMO_QUESTION


def main() -> int:
    """0 if the model was trained and its answer is right."""
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    command = [sys.executable, "-m", "launch", "submit", "--nodes", "2", "--wait", "--name", name]
    print(f"$ python {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    return code or report(Path("runs") / name)


def report(run_dir: Path) -> int:
    """Prints where the model is, how the loss fell, and one answer; 0 if the answer is right."""
    records = json.loads((run_dir / "training_log.json").read_text(encoding="utf-8"))
    losses = [record["loss"] for record in records if record["type"] == "train"]
    answer = ask(run_dir, DEMO_QUESTION)
    is_right = answer == DEMO_ANSWER
    print(f"\nmodel    {run_dir}")
    print(f"loss     {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last ({losses[-1] / losses[0]:.1%})")
    print(f"question {DEMO_QUESTION}  (not among the training questions)")
    print(f"answer   {answer}  ({'right' if is_right else f'wrong; it should be: {DEMO_ANSWER}'})")
    print("curves   .venv/bin/tensorboard --logdir runs")
    return 0 if is_right else 1


def ask(model_dir: Path, question: str) -> str:
    """The model's answer, decoded greedily; it stops by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=64, do_sample=False)
    answer: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip()


if __name__ == "__main__":
    sys.exit(main())
