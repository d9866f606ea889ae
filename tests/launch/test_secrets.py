"""Secrets do not get into settings; they come from the environment, or from a file that only its owner reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.env_file import read_env_file, secrets_of
from launch.errors import LaunchError
from launch.secret_values import form_of
from strict_settings.env_file import found_env_file

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


def write_env(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / ".env"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_two_names_of_a_env_file_that_is_found_are_taken(tmp_path: Path) -> None:
    path = write_env(tmp_path, "HF_TOKEN=one\nWANDB_API_KEY=two\nPYTHONPATH=/elsewhere\n")
    assert found_env_file(tmp_path) == (path, "")
    job = {"found_env_file": str(path)}
    assert secrets_of(job, {"HF_TOKEN": "set"}) == {"WANDB_API_KEY": "two"}
    named = tmp_path / "named"
    named.write_text("HF_TOKEN=three\nA=b\n")
    named.chmod(0o600)
    job["env_file"] = str(named)
    assert secrets_of(job, {}) == {"HF_TOKEN": "three", "WANDB_API_KEY": "two", "A": "b"}
    path.unlink()
    assert secrets_of(job, {}) == {"HF_TOKEN": "three", "A": "b"}


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("DEBUG=1\n", 0o600, ""),
        ("HF_TOKEN=one\n", 0o644, "mode 0644"),
        ("HF_TOKEN=one\nnonsense hf_secret\n", 0o600, "2 must be NAME=VALUE"),
    ],
)
def test_a_env_file_that_is_found_and_not_taken(tmp_path: Path, text: str, mode: int, said: str) -> None:
    write_env(tmp_path, text, mode)
    path, note = found_env_file(tmp_path)
    assert path is None
    assert said in note
    assert "hf_secret" not in note


@pytest.mark.ranks
def test_a_found_secret_reaches_the_script_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    secret = "hf_" + "zQ4" * 12
    write_env(tmp_path, f"HF_TOKEN={secret}\nOTHER={secret}\n")
    probe = "import os; print(os.environ['HF_TOKEN'] == 'hf_' + 'zQ4' * 12, 'OTHER' in os.environ)\n"
    (tmp_path / "probe.py").write_text(probe)
    assert main(["submit", "--executor", "local", "--script", "probe.py", "--name", "x", "--wait"]) == 0
    assert "True False" in (tmp_path / "runs" / "x" / "logs" / "0" / "rank-0.log").read_text()
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]
