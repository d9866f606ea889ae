"""Claim: conversations are encoded, with exact masks and the cache written, several times faster than TRL prepares
them, and at nearly the speed of tokenizing alone.

    python benchmarks/encode.py --data gsm8k_train.jsonl --tokenizer tokenizer.json --template qwen2.5.jinja \\
                                [--rows 4000] [--rounds 5] [--trl FOLDER]

One process each, TOKENIZERS_PARALLELISM=false, interleaved rounds, medians. Before anything is measured the ids of
every row must be those of `apply_chat_template`, and the fast way's documents those of the full proof. TRL is no
dependency: give the folder of `pip install --no-deps --target FOLDER trl==1.16.0`. TRL swaps templates that it knows
for its own ones with markers; where its ids differ, this is said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sft.encoding import Encoding  # noqa: E402
from sft.encoding_cache import EncodingCache, Source  # noqa: E402
from sft.formats import Conversation  # noqa: E402
from sft.masking import Masker  # noqa: E402
from sft.sources import read_conversations  # noqa: E402


def main() -> None:
    options = arguments()
    tokenizer = load(options)
    rows = read_conversations(str(options.data), None, options.rows)
    conversations = [row for row in rows if isinstance(row, Conversation)]
    masker = Masker(tokenizer)
    num_tokens, texts = equal_or_exit(tokenizer, masker, conversations)
    print(f"{len(conversations):,} conversations, {num_tokens:,} tokens; ids and masks are equal")
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(options, conversations, Path(folder)) if options.trl else None
        taken: dict[str, list[float]] = {}
        for number in range(options.rounds):
            place = Path(folder)
            taken.setdefault("raw encode_batch", []).append(raw(masker, texts))
            taken.setdefault("ours, one process", []).append(ours(options, place / f"one{number}", 1))
            taken.setdefault("ours, two processes", []).append(ours(options, place / f"two{number}", 2))
            if peer is not None:
                taken.setdefault("TRL", []).append(peer.round())
        compared = "TRL was not measured: no --trl" if peer is None else peer.comparison(masker, conversations)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"\n{'':22}{'tokens/s':>12}{'× raw':>8}{'× TRL':>8}")
    for name, seconds in medians.items():
        trl = f"{medians['TRL'] / seconds:8.2f}" if "TRL" in medians else f"{'–':>8}"
        made = peer.num_tokens if peer is not None and name == "TRL" else num_tokens
        print(f"{name:22}{made / seconds:12,.0f}{medians['raw encode_batch'] / seconds:8.2f}{trl}")
    print(f"two processes ÷ one: {medians['ours, one process'] / medians['ours, two processes']:.2f}")
    print(compared)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--template", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trl", type=Path)
    return parser.parse_args()


def load(options: argparse.Namespace) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(options.tokenizer), eos_token="<|im_end|>")
    tokenizer.chat_template = options.template.read_text(encoding="utf-8")
    return tokenizer


def equal_or_exit(tokenizer: Any, masker: Masker, conversations: list[Conversation]) -> tuple[int, list[str]]:
    """(tokens in all, the rendered texts), if our ids are the tokenizer's and the fast way is the full proof's."""
    num_tokens, texts = 0, []
    for conversation, found in zip(conversations, masker.encode(conversations), strict=True):
        messages = list(conversation.messages)
        expected = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert isinstance(found, list), f"{conversation.source}: {found}"
        assert len(found) == 1, conversation.source
        assert list(found[0].input_ids) == expected, conversation.source
        (proven,) = masker.documents(conversation)
        assert list(proven.trained) == list(found[0].trained), conversation.source
        num_tokens += len(expected)
        texts.append(masker.template.render(messages))
    return num_tokens, texts


def raw(masker: Masker, texts: list[str]) -> float:
    """The rendered texts through the tokenizer alone, ids taken out."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(masker.parts.json)
    started = time.perf_counter()
    for start in range(0, len(texts), 256):
        [encoding.ids for encoding in backend.encode_batch(texts[start : start + 256], add_special_tokens=False)]
    return time.perf_counter() - started


def ours(options: argparse.Namespace, folder: Path, num_processes: int) -> float:
    """Reading the file, rendering, proof, masks, tokenizing, and writing the cache, from nothing."""
    encoding = Encoding(Masker(load(options)), 1 << 20)
    source = Source(str(options.data), max_rows=options.rows)
    started = time.perf_counter()
    EncodingCache(folder).prepared(source, encoding, num_processes)
    return time.perf_counter() - started


class Peer:
    """TRL in a process of its own, which waits between its rounds."""

    def __init__(self, options: argparse.Namespace, conversations: list[Conversation], folder: Path) -> None:
        rows = folder / "rows.json"
        rows.write_text(json.dumps([list(conversation.messages) for conversation in conversations]), encoding="utf-8")
        words = [str(rows), str(options.tokenizer), str(options.template), str(options.rounds)]
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "encode_trl.py"), *words],
            env={**os.environ, "PYTHONPATH": str(options.trl)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._answer: dict[str, Any] = {}
        self._made = Path(f"{rows}.trl")
        self._until("READY")  # its imports would slow the first round of the others

    def round(self) -> float:
        """Seconds of TRL's preparation."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self._answer = json.loads(self._until("RESULT "))
        return float(self._answer["seconds"])

    @property
    def num_tokens(self) -> int:
        """Tokens that TRL made of the rows."""
        return int(self._answer["tokens"])

    def _until(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line.removeprefix(start)
        raise SystemExit("TRL's process ended; run benchmarks/encode_trl.py by hand to see why")

    def comparison(self, masker: Masker, conversations: list[Conversation]) -> str:
        """On how many rows TRL's ids and masks are ours, and where they first differ."""
        made = json.loads(self._made.read_text(encoding="utf-8"))
        other_ids, other_masks = [], []
        for conversation, found, (ids, mask) in zip(conversations, masker.encode(conversations), made, strict=True):
            assert isinstance(found, list), f"{conversation.source}: {found}"
            if list(found[0].input_ids) != ids:
                other_ids.append(conversation.source)
            elif [int(flag) for flag in found[0].trained] != mask:
                other_masks.append(conversation.source)
        said = [f"TRL trains {self._answer['trained']:,} of {self._answer['tokens']:,} tokens"]
        for what, sources in (("ids", other_ids), ("mask", other_masks)):
            where = f", first {sources[0]}" if sources else ""
            said.append(f"its {what} differ on {len(sources):,} of {len(made):,} rows{where}")
        return "; ".join(said)


if __name__ == "__main__":
    main()
