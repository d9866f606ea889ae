"""Whether a lab can run on this machine, and the Debian packages that it needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE_OF = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
ACCOUNTING_PACKAGE_OF = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
SSH_PACKAGE_OF = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
"""For tests of hosts without a scheduler: they start daemons of their own on the nodes."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages(package_of: dict[str, str]) -> list[str]:
    found = {package for program, package in package_of.items() if shutil.which(program, path=SYSTEM_PATH) is None}
    return sorted(found)


def has_accounting() -> bool:
    return not missing_packages(ACCOUNTING_PACKAGE_OF)


def obstacles() -> list[str]:
    """Why the lab can't run here; empty if it can."""
    if sys.platform != "linux":
        return [f"platform is {sys.platform}; it must be linux, for network namespaces."]
    found = []
    if missing := missing_packages(PACKAGE_OF):
        extra = missing_packages(ACCOUNTING_PACKAGE_OF | SSH_PACKAGE_OF)
        found.append(f"missing packages: {_apt_line([*missing, *extra])}")
    if os.geteuid() != 0:
        found.append("user isn't root; making network namespaces needs it.")
    elif not missing and (reason := _namespace_obstacle()):
        found.append(f"namespaces, bridges or veth pairs aren't permitted here: {reason}")
    return found


def _namespace_obstacle() -> str:
    """Try in namespaces that vanish at once what the lab does; the reason why it fails, or nothing."""
    script = (
        "mount --bind /etc/hosts /etc/hosts && hostname lab-check && ip link set lo up"
        " && ip link add br0 type bridge && ip link add veth0 type veth peer name eth0"
    )
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _apt_line(packages: list[str]) -> str:
    return f"apt-get update && apt-get install --no-install-recommends {' '.join(packages)}"


def install() -> int:
    """Install what is missing; the exit code."""
    missing = missing_packages(PACKAGE_OF | ACCOUNTING_PACKAGE_OF | SSH_PACKAGE_OF)
    if not missing:
        print("all packages are installed")
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"missing: {' '.join(missing)}. This needs root on Debian or Ubuntu: {_apt_line(missing)}")
        return 1
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _services_not_started():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            code = subprocess.run(["apt-get", "--quiet", *command], env=environment, check=False).returncode
            if code != 0:
                print(f"apt-get {command[0]} ended with exit code {code}")
                return 1
    return 0


@contextlib.contextmanager
def _services_not_started() -> Iterator[None]:
    """Keep Debian from starting the daemons of new packages (policy-rc.d, exit code 101): the lab has its own."""
    if POLICY.exists():  # someone has a policy already; leave it
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
