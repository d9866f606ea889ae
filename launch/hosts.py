"""Machines that are reached by ssh: which names may be given, what ssh is told, which variables go with a job. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from strict_settings import Problem

CONNECT_TIMEOUT_S = 10
ALIVE_INTERVAL_S, ALIVE_COUNT = 20, 5
"""ssh gives a connection up 100 s after a cut at the earliest: the other end has ended its ranks by then
(`launch.agents.SILENCE_S`), and the next attempt finds the machine free."""
UNREACHABLE = 255
"""With which ssh ends where it fails itself."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

_OF_ACCOUNT = ("HOME", "LOGNAME", "USER", "SHELL", "MAIL")
"""Those of the account there stay."""
_OF_SESSION = (
    "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "TERM", "COLORTERM", "COLUMNS", "LINES", "SHLVL", "PWD", "OLDPWD", "_",
    "STY", "WINDOW", "WINDOWID", "LS_COLORS", "KRB5CCNAME", "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM",
    "MANAGERPID", "SYSTEMD_EXEC_PID",
)  # fmt: skip
_OF_MACHINE = (
    "HOSTNAME", "HOST", "HOSTTYPE", "MACHTYPE", "TMPDIR", "TMP", "TEMP", "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL",
)  # fmt: skip
_PREFIXES = ("SSH_", "XDG_", "DBUS_", "TERM_", "TMUX", "SUDO_", "VSCODE_", "GPG_", "DESKTOP_", "GNOME_", "KDE_")
_LEFT_HERE = frozenset((*_OF_ACCOUNT, *_OF_SESSION, *_OF_MACHINE))


def host_problems(hosts: Sequence[str], options: Sequence[str] = ()) -> Iterator[Problem]:
    """Hosts that ssh could take for something else, or that are one machine; options that it would take for a host."""
    if options and not options[0].startswith("-"):
        yield Problem("ssh_options", options[0], "begin with an option of ssh", 'Write [-p, "2222"], for example.')
    names: dict[str, str] = {}
    for host in hosts:
        user, at, _ = host.rpartition("@")
        name = node_name(host)
        if not _is_machine(name) or (at and not _USER.fullmatch(user)):
            rule = "be a name, user@name, or an IPv4 address"
            yield Problem("hosts", host, rule, "Options for ssh are launch.ssh_options.")
        elif name.lower() in names:
            rule = f"be another machine than {names[name.lower()]}"
            yield Problem("hosts", host, rule, "Name each once; --procs-per-node gives it more ranks.")
        names.setdefault(name.lower(), host)


def _is_machine(name: str) -> bool:
    if re.fullmatch(r"[0-9.]+", name):
        parts = name.split(".")
        return len(parts) == 4 and all(re.fullmatch(r"0|[1-9][0-9]{0,2}", part) and int(part) < 256 for part in parts)
    return _NAME.fullmatch(name) is not None


def node_name(host: str) -> str:
    """The machine of `user@name`."""
    return host.rpartition("@")[2]


def ssh_words(host: str, options: Sequence[str], command: Sequence[str], log: str | None = None) -> list[str]:
    """ssh that runs a command on a host without ever asking for anything.

    It shares a connection that is there already (ControlPath of somebody's configuration), and is none that others
    share; ports that the configuration forwards are left to logins.

    Args:
        host: as it was given.
        options: of the settings; what comes first wins, of ssh's -o options.
        command: the words that run there.
        log: where ssh's own messages go, so that they are told apart from the command's.
    """
    own = {
        "BatchMode": "yes",
        "ControlMaster": "no",
        "ClearAllForwardings": "yes",
        "ServerAliveInterval": ALIVE_INTERVAL_S,
        "ServerAliveCountMax": ALIVE_COUNT,
    }
    return [
        "ssh", "-T", "-x", *(word for name, value in own.items() for word in ("-o", f"{name}={value}")),
        *(["-E", log] if log is not None else []),
        *options, "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}", host, shlex.join(command),
    ]  # fmt: skip


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job takes along to a host: all but those of this login, of this machine and its devices, and
    of the account, which are the host's own."""
    return {name: value for name, value in environ.items() if name not in _LEFT_HERE and not name.startswith(_PREFIXES)}
