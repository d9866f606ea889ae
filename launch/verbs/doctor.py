"""`launch doctor`: the nodes that a job would get are examined by a short job; what is slow or wrong is named."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from launch import checks, cluster, doctor, input_checks, request_checks, script
from launch.spec import JobSpec, python_path
from launch.verbs.submit import draft_of, request_problems
from strict_settings import SettingsError


def run(arguments: argparse.Namespace) -> int:
    """Prints the checks of a submission, then what the nodes have said; 1 where a node is wrong."""
    draft, spec = draft_of(arguments)
    if problems := request_problems(spec):
        raise SettingsError(draft.placed(problems))
    found = _checks(spec, has_config=arguments.config is not None)
    print(checks.table(found, colours=checks.takes_colours(sys.stderr, os.environ)), file=sys.stderr, flush=True)
    if checks.worst(found) == "error":
        raise checks.ChecksFailedError(found, "No node was examined.")
    runs_dir, ports = Path(spec.run_dir).parent, tuple(arguments.port)
    environ = cluster.without_outer_job(os.environ)
    if spec.executor == "local":
        folder = doctor.shared_folder(runs_dir)
        tell = doctor.tell_on_terminal
        try:
            if spec.hosts:
                answers = doctor.on_hosts(spec, folder, environ, ports, tell)
            else:
                answers = doctor.here(spec, folder, environ, ports, tell)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return doctor.concluded(answers, is_json=arguments.json, checks=checks.facts(found))
    request = {
        "python": [*script.outside_words(spec), spec.python],
        "runs_dir": str(runs_dir),
        "cpus_per_task": spec.cpus_per_task,
        "ports": ports,
        "checks": checks.facts(found),
        "json": arguments.json,
    }
    words = doctor.salloc_words(spec, [sys.executable, "-m", "launch.doctor", json.dumps(request)])
    os.environ.clear()
    os.environ.update(environ, PYTHONPATH=python_path(environ), **doctor.probe_variables(spec))
    sys.stdout.flush()
    os.execvp(words[0], words)


def _checks(spec: JobSpec, *, has_config: bool) -> list[checks.Check]:
    """What needs no run: the request and the disks, and with a settings file its model and data."""
    slurm = request_checks.of_slurm(spec, script.script_text(spec), os.environ) if spec.executor == "slurm" else []
    inputs = input_checks.of_disks(spec)
    memory = input_checks.memory(spec, os.environ) if has_config else None
    return [*slurm, *(inputs if has_config else inputs[:2]), *filter(None, [memory])]
