"""Diagram of a workflow in the DOT language of Graphviz, or as a flowchart of Mermaid."""

from typing import Any, Literal

from cascade.graph.build import build_graph
from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.messaging.renderer import printable
from cascade.telemetry.redact import redact_text
from cascade.tools._descriptions import Descriptions, kind_of, label_of, name_of
from cascade.tools._mermaid import flowchart

_SHAPES = {"map": "hexagon", "param": "ellipse", "env": "ellipse"}
_STYLES = {
    EdgeType.CONDITION: "style=dashed, color=gray, ",
    EdgeType.CONSTRAINT: "style=dotted, color=purple, ",
    EdgeType.ROUTER_ROUTE: "style=dashed, color=orange, arrowhead=open, ",
    EdgeType.IMPLICIT: "style=dotted, color=lightgray, arrowhead=none, ",
}
_SELECTOR = "style=dashed, color=blue, "


def visualize(target: Any, format: Literal["dot", "mermaid"] = "dot") -> str:  # noqa: A002 - the name users expect
    """Return a diagram of the workflow: a digraph of Graphviz, which `dot -Tsvg` draws, or a flowchart of Mermaid.

    Secrets in names, labels and values are masked.

    Args:
        target: A lazy result, or a graph.
        format: "dot" or "mermaid".

    Raises:
        TypeError: The target is neither a lazy result nor a graph.
        ValueError: The format is unknown.
    """
    if format not in ("dot", "mermaid"):
        raise ValueError(f"format={format!r}: choose 'dot' or 'mermaid'")
    graph = build_graph(target)
    return _digraph(graph) if format == "dot" else flowchart(graph)


def _digraph(graph: Graph) -> str:
    descriptions = Descriptions(graph)
    nodes = [line for node in graph.nodes for line in _node(node, descriptions.in_diagram(node))]
    return "\n".join(["digraph CascadeWorkflow {", '  rankdir="TB";', *nodes, *map(_edge, graph.edges), "}"])


def _node(node: Node, details: list[str]) -> list[str]:
    """Return the statement of a node. With details, a second statement replaces the label."""
    kind, node_id = kind_of(node), _quoted(node.id)
    label = f"{_quoted(name_of(node))}\\n({kind})"
    lines = [f'  "{node_id}" [label="{label}", shape={_SHAPES.get(kind, "box")}];']
    if details:
        lines.append(f'  "{node_id}" [label="{label}\\n{_quoted(chr(10).join(details))}"];')
    return lines


def _edge(edge: Edge) -> str:
    """Return the statement of an edge. With a route, a second list of attributes replaces the label."""
    ends = f'  "{_quoted(edge.source.id)}" -> "{_quoted(edge.target.id)}"'
    label = _quoted(label_of(edge))
    if edge.edge_type is EdgeType.ROUTER_ROUTE:
        return f'{ends} [{_STYLES[edge.edge_type]}label="route"] [label="{label}"];'
    style = (
        _SELECTOR if edge.router is not None and edge.edge_type is EdgeType.DATA else _STYLES.get(edge.edge_type, "")
    )
    return f'{ends} [{style}label="{label}"];'


def _quoted(text: str) -> str:
    """Return the text for a quoted string of DOT: masked, with control characters other than line breaks escaped."""
    shown = "\n".join(map(printable, redact_text(text).split("\n")))
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
