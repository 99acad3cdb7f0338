"""Graph of a workflow: nodes, edges, and the keys of arguments.

`Node.literal_inputs` has one key for each argument: "0", "1", … for positional arguments, the name for keyword
arguments. A keyword may look like a position, as in `f("a", **{"0": "b"})`. If it equals a position of the call, or the
position after the last one, its key begins with two asterisks: `{"0": "a", "**0": "b"}`. Different calls have different
inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Any

from cascade.spec.caching import Cache
from cascade.spec.constraint import ResourceConstraint
from cascade.spec.input import InputSpec
from cascade.spec.lazy_types import Target
from cascade.spec.nested import sources_in
from cascade.spec.options import NO_TIMEOUT, CallOptions, Label
from cascade.spec.protocols import LazyFactory
from cascade.spec.retry import RetryPolicy
from cascade.spec.routing import Router

_KEYWORD_MARK = "**"
SHAPE = "The target"
"""Beginning of the errors about a container of several targets."""
MAX_TARGET_NAMES = 5
"""Maximum number of targets that name a run. The name of its span has low cardinality."""
_SHOWN_ENDS = 8
"""Maximum number of nodes in the error of a graph without a target."""
_MAX_DIGITS = 9
"""Longest position in digits: a call cannot have more arguments."""


class ArgKind(StrEnum):
    """Kind of an argument: positional or keyword."""

    POSITIONAL = "positional"
    KEYWORD = "keyword"


class EdgeType(Enum):
    """Use of the source by the target."""

    DATA = auto()
    """The value of the source is an argument."""
    CONDITION = auto()
    """The value of the source decides whether the target runs."""
    CONSTRAINT = auto()
    """The value of the source is the amount of a system resource."""
    IMPLICIT = auto()
    """The value is nested in an argument, in a list, a dict or a dataclass. A source with a router selects the
    value."""
    ROUTER_ROUTE = auto()
    """The source is one branch of a router. The router is an argument of the target."""


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """One task, map or input of a workflow.

    Attributes:
        param_spec: Set for an input, which is a Param or an Env.
        literal_inputs: The literal arguments by key. Read only: the nodes of a graph without any share one dict.
        positional: The number of positional arguments. With None, each key made of digits is a position.
        order: The keys of all arguments in the order of the call, if literal and lazy keyword arguments are mixed.
        label: The label of the call, or of each item of a map.
        tags: The tags of the task, or of a map and its items.
        unmapped: The names of the arguments of a map that are one value for all items.
        timeout: The limit of each attempt in seconds; None for no limit.
        allow_failure: Whether a failure becomes the value of the node, or of an item of the map.
    """

    id: str
    name: str
    node_type: str = "task"
    callable_obj: Any = None
    param_spec: InputSpec | None = None
    mapping_factory: LazyFactory | None = None
    retry_policy: RetryPolicy | None = None
    cache_policy: Cache | None = None
    constraints: ResourceConstraint | None = None
    literal_inputs: dict[str, Any] = field(default_factory=dict)
    threaded: bool | None = None
    positional: int | None = None
    order: tuple[str, ...] | None = None
    # Options that few nodes have. A node with one is a `NodeWithOptions`: the others need no memory for them.
    if TYPE_CHECKING:
        label: Label | None = field(default=None, init=False)
        tags: tuple[str, ...] = field(default=(), init=False)
        unmapped: frozenset[str] = field(default=frozenset(), init=False)
        timeout: float | None = field(default=None, init=False)
        allow_failure: bool = field(default=False, init=False)
    else:
        label = None
        tags = ()
        unmapped = frozenset()
        timeout = None
        allow_failure = False

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Node) and self.id == other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Node {self.name}>"


class NodeWithOptions(Node):
    """A node with an option that few nodes have. It has no slots, so that the option is set on the instance.

    Attributes:
        options: The options of the call, from which a map makes those of its items.
    """

    options = CallOptions()

    def set_options(self, options: CallOptions) -> None:
        """Set the options of a call. One that only switches off that of a task, such as `with_retry(0)`, is left out."""
        self.options, retry, timeout = options, options.retry_policy, options.timeout
        self.retry_policy = None if retry is None or not retry.max_attempts else retry
        self.cache_policy, self.constraints = options.cache_policy, options.constraints
        if timeout is not None and timeout != NO_TIMEOUT:
            self.timeout = timeout
        if options.label is not None:
            self.label = options.label
        if options.tags:
            self.tags = options.tags


@dataclass(repr=False, slots=True)
class Edge:
    """Dependency of `target` on `source`, for the argument `arg_name`.

    Attributes:
        router: Set on the edge from the selector of a router.
        arg_kind: None if the edge is not an argument, or if stored JSON has no `arg_kind`.
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
        return argument_key(self.arg_name, self.target.positional or 0)

    def __repr__(self) -> str:
        return f"<Edge {self.source.name} -> {self.target.name} ({self.edge_type.name} {self.arg_name})>"


@dataclass(repr=False)
class Graph(Target[Any]):
    """Nodes and edges in the order of discovery: a target comes before its sources. A run accepts a graph as its target.

    Attributes:
        target: The node whose value is the value of a run. With None, it is the only node that no other node uses.
        shape: A container with lazy results, for a run with several targets: the value of the run is a copy of it with their
            values. None for one target.
    """

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    target: Node | None = None
    shape: Any = None

    def __post_init__(self) -> None:
        self._ids: set[str] = set()

    def add_node(self, node: Node) -> None:
        """Add a node, unless the graph has a node with this id."""
        if not self._ids:  # most graphs are built at once and need no set
            self._ids = {known.id for known in self.nodes}
        if node.id not in self._ids:
            self._ids.add(node.id)
            self.nodes.append(node)

    def add_edge(self, edge: Edge) -> None:
        self.edges.append(edge)

    def require_target(self) -> Node:
        """Return the node whose value is the value of a run.

        Raises:
            ValueError: The graph has no target, and not exactly one node that no other node uses.
        """
        if self.target is not None:
            return self.target
        ends = self.unused()
        if len(ends) == 1:
            return ends[0]
        found = ", ".join(f"'{node.name}' ({node.id})" for node in ends[:_SHOWN_ENDS])
        more = f" and {len(ends) - _SHOWN_ENDS} more" if len(ends) > _SHOWN_ENDS else ""
        raise ValueError(
            f"The graph has no target, and {len(ends)} nodes that no other node uses: {found or 'none'}{more}; "
            "set Graph.target, or the key 'target' of the JSON, to the node whose value the run returns"
        )

    def target_ids(self) -> list[str]:
        """Return the ids of the targets, each once.

        Raises:
            ValueError: The graph has no target.
        """
        if self.shape is None:
            return [self.require_target().id]
        return [*dict.fromkeys(lazy._uuid for lazy in sources_in(self.shape, SHAPE))]

    def target_names(self) -> list[str]:
        """Return the names of the targets, each once: the first five, and then a text such as "and 2 more".

        Raises:
            ValueError: The graph has no target.
        """
        if self.shape is None:
            return [self.require_target().name]
        nodes = {node.id: node.name for node in self.nodes}
        names = list(dict.fromkeys(nodes[each] for each in self.target_ids()))
        more = len(names) - MAX_TARGET_NAMES
        return [*names[:MAX_TARGET_NAMES], f"and {more} more"] if more > 0 else names

    def unused(self) -> list[Node]:
        """Return the nodes that no other node uses."""
        used = {edge.source.id for edge in self.edges}
        return [node for node in self.nodes if node.id not in used]

    def __repr__(self) -> str:
        return f"<Graph of {len(self.nodes)} nodes, {len(self.edges)} edges>"


def argument_key(keyword: str, positional: int) -> str:
    """Return the key of a keyword argument in a call with `positional` positional arguments."""
    if keyword.isidentifier() or not _is_position(keyword.lstrip("*"), positional + 1):
        return keyword
    return _KEYWORD_MARK + keyword


def split_arguments(inputs: Mapping[str, Any], positional: int | None) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments of a call, from its inputs by key.

    `positional` is the number of positional arguments. With None, each key made of digits is a position.
    """
    if positional is None:
        positional = _count_positional(inputs)
    if not positional and all(map(str.isidentifier, inputs)):  # most calls
        return [], dict(inputs)
    args = [inputs[str(position)] for position in range(positional)]
    if len(args) == len(inputs):
        return args, {}
    return args, {
        key if key.isidentifier() else _keyword_of(key, positional): value
        for key, value in inputs.items()
        if key.isidentifier() or not _is_position(key, positional)
    }


def join_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a call by key. The inverse of `split_arguments`."""
    inputs = {str(position): value for position, value in enumerate(args)}
    return inputs | {argument_key(name, len(args)): value for name, value in kwargs.items()}


def _count_positional(keys: Mapping[str, Any]) -> int:
    count = 0
    while str(count) in keys:
        count += 1
    return count


def _keyword_of(key: str, positional: int) -> str:
    keyword = key.removeprefix(_KEYWORD_MARK)
    return keyword if argument_key(keyword, positional) == key else key


def _is_position(text: str, end: int) -> bool:
    """Whether the text is a number below `end`, without a sign and without leading zeros."""
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        return False
    return int(text) < end and str(int(text)) == text
