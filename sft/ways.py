"""Every way of sharing a model out, as settings: what to write for each, and which do not go with the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sft.config import ROOT, Args
from sft.deepspeed_config import read_deepspeed_config
from sft.memory import Sharing

REPLICATED = "DDP"

_CHANGED = (
    "gradient_checkpointing", "gradient_checkpointing_every", "activation_offload", "fsdp", "fsdp_shard_size",
    "deepspeed",
)  # fmt: skip
"""What ways and checkpointing change of the settings, beside LoRA."""


@dataclass(frozen=True)
class Way:
    """One way of sharing a model out."""

    sharing: Sharing
    setting: str
    """What to write to get it: `fsdp: true`."""
    args: Args
    """The settings with it."""
    is_yours: bool
    """Whether the settings have it already."""
    refusal: str | None = None
    """What is wrong with the settings then, as they would be refused; None where all is well."""

    def variant(self, *, is_lora: bool, is_checkpointed: bool) -> Args:
        """The settings with it, with LoRA or not, with gradient checkpointing or not and all that belongs to it."""
        lora = replace(self.args.lora, enabled=is_lora)
        if is_checkpointed:
            return replace(self.args, lora=lora, gradient_checkpointing=True)
        plain = replace(self.args, gradient_checkpointing_every=1, activation_offload=False)
        return replace(plain, lora=lora, gradient_checkpointing=False)

    def changes(self, given: Args, wanted: Args) -> tuple[str, ...]:
        """What to write into the given settings to get the wanted ones, those of a `variant`: the way itself, and what
        has to be changed or taken back beside it."""
        lora = ["lora: {r: 16}"] if wanted.lora.enabled and not given.lora.enabled else []
        differing = [name for name in _CHANGED if getattr(wanted, name) != getattr(given, name)]
        beside = [f"{name}: {_word(getattr(wanted, name))}" for name in differing if name != _name(self.setting)]
        return (self.setting, *lora, *beside)


def ways(args: Args, world_size: int) -> Iterator[Way]:
    """Every way there is for these settings, the one that communicates least first; your own is among them."""
    given = args.deepspeed
    taken_back = "deepspeed: null" if given is not None else "fsdp: false" if args.fsdp else "the default"
    yield _way(args, Sharing(REPLICATED), taken_back, is_yours=given is None and not args.fsdp)
    names = ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
    if world_size == 1:  # nobody to share with: only offload helps
        names = ["zero2_offload", "zero3_offload"]
    for name in names:
        path = ROOT / "ds_configs" / f"{name}.json"
        config = read_deepspeed_config(path)
        is_yours = given is not None and read_deepspeed_config(given) == config
        setting, sharing = f"deepspeed: ds_configs/{name}.json", Sharing.of_deepspeed(_title(name), config)
        yield _way(args, sharing, setting, is_yours=is_yours, deepspeed=given if is_yours else str(path))
        if name == "zero2_offload":
            yield from _own(args, names)
    size = args.fsdp_shard_size
    is_grouped = size is not None and size < world_size
    if is_grouped:
        sharing = Sharing(f"FSDP by {size}", fsdp=True, shard_size=size)
        setting = f"fsdp: true, fsdp_shard_size: {size}"
        yield _way(args, sharing, setting, is_yours=args.fsdp, fsdp=True, shard_size=size)
    if world_size > 1 or args.fsdp:
        sharing, is_yours = Sharing("FSDP", fsdp=True), args.fsdp and not is_grouped
        yield _way(args, sharing, "fsdp: true", is_yours=is_yours, fsdp=True, shard_size=None if is_grouped else size)


def _own(args: Args, names: Sequence[str]) -> Iterator[Way]:
    """A settings file of the user's own."""
    if args.deepspeed is None:
        return
    config = read_deepspeed_config(args.deepspeed)
    bundled = [read_deepspeed_config(ROOT / "ds_configs" / f"{name}.json") for name in names]
    if config not in bundled:
        sharing, setting = Sharing.of_deepspeed("yours", config), f"deepspeed: {args.deepspeed}"
        yield _way(args, sharing, setting, is_yours=True, deepspeed=args.deepspeed)


def _way(
    args: Args,
    sharing: Sharing,
    setting: str,
    *,
    is_yours: bool,
    deepspeed: str | None = None,
    fsdp: bool = False,
    shard_size: int | None = None,
) -> Way:
    wanted = replace(args, deepspeed=deepspeed, fsdp=fsdp, fsdp_shard_size=shard_size)
    before = list(args.problems())
    refusal = next((str(problem) for problem in wanted.problems() if problem not in before), None)
    return Way(sharing, setting, wanted, is_yours, refusal)


def _title(name: str) -> str:
    return name.replace("zero", "ZeRO-").replace("_offload", " offload")


def _name(setting: str) -> str:
    return setting.partition(":")[0]


def _word(value: object) -> str:
    """As in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
