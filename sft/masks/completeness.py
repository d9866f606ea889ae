"""What a template leaves out of a conversation, and what it adds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sft.errors import MaskError
from sft.masks.control import ControlTokens
from sft.masks.origins import OUTSIDE, held_by, lost, written
from sft.masks.placing import Span
from sft.masks.renders import Render, Renders
from sft.masks.tracker import HEADER_FIELDS

_TAGS = re.compile(r"<[^<>]*>|\[/?[A-Z_]+\]")
_LETTERS = re.compile(r"[^\W\d_]{2}")


def require_all_said(renders: Renders) -> None:
    """Refuses a conversation of which the template drops what somebody said."""
    for index, message in enumerate(renders.messages):
        is_reply = message["role"] == "assistant"
        shown = (renders.own_render(index) or renders.whole) if is_reply else renders.whole
        where = f"messages[{index}]: the chat template leaves out"
        content, calls = message.get("content"), message.get("tool_calls") or ()
        if _said(content) and not _shows(shown, index, content, is_reply):
            raise MaskError(f"{where} a part of this {message['role']} message.")
        if not all(_count(shown, text) >= times for text, times in Counter(_texts(calls)).items()):
            raise MaskError(f"{where} a part of its tool calls.")


def notes_of(renders: Renders, render: Render, control: ControlTokens) -> list[str]:
    """What the template adds and leaves out, in words that are the same for like conversations."""
    notes = []
    begin = next((i for i, code in enumerate(render.origins) if code != written(OUTSIDE)), len(render.text))
    added = control.pattern.sub("\n", render.text[:begin]).strip()
    if not renders.tools and len(added.split()) > 2:
        notes.append(f"the template adds a text of its own: {_shortened(added)!r}")
    names = [str(tool.get("function", tool).get("name")) for tool in renders.tools]
    if not all(name in render.text for name in names):
        notes.append("the template does not show the tools")
    for index, message in enumerate(renders.messages[: render.num_messages]):
        thought = message["role"] == "assistant" and message.get("reasoning_content")
        if thought and held_by(index, "reasoning") not in render.origins:
            notes.append("the template leaves out reasoning")
            break
    return notes


def words_added(renders: Renders, render: Render, span: Span, control: ControlTokens) -> list[str]:
    """Notes on the words that the template itself writes before and after what a trained turn says. Those around
    reasoning and calls mark them up, and are no news."""
    message = renders.messages[span.message]
    if message.get("tool_calls") or message.get("reasoning_content"):
        return []
    own = written(span.message)
    stretch = render.origins[span.start : span.end]
    before = len(stretch) - len(stretch.lstrip(own))
    after = len(stretch.rstrip(own)) if before < len(stretch) else before
    parts = render.text[span.start : span.start + before], render.text[span.start + after : span.end]
    words = [" ".join(_TAGS.sub(" ", control.pattern.sub(" ", part)).split()) for part in parts]
    return [f"words of the template's own are trained: {_shortened(word)!r}" for word in words if _LETTERS.search(word)]


def _shows(shown: Render, index: int, content: Any, is_reply: bool) -> bool:
    """Whether a message's content stands in a render; reasoning may be left out of a reply, white space of any."""
    codes = (held_by(index), lost(index))
    num_shown = sum(shown.origins.count(code) for code in codes)
    if not isinstance(content, str):
        return num_shown > 0
    said = content.rpartition("</think>")[2].strip() if is_reply else content.strip()
    if num_shown >= max(len(said), 1):
        return True
    words_shown = sum(
        code in codes and not character.isspace() for character, code in zip(shown.text, shown.origins, strict=True)
    )
    return words_shown >= max(len("".join(said.split())), 1)


def _texts(value: Any) -> Iterator[str]:
    """The names and texts in tool calls."""
    if isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("type", *HEADER_FIELDS) or (key == "name" and "arguments" in value):
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _count(shown: Render, text: str) -> int:
    """How often a text of a tool call stands in a render, as it is or as JSON writes it."""
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return max(shown.text.count(form) for form in forms)


def _said(content: Any) -> bool:
    """Whether there is something to see in a message's content."""
    if isinstance(content, str):
        return bool(content.strip())
    return bool(content)


def _shortened(text: str, limit: int = 80) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
