"""Plan of one run: one record per node, compiled once from the graph and the order of the solver."""

from collections.abc import Iterable, Mapping
from typing import Any

from cascade.graph.model import ArgKind, Edge, EdgeType, Graph, Node
from cascade.runtime.protocols import ExecutionPlan

_ARGUMENTS = frozenset({EdgeType.DATA, EdgeType.IMPLICIT})
"""Types of the edges whose value is an argument, or a part of one. With a router, the value is a selector."""
_ROUTE, _DATA, _POSITIONAL = EdgeType.ROUTER_ROUTE, EdgeType.DATA, ArgKind.POSITIONAL


class PlannedNode:
    """One node of a run: its place in the plan, and its state while the run lasts.

    Attributes:
        id: The id of the node.
        node: The node of the graph.
        plan_node: The node that the executor gets. The solver may replace the node of the graph.
        position: The position in the order of the solver.
        edges: The edges to the node, in the order of the call.
        sources: The source of each edge.
        consumers: The nodes that wait for this node, one for each edge. The edge from a branch to the consumer of its router
            is excluded.
        held: The sources whose values the node may still use, branches of routers excluded.
        pending: The number of sources that have not ended, branches of routers excluded.
        demand: The number of edges that may still use the value, and one more for the target. At zero, a node that has not run
            is pruned, and the value of a node that has run is unused.
        is_needed: Whether the node certainly runs. A branch of a router is added when the selector has chosen it.
        is_settled: Whether the node has ended or was skipped.
        is_direct: Whether the arguments are the values of the sources, by position.
    """

    __slots__ = (
        "consumers",
        "demand",
        "edges",
        "held",
        "id",
        "is_direct",
        "is_needed",
        "is_settled",
        "node",
        "pending",
        "plan_node",
        "position",
        "sources",
    )

    def __init__(self, node: Node) -> None:
        self.id = node.id
        self.node = node
        self.plan_node: Any = node
        self.position = 0
        self.edges: list[Edge] = _NO_EDGES
        self.sources: list[PlannedNode] = _NO_NODES
        self.held: list[PlannedNode] = _NO_NODES
        self.consumers: list[PlannedNode] = _NO_NODES
        self.pending = self.demand = 0
        self.is_needed = self.is_settled = False
        self.is_direct = not node.literal_inputs and node.param_spec is None and node.node_type != "map"

    def __repr__(self) -> str:
        return f"<PlannedNode {self.node.name}>"

    def release_arguments(self) -> Iterable["PlannedNode"]:
        """Stop using the values of the arguments. Returns their sources, once for each edge."""
        arguments: list[PlannedNode] = []
        self.held = []
        for source, edge in zip(self.sources, self.edges, strict=True):
            if edge.router is None and edge.edge_type in _ARGUMENTS:
                arguments.append(source)
            elif edge.edge_type is not _ROUTE:
                self.held.append(source)
        return arguments


_NO_EDGES: list[Edge] = []
_NO_NODES: list[PlannedNode] = []


def compile_plan(graph: Graph) -> dict[str, PlannedNode]:
    """Return the records of the nodes of a graph by id, in time linear in nodes and edges."""
    nodes = {node.id: PlannedNode(node) for node in graph.nodes}
    for edge in graph.edges:
        source, target, kind = nodes[edge.source.id], nodes[edge.target.id], edge.edge_type
        source.demand += 1
        if target.edges is _NO_EDGES:
            target.edges, target.sources = [edge], [source]
            target.held = target.sources  # one list for both, unless a source is a branch: most nodes have no router
        else:
            target.edges.append(edge)
            target.sources.append(source)
            if target.held is not target.sources and kind is not _ROUTE:
                target.held.append(source)
        if kind is _ROUTE:
            _exclude_routes(target)
            continue
        target.pending += 1
        if source.consumers is _NO_NODES:
            source.consumers = [target]
        else:
            source.consumers.append(target)
        if kind is not _DATA or edge.arg_kind is not _POSITIONAL or edge.router is not None:
            target.is_direct = False
    return nodes


def _exclude_routes(target: PlannedNode) -> None:
    """Give a node with a router its own list of held sources. `FlowManager` releases the branches."""
    target.is_direct = False
    if target.held is target.sources:
        target.held = target.sources[:-1]


def set_order(nodes: dict[str, PlannedNode], plan: ExecutionPlan) -> list[PlannedNode]:
    """Set the positions and the nodes for the executor from the plan of the solver. Returns all nodes in this order."""
    order: dict[PlannedNode, None] = {}
    for stage in plan:
        for plan_node in stage:
            if (planned := nodes.get(plan_node.id)) is not None:
                planned.plan_node = plan_node
                order[planned] = None
    ordered = [*order, *(planned for planned in nodes.values() if planned not in order)]
    for position, planned in enumerate(ordered):
        planned.position = position
    return ordered


def disconnect(nodes: Mapping[str, PlannedNode]) -> None:
    """Break the reference cycles between the nodes of a run that has ended, so that its values are freed at once."""
    for planned in nodes.values():
        planned.consumers = _NO_NODES
