"""Decides which nodes of a run execute: conditions, routers, skipped upstream nodes, pruned branches."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.spec.protocols import StateBackend
from cascade.spec.routing import Router

PRUNED = "Pruned"


class Skip(NamedTuple):
    """Reason for a skipped node. `decided_by` is the id of the condition, the selector or the skipped upstream node."""

    reason: str
    decided_by: str | None = None


class FlowManager:
    """Reference counts for the values of one run.

    Attributes:
        downstream_demand: For each node, the number of edges that may still use its value, and one more for the target. At
            zero, a node that has not run is pruned, and the value of a node that has run is unused.
        needed: Ids of the nodes that certainly run. A branch of a router is added when the selector has chosen it.
    """

    def __init__(self, graph: Graph, target_node_id: str) -> None:
        self.in_edges: dict[str, list[Edge]] = defaultdict(list)
        self.out_edges: dict[str, list[Edge]] = defaultdict(list)
        self.downstream_demand: dict[str, int] = dict.fromkeys((node.id for node in graph.nodes), 0)
        self.needed: set[str] = set()
        self._branches: dict[str, list[str]] = defaultdict(list)  # by consumer: branches that are not rejected yet
        self._released_early: set[str] = set()  # nodes whose arguments are released already
        self._unused: list[str] = []
        self._has_decisions = False  # whether the graph has a condition or a router
        for edge in graph.edges:
            self._has_decisions |= edge.edge_type is EdgeType.CONDITION or edge.router is not None
            if edge.edge_type is EdgeType.ROUTER_ROUTE:
                self._branches[edge.target.id].append(edge.source.id)
            self.in_edges[edge.target.id].append(edge)
            self.out_edges[edge.source.id].append(edge)
            self.downstream_demand[edge.source.id] += 1
        self.downstream_demand[target_node_id] = self.downstream_demand.get(target_node_id, 0) + 1

    def need(self, node_id: str) -> list[str]:
        """Mark a node and all upstream nodes that it certainly needs. Returns the ids of the newly marked nodes."""
        fresh: list[str] = []
        stack = [node_id]
        while stack:
            current = stack.pop()
            if current in self.needed or self.downstream_demand.get(current, 1) <= 0:
                continue
            self.needed.add(current)
            fresh.append(current)
            edges = self.in_edges.get(current, ())
            stack.extend(edge.source.id for edge in edges if edge.edge_type is not EdgeType.ROUTER_ROUTE)
        return fresh

    def register_result(self, node_id: str, result: Any, state_backend: StateBackend) -> list[str]:
        """Release the branches that the result of a selector rejects. Returns the ids of the pruned nodes."""
        if not self._has_decisions:
            return []
        rejected: list[str] = []
        for edge in self.out_edges.get(node_id, ()):
            if edge.router is not None:
                rejected.extend(self._reject_branches(edge.target.id, edge.router, result))
        return self._release_branches(rejected, state_backend)

    def release_routes(self, node_id: str, state_backend: StateBackend) -> list[str]:
        """Release all branches of a node that will not run. Returns the ids of the pruned nodes."""
        return self._release_branches(self._branches.pop(node_id, []), state_backend)

    def _reject_branches(self, consumer_id: str, router: Router, value: Any) -> Iterator[str]:
        chosen, open_branches = chosen_route(router, value), self._branches.get(consumer_id, [])
        for route in router.routes.values():
            if route is not chosen and lazy_id(route) in open_branches:
                open_branches.remove(lazy_id(route))
                yield lazy_id(route)

    def _release_branches(self, sources: Iterable[str], state_backend: StateBackend) -> list[str]:
        pruned: list[str] = []
        stack = list(sources)
        while stack:
            node_id = stack.pop()
            self.downstream_demand[node_id] -= 1
            if self.downstream_demand[node_id]:
                continue
            if node_id in self.needed:
                self._unused.append(node_id)
                continue
            state_backend.mark_skipped(node_id, PRUNED)
            pruned.append(node_id)
            edges = self.in_edges.get(node_id, ())
            stack.extend(edge.source.id for edge in edges if edge.edge_type is not EdgeType.ROUTER_ROUTE)
            stack.extend(self._branches.pop(node_id, []))
        return pruned

    def release_arguments(self, node_id: str) -> None:
        """Release the values of the arguments of a node, before the node ends."""
        self._released_early.add(node_id)
        self._release_values(edge.source.id for edge in self.in_edges.get(node_id, ()) if _is_argument(edge))

    def release_inputs(self, node_id: str) -> None:
        """Release all values that an ended node has used, or might have used."""
        holds_arguments = node_id not in self._released_early
        for edge in self.in_edges.get(node_id, ()):
            if edge.edge_type is not EdgeType.ROUTER_ROUTE and (holds_arguments or not _is_argument(edge)):
                self._release_values((edge.source.id,))
        if self._branches:
            self._release_values(self._branches.pop(node_id, ()))
        if not self.downstream_demand[node_id]:
            self._unused.append(node_id)

    def _release_values(self, sources: Iterable[str]) -> None:
        demand = self.downstream_demand
        for source in sources:
            demand[source] -= 1
            if not demand[source]:
                self._unused.append(source)

    def take_unused(self) -> Iterable[str]:
        """Return the ids, each once, of the nodes whose values have become unused since the last call."""
        unused, self._unused = self._unused, []
        return unused if len(unused) < 2 else dict.fromkeys(unused)  # noqa: PLR2004

    def should_skip(self, node: Node, state_backend: StateBackend) -> str | None:
        """Return the reason to skip a node whose upstream nodes have ended; None if it runs."""
        skip = self.skip_of(node, state_backend)
        return None if skip is None else skip.reason

    def skip_of(self, node: Node, state_backend: StateBackend) -> Skip | None:
        """Return the reason to skip a node whose upstream nodes have ended, and the deciding node; None if it runs."""
        if (reason := state_backend.get_skip_reason(node.id)) is not None:
            return Skip(reason)
        edges: Iterable[Edge] = self.in_edges.get(node.id, ())
        if self._has_decisions:
            edges = sorted(edges, key=_conditions_first)
        for edge in edges:
            if (skip := _skip_by(edge, state_backend)) is not None:
                return skip
        return None

    def skip_cause(self, node: Node, state_backend: StateBackend) -> str:
        """Return an error text with the condition or the upstream task that caused a skip.

        It uses no values: the value of the condition may be freed.
        """
        root = node
        while (upstream := self._skipped_upstream(root, state_backend)) is not None:
            root = upstream
        own = root is node
        via = "" if own else f"it depends on {_display_name(root)}, which was skipped: "
        return f"{_display_name(node, first=True)} was skipped: {via}{self._root_cause(root, state_backend, own=own)}"

    def _skipped_upstream(self, node: Node, state: StateBackend) -> Node | None:
        kinds = _KINDS_OF_UPSTREAM.get(state.get_skip_reason(node.id) or "", ())
        return next(
            (
                edge.source
                for edge in self.in_edges.get(node.id, ())
                if edge.edge_type in kinds and state.get_skip_reason(edge.source.id) not in {None, PRUNED}
            ),
            None,
        )

    def _root_cause(self, node: Node, state: StateBackend, *, own: bool) -> str:
        reason = state.get_skip_reason(node.id)
        edges = self.in_edges.get(node.id, ())
        condition = next((_display_name(edge.source) for edge in edges if edge.edge_type is EdgeType.CONDITION), "")
        subject = f"its condition {condition}" if own else f"the condition {condition} of {_display_name(node)}"
        match reason:
            case "ConditionFalse":
                return f"{subject} was false"
            case "ConditionMissing":
                return f"{subject} has no value"
            case None:
                return "it has no value"
            case _:
                return reason


_KINDS_OF_UPSTREAM = {
    "UpstreamSkipped_Condition": (EdgeType.CONDITION,),
    "UpstreamSkipped_Data": (EdgeType.DATA, EdgeType.CONSTRAINT, EdgeType.IMPLICIT),
    "UpstreamSkipped_Route": (EdgeType.ROUTER_ROUTE,),
}


def _display_name(node: Node, *, first: bool = False) -> str:
    """Return the quoted name of a task or an input. With `first`, a task has its kind before the name."""
    if node.param_spec is not None:
        return f"{type(node.param_spec).__name__.removesuffix('Spec')} {node.param_spec.name!r}"
    return f"Task {node.name!r}" if first else f"{node.name!r}"


def _is_argument(edge: Edge) -> bool:
    """Whether the value of the edge is only an argument, not also a selector."""
    return edge.router is None and edge.edge_type in {EdgeType.DATA, EdgeType.IMPLICIT}


def _conditions_first(edge: Edge) -> bool:
    return edge.edge_type is not EdgeType.CONDITION


def _skip_by(edge: Edge, state: StateBackend) -> Skip | None:
    if edge.edge_type is EdgeType.ROUTER_ROUTE:
        return None
    source_id = edge.source.id
    if edge.edge_type is EdgeType.CONDITION:
        reason = _condition_reason(edge, state)
        return None if reason is None else Skip(reason, source_id)
    if state.get_skip_reason(source_id) is not None:
        return Skip("UpstreamSkipped_Data", source_id)
    route = None if edge.router is None else chosen_route(edge.router, state.get_result(source_id))
    if route is not None and state.get_skip_reason(lazy_id(route)) is not None:
        return Skip("UpstreamSkipped_Route", lazy_id(route))
    return None


def _condition_reason(edge: Edge, state: StateBackend) -> str | None:
    source = edge.source
    if state.get_skip_reason(source.id) is not None:
        return "UpstreamSkipped_Condition"
    if not state.has_result(source.id):
        return "ConditionMissing"
    value = state.get_result(source.id)
    try:
        return None if value else "ConditionFalse"
    except Exception as error:
        raise TypeError(
            f"Task '{edge.target.name}': the value of its condition '{source.name}', a {type(value).__name__}, has no truth "
            f"value: {error}"
        ) from error


def chosen_route(router: Router, value: Any) -> Any:
    """Return the lazy result of the route for the value of the selector; None if no route has it."""
    try:
        return router.routes.get(value)
    except TypeError:  # the value has no hash
        return None


def lazy_id(lazy: Any) -> str:
    return str(lazy._uuid)  # noqa: SLF001 - the contract gives lazy results underscored fields
