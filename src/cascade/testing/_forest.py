"""Which span hangs below which."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cascade.telemetry.attributes import PART_NUMBER
from cascade.telemetry.parts import PART_EVENT
from cascade.testing.spans import ReceivedLink, ReceivedSpan

_Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class Node:
    """A span in its place.

    Attributes:
        sources: The names of the spans that it is linked to.
        joined: It is the root of another trace, which is a part of this one.
        size: The number of spans from here down.
        troubled: There is an error or an event from here down.
    """

    span: ReceivedSpan
    children: "list[Node]" = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    joined: bool = False
    size: int = 1
    troubled: bool = False

    @property
    def key(self) -> _Key:
        return self.span.trace_id, self.span.span_id


def plant(spans: Sequence[ReceivedSpan]) -> list[list[Node]]:
    """The tops of each trace, in start order; a trace that is a part of another hangs below the span it belongs to."""
    nodes = [Node(span) for span in spans]
    by_key: dict[_Key, Node] = {}
    for node in nodes:
        by_key.setdefault(node.key, node)
    tops = _break_rings(_hang(nodes, by_key), nodes)
    traces = _traces(tops)
    _join_parts(traces, by_key)
    for node in nodes:
        node.children.sort(key=lambda child: child.span.start_ns)
        node.sources = _sources(node, by_key)
    groups = [[top for top in trace if not top.joined] for trace in traces.values()]
    for top in (top for group in groups for top in group):
        _measure(top)
    return [group for group in groups if group]


def walk(tops: Iterable[Node]) -> Iterator[Node]:
    """All nodes, parents before their children."""
    stack = list(tops)
    while stack:
        node = stack.pop()
        yield node
        stack += node.children


def _hang(nodes: list[Node], by_key: dict[_Key, Node]) -> list[Node]:
    tops = []
    for node in nodes:
        parent_id = node.span.parent_span_id
        parent = by_key.get((node.span.trace_id, parent_id)) if parent_id else None
        if parent is None or parent is node:
            tops.append(node)
        else:
            parent.children.append(node)
    return tops


def _break_rings(tops: list[Node], nodes: list[Node]) -> list[Node]:
    """Spans that are their own ancestors hang below no top: make the first of each ring one."""
    seen = {id(node) for node in walk(tops)}
    for node in nodes if len(seen) < len(nodes) else ():
        if id(node) in seen:
            continue
        for other in nodes:
            other.children = [child for child in other.children if child is not node]
        tops = [*tops, node]
        seen |= {id(below) for below in walk([node])}
    return tops


def _traces(tops: list[Node]) -> dict[str, list[Node]]:
    """Tops by trace. What is named a part comes after what it may be a part of, when both start at once."""
    traces: dict[str, list[Node]] = {}
    for top in sorted(tops, key=lambda top: (top.span.start_ns, top.span.name.endswith(" part"))):
        traces.setdefault(top.span.trace_id, []).append(top)
    return traces


def _join_parts(traces: dict[str, list[Node]], by_key: dict[_Key, Node]) -> None:
    rank = {trace_id: number for number, trace_id in enumerate(traces)}
    for top in (top for trace in traces.values() for top in trace if top.span.parent_span_id is None):
        whole = (by_key.get(_key(link)) for link in top.span.links)
        # Only below an earlier trace, or two could hang below each other.
        owner = next(
            (node for node in whole if node and _owns(node, top) and rank[node.key[0]] < rank[top.key[0]]), None
        )
        if owner is not None:
            owner.children.append(top)
            top.joined = True


def _owns(node: Node, part: Node) -> bool:
    """Whether the spans have links to each other; those of a part are enough, for a run or map lists 64 parts."""
    return PART_NUMBER in part.span.attributes or any(_key(link) == part.key for link in node.span.links)


def _sources(node: Node, by_key: dict[_Key, Node]) -> list[str]:
    parts = {child.key for child in node.children if child.joined}
    found = []
    for link in node.span.links:
        source = by_key.get(_key(link))
        if source is None:
            found.append(f"{link.span_id[:8]}… elsewhere")
        elif not (node.joined and _owns(source, node)) and _key(link) not in parts:
            found.append(source.span.name)
    return found


def _key(link: ReceivedLink) -> _Key:
    return link.trace_id, link.span_id


def _measure(top: Node) -> None:
    for node in reversed(list(walk([top]))):
        node.size = 1 + sum(child.size for child in node.children)
        own = node.span.status == "ERROR" or any(event.name != PART_EVENT for event in node.span.events)
        node.troubled = own or any(child.troubled for child in node.children)
