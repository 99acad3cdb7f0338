"""Arranges spans as trees: children below their parents, parts below their run or map, similar children in groups."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cascade.telemetry.attributes import PART_NUMBER
from cascade.telemetry.trace_shards import PART_EVENT

_SHOWN_SLOWEST = 3
"""The slowest children that are shown beside a group."""

_Key = tuple[str, str]


class SpanEvent(Protocol):
    """An event of a span."""

    @property
    def name(self) -> str: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...


class SpanLink(Protocol):
    """A link of a span."""

    @property
    def trace_id(self) -> str: ...
    @property
    def span_id(self) -> str: ...


class Span(Protocol):
    """The fields of `cascade.testing.ReceivedSpan` that the trace tree shows."""

    @property
    def name(self) -> str: ...
    @property
    def trace_id(self) -> str: ...
    @property
    def span_id(self) -> str: ...
    @property
    def parent_span_id(self) -> str | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def start_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def status_message(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def resource(self) -> Mapping[str, Any]: ...
    @property
    def events(self) -> Sequence[SpanEvent]: ...
    @property
    def links(self) -> Sequence[SpanLink]: ...


@dataclass(slots=True, eq=False)
class SpanNode:
    """A span with its children.

    Attributes:
        linked: The names of the linked spans.
        is_part: Whether the span is the root of a part of a split trace.
        size: The number of spans in the subtree.
        is_notable: Whether the subtree has an error or an event.
    """

    span: Span
    children: "list[SpanNode]" = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    is_part: bool = False
    size: int = 1
    is_notable: bool = False

    @property
    def key(self) -> _Key:
        return self.span.trace_id, self.span.span_id


@dataclass(frozen=True, slots=True)
class Group:
    """Children with the same name, which the tree shows in one line."""

    nodes: tuple[SpanNode, ...]

    @property
    def errors(self) -> int:
        return sum(node.span.status == "ERROR" for node in self.nodes)


def build_trees(spans: Sequence[Span]) -> list[list[SpanNode]]:
    """Return the top nodes of each trace in the order of their start. The parts of a split trace are below it."""
    nodes = [SpanNode(span) for span in spans]
    by_key: dict[_Key, SpanNode] = {}
    for node in nodes:
        by_key.setdefault(node.key, node)
    tops = _break_cycles(_attach_to_parents(nodes, by_key), nodes)
    traces: dict[str, list[SpanNode]] = {}
    # A part with the start time of its run or map comes after it.
    for top in sorted(tops, key=lambda top: (top.span.start_ns, top.span.name.endswith(" part"))):
        traces.setdefault(top.span.trace_id, []).append(top)
    _attach_parts(traces, by_key)
    for node in nodes:
        node.children.sort(key=lambda child: child.span.start_ns)
        node.linked = _linked(node, by_key)
    groups = [[top for top in trace if not top.is_part] for trace in traces.values()]
    for top in (top for group in groups for top in group):
        _summarize(top)
    return [group for group in groups if group]


def walk(tops: Iterable[SpanNode]) -> Iterator[SpanNode]:
    """Yield all nodes, parents before their children."""
    stack = list(tops)
    while stack:
        node = stack.pop()
        yield node
        stack += node.children


def group_children(children: list[SpanNode], max_children: int) -> list[SpanNode | Group]:
    """Return the children with a group for each name of more than `max_children` children.

    The slowest children and those with errors or events are not grouped. A group follows the last child of its name.
    """
    by_name: dict[str, list[SpanNode]] = {}
    for child in children:
        by_name.setdefault(child.span.name, []).append(child)
    grouped = {name: _grouped(same, max_children) for name, same in by_name.items() if len(same) > max_children}
    hidden = {id(node) for nodes in grouped.values() for node in nodes}
    shown = [child for child in children if id(child) not in hidden]
    last = {child.span.name: number for number, child in enumerate(shown)}
    rows: list[SpanNode | Group] = []
    for number, child in enumerate(shown):
        rows.append(child)
        if last[child.span.name] == number and child.span.name in grouped:
            rows.append(Group(tuple(grouped[child.span.name])))
    return rows


def _grouped(same: list[SpanNode], max_children: int) -> list[SpanNode]:
    slowest = sorted(same, key=lambda node: node.span.start_ns - node.span.end_ns)
    shown = [node for node in slowest if node.is_notable][:max_children]
    kept = {id(node) for node in shown}
    others = [node for node in slowest if id(node) not in kept]
    kept |= {id(node) for node in others[: min(_SHOWN_SLOWEST, max_children - len(shown))]}
    return [node for node in same if id(node) not in kept]


def _attach_to_parents(nodes: list[SpanNode], by_key: dict[_Key, SpanNode]) -> list[SpanNode]:
    """Attach each node to its parent and return the nodes without one."""
    tops = []
    for node in nodes:
        parent_id = node.span.parent_span_id
        parent = by_key.get((node.span.trace_id, parent_id)) if parent_id else None
        if parent is None or parent is node:
            tops.append(node)
        else:
            parent.children.append(node)
    return tops


def _break_cycles(tops: list[SpanNode], nodes: list[SpanNode]) -> list[SpanNode]:
    """Add the first node of each cycle of parents to the top nodes."""
    seen = {id(node) for node in walk(tops)}
    for node in nodes if len(seen) < len(nodes) else ():
        if id(node) in seen:
            continue
        for other in nodes:
            other.children = [child for child in other.children if child is not node]
        tops = [*tops, node]
        seen |= {id(below) for below in walk([node])}
    return tops


def _attach_parts(traces: dict[str, list[SpanNode]], by_key: dict[_Key, SpanNode]) -> None:
    rank = {trace_id: number for number, trace_id in enumerate(traces)}
    for top in (top for trace in traces.values() for top in trace if top.span.parent_span_id is None):
        linked = (by_key.get(_key(link)) for link in top.span.links)
        # Only an earlier trace can be the owner: two traces could otherwise own each other.
        owner = next(
            (node for node in linked if node and _owns(node, top) and rank[node.key[0]] < rank[top.key[0]]), None
        )
        if owner is not None:
            owner.children.append(top)
            top.is_part = True


def _owns(node: SpanNode, part: SpanNode) -> bool:
    """Whether a node is the run or map of a part. A part number is sufficient, because a run or map has links to 64 parts only."""
    return PART_NUMBER in part.span.attributes or any(_key(link) == part.key for link in node.span.links)


def _linked(node: SpanNode, by_key: dict[_Key, SpanNode]) -> list[str]:
    parts = {child.key for child in node.children if child.is_part}
    names = []
    for link in node.span.links:
        target = by_key.get(_key(link))
        if target is None:
            names.append(f"{link.span_id[:8]}… elsewhere")
        elif not (node.is_part and _owns(target, node)) and _key(link) not in parts:
            names.append(target.span.name)
    return names


def _key(link: SpanLink) -> _Key:
    return link.trace_id, link.span_id


def _summarize(top: SpanNode) -> None:
    for node in reversed(list(walk([top]))):
        node.size = 1 + sum(child.size for child in node.children)
        own = node.span.status == "ERROR" or any(event.name != PART_EVENT for event in node.span.events)
        node.is_notable = own or any(child.is_notable for child in node.children)
