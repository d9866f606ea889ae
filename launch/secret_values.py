"""Values that look like secrets, which have no place in settings: those are written into scripts, records and logs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from strict_settings import Problem
from strict_settings.problems import Described

_FORMS = (
    ("a Hugging Face token", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}"),
    ("a key of OpenAI's or Anthropic's form", r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}"),
    ("a GitHub token", r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    ("a GitLab token", r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{20,}"),
    ("an AWS access key", r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    ("an address with a password", r"://[^/\s:@]+:[^/\s:@]{4,}@"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    # Weights & Biases' keys are bare hex, as are commits: those stand in a path, after an @, or under a telling name.
    ("a Weights & Biases key", r"(?<![A-Za-z0-9/@._-])[0-9a-f]{40}(?![A-Za-z0-9/._-])"),
)
_COMMITS = re.compile(r"revision|commit|sha|hash|ref", re.IGNORECASE)
_TELLING_NAME = re.compile(r"(?:^|[_.])(?:PASSWORD|PASSWD|SECRET|TOKEN|(?:API|ACCESS|SECRET|PRIVATE)_KEY)$")
"""Of an environment variable."""
RULE = "not be written into settings, which end up in scripts, records and logs"
REMEDY = "Set it in the environment that submits, or in a file of mode 0600 that launch.env_file names."


def form_of(text: str, name: str = "") -> str | None:
    """What secret a text looks like; None for all others.

    Args:
        text: the text.
        name: of the setting that holds it.
    """
    for form, pattern in _FORMS:
        if re.search(pattern, text) and not (form.endswith("Biases key") and _COMMITS.search(name)):
            return form
    return "a secret, by its name" if _TELLING_NAME.search(name) and re.fullmatch(r"\S{8,}", text) else None


def secret_problems(name: str, value: object, where: str = "") -> Iterator[Problem]:
    """The secrets in a setting, or in the settings below it. What is said of one does not repeat it."""
    if isinstance(value, str):
        if (form := form_of(value, name)) is not None:
            yield Problem(name, Described(f"what looks like {form}"), RULE, REMEDY, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from secret_problems(f"{name}.{key}" if name else str(key), inner, where)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from secret_problems(name, inner, where)
