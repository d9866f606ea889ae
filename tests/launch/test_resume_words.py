"""What `launch resume` makes of the job: other resources, settings with new values, arguments given once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launch.resuming import changed
from launch.spec import JobSpec
from strict_settings import SettingsError

MakeSpec = Callable[..., JobSpec]


def test_new_values_replace_old_ones_and_stay(make_spec: MakeSpec) -> None:
    spec = make_spec(
        script_args=("--config", "a.yaml", "--learning_rate", "1e-3", "--seed=4", "--bf16", "--output_dir", "x")
    )
    once = changed(spec, {}, ["learning_rate=2e-3", "tokenizer"], accepts_data=True)
    assert once.script_args == ("--config", "a.yaml", "--seed=4", "--bf16", "--output_dir", "x")
    told = (
        "--learning_rate",
        "2e-3",
        "--resume_override",
        "[learning_rate, tokenizer]",
        "--accept_data_change",
        "true",
    )
    assert once.resume_args == told
    twice = changed(once, {}, ["seed=5"], accepts_data=False)
    assert twice.script_args == ("--config", "a.yaml", "--bf16", "--output_dir", "x")
    assert twice.resume_args == (
        "--learning_rate", "2e-3", "--seed", "5", "--resume_override", "[learning_rate, tokenizer, seed]",
    )  # fmt: skip
    assert JobSpec.from_json(twice.to_json()) == twice


def test_other_resources(make_spec: MakeSpec) -> None:
    spec = make_spec(time_min=60, signal_lead_s=120)
    resumed = changed(spec, {"time-min": "3", "partition": "long", "nodes": None}, [], accepts_data=False)
    assert (resumed.resources.time_min, resumed.resources.partition, resumed.resources.nodes) == (3, "long", 2)
    assert resumed.signal_lead_s == 60
    assert resumed.resume_args == ()
    longer = changed(spec, {"signal-lead-s": "600"}, [], accepts_data=False)
    assert (longer.signal_lead_s, longer.stop_grace_s) == (600, 660.0)


@pytest.mark.parametrize(
    ("resources", "overrides", "message"),
    [
        ({}, ["=1"], "override is '=1'; it must be KEY=VALUE"),
        ({}, ["wandb_key=" + "0f" * 20], "what looks like a Weights & Biases key"),
        ({"nodes": "0"}, [], "nodes"),
        (
            {"time-min": "1", "signal-lead-s": "60"},
            [],
            "signal_lead_s is 60; it must be less than the time limit, 60 s",
        ),
    ],
)
def test_what_can_not_be(
    make_spec: MakeSpec, resources: dict[str, str | None], overrides: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match="it must") as raised:
        changed(make_spec(), resources, overrides, accepts_data=False)
    assert message in str(raised.value)
