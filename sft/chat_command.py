"""`python -m sft chat`: the command line, the terminal or a pipe, and transformers' own server."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sft.model_subject import ModelSubject, add_model_options, check_decoding, model_subject, number_option
from sft.subject import has_color, setting_names, split_words, tell
from strict_settings import Problem, SettingsError
from strict_settings.problems import Described

_SERVER_NEEDS = ("fastapi", "uvicorn", "openai", "pydantic")
_SERVED = {"template_kwargs", "system_prompt"}
"""Settings that are handed to the server, or of which is told that they are not."""


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    options, settings = split_words(_parser(), words)
    check_decoding(options)
    if options.serve:
        _refuse_unserved(options, settings)
    elif options.port != _parser().get_default("port"):
        raise SettingsError(Problem("--port", options.port, "come with --serve", "Leave it out, or add --serve."))
    subject = model_subject(options.model, "-", settings, options.prompt_file)
    if options.serve:
        _serve(options, subject)
    _talk(options, subject)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft chat",
        description="Talks with a model, in the terminal or through a pipe. /help tells what else there is.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name; an adapter's folder too")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default auto")
    parser.add_argument("--serve", action="store_true", help="instead, an OpenAI-compatible endpoint on this machine")
    parser.add_argument("--port", metavar="N", default="8000", help="of --serve (default 8000)")
    add_model_options(parser, temperature="0.7")
    return parser


def _talk(options: argparse.Namespace, subject: ModelSubject) -> None:
    from sft.answering import decoding_of, usual_stops
    from sft.chat import Chat
    from sft.generation import Generator
    from sft.loading import load_model
    from sft.painting import Brush
    from sft.world import solo_device

    device = solo_device()
    loaded = load_model(subject.args, subject.tokenizer, device)
    room = loaded.max_positions or subject.args.max_length
    decoding = decoding_of(options, subject.args, room)
    stops = usual_stops(loaded.model, subject)
    generator = Generator(loaded.model, stops, subject.masker.pad_token_id, device)
    is_terminal = sys.stdin.isatty()
    chat = Chat(generator, subject.masker, decoding, room, _say, Brush(has_color(options.color)))
    if is_terminal:
        tell(f"{options.model} on {device}. /help tells what there is; Ctrl-C stops an answer.")
    while (line := _line(is_terminal)) is not None:
        if not chat.hear(line):
            break


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _line(is_terminal: bool) -> str | None:
    """The next line of the input; None at its end."""
    try:
        return input("> ") if is_terminal else (sys.stdin.readline() or None)
    except EOFError:
        return None


def _refuse_unserved(options: argparse.Namespace, settings: Sequence[str]) -> None:
    """
    Raises:
        SettingsError: what the server would not heed is given.
    """
    given = [
        Problem(
            f"--{name.replace('_', '-')}", getattr(options, name), "be left out with --serve", "Each request says it."
        )
        for name in ("max_new_tokens", "temperature", "top_p", "top_k")
        if getattr(options, name) != _parser().get_default(name)
    ]
    given += [
        Problem(f"--{name}", Described("given"), "be left out with --serve", "The server loads the model by itself.")
        for name in sorted(setting_names(settings) - _SERVED)
    ]
    if given:
        raise SettingsError(given)


def _serve(options: argparse.Namespace, subject: ModelSubject) -> NoReturn:
    """Becomes transformers' server."""
    port = int(number_option("port", options.port, low=1, high=65535, whole=True))
    _require_free(port)
    missing = [name for name in _SERVER_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f"Missing: {', '.join(missing)}. pip install 'cleansft[serve]'"
        raise SettingsError(Problem("--serve", True, "come with the packages of transformers' server", remedy))
    folder = Path(options.model)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        remedy = f"Merge it first: python -m sft export {folder} --merge --output {folder}-merged"
        raise SettingsError(Problem("MODEL", options.model, "be a whole model with --serve", remedy))
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    model = os.path.abspath(folder) if folder.is_dir() else options.model
    command += [model, "--host", "localhost", "--port", str(port)]
    if subject.args.template_kwargs:
        command += ["--chat-template-kwargs", json.dumps(subject.args.template_kwargs)]
    tell(f"loading {model}; then it answers at the address below, for this machine alone. Ctrl-C ends it.")
    request = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    url = f"http://localhost:{port}/v1/chat/completions"
    tell(shlex.join(["curl", url, "-H", "Content-Type: application/json", "-d", request]))
    if subject.args.system_prompt:
        tell("the server adds no system prompt: send it as the first message.")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # whoever ends this process ends the server


def _require_free(port: int) -> None:
    """
    Raises:
        SettingsError: another program listens there.
    """
    try:
        socket.create_server(("localhost", port)).close()
    except OSError as error:
        rule = f"be one where a server may listen: {os.strerror(error.errno or 0)}"
        raise SettingsError(Problem("--port", port, rule, "Name another.")) from error
