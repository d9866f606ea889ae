"""Jinja as transformers sets it up for chat templates, with limits: templates come from strangers."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sft.errors import MaskError

TIME_LIMIT_S = 10.0
"""How long one rendering may take."""
SIZE_LIMIT = 50_000_000
"""How many characters a rendering may write, and a string in it may have."""


class TemplateError(MaskError):
    """The chat template does not render the conversation, for the reason that it gives itself."""


class LimitError(TemplateError):
    """The chat template takes too long or writes too much."""


class Clock:
    """The date that templates see."""

    def __init__(self, date: str | None) -> None:
        self._date = datetime.datetime.fromisoformat(date) if date else None
        self.was_read = False

    def strftime_now(self, pattern: str) -> str:
        self.was_read = True
        return (self._date or datetime.datetime.now()).strftime(pattern)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns whatever a template raises into its refusal; a rendering that takes too long is ended."""
    try:
        with time_limit(TIME_LIMIT_S):
            yield
    except TemplateError:
        raise
    except Exception as error:  # templates raise what they like
        raise TemplateError(f"the chat template does not render it: {error}") from error


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises in the block when the time is over. Only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(*_: object) -> None:
        raise LimitError(f"the chat template takes longer than {seconds:g} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limited(text: str) -> str:
    """The text, if it is no longer than a rendering may be."""
    if len(text) > SIZE_LIMIT:
        raise LimitError(f"the chat template writes more than {SIZE_LIMIT:,} characters.")
    return text


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter as transformers has it: without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """`dict` for templates, without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: a block like any other; what it marks is found without it."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Generator(CodeGenerator):
    """Joins strings through the environment, so that `~` is limited, and followed where the environment tracks."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (Jinja's own interface)
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, with limits."""

    code_generator_class: type[CodeGenerator] = Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, clock: Clock) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = to_json
        self.globals.update(raise_exception=_raise_exception, strftime_now=clock.strftime_now, dict=_Dict())
        self.globals["namespace"] = Namespace

    def joined(self, parts: Sequence[Any]) -> str:
        """The `~` operator."""
        return limited("".join(map(str, parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("** is not allowed")
        if operator == "*" and _size(left) * _size(right) > SIZE_LIMIT:
            raise SecurityError("* with numbers of this size is not allowed")
        found = self.binop_table[operator](left, right)
        return limited(found) if isinstance(found, str) else found

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if any(type(value) is int and value > SIZE_LIMIT for value in args):
            raise SecurityError("numbers of this size are not allowed")
        return super().call(context, function, *args, **kwargs)


def _size(value: Any) -> int:
    return abs(value) if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 1
