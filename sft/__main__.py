"""`python -m sft`: from data to a model, and what comes after."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Started by its path, Python would look for modules beside this file, where `config` or `loop` would shadow others.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from sft.env_file import take_secrets
from sft.errors import SftError
from sft.process_end import leave
from strict_settings import Problem, SettingsError

USAGE = """usage: python -m sft COMMAND …

  inspect FILE             what of each row is trained: its tokens, painted
  audit RUN.yaml | FILE    the whole data before any GPU: counts, lengths, refused rows, what an epoch means
  estimate RUN.yaml        memory per device and time of a step, for every way of sharing the model out
  train RUN.yaml | FILE    train here, in this process (sft/train.py)
  evaluate MODEL DATA      answers to held-out rows: matches, F1, ROUGE-L, numbers, loss; two models compared
  optimize-prompt TXT DATA the system prompt, of several, with which a model does best
  chat MODEL               talk with it, in the terminal or through a pipe; --serve for programs
  export RUN               the model of a run or of one of its checkpoints, to hand on, checked, with a card
  import-config FILE       settings of TRL, axolotl or LLaMA-Factory as ours, and what of them is lost
  report RUN …             a page on one run, or on several laid over each other
  settings                 every setting: what it takes, its default, what it does (docs/settings.md)

`python -m sft COMMAND --help` tells more. Exit codes: 0 done, 2 settings, 3 data.
"""


_WITHOUT_SECRETS = ("import-config", "report", "settings")
"""Commands that ask neither a tracker nor the hub."""


def _keep_model_list() -> None:
    from sft.model_list import keep_model_list
    from sft.storage import user_cache_folder

    keep_model_list(user_cache_folder(os.environ))


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command, that of this process where no words are given; its exit code."""
    given = list(sys.argv[1:] if words is None else words)
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "inspect": _inspect,
        "audit": _audit,
        "estimate": _estimate,
        "train": functools.partial(_train, owns_process=words is None),
        "evaluate": _evaluate,
        "optimize-prompt": _optimize_prompt,
        "chat": _chat,
        "export": _export,
        "import-config": _import_config,
        "report": _report,
        "settings": _settings,
    }
    if not given or given[0] in ("--help", "-h"):
        print(USAGE, end="", file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given[0] not in commands:
        print(f"error: the command is {given[0]!r}; it must be {', '.join(commands)}.\n\n{USAGE}", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # data may hold what the terminal's encoding does not
    if given[0] not in _WITHOUT_SECRETS:
        take_secrets()
    _keep_model_list()
    try:
        return commands[given[0]](given[1:])
    except (SettingsError, SftError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has seen enough
        return 141
    except KeyboardInterrupt:
        return 130


def _inspect(words: Sequence[str]) -> int:
    from sft.inspect_command import main

    return main(words)


def _audit(words: Sequence[str]) -> int:
    from sft.audit_command import main

    return main(words)


def _estimate(words: Sequence[str]) -> int:
    from sft.estimate_command import main

    return main(words)


def _train(words: Sequence[str], *, owns_process: bool) -> int:
    from sft.train import main

    return main(words, owns_process=owns_process)


def _evaluate(words: Sequence[str]) -> int:
    from sft.evaluate import main

    return main(words)


def _optimize_prompt(words: Sequence[str]) -> int:
    from sft.optimize_prompt import main

    return main(words)


def _chat(words: Sequence[str]) -> int:
    from sft.chat_command import main

    return main(words)


def _export(words: Sequence[str]) -> int:
    from sft.export_command import main

    return main(words)


def _import_config(words: Sequence[str]) -> int:
    from sft.import_command import main

    return main(words)


def _report(words: Sequence[str]) -> int:
    from sft.report_command import main

    return main(words)


def _settings(words: Sequence[str]) -> int:
    if words and words[0] in ("--help", "-h"):
        print("usage: python -m sft settings\n\nEvery setting of a run, as Markdown: the page docs/settings.md.")
        return 0
    if words:
        raise SettingsError(Problem("the word", words[0], "be left out", "`python -m sft settings` takes none."))
    from sft.settings_page import settings_page

    print(settings_page(), end="")
    return 0


if __name__ == "__main__":
    leave(main())
