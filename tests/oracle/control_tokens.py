"""Tokenizers for templates that come as bare text: their control strings become tokens, as in the model they belong to.

A template alone does not say which of its strings are control tokens and which one ends a turn. Both are told from
its text and from what it renders, and for the few templates where that misleads, from what is known of the model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

ROOT = Path(__file__).resolve().parents[2]
BUNDLED_TOKENIZER = ROOT / "sft" / "quickstart" / "tokenizer" / "tokenizer.json"

CONTROL_STRING = re.compile(
    r"<\|[^<>|\s]{1,40}\|>"  # <|im_start|>
    r"|<｜[^<>｜\s]{1,40}｜>|｜DSML｜"  # DeepSeek
    r"|<\|[^<>|\s]{1,40}>|<[^<>|\s]{1,40}\|>"  # <|turn> … <turn|>
    r"|</?s>|<(?:bos|eos|sep|unk|sop|eop|BOS_TOKEN|EOS_TOKEN)>|\[gMASK\]"
    r"|<(?:start|end)_of_(?:turn|image|text)>|<seed:(?:bos|eos)>"
    r"|\[/?[A-Z]{3,}(?:_[A-Z]+)*\]"  # [INST], [/TOOL_RESULTS]
)
"""What models register as special tokens."""
MARKUP = re.compile(
    r"</?(?:seed:)?(?:think|tool_call|tool_calls|tool_response|arg_key|arg_value|function_call|tool_sep)>"
)
"""What models register as added tokens that are not special: they show in decoded text."""

BY_NEXT_MESSAGE = "the next message writes the stop token"

STOPS: dict[str, tuple[str, ...]] = {
    "Cohere2MoE": ("<|END_OF_TURN_TOKEN|>",),
    "CohereForAI": ("<|END_OF_TURN_TOKEN|>",),
    "GLM-": ("<|endoftext|>",),
    "openai-gpt-oss": ("<|return|>", "<|call|>"),
    "google-gemma-4": ("<turn|>", "<tool_call|>", "<|tool_response>"),
    "Apertus": ("<|assistant_end|>", "<|tools_suffix|>"),
    "Apriel-1.6": ("<|end|>",),
    "unsloth-Apriel-1.5": ("<|end|>", "</s>"),
    "meetkai-functionary": ("<|eot_id|>", "<|eom_id|>"),
    "fireworks-ai": ("<|eot_id|>",),
    "meta-llama": ("<|eot_id|>", "<|eom_id|>"),
    "MiroThinker": ("<|im_end|>",),
    "NousResearch": ("<|im_end|>",),
    "microsoft-Phi-3.5": ("<|end|>",),
}
"""Beginning of a template's name → the tokens that end a turn; known of these models, where the text misleads."""


def without_comments(template: str) -> str:
    """The template's text without Jinja's comments."""
    return re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)


def control_strings(template: str) -> list[str]:
    """The strings of the template's text that look like special tokens, in order of appearance."""
    return list(dict.fromkeys(CONTROL_STRING.findall(without_comments(template))))


def markup_strings(template: str) -> list[str]:
    """The strings of the template's text that look like added tokens which are not special."""
    return list(dict.fromkeys(MARKUP.findall(without_comments(template))))


@cache
def _backend(tokenizer_file: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_file))


def _declared(template: str) -> tuple[str, ...]:
    """The stop tokens that one of our own templates names: `{# stop: </s> #}`; `{# stop: none #}` for none."""
    found = re.search(r"\{#-?\s*stop:\s*(.*?)\s*-?#\}", template)
    return () if found is None else tuple(found[1].split())


def stop_strings(name: str, template: str) -> tuple[str, ...]:
    """The control strings that end an assistant's turn, the tokenizer's eos first."""
    if declared := _declared(template):
        return declared
    for beginning, stops in STOPS.items():
        if name.startswith(beginning):
            return stops
    found = _last_of_both_tails(template)
    return (found,) if found else ("</s>",)


def _last_of_both_tails(template: str) -> str | None:
    """The last control string that follows an answer both at the end of a conversation and within it."""
    talk = [("user", "qaone"), ("assistant", "ansone"), ("user", "qatwo"), ("assistant", "anstwo")]
    text = next(_renders(template, [{"role": role, "content": content} for role, content in talk]), None)
    if text is None or "ansone" not in text or "anstwo" not in text:
        return None
    inner = text.split("ansone")[-1].split("qatwo")[0]
    last = text.split("anstwo")[-1]
    length = next((i for i, (a, b) in enumerate(zip(inner, last, strict=False)) if a != b), min(len(inner), len(last)))
    for tail in (last[:length], last, inner):
        strings = CONTROL_STRING.findall(tail)
        if strings:
            return str(strings[-1] if tail != inner else strings[0])
    return None


def _renders(template: str, messages: list[dict[str, str]]) -> Iterator[str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            conversations=[messages], chat_template=template, bos_token="<s>", eos_token="</s>"
        )
        yield str(texts[0])
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return


def tokenizer_for(
    name: str, template: str, tokenizer_file: Path = BUNDLED_TOKENIZER, *, markup_is_special: bool = False
) -> Any:
    """A fast tokenizer with the template and its control strings as tokens.

    Args:
        name: the template's name, for what is known of its model.
        template: its text.
        tokenizer_file: the `tokenizer.json` to add to.
        markup_is_special: register `<think>` and the like as special tokens too.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    stops = stop_strings(name, template)
    eos = stops[0] if stops[0] != "none" else "<|endoftext|>"
    bos = "<s>" if "<s>" in template or "[INST]" in template else "<|startoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(_backend(tokenizer_file)), bos_token=bos, eos_token=eos
    )
    special = dict.fromkeys([*control_strings(template), *(stop for stop in stops if stop != "none")])
    markup = markup_strings(template)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special], special_tokens=True)
    tokenizer.add_tokens(
        [AddedToken(text, special=markup_is_special, normalized=False) for text in markup],
        special_tokens=markup_is_special,
    )
    tokenizer.chat_template = template
    return tokenizer
