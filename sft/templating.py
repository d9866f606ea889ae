"""Chat templates: conversation → text, as `tokenizer.apply_chat_template` renders it, plain or tracked.

Templates come from strangers. They run in Jinja's immutable sandbox, and a rendering may take only so long and write
only so much.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import escape

from sft.errors import MaskError
from sft.tracking import OUTSIDE, UNKNOWN, Tracked, TrackedList, Tracker, concatenated, held_by

TIME_LIMIT_S = 10.0
"""How long one rendering may take."""
SIZE_LIMIT = 50_000_000
"""How many characters a rendering may write, and a string in it may have."""


class TemplateError(MaskError):
    """The chat template does not render the conversation, for the reason that it gives itself."""


class ChatTemplate:
    """One chat template with its variables."""

    def __init__(self, source: str, variables: Mapping[str, Any], date: str | None = None) -> None:
        """
        Args:
            source: the template.
            variables: the tokenizer's special tokens and whatever else the template reads.
            date: `YYYY-MM-DD` for templates that ask for today's.

        Raises:
            TemplateError: it is no valid template.
        """
        self.source = source
        self._variables = dict(variables)
        self._clock = _Clock(date)
        try:
            self._plain = _Environment(self._clock).from_string(source)
        except jinja2.exceptions.TemplateError as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from error
        self._tracked: tuple[_TrackedEnvironment, jinja2.Template] | None = None

    @property
    def has_asked_for_date(self) -> bool:
        """Whether a rendering so far contains the date, so that its tokens change from day to day."""
        return self._clock.was_read

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of the conversation.

        Raises:
            TemplateError: the template raises, or goes over the limits.
        """
        context = {**self._variables, **(variables or {}), "add_generation_prompt": add_generation_prompt}
        with _refusals():
            return self._plain.render(messages=prepared(messages), tools=tools or None, documents=None, **context)

    def trace(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Tracked:
        """The same text with the origin of each character.

        Raises:
            TemplateError: the template raises or goes over the limits, or its tracked text is another one.
        """
        true = self.render(messages, tools, add_generation_prompt=add_generation_prompt, variables=variables)
        if self._tracked is None:
            environment = _TrackedEnvironment(self._clock)
            template = environment.from_string(self.source)
            template.root_render_func.__globals__["LoopContext"] = environment.loop_context
            self._tracked = environment, template
        environment, template = self._tracked
        tracker = environment.tracker
        tracker.start()
        context = {**self._variables, **(variables or {})}
        with _refusals():
            found = template.render(
                messages=tracker.conversation(prepared(messages)),
                tools=tracker.data(list(tools), held_by(OUTSIDE)) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{name: tracker.variable(value) for name, value in context.items()},
            )
        if not isinstance(found, Tracked) or str.__ne__(found, true):
            raise TemplateError("the chat template does something to its text that cannot be followed.")
        return found


def prepared(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as transformers hands them to templates: no null values, reasoning under both of its names."""
    result = []
    for message in messages:
        plain = {key: value for key, value in message.items() if value is not None}
        names = ("reasoning_content", "thinking", "reasoning")
        reasoning = next((plain[name] for name in names if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        result.append(plain)
    return result


class _Clock:
    """The date that templates see."""

    def __init__(self, date: str | None) -> None:
        self._date = datetime.datetime.fromisoformat(date) if date else None
        self.was_read = False

    def strftime_now(self, pattern: str) -> str:
        self.was_read = True
        return (self._date or datetime.datetime.now()).strftime(pattern)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turns whatever a template raises into its refusal; a rendering that takes too long is ended."""
    try:
        with _time_limit(TIME_LIMIT_S):
            yield
    except TemplateError:
        raise
    except Exception as error:  # templates raise what they like
        raise TemplateError(f"the chat template does not render it: {error}") from error


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises in the block when the time is over. Only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(*_: object) -> None:
        raise TemplateError(f"the chat template takes longer than {seconds:g} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _limited(text: str) -> str:
    if len(text) > SIZE_LIMIT:
        raise TemplateError(f"the chat template writes more than {SIZE_LIMIT:,} characters.")
    return text


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
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


class _Generator(CodeGenerator):
    """Joins strings through the environment, so that `~` is limited, and followed where the environment tracks."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (Jinja's own interface)
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, with limits."""

    code_generator_class: type[CodeGenerator] = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, clock: _Clock) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals.update(raise_exception=_raise_exception, strftime_now=clock.strftime_now, dict=_Dict())
        self.globals["namespace"] = Namespace

    def joined(self, parts: Sequence[Any]) -> str:
        """The `~` operator."""
        return _limited("".join(map(str, parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and _size(left) * _size(right) > SIZE_LIMIT):
            raise SecurityError(f"{operator} with numbers of this size is not allowed")
        found = self.binop_table[operator](left, right)
        return _limited(found) if isinstance(found, str) else found

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if any(type(value) is int and value > SIZE_LIMIT for value in args):
            raise SecurityError("numbers of this size are not allowed")
        return super().call(context, function, *args, **kwargs)


def _size(value: Any) -> int:
    return abs(value) if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 1


class _TrackedGenerator(_Generator):
    """Writes the template's own strings as calls that tell the tracker of them."""

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.tracker.literal({super()._output_const_repr(group)})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802  (Jinja's own interface)
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.tracker.literal({value!r})")
        else:
            super().visit_Const(node, frame)


class _TrackedEnvironment(_Environment):
    """The same, following where each character comes from."""

    code_generator_class = _TrackedGenerator

    def __init__(self, clock: _Clock) -> None:
        self.tracker = Tracker()
        super().__init__(clock)
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters.update(tojson=self._tracked_json, safe=_mark_safe, join=_join, string=_string)
        self.filters["_dealt_with"] = self._dealt_with
        self.globals["strftime_now"] = lambda pattern: self.tracker.literal(clock.strftime_now(pattern))
        self.loop_context = _loop_context(self.tracker)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        # `{% set message = messages[index] %}` is how templates go through the conversation that count by themselves.
        for assignment in source.find_all(nodes.Assign):
            assignment.node = nodes.Filter(assignment.node, "_dealt_with", [], [], None, None)
        return super()._generate(source, *args, **kwargs)

    @jinja2.pass_context  # keeps Jinja from working it out when it compiles
    def _dealt_with(self, _: Any, value: Any) -> Any:
        self.tracker.assigned(value)
        return value

    def _concat(self, pieces: Any) -> str:
        return _limited(self.tracker.concat(pieces))

    def joined(self, parts: Sequence[Any]) -> str:
        return _limited(concatenated([part if isinstance(part, str) else str(part) for part in parts]))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, _Safe) != isinstance(right, _Safe):
            left, right = (part if isinstance(part, _Safe) else _safe(_html_escaped(part)) for part in (left, right))
            return _safe(concatenated((left, right)))
        return super().call_binop(context, operator, left, right)

    def _tracked_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return self.tracker.to_json(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )


class _Safe(Tracked):
    """What the filter `safe` gives: Jinja's Markup, which escapes what is added to it."""

    __slots__ = ()


def _safe(value: Any) -> _Safe:
    text = value if isinstance(value, Tracked) else Tracked(str(value), UNKNOWN)
    return _Safe(str.__str__(text), text.origins)


def _html_escaped(value: Any) -> Any:
    if not isinstance(value, Tracked):
        return str(escape(value))
    parts = [str(escape(character)) for character in str.__iter__(value)]
    return Tracked("".join(parts), "".join(o * len(part) for o, part in zip(value.origins, parts, strict=True)))


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


@jinja2.pass_context
def _mark_safe(_: Any, value: Any) -> _Safe:
    """The filter. That it takes the context keeps Jinja from working it out when it compiles."""
    return _safe(value)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Any, d: str = "", attribute: Any = None) -> str:
    """Jinja's `join`, through a separator that is followed."""
    if attribute is not None:
        get: Callable[[Any], Any] = jinja2.filters.make_attrgetter(environment, attribute)
        value = map(get, value)
    separator = d if isinstance(d, Tracked) else Tracked(str(d), UNKNOWN)
    return separator.join([_string(item) for item in value])


def _loop_context(tracker: Tracker) -> type[LoopContext]:
    """Jinja's `loop`, telling the tracker which message a loop has come to; looking ahead does not count."""

    class TrackedLoop(LoopContext):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._outer: tuple[int, bool] | None = tracker.begin_loop(args[0])
            super().__init__(*args, **kwargs)

        @staticmethod
        def _to_iterator(iterable: Any) -> Iterator[Any]:
            return list.__iter__(iterable) if isinstance(iterable, TrackedList) else iter(iterable)

        def _peek_next(self) -> Any:
            before = tracker.message
            try:
                return super()._peek_next()
            finally:
                tracker.message = before

        def __next__(self) -> tuple[Any, LoopContext]:
            try:
                item, loop = super().__next__()
            except StopIteration:
                self._end()
                raise
            tracker.deal_with(item)
            return item, loop

        def __del__(self) -> None:
            self._end()  # a loop that is left by `break`

        def _end(self) -> None:
            if self._outer is not None:
                tracker.end_loop(self._outer)
                self._outer = None

    return TrackedLoop
