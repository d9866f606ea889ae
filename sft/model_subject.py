"""What `evaluate`, `optimize-prompt` and `chat` work on: a model with tokenizer, template and masks of its training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.arguments import PROMPT_FILE, load_args
from sft.config import Args
from sft.env_file import take_secrets
from sft.subject import setting_names, tell, tokenizer_with_template
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.masking import Masker

_OF_THE_RUN = (
    "train_on", "history", "prompt_mismatch", "special_tokens_in_data", "system_prompt", "template_kwargs",
    "template_date", "truncation", "max_length", "columns",
)  # fmt: skip
"""Settings that a model is looked at with as it was trained with, unless others are given."""


_DECODING: Mapping[str, dict[str, Any]] = {
    "max-new-tokens": {"low": 1, "whole": True},
    "temperature": {"low": 0},
    "top-p": {"low": 1e-6, "high": 1},
    "top-k": {"low": 0, "whole": True},
}
"""What `number_option` is told of the options that say how tokens are chosen."""


@dataclass(frozen=True)
class ModelSubject:
    """A model's name and what belongs to it; the weights are not loaded."""

    args: Args
    tokenizer: Any
    masker: Masker
    has_length: bool
    """Whether `max_length` was given, or is that of the training."""


def add_model_options(parser: argparse.ArgumentParser, temperature: str = "0") -> None:
    """The options that say how a model is asked; every setting of `Args` is an option beside them."""
    parser.add_argument("--prompt-file", metavar="FILE", help=f"system prompt; `none`: none (default {PROMPT_FILE})")
    parser.add_argument("--max-new-tokens", metavar="N", help="of an answer (default 512, or half of what there is)")
    parser.add_argument(
        "--temperature", metavar="T", default=temperature, help="0: the likeliest token (default %(default)s)"
    )
    parser.add_argument("--top-p", metavar="P", default="1", help="sample from the likeliest tokens of this share")
    parser.add_argument("--top-k", metavar="K", default="0", help="sample from so many likeliest tokens; 0: all")
    parser.epilog = (
        "Every setting of a run is an option too: --tokenizer_name, --chat_template_path, --system_prompt, --seed, "
        "--per_device_eval_batch_size, --param_dtype bfloat16, --columns '{prompt: ask, response: reply}'. A folder "
        "that was trained here is asked with the template settings of its training (arguments.json)."
    )


def model_subject(
    model: str, data: str, settings: Sequence[str], prompt_file: str | None, like: str | None = None
) -> ModelSubject:
    """What belongs to a model.

    Args:
        model: folder or hub name.
        data: that it is asked; `-` for none.
        settings: words that are settings of `Args`.
        prompt_file: of the command line.
        like: the model whose training says how rows are rendered; by default this one.

    Raises:
        SettingsError: settings that are wrong, or a tokenizer or chat template that cannot be loaded.
        DataError: the tokenizer has no template that masks can be made with.
    """
    from sft.run_masker import masker_of

    take_secrets()  # `evaluate` and `optimize-prompt` are scripts too, which torchrun starts
    given = setting_names(settings)
    args = load_args([*settings, f"--model_name_or_path={model}", f"--train_file={data}"])
    found = _trained_with(Path(like or model))
    chosen = {name: found[name] for name in _OF_THE_RUN if name in found and name not in given}
    if chosen:
        args = dataclasses.replace(args, **chosen)
    if "system_prompt" not in given and (prompt := _prompt(prompt_file)) is not None:
        args = dataclasses.replace(args, system_prompt=prompt)
    tokenizer = tokenizer_with_template(args)
    return ModelSubject(args, tokenizer, masker_of(args, tokenizer), "max_length" in given or "max_length" in chosen)


def _trained_with(folder: Path) -> dict[str, Any]:
    """The settings with which the model in a folder was trained; none for other folders."""
    try:
        found = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _prompt(file: str | None) -> str | None:
    """The system prompt of a file; None where there is none, or none is wanted."""
    if file == "none":
        return None
    path = Path(file) if file is not None else PROMPT_FILE
    if file is None and not path.is_file():
        return None
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(Problem("--prompt-file", str(path), "be a text file in UTF-8", f"{error}.")) from error
    tell(f"system prompt: that of {path} (--prompt-file none leaves it out)")
    return prompt


def check_decoding(options: argparse.Namespace) -> None:
    """Looks at how tokens are to be chosen while nothing is loaded; how long an answer may be is known only later.

    Raises:
        SettingsError: a value is none of its kind.
    """
    for name in _DECODING:
        if (text := getattr(options, name.replace("-", "_"))) is not None:
            decoding_number(name, text)


def decoding_number(name: str, text: str, **limits: float) -> float:
    """The value of one of the options that say how tokens are chosen; with closer limits than it always has.

    Raises:
        SettingsError: it is no such number.
    """
    return number_option(name, text, **{**_DECODING[name], **limits})


def number_option(name: str, text: str, *, low: float, high: float = float("inf"), whole: bool = False) -> float:
    """The value of an option.

    Raises:
        SettingsError: it is no such number.
    """
    try:
        value = float(int(text)) if whole else float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or math.isinf(value):
        rule = f"be a {'whole ' if whole else ''}number from {low:g}" + (f" to {high:g}" if high < 1e9 else "")
        raise SettingsError(Problem(f"--{name}", text, rule))
    return value
