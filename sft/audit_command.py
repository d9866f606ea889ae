"""`python -m sft audit`: the whole data set before any GPU is taken."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sft.arguments import load_args
from sft.audit import Audit, audit
from sft.config import Args
from sft.encoding import Encoding
from sft.errors import DataError
from sft.inspect_command import add_tokenizer_options, column_options, mask_options
from sft.inspection import tokenizer_for
from sft.masking import Masker
from sft.tokenizer import pad_token_id

EPILOG = """examples:
  python -m sft audit run.yaml --html audit.html
  python -m sft audit chats.jsonl --tokenizer Qwen/Qwen3-0.6B

exit codes: 0 nothing hinders a run, 2 settings, 3 data (rows are refused, or nothing would be trained)"""


def run(words: Sequence[str]) -> int:
    """Prints what was found; returns the exit code.

    Raises:
        DataError: a source cannot be read.
        SettingsError: the settings are wrong, or the tokenizer cannot be loaded.
    """
    options, rest = _parser().parse_known_args(list(words))
    args = _args(options, rest)
    tokenizer, said = tokenizer_for(args, options.model, options.tokenizer, options.chat_template)
    if said:
        print(said, file=sys.stderr)
    masker = Masker(tokenizer, pad_token_id(tokenizer), mask_options(args, options))
    encoding = Encoding(masker, args.max_length, masker.options.truncation)
    with tqdm(desc="auditing", unit=" rows", delay=2.0, leave=False, disable=options.quick) as bar:
        found = audit(args, encoding, quick=options.quick, progress=bar.update)
    if options.html:
        from sft.page import audit_page

        Path(options.html).write_text(audit_page(found), encoding="utf-8")
    if options.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    elif options.quick:
        _quick_words(found)
    else:
        from sft.painting import audit_text

        print(audit_text(found))
        if options.html:
            print(f"page: {options.html}")
    return DataError.exit_code if found.errors else 0


def _quick_words(found: Audit) -> None:
    """One line, or what is wrong."""
    for error in found.errors:
        print(f"error: {error}", file=sys.stderr)
    counts = found.counts
    share = counts["trained_tokens"] / max(counts["tokens"], 1)
    print(f"audit of the first {counts['rows']:,} rows: {counts['tokens']:,} tokens, {share:.0%} trained")
    for warning in found.warnings:
        print(f"  {warning}")


def _args(options: argparse.Namespace, rest: list[str]) -> Args:
    """The settings of a YAML file, or those that a bare data file stands for."""
    if Path(options.file).suffix in (".yaml", ".yml"):
        more = [f"--max_length={options.max_length}"] if options.max_length else []
        return load_args([*more, *rest], config=options.file)
    words = [f"--train_file={options.file}", "--model_name_or_path=none/none", *rest]
    if options.max_length:
        words.append(f"--max_length={options.max_length}")
    if options.columns:
        words.append(f"--columns={json.dumps(column_options(options.columns))}")
    args = load_args(words)
    return _without_model(args)


def _without_model(args: Args) -> Args:
    import dataclasses

    return dataclasses.replace(args, model_name_or_path=None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft audit",
        description="Reads and encodes the whole data of a run: what is trained, refused, cut, and what an epoch is. "
        "Further options are settings of the run, as for training: --NAME VALUE.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="a run's settings (run.yaml), or a data file")
    add_tokenizer_options(parser)
    parser.add_argument("--quick", action="store_true", help="only the first rows; what `launch submit` does")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--html", help="write a page to look at")
    return parser
