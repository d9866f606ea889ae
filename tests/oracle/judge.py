"""Is a mask right? Told from renders and decoded tokens alone; nothing of the masker is used.

For each assistant turn three texts are looked at: the *prompt* (the messages before it, with the generation prompt),
the *reply render* (the conversation up to and including the turn: what training at that point would show), and the
document that trains it. A document is right if

- its ids are those of `apply_chat_template` of the conversation or of its beginning up to a turn, or, unrolled, the
  prompt's ids and what the reply render adds;
- a turn is trained in exactly one document, from where the prompt ends (or, if the document does not continue the
  prompt, from where that ends which the two have in common) to the stop token, without a hole;
- what is trained there, and what stands before it, is what the reply render has;
- nothing else is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sft.masking import Document, Masker, MaskError, MaskOptions

from .cases import Case
from .replies import Renders, Reply, common, lower, spans
from .results import outcome, with_lists

Outcome = Literal["exact", "refused", "not rendered", "WRONG"]


@dataclass(frozen=True)
class Verdict:
    """What came of one case."""

    outcome: Outcome
    reason: str = ""
    num_documents: int = 0
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome


class WrongMaskError(Exception):
    """The mask is wrong, and why."""


@dataclass
class Placed:
    """A document's text, and where its tokens stand in it."""

    document: Document
    text: str
    offsets: Sequence[tuple[int, int]]
    unrolled: int | None = None
    """The turn under whose prompt it stands, if it is no render but prompt + continuation."""

    @property
    def trained_spans(self) -> list[tuple[int, int]]:
        pairs = zip(self.offsets, self.document.trained, strict=True)
        return [span for span, is_trained in pairs if is_trained]


@dataclass
class Expected:
    """The tokens that must and those that may be trained."""

    must: set[int] = field(default_factory=set)
    may: set[int] = field(default_factory=set)


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
        self.options = options or MaskOptions()
        self.renders = Renders(tokenizer, case, stops, self.options)
        self.assistants = [
            index for index, message in enumerate(self.renders.messages) if message["role"] == "assistant"
        ]
        self.weights = case.conversation.weights or (1.0,) * len(self.renders.messages)
        self.turns = [index for index in self.assistants if self.weights[index] > 0]
        if self.options.train_on == "last":
            self.turns = self.turns[-1:]

    def verdict(self, masker: Masker | None = None) -> Verdict:
        """What the masker (by default a new one) makes of the case, judged."""
        conversation = self.case.conversation
        messages, tools = copy.deepcopy(conversation.messages), copy.deepcopy(conversation.tools)
        masker = masker or Masker(self.tokenizer, options=self.options)
        try:
            result = outcome(masker, replace(conversation, messages=messages, tools=tools))
        except Exception as error:  # a crash on one row ends a run of many
            return Verdict("WRONG", f"raises {type(error).__name__}: {error}")
        return self.judge(result)

    def judge(self, result: list[Document] | MaskError) -> Verdict:
        """The verdict over what a masker gave."""
        dropped = self.renders.dropped()
        if isinstance(result, MaskError):
            unrendered = self.renders.problem if self.renders.full is None else ""
            if dropped:
                unrendered = f"the template drops {dropped[0]}"
            return Verdict("not rendered", unrendered) if unrendered else Verdict("refused", str(result))
        if self.renders.full is None:
            return Verdict("WRONG", f"documents of what does not render: {self.renders.problem}", len(result))
        try:
            remarks = self._judge_documents(list(map(with_lists, result)), dropped)
        except WrongMaskError as wrong:
            return Verdict("WRONG", str(wrong), len(result))
        if dropped:
            reason = f"the template drops {dropped[0]}, as the notes say; what it renders is masked right"
            return Verdict("not rendered", reason, len(result))
        if self.case.reasoning and not self.renders.has_reasoning():
            remarks.append("drops all reasoning")
        return Verdict("exact", "", len(result), tuple(dict.fromkeys(remarks)))

    def _judge_documents(self, documents: list[Document], dropped: list[str]) -> list[str]:
        if not documents:
            raise WrongMaskError("no document and no refusal")
        notes = " ".join(note for document in documents for note in document.notes).lower()
        if dropped and not any(word in notes for word in ("drop", "not render", "leaves out", "without")):
            raise WrongMaskError(f"the template drops {dropped[0]}, and nothing says so")
        trainers: dict[int, int] = dict.fromkeys(self.turns, 0)
        remarks = []
        for number, document in enumerate(documents):
            placed, expected = self.place(number, document), Expected()
            for index in self._turns_trained_in(placed):
                if index not in trainers:
                    raise WrongMaskError(f"messages[{index}] is trained, which is not to be trained")
                trainers[index] += 1
                remarks.append(self._expect(placed, self._reply(index), expected))
            self._compare(number, placed, expected)
        for index, times in trainers.items():
            if times != 1:
                self._reply(index)
                raise WrongMaskError(f"messages[{index}] is trained {f'{times} times' if times else 'never'}")
        return [remark for remark in remarks if remark]

    def _reply(self, index: int) -> Reply:
        reply = self.renders.reply(index)
        if reply is None:
            raise WrongMaskError(f"messages[{index}] is rendered without any of its words; it must be refused")
        return reply

    def place(self, number: int, document: Document) -> Placed:
        """The document's text and its tokens' places.

        Raises:
            WrongMaskError: its ids are those of no render.
        """
        if not len(document.input_ids) == len(document.trained) == len(document.weights or document.trained):
            raise WrongMaskError(f"document {number}: its columns are of unequal length")
        ours = list(document.input_ids)
        for text in filter(None, [self.renders.full, *map(self.renders.through, reversed(self.assistants))]):
            ids, offsets = self.renders.encoded(text)
            if ids == ours:
                return Placed(document, text, offsets)
        for index in reversed(self.assistants):
            prompt = self.renders.prompt(index)
            if prompt is None:
                continue
            ids, offsets = self.renders.encoded(prompt)
            if ours[: len(ids)] == ids and len(ids) < len(ours):
                text = prompt
                for token_id in ours[len(ids) :]:
                    piece = str(self.tokenizer.decode([token_id]))
                    offsets.append((len(text), len(text) + len(piece)))
                    text += piece
                return Placed(document, text, offsets, unrolled=index)
        shown = str(self.tokenizer.decode(ours))[-80:]
        raise WrongMaskError(f"document {number}: its ids are those of no render: …{shown!r}")

    def _turns_trained_in(self, placed: Placed) -> list[int]:
        trained = placed.trained_spans
        return [
            index
            for index in self.assistants
            if any(
                start < b and a < end for a, b in spans(self.renders.own(index), placed.text) for start, end in trained
            )
        ]

    def _expect(self, placed: Placed, reply: Reply, expected: Expected) -> str:
        """Adds what the turn has to train in the document; gives a remark, or nothing."""
        name, text = f"messages[{reply.index}]", placed.text
        continues = reply.prompt is not None and text.startswith(reply.prompt)
        begin = common(reply.prompt or "", text)
        places = spans(reply.words, text, begin) or spans(reply.words, text)
        missing = set(reply.words) - {lower(text[a:b]) for a, b in places}
        if missing:
            raise WrongMaskError(f"{name}: its document lacks {sorted(missing)}, which it would write at inference")
        first = places[0][0]
        foreign = spans(self.renders.foreign(reply.index), text, first)
        limit = foreign[0][0] if foreign else len(text)
        last = max(end for _, end in places if end <= limit)
        start, content_start = self.renders.start(reply.index, reply.prompt, text, first)
        end = self._end(name, placed, reply, last)
        if self.options.history == "exact":
            self._same_as_reply(name, placed, reply, (start, end), continues)
        soft = start if continues else max(start, _after_blanks(text, start, first))
        begin = start if continues else min(start, content_start)
        self._mark(placed, reply, expected, (begin, soft, end), first)
        self._check_weight(name, placed, reply, (start, end))
        return "unrolled" if placed.unrolled is not None else "" if continues else "prompt mismatch"

    def _end(self, name: str, placed: Placed, reply: Reply, last: int) -> int:
        """Where the stop token ends, or the last character of a turn without one."""
        tail, wanted, ends = placed.text[last:], reply.tail, reply.stop_ends
        if not ends and reply.stop_by_next and tail.startswith(reply.stop_by_next):
            wanted, ends = reply.stop_by_next, (len(reply.stop_by_next),)
        if not tail.startswith(wanted):
            raise WrongMaskError(f"{name}: at inference it ends with {wanted!r}, in its document with {tail[:20]!r}")
        if not ends:
            notes = " ".join(placed.document.notes).lower()
            if "stop token" not in notes and "end of turn" not in notes:
                raise WrongMaskError(f"{name} ends without a stop token, and no note says so")
            return last + len(wanted)
        trained_to = max((b for a, b in placed.trained_spans if a < last + ends[-1]), default=0)
        return trained_to if trained_to - last in ends else last + ends[0]

    def _same_as_reply(self, name: str, placed: Placed, reply: Reply, part: tuple[int, int], continues: bool) -> None:
        """The document has what the render at inference time has: before the turn, and in it."""
        start, end = part
        ours, theirs = placed.text[start:end], [reply.text[reply.start :]]
        if placed.unrolled is not None:
            if placed.unrolled != reply.index:
                raise WrongMaskError(f"{name} is trained under the prompt of messages[{placed.unrolled}]")
            theirs = [theirs[0].lstrip(), reply.text[reply.content_start :].lstrip()]
            ours = ours.lstrip()
        elif not continues and placed.text[:start] != reply.text[: reply.start]:
            at = common(placed.text[:start], reply.text[: reply.start])
            raise WrongMaskError(
                f"{name} is trained under a prompt that it never has at inference: "
                f"{placed.text[at : at + 40]!r} instead of {reply.text[at : at + 40]!r}"
            )
        if reply.stop_by_next:
            ours = ours.removesuffix(reply.stop_by_next)
        if not any(text.startswith(ours) for text in theirs):
            raise WrongMaskError(
                f"{name} is trained as {ours[:60]!r}; at inference it is {theirs[0][: len(ours)][:60]!r}"
            )

    def _mark(self, placed: Placed, reply: Reply, expected: Expected, part: tuple[int, int, int], first: int) -> None:
        """Adds the tokens of a turn that may be trained from `begin` and must be from `start` to `end`."""
        begin, start, end = part
        foreign = spans(self.renders.foreign(reply.index), placed.text, begin)
        stopped = bool(reply.stop_ends or reply.stop_by_next)
        for token, (a, b) in enumerate(placed.offsets):
            if b <= begin or a >= b or any(a < stop and at < b for at, stop in foreign):
                continue
            if a < end:
                expected.may.add(token)
                # A token that begins in the prompt and ends in the reply: no mask is right for it.
                if b > first or a >= start:
                    expected.must.add(token)
            elif not stopped and not placed.text[end:b].strip():
                expected.may.add(token)  # the blank lines that end a turn of a template without stop tokens

    def _check_weight(self, name: str, placed: Placed, reply: Reply, part: tuple[int, int]) -> None:
        weight = self.weights[reply.index]
        pairs = zip(
            placed.offsets, placed.document.trained, placed.document.weights or placed.document.trained, strict=True
        )
        found = {float(given) for (a, _), trained, given in pairs if trained and part[0] <= a < part[1]}
        if found != {weight}:
            raise WrongMaskError(f"{name} has the weights {sorted(found)} instead of {weight}")

    def _compare(self, number: int, placed: Placed, expected: Expected) -> None:
        trained = {token for token, flag in enumerate(placed.document.trained) if flag}
        for what, tokens in (("trains", trained - expected.may), ("does not train", expected.must - trained)):
            if tokens:
                a, b = placed.offsets[min(tokens)][0], placed.offsets[max(tokens)][1]
                text = placed.text
                shown = text[a:b] if b - a <= 60 else f"{text[a : a + 28]} … {text[b - 28 : b]}"
                raise WrongMaskError(f"document {number} {what} {shown!r} (after {text[max(0, a - 30) : a]!r})")
        weights = placed.document.weights or ()
        if any(weight for token, weight in enumerate(weights) if token not in trained):
            raise WrongMaskError(f"document {number} gives weight to tokens that are not trained")


def _after_blanks(text: str, start: int, end: int) -> int:
    return start + len(text[start:end]) - len(text[start:end].lstrip())
