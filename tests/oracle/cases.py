"""Conversations of words that exist once: each word of a render tells which field of which message it comes from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sft.formats import Conversation

GROUPS = ("plain", "system", "reasoning", "tools")


@dataclass(frozen=True)
class Case:
    """One conversation and who wrote which word of it."""

    name: str
    group: str
    conversation: Conversation
    words: dict[int, tuple[str, ...]]
    """Message → the words that only it holds and that every render of it should hold."""
    reasoning: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Message → the words of its reasoning, which templates may drop."""
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Message → names of the functions that it calls; they stand in the schema too."""
    schema: tuple[str, ...] = ()
    """Words of the function schemas."""


class Talk:
    """Builds a case message by message; no word is given twice."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.words: dict[int, tuple[str, ...]] = {}
        self.reasoning: dict[int, tuple[str, ...]] = {}
        self.names: dict[int, tuple[str, ...]] = {}
        self.schema: tuple[str, ...] = ()
        self.tools: list[dict[str, Any]] = []
        self._rng = random.Random(f"{name}{seed}")
        self._given: set[str] = set()
        self.punctuated = False

    def fresh(self, count: int = 3) -> tuple[str, ...]:
        """Words that were not given before: syllables, so that no vocabulary holds one as a whole."""
        found: list[str] = []
        while len(found) < count:
            word = "".join(self._rng.choice("bdfgklmnprtvz") + self._rng.choice("aeiou") for _ in range(4))
            if word not in self._given:
                self._given.add(word)
                found.append(word)
        return tuple(found)

    def text(self, words: tuple[str, ...]) -> str:
        if not self.punctuated:
            return " ".join(words)
        return f"{words[0].capitalize()}, {words[1]}:\n\n- {words[2]}."

    def say(self, role: str, **more: Any) -> Talk:
        words = self.fresh()
        self.words[len(self.messages)] = words
        self.messages.append({"role": role, "content": self.text(words), **more})
        return self

    def think(self, form: str) -> Talk:
        """An assistant's turn with reasoning: `inline` or `field`."""
        thought = self.fresh()
        self.reasoning[len(self.messages)] = thought
        if form == "field":
            return self.say("assistant", reasoning_content=self.text(thought))
        self.say("assistant")
        message = self.messages[-1]
        message["content"] = f"<think>\n{self.text(thought)}\n</think>\n\n{message['content']}"
        return self

    def offer(self, count: int = 1) -> Talk:
        """Function schemas."""
        for _ in range(count):
            name, parameter, purpose, hint = self.fresh(4)
            self.schema += (purpose, hint)
            parameters = {
                "type": "object",
                "properties": {parameter: {"type": "string", "description": hint}},
                "required": [parameter],
            }
            function = {"name": name, "description": purpose, "parameters": parameters}
            self.tools.append({"type": "function", "function": function})
        return self

    def call(self, count: int = 1, *, text: bool = False, content: str | None = "", thought: bool = False) -> Talk:
        """An assistant's turn that calls the first functions, and their results."""
        index, calls, results = len(self.messages), [], []
        words: tuple[str, ...] = ()
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if text:
            words = self.fresh()
            message["content"] = self.text(words)
        if thought:
            self.reasoning[index] = self.fresh()
            message["reasoning_content"] = self.text(self.reasoning[index])
        for number, tool in enumerate(self.tools[:count]):
            name = tool["function"]["name"]
            (parameter,) = tool["function"]["parameters"]["properties"]
            value = self.fresh(2)
            words += value
            identity = f"call{index}{number}xyz"[:9]
            arguments = {parameter: " ".join(value)}
            calls.append({"type": "function", "id": identity, "function": {"name": name, "arguments": arguments}})
            results.append({"name": name, "tool_call_id": identity})
        self.names[index] = tuple(tool["function"]["name"] for tool in self.tools[:count])
        self.words[index] = words
        self.messages.append({**message, "tool_calls": calls})
        for result in results:
            self.say("tool", **result)
        return self

    def case(self, group: str) -> Case:
        conversation = Conversation(tuple(self.messages), f"{self.name}:1", tools=tuple(self.tools))
        return Case(self.name, group, conversation, self.words, self.reasoning, self.names, self.schema)


def _turns(talk: Talk, count: int) -> Talk:
    for _ in range(count):
        talk.say("user").say("assistant")
    return talk


def _punctuated(talk: Talk) -> Talk:
    talk.punctuated = True
    return talk


def _thinking(talk: Talk, form: str, which: tuple[bool, ...]) -> Talk:
    for thinks in which:
        talk.say("user")
        _ = talk.think(form) if thinks else talk.say("assistant")
    return talk


BUILDERS: dict[str, tuple[str, Callable[[Talk], Talk]]] = {
    "plain, 1 turn": ("plain", lambda talk: _turns(talk, 1)),
    "plain, 2 turns": ("plain", lambda talk: _turns(talk, 2)),
    "plain, 3 turns": ("plain", lambda talk: _turns(talk, 3)),
    "plain, punctuation": ("plain", lambda talk: _turns(_punctuated(talk), 2)),
    "system, 1 turn": ("system", lambda talk: _turns(talk.say("system"), 1)),
    "system, 2 turns": ("system", lambda talk: _turns(talk.say("system"), 2)),
    "think inline, 1 turn": ("reasoning", lambda talk: _thinking(talk, "inline", (True,))),
    "think inline, 2 turns": ("reasoning", lambda talk: _thinking(talk, "inline", (True, True))),
    "think inline, last": ("reasoning", lambda talk: _thinking(talk, "inline", (False, True))),
    "think inline, first": ("reasoning", lambda talk: _thinking(talk, "inline", (True, False))),
    "think field, 1 turn": ("reasoning", lambda talk: _thinking(talk, "field", (True,))),
    "think field, 2 turns": ("reasoning", lambda talk: _thinking(talk, "field", (True, True))),
    "think field, 3 turns": ("reasoning", lambda talk: _thinking(talk.say("system"), "field", (True, True, True))),
    "tool, 1 call": ("tools", lambda talk: talk.offer().say("user").call().say("assistant")),
    "tool, null content": ("tools", lambda talk: talk.offer().say("user").call(content=None).say("assistant")),
    "tool, 2 calls": ("tools", lambda talk: talk.offer(2).say("user").call(2).say("assistant")),
    "tool, text beside": ("tools", lambda talk: talk.offer().say("user").call(text=True).say("assistant")),
    "tool, next turn": ("tools", lambda talk: _turns(talk.offer().say("user").call().say("assistant"), 1)),
    "tool, chain": (
        "tools",
        lambda talk: talk.offer(2).say("system").say("user").call(1).call(2).say("assistant"),
    ),
    "tool, thought": (
        "tools",
        lambda talk: talk.offer().say("user").call(thought=True).think("field"),
    ),
}
"""Case → its group and how it is built."""


@cache
def case(name: str, seed: int = 0) -> Case:
    """The case of that name; another seed gives other words."""
    group, build = BUILDERS[name]
    return build(Talk(name, seed)).case(group)


def cases() -> Iterator[Case]:
    """All of them."""
    return map(case, BUILDERS)
