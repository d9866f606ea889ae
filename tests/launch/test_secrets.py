"""Secrets do not get into settings; they come from the environment, or from a file that only its owner reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.env_file import read_env_file
from launch.errors import LaunchError
from launch.secret_values import form_of

SECRETS = {
    "hf": "hf_" + "aB3" * 12,
    "wandb": "0123456789abcdef" * 2 + "01234567",
    "openai": "sk-proj-" + "x1" * 20,
    "github": "ghp_" + "a1" * 18,
    "aws": "AKIA" + "ABCD1234" * 2,
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_what_looks_like_a_secret(secret: str) -> None:
    assert form_of(secret)
    assert form_of(f"curl -H 'Authorization: Bearer {secret}' x")


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub", "sk-learn", "task-" + "x" * 40, "models--a--b/snapshots/" + "0" * 40, "model@" + "a" * 40,
        "0" * 64, "a" * 39, "g" * 40, "runs/2026", "",
    ],
)  # fmt: skip
def test_what_does_not(text: str) -> None:
    assert form_of(text) is None
    assert form_of("a" * 40, "model_revision") is None


@pytest.mark.parametrize(
    "words",
    [
        ["--env", "WANDB_API_KEY={}"],
        ["--", "--token={}"],
        ["--config", "bad.yaml"],
    ],
)
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_settings_with_secrets_are_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], secret: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.py").write_text("")
    (tmp_path / "bad.yaml").write_text(f"launch:\n  setup: ['export TOKEN={secret}']\n")
    assert (
        main(["submit", "--executor", "local", "--script", "probe.py", *(word.format(secret) for word in words)]) == 2
    )
    error = capsys.readouterr().err
    assert "what looks like a" in error
    assert "Set it in the environment that submits" in error
    assert secret not in error
    assert not (tmp_path / "runs").exists()


def test_an_env_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# keys\n\nexport A=1\nB = 'two words'\nC=\"$(id)\"\nD=a=b#c\n")
    path.chmod(0o600)
    assert read_env_file(path) == {"A": "1", "B": "two words", "C": "$(id)", "D": "a=b#c"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_an_env_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(mode)
    with pytest.raises(LaunchError, match="mode 0600"):
        read_env_file(path)


def test_an_env_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="must be a file"):
        read_env_file(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(LaunchError, match="must be a file"):
        read_env_file(tmp_path / "fifo")
    (tmp_path / ".env").write_text("A=1\nnonsense with a hf_secret\n")
    (tmp_path / ".env").chmod(0o600)
    with pytest.raises(LaunchError, match=r"\.env:2 must be NAME=VALUE") as raised:
        read_env_file(tmp_path / ".env")
    assert "hf_secret" not in str(raised.value)
