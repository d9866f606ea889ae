"""`launch profiles`: those that there are, one of them, or a first one made from what Slurm says of itself."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Mapping
from pathlib import Path

from launch import jobs, profiles
from launch.errors import OK, LaunchError
from launch.records import make_directory, write_text
from launch.settings import LaunchSettings
from launch.verbs.common import print_json
from strict_settings import build, read_yaml


def run(arguments: argparse.Namespace) -> int:
    """Lists, shows or makes profiles."""
    actions = {"list": _list, "show": _show, "init": _init}
    return actions[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> int:
    found = list(profiles.all_profiles(Path.cwd(), Path.home()))
    current = os.environ.get(profiles.VARIABLE)
    if arguments.json:
        print_json("profiles", profiles=[{"name": path.stem, "path": str(path)} for path in found], current=current)
        return OK
    width = max((len(path.stem) for path in found), default=0)
    for path in found:
        mark = "*" if path.stem == current else " "
        print(f"{mark} {path.stem.ljust(width)}  {_title(path)}  ({path})")
    if not found:
        print("no profile; `python -m launch profiles init` makes one. Examples:")
        for path in profiles.examples():
            print(f"  {path}")
    elif current is not None:
        print(f"* {profiles.VARIABLE} names it: it is used where --profile is not given")
    return OK


def _title(path: Path) -> str:
    """The first comment of the file."""
    line = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return line.lstrip("# ").rstrip().removeprefix(f"{path.stem}: ") if line.startswith("#") else ""


def _show(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        raise LaunchError("no profile is named; give its NAME, as `python -m launch profiles list` shows it.")
    path = profiles.path_of(arguments.name, Path.cwd(), Path.home())
    source = read_yaml(path)
    build(LaunchSettings, source)  # a mistake in it is told here too
    if arguments.json:
        print_json("profiles", name=path.stem, path=str(path), settings=source.values)
    else:
        print(f"# {path}\n{path.read_text(encoding='utf-8')}", end="")
    return OK


def _init(arguments: argparse.Namespace) -> int:
    kinds = profiles.parse_nodes(_said(profiles.SINFO))
    name = arguments.name or profiles.cluster_name(_said(("scontrol", "show", "config")))
    kind = profiles.chosen_kind(kinds, arguments.partition)
    text = profiles.proposal(kinds, kind, name, getpass.getuser(), _accounts())
    project, own = profiles.folders(Path.cwd(), Path.home())
    path = (project if arguments.project else own) / f"{name}.yaml"
    if path.exists() and not arguments.force:
        raise LaunchError(f"{path} exists; it must not be overwritten. Give another NAME, or --force.")
    make_directory(path.parent)
    write_text(path, text, mode=0o644)
    build(LaunchSettings, read_yaml(path))
    if arguments.json:
        print_json("profiles", name=name, path=str(path), text=text)
    else:
        print(f"{text}\n# wrote {path}\n# use it: python -m launch submit --profile {name} …")
    return OK


def _said(command: tuple[str, ...]) -> str:
    """What one of Slurm's commands says.

    Raises:
        LaunchError: it is not there, or fails.
    """
    result = jobs.command(*command)
    if result.returncode != 0:
        raise LaunchError(f"{command[0]} says: {jobs.last_line(result.stderr)}. A profile is made where Slurm answers.")
    return result.stdout


def _accounts() -> Mapping[str, str]:
    """This user's accounts with their QoS names; nothing where there is no accounting."""
    try:
        said = _said(tuple(word.format(user=getpass.getuser()) for word in profiles.ACCOUNTS))
    except LaunchError:
        return {}
    pairs = (line.split("|") for line in said.splitlines() if "|" in line)
    return {account: qos for account, qos in pairs if account}
