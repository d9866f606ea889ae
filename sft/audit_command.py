"""`python -m sft audit`: the command line and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft.errors import DataError
from sft.subject import Subject, add_options, has_color, split_words, subject_of, write_page
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.audit import Audit
    from sft.findings import Finding


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code: 3 if something hinders the run."""
    options, settings = split_words(_parser(), words)
    data = options.file
    if data is not None and Path(data).suffix in (".yaml", ".yml"):
        if options.config is not None:
            raise SettingsError(Problem("--config", options.config, "not be given with a settings file"))
        options.config, data = data, None
    subject = subject_of(options, settings, data)
    found = _audited(subject, is_quick=options.quick, is_own_data=data is None)
    from sft.findings import findings_of

    findings = findings_of(found, subject.args)
    _show(found, findings, options, subject)
    return DataError.exit_code if any(finding.level == "error" for finding in findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft audit",
        description="Reads and encodes all data of a run, before any GPU is taken: what is refused, cut and trained.",
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", metavar="RUN.yaml | FILE", help="a settings file, or data")
    parser.add_argument("--quick", action="store_true", help="only the first rows, in few words")
    parser.add_argument("--processes", metavar="N", help="ranks of the run (default: those of `launch:` in RUN.yaml)")
    add_options(parser)
    return parser


def _audited(subject: Subject, *, is_quick: bool, is_own_data: bool) -> Audit:
    from tqdm import tqdm

    from sft.audit import Auditor

    args = subject.args
    with tqdm(desc="audit", unit=" rows", delay=1.0, leave=False, file=sys.stderr, disable=is_quick or None) as bar:
        auditor = Auditor(
            subject.masker,
            args.max_length,
            columns=args.columns,
            max_rows=args.max_train_samples,
            is_quick=is_quick,
            progress=bar.update,
        )
        auditor.train(subject.sources)
        if is_own_data and args.eval_file is not None:
            auditor.evaluate(args.eval_file, args.max_eval_samples)
    return auditor.found


def _show(found: Audit, findings: Sequence[Finding], options: argparse.Namespace, subject: Subject) -> None:
    from sft.audit_text import audit_text, quick_text, to_json
    from sft.epoch import epoch_of
    from sft.painting import Brush

    lengths = [(source.kept_lengths, source.times) for source in found.sources]
    epoch = epoch_of(lengths, subject.args, _num_processes(options, subject))
    brush = Brush(has_color(options.color))
    if options.json:
        print(json.dumps(to_json(found, findings, epoch)))
    elif options.quick:
        print(quick_text(found, findings, brush))
    else:
        print(audit_text(found, findings, epoch, brush), end="")
    if options.html is not None:
        from sft.audit_page import audit_page

        write_page(options.html, audit_page(found, findings, epoch, title=", ".join(subject.sources)))


def _num_processes(options: argparse.Namespace, subject: Subject) -> int:
    """The ranks that the settings ask for; as few as they allow where they do not say."""
    if options.processes is not None:
        if not options.processes.isdecimal() or int(options.processes) < 1:
            raise SettingsError(Problem("--processes", options.processes, "be a number above 0"))
        return int(options.processes)
    launch = subject.args.launch
    if not launch:
        return subject.args.sequence_parallel_size
    per_node = launch.get("procs_per_node") or launch.get("gpus_per_node") or 1
    sizes = [launch.get("nodes") or 1, per_node]
    return int(sizes[0]) * int(sizes[1]) if all(isinstance(size, int) and size > 0 for size in sizes) else 1
