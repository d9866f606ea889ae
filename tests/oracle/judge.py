"""Is a mask right? Told from renders and decoded tokens alone; nothing of the masker is used.

For each assistant turn three texts are looked at: the *prompt* (the messages before it, with the generation prompt),
the *reply render* (the conversation up to and including the turn: what training at that point would show), and the
document that trains it. A document is right if

- its ids are those of `apply_chat_template` of the conversation or of its beginning up to a turn, or, unrolled, the
  prompt's ids and what the reply render adds;
- a turn is trained in exactly one document, from where the prompt ends (or, if the document does not continue the
  prompt, from where the last token of it stands that the two have in common) to the stop token, without a hole;
- what is trained there, and what stands before it, is what the reply render has;
- nothing else is trained.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sft.formats import Conversation
from sft.masking import Document, Masker, MaskError, MaskOptions

from .cases import Case

Outcome = Literal["exact", "refused", "not rendered", "WRONG"]

_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
"""ASCII only: the text keeps its length. Templates may write words in capitals."""


@dataclass(frozen=True)
class Verdict:
    """What came of one case."""

    outcome: Outcome
    reason: str = ""
    num_documents: int = 0
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome


class Wrong(Exception):
    """The mask is wrong, and why."""


@dataclass
class Placed:
    """A document's text, and where its tokens stand in it."""

    text: str
    offsets: Sequence[tuple[int, int]]
    trained: Sequence[bool]
    weights: Sequence[float] | None
    notes: tuple[str, ...]
    unrolled: int | None = None
    """The turn under whose prompt it stands, if it is no render but prompt + continuation."""

    def __post_init__(self) -> None:
        self.lower = self.text.translate(_LOWER)


@dataclass
class Reply:
    """An assistant's turn at the end of the conversation that leads to it."""

    index: int
    prompt: str | None
    """The messages before it with the generation prompt; None if the template does not render that."""
    text: str
    first: int
    """Where its first word stands in `text`."""
    last: int
    """Where its last word ends."""
    start: int
    """Where the part begins that the model would have to write."""
    words: tuple[str, ...]
    tail: str = ""
    """What follows the last word up to and including what must be trained."""
    stop_ends: tuple[int, ...] = ()
    """Where, counted from the last word, a stop token may end; none: the render has no stop token."""
    stop_by_next: str = ""
    """What follows the last word, up to the stop token, only if another message follows."""


@dataclass
class Expected:
    """For each token whether it must and whether it may be trained."""

    must: set[int] = field(default_factory=set)
    may: set[int] = field(default_factory=set)


def _common(first: str, second: str) -> int:
    """Length of the common prefix."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def _spans(words: Sequence[str], text: str, begin: int = 0) -> list[tuple[int, int]]:
    """Where the words stand in lower-case text."""
    found = []
    for word in words:
        found += [(match.start(), match.end()) for match in re.compile(re.escape(word)).finditer(text, begin)]
    return sorted(found)


class Judge:
    """Judges one case of one tokenizer."""

    def __init__(self, tokenizer: Any, case: Case, stops: Sequence[str], options: MaskOptions | None = None) -> None:
        """
        Args:
            tokenizer: with the chat template.
            case: the conversation.
            stops: the strings of the tokens that end a turn.
            options: those of the masker that is judged.
        """
        self.tokenizer = tokenizer
        self.case = case
        self.stops = tuple(stop for stop in stops if stop != "none")
        self.options = options or MaskOptions()
        self.messages = [dict(message) for message in case.conversation.messages]
        self.tools = [dict(tool) for tool in case.conversation.tools]
        weights = case.conversation.weights or (1.0,) * len(self.messages)
        self.turns = [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant" and weights[index] > 0
        ]
        if self.options.train_on == "last":
            self.turns = self.turns[-1:]
        self.weights = weights
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self._problems: dict[str, str] = {}

    def verdict(self, masker: Masker | None = None) -> Verdict:
        """What the masker (by default a new one) makes of the case, judged."""
        conversation = self.case.conversation
        ours = Conversation(
            copy.deepcopy(conversation.messages),
            conversation.source,
            tools=copy.deepcopy(conversation.tools),
            weights=conversation.weights,
        )
        try:
            masker = masker or Masker(self.tokenizer, options=self.options)
            result: list[Document] | MaskError = masker.documents(ours)
        except MaskError as error:
            result = error
        except Exception as error:  # a crash on one row ends a run of many
            return Verdict("WRONG", f"raises {type(error).__name__}: {error}")
        return self.judge(result)

    def judge(self, result: list[Document] | MaskError) -> Verdict:
        """The verdict over what a masker gave."""
        full = self.render(self.messages)
        dropped = self._dropped(full)
        if isinstance(result, MaskError):
            if full is None:
                return Verdict("not rendered", self._problems.get("full", ""))
            if dropped:
                return Verdict("not rendered", f"the template drops {dropped[0]}")
            return Verdict("refused", str(result))
        if full is None:
            return Verdict("WRONG", f"documents of a conversation that does not render: {self._problems.get('full')}")
        try:
            remarks = self._judge_documents(result, full, dropped)
        except Wrong as wrong:
            return Verdict("WRONG", str(wrong), len(result))
        if dropped:
            reason = f"the template drops {dropped[0]}, which the notes say; what it renders is masked right"
            return Verdict("not rendered", reason, len(result))
        if self.case.reasoning and not any(self._reasoning_rendered(index) for index in self.case.reasoning):
            remarks = [*remarks, "drops all reasoning"]
        return Verdict("exact", "", len(result), tuple(remarks))

    # What the template makes of the conversation

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
            if not prompt and len(messages) == len(self.messages):
                self._problems["full"] = f"{type(error).__name__}: {error}"
            return None
        return str(text)

    def _reply_text(self, index: int) -> str | None:
        return self.render(self.messages[: index + 1])

    def _reasoning_rendered(self, index: int) -> bool:
        text = (self._reply_text(index) or "").translate(_LOWER)
        return any(word in text for word in self.case.reasoning[index])

    def _dropped(self, full: str | None) -> list[str]:
        """The messages that have words which their own render, or the whole one, does not hold."""
        if full is None:
            return []
        dropped = []
        for index, words in self.case.words.items():
            role = self.messages[index]["role"]
            text = self._reply_text(index) if role == "assistant" else full
            lower = (text or full).translate(_LOWER)
            wanted = (*words, *self.case.names.get(index, ()))
            if any(word not in lower for word in wanted):
                which = "all" if not any(word in lower for word in words) else "a part"
                dropped.append(f"{which} of messages[{index}] ({role})")
        return dropped

    def _foreign(self, index: int) -> list[str]:
        """Words of every other message and of the schemas."""
        words = list(self.case.schema)
        for other, own in [*self.case.words.items(), *self.case.reasoning.items()]:
            words += own if other != index else ()
        return words

    def _own(self, index: int) -> list[str]:
        return [*self.case.words[index], *self.case.reasoning.get(index, ())]

    # One turn at the end of the conversation that leads to it

    def reply(self, index: int, full: str) -> Reply:
        """The turn as the render that ends with it has it.

        Raises:
            Wrong: none of its words is rendered, so that no document can train it.
        """
        text = self._reply_text(index) or full
        prompt = self.render(self.messages[:index], prompt=True)
        lower = text.translate(_LOWER)
        begin = _common(prompt, text) if prompt is not None else 0
        spans = _spans(self._own(index), lower, begin) or _spans(self._own(index), lower)
        if not spans:
            raise Wrong(f"messages[{index}] is rendered without any of its words; it must be refused")
        words = tuple(word for word in self._own(index) if any(lower[a:b] == word for a, b in spans))
        first, last = spans[0][0], max(end for _, end in spans)
        reply = Reply(index, prompt, text, first, last, self._start(index, prompt, text, first), words)
        self._find_stop(reply)
        return reply

    def _start(self, index: int, prompt: str | None, text: str, first: int) -> int:
        """Where the part begins that the prompt does not hold already."""
        if prompt is not None and text.startswith(prompt):
            return len(prompt)
        lower = text.translate(_LOWER)
        before = [span for span in _spans(self._foreign(index), lower) if span[1] <= first]
        if prompt is None:
            return before[-1][1] if before else 0
        anchor = max((end for _, end in before), default=0)
        gap = self._pieces(text[anchor:first])
        word = lower[before[-1][0] : anchor] if before else ""
        place = prompt.translate(_LOWER).rfind(word) + len(word) if word else 0
        wanted = self._pieces(prompt[place:])
        return anchor + _covered(gap, wanted)

    def _pieces(self, text: str) -> list[str]:
        """The text cut before and after every token."""
        if not text:
            return []
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        cuts = sorted({0, len(text), *(edge for span in offsets for edge in span)})
        return [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]

    def _find_stop(self, reply: Reply) -> None:
        tail, inner = reply.text[reply.last :], self._inner_tail(reply)
        both = tail if inner is None else tail[: _common(tail, inner)]
        if ends := self._stop_ends(both, between=True):
            reply.stop_ends, reply.tail = ends, both[: ends[0]]
        elif ends := self._stop_ends(tail, between=False):
            reply.stop_ends, reply.tail = ends, tail[: ends[0]]
        else:
            reply.tail = self._unstopped_tail(tail, reply.prompt)
            if inner is not None and (ends := self._stop_ends(inner, between=False)):
                reply.stop_by_next = inner[: ends[0]]

    def _stop_ends(self, tail: str, *, between: bool) -> tuple[int, ...]:
        """Ends of the first stop token and of those that follow it at once. `between`: other control tokens, such as
        those that close a call, may stand before it."""
        ends: list[int] = []
        for match in self._special.finditer(tail):
            if match[0] in self.stops:
                ends.append(match.end())
            elif ends or not between:
                break
        return tuple(ends)

    def _unstopped_tail(self, tail: str, prompt: str | None) -> str:
        """The text that a turn without a stop token ends with: a call's closing brackets, not the next header."""
        header = {match[0] for match in self._special.finditer((prompt or "")[-200:])}
        for match in self._special.finditer(tail):
            if match[0] in header:
                return tail[: match.start()].rstrip()
        return tail.rstrip()

    def _inner_tail(self, reply: Reply) -> str | None:
        """What follows the turn if the conversation goes on, up to the next message's first word."""
        index = reply.index
        for following in self._continuations(index):
            text = self.render([*self.messages[: index + 1], following])
            if text is None:
                continue
            lower = text.translate(_LOWER)
            place = lower.rfind(reply.text[: reply.last].translate(_LOWER)[-8:])
            after = lower.rfind(str(following["content"]).translate(_LOWER)[:8])
            if 0 <= place < after:
                return text[place + 8 : after]
        return None

    def _continuations(self, index: int) -> Iterator[dict[str, Any]]:
        if index + 1 < len(self.messages) and self.messages[index + 1].get("content"):
            following = self.messages[index + 1]
            if following["role"] != "assistant":
                yield following
        yield {"role": "user", "content": "qozuvexi"}

    # Documents

    def _judge_documents(self, documents: list[Document], full: str, dropped: list[str]) -> list[str]:
        if not documents:
            raise Wrong("no document and no refusal")
        notes = " ".join(note for document in documents for note in document.notes).lower()
        if dropped and not any(word in notes for word in ("drop", "not render", "without")):
            raise Wrong(f"the template drops {dropped[0]}, and nothing says so")
        placed = [self.place(number, document) for number, document in enumerate(documents)]
        replies = {index: self.reply(index, full) for index in self.turns}
        trainers: dict[int, list[int]] = {index: [] for index in self.turns}
        remarks = []
        for number, document in enumerate(placed):
            expected = Expected()
            for index in self._turns_trained_in(document):
                if index not in trainers:
                    raise Wrong(f"messages[{index}] is trained, which is not to be trained")
                trainers[index].append(number)
                remarks += self._expect(document, replies[index], expected)
            self._compare(number, document, expected)
        for index, numbers in trainers.items():
            if len(numbers) != 1:
                times = "never" if not numbers else f"{len(numbers)} times"
                raise Wrong(f"messages[{index}] is trained {times}")
        return list(dict.fromkeys(remarks))

    def place(self, number: int, document: Document) -> Placed:
        """The document's text and its tokens' places.

        Raises:
            Wrong: its ids are those of no render.
        """
        if not len(document.input_ids) == len(document.trained) == len(document.weights or document.trained):
            raise Wrong(f"document {number}: its columns are of unequal length")
        ends = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        texts = [self.render(self.messages), *map(self._reply_text, reversed(ends))]
        rest = (document.trained, document.weights, document.notes)
        for text in filter(None, texts):
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            if list(encoding["input_ids"]) == list(document.input_ids):
                return Placed(text, encoding["offset_mapping"], *rest)
        for index in reversed(ends):
            prompt = self.render(self.messages[:index], prompt=True)
            if prompt is None:
                continue
            encoding = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
            length = len(encoding["input_ids"])
            if list(document.input_ids[:length]) == list(encoding["input_ids"]) and length < len(document.input_ids):
                text, offsets = prompt, list(encoding["offset_mapping"])
                for token_id in document.input_ids[length:]:
                    piece = self.tokenizer.decode([token_id])
                    offsets.append((len(text), len(text) + len(piece)))
                    text += piece
                return Placed(text, offsets, *rest, unrolled=index)
        raise Wrong(f"document {number}: its ids are those of no render: …{self._tail_of(document)!r}")

    def _tail_of(self, document: Document) -> str:
        return str(self.tokenizer.decode(document.input_ids))[-80:]

    def _turns_trained_in(self, document: Placed) -> list[int]:
        found = []
        for index, message in enumerate(self.messages):
            spans = _spans(self._own(index), document.lower) if message["role"] == "assistant" else []
            if any(
                trained and start < b and a < end
                for (start, end), trained in zip(document.offsets, document.trained, strict=True)
                for a, b in spans
            ):
                found.append(index)
        return found

    def _expect(self, document: Placed, reply: Reply, expected: Expected) -> list[str]:
        """Adds what the turn has to train in the document; says what is worth a remark."""
        name = f"messages[{reply.index}]"
        continues = reply.prompt is not None and document.text.startswith(reply.prompt)
        begin = len(reply.prompt or "") if continues else _common(reply.prompt or "", document.text)
        spans = _spans(reply.words, document.lower, begin) or _spans(reply.words, document.lower)
        if {document.lower[a:b] for a, b in spans} != set(reply.words):
            missing = [word for word in reply.words if word not in document.lower]
            raise Wrong(f"{name}: its document lacks {missing}, which it would write at inference")
        foreign = [span for span in _spans(self._foreign(reply.index), document.lower) if span[0] >= spans[0][0]]
        limit = foreign[0][0] if foreign else len(document.text)
        first, last = spans[0][0], max(end for _, end in spans if end <= limit)
        start = self._start(reply.index, reply.prompt, document.text, first)
        end = self._end(name, document, reply, last)
        if self.options.history == "exact":
            self._same_as_reply(name, document, reply, start, end, continues)
        self._mark(document, reply, expected, start, first, end)
        if document.weights is not None:
            wrong = [
                weight
                for token, weight in enumerate(document.weights)
                if token in expected.must and weight != self.weights[reply.index]
                and start <= document.offsets[token][0] < end
            ]  # fmt: skip
            if wrong:
                raise Wrong(f"{name}: weights {wrong[:3]} instead of {self.weights[reply.index]}")
        elif self.weights[reply.index] != 1:
            raise Wrong(f"{name}: weight {self.weights[reply.index]} is lost")
        if document.unrolled is not None:
            return ["unrolled"]
        return [] if continues else ["prompt mismatch"]

    def _end(self, name: str, document: Placed, reply: Reply, last: int) -> int:
        """Where the stop token ends, or the last character of a turn without one."""
        tail = document.text[last:]
        ends = reply.stop_ends
        if not ends and reply.stop_by_next and tail.startswith(reply.stop_by_next):
            ends = (len(reply.stop_by_next),)
        if ends:
            wanted = reply.stop_by_next if not reply.stop_ends else reply.tail
            if not tail.startswith(wanted):
                raise Wrong(f"{name}: at inference it ends with {wanted!r}, in its document with {tail[:20]!r}")
            trained_to = max(
                (
                    end
                    for (start, end), trained in zip(document.offsets, document.trained, strict=True)
                    if trained and start < last + ends[-1]
                ),
                default=0,
            )
            return next((last + end for end in ends if last + end == trained_to), last + ends[0])
        if not any("stop" in note.lower() or "end of turn" in note.lower() for note in document.notes):
            raise Wrong(f"{name} ends without a stop token, and no note says so")
        if not tail.startswith(reply.tail):
            raise Wrong(f"{name}: at inference it ends with {reply.tail!r}, in its document with {tail[:20]!r}")
        return last + len(reply.tail)

    def _same_as_reply(
        self, name: str, document: Placed, reply: Reply, start: int, end: int, continues: bool
    ) -> None:
        """The document has what the render at inference time has: before the turn, and in it."""
        ours = document.text[start:end]
        theirs = reply.text[reply.start :]
        if document.unrolled is not None:
            if document.unrolled != reply.index:
                raise Wrong(f"{name} is trained under the prompt of messages[{document.unrolled}]")
            ours, theirs = ours.lstrip(), theirs.lstrip()
        elif not continues and document.text[:start] != reply.text[: reply.start]:
            at = _common(document.text[:start], reply.text[: reply.start])
            raise Wrong(
                f"{name} is trained under a prompt that it never has at inference: "
                f"{document.text[at : at + 40]!r} instead of {reply.text[at : at + 40]!r}"
            )
        if reply.stop_by_next and ours.endswith(reply.stop_by_next):
            ours = ours[: len(ours) - len(reply.stop_by_next)]
        if not theirs.startswith(ours):
            raise Wrong(f"{name} is trained as {ours[:60]!r}; at inference it is {theirs[: len(ours)][:60]!r}")

    def _mark(self, document: Placed, reply: Reply, expected: Expected, start: int, first: int, end: int) -> None:
        foreign = _spans(self._foreign(reply.index), document.lower, start)
        stops = bool(reply.stop_ends or reply.stop_by_next)
        header = document.text[start:first]
        blank_to = start + len(header) - len(header.lstrip())
        continues = reply.prompt is not None and document.text.startswith(reply.prompt)
        for token, (a, b) in enumerate(document.offsets):
            if b <= start or a >= b:
                continue
            if any(a < stop and begin < b for begin, stop in foreign):
                continue
            if a < end:
                expected.may.add(token)
                # A token that begins in the prompt and ends in the reply: no mask is right for it, only a note is.
                straddles = a < start and b <= first
                blank = not continues and b <= blank_to
                if not straddles and not blank:
                    expected.must.add(token)
            elif not stops and not document.text[end:b].strip():
                expected.may.add(token)  # the blank lines that end a turn of a template without stop tokens

    def _compare(self, number: int, document: Placed, expected: Expected) -> None:
        trained = {token for token, flag in enumerate(document.trained) if flag}
        for what, tokens in (("trains", trained - expected.may), ("does not train", expected.must - trained)):
            if tokens:
                a, b = document.offsets[min(tokens)][0], document.offsets[max(tokens)][1]
                shown = document.text[a:b] if b - a <= 60 else f"{document.text[a : a + 28]} … {document.text[b - 28 : b]}"
                before = document.text[max(0, a - 30) : a]
                raise Wrong(f"document {number} {what} {shown!r} (after {before!r})")
        if document.weights is not None and any(
            weight for weight, flag in zip(document.weights, document.trained, strict=True) if not flag
        ):
            raise Wrong(f"document {number} gives weight to tokens that are not trained")


def _covered(gap: list[str], prompt: list[str]) -> int:
    """How many characters of the gap between two messages the generation prompt holds already: their common
    beginning, or up to where the prompt's end stands in it, whichever reaches further.

    Both are cut into tokens: `<` is no common beginning of `<think>` and `</think>`, but one line break is of two.
    """
    length = min(len(gap), len(prompt))
    same = next((i for i in range(length) if gap[i] != prompt[i]), length)
    covered = sum(map(len, gap[:same]))
    if same < length and not gap[same].strip() and not prompt[same].strip():
        covered += _common(gap[same], prompt[same])
    text = "".join(gap)
    for begin in range(len(prompt)):
        end = "".join(prompt[begin:])
        if end.strip() and end in text:
            return max(covered, text.rindex(end) + len(end))
    return covered
