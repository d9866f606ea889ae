"""axolotl's `datasets` and chat templates → ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.migration.data import RAW_TEXT, Named, held_out_data, named, renamed, training_data
from sft.migration.mapping import Idle, Lost, Made, Taken, Theirs

_READ = ("path", "name", "split", "data_files", "type", "ds_type", "trust_remote_code")
_FIELDS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
}
_ALPACA = "its prompt is rendered by the chat template, without the words of `### Instruction:`"
_SPELLING = "turns have role and content, or from and value. Rename them in the data"
_READ_SO = "roles, reasoning and system messages are read as docs/data-formats.md has them"
_STOP = "the token that ends a trained turn is trained, no other"
_PARTS: Mapping[str, tuple[tuple[object, ...], str]] = {
    "message_field_role": (("role", "from"), _SPELLING),
    "message_field_content": (("content", "value"), _SPELLING),
    "train_on_eos": (("turn",), _STOP),
    "train_on_eot": (("turn",), _STOP),
    "message_field_training": (("train",), "a turn's own `train: false` is read. Rename it in the data"),
    "roles": ((), _READ_SO),
    "conversation": ((), "turns are rendered with one template for all data: chat_template_path"),
    "chat_template": (("tokenizer_default",), "there is one template for all data: chat_template_path"),
    "drop_system_message": ((False,), "system_prompt: '' removes system messages"),
    "split_thinking": ((False, True), _READ_SO),
    "field_thinking": (("reasoning_content", "reasoning", "thinking"), _READ_SO),
}
"""Key of a dataset → (values that mean what is done here, else why it is not carried over)."""
_OWN = "the tokenizer's own template is taken; `python -m sft inspect` shows what it renders"


def datasets(value: Any, _: Theirs) -> Taken:
    """Every dataset once in an epoch."""
    return training_data([_dataset(entry) for entry in _listed(value)], "datasets")


def held_out(value: Any, _: Theirs) -> Taken:
    """The first of them."""
    return held_out_data([_dataset(entry) for entry in _listed(value)], "test_datasets")


def chat_template(value: Any, theirs: Theirs) -> Taken:
    """`chatml` is bundled here too; other names stand for templates of axolotl's own."""
    name = str(value)
    if name == "chatml":
        return Made({"chat_template_path": "chatml"})
    if name == "jinja":
        return Made({}) if theirs.get("chat_template_jinja") else Lost("chat_template_jinja is missing")
    if name.startswith("tokenizer_default"):
        return Idle("the tokenizer's own template is the default")
    return Made({}, _OWN)


def template_file(value: Any, theirs: Theirs) -> Taken:
    """A file; the text of a template has no place in settings."""
    text = str(value)
    if "{" in text or "\n" in text:
        return Lost("write the template into a file, and name it: chat_template_path")
    return Made({"chat_template_path": text})


def _listed(value: Any) -> Sequence[Mapping[str, Any]]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, Mapping)]


def _dataset(entry: Mapping[str, Any]) -> Named:
    kind = entry.get("type")
    found = named(
        str(entry.get("path", "")),
        files=entry.get("data_files"),
        config=entry.get("name"),
        split=entry.get("split"),
    )
    found.columns = _columns(entry, kind, found)
    for name, value in entry.items():
        if name not in _READ and value is not None and (what := _of_part(name, value)) is not None:
            found.told.append((name, value, what))
    return found


def _columns(entry: Mapping[str, Any], kind: Any, found: Named) -> dict[str, str]:
    """Our columns → theirs, by the type of the dataset; what cannot be read is told."""
    if isinstance(kind, Mapping):
        for name in ("format", "no_input_format", "system_prompt", "system_format"):
            if kind.get(name):
                found.told.append((f"type.{name}", kind[name], Lost(_ALPACA)))
        return renamed({ours: kind.get(theirs) for theirs, ours in _FIELDS.items()})
    base = str(kind or "chat_template").partition(".")[0]
    if base in ("completion", "pretrain", "input_output", "stepwise_supervised"):
        found.told.append(("type", kind, Lost(RAW_TEXT)))
        found.sources = []
        return {}
    if base in ("chat_template", "sharegpt"):
        own = ("messages", "conversations")
        turns = entry.get("field_messages")
        return renamed({"messages": None if turns in own else turns, "tools": entry.get("field_tools")})
    if base.startswith("alpaca"):
        found.told.append(("type", kind, Made({}, _ALPACA)))
        return {}
    found.told.append(("type", kind, Lost("each row is read by its columns (docs/data-formats.md); look with inspect")))
    return {}


def _of_part(name: str, value: Any) -> Lost | Idle | None:
    """What becomes of one key of a dataset; None where it was read with the type."""
    if name in ("field_messages", "field_tools"):
        return None
    if name == "message_property_mappings":
        return _spelling(value)
    if name == "roles_to_train":
        return _roles_to_train(value)
    alike, reason = _PARTS.get(name, ((), "each row is read by its columns (docs/data-formats.md)"))
    return Idle("as here") if value in alike else Lost(reason)


def _spelling(value: Any) -> Lost | Idle:
    names = (value.get("role", "role"), value.get("content", "content")) if isinstance(value, Mapping) else ()
    if names in (("role", "content"), ("from", "value")):
        return Idle("turns are read in either spelling")
    return Lost(_SPELLING)


def _roles_to_train(value: Any) -> Lost | Idle:
    if set(value if isinstance(value, list) else [value]) <= {"assistant", "gpt", "model"}:
        return Idle("as here")
    return Lost("what the assistant says is trained; train_on: all trains every token")
