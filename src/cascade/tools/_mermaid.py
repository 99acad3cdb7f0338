"""Flowchart of a workflow in the language of Mermaid."""

import re

from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.messaging.renderer import printable
from cascade.telemetry.redact import redact_text
from cascade.tools._descriptions import Descriptions, kind_of, label_of, name_of

_BRACKETS = {"map": ("{{", "}}"), "param": ("([", "])"), "env": ("([", "])")}

_ESCAPED = re.compile(
    r"""
    [^\w\s,.:;()\[\]{}/=+'-]          # quotes, HTML, Markdown, entities and directives of Mermaid
    | (?<![^\W_])_ | _(?![^\W_])      # an underscore at the edge of a word: emphasis
    | (?<=^\d)[.)] | (?<=^\d\d)[.)]   # a numbered list
    | ^[+=-]                          # a list or a heading
    """,
    re.VERBOSE | re.MULTILINE,
)
_STATEMENTS = re.compile(r"style|classDef", re.IGNORECASE)
"""Mermaid removes the last semicolon of a line with one of these words and a colon."""


def flowchart(graph: Graph) -> str:
    """Return a graph as a flowchart. The nodes have the ids n0, n1, …, because words such as `end` are no ids in Mermaid."""
    descriptions = Descriptions(graph)
    ids = {node.id: f"n{position}" for position, node in enumerate(graph.nodes)}
    nodes = [_node(ids[node.id], node, descriptions.in_diagram(node)) for node in graph.nodes]
    return "\n".join(["flowchart TB", *nodes, *(_edge(edge, ids) for edge in graph.edges)])


def _node(node_id: str, node: Node, details: list[str]) -> str:
    start, end = _BRACKETS.get(kind_of(node), ("[", "]"))
    lines = [name_of(node), f"({kind_of(node)})", *details]
    return f'  {node_id}{start}"{_label(chr(10).join(lines))}"{end}'


def _edge(edge: Edge, ids: dict[str, str]) -> str:
    is_plain = edge.edge_type is EdgeType.DATA and edge.router is None
    return f'  {ids[edge.source.id]} {"-->" if is_plain else "-.->"}|"{_label(label_of(edge))}"| {ids[edge.target.id]}'


def _label(text: str) -> str:
    """Return the text for a quoted string of Mermaid: masked, with the characters escaped that have a meaning in labels."""
    lines = [printable(line) for line in redact_text(text).split("\n")]
    return "<br/>".join(_escape(line) for line in lines)


def _escape(line: str) -> str:
    line = _ESCAPED.sub(lambda found: f"#{ord(found[0])};", line)
    return line.replace(":", "#58;") if _STATEMENTS.search(line) else line
