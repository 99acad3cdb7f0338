"""Plan of one run: one record per node, compiled once from the graph and the order of the solver."""

import asyncio
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import Any

from cascade.graph.model import ArgKind, Edge, EdgeType, Graph, Node
from cascade.runtime.protocols import ExecutionPlan

_ARGUMENTS = frozenset({EdgeType.DATA, EdgeType.IMPLICIT})
"""Types of the edges whose value is an argument, or a part of one. With a router, the value is a selector."""
_ROUTE, _DATA, _POSITIONAL = EdgeType.ROUTER_ROUTE, EdgeType.DATA, ArgKind.POSITIONAL

SLICE = 1_000
"""Number of nodes that are freed in one turn of the event loop."""


class PlannedNode:
    """One node of a run: its place in the plan, and its state while the run lasts.

    Attributes:
        id: The id of the node.
        node: The node of the graph.
        plan_node: The node that the executor gets. The solver may replace the node of the graph. None before `set_order`.
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
        has_value: Whether the state has the value of the node.
        is_direct: Whether the arguments are the values of the sources, by position.
    """

    __slots__ = (
        "consumers",
        "demand",
        "edges",
        "has_value",
        "held",
        "id",
        "is_direct",
        "is_needed",
        "is_settled",
        "node",
        "pending",
        "plan_node",
        "sources",
    )

    def __init__(self, node: Node) -> None:
        self.id = node.id
        self.node = node
        self.plan_node: Any = None
        self.edges: tuple[Edge, ...] = ()
        self.sources: tuple[PlannedNode, ...] = ()
        self.held: tuple[PlannedNode, ...] = ()
        self.consumers: list[PlannedNode] = _NO_NODES
        self.pending = self.demand = 0
        self.is_needed = self.is_settled = self.has_value = False
        self.is_direct = not node.literal_inputs and node.param_spec is None and node.node_type != "map"

    def __repr__(self) -> str:
        return f"<PlannedNode {self.node.name}>"

    def add_sources(self, edges: tuple[Edge, ...], sources: tuple["PlannedNode", ...]) -> None:
        """Add edges to the node, and the sources of these edges."""
        self.edges += edges
        self.sources += sources
        held = sources
        for edge, source in zip(edges, sources, strict=True):
            source.demand += 1
            if edge.edge_type is not _DATA or edge.arg_kind is not _POSITIONAL or edge.router is not None:
                self.is_direct = False
                if edge.edge_type is _ROUTE:  # `FlowManager` releases the branches of routers
                    held = ()
                    continue
            self.pending += 1
            if len(source.consumers) < _FEW:
                source.consumers = source.consumers + [self]  # noqa: RUF005 - a display with * reserves room for more
            else:
                source.consumers.append(self)
        self.held += held or tuple(s for s, edge in zip(sources, edges, strict=True) if edge.edge_type is not _ROUTE)

    def release_arguments(self) -> Iterable["PlannedNode"]:
        """Stop using the values of the arguments. Returns their sources, once for each edge."""
        arguments: list[PlannedNode] = []
        others: list[PlannedNode] = []
        for source, edge in zip(self.sources, self.edges, strict=True):
            if edge.router is None and edge.edge_type in _ARGUMENTS:
                arguments.append(source)
            elif edge.edge_type is not _ROUTE:
                others.append(source)
        self.held = tuple(others)
        return arguments


_NO_NODES: list[PlannedNode] = []
_FEW = 4
"""Up to this number of consumers, their list has no spare room. Most nodes have fewer."""


def compile_plan(graph: Graph) -> dict[str, PlannedNode]:
    """Return the records of the nodes of a graph by id, in time linear in nodes and edges."""
    nodes = {node.id: PlannedNode(node) for node in graph.nodes}
    for target_id, group in groupby(graph.edges, key=attrgetter("target.id")):
        edges = tuple(group)
        nodes[target_id].add_sources(edges, tuple([nodes[edge.source.id] for edge in edges]))
    return nodes


def set_order(nodes: dict[str, PlannedNode], plan: ExecutionPlan) -> list[PlannedNode]:
    """Set the nodes for the executor from the plan of the solver. Returns all nodes in this order."""
    ordered: list[PlannedNode] = []
    for stage in plan:
        for plan_node in stage:
            planned = nodes.get(plan_node.id)
            if planned is not None and planned.plan_node is None:
                planned.plan_node = plan_node
                ordered.append(planned)
    for planned in nodes.values() if len(ordered) < len(nodes) else ():
        if planned.plan_node is None:
            planned.plan_node = planned.node
            ordered.append(planned)
    return ordered


def release_plan(nodes: list[PlannedNode]) -> None:
    """Remove the nodes of a run that has ended from the list, and their references to each other, so that they are freed.

    One turn of the event loop frees `SLICE` nodes, from the end of the list: 100,000 nodes take 50 ms.
    """
    for planned in nodes[-SLICE:]:
        del planned.node, planned.plan_node, planned.edges, planned.sources, planned.held, planned.consumers
    del nodes[-SLICE:]
    if nodes:
        asyncio.get_running_loop().call_soon(release_plan, nodes)


def name_of_function(function: Any) -> str:
    """Return the module and the qualified name of a function."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".strip(".")
