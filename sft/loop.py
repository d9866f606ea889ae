"""The training loop. Read this page first: everything else serves it.

One optimizer step takes `rows_per_step` rows, each a document or several packed ones, wherever they are computed. Each
rank runs its share, of nearly the same cost as the others', in micro-batches, which a thread makes while the step
before is computed (`step_data`). The loss is the weighted sum over all trained tokens divided by their global weight
(their number, where none is weighted), so that it does not depend on the number of ranks, on the micro-batch or on the
accumulation. The loop knows no kind of parallelism: that is the engine's affair.
"""

from __future__ import annotations

import math
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sft.bad_step import origin
from sft.checkpoint import Checkpoints, RunState
from sft.config import Args
from sft.dataset import ConversationDataset
from sft.engine import Engine, require_finite
from sft.errors import LossSpikesError, NonFiniteError, StoppedError
from sft.evaluation import after_evaluation, evaluate
from sft.faults import fault_at
from sft.flops import ModelShape
from sft.history import History
from sft.loss_spikes import SpikeRule
from sft.metering import Meter
from sft.model_check import Collation, prepare_model
from sft.optimizer import learning_rate_at
from sft.plan import Plan
from sft.prefetch import prefetched
from sft.profiling import profiled
from sft.replica_check import check_replicas
from sft.step_data import StepData, step_data
from sft.world import StepTotals, World


@dataclass(frozen=True)
class Training:
    """What a run trains, and with what."""

    engine: Engine
    train_data: ConversationDataset
    eval_data: ConversationDataset | None
    args: Args
    plan: Plan
    world: World
    history: History
    checkpoints: Checkpoints


def train(run: Training, state: RunState) -> RunState:
    """Trains from `state` to the end of the plan, or until evaluation stops getting better; returns the last state.

    Raises:
        NonFiniteError: a loss or gradient is no number, on all ranks at the same step.
        DivergedError: ranks that must have the same weights do not.
        LossSpikesError: more loss spikes in a row than are left out.
        SettingsError: `packing` with a model in which packed documents see each other.
        StoppedError: a rank was asked to stop; all have, and the last step is saved.
    """
    engine, args, plan, world = run.engine, run.args, run.plan, run.world
    collation = prepare_model(engine, args, world)
    shape = ModelShape.of(engine.model)
    meter, totals = Meter.of(shape, engine.timer, args, world), StepTotals(world)
    spikes = SpikeRule.of(args, plan.num_steps)
    started = time.monotonic() - state.elapsed_s
    engine.model.train()
    world.heartbeat.plan(plan.num_steps)
    steps = range(state.step + 1, plan.num_steps + 1)
    upcoming = prefetched(step_data(steps, run.train_data, args, plan, world, collation, shape))
    if state.evaluation_is_due:  # the run was stopped before it
        state = evaluate_and_save(run, state, totals, collation)
    for step in profiled(steps, args, world):
        if is_out_of_patience(state, args):
            break
        world.heartbeat.beat("step", step)
        with engine.timer("data"):
            data = next(upcoming)
        seed_dropout(args.seed, step, world.rank)
        learning_rate = learning_rate_at(step, plan.num_steps, args)
        highest_loss = spikes.highest_loss(step, state.recent_losses)
        loss, grad_norm = optimizer_step(run, step, data, totals, learning_rate, highest_loss)

        meter.step(data.num_tokens, data.num_trained_tokens, data.own_slots, data.own_squares, data.own_beyond)
        state = state_after(state, step, data, time.monotonic() - started)
        if step % args.logging_steps == 0 or step in (1, plan.num_steps):
            found = {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm}
            run.history.log_step(plan.record(step, {**found, **totals_of(state), **meter.record()}, state.elapsed_s))
        state = spike_left_out(run, state, loss, highest_loss) if loss > highest_loss else updated(state, spikes, loss)
        run.history.advance(step)
        check_if_due(engine, args, step, world)
        evaluation_is_due = run.eval_data is not None and (step % plan.eval_every == 0 or step == plan.num_steps)
        state = evaluate_and_save(run, replace(state, evaluation_is_due=evaluation_is_due), totals, collation)
    return state


def state_after(state: RunState, step: int, data: StepData, elapsed_s: float) -> RunState:
    """The state with one more step."""
    return replace(
        state,
        step=step,
        num_tokens=state.num_tokens + data.num_tokens,
        num_trained_tokens=state.num_trained_tokens + data.num_trained_tokens,
        elapsed_s=elapsed_s,
    )


def updated(state: RunState, spikes: SpikeRule, loss: float) -> RunState:
    """The state with the weights updated by a step of this loss."""
    return replace(state, recent_losses=spikes.remembered(state.recent_losses, loss), num_spikes_in_a_row=0)


def spike_left_out(run: Training, state: RunState, loss: float, highest_loss: float) -> RunState:
    """The state with the weights left as they were by a step of this loss, whose rows are logged.

    Raises:
        LossSpikesError: it is one too many in a row.
    """
    rows = [row for packed in run.plan.rows.step(state.step - 1, run.plan.rows_per_step) for row in packed]
    found = {"loss": loss, "highest_loss": highest_loss, "rows": [run.train_data.place(row) for row in rows]}
    run.history.log_spike(run.plan.record(state.step, found, state.elapsed_s))
    if state.num_spikes_in_a_row >= run.args.max_loss_spikes:
        raise LossSpikesError(
            f"step {state.step}: loss is {loss:.4f}, spike {state.num_spikes_in_a_row + 1} in a row; it must be "
            f"at most {highest_loss:.4f} (skip_loss_spikes). Look at the rows of the `spike` records in "
            "training_log.json; lower learning_rate, or raise skip_loss_spikes."
        )
    return replace(
        state, num_skipped_steps=state.num_skipped_steps + 1, num_spikes_in_a_row=state.num_spikes_in_a_row + 1
    )


def totals_of(state: RunState) -> dict[str, int]:
    """The run's tokens so far, for the log."""
    return {"num_tokens": state.num_tokens, "num_trained_tokens": state.num_trained_tokens}


def is_out_of_patience(state: RunState, args: Args) -> bool:
    """Whether evaluation has not got better for too long."""
    return args.early_stopping_patience is not None and state.num_evals_since_best >= args.early_stopping_patience


def optimizer_step(
    run: Training, step: int, data: StepData, totals: StepTotals, learning_rate: float, highest_loss: float
) -> tuple[float, float]:
    """One optimizer step; (its loss, the gradient's norm). With a higher loss the weights stay as they are.

    Raises:
        NonFiniteError: one of them is no number; it names the rows that it came from.
    """
    engine, world = run.engine, run.world
    with engine.timer("data"):
        fault_at("data", step, world.rank)
    losses = []
    for number, batch in enumerate(data.batches, 1):
        is_last = number == len(data.batches)
        losses.append(engine.accumulate(batch.to(world.device), data.total_weight, is_last=is_last))
        world.heartbeat.beat("step", step)
    if (fault := fault_at("step", step, world.rank)) is not None:
        do_fault(fault, engine, losses[-1])
    loss_sum = torch.zeros((), device=world.device)
    for loss in losses:
        loss_sum += loss
    with engine.timer("communication"):
        loss_sum = totals.add_up(loss_sum)
    try:
        with engine.timer("optimizer"):
            return engine.step(learning_rate, loss_sum / data.total_weight, highest_loss)
    except NonFiniteError as error:
        where = origin([float(own) for own in losses], data.documents, run.train_data, world)
        raise NonFiniteError(f"step {step}: {error} {where}") from error


@torch.no_grad()
def do_fault(kind: str, engine: Engine, loss: torch.Tensor) -> None:
    """Does what `sft.faults` leaves to the loop: a loss that is no number on this rank, or one weight changed on it."""
    if kind == "nan":
        loss.fill_(math.nan)
    elif kind == "perturb":
        next(engine.model.parameters()).view(-1)[:1] += 1.0


def check_if_due(engine: Engine, args: Args, step: int, world: World) -> None:
    """Compares the weights of the ranks every `parameter_check_steps` steps.

    Raises:
        DivergedError: they are not the same.
    """
    if args.parameter_check_steps and step % args.parameter_check_steps == 0:
        shard_size = (args.fsdp_shard_size or world.size) if args.fsdp else None
        check_replicas(engine.model, shard_size, args.parameter_check_steps, step, world)


def evaluate_and_save(run: Training, state: RunState, totals: StepTotals, collation: Collation) -> RunState:
    """What follows a step: the evaluation and the checkpoint, where they are due, and the end where one was asked for.

    Raises:
        NonFiniteError: the evaluation's loss is no number.
        StoppedError: a rank was asked to stop; the step is saved.
    """
    args, is_best = run.args, False
    if state.evaluation_is_due and not totals.stop_is_agreed:
        state, is_best = evaluated(run, state, collation)
    stops = totals.stop_is_agreed or state.evaluation_is_due  # the ranks were asked to stop before its end
    if stops or (args.save_steps and state.step % args.save_steps == 0) or (is_best and args.load_best_model_at_end):
        save(run, state)
    if stops:
        run.world.heartbeat.beat("checkpoint", state.step)
        run.checkpoints.finish()
        raise StoppedError(stopped_message(run, state))
    return state


def evaluated(run: Training, state: RunState, collation: Collation) -> tuple[RunState, bool]:
    """Evaluates and logs it; the state with it, and whether it is the best so far. The evaluation stays due where the
    ranks were asked to stop meanwhile.

    Raises:
        NonFiniteError: the loss is no number.
    """
    assert run.eval_data is not None
    started = time.monotonic()
    with run.engine.timer("evaluation"):
        found = evaluate(run.engine, run.eval_data, run.args, run.world, collation, state.step)
    if found is None:
        return state, False
    eval_loss, num_eval_tokens = found
    require_finite("eval_loss", eval_loss)
    state, is_best = after_evaluation(replace(state, evaluation_is_due=False), eval_loss)
    record = {"eval_loss": eval_loss, "num_trained_tokens": num_eval_tokens}
    run.history.log_eval(run.plan.record(state.step, record, state.elapsed_s + time.monotonic() - started))
    return state, is_best


def save(run: Training, state: RunState) -> None:
    """Saves a checkpoint."""
    run.world.heartbeat.beat("checkpoint", state.step)
    with run.engine.timer("checkpoint"):
        run.checkpoints.save(run.engine, state)
    run.world.heartbeat.beat("step", state.step)


def stopped_message(run: Training, state: RunState) -> str:
    """What was saved, and how to go on."""
    reason = run.world.heartbeat.stop_reason
    by = reason if reason is not None else "another rank, which was told to stop"
    saved = f"after step {state.step} of {run.plan.num_steps}; {run.checkpoints.path(state.step)} is saved"
    folder = Path(run.args.output_dir)
    who = "The same command"
    if (folder / "job.json").is_file():
        who = f"The launcher, or `python -m launch resume {shlex.quote(str(folder))}`,"
    return f"stopped by {by}, {saved}. {who} goes on from there."


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Makes the step's random numbers a function of (seed, step, rank), so that no generator has to be saved."""
    number = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    # Not torch.manual_seed: it writes down the stack for each kind of device that is not there, which takes more than
    # all else that the loop does between two steps.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)
