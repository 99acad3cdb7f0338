"""The workflow as data: nodes, edges, and the graph of both."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from cascade.graph.arguments import ArgKind, key_of
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.input import InputSpec
from cascade.spec.lazy_types import Label
from cascade.spec.protocols import CachePolicy, LazyFactory
from cascade.spec.retry import RetryPolicy
from cascade.spec.routing import Router


class EdgeType(Enum):
    """Why the target needs the source."""

    DATA = auto()
    """Its value is an argument."""
    CONDITION = auto()
    """Its value decides whether the target runs."""
    CONSTRAINT = auto()
    """Its value is the amount of a system resource."""
    IMPLICIT = auto()
    """Its value, or that of the router that it selects for, is nested in an argument: in a list, a dict, a dataclass."""
    ROUTER_ROUTE = auto()
    """It is one branch of a router that the target consumes."""


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """One step of a workflow.

    A `param_spec` marks an input (a Param or an Env), which is not a task. `literal_inputs` has the literal arguments:
    positional ones by "0", "1", …, keywords by name (`cascade.graph.arguments` describes keywords made of digits).
    `positional` is the number of positional arguments; None means that each key made of digits is a position. `order` has
    the keys of all arguments in the order of the call, if literal and lazy keywords are mixed. `label` is that of the call,
    or of each item of a map.
    """

    id: str
    name: str
    node_type: str = "task"
    callable_obj: Any = None
    param_spec: InputSpec | None = None
    mapping_factory: LazyFactory | None = None
    retry_policy: RetryPolicy | None = None
    cache_policy: CachePolicy | None = None
    constraints: ResourceConstraint | None = None
    literal_inputs: dict[str, Any] = field(default_factory=dict)
    threaded: bool | None = None
    positional: int | None = None
    order: tuple[str, ...] | None = None
    label: Label | None = None

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Node) and self.id == other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Node {self.name}>"


@dataclass(repr=False, slots=True)
class Edge:
    """`target` needs `source`, as its argument `arg_name`. On the edge from a router's selector, `router` is set.

    `arg_kind` is None for an edge that is not an argument, and for one from before positional and keyword arguments were
    kept apart.
    """

    source: Node
    target: Node
    arg_name: str
    edge_type: EdgeType = EdgeType.DATA
    router: Router | None = None
    arg_kind: ArgKind | None = None

    @property
    def key(self) -> str:
        """Key of the argument among the inputs of the target."""
        if self.arg_kind is not ArgKind.KEYWORD or self.arg_name.isidentifier():
            return self.arg_name
        return key_of(self.arg_name, self.target.positional or 0)

    def __repr__(self) -> str:
        return f"<Edge {self.source.name} -> {self.target.name} ({self.edge_type.name} {self.arg_name})>"


@dataclass(repr=False)
class Graph:
    """Nodes and edges, in the order in which they were found: a target before what it needs."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = {node.id for node in self.nodes}

    def add_node(self, node: Node) -> None:
        """Add a node unless one with its id is there."""
        if node.id not in self._ids:
            self._ids.add(node.id)
            self.nodes.append(node)

    def add_edge(self, edge: Edge) -> None:
        self.edges.append(edge)

    def __repr__(self) -> str:
        return f"<Graph of {len(self.nodes)} nodes, {len(self.edges)} edges>"
