"""The same Jinja, following where each character comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import Frame
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedFormatter
from markupsafe import escape

from sft.masks.origins import UNKNOWN
from sft.masks.sandbox import Clock, Generator, Sandbox, limited
from sft.masks.tracked import Tracked, concatenated
from sft.masks.tracker import TrackedList, Tracker


class _TrackedGenerator(Generator):
    """Writes the template's own strings as calls that tell the tracker of them."""

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.tracker.literal({super()._output_const_repr(group)})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802  (Jinja's own interface)
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.tracker.literal({value!r})")
        else:
            super().visit_Const(node, frame)


class TrackedSandbox(Sandbox):
    """The same, following where each character comes from."""

    code_generator_class = _TrackedGenerator

    def __init__(self, clock: Clock) -> None:
        self.tracker = Tracker()
        super().__init__(clock)
        self.concat = self._concat  # type: ignore[method-assign]
        self.filters.update(tojson=self._tracked_json, safe=_mark_safe, join=_join, string=_string)
        self.filters["_dealt_with"] = self._dealt_with
        self.filters.update(e=_escape, escape=_escape, forceescape=_escape_always)
        self.filters.update(reverse=_kept(self.filters["reverse"]), list=_kept(list))
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
        return limited(self.tracker.concat(pieces))

    def joined(self, parts: Sequence[Any]) -> str:
        return limited(concatenated([part if isinstance(part, str) else str(part) for part in parts]))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and (isinstance(left, _Safe) or isinstance(right, _Safe)):
            left, right = (part if isinstance(part, _Safe) else _safe(_html_escaped(part)) for part in (left, right))
            return _safe(concatenated((left, right)))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        plain = super().wrap_str_format(value)
        template = getattr(value, "__self__", None)
        if plain is None or not isinstance(template, Tracked) or value.__name__ != "format":
            return plain

        def formatted(*args: Any, **kwargs: Any) -> str:
            done = str.__str__(plain(*args, **kwargs))
            return _formatted(SandboxedFormatter(self), template, args, kwargs, done)

        return formatted

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


def _kept(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A filter that gives the messages in another order, as messages that can still be followed."""

    def kept(value: Any) -> Any:
        found = function(value)
        return value.with_items(found) if isinstance(value, TrackedList) else found

    return kept


def _formatted(
    formatter: SandboxedFormatter, template: Tracked, args: Sequence[Any], kwargs: Mapping[str, Any], done: str
) -> str:
    """`str.format` with the origin of what is put in; only the text where a field has a form that is not followed."""
    pieces: list[str] = []
    number = 0
    for literal, field, spec, conversion in formatter.parse(str.__str__(template)):
        pieces.append(Tracked(literal, template.origins[:1]))
        if field is not None:
            if spec or conversion:
                return done
            value, _ = formatter.get_field(field or str(number), args, kwargs)
            number += not field
            pieces.append(_string(value))
    found = concatenated(pieces)
    return found if str.__eq__(found, done) else done


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


@jinja2.pass_context
def _mark_safe(_: Any, value: Any) -> _Safe:
    """The filter. That it takes the context keeps Jinja from working it out when it compiles."""
    return _safe(value)


@jinja2.pass_context
def _escape(_: Any, value: Any) -> _Safe:
    return value if isinstance(value, _Safe) else _safe(_html_escaped(value))


@jinja2.pass_context
def _escape_always(_: Any, value: Any) -> _Safe:
    return _safe(_html_escaped(Tracked(str.__str__(value), value.origins) if isinstance(value, _Safe) else value))


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
