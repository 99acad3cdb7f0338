"""Topological sort of a graph."""

from collections.abc import Container

from cascade.graph.model import Edge, Graph, Node
from cascade.runtime.protocols import ExecutionPlan

_FREED: list[int] = []


class NativeSolver:
    """Layered topological sort (Kahn's algorithm), in time linear in nodes and edges; stages are sorted by node name."""

    def resolve(self, graph: Graph) -> ExecutionPlan:
        """Return stages, each of which needs only earlier ones.

        Raises:
            ValueError: The graph has a cycle, or an edge to a node that is not in the graph. The text names the nodes.
        """
        nodes = graph.nodes
        positions = {node.id: position for position, node in enumerate(nodes)}
        waiting = [0] * len(nodes)
        consumers: list[list[int]] = [[] for _ in nodes]
        for edge in graph.edges:
            try:
                target = positions[edge.target.id]
                consumers[positions[edge.source.id]].append(target)
            except KeyError:
                raise _dangling_edge(edge, positions) from None
            waiting[target] += 1
        plan: ExecutionPlan = []
        stage = [position for position, count in enumerate(waiting) if not count]
        while stage:
            if len(stage) > 1:
                stage.sort(key=lambda position: nodes[position].name)
            plan.append([nodes[position] for position in stage])
            ready: list[int] = []
            for position in stage:
                for target in consumers[position]:
                    waiting[target] = left = waiting[target] - 1
                    if not left:
                        ready.append(target)
                consumers[position] = _FREED  # frees the list: freeing all at once would block other threads
            stage = ready
        if sum(map(len, plan)) < len(nodes):
            counts = dict(zip(positions, waiting, strict=True))
            raise ValueError(f"The workflow has a cycle: {' -> '.join(_cycle(graph, counts))}")
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
