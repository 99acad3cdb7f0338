"""Collects the spans of a run as a tree of bounded size: its failed and its slowest parts, and counts of all others."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from cascade.connectors.console.span_nodes import Group, SpanNode, walk
from cascade.connectors.console.trace_drawing import MAX_CHILDREN
from cascade.telemetry.span_data import SpanData, SpanEvent, SpanLink
from cascade.telemetry.span_mapping import spans_of

Message = Mapping[str, Any]

MAX_NODES = 50
"""Spans of the tree of a large run: two screens."""
_MAX_NAMES = 500
"""Names of the children of one span. Children with further names are counted together."""
_MAX_LINKED_NAMES = 2_000
"""Tasks of a run whose names the links of later tasks show."""
_PARTS = ("parts", "ended_parts", "part_count")


@dataclass(frozen=True, slots=True)
class RunSpan:
    """A span of a message, with the fields that the trace tree shows."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    kind: str
    start_ns: int
    end_ns: int
    status: str
    status_message: str
    attributes: dict[str, Any]
    events: tuple[SpanEvent, ...]
    links: tuple[SpanLink, ...]
    resource: dict[str, Any] = field(default_factory=dict)


class ChildCollector:
    """Children of one span. Of each name it keeps the nodes of the failed and the slowest children, and counts the others."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[bool, int, int, SpanNode]]] = {}
        self._hidden: dict[str, Group] = {}
        self._numbers = count()

    def admits(self, name: str, length_ns: int, *, is_notable: bool) -> bool:
        """Return whether a child would be kept as a node."""
        kept = self._kept.get(name)
        if kept is None:
            return len(self._kept) < _MAX_NAMES
        return len(kept) < MAX_CHILDREN or kept[0][:2] < (is_notable, length_ns)

    def add(self, node: SpanNode) -> None:
        """Keep the node of a child. If there are too many of its name, count the fastest successful one instead."""
        name = node.span.name
        kept = self._kept.get(name)
        if kept is None and len(self._kept) < _MAX_NAMES:
            kept = self._kept[name] = []
        if kept is None:
            self.group(name).add_node(node)
            return
        entry = (node.is_notable, node.length_ns, next(self._numbers), node)
        if len(kept) < MAX_CHILDREN:
            heapq.heappush(kept, entry)
        else:
            self.group(name).add_node(heapq.heappushpop(kept, entry)[3])

    def group(self, name: str) -> Group:
        """Return the group of the children with that name that are only counted."""
        if name not in self._kept:
            name = ""
        group = self._hidden.get(name)
        if group is None:
            group = self._hidden[name] = Group(name)
        return group

    def move_to(self, parent: SpanNode) -> None:
        """Add the children to the node of their parent."""
        parent.children += [entry[3] for kept in self._kept.values() for entry in kept]
        for name, group in self._hidden.items():
            parent.hidden.setdefault(name, Group(name)).merge(group)


class RunTree:
    """Folds the messages of one run into the tree of its spans.

    The memory depends on the number of names and of active maps, not on the number of tasks.
    """

    def __init__(self) -> None:
        self._children = ChildCollector()
        self._maps: dict[str, ChildCollector] = {}
        self._nested: dict[str, ChildCollector] = {}  # by the id of the span that started a nested run
        self._names: dict[str, str] = {}

    def add(self, payload: Message) -> None:
        """Add the spans of a message that ends a task, a map, or the setup or teardown of a resource."""
        body = payload["body"]
        if "resource_name" in body:
            self._children.add(_node(payload))
        elif "task_id" in body and body["state"] not in {"RUNNING", "PENDING"}:
            self._add_task(payload, body)

    def attach(self, parent_span_id: str, node: SpanNode) -> None:
        """Add the span of a nested run below the task that started it."""
        self._nested.setdefault(parent_span_id, ChildCollector()).add(node)

    def finish(self, payload: Message) -> SpanNode:
        """Return the span of the run, for its last message. Its parent, such as the span of a request, is in no run."""
        node = _node({**payload, "parent_span_id": ""})
        for rest in (self._children, *self._maps.values(), *self._nested.values()):
            rest.move_to(node)
        return _completed(node)

    def _add_task(self, payload: Message, body: Message) -> None:
        metadata, task_id, own_id = body["metadata"], body["task_id"], payload["span_id"]
        name = f"{body['task_name']} skipped" if body["state"] == "SKIPPED" else body["task_name"]
        map_id = metadata.get("map_id")
        if map_id is None:
            siblings = self._children
            if len(self._names) < _MAX_LINKED_NAMES:
                self._names[own_id] = name
        elif map_id in self._maps:
            siblings = self._maps[map_id]
        else:
            siblings = self._maps[map_id] = ChildCollector()
        start_ns, end_ns = metadata["start_ns"], metadata["end_ns"]
        below = [self._nested.pop(own_id)] if own_id in self._nested else []
        if metadata.get("kind") == "map" and task_id in self._maps:
            below.append(self._maps.pop(task_id))
        is_error = body["error"] is not None and metadata.get("result") != "cancellation"
        # A node with children is always made, because their numbers are not known otherwise.
        if below or siblings.admits(name, end_ns - start_ns, is_notable=_is_notable(metadata, is_error=is_error)):
            node = _node(payload)
            for collector in below:
                collector.move_to(node)
            node.linked = [self._names[link.span_id] for link in node.span.links if link.span_id in self._names]
            siblings.add(_completed(node))
        else:
            own = len(metadata.get("attempts", ())) + len(metadata.get("waits", ()))
            siblings.group(name).add(start_ns, end_ns, is_error=is_error, below=own)


def prune(top: SpanNode, max_nodes: int = MAX_NODES) -> None:
    """Replace all but `max_nodes` nodes of a larger tree by counts. The failed and then the slowest ones stay."""
    nodes = list(walk([top]))
    if len(nodes) <= max_nodes:
        return
    parents = {id(child): node for node in nodes for child in node.children}
    kept = {id(top)}
    for node in sorted(nodes, key=lambda node: (not node.is_notable, -node.length_ns)):
        path = []
        above: SpanNode | None = node
        while above is not None and id(above) not in kept:
            path.append(id(above))
            above = parents.get(id(above))
        if len(kept) + len(path) <= max_nodes:
            kept.update(path)
    for node in nodes:
        if id(node) in kept:
            _hide_others(node, kept)


def _hide_others(node: SpanNode, kept: set[int]) -> None:
    hidden = [child for child in node.children if id(child) not in kept]
    if not hidden:
        return
    names = {child.span.name for child in hidden} | node.hidden.keys()
    group = Group(names.pop() if len(names) == 1 else "")
    for child in hidden:
        group.add_node(child)
    for other in node.hidden.values():
        group.merge(other)
    node.children = [child for child in node.children if id(child) in kept]
    node.hidden = {group.name: group}


def _is_notable(metadata: Mapping[str, Any], *, is_error: bool) -> bool:
    """Return what `SpanNode.is_notable` is for a task without children: it failed, was retried, or a constraint blocked it."""
    return (
        is_error
        or len(metadata.get("attempts", ())) > 1
        or ("waits" in metadata and any("constraint" in wait for wait in metadata["waits"]))
    )


def _completed(node: SpanNode) -> SpanNode:
    node.children.sort(key=lambda child: child.span.start_ns)
    for child in node.children:
        if child.size == 1:
            child.summarize()
    node.summarize()
    return node


def _node(payload: Message) -> SpanNode:
    """Return the span of a message, with its attempts and waits as children. The parts of a split trace are left out."""
    body = payload["body"]
    metadata = {key: value for key, value in body["metadata"].items() if key not in _PARTS}
    *children, own = map(_run_span, spans_of({**payload, "body": {**body, "metadata": metadata}}))
    return _completed(SpanNode(own, [SpanNode(child) for child in children]))


def _run_span(span: SpanData) -> RunSpan:
    return RunSpan(
        span.name,
        span.trace_id,
        span.span_id,
        span.parent_id or None,
        "SERVER" if span.is_run else "INTERNAL",
        span.start_ns,
        span.end_ns,
        "UNSET" if span.error is None else "ERROR",
        span.error or "",
        span.attributes,
        tuple(_without_stack(event) for event in span.events),
        span.links,
    )


def _without_stack(event: SpanEvent) -> SpanEvent:
    """Return the event without the stack trace, which is long and not drawn."""
    kept = {key: value for key, value in event.attributes.items() if key != "exception.stacktrace"}
    return event._replace(attributes=kept)
