"""`python -m sft export`: a run's weights as a folder to hand on, proven to be what was trained."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import StorageError
from sft.model_subject import number_option
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.config import Args
    from sft.export_check import Proof
    from sft.trained_weights import TrainedWeights

DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(words)
    shard_bytes = int(number_option("max-shard-gb", options.max_shard_gb, low=1e-6) * 1e9)
    run = Path(options.run)
    folder = options.output or run.with_name(f"{run.resolve().name}-model")
    if folder.resolve() == run.resolve() or (folder.is_dir() and any(folder.iterdir())):
        remedy = "Name another folder with --output."
        raise SettingsError(Problem("--output", str(folder), "be a folder that is not there, or empty", remedy))
    if options.push:
        _require_pushable(options.push)
    elif options.public:
        raise SettingsError(Problem("--public", True, "come with --push", "Leave it out, or say where to with --push."))
    if options.push and not options.yes:
        _ask_for_consent(options.push, is_public=options.public)
    if options.check:
        return 0
    with _new(folder) as temporary:
        proof = _export(options, run, temporary, folder.name, shard_bytes)
    print(f"written: {folder}")
    if proof is not None:
        print(f"checked: loaded with transformers, {proof}; the chat template is that of the training to the byte")
    if (folder / "config.json").is_file():
        print("for GGUF: llama.cpp's convert_hf_to_gguf.py reads this folder")
    if options.push:
        _push(folder, options.push, is_public=options.public)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft export",
        description="Writes the model of a run, or of any of its checkpoints, without running it; and a model card.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: RUN-model, beside it")
    parser.add_argument(
        "--from", dest="source", metavar="WHICH", default="auto",
        help="final, newest, best or a checkpoint such as step-00000100 (default: final, or else newest)",
    )  # fmt: skip
    parser.add_argument("--merge", action="store_true", help="with LoRA: the whole model, the adapter added")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of a whole model (default: the run's)")
    parser.add_argument(
        "--max-shard-gb",
        metavar="N",
        default="5",
        help="of a weights file; a layer is never split (default %(default)s)",
    )
    parser.add_argument("--license", metavar="NAME", help="for the model card, such as apache-2.0")
    parser.add_argument("--no-check", action="store_true", help="do not load what was written and compare it")
    parser.add_argument("--check", action="store_true", help="check these words, and end")
    parser.add_argument("--push", metavar="NAME", help="upload to the Hugging Face hub, once you have agreed")
    parser.add_argument("--public", action="store_true", help="with --push: for everyone to see (default: private)")
    parser.add_argument("--yes", action="store_true", help="agree to --push here")
    return parser


@contextlib.contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A temporary folder beside it, which takes its place when the body ends well and disappears when it does not.

    Raises:
        StorageError: it cannot be made, or is not empty any more.
    """
    from sft.storage import publish, storage_errors

    target = folder.resolve()  # of a link, where it leads
    temporary = target.with_name(f".{target.name}.tmp")
    with storage_errors(folder, "--output"):
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with storage_errors(folder, "--output"):
            publish(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _export(options: argparse.Namespace, run: Path, folder: Path, name: str, shard_bytes: int) -> Proof | None:
    import torch

    from sft.export import export_adapter, export_whole
    from sft.model import require_mergeable
    from sft.trained_weights import run_arguments, weights_of
    from sft.world import World

    args = run_arguments(run)
    if args.lora.enabled and not options.merge:
        _refuse_for_adapters(options)
    if options.merge and not args.lora.enabled:
        raise SettingsError(Problem("--merge", True, "come with a run that trained an adapter", "Leave it out."))
    world = World(0, 0, 1, torch.device("cpu"))
    weights = weights_of(run, options.source, world)
    is_adapter = args.lora.enabled and not options.merge
    if options.merge:
        require_mergeable(weights.model, "--merge")
    dtype = torch.float32 if is_adapter else _dtype(options.dtype, weights.save_dtype)
    if is_adapter:
        export_adapter(weights, weights.tokenizer, folder, world)
    else:
        export_whole(weights, weights.tokenizer, folder, world, dtype, shard_bytes)
    proof = None if options.no_check else _proof(weights, folder, dtype, run, args, is_adapter=is_adapter)
    _write_card(weights, folder, name, run, args, options.license, proof)
    return proof


def _refuse_for_adapters(options: argparse.Namespace) -> None:
    for name in ("dtype", "max_shard_gb"):
        value = getattr(options, name)
        if value != _parser().get_default(name):
            remedy = "It is one file in float32; or add --merge, for the whole model."
            raise SettingsError(Problem(f"--{name.replace('_', '-')}", value, "be left out for an adapter", remedy))


def _dtype(name: str, default: Any) -> Any:
    import torch

    found = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return found.get(name, default)


def _proof(weights: TrainedWeights, folder: Path, dtype: Any, run: Path, args: Args, *, is_adapter: bool) -> Proof:
    import torch

    from sft.export_check import ROUNDED_TOLERANCE, TOLERANCE, probe_logits, prove
    from sft.trained_weights import base_model

    model = weights.model
    is_merged = args.lora.enabled and not is_adapter
    if is_merged:
        model = model.merge_and_unload()
    exact = probe_logits(model, torch.float32)
    expected = exact if dtype == torch.float32 else probe_logits(model, dtype)
    base = base_model(run, args, weights.tokenizer).model if is_adapter else None
    tolerance = ROUNDED_TOLERANCE if is_merged and dtype != torch.float32 else TOLERANCE
    template = weights.tokenizer.chat_template
    return prove(folder, expected, template, dtype, tolerance=tolerance, exact=exact, adapter_base=base)


def _write_card(
    weights: TrainedWeights,
    folder: Path,
    name: str,
    run: Path,
    args: Args,
    license_name: str | None,
    proof: Proof | None,
) -> None:
    from sft.model_card import Told, model_card
    from sft.run_files import data_of, evaluations_of, records_of
    from sft.storage import write_text

    card = model_card(
        name=name,
        args=args,
        told=Told(records_of(run), evaluations_of(run), data_of(run)),
        template=str(weights.tokenizer.chat_template),
        step=weights.step,
        license_name=license_name,
        proof=str(proof) if proof is not None else None,
        is_adapter=(folder / "adapter_config.json").is_file(),
    )
    if card.plot is not None:
        write_text(folder / "loss.svg", card.plot)
    write_text(folder / "README.md", card.text)


def _require_pushable(name: str) -> None:
    """
    Raises:
        SettingsError: it is no name on the hub, or nobody is logged in there.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    rule = "be a name on the hub, as owner/model"
    if name.count("/") != 1:
        raise SettingsError(Problem("--push", name, rule))
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingsError(Problem("--push", name, rule, f"{error}")) from error
    if get_token() is None:
        remedy = "Set HF_TOKEN, also in a `.env` of mode 0600, or run `hf auth login`."
        raise SettingsError(Problem("--push", name, "come with a token of the hub", remedy))


def _ask_for_consent(name: str, *, is_public: bool) -> None:
    """
    Raises:
        SettingsError: nobody agreed.
    """
    who = "everyone" if is_public else "those whom you let"
    if sys.stdin.isatty():
        print(f"The model goes to https://huggingface.co/{name}, for {who} to see. Type its name to agree:", flush=True)
        if sys.stdin.readline().strip() == name:
            return
    raise SettingsError(Problem("--push", name, "be agreed to", "Type its name when asked, or add --yes."))


def _push(folder: Path, name: str, *, is_public: bool) -> None:
    """
    Raises:
        SettingsError: there is such a repository, and others see it than was agreed to.
        StorageError: the hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(folder, name):
        api.create_repo(name, private=not is_public, exist_ok=True)
        is_private = bool(api.repo_info(name).private)  # one that was there stays as it was
    if is_private == is_public:
        agreed, found = ("public", "private") if is_public else ("private", "public")
        remedy = f"It is there and {found}; nothing was uploaded. Change that there, or name another. See {folder}."
        raise SettingsError(Problem("--push", name, f"be {agreed}, as was agreed to", remedy))
    with _hub_errors(folder, name):
        api.upload_folder(repo_id=name, folder_path=str(folder))
    print(f"uploaded: https://huggingface.co/{name}")


@contextlib.contextmanager
def _hub_errors(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises many kinds; its own words are the best there are
        raise StorageError(
            f"{name} cannot be uploaded: {str(error).rstrip('. ')}. The folder is at {folder}."
        ) from error
