"""From a node and the results so far to the arguments of a call, and to its constraints' amounts."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import eq
from typing import Any

from cascade.graph.model import Edge, EdgeType, Node
from cascade.graph.nested import substitute
from cascade.runtime.exceptions import DependencyMissingError
from cascade.runtime.flow import chosen_route, lazy_id
from cascade.runtime.hashable_cache import hashable_cache
from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.protocols import StateBackend
from cascade.spec.resource import Inject


@dataclass(slots=True)
class Arguments:
    """A call's arguments. `inputs` has all but the injected resources, by name; positional ones as "0", "1", …."""

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


class ArgumentResolver:
    """Resolves the arguments of one run's nodes."""

    def __init__(self, in_edges: Mapping[str, list[Edge]], state: StateBackend, resources: Mapping[str, Any]) -> None:
        self._in_edges = in_edges
        self._state = state
        self._resources = resources

    def resolve(self, node: Node) -> Arguments:
        """The arguments of a node whose upstreams are settled.

        Raises:
            DependencyMissingError: An upstream has no value.
            ValueError: A router's selector gave a value that none of its routes has.
        """
        inputs = dict(node.literal_inputs)
        nested: set[str] = set()
        for edge in self._in_edges.get(node.id, ()):
            if edge.edge_type is EdgeType.DATA:
                inputs[edge.arg_name] = self._value(edge, node)
            elif edge.edge_type is EdgeType.IMPLICIT:
                nested.add(edge.arg_name)
        for name in nested:
            inputs[name] = self._fill_in(inputs[name], node, name)
        return self.with_resources(inputs, node.callable_obj)

    def with_resources(self, inputs: dict[str, Any], function: Any) -> Arguments:
        """Put resources where the inputs, or the defaults of the function's parameters, ask for them."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name in inputs if _in_order(inputs) else sorted(inputs, key=_position):
            value = inputs[name]
            given = self._resources[value.resource_name] if type(value) is Inject else value
            if name.isdigit():
                args.append(given)
            else:
                kwargs[name] = given
        call = Arguments(args, kwargs, inputs)
        for parameter, (position, resource_name) in injected_names(function).items():
            if parameter not in call.kwargs and not (position is not None and position < len(call.args)):
                call.kwargs[parameter] = self._resources[resource_name]
        return call

    def amounts(self, node: Node) -> dict[str, Any]:
        """What a node's constraints come to; lazy amounts are known by now."""
        requirements = node.constraints.requirements if node.constraints else {}
        return {name: self._amount(value, node, name) for name, value in requirements.items()}

    def _amount(self, value: Any, node: Node, name: str) -> Any:
        lazy = isinstance(value, (LazyResult, MappedLazyResult))
        return self._result(lazy_id(value), node, name) if lazy else value

    def _value(self, edge: Edge, node: Node) -> Any:
        value = self._result(edge.source.id, node, edge.arg_name)
        if edge.router is None:
            return value
        route = chosen_route(edge.router, value)
        if route is None:
            routes = ", ".join(map(repr, edge.router.routes))
            raise ValueError(f"Task '{node.name}': no matching route found for {value!r}; the routes are {routes}")
        return self._result(lazy_id(route), node, edge.arg_name)

    def _fill_in(self, value: Any, node: Node, arg_name: str) -> Any:
        return substitute(value, lambda lazy: self._result(lazy_id(lazy), node, arg_name))

    def _result(self, source_id: str, node: Node, arg_name: str) -> Any:
        if not self._state.has_result(source_id):
            raise DependencyMissingError(node.name, arg_name, source_id)
        return self._state.get_result(source_id)


def _in_order(inputs: Mapping[str, Any]) -> bool:
    """Whether positional arguments come first and in their order, as they mostly do."""
    return len(inputs) < 2 or all(map(eq, inputs, _POSITIONS)) or not any(map(str.isdigit, inputs))  # noqa: PLR2004


_POSITIONS = tuple(map(str, range(256)))


def _position(name: str) -> int:
    return int(name) if name.isdigit() else 0


@hashable_cache
def injected_names(function: Any) -> Mapping[str, tuple[int | None, str]]:
    """Position (None if keyword-only) and resource name of each parameter whose default is an `Inject`."""
    return {name: (position, inject.resource_name) for name, (position, inject) in injected_defaults(function).items()}


def injected_defaults(function: Any) -> Mapping[str, tuple[int | None, Inject]]:
    """Position (None if keyword-only) and default of each parameter whose default is an `Inject`.

    The mapping may refer to the function, so it is not cached: `injected_names` is.
    """
    if not callable(function):
        return {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions without a signature
        return {}
    return {
        name: (None if p.kind is p.KEYWORD_ONLY else index, p.default)
        for index, (name, p) in enumerate(parameters.items())
        if type(p.default) is Inject
    }
