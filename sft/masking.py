"""Conversation + chat template → token ids, and for each token whether it is trained.

The ids are those of `tokenizer.apply_chat_template` on the same conversation. A token is trained if the model would
have to write it: what the assistant said, thought and called, and the token that ends its turn. Nothing is guessed:
where it stands is proven (`sft.turns`), or the conversation is refused with the reason.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from sft.config import Args
from sft.errors import MaskError
from sft.formats import Conversation
from sft.templating import ChatTemplate
from sft.tokenizing import TextTokenizer, Tokens
from sft.tracking import OUTSIDE, codes_of, is_data, message_of
from sft.turns import Rendition, Span, Turns

__all__ = ["Document", "MaskError", "MaskOptions", "Masker"]


@dataclass(frozen=True)
class Document:
    """One sequence of tokens to train on."""

    input_ids: list[int]
    trained: list[bool]
    """One per token: the loss is taken where the token is predicted."""
    weights: list[float] | None = None
    """One per token, where they are not all 1: what the token's loss is multiplied by. 0 where not trained."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the document was made, in words that are the same for like documents."""

    turn_starts: tuple[int, ...] = ()
    """The first token of each message, its header included."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens with a loss; the first token of a sequence is predicted from nothing and has none."""
        return sum(self.trained[1:])


@dataclass(frozen=True)
class MaskOptions:
    """The mask settings of `Args`, under the same names."""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    history: Literal["exact", "as_rendered"] = "exact"
    prompt_mismatch: Literal["as_rendered", "unroll", "refuse"] = "as_rendered"
    special_tokens_in_data: Literal["escape", "error"] = "escape"
    system_prompt: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None

    @classmethod
    def of(cls, args: Args) -> MaskOptions:
        """The options among all settings."""
        return cls(**{option.name: getattr(args, option.name) for option in fields(cls)})


class Masker:
    """Turns conversations into documents with one tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: Any,
        pad_token_id: int = 0,
        options: MaskOptions | None = None,
        stop_tokens: Sequence[str] = (),
    ) -> None:
        """
        Args:
            tokenizer: a fast tokenizer of transformers with a chat template.
            pad_token_id: what batches of its documents are filled up with.
            options: what is trained, and how.
            stop_tokens: tokens that end a turn for the model, beside the tokenizer's end-of-text token.

        Raises:
            MaskError: the tokenizer has no chat template, or is a slow one, which does not tell where a token stands.
        """
        if not tokenizer.chat_template:
            remedy = "Give one with chat_template_path, for example chatml."
            raise MaskError(f"the tokenizer has no chat template. {remedy}")
        if not isinstance(tokenizer.chat_template, str):
            names = ", ".join(tokenizer.chat_template)
            raise MaskError(f"the tokenizer has several chat templates ({names}). Choose one with chat_template_path.")
        if not tokenizer.is_fast:
            raise MaskError("the tokenizer is a slow one; a fast tokenizer (tokenizer.json) is needed.")
        self.tokenizer = tokenizer
        self.pad_token_id = pad_token_id
        self.options = options or MaskOptions()
        self.stop_token_ids: set[int] = set()
        """The tokens that ended a trained turn so far: where `generate` must stop."""
        variables = {**tokenizer.special_tokens_map, **self.options.template_kwargs}
        self.template = ChatTemplate(tokenizer.chat_template, variables, self.options.template_date)
        self._text = TextTokenizer(tokenizer, tokenizer.chat_template, stop_tokens)
        self._turns = Turns(self.template, self._text.control)

    def documents(self, conversation: Conversation) -> list[Document]:
        """The documents that train the wanted turns of the conversation, each turn in exactly one of them.

        Raises:
            MaskError: the template does not render the conversation, or what is trained cannot be proven.
        """
        conversation = self._with_system_prompt(conversation)
        weights = self._weights(conversation)
        renditions = self._renditions(conversation, weights)
        return [self._document(rendition, weights) for rendition in renditions]

    def encode(self, conversations: Sequence[Conversation]) -> list[list[Document] | MaskError]:
        """`documents` of many conversations, which is faster; a refused one gives its error in its place."""
        results: list[list[Document] | MaskError] = []
        for conversation in conversations:
            try:
                results.append(self.documents(conversation))
            except MaskError as error:
                results.append(error)
        return results

    def _with_system_prompt(self, conversation: Conversation) -> Conversation:
        """The conversation with the system message of the settings, where they have one."""
        prompt = self.options.system_prompt
        if prompt is None:
            return conversation
        keep = [index for index, message in enumerate(conversation.messages) if message["role"] != "system"]
        messages = [conversation.messages[index] for index in keep]
        weights = [conversation.weights[index] for index in keep] if conversation.weights else []
        if prompt:
            messages.insert(0, {"role": "system", "content": prompt})
            weights = [0.0, *weights] if weights else []
        return replace(conversation, messages=tuple(messages), weights=tuple(weights))

    def _weights(self, conversation: Conversation) -> list[float]:
        """The loss weight of each message; 0 for what is not trained."""
        given = conversation.weights or (1.0,) * len(conversation.messages)
        if self.options.train_on == "all":
            return list(given)
        weights = [
            weight if message["role"] == "assistant" else 0.0
            for weight, message in zip(given, conversation.messages, strict=True)
        ]
        if self.options.train_on == "last":
            last = max((index for index, weight in enumerate(weights) if weight), default=-1)
            weights = [weight if index == last else 0.0 for index, weight in enumerate(weights)]
        return weights

    def _renditions(self, conversation: Conversation, weights: Sequence[float]) -> list[Rendition]:
        wanted = [index for index, weight in enumerate(weights) if weight]
        if self.options.train_on == "all":
            return [_everything(self.template, conversation)]
        if not wanted:
            raise MaskError("no turn of the conversation is to be trained.")
        return self._turns.renditions(
            conversation,
            wanted,
            exact_history=self.options.history == "exact",
            mismatch=self.options.prompt_mismatch,
        )

    def _document(self, rendition: Rendition, weights: Sequence[float]) -> Document:
        tokens, notes = self._tokens(rendition)
        values = _token_weights(tokens.offsets, rendition, weights)
        trained = [value > 0 for value in values]
        if not any(trained[1:]):
            raise MaskError("no token of the conversation would be trained.")
        self._note_stops(tokens.ids, trained)
        return Document(
            tokens.ids,
            trained,
            values if any(value not in (0.0, 1.0) for value in values) else None,
            (*rendition.notes, *notes),
            _turn_starts(tokens.offsets, rendition.origins),
        )

    def _tokens(self, rendition: Rendition) -> tuple[Tokens, list[str]]:
        """The text's tokens, and what there is to know of how they were made."""
        notes = []
        if self.template.has_asked_for_date and self.options.template_date is None:
            notes.append("the template writes today's date; template_date pins it")
        spans = [(span.start, span.end) for span in rendition.spans]
        as_text = self._text.control_strings_in_data(rendition.text, rendition.origins, spans)
        if not as_text:
            return self._text.encode(rendition.text), notes
        if self.options.special_tokens_in_data == "error":
            where, what = message_of(rendition.origins[as_text[0].start()]), as_text[0].group()
            raise MaskError(
                f"messages[{where}].content holds {what!r}; it must hold no control string with "
                "special_tokens_in_data: error. Remove it, or take escape."
            )
        notes.append("control strings in data are kept as text")
        return self._text.encode_escaped(rendition.text, as_text), notes

    def _note_stops(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        """Remembers which tokens ended a trained stretch."""
        ends = (
            index
            for index, flag in enumerate(trained)
            if flag and (index + 1 == len(trained) or not trained[index + 1])
        )
        self.stop_token_ids.update(ids[index] for index in ends if ids[index] in self._text.control_ids)


def _everything(template: ChatTemplate, conversation: Conversation) -> Rendition:
    """The whole render, every character of it trained."""
    traced = template.trace(conversation.messages, conversation.tools, variables=conversation.template_kwargs)
    origins = traced.origins
    edges = [i for i in range(len(origins)) if i == 0 or message_of(origins[i]) != message_of(origins[i - 1])]
    spans = (
        Span(start, end, message_of(origins[start]))
        for start, end in zip(edges, [*edges[1:], len(origins)], strict=True)
    )
    return Rendition(str.__str__(traced), origins, tuple(spans), (), len(conversation.messages))


def _token_weights(offsets: Sequence[tuple[int, int]], rendition: Rendition, weights: Sequence[float]) -> list[float]:
    """For each token its loss weight: that of the turn in whose span it lies, 0 outside.

    A token that reaches over a span's edge, as the tokenizer joins what stands on both sides, belongs to the side
    that says something; white space alone does not.

    Raises:
        MaskError: it joins what two messages say.
    """
    values = [0.0] * len(offsets)
    spans = iter(rendition.spans)
    span = next(spans, None)
    for index, (start, end) in enumerate(offsets):
        while span is not None and start >= span.end:
            span = next(spans, None)
        if span is None:
            break
        if end <= span.start:
            continue
        if start < span.start or end > span.end:
            inside = rendition.text[max(start, span.start) : min(end, span.end)]
            if not inside.strip():
                continue
            outside = rendition.origins[start : span.start] + rendition.origins[span.end : end]
            if any(is_data(code) and message_of(code) != span.message for code in outside):
                raise MaskError(
                    f"messages[{span.message}]: the tokenizer joins the turn with what another message says "
                    f"in one token ({rendition.text[start:end]!r})."
                )
        values[index] = weights[span.message] if span.message >= 0 else 1.0
    return values


def _turn_starts(offsets: Sequence[tuple[int, int]], origins: str) -> tuple[int, ...]:
    """The first token of each message, its header included."""
    found = sorted(
        position
        for message in {message_of(code) for code in set(origins)} - {OUTSIDE}
        if (position := min((at for code in codes_of(message) if (at := origins.find(code)) >= 0), default=-1)) >= 0
    )
    starts = [start for start, _ in offsets]
    return tuple(sorted({bisect_left(starts, position) for position in found}))
