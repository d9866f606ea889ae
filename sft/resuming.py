"""Where a run goes on: its checkpoints, tied to its log, its fence and faults on purpose, and the state it takes up."""

from __future__ import annotations

from pathlib import Path

from sft.checkpoint import Checkpoints, RunState
from sft.checkpoint_write import part_name
from sft.commit import checkpoint_path
from sft.config import Args
from sft.engine import Engine
from sft.faults import PART_COMMITTED, fault_at, flip_bit
from sft.fence import Fence
from sft.history import History
from sft.identity import Identity
from sft.plan import Plan
from sft.run_summary import description
from sft.storage import write_json
from sft.world import World


def checkpoints_of(
    output_dir: Path,
    fence: Fence | None,
    identity: Identity,
    history: History,
    args: Args,
    plan: Plan,
    world: World,
) -> Checkpoints:
    """The checkpoints of a run that has this log."""

    def at_point(point: str, step: int) -> None:
        if point == "save_commit":
            history.keep()  # a run that goes on from this checkpoint finds all records before it
        fault_at(point, step, world.rank)
        for rank in range(world.size) if point == "save_committed" else ():
            if fault_at(PART_COMMITTED, step, rank) == "bitflip":
                flip_bit(checkpoint_path(folder, step) / part_name(rank))

    folder = output_dir / "checkpoints"
    return Checkpoints(
        folder,
        world,
        identity,
        args.save_total_limit,
        fence=fence,
        cursor=plan.cursor,
        at=at_point,
        timeout_s=args.ddp_timeout,
    )


def resumed(
    checkpoints: Checkpoints, engine: Engine, output_dir: Path, args: Args, plan: Plan, world: World
) -> RunState:
    """The state that the settings ask for, with the engine as it was then; from here on nothing is left to be refused.

    Raises:
        As `Checkpoints.find`, `load` and `begin`.
    """
    found = checkpoints.find(args.resume_from_checkpoint)
    state = checkpoints.load(found, engine) if found is not None else RunState()
    checkpoints.begin(engine, state.step, plan.num_checkpoints_at_once(args, state.step))
    if not world.is_main:
        return state
    write_json(output_dir / "arguments.json", args.to_json())
    print(description(args, plan, world), flush=True)
    if found is not None:
        epoch, position = plan.cursor(state.step)
        print(f"resuming from {found}: after step {state.step}, {position} rows into epoch {epoch + 1}", flush=True)
    return state
