"""The training loop. Read this page first: everything else serves it.

One optimizer step takes `rows_per_step` rows, each a document or several packed ones, wherever they are computed. Each
rank runs its share, of nearly the same cost as the others', in micro-batches, which a thread makes while the step
before is computed. The loss is the weighted sum over all trained tokens divided by their global weight (their number,
where none is weighted), so that it does not depend on the number of ranks, on the micro-batch or on the accumulation.
The loop knows no kind of parallelism: that is the engine's affair.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sft.bad_step import origin
from sft.batching import Batch, collate_flat, collate_packed
from sft.checkpoint import Checkpoints, RunState
from sft.config import Args
from sft.dataset import ConversationDataset
from sft.engine import Engine, require_finite
from sft.errors import NonFiniteError, StoppedError
from sft.evaluation import after_evaluation, evaluate
from sft.faults import fault_at
from sft.history import History
from sft.metering import Meter
from sft.model_check import Collation, prepare_model
from sft.optimizer import learning_rate_at
from sft.packing import TrainingRows, row_costs
from sft.prefetch import prefetched
from sft.profiling import profiled
from sft.replica_check import check_replicas
from sft.sequence_shards import shard_of
from sft.sharding import rank_batches, steps_per_epoch
from sft.world import StepTotals, World


@dataclass(frozen=True)
class StepData:
    """What an optimizer step computes: this rank's micro-batches, and what every rank's have in all."""

    batches: list[Batch]
    num_tokens: int
    num_trained_tokens: int
    total_weight: float
    """By which the loss is divided."""
    own_slots: int
    """Tokens that this rank computes, with padding."""
    own_squares: int
    """Sum of the squared lengths of the documents that it computes, by which attention grows."""
    documents: list[list[int]]
    """Those of each of this rank's micro-batches, by their numbers."""


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, fixed before its first step."""

    num_documents: int
    rows: TrainingRows
    rows_per_step: int
    steps_per_epoch: int
    num_steps: int
    eval_every: int

    @classmethod
    def of(cls, args: Args, num_documents: int, world_size: int, lengths: NDArray[np.int32] | None = None) -> Plan:
        """The plan for so many documents, of these lengths, on so many ranks. The lengths are needed for packing."""
        rows = TrainingRows(num_documents, args.seed, lengths, args.max_length if args.packing else None)
        rows_per_step = args.rows_per_step(world_size)
        per_epoch = steps_per_epoch(rows.num_rows, rows_per_step)
        num_steps = args.max_steps or max(1, math.ceil(args.num_train_epochs * per_epoch))
        return cls(num_documents, rows, rows_per_step, per_epoch, num_steps, args.eval_steps or per_epoch)

    def record(self, step: int, found: Mapping[str, Any], elapsed_s: float) -> dict[str, Any]:
        """What was found at a step, as the log has it."""
        return {"step": step, "epoch": step / self.steps_per_epoch, **found, "elapsed_s": elapsed_s}

    def cursor(self, step: int) -> tuple[int, int]:
        """(epochs that are over after a step, rows of the next one that were trained): the same for any world."""
        epoch, steps = divmod(step, self.steps_per_epoch)
        return epoch, steps * self.rows_per_step

    def settings(self, args: Args) -> dict[str, Any]:
        """What must be the same for a checkpoint to be taken up: the data's order and the learning rate's course."""
        names = (
            "seed", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
            "adam_epsilon", "max_grad_norm", "max_length", "packing", "truncation", "train_on", "history",
            "prompt_mismatch", "system_prompt", "special_tokens_in_data", "template_kwargs", "optim",
        )  # fmt: skip
        return {
            "num_documents": self.num_documents,
            "rows_per_step": self.rows_per_step,
            "num_steps": self.num_steps,
            "learning_rate": args.peak_learning_rate,
            "lora": {**dataclasses.asdict(args.lora), "merge": None} if args.lora.enabled else None,
            **{name: getattr(args, name) for name in names},
        }

    def num_checkpoints_at_once(self, args: Args, step: int) -> int:
        """Checkpoints of a run from `step` that are there at most at a time: those that are kept, the best one, and the
        one that is being written; as far as is known before."""
        has_best = args.eval_file is not None
        num_saves = self.num_steps // args.save_steps - step // args.save_steps if args.save_steps else 0
        return min(num_saves + args.load_best_model_at_end, args.save_total_limit + has_best + 1)


def train(
    engine: Engine,
    train_data: ConversationDataset,
    eval_data: ConversationDataset | None,
    args: Args,
    plan: Plan,
    world: World,
    history: History,
    checkpoints: Checkpoints,
    state: RunState,
) -> RunState:
    """Trains from `state` to the end of the plan, or until evaluation stops getting better; returns the last state.

    Raises:
        NonFiniteError: a loss or gradient is no number, on all ranks at the same step.
        SettingsError: `packing` with a model in which packed documents see each other.
        StoppedError: a rank was asked to stop; all have, and the last step is saved.
    """
    collation = prepare_model(engine, args, world)
    timer, meter = engine.timer, Meter.of(engine.model, engine.timer, args, world)
    started = time.monotonic() - state.elapsed_s
    engine.model.train()
    totals, heartbeat = StepTotals(world), world.heartbeat
    heartbeat.plan(plan.num_steps)
    steps = range(state.step + 1, plan.num_steps + 1)
    upcoming = prefetched(step_data(steps, train_data, args, plan, world, collation))
    if state.evaluation_is_due and eval_data is not None:
        state, is_best = evaluated(engine, eval_data, args, plan, world, history, state, collation)
        if is_best and args.load_best_model_at_end:
            save(checkpoints, engine, state, world)
        if state.evaluation_is_due:
            raise StoppedError(stopped_message(state, plan, checkpoints, heartbeat.stop_reason))
    for step in profiled(steps, args, world):
        heartbeat.beat("step", step)
        with timer("data"):
            data = next(upcoming)
        seed_dropout(args.seed, step, world.rank)
        learning_rate = learning_rate_at(step, plan.num_steps, args)
        loss, grad_norm = optimizer_step(engine, data, totals, learning_rate, step, world, train_data)

        meter.step(data.num_tokens, data.num_trained_tokens, data.own_slots, data.own_squares)
        state = replace(
            state,
            step=step,
            num_tokens=state.num_tokens + data.num_tokens,
            num_trained_tokens=state.num_trained_tokens + data.num_trained_tokens,
            elapsed_s=time.monotonic() - started,
            evaluation_is_due=eval_data is not None and (step % plan.eval_every == 0 or step == plan.num_steps),
        )
        if step % args.logging_steps == 0 or step in (1, plan.num_steps):
            found = {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm}
            history.log_step(plan.record(step, {**found, **totals_of(state), **meter.record()}, state.elapsed_s))
        history.advance(step)
        check_if_due(engine, args, step, world)

        is_best = False
        if state.evaluation_is_due and eval_data is not None and not totals.stop_is_agreed:
            state, is_best = evaluated(engine, eval_data, args, plan, world, history, state, collation)
        stops = totals.stop_is_agreed or state.evaluation_is_due
        if stops or (args.save_steps and step % args.save_steps == 0) or (is_best and args.load_best_model_at_end):
            save(checkpoints, engine, state, world)
        if stops:
            heartbeat.beat("checkpoint", step)
            checkpoints.finish()
            raise StoppedError(stopped_message(state, plan, checkpoints, heartbeat.stop_reason))
        if args.early_stopping_patience and state.num_evals_since_best >= args.early_stopping_patience:
            break
    return state


def totals_of(state: RunState) -> dict[str, int]:
    """The run's tokens so far, for the log."""
    return {"num_tokens": state.num_tokens, "num_trained_tokens": state.num_trained_tokens}


def check_if_due(engine: Engine, args: Args, step: int, world: World) -> None:
    """Compares the weights of the ranks every `parameter_check_steps` steps.

    Raises:
        DivergedError: they are not the same.
    """
    if args.parameter_check_steps and step % args.parameter_check_steps == 0:
        shard_size = (args.fsdp_shard_size or world.size) if args.fsdp else None
        check_replicas(engine.model, shard_size, args.parameter_check_steps, step, world)


def optimizer_step(
    engine: Engine,
    data: StepData,
    totals: StepTotals,
    learning_rate: float,
    step: int,
    world: World,
    train_data: ConversationDataset,
) -> tuple[float, float]:
    """One optimizer step; (its loss, the gradient's norm).

    Raises:
        NonFiniteError: one of them is no number; it names the rows that it came from.
    """
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
            return engine.step(learning_rate, loss_sum / data.total_weight)
    except NonFiniteError as error:
        where = origin([float(own) for own in losses], data.documents, train_data, world)
        raise NonFiniteError(f"step {step}: {error} {where}") from error


@torch.no_grad()
def do_fault(kind: str, engine: Engine, loss: torch.Tensor) -> None:
    """Does what `sft.faults` leaves to the loop: a loss that is no number on this rank, or one weight changed on it."""
    if kind == "nan":
        loss.fill_(math.nan)
    elif kind == "perturb":
        next(engine.model.parameters()).view(-1)[:1] += 1.0


def evaluated(
    engine: Engine,
    data: ConversationDataset,
    args: Args,
    plan: Plan,
    world: World,
    history: History,
    state: RunState,
    collation: Collation,
) -> tuple[RunState, bool]:
    """Evaluates and logs it; the state with it, and whether it is the best so far. The evaluation stays due where the
    ranks were asked to stop meanwhile.

    Raises:
        NonFiniteError: the loss is no number.
    """
    started = time.monotonic()
    with engine.timer("evaluation"):
        found = evaluate(engine, data, args, world, collation, state.step)
    if found is None:
        return state, False
    eval_loss, num_eval_tokens = found
    require_finite("eval_loss", eval_loss)
    state, is_best = after_evaluation(replace(state, evaluation_is_due=False), eval_loss)
    record = {"eval_loss": eval_loss, "num_trained_tokens": num_eval_tokens}
    history.log_eval(plan.record(state.step, record, state.elapsed_s + time.monotonic() - started))
    return state, is_best


def save(checkpoints: Checkpoints, engine: Engine, state: RunState, world: World) -> None:
    """Saves a checkpoint."""
    world.heartbeat.beat("checkpoint", state.step)
    with engine.timer("checkpoint"):
        checkpoints.save(engine, state)
    world.heartbeat.beat("step", state.step)


def stopped_message(state: RunState, plan: Plan, checkpoints: Checkpoints, reason: str | None) -> str:
    """What was saved, and how to go on."""
    by = reason if reason is not None else "another rank, which was told to stop"
    saved = f"stopped by {by}, after step {state.step} of {plan.num_steps}; {checkpoints.path(state.step)} is saved."
    return f"{saved} The same command goes on from there."


def step_data(
    steps: Iterable[int], data: ConversationDataset, args: Args, plan: Plan, world: World, collation: Collation
) -> Generator[StepData]:
    """What each of these optimizer steps computes, on the CPU, ready to be copied to the device.

    The counts of all ranks come from the data's columns, which every rank has: no collective is needed for them.
    """
    lengths, num_trained, total_weights = data.lengths, data.num_trained, data.total_weights
    size = args.per_device_train_batch_size
    for step in steps:
        rows = plan.rows.step(step - 1, plan.rows_per_step)
        costs = row_costs(rows, lengths, num_trained)
        shares = rank_batches(rows, world.data_rank, world.data_size, size, costs, by_length=collation == "padded")
        documents = [document for row in rows for document in row]
        batches = [shard_of(batch_of(share, data, args, collation), world.sequence) for share in shares]
        yield StepData(
            [batch.for_copies_to(world.device) for batch in batches],
            int(lengths[documents].sum(dtype=np.int64)),
            int(num_trained[documents].sum(dtype=np.int64)),
            float(total_weights[documents].sum()),
            sum(batch.input_ids.numel() for batch in batches),
            sum(sum_of_squares(batch, share, lengths) for batch, share in zip(batches, shares, strict=True)),
            [[document for row in share for document in row] for share in shares],
        )


def sum_of_squares(batch: Batch, rows: Sequence[Sequence[int]], lengths: NDArray[np.int32]) -> int:
    """Sum of the squared lengths of a batch's documents, or this rank's part of it where ranks share their tokens; what
    is left out of the documents does not count."""
    documents = [document for row in rows for document in row]
    computed = batch.layout.without_padding().lengths if batch.layout is not None else lengths[documents]
    found = np.array(computed, dtype=np.int64)
    return int(found @ found) // (batch.layout.group.size if batch.layout is not None else 1)


def batch_of(rows: Sequence[Sequence[int]], data: ConversationDataset, args: Args, collation: Collation) -> Batch:
    """The batch of rows of document numbers, as the model takes them."""
    if collation == "padded":
        return data.batch([document for row in rows for document in row])
    # No document sees the padding, so that any token will do.
    if collation == "flat":
        return collate_flat([data[document] for row in rows for document in row], 0, args.row_capacity)
    return collate_packed([[data[document] for document in row] for row in rows], 0, args.max_length)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Makes the step's random numbers a function of (seed, step, rank), so that no generator has to be saved."""
    number = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    # Not torch.manual_seed: it writes down the stack for each kind of device that is not there, which takes more than
    # all else that the loop does between two steps.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)
