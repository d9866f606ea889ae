"""Conversation + chat template → token ids, and for each token whether it is trained.

The ids are those of `tokenizer.apply_chat_template` on the same conversation. A token is trained if the model would
have to write it: what the assistant said, thought and called, and the token that ends its turn. Nothing is guessed:
where it stands is proven (`sft.turns`), or the conversation is refused with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft.config import Args
from sft.errors import MaskError
from sft.formats import Conversation
from sft.masks.origins import message_of
from sft.masks.placing import Span
from sft.masks.plans import SAMPLE, Plan, form_of, plan_of
from sft.masks.sandbox import TIME_LIMIT_S, TemplateError, time_limit
from sft.masks.template import ChatTemplate
from sft.masks.token_spans import token_edge, token_weights, turn_starts
from sft.masks.tokens import TextTokenizer, Tokens
from sft.masks.turns import Rendition, Turns

__all__ = ["Document", "MaskError", "MaskOptions", "Masker"]


@dataclass(frozen=True)
class Document:
    """One sequence of tokens to train on."""

    input_ids: Sequence[int] | NDArray[np.int32]
    trained: Sequence[bool] | NDArray[np.bool_]
    """One per token: the loss is taken where the token is predicted."""
    weights: Sequence[float] | NDArray[np.float32] | None = None
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


MAX_FORMS = 4096
"""So many forms of conversations are remembered."""


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
        self._is_control = np.zeros(self._text.vocabulary_size, dtype=bool)
        self._is_control[list(self._text.control_ids)] = True
        self._plans: dict[Hashable, list[Plan]] = {}
        self._num_fitted: Counter[Hashable] = Counter()

    def documents(self, conversation: Conversation) -> list[Document]:
        """The documents that train the wanted turns of the conversation, each turn in exactly one of them.

        Raises:
            MaskError: the template does not render the conversation, or what is trained cannot be proven.
        """
        conversation = self._with_system_prompt(conversation)
        weights = self._weights(conversation)
        try:
            renditions = self._renditions(conversation, weights)
        except TemplateError:
            # Some templates need a content where only a tool is called.
            filled = _with_content(conversation)
            if filled is conversation:
                raise
            renditions = self._renditions(filled, weights)
        replies = frozenset(i for i, message in enumerate(conversation.messages) if message["role"] == "assistant")
        documents = [self._document(rendition, weights, replies) for rendition in renditions]
        self._keep_plans(conversation, weights, renditions, documents)
        return documents

    def encode(self, conversations: Sequence[Conversation]) -> list[list[Document] | MaskError]:
        """`documents` of many conversations, which is faster; a refused one gives its error in its place."""
        results: list[list[Document] | MaskError | None] = [None] * len(conversations)
        planned: list[tuple[int, Plan, str, list[tuple[int, int, int]], list[float]]] = []
        with time_limit(TIME_LIMIT_S):  # one for all: setting it takes longer than a rendering of the usual kind
            for index, conversation in enumerate(conversations):
                planned += [(index, *document) for document in self._fitted(conversation)]
        encodings = self._text.encode_batch([text for _, _, text, _, _ in planned])
        for (index, plan, _, spans, weights), encoding in zip(planned, encodings, strict=True):
            document = self._planned_document(plan, spans, weights, encoding)
            made = results[index]
            if document is None or isinstance(made, MaskError):
                results[index] = MaskError("")  # the slow way tells
            else:
                results[index] = [*(made or []), document]
        return [
            made if made is not None and not isinstance(made, MaskError) else self._documents_or_error(conversation)
            for made, conversation in zip(results, conversations, strict=True)
        ]

    def _keep_plans(
        self,
        conversation: Conversation,
        weights: Sequence[float],
        renditions: Sequence[Rendition],
        documents: Sequence[Document],
    ) -> None:
        """Remembers how conversations of this form are made; a form that is not made alike every time is left alone."""
        form = form_of(conversation, weights)
        if form is None or self.options.train_on == "all" or len(self._plans) >= MAX_FORMS:
            return
        found = []
        for rendition, document in zip(renditions, documents, strict=True):
            num_control_tokens = int(self._is_control[np.asarray(document.input_ids)].sum())
            plan = plan_of(rendition, conversation, document.notes, num_control_tokens)
            if plan is not None:
                found.append(plan)
        if len(found) < len(renditions) or self._plans.setdefault(form, found) != found:
            self._plans[form] = []

    def _documents_or_error(self, conversation: Conversation) -> list[Document] | MaskError:
        try:
            return self.documents(conversation)
        except MaskError as error:
            return error

    def _fitted(self, conversation: Conversation) -> list[tuple[Plan, str, list[tuple[int, int, int]], list[float]]]:
        """The conversation's documents by the plans of its form; none if it has to take the slow way."""
        conversation = self._with_system_prompt(conversation)
        weights = self._weights(conversation)
        form = form_of(conversation, weights)
        plans = self._plans.get(form)
        if form is None or not plans:
            return []
        self._num_fitted[form] += 1
        if self._num_fitted[form] % SAMPLE == 0:
            return []
        found = []
        for plan in plans:
            text, spans = plan.fill(conversation)
            try:
                rendered = self.template.render(conversation.messages[: plan.num_messages])
            except TemplateError:
                return []
            if rendered != text:
                return []
            found.append((plan, text, spans, weights))
        return found

    def _planned_document(
        self, plan: Plan, spans: Sequence[tuple[int, int, int]], weights: Sequence[float], encoding: Any
    ) -> Document | None:
        """The document, with the mask that the plan says; None if a token reaches over an edge or data made a control
        token."""
        ids = np.array(encoding.ids, dtype=np.int32)
        if int(self._is_control[ids].sum()) != plan.num_control_tokens:
            return None
        values = np.zeros(len(ids), dtype=np.float32)
        for start, end, message in spans:
            first, last = token_edge(encoding, start, len(ids)), token_edge(encoding, end, len(ids))
            if first is None or last is None:
                return None
            values[first:last] = weights[message]
            if last > first and self._is_control[ids[last - 1]]:
                self.stop_token_ids.add(int(ids[last - 1]))
        trained = values > 0
        if not trained[1:].any():
            return None
        is_weighted = any(weights[message] != 1.0 for _, _, message in spans)
        return Document(ids, trained, values if is_weighted else None, plan.notes)

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

    def _document(self, rendition: Rendition, weights: Sequence[float], replies: frozenset[int]) -> Document:
        tokens, notes = self._tokens(rendition, replies)
        values = token_weights(tokens.offsets, rendition, weights)
        trained = [value > 0 for value in values]
        if not any(trained[1:]):
            raise MaskError("no token of the conversation would be trained.")
        self._note_stops(tokens.ids, trained)
        return Document(
            tokens.ids,
            trained,
            values if any(value not in (0.0, 1.0) for value in values) else None,
            (*rendition.notes, *notes),
            turn_starts(tokens.offsets, rendition.origins),
        )

    def _tokens(self, rendition: Rendition, replies: frozenset[int]) -> tuple[Tokens, list[str]]:
        """The text's tokens, and what there is to know of how they were made."""
        notes = []
        if self.template.has_asked_for_date and self.options.template_date is None:
            notes.append("the template writes today's date; template_date pins it")
        text, origins = rendition.text, rendition.origins
        cut = rendition.prompt_length or 0
        tokens, num_escaped = Tokens([], []), 0
        for begin, end in ((0, cut), (cut, len(text))) if cut else ((0, len(text)),):
            as_text = self._text.control_strings_in_data(text[begin:end], origins[begin:end], replies)
            num_escaped += len(as_text)
            if as_text and self.options.special_tokens_in_data == "error":
                where, what = message_of(origins[begin + as_text[0].start()]), as_text[0].group()
                raise MaskError(
                    f"messages[{where}].content holds {what!r}; it must hold no control string with "
                    "special_tokens_in_data: error. Remove it, or take escape."
                )
            part = self._text.encode(text[begin:end], as_text)
            tokens.ids.extend(part.ids)
            tokens.offsets.extend((begin + first, begin + last) for first, last in part.offsets)
        if num_escaped:
            notes.append("control strings in data are kept as text")
        return tokens, notes

    def _note_stops(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        """Remembers which tokens ended a trained stretch."""
        ends = (
            index
            for index, flag in enumerate(trained)
            if flag and (index + 1 == len(trained) or not trained[index + 1])
        )
        self.stop_token_ids.update(ids[index] for index in ends if ids[index] in self._text.control_ids)


def _with_content(conversation: Conversation) -> Conversation:
    """The conversation with an empty content in messages without one."""
    if all(message.get("content") is not None for message in conversation.messages):
        return conversation
    filled = (
        {**message, "content": ""} if message.get("content") is None else message for message in conversation.messages
    )
    return replace(conversation, messages=tuple(filled))


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
