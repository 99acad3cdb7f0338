"""Diagram of a workflow in the DOT language of Graphviz."""

from typing import Any

from cascade.graph.build import build_graph
from cascade.graph.model import Edge, EdgeType, Node
from cascade.messaging.renderer import printable
from cascade.telemetry.redact import redact_text

_SHAPES = {"map": "hexagon", "param": "ellipse"}


def visualize(target: Any) -> str:
    """Return the workflow as a digraph of Graphviz. `dot -Tsvg` draws it."""
    graph = build_graph(target)
    lines = ["digraph CascadeWorkflow {", '  rankdir="TB";', *map(_node, graph.nodes), *map(_edge, graph.edges), "}"]
    return "\n".join(lines)


def _node(node: Node) -> str:
    shape = _SHAPES.get(node.node_type, "box")
    return f'  "{_quoted(node.id)}" [label="{_quoted(node.name)}\\n({node.node_type})", shape={shape}];'


def _edge(edge: Edge) -> str:
    return f'  "{_quoted(edge.source.id)}" -> "{_quoted(edge.target.id)}" [{_style(edge)}];'


def _style(edge: Edge) -> str:
    name = _quoted(edge.key)
    match edge.edge_type:
        case EdgeType.CONDITION:
            return 'style=dashed, color=gray, label="run_if"'
        case EdgeType.CONSTRAINT:
            return f'style=dotted, color=purple, label="constraint: {name}"'
        case EdgeType.ROUTER_ROUTE:
            return 'style=dashed, color=orange, arrowhead=open, label="route"'
        case EdgeType.IMPLICIT:
            return 'style=dotted, color=lightgray, arrowhead=none, label="implicit"'
        case EdgeType.DATA if edge.router is not None:
            return f'style=dashed, color=blue, label="route via: {name}"'
        case _:
            return f'label="{name}"'


def _quoted(text: str) -> str:
    """Return the text for a quoted string of DOT: masked, with control characters other than line breaks escaped."""
    shown = "\n".join(map(printable, redact_text(text).split("\n")))
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
