"""Arranges spans as trees: children below their parents, parts below their run or map, similar children in groups."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
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
        hidden: Further children without a node of their own, by name. The name of children with different names is empty.
        size: The number of spans in the subtree.
        errors: The number of spans with an error in the subtree.
        is_notable: Whether the subtree has an error or an event.
    """

    span: Span
    children: "list[SpanNode]" = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    is_part: bool = False
    hidden: "dict[str, Group]" = field(default_factory=dict)
    size: int = 1
    errors: int = 0
    is_notable: bool = False

    @property
    def key(self) -> _Key:
        return self.span.trace_id, self.span.span_id

    @property
    def length_ns(self) -> int:
        return self.span.end_ns - self.span.start_ns

    def summarize(self) -> None:
        """Set `size`, `errors` and `is_notable` from the values of the children."""
        own_error = self.span.status == "ERROR"
        hidden = self.hidden.values()
        self.size = 1 + sum(child.size for child in self.children) + sum(one.count + one.below for one in hidden)
        self.errors = own_error + sum(child.errors for child in self.children)
        self.errors += sum(one.errors + one.errors_below for one in hidden)
        own = own_error or any(event.name != PART_EVENT for event in self.span.events)
        self.is_notable = own or any(child.is_notable for child in self.children)


@dataclass(slots=True)
class Group:
    """Children that the tree shows in one line. The name of a group of children with different names is empty.

    Attributes:
        count: The number of children.
        errors: The number of children with an error.
        below: The number of spans in the subtrees of the children.
        errors_below: The number of these spans with an error.
    """

    name: str
    count: int = 0
    errors: int = 0
    below: int = 0
    errors_below: int = 0
    start_ns: int = 0
    end_ns: int = 0
    shortest_ns: int = 0
    longest_ns: int = 0

    def add(self, start_ns: int, end_ns: int, *, is_error: bool = False, below: int = 0, errors_below: int = 0) -> None:
        """Add one child with the number of spans below it."""
        length_ns = end_ns - start_ns
        if not self.count:
            self.start_ns, self.end_ns, self.shortest_ns, self.longest_ns = start_ns, end_ns, length_ns, length_ns
        else:
            self.start_ns, self.end_ns = min(self.start_ns, start_ns), max(self.end_ns, end_ns)
            self.shortest_ns, self.longest_ns = min(self.shortest_ns, length_ns), max(self.longest_ns, length_ns)
        self.count += 1
        self.errors += is_error
        self.below += below
        self.errors_below += errors_below

    def add_node(self, node: SpanNode) -> None:
        is_error = node.span.status == "ERROR"
        errors_below = node.errors - is_error
        self.add(
            node.span.start_ns, node.span.end_ns, is_error=is_error, below=node.size - 1, errors_below=errors_below
        )

    def merge(self, other: "Group") -> None:
        """Add the children of another group."""
        if not other.count:
            return
        if not self.count:
            self.start_ns, self.end_ns = other.start_ns, other.end_ns
            self.shortest_ns, self.longest_ns = other.shortest_ns, other.longest_ns
        self.start_ns, self.end_ns = min(self.start_ns, other.start_ns), max(self.end_ns, other.end_ns)
        self.shortest_ns = min(self.shortest_ns, other.shortest_ns)
        self.longest_ns = max(self.longest_ns, other.longest_ns)
        self.count += other.count
        self.errors += other.errors
        self.below += other.below
        self.errors_below += other.errors_below


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


def group_children(
    children: list[SpanNode], max_children: int, hidden: Mapping[str, Group] = MappingProxyType({})
) -> list[SpanNode | Group]:
    """Return the children with a group for each name of more than `max_children` children.

    The slowest children and those with errors or events are not grouped. A group follows the last child of its name.
    `hidden` are the groups of further children.
    """
    by_name: dict[str, list[SpanNode]] = {}
    for child in children:
        by_name.setdefault(child.span.name, []).append(child)
    groups: dict[str, Group] = {}
    kept: set[int] = set()
    for name, same in by_name.items():
        others = hidden.get(name)
        shown = same
        if len(same) > max_children or others is not None:
            shown = _shown(same, max_children)
            groups[name] = _group(name, same, shown, others)
        kept.update(map(id, shown))
    return [*_with_groups([child for child in children if id(child) in kept], groups), *_rest(hidden, by_name)]


def _shown(same: list[SpanNode], max_children: int) -> list[SpanNode]:
    slowest = sorted(same, key=lambda node: -node.length_ns)
    shown = [node for node in slowest if node.is_notable][:max_children]
    kept = set(map(id, shown))
    others = [node for node in slowest if id(node) not in kept]
    return shown + others[: min(_SHOWN_SLOWEST, max_children - len(shown))]


def _group(name: str, same: list[SpanNode], shown: list[SpanNode], others: Group | None) -> Group:
    group, kept = Group(name), set(map(id, shown))
    for node in same:
        if id(node) not in kept:
            group.add_node(node)
    if others is not None:
        group.merge(others)
    return group


def _with_groups(shown: list[SpanNode], groups: dict[str, Group]) -> Iterator[SpanNode | Group]:
    last = {child.span.name: number for number, child in enumerate(shown)}
    for number, child in enumerate(shown):
        yield child
        if last[child.span.name] == number and child.span.name in groups:
            yield groups[child.span.name]


def _rest(hidden: Mapping[str, Group], shown: Mapping[str, list[SpanNode]]) -> list[Group]:
    return [group for name, group in hidden.items() if name not in shown]


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
        node.summarize()
