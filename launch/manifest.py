"""What a run is made of, kept beside it: code, packages, settings, script, data; and one signature of what decides the
result. Read with git and from files; nothing of what is run is imported."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.input_checks import Settings
from launch.records import make_directory, write_json, write_text
from launch.spec import ROOT, JobSpec

GIT_TIMEOUT_S = 20.0
MAX_UNTRACKED = 2000
MAX_HASHED_BYTES = 50 * 2**20
"""An untracked file above this, and data, are known by size and time of change."""
MAX_PACKAGES_TOLD = 5
_OURS = ("launch", "sft", "strict_settings", "node_board", "ds_configs")
_DATA = ("train_file", "eval_file", "model_name_or_path", "tokenizer_name", "chat_template_path")


def gather(spec: JobSpec, script: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(the manifest, patch file name → text): what `write` keeps.

    Args:
        spec: the job.
        script: the text of submit.sh.
    """
    code, patches = {}, {}
    for name, folder in code_folders(spec).items():
        code[name], patches[f"{name}.patch"] = code_facts(folder, Path(spec.run_dir))
    facts: dict[str, Any] = {
        "code": code,
        "script": _file_facts(Path(spec.script)),
        "settings": _text_facts(Path(spec.config)) if spec.config is not None else None,
        "python": {"path": spec.python, "submitted_with": sys.executable, "version": platform.python_version()},
        "packages": {dist.metadata["Name"]: dist.version for dist in metadata.distributions()},
    }
    return of_another(spec, script, facts), {name: text for name, text in patches.items() if text}


def of_another(spec: JobSpec, script: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a job that has the code, packages and settings file of `facts`, and words of its own: of a run of
    a sweep, from that of the first."""
    settings = Settings(spec)
    own = {
        **facts,
        "submit_sh": hashlib.sha256(script.encode(errors="surrogateescape")).hexdigest(),
        "zero": _zero(spec, settings),
        "data": _data(settings),
    }
    return own | {"signature": signature(spec, own)}


def write(run_dir: Path, facts: Mapping[str, Any], patches: Mapping[str, str]) -> None:
    """Writes manifest.json, and what was changed since the commits as `code/<name>.patch`."""
    write_json(run_dir / "manifest.json", dict(facts))
    for name, text in patches.items():
        make_directory(run_dir / "code")
        write_text(run_dir / "code" / name, text)


def code_folders(spec: JobSpec) -> dict[str, Path]:
    """Name → folder of the code that runs: this package's, and that of a script elsewhere."""
    folders = {"cleansft": ROOT}
    own = Path(spec.script).parent
    if not own.is_relative_to(ROOT) or _git(own, "rev-parse", "--show-toplevel") != _git(
        ROOT, "rev-parse", "--show-toplevel"
    ):
        folders["script"] = own
    return folders


def code_facts(folder: Path, run_dir: Path) -> tuple[dict[str, Any], str]:
    """(facts, the patch from the commit to what is there now). Without git, hashes of the source files.

    Args:
        folder: of the code.
        run_dir: of the run, which is no code, wherever it lies.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    if top is None or commit is None:
        names = _OURS if folder == ROOT else (".",)
        files = sorted(file for name in names for file in (folder / name).glob("**/*.py" if folder == ROOT else "*.py"))
        return {"folder": str(folder), "commit": None, "files": _hashes(files, folder)}, ""
    patch = _git(Path(top), "diff", "HEAD", "--binary", "--no-ext-diff")
    untracked = _untracked(folder, Path(top), run_dir)
    is_known = patch is not None and untracked is not None
    digest = hashlib.sha256(patch.encode(errors="surrogateescape")).hexdigest() if patch else None
    return {
        "folder": top,
        "commit": commit,
        "branch": _git(folder, "branch", "--show-current"),
        "is_dirty": bool(patch) if is_known else None,
        # What git did not tell in time is like nothing else, so that no two runs are taken for the same.
        "patch_sha256": digest if is_known else f"unknown at {time.time_ns()}",
        "untracked": _hashes([Path(top, name) for name in (untracked or ())[:MAX_UNTRACKED]], Path(top)),
        "num_untracked": None if untracked is None else len(untracked),
    }, patch or ""


def code_files(folder: Path, run_dir: Path) -> tuple[list[Path] | None, Path]:
    """(the files of the code, the folder they are below): those that git knows or would not ignore, without runs; of
    this package without git its own. None where the folder is in no repository.

    Raises:
        LaunchError: git does not list them in time.
    """
    text = _git(folder, "rev-parse", "--show-toplevel")
    if text is not None:
        top = Path(text)
        known, untracked = _git(top, "ls-files", "--cached", "-z"), _untracked(folder, top, run_dir)
        if known is None or untracked is None:
            raise LaunchError(f"git does not list the files of {top} within {GIT_TIMEOUT_S:.0f} s; it must.")
        return [top / name for name in dict.fromkeys((*known.split("\0")[:-1], *untracked))], top
    if folder == ROOT:
        return [file for name in _OURS for file in sorted((ROOT / name).rglob("*")) if file.suffix != ".pyc"], ROOT
    return None, folder


def _untracked(folder: Path, top: Path, run_dir: Path) -> list[str] | None:
    """The files of a repository that git does not know and would not ignore, without those of runs: where this one's
    directory is, if no code lies there, and wherever one is found. None where git does not say."""
    listed = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
    if listed is None:
        return None
    runs_dir, left_out = run_dir.resolve().parent, {run_dir.resolve()}
    if runs_dir.is_relative_to(top) and _git(top, "ls-files", "--cached", "-z", "--", str(runs_dir)) == "":
        left_out.add(runs_dir)
    is_of_runs = dict.fromkeys((folder.resolve(), *folder.resolve().parents), False)

    def belongs_to_runs(path: Path) -> bool:
        if path not in is_of_runs:
            is_of_runs[path] = path in left_out or _holds_runs(path) or belongs_to_runs(path.parent)
        return is_of_runs[path]

    return [name for name in listed.split("\0")[:-1] if not belongs_to_runs((top / name).parent)]


def _holds_runs(folder: Path) -> bool:
    """Whether it is the folder of a run, of a sweep or of stages."""
    if (folder / "job.json").exists() and (folder / "submit.sh").exists():
        return True
    return any((folder / name).exists() for name in ("sweep.json", "stages.json")) and any(folder.glob("*/job.json"))


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails, is not there, or takes too long."""
    argv = ["git", "-C", str(folder), "-c", "core.quotepath=off", *words]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=GIT_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stdout.decode(errors="surrogateescape")
    # A patch and a list of names are kept to the byte.
    return (text if words[0] in ("diff", "ls-files") else text.strip()) if done.returncode == 0 else None


def _hashes(files: Iterable[Path], folder: Path) -> dict[str, Any]:
    return {str(file.relative_to(folder)): _file_facts(file)["sha256"] for file in files if file.is_file()}


def _file_facts(path: Path) -> dict[str, Any]:
    try:
        facts = path.stat()
        small = facts.st_size <= MAX_HASHED_BYTES
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{facts.st_size}.{facts.st_mtime_ns}"
        return {"path": str(path), "sha256": digest}
    except OSError as error:
        return {"path": str(path), "sha256": None, "error": error.strerror}


def _text_facts(path: Path) -> dict[str, Any]:
    try:
        return {**_file_facts(path), "text": path.read_text(encoding="utf-8", errors="surrogateescape")}
    except OSError:
        return _file_facts(path)


def _zero(spec: JobSpec, settings: Settings) -> dict[str, Any] | None:
    """DeepSpeed's settings, as they are now."""
    if settings["deepspeed"] is None:
        return None
    path = settings.path("deepspeed") or ROOT / str(settings["deepspeed"])
    return _text_facts(path)


def _data(settings: Settings) -> dict[str, Any]:
    """What is read, by size and time of change: data is too large to be read twice."""
    named = {name: settings.path(name) for name in _DATA}
    named |= {f"train_files.{given}": settings.resolved(str(given)) for given in settings["train_files"] or ()}
    return {name: _stamp(path) for name, path in named.items() if path is not None and path.exists()}


def _stamp(path: Path) -> dict[str, Any]:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {"path": str(path.resolve()), "files": stamps}


def signature(spec: JobSpec, facts: Mapping[str, Any]) -> str:
    """A hash of what decides the result: settings, code and data, and over how many ranks. Not of where, when and under
    which name it runs. Pure."""
    code = {
        name: [own.get(key) for key in ("commit", "patch_sha256", "untracked", "files")]
        for name, own in facts["code"].items()
    }
    parts = {
        "code": code,
        "script": facts["script"]["sha256"],
        "arguments": _without_place([*spec.script_args, *spec.resume_args], spec),
        "settings": (facts["settings"] or {}).get("sha256"),
        "zero": (facts["zero"] or {}).get("sha256"),
        "data": facts["data"],
        "env": dict(spec.env),
        "world": [spec.resources.nodes, spec.procs_per_node, spec.launcher],
        "python": spec.python,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _without_place(words: Sequence[str], spec: JobSpec) -> list[str]:
    return [word.replace(spec.run_dir, "<run>") for word in words]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, each in a few words: code, settings, data, Python and packages of two manifests. Pure."""
    code = sorted({*before.get("code", {}), *now.get("code", {})})
    found = [_code_difference(name, before["code"].get(name) or {}, now["code"].get(name) or {}) for name in code]
    for part, words in (("settings", "the settings file"), ("zero", "DeepSpeed's settings")):
        if _digest(before.get(part)) != _digest(now.get(part)):
            found.append(words)
    data = {name for name in {*before.get("data", {}), *now.get("data", {})}
            if before["data"].get(name) != now["data"].get(name)}  # fmt: skip
    found += [f"data ({', '.join(sorted(data))})"] if data else []
    versions = [
        {"Python": facts.get("python", {}).get("version"), **facts.get("packages", {})} for facts in (before, now)
    ]
    found += _version_differences(*versions)
    return list(filter(None, found))


def _digest(facts: Mapping[str, Any] | None) -> Any:
    return (facts or {}).get("sha256")


def _code_difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get("commit"), now.get("commit")
    if old != new:
        return f"code of {name} (commit {str(old or 'none')[:9]} → {str(new or 'none')[:9]})"
    if before.get("is_dirty", False) is None or now.get("is_dirty", False) is None:
        return f"code of {name} (git did not say in time)"
    is_same = all(before.get(key) == now.get(key) for key in ("patch_sha256", "untracked", "files"))
    return "" if is_same else f"code of {name} (files that were edited)"


def _version_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = [name for name in sorted({*before, *now}, key=str) if before.get(name) != now.get(name)]
    shown = [f"{name} {before.get(name) or 'none'} → {now.get(name) or 'none'}" for name in changed[:MAX_PACKAGES_TOLD]]
    left = len(changed) - len(shown)
    return [*shown, *([f"{left} more packages"] if left else [])]
