"""A conversation with a model: what is asked, what it answers, and the words that begin with a stroke."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

from sft.errors import DataError
from sft.formats import Conversation, Message
from sft.generation import Decoding, Generator
from sft.inspection import Inspected, pieces
from sft.masking import Masker, MaskError
from sft.painting import Brush, legend, painted, visible
from sft.values import check_text

HELP = """/system TEXT  the system prompt from now on; alone: shows it; /system none: none
/reset        begins anew, with the same system prompt
/mask         what of this conversation would be trained
/help         this
/quit         ends, as does the end of the input"""

_THOUGHTS = re.compile(r"(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)


class Chat:
    """One conversation. Everything that is said goes through `say`."""

    def __init__(
        self,
        generator: Generator,
        masker: Masker,
        decoding: Decoding,
        room: int,
        say: Callable[[str], None],
        brush: Brush,
    ) -> None:
        """
        Args:
            generator: the model.
            masker: with the template, and the system prompt to begin with.
            decoding: how tokens are chosen.
            room: tokens of a conversation.
            say: takes text as it comes.
            brush: for `/mask`.
        """
        self.messages: list[Message] = []
        self.system = masker.options.system_prompt
        self._generator = generator
        self._masker = masker
        self._decoding = decoding
        self._room = room
        self._say = say
        self._brush = brush

    def hear(self, line: str) -> bool:
        """Answers a line, or does what it says; False where it ends the conversation. What the template refuses is
        said, and the conversation is as it was."""
        try:
            check_text(line, "the line")
        except DataError:
            self._say("that line is not UTF-8; it is left out.\n")
            return True
        try:
            return self._heard(line.strip())
        except MaskError as error:
            self._say(f"{visible(str(error))}\n")
            return True

    def _heard(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if not word:
            return True
        if not word.startswith("/"):
            self._answer(line)
            return True
        actions: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/reset": lambda _: self.messages.clear(),
            "/mask": lambda _: self._show_mask(),
            "/help": lambda _: self._say(f"{HELP}\n"),
        }
        if word in actions:
            actions[word](rest.strip())
        elif word != "/quit":
            self._say(f"there is no {word}; /help tells what there is.\n")
        return word != "/quit"

    def _conversation(self) -> Conversation:
        return Conversation(tuple(self.messages), "this conversation")

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        try:
            _, prompt = self._masker.prompt(self._conversation())
        except MaskError:
            self.messages.pop()
            raise
        if len(prompt) + self._decoding.max_new_tokens > self._room:
            self.messages.pop()
            self._say(
                f"the conversation has {len(prompt):,} tokens, and the model has room for {self._room:,}, the answer's "
                f"{self._decoding.max_new_tokens:,} counted in. /reset begins anew.\n"
            )
            return
        told = _Told(self._masker, self._say)
        with contextlib.suppress(KeyboardInterrupt):  # the answer so far is the answer
            self._generator.stream(prompt, self._decoding, told, number=len(self.messages))
        self._say("\n")
        self.messages.append(_turn(told.text))

    def _set_system(self, text: str) -> None:
        if text:
            self.system = "" if text == "none" else text
            self._masker = self._masker.with_system_prompt(self.system)
        self._say(f"system prompt: {self.system or 'none'}\n")

    def _show_mask(self) -> None:
        if not any(message["role"] == "assistant" for message in self.messages):
            self._say("nothing has been answered yet.\n")
            return
        documents = self._masker.documents(self._conversation())
        self._say(f"{legend(self._brush)}\n")
        for number, document in enumerate(documents):
            everything = tuple(range(len(document)))
            view = Inspected(0, number, "this conversation", "messages", document, everything, None)
            self._say(f"{painted(view, pieces(view, self._masker), self._brush, is_full=True)}\n")


def _turn(text: str) -> dict[str, Any]:
    """An assistant's message, its thoughts apart, as templates take them."""
    found = _THOUGHTS.match(text)
    if found is None:
        return {"role": "assistant", "content": text.strip()}
    return {"role": "assistant", "content": found[2].strip(), "reasoning_content": found[1].strip()}


class _Told:
    """Says the text of tokens as soon as it is whole."""

    def __init__(self, masker: Masker, say: Callable[[str], None]) -> None:
        self.text = ""
        self._ids: list[int] = []
        self._masker = masker
        self._say = say

    def __call__(self, token: int) -> bool:
        self._ids.append(token)
        text = self._masker.decode(self._ids)
        if not text.endswith("\ufffd"):  # a character of which more bytes may follow
            self._say(visible(text[len(self.text) :]))
            self.text = text
        return False
