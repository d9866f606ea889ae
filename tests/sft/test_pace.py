"""Slow ranks: told once they are slow for long enough, and not for noise."""

from __future__ import annotations

from sft.pace import Pace, slowest_phase


def test_a_slow_rank_is_told_once_with_its_ratio_and_again_after_it_was_well() -> None:
    pace, told = Pace(4), []
    for step in range(1, 31):
        slow_s = 0.1 if 10 <= step < 20 or step >= 25 else 0.04
        busy_s = [0.04, 0.04, slow_s, 0.05]
        told += [(step, line) for line in pace.news(pace.see(busy_s, 1), {"data": busy_s})]
    assert [step for step, _ in told] == [14, 29]
    assert "rank 2 takes 2.5 times" in told[0][1]


def test_the_phase_in_which_a_rank_is_slow_is_named() -> None:
    """Rank 1 takes longest in the forward pass, as all do; what it loses there is little."""
    phases_s = {"data": [0.1, 0.9, 0.1], "forward": [2.0, 2.1, 2.0]}
    assert slowest_phase(phases_s, 1) == "data"
    (line,) = Pace(3).news([0.0, 1.6, 0.0], phases_s)
    assert "rank 1 takes 1.6 times as long as the median rank for data and forward, most of it in data;" in line


def test_one_of_two_ranks_is_compared_with_the_other() -> None:
    pace = Pace(2)
    assert pace.see([0.1, 1.0], 10) == [0.0, 10.0]


def test_noise_of_tiny_steps_and_short_bursts_are_not_told() -> None:
    pace = Pace(3)
    for step in range(100):
        assert pace.see([0.0001, 0.0009, 0.0001], 1) == [0.0] * 3
        assert pace.see([0.1, 0.1, 0.9 if step % 4 else 0.1], 1) == [0.0] * 3
