"""The texts and bars of the trace tree."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cascade.connectors.console.span_nodes import Group, Span, SpanEvent, SpanNode
from cascade.telemetry.trace_shards import PART_EVENT

_INDEX, _LABEL, _ATTEMPT = "cascade.map.index", "cascade.task.label", "cascade.task.attempt"
_FAILED_EVENT = "cascade.task.failed"
_DEFAULT_KINDS = {"INTERNAL", "UNSPECIFIED"}
_MAX_MESSAGE = 60
_MAX_NAMES = 2
_MANY_DAYS = 100
_INSTANT_NS = 1
"""Nanoseconds of a span without a duration: Cascade sets one nanosecond, because Jaeger warns about a duration of zero."""
_UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))


def span_label(span: Span) -> str:
    """Return the name of a span, with the label or index of an item and the number of an attempt."""
    name = span.name or "(no name)"
    item = span.attributes.get(_LABEL, span.attributes.get(_INDEX))
    name = name if item is None else f"{name}[{item}]"
    number = span.attributes.get(_ATTEMPT)
    return f"{name} #{number}" if number is not None and (is_attempt(span) or number not in {0, 1}) else name


def is_wait(span: Span) -> bool:
    return span.name.endswith(" wait")


def is_skipped(span: Span) -> bool:
    return any(key.endswith("result") and value == "skip" for key, value in span.attributes.items())


def is_attempt(span: Span) -> bool:
    return span.name.endswith(" attempt")


def error_text(span: Span) -> str:
    """Return the type and message of a span's error; empty for a span without an error."""
    if span.status != "ERROR":
        return ""
    recorded: Mapping[str, Any] = next((event.attributes for event in span.events if event.name == "exception"), {})
    kind = span.attributes.get("error.type") or recorded.get("exception.type") or "ERROR"
    return f"✗ {_exception(kind, span.status_message or recorded.get('exception.message'))}"


def facts(span: Span, *, attempts: int, is_top: bool) -> list[str]:
    """Return short facts about a span, the most important first."""
    found = [
        counted(attempts - 1, "retry") if attempts > 1 else "",
        _reason(span),
        "" if is_top or span.kind in _DEFAULT_KINDS else span.kind.lower(),
    ]
    return [fact for fact in found if fact]


def events_of(node: SpanNode) -> list[SpanEvent]:
    """Return the events that no other line shows.

    The line of the span shows its parts and the exception of an error, and the lines below it the failures of its tasks.
    """
    is_error = node.span.status == "ERROR"
    shown = {PART_EVENT, "exception"} if is_error else {PART_EVENT}
    if node.errors > is_error:
        shown.add(_FAILED_EVENT)
    return [event for event in node.span.events if event.name not in shown]


def event_text(event: SpanEvent, span: Span) -> str:
    """Return the name, the time since the span's start, and the attributes of an event."""
    if event.name == "exception":
        text = _exception(event.attributes.get("exception.type"), event.attributes.get("exception.message"))
    elif event.name == _FAILED_EVENT:
        text = _failure(event.attributes)
    else:
        text = " ".join(f"{key}={value}" for key, value in event.attributes.items() if key != "exception.stacktrace")
    return f"{event.name}  +{duration(event.time_ns - span.start_ns)}  {text}".rstrip()


def links_text(names: Iterable[str]) -> str:
    """Return the targets of links, by name if they are few: `"← load, clean"`."""
    counts = Counter(names)
    if len(counts) > _MAX_NAMES:
        return f"← {counted(counts.total(), 'span')}"
    return "← " + ", ".join(name if count == 1 else f"{count:,} x {name}" for name, count in counts.items())


def group_text(group: Group) -> str:
    """Return the number, the range of durations and the errors of a group."""
    facts = [
        f"… {group.count:,} more {group.name or 'of various names'}",
        _range(group.shortest_ns, group.longest_ns) if group.longest_ns > _INSTANT_NS else "",
        counted(group.errors, "error") if group.errors else "",
        f"{counted(group.below, 'span')} below" if group.below else "",
    ]
    return ", ".join(fact for fact in facts if fact)


def title(tops: list[SpanNode]) -> str:
    """Return the line above a trace."""
    errors = sum(top.errors for top in tops)
    failed = f", {counted(errors, 'error')}" if errors else ""
    return f"trace {tops[0].span.trace_id} · {counted(sum(top.size for top in tops), 'span')}{failed}"


def counted(count: int, noun: str) -> str:
    """Return `"1 retry"`, `"1,204 spans"`."""
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def duration(length_ns: int) -> str:
    """Return a duration with three digits in at most eight characters: `"412 µs"`, `"1.20 s"`, `"3m 12s"`, `"2d 3h"`."""
    if length_ns < 0:
        return f"-{duration(-length_ns)}"
    if length_ns <= _INSTANT_NS:
        return "0"
    minutes, seconds = divmod(round(length_ns / 1e9), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d {hours_left}h" if days < _MANY_DAYS else f"{days}d"
    if hours:
        return f"{hours}h {minutes:02}m"
    if minutes:
        return f"{minutes}m {seconds:02}s"
    # A value that would be rounded to 1000 has the next larger unit.
    size, unit = next((size, unit) for size, unit in _UNITS if length_ns >= 0.9995 * size)
    value = length_ns / size
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0  # noqa: PLR2004 - three digits
    return f"{value:.{digits if size > 1 else 0}f} {unit}"


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """A range of time, in nanoseconds, that is drawn on a number of terminal cells."""

    start_ns: int
    end_ns: int
    cells: int

    def bar(self, start_ns: int, end_ns: int, *, light: bool = False) -> str:
        """Return a line of `cells` characters with a bar to half a cell. A span without a duration is a tick."""
        if not self.cells:
            return ""
        first, last = self._half_cell(start_ns), self._half_cell(max(start_ns, end_ns))
        if end_ns - start_ns <= _INSTANT_NS:
            drawn = "│"
        elif first == last:
            drawn = "░" if light else "▏▕"[first % 2]
        else:
            halves = range(first // 2, (last - 1) // 2 + 1)
            drawn = "░" * len(halves) if light else "".join(self._block(cell, first, last) for cell in halves)
        cell = min(first // 2, self.cells - len(drawn))
        return (" " * cell + drawn).ljust(self.cells)

    def scale(self) -> str:
        """Return the line above the bars: from 0 to the length of the range."""
        total = duration(self.end_ns - self.start_ns)
        line = self.cells - len(total) - 3
        return f"0 {'─' * line} {total}" if line > 0 else " " * self.cells

    def _half_cell(self, at_ns: int) -> int:
        length = max(1, self.end_ns - self.start_ns)
        return (min(max(at_ns, self.start_ns), self.end_ns) - self.start_ns) * 2 * self.cells // length

    def _block(self, cell: int, first: int, last: int) -> str:
        left, right = first <= 2 * cell, 2 * cell + 1 < last
        return "█" if left and right else "▌" if left else "▐"


def _range(shortest_ns: int, longest_ns: int) -> str:
    """Return a range of durations; a common unit is named once."""
    low, high = duration(shortest_ns), duration(longest_ns)
    if low == high:
        return high
    number, _, unit = low.partition(" ")
    return f"{number if unit and high.endswith(f' {unit}') else low}–{high}"  # noqa: RUF001 - the dash of a range


def _exception(kind: object, message: object) -> str:
    kind, text = str(kind or ""), str(message or "")
    text = text.removeprefix(f"{kind}: ")
    text = text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
    return f"{kind}: {text}" if text and text != kind else kind


def _failure(attributes: Mapping[str, Any]) -> str:
    """Return the task and the error of a failure after which the run continued."""
    name, item = attributes.get("cascade.task.name"), attributes.get(_LABEL, attributes.get(_INDEX))
    error = _exception(attributes.get("error.type"), attributes.get("exception.message"))
    return f"{name if item is None else f'{name}[{item}]'}  ✗ {error}"


def _reason(span: Span) -> str:
    reasons = (value for key, value in span.attributes.items() if key.startswith("cascade.") and key.endswith("reason"))
    reason = str(next(reasons, ""))
    if not is_skipped(span) or span.name.endswith(" skipped"):
        return reason
    return f"skipped: {reason}".removesuffix(": ")
