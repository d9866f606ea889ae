"""Text → token ids, exactly as the tokenizer's own, with control strings in data kept as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from sft.errors import MaskError
from sft.masks.control import ControlTokens
from sft.masks.origins import is_data, message_of

_FIRST_STAND_IN = 0x10F000
"""Stand-ins for control tokens are characters of a private-use plane, one for each."""

CharacterSpan = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """Token ids, and the characters of the text that each covers."""

    ids: list[int]
    offsets: list[CharacterSpan]


@dataclass(frozen=True)
class TokenizerParts:
    """What a mask needs of a tokenizer: plain values, which other processes can be given and a cache be keyed by."""

    json: str
    """The whole tokenizer, as `tokenizer.json` has it."""
    added: tuple[tuple[str, int, bool], ...]
    """(text, id, whether it is special) of each added token."""
    special_tokens: tuple[tuple[str, str], ...]
    """Role (`bos_token`, …) → text, as chat templates see them."""
    template: str
    """Its chat template."""

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerParts:
        """
        Args:
            tokenizer: a fast tokenizer of transformers with a chat template.

        Raises:
            MaskError: the tokenizer has no chat template or several, or is a slow one, which does not tell where a
                token stands.
        """
        template = tokenizer.chat_template
        if not template:
            remedy = "Give one with chat_template_path, for example chatml."
            raise MaskError(f"the tokenizer has no chat template. {remedy}")
        if not isinstance(template, str):
            names = ", ".join(template)
            raise MaskError(f"the tokenizer has several chat templates ({names}). Choose one with chat_template_path.")
        if not tokenizer.is_fast:
            raise MaskError("the tokenizer is a slow one; a fast tokenizer (tokenizer.json) is needed.")
        specials = set(tokenizer.all_special_tokens)
        added = tuple(
            (token.content, token_id, token.special or token.content in specials)
            for token_id, token in tokenizer.added_tokens_decoder.items()
        )
        roles = {role: text for role, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        return cls(tokenizer.backend_tokenizer.to_str(), added, tuple(roles.items()), template)


class TextTokenizer:
    """Turns rendered text into ids."""

    def __init__(self, parts: TokenizerParts, more_ends: Sequence[str] = ()) -> None:
        """
        Args:
            parts: of the tokenizer. Control tokens of the template's count as such even where the tokenizer does not
                say that they are special.
            more_ends: tokens that end a turn beside the tokenizer's end-of-text token.
        """
        self.backend = tokenizers.Tokenizer.from_str(parts.json)
        self.backend.no_truncation()
        self.backend.no_padding()
        self._added = {text: token_id for text, token_id, _ in parts.added}
        control = {
            text for text, _, is_special in parts.added if is_special or (text in parts.template and not text.isspace())
        }
        roles = dict(parts.special_tokens)
        self.control = _control_tokens(control, set(roles.values()), {roles.get("eos_token", ""), *more_ends})
        self.control_ids = frozenset(self._added[text] for text in control)
        self.vocabulary_size = max([self.backend.get_vocab_size(with_added_tokens=True) - 1, *self._added.values()]) + 1
        self._escaping: tuple[tokenizers.Tokenizer, dict[int, int]] | None = None

    def encode(self, text: str, as_text: Sequence[re.Match[str]] = ()) -> Tokens:
        """The ids that `tokenizer(text, add_special_tokens=False)` gives.

        Args:
            text: rendered text.
            as_text: control strings in it that are data, and stay text.

        Raises:
            MaskError: they cannot be kept as text.
        """
        if as_text:
            return self._encode_escaped(text, as_text)
        encoding = self.backend.encode(text, add_special_tokens=False)
        return Tokens(encoding.ids, encoding.offsets)

    def encode_batch(self, texts: Sequence[str], *, with_offsets: bool) -> list[Any]:
        """`tokenizers` encodings of many texts, whose control strings are all meant. Without offsets it is faster."""
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        return list(encode(texts, add_special_tokens=False))

    def control_strings_in_data(self, text: str, origins: str, replies: frozenset[int]) -> list[re.Match[str]]:
        """Where data holds what would become a control token; tags are at home in what an assistant says.

        Args:
            text: the rendered text.
            origins: where its characters come from.
            replies: the messages that are an assistant's.
        """
        found = []
        for match in self.control.pattern.finditer(text):
            codes = [code for code in origins[match.start() : match.end()] if is_data(code)]
            is_tag = match.group() in self.control.tags and all(message_of(code) in replies for code in codes)
            if codes and not is_tag:
                found.append(match)
        return found

    def _encode_escaped(self, text: str, as_text: Sequence[re.Match[str]]) -> Tokens:
        """The ids with some control strings kept as text.

        The control tokens that are meant are replaced by stand-ins, which a copy of the tokenizer knows instead of
        them: so everything else is tokenized in the very context that it has in the text.

        Raises:
            MaskError: the tokenizer makes a control token of the string by other means too.
        """
        backend, real_ids = self._escaping_backend()
        if any(ord(character) >= _FIRST_STAND_IN for character in text):
            raise MaskError("the text holds control strings and characters of the last private-use plane.")
        kept = {match.start() for match in as_text}
        pieces: list[str] = []
        starts: list[int] = []  # for each character of the new text, where it stands in the old one
        position = 0
        for match in self.control.pattern.finditer(text):
            if match.start() in kept:
                continue
            pieces += [text[position : match.start()], self._stand_in(match.group())]
            starts += [*range(position, match.start()), match.start()]
            position = match.end()
        pieces.append(text[position:])
        starts += [*range(position, len(text)), len(text)]
        encoding = backend.encode("".join(pieces), add_special_tokens=False)
        ids = [real_ids.get(token_id, token_id) for token_id in encoding.ids]
        # A stand-in's end is where the next character begins.
        offsets = [(starts[start], starts[end]) for start, end in encoding.offsets]
        for token_id, (start, _) in zip(encoding.ids, offsets, strict=True):
            if token_id in self.control_ids and start in kept:
                raise MaskError("the tokenizer makes a control token of a control string that is to stay text.")
        return Tokens(ids, offsets)

    def _stand_in(self, text: str) -> str:
        return chr(_FIRST_STAND_IN + self._order[text])

    def _escaping_backend(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """A copy of the tokenizer with stand-ins for the control tokens, and its ids of them → the true ones."""
        if self._escaping is None:
            spec = json.loads(self.backend.to_str())
            self._order: dict[str, int] = {}
            for token in spec["added_tokens"]:
                if self._added.get(token["content"]) in self.control_ids:
                    self._order[token["content"]] = len(self._order)
                    token["content"] = self._stand_in(token["content"])
            spec["post_processor"] = None
            backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
            real_ids = {int(backend.token_to_id(self._stand_in(text)) or 0): self._added[text] for text in self._order}
            self._escaping = backend, real_ids
        return self._escaping


def _control_tokens(texts: set[str], frame: set[str], ends: set[str]) -> ControlTokens:
    ordered = sorted((text for text in texts if text), key=len, reverse=True)
    # A pattern that never matches, for tokenizers without control tokens.
    pattern = re.compile("|".join(map(re.escape, ordered)) or "(?!)")
    tags = {
        text
        for text in texts - frame - {"<s>", "</s>"}
        if re.fullmatch(r"</[\w:-]+>", text) or (re.fullmatch(r"<[\w:-]+>", text) and text.replace("<", "</") in texts)
    }
    return ControlTokens(pattern, frozenset(ends & texts), frozenset(tags))
