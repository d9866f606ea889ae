"""What a run is: settings, data, chat template and tokenizer, which must be those of the checkpoint it goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config import Args
from sft.errors import ChangedError
from sft.masks.tokens import TokenizerParts
from strict_settings import Problem, SettingsError, with_suggestion

FOLLOW_FROM = {
    "rows_per_step": {"train_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"},
    "num_steps": {"max_steps", "num_train_epochs", "train_batch_size", "per_device_train_batch_size"},
}
"""What is compared → the settings that it follows from: who names one of those has named it."""
FOLLOW_FROM_DATA = ("num_documents", "num_steps")
"""Settings that change when the data does."""


@dataclass(frozen=True)
class Identity:
    """Of the run that is to go on, and which differences it accepts."""

    settings: Mapping[str, Any]
    hashes: Mapping[str, str]
    """sha256 of `data`, `chat_template` and `tokenizer`."""
    overrides: frozenset[str] = frozenset()
    """Keys of both that may differ (`resume_override`)."""
    accepts_data_change: bool = False
    """`accept_data_change`."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], content_hash: str | None, parts: TokenizerParts, args: Args) -> Identity:
        """
        Args:
            settings: what must be the same.
            content_hash: of the training data.
            parts: tokenizer and chat template.
            args: what may differ.
        """
        tokenizer = repr((parts.json, parts.added, parts.special_tokens))
        hashes = {
            "data": str(content_hash),
            "chat_template": hashlib.sha256(parts.template.encode()).hexdigest(),
            "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        }
        return cls(settings, hashes, frozenset(args.resume_override), args.accept_data_change)

    def to_json(self) -> dict[str, Any]:
        """As the manifest of a checkpoint has it."""
        return {"settings": dict(self.settings), "hashes": dict(self.hashes)}

    def check(self, path: Path, found: Mapping[str, Any]) -> list[str]:
        """
        Args:
            path: of the checkpoint.
            found: its `to_json`.

        Returns:
            The differences that were accepted, in words.

        Raises:
            SettingsError: settings differ, or `resume_override` names what is none; each is told with both values.
            ChangedError: data, template or tokenizer differ.
        """
        known: dict[str, Any] = json.loads(json.dumps({**self.settings, **self.hashes}))  # as the manifest has them
        # Any setting may be named: those that change neither the order of the data nor the course of learning are free.
        named = {*known, *(field.name for field in dataclasses.fields(Args))}
        if unknown := sorted(key for key in self.overrides if key.partition(".")[0] not in named):
            rule, remedy = "name settings of the trainer", with_suggestion(unknown[0], named)
            raise SettingsError(Problem("resume_override", unknown[0], rule, remedy))
        before = {**found.get("settings", {}), **found.get("hashes", {})}
        differing = {key: value for key, value in known.items() if before.get(key) != value}
        accepted = self.overrides | {key for key, of in FOLLOW_FROM.items() if self.overrides & of}
        if self.accepts_data_change and "data" in differing:
            accepted = accepted | {"data", *FOLLOW_FROM_DATA}
        refused = {key: value for key, value in differing.items() if key not in accepted}
        if changed := [key for key in refused if key in self.hashes]:
            raise ChangedError("\n".join(_told(path, key, before.get(key), known[key]) for key in changed))
        if refused:
            raise SettingsError([_problem(path, key, value, before.get(key)) for key, value in refused.items()])
        return [f"{key} was {before.get(key)!r} and is {value!r} from now on" for key, value in differing.items()]


def _problem(path: Path, key: str, value: Any, before: Any) -> Problem:
    remedy = (
        f"Resume with the same settings, accept the change with resume_override: [{key}], or start anew with "
        "resume_from_checkpoint: none or another output_dir."
    )
    return Problem(key, value, f"be {before!r}, as in {path}", remedy)


def _told(path: Path, key: str, before: Any, value: str) -> str:
    accept = "accept_data_change: true" if key == "data" else f"resume_override: [{key}]"
    return (
        f"{key} is {value}; it must be {before}, as in {path}: it has changed since. Bring back what it was, accept "
        f"the change with {accept}, or start anew with resume_from_checkpoint: none or another output_dir."
    )
