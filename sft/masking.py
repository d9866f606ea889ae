"""Conversation + chat template → token ids, and for each token whether it is trained.

The ids are those of `tokenizer.apply_chat_template` on the same conversation. A token is trained if the model would
have to write it: what the assistant said and the token that ends its turn. The spans come from the template's
`{% generation %}` markers where it has them. Elsewhere they come from the prefix method, which holds only if every
earlier part of the conversation renders to the beginning of the whole; that is checked, and a conversation for
which it does not hold is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sft.config import Args
from sft.errors import DataError
from sft.formats import Conversation, Message

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""Start and end of a stretch of characters in the rendered text."""


class MaskError(DataError):
    """The trained part of a conversation could not be proven."""


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

    def __init__(self, tokenizer: Any, pad_token_id: int = 0, options: MaskOptions | None = None) -> None:
        """
        Args:
            tokenizer: a fast tokenizer of transformers with a chat template.
            pad_token_id: what batches of its documents are filled up with.
            options: what is trained, and how.

        Raises:
            MaskError: the tokenizer has no chat template, or is a slow one, which does not tell where a token stands.
        """
        if not tokenizer.chat_template:
            remedy = "Give one with chat_template_path, for example chatml."
            raise MaskError(f"the tokenizer has no chat template. {remedy}")
        if not tokenizer.is_fast:
            raise MaskError("the tokenizer is a slow one; a fast tokenizer (tokenizer.json) is needed.")
        self.tokenizer = tokenizer
        self.pad_token_id = pad_token_id
        self.options = options or MaskOptions()
        self.stop_token_ids: set[int] = set()
        """The tokens that ended a trained turn so far: where `generate` must stop."""
        self._has_markers = bool(_GENERATION_MARKER.search(tokenizer.chat_template))
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def documents(self, conversation: Conversation) -> list[Document]:
        """The documents that train every assistant turn of the conversation; here always one.

        Raises:
            MaskError: the template does not render the conversation, or the trained spans cannot be proven.
        """
        text, spans = self._render_with_spans(list(conversation.messages))
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        input_ids = list(encoding["input_ids"])
        trained = _covered(encoding["offset_mapping"], spans)
        self._end_at_stop_token(input_ids, trained)
        if not any(trained[1:]):
            raise MaskError("no token of the conversation would be trained.")
        return [Document(input_ids, trained)]

    def encode(self, conversations: Sequence[Conversation]) -> list[list[Document] | MaskError]:
        """`documents` of many conversations, which is faster; a refused one gives its error in its place."""
        results: list[list[Document] | MaskError] = []
        for conversation in conversations:
            try:
                results.append(self.documents(conversation))
            except MaskError as error:
                results.append(error)
        return results

    def _render_with_spans(self, messages: list[Message]) -> tuple[str, list[Span]]:
        if self._has_markers:
            return self._spans_by_markers(messages)
        return self._spans_by_prefix(messages)

    def _spans_by_markers(self, messages: list[Message]) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self.tokenizer.chat_template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # templates raise what they like
            raise MaskError(f"the chat template does not render it: {error}") from error
        return texts[0], [(int(start), int(end)) for start, end in spans[0]]

    def _spans_by_prefix(self, messages: list[Message]) -> tuple[str, list[Span]]:
        text = self._render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], add_generation_prompt=True)
            through_turn = self._render(messages[: index + 1])
            if not (through_turn.startswith(prompt) and text.startswith(through_turn)):
                raise MaskError(
                    f"messages[{index}]: the chat template renders what comes before this turn differently once "
                    "the turn is there, so where the turn begins and ends cannot be told by its prefix. "
                    "Use a template with {% generation %} markers."
                )
            spans.append((len(prompt), len(through_turn)))
        return text, spans

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            # apply_chat_template takes no empty conversation, but one that the assistant opens has an empty prefix.
            texts, _ = render_jinja_template(
                conversations=[messages],
                chat_template=self.tokenizer.chat_template,
                add_generation_prompt=add_generation_prompt,
                **self.tokenizer.special_tokens_map,
            )
            return str(texts[0])
        except Exception as error:  # templates raise what they like
            raise MaskError(f"the chat template does not render it: {error}") from error

    def _end_at_stop_token(self, input_ids: list[int], trained: list[bool]) -> None:
        """Untrains what follows the last special token of each trained stretch: the line break after the end of turn,
        which the model never gets to write. A stretch without special tokens stays as it is."""
        for start, end in _stretches(trained):
            stops = [index for index in range(start, end) if input_ids[index] in self._special_ids]
            if stops and not self.tokenizer.decode(input_ids[stops[-1] + 1 : end]).strip():
                trained[stops[-1] + 1 : end] = [False] * (end - stops[-1] - 1)
                self.stop_token_ids.add(input_ids[stops[-1]])


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token whether it lies in a span.

    Raises:
        MaskError: a token reaches over a span's edge: part of it would be trained and part not.
    """
    trained = []
    for start, end in offsets:
        inside = any(begin <= start and end <= stop and start < end for begin, stop in spans)
        if not inside and any(start < stop and begin < end for begin, stop in spans):
            raise MaskError(f"the token at characters {start}–{end} reaches over the edge of an assistant's turn.")
        trained.append(inside)
    return trained


def _stretches(flags: Sequence[bool]) -> list[Span]:
    """Start and end (exclusive) of each run of True."""
    edges = [
        index
        for index in range(len(flags) + 1)
        if (index < len(flags) and flags[index]) != (index > 0 and flags[index - 1])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
