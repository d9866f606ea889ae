"""What a template makes of a conversation: its renders, and for each assistant turn what the model would have to write.

Told from texts alone: no template is read, no token of a mask is looked at.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sft.masking import MaskOptions

from .cases import Case

PROBE = "qozuvexi"
"""A content that no case has."""

_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower(text: str) -> str:
    """Lower case in ASCII only: the text keeps its length. Templates may write words in capitals."""
    return text.translate(_LOWER)


def common(first: str, second: str) -> int:
    """Length of the common prefix."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def spans(words: Sequence[str], text: str, begin: int = 0) -> list[tuple[int, int]]:
    """Where the words stand in the text, whatever their case."""
    small = lower(text)
    found = []
    for word in words:
        found += [(match.start(), match.end()) for match in re.compile(re.escape(word)).finditer(small, begin)]
    return sorted(found)


@dataclass
class Reply:
    """An assistant's turn at the end of the conversation that leads to it: what training at that point would show."""

    index: int
    prompt: str | None
    """The messages before it with the generation prompt; None if the template does not render that."""
    text: str
    words: tuple[str, ...]
    """Those of the turn's own words that are rendered."""
    last: int
    """Where its last word ends in `text`."""
    start: int
    """Where the part begins that the prompt does not hold."""
    content_start: int
    """Where the message's content begins."""
    tail: str = ""
    """What follows the last word, up to and including what must be trained."""
    stop_ends: tuple[int, ...] = ()
    """Where, counted from the last word, a stop token may end; none: the render has no stop token."""
    stop_by_next: str = ""
    """What follows the last word, up to the stop token, only if another message follows."""


class Renders:
    """The renders of one case with one tokenizer."""

    def __init__(self, tokenizer: Any, case: Case, stops: Sequence[str], options: MaskOptions) -> None:
        self.tokenizer = tokenizer
        self.case = case
        self.stops = tuple(stop for stop in stops if stop != "none")
        self.options = options
        self.messages = [dict(message) for message in case.conversation.messages]
        self.tools = [dict(tool) for tool in case.conversation.tools]
        self.problem = ""
        """What the template raised on the whole conversation."""
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self.full = self.render(self.messages)
        if self.full is None:
            self._fill_contents()

    def _fill_contents(self) -> None:
        """Some templates need a text beside a call: none at all and an empty one say the same."""
        filled = [{**message, "content": message.get("content") or ""} for message in self.messages]
        text = self.render(filled)
        if text is not None:
            self.messages, self.full, self.problem = filled, text, ""

    def render(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False) -> str | None:
        """The text, or None if the template refuses."""
        if not messages:
            return None
        try:
            text = self.tokenizer.apply_chat_template(
                copy.deepcopy(list(messages)),
                tools=copy.deepcopy(self.tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.options.template_kwargs,
            )
        except Exception as error:  # templates raise what they like
            self.problem = self.problem or f"{type(error).__name__}: {error}"
            return None
        return str(text)

    def through(self, index: int) -> str | None:
        """The conversation up to and including a turn."""
        return self.render(self.messages[: index + 1])

    def prompt(self, index: int) -> str | None:
        """What comes before a turn, with the generation prompt: what inference feeds the model. Where the template has
        none, with the header that it writes before an answer: no model writes its own name."""
        before = self.messages[:index]
        prompt = self.render(before, prompt=True)
        if prompt is None or prompt != self.render(before):
            return prompt
        answered = self.render([*before, {"role": "assistant", "content": PROBE}]) or ""
        header = answered.removeprefix(prompt).split(PROBE)[0]
        return prompt + header if answered.startswith(prompt) and header.strip() else prompt

    def encoded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and where each token stands."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoding["input_ids"]), list(encoding["offset_mapping"])

    # Who wrote what

    def own(self, index: int) -> list[str]:
        """The words that only this message holds."""
        return [*self.case.words[index], *self.case.reasoning.get(index, ())]

    def foreign(self, index: int) -> list[str]:
        """The words of every other message and of the schemas."""
        words = list(self.case.schema)
        for other, own in [*self.case.words.items(), *self.case.reasoning.items()]:
            words += own if other != index else ()
        return words

    def dropped(self) -> list[str]:
        """The messages of which words are missing: an answer's in the render that ends with it, another's in all."""
        if self.full is None:
            return []
        dropped = []
        for index, words in self.case.words.items():
            role = self.messages[index]["role"]
            text = lower((self.through(index) if role == "assistant" else None) or self.full)
            if any(word not in text for word in (*words, *self.case.names.get(index, ()))):
                which = "a part" if any(word in text for word in words) else "all"
                dropped.append(f"{which} of messages[{index}] ({role})")
        return dropped

    def has_reasoning(self) -> bool:
        """Whether some turn's reasoning is rendered while it is the last one."""
        return any(
            word in lower(self.through(index) or "") for index, words in self.case.reasoning.items() for word in words
        )

    # One turn

    def reply(self, index: int) -> Reply | None:
        """The turn as the render that ends with it has it; None if that has none of its words."""
        text = self.through(index) or self.full or ""
        prompt = self.prompt(index)
        places = spans(self.own(index), text, common(prompt or "", text)) or spans(self.own(index), text)
        if not places:
            return None
        words = tuple(word for word in self.own(index) if any(lower(text[a:b]) == word for a, b in places))
        first, last = places[0][0], max(end for _, end in places)
        start, content_start = self.start(index, prompt, text, first)
        reply = Reply(index, prompt, text, words, last, start, content_start)
        self._find_stop(reply)
        return reply

    def start(self, index: int, prompt: str | None, text: str, first: int) -> tuple[int, int]:
        """Where in a text the part begins that the turn's prompt does not hold, and where the turn's content begins.

        Args:
            index: the turn.
            prompt: its prompt.
            text: a render that has the turn.
            first: where the turn's first word stands in it.
        """
        lead = self._content_lead(index, text, first)
        if prompt is not None and text.startswith(prompt):
            return len(prompt), first - lead
        before = [span for span in spans(self.foreign(index), text) if span[1] <= first]
        anchor = max((end for _, end in before), default=0)
        if prompt is None:
            return anchor, first - lead
        word = lower(text[before[-1][0] : anchor]) if before else ""
        place = lower(prompt).rfind(word) + len(word) if word else 0
        gap, wanted = self._pieces(text[anchor:first]), self._pieces(prompt[place:])
        return anchor + covered(gap, wanted), first - lead

    def _content_lead(self, index: int, text: str, first: int) -> int:
        """How many characters of the message's content stand before its first word: `<think>` for inline reasoning."""
        content = str(self.messages[index].get("content") or "")
        length = min((span[0] for span in spans(self.own(index), content)), default=0)
        return length if text[first - length : first] == content[:length] else 0

    def _pieces(self, text: str) -> list[str]:
        """The text cut before and after every token."""
        cuts = sorted({0, len(text), *(edge for span in self.encoded(text)[1] for edge in span)}) if text else []
        return [text[a:b] for a, b in itertools.pairwise(cuts)]

    def _find_stop(self, reply: Reply) -> None:
        tail, inner = reply.text[reply.last :], self._inner_tail(reply)
        both = tail if inner is None else tail[: common(tail, inner)]
        header = {match[0] for match in self._special.finditer(self._prompt_end(reply))}
        if ends := self._stop_ends(both):
            reply.stop_ends, reply.tail = ends, both[: ends[0]]
        elif ends := self._stop_ends(tail, header):
            reply.stop_ends, reply.tail = ends, tail[: ends[0]]
        else:
            reply.tail = self._unstopped_tail(tail, header)
            if inner is not None and (ends := self._stop_ends(inner, header)):
                reply.stop_by_next = inner[: ends[0]]

    def _stop_ends(self, tail: str, header: Collection[str] = ()) -> tuple[int, ...]:
        """Ends of the first stop token and of those that follow it at once. Other control tokens, such as those that
        close a call, may stand before it, but none of the next header's."""
        ends: list[int] = []
        for match in self._special.finditer(tail):
            if match[0] in self.stops:
                ends.append(match.end())
            elif ends or match[0] in header:
                break
        return tuple(ends)

    def _prompt_end(self, reply: Reply) -> str:
        """What the prompt has after the last word of a message: the end of that message and the answer's header."""
        prompt = reply.prompt or ""
        places = spans(self.foreign(reply.index), prompt)
        return prompt[places[-1][1] :] if places else prompt

    def _unstopped_tail(self, tail: str, header: Collection[str]) -> str:
        """The text that a turn without a stop token ends with: a call's closing brackets, not the next header."""
        for match in self._special.finditer(tail):
            if match[0] in header:
                return tail[: match.start()].rstrip()
        return tail.rstrip()

    def _inner_tail(self, reply: Reply) -> str | None:
        """What follows the turn if the conversation goes on, up to the next message's first word."""
        last_word = lower(reply.text[: reply.last])[-8:]
        for following in self._continuations(reply.index):
            text = self.render([*self.messages[: reply.index + 1], following])
            if text is not None:
                place = lower(text).rfind(last_word)
                after = lower(text).rfind(lower(str(following["content"]))[:8])
                if 0 <= place < after:
                    return text[place + len(last_word) : after]
        return None

    def _continuations(self, index: int) -> Iterator[dict[str, Any]]:
        following = self.messages[index + 1] if index + 1 < len(self.messages) else {}
        if following.get("content") and following["role"] != "assistant":
            yield following
        yield {"role": "user", "content": PROBE}


def covered(gap: list[str], prompt: list[str]) -> int:
    """How many characters of the gap between two messages the generation prompt holds already: their common
    beginning, or up to where the prompt's end stands in it, whichever reaches further.

    Both are cut into tokens: `<` is no common beginning of `<think>` and `</think>`, but one line break is of two.
    """
    length = min(len(gap), len(prompt))
    same = next((i for i in range(length) if gap[i] != prompt[i]), length)
    found = sum(map(len, gap[:same]))
    if same < length and not gap[same].strip() and not prompt[same].strip():
        found += common(gap[same], prompt[same])
    text = "".join(gap)
    for begin in range(len(prompt)):
        end = "".join(prompt[begin:])
        if end.strip() and end in text:
            return max(found, text.rindex(end) + len(end))
    return found
