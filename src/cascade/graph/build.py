"""Builds the graph of one or several lazy results and all their upstream nodes."""

from collections.abc import Iterator
from itertools import repeat
from math import inf
from typing import Any

from cascade.graph._targets import checked_shape, targets_in
from cascade.graph.model import ArgKind, Edge, EdgeType, Graph, Node, NodeWithOptions, argument_key
from cascade.spec.caching import NO_CACHE
from cascade.spec.lazy_types import LazyResult, MappedLazyResult, options_of, require_lazy
from cascade.spec.nested import ATOMS, LAZY, SOURCES, sources_in
from cascade.spec.options import CallOptions
from cascade.spec.routing import Router
from cascade.spec.task import Task

_DATA, _POSITIONAL = EdgeType.DATA, ArgKind.POSITIONAL
_POSITIONS = tuple(map(str, range(32)))
"""Names of the first positional arguments. `str` would create a new text for each argument of each node."""
_NO_LITERALS: dict[str, Any] = {}


def build_graph(target: Any) -> Graph:
    """Build the graph of a target and all its upstream nodes, in time linear in nodes and edges.

    The id of a node is the `_uuid` of its lazy result. Two builds of one target have the same ids. A graph is returned
    unchanged.

    Raises:
        TypeError: The target is neither a lazy result nor a container of lazy results.
    """
    if isinstance(target, Graph):
        return target
    builder = GraphBuilder(target)
    builder.run()
    return builder.graph


class GraphBuilder:
    """Builds a graph in one or several steps. It uses a worklist, because a chain of tasks may be deeper than Python's stack.

    Args:
        target: A lazy result, or a container of lazy results and other values, such as a list, a tuple or a dict.

    Raises:
        TypeError: The target is neither.
    """

    def __init__(self, target: Any) -> None:
        self._shape = None if isinstance(target, LAZY) else checked_shape(target)
        self._nodes: dict[str, Node] = {}
        self._edges: list[Edge] = []
        self._worklist: list[tuple[Any, Node]] = []
        self._generator_consumers: dict[str, Node | None] = {}
        """Consumer of each node that returns a generator."""
        self._unchecked: dict[int, Any] = {}
        """Tasks whose calls need no check, by `id`."""
        self._steps = self._add_all()
        self._limit = inf
        self._target = self._add_node(target) if self._shape is None else None

    @property
    def graph(self) -> Graph:
        """The graph, after `run` has returned True."""
        return Graph([*self._nodes.values()], self._edges, self._target, self._shape)

    def _add_node(self, lazy: Any) -> Node:
        node = self._nodes[lazy._uuid] = _node_from(lazy)
        self._worklist.append((lazy, node))
        task = lazy.task if node.mapping_factory is None else node.mapping_factory
        if id(task) not in self._unchecked:
            if isinstance(task, Task) and (task.is_replaced or task.is_generator):
                self._check(task, lazy, node)
            else:
                self._unchecked[id(task)] = task
        return node

    def _check(self, task: "Task[..., Any]", lazy: Any, node: Node) -> None:
        """Check the call of a task whose function was replaced after the call, and register a node that returns a generator."""
        if task.is_replaced:
            task.check_map(lazy.mapping_kwargs) if node.mapping_factory else task.check_call(lazy.args, lazy.kwargs)
        if not task.is_generator or node.mapping_factory:
            return
        if node.cache_policy is not None and node.cache_policy is not NO_CACHE:
            raise TypeError(
                f"Task '{node.name}' is a generator function, so a cache cannot keep its value: {_RETURN_LIST}"
            )
        self._generator_consumers[node.id] = None

    def _set_generator_consumer(self, source: Node, node: Node, name: str) -> None:
        is_unmapped = name in node.unmapped
        if self._generator_consumers[source.id] is not None or node.retry_policy is not None or is_unmapped:
            how = f"task '{node.name}' is retried" if node.retry_policy else "it is the argument of more than one task"
            how = f"each item of {node.name} gets it as its argument '{name}'" if is_unmapped else how
            raise TypeError(
                f"Task '{source.name}' is a generator function, so its value can be read once, but {how}: {_RETURN_LIST}"
            )
        self._generator_consumers[source.id] = node

    def run(self, limit: float = inf) -> bool:
        """Continue until the graph is complete or has `limit` nodes. Returns True if it is complete."""
        self._limit = limit
        return next(self._steps, True)

    def _add_all(self) -> Iterator[bool]:
        """Add all nodes. Yields False while the graph has `_limit` nodes or more."""
        yield from self._add_arguments()
        for lazy in () if self._shape is None else targets_in(self._shape):
            if lazy._uuid not in self._nodes:
                self._add_node(lazy)
                yield from self._add_arguments()
        if self._generator_consumers and self._shape is not None:
            self._check_generators(self._shape)

    def _check_generators(self, shape: Any) -> None:
        for lazy in targets_in(shape):
            if self._generator_consumers.get(lazy._uuid) is not None:
                raise TypeError(
                    f"Task '{lazy.task_name}' is a generator function, so its value can be read once, but it is a target and "
                    f"the argument of a task: {_RETURN_LIST}"
                )

    def _add_arguments(self) -> Iterator[bool]:
        """Add the arguments of the nodes in the worklist, and of all nodes that this adds."""
        while self._worklist:
            lazy, node = self._worklist.pop()
            arguments = _arguments(lazy)
            literals: dict[str, Any] = {}
            for name, kind, value in arguments:
                if type(value) is LazyResult:  # the most common source
                    self._add_edge(value, node, name, _DATA, kind)
                elif issubclass(type(value), SOURCES):
                    self._add_source(value, node, name, kind, EdgeType.DATA)
                else:
                    literals[_key(name, kind, node)] = value
                    yield from self._add_nested(value, node, name, kind)
                if len(self._nodes) >= self._limit:
                    yield False
            if literals:
                node.literal_inputs = literals
                if len(literals) < len(arguments) and len(arguments) - (node.positional or 0) > 1:
                    node.order = tuple(_key(name, kind, node) for name, kind, _ in arguments)
            if lazy._condition is not None:
                self._add_edge(lazy._condition, node, "_condition", EdgeType.CONDITION)
            if node.constraints is not None:
                self._add_amounts(node.constraints.requirements, node)

    def _add_amounts(self, requirements: dict[str, Any], node: Node) -> None:
        for resource, amount in requirements.items():
            if isinstance(amount, LAZY):
                self._add_edge(amount, node, resource, EdgeType.CONSTRAINT)

    def _add_nested(self, value: Any, node: Node, name: str, kind: ArgKind) -> Iterator[bool]:
        if type(value) in ATOMS:
            return
        known = set[Any]()
        for source in sources_in(value, f"Task '{node.name}': argument '{name}'"):
            size = len(known)
            known.add(source)
            if len(known) > size:
                self._add_source(source, node, name, kind, EdgeType.IMPLICIT)
                if len(self._nodes) >= self._limit:
                    yield False

    def _add_source(self, source: Any, node: Node, name: str, kind: ArgKind, edge_type: EdgeType) -> None:
        if not isinstance(source, Router):
            self._add_edge(source, node, name, edge_type, kind)
            return
        self._add_edge(source.selector, node, name, edge_type, kind, source)
        for key, route in source.routes.items():
            self._add_edge(route, node, f"_route_{key}", EdgeType.ROUTER_ROUTE)

    def _add_edge(
        self,
        lazy: Any,
        node: Node,
        name: str,
        edge_type: EdgeType,
        kind: ArgKind | None = None,
        router: Router | None = None,
    ) -> None:
        if type(lazy) is not LazyResult:
            require_lazy(lazy, f"Task '{node.name}'", name)
        source = self._nodes.get(lazy._uuid) or self._add_node(lazy)
        if (
            self._generator_consumers
            and source.id in self._generator_consumers
            and (kind is not None or edge_type is EdgeType.ROUTER_ROUTE)
        ):
            self._set_generator_consumer(source, node, name)
        self._edges.append(Edge(source, node, name, edge_type, router, kind))


_RETURN_LIST = "return a list"


def _key(name: str, kind: ArgKind, node: Node) -> str:
    return name if kind is ArgKind.POSITIONAL else argument_key(name, node.positional or 0)


def _arguments(lazy: Any) -> list[tuple[str, ArgKind, Any]]:
    if isinstance(lazy, MappedLazyResult):
        return [(name, ArgKind.KEYWORD, value) for name, value in lazy.mapping_kwargs.items()]
    names = _POSITIONS if len(lazy.args) <= len(_POSITIONS) else map(str, range(len(lazy.args)))
    found = [*zip(names, repeat(_POSITIONAL), lazy.args, strict=False)]
    return found + [(name, ArgKind.KEYWORD, value) for name, value in lazy.kwargs.items()] if lazy.kwargs else found


def _node_from(lazy: Any) -> Node:
    if type(lazy) is LazyResult:
        is_map, has_options = False, lazy._has_options
    else:  # the object may be a mock, which has any attribute
        is_map, has_options = isinstance(lazy, MappedLazyResult), not _OPTIONS.isdisjoint(vars(lazy))
    task: Any = lazy.factory if is_map else lazy.task
    retry = lazy._retry_policy
    is_off = retry is not None and not retry.max_attempts
    defaults = getattr(task, "options", None)
    has_options = has_options or is_off or (defaults is not None and isinstance(defaults, CallOptions))
    node = (NodeWithOptions if has_options else Node)(  # by position: keyword arguments take a third longer
        lazy._uuid,
        f"map({getattr(task, 'name', type(task).__name__)})" if is_map else task.name,
        "map" if is_map else "task",
        None if is_map else task.func,
        None if is_map else getattr(task, "input_spec", None),
        task if is_map else None,
        retry,
        lazy._cache_policy,
        lazy._constraints,
        _NO_LITERALS,
        getattr(task, "threaded", None),
        0 if is_map else len(lazy.args),
    )
    if has_options and isinstance(node, NodeWithOptions):
        node.set_options(options_of(lazy))
        node.allow_failure = lazy._allow_failure is True
        if is_map and lazy._unmapped:
            node.unmapped = lazy._unmapped
    return node


_OPTIONS = frozenset({"_has_options", "_unmapped"})
"""Attributes of a lazy result that few have."""
