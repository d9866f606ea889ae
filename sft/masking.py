"""Conversation + chat template → token ids, and for each token whether it is trained.

The ids are those of `tokenizer.apply_chat_template` on the same conversation. A token is trained if the model would
have to write it: what the assistant said, thought and called, and the token that ends its turn. Nothing is guessed:
where it stands is proven (`sft/masks/turns.py`), or the conversation is refused with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sft.documents import Document
from sft.errors import MaskError
from sft.formats import Conversation, with_contents, with_system_prompt
from sft.mask_options import MaskOptions
from sft.masks.origins import message_of
from sft.masks.plans import SAMPLE, Filled, Plan, anchors_of, form_of, plan_of
from sft.masks.sandbox import TIME_LIMIT_S, TemplateError, time_limit
from sft.masks.template import ChatTemplate
from sft.masks.token_spans import joins_prompt, token_edge, token_weights, turn_positions, turn_starts, user_turns
from sft.masks.tokens import TextTokenizer, TokenizerParts, Tokens
from sft.masks.turns import Rendition, Turns, everything, generation_prompt

__all__ = ["Document", "MaskError", "MaskOptions", "Masker"]


ESCAPED = "control strings in data are kept as text"
JOINED = "a token joins the end of the prompt and the turn, which are tokenized apart at inference"
MAX_FORMS = 4096
"""So many forms of conversations are remembered."""


@dataclass(frozen=True)
class _Planned:
    """A document of a conversation in a batch, before it is tokenized."""

    index: int
    filled: Filled
    weights: Sequence[float]
    with_offsets: bool


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
            tokenizer: a fast tokenizer of transformers with a chat template, or its `TokenizerParts`.
            pad_token_id: what batches of its documents are filled up with.
            options: what is trained, and how.
            stop_tokens: tokens that end a turn for the model, beside the tokenizer's end-of-text token.

        Raises:
            MaskError: the tokenizer has no chat template or is a slow one, which does not tell where a token stands; or
                the template goes over the limits even for a short conversation.
        """
        self.parts = tokenizer if isinstance(tokenizer, TokenizerParts) else TokenizerParts.of(tokenizer)
        self.stop_tokens = tuple(stop_tokens)
        self.pad_token_id = pad_token_id
        self.options = options or MaskOptions()
        self.stop_token_ids: set[int] = set()
        """The tokens that ended a trained turn so far: where `generate` must stop."""
        variables = {**dict(self.parts.special_tokens), **self.options.template_kwargs}
        self.template = ChatTemplate(self.parts.template, variables, self.options.template_date)
        self._text = TextTokenizer(self.parts, stop_tokens)
        self._turns = Turns(self.template, self._text.control)
        self._is_control = np.zeros(self._text.vocabulary_size, dtype=bool)
        self._is_control[list(self._text.control_ids)] = True
        self._plans: dict[Hashable, list[Plan]] = {}
        self._seen_forms: set[Hashable] = set()
        self._num_fitted: Counter[Hashable] = Counter()

    def __reduce__(self) -> tuple[type[Masker], tuple[Any, ...]]:
        """Other processes make it anew from plain values."""
        return Masker, (self.parts, self.pad_token_id, self.options, self.stop_tokens)

    def with_system_prompt(self, prompt: str) -> Masker:
        """The same with another system prompt."""
        return Masker(self.parts, self.pad_token_id, replace(self.options, system_prompt=prompt), self.stop_tokens)

    @property
    def vocabulary_size(self) -> int:
        """One more than the greatest token id."""
        return self._text.vocabulary_size

    def is_control(self, token_id: int) -> bool:
        """Whether a token is a control token."""
        return bool(self._is_control[token_id])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, control tokens included."""
        return str(self._text.backend.decode(list(token_ids), skip_special_tokens=False))

    def documents(self, conversation: Conversation) -> list[Document]:
        """The documents that train the wanted turns of the conversation, each turn in exactly one of them.

        Raises:
            MaskError: the template does not render the conversation, or what is trained cannot be proven.
        """
        conversation = with_system_prompt(conversation, self.options.system_prompt)
        weights = self._weights(conversation)
        try:
            renditions = self._renditions(conversation, weights)
        except TemplateError:
            # Some templates need a content where only a tool is called.
            filled = with_contents(conversation)
            if filled is conversation:
                raise
            renditions = self._renditions(filled, weights)
        replies = frozenset(i for i, message in enumerate(conversation.messages) if message["role"] == "assistant")
        users = user_turns(conversation) if self.options.truncation == "left" else []
        tokenized = [self._tokens(rendition, replies) for rendition in renditions]
        documents = [
            self._document(rendition, *made, weights, users)
            for rendition, made in zip(renditions, tokenized, strict=True)
        ]
        self._keep_plans(conversation, weights, renditions, [tokens for tokens, _ in tokenized], documents)
        return documents

    def prompt(self, conversation: Conversation) -> tuple[str, list[int]]:
        """(text, token ids) of what the model is given to go on from after these messages, as at inference.

        Raises:
            MaskError: the template does not render them, or data holds a control string where that is refused.
        """
        conversation = with_system_prompt(conversation, self.options.system_prompt)
        try:
            rendition = generation_prompt(self.template, conversation)
        except TemplateError:
            rendition = generation_prompt(self.template, with_contents(conversation))
        replies = frozenset(i for i, message in enumerate(conversation.messages) if message["role"] == "assistant")
        tokens, _ = self._tokens(rendition, replies)
        return rendition.text, list(tokens.ids)

    def encode(self, conversations: Sequence[Conversation]) -> list[list[Document] | MaskError]:
        """`documents` of many conversations, which is faster; a refused one gives its error in its place."""
        results: list[list[Document] | MaskError | None] = [None] * len(conversations)
        planned: list[_Planned] = []
        # The first of each form is proven at once, so that the rest of the batch finds its plan.
        for index, conversation in enumerate(conversations):
            form = form_of(conversation, self._weights(conversation))
            if form is not None and form not in self._seen_forms:
                self._seen_forms.add(form)
                results[index] = self._documents_or_error(conversation)
        with time_limit(TIME_LIMIT_S):  # one for all: setting it takes longer than a rendering of the usual kind
            for index, conversation in enumerate(conversations):
                if results[index] is not None:
                    continue
                fitting, weights = self._filled(conversation)
                with_offsets = any(self._needs_offsets(filled.plan) for filled in fitting)
                planned += [_Planned(index, filled, weights, with_offsets) for filled in fitting]
        for one, encoding in self._encoded(planned):
            index, document = one.index, self._planned_document(one, encoding)
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
        tokenized: Sequence[Tokens],
        documents: Sequence[Document],
    ) -> None:
        """Remembers how conversations of this form are made; a form that is not made alike every time is left alone."""
        form = form_of(conversation, weights)
        if form is None or self.options.train_on == "all" or len(self._plans) >= MAX_FORMS:
            return
        if any(note in document.notes for note in (ESCAPED, JOINED) for document in documents):
            return  # an exception: the next of its form is as good a model
        found = []
        for rendition, tokens, document in zip(renditions, tokenized, documents, strict=True):
            turns = turn_positions(rendition.origins, user_turns(conversation))
            num_control_tokens = int(self._is_control[np.asarray(document.input_ids)].sum())
            anchors = anchors_of(tokens, self._is_control, [(s.start, s.end) for s in rendition.spans])
            plan = plan_of(rendition, conversation, turns, document.notes, anchors, num_control_tokens)
            if plan is not None:
                found.append(plan)
        if len(found) < len(renditions) or self._plans.setdefault(form, found) != found:
            self._plans[form] = []

    def _documents_or_error(self, conversation: Conversation) -> list[Document] | MaskError:
        try:
            return self.documents(conversation)
        except MaskError as error:
            return error

    def _filled(self, conversation: Conversation) -> tuple[list[Filled], list[float]]:
        """The conversation in the plans of its form, and its messages' weights; no plan if it takes the slow way."""
        conversation = with_system_prompt(conversation, self.options.system_prompt)
        weights = self._weights(conversation)
        form = form_of(conversation, weights)
        plans = self._plans.get(form)
        if form is None or not plans:
            return [], weights
        self._num_fitted[form] += 1
        if self._num_fitted[form] % SAMPLE == 0:
            return [], weights
        found = [plan.fill(conversation) for plan in plans]
        try:
            rendered = [self.template.render(conversation.messages[: plan.num_messages]) for plan in plans]
        except TemplateError:
            return [], weights
        return (found if rendered == [filled.text for filled in found] else []), weights

    def _encoded(self, planned: Sequence[_Planned]) -> Iterator[tuple[_Planned, Any]]:
        """Each with its encoding; offsets are computed only where the plan needs them."""
        for with_offsets in (False, True):
            some = [one for one in planned if one.with_offsets == with_offsets]
            texts = [one.filled.text for one in some]
            yield from zip(some, self._text.encode_batch(texts, with_offsets=with_offsets), strict=True)

    def _needs_offsets(self, plan: Plan) -> bool:
        return not plan.anchors or self.options.truncation == "left"

    def _planned_document(self, planned: _Planned, encoding: Any) -> Document | None:
        """The document, with the mask that the plan says; None if a token reaches over an edge or data made a control
        token."""
        filled, weights = planned.filled, planned.weights
        listed = encoding.ids
        ids = np.array(listed, dtype=np.int32)
        controls = np.flatnonzero(self._is_control[ids])
        if len(controls) != filled.plan.num_control_tokens:
            return None
        if planned.with_offsets:
            edges = [token_edge(encoding, at, len(ids)) for start, end, _ in filled.spans for at in (start, end)]
        else:
            edges = [edge for anchor in filled.plan.anchors for edge in anchor.edges(listed, controls)]
        if None in edges:
            return None
        values = np.zeros(len(ids), dtype=np.float32)
        for (_, _, message), first, last in zip(filled.spans, edges[::2], edges[1::2], strict=True):
            assert first is not None
            assert last is not None
            values[first:last] = weights[message]
            if last > first and self._is_control[ids[last - 1]]:
                self.stop_token_ids.add(int(ids[last - 1]))
        trained = values > 0
        if not trained[1:].any():
            return None
        is_weighted = any(weights[message] != 1.0 for _, _, message in filled.spans)
        starts: list[int] = []
        if self.options.truncation == "left":
            found = [token_edge(encoding, position, len(ids)) for position in filled.turns]
            if None in found:
                return None
            starts = [token for token in found if token is not None]
        return Document(ids, trained, values if is_weighted else None, filled.plan.notes, tuple(starts))

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
            return [everything(self.template, conversation)]
        if not wanted:
            raise MaskError("no turn of the conversation is to be trained.")
        return self._turns.renditions(
            conversation,
            wanted,
            exact_history=self.options.history == "exact",
            mismatch=self.options.prompt_mismatch,
        )

    def _document(
        self,
        rendition: Rendition,
        tokens: Tokens,
        notes: Sequence[str],
        weights: Sequence[float],
        users: Sequence[int],
    ) -> Document:
        values = token_weights(tokens.offsets, rendition, weights)
        trained = [value > 0 for value in values]
        if not any(trained[1:]):
            raise MaskError("no token of the conversation would be trained.")
        self._note_stops(tokens.ids, trained)
        if joins_prompt(tokens.offsets, rendition):
            notes = [*notes, JOINED]
        return Document(
            tokens.ids,
            trained,
            values if any(value not in (0.0, 1.0) for value in values) else None,
            (*rendition.notes, *notes),
            turn_starts(tokens.offsets, turn_positions(rendition.origins, users)) if users else (),
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
            notes.append(ESCAPED)
        return tokens, notes

    def _note_stops(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        """Remembers which tokens ended a trained stretch."""
        ends = (
            index
            for index, flag in enumerate(trained)
            if flag and (index + 1 == len(trained) or not trained[index + 1])
        )
        self.stop_token_ids.update(ids[index] for index in ends if ids[index] in self._text.control_ids)
