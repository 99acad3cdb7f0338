"""Resolves the arguments of a node's call, and the amounts of its constraints, from the results of a run."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import ref

from cascade.graph.model import Edge, EdgeType, Node, count_positional, split_arguments
from cascade.runtime.exceptions import DependencyMissingError
from cascade.runtime.flow import chosen_route, lazy_id
from cascade.spec.lazy_types import LazyResult, MappedLazyResult
from cascade.spec.nested import substitute
from cascade.spec.protocols import StateBackend
from cascade.spec.resource import Inject
from cascade.spec.routing import Router
from cascade.telemetry.redact import MASK, hides, is_secret
from cascade.telemetry.safe import safe

_T = TypeVar("_T")

ARGUMENTS = frozenset({EdgeType.DATA, EdgeType.IMPLICIT, EdgeType.ROUTER_ROUTE})
"""The edges whose sources' values are arguments, or parts of them."""


@dataclass(slots=True)
class Arguments:
    """A call's arguments. `inputs` has all but the injected resources by their keys (`cascade.graph.model`)."""

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


class Values(Protocol):
    """The values that arguments are made of: those of a run."""

    @property
    def state(self) -> StateBackend:
        """The results of tasks and inputs."""
        ...

    @property
    def resources(self) -> Mapping[str, Any]:
        """The resources that are set up, by name."""
        ...


class ArgumentResolver:
    """Resolves the arguments of one run's nodes."""

    def __init__(self, in_edges: Mapping[str, list[Edge]], values: Values) -> None:
        self._in_edges = in_edges
        self._values = values

    def resolve(self, node: Node) -> Arguments:
        """The arguments of a node whose upstreams are settled.

        Raises:
            DependencyMissingError: An upstream has no value.
            ValueError: None of a router's routes has the value of its selector.
        """
        inputs = dict(node.literal_inputs)
        nested: set[str] = set()
        for edge in self._in_edges.get(node.id, ()):
            if edge.edge_type is EdgeType.DATA:
                inputs[edge.key] = self._value(edge, node)
            elif edge.edge_type is EdgeType.IMPLICIT:
                nested.add(edge.key)
        if node.order is not None:
            inputs = {key: inputs[key] for key in node.order}
        for name in nested:
            inputs[name] = self._fill_in(inputs[name], node, name)
        return self.with_resources(node, inputs)

    def with_resources(self, node: Node, inputs: dict[str, Any]) -> Arguments:
        """The arguments of a call with the given inputs, with a resource in the place of each `Inject`."""
        positional = node.positional
        args, kwargs = split_arguments(inputs, count_positional(inputs) if positional is None else positional)
        for position, value in enumerate(args):
            if type(value) is Inject:
                args[position] = self._values.resources[value.resource_name]
        for name, value in kwargs.items():
            if type(value) is Inject:
                kwargs[name] = self._values.resources[value.resource_name]
        add_resources(node.callable_obj, args, kwargs, self._values.resources)
        return Arguments(args, kwargs, inputs)

    def edges_of(self, node_id: str) -> Sequence[Edge]:
        """The edges to a node from what its arguments need."""
        return self._in_edges.get(node_id, ())

    def amounts(self, node: Node) -> dict[str, Any]:
        """The amounts of a node's constraints. The values of lazy amounts are known."""
        requirements = node.constraints.requirements if node.constraints else {}
        return {name: self._amount(value, node, name) for name, value in requirements.items()}

    def _amount(self, value: Any, node: Node, name: str) -> Any:
        lazy = isinstance(value, (LazyResult, MappedLazyResult))
        return self._result(lazy_id(value), node, name) if lazy else value

    def _value(self, edge: Edge, node: Node) -> Any:
        value = self._result(edge.source.id, node, edge.arg_name)
        return value if edge.router is None else self._routed(edge.router, value, node, edge.arg_name)

    def _routed(self, router: Router, value: Any, node: Node, arg_name: str) -> Any:
        route = chosen_route(router, value)
        if route is None:
            routes = ", ".join(map(repr, router.routes))
            raise ValueError(
                f"Task '{node.name}': no matching route found for {safe(value)!r}; the routes are {routes}"
            )
        return self._result(lazy_id(route), node, arg_name)

    def _fill_in(self, value: Any, node: Node, arg_name: str) -> Any:
        def value_of(source: Any) -> Any:
            if not isinstance(source, Router):
                return self._result(lazy_id(source), node, arg_name)
            selected = self._result(lazy_id(source.selector), node, arg_name)
            return self._routed(source, selected, node, arg_name)

        return substitute(value, value_of)

    def _result(self, source_id: str, node: Node, arg_name: str) -> Any:
        if not self._values.state.has_result(source_id):
            raise DependencyMissingError(node.name, arg_name, source_id)
        return self._values.state.get_result(source_id)


def add_resources(function: Any, args: list[Any], kwargs: dict[str, Any], resources: Mapping[str, Any]) -> None:
    """Append to a call's arguments the resources that the defaults of the function's parameters name."""
    injected = injected_names(function)
    if not injected:
        return
    if any(wanted.positional_only for wanted in injected.values()):
        args.extend(_positional_only(function, len(args), resources))
    for parameter, wanted in injected.items():
        is_given = wanted.positional_only or (wanted.position is not None and wanted.position < len(args))
        if not is_given and parameter not in kwargs:
            kwargs[parameter] = resources[wanted.resource_name]


def _positional_only(function: Any, given: int, resources: Mapping[str, Any]) -> list[Any]:
    """Defaults of the positional-only parameters after the given ones, up to the last one that is a resource."""
    defaults = [p.default for p in _parameters(function) if p.kind is p.POSITIONAL_ONLY][given:]
    while defaults and type(defaults[-1]) is not Inject:
        defaults.pop()
    return [resources[default.resource_name] if type(default) is Inject else default for default in defaults]


class InjectedParameter(NamedTuple):
    """A parameter whose default is an `Inject`. `position` is None if it is keyword-only."""

    position: int | None
    positional_only: bool
    resource_name: str


def hashable_cache(compute: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Cache `compute(function)` for as long as the function is alive. `inspect` needs microseconds to find its properties.

    The result must not refer to the function: the entry would keep it alive. A function is compared by identity. The
    result is not cached for an object that defines its own `__eq__` or `__hash__`, or that has no weak references, such
    as a bound method.
    """
    known: dict[ref[Any], _T] = {}

    def forget(function: ref[Any]) -> None:
        known.pop(function, None)

    @wraps(compute)
    def cached(function: Any) -> _T:
        if type(function) is not FunctionType and not _is_compared_by_identity(type(function)):
            return compute(function)
        found: Any = known.get(ref(function), known)  # `known` itself stands for no entry
        if found is known:
            found = known[ref(function, forget)] = compute(function)
        value: _T = found
        return value

    return cached


def _is_compared_by_identity(kind: Any) -> bool:
    return kind.__hash__ is object.__hash__ and kind.__eq__ is object.__eq__ and bool(kind.__weakrefoffset__)


@hashable_cache
def injected_names(function: Any) -> Mapping[str, InjectedParameter]:
    """The parameters whose defaults are an `Inject`, by name."""
    return {
        p.name: InjectedParameter(
            None if p.kind is p.KEYWORD_ONLY else position, p.kind is p.POSITIONAL_ONLY, p.default.resource_name
        )
        for position, p in enumerate(_parameters(function))
        if type(p.default) is Inject
    }


class PositionalNames(NamedTuple):
    """The names of the parameters that take positional arguments, and that of `*args`, or ""."""

    names: tuple[str, ...]
    rest: str

    def of(self, position: int) -> str:
        return self.names[position] if position < len(self.names) else self.rest


@hashable_cache
def positional_names(function: Any) -> PositionalNames:
    """The names of the parameters that take the positional arguments of a function."""
    parameters = list(_parameters(function))
    names = (p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD})
    return PositionalNames(tuple(names), next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), ""))


def without_secrets(arguments: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """Arguments by their keys; masked are those of the function's parameters that have the name of a secret."""
    names = positional_names(function)
    return {
        key: MASK if hides(names.of(int(key)) if key.isdigit() else key, value) else value
        for key, value in arguments.items()
    }


def hidden_secrets(arguments: Mapping[str, Any], function: Any, edges: Sequence[Edge]) -> dict[str, Any]:
    """The arguments; masked if the parameter, or the Param, Env or task that the value comes from, has a secret's name."""
    sources = {edge.key for edge in edges if edge.edge_type in ARGUMENTS and is_secret(_source(edge))}
    if not sources <= arguments.keys():  # the arguments of a map's item have other keys than the map's lists
        return dict.fromkeys(arguments, MASK)
    return without_secrets(arguments, function) | dict.fromkeys(sources, MASK)


def _source(edge: Edge) -> str:
    return edge.source.name if edge.source.param_spec is None else edge.source.param_spec.name


def injected_defaults(function: Any) -> Mapping[str, Inject]:
    """The `Inject` of each parameter that has one as default.

    The mapping may refer to the function, so it is not cached: `injected_names` is.
    """
    return {p.name: p.default for p in _parameters(function) if type(p.default) is Inject}


def defaults_of(function: Any, names: frozenset[str]) -> dict[str, Any]:
    """The defaults of those of the function's parameters that have the given names, without resources."""
    wanted = (p for p in _parameters(function) if p.name in names)
    return {p.name: p.default for p in wanted if p.default is not p.empty and type(p.default) is not Inject}


def _parameters(function: Any) -> Iterable[inspect.Parameter]:
    if not callable(function):
        return ()
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-in functions without a signature
        return ()
