"""Topological sort of a graph."""

from collections.abc import Container
from operator import attrgetter

from cascade.graph.model import Edge, Graph, Node
from cascade.runtime.protocols import ExecutionPlan

_name_of = attrgetter("name")


class NativeSolver:
    """Layered topological sort (Kahn's algorithm), in time linear in nodes and edges; stages are sorted by node name."""

    def resolve(self, graph: Graph) -> ExecutionPlan:
        """Return stages, each of which needs only earlier ones.

        Raises:
            ValueError: The graph has a cycle, or an edge to a node that is not in the graph. The text names the nodes.
        """
        consumers: dict[str, list[Node]] = {node.id: [] for node in graph.nodes}
        waiting = {node.id: 0 for node in graph.nodes}
        for edge in graph.edges:
            try:
                consumers[edge.source.id].append(edge.target)
                waiting[edge.target.id] += 1
            except KeyError:
                raise _dangling_edge(edge, waiting) from None
        plan: ExecutionPlan = []
        stage = [node for node in graph.nodes if not waiting[node.id]]
        while stage:
            if len(stage) > 1:
                stage.sort(key=_name_of)
            plan.append(stage)
            ready: list[Node] = []
            for node in stage:
                for target in consumers.pop(node.id):  # all at once would block other threads
                    waiting[target.id] = left = waiting[target.id] - 1
                    if not left:
                        ready.append(target)
            stage = ready
        if sum(map(len, plan)) < len(graph.nodes):
            raise ValueError(f"The workflow has a cycle: {' -> '.join(_cycle(graph, waiting))}")
        return plan


def _dangling_edge(edge: Edge, known: Container[str]) -> ValueError:
    missing = next(node for node in (edge.source, edge.target) if node.id not in known)
    return ValueError(
        f"The edge from '{edge.source.name}' to '{edge.target.name}' needs '{missing.name}', which is not in the graph"
    )


def _cycle(graph: Graph, waiting: dict[str, int]) -> list[str]:
    """Return the names along one cycle, the first one also at the end. Each node that waits is on or below a cycle."""
    upstream = {e.target.id: e.source for e in graph.edges if waiting[e.source.id] and waiting[e.target.id]}
    path: list[Node] = []
    seen: dict[str, int] = {}
    node = next(node for node in graph.nodes if waiting[node.id])
    while node.id not in seen:
        seen[node.id] = len(path)
        path.append(node)
        node = upstream[node.id]
    return [member.name for member in reversed([*path[seen[node.id] :], node])]
