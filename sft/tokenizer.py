"""The tokenizer of a run, without torch: from a hub name, a folder, or a bare tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.config import ROOT, Args
from strict_settings import Problem, SettingsError

_TEMPLATES = ROOT / "sft" / "templates"


def build_tokenizer(args: Args) -> Any:
    """The tokenizer, with the chat template that the settings ask for.

    Raises:
        SettingsError: the tokenizer cannot be loaded, or its chat template not be read.
    """
    field = "tokenizer_name" if args.tokenizer_name else "model_name_or_path"
    name = args.tokenizer_name or args.model_name_or_path
    try:
        tokenizer = _loaded(str(name), args.trust_remote_code)
    except Exception as error:  # the library raises many kinds; its own words are the best there are
        raise cannot_load(field, name, error) from error
    if args.chat_template_path is not None:
        tokenizer.chat_template = _chat_template(args.chat_template_path)
    return tokenizer


def _chat_template(name: str) -> str:
    bundled = _TEMPLATES / f"{name}.jinja"  # from settings files it comes as a path already
    path = Path(name) if Path(name).exists() or not bundled.is_file() else bundled
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        rule = "be a text file in UTF-8 that can be read, or chatml"
        raise SettingsError(Problem("chat_template_path", name, rule, f"{reason}.")) from error


def _loaded(name: str, trust_remote_code: bool) -> Any:
    """What AutoTokenizer gives; it imports torch for the sake of model configs, seconds that plain folders need not."""
    folder = Path(name)
    if (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        if not (folder / "tokenizer_config.json").is_file():
            # A bare tokenizer.json names no class; every fast tokenizer can be loaded as the generic one.
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if _names_the_generic_class(folder):
            return PreTrainedTokenizerFast.from_pretrained(name)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def _names_the_generic_class(folder: Path) -> bool:
    """Whether nothing in the folder could make AutoTokenizer choose another class: no model, no code of its own."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    is_generic = config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return is_generic and "auto_map" not in config and not (folder / "config.json").exists()


def pad_token_id(tokenizer: Any) -> int:
    """Any valid id does: padding is masked by position, never by id, so that it may be the end-of-text token."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def stop_tokens(args: Args, tokenizer: Any) -> tuple[str, ...]:
    """The tokens at which the model's own generation settings stop; none where it has no such settings."""
    if args.model_name_or_path is None:
        return ()
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(args.model_name_or_path).eos_token_id
    except OSError:  # there is no generation_config.json
        return ()
    return tuple(token for token in tokenizer.convert_ids_to_tokens(listed(found)) if token is not None)


def listed(found: int | Sequence[int] | None) -> list[int]:
    """What transformers' settings write as one token id, as several, or not at all."""
    return [found] if isinstance(found, int) else list(found or [])


def cannot_load(field: str, value: Any, error: Exception) -> SettingsError:
    """The error for what transformers does not load, in its own words."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        reason = "It comes with code of its own. Once you have read that code, set trust_remote_code: true."
    elif field == "model_name_or_path" and re.search(r"connect|resolve|offline", str(error), re.IGNORECASE):
        reason += " Without a network take a folder that holds it; an estimate takes its configuration (model_config)."
    loadable = "be a hub name or a folder that transformers can load"
    rule = "be a config of a causal language model in transformers" if field == "model_config" else loadable
    return SettingsError(Problem(field, value, rule, reason))
