"""Questions → rows of an evaluation: what the model wrote, its scores, and the loss of the row's documents."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft.agreement import gathered, together
from sft.config import Args
from sft.errors import DataError
from sft.formats import Conversation
from sft.generation import Decoding, Generated, Generator
from sft.loading import load_model
from sft.masking import Masker
from sft.metrics import METRICS, Metric, answer_of, regex_match
from sft.model import set_stop_tokens
from sft.model_check import Collation, prepare_model
from sft.model_subject import ModelSubject, decoding_number
from sft.questions import SMALL_TALK, Question, questions_of
from sft.rows import BadRow, BadRows
from sft.scoring import Scorer
from sft.sources import read_conversations
from sft.tokenizer import listed
from sft.world import World

DEFAULT_NEW_TOKENS = 512

Numbered = tuple[int, Conversation | BadRow]
"""A row with its number in the data, from 0."""


class Answering:
    """A loaded model that is asked questions. Ranks of a world share them."""

    def __init__(self, subject: ModelSubject, world: World) -> None:
        """
        Args:
            subject: the model.
            world: the ranks; each loads the model.

        Raises:
            SettingsError: it cannot be loaded.
        """
        self.subject = subject
        self.world = world
        with together(world):
            self._loaded = load_model(subject.args, subject.tokenizer, world.device)
        self._scorer = Scorer(self._loaded.model, world.device, bf16=self._loaded.autocast)
        self._generator: Generator | None = None
        self._own_stops = set(listed(self._loaded.model.generation_config.eos_token_id))
        self._collation: Collation | None = None

    @property
    def max_length(self) -> int:
        """Tokens of a document of which the loss is taken."""
        return self.subject.args.max_length if self.subject.has_length else self.room

    @property
    def room(self) -> int:
        """Tokens of a prompt with its answer."""
        return self._loaded.max_positions or self.subject.args.max_length

    def read(self, data: str) -> list[Numbered]:
        """The rows of a source, as many as `max_eval_samples` allows.

        Raises:
            DataError: it cannot be read.
        """
        args = self.subject.args
        with together(self.world):
            rows = read_conversations(data, args.columns)
            return list(enumerate(itertools.islice(rows, args.max_eval_samples)))

    def questions(self, rows: Sequence[Numbered], masker: Masker | None = None) -> tuple[list[Question], int]:
        """(this rank's share of some rows, the bad rows of all ranks).

        Raises:
            DataError: rows cannot be used.
        """
        args, world = self.subject.args, self.world
        bad_rows = BadRows(args.on_bad_row, args.max_bad_rows)
        found: list[Question] = []
        masker = masker or self.subject.masker
        with together(world):
            own = rows[world.rank :: world.size]
            for made in questions_of(own, masker, self.max_length):
                if isinstance(made, BadRow):
                    bad_rows.add(made)
                else:
                    found.append(made)
            if bad_rows.policy == "error" and own:
                bad_rows.finish(len(own))
        self._own_stops |= masker.stop_token_ids
        num_questions, num_bad = world.sum(len(found), bad_rows.count)
        if num_bad > args.max_bad_rows:
            told = f"{num_bad:.0f} rows cannot be used. That is more than max_bad_rows: {args.max_bad_rows}."
            raise DataError(f"{bad_rows.report()}\n{told}".lstrip())
        if not num_questions:
            raise DataError(f"no row of the data can be asked; there must be one. {bad_rows.report()}".rstrip())
        return found, int(num_bad)

    def generate(self, questions: Sequence[Question], decoding: Decoding) -> list[Generated | None]:
        """What the model writes to each question; None where there is no room for an answer (a collective)."""
        generator = self._made_generator()
        size = self.subject.args.per_device_eval_batch_size
        fits = [len(question.prompt_ids) + decoding.max_new_tokens <= self.room for question in questions]
        asked = [question for question, fit in zip(questions, fits, strict=True) if fit]
        with together(self.world), self._scorer.computing():
            made = iter(
                generator.answers([each.prompt_ids for each in asked], [each.row for each in asked], decoding, size)
            )
        return [next(made) if fit else None for fit in fits]

    def _made_generator(self) -> Generator:
        """The generator; answers end on every rank at what ends a turn on any."""
        stops = sorted({token for found in gathered(self.world, sorted(self._own_stops)) for token in found})
        if self._generator is None:
            set_stop_tokens(self._loaded.model, self.subject.tokenizer, stops)
            stops = listed(self._loaded.model.generation_config.eos_token_id)
            pad = self.subject.masker.pad_token_id
            self._generator = Generator(self._loaded.model, stops, pad, self.world.device)
        return self._generator

    def losses(self, questions: Sequence[Question]) -> list[float]:
        """The sum of the token losses of each question's documents (a collective). Afterwards the model attends as in
        training, and no longer generates."""
        args, world = self.subject.args, self.world
        collation = self._collation or prepare_model(self._scorer, args, world)
        self._collation = collation
        documents = [document for question in questions for document in question.documents]
        with together(world):
            found = iter(self._scorer.losses(documents, collation, args.per_device_eval_batch_size))
        return [sum(next(found) for _ in question.documents) for question in questions]


def usual_stops(model: Any, subject: ModelSubject) -> list[int]:
    """Where a model's answers end: what its settings say, and what ends a turn in its template."""
    subject.masker.documents(SMALL_TALK)
    set_stop_tokens(model, subject.tokenizer, sorted(subject.masker.stop_token_ids))
    return listed(model.generation_config.eos_token_id)


def decoding_of(options: argparse.Namespace, args: Args, room: int) -> Decoding:
    """How the command line wants tokens to be chosen.

    Raises:
        SettingsError: a value is none of its kind.
    """
    default = str(min(DEFAULT_NEW_TOKENS, room // 2))
    return Decoding(
        int(decoding_number("max-new-tokens", options.max_new_tokens or default, high=room)),
        decoding_number("temperature", options.temperature),
        decoding_number("top-p", options.top_p),
        int(decoding_number("top-k", options.top_k)),
        args.seed,
    )


def metrics_of(names: Sequence[str], pattern: re.Pattern[str] | None) -> dict[str, Metric]:
    """The metrics of these names, and that of a regular expression if there is one."""
    chosen = {name: METRICS[name] for name in names}
    return {**chosen, "regex": regex_match(pattern)} if pattern is not None else chosen


def scored(
    question: Question,
    generated: Generated | None,
    is_asked: bool,
    loss: float | None,
    metrics: Mapping[str, Metric],
    decode: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    """A row of the evaluation, as JSON.

    Args:
        question: the row.
        generated: what the model wrote; None without room, or if it was not asked.
        is_asked: whether answers were wanted at all.
        loss: sum of token losses of its documents; None if it was not computed.
        metrics: by name.
        decode: token ids → text.
    """
    text = decode(generated.token_ids) if generated is not None else None
    answer = answer_of(text) if text is not None else ""
    scores = {name: metric(answer, question.reference) for name, metric in metrics.items()} if is_asked else {}
    if is_asked and generated is None:  # no answer matches nothing, not even an empty reference
        scores = {name: None if score is None else 0.0 for name, score in scores.items()}
    documents = question.documents if loss is not None else ()
    num_truncated, num_dropped = (question.num_truncated, question.num_dropped) if loss is not None else (0, 0)
    return {
        "row": question.row,
        "question_sha256": question.sha256,
        "source": question.source,
        "prompt": question.prompt,
        "reference": question.reference,
        "generation": text,
        "answer": answer if generated is not None else None,
        "stopped": generated.stopped if generated is not None else None,
        "unanswered": is_asked and generated is None,
        "new_tokens": len(generated.token_ids) if generated is not None else None,
        "metrics": scores,
        "loss_sum": loss if documents and loss is not None and math.isfinite(loss) else None,
        "loss_weight": sum(document.total_weight for document in documents),
        "trained_tokens": sum(document.num_trained_tokens for document in documents),
        "truncated": num_truncated,
        "dropped": num_dropped,
    }
