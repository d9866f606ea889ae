"""Short conversations, the templates beside them, and the text that a document trains."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from sft.formats import Conversation
from sft.masking import Document

from .control_tokens import tokenizer_for

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def load(name: str) -> Any:
    return tokenizer_for(name, template(name))


def talk(*contents: str, system: str | None = None, **more: Any) -> Conversation:
    turns = [
        {"role": "assistant" if index % 2 else "user", "content": content} for index, content in enumerate(contents)
    ]
    first = [] if system is None else [{"role": "system", "content": system}]
    return Conversation((*first, *turns), "row:1", **more)


def stretches(tokenizer: Any, document: Document) -> list[str]:
    """The text of each run of trained tokens."""
    pairs = zip(document.input_ids, document.trained, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token_id for token_id, _ in run]) for is_trained, run in runs if is_trained]


def rendered_ids(tokenizer: Any, messages: Any, **more: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(list(messages), return_dict=True, **more)["input_ids"])
