"""Answers: prompts → generated tokens, many at a time, the same for any batch.

`generate` of transformers does the work, with its key-value cache. Prompts are padded on the left, where the model is
found to answer the same then; else a batch holds prompts of one length. Samples are drawn from one random number per
prompt and place, which depends on the seed and on the prompt's own number, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sft.scoring import by_length

_PROBE, _PADDING = 9, 4
"""Tokens of the prompt on which padding is tried, and of the padding."""
_ROUNDING = {True: 5e-2, False: 1e-3}
"""Half precision? → how far a padded prompt's logits may be from those alone, as a share of the largest."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token (greedy)."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """What a model wrote."""

    token_ids: tuple[int, ...]
    """Without the stop token."""
    stopped: bool
    """False where it was cut at `max_new_tokens`."""


class Generator:
    """A model that answers."""

    def __init__(self, model: Any, stop_token_ids: Sequence[int], pad_token_id: int, device: torch.device) -> None:
        """
        Args:
            model: a causal language model of transformers on its device, by its own attention.
            stop_token_ids: any of them ends an answer.
            pad_token_id: fills batches up.
            device: the model's.
        """
        self.model = model.eval()
        self._stops = frozenset(stop_token_ids)
        self._pad = pad_token_id
        self._device = device
        # What the model's own settings say of temperature, penalties and the like is for chatting: here the options do.
        model.generation_config = GenerationConfig(
            do_sample=False, use_cache=True, eos_token_id=sorted(self._stops) or None, pad_token_id=pad_token_id
        )
        self._may_pad: bool | None = None

    def answers(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], decoding: Decoding, batch_size: int
    ) -> list[Generated]:
        """What the model writes after each prompt.

        Args:
            prompts: token ids, none of them empty.
            numbers: of the prompts in the data, for their random numbers.
            decoding: how tokens are chosen.
            batch_size: prompts at a time.
        """
        found: list[Generated | None] = [None] * len(prompts)
        lengths = [len(prompt) for prompt in prompts]
        for batch in by_length(lengths, batch_size):
            for part in [batch] if self._pads(batch, lengths) else _of_one_length(batch, lengths):
                ids = self._run([prompts[each] for each in part], [numbers[each] for each in part], decoding)
                for each, row in zip(part, ids, strict=True):
                    found[each] = self._cut(row)
        answers = [each for each in found if each is not None]
        assert len(answers) == len(prompts)  # each stands in its prompt's place
        return answers

    def stream(
        self, prompt: Sequence[int], decoding: Decoding, on_token: Callable[[int], bool], number: int = 0
    ) -> Generated:
        """What the model writes after one prompt; each token is handed over when it is there.

        Args:
            prompt: token ids.
            decoding: how tokens are chosen.
            on_token: told each token but the stop token; True ends the answer.
            number: of the prompt, for its random numbers.
        """
        (row,) = self._run([prompt], [number], decoding, StoppingCriteriaList([_Told(on_token, self._stops)]))
        return self._cut(row)

    def _pads(self, batch: Sequence[int], lengths: Sequence[int]) -> bool:
        if len({lengths[each] for each in batch}) == 1:
            return True
        if self._may_pad is None:
            self._may_pad = self._padding_is_unseen()
        return self._may_pad

    def _padding_is_unseen(self) -> bool:
        """Whether a prompt that is padded on the left has the logits that it has alone."""
        num_ids = min(int(self.model.config.get_text_config().vocab_size), 1000)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, num_ids, (1, _PROBE)))
        padded = torch.nn.functional.pad(ids, (_PADDING, 0), value=self._pad)
        alone, other = (
            self.model.generate(
                input_ids=each.to(self._device),
                attention_mask=(torch.arange(each.shape[1]) >= each.shape[1] - _PROBE).long()[None].to(self._device),
                max_new_tokens=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
            .logits[0]
            .float()
            for each in (ids, padded)
        )
        is_half = next(self.model.parameters()).dtype != torch.float32 or torch.is_autocast_enabled(self._device.type)
        return bool((alone - other).abs().max() <= _ROUNDING[is_half] * alone.abs().max())

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        decoding: Decoding,
        criteria: StoppingCriteriaList | None = None,
    ) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        draws = [_Draw(decoding, numbers, longest)] if decoding.temperature > 0 else []
        found = self.model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=decoding.max_new_tokens,
            logits_processor=LogitsProcessorList(draws),
            stopping_criteria=criteria,
        )
        rows: list[list[int]] = found[:, longest:].tolist()
        return rows

    def _cut(self, row: Sequence[int]) -> Generated:
        end = next((place for place, token in enumerate(row) if token in self._stops), None)
        return Generated(tuple(row[:end]), end is not None)


def _of_one_length(batch: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    return [[each for each in batch if lengths[each] == length] for length in sorted({lengths[each] for each in batch})]


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token in each row: the one at a random number's place in the distribution."""

    def __init__(self, decoding: Decoding, numbers: Sequence[int], prompt_length: int) -> None:
        self._seed, self._numbers, self._prompt_length = decoding.seed, list(numbers), prompt_length
        self._warpers = [TemperatureLogitsWarper(decoding.temperature)]
        self._warpers += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
        self._warpers += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        place = input_ids.shape[1] - self._prompt_length
        uniform = [np.random.default_rng([self._seed, number, place]).random() for number in self._numbers]
        below = torch.softmax(scores.double(), -1).cumsum(-1)
        at = torch.tensor(uniform, dtype=torch.float64, device=scores.device)[:, None] * below[:, -1:]
        chosen = torch.searchsorted(below, at, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class _Told(StoppingCriteria):  # type: ignore[misc]
    """Hands each new token over; stops where the listener has had enough."""

    def __init__(self, on_token: Callable[[int], bool], stops: frozenset[int]) -> None:
        self._on_token, self._stops = on_token, stops

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        token = int(input_ids[0, -1])
        is_over = token not in self._stops and self._on_token(token)
        return torch.tensor([is_over], device=input_ids.device)
