"""The training script: `torchrun … sft/train.py --config run.yaml`, `deepspeed …`, `python -m launch submit` or alone.

Builds everything in the order in which it depends on each other, then calls the loop. Heavy libraries are imported
after the settings have been checked: a typing mistake is told in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Started by its path, Python would look for modules beside this file, where `config` or `loop` would shadow others.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from node_board.standard_output import tolerate_full_disks
from sft.arguments import checked, describe_settings, load_args, naming_places, read_settings
from sft.config import LAUNCHER_OPTIONS, Args
from sft.env_file import take_secrets
from sft.errors import LostPeerError, SftError
from sft.fence import Holder, ended_jobs, refuse_if_held
from sft.heartbeat import Heartbeat
from sft.process_end import leave
from strict_settings import SettingsError, Source

if TYPE_CHECKING:
    from sft.dataset import ConversationDataset
    from sft.engine import Engine
    from sft.fence import Fence
    from sft.masking import Masker
    from sft.model import BuiltModel
    from sft.tracking import Tracker
    from sft.world import World

USAGE = """usage: sft/train.py [--config RUN.yaml] [--NAME VALUE …] [--check] [--help]

Trains a causal language model on conversations. Settings come from the YAML file; options override it.
--check validates the settings and ends. SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 save and stop; a second one ends at once.
Exit codes: 0 done, 2 settings, 3 data, 10 stopped and saved, 11 another rank is gone, 13 storage, 14 checkpoint,
15 loss or gradient not finite, 16 output_dir held by another process or data changed, 1 anything else.
"""


def main(words: Sequence[str], *, owns_process: bool = False) -> int:
    """The command line; returns the exit code.

    Args:
        words: the options.
        owns_process: this process is there for the run alone: it heeds signals, ends where a rank is lost, and goes on
            where nothing can be printed, for lack of space.
    """
    if owns_process:
        tolerate_full_disks()
    words = [word for word in words if word.partition("=")[0] not in LAUNCHER_OPTIONS]
    if "--help" in words or "-h" in words:
        print(f"{USAGE}\n{describe_settings()}")
        return 0
    check_only = "--check" in words
    try:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        sources = read_settings([word for word in words if word != "--check"])
        args = checked(sources, world_size=world_size)
        if not check_only:
            if os.environ.get("RANK", "0") == "0":  # in a tenth of a second: `train_with` looks again
                holder = Holder.this_process(os.environ)
                refuse_if_held(Path(args.output_dir), holder, ended_jobs=ended_jobs(os.environ))
            return _run(args, sources) if owns_process else _train(args, sources, Heartbeat.from_env(os.environ))
    except (SettingsError, SftError) as error:
        return _told(error)
    return 0


def _train(args: Args, sources: Sequence[Source], heartbeat: Heartbeat) -> int:
    from sft.faults import install
    from sft.train_imports import import_libraries

    install(os.environ)
    import_libraries()
    with naming_places(sources):
        train_with(args, heartbeat)
    return 0


def _run(args: Args, sources: Sequence[Source]) -> int:
    """Trains, and heeds signals meanwhile; the exit code."""
    heartbeat = Heartbeat.from_env(os.environ)
    heartbeat.listen()
    try:
        return _train(args, sources, heartbeat)
    except (SettingsError, SftError) as error:
        heartbeat.tell_reason(error.reason if isinstance(error, SftError) else "")
        return _told(error)
    except Exception as error:
        import traceback

        from sft.world import is_lost_peer

        if not is_lost_peer(error):
            raise
        traceback.print_exc()
        # At once: to take the process group down can abort, or wait for the rank that is gone.
        code = _told(LostPeerError(f"another rank is gone: {error}"))
        sys.stdout.flush()
        os._exit(code)
    finally:
        heartbeat.close()


def _told(error: SettingsError | SftError) -> int:
    # On every rank: each has a log of its own, and any of them may be the one that is looked at.
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def run_training(config: str | Path | None = None, **overrides: Any) -> Path:
    """Trains by a settings file; returns the folder of the final model.

    Args:
        config: path of the YAML file.
        overrides: settings that win over the file, by their names in `Args`.

    Raises:
        SettingsError: the settings are wrong; nothing was loaded.
        SftError: the run ended for a reason that has an exit code of its own.
    """
    words = [f"--{name}={_word(value)}" for name, value in overrides.items()]
    args = load_args(words, config=config)
    train_with(args)
    return Path(args.output_dir)


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def train_with(args: Args, heartbeat: Heartbeat | None = None) -> None:
    """Trains by validated settings. In a distributed run every rank calls it.

    Args:
        args: the settings.
        heartbeat: hears that the run is to stop; by default what the launcher's board says, and no signals.
    """
    from sft.allocator import keep_freed_memory
    from sft.world import world_from_env

    take_secrets()
    needs_group = args.deepspeed is not None or args.fsdp
    heartbeat = heartbeat or Heartbeat.from_env(os.environ)
    size = args.sequence_parallel_size
    with world_from_env(
        args.ddp_timeout, always_group=needs_group, sequence_parallel_size=size, heartbeat=heartbeat
    ) as world:
        if world.device.type == "cpu":
            keep_freed_memory(os.environ)
        train_in_world(args, world)


def train_in_world(args: Args, world: World) -> None:
    """The whole run in a process group that is there already."""
    from sft.device_check import refuse_what_is_not_here
    from sft.output_dir import held_output_dir

    refuse_what_is_not_here(args, world.device)
    with held_output_dir(Path(args.output_dir), os.environ, world) as (output_dir, fence):
        _train_into(output_dir, fence, args, world)


def _train_into(output_dir: Path, fence: Fence | None, args: Args, world: World) -> None:
    from sft.data_figures import keep_data_figures
    from sft.export import export_model
    from sft.history import History
    from sft.identity import Identity
    from sft.loop import Training, train
    from sft.plan import Plan
    from sft.resuming import checkpoints_of, resumed
    from sft.run_masker import masker_of
    from sft.run_summary import rank_figures, summary
    from sft.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(args)
    masker = masker_of(args, tokenizer)
    world.heartbeat.beat("data", 0)
    train_data = _dataset(args.train_sources, args.max_train_samples, masker, args, world)
    eval_data = _dataset({args.eval_file: 1.0}, args.max_eval_samples, masker, args, world) if args.eval_file else None
    plan = Plan.of(args, len(train_data), world.size, train_data.lengths)
    check = fence.check if fence is not None else (lambda: None)
    world.heartbeat.beat("start", 0)
    with _own_cores(world):
        built, engine = build_engine(args, tokenizer, sorted(train_data.stop_token_ids), output_dir, world)
        history = History(
            output_dir,
            plan.num_steps,
            is_main=world.is_main,
            tensorboard="none" not in args.reports,
            check=check,
            tracker=_tracker(args, output_dir),
        )
        identity = Identity.of(plan.settings(args), train_data.content_hash, masker.parts, args)
        checkpoints = checkpoints_of(output_dir, fence, identity, history, args, plan, world)
        state = resumed(checkpoints, engine, output_dir, args, plan, world)
        with history, closing(checkpoints):
            history.start(state.step)
            if world.is_main:
                keep_data_figures(output_dir, train_data, eval_data, check)
            state = train(Training(engine, train_data, eval_data, args, plan, world, history, checkpoints), state)
            world.heartbeat.beat("end", state.step)
            ranks = rank_figures(engine.timer, world)
            checkpoints.finish()
            if args.load_best_model_at_end:
                checkpoints.load_best(state, engine)
            checkpoints.require_fence()
            export_model(engine, tokenizer, output_dir, world, built.save_dtype, merge_adapters=args.lora.merge)
            history.log_summary(summary(state, history.records, ranks, world))
    world.barrier()
    _say(world, f"model: {output_dir}")


@contextmanager
def _own_cores(world: World) -> Iterator[None]:
    """This rank's share of the CPUs that it computes on. Not for the data: the rank that encodes uses them all."""
    if world.size == 1 or world.device.type != "cpu":
        yield
        return
    import torch

    from sft.core_binding import own_cores, place_among_ranks

    before = torch.get_num_threads()
    if not os.environ.get("OMP_NUM_THREADS"):  # as under `deepspeed`: every rank would have a thread for every core
        torch.set_num_threads(max(1, before // place_among_ranks(os.environ)[1]))
    try:
        with own_cores(os.environ, torch.get_num_threads()) as cpus:
            if cpus is not None:
                _say(world, f"each rank of a node keeps to its share of the CPUs; rank 0 to {len(cpus)}")
            yield
    finally:
        torch.set_num_threads(before)


def _tracker(args: Args, output_dir: Path) -> Callable[[], Tracker] | None:
    """What makes the trackers of the settings; it is asked on rank 0 alone."""
    if not args.trackers:
        return None
    from sft.trackers import trackers

    name = args.run_name or output_dir.resolve().name
    return lambda: trackers(args.trackers, output_dir, name, args.to_json())


def _dataset(
    files: Mapping[str, float], max_rows: int | None, masker: Masker, args: Args, world: World
) -> ConversationDataset:
    """The documents of files. On each node one rank encodes what is not in the cache yet, with worker processes; the
    others look for the finished cache: nobody waits inside a collective."""
    from sft.dataset import ConversationDataset
    from sft.encoding import Encoding
    from sft.encoding_cache import EncodingCache, Source, usable_cache_folder
    from sft.rows import BadRows

    folder = usable_cache_folder(args.dataset_cache_dir, Path(args.output_dir) / "cache", os.environ)
    columns = tuple(sorted(args.columns.items()))
    bad_rows = BadRows(args.on_bad_row, args.max_bad_rows)
    data = ConversationDataset.from_sources(
        {Source(name, columns, max_rows): times for name, times in files.items()},
        Encoding(masker, args.max_length),
        EncodingCache(folder, lambda text: _say(world, text)),
        num_processes=args.dataset_num_proc or len(os.sched_getaffinity(0)),
        makes=world.local_rank == 0,
        bad_rows=bad_rows,
    )
    if bad_rows.count:
        _say(world, f"skipped:\n{bad_rows.report()}")
    _say(world, f"{', '.join(files)}: {data.summary}")
    return data


def build_engine(
    args: Args, tokenizer: Any, stop_token_ids: list[int], output_dir: Path, world: World
) -> tuple[BuiltModel, Engine]:
    """The model, and the engine that the settings ask for around it."""
    from sft.activation_offload import PinnedMemory, offload_inputs
    from sft.engine import TorchEngine
    from sft.model import build_model, set_stop_tokens
    from sft.optimizer import build_optimizer
    from sft.world import has_bf16

    bf16 = args.in_bf16(has_bf16(world.device))

    def build() -> BuiltModel:
        built = build_model(args, tokenizer, device=world.device)
        base = built.model.get_base_model() if args.lora.enabled else built.model
        set_stop_tokens(base, tokenizer, stop_token_ids)
        if args.activation_offload:
            offload_inputs(built.model, PinnedMemory(world.device))
        return built

    if args.deepspeed is not None:
        from sft.deepspeed_config import read_deepspeed_config
        from sft.deepspeed_engine import DeepSpeedEngine, complete_config, partitioned_loading

        accumulation = args.accumulation_steps(world.size)
        config = read_deepspeed_config(args.deepspeed)
        config = complete_config(config, args, world, bf16=bf16, accumulation=accumulation)
        with partitioned_loading(config, world, enabled=args.model_config is None):
            built = build()
        _keep_random_base(args, built, tokenizer, output_dir, world)
        optimizer = build_optimizer(built.model, args)
        return built, DeepSpeedEngine(built.model, optimizer, world, config)
    built = build()
    _keep_random_base(args, built, tokenizer, output_dir, world)
    engine = TorchEngine(
        built.model,
        lambda model: build_optimizer(model, args),
        world,
        bf16=bf16,
        max_grad_norm=args.max_grad_norm,
        fsdp=args.fsdp,
        fsdp_shard_size=args.fsdp_shard_size,
        bf16_parameters=args.param_dtype == "bfloat16",
    )
    return built, engine


def _keep_random_base(args: Args, built: BuiltModel, tokenizer: Any, output_dir: Path, world: World) -> None:
    """Writes a random base model to `base_model/`, where the adapter's configuration then points: without the very
    weights that they were trained on, adapters are worth nothing."""
    if not args.lora.enabled or args.model_config is None:
        return
    from sft.export import export_base_model

    folder = output_dir / "base_model"
    built.model.peft_config["default"].base_model_name_or_path = str(folder.resolve())
    export_base_model(built.model, tokenizer, folder, world, built.save_dtype)


def _say(world: World, text: str) -> None:
    if world.is_main:
        print(text, flush=True)


if __name__ == "__main__":
    leave(main(sys.argv[1:], owns_process=True))
