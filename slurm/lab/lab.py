"""A real Slurm cluster of N nodes on this machine: `lab.py up | down | status | exec | check | install` (README.md)."""

from __future__ import annotations

import os
import sys

import lab_exec

DEFAULT_DIR = os.environ.get("CLEANSFT_LAB_DIR") or "/run/cleansft-lab"


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["exec"] and arguments[1:] not in (["-h"], ["--help"]):
        return lab_exec.main(arguments[1:], DEFAULT_DIR)  # before the costlier imports
    import lab_cli

    return lab_cli.main(arguments, DEFAULT_DIR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
