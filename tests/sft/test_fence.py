"""One writer for a run directory: who holds it, who may take it over, and who finds out."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults.recording import Shows
from racing import race

from sft.commit import checkpoints_in
from sft.errors import FencedError, StorageError
from sft.fence import FOLDER, STALE_AFTER_S, Fence, Holder, ended_jobs, refuse_if_held, take
from sft.manifest import MANIFEST, Manifest


def this_process(**changes: Any) -> Holder:
    return dataclasses.replace(Holder.this_process({}), **changes)


def elsewhere(**changes: Any) -> Holder:
    return this_process(host="n2", boot_id="another machine", pid=17, **changes)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def stop_beating(fence: Fence) -> Path:
    """Leaves the claim as a process does that was killed; returns its file."""
    fence._ended.set()
    fence._thread.join()
    return fence._folder / f"{fence.token:08d}.json"


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_a_living_holder_is_named_and_nobody_else_gets_in(tmp_path: Path) -> None:
    fence = take(tmp_path, this_process(job_id="5"))
    message = rf"output_dir is {tmp_path}; .* It is held by process {os.getpid()} on .* \(job 5, start 0\), since "
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(FencedError, match=message) as caught:
            take(tmp_path, this_process())
        with pytest.raises(FencedError, match=message):
            refuse_if_held(tmp_path, this_process())
    assert time.monotonic() - started < 5
    assert caught.value.exit_code == 16
    fence.check()
    fence.release()


def test_tokens_only_grow(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    tokens = []
    for _ in range(3):
        fence = take(tmp_path, this_process())
        fence.check()
        tokens.append(fence.token)
        fence.release()
    assert tokens == [1, 2, 3]
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["00000003.json"]


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    take(tmp_path, this_process()).release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("holder", "own", "ended", "reason"),
    [
        (this_process(pid=dead_pid()), this_process(), "", "its process is gone"),
        (this_process(start_ticks=1), this_process(), "", "its process is gone"),  # another one has the number
        (this_process(job_id="5"), this_process(job_id="5", restart=1), "", "start 1 of the same job"),
        (elsewhere(job_id="5", restart=1), elsewhere(job_id="5", restart=2), "", "start 2 of the same job"),
        (elsewhere(job_id="5"), this_process(job_id="6"), "4,5", "its job has ended"),
        (elsewhere(job_id="5"), this_process(job_id="5"), "", None),
        (elsewhere(job_id="5", restart=2), this_process(job_id="5", restart=1), "", None),
        (elsewhere(job_id=None), this_process(job_id=None, restart=1), "", None),
        (elsewhere(), this_process(), "5", None),
    ],
)
def test_who_may_be_taken_over(
    tmp_path: Path, shows: Shows, holder: Holder, own: Holder, ended: str, reason: str | None
) -> None:
    stop_beating(take(tmp_path, holder))
    said: list[str] = []
    jobs = ended_jobs({"CLEANSFT_ENDED_JOBS": ended})
    if reason is None:
        with pytest.raises(FencedError):
            take(tmp_path, own, ended_jobs=jobs, say=said.append)
        return
    refuse_if_held(tmp_path, own, ended_jobs=jobs)
    fence = take(tmp_path, own, ended_jobs=jobs, say=said.append)
    assert fence.token == 2
    assert reason in said[0]
    if reason == "its process is gone":
        shows(40, "dead", says=said[0])
    fence.release()


@pytest.mark.parametrize("age_s", [STALE_AFTER_S + 5, -86_400.0], ids=["silent", "dated tomorrow"])
def test_a_silent_holder_on_another_machine_is_taken_over(tmp_path: Path, shows: Shows, age_s: float) -> None:
    path = stop_beating(take(tmp_path, elsewhere()))
    aged(path, STALE_AFTER_S / 2)
    with pytest.raises(FencedError, match="last heard of 30 s ago"):
        take(tmp_path, this_process())
    aged(path, age_s)
    fence = take(tmp_path, this_process(), say=lambda _: None)
    assert fence.token == 2
    if age_s < 0:
        shows(40, "dated tomorrow", note="token 2")
    fence.release()


def test_a_holder_is_heard_of_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.fence.BEAT_S", 0.01)
    fence = take(tmp_path, elsewhere())
    path = fence._folder / "00000001.json"
    aged(path, 1000)
    deadline = time.monotonic() + 10
    while time.time() - path.stat().st_mtime > 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(FencedError):
        take(tmp_path, this_process())
    fence.release()


def test_a_suspended_holder_on_this_machine_lives(tmp_path: Path) -> None:
    code = f"""if True:
        import time
        from pathlib import Path
        from sft.fence import Holder, take
        take(Path({str(tmp_path)!r}), Holder.this_process({{}}))
        print("held", flush=True)
        time.sleep(60)"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    path = tmp_path / FOLDER / "00000001.json"
    aged(path, 1000)
    with pytest.raises(FencedError, match=f"process {process.pid} on "):
        take(tmp_path, this_process())
    process.kill()
    process.communicate()
    take(tmp_path, this_process(), say=lambda _: None).release()


def test_a_process_that_could_not_say_that_it_ended_may_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk; while it holds the directory, it is refused like any other."""
    fence, said = take(tmp_path, this_process()), list[str]()
    with pytest.raises(FencedError):
        take(tmp_path, this_process())
    with monkeypatch.context() as patch:
        patch.setattr("sft.fence._write", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        fence.release()
    again = take(tmp_path, this_process(), say=said.append)
    assert "this process has given it up" in said[0]
    again.release()


def test_the_old_holder_finds_out_whatever_it_still_sees(tmp_path: Path) -> None:
    old = take(tmp_path, elsewhere(job_id="5"))
    own_file = old._folder / "00000001.json"
    content = own_file.read_bytes()
    new = take(tmp_path, this_process(job_id="5", restart=1), say=lambda _: None)
    with pytest.raises(FencedError, match=r"token is 1, and the highest in .* is 2, of process \d+ on"):
        old.check()
    own_file.write_bytes(content)  # a list of names that is up to date, and a file that is back
    with pytest.raises(FencedError):
        old.check()
    own_file.unlink()
    new.check()
    held = new._folder / "00000002.json"
    held.write_text(json.dumps({**json.loads(held.read_text()), "nonce": "another"}))
    with pytest.raises(FencedError):
        new.check()
    old.release()
    assert held.exists()
    new.release()


def test_a_run_directory_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fence = take(tmp_path / "run", this_process())
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(StorageError):
        fence.check()
    fence.release()
    assert not (tmp_path / "run").exists()


def test_of_many_that_start_at_once_one_gets_in(tmp_path: Path) -> None:
    """A dead holder's place, and twenty that want it."""
    (tmp_path / "job.json").write_text("{}")
    stop_beating(take(tmp_path, this_process(pid=dead_pid())))
    outcomes = race("contend", [tmp_path] * 20)
    assert sorted(outcome.split()[0] for outcome in outcomes) == ["held"] + ["refused"] * 19


@pytest.mark.parametrize("number", [6, pytest.param(100, marks=pytest.mark.soak)])
def test_a_writer_that_was_taken_over_commits_nothing(tmp_path: Path, number: int) -> None:
    """Races of a writer of another machine that saves all the time and its successor in the same job: what the
    successor finds when it looks for checkpoints is all there will ever be of the first one's."""
    folders = [tmp_path / f"{seed}" for seed in range(number)]
    for folder in folders:
        folder.mkdir()
    outcomes = race("save", folders, "succeed", folders)
    for folder, first, second in zip(folders, outcomes[:number], outcomes[number:], strict=True):
        seen = int(second.split()[1])
        assert first == "fenced", (folder, first)
        manifests = [Manifest.read(path / MANIFEST) for path in checkpoints_in(folder / "checkpoints")]
        assert max((manifest.step for manifest in manifests if manifest.token == 1), default=-1) == seen, folder
        assert any(manifest.token == 2 for manifest in manifests), folder
