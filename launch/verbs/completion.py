"""`launch completion`: a shell's word `launch`, which completes commands, options and the names of runs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from launch import command_line, options, runs
from launch.errors import OK
from launch.spec import ROOT
from launch.verbs.common import print_json, registry

_BASH = """\
launch() {{ PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} {python} -m launch "$@"; }}
_launch_words() {{
  local IFS=$'\\n'
  COMPREPLY=($(launch completion words -- "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2> /dev/null))
}}
complete -o default -F _launch_words launch
"""
_ZSH = """\
launch() {{ PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} {python} -m launch "$@" }}
_launch_words() {{
  local -a found
  found=("${{(@f)$(launch completion words -- "${{(@)words[2,CURRENT]}}" 2> /dev/null)}}")
  found=(${{found:#}})
  (( $#found )) && compadd -- $found || _files
}}
compdef _launch_words launch
"""
_FISH = """\
function launch; PYTHONPATH={root}:$PYTHONPATH {python} -m launch $argv; end
function __launch_words
  set -l typed (commandline -opc) (commandline -ct)
  launch completion words -- $typed[2..-1] 2> /dev/null
end
complete -c launch -f -a '(__launch_words)'
complete -c launch -s f -l config -rF
"""
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
MAX_RUNS = 50


def run(arguments: argparse.Namespace) -> int:
    """Prints the shell's code, or (`words`) what could stand in place of the last word."""
    if arguments.shell == "words":
        found = words_for(arguments.script_args or [""], _names_of_runs)
        print("\n".join(found))
        return OK
    text = SHELLS[arguments.shell].format(root=shlex.quote(str(ROOT)), python=shlex.quote(sys.executable))
    if arguments.json:
        print_json("completion", for_shell=arguments.shell, text=text)
    else:
        print(text, end="")
    return OK


def _names_of_runs() -> Iterable[str]:
    paths = runs.all_runs(registry(), None)
    names = [path.name for path in reversed(paths[-MAX_RUNS:])]
    local = Path.cwd() / "runs"
    return dict.fromkeys([*names, *(sorted(os.listdir(local))[-MAX_RUNS:] if local.is_dir() else [])])


def words_for(typed: list[str], names_of_runs: Callable[[], Iterable[str]]) -> list[str]:
    """What could stand in place of the last of the words that follow `launch`; nothing for a file, or a value."""
    *before, last = typed
    return [word for word in _candidates(before, last, names_of_runs) if word.startswith(last)]


def _candidates(before: list[str], last: str, names_of_runs: Callable[[], Iterable[str]]) -> Iterable[str]:
    if not before:
        return options.VERBS
    if before[0] not in options.VERBS or "--" in before:
        return ()
    parser = command_line.parser_of(before[0])
    known = parser._option_string_actions
    if last.startswith("-"):
        return [name for name in known if name.startswith("--")]
    previous = known.get(before[-1])
    positional = [action for action in parser._actions if not action.option_strings]
    if (previous is not None and previous.nargs != 0) or not positional:
        return ()
    return positional[0].choices or names_of_runs()
