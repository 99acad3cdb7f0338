"""Decides which nodes of a run execute: conditions, routers, skipped upstream nodes, pruned branches."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.runtime._plan import PlannedNode, compile_plan
from cascade.spec.protocols import StateBackend
from cascade.spec.routing import Router

PRUNED = "Pruned"
FAILED = "Failed"
"""Skip reason in the state of a node that failed without stopping the run."""
UPSTREAM_FAILED = "UpstreamFailed"
_WITHOUT_VALUE = frozenset({FAILED, UPSTREAM_FAILED})
"""Skip reasons of nodes whose dependents are skipped with the reason `UpstreamFailed`."""
_DATA = EdgeType.DATA


class Skip(NamedTuple):
    """Reason for a skipped node. `decided_by` is the id of the condition, the selector or the skipped upstream node."""

    reason: str
    decided_by: str | None = None


class FlowManager:
    """Decisions of one run, and reference counts for its values.

    Attributes:
        nodes: The records of the nodes by id.
        selections: For each selector, the consumers of its routers with the edges from the selector.
        branches: For each branch of a router, the consumers of the router.
        has_decisions: Whether any node has a condition or a router.
    """

    def __init__(self, graph: Graph, target_node_id: str | Collection[str]) -> None:
        """`target_node_id` is the id of the target, or the ids of several targets, each once."""
        self.nodes = compile_plan(graph)
        self.selections: dict[str, list[tuple[PlannedNode, Edge]]] = defaultdict(list)
        self.branches: dict[str, list[PlannedNode]] = defaultdict(list)
        self._open_branches: dict[str, list[PlannedNode]] = defaultdict(list)
        """By consumer: the branches that are not rejected yet."""
        self.has_decisions = False
        for edge in graph.edges:
            if edge.edge_type is _DATA and edge.router is None:
                continue
            self.has_decisions |= edge.edge_type is EdgeType.CONDITION or edge.router is not None
            if edge.router is not None:
                self.selections[edge.source.id].append((self.nodes[edge.target.id], edge))
            elif edge.edge_type is EdgeType.ROUTER_ROUTE:
                self.branches[edge.source.id].append(self.nodes[edge.target.id])
                self._open_branches[edge.target.id].append(self.nodes[edge.source.id])
        for target_id in [target_node_id] if isinstance(target_node_id, str) else target_node_id:
            if (target := self.nodes.get(target_id)) is not None:
                target.demand += 1

    @property
    def downstream_demand(self) -> dict[str, int]:
        """For each node, the number of edges that may still use its value, and one more for a target."""
        return {node_id: planned.demand for node_id, planned in self.nodes.items()}

    def need(self, planned: PlannedNode) -> list[PlannedNode]:
        """Mark a node and all upstream nodes that it certainly needs. Returns the newly marked nodes."""
        fresh: list[PlannedNode] = []
        stack = [planned]
        while stack:
            current = stack.pop()
            if current.is_needed or current.demand <= 0:
                continue
            current.is_needed = True
            fresh.append(current)
            stack.extend(current.held)
        return fresh

    def register_result(self, node_id: str, result: Any, state_backend: StateBackend) -> list[str]:
        """Release the branches that the result of a selector rejects. Returns the ids of the pruned nodes."""
        rejected: list[PlannedNode] = []
        for consumer, edge in self.selections.get(node_id, ()):
            if edge.router is not None:
                rejected.extend(self._reject_branches(consumer, edge.router, result))
        return self._release_branches(rejected, state_backend)

    def release_routes(self, node_id: str, state_backend: StateBackend) -> list[str]:
        """Release all branches of a node that will not run. Returns the ids of the pruned nodes."""
        return self._release_branches(self._open_branches.pop(node_id, []), state_backend)

    def _reject_branches(self, consumer: PlannedNode, router: Router, value: Any) -> Iterable[PlannedNode]:
        chosen, open_branches = chosen_route(router, value), self._open_branches.get(consumer.id, [])
        for route in router.routes.values():
            branch = self.nodes[lazy_id(route)]
            if route is not chosen and branch in open_branches:
                open_branches.remove(branch)
                yield branch

    def _release_branches(self, stack: list[PlannedNode], state_backend: StateBackend) -> list[str]:
        pruned: list[str] = []
        while stack:
            planned = stack.pop()
            planned.demand -= 1
            if planned.demand:
                continue
            if planned.is_needed:
                _discard(planned, state_backend)
                continue
            state_backend.mark_skipped(planned.id, PRUNED)
            pruned.append(planned.id)
            stack.extend(planned.held)
            stack.extend(self._open_branches.pop(planned.id, []))
        return pruned

    def release(self, sources: Iterable[PlannedNode], state_backend: StateBackend) -> None:
        """Stop using the values of nodes, once for each occurrence."""
        for source in sources:
            source.demand -= 1
            if not source.demand:
                _discard(source, state_backend)

    def release_inputs(self, planned: PlannedNode, state_backend: StateBackend) -> None:
        """Release all values that an ended node has used, or might have used."""
        self.release(planned.held, state_backend)
        if self._open_branches:
            self.release(self._open_branches.pop(planned.id, ()), state_backend)
        if not planned.demand:
            _discard(planned, state_backend)

    def should_skip(self, node: Node, state_backend: StateBackend) -> str | None:
        """Return the reason to skip a node whose upstream nodes have ended; None if it runs."""
        skip = self.skip_of(self.nodes[node.id], state_backend)
        return None if skip is None else skip.reason

    def skip_of(self, planned: PlannedNode, state_backend: StateBackend) -> Skip | None:
        """Return the reason to skip a node whose upstream nodes have ended, and the deciding node; None if it runs."""
        if (reason := state_backend.get_skip_reason(planned.id)) is not None:
            return Skip(reason)
        for edge in sorted(planned.edges, key=_conditions_first):
            if (skip := _skip_by(edge, state_backend)) is not None:
                return skip
        return None

    def skip_cause(self, planned: PlannedNode, state_backend: StateBackend) -> str:
        """Return an error text with the condition or the upstream task that caused a skip.

        It uses no values: the value of the condition may be freed.
        """
        root = planned
        while (upstream := _skipped_upstream(root, state_backend)) is not None:
            root = upstream
        own = root is planned
        via = "" if own else f"it depends on {_display_name(root.node)}, which was skipped: "
        return (
            f"{_display_name(planned.node, first=True)} was skipped: {via}{_root_cause(root, state_backend, own=own)}"
        )


def _discard(planned: PlannedNode, state_backend: Any) -> None:
    """Discard an unused value, if the state has it and is `Discarding`."""
    if planned.has_value and (discard := getattr(state_backend, "discard_result", None)) is not None:
        planned.has_value = False
        discard(planned.id)


def _skipped_upstream(planned: PlannedNode, state: StateBackend) -> PlannedNode | None:
    kinds = _KINDS_OF_UPSTREAM.get(state.get_skip_reason(planned.id) or "", ())
    return next(
        (
            source
            for source, edge in zip(planned.sources, planned.edges, strict=True)
            if edge.edge_type in kinds and state.get_skip_reason(source.id) not in {None, PRUNED}
        ),
        None,
    )


def _root_cause(planned: PlannedNode, state: StateBackend, *, own: bool) -> str:
    reason = state.get_skip_reason(planned.id)
    conditions = (edge.source for edge in planned.edges if edge.edge_type is EdgeType.CONDITION)
    condition = next(map(_display_name, conditions), "")
    subject = f"its condition {condition}" if own else f"the condition {condition} of {_display_name(planned.node)}"
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


def _conditions_first(edge: Edge) -> bool:
    return edge.edge_type is not EdgeType.CONDITION


def _skip_by(edge: Edge, state: StateBackend) -> Skip | None:
    if edge.edge_type is EdgeType.ROUTER_ROUTE:
        return None
    source_id = edge.source.id
    if edge.edge_type is EdgeType.CONDITION:
        reason = _condition_reason(edge, state)
        return None if reason is None else Skip(reason, source_id)
    if (reason := state.get_skip_reason(source_id)) is not None:
        return Skip(_because_of(reason, "UpstreamSkipped_Data"), source_id)
    route = None if edge.router is None else chosen_route(edge.router, state.get_result(source_id))
    if route is not None and (reason := state.get_skip_reason(lazy_id(route))) is not None:
        return Skip(_because_of(reason, "UpstreamSkipped_Route"), lazy_id(route))
    return None


def _because_of(reason: str, skipped: str) -> str:
    """Return the skip reason of a node whose source has no value for `reason`. `skipped` applies to a skipped source."""
    return UPSTREAM_FAILED if reason in _WITHOUT_VALUE else skipped


def _condition_reason(edge: Edge, state: StateBackend) -> str | None:
    source = edge.source
    if (reason := state.get_skip_reason(source.id)) is not None:
        return _because_of(reason, "UpstreamSkipped_Condition")
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
