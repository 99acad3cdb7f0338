"""Received spans, with queries for tests."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, overload

from cascade.telemetry.attributes import PART_NUMBER

_K = TypeVar("_K")
_MAX_NAMES = 20


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event of a span."""

    name: str
    time_ns: int
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    dropped_attributes_count: int = 0


@dataclass(frozen=True, slots=True)
class ReceivedLink:
    """A link from a span to a span of the same or another trace. The ids are lower-case hex."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    trace_state: str = ""
    flags: int = 0
    dropped_attributes_count: int = 0


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span, decoded from OTLP.

    Attributes:
        trace_id: 32 lower-case hex digits; `span_id` and `parent_span_id` have 16.
        parent_span_id: None for a root span.
        kind: `"INTERNAL"`, `"SERVER"`, `"CLIENT"`, `"PRODUCER"`, `"CONSUMER"` or `"UNSPECIFIED"`.
        start_ns: Nanoseconds since the Unix epoch, as `end_ns`.
        status: `"UNSET"`, `"OK"` or `"ERROR"`.
        attributes: Arrays are lists. An empty value is None.
        resource: The attributes of the resource.
        scope: The name of the instrumentation scope.
        flags: The flags of OTLP. The lowest 8 bits are the W3C trace flags.
        size: Bytes of the span in protobuf; 0 if it was not decoded from protobuf.
    """

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    kind: str = "INTERNAL"
    start_ns: int = 0
    end_ns: int = 0
    status: str = "UNSET"
    status_message: str = ""
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    events: tuple[ReceivedEvent, ...] = ()
    links: tuple[ReceivedLink, ...] = ()
    resource: dict[str, Any] = field(default_factory=dict, hash=False)
    scope: str = ""
    scope_version: str = ""
    flags: int = 0
    trace_state: str = ""
    dropped_attributes_count: int = 0
    dropped_events_count: int = 0
    dropped_links_count: int = 0
    size: int = field(default=0, compare=False)

    @property
    def duration_ms(self) -> float:
        """Milliseconds from start to end. Negative if the end is before the start."""
        return (self.end_ns - self.start_ns) / 1e6


class Spans(Sequence[ReceivedSpan]):
    """An immutable sequence of spans in the order of their arrival."""

    def __init__(self, spans: Iterable[ReceivedSpan] = ()) -> None:
        self._spans = tuple(spans)

    @overload
    def __getitem__(self, index: int) -> ReceivedSpan: ...
    @overload
    def __getitem__(self, index: slice) -> "Spans": ...
    def __getitem__(self, index: int | slice) -> "ReceivedSpan | Spans":
        return Spans(self._spans[index]) if isinstance(index, slice) else self._spans[index]

    def __len__(self) -> int:
        return len(self._spans)

    def __eq__(self, other: object) -> bool:
        return self._spans == other._spans if isinstance(other, Spans) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._spans)

    def __repr__(self) -> str:
        return f"<Spans: {self.summary()}>"

    def summary(self) -> str:
        """The number of spans of each name: `"2 x load, 1 x run report"`."""
        counts = Counter(span.name for span in self._spans).most_common()
        shown = ", ".join(f"{count} x {name}" for name, count in counts[:_MAX_NAMES]) or "no spans"
        return f"{shown}, and {len(counts) - _MAX_NAMES} more names" if len(counts) > _MAX_NAMES else shown

    def named(self, name: str) -> list[ReceivedSpan]:
        """Return all spans with this name."""
        return list(self._by_name.get(name, ()))

    def one(self, name: str) -> ReceivedSpan:
        """Return the only span with this name.

        Raises:
            AssertionError: There is none, or more than one. The text lists the names.
        """
        return self._only(self.named(name), f"span named '{name}'")

    def by_id(self, span_id: str) -> ReceivedSpan:
        """Return the only span with this id.

        Raises:
            AssertionError: There is none, or it was received more than once.
        """
        return self._only(self._by_id.get(span_id, []), f"span with the id {span_id}")

    def children(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """Return the children of a span in the order of their start. For a split run or map, those in its parts too."""
        below = [child for one in (span, *self.parts(span)) for child in self._by_parent.get(_key(one), ())]
        return sorted(below, key=lambda child: child.start_ns)

    def parts(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """Return the root spans of the parts of a split run or map, in the order of their part numbers."""
        return sorted(self._parts_of.get(_key(span), ()), key=lambda part: part.attributes[PART_NUMBER])

    def roots(self) -> list[ReceivedSpan]:
        """Return the spans without a parent."""
        return [span for span in self._spans if span.parent_span_id is None]

    def orphans(self) -> list[ReceivedSpan]:
        """Return the spans whose parent is missing."""
        return [
            span
            for span in self._spans
            if span.parent_span_id is not None and (span.trace_id, span.parent_span_id) not in self._ids
        ]

    def traces(self) -> "dict[str, Spans]":
        """Return the spans of each trace by trace id."""
        groups = _grouped(self._spans, lambda span: span.trace_id)
        return {trace_id: Spans(spans) for trace_id, spans in groups.items()}

    def _only(self, found: list[ReceivedSpan], wanted: str) -> ReceivedSpan:
        if len(found) != 1:
            raise AssertionError(f"expected one {wanted}, found {len(found)} among: {self.summary()}")
        return found[0]

    @cached_property
    def _by_name(self) -> dict[str, list[ReceivedSpan]]:
        return _grouped(self._spans, lambda span: span.name)

    @cached_property
    def _by_id(self) -> dict[str, list[ReceivedSpan]]:
        return _grouped(self._spans, lambda span: span.span_id)

    @cached_property
    def _parts_of(self) -> dict[tuple[str, str], list[ReceivedSpan]]:
        roots = (span for span in self.roots() if PART_NUMBER in span.attributes and span.links)
        return _grouped(roots, lambda root: _key(root.links[0]))

    @cached_property
    def _by_parent(self) -> dict[tuple[str, str | None], list[ReceivedSpan]]:
        return _grouped(self._spans, lambda span: (span.trace_id, span.parent_span_id))

    @cached_property
    def _ids(self) -> set[tuple[str, str]]:
        return {(span.trace_id, span.span_id) for span in self._spans}


def _key(one: ReceivedSpan | ReceivedLink) -> tuple[str, str]:
    return one.trace_id, one.span_id


def _grouped(spans: Iterable[ReceivedSpan], key: Callable[[ReceivedSpan], _K]) -> dict[_K, list[ReceivedSpan]]:
    groups: dict[_K, list[ReceivedSpan]] = {}
    for span in spans:
        groups.setdefault(key(span), []).append(span)
    return groups
