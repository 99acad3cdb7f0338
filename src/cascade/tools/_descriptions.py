"""Descriptions of the nodes and edges of a graph, for the plan and the diagrams of a workflow. Secrets are masked."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.spec.caching import NO_CACHE
from cascade.spec.input import EnvSpec, InputSpec, ParamSpec
from cascade.spec.nested import LAZY
from cascade.spec.retry import MAX_DELAY, RetryPolicy
from cascade.telemetry.redact import MASK, is_masked, redact_text
from cascade.tools._options import text_of

MAX_TEXT = 200
"""Maximum number of characters of a value and of a description."""

_ROUTE = "_route_"


class Descriptions:
    """Describes the nodes of one graph, with one text for each fact."""

    def __init__(self, graph: Graph) -> None:
        self._names = {node.id: name_of(node) for node in graph.nodes}
        self._edges: dict[str, list[Edge]] = defaultdict(list)
        for edge in graph.edges:
            self._edges[edge.target.id].append(edge)

    def in_plan(self, node: Node) -> tuple[str, ...]:
        """Return all facts about a node but its literal arguments and the sources of its other arguments."""
        amounts = [f"constraints: {', '.join(self._amounts(node))}"] if node.constraints else []
        kind = kind_of(node) if node.mapping_factory is None else f"map of {node.mapping_factory.name}"
        facts = [*(f"{kind}: {fact}" for fact in self._facts(node)), *self._constants(node), *self._decisions(node)]
        return tuple(map(_cut, [*facts, *amounts, *_options(node)]))

    def in_diagram(self, node: Node) -> list[str]:
        """Return the facts about a node that its edges do not show."""
        texts = ", ".join(self._amounts(node, literal=True))
        amounts = [f"constraints: {texts}"] if texts else []
        return list(map(_cut, [*self._facts(node), *self._constants(node), *amounts, *_options(node)]))

    def _facts(self, node: Node) -> Iterator[str]:
        if node.param_spec is not None:
            yield _input(node.param_spec)
        elif node.mapping_factory is not None:
            yield self._items(node)

    def _constants(self, node: Node) -> list[str]:
        """Return the arguments of a map that are the same for all items, with their values or the names of their sources."""
        found = {edge.key: self._name_of_source(edge) for edge in self._edges[node.id] if edge.key in node.unmapped}
        found |= {
            name: MASK if is_masked(name, value) else shown(value)
            for name, value in node.literal_inputs.items()
            if name in node.unmapped
        }
        return [f"unmapped: {', '.join(f'{name}={text}' for name, text in sorted(found.items()))}"] if found else []

    def _items(self, node: Node) -> str:
        lists = {name: value for name, value in node.literal_inputs.items() if name not in node.unmapped}
        sizes = [size for value in lists.values() if (size := _size(value)) is not None]
        edges = [e for e in self._edges[node.id] if e.edge_type is EdgeType.DATA and e.arg_name not in node.unmapped]
        sources = map(self._name_of_source, edges)
        return (
            _count(sizes[0]) if sizes else ", ".join(f"items of {name}" for name in dict.fromkeys(sources)) or _count(0)
        )

    def _decisions(self, node: Node) -> Iterator[str]:
        for edge in self._edges[node.id]:
            source = self._name_of_source(edge)
            if edge.edge_type is EdgeType.CONDITION:
                yield f"run_if: {source}"
            elif edge.router is not None:
                routes = (f"{shown(key)} -> {self._name(route)}" for key, route in edge.router.routes.items())
                yield f"route via {edge.key}: {source} selects {', '.join(routes)}"

    def _amounts(self, node: Node, *, literal: bool = False) -> Iterator[str]:
        for name, amount in node.constraints.requirements.items() if node.constraints else ():
            if not isinstance(amount, LAZY):
                yield f"{name}={shown(amount)}"
            elif not literal:
                yield f"{name}={self._name(amount)}"

    def _name(self, lazy: Any) -> str:
        return self._names.get(lazy._uuid, "?")  # noqa: SLF001 - the id of a lazy result

    def _name_of_source(self, edge: Edge) -> str:
        return self._names[edge.source.id]


def name_of(node: Node) -> str:
    """Return the name of an input, a task or a map."""
    return node.name if node.param_spec is None else node.param_spec.name


def kind_of(node: Node) -> str:
    """Return "param" or "env" for an input, else the type of the node."""
    if node.param_spec is None:
        return node.node_type
    return "env" if isinstance(node.param_spec, EnvSpec) else "param"


def label_of(edge: Edge) -> str:
    """Return the label of an edge in a diagram."""
    match edge.edge_type:
        case EdgeType.CONDITION:
            return "run_if"
        case EdgeType.CONSTRAINT:
            return f"constraint: {edge.key}"
        case EdgeType.ROUTER_ROUTE:
            return f"route: {edge.arg_name.removeprefix(_ROUTE)}"
        case EdgeType.IMPLICIT:
            return "implicit"
        case _:
            return edge.key if edge.router is None else f"route via: {edge.key}"


def shown(value: Any) -> str:
    """Return the repr of a value, or the name of its type if its repr raises."""
    try:
        return _cut(repr(value))
    except Exception:  # noqa: BLE001 - the code of the value may do anything
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    text = redact_text(text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _input(spec: InputSpec) -> str:
    parts = [type_name(spec.type)] if isinstance(spec, ParamSpec) else []
    if spec.default is not None:
        parts.append(f"default {MASK if is_masked(spec.name, spec.default) else _default(spec.default)}")
    elif not spec.has_default:
        parts.append("required")
    return ", ".join([*parts, spec.description] if spec.description else parts)


def _default(value: Any) -> str:
    """Return the text of the command line for a value whose repr is longer, such as `Color.RED`; else the repr."""
    text = None if isinstance(value, (str, list, tuple, set, frozenset)) else text_of(value)
    return shown(value) if text is None else _cut(text)


def type_name(kind: Any) -> str:
    """Return the name of a type, with its arguments."""
    is_class = isinstance(kind, type) and not hasattr(kind, "__args__")
    return str(kind.__name__ if is_class else kind).replace("typing.", "")


def _options(node: Node) -> Iterator[str]:
    """Return the options of a call or a map that differ from their defaults."""
    if node.retry_policy is not None:
        yield _retries(node.retry_policy)
    if node.timeout is not None:
        yield f"timeout: {node.timeout:g} s"
    if node.allow_failure:
        yield "allow_failure"
    if node.cache_policy is not None:
        yield f"cache: {'none' if node.cache_policy is NO_CACHE else type(node.cache_policy).__name__}"
    if node.label:
        yield f"label: {node.label if isinstance(node.label, str) else f'by {_name_of(node.label)}'}"
    if node.tags:
        yield f"tags: {', '.join(node.tags)}"


def _retries(policy: RetryPolicy) -> str:
    parts = [f"retries: {policy.max_attempts}"]
    if policy.delay:
        parts.append(f"delay {policy.delay:g} s")
        parts += [f"backoff {policy.backoff:g}"] if policy.backoff != 1 else []
        parts += [f"max_delay {policy.max_delay:g} s"] if policy.max_delay != MAX_DELAY else []
        parts += [f"jitter {policy.jitter:g}"] if policy.jitter else []
    conditions: Any = policy.retry_on
    parts += [f"on {', '.join(map(_name_of, conditions))}"] if conditions else []
    return ", ".join(parts)


def _name_of(function: Any) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return "a function" if name == "<lambda>" else name


def _count(size: int) -> str:
    return f"{size} item{'' if size == 1 else 's'}"


def _size(value: Any) -> int | None:
    try:
        return len(value)
    except Exception:  # noqa: BLE001 - the code of the value may do anything
        return None
